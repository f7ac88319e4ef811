"""Second networks of a guided pipeline, which answer queries such as ``"positive@weak"``.

A rule asks a network by name, and `guide` gets the networks by name: another network of the same class, such as an
earlier checkpoint, or the pipeline's own network in another state: with other adapters, or perturbed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..guidance.errors import InputError, nearest, shown
from ..guidance.query import Perturbation
from ..samplers import weights_digest
from . import edits
from .caches import Caches
from .families.lookup import denoisers_of
from .families.record import Family, Pipeline
from .surface import bare

NAME = re.compile(r"[A-Za-z_]\w{0,99}")
Loader = Callable[[str, Pipeline, Family, str], "tuple[list[nn.Module] | Adapters, str]"]
"""Loads the networks that a name means, and says which they are: see `models.networks.load_network`."""
loaders: list[Loader] = []
"""The one loader, which a floor above puts here."""
BUNDLED = "bundled"
"""In a network's place: the weak twin of the bundled model."""
INTERFACE = (
    "in_channels", "out_channels", "learn_sigma", "cross_attention_dim", "cross_attention_dim_t5",
    "cross_attention_input_dim", "joint_attention_dim", "pooled_projection_dim", "caption_channels", "cap_feat_dim",
    "text_dim", "text_embed_dim", "text_emb_dim", "encoder_hid_dim", "encoder_hid_dim_type", "condition_dim",
    "image_dim", "global_states_input_dim", "addition_embed_type", "projection_class_embeddings_input_dim",
    "class_embed_type", "num_class_embeds", "num_embeds_ada_norm", "guidance_embeds",
)  # fmt: skip
"""Entries of a denoiser's configuration that say what it is given and what it returns; the others are its own."""
INNER = {"cross_attention_dim": ("caption_channels", "cross_attention_input_dim")}
"""Entries that are a network's own where it has one of some others: it projects its text itself."""


@dataclass(frozen=True, init=False)
class Adapters:
    """A pipeline's own network with other adapters (LoRA), as a second network of `guide`.

    For the calls of that network these adapters are switched on and all others off; afterwards they are as the user set
    them. Their weights do not change, and the network is not copied. Another thread that runs the same network
    meanwhile sees the switch: give each thread a network of its own.

    Args:
        *names: names of adapters that were loaded with ``pipe.load_lora_weights(..., adapter_name=NAME)``; without
            any, the network without adapters.

    Raises:
        InputError: a name is not a text.

    >>> import guidestack as gs
    >>> gs.Adapters("style"), gs.Adapters()
    (Adapters('style'), Adapters())
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"Adapters takes names of adapters; got {shown(names)}")
        object.__setattr__(self, "names", names)

    def __repr__(self) -> str:
        return f"Adapters({', '.join(map(repr, self.names))})"

    def check(self, module: nn.Module) -> None:
        """Check that a network has these adapters.

        Raises:
            InputError: the network lacks one, has none at all, or has them fused into its weights.
        """
        layers = adapted(module)
        known = list(dict.fromkeys(name for layer in layers for name in getattr(layer, "scaling", ())))
        for name in self.names or known[:1] or [""]:
            if name not in known:
                has = f"it has {', '.join(map(repr, known))}{nearest(name, known)}" if known else "it has none"
                raise InputError(f"{self}: {type(module).__name__} has no such adapter; {has}")
        if any(getattr(layer, "merged", False) for layer in layers):
            raise InputError(f"{self}: the adapters are fused into the weights of the network; pipe.unfuse_lora()")

    @contextmanager
    def switched(self, module: nn.Module) -> Iterator[None]:
        """Switch these adapters of `module` on and all others off while the context lasts."""
        layers = adapted(module)
        before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
        try:
            for layer in layers:
                # Not by peft's own methods, which also change what is trained.
                layer._active_adapter, layer._disable_adapters = list(self.names), not self.names
            yield
        finally:
            for layer, active, disabled in before:
                layer._active_adapter, layer._disable_adapters = active, disabled


def adapted(module: nn.Module) -> list[Any]:
    """The layers of `module` that have adapters."""
    return [part for part in module.modules() if "_active_adapter" in vars(part) and "_disable_adapters" in vars(part)]


@dataclass(frozen=True, eq=False)
class Second:
    """A second network that is ready to answer queries.

    Attributes:
        identity: what tells its weights apart from others.
        modules: the networks that answer, one for each denoiser of the pipeline or one for all of them; none where the
            pipeline's own does.
        adapters: of the pipeline's own network; None for those that are on.
        perturbation: of the pipeline's own network.
        instead: during a call, the network that answers in the place of each denoiser of the pipeline.
    """

    identity: str
    modules: tuple[nn.Module, ...] = ()
    adapters: Adapters | None = None
    perturbation: Perturbation | None = None
    instead: Mapping[nn.Module, nn.Module] = field(default_factory=dict)

    def of(self, denoiser: nn.Module) -> nn.Module:
        """The module that answers in the place of a denoiser."""
        return self.instead.get(denoiser, denoiser)

    @contextmanager
    def answering(self, denoiser: nn.Module, original: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
        """While the context lasts, what to call in the place of ``original(...)``, a denoiser's own call."""
        with nullcontext() if self.adapters is None else self.adapters.switched(denoiser):
            module = self.of(denoiser)
            yield original if module is denoiser else module

    def beside(self, pipe: Pipeline, denoisers: Sequence[nn.Module]) -> Second:
        """The network for one call of a pipeline: on the device and in the type of the pipeline's own.

        One that is offloaded or quantized by hooks of its own stays as it is.

        Raises:
            InputError: the network has lost its adapters.
        """
        if self.adapters is not None:
            for denoiser in denoisers:
                self.adapters.check(denoiser)
        if not self.modules:  # adapters or a perturbation: the pipeline's own network answers
            return self
        modules = self.modules * (1 if len(self.modules) > 1 else len(denoisers))
        for denoiser, module in zip(denoisers, modules, strict=True):
            own, weight = next(denoiser.parameters(), None), next(module.parameters(), None)
            kept = hasattr(module, "_hf_hook") or getattr(module, "is_quantized", False)
            if module is denoiser or own is None or weight is None or kept:
                continue
            device = torch.device(getattr(pipe, "_execution_device", own.device))
            if weight.device != device or weight.dtype != own.dtype:
                module.to(device, own.dtype if own.is_floating_point() and own.element_size() > 1 else None)
        return replace(self, instead=dict(zip(denoisers, modules, strict=True)))


