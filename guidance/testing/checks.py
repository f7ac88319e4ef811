"""The contract of a rule as twelve checks, and the oracle they run on. Public: third parties check their rules with it.

>>> from guidestack import CFG
>>> checked = check_rule(CFG(3), reference=lambda denoised, x, level: denoised("negative")
...                      + 3 * (denoised("positive") - denoised("negative")))
>>> len(checked), sorted(set(checked.values()))
(12, ['not applicable: asks for no perturbed query', 'passed'])
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import GuidestackError, RuleCheckError
from ..fields import parameters
from ..keyed import Keys
from ..network import CallableNetwork
from ..notation.config import from_config, to_config
from ..notation.objectives import objectives
from ..notation.presets import as_stack
from ..notation.text import parse
from ..prediction import EPSILON, FLOW, X0, Level, Parameterization, Space, V
from ..query import POSITIVE, Evaluation, Network, Predictions, Query, covered, evaluate
from ..rule import Rule, Stack
from ..rules.during import During
from ..run import GuidedRun
from ..step import Estimate, Run, State, Step
from ..turn import Sight
from .mixture import RANDOM, GaussianMixture, MixtureDenoiser, gaussian_1d, worsened

Reference = Callable[[Callable[[str], Tensor], Tensor, Level], Tensor]
"""What a rule should answer: ``reference(denoised, x, level)``, where ``denoised(query)`` is the closed-form posterior
mean for the query with that text. Called once a step, in order."""
MoveReference = Callable[[Callable[[str], Tensor], Tensor, Step, Callable[[str], Tensor]], Tensor]
"""Where a turn should lead: ``reference(denoised, x, step, noise)``, where ``noise(purpose)`` is what `Sight.noise`
draws. Called once a turn, in order."""

LEVELS = tuple(Level.vp(alpha_bar) for alpha_bar in (0.02, 0.1, 0.3, 0.55, 0.8, 0.97))
FAMILIES: dict[str, tuple[Level, ...]] = {
    "VP": LEVELS,
    "VE": tuple(Level.ve(level.k_sigma) for level in LEVELS),
    "flow": tuple(Level.flow(sigma) for sigma in (0.98, 0.8, 0.6, 0.4, 0.2, 0.05)),
}
_SPELLING: dict[str, tuple[Parameterization, Space]] = {
    "epsilon": (EPSILON, "noise"),
    "x0": (X0, "denoised"),
    "v": (V, "velocity"),
    "flow": (FLOW, "velocity"),
}
IDENTITY = {"model": "oracle", "scheduler": "DDIM", "levels": "oracle", "negative": "empty"}
"""What a rule that is fitted on the oracle is fitted for."""
EXACT = 1e-9  # relative, in float64: conversions lose a few digits where alpha or sigma is small


def guide_once(rule: Rule, x: float, sigma: float) -> float:
    """Return the guided clean sample of one number under a rule on `gaussian_1d`, for doctests.

    Args:
        rule: a rule or a stack.
        x: the noisy number.
        sigma: its noise level (VE).
    """
    mixture = GaussianMixture(
        torch.zeros(2, 1, dtype=torch.float64),
        torch.tensor([gaussian_1d.variances["positive"], gaussian_1d.variances["null"]], dtype=torch.float64).sqrt(),
        torch.ones(2, dtype=torch.float64),
    )
    conditions = {"null": torch.tensor([[0.0, 1.0]]), "positive": torch.tensor([[1.0, 0.0]])}
    value, level = torch.tensor([[x]], dtype=torch.float64), Level.ve(sigma)
    network = CallableNetwork(
        {"main": MixtureDenoiser(mixture)}, value, level, conditions, EPSILON, {"negative": "null"}
    )
    run = GuidedRun(as_stack(rule), Run((1, 1), torch.float64))
    return float(run.estimate(network, value, 0, level).prediction.denoised)


@dataclass(frozen=True)
class OracleRun:
    """A short run on the mixture.

    Attributes:
        outputs: the guided native output at every step.
        denoised: the same as clean samples.
        inputs: x at every evaluation of the stack.
        run: the finished run, with its report and its state.
    """

    outputs: list[Tensor]
    denoised: list[Tensor]
    inputs: list[Tensor]
    run: GuidedRun


@dataclass(frozen=True)
class Oracle:
    """The mixture with a batch of samples and conditions: everything a check needs to run a rule.

    Args:
        samples: which samples of the example batch, in which order.
        parameterization: what the network emits.
        levels: a level for each step.
        dtype: type of x and of the network's outputs.
        device: where x is.
    """

    samples: tuple[int, ...] = (0, 1, 2)
    parameterization: Parameterization = EPSILON
    levels: tuple[Level, ...] = LEVELS
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    @property
    def mixture(self) -> GaussianMixture:
        """The data."""
        return GaussianMixture.example()

    def start(self) -> Tensor:
        """The first x, shape ``(B, 2, 3, 3)``: for each sample a fixed picture of its own."""
        index = torch.arange(18, dtype=torch.float64).reshape(2, 3, 3)
        noise = torch.stack([(index * (2.3 + sample)).cos() * 1.4 for sample in self.samples])
        first = self.levels[0]
        return (first.alpha * self.mixture.means[0] + first.sigma * noise).to(self.device, self.dtype)

    def conditions(self) -> dict[str, Any]:
        """The weights of every condition, one row for each sample; different samples have different prompts.

        ``"independent"`` is a class drawn at random.
        """
        mixture = self.mixture
        classes: dict[str, list[tuple[int, ...]]] = {
            "null": [(), (), ()],
            "negative": [(1,), (2,), (0, 1)],
            "negative:0": [(1,), (2,), (0, 1)],
            "negative:1": [(3,), (0,), (1,)],
            "positive": [(0,), (1, 3), (2,)],
            "positive:1": [(1,), (2,), (3,)],
        }
        fixed = {
            name: torch.stack([mixture.condition(*rows[sample]) for sample in self.samples]).to(self.device)
            for name, rows in classes.items()
        }

        def independent(generators: Sequence[torch.Generator]) -> Tensor:
            drawn = [int(torch.randint(len(mixture.weights), (), generator=one)) for one in generators]
            return torch.stack([mixture.condition(one) for one in drawn]).to(self.device)

        return {**fixed, "independent": independent}

    def network(self, x: Tensor, level: Level, index: int = 0, keys: Keys | None = None) -> CallableNetwork:
        """The oracle's networks, main and weak, bound to x."""
        models = {name: MixtureDenoiser(self.mixture, self.parameterization, widen) for name, widen in _MODELS.items()}
        aliases = {f"independent:{source}": "independent" for source in ("tokens", "gaussian", "class")}
        keys = keys or Keys(self.seeds, index)
        return CallableNetwork(models, x, level, self.conditions(), self.parameterization, aliases, keys)

    @property
    def seeds(self) -> tuple[int, ...]:
        """A seed for each sample."""
        return tuple(7 + sample for sample in self.samples)

    def begin(self, rule: Rule) -> GuidedRun:
        """A run of `rule` on this batch, before its first step."""
        shape = (len(self.samples), 2, 3, 3)
        negatives, positives = (2, 1, 2), (0, 1, 1)  # different numbers of prompts for different samples
        run = Run(
            shape,
            self.dtype,
            torch.device(self.device),
            len(self.levels),
            self.seeds,
            tuple(negatives[sample] for sample in self.samples),
            tuple(positives[sample] for sample in self.samples),
            IDENTITY,
            levels=(*self.levels, Level.ve(0.0)),
            objectives=objectives(decode=_decoded, encode=_encoded),
        )
        return GuidedRun(as_stack(rule), run, moves=True)

    def time(self, index: int) -> float:
        """The network's time at step `index`, as a share."""
        return 1 - index / len(self.levels)

    def after(self, index: int) -> Level:
        """The level that step `index` leads to."""
        return self.levels[min(index + 1, len(self.levels) - 1)]

    def where(self, run: GuidedRun, index: int) -> Step:
        """Where a run stands at step `index`."""
        before = self.levels[index - 1] if index else None
        return run.step(index, self.levels[index], 0, self.time(index), self.after(index), before)

    def stepped(self, estimate: Estimate, index: int) -> Tensor:
        """X after a DDIM step from level `index`."""
        prediction = estimate.prediction
        moved = self.after(index).noised(prediction.denoised, (estimate.renoise or prediction).noise)
        return moved.to(prediction.x.dtype)

    def step(self, run: GuidedRun, x: Tensor, index: int) -> tuple[Estimate, Tensor]:
        """One guided DDIM step from level `index`, after the turns before it: the estimate, and the next x."""
        step = self.where(run, index)
        x = run.moved(_Turns(self, index), x, step)
        network = self.network(x, step.level, index)
        estimate = run.estimate(network, x, index, step.level, 0, step.time, step.after, step.before)
        return estimate, self.stepped(estimate, index)


