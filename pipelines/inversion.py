"""invert() and edit(): the noise that a pipeline makes an image from, and what another prompt makes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..guidance.errors import InputError, NonFiniteError
from ..guidance.notation.presets import as_stack
from ..guidance.report import Report
from ..guidance.rule import Rule
from ..samplers.inversion import reversible, undoable
from .families.lookup import denoisers_of, signature_of
from .families.record import Pipeline
from .guide import GuidedPipeline, guide
from .latents import check_latents, latents_of
from .partial_steps import BackwardSteps, PartialSteps
from .surface import Surface

DECIDED = {"latents": "the image", "output_type": "an inversion, which returns latents", "return_dict": "an inversion"}
"""Arguments of the pipeline that an inversion decides, each with what stands in its place."""
TEXTS = re.compile(r"(negative_)?prompt(_\d)?")
"""Arguments that are a text, or one for each image."""
SHOWN = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback")
"""Arguments of `edit` that are for the second of its two calls, the one that makes the picture."""


def invert(
    pipe: Pipeline,
    stack: Rule | str | Mapping[str, Any],
    *,
    max_rows: int | None = None,
    networks: Mapping[str, Any] | None = None,
    objectives: Mapping[str, Any] | None = None,
) -> InvertingPipeline:
    """Find the noise from which a pipeline makes a given image, under a stack.

    Args:
        pipe: as in `guide`; a pipeline that takes `latents`, with a scheduler of which a step can be undone (DDIM,
            Euler, Euler for flow matching).
        stack: as in `guide`; its rules must not remember earlier steps.
        max_rows: as in `guide`.
        networks: as in `guide`.
        objectives: as in `guide`.

    Returns:
        An object to call with ``image=`` and the pipeline's own arguments: the prompt that describes the image, the
        number of steps. What it returns has `latents`, to be handed to `guide` with the same stack and steps.

    Raises:
        UnsupportedPipelineError: as `guide`; or the pipeline takes no latents.
        UnsupportedSchedulerError: its scheduler's steps cannot be undone.
        CompositionError: a rule remembers earlier steps.

    Cost: the evaluations of sampling with the same stack and steps, and the encoder of the pipeline's autoencoder.
    """
    guided = guide(pipe, stack, max_rows=max_rows, networks=networks, objectives=objectives)
    pipe = guided.pipe
    check_latents(pipe, "it cannot be run backwards from an image")
    undoable(pipe.scheduler)
    reversible(guided.stack)
    about: dict[str, Any] = {"networks": guided.networks, "objectives": guided.objectives}
    return InvertingPipeline(pipe, guided.family, guided.stack, max_rows, **about)


def edit(
    pipe: Pipeline,
    stack: Rule | str | Mapping[str, Any],
    *,
    inversion: Rule | str | Mapping[str, Any] | None = None,
    max_rows: int | None = None,
    networks: Mapping[str, Any] | None = None,
    objectives: Mapping[str, Any] | None = None,
) -> EditingPipeline:
    """Change an image by a prompt: invert it under the prompt that describes it, then sample under another.

    Args:
        pipe: as in `invert`.
        stack: the stack to sample under, as in `guide`.
        inversion: the stack to invert under, by default `stack`. Its rules must not remember earlier steps.
        max_rows: as in `guide`.
        networks: as in `guide`.
        objectives: as in `guide`, of both stacks.

    Returns:
        An object to call with the image and both prompts.

    Raises:
        GuidestackError: as `invert` and `guide` raise it.

    Cost: that of both stacks over the steps.
    """
    stack = as_stack(stack)
    about: dict[str, Any] = {"max_rows": max_rows, "objectives": objectives}
    inverting = invert(pipe, stack if inversion is None else inversion, networks=networks, **about)
    # Which refuses now what would be refused after the inversion.
    guided = guide(pipe, stack, networks=inverting.networks, **about)
    how: dict[str, Any] = {"networks": guided.networks, "objectives": guided.objectives}
    return EditingPipeline(inverting, ResumingPipeline(guided.pipe, guided.family, guided.stack, max_rows, **how))


@dataclass(frozen=True, eq=False)
class Inverted:
    """The noise that `invert` found, and the report of the run.

    Attributes:
        latents: the noise, as the pipeline's argument `latents` takes it.
        report: what was evaluated; the steps are numbered as the sampler's, and so come in falling order.
    """

    latents: Tensor
    report: Report


class InvertingPipeline(GuidedPipeline):
    """A pipeline that runs backwards under a stack, from an image to its noise; `invert` makes it."""

    made_by: ClassVar[str] = "invert"

    def __call__(self, *args: Any, image: Any = None, strength: float = 1.0, **kwargs: Any) -> Inverted:
        """Run the pipeline from an image to its noise.

        Args:
            *args: the pipeline's own arguments.
            image: a PIL image, or several; or a tensor ``(B, 3, H, W)`` of pictures in [0, 1]; or one of latents. A
                picture is encoded by the pipeline's autoencoder, to the mean of what that answers. What is transparent
                becomes white.
            strength: share of the steps to undo, in (0, 1]; below 1 the latents are those in the middle of a run.
            **kwargs: the pipeline's own arguments, as in a guided call. ``prompt`` describes the image.

        Raises:
            InputError: no image or one of another form or size than the pipeline makes; an argument that the stack or
                the inversion decides.
            NonFiniteError, GuidanceNotAppliedError, QueryError: as a guided call; the `output` of the first is an
                `Inverted`.
        """
        _share(strength)
        for name in kwargs:
            if name in DECIDED:
                raise InputError(f"{name} was given to an inversion; leave it out, it is decided by {DECIDED[name]}")
            if name == "eta" and kwargs[name]:
                raise InputError(f"eta={kwargs[name]!r} draws fresh noise in each step, which no inversion undoes")
            if name == "num_images_per_prompt" and kwargs[name] not in (None, 1):
                raise InputError(f"num_images_per_prompt={kwargs[name]!r}: one image has one inversion; leave it out")
        denoiser: Any = denoisers_of(self.pipe, self.family)[0]
        latents = latents_of(self.pipe, image, denoiser.dtype).clone()
        kwargs = for_batch(self.pipe, len(latents), args, kwargs)
        kwargs |= sides_of(self.pipe, latents, kwargs)
        call, prompts = self._call((), kwargs)
        call |= {"latents": latents, "output_type": "latent"}
        steps = BackwardSteps(self.pipe, self.family, self.stack, call, strength)
        try:
            self._run(self._session(call, prompts, steps))
        except NonFiniteError as error:
            if error.output is not None:
                error.output = self._inverted(steps)
            raise
        finally:
            steps.release()
        return self._inverted(steps)

    def _inverted(self, steps: BackwardSteps) -> Inverted:
        assert self.run is not None  # a run without an evaluation is an error of its own
        assert steps.reached is not None
        return Inverted(steps.reached / steps.unit, self.run.report)


class ResumingPipeline(GuidedPipeline):
    """A guided pipeline that continues from latents in the middle of a run: the second half of an edit."""

    def __call__(self, *args: Any, strength: float = 1.0, **kwargs: Any) -> Any:
        """Call the pipeline for the last part of its schedule.

        Args:
            *args: the pipeline's own arguments.
            strength: share of the steps to take, in (0, 1].
            **kwargs: the pipeline's own arguments, as in a guided call. ``latents`` is where the run goes on.

        Returns:
            What the pipeline returns.

        Raises:
            as a guided call.
        """
        call, prompts = self._call(args, kwargs)
        steps = PartialSteps(self.pipe, self.family, self.stack, call, strength)
        try:
            return self._run(self._session(call, prompts, steps))
        finally:
            steps.release()


class EditingPipeline(Surface):
    """A pipeline that changes images; `edit` makes it. It has all attributes of its pipeline, like `GuidedPipeline`.

    Attributes:
        pipe: the pipeline, unchanged.
        inverting: the first half, with the report of its last call.
        sampling: the second half, with the report of its last call.
    """

    def __init__(self, inverting: InvertingPipeline, sampling: ResumingPipeline) -> None:
        self.pipe, self.inverting, self.sampling = sampling.pipe, inverting, sampling

    def __repr__(self) -> str:
        inverting, sampling = self.inverting, self.sampling
        return f"edit({type(sampling.pipe).__name__}, {str(sampling.stack)!r}, inversion={str(inverting.stack)!r})"

    def __call__(self, image: Any, *, source: Any, prompt: Any, strength: float = 1.0, **kwargs: Any) -> Any:
        """Change an image.

        Args:
            image: as in an inversion; several are changed at once.
            source: the prompt that describes it; one for all, or a list of one for each.
            prompt: the prompt of the changed image, likewise.
            strength: share of the steps to undo and take again, in (0, 1]: the less, the more of the image stays.
            **kwargs: the pipeline's own arguments, for both halves (`num_inference_steps`, `negative_prompt`, ...) or,
                like `output_type`, for the second.

        Returns:
            What the pipeline returns.

        Raises:
            as an inversion and a guided call.
        """
        first, lost = {name: value for name, value in kwargs.items() if name not in SHOWN}, None
        try:
            inverted = self.inverting(image=image, prompt=source, strength=strength, **first)
        except NonFiniteError as error:
            if error.output is None:
                raise
            inverted, lost = error.output, error  # the other images go on
        guided, latents = self.sampling, inverted.latents
        kwargs = {**for_batch(guided.pipe, len(latents), (), {**kwargs, "prompt": prompt}), "latents": latents}
        kwargs |= sides_of(guided.pipe, latents, kwargs)
        try:
            output = guided(strength=strength, **kwargs)
        except NonFiniteError as error:
            if lost is None or error.output is None:
                raise
            output = error.output
            lost.samples = error.samples  # those of the first half are lost in the second too
        if lost is not None:
            lost.output = output
            raise lost
        return output

    @property
    def evaluations(self) -> list[int]:
        """Network evaluations of each image in the last call, both halves together."""
        reports = [half.report for half in (self.inverting, self.sampling)]
        return [sum(each) for each in zip(*(report.evaluations for report in reports if report))]


def _share(strength: float) -> None:
    """Check `strength`.

    Raises:
        InputError: it is no number in (0, 1].
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise InputError(f"strength is the share of the steps to undo, in (0, 1]; got {strength!r}")


