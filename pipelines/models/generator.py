"""The generator of images that the command line and sweeps use: a model that makes one batch after the other."""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...guidance.errors import GuidestackError, InputError, NonFiniteError
from ...guidance.notation.objectives import objectives
from ...guidance.notation.presets import as_stack
from ...guidance.objective import OBJECTIVE, name_of
from ...guidance.observe import Observer
from ...guidance.plan import SHAPE, check_emission
from ...guidance.report import Report
from ...guidance.rule import Rule, models_of, objectives_of
from ...guidance.step import Run
from ...samplers import Grid, by_name, grid, parameterization, scheduler_identity, scheduler_with_steps
from ...samplers.lists import arguments
from ...samplers.names import OWN, levels_of
from ...samplers.noise import generators, seeded
from ...samplers.renoise import Renoising
from .. import guide
from ..families.lookup import family_of
from ..second import Second, second_networks
from ..session import model_identity
from ..size import check_sides, multiple, own_size
from . import particles
from .loading import chosen_device, identity_of, load, made_with, memory
from .networks import network_identity
from .parts import Parts, as_task
from .pictures import Pictures, digest_of, read_objective
from .recipe import split
from .weights import encoder_of, weighted


@dataclass(frozen=True)
class Asked:
    """The inputs of one image of a batch: prompts and seed; stack, sampler, steps and size are those of the batch.

    Args:
        prompt: the prompt.
        seed: seed of its noise.
        negative: the negative prompt, or ""; under Perp-Neg several, with ``|`` between them.
        extra: under Perp-Neg, positives beside the prompt, likewise.
        label: the class, for a pipeline that takes classes and no prompts.
    """

    prompt: str
    seed: int
    negative: str = ""
    extra: str = ""
    label: int | None = None


@dataclass(frozen=True, eq=False)
class Made:
    """A batch that was made.

    Args:
        images: by their place in the batch; those that are NaN or Inf are not among them.
        report: what was evaluated.
        seconds: how long it took.
        lost: the error that says which images are NaN or Inf; None where none is.
    """

    images: dict[int, Image.Image]
    report: Report
    seconds: float
    lost: NonFiniteError | None = None


