"""Dynamic thresholding: of pixels (Saharia et al. 2022), and its form for latents (mcmonkey 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RuleError
from ..fields import number, set_field
from ..notation.registry import register
from ..prediction import Prediction, wide
from ..query import NEGATIVE, POSITIVE, Predictions, Query
from ..rule import Rule
from ..step import Estimate, Run, State, Step

SAHARIA_2022 = """@inproceedings{saharia2022photorealistic,
  title     = {Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding},
  author    = {Saharia, Chitwan and Chan, William and Saxena, Saurabh and Li, Lala and Whang, Jay and Denton, Emily
               and others},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  note      = {arXiv:2205.11487}
}"""


PARTS = 8
"""Numbers of which one is looked at first, in search of a quantile."""


@register(
    "threshold",
    references=(SAHARIA_2022,),
    example=("cfg(6) | threshold(mimic=2)", "cfg(6) | threshold()"),
)
@dataclass(frozen=True)
class Threshold(Rule):
    r"""Dynamic thresholding: clip each sample's guided clean prediction at a quantile, and scale it back into range.

    Of pixels in [-1, 1], with q a quantile of :math:`|\hat D|` over a whole sample:

    .. math:: \tilde D = \mathrm{clip}(\hat D, -r, r) / r,\qquad r = \min(\max(q, 1),\ ceiling)

    Of latents, which have no such range, that of guidance at a smaller scale m is mimicked, for each channel (for a
    whole sample where latents are packed into tokens). With
    :math:`\hat z` the estimate and z that smaller guidance :math:`D_u + m(D_c - D_u)`, both less their means, q the
    quantile of :math:`|\hat z|` and :math:`r = \max |z|`:

    .. math:: \tilde D = \mathrm{mean} + \frac{r}{R}\,\mathrm{clip}(\hat z, -R, R),\qquad R = \max(q, r)

    Args:
        quantile: q's share, above 0, at most 1.
        mimic: m, the scale whose range latents get; None is the form for pixels.
        ceiling: the largest r of pixels, >= 1; 1 is plain clipping.
        against: the query that :math:`D_u` answers, as in `CFG`; it is asked for with `mimic` only.

    Queries: none of its own for pixels; with `mimic` "positive" and `against`, for which guidance before it asks, too.

    State: none. Space: denoised.

    Raises:
        RuleError: when a run begins, the form for pixels is on a model of latents.

    References:
        Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding",
        arXiv:2205.11487, section 2.3, without a ceiling, with a quantile of 0.995. The form for latents is that of
        https://github.com/mcmonkeyprojects/sd-dynamic-thresholding at its defaults; there is no paper.

    >>> from guidestack import CFG, Threshold
    >>> print(CFG(15) | Threshold(mimic=7))
    cfg(15) | threshold(mimic=7)
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = None

    quantile: float = 0.995
    mimic: float | None = None
    ceiling: float = 1e6
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        if number(self, "quantile", 0.0, 1.0) == 0:
            raise RuleError(f"Threshold: quantile must be above 0, at most 1; got {self.quantile!r}")
        if self.mimic is not None:
            number(self, "mimic")
        number(self, "ceiling", 1.0)
        set_field(self, "against", Query.of(self.against))

    @property
    def refines(self) -> bool:
        """True: the rule clips the estimate of the rules before it."""
        return True

    def init(self, run: Run) -> State:
        """Check that the form for pixels is not used on latents; the rule has no state.

        Raises:
            RuleError: samples are latents, and the form is that for pixels.
        """
        if self.mimic is None and run.latents:
            raise RuleError(
                f"{self} clips to the range of pixels, and this model's samples are latents; "
                "give the scale whose range they are to have: threshold(mimic=7)"
            )
        return ()

    def asks(self) -> frozenset[Query]:
        """The prompt and the contrast with `mimic`, nothing without."""
        return frozenset() if self.mimic is None else frozenset({POSITIVE, Query.of(self.against)})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Clip the clean sample to its limit and scale it. Trace ``threshold``: the smallest factor, 1/r or r/R."""
        value = estimate.read("denoised")
        if self.mimic is None:
            limit = _quantile(value.abs(), self.quantile, 1).clamp(1.0, self.ceiling)
            brought = _clipped(value, limit).div_(limit)
            return estimate.replace("denoised", brought, threshold=1 / limit.flatten()), state
        c, u = predictions[POSITIVE], predictions[Query.of(self.against)]
        kept = 2 if value.ndim > 3 else 1
        mean, smaller = _mean(value, kept), _between(u, c, self.mimic).denoised
        centred, wanted = value - mean, _furthest(smaller, kept)
        limit = torch.maximum(_quantile(centred.abs(), self.quantile, kept), wanted)
        shrink = torch.where(limit > 0, wanted / limit, torch.ones_like(limit))
        guided = _clipped(centred, limit).mul_(shrink).add_(mean)
        return estimate.replace("denoised", guided, threshold=shrink.flatten(1).amin(1)), state


def _between(u: Prediction, c: Prediction, scale: float) -> Prediction:
    """``u + scale*(c - u)``, taken of what the network emitted: x counts once."""
    kind = wide(u.native.dtype)
    native = torch.lerp(u.native.to(kind), c.native.to(kind), scale)
    return Prediction(native, u.x, u.level, u.parameterization)


def _furthest(value: Tensor, kept: int) -> Tensor:
    """The largest distance from the mean, over all but the first `kept` axes."""
    axes, mean = tuple(range(kept, value.ndim)), _mean(value, kept)
    return torch.maximum(value.amax(axes, keepdim=True) - mean, mean - value.amin(axes, keepdim=True))


def _mean(value: Tensor, kept: int) -> Tensor:
    """Over all axes but the first `kept`, which stay with size 1."""
    return value.mean(dim=tuple(range(kept, value.ndim)), keepdim=True)


def _quantile(value: Tensor, share: float, kept: int) -> Tensor:
    """The quantile over all axes but the first `kept`, of any number of elements: torch.quantile has a limit."""
    flat = value.flatten(kept)
    place = share * (flat.shape[kept] - 1)
    if share == 1:
        found = flat.amax(kept)
    else:
        top = _top(flat, flat.shape[kept] - int(place))  # the smallest of these lies below the place
        found = torch.lerp(top[..., -1], top[..., max(-2, -top.shape[kept])], place - int(place))
    return found.reshape(*found.shape, *[1] * (value.ndim - kept))


def _top(value: Tensor, count: int) -> Tensor:
    """The `count` largest numbers along the last axis, in order."""
    size = value.shape[-1]
    if size % PARTS == 0 and PARTS * count < size:
        # They are in those parts whose largest numbers are the largest: few numbers are left to look through.
        parts = value.reshape(*value.shape[:-1], PARTS, size // PARTS)  # each column has numbers from all over
        chosen = parts.amax(-2).topk(count, sorted=False).indices
        value = parts.gather(-1, chosen.unsqueeze(-2).expand(*chosen.shape[:-1], PARTS, -1)).flatten(-2)
    return value.topk(count).values


def _clipped(value: Tensor, limit: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(value, limit), -limit)
