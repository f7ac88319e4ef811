"""A sweep: what to make, as a YAML file says it. Read strictly, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, TypeAdapter

from ...guidance.bounds import LAST_SEED
from ...guidance.errors import InputError, reason, shown
from ...guidance.reading import read_bytes
from ...samplers import canonical
from .. import values
from ..paths import MAX_BYTES, located, preset_located
from ..values import (
    BOUNDS,
    MAX_VALUES,
    Axis,
    Checked,
    PathText,
    Size,
    Text,
    axis_values,
    checked,
    is_text,
    meant,
    once,
    read_by,
)
from .claim import CellValues, Claim, MetricText
from .prompts import Prompt, bundled, parse_prompts, prompt_of

FOLDERS = tuple(Path(__file__).parents[2] / "configs" / name for name in ("sweeps", "claims"))
BUNDLED, LORA = "bundled", "lora:"  # in a network's place
IN_PYTHON = "the sweep"  # a mapping, in messages
STACK = "stack"  # the axis of the templates
MOST_AXES = 100  # and as many metrics, expectations, labels of prompts, and rules files
MOST_OF_A_CELL = 1_000_000  # samples of a cell, and so prompts, and seeds of a prompt
MOST_SAMPLES = 10_000_000
INLINE = 100  # prompts that are written into a resolved sweep; more go into a file beside it
HOLE = re.compile(r"\{([^{}]*)\}")

Files = Callable[[str], bytes]
"""Reads a file that a sweep names, relative to the sweep's own place; raises `FileNotFoundError` or `InputError`."""


FURTHER = 1_000_000
MOST_STEPS = 1000
Steps = Annotated[StrictInt, Field(ge=1, le=MOST_STEPS)]


@dataclass(frozen=True)
class Seeds:
    """Which seeds each prompt has.

    Args:
        seeds: the same for every prompt.
        each: instead, so many for each prompt, its own: prompt i has ``start + i*each`` and on.
        start: the first seed of the first prompt, where `each` is given.
        times: so many times as many, each time a million further on, so that a run grows by them.
    """

    seeds: tuple[int, ...] = ()
    each: int = 0
    start: int = 0
    times: int = 1

    def of(self, prompt: int) -> range | tuple[int, ...]:
        """The seeds of a prompt, by its place."""
        if not self.each:
            return self.seeds
        first = self.start + prompt * self.each
        if self.times == 1:
            return range(first, first + self.each)
        return tuple(first + one + FURTHER * time for time in range(self.times) for one in range(self.each))

    @property
    def count(self) -> int:
        """How many seeds each prompt has."""
        return self.each * self.times if self.each else len(self.seeds)

    def more(self, factor: int) -> Seeds:
        """`factor` times as many seeds for each prompt, with these among them.

        Raises:
            InputError: they are too many.
        """
        _check_count(self.count * factor, "seeds of a prompt", MOST_OF_A_CELL)
        if self.each:
            return Seeds(each=self.each, start=self.start, times=self.times * factor)
        first = max(self.seeds) + 1
        more = range(first, first + len(self.seeds) * (factor - 1))
        return Seeds((*self.seeds, *more))

    def as_plain(self) -> Any:
        """The seeds as a sweep's YAML has them under ``seeds``."""
        if self.each:
            return {"each": self.each, "start": self.start} | ({"times": self.times} if self.times > 1 else {})
        first, count = self.seeds[0], len(self.seeds)
        consecutive = self.seeds == tuple(range(first, first + count))
        return {"count": count, "start": first} if consecutive else list(self.seeds)


