"""Rule, Stack and Wrapper: one guidance method, a sequence of them, and a method around another.

A rule is a frozen dataclass of plain numbers with three pure functions. It holds nothing that changes, so one object
serves any number of runs at once, prints, compares, pickles, and is written to YAML and back.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Self

from torch import Tensor

from .errors import CompositionError, RuleError, shown
from .fields import parameters, set_field
from .files import RuleFile
from .notebook import table
from .objective import Bound
from .prediction import Prediction, Space
from .query import ANY, NEGATIVE, NULL, Edits, Predictions, PromptEdit, Queries, Query, RowMask, covered, united
from .step import Estimate, Run, State, StateT, Step
from .turn import Look, Sight

DEEPEST = 30
"""Rules inside one another, a stack in a rule counted: what is deeper could be read and not written, or the reverse."""
FURTHER = "\N{EM SPACE}" * 2
"""What a table for notebooks has before a rule that is inside another one; blanks would not be shown."""
STACK = "stack"
"""The name of the empty or nested stack in text."""


class Rule(Generic[StateT]):
    """Base class of guidance rules, each a frozen dataclass; `register` gives it a name in text and YAML.

    A rule that remembers something names the type of its state, a NamedTuple: ``class Mine(Rule[MyState])``.

    Class attributes:
        space: what `update` reads and writes. ``"any"`` says that the result is the same in every space, as for every
            combination of predictions whose weights sum to one; such a rule works on the network's own output. A rule
            that lets its user choose makes it a field.
        neutral_values: parameters at which the rule does nothing, or None where no parameter does that.
        whole_stack: whether no other rule may stand beside or around it; what it is combined with goes inside it.
        needs_identity: whether it reads `Run.identity`, for which the model's weights are hashed when a run begins.
        data_dependent: whether what it asks for depends on the predictions, so that a plan made before the run counts
            the most evaluations that the rule may cost and a run may take fewer.
        couples: whether a sample's result depends on other samples of its batch. Only rules on particles do that, and
            they do it in turns: see `Resample`.
        redraws: whether the rule draws the samples of each evaluation anew, from a clean sample of its own: see
            `REDDiff`. No rule stands behind it, and none beside it takes turns or sets what the sampler re-noises with:
            what they do would be lost.
    """

    space: ClassVar[Space | Literal["any"]] = "any"
    neutral_values: ClassVar[Mapping[str, Any] | None] = None
    whole_stack: ClassVar[bool] = False
    needs_identity: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    couples: ClassVar[bool] = False
    redraws: ClassVar[bool] = False
    _name: ClassVar[str]  # in text; `register` gives it

    @property
    def contrast(self) -> Query | None:
        """The query that the rule guides away from; None if there is none."""
        return None

    @property
    def renoises(self) -> bool:
        """Whether the rule sets the prediction that the sampler re-noises with, `Estimate.renoise`."""
        return False

    @property
    def guides_history(self) -> bool:
        """Whether a second-order solver takes its difference with the guided prediction: see `CFGPlusPlus`."""
        return any(part.guides_history for part in self.parts() if part is not self)

    @property
    def refines(self) -> bool:
        """Whether the rule only reshapes the estimate of the rules before it, and does nothing without them."""
        return False

    @property
    def guides(self) -> bool:
        """Whether the rule, by itself, changes the prediction that the sampler steps with."""
        return not self.refines

    @property
    def skips(self) -> bool:
        """Whether the rule may skip the network at a step: see `unasked`. Such a rule must be the whole stack."""
        return False

    @property
    def takes_several(self) -> bool:
        """Whether the rule asks for each of several negative prompts; other rules take one."""
        return any(query.condition == "negative" + ANY for query in self.asks())

    @property
    def per_image(self) -> int:
        """How many samples are made for one image: more than 1 for a rule on particles, which traces `log_weight`.

        ``generate`` and sweeps make that many samples for each image and keep one; `guide` and `sample` return all.
        """
        return max((part.per_image for part in self.nested()), default=1)

    @property
    def weight_counts(self) -> Mapping[str, int]:
        """How many prompts of each kind the rule has weights for, if it has one weight for each prompt.

        The kinds are ``"negative"``, the negative prompts, and ``"positive"``, the positives beside the prompt. A rule
        with one weight for all of a kind, or without weights, leaves that kind out.
        """
        return {}

    @property
    def objectives(self) -> tuple[str, ...]:
        """The texts of the objectives that the rule steers by; none by default."""
        return ()

    def check_objective(self, objective: Bound) -> None:
        """Check that the rule can use one of its objectives; by default it can use any.

        Raises:
            RuleError: the rule needs an objective of another kind.
        """
        del objective

    @property
    def drifts(self) -> bool:
        """Whether the rule depends on the noise that a step draws, which must be that of the reverse SDE."""
        return False

    @property
    def differentiates(self) -> bool:
        """Whether the rule may take gradients through the denoiser: see `differentiated`."""
        return False

    @property
    def stands_last(self) -> bool:
        """Whether the rules that follow it must leave the estimate as it is, or be of this kind too."""
        return False

    def files(self) -> Mapping[str, RuleFile]:
        """The files that the rule reads when a run begins, by the parameter that names each; none by default.

        Their contents enter a sample's address, and `save_pretrained` copies those that the user gave.

        Raises:
            InputError: a file that a parameter names does not exist.
        """
        return {}

    def check_steps(self, steps: int) -> None:
        """Check that the rule can run in a schedule of `steps` steps; by default it can.

        Raises:
            RuleError: the rule is for another number of steps.
        """
        del steps

    def init(self, run: Run) -> StateT:
        """Return the rule's state before the first step of a run; () by default, for a rule without state.

        Raises:
            RuleError: the rule is not for such a run.
        """
        del run
        return ()  # type: ignore[return-value]  # of a rule that remembers nothing

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """The edits that the rule may make to the prompt's own pass; () for a rule that works on predictions."""
        return ()

    def edits(self, step: Step, state: StateT) -> Edits:
        """Return the edits of the prompt's own pass at this step, each with the per-sample tensors that it needs."""
        del step, state
        return dict.fromkeys(self.own_pass)

    def asks(self) -> frozenset[Query]:
        """Return every query that the rule may ask for at some step, which the pipeline must be able to answer."""
        return frozenset()

    def queries(self, step: Step, state: StateT) -> Queries:
        """Return the queries that `update` reads at this step, each with the samples that need it (None: all)."""
        del step, state
        return dict.fromkeys(self.asks())

    def differentiated(self, step: Step, state: StateT) -> bool:
        """Whether `update` takes gradients through the denoiser at this step.

        Everything that the stack asks for at the step is then answered with the graph of its gradients, and `update` is
        run with gradients recorded: `Estimate.pulled_back` goes through all that led to the estimate it is handed.
        Afterwards nothing of the graph is kept.
        """
        del step, state
        return self.differentiates

    def unasked(self, step: Step, state: StateT) -> RowMask | None:
        """Return the samples that need no prediction at this step, not even the prompt's; None if there are none.

        `update` computes their estimate from its state: their rows of the estimate that it is given are NaN. The mask
        is on the host.
        """
        del step, state
        return None

    @property
    def takes_turns(self) -> bool:
        """Whether the rule takes turns at some step, which only some loops and samplers support."""
        return any(part.takes_turns for part in self.nested())

    def turns(self, step: Step, state: StateT) -> int:
        """Return how many turns the rule takes before this evaluation; 0 for a rule that only reads answers at x.

        In each turn `look` says what is evaluated, and `turn` uses the answers. `Step.turn` counts them from 1.
        """
        del step, state
        return 0

    def look(self, x: Tensor, step: Step, state: StateT) -> Look | None:
        """Return the queries that this turn evaluates, and at which x and level; None for a turn without any.

        Args:
            x: the current samples, shape ``(B, ...)``, at the level of `step`.
            step: where the run stands.
            state: as for `update`.
        """
        del x, step, state
        return None

    def turn(self, x: Tensor, sight: Sight, step: Step, state: StateT) -> tuple[Tensor, StateT]:
        """Return the samples after this turn, at the level of `step`, and the new state.

        A pure function: it leaves its arguments as they are.

        Args:
            x: the samples before the turn, shape ``(B, ...)``.
            sight: the answers to what `look` asked for, and the sampler's own step.
            step: where the run stands.
            state: the rule's state before the turn.
        """
        del sight, step
        return x, state

    def ended(self, x: Tensor, step: Step, state: StateT) -> Tensor:
        """Return the samples that a run ends with; by default those of the sampler.

        `sample` and guided pipelines call it after the last step of the schedule. Some schedules end with a little
        noise, which then is a part of the result.

        Args:
            x: the samples that the last step led to, shape ``(B, ...)``, at the level ``step.after``.
            step: where the run stood at the last evaluation.
            state: as for `update`, after it.
        """
        del step, state
        return x

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Return the improved estimate, and the state for the next evaluation.

        A pure function: it leaves its arguments as they are.

        Args:
            estimate: the estimate of the rules before this one, at first the prompt's prediction.
            predictions: the answers to the rule's `queries`, each of shape ``(B, ...)``.
            step: where the run stands.
            state: what `init` or the evaluation before returned.
        """
        raise NotImplementedError

    def away(self, predictions: Predictions, step: Step, state: StateT) -> tuple[Prediction, RowMask | None] | None:
        """Return the prediction that the rule guides away from at this step, and the samples that it guides.

        None if it guides no sample, and None for the samples if it guides all. For observers of a run; `update` does
        not need it. By default it is the answer to `contrast`, for the samples that it is asked for. A rule that
        replaces that answer by another prediction overrides this.

        Args:
            predictions: all answers of the evaluation.
            step: where the run stands.
            state: as for `update`.
        """
        if self.contrast is None:
            return None
        asked = self.queries(step, state)
        query = next((query for query in asked if covered(query, {self.contrast})), None)
        return None if query is None else (predictions[query], asked[query])

    def nested(self) -> Iterator[Rule]:
        """Iterate over the rules that are parameters of this one, without those nested deeper."""
        for one in dataclasses.fields(self):  # type: ignore[arg-type]  # every rule is a dataclass
            value = getattr(self, one.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Rule):
                    yield part

    def parts(self) -> Iterator[Rule]:
        """Iterate over the rule and all rules nested in it, outermost first."""
        yield self
        for part in self.nested():
            yield from part.parts()

    def neutral(self) -> Self:
        """Return a copy of the rule with parameters at which it does nothing.

        Raises:
            NotImplementedError: no parameter turns it off.
        """
        if self.neutral_values is None:
            raise NotImplementedError(f"{type(self).__name__} has no neutral parameters")
        return dataclasses.replace(self, **self.neutral_values)  # type: ignore[type-var]

    def __or__(self, other: Rule) -> Rule:
        """``rule | rule``: the stack of the two, left to right."""
        return Stack(self, other) if isinstance(other, Rule) else NotImplemented

    def _repr_html_(self) -> str:
        """A table of the rules in it, for notebooks: what each does and asks for."""
        rows = list(_told(self, 0))
        named = all(isinstance(part, Stack) or "_name" in vars(type(part)) for part in self.parts())
        beneath = "" if rows else "the unguided model"
        return table(str(self) if named else repr(self), ("rule", "what it does", "asks for"), rows, beneath)

    def __str__(self) -> str:
        """The text that `parse` reads back as an equal rule.

        Raises:
            RuleError: the class has no name in text.
        """
        if (name := vars(type(self)).get("_name")) is None:
            raise RuleError(f"{type(self).__name__} has no name; decorate the class with @register")
        arguments = [
            literal(value) if field.default is dataclasses.MISSING else f"{field.name}={literal(value)}"
            for field, value in given(self)
        ]
        return f"{name}({', '.join(arguments)})"


def _told(rule: Rule, depth: int) -> Iterator[tuple[str, str, str]]:
    """Return a line for a rule and, indented, a line for each rule nested in it."""
    if isinstance(rule, Stack):
        for one in rule.rules:
            yield from _told(one, depth)
        return
    values = ((field.name, value) for field, value in given(rule) if not isinstance(value, Rule))
    written = ", ".join(f"{name}={literal(value)}" for name, value in values)
    does = (inspect.getdoc(type(rule)) or "").partition("\n")[0]
    name = getattr(type(rule), "_name", type(rule).__name__)
    yield f"{FURTHER * depth}{name}({written})", does, "; ".join(_wants(rule)) or "nothing"
    for one in rule.nested():
        yield from _told(one, depth + 1)


def _wants(rule: Rule) -> Iterator[str]:
    """What a rule asks for, by kind: answers, edits of the prompt's own pass, objectives, and turns between steps."""
    if queries := sorted(map(str, rule.asks())):
        yield ", ".join(queries)
    for edit in rule.own_pass:
        text = f" with the {edit.text} prompt's text" if edit.text else ""
        yield ("an edit of every pass" if edit.shared else "an edit of the prompt's own pass") + text
    for text in rule.objectives:
        gradient = rule.differentiates
        yield f"the gradient of the objective {text!r}, through the network" if gradient else f"the objective {text!r}"
    if rule.takes_turns and not any(rule.nested()):
        yield "turns between two steps"