@dataclass(frozen=True)
class _Turns:
    """The `Loop` of the oracle for the turns of rules, at one step."""

    oracle: Oracle
    index: int

    def network(self, x: Tensor, level: Level, keys: Keys) -> CallableNetwork:
        return self.oracle.network(x, level, self.index, keys)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        return self.oracle.stepped(estimate, self.index + ahead)

    def later(self, step: Step, ahead: int) -> Step:
        index, oracle = self.index + ahead, self.oracle
        return dataclasses.replace(
            step,
            index=index,
            level=oracle.levels[index],
            step_level=oracle.levels[index],
            time=oracle.time(index),
            before=oracle.levels[index - 1],
            after=oracle.after(index),
        )


def _decoded(x0: Tensor) -> Tensor:
    """The oracle's samples of two channels as pictures, for objectives that see pixels."""
    return torch.cat([x0, x0.mean(1, keepdim=True)], 1) / 2 + 0.5


def _encoded(pictures: Tensor) -> Tensor:
    """Return pictures as samples of the oracle: the inverse of `_decoded`, without the third channel."""
    return 2 * pictures[:, :2] - 1


_MODELS = {"main": 1.0, "weak": 1.5}


def oracle_run(rule: Rule, oracle: Oracle | None = None, run: GuidedRun | None = None) -> OracleRun:
    """Run `rule` over the levels of `oracle`.

    Args:
        rule: a rule or a stack.
        oracle: the batch; the example batch of three by default.
        run: a run to go on with, whose report says where it stands; a new one by default.
    """
    oracle = oracle or Oracle()
    run = run or oracle.begin(rule)
    x = oracle.start()
    outputs, denoised, inputs = [], [], []
    for index in range(len(oracle.levels)):
        estimate, x = oracle.step(run, x, index)
        inputs.append(estimate.prediction.x)
        outputs.append(estimate.prediction.native)
        denoised.append(estimate.prediction.denoised)
    return OracleRun(outputs, denoised, inputs, run)


