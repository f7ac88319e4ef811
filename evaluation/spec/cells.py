"""The cells of a sweep: every combination of its axes, and the address of every sample."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ...guidance.errors import GuidestackError, InputError, cut, shown
from ...guidance.notation.plugins import files_of
from ...guidance.notation.presets import as_stack, read
from ...guidance.objective import OBJECTIVE, name_of
from ...guidance.reading import read_bytes
from ...guidance.rule import Stack, models_of, objectives_of
from ...pipelines.models.particles import images_together
from .. import values
from ..paths import MAX_BYTES
from .prompts import stable_bytes
from .sweep import FIELDS, HOLE, MOST_SAMPLES, STACK, Sweep

KEY = ("stack", "sampler", "steps", "size", "dtype")
"""The fields of a cell that tell it from any other of one model."""


@dataclass(frozen=True)
class Cell:
    """One combination of the settings of a sweep: everything of a sample but its prompt, negatives and seed.

    Args:
        stack: the stack's canonical text.
        sampler: short name of the sampler.
        steps: steps of the sampler.
        size: height and width in pixels; None for the model's own.
        dtype: type of the network's weights.
        batch: samples in one call; no part of what a sample is.
        axes: for each axis of the sweep and for ``"stack"``, the value of this cell as written; None where the cell's
            template does not use the axis.
    """

    stack: str
    sampler: str
    steps: int
    size: values.Size | None
    dtype: str
    batch: int
    axes: tuple[tuple[str, str | None], ...]

    @cached_property
    def parsed(self) -> Stack:
        """The cell's stack as a rule."""
        return as_stack(self.stack)

    @property
    def key(self) -> tuple[Any, ...]:
        """The values that differ between any two cells of one model: those of `KEY`."""
        return tuple(getattr(self, name) for name in KEY)

    @property
    def together(self) -> int:
        """Images in one call."""
        return images_together(self.parsed, self.batch)

    @property
    def takes_several(self) -> bool:
        """Whether the stack uses several negative prompts, one by one."""
        return self.parsed.takes_several

    @property
    def identity(self) -> dict[str, Any]:
        """What the hash of the cell is made of; files that rules are from, or read, by a hash of their contents."""
        fits = [one for part in self.parsed.parts() for one in part.files().items()]
        found: dict[str, Any] = dict(zip(KEY, self.key, strict=True))
        own = [file.digest for file in files_of(self.parsed)]
        if fits:
            found["fits"] = [
                hashlib.sha256(read_bytes(file.path, name, MAX_BYTES)).hexdigest()[:16] for name, file in fits
            ]
        return found | ({"rules": sorted(own)} if own else {})

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.axes if value is not None and name != STACK)
        return f"{self.stack} ({given})" if given else self.stack


def expand(sweep: Sweep) -> tuple[Cell, ...]:
    """The cells of a sweep, in the order of its axes, the last one fastest.

    A template multiplies with the axes that it uses, with `FIELDS`, and with what these are zipped with. The cells of
    `Sweep.partners` come last.

    Raises:
        InputError: two cells are the same, a stack cannot be read, or the cells or samples are too many.
    """
    choices = [_choices(sweep, place) for place in range(len(sweep.stacks))]
    partners: list[list[dict[str, Any]]] = []
    more: Sequence[int] = ()
    if sweep.partners and sweep.partners.steps:
        partners, more = choices[list(sweep.stacks).index(sweep.partners.stack)], sweep.partners.steps
    count = sum(math.prod(map(len, one)) for one in choices) + math.prod(map(len, partners)) * len(more)
    if count > values.MAX_VALUES:
        raise InputError(f"this sweep has {count} cells, and {values.MAX_VALUES} are the most; take it apart")
    samples = count * len(sweep.prompts) * sweep.seeds.count
    if samples > MOST_SAMPLES:
        raise InputError(f"this sweep has {samples} samples, and {MOST_SAMPLES} are the most; take it apart")
    cells: dict[tuple[Any, ...], Cell] = {}
    for combination in itertools.chain.from_iterable(map(_combinations, choices)):
        cell = _cell(sweep, combination)
        if cells.setdefault(cell.key, cell) != cell:
            raise InputError(
                f"two cells are the same: {_axes_text(cells[cell.key])} and {_axes_text(cell)} both mean {cell.stack}, "
                f"{cell.sampler}, {cell.steps} steps; drop one of them"
            )
    for combination, steps in itertools.product(_combinations(partners), more):
        cell = _cell(sweep, {**combination, "steps": steps})
        cells.setdefault(cell.key, cell)
    return tuple(cells.values())


def _combinations(choices: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*choices):
        yield {axis: value for group in chosen for axis, value in group.items()}


def _axes_text(cell: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in cell.axes if value is not None)


