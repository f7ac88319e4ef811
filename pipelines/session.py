"""One guided call of a pipeline: each call of its denoiser is answered with the stack's estimate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import GuidanceNotAppliedError, warn
from ..guidance.keyed import Keys, global_seed, own_seed
from ..guidance.observe import Observer
from ..guidance.plan import plan
from ..guidance.query import Query, with_edits
from ..guidance.report import Report
from ..guidance.rule import Stack
from ..guidance.run import GuidedRun
from ..guidance.step import Run
from ..samplers import scheduler_identity, weights_digest
from .answerable import ASKED, PIPELINES
from .branch import Branch
from .decoding import pictured
from .denoiser_calls import DenoiserCalls
from .families.lookup import denoisers_of
from .families.record import Call, Family, Pipeline
from .network import PipelineNetwork
from .network_factory import NetworkFactory
from .prompts import Prompts
from .second import Second
from .steps import Steps
from .turns import Asked, Turns

AUTOENCODERS = ("vae", "vqvae", "vqgan", "movq")
"""Components of pipelines whose samples are latents."""
TOGETHER = 8
"""Random texts that are encoded in one call, those of the next evaluations too: an encoder is slow with a few."""


class Session:
    """One guided call of a pipeline, which answers the calls of its denoiser.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        call: the arguments that the pipeline is called with.
        prompts: what is evaluated beside the prompt.
        max_rows: at most this many rows in one call of the denoiser.
        observe: called after every evaluation.
        rows: as in `guide`.
        seconds: the networks beside the denoiser, by name.
        objectives: the objectives that rules steer by, as in `guide`.
        steps: where the call stands in its schedule; None for a call that runs its schedule as the pipeline does.

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
        steps: Steps | None = None,
        seconds: Mapping[str, Second] | None = None,
        objectives: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.family, self.stack, self.call, self.prompts = pipe, family, stack, call, prompts
        self.max_rows, self.observe, self.objectives = max_rows, observe, objectives
        self.seeds = _seeds(pipe, call)
        self.steps = steps or Steps(pipe, family, stack, call)
        self.caller = self.steps.caller
        self.calls = DenoiserCalls(family, stack)
        denoisers = denoisers_of(pipe, family)
        beside = {name: second.beside(pipe, denoisers) for name, second in (seconds or {}).items()}
        self.networks = NetworkFactory(
            pipe, family, prompts, self.steps.emitted, rows == PIPELINES, beside, self.steps.scaled
        )
        self.run: GuidedRun | None = None
        self.part: tuple[slice, ...] | None = None
        self._form: tuple[Tensor, Any] | None = None

    def encode(self) -> None:
        """Encode the prompts that the stack asks for and the pipeline does not evaluate by itself."""
        self.networks.encode(self.stack, self.call)

    def denoise(self, module: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the pipeline's call of its denoiser with the guided estimate."""
        self.steps.check()
        branch = self.calls.branch(module, original, args, kwargs)
        both = self.family.branches(self.pipe, self.call)
        if self.family.sequential and both:
            return self._one_of_several(branch)
        return self._all_at_once(branch, both)

    def _all_at_once(self, branch: Branch, both: bool) -> Any:
        """Answer a call with all conditions in one batch: the estimate goes into every part of it."""
        names = self.networks.names if both else ("positive",)
        told = self._evaluated(dict.fromkeys(names, branch), branch, len(branch.sample) // len(names))
        return branch.returned(torch.cat([told] * len(names)) if len(names) > 1 else told)

    def _one_of_several(self, branch: Branch) -> Any:
        """Answer a call with one of the conditions that the pipeline evaluates one after the other."""
        names = self.networks.names
        if self.calls.waiting + 1 < len(names):
            name = names[self.calls.waiting]
            answer = None if self._late(name) else self.networks.alone(branch, name, self.part or (), self.max_rows)
            form = self._form if answer is None else (answer, branch.output)
            assert form is not None  # else it is not late
            self._form = form if self._may_be_late else None
            branch.output = form[1]
            return self.calls.wait(branch, form[0], answer)
        waited = self.calls.taken()
        branches = dict(zip(names, [*(one.branch for one in waited), branch], strict=True))
        answered = {name: one.answer for name, one in zip(names, waited, strict=False) if one.answer is not None}
        told = self._evaluated(branches, branch, len(branch.sample), answered)
        # The pipeline holds these tensors already: filled in place, its own combination of them is the identity.
        for one in waited:
            one.shell.copy_(told)
        return waited[0].branch.returned(told)

    def _late(self, name: str) -> bool:
        """Whether a condition of the next evaluation is not answered by itself, in the pipeline's own call for it.

        That is where its pass is edited, where gradients go through all of them, and where the samples are
        not yet where they will be evaluated.
        """
        if self.run is None or self._form is None:
            return False
        step = self.steps.where(self.run)
        edited = bool(with_edits(Query(name), self.stack.edits(step, self.run.state)).edits)
        return edited or self.run.turns(step) > 0 or self.stack.differentiated(step, self.run.state)

    @property
    def _may_be_late(self) -> bool:
        return bool(self.stack.own_pass) or self.stack.takes_turns or self.stack.differentiates

    def _evaluated(
        self, branches: Mapping[str, Branch], branch: Branch, batch: int, answered: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Evaluate the stack and return its estimate, in the form in which the scheduler takes it."""
        part = self.family.part(self.pipe, branch.arguments) if self.part is None else self.part
        x = branch.sample[(slice(batch), *part)] if self.steps.x is None else self.steps.x[:batch]
        self.part = part or (slice(x.shape[1]),)  # the channels after these are learned variances
        run, steps, networks = self.run or self._begin(branch, x), self.steps, self.networks
        keys = tuple(Keys(run.run.seeds, one.step, one.evaluation) for one in steps.coming(max(1, TOGETHER // batch)))
        network = networks.made(branches, branch, batch, keys, self.part, answered)
        if not steps.fired:  # what the pipeline's own rows are is known now
            networks.extra = network.fit()
            self._look_ahead(run, network)
        step = steps.where(run)
        turns = Turns(steps, networks, Asked(branches, branch, answered), x, self.part)
        moved = run.moved(turns, x, step)
        asked = turns.at(moved)
        if moved is not x:
            network = networks.made(asked.branches, asked.last, batch, keys, self.part)
            steps.move(moved, branch.arguments)
        at = step.level, step.evaluation, step.time, step.after, step.before
        estimate = run.estimate(network, moved, step.index, *at)
        if branch.caches is not None:
            branch.caches.end(len(set(map(id, branches.values()))))  # one call may stand for several conditions
        output, whole = turns.output  # needed if the turns have answered everything, so that no call was made here
        branch.output = output if asked.last.output is None else asked.last.output
        network.whole = whole if network.whole is None else network.whole
        if self.stack.skips:  # only a skipped step needs them, and they take memory
            self.calls.last, networks.whole = branch.output, network.whole
        steps.evaluated(estimate, branch.arguments)
        steps.ended = functools.partial(run.ended, step=step)
        return network.completed((estimate.renoise or estimate.prediction).native)

    def _begin(self, branch: Branch, x: Tensor) -> GuidedRun:
        """Begin the run at the first evaluation, when the pipeline has set its timesteps."""
        schedule, batch = self.steps.begin(branch.arguments), len(x)
        repeats = batch // len(self.prompts.negatives)
        identity = {}
        if any(part.needs_identity for part in self.stack.parts()):  # what fitted rules are held to
            identity = {
                "model": model_identity(self.pipe, self.family),
                "negative": "empty" if self.prompts.empty else "given",
                **scheduler_identity(self.pipe.scheduler, schedule),
            }
        run = Run(
            tuple(x.shape),
            branch.sample.dtype,
            x.device,
            schedule.steps,
            tuple(self.seeds[0] + sample for sample in range(batch)) if len(self.seeds) == 1 else self.seeds,
            self.prompts.counts("negatives", repeats),
            self.prompts.counts("positives", repeats),
            identity=identity,
            emits=self.networks.emitted,
            latents=any(hasattr(self.pipe, name) for name in AUTOENCODERS),
            levels=schedule.levels,
            objectives=pictured(self.pipe, self.call, self.stack, self.objectives, x),
            told=self._told(repeats),
        )
        self.run = GuidedRun(self.stack, run, self.max_rows, self.observe, moves=True)
        return self.run

    def _told(self, repeats: int) -> tuple[int, ...]:
        """A number for each sample, the same for samples of the same prompt; none where no rule couples samples."""
        if not any(part.couples for part in self.stack.parts()):
            return ()
        texts = self.call.get("prompt", self.call.get("class_labels"))
        prompts = self.prompts.negatives, self.prompts.positives
        count = len(prompts[0])
        own = texts if isinstance(texts, list | tuple) and len(texts) == count else range(count)
        known = [str(one) for one in zip(own, *prompts, strict=True)]
        return tuple(known.index(one) for one in known for _ in range(repeats))

    def _look_ahead(self, run: GuidedRun, network: PipelineNetwork) -> None:
        """Refuse at the first step what would fail there or later.

        Raises:
            InputError: the denoiser is given rows that are nobody's.
            UnsupportedPipelineError: a feature cache cannot work with the stack.
        """
        for branch in network.branches.values():
            for name in self.family.rows:
                branch.checked(name)
            if self.stack.takes_turns and branch.caches is not None:
                branch.caches.no_turns()
            if branch.caches is not None and branch.caches.exact:
                branch.caches.foresee(self._planned(run.run, network), set(map(Query, network.branches)))

    def _planned(self, run: Run, network: PipelineNetwork) -> Iterator[tuple[int, AbstractSet[Query]]]:
        """The steps to come, each with what the network is going to be asked."""
        negatives, positives = max(run.negatives, default=0), max(run.positives, default=0)
        for planned in plan(self.stack, self.steps.coming(), negatives, positives, run.batch):
            asked = {network.resolve(query) for query in planned.queries} | set(network.always)
            yield planned.when.step, {query for query in asked if not network.elsewhere(query)}

    def finish(self) -> None:
        """Check that everything happened that was asked for.

        Raises:
            InputError: `strength` left no step to make.
            GuidanceNotAppliedError: the denoiser was not called through its hook at every step.
            NonFiniteError: NaN or Inf in a sample.
        """
        if self.run is None and not self.steps.stepped:
            self.steps.explain_none()
        if self.run is None or self.steps.fired < self.steps.stepped:
            name, caller = type(self.pipe).__name__, self.caller.stranger
            why = f"It was called by {caller}, which is no code of {name}" if caller else "Was it replaced meanwhile?"
            raise GuidanceNotAppliedError(
                f"{self.stack} on {name}: the scheduler made {self.steps.stepped} steps and the denoiser "
                f"was intercepted {self.steps.fired} times; the images are not guided as asked. {why}"
            )
        if remark := nothing_guided(self.run.finish()):
            warn(remark)
        self.steps.finish()


def _seeds(pipe: Pipeline, call: Call) -> tuple[int, ...]:
    """A seed for each sample, or one for all; taken before the pipeline draws."""
    generator = call.get("generator")
    if generator is None:  # the pipeline draws from PyTorch's own
        return (global_seed(torch.device(getattr(pipe, "_execution_device", "cpu"))),)
    return tuple(map(own_seed, generator if isinstance(generator, list | tuple) else [generator]))


def nothing_guided(report: Report) -> str:
    """Return a warning about a run that stopped guiding at its first step; "" for any other run."""
    for name, guiding in report.steps[0].traces.items():
        if name.startswith("guiding") and not guiding.any():
            return (
                f"{report.stack} stopped guiding every sample at the first step, so that nothing was guided: its "
                "threshold is for another model or space; look at the trace 'cosine', or try space='denoised'"
            )
    return ""


def model_identity(pipe: Pipeline, family: Family) -> str:
    """The digests of the weights of the components of `pipe` that predict."""
    return " ".join(map(weights_digest, denoisers_of(pipe, family)))
