"""One guided call of a pipeline: what its hooks do, and what they remember from one to the next."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import GuidanceNotAppliedError, InputError, warn
from ..guidance.keyed import Keys, global_seed, own_seed
from ..guidance.observe import Observer
from ..guidance.plan import When, plan
from ..guidance.prediction import Parameterization, Prediction
from ..guidance.query import POSITIVE, Perturbation, Query, Request
from ..guidance.report import Report
from ..guidance.rule import Stack
from ..guidance.run import GuidedRun
from ..guidance.step import Estimate, Run
from ..samplers import Grid, entry, fingerprint, grid, parameterization, scheduler_identity
from ..samplers.renoise import Renoising
from . import time_embedding
from .caches import Caches
from .families.lookup import denoisers_of
from .families.record import Call, Family, Pipeline, Rows
from .hooks import Caller, Mine, Watch
from .network import Branch, PipelineNetwork
from .prepared import Prepared
from .prompts import Prompts, uses_negative

ASKED, PIPELINES = "asked", "pipeline"
"""Which rows a network call has: those that the stack asks for, or always those of the pipeline's own call."""
TOGETHER = 8
"""Random texts that are encoded in one call, those of the next evaluations too: an encoder is slow with a few."""


class Session:
    """One call.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        call: the arguments that the pipeline is called with.
        prompts: what is evaluated beside the prompt.
        max_rows: at most this many rows in one call of the denoiser.
        observe: told of every evaluation.
        rows: as of `guide`.

    Attributes:
        caller: whose calls are answered.
        run: the run; None before the first evaluation.
    """

    def __init__(
        self,
        pipe: Pipeline,
        family: Family,
        stack: Stack,
        call: Call,
        prompts: Prompts,
        max_rows: int | None,
        observe: Observer | None = None,
        rows: str = ASKED,
    ) -> None:
        self.pipe, self.family, self.stack, self.call, self.rows = pipe, family, stack, call, rows
        self.prompts, self.max_rows, self.scheduler = prompts, max_rows, pipe.scheduler
        self.observe = observe
        self.seeds = self._seeds()
        self.caller = Caller(pipe, call.values())
        self.emitted = self._emitted()
        self.extra: dict[str, Rows] = {}
        self.prepared = Prepared()
        self.caches: dict[torch.nn.Module, Caches] = {}
        self.renoising: Renoising | None = None
        self.estimate: Estimate | None = None
        self.grid: Grid | None = None
        self.position = 0
        self.fired = self.stepped = 0
        self.left: tuple[Any, ...] | None = None
        self.guiding: dict[str, Any] | None = None
        self.x: Tensor | None = None
        self.part: tuple[slice, ...] | None = None
        self.run: GuidedRun | None = None
        self.waiting: list[tuple[Branch, Tensor, Tensor]] = []
        self.last_output: Any = None
        self.last_answer: Tensor | None = None

    def _emitted(self) -> Parameterization:
        emitted = parameterization(self.pipe.scheduler)
        return emitted.negated() if self.family.negates else emitted

    def encode(self) -> None:
        """Encode the prompts that the stack asks for and the pipeline does not evaluate by itself."""
        wanted = {query.condition for query in self.stack.asks()}
        if any(self.prompts.negatives) and not uses_negative(self.stack):
            warn(f"a negative prompt was given, and no rule of {self.stack} uses it")
        self.extra = self.prompts.encoded(self.pipe, self.family, self.call, wanted)

    # --- hooks ---------------------------------------------------------------------------------------------------

    @property
    def watched(self) -> Mapping[str, tuple[Watch, Mine]]:
        """What to replace the scheduler's methods with for the length of the call, and for whom, by name."""
        return {"scale_model_input": (self.watch_input, self.caller.owns), "step": (self.watch_step, self.caller.owns)}

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
            self._undisturbed()
            if self.renoising is None:
                result = step(*args, **kwargs)
            else:
                given = dict(zip(names, args, strict=False)) | kwargs
                result = self._renoised(step, given)
            self.position += 1
            self.stepped += 1
            self.left = self._standing()
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

    def denoise(self, module: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the pipeline's call of its denoiser with the guided estimate."""
        self._undisturbed()
        if module not in self.caches:
            self.caches[module] = Caches(module, str(self.stack))
        if not self.waiting:
            self.caches[module].begin()
        branch = Branch(self.family, module, original, args, kwargs, self.last_output, self.caches[module])
        both = self.family.branches(self.pipe, self.call)
        if self.family.sequential and both:
            return self._one_of_several(branch)
        return self._all_at_once(branch, both)

    def _standing(self) -> tuple[Any, ...]:
        """Where the scheduler stands: its schedule, and how it counts its steps."""
        return self.scheduler.timesteps, *(getattr(self.scheduler, name, None) for name in ("_step_index", "counter"))

    def _undisturbed(self) -> None:
        """Refuse to go on where somebody changed meanwhile what the estimate or the step hangs on.

        Raises:
            GuidanceNotAppliedError: the scheduler was replaced or used, or the pipeline's own guidance was changed.
        """
        name, now = type(self.pipe).__name__, self._standing()
        if self.pipe.scheduler is not self.scheduler:
            raise GuidanceNotAppliedError(
                f"the scheduler of {name} was replaced in the middle of a guided call; replace it between two calls"
            )
        if self.left is not None and (self.left[0] is not now[0] or self.left[1:] != now[1:]):
            raise GuidanceNotAppliedError(
                f"the scheduler of {name} was used by somebody else in the middle of a guided call; give every "
                "pipeline a scheduler of its own, scheduler.from_config(scheduler.config)"
            )
        self.left = now
        known = self.guiding
        if known is None:
            embedded = f"_{self.family.embedded(self.pipe)}"  # a number that the network was handed at the start
            names = [one for one in self.family.scratch if one[1:] in self.family.owned and one != embedded]
            self.guiding = {one: getattr(self.pipe, one, None) for one in names}
            return
        for one, value in known.items():
            if (changed := getattr(self.pipe, one, None)) != value:
                raise GuidanceNotAppliedError(self._changed(one, changed))

    def _changed(self, name: str, value: Any) -> str:
        """What to do instead of a change of the pipeline's own guidance in the middle of a call."""
        assert self.grid is not None  # the first evaluation was made
        assert self.run is not None  # likewise
        step, steps = self.grid.points[self.position].step, self.grid.steps
        share = math.floor(1000 * step / steps) / 1000
        return (
            f"{name} of {type(self.pipe).__name__} was set to {value!r} in the middle of a guided call, before step "
            f"{step} of {steps}, as by a callback, and what guides is {self.stack}; leave that out and put it into the "
            f"stack: prefix({self.stack}, {step - self.run.report.steps[0].index}) to guide no longer, "
            f"during({self.stack}, progress=(0, {share:g})) | during(OTHER, progress=({share:g}, 1)) to guide otherwise"
        )

    def _all_at_once(self, branch: Branch, both: bool) -> Any:
        """A call with all conditions in one batch: the estimate goes into every part of it."""
        names = tuple(map(self._named, self.family.halves)) if both else ("positive",)
        told = self._evaluated(dict.fromkeys(names, branch), branch, len(branch.sample) // len(names))
        return branch.returned(torch.cat([told] * len(names)) if len(names) > 1 else told)

    def _one_of_several(self, branch: Branch) -> Any:
        """A call with one of the conditions that the pipeline evaluates one after the other.

        All but the last get their own answer, in a tensor that is filled with the estimate when the last one is there.
        """
        names = tuple(map(self._named, self.family.halves))
        if len(self.waiting) + 1 < len(names):
            answer = self._alone(branch, names[len(self.waiting)])
            shell = answer.clone()
            self.waiting.append((branch, answer, shell))
            return branch.returned(shell)
        waited, self.waiting = self.waiting, []
        branches = dict(zip(names, [*(one for one, _, _ in waited), branch], strict=True))
        answered = dict(zip(names, (answer for _, answer, _ in waited)))
        told = self._evaluated(branches, branch, len(branch.sample), answered)
        for _, _, shell in waited:
            shell.copy_(told)
        return waited[0][0].returned(told)

    def _evaluated(
        self, branches: Mapping[str, Branch], branch: Branch, batch: int, answered: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The stack's estimate, as the scheduler is to be told it."""
        part = self.family.part(self.pipe, branch.arguments) if self.part is None else self.part
        x = branch.sample[(slice(batch), *part)] if self.x is None else self.x[:batch]
        self.part = part or (slice(x.shape[1]),)  # learned variances are behind
        run, schedule = self._begin(branch, x)
        point = schedule.points[self.position]
        coming = schedule.points[self.position : self.position + max(1, TOGETHER // batch)]
        keys = tuple(Keys(run.run.seeds, one.step, one.evaluation) for one in coming)
        network = self._network(branches, branch, batch, keys, answered)
        if not self.fired:  # what the pipeline's own rows are is known now
            self.extra = network.fit()
            self._look_at(branches, network)
        reached = schedule.reached(self.position)
        estimate = run.estimate(network, x, point.step, point.level, point.evaluation, point.time, reached)
        if branch.caches is not None:
            branch.caches.end(len(set(map(id, branches.values()))))
        self.fired += 1
        if self.stack.skips:  # others need neither, and it is memory
            self.last_output, self.last_answer = branch.output, network.whole
        self.estimate = self._handed(branch, estimate)
        return network.completed((estimate.renoise or estimate.prediction).native)

    def _look_at(self, branches: Mapping[str, Branch], network: PipelineNetwork) -> None:
        """Refuse at the first step what would go wrong there or later.

        Raises:
            InputError: the denoiser is given rows that are nobody's.
            UnsupportedPipelineError: a feature cache cannot work with the stack.
        """
        for branch in branches.values():
            for name in self.family.rows:
                network.checked(branch, name)
            if branch.caches is not None and branch.caches.exact:
                self._foresee(branch.caches, network)

    def _foresee(self, caches: Caches, network: PipelineNetwork) -> None:
        """Refuse before the first step a stack that will leave out what a cache needs at every step, or ask for more.

        Raises:
            UnsupportedPipelineError: it will.
        """
        assert self.grid is not None  # the run has begun
        assert self.run is not None
        run, points = self.run.run, self.grid.points[self.position :]
        schedule = [When(point.step, point.evaluation, point.level, point.time) for point in points]
        negatives, positives = max(run.negatives, default=0), max(run.positives, default=0)
        for planned in plan(self.stack, schedule, negatives, positives, run.batch):
            asked = {network.resolve(query) for query in planned.queries} | set(network.always)
            if asked != set(map(Query, network.branches)):
                texts = ", ".join(sorted(map(str, asked))) or "nothing"
                raise caches.not_exact(f"{texts} at step {planned.when.index}")

    def _handed(self, branch: Branch, estimate: Estimate) -> Estimate:
        """`estimate` in the form in which the scheduler is handed samples; only re-noising looks at it."""
        handed = functools.partial(self.family.handed, self.pipe, branch.arguments)
        if self.renoising is None:
            return estimate

        def one(prediction: Prediction) -> Prediction:
            return replace(prediction, native=handed(prediction.native), x=handed(prediction.x))

        return replace(
            estimate,
            prediction=one(estimate.prediction),
            renoise=None if estimate.renoise is None else one(estimate.renoise),
        )

    def _alone(self, branch: Branch, name: str) -> Tensor:
        """The answer to one of several calls, of at most `max_rows` rows each."""
        batch = len(branch.sample)
        if self.max_rows is None or self.max_rows >= batch:
            return branch.call(branch.arguments, [Request(Query(name), None)])
        network = self._network({"positive": branch}, branch, batch, (Keys((), 0, 0),), None)
        starts = range(0, batch, self.max_rows)
        pieces = [tuple(range(start, min(start + self.max_rows, batch))) for start in starts]
        return torch.cat([network.native([Request(POSITIVE, rows)])[0] for rows in pieces])

    def _network(
        self,
        branches: Mapping[str, Branch],
        branch: Branch,
        batch: int,
        keys: tuple[Keys, ...],
        answered: Mapping[str, Tensor] | None,
    ) -> PipelineNetwork:
        aliases = {self._contrast: "null"} if self.prompts.empty else {}
        if "negative:0" not in self.extra:
            aliases["negative:0"] = self._named(self._contrast) if self.prompts.first else "null"
        return PipelineNetwork(
            self.family,
            branches,
            batch,
            extra=self.extra,
            aliases=aliases,
            parameterization=self.emitted,
            part=self.part or (),
            keys=keys[0],
            ahead=keys,
            random={
                f"independent:{name}": functools.partial(draw, self.pipe) for name, draw in self.family.random.items()
            },
            perturb=functools.partial(self._perturbed, branch.module),
            answered=answered,
            prepared=self.prepared,
            whole=self.last_answer,
            fixed=self.rows == PIPELINES,
        )

    def _perturbed(
        self, module: Any, perturbation: Perturbation, generators: Sequence[torch.Generator]
    ) -> AbstractContextManager[None]:
        return time_embedding.perturbed(module, perturbation, generators, self.prepared.places(module))

    @property
    def _contrast(self) -> str:
        """The half that differs from the prompt's by its text only; an editing pipeline's negative has no picture."""
        return "image" if "image" in self.family.halves else "negative"

    def _named(self, half: str) -> str:
        return half if half != self._contrast or not self.prompts.empty else "null"

    def _begin(self, branch: Branch, x: Tensor) -> tuple[GuidedRun, Grid]:
        """The run and the schedule; made at the first evaluation, when the pipeline has set its timesteps."""
        if self.run is None or self.grid is None:
            scheduler, batch = self.pipe.scheduler, len(x)
            self.position = self._position(branch)
            self.grid = self.grid or grid(scheduler, self.position)
            run = Run(
                tuple(x.shape),
                branch.sample.dtype,
                x.device,
                self.grid.steps,
                tuple(self.seeds[0] + sample for sample in range(batch)) if len(self.seeds) == 1 else self.seeds,
                *self._counts(batch),
                identity=self._identity(self.grid) if any(part.needs_identity for part in self.stack.parts()) else {},
            )
            if self.stack.renoises:
                self.renoising = Renoising(scheduler, self.grid, self.position, self.stack.guides_history)
            self.run = GuidedRun(self.stack, run, self.max_rows, self.observe)
        return self.run, self.grid

    def _identity(self, schedule: Grid) -> dict[str, str]:
        """What fitted rules are held to."""
        return {
            "model": model_identity(self.pipe, self.family),
            "negative": "empty" if self.prompts.empty else "given",
            **scheduler_identity(self.pipe.scheduler, schedule),
        }

    def _position(self, branch: Branch) -> int:
        """Where in the schedule the pipeline begins; not at 0 in image-to-image."""
        begin = getattr(self.pipe.scheduler, "begin_index", None)
        if begin is not None:  # the pipeline told the scheduler
            return int(begin)
        told = branch.arguments[self.family.timestep]
        # Where each token has its own, those of a given picture are told that they are clean.
        timestep = float(told.max() if torch.is_tensor(told) else told)
        return entry(self.pipe.scheduler, told, self.family.clock(self.pipe, timestep))

    def _counts(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        repeats = batch // len(self.prompts.negatives)
        return self.prompts.counts("negatives", repeats), self.prompts.counts("positives", repeats)

    def _seeds(self) -> tuple[int, ...]:
        """A seed for each sample, or one for all; taken before the pipeline draws."""
        generator = self.call.get("generator")
        if generator is None:  # the pipeline draws from PyTorch's own
            return (global_seed(torch.device(getattr(self.pipe, "_execution_device", "cpu"))),)
        return tuple(map(own_seed, generator if isinstance(generator, list | tuple) else [generator]))

    def _explain_no_step(self) -> None:
        """Say why image-to-image ran no step.

        Raises:
            InputError: `strength` of the steps is less than one.
        """
        takes = inspect.signature(self.pipe.__call__).parameters
        names = ("strength", "num_inference_steps")
        if not set(names) <= set(takes):
            return
        strength, steps = (self.call.get(name, takes[name].default) for name in names)
        if strength and steps and strength * steps < 1:
            raise InputError(
                f"strength={strength:g} of {steps} steps is less than one step, and nothing was guided; give "
                f"strength={math.ceil(100 / steps) / 100:g} or more, or {math.ceil(1 / strength)} steps"
            )

    def forget(self) -> None:
        """Leave nothing of the call in the denoisers' feature caches."""
        for caches in self.caches.values():
            caches.forget()

    def finish(self) -> None:
        """Check that everything happened that was asked for.

        Raises:
            InputError: `strength` left no step to make.
            GuidanceNotAppliedError: the denoiser was not called through its hook at every step.
            NonFiniteError: NaN or Inf in a sample.
        """
        if self.run is None and not self.stepped:
            self._explain_no_step()
        if self.run is None or self.fired < self.stepped:
            name, caller = type(self.pipe).__name__, self.caller.stranger
            why = f"It was called by {caller}, which is no code of {name}" if caller else "Was it replaced meanwhile?"
            raise GuidanceNotAppliedError(
                f"{self.stack} on {name}: the scheduler made {self.stepped} steps and the denoiser "
                f"was intercepted {self.fired} times; the images are not guided as asked. {why}"
            )
        if remark := nothing_guided(self.run.finish()):
            warn(remark)


def nothing_guided(report: Report) -> str:
    """What a user should know of a run that stopped guiding at its first step; "" of any other."""
    for name, guiding in report.steps[0].traces.items():
        if name.startswith("guiding") and not guiding.any():
            return (
                f"{report.stack} stopped guiding every sample at the first step, so that nothing was guided: its "
                "threshold is for another model or space; look at the trace 'cosine', or try space='denoised'"
            )
    return ""


def model_identity(pipe: Pipeline, family: Family) -> str:
    """The fingerprints of the components of `pipe` that predict."""
    return " ".join(map(fingerprint, denoisers_of(pipe, family)))