def check_rule(rule: Rule, reference: Reference | None = None, device: str = "cpu") -> dict[str, str]:
    """Check the twelve invariants that every rule keeps.

    Args:
        rule: the rule, with parameters at which it does something.
        reference: what it should answer, computed independently; without it the golden values are not checked.
        device: where to run.

    Returns:
        For each invariant ``"passed"``, or ``"not applicable: "`` and why.

    Raises:
        RuleCheckError: invariants are broken; the message names each and says what was seen.
    """
    return _checked(rule, [*_CHECKS, lambda rule, device: _golden(rule, reference)], device)


def check_move(move: Rule, reference: MoveReference | None = None, device: str = "cpu") -> dict[str, str]:
    """Check the invariants of `check_rule` on a rule that takes turns, as far as they apply to it.

    Args:
        move: the rule, with parameters at which it does something.
        reference: the x after each turn, computed independently; without it the golden values are not checked.
        device: where to run.

    Returns:
        For each invariant ``"passed"``, or ``"not applicable: "`` and why. What a move does to the law of the samples
        is not among them: that law is a test of its own.

    Raises:
        RuleCheckError: invariants are broken; the message names each and says what was seen.
    """
    return _checked(move, [*_CHECKS, lambda rule, device: _golden_turns(rule, reference)], device)