def given(rule: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that must be written down to make `rule` again, with their values."""
    for field in parameters(rule):
        value = getattr(rule, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            yield field, value


def literal(value: Any) -> str:
    """The text of a parameter's value."""
    if isinstance(value, Rule):
        return str(value)
    if isinstance(value, Query):
        return repr(str(value))
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    return repr(value)


@dataclass(frozen=True, init=False, repr=False)
class Stack(Rule):
    """Rules applied left to right; ``Stack()`` is the unguided model.

    The first rule improves the network's answer to the prompt, each further one what the rules before it made. What
    several rules ask for is evaluated once. A stack inside a stack is the same as its rules in its place, and equals a
    rule that is all it has.

    Cost: the union of what its rules ask for at a step, and one evaluation at least.

    Args:
        *rules: any number of rules.

    >>> from guidestack import CFG, Rescale, Stack
    >>> stack = Stack(CFG(7.5), Rescale(0.7))
    >>> print(stack)
    cfg(7.5) | rescale(0.7)
    >>> stack == CFG(7.5) | Rescale(0.7)
    True
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        flat: list[Rule] = []
        for rule in rules:
            if not isinstance(rule, Rule):
                raise RuleError(f"Stack takes rules, got {shown(rule)}; `parse` reads the text form of a stack")
            flat.extend(rule.rules if isinstance(rule, Stack) else [rule])
        _compatible(flat)
        object.__setattr__(self, "rules", tuple(flat))

    def __eq__(self, other: object) -> bool:
        """Whether the rules are the same: ``Stack(rule) == rule``, too, from either side."""
        if isinstance(other, Stack):
            return self.rules == other.rules
        return self.rules == (other,) if isinstance(other, Rule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.rules[0]) if len(self.rules) == 1 else hash(self.rules)

    def __str__(self) -> str:
        return " | ".join(map(str, self.rules)) or f"{STACK}()"

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.rules))})"

    @property
    def refines(self) -> bool:
        """Whether one of its rules only reshapes an estimate, and has no rule before it that makes one."""
        return _idle(self.rules) is not None

    @property
    def guides(self) -> bool:
        """Whether one of its rules changes the prediction that the sampler steps with."""
        return any(rule.guides for rule in self.rules)

    @property
    def contrast(self) -> Query | None:
        """The query that the first of its rules with a contrast guides away from; None if none has one."""
        return next((rule.contrast for rule in self.rules if rule.contrast), None)

    @property
    def renoises(self) -> bool:
        """Whether one of its rules sets the prediction that the sampler re-noises with."""
        return any(rule.renoises for rule in self.rules)

    def init(self, run: Run) -> State:
        """Return the states of its rules before the first step, in their order.

        Raises:
            CompositionError: a rule remembers something of samples that another one multiplies.
        """
        _ = self._suffixes  # found now: a compiled `update` cannot take the lock of a cached property
        states = tuple(rule.init(run) for rule in self.rules)
        if coupling := next((rule for rule in self.rules if rule.couples), None):
            for rule, own in zip(self.rules, states, strict=True):
                if own and not rule.couples and not rule.takes_turns:  # turns remember nothing beyond their step
                    raise CompositionError(
                        f"{rule} remembers each sample's earlier steps, and {coupling} puts other samples in their "
                        "place; take a rule that remembers nothing, such as cfg(scale)"
                    )
        return states

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """The edits of the prompt's own pass that its rules may make, in their order."""
        return tuple(edit for rule in self.rules for edit in rule.own_pass)

    def edits(self, step: Step, state: State) -> Edits:
        """Return the edits of the prompt's own pass that its rules make at this step."""
        pairs = zip(self.rules, state, strict=True) if self.own_pass else ()
        return {edit: value for rule, own in pairs for edit, value in rule.edits(step, own).items()}

    def asks(self) -> frozenset[Query]:
        """Return every query that any of its rules may ask for."""
        return frozenset().union(*(rule.asks() for rule in self.rules))

    def queries(self, step: Step, state: State) -> Queries:
        """Return the union of the queries that its rules ask for at this step."""
        return united(rule.queries(step, own) for rule, own in zip(self.rules, state, strict=True))

    @property
    def differentiates(self) -> bool:
        """Whether one of its rules may take gradients through the denoiser."""
        return any(rule.differentiates for rule in self.rules)

    def differentiated(self, step: Step, state: State) -> bool:
        """Whether one of its rules takes gradients through the denoiser at this step."""
        return self.differentiates and any(
            rule.differentiated(step, own) for rule, own in zip(self.rules, state, strict=True)
        )

    @property
    def stands_last(self) -> bool:
        """Whether one of its rules requires that no later rule changes the estimate."""
        return any(rule.stands_last for rule in self.rules)

    @property
    def skips(self) -> bool:
        """Whether its only rule may skip the network at a step."""
        return any(rule.skips for rule in self.rules)

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """Return the samples that need no prediction at this step, which only the rule of a stack of one may say."""
        return self.rules[0].unasked(step, state[0]) if len(self.rules) == 1 else None

    def turns(self, step: Step, state: State) -> int:
        """Return the number of turns of all of its rules, which are taken in their order."""
        return sum(rule.turns(step, own) for rule, own in zip(self.rules, state, strict=True))

    def _turning(self, step: Step, state: State) -> tuple[int, Step]:
        """The place of the rule whose turn it is, and the step with the turn as that rule counts it."""
        count = step.turn
        for place, (rule, own) in enumerate(zip(self.rules, state, strict=True)):
            if count <= (its := rule.turns(step, own)):
                return place, dataclasses.replace(step, turn=count)
            count -= its
        raise IndexError(f"{self} has no turn {step.turn} at step {step.index}")

    def look(self, x: Tensor, step: Step, state: State) -> Look | None:
        """Return what the current turn evaluates, as the rule says that the turn belongs to."""
        place, its = self._turning(step, state)
        return self.rules[place].look(x, its, state[place])

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """Take the current turn of the rule that it belongs to; the states of the others stay as they are."""
        place, its = self._turning(step, state)
        x, own = self.rules[place].turn(x, sight, its, state[place])
        return x, (*state[:place], own, *state[place + 1 :])

    def ended(self, x: Tensor, step: Step, state: State) -> Tensor:
        """Return the samples that a run ends with, after each of its rules in their order."""
        for rule, own in zip(self.rules, state, strict=True):
            x = rule.ended(x, step, own)
        return x

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Apply the rules in order; each sees the answers it asked for itself."""
        after, traces = [], dict(estimate.traces)
        for rule, own, suffix in zip(self.rules, state, self._suffixes, strict=True):
            answers = predictions.only(rule.queries(step, own), asker=rule)
            estimate, own = rule.update(estimate.without_traces(), answers, step, own)
            traces |= {name + suffix: value for name, value in estimate.traces.items()}
            after.append(own)
        return Estimate(estimate.prediction, estimate.renoise, traces), tuple(after)

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """Return the prediction that each sample is guided away from, by the first rule that guides it."""
        found: tuple[Prediction, RowMask | None] | None = None
        for rule, own in zip(self.rules, state, strict=True):
            led = rule.away(predictions, step, own)
            if led is None:
                continue
            if found is None:
                found = led
            elif found[1] is not None:
                rows = None if led[1] is None else found[1] | led[1]
                found = found[0].where(found[1], led[0]), rows
            if found[1] is None:
                break
        return found

    @cached_property
    def _suffixes(self) -> tuple[str, ...]:
        """What is added to the names of each rule's traces: its place, where rules of one kind stand in several."""
        kinds = [{type(part) for part in rule.parts()} for rule in self.rules]
        return tuple(
            f".{place + 1}" if any(own & other for j, other in enumerate(kinds) if j != place) else ""
            for place, own in enumerate(kinds)
        )

    def neutral(self) -> Self:
        """Return the stack of the neutral forms of its rules, which does nothing."""
        return type(self)(*(rule.neutral() for rule in self.rules))


def _idle(rules: Sequence[Rule]) -> Rule | None:
    """Return the first rule that only reshapes an estimate and has no rule before it that makes one; else None."""
    for rule in rules:
        if rule.refines:
            return rule
        if rule.guides:
            return None
    return None


def _compatible(rules: Sequence[Rule]) -> None:
    """Refuse a sequence of rules of which one would be ignored or run on what it was not made for.

    Raises:
        CompositionError: naming both rules.
    """
    renoising = [rule for rule in rules if rule.renoises and not rule.stands_last]
    if len(renoising) > 1:
        raise CompositionError(
            f"{renoising[0]} and {renoising[1]} both decide what the sampler re-noises with; keep one of them"
        )
    if len(rules) > 1 and (idle := _idle(rules)):
        other = next((rule for rule in rules if rule.guides), None)
        if other:
            raise CompositionError(
                f"{idle} stands before {other} and has nothing to work on yet; write {other} | {idle}"
            )
        raise CompositionError(
            f"{idle} has nothing to work on beside {next(rule for rule in rules if rule is not idle)}; put a rule such "
            "as cfg(3) before it"
        )
    last: Rule | None = None
    for rule in rules:
        if last and not rule.stands_last and (rule.guides or rule.refines or rule.renoises):
            raise CompositionError(
                f"{last} works on the finished estimate, and {rule} changes it; write {rule} | {last}"
            )
        last = last or (rule if rule.stands_last else None)
    for shared, what in ((False, "the attention of the prompt's own pass"), (True, "self-attention in every pass")):
        editing = [rule for rule in rules for edit in rule.own_pass if edit.shared == shared]
        if len(editing) > 1:
            one, other = editing[:2]
            both = f"{one} and {other} both edit {what}" if one is not other else f"{one} edits {what} twice"
            raise CompositionError(f"{both}; keep one of them")
    for place, rule in enumerate(rules):
        if any(part.redraws for part in rule.parts()):
            losing = (one for one in rules if one.takes_turns or (one.renoises and not one.stands_last))
            lost = next((one for one in losing if one is not rule), None)
            if lost is None and rule is not rules[-1]:
                lost = rules[place + 1]
            if lost is not None:
                raise CompositionError(
                    f"{rule} draws the samples anew before each evaluation, from a clean sample of its own, and what "
                    f"{lost} does to them would be lost; leave one of them out"
                )
    for rule in rules:
        other = next((one for one in rules if one is not rule and (one.guides or not one.takes_turns)), None)
        if rule.couples and rule.guides and other is not None:
            raise CompositionError(
                f"{rule} guides by itself and duplicates samples, of which {other} knows nothing; leave {other} out, "
                "or put its query into power"
            )
        if rule.couples and any(one.couples for one in rules if one is not rule):
            raise CompositionError(f"several rules duplicate samples, {rule} among them; keep one of them")
        if len(rules) > 1 and rule.whole_stack:
            other = next(one for one in rules if one is not rule)
            raise CompositionError(
                f"{rule} was made for runs of its own rule alone and cannot stand beside {other}; put {other} inside "
                "it, and fit or tune for that"
            )


def _depth(rule: Rule) -> int:
    """How many rules stand inside one another, the outermost one counted."""
    return 1 + max(map(_depth, rule.nested()), default=0)


def sole(rule: Rule, wrapper: str) -> Rule:
    """The rule that a wrapper wraps: a stack of one rule is that rule, so that equal wrappers compare equal.

    Raises:
        RuleError: `rule` is no rule, or has too many inside one another.
        CompositionError: it must be the whole stack.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"{wrapper} wraps a rule, got {shown(rule)}")
    if _depth(rule) >= DEEPEST:
        raise RuleError(f"{wrapper}: at most {DEEPEST} rules stand inside one another, and this would be one more")
    for part in rule.parts():
        if part.couples:
            raise CompositionError(
                f"{wrapper} around {part}: it is not for a part of a run; it has a window of its own"
            )
        if part.whole_stack:
            raise CompositionError(
                f"{wrapper} around {part}: it was made for whole runs of its own rule alone; put {wrapper} inside it, "
                "and fit or tune for that"
            )
    return rule.rules[0] if isinstance(rule, Stack) and len(rule.rules) == 1 else rule


@dataclass(frozen=True)
class Wrapper(Rule[StateT]):
    """Base class of rules around another rule, to which every member that a subclass does not override forwards.

    A subclass is a frozen dataclass and adds its own parameters. One that applies its rule at some steps only overrides
    `applies`. One that keeps a state of its own beside that of its rule overrides `init`, `rule_state` and `update`.

    Args:
        rule: any rule, a stack included.

    Raises:
        RuleError: `rule` is no rule, or its rules are nested too deep.
        CompositionError: `rule` must be the whole stack, or takes turns and the wrapper does not support them.

    >>> from guidestack import CFG, During
    >>> isinstance(During(CFG(4), progress=(0, 0.5)), Wrapper)
    True
    """

    carries_turns: ClassVar[bool] = False
    """Whether the rule inside may take turns: a wrapper whose state is that of its rule, and that only says when."""

    rule: Rule

    def __post_init__(self) -> None:
        set_field(self, "rule", sole(self.rule, getattr(type(self), "_name", type(self).__name__)))
        if self.rule.takes_turns and not self.carries_turns:
            raise CompositionError(
                f"{self.rule} evaluates before the sampler does, which {self._name} around it does not reach; put it "
                "beside, or into during(...)"
            )

    def applies(self, step: Step, state: StateT) -> bool:
        """Return whether the inner rule is applied at this step; otherwise nothing is asked and nothing changes."""
        del step, state
        return True

    def rule_state(self, state: StateT) -> State:
        """Return the inner rule's state, a part of the wrapper's; by default all of it."""
        return state

    @property
    def contrast(self) -> Query | None:
        """The query that the inner rule guides away from; None if there is none."""
        return self.rule.contrast

    @property
    def renoises(self) -> bool:
        """Whether the inner rule sets the prediction that the sampler re-noises with."""
        return self.rule.renoises

    @property
    def refines(self) -> bool:
        """Whether the inner rule only reshapes the estimate of the rules before it."""
        return self.rule.refines

    @property
    def guides(self) -> bool:
        """Whether the inner rule changes the prediction that the sampler steps with."""
        return self.rule.guides

    @property
    def differentiates(self) -> bool:
        """Whether the inner rule may take gradients through the denoiser."""
        return self.rule.differentiates

    def differentiated(self, step: Step, state: StateT) -> bool:
        """Return whether the inner rule is applied at this step and takes gradients through the denoiser there."""
        return self.applies(step, state) and self.rule.differentiated(step, self.rule_state(state))

    @property
    def stands_last(self) -> bool:
        """Whether the rules that follow the inner rule must leave the estimate as it is."""
        return self.rule.stands_last

    @property
    def skips(self) -> bool:
        """Whether the inner rule may skip the network at a step."""
        return self.rule.skips

    def init(self, run: Run) -> StateT:
        """Return the inner rule's state before the first step."""
        return self.rule.init(run)  # type: ignore[no-any-return]  # a wrapper without a state of its own

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """The edits of the prompt's own pass that the inner rule may make."""
        return self.rule.own_pass

    def edits(self, step: Step, state: StateT) -> Edits:
        """Return the inner rule's edits of the prompt's own pass where it is applied, none elsewhere."""
        return self.rule.edits(step, self.rule_state(state)) if self.applies(step, state) else {}

    def asks(self) -> frozenset[Query]:
        """Return every query that the inner rule may ask for."""
        return self.rule.asks()

    def queries(self, step: Step, state: StateT) -> Queries:
        """Return the inner rule's queries where it is applied, none elsewhere."""
        return self.rule.queries(step, self.rule_state(state)) if self.applies(step, state) else {}

    def unasked(self, step: Step, state: StateT) -> RowMask | None:
        """Return the samples for which the inner rule needs no prediction, where it is applied."""
        return self.rule.unasked(step, self.rule_state(state)) if self.applies(step, state) else None

    def turns(self, step: Step, state: StateT) -> int:
        """Return the number of turns of the inner rule where it is applied, 0 elsewhere."""
        return self.rule.turns(step, self.rule_state(state)) if self.applies(step, state) else 0

    def look(self, x: Tensor, step: Step, state: StateT) -> Look | None:
        """Return what the inner rule evaluates in this turn."""
        return self.rule.look(x, step, self.rule_state(state))

    def turn(self, x: Tensor, sight: Sight, step: Step, state: StateT) -> tuple[Tensor, StateT]:
        """Take the inner rule's turn."""
        return self.rule.turn(x, sight, step, state)

    def ended(self, x: Tensor, step: Step, state: StateT) -> Tensor:
        """Return the samples that a run ends with, from the inner rule if it is applied at the last step."""
        return self.rule.ended(x, step, self.rule_state(state)) if self.applies(step, state) else x

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Apply the inner rule where it is applied; elsewhere estimate and state stay as they are."""
        return self.rule.update(estimate, predictions, step, state) if self.applies(step, state) else (estimate, state)

    def away(self, predictions: Predictions, step: Step, state: StateT) -> tuple[Prediction, RowMask | None] | None:
        """Return what the inner rule guides away from where it is applied, None elsewhere."""
        return self.rule.away(predictions, step, self.rule_state(state)) if self.applies(step, state) else None

    def neutral(self) -> Self:
        """Return a copy of the wrapper around the inner rule's neutral form."""
        return dataclasses.replace(self, rule=self.rule.neutral())


def objectives_of(rule: Rule) -> tuple[str, ...]:
    """The texts of the objectives that a rule and those inside it steer by, each once."""
    return tuple(dict.fromkeys(text for part in rule.parts() for text in part.objectives))


def at_neutral(rule: Rule) -> bool:
    """Return whether a rule's parameters are at its neutral values; False for a rule that no parameter turns off."""
    neutral = rule.neutral_values
    return neutral is not None and all(getattr(rule, name) == value for name, value in neutral.items())


def models_of(rule: Rule) -> frozenset[str]:
    """Return the names of the networks that a rule asks beside the one that samples."""
    return frozenset(query.model for query in rule.asks()) - {"main"}


def remarks(stack: Rule) -> list[str]:
    """Return warnings, one line each, about a stack that runs but may not do what was meant."""
    if stack.refines:
        return [f"{stack} has nothing to work on: it reshapes what rules before it made; write cfg(...) | {stack}"]
    idle = [
        f"{type(part).__name__} does nothing: give it {' or '.join(part.neutral_values or {})}"
        for part in stack.parts()
        if _weightless(part)
    ]
    if (rule := _promptless(stack)) is None:
        return idle
    contrast = rule.contrast or NULL
    of = {NEGATIVE: "the negative or empty prompt", NULL: "the empty prompt"}.get(contrast, repr(str(contrast)))
    off = "a scale of 1 or stack()" if rule.neutral_values else "stack()"
    return [
        *idle,
        f"{rule} does not turn guidance off: at scale 0 the picture is that of {of} and not of the prompt; {off} is "
        "without guidance",
    ]


def _weightless(rule: Rule) -> bool:
    """Whether a rule that does nothing by its defaults was given no other weights."""
    neutral = rule.neutral_values
    if not neutral:
        return False
    plain = {one.name: one.default for one in parameters(rule) if one.name in neutral}
    return plain == neutral and not any(one.name in neutral for one, _ in given(rule))


def _promptless(rule: Rule) -> Rule | None:
    """Return the rule of scale 0 that alone sets the estimate, so that the prompt has no effect; None if none does."""
    if isinstance(rule, Stack):
        moving = [one for one in rule.rules if one.guides]
        return _promptless(moving[0]) if len(moving) == 1 else None
    if isinstance(rule, Wrapper):
        return _promptless(rule.rule)
    away = getattr(rule, "scale", None) == 0 and (rule.neutral_values or {}).get("scale") != 0
    return rule if away and rule.contrast else None
