"""Where a denoiser has its blocks, what these are called, and which of their tokens are the picture's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...guidance.errors import UnsupportedPipelineError, nearest
from .. import time_embedding
from ..hooks import arguments, compiled, parameters

MIDDLE = "middle"
"""The name that the block in the middle has in every network."""
MID = "mid"
"""What it is called in a UNet."""


@dataclass(frozen=True)
class Form:
    """How a class of transformer blocks handles the tokens of a text.

    Args:
        text: where these stand in its self-attention: nowhere, ``"before"`` or ``"behind"`` those of the picture, or
            ``"padded"``: before them, with padding behind both.
        returns: the streams that it returns, in this order; the text's only if the block is given one.
    """

    text: Literal["", "before", "behind", "padded"] = ""
    returns: tuple[str, ...] = ("hidden",)


_PLAIN = Form()
_TEXT_FIRST = Form("before", ("encoder", "hidden"))
_TEXT_LAST = Form("behind", ("hidden", "encoder"))
FORMS: dict[str, Form] = {
    "Attention": _PLAIN,
    "BasicTransformerBlock": _PLAIN,
    "HunyuanDiTBlock": _PLAIN,
    "LTXVideoTransformerBlock": _PLAIN,
    "SanaTransformerBlock": _PLAIN,
    "WanTransformerBlock": _PLAIN,
    "StableAudioDiTBlock": Form("before"),  # its time, as a token
    "JointTransformerBlock": Form("behind", ("encoder", "hidden")),
    "AuraFlowJointTransformerBlock": _TEXT_FIRST,
    "AuraFlowSingleTransformerBlock": Form("before"),
    "ChromaTransformerBlock": _TEXT_FIRST,
    "ChromaSingleTransformerBlock": Form("before"),
    "CogVideoXBlock": Form("before", ("hidden", "encoder")),
    "CogView4TransformerBlock": Form("before", ("hidden", "encoder")),
    "FluxTransformerBlock": _TEXT_FIRST,
    "FluxSingleTransformerBlock": _TEXT_FIRST,
    "Flux2TransformerBlock": _TEXT_FIRST,
    "Flux2SingleTransformerBlock": _TEXT_FIRST,
    "HiDreamBlock": _TEXT_LAST,
    "HunyuanVideoTransformerBlock": _TEXT_LAST,
    "HunyuanVideoSingleTransformerBlock": _TEXT_LAST,
    "Lumina2TransformerBlock": Form("padded"),
    "MochiTransformerBlock": _TEXT_LAST,
    "QwenImageTransformerBlock": _TEXT_FIRST,
    "ZImageTransformerBlock": Form("behind"),
}
"""The classes of blocks that edits know, by name; what is derived from one has its form."""


@dataclass(frozen=True)
class Block:
    """A block of a denoiser.

    Args:
        name: ``"down.1.0.0"`` in a UNet, ``"7"`` or ``"single.7"`` in a transformer.
        module: the block.
        attentions: the modules of its self-attention: one, or with joint attention beside it two (SD3.5).
        cross: the module of its attention to the text alone, or None.
        form: what it does with the text's tokens.
    """

    name: str
    module: nn.Module
    attentions: tuple[nn.Module, ...]
    cross: nn.Module | None
    form: Form

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call of the block by name; its hidden states come first."""
        return arguments(self.module, args, kwargs)

    @property
    def hidden(self) -> str:
        """The name of the block's argument for the hidden states of the picture."""
        return parameters(self.module)[0]


