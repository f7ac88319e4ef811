"""Which samples are made together. A function of the sweep alone, and not of where a run was stopped.

A batch holds samples of one cell; the last one of a cell may be smaller than the others.

The last bit of a matrix product depends on its shapes, and which rows a call of the network has depends on every sample
of its batch. So a batch that is missing a sample is made again whole, and only what is missing is kept: the records and
images of a run that was stopped are those of one that was not.

A sweep grows: values are added to its axes. What was there before keeps its batches, and what is new gets batches of
its own, so that nothing is made twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..spec.cells import Addresses, Cell
from ..spec.prompts import Prompt, written_prompt
from ..store.shards import digest

Pairs = Sequence[tuple[int, int]]
"""Places of prompts, each with a seed."""
Version = tuple[Sequence[Cell], Sequence[Prompt], Pairs]


@dataclass(frozen=True)
class Sample:
    """One image to make.

    Args:
        prompt: what the image is made of.
        place: index of the prompt in the sweep.
        seed: of the image's noise.
        address: of the sample, as `Addresses` gives it.
    """

    prompt: Prompt
    place: int
    seed: int
    address: str


@dataclass(frozen=True)
class Batch:
    """Samples that are made in one call of the pipeline.

    Args:
        cell: the settings that the samples share.
        samples: the images to make, at most as many as the cell's `together`.
    """

    cell: Cell
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """The name of the batch: a hash of the addresses of its samples."""
        return digest([one.address for one in self.samples])


@dataclass(frozen=True)
class Block:
    """Samples of one cell that are made in batches, one after the other.

    Args:
        cell: the settings that the samples share.
        pairs: the place of its prompt and the seed, for each sample.
        prompts: of the version of the sweep that asks for the samples; the pairs name them by place.
        address: a function from a place and a seed to the sample's address.
    """

    cell: Cell
    pairs: Pairs
    prompts: Sequence[Prompt]
    address: Callable[[int, int], str]

    def batch(self, start: int) -> Batch:
        """The batch that begins at a pair."""
        pairs = self.pairs[start : start + self.cell.together]
        return Batch(self.cell, tuple(Sample(self.prompts[at], at, seed, self.address(at, seed)) for at, seed in pairs))


class Place(NamedTuple):
    """Where a batch is found again, without its samples being kept: its block, its start in that, and its name.

    `missing` is how many of its samples are missing.
    """

    block: int
    start: int
    name: str
    missing: int


class Plan:
    """The batches of a sweep in all its versions.

    Args:
        versions: cells, prompts and pairs of each version of the sweep, the oldest first. What was planned by one is
            planned by no later one.
        addresses: of the model.
    """

    def __init__(self, versions: Iterable[Version], addresses: Addresses) -> None:
        blocks: list[Block] = []
        seen_cells: set[tuple[object, ...]] = set()
        seen_pairs: set[tuple[bytes, int]] = set()
        for cells, prompts, pairs in versions:
            written = [written_prompt(prompt) for prompt in prompts]
            keys = [(written[place], seed) for place, seed in pairs]
            fresh = [pair for pair, key in zip(pairs, keys, strict=True) if key not in seen_pairs]
            for cell in cells:
                address = functools.partial(_address, addresses.of_cell(cell), written)
                wanted = fresh if cell.key in seen_cells else pairs
                blocks += [Block(cell, part, prompts, address) for part in _by_negative(wanted, prompts)]
                seen_cells.add(cell.key)
            seen_pairs.update(keys)
        self.blocks = sorted(blocks, key=lambda block: block.cell.dtype)  # a model is loaded once for each type

    @property
    def samples(self) -> int:
        """How many samples the sweep has."""
        return sum(len(block.pairs) for block in self.blocks)

    def places(self, existing: Collection[str] = ()) -> list[Place]:
        """Every batch, by name; the addresses in `existing` are not missing."""
        found = []
        for number, block in enumerate(self.blocks):
            for start in range(0, len(block.pairs), block.cell.together):
                batch = block.batch(start)
                missing = sum(one.address not in existing for one in batch.samples)
                found.append(Place(number, start, batch.name, missing))
        return sorted(found, key=lambda place: place.name)

    def batch(self, place: Place) -> Batch:
        """The batch at a place."""
        return self.blocks[place.block].batch(place.start)


def _address(of_cell: Callable[[bytes, int], str], written: Sequence[bytes], place: int, seed: int) -> str:
    return of_cell(written[place], seed)


def _by_negative(pairs: Pairs, prompts: Sequence[Prompt]) -> list[Pairs]:
    """The pairs without a negative prompt, and those with one.

    Where one prompt of a call has a negative, all rows count as having one: what the negative branch costs a sample
    would depend on its neighbours.
    """
    parts = [[pair for pair in pairs if bool(prompts[pair[0]].negative) == negative] for negative in (False, True)]
    return [part for part in parts if part]