def _checked(rule: Rule, checks: Sequence[Callable[[Rule, str], str | None]], device: str) -> dict[str, str]:
    results, broken = {}, []
    for number, check in enumerate(checks, 1):
        title = (check.__doc__ or _golden.__doc__ or "").rstrip(".")
        name = f"{number}. {title[:1].lower()}{title[1:]}"
        try:
            inapplicable = check(rule, device)
        except (_Broken, GuidestackError) as error:
            broken.append(f"invariant {name}: {error}")
            continue
        results[name] = f"not applicable: {inapplicable}" if inapplicable else "passed"
    if broken:
        raise RuleCheckError(f"{rule} breaks {'; '.join(broken)}")
    return results


def _taken(rule: Rule, oracle: Oracle) -> Iterator[tuple[Tensor, Sight, Step, State, set[Query]]]:
    """Every turn of a run of `rule` alone: its arguments, and what it asked for and nobody has read yet.

    A turn is taken once more by this, so that the run goes on whatever was done with it.
    """
    run, x = oracle.begin(rule), oracle.start()
    state = rule.init(run.run)
    for index, level in enumerate(oracle.levels):
        step = oracle.where(run, index)
        for turn in range(1, rule.turns(step, state) + 1):
            here, reads = dataclasses.replace(step, turn=turn), set[Query]()
            sight = _shown(rule, oracle, x, here, state, reads)
            yield x, sight, here, state, reads
            x, state = rule.turn(x, sight, here, state)
        done = _evaluated(rule, oracle.network(x, level, index), x, step, state)
        answers = done.predictions.only(rule.queries(step, state), str(rule))
        estimate, state = _updated(rule, Estimate(done.predictions[POSITIVE]), answers, step, state)
        x = oracle.stepped(estimate.detached(), index)


def _evaluated(rule: Rule, network: Network, x: Tensor, step: Step, state: State) -> Evaluation:
    """What `rule` asks for at a step, with the graph of its gradients if it takes some."""
    graph = rule.differentiated(step, state)
    with torch.set_grad_enabled(graph):
        return evaluate(network, rule.queries(step, state), x, step.level, grad=graph)


