"""Images under a rule on particles: each is drawn from a group of samples of its own, and can be made again by itself.

The first particle of an image has the image's seed, and with it the noise that the image has under any other stack; the
seeds of the others are made of it. When the run is over, one particle is drawn by the weights that the group has since
it was last drawn anew. An image depends on its own seed alone, and costs what all its particles cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ...guidance.keyed import keyed
from ...guidance.report import Report, StepRecord
from ...guidance.rule import Rule


def images_together(stack: Rule, batch: int) -> int:
    """Images in a call of at most `batch` samples; 1 where the particles of one are more."""
    return max(1, batch // stack.per_image)


def seeds_of(seed: int, count: int) -> list[int]:
    """The seeds of the particles of an image."""
    return [seed, *(keyed(seed, "particle", place).initial_seed() for place in range(1, count))]


def drawn(report: Report, seeds: Sequence[int]) -> list[int]:
    """The particle that each image is: its place in the batch.

    Args:
        report: of a run of ``len(seeds)`` groups of particles, whose rule traces ``log_weight``.
        seeds: of the images.

    Waits for the device that holds the weights.
    """
    count = report.batch // len(seeds)
    last = next((one.traces["log_weight"] for one in reversed(report.steps) if "log_weight" in one.traces), None)
    weights = torch.zeros(report.batch) if last is None else last
    shares = weights.double().cpu().reshape(-1, count).softmax(1)
    start = torch.stack([torch.rand((), generator=keyed(seed, "drawn")) for seed in seeds])
    places = torch.searchsorted(shares.cumsum(1), start.double()[:, None], right=True).clamp_(max=count - 1)
    return [group * count + place for group, place in enumerate(places.flatten().tolist())]


def of_images(report: Report, particles: Sequence[int]) -> Report:
    """The account of the images: of the evaluations those of all their particles, of the traces the drawn one's."""
    count = report.batch // len(particles)

    def picked(record: StepRecord) -> StepRecord:
        def rows(value: Tensor) -> Tensor:
            return value[torch.tensor(particles, device=value.device)]

        return dataclasses.replace(
            record,
            queries={query: tuple(row // count for row in asked) for query, asked in record.queries.items()},
            traces={name: rows(value) for name, value in record.traces.items()},
            observed={name: rows(value) for name, value in record.observed.items()},
        )

    return Report(report.stack, len(particles), [picked(record) for record in report.steps])