class Generator:
    """A model that makes batches of images. It is loaded when it is first used.

    Args:
        model: folder or hub id; None for the bundled model.
        dtype: type of the weights, by name.
        device: where to run; None for the accelerator if there is one.
        allow_pickle: load weights that are not safetensors.
        offload: keep the model in the host's memory, and each part on the device only while it is needed.
        networks: further networks by name, each a folder, a hub id or ``"bundled"``, as in `guide`.
        parts: what goes into the model's pipeline.
        pictures: what all images are made from; the pipeline is the one of this model that takes them.
        objectives: pictures that objectives take, by the name of the objective: a file each.
        needs_prompts: refuse a pipeline that takes no prompts.
        advice: what to try where memory runs out.

    Attributes:
        identity: what identifies the model: its name and, of a folder, its fingerprint.
        networks: the same of each further network, by its name.
        parts: the same of each part, by its kind.
        objectives: the pictures of objectives, by the name of the objective.
        versions: of the libraries, and on what device the model runs.

    Raises:
        InputError, UnsupportedPipelineError: the model or the device cannot be used.
    """

    def __init__(
        self,
        model: str | None,
        dtype: str,
        device: str | None = None,
        allow_pickle: bool = False,
        offload: bool = False,
        networks: Mapping[str, str] | None = None,
        *,
        parts: Parts | None = None,
        pictures: Pictures | None = None,
        objectives: Mapping[str, str] | None = None,
        needs_prompts: bool = True,
        advice: str = "try a smaller batch or size",
    ) -> None:
        self.device, self.dtype, self.advice = chosen_device(device), dtype, advice
        if offload and torch.device(self.device).type == "cpu":
            raise InputError("--offload is for a model on an accelerator, and this one runs on the CPU; drop --offload")
        self.identity = identity_of(model, allow_pickle, not needs_prompts)
        self.networks = {name: network_identity(one) for name, one in (networks or {}).items()}
        self._parts, self.pictures = parts or Parts(), pictures or Pictures()
        self.parts = self._parts.identities()
        self.objectives = {name: read_objective(Path(path)) for name, path in (objectives or {}).items()}
        self._seconds: dict[str, Second] = {}
        self.versions = made_with(self.device)
        self._how = model, getattr(torch, dtype), self.device, allow_pickle, not needs_prompts, offload

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        pipe, _ = load(*self._how, lambda one: self._parts.fit(one, self.pictures.task))
        return pipe, pipe.scheduler

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline of the model, which is loaded when it is first asked for."""
        return self._loaded[0]

    @property
    def own(self) -> Any:
        """The scheduler that the model came with."""
        return self._loaded[1]

    def take(self, parts: Parts, pictures: Pictures, objectives: Mapping[str, Image.Image]) -> None:
        """Take other LoRAs, pictures and objectives in the place of those that were given; the model stays loaded.

        Args:
            parts: LoRAs alone.
            pictures: as in the class.
            objectives: pictures by the name of the objective.

        Raises:
            InputError: a LoRA is for another model; there is then none.
            UnsupportedPipelineError: the model takes no such pictures.
        """
        if self._how[-1] and (parts, pictures.task) != (self._parts, self.pictures.task):
            self.__dict__.pop("_loaded", None)  # where it is on the device changes with what is in it
        elif "_loaded" in self.__dict__:
            pipe, own = self._loaded
            fitted = self._fitted(parts, pictures.task)
            fitted.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
            self.__dict__["_loaded"] = fitted, own
        self.__dict__.pop("takes", None)
        self._parts, self.parts = parts, parts.identities()
        self.pictures, self.objectives = pictures, dict(objectives)

    def _fitted(self, parts: Parts, task: str) -> Any:
        """The loaded pipeline for a task with other LoRAs."""
        pipe = self.pipe
        if parts == self._parts:
            return as_task(pipe, task)
        if self._parts.lora:
            pipe.unload_lora_weights()
            self._seconds.clear()  # those that are LoRAs went with it
        self._parts, self.parts = Parts(), {}
        try:
            return parts.fit(pipe, task)
        except GuidestackError:
            if hasattr(pipe, "unload_lora_weights"):
                pipe.unload_lora_weights()
            raise

    def networks_of(self, stack: Rule) -> dict[str, dict[str, str]]:
        """What identifies the further networks that a stack asks, by name."""
        return {name: one for name, one in self.networks.items() if name in models_of(stack)}

    def pictures_of(self, stack: Rule) -> dict[str, str]:
        """A digest of each picture that an image under a stack is made from, by name."""
        steered = {OBJECTIVE + name_of(text) for text in objectives_of(stack)}
        pictures = {name: one for name, one in self.objective_digests.items() if name in steered}
        return {**self.pictures.digests, **pictures}

    @property
    def objective_digests(self) -> dict[str, str]:
        """A digest of the picture of each objective, by `OBJECTIVE` and the name of the objective."""
        return {OBJECTIVE + name: digest_of(picture) for name, picture in self.objectives.items()}

    def asked(self, stack: Rule) -> dict[str, Second]:
        """The further networks that a stack asks; each is loaded when it is first asked for.

        Raises:
            InputError: one cannot be loaded, or does not fit to the model.
        """
        names = models_of(stack).intersection(self.networks)
        if lacking := {name: self.networks[name]["name"] for name in sorted(names) if name not in self._seconds}:
            self._seconds |= second_networks(self.pipe, family_of(self.pipe), lacking)
        return {name: self._seconds[name] for name in sorted(names)}

    @cached_property
    def takes(self) -> frozenset[str]:
        """The names of the arguments of the pipeline."""
        return frozenset(inspect.signature(self.pipe.__call__).parameters)

    def use(self, sampler: str) -> None:
        """Give the pipeline a sampler.

        Raises:
            InputError: an unknown one, or one that the model cannot use.
        """
        scheduler = by_name(sampler, self.own)
        # Every pipeline with a UNet calls this, also where the UNet emits a velocity, which diffusers' flow schedulers
        # do not expect.
        if not hasattr(scheduler, "scale_model_input") and family_of(self.pipe).denoiser == "unet":
            raise InputError(
                f"{type(self.pipe).__name__} calls its scheduler's scale_model_input, which sampler {sampler!r} lacks; "
                f"take dpm++2m, unipc or {OWN}"
            )
        self.pipe.scheduler = scheduler

    def check(
        self,
        stack: Rule | str,
        sampler: str,
        steps: int,
        negative: Collection[bool] = (False,),
        strength: float | None = None,
        weights: bool = False,
    ) -> Grid:
        """Refuse what this model cannot run, before the first network evaluation.

        Args:
            stack: a stack, or its text.
            sampler: short name of the sampler.
            steps: steps of the sampler.
            negative: whether there is a negative prompt; both where some samples have one and others none.
            strength: as in `make`.
            weights: as in `make`.

        Returns:
            The schedule, as far as it is known before a call: some pipelines move its levels with the size.

        Raises:
            GuidestackError: the stack, the sampler or a fitted file is not for this model or this run.
        """
        self.use(sampler)
        self._check_strength(strength, steps)
        stack = as_stack(stack)
        if weights and encoder_of(self.pipe) and stack.takes_several:
            raise InputError(f"{stack} takes several negative prompts, and with --weights there is one; drop --weights")
        if weights and encoder_of(self.pipe) and stack.per_image > 1:
            raise InputError(f"{stack} needs to know which samples have one prompt; drop --weights")
        check_emission(stack, parameterization(self.pipe.scheduler), steps)
        guide(self.pipe, stack, networks=self.asked(stack), objectives=self.objectives)
        self._levels(sampler, steps)
        scheduler = scheduler_with_steps(sampler, self.own, steps)
        schedule = grid(scheduler)
        if stack.renoises:
            Renoising(scheduler, schedule, guides_history=stack.guides_history)
        if any(part.needs_identity for part in stack.parts()):
            known = {
                **scheduler_identity(scheduler, schedule),
                "model": model_identity(self.pipe, family_of(self.pipe)),
                "levels": None,  # the pipeline makes them in its call, where they are looked at
            }
            for given in sorted(set(negative)):
                identity = {**known, "negative": "given" if given else "empty"}
                stack.init(Run(SHAPE, steps=schedule.steps, identity=identity))
        return schedule

    def _check_strength(self, strength: float | None, steps: int) -> None:
        """Refuse a strength of which no step is left; diffusers' pipelines with a UNet count ``int(steps * strength)``.

        Raises:
            InputError: none is left, or the pipeline takes no strength.
        """
        parameter = inspect.signature(self.pipe.__call__).parameters.get("strength")
        if parameter is None and strength is not None:
            raise InputError(f"{type(self.pipe).__name__} takes no strength; leave --strength out")
        share = strength if strength is not None or parameter is None else parameter.default
        if share is not None and family_of(self.pipe).denoiser == "unet" and int(steps * share) < 1:
            raise InputError(f"{steps} steps at strength {share:g} leave none to take; give more of either")

    def check_size(self, size: tuple[int, int] | None, stacks: Iterable[Rule | str] = ()) -> None:
        """Refuse a size in pixels that the model cannot make, and pictures that are not of its size or not taken.

        Args:
            size: height and width; None for the model's own.
            stacks: that make images of this size, whose objectives are given pictures.

        Raises:
            InputError: it cannot, or they are not.
        """
        own = own_size(self.pipe, family_of(self.pipe))
        pictures = self.pictures.at(size, own)
        self._arguments(pictures, 1)
        found = objectives(self.objectives, size=size or own)
        for text in dict.fromkeys(text for stack in stacks for text in objectives_of(as_stack(stack))):
            found.find(text).check_size()
        if size is None:
            return
        if "height" not in self.takes and not pictures.by_name:
            raise InputError(f"{type(self.pipe).__name__} makes one size only; leave size out")
        check_sides(*size, multiple(self.pipe))

    def cut_off(self, texts: Sequence[str]) -> dict[str, str]:
        """What the text encoder does not read of prompts that are too long for it, by prompt."""
        tokenizer = getattr(self.pipe, "tokenizer", None)
        if "prompt" not in self.takes or tokenizer is None:
            return {}
        limit = tokenizer.model_max_length
        found = {}
        for text in dict.fromkeys(one for one in texts if len(one.encode()) + 2 > limit):  # a token is a byte or more
            tokens = tokenizer(text).input_ids
            if len(tokens) > limit:
                found[text] = tokenizer.decode(tokens[limit - 1 : -1])
        return found

    def make(
        self,
        asked: Sequence[Asked],
        stack: Rule | str,
        sampler: str,
        steps: int,
        size: tuple[int, int] | None = None,
        *,
        observe: Observer | None = None,
        fill: int = 0,
        strength: float | None = None,
        weights: bool = False,
    ) -> Made:
        """Make a batch of images; under a rule on particles each is drawn from a group of its own, see `particles`.

        Args:
            asked: what each is made from.
            stack: a stack, or its text.
            sampler: short name of the sampler.
            steps: steps of the sampler.
            size: height and width in pixels; None for the model's own.
            observe: called after every evaluation, as in `guide`.
            fill: images that the call has at least: a smaller batch is filled up with copies of its first image, so
                that the network sees the same shapes. Rounding depends on them, and an image made again by itself is
                then the same to the bit. The report counts the copies too.
            strength: how far the pictures are noised that the images begin from; None for the pipeline's own.
            weights: read weights in the prompts.

        Raises:
            GuidestackError: as the pipeline; memory that does not suffice, as `InputError`. NaN or Inf is no error
                here: see `Made.lost`.
        """
        stack, lost = as_stack(stack), None
        filled = [*asked, *[asked[0]] * (fill - len(asked))]
        images_seeds, count = [one.seed for one in filled], stack.per_image
        filled = [replace(one, seed=seed) for one in filled for seed in particles.seeds_of(one.seed, count)]
        seeds = [one.seed for one in filled]
        options: dict[str, Any] = {"num_inference_steps": steps, "generator": generators(seeds)}
        options |= self._levels(sampler, steps)
        if size and "height" in self.takes:
            options["height"], options["width"] = size
        own = own_size(self.pipe, family_of(self.pipe))
        options |= self._arguments(self.pictures.at(size, own), len(filled))
        if strength is not None:
            options["strength"] = strength
        began = time.perf_counter()
        self.use(sampler)
        about: dict[str, Any] = {"networks": self.asked(stack), "objectives": self.objectives}
        guided = guide(self.pipe, stack, observe=observe, **about)
        with self.running(seeds):
            try:
                images = guided(**options, **self._conditions(filled, stack.takes_several, weights)).images
            except NonFiniteError as error:
                lost, images = error, error.output.images if error.output else []
        report, gone = guided.report, lost.samples if lost else ()
        assert report is not None  # a call leaves one
        if count > 1:
            ends = particles.drawn(report, images_seeds)
            report, images = particles.of_images(report, ends), [images[end] for end in ends if images]
            gone = tuple({sample // count for sample in gone})  # the particles of a group depend on each other
        finished = {place: image for place, image in enumerate(images[: len(asked)]) if place not in gone}
        return Made(finished, report, time.perf_counter() - began, lost if len(finished) < len(asked) else None)

    def _arguments(self, pictures: Pictures, count: int) -> dict[str, Any]:
        """The arguments of the pipeline for pictures, and for the scales of parts.

        Raises:
            InputError: it takes no such picture, or a ControlNet has none to follow.
        """
        if getattr(self.pipe, "controlnet", None) is not None and not pictures.control:
            raise InputError("this model has a ControlNet, which follows a picture; give --control IMAGE")
        return {**pictures.arguments(self.takes, count), **self._parts.arguments(self.takes)}

    def _levels(self, sampler: str, steps: int) -> dict[str, Any]:
        """The arguments of the pipeline for the list behind the sampler's name; none where there is no list.

        Raises:
            InputError: the pipeline takes no such list, or the list is for another number of steps.
        """
        if (levels := levels_of(sampler)) is None:
            return {}
        given = arguments(by_name(sampler, self.own), levels, steps)
        if missing := set(given) - self.takes:
            raise InputError(f"{type(self.pipe).__name__} takes no {missing.pop()}; leave @{levels} out")
        return given

    def _conditions(self, asked: Sequence[Asked], several: bool, weights: bool) -> dict[str, Any]:
        """Return the pipeline's arguments for prompts, negative prompts and classes."""
        if "class_labels" in self.takes:
            return {"class_labels": [one.label for one in asked]}
        if "prompt" not in self.takes:
            return {"batch_size": len(asked)}
        if weights:
            return dict(weighted(self.pipe, [one.prompt for one in asked], [one.negative for one in asked]))
        found: dict[str, Any] = {"prompt": [one.prompt for one in asked]}
        if several:
            found["negative_prompt"] = [split(one.negative) for one in asked]
            found["extra_prompt"] = [split(one.extra) for one in asked]
        elif any(one.negative for one in asked):
            found["negative_prompt"] = [one.negative for one in asked]
        return found

    @contextmanager
    def running(self, seeds: Sequence[int]) -> Iterator[None]:
        """Wrap a call of the pipeline: scheduler noise is drawn from the samples' seeds, memory errors are one line.

        Raises:
            InputError: memory ran out.
        """
        with seeded(self.pipe.scheduler, seeds), memory(self.device, self.advice):
            yield
