r"""Processes whose mean ends at a given signal instead of at 0: restoration with any sampler and any rule.

A network for restoration is trained on

.. math:: x_t = \mu + a_t\,(x_0 - \mu) + s_t\,\epsilon

with :math:`\mu` the degraded signal (a rainy picture, a noisy recording). Then :math:`y = x - \mu` is a linear process
like any other, with the level (a, s): every sampler of :math:`y` is one of :math:`x`. The solvers of MR Sampler, in all
parameterizations, are DPM-Solver and DPM-Solver++ on y, and so they are here: `restore` hands y to a scheduler of
diffusers that has the same noise levels s/a, and the network x. Rules of guidance work on it as anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..guidance.errors import InputError, shown
from ..guidance.fields import count, is_number
from ..guidance.prediction import Level
from ..guidance.rule import Rule
from .levels import grid
from .loop import Sampled, sample
from .names import by_name
from .noise import generators, initial_noise, one_each

EMITS = {"noise": "epsilon", "data": "sample", "velocity": "sample"}
"""What a network may emit, with the scheduler's name for it."""


@dataclass(frozen=True)
class Affine:
    r"""The process :math:`x_t = \mu + a_t (x_0 - \mu) + s_t \epsilon` at the times of a network's training.

    Args:
        a: at each time, falling, above 0.
        s: at each time, above 0; s/a rises.
        times: the network's time argument at each, rising.
        scale: :math:`\lambda`, where :math:`s_t = \lambda \sqrt{1 - a_t^2}`, for networks that emit a velocity; None
            for other processes.

    Raises:
        InputError: a value is out of these ranges.
    """

    a: tuple[float, ...]
    s: tuple[float, ...]
    times: tuple[float, ...]
    scale: float | None = None

    def __post_init__(self) -> None:
        same = len(self.a) == len(self.s) == len(self.times) > 1
        if not same or not all(is_number(one) and one > 0 for one in (*self.a, *self.s)):
            raise InputError(
                f"an affine process has as many a and s, above 0, as times, 2 at least; got {len(self.a)}, "
                f"{len(self.s)} and {len(self.times)}"
            )
        if not _rises(self.sigmas) or not _rises(self.times):
            raise InputError("the times of an affine process rise, and with them its noise level s/a")

    @classmethod
    def ir_sde(cls, steps: int = 100, scale: float = 50 / 255, last: float = 0.005) -> Affine:
        r"""Return the mean-reverting process of IR-SDE with its cosine schedule.

        :math:`a_t = \exp(-\int_0^t \theta)`, :math:`s_t = \lambda\sqrt{1 - a_t^2}`, with :math:`\theta` one minus a
        squared cosine, scaled so that a ends at `last`.

        Args:
            steps: T; the network's times are 1 to T.
            scale: :math:`\lambda`, the deviation of the noise at the end.
            last: :math:`a_T`.

        References:
            Luo et al., "Image Restoration with Mean-Reverting Stochastic Differential Equations", arXiv:2301.11699.
        """
        whole = count("steps", steps, 2) + 2
        places = (np.arange(whole + 1) / whole + 0.008) / 1.008 * math.pi / 2
        cosine = np.cos(places) ** 2
        theta = 1 - (cosine / cosine[0])[1:-1]
        total = np.cumsum(theta) - theta[0]
        a = np.exp(total[1:] / total[-1] * math.log(last))
        s = scale * np.sqrt(1 - a**2)
        return cls(tuple(a.tolist()), tuple(s.tolist()), tuple(map(float, range(1, steps + 1))), scale)

    @classmethod
    def sgmse(cls, stiffness: float = 1.5, low: float = 0.05, high: float = 0.5, steps: int = 1000) -> Affine:
        r"""Return the process of SGMSE, for speech.

        It has :math:`a_t = e^{-\gamma t}` and, with :math:`k = s_{max}/s_{min}`,

        .. math:: s_t^2 = s_{min}^2 \log k\,\frac{k^{2t} - e^{-2\gamma t}}{\gamma + \log k},\qquad 0 < t \le 1.

        Args:
            stiffness: :math:`\gamma`.
            low: :math:`s_{min}`.
            high: :math:`s_{max}`.
            steps: times of the table; the network's times are t.

        References:
            Richter et al., "Speech Enhancement and Dereverberation with Diffusion-based Generative Models",
            arXiv:2208.05830.
        """
        t = np.arange(1, count("steps", steps, 2) + 1) / steps
        log_k = math.log(high / low)
        grown = np.exp(2 * log_k * t) - np.exp(-2 * stiffness * t)
        s = np.sqrt(low**2 * log_k * grown / (stiffness + log_k))
        return cls(tuple(np.exp(-stiffness * t).tolist()), tuple(s.tolist()), tuple(t.tolist()))

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise level s/a at each time."""
        return tuple(s / a for a, s in zip(self.a, self.s, strict=True))

    def config(self, emits: str = "noise") -> dict[str, Any]:
        """Return the configuration of a scheduler with the noise levels of the process, for `by_name`.

        Args:
            emits: what the network emits: "noise", "data" or "velocity".

        Raises:
            InputError: `emits` is another text, or "velocity" of a process without `scale`; or the noise level begins
                below 0.001.
        """
        if emits not in EMITS or (emits == "velocity" and self.scale is None):
            raise InputError(f"a network emits noise, data or, of a process with a scale, velocity; got {shown(emits)}")
        if self.sigmas[0] < 1e-3:
            raise InputError(
                f"the first noise level is {self.sigmas[0]:.2g}, and a table in float32 holds 0.001 and more; "
                "leave the first times of the process out"
            )
        kept = [1.0, *(1 / (1 + k * k) for k in self.sigmas)]
        betas = [1 - after / before for before, after in itertools.pairwise(kept)]
        return {
            "trained_betas": betas,
            "num_train_timesteps": len(betas),
            "prediction_type": EMITS[emits],
            "clip_sample": False,
            "timestep_spacing": "linspace",
        }

    def at(self, level: Level) -> tuple[float, float, float]:
        """Return a, s and the time at the noise level of `level`, interpolated in the logarithms of a and s/a."""
        logs, places = np.log(self.sigmas), np.arange(len(self.times))
        place = float(np.interp(math.log(level.k_sigma), logs, places))
        if abs(place - round(place)) < 0.01:  # a time of the table, but for the rounding of a scheduler's float32
            place = round(place)
        time = float(np.interp(place, places, self.times))
        a = float(np.exp(np.interp(place, places, np.log(self.a))))
        return a, a * level.k_sigma, time

    def denoiser(
        self, network: Callable[[Tensor, Tensor, float, Any], Tensor], emits: str = "noise"
    ) -> Callable[[Tensor, Level, Any], Tensor]:
        r"""Return the network as a model of :math:`y = x - \mu`, for `sample`.

        Args:
            network: ``network(x, mu, time, conditions)``, which answers with `emits`: the noise :math:`\epsilon`, the
                clean :math:`x_0`, or the velocity :math:`a\lambda\epsilon - (s/\lambda)(x_0 - \mu)`.
            emits: which of them.

        Returns:
            A model whose conditions contain :math:`\mu`: a mapping with ``"mu"``, or mu itself.
        """

        def model(x: Tensor, level: Level, conditions: Any) -> Tensor:
            mu: Tensor = conditions["mu"] if isinstance(conditions, Mapping) else conditions
            a, s, time = self.at(level)
            y = x * (a / level.alpha)
            answer = network(y + mu, mu, time, conditions)
            if emits == "data":
                answer = answer - mu
            elif emits == "velocity":
                answer = a * y - s / (self.scale or 1.0) * answer
            return answer

        return model


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))


def restore(
    network: Callable[[Tensor, Tensor, float, Any], Tensor],
    process: Affine,
    mu: Tensor,
    *,
    emits: str = "noise",
    stack: Rule | str | Mapping[str, Any] = "stack()",
    sampler: str | Any = "dpm++2m",
    conditions: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    steps: int = 20,
    **options: Any,
) -> Sampled:
    """Restore degraded signals with a network that was trained on an affine process.

    Args:
        network: as in `Affine.denoiser`.
        process: the process that it was trained on.
        mu: the degraded signals, shape ``(B, ...)``.
        emits: what the network emits: "noise", "data" or "velocity".
        stack: as in `sample`.
        sampler: short name of a sampler, as in `by_name`, or a scheduler made of ``process.config(emits)``.
        conditions: as in `sample`, each a mapping of tensors, to which ``"mu"`` is added; by default mu alone.
        seeds: one for each sample; 0, 1, ... by default.
        steps: of the sampler.
        **options: further arguments of `sample`.

    Returns:
        What `sample` returns, with the restored signals as `x`.

    Raises:
        InputError: the network emits something else, or another number of seeds than of signals.

    Cost: that of `sample`; one network evaluation a step without guidance, under a first-order or multistep sampler.
    """
    seeds = one_each(seeds, len(mu), "signals")
    config = process.config(emits)
    scheduler = by_name(sampler, config) if isinstance(sampler, str) else sampler
    scheduler.set_timesteps(steps)
    first = grid(scheduler).points[0].level
    start = first.sigma * initial_noise(mu.shape[1:], generators(seeds), dtype=mu.dtype, device=mu.device)
    given = {"positive": {}} if conditions is None else conditions
    told = {name: {**one, "mu": mu} for name, one in given.items()}
    own: dict[str, Any] = {"conditions": told, "shape": mu.shape[1:], "seeds": seeds, "steps": steps, "start": start}
    made = sample(
        process.denoiser(network, emits), stack, scheduler, **own, dtype=mu.dtype, device=mu.device, **options
    )
    final = grid(scheduler).final
    scale = process.at(final)[0] / final.alpha if final.sigma else 1.0  # a schedule may end at the first time
    return Sampled(torch.add(mu, made.x, alpha=scale), made.report)
