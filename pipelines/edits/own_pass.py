"""Edits of the prompt's own pass, or of all: another text in attention, other weights in it, merged tokens.

In a network with cross-attention the other text is what that attention was handed for it, which is found once a run;
only that attention is made twice. In a network whose text stands beside the picture the whole call has twice the rows:
those behind have the other text, and the picture's tokens are the same in both after each attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...guidance.errors import GuidanceNotAppliedError, InputError, UnsupportedPipelineError
from ...guidance.query import Perturbation, PromptEdit
from ...guidance.rules.nag import normalized
from ...guidance.rules.nasa import steered
from ...guidance.rules.pladis import beyond
from ...guidance.rules.tome import KIND as MERGE
from ..hooks import arguments, calling, diffusers_hooks, in_this_thread, parameters
from ..time_embedding import eager
from .architecture import Architecture, Block, architecture
from .attention import Product, multiplying, scores
from .edit import Call, Site, beginning
from .merging import MIXING, merging, sites

Blend = Callable[[Tensor, Tensor, tuple[float, ...], tuple[int, ...]], Tensor]
BLENDS: dict[str, Blend] = {"nag": normalized, "nasa": steered}
"""Kinds that carry a text: the attention's output from those for the two texts."""
WEIGHTS: dict[str, Callable[[Tensor, tuple[float, ...]], Tensor]] = {"pladis": beyond}
"""Kinds that weigh the prompt's text otherwise: weights from scores."""
EDITS = frozenset({*BLENDS, *WEIGHTS, MERGE})
"""The kinds of edits of the prompt's own pass, or of all, that a pipeline's network can do."""
ONE_BY_ONE = frozenset({"MochiTransformerBlock"})
"""Blocks whose attention goes over the rows one after the other, each with as many tokens as its text has."""
TEXT, MASK = "encoder_hidden_states", "attention_mask"


@dataclass(frozen=True)
class Carried:
    """The inputs of a network's cross-attention for another text, one row for each sample.

    Args:
        text: the text, as its attention takes it.
        mask: what is added to its scores, or None.
    """

    text: Any
    mask: Tensor | None


def joint(found: Architecture) -> bool:
    """Whether the text stands beside the picture, in one attention."""
    return not any(block.cross is not None for block in found.blocks)


def check(denoiser: nn.Module, edits: Sequence[PromptEdit]) -> None:
    """Refuse edits that this denoiser cannot have.

    Raises:
        UnsupportedPipelineError: it has no attention to a text, none of that kind, or no block of that name; its tokens
            cannot be merged; or two edits are of one attention.
    """
    found = architecture(denoiser)
    for edit in edits:
        _chosen(found, edit)
    if len(edits) > 1 and joint(found):
        raise UnsupportedPipelineError(
            f"{edits[0].kind} and {edits[1].kind} both change the one attention of {type(found.denoiser).__name__} to "
            "text and picture; keep one of the two"
        )


def _chosen(found: Architecture, edit: PromptEdit) -> list[Block]:
    """The blocks that an edit means: which attend to a text, or whose tokens can be merged.

    Raises:
        UnsupportedPipelineError: there are none, or the edit is for cross-attention only.
    """
    if edit.kind == MERGE:
        return merging(found, edit)
    beside, network = joint(found), type(found.denoiser).__name__
    texts = [block for block in found.blocks if block.cross is not None or (beside and block.form.text)]
    if not texts:
        raise UnsupportedPipelineError(
            f"{network} has no attention to a text that is known here, which rules of the prompt's own pass change"
        )
    if edit.text and any(type(block.module).__name__ in ONE_BY_ONE for block in texts):
        raise UnsupportedPipelineError(
            f"{network} computes its attention for each row separately, and an edit that carries a text needs "
            "two rows at once"
        )
    if beside and edit.kind in WEIGHTS:
        raise UnsupportedPipelineError(
            f"the text of {network} stands beside the picture in one attention, and {edit.kind} is for cross-attention"
        )
    chosen = found.chosen(edit.blocks)
    if missing := [block.name for block in chosen if edit.blocks and block not in texts]:
        raise UnsupportedPipelineError(f"block {missing[0]!r} of {network} has no attention to the text")
    return [block for block in chosen if block in texts]


