"""The recipe of an image: all settings that make it again, written into the image and read back from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...guidance.bounds import DTYPES, LARGEST_SCALE, LAST_SEED, LONGEST, MAX_IMAGES, MOST_STEPS, MOST_TOGETHER
from ...guidance.errors import GuidestackError, GuidestackWarning, InputError, shown, warn
from ...guidance.notation.plugins import files_of, loaded_files
from ...guidance.notation.presets import as_stack, read
from ...guidance.notation.text import parse
from ...guidance.rule import Rule, models_of
from ...guidance.words import counted
from .files import LARGEST_SIDE


@dataclass(frozen=True)
class Recipe:
    """All that is needed to make one image again, as it is written into the image.

    Args:
        prompt: the prompt.
        negative: the negative prompt, or ""; under Perp-Neg several, with ``|`` between them.
        extra: under Perp-Neg, positives beside the prompt, likewise.
        guidance: the stack's text.
        sampler: short name of the sampler.
        steps: steps of the sampler.
        seed: seed of its noise.
        size: height and width in pixels; None for the model's own.
        dtype: type of the network's weights.
        batch: images in the network call that made it, or their particles (`Rule.per_image`). The last bit of a matrix
            product depends on it.
        model: what identifies the model: name and fingerprint.
        versions: of the libraries that made it, and on what device.
        networks: what identifies each further network that the stack asks, by its name.
        parts: what identifies each part that was put into the model's pipeline, and its scale, by kind.
        pictures: a digest of each picture that it was made from, by name.
        strength: how far the picture was noised that it was made from; None for the pipeline's own.
        weights: whether weights in the prompts were read.
    """

    prompt: str
    negative: str
    extra: str
    guidance: str
    sampler: str
    steps: int
    seed: int
    size: tuple[int, int] | None
    dtype: str
    batch: int = 1
    model: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parts: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    strength: float | None = None
    weights: bool = False

    @property
    def several(self) -> bool:
        """Whether the stack takes several negatives, and positives beside the prompt."""
        return as_stack(self.guidance).takes_several

    @property
    def texts(self) -> list[str]:
        """Every prompt that is encoded."""
        return [self.prompt, *(split(self.negative) if self.several else [self.negative]), *split(self.extra)]

    @property
    def filename(self) -> str:
        """Words of the prompt, the seed, and a digest of everything that decides the picture."""
        return file_name(self.prompt, self.seed, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The mapping to write into the image."""
        told = dataclasses.asdict(self)
        for name in ("networks", "parts", "pictures", "weights"):
            if not told[name]:
                del told[name]
        if self.strength is None:
            del told["strength"]
        return with_rules(told, self.guidance)

    @classmethod
    def read(cls, mapping: Mapping[str, Any], path: Path) -> Recipe:
        """The recipe in an image, which anybody may have written.

        Raises:
            InputError: a value is missing or of another kind, or a rule is not known here.
        """
        mapping = dict(mapping)
        networks, parts, pictures = (mapping.pop(name, {}) for name in ("networks", "parts", "pictures"))
        strength, weights = mapping.pop("strength", None), mapping.pop("weights", False)
        files = _files_in(mapping.pop("rules", []), path)
        kinds = {
            "prompt": str,
            "negative": str,
            "extra": str,
            "guidance": str,
            "sampler": str,
            "steps": int,
            "seed": int,
        }
        kinds |= {"dtype": str, "batch": int, "model": dict, "versions": dict}
        if "inversion" in mapping and "source" in mapping:
            raise InputError(
                f"{path} was made by `guidestack edit`, and --like makes images of `guidestack generate` again; run "
                "`guidestack edit` again on the image that it was made from"
            )
        size = mapping.get("size")
        good = all(type(mapping.get(name)) is kind for name, kind in kinds.items()) and (
            size is None or (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size))
        )
        good = good and isinstance(networks, dict) and all(isinstance(one, dict) for one in networks.values())
        good = good and _are_parts(parts) and isinstance(pictures, dict) and isinstance(weights, bool)
        good = good and (strength is None or (type(strength) in (int, float) and 0 <= strength <= 1))
        if not good or set(mapping) != {*kinds, "size"} or mapping["dtype"] not in DTYPES:
            raise InputError(f"{path} does not say how it was made in a form that this version reads")
        texts = [mapping[name] for name in ("prompt", "negative", "extra")]
        groups = mapping["model"], mapping["versions"], pictures, *networks.values()
        about = [one for group in groups for one in group.values()]
        if not all(isinstance(one, str) and len(one) <= LONGEST for one in (*texts, *about)):
            raise InputError(f"{path} has a value that is no text, or is longer than {LONGEST} characters")
        in_range = {"steps": (1, MOST_STEPS), "batch": (1, MOST_TOGETHER), "seed": (0, LAST_SEED)}
        if not all(low <= mapping[name] <= high for name, (low, high) in in_range.items()) or not all(
            1 <= side <= LARGEST_SIDE for side in size or ()
        ):
            raise InputError(f"{path}: steps, batch, seed or size is out of range")
        try:
            stack = parse(mapping["guidance"])  # an image names no preset's file
        except GuidestackError as error:
            here = {file.name for file in loaded_files()}
            if lacking := [name for name, _ in files if name not in here]:
                raise InputError(
                    f"{path} was made with a rule of the file {shown(lacking[0])}; give that file with --rules FILE.py"
                ) from error
            raise InputError(f"{path}: {error}") from None
        _note_changed(files, stack, path)
        for part in stack.parts():
            for name, file in part.files().items():
                if not file.bundled:
                    raise InputError(
                        f"{path} names the file {getattr(part, name)!r}, and an image does not choose what is read; "
                        "make it again with its prompt, seed and --guidance"
                    )
        if (asked := models_of(stack)) != set(networks):
            raise InputError(
                f"{path} was made with other networks than those that its stack asks for: {', '.join(asked)}"
            )
        beside = {"networks": networks, "parts": parts, "pictures": pictures}
        beside |= {"strength": strength, "weights": weights}
        return cls(**{**mapping, "size": tuple(size) if size else None, **beside})

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

    def networks_to_load(self, given: Mapping[str, str]) -> dict[str, str]:
        """The further networks to make it again with: those `given`, else the bundled ones; as `model_to_load`.

        Raises:
            InputError: it was made with another network and none was given, or one that it was not made with was.
        """
        for name in given:
            if name not in self.networks:
                raise InputError(f"the image was made without a network {name!r}; drop --network {name}")
        for name, identity in self.networks.items():
            if name not in given and identity.get("name") != "bundled":
                raise InputError(
                    f"the image was made with the network {shown(identity.get('name'))} as {name!r}; say where that "
                    f"is with --network {name}=FOLDER"
                )
        return dict.fromkeys(self.networks, "bundled") | dict(given)


