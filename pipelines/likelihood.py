"""likelihood(): how likely a pipeline finds given pictures, under a prompt and a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..guidance.errors import InputError, NonFiniteError
from ..guidance.keyed import Keys
from ..guidance.notation.presets import as_stack
from ..guidance.prediction import Level
from ..guidance.rule import Rule
from ..samplers.likelihood import (
    TOLERANCE,
    Flow,
    Likelihood,
    Reach,
    check_anywhere,
    clock,
    followed,
    joined,
    reach,
)
from ..samplers.noise import one_each
from .branch import Branch
from .families.lookup import denoisers_of, signature_of
from .families.record import Pipeline
from .gradients import check_backward
from .guide import GuidedPipeline, guide
from .inversion import for_batch, sides_of
from .latents import check_latents, latents_of
from .network import PipelineNetwork
from .session import Session

DECIDED = {"latents", "output_type", "return_dict", "num_inference_steps", "num_images_per_prompt", "generator"}
"""Arguments of the pipeline that a likelihood decides."""


def likelihood(
    pipe: Pipeline, stack: Rule | str | Mapping[str, Any], *, networks: Mapping[str, Any] | None = None
) -> LikelihoodPipeline:
    """Prepare a pipeline to compute the log density of pictures under a prompt and a stack, by the probability flow.

    For a pipeline with an autoencoder it is the density of the latents, in their own unit, and none of pixels: compare
    pictures, prompts and stacks of one model by it. See `samplers.likelihood` for the equations.

    Args:
        pipe: as in `guide`; a pipeline that takes `latents`, whose network was trained at the timesteps of a table of
            levels, or on the flow path.
        stack: as in `guide`; its rules must not remember, take turns, re-noise, go by the sampler's steps, or steer by
            objectives.
        networks: as in `guide`.

    Returns:
        An object to call with ``image=`` and the pipeline's own arguments.

    Raises:
        UnsupportedPipelineError: as `guide`; or the pipeline takes no latents.
        UnsupportedSchedulerError: the time that its network is given between two levels is not known.
        CompositionError: a rule that the flow has no room for.

    Cost: what the stack asks for, at some 50 to 100 points for each picture, with a backward pass for each probe.
    """
    stack = as_stack(stack)
    check_anywhere(stack)  # before what `guide` says of samplers, which a flow has none of
    guided = guide(pipe, stack, networks=networks)
    pipe = guided.pipe
    check_latents(pipe, "no likelihood of a picture is known of it")
    clock(pipe.scheduler)
    for module in denoisers_of(pipe, guided.family):
        check_backward(module)
    return LikelihoodPipeline(pipe, guided.family, guided.stack, networks=guided.networks)


class LikelihoodPipeline(GuidedPipeline):
    """A pipeline that computes the log densities of pictures; `likelihood` makes it."""

    made_by: ClassVar[str] = "likelihood"

    def __call__(
        self,
        *args: Any,
        image: Any = None,
        probes: int = 2,
        tolerance: float = TOLERANCE,
        sigmas: tuple[float, float] | None = None,
        seeds: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Likelihood:
        """Compute the log densities of pictures.

        Args:
            *args: the pipeline's own arguments.
            image: pictures or latents, as in an inversion.
            probes: of Hutchinson's estimator, as in `samplers.likelihood`; 0 for the exact trace.
            tolerance: of the solver.
            sigmas: the noise levels between which the flow is followed.
            seeds: one a picture, for the probes; 0, 1, ... by default.
            **kwargs: the pipeline's own arguments. ``prompt`` is what the pictures are said to show, one text for all
                or one for each.

        Raises:
            InputError: no image, one of another form or size than the pipeline makes, or an argument that a likelihood
                decides.
            NonFiniteError: the network's answer is NaN or Inf, or the solver cannot go on.
            QueryError, GuidanceNotAppliedError: as a guided call.
        """
        given = dict(zip(signature_of(self.pipe).parameters, args)) | kwargs
        if wrong := sorted(DECIDED.intersection(given)):
            raise InputError(f"{wrong[0]} was given to a likelihood, which decides it; leave it out")
        denoiser: Any = denoisers_of(self.pipe, self.family)[0]
        latents = latents_of(self.pipe, image, denoiser.dtype)
        seeds = one_each(seeds, len(latents), "pictures")
        levels = reach(self.pipe.scheduler, sigmas)
        given = for_batch(self.pipe, len(latents), (), given) | sides_of(self.pipe, latents, given)
        found = []
        for place, seed in enumerate(seeds):

            def follow(flow: Flow, x: Tensor, seed: int = seed) -> Likelihood:
                return followed(flow, x, levels, seed, probes, tolerance)

            own = {name: _row(value, place, len(seeds)) for name, value in given.items()}
            try:
                found.append(self._followed(own, latents[place : place + 1], seed, levels, follow))
            except NonFiniteError as error:
                raise NonFiniteError(f"picture {place}: {error}", (place,)) from error
        return joined(found)

    def _followed(
        self, given: Mapping[str, Any], latents: Tensor, seed: int, levels: Reach, follow: Callable[..., Likelihood]
    ) -> Likelihood:
        """The likelihood of one picture: the pipeline is called for one step, and left at its denoiser's first call."""
        call, prompts = self._call((), given)
        generator = torch.Generator().manual_seed(seed)
        call |= {"latents": latents.clone(), "generator": generator, "num_inference_steps": 2, "output_type": "latent"}
        session = _Session(self.pipe, self.family, self.stack, call, prompts, None, seconds=self.networks)
        session.latents, session.follow = latents, follow
        with self.hooked(session):
            try:
                session.caller.run(session.call)
            except _Found as found:
                return found.likelihood
            finally:
                session.calls.forget()
        session.finish()  # says what went wrong
        raise AssertionError("unreachable")  # pragma: no cover