def for_batch(pipe: Pipeline, batch: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, with a prompt that is one text for all images said once for each.

    Raises:
        InputError: another number of prompts than of images.
    """
    given = {**dict(zip(signature_of(pipe).parameters, args)), **kwargs}
    prompt = given.get("prompt")
    if isinstance(prompt, list | tuple) and len(prompt) != batch:
        raise InputError(f"{len(prompt)} prompts for {batch} images; give one for all, or one for each")
    several = batch > 1 or isinstance(prompt, list | tuple)  # pipelines want all texts of a call in the same form
    texts = {name: [value] * batch for name, value in given.items() if TEXTS.fullmatch(name) and isinstance(value, str)}
    return {**given, **texts} if several else given


def sides_of(pipe: Pipeline, latents: Tensor, kwargs: Mapping[str, Any]) -> dict[str, int]:
    """The size of the picture that `latents` stand for, where the pipeline asks for it.

    Raises:
        InputError: another size was given.
    """
    takes = signature_of(pipe).parameters
    if latents.ndim != 4 or not {"height", "width"} <= set(takes) or not hasattr(pipe, "vae_scale_factor"):
        return {}
    found = {name: side * pipe.vae_scale_factor for name, side in zip(("height", "width"), latents.shape[2:])}
    for name, side in found.items():
        if kwargs.get(name) not in (None, side):
            raise InputError(f"{name}={kwargs[name]!r} was given and the image's is {side}; leave it out")
    return found
