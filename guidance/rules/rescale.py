"""Rescaling of a guided prediction (Lin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..fields import choice, number
from ..notation.registry import register
from ..per_sample import added
from ..prediction import SPACES, Space
from ..query import POSITIVE, Predictions, Query
from ..rule import Rule
from ..step import Estimate, State, Step

LIN_2023 = """@inproceedings{lin2024common,
  title     = {Common Diffusion Noise Schedules and Sample Steps are Flawed},
  author    = {Lin, Shanchuan and Liu, Bingchen and Li, Jiashi and Yang, Xiao},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2024},
  note      = {arXiv:2305.08891}
}"""


def _std(value: Tensor) -> Tensor:
    return value.std(dim=tuple(range(1, value.ndim)), keepdim=True)


@register("rescale", references=(LIN_2023,), example="cfg(3) | rescale(0.7)")
@dataclass(frozen=True)
class Rescale(Rule):
    r"""Give the guided estimate the standard deviation of the prompt's prediction, or a part of the way to it.

    .. math:: \tilde o = \phi\, \hat o\, \frac{\mathrm{std}(o_c)}{\mathrm{std}(\hat o)} + (1 - \phi)\, \hat o

    with the standard deviation of each sample over all its own elements.

    Args:
        phi: :math:`\phi` in [0, 1]; 0 does nothing. The paper recommends 0.7 beside a scale of 7.5.
        space: what :math:`o` is. ``"native"`` is the network's own output, as in the paper and in diffusers; the result
            depends on it, so that a stack meant for networks of several parameterizations should name a space.

    Queries: "positive", which is evaluated in any case: no evaluation of its own.

    State: none. A sample whose estimate is constant (std 0) is left alone. Trace ``rescale``: the ratio of the two
    standard deviations.

    References:
        Lin, Liu, Li & Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891,
        eqs. 14-16.

    >>> from guidestack.guidance.testing import guide_once
    >>> from guidestack import CFG
    >>> guide_once(CFG(3) | Rescale(0), x=1.0, sigma=1.0) == guide_once(CFG(3), x=1.0, sigma=1.0)
    True
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"phi": 0.0}

    phi: float
    space: Space = "native"  # type: ignore[misc]  # the user's choice, so a field instead of a class attribute

    def __post_init__(self) -> None:
        number(self, "phi", 0.0, 1.0)
        choice(self, "space", SPACES)

    @property
    def refines(self) -> bool:
        """True: the rule only reshapes the estimate of the rules before it."""
        return True

    def asks(self) -> frozenset[Query]:
        """The prompt, whose standard deviation the estimate is given."""
        return frozenset() if self.phi == 0 else frozenset({POSITIVE})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Multiply the estimate by the ratio of the two deviations, or `phi` of the way there."""
        if self.phi == 0:
            return estimate, state
        guided, std_c = estimate.read(self.space), _std(predictions[POSITIVE].read(self.space))
        std = _std(guided)
        ratio = torch.where(std > 0, std_c / std, torch.ones_like(std))
        rescaled = added((1 - self.phi) * guided, guided * ratio, self.phi)
        return estimate.replace(self.space, rescaled, rescale=ratio.flatten()), state
