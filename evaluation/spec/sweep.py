"""A sweep: what to make, as a YAML file says it. Read strictly, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import yaml

from ...guidance.errors import InputError, reason, shown
from ...guidance.reading import read_bytes
from ...samplers import canonical
from .. import values
from ..paths import LARGEST, located, preset_located
from ..values import meant
from . import prompts as prompts_of
from .prompts import Prompt

if TYPE_CHECKING:
    from .claim import Claim

FOLDERS = tuple(Path(__file__).parents[2] / "configs" / name for name in ("sweeps", "claims"))
KEYS = (
    "model", "rules", "prompts", "negatives", "extras", "seeds", "stack", "axes", "zip", "sampler", "steps", "size",
    "dtype", "batch", "metrics", "images", "traces", "baseline", "claim",
)  # fmt: skip
FIELDS = ("sampler", "steps", "size", "dtype", "batch")
"""What may be fixed or an axis without a template's naming it."""
DTYPES, IMAGES = ("float32", "float16", "bfloat16"), ("png", "webp", "none")
DEFAULTS: dict[str, Any] = {"sampler": "dpm++2m", "steps": 25, "size": None, "dtype": "float32", "batch": 8}
BUNDLED = "bundled"
IN_PYTHON = "the sweep"  # a mapping, in messages
STACK = "stack"  # the axis of the templates
MOST_AXES = 100  # and as many metrics, expectations, labels of prompts, and rules files
MOST_OF_A_CELL = 1_000_000  # samples of a cell, and so prompts, and seeds of a prompt
MOST_SAMPLES = 10_000_000
INLINE = 100  # prompts that are written into a resolved sweep; more go into a file beside it
LAST_SEED = 2**63 - 1
HOLE = re.compile(r"\{([^{}]*)\}")

Files = Callable[[str], bytes]
"""Reads a file that a sweep names, relative to the sweep's own place; raises `FileNotFoundError` or `InputError`."""


FURTHER = 1_000_000


@dataclass(frozen=True)
class Seeds:
    """Which seeds each prompt has.

    Args:
        seeds: the same for every prompt.
        each: instead, so many for each prompt, its own: prompt i has ``start + i*each`` and on.
        start: the first of these.
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
        """So many times as many for each prompt, these among them.

        Raises:
            InputError: they are too many.
        """
        _check_count(self.count * factor, "seeds of a prompt", MOST_OF_A_CELL)
        if self.each:
            return Seeds(each=self.each, start=self.start, times=self.times * factor)
        first = max(self.seeds) + 1
        more = range(first, first + len(self.seeds) * (factor - 1))
        return Seeds((*self.seeds, *more))

    def written(self) -> Any:
        """The seeds as a sweep's YAML has them under ``seeds``."""
        if self.each:
            return {"each": self.each, "start": self.start} | ({"times": self.times} if self.times > 1 else {})
        first, count = self.seeds[0], len(self.seeds)
        consecutive = self.seeds == tuple(range(first, first + count))
        return {"count": count, "start": first} if consecutive else list(self.seeds)


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked as far as that needs no model.

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
        """Every prompt's place with each of its seeds: the samples of one cell. What comes twice is one sample."""
        found: dict[tuple[Prompt, int], tuple[int, int]] = {}
        for place, prompt in enumerate(self.prompts):
            for seed in self.seeds.of(place):
                found.setdefault((prompt, seed), (place, seed))
        return list(found.values())

    def written(self, prompts_file: str | None = None) -> str:
        """The YAML that `parse_sweep` reads back anywhere, with nothing left to a default.

        Args:
            prompts_file: name of the file that holds the prompts; None where they stand in the sweep.
        """
        whole: dict[str, Any] = {"model": located(self.model) if self.model else BUNDLED}
        whole |= {"rules": [located(path) for path in self.rules]} if self.rules else {}
        if prompts_file:
            whole["prompts"] = prompts_file
        elif self.drawn:
            whole["prompts"] = {BUNDLED: {"count": self.drawn[0], "seed": self.drawn[1]}}
            negatives, extras = ({getattr(one, key) for one in self.prompts} for key in ("negative", "extra"))
            whole |= {"negatives": [one.negative for one in self.prompts]} if negatives != {""} else {}
            whole |= {"extras": [one.extra for one in self.prompts]} if extras != {""} else {}
        else:
            whole["prompts"] = [one.written() for one in self.prompts]
        whole["seeds"] = self.seeds.written()
        named = any(name != template for name, template in self.stacks.items())
        whole[STACK] = dict(self.stacks) if named else list(self.stacks)
        plain = {
            name: [list(one) if isinstance(one, tuple) else one for one in each] for name, each in self.axes.items()
        }
        if "size" in plain:
            plain["size"] = [values.size_text(one) or "model" for one in self.axes["size"]]
        whole |= {"axes": plain} if plain else {}
        whole |= {"zip": [list(group) for group in self.zipped]} if self.zipped else {}
        fixed = dict(self.fixed)
        if "size" in fixed:
            fixed["size"] = values.size_text(fixed["size"])
        whole |= {name: fixed[name] for name in FIELDS if name in fixed and (name == "size" or fixed[name] is not None)}
        whole |= {"metrics": list(self.metrics), "images": self.images, "traces": self.traces}
        if self.baseline is not None:
            whole["baseline"] = self.baseline if isinstance(self.baseline, str) else dict(self.baseline)
        whole |= {"claim": self.claim.written()} if self.claim else {}
        return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=10**6)

    def prompt_lines(self) -> bytes | None:
        """The prompts as JSON Lines, if they are too many to stand in the sweep."""
        if self.drawn or len(self.prompts) <= INLINE:
            return None
        return b"".join(json.dumps(one.written(), ensure_ascii=False).encode() + b"\n" for one in self.prompts)


