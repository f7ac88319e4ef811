"""guide(): a stack for an existing diffusers pipeline, which is left exactly as it was found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ..guidance.errors import InputError, NonFiniteError, UnsupportedPipelineError, nearest, warn
from ..guidance.fields import count
from ..guidance.notation.presets import as_stack
from ..guidance.observe import Observer
from ..guidance.report import Report
from ..guidance.rule import Rule, Stack, remarks
from ..guidance.run import GuidedRun
from ..samplers import parameterization
from . import time_embedding
from .arguments import checked
from .families.lookup import denoisers_of, family_of, hands_on, signature_of
from .families.record import Family, Pipeline
from .hooks import calling, exclusively, methods, restored
from .prompts import EXTRA, NULL, Prompts, asked
from .session import ASKED, PIPELINES, Session
from .surface import Surface, bare

SCALE = "guidance_scale"
"""The argument that distilled networks take as an input, if it is none of the pipeline's own guidance."""


def guide(
    pipe: Pipeline,
    stack: Rule | str | Mapping[str, Any],
    *,
    max_rows: int | None = None,
    observe: Observer | None = None,
    rows: str = ASKED,
) -> GuidedPipeline:
    """Guide an existing diffusers pipeline with a stack.

    Args:
        pipe: a pipeline of a supported family, or of a class that hands its calls on to one. It is used as it is and
            left as it is: no component is replaced, and the hooks of a call end with the call. One that is guided
            already counts as the pipeline in it: the new stack stands alone.
        stack: a stack, a rule, or the text or mapping of one.
        max_rows: at most this many rows in one call of the denoiser; None for the pipeline's own batches.
        observe: told of every evaluation, such as `evaluation.traces.strength`; it changes nothing and asks nothing.
        rows: ``"asked"``: a network call has the rows that the stack asks for. ``"pipeline"``: it has those of the
            pipeline's own call in their order, always; what the stack did not ask for is evaluated, counted and not
            used. For attention processors that take the batch for [unconditional, conditional], for patches of the
            network that remember its last call, and for engines of a fixed size.

    Returns:
        An object to call as the pipeline itself, without `guidance_scale` and what else the stack now decides.

    Raises:
        UnsupportedPipelineError: there is no record for this pipeline, or it cannot run the stack; or with
            ``rows="pipeline"`` the stack asks for what the pipeline does not evaluate by itself.
        InputError: `max_rows` is no number of rows; `rows` is neither of the two, or ``"pipeline"`` together with
            `max_rows`.
        UnsupportedSchedulerError: the levels of its scheduler are not known.
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    Cost: the evaluations that the stack asks for, in the same network calls as the pipeline's own guidance where that
    evaluates the same rows.
    """
    pipe = bare(pipe)
    family, stack = family_of(pipe), as_stack(stack)
    if hands_on(pipe):
        warn(f"{type(pipe).__name__} hands its calls on to {family.pipeline}, and is guided as one")
    denoisers_of(pipe, family)
    parameterization(pipe.scheduler)  # refuse what is unknown now, not after the text encoder has run
    _answerable(pipe, family, stack)
    _rows(family, stack, max_rows, rows)
    return GuidedPipeline(pipe, family, stack, max_rows, observe, rows)


def _rows(family: Family, stack: Stack, max_rows: int | None, rows: str) -> None:
    """Refuse `rows` where it cannot be kept.

    Raises:
        InputError: it is unknown, or contradicts `max_rows`.
        UnsupportedPipelineError: the stack asks for what the pipeline does not evaluate by itself.
    """
    if rows not in (ASKED, PIPELINES):
        raise InputError(f"rows is {ASKED!r} or {PIPELINES!r}, got {rows!r}")
    if rows == ASKED:
        return
    if max_rows is not None:
        raise InputError(
            f"rows={rows!r} keeps the pipeline's calls whole and max_rows={max_rows!r} cuts them; drop one"
        )
    own = {*family.halves, "null", "negative"}
    if beyond := sorted(str(query) for query in stack.asks() if query.perturbation or query.condition not in own):
        raise UnsupportedPipelineError(
            f"rows={rows!r} evaluates what {family.pipeline} does by itself, {', '.join(family.halves)}, and {stack} "
            f"asks for {', '.join(beyond)}; leave rows={rows!r} out, or the rule that asks"
        )