class _Found(BaseException):
    """Raised to leave the pipeline in the middle of its call with the result; the pipeline must not catch it."""

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood


class _Session(Session):
    """One call of a pipeline that ends where its denoiser is called with all conditions."""

    latents: Tensor
    follow: Callable[[Flow, Tensor], Likelihood]

    def _evaluated(
        self, branches: Mapping[str, Branch], branch: Branch, batch: int, answered: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        part = self.family.part(self.pipe, branch.arguments)
        x = branch.sample[(slice(batch), *part)]
        self.part = part or (slice(x.shape[1]),)
        run = self._begin(branch, x)
        own = self.networks.made(branches, branch, batch, (Keys(run.run.seeds),), self.part)
        self.networks.extra = own.fit()
        self._look_ahead(run, own)
        if x.shape != self.latents.shape:
            raise InputError(
                f"{type(self.pipe).__name__} makes samples of shape {tuple(x.shape[1:])} for its network, and the "
                f"picture's latents have {tuple(self.latents.shape[1:])}; give the latents themselves as image="
            )
        time, point = clock(self.pipe.scheduler), self.steps.point
        unit = self.family.clock(self.pipe, 1.0) - self.family.clock(self.pipe, 0.0)

        def network(x: Tensor, level: Level) -> PipelineNetwork:
            later = (time(level) - point.timestep) / unit
            moved = {id(one): _at(one, x, later, self.part or ()) for one in (*branches.values(), branch)}
            there = {name: moved[id(one)] for name, one in branches.items()}
            keys = (Keys(run.run.seeds),)
            return self.networks.made(there, moved[id(branch)], batch, keys, self.part or ())

        raise _Found(self.follow(Flow(self.stack, run.run, network), self.latents.to(x.dtype)))


def _at(branch: Branch, x: Tensor, later: float, part: tuple[slice, ...]) -> Branch:
    """A call of the denoiser with samples `x` in place of its own, and another time."""
    sample = branch.sample.clone()
    sample[(slice(None), *part)] = torch.cat([x] * (len(sample) // len(x))).to(sample.dtype)
    return branch.at(sample, later)


def _row(value: Any, place: int, batch: int) -> Any:
    """The part of an argument that is for one picture: of a list or a tensor with one row for each."""
    several = isinstance(value, list | Tensor) and batch > 1 and len(value) == batch
    return value[place : place + 1] if several else value
