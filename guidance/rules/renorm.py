"""Renormalization of a guided prediction (Lumina-Image 2.0; QwenImage)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import axes_in, choice, sample_axes
from ..notation.registry import register
from ..prediction import SPACES, Space
from ..query import POSITIVE, Predictions, Query
from ..rule import Rule
from ..step import Estimate, Run, State, Step

QIN_2025 = """@article{qin2025lumina,
  title   = {Lumina-Image 2.0: A Unified and Efficient Image Generative Framework},
  author  = {Qin, Qi and Zhuo, Le and Xin, Yi and Du, Ruoyi and Li, Zhen and Fu, Bin and Lu, Yiting and others},
  journal = {arXiv preprint arXiv:2503.21758},
  year    = {2025}
}"""


@register("renorm", references=(QIN_2025,), example="cfg(3) | renorm()")
@dataclass(frozen=True)
class Renorm(Rule):
    r"""Give the guided estimate the norm of the prompt's prediction, taken over some axes.

    .. math:: \tilde o = \hat o\, \frac{\lVert o_c\rVert}{\lVert\hat o\rVert}

    What the pipelines of QwenImage and Lumina 2 do to their own guidance, over the last axis.

    Args:
        axes: axes of the norm, counted with the batch as axis 0; None for all but the batch. The last one alone is the
            channels of a packed latent's token, and a row of a picture's channel.
        space: what :math:`o` is. ``"native"`` is the network's own output.

    Queries: "positive", which is evaluated in any case: no evaluation of its own.

    State: none. Where the estimate is 0 it is left alone.

    References:
        Qin et al., "Lumina-Image 2.0", arXiv:2503.21758, CFG-Renormalization; axes as diffusers has them.

    >>> from guidestack import CFG, Renorm
    >>> print(CFG(4) | Renorm(axes=(1, 2)))
    cfg(4) | renorm(axes=(1, 2))
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = None

    axes: tuple[int, ...] | None = (-1,)
    space: Space = "native"  # type: ignore[misc]  # the user's choice, so a field instead of a class attribute

    def __post_init__(self) -> None:
        sample_axes(self, "axes")
        choice(self, "space", SPACES)

    @property
    def refines(self) -> bool:
        """True: the rule only reshapes the estimate of the rules before it."""
        return True

    def init(self, run: Run) -> State:
        """Check the axes against the shape of the samples; the rule has no state.

        Raises:
            RuleError: samples have no such axis.
        """
        axes_in(self, "axes", run.shape)
        return ()

    def asks(self) -> frozenset[Query]:
        """The prompt, whose norm the estimate is given."""
        return frozenset({POSITIVE})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Multiply the estimate by the ratio of the two norms."""
        guided, prompt = estimate.read(self.space), predictions[POSITIVE].read(self.space)
        over = self.axes or tuple(range(1, guided.ndim))
        norm = torch.linalg.vector_norm(guided, dim=over, keepdim=True)
        wanted = torch.linalg.vector_norm(prompt, dim=over, keepdim=True)
        ratio = torch.where(norm > 0, wanted / norm, torch.ones_like(norm))
        return estimate.replace(self.space, guided * ratio), state
