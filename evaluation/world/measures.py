"""What is measured of samples of a world, and how well it is known.

Samples are taken apart into batches, each of which has a value; the interval of their mean is Student's. Cells of the
same seeds are compared batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...guidance.errors import InputError, nearest, shown
from ...guidance.keyed import keyed
from ..statistics import Values, student
from .draws import BATCH, Drawn
from .worlds import ALL, Law, MixtureLaw, World

DIRECTIONS, REFERENCE, REFERENCE_SEED, RARE, NEIGHBOURS = 48, 100_000, 1 << 40, 0.01, 4
FEWEST = 4  # batches


@dataclass(frozen=True, eq=False)
class Against:
    """What samples are compared with.

    Args:
        world: where they live.
        law: the law they should have.
        condition: the condition they were drawn under.
        baseline: samples of the same seeds under another stack, for ``away``.
    """

    world: World
    law: Law
    condition: str
    baseline: Tensor | None = None

    @cached_property
    def reference(self) -> Tensor:
        """Exact draws of the law."""
        return self.law.draw(REFERENCE, REFERENCE_SEED)

    @cached_property
    def directions(self) -> Tensor:
        """Unit vectors, shape ``(D, 48)``: evenly spread in two dimensions, at random in more; always the same."""
        if self.world.dimensions == 2:
            angle = math.pi * torch.arange(DIRECTIONS, dtype=torch.float64) / DIRECTIONS
            return torch.stack([angle.cos(), angle.sin()])
        shape = (self.world.dimensions, DIRECTIONS)
        drawn = torch.randn(shape, generator=keyed(0, "directions"), dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=0)

    @cached_property
    def slices(self) -> Tensor:
        """The reference along each direction, sorted, shape ``(48, 100000)``."""
        return (self.reference @ self.directions).T.contiguous().sort(1).values

    @cached_property
    def unit(self) -> float:
        """Mean length of a unit vector's shadow on a direction: of sliced distances, so that they are lengths."""
        half = self.world.dimensions / 2
        return math.exp(math.lgamma(half) - math.lgamma(half + 0.5)) / math.sqrt(math.pi)

    @cached_property
    def size(self) -> tuple[float, float]:
        """Of the law: the mean norm, and the root mean square distance from the mean."""
        return float(self.reference.norm(dim=1).mean()), math.sqrt(float(self.reference.var(0).sum()))

    @cached_property
    def rare(self) -> float:
        """The log density of the data below which one sample of the data in a hundred lies."""
        data = self.world.law(ALL)
        return float(data.log_density(data.draw(REFERENCE, REFERENCE_SEED)).quantile(RARE))


def distance(x: Tensor, to: Against) -> float:
    """Sliced Wasserstein distance to the law: how far mass lies from where it should, in the data's units."""
    slices, count = (x @ to.directions).T.sort(1).values, len(x)
    wanted = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * to.slices.shape[1]).long()
    return float((slices - to.slices[:, wanted]).abs().mean()) / to.unit


def energy(x: Tensor, to: Against) -> float:
    """Sliced energy distance to the law, which is 0 on average for exact draws, however many."""
    slices, count = (x @ to.directions).T.contiguous().sort(1).values, len(x)
    total = to.slices.shape[1]
    # sum over pairs |x - x'| of sorted numbers, and |x - y| from how many y lie below x and what they sum to
    ranks = 2 * torch.arange(count, dtype=torch.float64) - count + 1
    within = 2 * (slices @ ranks) / (count * (count - 1))
    ranks = 2 * torch.arange(total, dtype=torch.float64) - total + 1
    among = 2 * (to.slices @ ranks) / (total * (total - 1))
    below = torch.searchsorted(to.slices, slices)
    sums = torch.cat([torch.zeros(len(to.slices), 1, dtype=torch.float64), to.slices.cumsum(1)], 1)
    between = (slices * (2 * below - total) + sums[:, -1:] - 2 * sums.gather(1, below)).mean(1) / total
    return float((2 * between - within - among).mean()) / to.unit


def coverage(x: Tensor, to: Against) -> float:
    """Share of the law's components that the samples fill, each at most by its weight; 1 if every one has its own."""
    if not isinstance(to.law, MixtureLaw):
        raise InputError("coverage is of the components of a condition; guided laws have none")
    return float(torch.minimum(to.law.responsibilities(x).mean(0), to.law.weights).sum())


