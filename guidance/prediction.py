"""Noise levels, and conversions between what networks emit: the only file that knows epsilon, x0, v and flow.

A noisy sample is ``x = alpha*x0 + sigma*eps``. Whatever a network was trained to emit is some linear functional
``o = p*x0 + q*eps`` of the same two unknowns. Reading the answer in another form is therefore one 2x2 system,

    [alpha sigma] [x0 ]   [x]             x0  = (q*x - sigma*o) / det
    [  p     q  ] [eps] = [o],            eps = (alpha*o - p*x) / det,      det = alpha*q - sigma*p,

and a new parameterization is one new row (p, q).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .errors import RuleError, nearest

Space = Literal["native", "denoised", "noise", "velocity"]
SPACES: tuple[Space, ...] = ("native", "denoised", "noise", "velocity")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Level:
    """A noise level: the two factors of ``x = alpha*x0 + sigma*eps``.

    Args:
        alpha: factor of the clean sample, >= 0.
        sigma: factor of the unit-variance noise, >= 0.
        path: ``"flow"`` on the straight path of rectified flow (``alpha + sigma = 1``), ``"diffusion"`` elsewhere. It
            decides what "velocity" means and nothing else: at ``(0, 1)`` the two numbers alone cannot tell.

    Plain numbers, one level for the whole batch: no device holds them, so nothing ever waits for one.

    >>> Level.vp(0.64)
    Level(alpha=0.8, sigma=0.6, path='diffusion')
    >>> Level.ve(2.0).k_sigma
    2.0
    """

    alpha: float
    sigma: float
    path: Literal["diffusion", "flow"] = "diffusion"

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.sigma >= 0):
            raise RuleError(f"a level has alpha >= 0 and sigma >= 0, got ({self.alpha!r}, {self.sigma!r})")

    @classmethod
    def vp(cls, alpha_bar: float) -> Level:
        """Variance preserving: ``alpha = sqrt(alpha_bar)``, ``sigma = sqrt(1 - alpha_bar)``."""
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @classmethod
    def ve(cls, sigma: float) -> Level:
        """Variance exploding, also called k-diffusion or EDM scaling: ``alpha = 1``."""
        return cls(1.0, sigma)

    @classmethod
    def flow(cls, sigma: float) -> Level:
        """Rectified flow: ``alpha = 1 - sigma``, with `sigma` in [0, 1]."""
        return cls(1.0 - sigma, sigma, path="flow")

    @property
    def k_sigma(self) -> float:
        """Noise-to-signal ratio ``sigma / alpha``, the noise level that papers on guidance intervals mean.

        The same for one network whatever the scaling of x; infinite at zero terminal SNR.
        """
        return self.sigma / self.alpha if self.alpha else math.inf

    def noised(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Noise clean samples to this level: ``alpha*x0 + sigma*noise``."""
        return self.alpha * x0 + self.sigma * noise


Row = Callable[["Level", float], tuple[float, float]]


def _v_row(level: Level, sigma_data: float) -> tuple[float, float]:
    # Divided by the norm of (alpha, sigma), which is 1 in VP scaling: the same network seen through a VE sampler
    # (x / alpha) is then read with the same formula.
    norm = math.hypot(level.alpha, level.sigma)
    return -level.sigma / norm, level.alpha / norm


def _edm_row(level: Level, sigma_data: float) -> tuple[float, float]:
    # Karras et al. 2022, eq. 7: x0 = c_skip*x + c_out*F, hence the network F is (x0 - c_skip*x) / c_out.
    total = level.sigma * level.sigma + sigma_data * sigma_data
    c_skip = sigma_data * sigma_data / total
    c_out = level.sigma * sigma_data / math.sqrt(total)
    return (1 - c_skip * level.alpha) / c_out, -c_skip * level.sigma / c_out


def _edm_v_row(level: Level, sigma_data: float) -> tuple[float, float]:
    p, q = _edm_row(level, sigma_data)
    return -p, -q


_ROWS: dict[str, Row] = {
    "epsilon": lambda level, sigma_data: (0.0, 1.0),
    "x0": lambda level, sigma_data: (1.0, 0.0),
    "v": _v_row,
    "flow": lambda level, sigma_data: (-1.0, 1.0),
    "edm": _edm_row,
    "edm-v": _edm_v_row,
}


