"""Token merging: self-attention of some blocks sees fewer tokens, those that are alike made one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ...guidance.errors import UnsupportedPipelineError
from ...guidance.query import PromptEdit
from ...guidance.rules.tome import Groups, grouped
from ..hooks import arguments, parameters
from .architecture import Architecture, Block
from .edit import Call, Site

MERGES = frozenset(
    {"BasicTransformerBlock", "JointTransformerBlock", "AuraFlowJointTransformerBlock", "SanaTransformerBlock"}
)
"""Classes of blocks whose attention is handed the picture's tokens by themselves, without their places."""
MASK = "attention_mask"
MIXING = frozenset({"identity", "blur", "shuffle"})
"""Kinds of perturbations that change the tokens within a block; blocks with one are not merged in that pass."""


def merging(found: Architecture, edit: PromptEdit) -> list[Block]:
    """The blocks whose tokens an edit merges.

    Raises:
        UnsupportedPipelineError: there are none, or one that is named cannot.
    """
    network = type(found.denoiser).__name__
    chosen = found.chosen(edit.blocks or found.finest)
    can = [block for block in chosen if any(cls.__name__ in MERGES for cls in type(block.module).__mro__)]
    if missing := [block for block in chosen if block not in can and (edit.blocks or not can)]:
        raise UnsupportedPipelineError(
            f"tokens of block {missing[0].name!r} of {network} ({type(missing[0].module).__name__}) cannot be merged; "
            "tome is for attention that is handed the picture's tokens alone, without their places"
        )
    return can


def sites(call: Call, block: Block, edit: PromptEdit, maps: Tensor) -> Iterator[Site]:
    """The modules of a block that merging takes over, and what answers their calls.

    Args:
        call: the call of the denoiser.
        block: the block.
        edit: its ratio, and whether the merged become means.
        maps: as in `grouped`, at the places of the samples; a row for each row of the call.
    """
    ratio, average = edit.values
    tokens: list[Tensor] = []

    @functools.cache
    def groups() -> Groups | None:
        if len(tokens[0]) != len(maps):
            raise UnsupportedPipelineError(
                f"block {block.name!r} is given {len(tokens[0])} rows for a batch of {len(maps)}, so that tome cannot "
                "tell whose they are"
            )
        return grouped(tokens[0], _at(maps, call.tokens.grid(tokens[0].shape[1])), ratio)

    def noted(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens[:] = [block.arguments(args, kwargs)[block.hidden]]
        try:
            return original(*args, **kwargs)
        finally:
            tokens.clear()
            groups.cache_clear()

    yield block.module, noted
    for module in block.attentions:
        yield module, functools.partial(_merged, call, module, groups, bool(average))


def _merged(
    call: Call,
    module: nn.Module,
    groups: Callable[[], Groups | None],
    average: bool,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The attention's answer from merged tokens, for all tokens."""
    call.touched += 1
    if (found := groups()) is None:
        return original(*args, **kwargs)
    given, name = arguments(module, args, kwargs), parameters(module)[0]
    if given.get(MASK) is not None:
        raise UnsupportedPipelineError(
            f"self-attention of {type(call.found.denoiser).__name__} is given a mask of its tokens, which tome merges"
        )
    output = original(**(given | {name: found.merged(given[name], average)}))
    if isinstance(output, tuple):
        return (found.unmerged(output[0]), *output[1:])
    return found.unmerged(output)


def _at(maps: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The numbers of each token: means over the places of x that it covers.

    Raises:
        UnsupportedPipelineError: tokens lie in more dimensions than samples.
    """
    axes = maps.ndim - 2
    if math.prod(grid[: 3 - axes]) > 1:
        raise UnsupportedPipelineError(f"tome knows numbers over {axes} axes, and the tokens lie in {grid}")
    return functional.interpolate(maps, grid[3 - axes :], mode="area")
