"""Edits of a denoiser for one call: what each kind of `Perturbation` does to it, and that it leaves nothing behind.

An edit is a context around one call. It takes over calls of some of the denoiser's modules, in this thread only;
weights, processors, hooks and adapters stay as they are, also when the call fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...guidance.errors import GuidanceNotAppliedError, UnsupportedPipelineError
from ...guidance.query import Perturbation
from .. import time_embedding
from ..hooks import Hook, arguments, calling, diffusers_hooks, exchanged, in_this_thread, parameters
from ..time_embedding import eager, here
from .architecture import MIDDLE, Architecture, Block, Tokens, architecture
from .attention import Product, alone, blurred, multiplying

SHIFT = "shift"
LAST = 999.0
"""The noisiest time that a network knows, in steps of 1000."""
Site = tuple[nn.Module, Hook]
"""A module whose calls an edit takes over, and what answers them."""


@dataclass
class Call:
    """One call of a denoiser that is to be edited.

    Args:
        found: the denoiser.
        edit: what to do.
        generators: one for each row of the batch.

    Attributes:
        tokens: of the call, once it has begun.
        dropped: for each block, which rows do without it.
        touched: how often something was edited.
    """

    found: Architecture
    edit: Perturbation
    generators: Sequence[torch.Generator]
    tokens: Tokens = field(init=False)
    dropped: dict[str, list[bool]] = field(default_factory=dict)
    touched: int = 0

    @property
    def blocks(self) -> list[Block]:
        """The blocks that the edit names, or its default blocks."""
        return self.found.chosen(self.edit.blocks or KINDS[self.edit.kind].where(self.found))

    def each(self, rows: int) -> int:
        """How many of `rows` a sample has: several of the frames of a video, one after the other."""
        each, left = divmod(rows, len(self.generators))
        if left:
            raise UnsupportedPipelineError(
                f"a block is given {rows} rows for a batch of {len(self.generators)}, so that {self.edit} cannot tell "
                "whose they are"
            )
        return each


@dataclass(frozen=True)
class Kind:
    """A kind of edit.

    Args:
        sites: the modules of one block that it takes over.
        where: the names of the blocks that are meant where none are named; none are all.
        check: refuses what it cannot do to a block.
    """

    sites: Callable[[Call, Block], Iterator[Site]]
    where: Callable[[Architecture], str] = lambda found: MIDDLE
    check: Callable[[Block], None] = lambda block: None


def _attention(
    answer: Callable[[Call, Block, Product, slice | Tensor], Tensor],
) -> Callable[[Call, Block], Iterator[Site]]:
    """The sites of an edit that answers products of self-attention, given which tokens are the picture's."""

    def sites(call: Call, block: Block) -> Iterator[Site]:
        def answered(product: Product) -> Tensor:
            call.touched += 1
            return answer(call, block, product, call.tokens.index(block.form, product.query.shape[-2], product.mask))

        for module in block.attentions:
            yield module, multiplying(module, answered)

    return sites


def _identity(call: Call, block: Block) -> Iterator[Site]:
    for module in block.attentions:
        if not _linear(module):
            continue

        def values(original: Any, args: Any, kwargs: Any, module: Any = module) -> Tensor:
            call.touched += 1
            hidden = args[0] if args else kwargs["hidden_states"]
            output: Tensor = module.to_out[1](module.to_out[0](module.to_v(hidden)))
            return output.clip(-65504, 65504) if hidden.dtype == torch.float16 else output

        yield module, values
        return
    yield from _attention(lambda call, block, product, picture: alone(product, picture))(call, block)


def _linear(module: Any) -> bool:
    """Whether a module's attention is linear, without a softmax (Sana)."""
    return "SanaLinear" in type(getattr(module, "processor", None)).__name__


def _check_blur(block: Block) -> None:
    if any(map(_linear, block.attentions)):
        raise UnsupportedPipelineError(
            f"the attention of block {block.name!r} is linear: it has no queries to blur; pag() works with it"
        )


def _blur(call: Call, block: Block, product: Product, picture: slice | Tensor) -> Tensor:
    count = picture.shape[1] if isinstance(picture, Tensor) else picture.stop - (picture.start or 0)
    grid = call.tokens.grid(count) if call.edit.amount else (1, 1, count)
    return blurred(product, picture, grid, call.edit.amount)


