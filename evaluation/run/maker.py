"""Making one batch of a sweep."""

from __future__ import annotations

import inspect
import io
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from ...guidance.errors import NonFiniteError
from ...guidance.report import Report
from ...pipelines import guide
from ...pipelines.models.files import KEY
from ...pipelines.models.loading import load, made_with, memory
from ...pipelines.models.recipe import Recipe, split
from ...pipelines.prompts import uses_negative
from ...samplers import by_name
from ...samplers.noise import generators, seeded
from ..effective_scale import strength
from .batches import Batch, Sample


@dataclass(frozen=True, eq=False)
class Made:
    """A batch that is made.

    Args:
        images: one a sample, without meaning for those that are lost; none where all are.
        report: what was evaluated.
        seconds: it took.
        lost: what is NaN or Inf of it; None where nothing is.
    """

    images: list[Image.Image]
    report: Report
    seconds: float
    lost: NonFiniteError | None = None


class Maker:
    """A loaded model that makes batches.

    Args:
        model: folder or hub id; None for the bundled model.
        dtype: type of the weights, by name.
        device: where to run.
        allow_pickle: load weights that are not safetensors.

    Raises:
        InputError: the model cannot be used.
    """

    def __init__(self, model: str | None, dtype: str, device: str, allow_pickle: bool = False) -> None:
        self.pipe, self.identity = load(model, getattr(torch, dtype), device, allow_pickle, doctored=True)
        self.dtype = dtype
        self.own = self.pipe.scheduler
        takes = inspect.signature(self.pipe.__call__).parameters
        self.takes_prompts, self.takes_classes = "prompt" in takes, "class_labels" in takes
        self.takes_size = "height" in takes
        self.versions = made_with(device)

    @property
    def model(self) -> str:
        """What addresses are made of: the fingerprint, or the name where there is none."""
        return self.identity.get("fingerprint") or self.identity["name"]

    def use(self, sampler: str) -> None:
        """Give the pipeline a sampler.

        Raises:
            InputError: an unknown one, or one that the model cannot use.
        """
        self.pipe.scheduler = by_name(sampler, self.own)

    def make(self, batch: Batch) -> Made:
        """Make a batch.

        Raises:
            GuidestackError: as the pipeline; memory that does not suffice, as `InputError`.
        """
        cell = batch.cell
        self.use(cell.sampler)
        seeds = [sample.seed for sample in batch.samples]
        options: dict[str, Any] = {"num_inference_steps": cell.steps, "generator": generators(seeds)}
        if cell.size:
            options["height"], options["width"] = cell.size
        began = time.perf_counter()
        guided = guide(self.pipe, cell.parsed, observe=strength)
        with seeded(self.pipe.scheduler, seeds), memory(self.pipe.device, "try a smaller batch or size"):
            lost = None
            try:
                images = guided(**options, **self._asked(batch)).images
            except NonFiniteError as error:
                lost, images = error, error.output.images if error.output else []
        assert guided.report is not None  # a call leaves one
        return Made(list(images), guided.report, time.perf_counter() - began, lost)

    def _asked(self, batch: Batch) -> dict[str, Any]:
        prompts = [sample.prompt for sample in batch.samples]
        if self.takes_classes:
            return {"class_labels": [prompt.class_id for prompt in prompts]}
        if not self.takes_prompts:
            return {"batch_size": len(prompts)}
        asked: dict[str, Any] = {"prompt": [prompt.text for prompt in prompts]}
        if batch.cell.several:
            asked["negative_prompt"] = [split(prompt.negative) for prompt in prompts]
            asked["extra_prompt"] = [split(prompt.extra) for prompt in prompts]
        elif uses_negative(batch.cell.parsed) and any(prompt.negative for prompt in prompts):
            asked["negative_prompt"] = [prompt.negative for prompt in prompts]
        return asked

    def recipe(self, batch: Batch, sample: Sample) -> dict[str, Any]:
        """What `guidestack generate --like` reads out of an image."""
        cell, prompt = batch.cell, sample.prompt
        return Recipe(
            prompt=prompt.text,
            negative=prompt.negative,
            extra=prompt.extra,
            guidance=cell.stack,
            sampler=cell.sampler,
            steps=cell.steps,
            seed=sample.seed,
            size=cell.size,
            dtype=cell.dtype,
            batch=min(len(batch.samples), 1024),
            model=self.identity,
            versions=self.versions,
        ).written()


def image_bytes(image: Image.Image, kind: str, recipe: dict[str, Any]) -> bytes:
    """An image as the contents of a file: PNG with its recipe, or WebP without loss."""
    sink = io.BytesIO()
    if kind == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(KEY, json.dumps(recipe, ensure_ascii=False))
        image.save(sink, format="PNG", pnginfo=text)
    else:
        image.save(sink, format="WEBP", lossless=True)
    return sink.getvalue()
