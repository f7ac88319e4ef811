r"""The worlds, and their laws in closed form.

Three classes ``a``, ``b`` and ``c`` are arms of a pinwheel. Near its centre they overlap, further out they thin out,
and a gap of low density parts the ``inner`` from the ``outer`` half of each. Of the mixture every law is known:

* the law of a condition, :math:`p(x \mid c)`, such as ``"a"``, ``"a outer"`` or ``"all"``;
* its guided law :math:`p(x \mid c)^{\gamma}\, p(x)^{1-\gamma} / Z`, such as ``"a^3"``, which classifier-free guidance
  is often said to sample.

In the world ``plane`` x has 2 dimensions. In ``space`` it has 64: the same means on a plane that lies askew, and noise
of one width in all directions. Every ratio of densities then depends on the place in that plane alone, so that the
guided laws of 64 dimensions are known as exactly as those of 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...guidance.errors import InputError, nearest, shown
from ...guidance.keyed import keyed
from ...guidance.prediction import Level
from ...guidance.testing import GaussianMixture

CLEAN = Level(1.0, 0.0)
ALL = "all"
EDGE, CELLS = 3.2, 1024  # the square, and the cells along its side, on which guided laws are summed
POWERS = (1.0, 100.0)


class Law(ABC):
    """A law of clean samples: exact draws, and the exact density."""

    @abstractmethod
    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Independent draws, shape ``(count, D)``, in float64; a function of `count` and `seed`."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """The logarithm of the density at x of shape ``(N, D)``, shape ``(N,)``."""


@dataclass(frozen=True, eq=False)
class World:
    """A mixture with names for sets of its components.

    Args:
        name: in `WORLDS`.
        mixture: the data, with means of shape ``(K, D)``.
        labels: the words that hold of each component.
        plane: two orthonormal rows, shape ``(2, D)``, whose span the means lie in.
    """

    name: str
    mixture: GaussianMixture
    labels: tuple[frozenset[str], ...]
    plane: Tensor

    @property
    def dimensions(self) -> int:
        """D."""
        return self.plane.shape[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, without their halves."""
        return ("a", "b", "c")

    def weights(self, condition: str) -> Tensor:
        """The weights of the components under a condition, shape ``(K,)``, as `GaussianMixture` takes them.

        Args:
            condition: words that all hold of a component, such as ``"a"`` or ``"a outer"``; ``"all"`` for the data.

        Raises:
            InputError: a word that the world does not have, or none of its components has all of them.
        """
        words = condition.split() if isinstance(condition, str) else []
        known = frozenset().union(*self.labels)
        for word in words:
            if word not in known | {ALL}:
                raise InputError(f"the world {self.name} has no {shown(word)}{nearest(word, sorted(known | {ALL}))}")
        chosen = [place for place, labels in enumerate(self.labels) if labels >= set(words) - {ALL}]
        if not words or not chosen:
            raise InputError(f"a condition is words such as 'a outer' that hold of a component; got {shown(condition)}")
        return self.mixture.condition(*chosen)

    def law(self, text: str) -> Law:
        """The law of a condition, or ``"CONDITION^POWER"``, its guided law; the latter takes about a second.

        Raises:
            InputError: it is neither.
        """
        condition, caret, power = text.partition("^")
        weights = self.weights(condition)
        if not caret:
            return MixtureLaw(self.mixture, weights / weights.sum())
        try:
            gamma = float(power)
        except ValueError:
            gamma = math.nan
        if not POWERS[0] <= gamma <= POWERS[1]:
            raise InputError(f"a guided law is such as 'a^3', with a power from 1 to 100; got {shown(text)}")
        return GuidedLaw(self.mixture, self.plane, weights / weights.sum(), gamma)

    def posterior(self, x: Tensor, condition: str) -> Tensor:
        """The probability of a condition given clean samples x, shape ``(N,)``."""
        chosen = self.weights(condition) > 0
        joint = self.mixture.log_joint(x, CLEAN, self.mixture.weights.expand(len(x), -1))
        return joint.softmax(1)[:, chosen].sum(1)


