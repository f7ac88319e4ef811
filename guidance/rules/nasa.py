"""Negative-away steer attention (Nguyen et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..fields import block_names, number
from ..notation.registry import register
from ..own_pass import OwnPass
from ..query import PromptEdit

NGUYEN_2024 = """@misc{nguyen2024snoopi,
  title  = {{SNOOPI}: Supercharged One-step Diffusion Distillation with Proper Guidance},
  author = {Nguyen, Viet and Nguyen, Anh and Dao, Trung and Nguyen, Khoi and Pham, Cuong and Tran, Toan and Tran, Anh},
  year   = {2024},
  note   = {arXiv:2412.02687}
}"""


def steered(positive: Tensor, negative: Tensor, values: tuple[float, ...], axes: tuple[int, ...]) -> Tensor:
    """NASA's attention output from those for the prompt and for the negative, given (alpha,)."""
    return positive - values[0] * negative


@register("nasa", references=(NGUYEN_2024,), example="nasa(0.3)")
@dataclass(frozen=True)
class NASA(OwnPass):
    r"""Negative-away steer attention: the negative prompt's attention output is subtracted from the prompt's.

    .. math:: Z = Z_+ - \alpha Z_-

    in each attention to a text, for the same queries. It was made for one-step networks. It does not keep the size of
    the output: a negative that equals the prompt leaves :math:`(1 - \alpha) Z_+`; `NAG` bounds the size.

    Args:
        alpha: :math:`\alpha`, any number up to 1e6 in size; 0 is off. The paper's differ from network to network, 0.04
            to 0.8.
        blocks: names of the blocks in which it steers, as `guidestack doctor` prints them; None for all.

    Queries: none of its own, hence 1 evaluation a step; the network's work is that of `NAG`.

    State: none. Space: none; what it changes is within the network.

    References:
        Nguyen et al., "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance", arXiv:2412.02687.

    >>> from guidestack import NASA
    >>> NASA(0.3).own_pass[0].values, NASA(0).own_pass
    ((0.3,), ())
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0}

    alpha: float
    blocks: str | None = None

    def __post_init__(self) -> None:
        number(self, "alpha")
        block_names(self, "blocks")

    @property
    def edit(self) -> PromptEdit | None:
        """The edit that subtracts the negative prompt's attention output; None where `alpha` is 0."""
        return None if self.alpha == 0 else PromptEdit("nasa", (self.alpha,), self.blocks or "", "negative")