@dataclass(frozen=True)
class Architecture:
    """The blocks of a denoiser, in the order in which they run, and where it embeds the time.

    Args:
        denoiser: the network itself, without what compiles it.
        blocks: its blocks.
        time: where it has the embedding of its time.
        compiled: whether one of its modules runs a compiled graph.
    """

    denoiser: nn.Module
    blocks: tuple[Block, ...]
    time: time_embedding.Places
    compiled: bool

    @property
    def is_unet(self) -> bool:
        """Whether the denoiser is a UNet, with an encoder and a decoder."""
        return hasattr(self.denoiser, "down_blocks")

    @property
    def names(self) -> list[str]:
        """The names to choose from: of a UNet's stages, of a transformer's blocks."""
        short = (
            block.name if not self.is_unet else MID if _is_in(block, MID) else ".".join(block.name.split(".")[:2])
            for block in self.blocks
        )
        return list(dict.fromkeys(short))

    @property
    def listed(self) -> str:
        """The names in one line: ``"down.1, mid, up.0"``, ``"0 to 23"``."""
        runs: dict[str, list[str]] = {}
        for name in self.names:
            runs.setdefault(name if self.is_unet else name.rpartition(".")[0], []).append(name)
        return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs.values())

    @property
    def middle(self) -> str:
        """The name of the block in the middle."""
        return MID if MID in self.names else self.names[len(self.names) // 2]

    @property
    def finest(self) -> str:
        """The names, in one text, of what has the largest resolution with blocks: of a transformer all; ""."""
        if not self.is_unet:
            return ""
        denoiser: Any = self.denoiser
        depth, deep = {}, 0
        for number, stage in enumerate(denoiser.down_blocks):
            depth[f"down.{number}"] = deep
            deep += getattr(stage, "downsamplers", None) is not None
        depth[MID] = deep
        for number, stage in enumerate(denoiser.up_blocks):
            depth[f"up.{number}"] = deep
            deep -= getattr(stage, "upsamplers", None) is not None
        least = min((depth[name] for name in self.names), default=0)
        return ",".join(name for name in self.names if depth[name] == least)

    def chosen(self, names: int | str) -> list[Block]:
        """The blocks with these names; a UNet's ``"down"`` or ``"down.1"`` is all blocks in there.

        Args:
            names: with commas between them; ``"middle"`` is the block in the middle, and none are all blocks.

        Raises:
            UnsupportedPipelineError: the denoiser has no such block, or none that is known.
        """
        network = type(self.denoiser).__name__
        if not self.blocks:
            raise UnsupportedPipelineError(f"the blocks of {network} are of no kind that an edit of the network knows")
        asked = [self.middle if name == MIDDLE else name for name in str(names or "").split(",") if name]
        for name in asked:
            if not any(_is_in(block, name) for block in self.blocks):
                near = nearest(name, self.names) if name.isidentifier() else ""
                hint = near if near.endswith("?") else f"; it has {self.listed}"
                raise UnsupportedPipelineError(f"{network} has no block {name!r}{hint}")
        return [block for block in self.blocks if not asked or any(_is_in(block, name) for name in asked)]


def _is_in(block: Block, name: str) -> bool:
    return block.name == name or block.name.startswith(f"{name}.")


def architecture(denoiser: nn.Module) -> Architecture:
    """The blocks of `denoiser`: looks at every module of it, hence once a run."""
    inner: Any = getattr(denoiser, "_orig_mod", denoiser)
    found = _unet(inner) if hasattr(inner, "down_blocks") else _transformer(inner)
    any_compiled = compiled(denoiser) or any(map(compiled, inner.modules()))
    return Architecture(inner, tuple(found), time_embedding.places(denoiser), any_compiled)


def _unet(denoiser: Any) -> Iterator[Block]:
    """The transformer blocks of a UNet, and the lone self-attentions of one without."""
    middle = [block] if (block := getattr(denoiser, "mid_block", None)) is not None else []
    sides = {"down": denoiser.down_blocks, MID: middle, "up": denoiser.up_blocks}
    for side, stages in sides.items():
        for number, stage in enumerate(stages):
            inside = ""
            for path, module in stage.named_modules():
                if not path.startswith("attentions.") or (inside and path.startswith(inside)):
                    continue
                place = [part for part in path.split(".") if part.isdigit()]
                name = ".".join([side, *([] if side == MID else [str(number)]), *place])
                if found := _block(name, module):
                    inside = f"{path}."
                    yield found


def _transformer(denoiser: nn.Module) -> Iterator[Block]:
    """The blocks in the lists of a transformer; those that refine the text or the picture by itself are left out."""
    lists = {
        name: found
        for name, child in denoiser.named_children()
        if isinstance(child, nn.ModuleList)
        and "refiner" not in name
        and (found := [_block(str(number), module) for number, module in enumerate(child)])
        and all(found)
    }
    for name, blocks in lists.items():
        single = "single." if "single" in name and len(lists) > 1 else ""
        for block in blocks:
            assert block is not None  # as looked at above
            yield Block(single + block.name, block.module, block.attentions, block.cross, block.form)


def _block(name: str, module: nn.Module) -> Block | None:
    """A module as a block, if it is of a class with a form and has self-attention."""
    form = next((FORMS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in FORMS), None)
    if form is None:
        return None
    if type(module).__name__ == "Attention":
        return None if module.is_cross_attention else Block(name, module, (module,), None, form)
    inner = getattr(module, "block", module)  # HiDream's
    own, cross = [], None
    for attribute in ("attn", "attn1", "attention", "attn2"):
        attention = getattr(inner, attribute, None)
        if attention is None:
            continue
        if getattr(attention, "is_cross_attention", attribute == "attn2"):
            cross = attention
        else:
            own.append(attention)
    return Block(name, module, tuple(own), cross, form) if own else None


class Tokens:
    """Which of the tokens of a call are the picture's, and how these lie.

    Args:
        found: the denoiser.
        arguments: what it is called with, by name.
    """

    def __init__(self, found: Architecture, arguments: Mapping[str, Any]) -> None:
        self.found, self.arguments = found, arguments
        self.config: Any = found.denoiser.config
        self._grid: tuple[int, int, int] | None = None

    def index(self, form: Form, length: int, mask: Tensor | None) -> slice | Tensor:
        """Where the picture's tokens are among `length`: a slice, or a row of numbers for each row.

        Args:
            form: of the block.
            length: all tokens.
            mask: which of them are no padding, shape ``(B, ..., length)``, where some are.
        """
        if not form.text:
            return slice(length)
        count = self._count()
        if form.text == "behind":
            return slice(count)
        if form.text == "before" or mask is None:
            return slice(length - count, length)
        ends = mask.reshape(len(mask), -1, length)[:, 0].sum(1, keepdim=True)
        return ends - count + torch.arange(count, device=ends.device)

    def _count(self) -> int:
        sample = self._sample
        return sample.shape[1] if self._packed(sample) else math.prod(self._sizes())

    @property
    def _sample(self) -> Tensor:
        sample = next(iter(self.arguments.values()))
        return sample[0][None] if isinstance(sample, list) else sample  # type: ignore[no-any-return]

    def _packed(self, sample: Tensor) -> bool:
        return sample.ndim == 3 and "rotary_embedding" not in self.arguments

    def grid(self, count: int) -> tuple[int, int, int]:
        """Frames, height and width of a picture of `count` tokens.

        Raises:
            UnsupportedPipelineError: they are not known.
        """
        sizes = self._sizes()
        if self.found.is_unet:  # each stage halves, and rounds up
            while math.prod(sizes) > count and sizes[1:] != (1, 1):
                sizes = (sizes[0], -(-sizes[1] // 2), -(-sizes[2] // 2))
        if math.prod(sizes) != count:
            network = type(self.found.denoiser).__name__
            raise UnsupportedPipelineError(
                f"how the {count} tokens of {network} lie in the picture is not known, so that no edit can go by "
                "their places"
            )
        return sizes

    def _sizes(self) -> tuple[int, int, int]:
        if self._grid is None:
            self._grid = self._found_sizes()
        return self._grid

    def _found_sizes(self) -> tuple[int, int, int]:
        sample, given = self._sample, self.arguments
        if given.get("img_shapes"):  # Qwen-Image
            frames, height, width = (
                given["img_shapes"][0][0] if isinstance(given["img_shapes"][0], list) else (given["img_shapes"][0])
            )
            return frames, height, width
        if self._packed(sample):
            if given.get("num_frames") is not None:  # LTX
                return given["num_frames"], given["height"], given["width"]
            ids = given["img_ids"].reshape(-1, given["img_ids"].shape[-1])
            rows = {3: (1, 2), 4: (1, 2)}[ids.shape[-1]]
            height, width = (int(ids[:, row].max()) + 1 for row in rows)
            return 1, height, width
        if sample.ndim == 3:
            return 1, 1, sample.shape[-1]
        *frames, height, width = sample.shape[2:]
        if len(frames) and "sample_frames" in self.config:  # CogVideoX has frames before channels
            frames = [sample.shape[1]]
        patch = self.config.get("patch_size") or (self.config.get("all_patch_size") or (1,))[0]
        time = self.config.get("patch_size_t") or (self.config.get("all_f_patch_size") or (1,))[0]
        across = patch if isinstance(patch, tuple | list) else (time if frames else 1, patch, patch)
        sizes = (frames[0] if frames else 1, height, width)
        return tuple(-(-size // by) for size, by in zip(sizes, across, strict=True))