class _Found(Exception):
    """Raised to end a pass when its first cross-attention was reached."""


def carried(found: Architecture, call: Callable[[], Any]) -> Carried:
    """Find the inputs of a denoiser's cross-attention for a text.

    Args:
        found: the denoiser.
        call: calls it with that text; it is stopped at its first cross-attention.

    Raises:
        GuidanceNotAppliedError: it did not reach it.
    """
    cross = next(block.cross for block in found.blocks if block.cross is not None)
    seen: list[Carried] = []

    def hook(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = arguments(cross, args, kwargs)
        seen.append(Carried(given[TEXT], given.get(MASK)))
        raise _Found

    with ExitStack() as stack:
        stack.enter_context(eager(found.compiled))
        stack.enter_context(calling(cross, hook, in_this_thread(), inside=True))
        with suppress(_Found):
            call()
    if not seen:
        raise GuidanceNotAppliedError(
            f"a pass of {type(found.denoiser).__name__} did not reach its cross-attention; was its forward compiled "
            "or replaced?"
        )
    return seen[0]


@contextmanager
def own_pass(
    denoiser: nn.Module,
    edits: Sequence[PromptEdit],
    rows: int,
    others: Mapping[str, Carried],
    found: Architecture,
    tensors: Mapping[PromptEdit, Tensor] | None = None,
    perturbation: Perturbation | None = None,
) -> Iterator[None]:
    """While the context lasts, the denoiser answers with its passes edited, to this thread.

    Args:
        denoiser: a diffusers UNet or transformer for which `check` passed.
        edits: what to do.
        rows: of the call; with a text beside the picture it has twice as many.
        others: the texts that edits carry, with these rows; {} where they are in the call.
        found: its `architecture`.
        tensors: what edits carry of the samples, with these rows.
        perturbation: of the same call: blocks whose tokens it changes are not merged.

    Raises:
        GuidanceNotAppliedError: the denoiser ran and nothing was edited.
        UnsupportedPipelineError: the call is of a form that the edit does not know.
    """
    call = Call(found, edits[0], ())  # type: ignore[arg-type]  # its tokens are what is looked at
    remembers = expected = False
    with ExitStack() as stack:
        stack.enter_context(eager(found.compiled))
        begun = found.denoiser.register_forward_pre_hook(beginning(call), with_kwargs=True)
        stack.callback(begun.remove)
        mixed = Call(found, perturbation, ()).blocks if perturbation and perturbation.kind in MIXING else []
        for edit in edits:
            for block in _chosen(found, edit):
                if edit.kind != MERGE:
                    over = _over_texts(call, edit, block, rows, others.get(edit.text))
                else:
                    over = sites(call, block, edit, (tensors or {})[edit]) if block not in mixed else iter(())
                for module, hook in over:
                    expected = True
                    remembers |= bool(diffusers_hooks(module) or diffusers_hooks(block.module))
                    stack.enter_context(calling(module, hook, in_this_thread(), inside=True))
        yield
    if expected and not call.touched and not remembers:
        raise GuidanceNotAppliedError(
            f"a pass of {type(found.denoiser).__name__} did not reach the attention that {edits[0].kind} changes, so "
            "that it did nothing; was its forward compiled or replaced?"
        )


def _over_texts(call: Call, edit: PromptEdit, block: Block, rows: int, other: Carried | None) -> Iterator[Site]:
    """The attention of a block to texts, and what answers its calls."""
    for module in block.attentions if joint(call.found) else (block.cross,):
        assert module is not None  # chosen
        yield module, _hook(call, edit, block, module, rows, other)


def _hook(call: Call, edit: PromptEdit, block: Block, module: nn.Module, rows: int, other: Carried | None) -> Any:
    """What answers the calls of one attention."""
    if edit.kind in WEIGHTS:
        return _first(call, module, lambda product: _weighed(product, edit))
    blend = BLENDS[edit.kind]
    if other is None:
        return _every(call, module, lambda product: _beside(call, block, product, rows, blend, edit))

    def doubled(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = arguments(module, args, kwargs)
        first = parameters(module)[0]
        hidden: Tensor = given[first]
        if len(hidden) != rows:
            raise UnsupportedPipelineError(
                f"the attention of block {block.name!r} is given {len(hidden)} rows for a batch of {rows}, so that "
                f"{edit.kind} cannot tell whose they are"
            )
        given |= {first: torch.cat([hidden, hidden]), TEXT: _joined(given[TEXT], other.text)}
        if given.get(MASK) is not None:
            given[MASK] = _joined(given[MASK], other.mask)

        def blended(product: Product) -> Tensor:
            output = product()
            heads = output.shape[1] if len(output) == 2 * rows else len(output) // (2 * rows)
            if len(output) % (2 * rows):
                raise GuidanceNotAppliedError(
                    f"the attention is made in slices, of which {edit.kind} does not see a whole token; switch "
                    "attention slicing off"
                )
            whole = output.reshape(2, rows, heads, *output.shape[2:])
            guided = blend(whole[0], whole[1], edit.values, (1, 3))
            return torch.stack([guided, whole[1]]).reshape(output.shape)

        output: Tensor = _first(call, module, blended)(lambda *_, **now: original(**now), (), given)
        return output[:rows]

    return doubled


def _first(call: Call, module: nn.Module, answer: Callable[[Product], Tensor]) -> Any:
    """A hook that gives the first product of each call; others are those of adapters with pictures."""

    def hook(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        products: list[int] = []

        def once(product: Product) -> Tensor:
            products.append(1)
            call.touched += 1
            return answer(product) if len(products) == 1 else product()

        return multiplying(module, once)(original, args, kwargs)

    return hook


def _every(call: Call, module: nn.Module, answer: Callable[[Product], Tensor]) -> Any:
    def counted(product: Product) -> Tensor:
        call.touched += 1
        return answer(product)

    return multiplying(module, counted)


def _joined(one: Any, other: Any) -> Any:
    """Two texts, one behind the other; with adapters, whose pictures come along, part by part.

    Raises:
        InputError: they are of different lengths.
    """
    if isinstance(one, list | tuple):
        return type(one)(_joined(a, b) for a, b in zip(one, other, strict=True))
    if one.shape[1:] != other.shape[1:]:
        raise InputError(
            f"the negative text has {other.shape[1]} tokens and the prompt {one.shape[1]}: the network reads both in "
            "one attention; give embeddings of one length"
        )
    return torch.cat([one, other.to(one)])


def _weighed(product: Product, edit: PromptEdit) -> Tensor:
    """The product with other weights, made in memory."""
    return WEIGHTS[edit.kind](scores(product), edit.values).to(product.value.dtype) @ product.value


def _beside(call: Call, block: Block, product: Product, rows: int, blend: Blend, edit: PromptEdit) -> Tensor:
    """The product of both halves, in which the picture's tokens have the blended output."""
    output, length = product(), product.query.shape[-2]
    picture = call.tokens.index(block.form, length, product.mask)
    if picture == slice(length):
        return output  # an attention of the picture to itself
    if len(output) != 2 * rows:
        raise UnsupportedPipelineError(
            f"the attention of block {block.name!r} is made for {len(output)} of {2 * rows} rows at a time, so that "
            f"{edit.kind} does not see both texts"
        )
    if isinstance(picture, slice):
        one, other = output[:rows, :, picture], output[rows:, :, picture]
        blended = output.clone()
        blended[:, :, picture] = blend(one, other, edit.values, (1, 3)).repeat(2, 1, 1, 1)
        return blended
    place = picture[:, None, :, None].expand(-1, output.shape[1], -1, output.shape[3])
    ours = output.gather(2, place)
    guided = blend(ours[:rows], ours[rows:], edit.values, (1, 3)).repeat(2, 1, 1, 1)
    return output.scatter(2, place, guided)