def second_networks(pipe: Pipeline, family: Family, given: Mapping[str, Any] | None) -> dict[str, Second]:
    """Second networks by name, from what a user gives for each: see `guide`.

    Raises:
        InputError: one is none of what can be given, cannot be loaded, or its shapes are others than the pipeline's.
        UnsupportedPipelineError: the pipeline's network cannot be perturbed so.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"networks are given by name, networks={{'weak': NETWORK}}; got {shown(given)}")
    found = {}
    for name, value in given.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == "main":
            raise InputError(
                f"networks: a name is a word other than 'main', which is the pipeline's own; got {shown(name)}"
            )
        found[name] = _second(pipe, family, name, value)
    return found


def _second(pipe: Pipeline, family: Family, name: str, value: Any) -> Second:
    """The network that `value` means.

    Raises:
        InputError, UnsupportedPipelineError: as `second_networks`.
    """
    own, what = denoisers_of(pipe, family), f"the network {name!r}"
    if isinstance(value, Second):
        return value
    if isinstance(value, Perturbation):
        for denoiser in own:
            edits.check(denoiser, value)
        return Second(f"{weights_digest(own[0])}+{value}", perturbation=value)
    if isinstance(value, Adapters):
        for denoiser in own:
            value.check(denoiser)
        return Second(f"{weights_digest(own[0])} {value}", adapters=value)
    if isinstance(value, str | Path):
        found, identity = loaders[0](str(value), pipe, family, what)
        if isinstance(found, Adapters):
            return Second(identity, adapters=found)
        modules = found
    else:
        module, other = value, bare(value)
        if isinstance(module, nn.Module):
            modules = [module]
        elif callable(other) and hasattr(other, family.denoiser):
            modules = denoisers_of(other, family)
        else:
            raise InputError(
                f"{what} is a network, a pipeline with one, a folder, Adapters(...) or Perturbation(...); got "
                f"{shown(value)}"
            )
        identity = " ".join(map(weights_digest, modules))
    if len(modules) not in (1, len(own)):
        raise InputError(f"{what} has {len(modules)} denoisers, and {type(pipe).__name__} has {len(own)}; give one")
    for place, denoiser in enumerate(own):
        _check_alike(what, modules[min(place, len(modules) - 1)], denoiser)
    return Second(identity, tuple(modules))


def _check_alike(what: str, module: nn.Module, own: nn.Module) -> None:
    """Refuse a network that cannot be asked what the pipeline's own is asked.

    Raises:
        InputError: its class, channels or the widths of its conditions are others, or it remembers its calls.
    """
    module, own = (getattr(one, "_orig_mod", one) for one in (module, own))
    if module is own:
        return
    if not isinstance(module, type(own)) and not isinstance(own, type(module)):
        raise InputError(
            f"{what} is a {type(module).__name__}, and the pipeline's own is a {type(own).__name__}: the two are asked "
            "the same, and have to be of one class"
        )
    theirs, ours = (dict(getattr(one, "config", None) or {}) for one in (module, own))
    inner = {key for key, others in INNER.items() if any(ours.get(other) for other in others)}
    for key in INTERFACE:
        if key in theirs and key in ours and key not in inner and _plain(theirs[key]) != _plain(ours[key]):
            raise InputError(
                f"{what} has {key}={_plain(theirs[key])!r}, and the pipeline's own has {_plain(ours[key])!r}: the two "
                "are given the same samples and conditions; take one of the same shape"
            )
    caches = Caches(module, "", False)
    if caches.keyed or caches.single:
        kind = (caches.keyed or caches.single)[0][0].name
        raise InputError(f"{what} has {kind}, whose memory guide() does not keep apart; take it off that network")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