def _updated(rule: Rule, estimate: Estimate, answers: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
    """The update of `rule`, with gradients recorded if it takes some."""
    with torch.set_grad_enabled(rule.differentiated(step, state)):
        return rule.update(estimate, answers, step, state)


def _shown(rule: Rule, oracle: Oracle, x: Tensor, step: Step, state: State, reads: set[Query]) -> Sight:
    """Return the `Sight` of the rule's turn at `step`; what it has evaluated is added to `reads`."""
    keys = Keys(oracle.seeds, step.index, step.evaluation, step.turn)
    sight = Sight({}, keys, lambda told: oracle.stepped(told, step.index))
    look = rule.look(x, step, state)
    if look is None:
        return sight
    if extra := {query for query in look.queries if not covered(query, rule.asks())}:
        raise _Broken(f"look() names {_names(extra)}, which asks() does not")
    at, level = x if look.x is None else look.x, look.level or step.level
    own = rule.queries(step, state) if look.guided else {}
    base = POSITIVE if look.guided else look.base
    done = evaluate(oracle.network(at, level, keys=keys), {**own, **look.queries}, at, level, base=base)
    answers = {query: done.predictions[query] for query in look.queries}
    reads.update(answers)
    shown = Predictions(answers, {query: query for query in answers}, done.predictions[base], str(rule), _Unread(reads))
    seen = (
        rule.update(Estimate(done.predictions[POSITIVE]), done.predictions.only(own, str(rule)), step, state)[0]
        if look.guided
        else None
    )
    return dataclasses.replace(sight, predictions=shown, seen=seen)


class _Unread(set[Query]):
    """The set to which reads are added, which removes them from the set of what is still unread."""

    def __init__(self, unread: set[Query]) -> None:
        super().__init__()
        self.unread = unread

    def add(self, query: Query) -> None:
        self.unread.discard(query)


class _Broken(Exception):
    pass


def _same(seen: Sequence[Tensor], wanted: Sequence[Tensor], what: str, tolerance: float = 0.0) -> None:
    for index, (a, b) in enumerate(zip(seen, wanted, strict=True)):
        away = float((a.double() - b.double()).abs().max())
        if not away <= tolerance * max(1.0, float(b.double().abs().max())):
            raise _Broken(f"{what}: off by {away:.3g} at step {index}")


def _neutral(rule: Rule, device: str) -> str | None:
    """Neutral parameters give the base prediction exactly, for one evaluation."""
    try:
        neutral = rule.neutral()
    except NotImplementedError:
        return "has no neutral parameters"
    seen, base = oracle_run(neutral, Oracle(device=device)), oracle_run(Stack(), Oracle(device=device))
    _same(seen.outputs, base.outputs, f"{neutral} differs from the unguided model")
    if seen.run.report.evaluations != [len(LEVELS)] * 3:
        raise _Broken(f"{neutral} costs {seen.run.report.evaluations} evaluations in {len(LEVELS)} steps")
    return None


def _declared(rule: Rule, device: str) -> str | None:
    """Reads the queries it declared, all and only those."""
    oracle = Oracle(device=device)
    run, x = oracle.begin(rule), oracle.start()
    state, asked = rule.init(run.run), rule.asks()
    for index, level in enumerate(oracle.levels):
        step = Step(run.run, index, level, time=oracle.time(index))
        queries, network = rule.queries(step, state), oracle.network(x, level, index)
        if extra := {query for query in queries if not covered(query, asked)}:
            raise _Broken(f"queries() names {_names(extra)}, which asks() does not")
        done = _evaluated(rule, network, x, step, state)
        read: set[Query] = set()
        base = done.predictions[POSITIVE]
        answers = Predictions({q: done.predictions[q] for q in queries}, {q: q for q in queries}, base, str(rule), read)
        state = _updated(rule, Estimate(base), answers, step, state)[1]
        if unread := set(queries) - read:
            raise _Broken(f"pays for {_names(unread)} at step {index} and never reads it")
        x = oracle.step(oracle.begin(Stack()), x, index)[1]
    for x, sight, step, state, unread in _taken(rule, oracle):
        rule.turn(x, sight, step, state)
        if unread:
            raise _Broken(f"pays for {_names(unread)} in turn {step.turn} of step {step.index} and never reads it")
    return None


def _names(queries: set[Query]) -> str:
    return ", ".join(sorted(map(str, queries)))


def _in_space(rule: Any, space: Space) -> Any:
    """`rule` with every "native" inside it replaced by `space`."""
    if isinstance(rule, Stack):
        return Stack(*(_in_space(part, space) for part in rule.rules))
    if not isinstance(rule, Rule):
        return space if rule == "native" else rule
    fields = {field.name: getattr(rule, field.name) for field in parameters(rule)}
    return dataclasses.replace(rule, **{name: _in_space(value, space) for name, value in fields.items()})  # type: ignore[type-var]


def _parameterizations(rule: Rule, device: str) -> str | None:
    """Same result from epsilon, x0, v and flow networks."""
    depends = any(getattr(part, "space", None) == "native" for part in rule.parts())
    for family, levels in FAMILIES.items():
        for name, (parameterization, space) in _SPELLING.items():
            oracle = Oracle(parameterization=parameterization, levels=levels, device=device)
            seen = oracle_run(rule, oracle).denoised
            rule_here = rule
            if depends:
                if space == "velocity" and (name == "flow") != (family == "flow"):
                    continue  # velocity has the other meaning on this path: no space spells this form there
                # A rule that says it depends on the network's form must equal itself with that form spelled out.
                rule_here = _in_space(rule, space)
            wanted = oracle_run(rule_here, Oracle(levels=levels, device=device)).denoised
            _same(seen, wanted, f"a network that emits {name} on {family} levels differs from one of epsilon", EXACT)
    return None


def _pure(rule: Rule, device: str) -> str | None:
    """Update twice gives the same answer and leaves its inputs alone."""
    oracle = Oracle(device=device)
    run = oracle.begin(rule)
    x, state = oracle.start(), rule.init(run.run)
    for index, level in enumerate(oracle.levels):
        step = Step(run.run, index, level, time=oracle.time(index))
        done = _evaluated(rule, oracle.network(x, level, index), x, step, state)
        answers = done.predictions.only(rule.queries(step, state), str(rule))
        estimate = Estimate(done.predictions[POSITIVE])
        before = pickle.dumps((state, {q: p.native for q, p in answers.items()}, estimate.prediction.native, x))
        updated = [_updated(rule, estimate, answers, step, state) for _ in range(2)]
        (first, after), (second, again) = ((one.detached(), kept) for one, kept in updated)
        if before != pickle.dumps((state, {q: p.native for q, p in answers.items()}, estimate.prediction.native, x)):
            raise _Broken(f"update changed its arguments at step {index}")
        _same([first.prediction.native], [second.prediction.native], f"two updates differ at step {index}")
        if not _equal(after, again):
            raise _Broken(f"two updates leave different states at step {index}")
        state = after
        x = oracle.step(oracle.begin(Stack()), x, index)[1]
    for x, sight, step, state, _ in _taken(rule, oracle):
        before = pickle.dumps((state, x))
        (moved, after), (twice, again) = (rule.turn(x, sight, step, state) for _ in range(2))
        if before != pickle.dumps((state, x)):
            raise _Broken(f"turn changed its arguments at step {step.index}")
        _same([moved], [twice], f"two turns of the same arguments differ at step {step.index}")
        if not _equal(after, again):
            raise _Broken(f"two turns of the same arguments leave different states at step {step.index}")
    return None


def _equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit by bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _interleaved(rule: Rule, device: str) -> str | None:
    """Interleaved runs equal separate runs."""
    coupled = any(part.couples for part in rule.parts())
    oracles = [Oracle(device=device), Oracle(samples=(2, 0, 1) if coupled else (2, 0), device=device)]
    runs, xs = [oracle.begin(rule) for oracle in oracles], [oracle.start() for oracle in oracles]
    outputs: list[list[Tensor]] = [[], []]
    for index in range(len(LEVELS)):
        for which, oracle in enumerate(oracles):
            estimate, xs[which] = oracle.step(runs[which], xs[which], index)
            outputs[which].append(estimate.prediction.native)
    for which, oracle in enumerate(oracles):
        _same(outputs[which], oracle_run(rule, oracle).outputs, "a run interleaved with another differs from itself")
    return None


def _per_sample(rule: Rule, device: str) -> str | None:
    """A batch equals its samples alone, in any order."""
    if any(part.couples for part in rule.parts()):
        return "couples the samples of a batch"
    together = oracle_run(rule, Oracle(device=device)).outputs
    for samples in ((0,), (1,), (2,), (2, 0, 1)):
        seen = oracle_run(rule, Oracle(samples=samples, device=device)).outputs
        _same(seen, [output[list(samples)] for output in together], f"samples {samples} differ from the batch", EXACT)
    return None


def _kept(rule: Rule, device: str) -> str | None:
    """dtype, device and shape are kept, in float32, bfloat16 and float16."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        seen = oracle_run(rule, Oracle(dtype=dtype, device=device))
        for output, x in zip(seen.outputs, seen.inputs, strict=True):
            if (output.dtype, output.device, output.shape) != (dtype, x.device, x.shape):
                raise _Broken(f"{dtype} {tuple(x.shape)} became {output.dtype} {tuple(output.shape)}")
        for record in seen.run.report.steps:
            for name, value in record.traces.items():
                if value.shape != (3,):
                    raise _Broken(f"trace {name!r} has shape {tuple(value.shape)}, expected (3,)")
    return None


def _resumed(rule: Rule, device: str) -> str | None:
    """A run saved in the middle and resumed ends the same."""
    oracle = Oracle(device=device)
    straight = oracle_run(rule, oracle).outputs
    run, x, outputs = oracle.begin(rule), oracle.start(), []
    for index in range(len(LEVELS)):
        if index == len(LEVELS) // 2:
            saved = pickle.dumps(run.state)
            run = oracle.begin(rule)
            run.state = pickle.loads(saved)  # written by this function, not by a user
        estimate, x = oracle.step(run, x, index)
        outputs.append(estimate.prediction.native)
    _same(outputs, straight, "a resumed run differs")
    return None


def _written(rule: Rule, device: str) -> str | None:
    """text, mapping and pickle give an equal rule back."""
    stack = as_stack(rule)
    for form, again in (
        ("text", parse(str(stack))),
        ("mapping", from_config(to_config(stack))),
        ("pickle", pickle.loads(pickle.dumps(stack))),
    ):
        if again != stack or hash(again) != hash(stack):
            raise _Broken(f"its {form} reads back as {again!r}")
    return None


def _perturbed(rule: Rule, device: str) -> str | None:
    """A perturbed query differs from its unperturbed twin."""
    perturbed = [query for query in rule.asks() if query.perturbation]
    if not perturbed:
        return "asks for no perturbed query"
    oracle = Oracle(device=device)
    for query in perturbed:
        twin = dataclasses.replace(query, perturbation=None)
        x, level = oracle.start(), oracle.levels[2]
        done = evaluate(oracle.network(x, level, 2), {query: None, twin: None}, x, level).predictions
        if torch.equal(done[query].native, done[twin].native):
            raise _Broken(f"{query} answers as {twin} does")
    return None


def _windowed(rule: Rule, device: str) -> str | None:
    """Outside its window a rule asks for nothing, inside it is itself."""
    if any(part.whole_stack or part.couples for part in rule.parts()):
        return "must be the whole stack"
    oracle = Oracle(device=device)
    outside = oracle_run(During(rule, sigma=(1e6, 1e7)), oracle)
    if outside.run.report.evaluations != [len(LEVELS)] * 3:
        raise _Broken(f"costs {outside.run.report.evaluations} evaluations outside")
    _same(outside.outputs, oracle_run(Stack(), oracle).outputs, "differs from the unguided model outside")
    inside = oracle_run(During(rule, progress=(0, 1)), oracle)
    _same(inside.outputs, oracle_run(rule, oracle).outputs, "differs from itself inside")
    return None


def _golden(rule: Rule, reference: Reference | None) -> str | None:
    """Golden values on the Gaussian mixture."""
    if reference is None:
        return "no reference given"
    oracle = Oracle()
    seen = oracle_run(rule, oracle)
    for index, (x, level) in enumerate(zip(seen.inputs, oracle.levels, strict=True)):
        wanted = reference(functools.partial(_by_tweedie, oracle, x, level), x, level)
        _same([seen.denoised[index]], [wanted], f"not the golden value at step {index}", EXACT)
    return None


def _by_tweedie(oracle: Oracle, x: Tensor, level: Level, text: str) -> Tensor:
    """The posterior mean, by Tweedie's formula from the log density: not as the network computes it."""
    query = Query.of(text)
    mixture, edit = oracle.mixture, query.perturbation
    if edit and edit.kind in RANDOM:
        raise _Broken(f"the answer to {text!r} is drawn; give no reference for it")
    widen, away = worsened(edit.kind, edit.amount) if edit else (1.0, 1.0)
    wider = GaussianMixture(mixture.means, mixture.stds * widen * _MODELS[query.model], mixture.weights)
    if away != 1:
        x, level = x / level.alpha, Level.ve(level.k_sigma * away)
    point = x.detach().requires_grad_()
    condition = oracle.conditions()[query.condition]
    (score,) = torch.autograd.grad(wider.log_density(point, level, condition).sum(), point)
    return (x + level.sigma**2 * score) / level.alpha


def _golden_turns(rule: Rule, reference: MoveReference | None) -> str | None:
    """Golden values on the Gaussian mixture."""
    if reference is None:
        return "no reference given"
    oracle = Oracle()
    for x, sight, step, state, _ in _taken(rule, oracle):
        denoised = functools.partial(_by_tweedie, oracle, x, step.level)
        wanted = reference(denoised, x, step, functools.partial(sight.noise, x))
        moved = rule.turn(x, sight, step, state)[0]
        _same([moved], [wanted], f"turn {step.turn} of step {step.index} leads elsewhere", EXACT)
    return None


_CHECKS: tuple[Callable[[Rule, Any], str | None], ...] = (
    _neutral,
    _declared,
    _parameterizations,
    _pure,
    _interleaved,
    _per_sample,
    _kept,
    _resumed,
    _written,
    _perturbed,
    _windowed,
)