def _check_count(count: int, what: str, most: int) -> None:
    if count > most:
        raise InputError(f"this sweep has {count} {what}, and {most} are the most; take it apart")


def names() -> list[str]:
    """The sweeps that come with guidestack."""
    return sorted(shipped())


def shipped() -> dict[str, Path]:
    """Their files by name."""
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
    return parse_sweep(read_bytes(path, "sweep", LARGEST), str(path), _beside(path.parent), path.parent)


def _beside(folder: Path | None) -> Files:
    return lambda file: read_bytes(located(file, folder), "file", LARGEST)


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


def parse_sweep(
    data: bytes | Mapping[str, Any], name: str, files: Files | None = None, folder: Path | None = None
) -> Sweep:
    """Read a sweep.

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
    given = values.check_keys(read, KEYS, name)
    if STACK not in given:
        raise InputError(f"{name}: give stack, a template such as 'cfg({{w}})' or a list of them")
    named = given.get("model")
    model = values.file(BUNDLED if named is None else named, f"{name}: model")
    stacks = {one: preset_located(text, folder) for one, text in _stacks(given[STACK], f"{name}: stack").items()}
    axes = _axes(given.get("axes"), f"{name}: axes")
    _check_used(stacks, axes, name)
    fixed = {one: _field(one, given.get(one, DEFAULTS[one]), f"{name}: {one}") for one in FIELDS if one not in axes}
    if model != BUNDLED and "sampler" in fixed and "sampler" not in given:
        fixed["sampler"] = None
    for one in FIELDS:
        if one in given and one in axes:
            raise InputError(f"{name}: {one} is fixed and an axis; keep one of the two")
    asked, drawn = _prompts(given.get("prompts"), name, files)
    asked = _with_texts(asked, given, name)
    claim = _claim(given.get("claim"), axes, f"{name}: claim", folder)
    wanted = _metrics(given.get("metrics"), f"{name}: metrics", folder)
    return Sweep(
        model=None if model == BUNDLED else located(model, folder),
        prompts=tuple(asked),
        drawn=drawn,
        seeds=_seeds(given.get("seeds", [0]), len(asked), f"{name}: seeds"),
        stacks=stacks,
        axes=axes,
        zipped=_zipped(given.get("zip"), stacks, axes, f"{name}: zip"),
        fixed=fixed,
        metrics=tuple(dict.fromkeys([*wanted, *(one.metric for one in (claim.expect if claim else ()))])),
        images=values.choice(given.get("images", "png"), f"{name}: images", IMAGES),
        traces=values.flag(given.get("traces", False), f"{name}: traces"),
        baseline=_baseline(given.get("baseline"), stacks, axes, f"{name}: baseline"),
        claim=claim,
        rules=_rules(given.get("rules"), f"{name}: rules", folder),
    )


def _rules(given: Any, where: str, folder: Path | None) -> tuple[str, ...]:
    listed = [] if given is None else given if isinstance(given, list) else [given]
    _check_count(len(listed), "rules files", MOST_AXES)
    return tuple(dict.fromkeys(located(values.file(one, where), folder) for one in listed))


def _stacks(given: Any, where: str) -> dict[str, str]:
    if not given or not isinstance(given, str | list | Mapping):
        raise InputError(
            f"{where} must be a template, a list of them, or a mapping of names to them; got {shown(given)}"
        )
    listed = [given] if isinstance(given, str) else given
    _check_count(len(listed), "templates", values.MOST)
    stacks: dict[str, str] = {}
    for name in listed:
        called = values.text(name, f"{where}: {'a name' if isinstance(given, Mapping) else 'a template'}")
        if called in stacks:
            raise InputError(f"{where}: {shown(called)} comes twice")
        stacks[called] = values.text(given[name], f"{where} {called}") if isinstance(given, Mapping) else called
    return stacks


def _axes(given: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a mapping of names to lists of values; got {shown(given)}")
    _check_count(len(given), "axes", MOST_AXES)
    axes = {}
    for name, listed in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{where}: a name is a word, as in a template's braces; got {shown(name)}")
        if name == STACK:
            raise InputError(f"{where}: several stacks are a list under the key 'stack', not an axis")
        found = values.values(listed, f"{where}: {name}")
        axes[name] = tuple(_field(name, one, f"{where}: {name}") for one in found) if name in FIELDS else found
    return axes


def _field(name: str, value: Any, where: str) -> Any:
    if name == "size":
        return values.size(value, where)
    if name == "dtype":
        return values.choice(value, where, DTYPES)
    if name == "steps":
        return values.whole(value, where, 1, 1000)
    if name == "batch":
        return values.whole(value, where, 1, 4096)
    sampler = values.text(value, where)
    try:
        return canonical(sampler)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_used(stacks: Mapping[str, str], axes: Mapping[str, Any], name: str) -> None:
    """Every hole of a template is an axis, and every axis is one that something uses."""
    used = set()
    for template in stacks.values():
        told = f"{name}: the template {shown(template)}"
        for hole in HOLE.findall(template):
            if hole not in axes:
                raise InputError(f"{told} has {{{hole[:60]}}}, and there is no such axis{meant(hole, axes)}")
            used.add(hole)
        if "{" in HOLE.sub("", template) or "}" in HOLE.sub("", template):
            raise InputError(f"{told} has a brace without its other half")
    for axis in axes:
        if axis not in used and axis not in FIELDS:
            raise InputError(
                f"{name}: no template uses the axis {axis!r}: write {{{axis}}} where its values go, or drop it; an "
                f"axis without a template is one of {', '.join(FIELDS)}"
            )


def _zipped(
    given: Any, stacks: Mapping[str, str], axes: Mapping[str, tuple[Any, ...]], where: str
) -> tuple[tuple[str, ...], ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(group, list) for group in given):
        raise InputError(f"{where} must be a list of groups of axes, such as [[w, steps]]; got {shown(given)}")
    lengths = {STACK: len(stacks), **{name: len(each) for name, each in axes.items()}}
    seen: set[str] = set()
    for group in given:
        for axis in group:
            if not isinstance(axis, str) or axis not in lengths:
                raise InputError(f"{where}: no axis {shown(axis)}{meant(str(axis), lengths)}")
            if axis in seen:
                raise InputError(f"{where}: {axis!r} comes twice; an axis goes with one group")
            seen.add(axis)
        if len(group) < 2:
            raise InputError(f"{where}: a group has two axes at least; got {shown(group)}")
        if len({lengths[axis] for axis in group}) > 1:
            counts = ", ".join(f"{axis} has {lengths[axis]}" for axis in group)
            raise InputError(f"{where}: axes of a group have equally many values; {counts}")
    return tuple(tuple(group) for group in given)


def _seeds(given: Any, prompts: int, where: str) -> Seeds:
    if isinstance(given, Mapping):
        values.check_keys(given, ("count", "each", "start", "times"), where)
        if ("count" in given) == ("each" in given):
            raise InputError(f"{where}: give count, the same seeds for every prompt, or each, its own for each prompt")
        start = values.whole(given.get("start", 0), f"{where}: start", 0, LAST_SEED)
        kind = "each" if "each" in given else "count"
        count = values.whole(given[kind], f"{where}: {kind}", 1, MOST_OF_A_CELL)
        times = values.whole(given.get("times", 1), f"{where}: times", 1, MOST_OF_A_CELL)
        _check_count(count * times * prompts, "samples of a cell", MOST_OF_A_CELL)
        found = Seeds(each=count, start=start) if kind == "each" else Seeds(tuple(range(start, start + count)))
        return found.more(times)
    listed = values.values([given] if type(given) is int else given, where, MOST_OF_A_CELL)
    return Seeds(tuple(values.whole(one, where, 0, LAST_SEED) for one in listed))


def _prompts(given: Any, name: str, files: Files | None) -> tuple[list[Prompt], tuple[int, int] | None]:
    where = f"{name}: prompts"
    if given is None:
        return [Prompt("")], None  # a model without prompts; any other refuses
    if isinstance(given, list):
        if not given:
            raise InputError(f"{where} is empty")
        return [prompts_of.prompt_of(one, f"{where}, entry {place}") for place, one in enumerate(given, 1)], None
    if isinstance(given, Mapping):
        values.check_keys(given, (BUNDLED, "classes"), where)
        if len(given) != 1:
            raise InputError(f"{where}: give {BUNDLED} or classes, one of the two")
        if "classes" in given:
            found = values.values(given["classes"], f"{where}: classes")
            return [prompts_of.prompt_of({"class": one}, where) for one in found], None
        drawn = values.check_keys(given[BUNDLED], ("count", "seed"), f"{where}: {BUNDLED}")
        count = values.whole(drawn.get("count"), f"{where}: count", 1, MOST_OF_A_CELL)
        seed = values.whole(drawn.get("seed", 0), f"{where}: seed", 0, LAST_SEED)
        return prompts_of.bundled(count, seed), (count, seed)
    file = values.file(given, where)
    if files is None:
        raise InputError(f"{where}: {shown(file)} is a file, and this sweep is not one beside which it could lie")
    try:
        data = files(file)
    except (FileNotFoundError, InputError) as error:
        looked = "it is looked for beside the sweep and in the working directory"
        raise InputError(f"{where}: {reason(error)}; {looked}") from error
    return prompts_of.parse_prompts(data, file), None


def _with_texts(asked: list[Prompt], given: Mapping[str, Any], name: str) -> list[Prompt]:
    """The prompts with the sweep's own negatives and extras, one for all or one for each."""
    for key, attribute in (("negatives", "negative"), ("extras", "extra")):
        if given.get(key) is None:
            continue
        texts = given[key] if isinstance(given[key], list) else [given[key]] * len(asked)
        if len(texts) != len(asked) or not all(map(prompts_of.is_text, texts)):
            raise InputError(
                f"{name}: {key} must be one text for all {len(asked)} prompts or a list with one for each; several for "
                f"one prompt are written 'a | b'; a text has {prompts_of.BOUNDS}; got {shown(given[key])}"
            )
        if any(getattr(one, attribute) for one in asked):
            raise InputError(f"{name}: {key} is given, and prompts have their own '{attribute}'; keep one of the two")
        asked = [_replaced(one, attribute, text) for one, text in zip(asked, texts, strict=True)]
    return asked