class Partners(Checked):
    """Cells of one template beside the others, at as many evaluations.

    Args:
        stack: name of the template.
        steps: at which its cells are made once more; None until the sweep is prepared for its model, which counts them.
    """

    stack: Text
    steps: Annotated[list[Steps], Field(max_length=MAX_VALUES)] | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep: the prompts, seeds, stacks and settings to make samples of; checked as far as that needs no model.

    Args:
        model: folder or hub id; None for the bundled model. A folder of a file's sweep is an absolute path.
        prompts: in order; their places are the records' ``prompt_index``.
        drawn: count and seed of prompts that were drawn for the bundled model; None for others.
        seeds: of each prompt.
        stacks: templates by name; a template given without a name is its own.
        axes: values by name; a template's holes and `FIELDS`.
        zipped: groups of axes that go together, value by value; all others multiply.
        fixed: `FIELDS` that are no axes. Where the sweep of a model names no sampler it is None until the sweep is run:
            then it is that of `chosen_sampler`.
        metrics: as written, with absolute paths.
        images: ``png``, ``webp`` or ``none``.
        traces: whether each sample's steps are kept.
        baseline: the stack's text, or values of axes, of the one cell that others are compared with; or None.
        claim: what a paper says of the cells; or None. Its metrics are computed beside `metrics`.
        rules: paths of Python files with rules of one's own. Reading a sweep does not import them; running it does.
        networks: further networks by name, each a folder, a hub id or ``"bundled"``, as `model`.
        objectives: pictures that objectives take, by the name of the objective: a file each, as an absolute path.
        partners: the template that is also made at the evaluations of the others; or None.
    """

    model: str | None
    prompts: tuple[Prompt, ...]
    drawn: tuple[int, int] | None
    seeds: Seeds
    stacks: Mapping[str, str]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    zipped: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    images: str = "png"
    traces: bool = False
    baseline: str | Mapping[str, str] | None = None
    claim: Claim | None = None
    rules: tuple[str, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    partners: Partners | None = None

    def __post_init__(self) -> None:
        seeds = self.seeds
        last = (
            seeds.start + seeds.each * len(self.prompts) + FURTHER * seeds.times
            if seeds.each
            else max(seeds.seeds, default=0)
        )
        if last > LAST_SEED:
            raise InputError(f"seeds end at {LAST_SEED}; this sweep has one of {last}")
        _check_count(len({name for one in self.prompts for name in one.labels}), "labels", MOST_AXES)
        _check_count(len(self.prompts) * seeds.count, "samples of a cell", MOST_OF_A_CELL)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The samples of one cell, as pairs of a prompt's index and a seed, without duplicates."""
        found: dict[tuple[Prompt, int], tuple[int, int]] = {}
        for place, prompt in enumerate(self.prompts):
            for seed in self.seeds.of(place):
                found.setdefault((prompt, seed), (place, seed))
        return list(found.values())

    def first(self, count: int) -> Sweep:
        """Return the sweep of the first `count` prompts, a pilot whose run can be extended to the whole sweep."""
        drawn = None if self.drawn is None else (min(count, self.drawn[0]), self.drawn[1])
        return dataclasses.replace(self, prompts=self.prompts[:count], drawn=drawn)

    def as_yaml(self, prompts_file: str | None = None) -> str:
        """Return the sweep as YAML that `parse_sweep` reads back on any machine, with nothing left to a default.

        Args:
            prompts_file: name of the file that holds the prompts; None where they stand in the sweep.
        """
        whole: dict[str, Any] = {"model": located(self.model) if self.model else BUNDLED}
        whole |= {"networks": {name: placed(one) for name, one in self.networks.items()}} if self.networks else {}
        whole |= (
            {"objectives": {name: located(one) for name, one in self.objectives.items()}} if self.objectives else {}
        )
        whole |= {"rules": [located(path) for path in self.rules]} if self.rules else {}
        if prompts_file:
            whole["prompts"] = prompts_file
        elif self.drawn:
            whole["prompts"] = {BUNDLED: {"count": self.drawn[0], "seed": self.drawn[1]}}
            negatives, extras = ({getattr(one, key) for one in self.prompts} for key in ("negative", "extra"))
            whole |= {"negatives": [one.negative for one in self.prompts]} if negatives != {""} else {}
            whole |= {"extras": [one.extra for one in self.prompts]} if extras != {""} else {}
        else:
            whole["prompts"] = [one.as_plain() for one in self.prompts]
        whole["seeds"] = self.seeds.as_plain()
        named = any(name != template for name, template in self.stacks.items())
        whole[STACK] = dict(self.stacks) if named else list(self.stacks)
        plain = {
            name: [list(one) if isinstance(one, tuple) else one for one in each] for name, each in self.axes.items()
        }
        if "size" in plain:
            plain["size"] = [values.size_text(one) or "model" for one in self.axes["size"]]
        whole |= {"axes": plain} if plain else {}
        whole |= {"zip": [list(group) for group in self.zipped]} if self.zipped else {}
        whole |= {"partners": self.partners.model_dump(exclude_defaults=True)} if self.partners else {}
        fixed = dict(self.fixed)
        if "size" in fixed:
            fixed["size"] = values.size_text(fixed["size"])
        whole |= {name: fixed[name] for name in FIELDS if name in fixed and (name == "size" or fixed[name] is not None)}
        whole |= {"metrics": list(self.metrics), "images": self.images, "traces": self.traces}
        if self.baseline is not None:
            whole["baseline"] = self.baseline if isinstance(self.baseline, str) else dict(self.baseline)
        whole |= {"claim": self.claim.model_dump(exclude_defaults=True)} if self.claim else {}
        return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=10**6)

    def prompt_lines(self) -> bytes | None:
        """Return the prompts as JSON Lines if they are too many to stand in the sweep, else None."""
        if self.drawn or len(self.prompts) <= INLINE:
            return None
        return b"".join(json.dumps(one.as_plain(), ensure_ascii=False).encode() + b"\n" for one in self.prompts)