def _are_parts(given: Any) -> bool:
    """Whether an image says of parts what `Recipe.parts` holds: by kind a list of names, fingerprints and scales."""
    kinds = {"name": (str,), "fingerprint": (str,), "scale": (int, float)}
    return isinstance(given, dict) and all(
        isinstance(parts, list)
        and all(
            isinstance(part, dict)
            and {"name", "scale"} <= set(part) <= set(kinds)
            and all(type(value) in kinds[key] for key, value in part.items())
            and len(part["name"]) <= LONGEST
            and abs(part["scale"]) <= LARGEST_SCALE
            for part in parts
        )
        for parts in given.values()
    )


def file_name(prompt: str, what: object, told: Mapping[str, Any]) -> str:
    """A picture's file: words of its prompt, `what` it is, and a digest of all of `told` that decides the picture."""
    decisive = {name: value for name, value in told.items() if name not in ("batch", "versions")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "image"
    return f"{words}-{what}-{digest}.png"


def with_rules(recipe: dict[str, Any], *stacks: str) -> dict[str, Any]:
    """A recipe with the names and digests of the files that its stacks' rules are from, if they are from files."""
    files = dict.fromkeys(file for stack in stacks for file in files_of(as_stack(stack)))
    listed = [{"file": file.name, "digest": file.digest} for file in files]
    return {**recipe, "rules": listed} if listed else recipe


def _files_in(listed: Any, path: Path) -> list[tuple[str, str]]:
    """Names and digests of the files of rules that an image says it was made with; nothing is imported.

    Raises:
        InputError: it says something else there.
    """
    good = isinstance(listed, list) and all(
        isinstance(one, dict)
        and set(one) == {"file", "digest"}
        and all(isinstance(value, str) and len(value) <= LONGEST for value in one.values())
        for one in listed
    )
    if not good:
        raise InputError(f"{path} does not say how it was made in a form that this version reads")
    return [(one["file"], one["digest"]) for one in listed]


def _note_changed(files: Sequence[tuple[str, str]], stack: Rule, path: Path) -> None:
    """Warn where the rules of a stack are from other files here than those an image was made with."""
    there = {digest for _, digest in files}
    here = {file.digest for file in files_of(stack)}
    if there != here:
        told = ", ".join(f"{shown(name)} ({shown(digest)})" for name, digest in files) or "no rules file"
        given = ", ".join(f"{file.name!r} ({file.digest!r})" for file in files_of(stack)) or "no rules file"
        warn(f"{path} was made with {told}, and its rules are from {given} here; the picture may be another one")


def split(text: str) -> list[str]:
    """The texts between the bars of ``"a | b"``."""
    return [part.strip() for part in text.split("|") if part.strip()]


def check_text(text: str, what: str) -> None:
    """Check that a prompt is short enough, and has no NUL character.

    Raises:
        InputError: it is longer, or has one.
    """
    if "\0" in text:
        raise InputError(f"{what} has a NUL character, after {shown(text.partition(chr(0))[0])}; take it out")
    if len(text) > LONGEST:
        raise InputError(f"{what} has {len(text)} characters; at most {LONGEST} are read, a text encoder reads fewer")


def _for_each(texts: Sequence[str], prompts: Sequence[str], option: str) -> list[str]:
    """A text for each prompt, from one for all or one for each.

    Raises:
        InputError: another number of them.
    """
    given = list(texts) or [""]
    if len(given) not in (1, len(prompts)):
        wanted = counted(len(prompts), "prompt")
        raise InputError(f"{len(given)} {option} for {wanted}; give one for all, or one for each")
    return given * len(prompts) if len(given) == 1 else given


def check_several(
    stack: Rule,
    negatives: Sequence[str],
    extras: Sequence[str],
    names: tuple[str, str] = ("--negative", "--extra-prompt"),
) -> None:
    """Check that the prompts beside the first fit to the stack; `names` is what messages call them.

    Raises:
        InputError: positives that no rule uses, or another number of weights than of negatives.
    """
    if any(extras) and not stack.takes_several:
        raise InputError(f"{names[1]} was given, and no rule of {stack} uses it; perpneg(scale) does")
    given = {"negative": (names[0], negatives), "positive": (names[1], extras)}
    for rule in stack.parts():
        for kind, count in rule.weight_counts.items():
            what, texts = given[kind]
            if count != (most := max(len(split(text)) for text in texts)):
                has, there = counted(count, "weight"), counted(most, "text")
                raise InputError(
                    f"{rule} has {has} and {what} {there} at most; give "
                    "one weight for each, or one number for all (several texts are written 'a | b')"
                )


def note_bars(stack: Rule, negatives: Sequence[str]) -> None:
    """Warn of negatives that are written as several for a stack that takes one."""
    if not stack.takes_several:
        for text in dict.fromkeys(negatives):
            if len(split(text)) > 1:
                warnings.warn(
                    f"{stack} takes one negative prompt: {text!r} goes in as it is, with its bars; perpneg(scale) "
                    "takes several",
                    GuidestackWarning,
                    stacklevel=2,
                )


def recipes(
    prompts: Sequence[str],
    stacks: Sequence[str],
    negative: Sequence[str] = (),
    extra_prompt: Sequence[str] = (),
    seed: int = 0,
    count: int = 1,
    **same: Any,
) -> list[Recipe]:
    """A recipe for each image: every stack with every prompt, `count` times; the seed goes up from image to image.

    Args:
        prompts: texts.
        stacks: texts of stacks; none for ``cfg(4)``.
        negative: none, one for all prompts, or one for each.
        extra_prompt: further positives, likewise.
        seed: of the first image.
        count: images of each prompt under each stack.
        same: what all images share: the fields sampler, steps, size, dtype and batch of a recipe.

    Raises:
        InputError: the negatives or the further positives fit neither all prompts nor each, or not to the stack; a
            prompt is too long, the images are too many, or their seeds too large.
        StackSyntaxError, RuleError: a stack cannot be read.
    """
    texts = stacks or ("cfg(4)",)
    for what, given in (("a prompt", prompts), ("--negative", negative), ("--extra-prompt", extra_prompt)):
        for text in given:
            check_text(text, what)
    seeds = len(prompts) * count
    if seeds * len(texts) > MAX_IMAGES:
        raise InputError(
            f"{seeds * len(texts)} images are wanted, and one run makes {MAX_IMAGES} at most; make the rest with "
            "another --seed, or as a sweep: guidestack evaluate"
        )
    if seed + seeds - 1 > LAST_SEED:
        raise InputError(f"--seed {seed} is too large for {counted(seeds, 'seed')}; seeds end at {LAST_SEED}")
    negatives = _for_each(negative, prompts, "--negative")
    extras = _for_each(extra_prompt, prompts, "--extra-prompt")
    rules = [read(text) for text in texts]
    for stack in rules:
        check_several(stack, negatives, extras)
        note_bars(stack, negatives)
    return [
        Recipe(
            prompt=prompt,
            negative=beside,
            extra=extra,
            guidance=text,
            # The same for every stack: what differs between two sets is then the guidance alone.
            seed=seed + index * count + copy,
            **same,
        )
        for text in map(str, rules)
        for index, (prompt, beside, extra) in enumerate(zip(prompts, negatives, extras, strict=True))
        for copy in range(count)
    ]