def _left_out(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a block returns if it is left out: its inputs."""
    given = block.arguments(args, kwargs)
    streams = {"hidden": given[block.hidden], "encoder": given.get("encoder_hidden_states")}
    names = block.form.returns if streams["encoder"] is not None else ("hidden",)
    return tuple(streams[name] for name in names) if len(names) > 1 else streams["hidden"]


def _skip(call: Call, block: Block) -> Iterator[Site]:
    def skipped(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call.touched += 1
        return _left_out(block, args, kwargs)

    yield block.module, skipped


def _drop(call: Call, block: Block) -> Iterator[Site]:
    if not call.dropped:
        names = [one.name for one in call.blocks]
        count = min(len(names), max(1, round(call.edit.amount * len(names))))
        drawn = [set(torch.randperm(len(names), generator=one)[:count].tolist()) for one in call.generators]
        call.dropped |= {name: [place in mine for mine in drawn] for place, name in enumerate(names)}

    def dropped(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call.touched += 1
        mine = call.dropped[block.name]
        if not any(mine):
            return original(*args, **kwargs)
        without = _left_out(block, args, kwargs)
        if all(mine):
            return without
        output = original(*args, **kwargs)
        hidden = without[0] if isinstance(without, tuple) else without
        rows = torch.tensor(mine).repeat_interleave(call.each(len(hidden))).to(hidden.device, non_blocking=True)

        def either(kept: Any, left: Tensor) -> Any:
            return kept if kept is None else torch.where(rows.reshape(-1, *[1] * (left.ndim - 1)), left, kept)

        return tuple(map(either, output, without)) if isinstance(without, tuple) else either(output, without)

    yield block.module, dropped


def _shuffle(call: Call, block: Block) -> Iterator[Site]:
    def shuffled(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call.touched += 1
        given = block.arguments(args, kwargs)
        hidden: Tensor = given[block.hidden]
        if hidden.ndim > 3:  # a lone attention, over pixels
            mixed = _mixed(call, hidden.flatten(2).mT, slice(hidden[0, 0].numel())).mT.reshape(hidden.shape)
        else:
            apart = "encoder" in block.form.returns and given.get("encoder_hidden_states") is not None
            picture: slice | Tensor = slice(hidden.shape[1])
            if not apart:
                mask = given.get("attention_mask", given.get("attn_mask"))
                picture = call.tokens.index(block.form, hidden.shape[1], mask)
            mixed = _mixed(call, hidden, picture)
        args, kwargs = exchanged(block.module, block.hidden, mixed, args, kwargs)
        return original(*args, **kwargs)

    yield block.module, shuffled


def _mixed(call: Call, hidden: Tensor, picture: slice | Tensor) -> Tensor:
    """`hidden`, shape ``(rows, N, C)``, with the picture's tokens of each row in an order drawn by its generator."""
    places = torch.arange(hidden.shape[1])[picture].expand(len(hidden), -1) if isinstance(picture, slice) else picture
    count, each = places.shape[1], call.each(len(hidden))
    order = torch.stack([torch.randperm(count, generator=one) for one in call.generators for _ in range(each)])
    order, places = (one.to(hidden.device, non_blocking=True) for one in (order, places))
    wide = (-1, -1, hidden.shape[2])
    taken = hidden.gather(1, places.gather(1, order)[:, :, None].expand(wide))
    return hidden.scatter(1, places[:, :, None].expand(wide), taken)


KINDS: dict[str, Kind] = {
    "identity": Kind(_identity),
    "blur": Kind(_attention(_blur), check=_check_blur),
    "skip": Kind(_skip),
    "drop": Kind(_drop, where=lambda found: ""),
    "shuffle": Kind(_shuffle, where=lambda found: "down" if found.is_unet else MIDDLE),
}
"""The kinds of edits of blocks, by the name that a `Perturbation` has for them."""
PERTURBATIONS = frozenset({*KINDS, *time_embedding.KINDS, SHIFT})
"""The kinds of perturbations that a pipeline's network can do."""


def check(denoiser: nn.Module, perturbation: Perturbation) -> None:
    """Refuse a perturbation that this denoiser cannot have.

    Raises:
        UnsupportedPipelineError: its blocks, its attention or its time embedding are not of a kind that is known, or
            it has no block of that name.
    """
    if perturbation.kind in time_embedding.KINDS:
        time_embedding.check(denoiser, perturbation)
    elif perturbation.kind == SHIFT:
        time_argument(getattr(denoiser, "_orig_mod", denoiser))
    else:
        for block in Call(architecture(denoiser), perturbation, ()).blocks:
            KINDS[perturbation.kind].check(block)


def time_argument(denoiser: nn.Module) -> str:
    """Return the name of a denoiser's time argument.

    Raises:
        UnsupportedPipelineError: it has none.
    """
    names = parameters(denoiser)
    found = next((name for name in ("timestep", "timesteps", "t") if name in names), None)
    if found is None:
        raise UnsupportedPipelineError(f"{type(denoiser).__name__} has no time argument that could be shifted")
    return found


@contextmanager
def edited(
    denoiser: nn.Module,
    perturbation: Perturbation,
    generators: Sequence[torch.Generator],
    found: Architecture | None = None,
    clock: Callable[[Any], Any] = lambda told: told,
) -> Iterator[None]:
    """While the context lasts, the denoiser answers with `perturbation`, once, to this thread.

    Args:
        denoiser: a diffusers UNet or transformer for which `check` passed. For other threads it answers as ever; a
            compiled one does so without its graph.
        perturbation: what is edited, how much and where.
        generators: one for each row of the batch that is about to be run.
        found: its `architecture`, if it was looked at before.
        clock: converts the denoiser's time argument to a time in steps of 1000, 0 of no noise; an affine function.

    Raises:
        GuidanceNotAppliedError: the denoiser ran and nothing was edited, as of a graph compiled before.
        UnsupportedPipelineError: the call is of a form that the edit does not know.
    """
    found = found or architecture(denoiser)
    if perturbation.kind in time_embedding.KINDS:
        with time_embedding.perturbed(denoiser, perturbation, generators, found.time):
            yield
        return
    call, remembers = Call(found, perturbation, generators), False
    with ExitStack() as stack:
        stack.enter_context(eager(found.compiled))
        begun = _shifting(call, clock) if perturbation.kind == SHIFT else beginning(call)
        stack.callback(found.denoiser.register_forward_pre_hook(begun, with_kwargs=True).remove)
        for block in call.blocks if perturbation.kind in KINDS else ():
            for module, hook in KINDS[perturbation.kind].sites(call, block):
                remembers |= bool(diffusers_hooks(module) or diffusers_hooks(block.module))  # a cache may answer
                stack.enter_context(calling(module, hook, in_this_thread(), inside=True))
        yield
    if not call.touched and not remembers:
        raise GuidanceNotAppliedError(
            f"a pass of {type(found.denoiser).__name__} did not reach what {perturbation} edits, so that it did "
            "nothing; was its forward compiled or replaced?"
        )


def beginning(call: Call) -> Callable[..., Any]:
    """Return a hook that stores the denoiser's arguments in the call."""

    def begun(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.tokens = Tokens(call.found, arguments(call.found.denoiser, args, kwargs))

    return here(begun)


def _shifting(call: Call, clock: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a hook that shifts the denoiser's time argument, within the times that it was trained on."""
    denoiser = call.found.denoiser
    name = time_argument(denoiser)

    def begun(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        call.touched += 1
        given = arguments(denoiser, args, kwargs)
        told = given[name] if isinstance(given[name], Tensor) else torch.tensor(float(given[name]))
        told = told if told.is_floating_point() else told.float()
        time = clock(told)
        later = torch.minimum(time + call.edit.amount, time.clamp(min=LAST))
        if told.ndim > 1:  # a time for each token, which is 0 where a picture without noise was put in
            later = later.where(time > 0, time)
        shifted = told + ((later - time) / (clock(1.0) - clock(0.0))).to(told.dtype)
        return exchanged(denoiser, name, shifted, args, kwargs)

    return here(begun)