def off(x: Tensor, to: Against) -> float:
    """Share of the samples where the data are rarer than at 99% of their own; 0.01 for the data themselves."""
    return float((to.world.law(ALL).log_density(x) < to.rare).double().mean())


def likelihood(x: Tensor, to: Against) -> float:
    """Mean log density of the law at the samples, in nats."""
    return float(to.law.log_density(x).mean())


def divergence(x: Tensor, to: Against) -> float:
    """Kullback-Leibler divergence of the samples from the law, in nats, by nearest neighbours; in 2 dimensions."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    if to.world.dimensions > 2:
        raise InputError("divergence is measured in two dimensions only; take distance")
    points = x.numpy()
    reach = cKDTree(points).query(points, NEIGHBOURS + 1)[0][:, -1]
    entropy = digamma(len(points)) - digamma(NEIGHBOURS) + math.log(math.pi) + 2 * np.log(reach + 1e-300).mean()
    return float(-entropy) - likelihood(x, to)


def agreement(x: Tensor, to: Against) -> float:
    """Mean probability of the condition given the samples: how well it is followed."""
    return float(to.world.posterior(x, to.condition).mean())


def norm(x: Tensor, to: Against) -> float:
    """Mean norm of the samples over that of the law: above 1 is what saturation is in pictures."""
    return float(x.norm(dim=1).mean()) / to.size[0]


def variety(x: Tensor, to: Against) -> float:
    """Root mean square distance of the samples from their mean, over that of the law."""
    return math.sqrt(float(x.var(0).sum())) / to.size[1]


MEASURES: dict[str, Callable[[Tensor, Against], float]] = {
    one.__name__: one for one in (distance, energy, coverage, off, likelihood, divergence, agreement, norm, variety)
}
"""By name: a function of the samples of a batch, shape ``(N, D)``, float64, and of what they are compared with."""
AWAY, EVALUATIONS = "away", "evaluations"
OTHERS = {
    AWAY: "Mean distance from the baseline's sample of the same seed, in the data's units.",
    EVALUATIONS: "Network evaluations of a sample.",
}
"""What is measured beside."""


class Number(NamedTuple):
    """A measure of a cell.

    Attributes:
        value: mean over the batches.
        low, high: its interval at 95%.
    """

    value: float
    low: float
    high: float


def interval(values: Values) -> Number:
    """The mean of the values of batches with Student's interval at 95%; without one for fewer than four."""
    mean = float(values.mean())
    if len(values) < FEWEST:
        return Number(mean, math.nan, math.nan)
    reach = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Number(mean, mean - reach, mean + reach)


def batched(drawn: Drawn, name: str, to: Against, batch: int = BATCH) -> Values:
    """A measure of each batch of samples.

    Raises:
        InputError: no measure has this name, or it has no value here.
    """
    starts = range(0, max(len(drawn.x) - batch, 0) + 1, batch)
    if name == EVALUATIONS:
        return np.full(len(starts), drawn.evaluations)
    if name not in (*MEASURES, AWAY):
        raise InputError(f"no measure {shown(name)}{nearest(name, [*MEASURES, *OTHERS])}")
    parts = [slice(start, start + batch) for start in starts]
    x = drawn.x.double()
    if name != AWAY:
        return np.array([MEASURES[name](x[part], to) for part in parts])
    if to.baseline is None or to.baseline.shape != x.shape:
        raise InputError("away compares with as many samples of a baseline, and there are none")
    apart = (x - to.baseline).norm(dim=1)
    return np.array([float(apart[part].mean()) for part in parts])


def measured(
    world: World,
    drawn: Drawn,
    condition: str,
    measures: Iterable[str] = ("distance", "coverage", "off", "agreement", "norm", "variety"),
    law: str | None = None,
    batch: int = BATCH,
) -> Mapping[str, Number]:
    """Measure samples against the law that they should have.

    Args:
        world: where they live.
        drawn: the samples.
        condition: that they were drawn under.
        measures: names of `MEASURES`.
        law: as `World.law` reads it; by default that of the condition.
        batch: samples of a batch; what is left over is left out.

    Raises:
        InputError: a name or a law that there is not.
    """
    to = Against(world, world.law(law or condition), condition)
    return {name: interval(batched(drawn, name, to, batch)) for name in measures}
