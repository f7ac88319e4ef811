"""Which samples are made together. A function of the sweep alone, and not of where a run was stopped.

A batch holds samples of one cell; the last one of a cell may be smaller than the others.

The last bit of a matrix product depends on its shapes, and which rows a call of the network has depends on every sample
of its batch. So a batch that is missing a sample is made again whole, and only what is missing is kept: the records and
images of a run that was stopped are those of one that was not.

A sweep grows: values are added to its axes. What was there before keeps its batches, and what is new gets batches of
its own, so that nothing is made twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..spec.cells import Addresses, Cell
from ..spec.prompts import Prompt, written_prompt

Pairs = Sequence[tuple[int, int]]
"""Places of prompts, each with a seed."""


@dataclass(frozen=True)
class Sample:
    """One image to make.

    Args:
        prompt: its prompt.
        place: of the prompt in the sweep.
        seed: of its noise.
        address: its address.
    """

    prompt: Prompt
    place: int
    seed: int
    address: str


@dataclass(frozen=True)
class Batch:
    """Samples that are made in one call of the pipeline.

    Args:
        cell: their cell.
        samples: those.
    """

    cell: Cell
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """A hash of its addresses."""
        return hashlib.blake2b("".join(one.address for one in self.samples).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Block:
    """Samples of one cell that are made in batches, one after the other.

    Args:
        cell: the cell.
        pairs: what it is made for.
        prompts: of the version of the sweep that asks for it, which the pairs name by place.
        written: the same prompts, as addresses are made of them.
    """

    cell: Cell
    pairs: Pairs
    prompts: Sequence[Prompt]
    written: Sequence[bytes]


@dataclass(frozen=True)
class Place:
    """Where a batch is found again, without its samples being kept.

    Args:
        block: of the plan.
        start: of the batch in the block.
        name: of the batch.
        missing: how many of its samples are missing.
    """

    block: int
    start: int
    name: str
    missing: int


class Plan:
    """The batches of a sweep in all its versions.

    Args:
        blocks: of all versions, the oldest first.
        addresses: of the model.
    """

    def __init__(self, blocks: Sequence[Block], addresses: Addresses) -> None:
        self.blocks = sorted(blocks, key=lambda block: block.cell.dtype)  # a model is loaded once for each type
        self._addresses = [addresses.of_cell(block.cell) for block in self.blocks]

    @property
    def samples(self) -> int:
        """Samples of the sweep."""
        return sum(len(block.pairs) for block in self.blocks)

    def places(self, existing: Collection[str] = ()) -> list[Place]:
        """Every batch, by name; the addresses in `existing` are not missing."""
        found = []
        for number, block in enumerate(self.blocks):
            for start in range(0, len(block.pairs), block.cell.batch):
                batch = self._batch(number, start)
                missing = sum(one.address not in existing for one in batch.samples)
                found.append(Place(number, start, batch.name, missing))
        return sorted(found, key=lambda place: place.name)

    def batch(self, place: Place) -> Batch:
        """The batch at a place."""
        return self._batch(place.block, place.start)

    def _batch(self, number: int, start: int) -> Batch:
        block, address = self.blocks[number], self._addresses[number]
        pairs = block.pairs[start : start + block.cell.batch]
        samples = (Sample(block.prompts[at], at, seed, address(block.written[at], seed)) for at, seed in pairs)
        return Batch(block.cell, tuple(samples))


def blocks(versions: Sequence[tuple[Sequence[Cell], Sequence[Prompt], Pairs]]) -> list[Block]:
    """What each version of a sweep adds to those before it.

    Args:
        versions: cells, prompts and pairs of each, oldest first.
    """
    found: list[Block] = []
    seen_cells: set[tuple[object, ...]] = set()
    seen_pairs: set[tuple[bytes, int]] = set()
    for cells, prompts, pairs in versions:
        written = [written_prompt(prompt) for prompt in prompts]
        fresh = [pair for pair in pairs if (written[pair[0]], pair[1]) not in seen_pairs] if seen_pairs else pairs
        for cell in cells:
            wanted = _alike(fresh if cell.key in seen_cells else pairs, prompts)
            found += [Block(cell, part, prompts, written) for part in wanted]
            seen_cells.add(cell.key)
        seen_pairs |= {(written[place], seed) for place, seed in pairs}
    return found


def _alike(pairs: Pairs, prompts: Sequence[Prompt]) -> list[Pairs]:
    """The pairs without a negative prompt, and those with one.

    Where one prompt of a call has a negative, all rows count as having one: what the negative branch costs a sample
    would depend on its neighbours.
    """
    parts = [[pair for pair in pairs if bool(prompts[pair[0]].negative) == negative] for negative in (False, True)]
    return [part for part in parts if part]
