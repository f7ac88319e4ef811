r"""Reflected diffusion (Lou & Ermon 2023): data in the cube [0, 1]^d, and a process that stays in it by reflection.

Noise is added as in a variance exploding process, and what leaves the cube is folded back into it:
:math:`x_t = \mathrm{fold}(x_0 + \sigma\epsilon)`, which ends uniform. The score of that process is not that of
a process without walls, and a network must be trained on it: samples of a standard checkpoint have no bounds, and are
not to be folded. For those there is `Threshold`, which works on the clean sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError, shown
from ..guidance.fields import is_number
from ..guidance.keyed import Keys, keyed, normal
from ..guidance.network import CallableNetwork, Denoiser
from ..guidance.notation.presets import as_stack
from ..guidance.prediction import EPSILON, Level
from ..guidance.rule import Rule
from ..guidance.run import GuidedRun
from ..guidance.step import Run
from .conditions import Conditions
from .loop import Sampled, finished
from .noise import check_seeds

TERMS, IMAGES, SWITCH = 20, 10, 0.01
"""Of the cosine series, of the sum over reflections, and the sigma^2 / 2 above which it is the series."""


def fold(x: Tensor) -> Tensor:
    """X reflected at 0 and 1 until it lies between: a triangle wave of period 2.

    >>> import torch
    >>> fold(torch.tensor([0.25, 1.25, -0.5, 2.5]))
    tensor([0.2500, 0.7500, 0.5000, 0.5000])
    """
    within = x.remainder(2)
    return torch.where(within > 1, 2 - within, within)


def kernel(x: Tensor, x0: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    r"""The density of :math:`\mathrm{fold}(x_0 + \sigma\epsilon)` at x, number by number, and its derivative by x.

    For large sigma :math:`1 + 2\sum_k e^{-k^2\pi^2\sigma^2/2} \cos k\pi x \cos k\pi x_0`, for small ones the sum of the
    Gaussians around :math:`\pm x_0 + 2n`.

    Args:
        x: in [0, 1].
        x0: likewise, of a shape that fits.
        sigma: above 0.
    """
    density = slope = torch.zeros_like(x * x0)
    if sigma * sigma / 2 > SWITCH:
        density = density + 1
        for k in range(1, TERMS + 1):
            size = 2 * math.exp(-((k * math.pi * sigma) ** 2) / 2) * (k * math.pi * x0).cos()
            density = density + size * (k * math.pi * x).cos()
            slope = slope - size * k * math.pi * (k * math.pi * x).sin()
        return density, slope
    for n, side in itertools.product(range(-IMAGES // 2, IMAGES // 2 + 1), (1, -1)):
        away = x - side * x0 - 2 * n
        one = (-(away**2) / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
        density, slope = density + one, slope - away / sigma**2 * one
    return density, slope


@torch.no_grad()
def reflected(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    sigmas: Sequence[float],
    *,
    conditions: Mapping[str, Any],
    shape: Sequence[int],
    seeds: Sequence[int],
    stochastic: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Sampled:
    r"""Sample a reflected diffusion model under a stack.

    From uniform numbers, from each noise level :math:`\sigma` to the next one :math:`\sigma'`, with s the score and z
    fresh noise,

    .. math:: x \leftarrow \mathrm{fold}\big(x + (\sigma^2 - \sigma'^2)\, s(x) + \sqrt{\sigma^2 - \sigma'^2}\, z\big)

    or half of that drift without noise, the probability flow.

    Args:
        model: ``model(x, level, conditions)`` returning minus sigma times the score of the reflected process, as a
            network of noise does; or several by name. ``level`` is variance exploding.
        stack: as in `sample`. Rules are exact that combine predictions with weights that sum to one, such as CFG: their
            score is the guided one. What others read as the clean sample is :math:`x + \sigma^2 s`, which may lie
            outside of the cube. No moves.
        sigmas: the noise levels, falling, the last one above 0; the authors go from 5 to 0.01.
        conditions: as in `sample`.
        shape: shape of one sample.
        seeds: one for each sample.
        stochastic: draw fresh noise in each step.
        dtype: type of x.
        device: where to sample.

    Returns:
        Samples in [0, 1] at the last level, and the report.

    Raises:
        InputError: `sigmas` are no falling numbers above 0, no seeds, or no ``"positive"`` condition.
        NonFiniteError: NaN or Inf in a sample.

    Cost: what the stack asks for, once for each level but the last.

    References:
        Lou & Ermon, "Reflected Diffusion Models", arXiv:2304.04740. Their guidance of weight w is ``cfg(1 + w)`` here.
    """
    levels = list(sigmas)
    good = len(levels) > 1 and all(is_number(one) and one > 0 for one in levels)
    if not good or any(before <= after for before, after in itertools.pairwise(levels)):
        raise InputError(f"sigmas are two or more falling numbers above 0; got {shown(sigmas)}")
    check_seeds(seeds)
    models = model if isinstance(model, Mapping) else {"main": model}
    told, seeds = Conditions.of(conditions), tuple(seeds)
    counts = told.count("negative", len(seeds)), told.count("positive", len(seeds))
    path = tuple(map(Level.ve, levels))
    size = (len(seeds), *shape)
    about = Run(size, dtype, torch.device(device), len(path) - 1, seeds, *counts, emits=EPSILON, levels=path)
    run = GuidedRun(as_stack(stack), about)
    uniform = [torch.rand(tuple(shape), generator=keyed(seed, "reflected"), dtype=torch.float32) for seed in seeds]
    x = torch.stack(uniform).to(device, dtype)
    for index, (level, after) in enumerate(itertools.pairwise(path)):
        keys = Keys(seeds, index)
        network = CallableNetwork(models, x, level, told.rows, EPSILON, told.aliases, keys)
        estimate = run.estimate(network, x, index, level, 0, None, after, path[index - 1] if index else None)
        dropped = level.sigma**2 - after.sigma**2
        score = -estimate.prediction.noise.to(x.dtype) / level.sigma
        if not stochastic:
            x = fold(x + dropped / 2 * score)
            continue
        fresh = normal(keys.generators(range(len(x)), "reflected"), shape, x.device).to(x.dtype)
        x = fold(x + dropped * score + math.sqrt(dropped) * fresh)
    return finished(run, x)
