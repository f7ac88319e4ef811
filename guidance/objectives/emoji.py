"""The objective by the bundled classifier of emoji: concept, style, background."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import RuleError, nearest, shown
from ..notation.objectives import register_objective
from .classes import Classified, SmoothReLU, smooth

WEIGHTS = Path(__file__).with_name("emoji.safetensors")
SIDE = 64  # pixels of the pictures that it was trained on
PARTS = ("concept", "style", "background")


def _block(inside: int, outside: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, normalized for each sample by itself."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False),
        nn.GroupNorm(8, outside),
        SmoothReLU(),
    )


class EmojiNetwork(nn.Module):
    """A classifier of 64x64 pictures with three answers.

    Args:
        classes: how many there are of each part: concept, style, background.
    """

    def __init__(self, classes: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = nn.Sequential(_block(3, 32, 5, 2), _block(32, 48, 3, 2))
        self.second = _block(48, 48)
        self.third = _block(48, 96, 3, 2)
        self.fourth = _block(96, 96, groups=4)
        self.last = _block(96, 128, 3, 2, groups=2)
        self.places = nn.Conv2d(
            128, 128, 4, groups=128
        )  # a weight for each place of the 4x4: emoji stand in the middle
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits of each part, shapes ``(B, classes)``, of pictures ``(B, 3, 64, 64)`` with values in [0, 1]."""
        x = self.first(2 * x - 1)
        x = x + self.second(x)
        x = self.third(x)
        x = x + self.fourth(x)
        features = self.places(self.last(x)).flatten(1)
        return tuple(head(features) for head in self.heads)


@functools.cache
def classes() -> dict[str, tuple[str, ...]]:
    """The words that each part may be, in the order of the network's answers."""
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        told = json.loads(file.metadata()["classes"])
    return {part: tuple(told[part]) for part in PARTS}


@functools.lru_cache(maxsize=8)
def network(device: str = "cpu", softplus: float = 0.0) -> nn.Module:
    """The network in float32, in `eval` mode and without gradients for its weights; loaded once for each device."""
    counts = [len(words) for words in classes().values()]
    net = EmojiNetwork((counts[0], counts[1], counts[2]))
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        net.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return smooth(net, softplus).eval().requires_grad_(False).to(device)


@register_objective("emoji")
@dataclass(frozen=True)
class Emoji(Classified):
    r"""The picture is an emoji of a concept, a style and a background, by the bundled classifier.

    .. math:: \log f = \sum_{\text{parts}} \Big( f_y - \log \textstyle\sum_i \exp(m f_i) \Big)

    At least one part is named: ``emoji('cat face')``, ``emoji(style='flat', background='blue')``. The classifier was
    trained on the pictures that the bundled model learnt from, softened as its decoder and denoiser do;
    docs/objectives.md has its accuracy. Pictures of another size are resized to 64 x 64.

    Args:
        concept: one of the 429 concepts, ``"cat face"``; "" for any.
        style: ``"noto"``, ``"twemoji"``, ``"flat"`` or ``"gradient"``; "" for any.
        background: one of the twelve colors, ``"blue"``; "" for any.
        margin: m >= 0, 1 for the log-probability; 0 for the logit alone, "the joint direction" of EluCD.
        softplus: the beta of softplus in place of ReLU, as in EluCD; 0 for the activations of its training.

    References:
        Ma et al., "Elucidating the Design Space of Classifier-Guided Diffusion Generation", arXiv:2310.11311.
    """

    concept: str = ""
    style: str = ""
    background: str = ""
    margin: float = 1.0
    softplus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(getattr(self, part) for part in PARTS):
            raise RuleError("Emoji: name a concept, a style or a background, such as emoji('cat face')")
        for part, words in classes().items():
            word = getattr(self, part)
            if word != "" and word not in words:
                raise RuleError(f"Emoji: there is no {part} {shown(word)}{nearest(str(word), words)}")

    def logits(self, x0: Tensor) -> tuple[Tensor, ...]:
        """The network's answers for pictures ``(B, 3, H, W)``: concept, style, background."""
        x0 = x0.float()
        if x0.shape[-2:] != (SIDE, SIDE):
            x0 = functional.interpolate(x0, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        answers: tuple[Tensor, ...] = network(str(x0.device), self.softplus)(x0)
        return answers

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        found = [
            self.of_class(logits, words.index(getattr(self, part)))
            for (part, words), logits in zip(classes().items(), self.logits(x0), strict=True)
            if getattr(self, part)
        ]
        return torch.stack(found).sum(0)
