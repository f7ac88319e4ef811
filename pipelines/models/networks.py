"""Second networks that a user names: a folder, a hub id, or the weak twin of the bundled model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...guidance.errors import InputError, reason
from ...guidance.reading import exists, is_folder, read_bytes
from ..families.lookup import denoisers_of
from ..families.record import Family, Pipeline
from ..second import BUNDLED, Adapters, adapted, loaders
from .loading import fingerprint, folder_of, loaded
from .parts import Part, add_lora, digest_of

LORA = "lora:"
"""Before a file's name, in a network's place: the pipeline's own network with that LoRA."""
TWIN = Path(__file__).parents[1] / "emoji-weak.safetensors"
"""The weak twin of the bundled model, as a difference from its denoiser."""
LARGEST_TWIN = 20_000_000  # bytes
PROBE, CLOSE = "probe:", 0.02
"""Of a difference's file: the first values of some weights that it is for, and how near these have to be."""


def network_identity(name: str) -> dict[str, str]:
    """What identifies a network: its name and, of what is on this disk, its fingerprint. Nothing is loaded.

    Raises:
        InputError: there is no such folder or file, or it holds no network.
    """
    if name.startswith(LORA):
        return {"name": name, "fingerprint": _adapter(_lora(name)).rpartition("_")[2]}
    if name == BUNDLED:
        digest = hashlib.sha256(read_bytes(TWIN, "weak twin", LARGEST_TWIN)).hexdigest()
        return {"name": BUNDLED, "fingerprint": digest[:16]}
    folder = folder_of(name)
    if folder is None:
        return {"name": name}
    if not any(exists(folder / index) for index in ("model_index.json", "config.json")):
        lacks = "it has no model_index.json and no config.json" if is_folder(folder) else "there is no such folder here"
        raise InputError(
            f"no network at {str(folder)!r}: {lacks}; expected a folder of a pipeline or of its network that "
            f"save_pretrained wrote, the id of a pipeline on the hub, {BUNDLED!r}, or {LORA}FILE.safetensors"
        )
    return {"name": name, "fingerprint": fingerprint(folder)}


def _lora(name: str) -> Part:
    """The LoRA of a name such as ``"lora:FILE"`` or ``"lora:FILE=SCALE"``.

    Raises:
        InputError: it names no file, or a scale that is none.
    """
    return Part.read(name.removeprefix(LORA), f"--network NAME={LORA}")


def _adapter(part: Part) -> str:
    """The name that a LoRA gets in a pipeline as a network of its own: one for each file and scale.

    Raises:
        InputError: there is no such file, or it is no .safetensors file.
    """
    told = f"{digest_of(part, '--network')} {part.amount:g}"
    return f"network_{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def with_lora(part: Part, pipe: Pipeline, family: Family) -> Adapters:
    """A pipeline's own network with a LoRA, which is loaded into it and is on for that network's calls only.

    Raises:
        InputError: the file has no LoRA, or one for another model.
        UnsupportedPipelineError: the pipeline takes none, or peft is not installed.
    """
    name, modules = _adapter(part), [one for one in pipe.components.values() if isinstance(one, nn.Module)]
    before = {layer: (layer._active_adapter, layer._disable_adapters) for one in modules for layer in adapted(one)}
    if not any(name in getattr(layer, "scaling", ()) for layer in before):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of several adapters, which is what is meant
            add_lora(part, pipe, name, "--network")
        for layer in (layer for one in modules for layer in adapted(one)):
            if name in getattr(layer, "scaling", ()):
                layer.set_scale(name, part.amount)
            layer._active_adapter, layer._disable_adapters = before.get(layer, ([], True))
    adapters = Adapters(name)
    for denoiser in denoisers_of(pipe, family):
        adapters.check(denoiser)
    return adapters


def load_network(name: str, pipe: Pipeline, family: Family, what: str) -> tuple[list[nn.Module] | Adapters, str]:
    """The networks that a name means beside those of a pipeline, and what tells them apart.

    Args:
        name: a folder of a pipeline or of a network, the hub id of a pipeline, ``"bundled"``, or ``"lora:FILE"`` with a
            scale behind an equals sign or without.
        pipe: the pipeline.
        family: its record.
        what: it is, for messages.

    Returns:
        A network for each denoiser of the pipeline, or one for all, or adapters of the pipeline's own; and its identity
        in a line.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    identity = " ".join(network_identity(name).values())
    if name.startswith(LORA):
        return with_lora(_lora(name), pipe, family), identity
    folder = folder_of(name)
    own = [getattr(denoiser, "_orig_mod", denoiser) for denoiser in denoisers_of(pipe, family)]
    if name == BUNDLED:
        return [twin(denoiser) for denoiser in own], identity
    names = [one for one in (family.denoiser, *family.others) if getattr(pipe, one, None) is not None]
    if folder is not None and not exists(folder / "model_index.json"):
        return [loaded(type(own[0]), folder, "", what)], identity
    if folder is not None:
        here = [(cls, one) for cls, one in zip(map(type, own), names, strict=True) if is_folder(folder / one)]
        if not here:
            raise InputError(f"{what}: the model at {str(folder)!r} has no {' or '.join(names)}")
        return [loaded(cls, folder / one, "", what) for cls, one in here], identity
    return [loaded(cls, name, one, what) for cls, one in zip(map(type, own), names, strict=True)], identity


loaders.append(load_network)


def twin(network: nn.Module, path: Path = TWIN) -> nn.Module:
    """The weak twin of a network, from the file of their difference.

    Args:
        network: the network that the difference is from, in any type and on any device; left as it is.
        path: of the file; that of the bundled model by default.

    Returns:
        A network of the same class.

    Raises:
        InputError: the file cannot be read, or is for another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        difference = load(read_bytes(path, "weak twin", LARGEST_TWIN))
    except SafetensorError as error:
        raise InputError(f"{str(path)!r} is no difference of networks: {reason(error)}") from error
    own: Any = network
    weak = type(own).from_config(own.config)
    weights = {name: value.detach() for name, value in network.state_dict().items() if name in weak.state_dict()}
    if not _is_for(difference, weights):
        raise InputError(
            f"{BUNDLED!r} as a network is the weak twin of the bundled model, and this pipeline's network is another; "
            "give the folder of an earlier checkpoint of it"
        )
    weak.load_state_dict({name: changed(value, difference, name) for name, value in weights.items()})
    device, dtype = next(iter(weights.values())).device, next(iter(weights.values())).dtype
    return weak.to(device, dtype).requires_grad_(False).eval()  # type: ignore[no-any-return]


def _is_for(difference: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether a difference is from these weights; types may differ."""
    probes = {name.removeprefix(PROBE): value for name, value in difference.items() if name.startswith(PROBE)}
    changes = {name.rpartition(".")[0] for name in difference if not name.startswith(PROBE)}
    if not probes or not {*probes, *changes} <= set(weights):
        return False
    for name, value in probes.items():
        here, there = weights[name].reshape(-1)[: len(value)].float().cpu(), value.float()
        if len(here) != len(there) or not (here - there).abs().max() <= CLOSE * there.abs().max():
            return False
    return True


def changed(weight: Tensor, difference: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight with its part of a difference added: ``left @ right``, each in 8 bits with a scale for each rank."""
    if f"{name}.left" not in difference:
        return weight.float()
    left, right = difference[f"{name}.left"].float(), difference[f"{name}.right"].float()
    change = (left * difference[f"{name}.scale"].float()) @ right
    return weight.float() + change.reshape(weight.shape).to(weight.device)
