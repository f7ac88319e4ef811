"""Counts: connected components against a search by hand, and that a counter's error comes with a density's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import RuleError
from guidestack.guidance.notation.objectives import objectives
from guidestack.guidance.objectives import Blobs, Counted
from guidestack.guidance.objectives.counts import components


def by_search(mask: np.ndarray, least: int) -> int:
    """Components by walking."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        todo, size = [left.pop()], 0
        while todo:
            y, x = todo.pop()
            size += 1
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        found += size >= least
    return found


@pytest.mark.parametrize("least", [1, 3])
def test_components_are_those_of_a_walk(least: int) -> None:
    masks = torch.rand(12, 9, 14, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 12)[:, None, None]
    assert components(masks, least).tolist() == [by_search(one.numpy(), least) for one in masks]


def test_a_snake_is_one_component() -> None:
    snake = torch.ones(1, 9, 9, dtype=torch.bool)
    snake[:, 1::4, :-1] = snake[:, 3::4, 1:] = False
    assert components(snake).tolist() == [1]


def picture(*squares: tuple[int, int, int], side: int = 32) -> Tensor:
    """White, with black squares: row, column and side of each."""
    found = torch.ones(1, 3, side, side)
    for row, column, size in squares:
        found[:, :, row : row + size, column : column + size] = 0
    return found


THREE = picture((5, 5, 5), (5, 20, 4), (20, 8, 6))


@pytest.mark.parametrize(("wanted", "value"), [(0, -3.0), (1, -2.0), (3, 0.0), (5, -2.0)])
def test_the_value_is_the_counters_error_and_the_gradient_the_densitys(wanted: int, value: float) -> None:
    blobs = Blobs(wanted)
    bound = objectives().find(f"blobs({wanted})")
    found, slope = bound.gradient(0.9 * THREE + 0.05)
    assert found.tolist() == pytest.approx([value], abs=1e-5)
    density = blobs.density(x := (0.9 * THREE + 0.05).requires_grad_()).sum()
    (towards,) = torch.autograd.grad(density, x)
    scale = float(density.detach()) / 3
    sign = (wanted > 3) - (wanted < 3)
    assert torch.allclose(slope, sign * towards / scale, atol=1e-6) or wanted == 3
    assert blobs.counts(THREE).tolist() == [3]


def test_too_many_lead_to_less_and_too_few_to_more() -> None:
    for wanted, sign in ((1, -1), (6, 1)):
        # A soft edge, where the density has a slope.
        x = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(THREE, (1,) * 4, value=1.0), 3, 1)
        blobs = Blobs(wanted)
        _, slope = objectives().find(f"blobs({wanted})").gradient(x)
        moved = x + 0.02 * slope / slope.abs().max()
        assert sign * float(blobs.density(moved).sum() - blobs.density(x).sum()) > 0


def test_nothing_counted_has_a_scale_of_its_own_and_samples_are_by_themselves() -> None:
    blobs = Blobs(2)
    batch = torch.cat([picture(), THREE, picture((3, 3, 1))])  # nothing, three, and a speck
    assert blobs.counts(batch).tolist() == [0, 3, 0]
    values = blobs(batch)
    assert values[0] == -2
    assert torch.equal(values, torch.cat([blobs(one[None]) for one in batch]))


@dataclass(frozen=True)
class Bright(Counted):
    """A counter of one's own."""

    wanted: int = 2

    def density(self, x0: Tensor) -> Tensor:
        return x0.mean(1).clamp(0, 1)

    def counts(self, x0: Tensor) -> Tensor:
        return components(x0.mean(1) > 0.5)


def test_a_counter_of_ones_own_steers() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, _ = objectives({"mine": Bright()}).find("mine").gradient(x)
    assert found.tolist() == [-abs(by_search(one.mean(0).numpy() > 0.5, 1) - 2) for one in x]
    assert str(gs.parse("tfg('blobs(3)', mu=1)")) == "tfg('blobs(3)', mu=1)"


@pytest.mark.parametrize("arguments", [{"wanted": -1}, {"wanted": 1, "apart": 0}, {"wanted": 1, "least": 0}])
def test_parameters_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(RuleError, match="Blobs"):
        Blobs(**arguments)  # type: ignore[arg-type]
