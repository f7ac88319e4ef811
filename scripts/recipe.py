"""What it takes to make one image: written into it, and read back from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..guidance.config import as_stack
from ..guidance.errors import GuidestackError, InputError
from ..guidance.presets import read


@dataclass(frozen=True)
class Recipe:
    """One image.

    Args:
        prompt: the prompt.
        negative: the negative prompt, or "".
        guidance: the stack's text.
        sampler: short name of the sampler.
        steps: steps of the sampler.
        seed: seed of its noise.
        size: height and width in pixels; None for the model's own.
        dtype: type of the network's weights.
        batch: images in the network call that made it. The last bit of a matrix product depends on it.
        model: what identifies the model: name and fingerprint.
        versions: of the libraries that made it.
    """

    prompt: str
    negative: str
    guidance: str
    sampler: str
    steps: int
    seed: int
    size: tuple[int, int] | None
    dtype: str
    batch: int = 1
    model: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        """Words of the prompt, the seed, and a digest of everything that decides the picture."""
        decisive = {k: v for k, v in dataclasses.asdict(self).items() if k not in {"batch", "versions"}}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:48].rstrip("-") or "image"
        return f"{words}-{self.seed}-{digest}.png"

    def written(self) -> dict[str, Any]:
        """The mapping to write into the image."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, mapping: Mapping[str, Any], path: Path) -> Recipe:
        """The recipe in an image, which anybody may have written.

        Raises:
            InputError: a value is missing or of another kind.
        """
        kinds = {"prompt": str, "negative": str, "guidance": str, "sampler": str, "steps": int, "seed": int}
        kinds |= {"dtype": str, "batch": int, "model": dict, "versions": dict}
        size = mapping.get("size")
        good = all(type(mapping.get(name)) is kind for name, kind in kinds.items()) and (
            size is None or (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size))
        )
        if not good or set(mapping) != {*kinds, "size"} or mapping["dtype"] not in ("float32", "float16", "bfloat16"):
            raise InputError(f"{path} does not say how it was made in a form that this version reads")
        if not (1 <= mapping["steps"] <= 1000 and 1 <= mapping["batch"] <= 1024 and 0 <= mapping["seed"] < 2**63):
            raise InputError(f"{path}: steps, batch or seed is out of range")
        try:
            as_stack(mapping["guidance"])
        except GuidestackError as error:
            raise InputError(f"{path}: {error}") from None
        return cls(**{**mapping, "size": tuple(size) if size else None})

    def model_to_load(self, given: str | None) -> str | None:
        """The model to make it again with: the one `given`, else the bundled one if that made it.

        A file does not get to choose what is loaded from a disk or a hub.

        Raises:
            InputError: it was made with another model and none was given.
        """
        name = self.model.get("name")
        if given is None and name != "bundled":
            raise InputError(f"the image was made with the model {name!r}; say where that is with --model")
        return given


def recipes(prompts: Sequence[str], options: Mapping[str, Any], size: tuple[int, int] | None) -> list[Recipe]:
    """A recipe for each image: every stack with every prompt, `count` times; the seed goes up from image to image.

    Raises:
        InputError: the negatives fit neither all prompts nor each.
        StackSyntaxError, RuleError: a stack cannot be read.
    """
    negatives = list(options["negative"]) or [""]
    if len(negatives) not in (1, len(prompts)):
        raise InputError(f"{len(negatives)} --negative for {len(prompts)} prompts; give one for all, or one for each")
    if len(negatives) == 1:
        negatives = negatives * len(prompts)
    stacks = [str(read(text)) for text in options["guidance"] or ("cfg(4)",)]
    return [
        Recipe(
            prompt=prompt,
            negative=negative,
            guidance=stack,
            sampler=options["sampler"],
            steps=options["steps"],
            # The same for every stack: what differs between two sets is then the guidance alone.
            seed=options["seed"] + index * options["count"] + copy,
            size=size,
            dtype=options["dtype"],
            batch=options["batch"],
        )
        for stack in stacks
        for index, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True))
        for copy in range(options["count"])
    ]
