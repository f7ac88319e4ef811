"""Second networks that a user names: a folder, a hub id, or the weak twin of the bundled model."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from torch import nn

from ...guidance.errors import InputError
from ...guidance.reading import exists, is_folder, read_bytes
from ..families.lookup import denoisers_of
from ..families.record import Family, Pipeline
from ..second import BUNDLED, Adapters, adapted, loaders
from .differences import LARGEST, twin
from .loading import fingerprint, folder_of, loaded
from .parts import Part, add_lora, digest_of

LORA = "lora:"
"""Before a file's name, in a network's place: the pipeline's own network with that LoRA."""
TWIN = Path(__file__).parents[1] / "emoji-weak.safetensors"
"""The weak twin of the bundled model, as a difference from its denoiser."""


def network_identity(name: str) -> dict[str, str]:
    """What identifies a network: its name and, of what is on this disk, its fingerprint. Nothing is loaded.

    Raises:
        InputError: there is no such folder or file, or it holds no network.
    """
    if name.startswith(LORA):
        return {"name": name, "fingerprint": _adapter(_lora(name)).rpartition("_")[2]}
    if name == BUNDLED:
        digest = hashlib.sha256(read_bytes(TWIN, "weak twin", LARGEST)).hexdigest()
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
        return [twin(denoiser, TWIN) for denoiser in own], identity
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
