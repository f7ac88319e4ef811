"""Which samples are made together. A function of the sweep alone, and not of where a run was stopped.

The last bit of a matrix product depends on its shapes, and which rows a call of the network has depends on every sample
of its batch. So a batch that is missing a sample is made again whole, and only what is missing is kept: the records and
images of a run that was stopped are those of one that was not.

A sweep grows: values are added to its axes. What was there before keeps its batches, and what is new gets batches of
its own, so that nothing is made twice. The versions of a sweep that a run folder has seen are its *generations*.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..spec.cells import Addresses, Cell
from ..spec.prompts import Prompt, written_prompt

Pairs = list[tuple[int, int]]
"""Places of prompts, each with a seed."""


@dataclass(frozen=True)
class Sample:
    """One image to make.

    Args:
        cell: its cell.
        prompt: place of its prompt.
        seed: of its noise.
        address: its address.
    """

    cell: Cell
    prompt: int
    seed: int
    address: str


@dataclass(frozen=True)
class Batch:
    """Samples that are made in one call of the pipeline.

    Args:
        samples: those, samples of one stack beside one another.
    """

    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """A hash of its addresses."""
        return hashlib.blake2b("".join(one.address for one in self.samples).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Block:
    """A cell with the pairs of prompt and seed that it is made for."""

    cell: Cell
    pairs: Pairs


@dataclass(frozen=True)
class Generation:
    """What one version of a sweep asks for, and no version before it did.

    Args:
        prompts: of that version.
        blocks: what is new in it, in the order of its cells.
    """

    prompts: Sequence[Prompt]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Place:
    """Where a batch is found again, without its samples being kept.

    Args:
        generation: of the plan.
        group: of the generation.
        start: of the batch in the group.
        name: of the batch.
        missing: how many of its samples are missing.
    """

    generation: int
    group: int
    start: int
    name: str
    missing: int


class Plan:
    """The batches of a sweep in all its versions.

    Args:
        generations: oldest first.
        addresses: of the model.
    """

    def __init__(self, generations: Sequence[Generation], addresses: Addresses) -> None:
        self.generations, self.addresses = generations, addresses
        self._groups = [_groups(generation) for generation in generations]
        self._prompts = [[written_prompt(prompt) for prompt in one.prompts] for one in generations]
        self._functions: dict[tuple[Any, ...], Callable[[bytes, int], str]] = {}

    @property
    def samples(self) -> int:
        """Samples of the sweep."""
        return sum(len(block.pairs) for one in self.generations for block in one.blocks)

    def places(self, existing: Collection[str] = ()) -> list[Place]:
        """Every batch, by name; the addresses in `existing` are not missing."""
        found = []
        for generation, groups in enumerate(self._groups):
            for number, group in enumerate(groups):
                for start in range(0, group.size, group.batch):
                    batch = self._batch(generation, number, start)
                    missing = sum(one.address not in existing for one in batch.samples)
                    found.append(Place(generation, number, start, batch.name, missing))
        return sorted(found, key=lambda place: place.name)

    def batch(self, place: Place) -> Batch:
        """The batch at a place."""
        return self._batch(place.generation, place.group, place.start)

    def prompt(self, place: Place, sample: Sample) -> Prompt:
        """The prompt of a sample of the batch at a place."""
        return self.generations[place.generation].prompts[sample.prompt]

    def _batch(self, generation: int, number: int, start: int) -> Batch:
        group, prompts = self._groups[generation][number], self._prompts[generation]
        samples = []
        for block, pair in group.slice(start):
            prompt, seed = pair
            address = self._function(block.cell)(prompts[prompt], seed)
            samples.append(Sample(block.cell, prompt, seed, address))
        return Batch(tuple(samples))

    def _function(self, cell: Cell) -> Callable[[bytes, int], str]:
        key = (id(cell),)  # a cell lives as long as its plan
        if key not in self._functions:
            self._functions[key] = self.addresses.of_cell(cell)
        return self._functions[key]


@dataclass(frozen=True)
class Group:
    """Blocks whose samples may share batches.

    Args:
        batch: samples of a batch.
        blocks: those, one after the other.
    """

    batch: int
    blocks: tuple[Block, ...]

    @cached_property
    def starts(self) -> list[int]:
        """Where each block begins, and the end of the last."""
        return list(itertools.accumulate((len(block.pairs) for block in self.blocks), initial=0))

    @property
    def size(self) -> int:
        """Samples of the group."""
        return self.starts[-1]

    def slice(self, start: int) -> Iterator[tuple[Block, tuple[int, int]]]:
        """The samples of the batch that begins at `start`."""
        at, end = start, min(start + self.batch, self.size)
        number = bisect.bisect_right(self.starts, start) - 1
        while at < end:
            block, first = self.blocks[number], at - self.starts[number]
            pairs = block.pairs[first : first + end - at]
            yield from ((block, pair) for pair in pairs)
            at += len(pairs)
            number += 1


def _groups(generation: Generation) -> list[Group]:
    """Samples that one call of the pipeline can make, those of a weight type together.

    One call has one sampler, and steps all samples with a separate re-noising direction or none. Where one prompt has a
    negative, all rows count as having one: what the negative branch costs a sample would depend on its neighbours.
    """
    groups: dict[tuple[Any, ...], list[Block]] = {}
    given = [bool(prompt.negative) for prompt in generation.prompts]
    for block in generation.blocks:
        cell = block.cell
        stepped = (cell.parsed.renoises, cell.parsed.guides_history)
        same = (cell.dtype, cell.sampler, cell.steps, cell.size, cell.batch, stepped, cell.several)
        for negative in (False, True):
            pairs = [pair for pair in block.pairs if given[pair[0]] == negative] if any(given) else block.pairs
            if pairs and (any(given) or not negative):
                groups.setdefault((*same, negative), []).append(Block(cell, pairs))
    ordered = sorted(groups.items(), key=lambda item: item[0][0])  # stable: types in turn, cells as they come
    return [Group(key[4], tuple(blocks)) for key, blocks in ordered]


def generations(versions: Sequence[tuple[Sequence[Cell], Sequence[Prompt], Pairs]]) -> list[Generation]:
    """What each version of a sweep adds to those before it.

    Args:
        versions: cells, prompts and pairs of each, oldest first.
    """
    found: list[Generation] = []
    seen_cells: set[tuple[Any, ...]] = set()
    seen_pairs: set[tuple[bytes, int]] = set()
    for cells, prompts, pairs in versions:
        written = [written_prompt(prompt) for prompt in prompts]
        fresh = [pair for pair in pairs if (written[pair[0]], pair[1]) not in seen_pairs] if seen_pairs else pairs
        blocks = []
        for cell in cells:
            wanted = fresh if cell.key in seen_cells else pairs
            if wanted:
                blocks.append(Block(cell, wanted))
            seen_cells.add(cell.key)
        seen_pairs |= {(written[place], seed) for place, seed in pairs}
        found.append(Generation(prompts, blocks))
    return found