def _choices(sweep: Sweep, place: int) -> list[list[dict[str, Any]]]:
    """For one template and each group of axes that it uses, what there is to choose: a value for every axis of it.

    Of axes that it does not use the first value stands for all.
    """
    listed: dict[str, Sequence[Any]] = {STACK: list(sweep.stacks), **sweep.axes}
    group_of = {axis: group for group in sweep.zipped for axis in group}
    used = _used(sweep, list(sweep.stacks)[place])
    found = []
    for group in dict.fromkeys(group_of.get(axis, (axis,)) for axis in listed):
        values_of = [dict(zip(group, one, strict=True)) for one in zip(*(listed[axis] for axis in group), strict=True)]
        found.append(values_of[place : place + 1] if STACK in group else values_of[: None if used & set(group) else 1])
    return found


def _used(sweep: Sweep, name: str) -> set[str]:
    """The axes that a template multiplies with, and itself."""
    used = {*HOLE.findall(sweep.stacks[name]), *FIELDS, STACK}
    for group in sweep.zipped:
        if used & set(group):
            used |= set(group)
    return used


def _cell(sweep: Sweep, combination: Mapping[str, Any]) -> Cell:
    name = combination[STACK]
    template = sweep.stacks[name]
    used = _used(sweep, name)
    text = HOLE.sub(lambda hole: values.value_text(combination[hole[1]]), template)
    try:
        stack = str(read(text))
    except GuidestackError as error:
        told = f"the template {shown(template)} makes {shown(text)}"
        raise type(error)(f"{told}: {cut(str(error), 500)}") from error
    fields = {field: combination.get(field, sweep.fixed.get(field)) for field in FIELDS}
    axes = [(STACK, name)]
    for axis in sweep.axes:
        value = combination[axis]
        written = (values.size_text(value) or "model") if axis == "size" else values.value_text(value)
        axes.append((axis, written if axis in used else None))
    return Cell(stack=stack, axes=tuple(axes), **fields)


def baseline_of(sweep: Sweep, cells: Sequence[Cell]) -> Cell | None:
    """The cell that a sweep names as its baseline; None if it names none.

    Raises:
        InputError: no cell, or several.
    """
    if sweep.baseline is None:
        return None
    if isinstance(sweep.baseline, str):
        wanted = str(read(sweep.baseline))
        found = [cell for cell in cells if cell.stack == wanted]
    else:
        given = sweep.baseline.items()
        found = [cell for cell in cells if all(dict(cell.axes).get(name) == value for name, value in given)]
    if len(found) != 1:
        what = f"{len(found)} cells, such as {found[0]} and {found[1]}" if found else "no cell"
        raise InputError(f"baseline {shown(sweep.baseline)} means {what}; name the values of one cell")
    return found[0]


def _short(identity: Mapping[str, str]) -> str:
    return identity.get("fingerprint") or identity["name"]


class Addresses:
    """The addresses of the samples of one model.

    An address is a hash of the model, the cell, the prompt with its negatives, and the seed; it says what a sample is,
    and nothing about the run that makes it.

    Args:
        model: fingerprint of the model, or its name where it has none.
        networks: the same of further networks, by name, and of the pictures of objectives, by `OBJECTIVE` and their
            name; a cell's address has those that its stack asks.
    """

    def __init__(self, model: str, networks: Mapping[str, str] | None = None) -> None:
        self.model, self.networks = model, dict(networks or {})

    @classmethod
    def of_model(
        cls,
        identity: Mapping[str, str],
        networks: Mapping[str, Mapping[str, str]] | None = None,
        pictures: Mapping[str, str] | None = None,
    ) -> Self:
        """The addresses of the model of such an identity, with such further networks and pictures of objectives."""
        short = {name: _short(one) for name, one in (networks or {}).items()}
        return cls(_short(identity), {**short, **(pictures or {})})

    def networks_of(self, cell: Cell) -> dict[str, str]:
        """The fingerprints of what the stack of a cell asks beside the model, by name."""
        asked = {*models_of(cell.parsed), *(OBJECTIVE + name_of(text) for text in objectives_of(cell.parsed))}
        return {name: one for name, one in self.networks.items() if name in asked}

    def cell(self, cell: Cell) -> str:
        """The short hash of a cell: 12 hexadecimal digits."""
        return hashlib.blake2b(self._bytes_of(cell), digest_size=6).hexdigest()

    def _bytes_of(self, cell: Cell) -> bytes:
        networks = self.networks_of(cell)
        return stable_bytes({"model": self.model, **cell.identity, **({"networks": networks} if networks else {})})

    def of_cell(self, cell: Cell) -> Callable[[bytes, int], str]:
        """A function from a prompt, as `written_prompt` gives it, and a seed to the address: 32 hexadecimal digits."""
        begun = hashlib.blake2b(self._bytes_of(cell), digest_size=16)

        def address(prompt: bytes, seed: int) -> str:
            digest = begun.copy()
            digest.update(b"\n%s\n%d" % (prompt, seed))
            return digest.hexdigest()

        return address
