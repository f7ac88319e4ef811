"""Noise on a denoiser's time embedding, for the length of one forward pass: the weak branch of time-step guidance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.errors import GuidanceNotAppliedError, UnsupportedPipelineError
from ..guidance.keyed import normal
from ..guidance.query import Perturbation
from .hooks import arguments, compiled, exchanged, parameters

KINDS = frozenset({"time", "conditioning"})

_eager = threading.RLock()

_EMBEDDERS = frozenset({"time_embedding", "timestep_embedder", "time_embed", "time_embedder", "time_step_proj"})
"""Names of the network over the sinusoids, a ``TimestepEmbedding``. SDXL's ``add_embedding`` and the guidance embedder
of distilled models are of the same class, and embed other things."""
_SUMS = frozenset(
    {
        "CombinedTimestepLabelEmbeddings",  # DiT: time + class
        "CombinedTimestepTextProjEmbeddings",  # SD3, Flux: time + pooled text
        "CombinedTimestepGuidanceTextProjEmbeddings",  # Flux: time + guidance scale + pooled text
        "PixArtAlphaCombinedTimestepSizeEmbeddings",  # PixArt: time + size and aspect of the picture
    }
)
"""Classes that embed the time and return its sum with what else they embed."""


@dataclass(frozen=True)
class Places:
    """The modules of a denoiser that make, add to, or take the embedding of its time.

    Args:
        embedders: the networks that make it.
        sums: the modules that return it with other embeddings added.
        own: blocks of a transformer that embed the time each for itself (DiT).
        encoder: blocks of a UNet that are handed the sum of its embeddings as ``temb``.
        middle: likewise.
        decoder: likewise.
        compiled: whether one of its modules runs a compiled graph.
    """

    embedders: list[nn.Module]
    sums: list[nn.Module]
    own: list[nn.Module]
    encoder: list[nn.Module]
    middle: list[nn.Module]
    decoder: list[nn.Module]
    compiled: bool


def places(denoiser: nn.Module) -> Places:
    """Find where a denoiser has the embedding of its time; it looks at every module, so it is called once a run."""
    named = [(name.rsplit(".", 1)[-1], module) for name, module in denoiser.named_modules()]
    encoder = list(getattr(denoiser, "down_blocks", None) or ())
    decoder = list(getattr(denoiser, "up_blocks", None) or ())
    middle = [block] if (block := getattr(denoiser, "mid_block", None)) is not None else []
    if not encoder or not decoder or not all("temb" in parameters(block) for block in encoder + middle + decoder):
        encoder, middle, decoder = [], [], []
    blocks = getattr(denoiser, "transformer_blocks", None) or ()
    return Places(
        [module for name, module in named if name in _EMBEDDERS and type(module).__name__ == "TimestepEmbedding"],
        [module for _, module in named if type(module).__name__ in _SUMS],
        [block for block in blocks if type(getattr(getattr(block, "norm1", None), "emb", None)).__name__ in _SUMS],
        encoder,
        middle,
        decoder,
        any(map(compiled, denoiser.modules())),
    )


def check(denoiser: nn.Module, perturbation: Perturbation) -> None:
    """Refuse a perturbation that this denoiser cannot have.

    Raises:
        UnsupportedPipelineError: its time embedding is not found, or it has no such blocks.
    """
    name, found = type(denoiser).__name__, places(denoiser)
    if not found.embedders:
        raise UnsupportedPipelineError(f"the time embedding of {name} was not found: time-step guidance cannot use it")
    if perturbation.kind == "conditioning" and not found.sums and not found.encoder:
        raise UnsupportedPipelineError(
            f"where {name} adds other embeddings to that of the time was not found; use stage='time'"
        )
    if not perturbation.blocks:
        return
    if isinstance(perturbation.blocks, str):
        raise UnsupportedPipelineError(
            f"{perturbation} takes the first so many blocks, a number: what is added to the time's embedding is not "
            "added in blocks by name"
        )
    most = len(found.own) or min(len(found.encoder), len(found.decoder))
    if not most:
        raise UnsupportedPipelineError(
            f"{name} embeds the time once for all its blocks: blocks must be 0, all of them; got {perturbation.blocks}"
        )
    if perturbation.blocks > most:
        raise UnsupportedPipelineError(
            f"{name} has {most} blocks{'' if found.own else ' on each side'}, got blocks={perturbation.blocks}"
        )
    config: Any = denoiser.config
    if perturbation.kind == "time" and (config.get("time_embedding_act_fn") or config.get("class_embeddings_concat")):
        # What the blocks are handed is not the embedding plus something.
        raise UnsupportedPipelineError(
            f"{name} changes the time's embedding before its blocks get it: blocks must be 0, all of them, or "
            f"stage='conditioning'; got blocks={perturbation.blocks}"
        )


@contextmanager
def eager(compiled: bool) -> Iterator[None]:
    """While the context lasts, a network that is `compiled` runs without its graphs."""
    if not compiled:
        yield
        return
    # A compiled graph does not see hooks that came after it, and would not forget those that it saw. The stance is the
    # process's: one thread at a time puts it back as it was.
    with _eager, torch.compiler.set_stance("force_eager"):
        yield


class _Noise:
    """One draw for each row, the same wherever the embedding is used in the pass."""

    def __init__(self, amount: float, generators: Sequence[torch.Generator]) -> None:
        self.amount, self.generators = amount, generators
        self.draws: dict[int, Tensor] = {}

    def of(self, embedding: Tensor) -> Tensor:
        """The noise to add to `embedding`, ``(rows, ..., D)``; in standard deviations of each row's own.

        A row's embedding may stand once for all rows, or several times in a row (the frames of a video).
        """
        size = embedding.shape[-1]
        if size not in self.draws:
            self.draws[size] = normal(self.generators, (size,), embedding.device)
        draw = self.draws[size].reshape(len(self.generators), *[1] * (embedding.ndim - 2), size)
        wide = embedding.float()
        std = wide.std(dim=tuple(range(1, wide.ndim)), keepdim=True)
        return (self.amount * std * _spread(draw, len(embedding))).to(embedding.dtype)


def _spread(value: Tensor, rows: int) -> Tensor:
    """`value`, ``(n, ...)``, for an embedding of `rows` rows: n of them, one for all, or several for each."""
    each, left = divmod(rows, len(value))
    if left and rows != 1:
        raise UnsupportedPipelineError(
            f"the time's embedding has {rows} rows and the batch {len(value)}: time-step guidance cannot tell whose "
            "they are"
        )
    return value.repeat_interleave(each, 0) if each > 1 else value


@contextmanager
def perturbed(
    denoiser: nn.Module,
    perturbation: Perturbation,
    generators: Sequence[torch.Generator],
    found: Places | None = None,
) -> Iterator[None]:
    """While the context lasts, the denoiser's time embedding has noise added.

    Args:
        denoiser: a diffusers UNet or transformer for which `check` passed. For other threads it answers as ever; a
            compiled one does so without its graph.
        perturbation: what and how much.
        generators: one for each row of the batch that is about to be run.
        found: its `places`, if they were looked for before.

    Raises:
        GuidanceNotAppliedError: the denoiser ran and its time embedding did not, as of a graph compiled before.
    """
    noise, found = _Noise(perturbation.amount, generators), found or places(denoiser)
    with ExitStack() as hooks:
        hooks.enter_context(eager(found.compiled))
        for handle in _hooks(found, perturbation, noise):
            hooks.callback(handle.remove)
        yield
    if not noise.draws:
        raise GuidanceNotAppliedError(
            f"a pass of {type(denoiser).__name__} did not reach its time embedding, so that {perturbation} did "
            "nothing; was its forward compiled or replaced?"
        )


def _hooks(places: Places, perturbation: Perturbation, noise: _Noise) -> Iterator[Any]:
    """Put the hooks on; yields their handles."""

    def add(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return output + noise.of(output)

    first = int(perturbation.blocks)
    if first and places.own:
        for block in places.own[:first]:
            embedding: Any = block.norm1.emb  # type: ignore[union-attr]
            site = embedding if perturbation.kind == "conditioning" else embedding.timestep_embedder
            # The last layer of a DiT borrows the embedding of the first block: it is no block, hence once a pass.
            yield site.register_forward_hook(here(_once(add)))
    elif not first and (perturbation.kind == "time" or not places.encoder):
        for module in places.embedders if perturbation.kind == "time" else places.sums:
            yield module.register_forward_hook(here(add))
    else:
        of_time: list[Tensor] = []
        if perturbation.kind == "time":

            def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
                of_time[:] = [noise.of(output)]

            for embedder in places.embedders:
                yield embedder.register_forward_hook(here(note))
        sides = [*places.encoder[:first], *places.decoder[:first]]
        for block in sides if first else [*places.encoder, *places.middle, *places.decoder]:
            yield block.register_forward_pre_hook(here(_adding(block, noise, of_time)), with_kwargs=True)


def here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module: `hook` in this thread's passes, and none in others'."""
    thread = threading.get_ident()

    def here(*args: Any) -> Any:  # a thread that comes upon a hook while it is taken off may call it with fewer
        return hook(*args) if threading.get_ident() == thread else None

    return here


def _once(hook: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    calls: list[int] = []

    def first(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        calls.append(1)
        return hook(module, arguments, output) if len(calls) == 1 else None

    return first


def _adding(block: nn.Module, noise: _Noise, of_time: list[Tensor]) -> Callable[..., Any]:
    """A hook that adds noise to the ``temb`` that a UNet's block is called with: `of_time`, or noise in its measure."""

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        temb: Tensor = arguments(block, args, kwargs)["temb"]
        added = temb + (_spread(of_time[0], len(temb)) if of_time else noise.of(temb))
        return exchanged(block, "temb", added, args, kwargs)

    return replace