def _answerable(pipe: Pipeline, family: Family, stack: Stack) -> None:
    """Refuse what the pipeline cannot answer, before anything runs.

    Raises:
        UnsupportedPipelineError: it cannot.
    """
    beyond = sorted({query.condition for query in stack.asks()} - {"positive"})
    unconditional = [condition for condition in beyond if not condition.startswith("independent:")]
    if unconditional and (reason := family.cannot(pipe)):
        asked = ", ".join(unconditional)
        raise UnsupportedPipelineError(f"{stack} asks for {asked}; this pipeline cannot answer: {reason}")
    for condition in beyond:
        kind, _, which = condition.partition(":")
        if kind == "independent" and which not in family.random:
            known = ", ".join(repr(source) for source in family.random) or "none"
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no random condition from source={which!r}; it has {known}"
            )
        if which == "each" and family.encode is None:
            has = "no way to encode further ones" if _takes_prompts(pipe) else "none"
            raise UnsupportedPipelineError(f"{stack} needs prompts, and {type(pipe).__name__} has {has}")
    if stack.skips and family.sequential:
        raise UnsupportedPipelineError(
            f"{stack} leaves the network out at some steps, and {type(pipe).__name__} calls it for each condition by "
            "itself, which cannot be left out; take a plan without s"
        )
    for query in stack.asks():
        if query.model != "main":
            raise UnsupportedPipelineError(
                f"{stack} asks the network {query.model!r} for {str(query)!r}, and a pipeline has one network only; "
                "guidestack.sample takes several"
            )
        if query.perturbation:
            for denoiser in denoisers_of(pipe, family):
                time_embedding.check(denoiser, query.perturbation)


def _takes_prompts(pipe: Pipeline) -> bool:
    return "prompt" in signature_of(pipe).parameters