@dataclass(frozen=True, eq=False)
class MixtureLaw(Law):
    """A mixture of components of the world.

    Args:
        mixture: the world's.
        weights: of the components, shape ``(K,)``, sum 1.
    """

    mixture: GaussianMixture
    weights: Tensor

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """A component by its weight, then a point of it."""
        generator = keyed(seed, "law", count)
        means = self.mixture.means
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn((count, means.shape[1]), generator=generator, dtype=torch.float64)
        return means[component] + self.mixture.stds[component].unsqueeze(1) * noise

    def log_density(self, x: Tensor) -> Tensor:
        """As `GaussianMixture.log_density`."""
        return self.mixture.log_density(x, CLEAN, self.weights.expand(len(x), -1))

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x, shape ``(N, K)``; over draws its mean is `weights`."""
        return self.mixture.log_joint(x, CLEAN, self.weights.expand(len(x), -1)).softmax(1)


@dataclass(frozen=True, eq=False)
class GuidedLaw(Law):
    r"""The law :math:`p(x \mid c)^{\gamma}\, p(x)^{1-\gamma} / Z`.

    In the plane of the means it is summed over a square of cells, with the density of a cell's middle in all of it;
    across the plane it is the Gaussian of the components, whatever :math:`\gamma`.

    Args:
        mixture: the world's.
        plane: as in `World`.
        weights: of the condition, shape ``(K,)``, sum 1.
        power: :math:`\gamma` from 1 on.
        cells: along a side of the square.

    Raises:
        InputError: there are more than two dimensions and the components differ in width: then the law depends on more.
    """

    mixture: GaussianMixture
    plane: Tensor
    weights: Tensor
    power: float
    cells: int = CELLS

    def __post_init__(self) -> None:
        if self.plane.shape[1] > 2 and len(set(self.mixture.stds.tolist())) > 1:
            raise InputError("guided laws of more than two dimensions need components of one width")

    @cached_property
    def flat(self) -> GaussianMixture:
        """The mixture as seen in the plane."""
        return GaussianMixture(self.mixture.means @ self.plane.T, self.mixture.stds, self.mixture.weights)

    def _log_unscaled(self, place: Tensor) -> Tensor:
        both = (self.weights, self.mixture.weights)
        of_class, of_data = (self.flat.log_density(place, CLEAN, one.expand(len(place), -1)) for one in both)
        return self.power * of_class + (1 - self.power) * of_data

    @cached_property
    def _cells(self) -> tuple[Tensor, float]:
        """The probability of each cell, and log Z."""
        side = 2 * EDGE / self.cells
        middle = -EDGE + side * (torch.arange(self.cells, dtype=torch.float64) + 0.5)
        rows = [self._log_unscaled(torch.stack([one.expand(self.cells), middle], 1)) for one in middle]
        logs = torch.cat(rows)
        total = float(logs.logsumexp(0))
        return (logs - total).exp(), total + 2 * math.log(side)

    @property
    def log_scale(self) -> float:
        """The logarithm of Z."""
        return self._cells[1]

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """A cell by its probability, a point of the cell, and the Gaussian across the plane."""
        generator, side = keyed(seed, "law", count), 2 * EDGE / self.cells
        uniform = torch.rand((count, 3), generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(self._cells[0].cumsum(0), uniform[:, 0].contiguous()).clamp_(max=self.cells**2 - 1)
        corner = torch.stack([cell // self.cells, cell % self.cells], 1)
        place = -EDGE + side * (corner + uniform[:, 1:])
        across = self.mixture.stds[0] * torch.randn(
            (count, self.plane.shape[1]), generator=generator, dtype=torch.float64
        )
        return place @ self.plane + across - (across @ self.plane.T) @ self.plane

    def log_density(self, x: Tensor) -> Tensor:
        """The log density of samples, shape ``(B, D)``: of their place in the plane plus of what lies across it."""
        place = x @ self.plane.T
        across = ((x**2).sum(1) - (place**2).sum(1)) / self.mixture.stds[0] ** 2
        beside = self.plane.shape[1] - 2
        return (
            self._log_unscaled(place)
            - self.log_scale
            - 0.5 * (across + beside * math.log(2 * math.pi * float(self.mixture.stds[0]) ** 2))
        )


# Places, widths and weights of the components of three arms, from the centre outwards.
RADII = (0.25, 0.5, 0.75, 1.0, 1.5, 1.75, 2.0, 2.25)
WIDTHS = (0.22, 0.2, 0.18, 0.15, 0.13, 0.11, 0.1, 0.09)
SHARES = (0.2, 0.17, 0.14, 0.11, 0.13, 0.1, 0.08, 0.07)
TURN = 40.0  # degrees an arm winds for each unit of its radius


def _pinwheel(name: str, plane: Tensor, widths: Sequence[float]) -> World:
    """A world of three arms in a plane."""
    angles = [math.radians(90 + 120 * arm + TURN * radius) for arm in range(3) for radius in RADII]
    angle, radii, shares, stds = (
        torch.tensor(one, dtype=torch.float64) for one in (angles, RADII * 3, SHARES * 3, [*widths] * 3)
    )
    means = torch.stack([radii * angle.cos(), radii * angle.sin()], 1)
    labels = [frozenset({arm, half}) for arm in "abc" for half in ("inner", "outer") for _ in range(len(RADII) // 2)]
    return World(name, GaussianMixture(means @ plane, stds, shares / shares.sum()), tuple(labels), plane)


def _askew(dimensions: int) -> Tensor:
    """Two orthonormal rows: a cosine and a sine of five periods."""
    angle = 2 * math.pi * 5 * (torch.arange(dimensions, dtype=torch.float64) + 0.5) / dimensions
    return torch.stack([angle.cos(), angle.sin()]) * math.sqrt(2 / dimensions)


WORLDS: dict[str, World] = {
    "plane": _pinwheel("plane", torch.eye(2, dtype=torch.float64), WIDTHS),
    "space": _pinwheel("space", _askew(64), (0.15,) * 8),
}
"""``plane``: 2 dimensions, components of different widths. ``space``: 64 dimensions, components of one width."""
