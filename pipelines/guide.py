"""guide(): a stack for an existing diffusers pipeline, which is left exactly as it was found."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..guidance.config import as_stack
from ..guidance.errors import (
    GuidanceNotAppliedError,
    GuidestackWarning,
    InputError,
    UnsupportedPipelineError,
    nearest,
)
from ..guidance.keyed import Keys
from ..guidance.report import Report
from ..guidance.rule import Estimate, Rule, Run
from ..guidance.run import GuidedRun
from ..guidance.stack import Stack, remarks
from ..samplers import Grid, grid, parameterization
from ..samplers.renoise import Renoising
from . import ddpm as ddpm  # each family's file enters its record
from . import dit as dit
from . import stable_diffusion as stable_diffusion
from . import time_embedding
from .family import Call, Family, Pipeline, Rows, family_of
from .intercept import calling, exclusively, method, restored
from .prompts import EXTRA, Prompts, encode, per_prompt
from .rows import PipelineNetwork


def guide(pipe: Pipeline, stack: Rule | str | Mapping[str, Any], *, max_rows: int | None = None) -> GuidedPipeline:
    """Guide an existing diffusers pipeline with a stack.

    Args:
        pipe: a pipeline of a supported family. It is used as it is and left as it is: no component is replaced, and the
            hooks of a call end with the call.
        stack: a stack, a rule, or the text or mapping of one.
        max_rows: at most this many rows in one call of the denoiser; None for the pipeline's own batches.

    Returns:
        An object to call as the pipeline itself, without `guidance_scale` and what else the stack now decides.

    Raises:
        UnsupportedPipelineError: there is no record for this pipeline, or it cannot run the stack.
        UnsupportedSchedulerError: the levels of its scheduler are not known.
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    Cost: the evaluations that the stack asks for, in the same network calls as the pipeline's own guidance where that
    evaluates the same rows.
    """
    family, stack = family_of(pipe), as_stack(stack)
    parameterization(pipe.scheduler)  # refuse what is unknown now, not after the text encoder has run
    _answerable(pipe, family, stack)
    return GuidedPipeline(pipe, family, stack, max_rows)


def _answerable(pipe: Pipeline, family: Family, stack: Stack) -> None:
    """Refuse what the pipeline cannot answer, before anything runs.

    Raises:
        UnsupportedPipelineError: it cannot.
    """
    denoiser = getattr(pipe, family.denoiser)
    beyond = sorted({query.condition for query in stack.asks()} - {"positive"})
    unconditional = [condition for condition in beyond if not condition.startswith("independent:")]
    if unconditional and (reason := family.cannot(pipe)):
        asked = ", ".join(unconditional)
        raise UnsupportedPipelineError(f"{stack} asks for {asked}; this pipeline cannot answer: {reason}")
    for condition in beyond:
        kind, _, which = condition.partition(":")
        if kind == "independent" and which not in family.random:
            known = ", ".join(repr(source) for source in family.random)
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no random condition from source={which!r}; it has {known}"
            )
        if which == "each" and family.encode is None:
            raise UnsupportedPipelineError(f"{stack} needs prompts, and {type(pipe).__name__} has none")
    for query in stack.asks():
        if query.perturbation:
            time_embedding.check(denoiser, query.perturbation)


class GuidedPipeline:
    """A pipeline with a stack; made by `guide`.

    Attributes:
        pipe: the pipeline, unchanged.
        stack: the stack.
        report: the account of the last call, up to where it got; None before the first.
    """

    def __init__(self, pipe: Pipeline, family: Family, stack: Stack, max_rows: int | None = None) -> None:
        self.pipe, self.family, self.stack, self.max_rows = pipe, family, stack, max_rows
        self.report: Report | None = None

    def __repr__(self) -> str:
        return f"guide({type(self.pipe).__name__}, {str(self.stack)!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline under the stack.

        Args:
            *args: the pipeline's own arguments.
            **kwargs: the pipeline's own arguments, without those that the stack decides (`guidance_scale`, ...). Under
                a stack with `PerpNeg`, ``negative_prompt`` may be a list of texts for each prompt, and so may
                ``extra_prompt``: positives beside the prompt.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: an argument was given that the stack decides.
            NonFiniteError: NaN or Inf in a prediction.
            GuidanceNotAppliedError: the call ended and the guidance had not happened, or the pipeline is in use.
            QueryError: the pipeline cannot answer what the stack asks.
        """
        kwargs = dict(kwargs)
        extra = kwargs.pop(EXTRA, None)
        call = self._call(args, kwargs)
        prompts = self._prompts(call, extra)
        self.report = None
        session = _Session(self, call, prompts)
        denoiser, scheduler = getattr(self.pipe, self.family.denoiser), self.pipe.scheduler
        with ExitStack() as hooks:
            hooks.enter_context(exclusively(denoiser, scheduler))
            hooks.enter_context(restored(self.pipe, self.family.scratch))
            session.encode()
            hooks.enter_context(calling(denoiser, session.denoise))
            hooks.enter_context(method(scheduler, "scale_model_input", session.watch_input))
            hooks.enter_context(method(scheduler, "step", session.watch_step))
            output = self.pipe(**call)
        session.finish()
        return output

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments to call the pipeline with, by name."""
        signature = inspect.signature(self.pipe.__call__)
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
        embedded = self.family.embedded(self.pipe)
        for name, rule in self.family.owned.items():
            if name in arguments and name != embedded:
                raise InputError(
                    f"{name}={arguments[name]!r} was given to a guided pipeline, whose guidance is {self.stack}; "
                    f"leave it out and put {rule} into the stack instead"
                )
        wanted = dict(self.family.guided if self._conditions() - {"positive"} else self.family.unguided)
        if embedded:
            scale = arguments.get(embedded, signature.parameters[embedded].default)
            wanted[embedded] = scale
            if self.stack.asks():
                _warn(
                    f"this network was distilled from guided runs and takes their scale as an input: "
                    f"{embedded}={scale:g} is embedded, and {self.stack} guides on top of it"
                )
        for remark in remarks(self.stack):
            _warn(remark)
        return {**arguments, **wanted}

    def _prompts(self, call: dict[str, Any], extra: Any) -> Prompts | None:
        """The prompts beside the first, under a stack that asks for them; the pipeline keeps the first negative.

        Raises:
            InputError: several are given and no rule asks for them, or they do not fit to the prompts.
        """
        negative = call.get("negative_prompt")
        if "negative:each" not in self._conditions():
            nested = isinstance(negative, list | tuple) and any(isinstance(one, list | tuple) for one in negative)
            if nested or extra is not None:
                what = EXTRA if extra is not None else "a list of negatives for each prompt"
                raise InputError(f"{what} was given, and no rule of {self.stack} uses it; perpneg(scale) does")
            return None
        prompts = Prompts(per_prompt(negative, call, "negative_prompt"), per_prompt(extra, call, EXTRA))
        if negative is not None:
            firsts = [one[0] if one else "" for one in prompts.negatives]
            call["negative_prompt"] = firsts[0] if isinstance(call.get("prompt"), str) else firsts
        elif call.get("negative_prompt_embeds") is not None:
            prompts = Prompts([["(embedded)"]] * len(prompts.negatives), prompts.positives)
        return prompts

    def _conditions(self) -> set[str]:
        return {query.condition for query in self.stack.asks()}


class _Session:
    """One call: what the hooks have to remember from one to the next."""

    def __init__(self, guided: GuidedPipeline, call: Call, prompts: Prompts | None) -> None:
        self.guided, self.pipe, self.family, self.call_arguments = guided, guided.pipe, guided.family, call
        self.prompts = prompts
        self.negative_given = _given(call.get("negative_prompt")) or call.get("negative_prompt_embeds") is not None
        self.emitted = parameterization(guided.pipe.scheduler)
        self.extra: dict[str, Rows] = {}
        self.renoising: Renoising | None = None
        self.estimate: Estimate | None = None
        self.grid: Grid | None = None
        self.position = 0
        self.fired = self.stepped = 0
        self.x: Tensor | None = None
        self.run: GuidedRun | None = None

    def encode(self) -> None:
        """Encode the prompts that the stack asks for and the pipeline does not evaluate by itself."""
        wanted = self.guided._conditions()
        if self.negative_given and not any(name.startswith("negative") for name in wanted):
            _warn(f"a negative prompt was given, and no rule of {self.guided.stack} uses it")
        if "null" in wanted and self.negative_given:
            self.extra["null"] = encode(self.pipe, self.family, self.call_arguments, [""])
        if self.prompts is not None:
            self.extra |= self.prompts.encoded(self.pipe, self.family, self.call_arguments)

    # --- hooks ---------------------------------------------------------------------------------------------------

    def watch_input(self, scale: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Take x where the scheduler is handed it: the denoiser sees only what comes out."""

        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.x = sample
            return scale(sample, *args, **kwargs)

        return scale_model_input

    def watch_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Count the steps, by which the position in the schedule is known without asking a device; and re-noise."""
        names = list(inspect.signature(step).parameters)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.renoising is None:
                result = step(*args, **kwargs)
            else:
                given = dict(zip(names, args, strict=False)) | kwargs
                result = self._renoised(step, given)
            self.position += 1
            self.stepped += 1
            return result

        return counted

    def _renoised(self, step: Callable[..., Any], given: dict[str, Any]) -> Any:
        """A step whose re-noising prediction is not where it jumps."""
        assert self.renoising is not None  # the caller saw to it
        assert self.estimate is not None  # the denoiser was called before
        sample = given["sample"]
        batch = len(self.estimate.prediction.native)
        copies = len(sample) // batch  # some pipelines hand over both halves
        told, at = self.renoising.before(self.estimate, sample[:batch])
        if self.renoising.offset is not None:
            given = {**given, "model_output": torch.cat([told] * copies), "sample": torch.cat([at] * copies)}
        result = step(**given)
        reached = result[0]
        moved = torch.cat([self.renoising.after(reached[:batch])] * copies)
        if isinstance(result, tuple):
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    def denoise(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the pipeline's call of its denoiser with the guided estimate in every half."""
        arguments = dict(zip(self.family.positional, args, strict=False)) | kwargs
        rest: list[Any] = []  # what the denoiser returns beside its prediction: nothing, in the families known so far

        def call(named: dict[str, Any]) -> Tensor:
            positional = [named[name] for name in self.family.positional[: len(args)]]
            output = original(*positional, **{name: value for name, value in named.items() if name in kwargs})
            rest[:] = [output]
            return output[0]  # type: ignore[no-any-return]  # the prediction, of a tuple and of a model output alike

        both = self.family.branches(self.pipe, self.call_arguments)
        branches = tuple(self._named(half) for half in self.family.halves) if both else ("positive",)
        sample = arguments[self.family.sample]
        batch = len(sample) // len(branches)
        run, schedule = self._begin(sample, batch, arguments)
        point = schedule.points[self.position]
        aliases = {} if self.negative_given else {"negative": "null"}
        if self.prompts is not None and "negative:0" not in self.extra:
            aliases["negative:0"] = "negative" if self.negative_given else "null"
        keys = Keys(self._seeds(batch), point.step, point.evaluation)
        random = {
            f"independent:{source}": functools.partial(draw, self.pipe) for source, draw in self.family.random.items()
        }
        perturb = functools.partial(time_embedding.perturbed, getattr(self.pipe, self.family.denoiser))
        network = PipelineNetwork(
            self.family,
            call,
            arguments,
            branches,
            batch,
            self.extra,
            aliases,
            self.emitted,
            keys,
            random,
            perturb,
        )
        x = self.x if self.x is not None else sample
        estimate = run.estimate(network, x[:batch], point.step, point.level, point.evaluation, point.time)
        self.fired += 1
        self.estimate = estimate
        told = (estimate.renoise or estimate.prediction).native
        if network.rest is not None:
            told = torch.cat([told, network.rest], 1)
        value = torch.cat([told] * len(branches))
        output = rest[0]
        return (value, *output[1:]) if isinstance(output, tuple) else type(output)(value)

    def _named(self, half: str) -> str:
        return half if half == "positive" or self.negative_given else "null"

    def _begin(self, sample: Tensor, batch: int, arguments: Mapping[str, Any]) -> tuple[GuidedRun, Grid]:
        """The run and the schedule; made at the first evaluation, when the pipeline has set its timesteps."""
        if self.run is None or self.grid is None:
            self.grid = grid(self.pipe.scheduler)
            timestep = arguments["timestep"]
            self.position = self.grid.position(float(timestep.flatten()[0] if torch.is_tensor(timestep) else timestep))
            counts = self._counts(batch)
            run = Run(
                (batch, *sample.shape[1:]), sample.dtype, sample.device, self.grid.steps, self._seeds(batch), *counts
            )
            if self.guided.stack.renoises:
                self.renoising = Renoising(self.pipe.scheduler, self.grid, self.emitted, self.position)
            self.run = GuidedRun(self.guided.stack, run, self.guided.max_rows)
            self.guided.report = self.run.report
        return self.run, self.grid

    def _counts(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.prompts is None:
            return (), ()
        repeats = batch // len(self.prompts.negatives)
        return self.prompts.counts("negatives", repeats), self.prompts.counts("positives", repeats)

    def _seeds(self, batch: int) -> tuple[int, ...]:
        generator = self.call_arguments.get("generator")
        if generator is None:
            return tuple(range(batch))
        if isinstance(generator, list | tuple):
            return tuple(one.initial_seed() for one in generator)
        return tuple(generator.initial_seed() + sample for sample in range(batch))

    def finish(self) -> None:
        """Check that everything happened that was asked for.

        Raises:
            GuidanceNotAppliedError: the denoiser was not called through its hook at every step.
            NonFiniteError: NaN or Inf on an accelerator.
        """
        if self.run is None or self.fired < self.stepped:
            raise GuidanceNotAppliedError(
                f"{self.guided!r}: the scheduler made {self.stepped} steps and the denoiser was intercepted "
                f"{self.fired} times; the images are not guided as asked. Was the denoiser replaced during the call?"
            )
        self.run.finish()


def _warn(message: str) -> None:
    warnings.warn(message, GuidestackWarning, stacklevel=4)  # at the line that calls the guided pipeline


def _given(negative: Any) -> bool:
    return any(negative) if isinstance(negative, list | tuple) else bool(negative)
