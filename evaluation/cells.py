"""The cells of a sweep: every combination of its axes, and the address of every sample."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..guidance import linear
from ..guidance.config import as_stack
from ..guidance.errors import GuidestackError, InputError
from ..guidance.presets import read
from ..guidance.rules import LinearAG
from ..guidance.stack import Stack
from . import values
from .prompts import canonical
from .sweep import FIELDS, HOLE, STACK, Sweep

MOST = 100_000  # cells


@dataclass(frozen=True)
class Cell:
    """Everything of a sample but its prompt, negatives and seed.

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
        """The stack."""
        return as_stack(self.stack)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other cells of one model, to compare."""
        return (self.stack, self.sampler, self.steps, self.size, self.dtype)

    @property
    def several(self) -> bool:
        """Whether the stack takes each of several negatives."""
        return any(query.condition == "negative:each" for query in self.parsed.asks())

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other cells of one model; fitted coefficients by their contents."""
        fits = [part.coefficients for part in self.parsed.parts() if isinstance(part, LinearAG)]
        found: dict[str, Any] = {
            "stack": self.stack,
            "sampler": self.sampler,
            "steps": self.steps,
            "size": list(self.size) if self.size else None,
            "dtype": self.dtype,
        }
        return found | ({"fits": [_contents(one) for one in fits]} if fits else {})

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.axes if value is not None and name != STACK)
        return f"{self.stack}" + f" ({given})" * bool(given)


def _contents(coefficients: str) -> str:
    try:
        return hashlib.sha256(linear.locate(coefficients).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"cannot read the coefficients {coefficients!r}: {error.strerror}") from None


def expand(sweep: Sweep) -> tuple[Cell, ...]:
    """The cells of a sweep, in the order of its axes, the last one fastest.

    A template multiplies with the axes that it uses, with `FIELDS`, and with what these are zipped with.

    Raises:
        InputError: two cells are the same, a stack cannot be read, or the cells are too many.
    """
    cells: dict[tuple[Any, ...], Cell] = {}
    for combination in _combinations(sweep):
        cell = _cell(sweep, combination)
        if cells.setdefault(cell.key, cell) != cell:
            raise InputError(
                f"two cells are the same: {_given(cells[cell.key])} and {_given(cell)} both mean {cell.stack}, "
                f"{cell.sampler}, {cell.steps} steps; drop one of them"
            )
        if len(cells) > MOST:
            raise InputError(f"this sweep has more than {MOST} cells; take it apart")
    return tuple(cells.values())


def _given(cell: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in cell.axes if value is not None)


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """A value for each axis, and the name of a template; zipped ones together."""
    listed: dict[str, Sequence[Any]] = {STACK: list(sweep.stacks), **sweep.axes}
    group_of = {axis: group for group in sweep.zipped for axis in group}
    groups = list(dict.fromkeys(group_of.get(axis, (axis,)) for axis in listed))
    for values_of in itertools.product(
        *(list(zip(*(listed[axis] for axis in group), strict=True)) for group in groups)
    ):
        yield {
            axis: value
            for group, chosen in zip(groups, values_of, strict=True)
            for axis, value in zip(group, chosen, strict=True)
        }


def _cell(sweep: Sweep, combination: Mapping[str, Any]) -> Cell:
    name = combination[STACK]
    template = sweep.stacks[name]
    used = {*HOLE.findall(template), *FIELDS, STACK}
    for group in sweep.zipped:
        if used & set(group):
            used |= set(group)
    text = HOLE.sub(lambda hole: values.value_text(combination[hole[1]]), template)
    try:
        stack = str(read(text))
    except GuidestackError as error:
        raise type(error)(f"the template {template!r} makes {text!r}: {error}") from None
    fields = {field: combination.get(field, sweep.fixed.get(field)) for field in FIELDS}
    axes = [(STACK, name)]
    for axis in sweep.axes:
        value = combination[axis]
        shown = (values.size_text(value) or "model") if axis == "size" else values.value_text(value)
        axes.append((axis, shown if axis in used else None))
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
        raise InputError(f"baseline {values.shown(sweep.baseline)} means {what}; name the values of one cell")
    return found[0]


class Addresses:
    """The addresses of the samples of one model.

    An address is a hash of the model, the cell, the prompt with its negatives, and the seed; it says what a sample is,
    and nothing about the run that makes it.

    Args:
        model: fingerprint of the model, or its name where it has none.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def cell(self, cell: Cell) -> str:
        """A short hash of a cell."""
        return hashlib.blake2b(self._written(cell), digest_size=6).hexdigest()

    def _written(self, cell: Cell) -> bytes:
        return canonical({"model": self.model, **cell.identity})

    def of_cell(self, cell: Cell) -> Callable[[bytes, int], str]:
        """A function from a prompt, as `written_prompt` gives it, and a seed to the address: 32 hexadecimal digits."""
        begun = hashlib.blake2b(self._written(cell), digest_size=16)

        def address(prompt: bytes, seed: int) -> str:
            digest = begun.copy()
            digest.update(b"\n%s\n%d" % (prompt, seed))
            return digest.hexdigest()

        return address
