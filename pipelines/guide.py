"""guide(): a stack for an existing diffusers pipeline, which is left exactly as it was found."""

from __future__ import annotations

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
from ..guidance.report import Report
from ..guidance.rule import Rule, Run
from ..guidance.run import GuidedRun
from ..guidance.stack import Stack
from ..samplers import Grid, grid, parameterization
from . import stable_diffusion as stable_diffusion  # each family's file enters its record
from .family import Call, Family, Pipeline, family_of
from .intercept import calling, exclusively, method, restored
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
    beyond = sorted(str(query) for query in stack.asks() if query.condition != "positive")
    if beyond and (reason := family.cannot(pipe)):
        raise UnsupportedPipelineError(
            f"{stack} asks for {', '.join(beyond)}, and this pipeline cannot answer: {reason}"
        )
    return GuidedPipeline(pipe, family, stack, max_rows)


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
            **kwargs: the pipeline's own arguments, without those that the stack decides (`guidance_scale`, ...).

        Returns:
            What the pipeline returns.

        Raises:
            InputError: an argument was given that the stack decides.
            NonFiniteError: NaN or Inf in a prediction.
            GuidanceNotAppliedError: the call ended and the guidance had not happened, or the pipeline is in use.
            QueryError: the pipeline cannot answer what the stack asks.
        """
        call = self._call(args, kwargs)
        self.report = None
        session = _Session(self, call)
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
        for name, rule in self.family.owned.items():
            if name in arguments:
                raise InputError(
                    f"{name}={arguments[name]!r} was given to a guided pipeline, whose guidance is {self.stack}; "
                    f"leave it out and put {rule} into the stack instead"
                )
        wanted = self.family.guided if self._conditions() - {"positive"} else self.family.unguided
        return {**arguments, **wanted}

    def _conditions(self) -> set[str]:
        return {query.condition for query in self.stack.asks()}


class _Session:
    """One call: what the hooks have to remember from one to the next."""

    def __init__(self, guided: GuidedPipeline, call: Call) -> None:
        self.guided, self.pipe, self.family, self.call_arguments = guided, guided.pipe, guided.family, call
        self.negative_given = _given(call.get("negative_prompt")) or call.get("negative_prompt_embeds") is not None
        self.emitted = parameterization(guided.pipe.scheduler)
        self.extra: dict[str, Mapping[str, Tensor]] = {}
        self.grid: Grid | None = None
        self.position = 0
        self.fired = self.stepped = 0
        self.x: Tensor | None = None
        self.run: GuidedRun | None = None

    def encode(self) -> None:
        """Encode the prompts that the stack asks for and the pipeline does not evaluate by itself."""
        wanted = self.guided._conditions()
        if self.negative_given and not any(name.startswith("negative") for name in wanted):
            warnings.warn(
                f"a negative prompt was given, and no rule of {self.guided.stack} uses it",
                GuidestackWarning,
                stacklevel=4,
            )
        if "null" in wanted and self.negative_given:
            with torch.no_grad():
                self.extra["null"] = self.family.encode(self.pipe, self.call_arguments, "")

    # --- hooks ---------------------------------------------------------------------------------------------------

    def watch_input(self, scale: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Take x where the scheduler is handed it: the denoiser sees only what comes out."""

        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.x = sample
            return scale(sample, *args, **kwargs)

        return scale_model_input

    def watch_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Count the steps: the position in the schedule is known without asking a device."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.position += 1
            self.stepped += 1
            return result

        return counted

    def denoise(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the pipeline's call of its denoiser with the guided estimate in every half."""
        arguments = dict(zip(self.family.positional, args, strict=False)) | kwargs
        rest: list[Any] = []  # what the denoiser returns beside its prediction: nothing, in the families known so far

        def call(named: dict[str, Any]) -> Tensor:
            positional = [named[name] for name in self.family.positional[: len(args)]]
            output = original(*positional, **{name: value for name, value in named.items() if name in kwargs})
            rest[:] = [output]
            return output[0]  # type: ignore[no-any-return]  # the prediction, of a tuple and of a model output alike

        both = self.family.branches(self.pipe)
        branches = tuple(self._named(half) for half in self.family.halves) if both else ("positive",)
        sample = arguments[self.family.sample]
        batch = len(sample) // len(branches)
        run, schedule = self._begin(sample, batch, arguments)
        point = schedule.points[self.position]
        aliases = {} if self.negative_given else {"negative": "null"}
        network = PipelineNetwork(self.family, call, arguments, branches, batch, self.extra, aliases, self.emitted)
        x = self.x if self.x is not None else sample
        estimate = run.estimate(network, x[:batch], point.step, point.level, point.evaluation)
        self.fired += 1
        value = torch.cat([estimate.prediction.native] * len(branches))
        output = rest[0]
        return (value, *output[1:]) if isinstance(output, tuple) else type(output)(value)

    def _named(self, half: str) -> str:
        return half if half == "positive" or self.negative_given else "null"

    def _begin(self, sample: Tensor, batch: int, arguments: Mapping[str, Any]) -> tuple[GuidedRun, Grid]:
        """The run and the schedule; made at the first evaluation, when the pipeline has set its timesteps."""
        if self.run is None or self.grid is None:
            self.grid = grid(self.pipe.scheduler)
            self.position = self.grid.position(float(arguments["timestep"]))
            run = Run((batch, *sample.shape[1:]), sample.dtype, sample.device, self.grid.steps, self._seeds(batch))
            self.run = GuidedRun(self.guided.stack, run, self.guided.max_rows)
            self.guided.report = self.run.report
        return self.run, self.grid

    def _seeds(self, batch: int) -> tuple[int, ...]:
        generator = self.call_arguments.get("generator")
        if generator is None:
            return ()
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


def _given(negative: Any) -> bool:
    return any(negative) if isinstance(negative, list | tuple) else bool(negative)