def _check_count(count: int, what: str, most: int) -> None:
    if count > most:
        raise InputError(f"this sweep has {count} {what}, and {most} are the most; take it apart")


def names() -> list[str]:
    """The sweeps that come with guidestack."""
    return sorted(shipped())


def shipped() -> dict[str, Path]:
    """The files of the sweeps that come with guidestack, by name."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def load_sweep(source: str | Path | Mapping[str, Any]) -> Sweep:
    """Read and check a sweep. No model is loaded.

    Args:
        source: a path or an fsspec address of a YAML file; the name of a sweep that comes with guidestack, such as
            ``smoke``; or a mapping with the keys of such a file. Files that a sweep names are looked for beside its own
            file, then in the working directory.

    Raises:
        InputError: there is no such file, or it is no sweep; the message names the key.
        StackSyntaxError, RuleError: a stack cannot be read.

    >>> sweep = load_sweep({"stack": "cfg({w})", "axes": {"w": [2, 4]}, "prompts": ["a cat"], "seeds": [0, 1]})
    >>> sweep.axes["w"], sweep.seeds.count
    ((2, 4), 2)
    """
    if isinstance(source, Mapping):
        return parse_sweep(_plain(source), IN_PYTHON, _beside(None))
    name = re.sub("^(file|local)://", "", str(source))
    if "://" in name:
        folder = name.rpartition("/")[0]
        return parse_sweep(_fetched(name), name, lambda file: _fetched(f"{folder}/{file}"))
    path = Path(values.file(name, "the sweep"))
    if not path.exists() and len(path.parts) == 1:
        path = shipped().get(name.removesuffix(".yaml"), path)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"no sweep {shown(name)}, neither a YAML file nor one that comes with guidestack{meant(name, names())}"
        )
    return parse_sweep(read_bytes(path, "sweep", MAX_BYTES), str(path), _beside(path.parent), path.parent)


def _beside(folder: Path | None) -> Files:
    return lambda file: read_bytes(located(file, folder), "file", MAX_BYTES)


def _fetched(address: str) -> bytes:
    """The contents of a file at an fsspec address.

    Raises:
        InputError: it cannot be read.
    """
    try:
        fs, path = fsspec.core.url_to_fs(address)
        return bytes(fs.cat_file(path))
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"cannot read {shown(address)}: {reason(error)}") from error


def _plain(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping of a Python program as its file would hold it.

    Raises:
        InputError: it has a value that no file of a sweep can have.
    """
    values.check_plain(given, IN_PYTHON)
    try:
        return dict(json.loads(json.dumps(given, default=os.fspath)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{IN_PYTHON} has texts, numbers, lists and mappings: {error}") from error


# --- the keys of a sweep's YAML --------------------------------------------------------------------------------------


def _listed(given: Any) -> Any:
    return [] if given is None else given if isinstance(given, list) else [given]


def _named(given: Any) -> Any:
    """Templates with their names; one without a name is its own."""
    if not given or not isinstance(given, str | list | Mapping):
        raise ValueError("must be a template, a list of them, or a mapping of names to them")
    return list(given.items()) if isinstance(given, Mapping) else [(one, one) for one in _listed(given)]


def _word(name: str) -> str:
    if not name.isidentifier() or name == STACK:
        raise ValueError(
            "an axis is named by a word, as in a template's braces; several stacks are a list under 'stack'"
        )
    return name


def _network(name: str) -> str:
    if not name.isidentifier() or name == "main":
        raise ValueError("a network is named by a word other than 'main', which is the key model")
    return name


def _objective(name: str) -> str:
    if not name.isidentifier():
        raise ValueError("an objective is named by a word, as in tfg('known', rho=1)")
    return name


def placed(network: str, folder: Path | None = None) -> str:
    """A network's folder, or a LoRA's file, as an absolute path; ``"bundled"``, and what is on the hub, as it is."""
    if network.startswith(LORA):
        file, ending, rest = network.removeprefix(LORA).partition(".safetensors")  # behind it may stand a scale
        return f"{LORA}{located(file + ending, folder)}{rest}"
    return network if network == BUNDLED else located(network, folder)


Several = Field(max_length=MOST_AXES)
Count = Annotated[StrictInt, Field(ge=1, le=MOST_OF_A_CELL)]
Seed = Annotated[StrictInt, Field(ge=0, le=LAST_SEED)]
Word = Annotated[str, AfterValidator(_word)]
NetworkName = Annotated[str, AfterValidator(_network)]
ObjectiveName = Annotated[str, AfterValidator(_objective)]
KINDS: dict[str, TypeAdapter[Any]] = {
    "sampler": TypeAdapter(Annotated[Text, read_by(lambda text, _: canonical(text))]),
    "steps": TypeAdapter(Steps),
    "size": TypeAdapter(Annotated[Size | None, BeforeValidator(values.size)]),
    "dtype": TypeAdapter(Literal["float32", "float16", "bfloat16"]),
    "batch": TypeAdapter(Annotated[StrictInt, Field(ge=1, le=4096)]),
}
FIELDS = tuple(KINDS)
"""What may be fixed or an axis without a template's naming it."""


class _Keys(Checked):
    """A sweep as it is written. What depends on other keys is read by `parse_sweep`."""

    model: PathText | None = None
    networks: Annotated[dict[NetworkName, Annotated[PathText, read_by(placed)]], Several] | None = None
    objectives: Annotated[dict[ObjectiveName, Annotated[PathText, read_by(located)]], Several] | None = None
    rules: Annotated[list[Annotated[PathText, read_by(located)]], BeforeValidator(_listed), Several] = Field([])
    prompts: Any = None
    negatives: Any = None
    extras: Any = None
    seeds: Any = 0
    stack: Annotated[
        list[tuple[Text, Annotated[Text, read_by(preset_located)]]],
        BeforeValidator(_named),
        Field(max_length=MAX_VALUES),
    ]
    axes: Annotated[dict[Word, Axis], Several] | None = None
    zip: list[Annotated[list[str], Field(min_length=2)]] | None = None
    partners: (
        Annotated[Partners, BeforeValidator(lambda given: {STACK: given} if isinstance(given, str) else given)] | None
    ) = None
    sampler: Any = "dpm++2m"
    steps: Any = 25
    size: Any = None
    dtype: Any = "float32"
    batch: Any = 8
    metrics: Annotated[list[MetricText], BeforeValidator(_listed), Several] = Field([])
    images: Annotated[  # `off` and `no` are YAML for false
        Literal["png", "webp", "none"], BeforeValidator(lambda given: "none" if given is False else given)
    ] = "png"
    traces: bool = False
    baseline: Any = None
    claim: Any = None


class _SeedKeys(Checked):
    count: Count = 0
    each: Count = 0
    start: Seed = 0
    times: Count = 1


class _Drawn(Checked):
    count: Count
    seed: Seed = 0


class _PromptKeys(Checked):
    bundled: _Drawn | None = None
    classes: Axis | None = None


KEYS = tuple(_Keys.model_fields)
_KEYS, _CLAIM, _PROMPTS = TypeAdapter(_Keys), TypeAdapter(Claim), TypeAdapter(_PromptKeys)
_TEXT, _CELL, _SEED_KEYS = TypeAdapter(Text), TypeAdapter(CellValues), TypeAdapter(_SeedKeys)
_SEEDS = TypeAdapter(
    Annotated[tuple[Seed, ...], BeforeValidator(lambda given: once(axis_values(given, MOST_OF_A_CELL)))]
)


def parse_sweep(
    data: bytes | Mapping[str, Any], name: str, files: Files | None = None, folder: Path | None = None
) -> Sweep:
    """Read and check a sweep from its YAML.

    Args:
        data: its YAML, or what that holds.
        name: for messages.
        files: reads the prompts that it names; None where it may name none.
        folder: beside which models, pictures and weights lie that it names; what is not there is looked for in the
            working directory.

    Raises:
        InputError: it is no sweep; the message says which key, what was expected and what to change.
    """
    read = values.read_yaml(data, name) if isinstance(data, bytes) else data
    keys = checked(_KEYS, read, name, {"folder": folder})
    stacks = dict(keys.stack)
    if len(stacks) < len(keys.stack):
        raise InputError(f"{name}: stack: a template or a name comes twice")
    axes = {
        axis: tuple(checked(KINDS[axis], one, f"{name}: axes: {axis}") for one in found) if axis in FIELDS else found
        for axis, found in (keys.axes or {}).items()
    }
    if both := [one for one in FIELDS if one in axes and one in keys.model_fields_set]:
        raise InputError(f"{name}: {both[0]} is fixed and an axis; keep one of the two")
    _check_used(stacks, axes, name)
    groups = tuple(map(tuple, keys.zip or ()))
    for axis, found in axes.items():
        if not any(axis in group for group in groups):  # of a group it is the combinations that differ
            try:
                once(found)
            except ValueError as error:
                raise InputError(f"{name}: axes: {axis}: {error}") from error
    if keys.partners:
        _check_template(keys.partners.stack, stacks, f"{name}: partners")
        if "steps" not in axes:
            raise InputError(f"{name}: partners have other numbers of steps; make them an axis: axes: {{steps: [25]}}")
    _check_groups(groups, {STACK: len(stacks), **{axis: len(found) for axis, found in axes.items()}}, f"{name}: zip")
    fixed = {one: checked(KINDS[one], getattr(keys, one), f"{name}: {one}") for one in FIELDS if one not in axes}
    own = keys.model not in (None, BUNDLED)
    if own and "sampler" in fixed and "sampler" not in keys.model_fields_set:
        fixed["sampler"] = None
    prompts, drawn = _prompts(keys.prompts, f"{name}: prompts", files)
    known = {"folder": folder, "axes": (STACK, *axes)}
    claim = None if keys.claim is None else checked(_CLAIM, keys.claim, f"{name}: claim", known)
    return Sweep(
        model=located(keys.model, folder) if own and keys.model else None,
        prompts=_with_texts(prompts, {"negative": keys.negatives, "extra": keys.extras}, name),
        drawn=drawn,
        seeds=_seeds(keys.seeds, f"{name}: seeds"),
        stacks=stacks,
        axes=axes,
        zipped=groups,
        fixed=fixed,
        metrics=tuple(dict.fromkeys([*keys.metrics, *(one.metric for one in (claim.expect if claim else ()))])),
        images=keys.images,
        traces=keys.traces,
        baseline=_baseline(keys.baseline, stacks, f"{name}: baseline", known),
        claim=claim,
        rules=tuple(dict.fromkeys(keys.rules)),
        networks=keys.networks or {},
        objectives=keys.objectives or {},
        partners=keys.partners,
    )


def _check_used(stacks: Mapping[str, str], axes: Mapping[str, Any], name: str) -> None:
    """Every hole of a template is an axis, and every axis is one that something uses."""
    used = {*FIELDS}
    for template in stacks.values():
        told = f"{name}: the template {shown(template)}"
        for hole in HOLE.findall(template):
            if hole not in axes:
                raise InputError(f"{told} has {{{hole[:60]}}}, and there is no such axis{meant(hole, axes)}")
            used.add(hole)
        if {"{", "}"} & {*HOLE.sub("", template)}:
            raise InputError(f"{told} has a brace without its other half")
    if unused := [axis for axis in axes if axis not in used]:
        raise InputError(
            f"{name}: no template uses the axis {unused[0]!r}: write {{{unused[0]}}} where its values go, or drop it; "
            f"an axis without a template is one of {', '.join(FIELDS)}"
        )


def _check_groups(groups: Sequence[Sequence[str]], lengths: Mapping[str, int], where: str) -> None:
    """Axes that go together are axes, of equally many values, each in one group."""
    seen: set[str] = set()
    for group in groups:
        for axis in group:
            if axis not in lengths:
                raise InputError(f"{where}: no axis {shown(axis)}{meant(axis, lengths)}")
            if axis in seen:
                raise InputError(f"{where}: {axis!r} comes twice; an axis goes with one group")
            seen.add(axis)
        if len({lengths[axis] for axis in group}) > 1:
            counts = ", ".join(f"{axis} has {lengths[axis]}" for axis in group)
            raise InputError(f"{where}: axes of a group have equally many values; {counts}")


def _seeds(given: Any, where: str) -> Seeds:
    if not isinstance(given, Mapping):
        return Seeds(checked(_SEEDS, [given] if type(given) is int else given, where))
    keys = checked(_SEED_KEYS, given, where)
    if bool(keys.count) == bool(keys.each):
        raise InputError(f"{where}: give count, the same seeds for every prompt, or each, its own for each prompt")
    found = Seeds(tuple(range(keys.start, keys.start + keys.count)), keys.each, keys.each and keys.start)
    return found.more(keys.times)


def _prompts(given: Any, where: str, files: Files | None) -> tuple[list[Prompt], tuple[int, int] | None]:
    if given is None:
        return [Prompt("")], None  # a model without prompts; any other refuses
    if isinstance(given, list):
        if not given:
            raise InputError(f"{where} is empty")
        return [prompt_of(one, f"{where}: entry {place}") for place, one in enumerate(given, 1)], None
    if isinstance(given, Mapping):
        asked = checked(_PROMPTS, given, where)
        if (asked.bundled is None) == (asked.classes is None):
            raise InputError(f"{where}: give {BUNDLED} or classes, one of the two")
        if asked.bundled:
            drawn = (asked.bundled.count, asked.bundled.seed)
            return bundled(*drawn), drawn
        return [prompt_of({"class": one}, where) for one in asked.classes or ()], None
    file = values.file(given, where)
    if files is None:
        raise InputError(f"{where}: {shown(file)} is a file, and this sweep is not one beside which it could lie")
    try:
        data = files(file)
    except (FileNotFoundError, InputError) as error:
        looked = "it is looked for beside the sweep and in the working directory"
        raise InputError(f"{where}: {reason(error)}; {looked}") from error
    return parse_prompts(data, file), None


def _with_texts(prompts: Sequence[Prompt], given: Mapping[str, Any], name: str) -> tuple[Prompt, ...]:
    """The prompts with the sweep's own negatives and extras, one for all or one for each."""
    for attribute, texts in given.items():
        if texts is None:
            continue
        several = texts if isinstance(texts, list) else [texts] * len(prompts)
        if len(several) != len(prompts) or not all(map(is_text, several)):
            raise InputError(
                f"{name}: {attribute}s must be one text for all {len(prompts)} prompts or a list with one for each; "
                f"several for one prompt are written 'a | b'; a text has {BOUNDS}; got {shown(texts)}"
            )
        if any(getattr(one, attribute) for one in prompts):
            raise InputError(
                f"{name}: {attribute}s is given, and prompts have their own '{attribute}'; keep one of the two"
            )
        changes: list[dict[str, Any]] = [{attribute: text} for text in several]
        prompts = [dataclasses.replace(one, **change) for one, change in zip(prompts, changes, strict=True)]
    return tuple(prompts)


def _baseline(given: Any, stacks: Mapping[str, str], where: str, known: Any) -> str | dict[str, str] | None:
    if given is None or isinstance(given, str):
        return None if given is None else checked(_TEXT, given, where)
    found = checked(_CELL, given, where, known)
    if STACK in found:
        _check_template(found[STACK], stacks, where)
    return found


def _check_template(template: str, stacks: Mapping[str, str], where: str) -> None:
    if template not in stacks:
        raise InputError(f"{where}: no template {shown(template)}{meant(template, stacks)}")