class GuidedPipeline(Surface):
    """A pipeline with a stack; made by `guide`.

    What the pipeline has, this has: ``guided.scheduler = ...`` gives the pipeline another scheduler, ``guided.to(...)``
    moves it, ``guided.components`` are its parts.

    Attributes:
        pipe: the pipeline, unchanged.
        stack: the stack; may be set to whatever `guide` takes.
        run: the run of the last call, up to where it got, with its state; None before the first evaluation.
    """

    def __init__(
        self,
        pipe: Pipeline,
        family: Family,
        stack: Stack,
        max_rows: int | None = None,
        observe: Observer | None = None,
        rows: str = ASKED,
    ) -> None:
        self.pipe, self.family, self.stack, self.observe = pipe, family, stack, observe
        self.max_rows = None if max_rows is None else count("max_rows", max_rows)
        self.rows = rows
        self.run: GuidedRun | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stack":
            value = as_stack(value)
            if "stack" in vars(self):  # another one, after `guide` has looked at the first
                _answerable(self.pipe, self.family, value)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"guide({type(self.pipe).__name__}, {str(self.stack)!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline under the stack.

        Args:
            *args: the pipeline's own arguments.
            **kwargs: the pipeline's own arguments, without those that the stack decides (`guidance_scale`, ...): these
                do nothing, and a warning says so. Under a stack with `PerpNeg`, ``negative_prompt`` may be a list of
                texts for each prompt, and so may ``extra_prompt``: positives beside the prompt. Several negatives may
                be given as embeddings too: each of the pipeline's own arguments for those of a negative prompt is then
                a list. ``null_embeds`` is the empty condition as embeddings, for a pipeline without its text encoder:
                a tensor, or a mapping with the pipeline's names for all embeddings of a prompt,
                ``{"prompt_embeds": ..., "pooled_prompt_embeds": ...}``; a row for each prompt, or one for all. Where no
                negative is given, it is that too.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: an argument that the pipeline does not have, or one of another size than the prompts.
            NonFiniteError: NaN or Inf in a sample. The others are made to the end: the error's `output` is what the
                pipeline returned, its `samples` say which of that are lost.
            GuidanceNotAppliedError: the call ended and the guidance had not happened, or the pipeline is in use.
            QueryError: the pipeline cannot answer what the stack asks.
        """
        call, prompts = self._call(args, kwargs)
        return self._run(
            Session(self.pipe, self.family, self.stack, call, prompts, self.max_rows, self.observe, self.rows)
        )

    def _run(self, session: Session) -> Any:
        """Call the pipeline with the hooks of a session."""
        # A lost sample is said once, by an error; numpy would warn of it where a picture is made of it.
        with self.hooked(session), np.errstate(invalid="ignore"):
            try:
                output = session.caller.run(session.call)
            finally:
                self.run = session.run
                session.calls.forget()
        try:
            session.finish()
        except NonFiniteError as error:
            error.output = output
            raise
        return output

    @contextmanager
    def hooked(self, session: Session) -> Iterator[None]:
        """While the context lasts, `session` answers its call's denoiser and watches its scheduler.

        Raises:
            GuidanceNotAppliedError: the pipeline or its scheduler is in use.
        """
        denoisers, scheduler = denoisers_of(self.pipe, self.family), self.pipe.scheduler
        with ExitStack() as hooks:
            hooks.enter_context(exclusively(self.pipe, scheduler))
            self.run = None
            hooks.enter_context(restored(self.pipe, self.family.scratch))
            session.encode()
            for denoiser in denoisers:
                answer = functools.partial(session.denoise, denoiser)
                hooks.enter_context(calling(denoiser, answer, session.caller.owns))
            hooks.enter_context(methods(scheduler, session.steps.watched))
            yield

    @property
    def report(self) -> Report | None:
        """The report of the last call, up to where it got; None before the first."""
        return self.run.report if self.run else None

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Prompts]:
        """The arguments to call the pipeline with, by name, and what is evaluated beside its prompt."""
        kwargs = dict(kwargs)
        extra, null = kwargs.pop(EXTRA, None), kwargs.pop(NULL, None)
        denoisers_of(self.pipe, self.family)  # refuse what it is not, before its configuration is read
        signature = signature_of(self.pipe)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"{type(self.pipe).__name__}: {error}") from None
        arguments: dict[str, Any] = {}
        for name, value in given.arguments.items():
            kind = signature.parameters[name].kind
            more = kind is inspect.Parameter.VAR_KEYWORD
            if more and (unknown := sorted(set(value) - set(self.family.keywords))):
                known = [*signature.parameters, *self.family.keywords]
                raise InputError(f"{type(self.pipe).__name__} has no {unknown[0]!r}{nearest(unknown[0], known)}")
            arguments.update(value if more else {name: value})
        arguments = checked(arguments)
        embedded = self.family.embedded(self.pipe)
        for name, rule in self.family.owned.items():
            if name in arguments and name != embedded and (value := arguments.pop(name)) is not None:
                instead = (
                    f"leave it out and put {rule} into the stack instead" if rule else "there is no rule for it yet"
                )
                warn(
                    f"{name}={value!r} was given to a guided pipeline and does nothing: what counts is {self.stack}; "
                    f"{instead}"
                )
        if not embedded and arguments.get(SCALE) is not None:
            warn(f"{SCALE}={arguments[SCALE]!r} does nothing: this network was not distilled and does not take it")
        prompts = asked(self.pipe, self.family, self.stack, arguments, extra, null)
        for remark in (*prompts.remarks, *prompts.unused_weights(self.stack)):
            warn(remark)
        self._same_batch(arguments)
        # A random condition is made from the prompt's rows: for it alone, no other half need be encoded and carried on.
        halves = {one for one in self._conditions() - {"positive"} if not one.startswith("independent")}
        wanted = dict(self.family.guided if halves else self.family.unguided)
        for name in self.family.halved:
            if arguments.get(name) is not None:
                arguments[name] = self._half(name, arguments[name], bool(halves))
        if embedded:
            scale = arguments.get(embedded, signature.parameters[embedded].default)
            wanted[embedded] = scale
            if self.stack.asks():
                warn(
                    f"this network was distilled from guided runs and takes their scale as an input: "
                    f"{embedded}={scale:g} is embedded, and {self.stack} guides on top of it"
                )
        for remark in remarks(self.stack):
            warn(remark)
        if halves:
            prompt = arguments.get("prompt")
            for name, value in self.family.filled.items():
                if arguments.get(name) is None and arguments.get(f"{name}_embeds") is None:
                    wanted[name] = [value] * len(prompt) if isinstance(prompt, list | tuple) else value
        # Some pipelines write into the lists that they are given.
        copied = {name: list(value) for name, value in arguments.items() if isinstance(value, list)}
        return {**arguments, **copied, **wanted}, prompts

    def _same_batch(self, arguments: Mapping[str, Any]) -> None:
        """Refuse embeddings that are not as many as the prompts.

        Raises:
            InputError: they are not.
        """
        prompt, embeddings = arguments.get("prompt"), arguments.get("prompt_embeds")
        if prompt is None and embeddings is None:
            return
        prompts = len(prompt) if isinstance(prompt, list | tuple) else 1 if embeddings is None else len(embeddings)
        for name, value in arguments.items():
            if not name.endswith("prompt_embeds") or value is None:
                continue
            repeated = self.family.sequential and len(value) == 1  # a call of its own, whose network repeats it
            if len(value) != prompts and not repeated:
                raise InputError(f"{name} has {len(value)} rows for {prompts} prompts; give one for each prompt")

    def _half(self, name: str, value: Any, guided: bool) -> Any:
        """What is meant by an argument with a row for each half, where the prompt's alone may be evaluated.

        Args:
            name: of the argument.
            value: a tensor, or a list of them.
            guided: whether all halves are evaluated.

        Raises:
            InputError: it has another number of rows.
        """
        if isinstance(value, list | tuple):
            return [self._half(name, one, guided) for one in value]
        halves, rows = self.family.halves, len(value)
        if rows == len(halves) and not guided:
            return value.chunk(rows)[halves.index("positive")]
        if rows != (len(halves) if guided else 1):
            order = f"one for each of {', '.join(halves)}" if guided else f"one for the prompt, or {len(halves)}"
            raise InputError(f"{name} has {rows} rows; {self.stack} on {self.family.pipeline} needs {order}")
        return value

    def _conditions(self) -> set[str]:
        return {query.condition for query in self.stack.asks()}