def _replaced(prompt: Prompt, attribute: str, text: str) -> Prompt:
    changed: dict[str, Any] = {attribute: text}
    return dataclasses.replace(prompt, **changed)


def _metrics(given: Any, where: str, folder: Path | None) -> tuple[str, ...]:
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list):
        raise InputError(f"{where} must be a list of metrics, such as [saturation]; got {shown(given)}")
    _check_count(len(listed), "metrics", MOST_AXES)
    from ..metrics.located import metric_located  # which reads metrics, and with them networks

    found = tuple(metric_located(values.text(one, where), folder) for one in listed)
    if len(set(found)) < len(found):
        raise InputError(f"{where}: a metric comes twice")
    return found


def _claim(given: Any, axes: Mapping[str, Any], where: str, folder: Path | None) -> Claim | None:
    if given is None:
        return None
    from ..metrics.located import metric_located  # which reads metrics, and with them networks
    from .claim import parse_claim

    claim = parse_claim(given, where, [STACK, *axes])
    expect = (dataclasses.replace(one, metric=metric_located(one.metric, folder)) for one in claim.expect)
    return dataclasses.replace(claim, expect=tuple(expect))


def _baseline(
    given: Any, stacks: Mapping[str, str], axes: Mapping[str, Any], where: str
) -> str | dict[str, str] | None:
    if given is None or isinstance(given, str):
        return None if given is None else values.text(given, where)
    allowed = (STACK, *axes)
    values.check_keys(given, allowed, where)
    found = {name: values.value_text(value) for name, value in given.items()}
    if STACK in found and found[STACK] not in stacks:
        raise InputError(f"{where}: no template {shown(found[STACK])}{meant(found[STACK], stacks)}")
    return found