@dataclass(frozen=True)
class Parameterization:
    """What a network emits, as the row (p, q) of ``o = p*x0 + q*eps``.

    ==========  ===========================================  ==========================================
    name        o                                            trained by
    ==========  ===========================================  ==========================================
    ``epsilon`` eps                                          DDPM, Stable Diffusion 1.x, SDXL
    ``x0``      x0                                           "sample" prediction
    ``v``       (alpha*eps - sigma*x0) / |(alpha, sigma)|    Salimans & Ho 2022, appendix D
    ``flow``    eps - x0                                     rectified flow, with the sign of diffusers
    ``edm``     (x0 - c_skip*x) / c_out                      Karras et al. 2022, table 1
    ``edm-v``   minus the same                               Stable Video Diffusion, Playground 2.5
    ==========  ===========================================  ==========================================

    Args:
        name: one of the above.
        sigma_data: standard deviation of the data that ``edm`` preconditions with; unused by the others.
        sign: -1 for a network that emits minus that, which its pipeline negates before the scheduler sees it.

    Raises:
        RuleError: an unknown name, or a `sigma_data` that is not positive.
    """

    name: str
    sigma_data: float = 0.5
    sign: int = 1

    def __post_init__(self) -> None:
        if self.name not in _ROWS:
            raise RuleError(f"unknown parameterization {self.name!r}{nearest(self.name, _ROWS)}")
        if not self.sigma_data > 0:
            raise RuleError(f"sigma_data must be positive, got {self.sigma_data!r}")

    def row(self, level: Level) -> tuple[float, float]:
        """The weights (p, q) of x0 and eps at `level`."""
        p, q = _ROWS[self.name](level, self.sigma_data)
        return (p, q) if self.sign == 1 else (-p, -q)

    def negated(self) -> Parameterization:
        """The parameterization of a network that emits minus what this one does."""
        return replace(self, sign=-self.sign)


EPSILON = Parameterization("epsilon")
X0 = Parameterization("x0")
V = Parameterization("v")
FLOW = Parameterization("flow")


def _spelled(space: Space, level: Level, native: Parameterization) -> Parameterization:
    """The parameterization that a reading of `level` in `space` stands for."""
    if space == "native":
        return native
    if space == "velocity":
        return FLOW if level.path == "flow" else V
    return {"denoised": X0, "noise": EPSILON}[space]


def convert(value: Tensor, x: Tensor, level: Level, source: Parameterization, target: Parameterization) -> Tensor:
    """Read a network's answer in another parameterization: the one 2x2 solve of this project.

    Args:
        value: the answer in `source`, shape ``(B, ...)``.
        x: the noisy sample it answers, same shape.
        level: level of `x`.
        source: what `value` is.
        target: what to return.

    Returns:
        A tensor of the same shape, in float32 or better; `value` itself if the two are the same.
        Where the system is singular (x0 from epsilon at alpha = 0, eps from x0 at sigma = 0) the result is not finite.
    """
    if source == target:
        return value
    dtype = wide(value.dtype)
    of_x, of_value = weights(level, source, target)
    return (of_x * x.to(dtype)).add_(value.to(dtype), alpha=of_value)  # two passes, one new tensor


def weights(level: Level, source: Parameterization, target: Parameterization) -> tuple[float, float]:
    """The two weights of `convert`: an answer in `target` is ``of_x * x + of_value * (the answer in source)``.

    A difference of two answers at one x is converted by the second alone. Not finite where the system is singular.
    """
    if source == target:
        return 0.0, 1.0
    alpha, sigma = level.alpha, level.sigma
    p, q = source.row(level)
    p2, q2 = target.row(level)
    det = alpha * q - sigma * p
    # target = p2*x0 + q2*eps with x0 and eps of the module's docstring, collected into one weight for x and one for o:
    # no intermediate that could overflow or cancel.
    return _over(p2 * q - q2 * p, det), _over(q2 * alpha - p2 * sigma, det)


