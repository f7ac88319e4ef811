"""Noise on a denoiser's time embedding, for the length of one forward pass: the weak branch of time-step guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.errors import UnsupportedPipelineError
from ..guidance.query import Perturbation

KINDS = frozenset({"time", "conditioning"})


def _is_embedder(name: str, module: nn.Module) -> bool:
    # SDXL's add_embedding and the guidance embedder of distilled models are of the same class, and embed other things.
    last = name.rsplit(".", 1)[-1]
    return type(module).__name__ == "TimestepEmbedding" and last in {
        "time_embedding",
        "timestep_embedder",
        "time_embed",
    }


def _transformer_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer that embed the time each for itself (DiT)."""
    blocks = getattr(denoiser, "transformer_blocks", None) or ()
    return [block for block in blocks if hasattr(getattr(block, "norm1", None), "emb")]


def _encoder_decoder(denoiser: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module], Sequence[nn.Module]]:
    """Blocks of a UNet: encoder, middle, decoder; each is handed the sum of its embeddings."""
    if not hasattr(denoiser, "down_blocks") or not hasattr(denoiser, "up_blocks"):
        return (), (), ()
    middle = getattr(denoiser, "mid_block", None)
    return list(denoiser.down_blocks), [middle] if middle is not None else [], list(denoiser.up_blocks)  # type: ignore[arg-type]


def check(denoiser: nn.Module, perturbation: Perturbation) -> None:
    """Refuse a perturbation that this denoiser cannot have.

    Raises:
        UnsupportedPipelineError: its time embedding is not found, or it has no such blocks.
    """
    name = type(denoiser).__name__
    if not any(_is_embedder(*item) for item in denoiser.named_modules()):
        raise UnsupportedPipelineError(f"the time embedding of {name} was not found: time-step guidance cannot use it")
    encoder, _, decoder = _encoder_decoder(denoiser)
    blocks = _transformer_blocks(denoiser)
    if perturbation.kind == "conditioning" and not encoder and not blocks:
        raise UnsupportedPipelineError(f"where {name} adds other embeddings to that of the time was not found")
    if perturbation.blocks:
        most = len(blocks) or min(len(encoder), len(decoder))
        if not most:
            raise UnsupportedPipelineError(f"{name} embeds the time once for all: blocks must be 0, all of them")
        if perturbation.blocks > most:
            raise UnsupportedPipelineError(
                f"{name} has {most} blocks (of a UNet: on each side), got {perturbation.blocks}"
            )


class _Noise:
    """One draw for each row, the same wherever the embedding is used in the pass."""

    def __init__(self, amount: float, generators: Sequence[torch.Generator]) -> None:
        self.amount, self.generators = amount, generators
        self.draw: Tensor | None = None

    def of(self, embedding: Tensor) -> Tensor:
        """The noise to add to `embedding`, ``(rows, D)`` or ``(1, D)``; in standard deviations of each row's own."""
        if self.draw is None or self.draw.shape[1] != embedding.shape[1]:
            rows = [torch.randn(embedding.shape[1], generator=one) for one in self.generators]
            self.draw = torch.stack(rows).to(embedding.device, embedding.dtype)
        return self.amount * embedding.float().std(dim=1, keepdim=True).to(embedding.dtype) * self.draw


@contextmanager
def perturbed(denoiser: nn.Module, perturbation: Perturbation, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """While the context lasts, the denoiser's time embedding has noise added.

    Args:
        denoiser: a diffusers UNet or transformer for which `check` passed.
        perturbation: what and how much.
        generators: one for each row of the batch that is about to be run.
    """
    noise = _Noise(perturbation.amount, generators)
    with ExitStack() as hooks:
        for handle in _hooks(denoiser, perturbation, noise):
            hooks.callback(handle.remove)
        yield


def _hooks(denoiser: nn.Module, perturbation: Perturbation, noise: _Noise) -> Iterator[Any]:
    def add(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return output + noise.of(output)

    encoder, middle, decoder = _encoder_decoder(denoiser)
    blocks = _transformer_blocks(denoiser)
    embedders = [module for name, module in denoiser.named_modules() if _is_embedder(name, module)]
    if not perturbation.blocks and (perturbation.kind == "time" or not (encoder or blocks)):
        for embedder in embedders:
            yield embedder.register_forward_hook(add)
    elif blocks:
        for block in blocks[: perturbation.blocks or None]:
            embedding: Any = block.norm1.emb  # type: ignore[union-attr]
            site = embedding if perturbation.kind == "conditioning" else embedding.timestep_embedder
            # The last layer of a DiT borrows the embedding of the first block: it is no block, hence once a pass.
            yield site.register_forward_hook(_once(add) if perturbation.blocks else add)
    else:
        first = perturbation.blocks
        chosen = [*encoder[:first], *decoder[:first]] if first else [*encoder, *middle, *decoder]
        size: list[Tensor] = []
        if perturbation.kind == "time":

            def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
                size[:] = [noise.of(output)]

            for embedder in embedders:
                yield embedder.register_forward_hook(note)
        for block in chosen:
            yield block.register_forward_pre_hook(_replacing_temb(block, noise, size), with_kwargs=True)


def _once(hook: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    calls: list[int] = []

    def first(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        calls.append(1)
        return hook(module, arguments, output) if len(calls) == 1 else None

    return first


def _replacing_temb(block: nn.Module, noise: _Noise, size: list[Tensor]) -> Callable[..., Any]:
    names = list(inspect.signature(block.forward).parameters)

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        temb: Any = (dict(zip(names, args, strict=False)) | kwargs)["temb"]
        added = temb + (size[0] if size else noise.of(temb))
        if "temb" in kwargs:
            return args, {**kwargs, "temb": added}
        place = names.index("temb")
        return (*args[:place], added, *args[place + 1 :]), kwargs

    return replace