def _over(numerator: float, denominator: float) -> float:
    """Divide as tensors do: a singular system gives Inf or NaN, which the run reports, not a ZeroDivisionError."""
    if denominator:
        return numerator / denominator
    return math.copysign(math.inf, numerator) if numerator else math.nan


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's answer for a batch, readable in every space.

    Args:
        native: what the network emitted, shape ``(B, ...)``.
        x: the noisy sample it answers, same shape, in the scaling of `level`.
        level: level of `x`.
        parameterization: what `native` is.

    `denoised` (x0), `noise` (eps) and `velocity` (``eps - x0`` on the flow path, ``alpha*eps - sigma*x0`` elsewhere)
    are float32 or better; `native` keeps the network's type.
    """

    native: Tensor
    x: Tensor
    level: Level
    parameterization: Parameterization
    # Several rules of a stack may read the same form of the same prediction: each is computed once.
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def read(self, space: Space | Literal["any"]) -> Tensor:
        """The answer in `space`, in float32 or better.

        ``"any"`` is for a rule to which the space makes no difference: the network's own output in its own type.
        """
        if space == "any":
            return self.native
        if space not in SPACES:
            raise RuleError(f"unknown space {space!r}{nearest(space, SPACES)}")
        target = _spelled(space, self.level, self.parameterization)
        if target == self.parameterization:
            return self.native.to(wide(self.native.dtype))
        if space not in self._known:
            self._known[space] = convert(self.native, self.x, self.level, self.parameterization, target)
        return self._known[space]

    def replace(self, space: Space | Literal["any"], value: Tensor) -> Prediction:
        """The prediction whose reading in `space` is `value`; its native form has the network's type."""
        if space != "any":
            target = _spelled(space, self.level, self.parameterization)
            value = convert(value, self.x, self.level, target, self.parameterization)
        return Prediction(value.to(self.native.dtype), self.x, self.level, self.parameterization)

    def minus(self, other: Prediction, space: Space | Literal["any"]) -> Tensor:
        """The answer minus `other`, of the same x, in `space`: a new tensor, in float32 or better.

        x cancels, so that neither answer has to be converted by itself.
        """
        difference = self.native - other.native.to(wide(self.native.dtype))
        if space == "any":
            return difference
        target = _spelled(space, self.level, self.parameterization)
        return difference.mul_(weights(self.level, self.parameterization, target)[1])

    def plus(self, space: Space, change: Tensor, weight: float, factor: Tensor | None = None) -> Prediction:
        """The prediction with ``weight * factor * change`` added to its reading in `space`.

        Args:
            space: any but the network's own, see `read`.
            change: a difference in `space`, shape ``(B, ...)``, in float32 or better.
            weight: for all samples.
            factor: for each sample, or for what else it has an axis; None for 1.
        """
        target = _spelled(space, self.level, self.parameterization)
        weight *= weights(self.level, target, self.parameterization)[1]
        by = change.new_full((), weight) if factor is None else weight * factor
        moved = torch.addcmul(self.native.to(change.dtype), change, by)
        return Prediction(moved.to(self.native.dtype), self.x, self.level, self.parameterization)

    def where(self, samples: Tensor, other: Prediction) -> Prediction:
        """Take this answer for `samples`, booleans of shape ``(B,)``, and `other`, of the same x, for the rest."""
        wanted = samples.to(self.native.device, non_blocking=True).reshape(-1, *[1] * (self.native.ndim - 1))
        native = torch.where(wanted, self.native, other.native)
        return Prediction(native, self.x, self.level, self.parameterization)

    def detached(self) -> Prediction:
        """The prediction without the graph of gradients behind it; itself where there is none."""
        if not self.native.requires_grad and not self.x.requires_grad:
            return self
        return Prediction(self.native.detach(), self.x.detach(), self.level, self.parameterization)

    @property
    def denoised(self) -> Tensor:
        """The clean sample x0 that the answer implies."""
        return self.read("denoised")

    @property
    def noise(self) -> Tensor:
        """The unit-variance noise eps that the answer implies."""
        return self.read("noise")

    @property
    def velocity(self) -> Tensor:
        """The velocity along the level's path."""
        return self.read("velocity")
