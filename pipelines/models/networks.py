"""Second networks that a user names: a folder, a hub id, or the weak twin of the bundled model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...guidance.errors import InputError, reason, shown
from ...guidance.reading import exists, is_folder, json_of, read_bytes
from ..families.lookup import denoisers_of
from ..families.record import Family, Pipeline
from ..second import BUNDLED, loaders
from .hub import reachable, why
from .loading import LARGEST_INDEX, fingerprint, first_line, folder_of, lacks_memory

TWIN = Path(__file__).parents[1] / "emoji-weak.safetensors"
"""The weak twin of the bundled model, as a difference from its denoiser."""
LARGEST_TWIN = 20_000_000  # bytes
PROBE, CLOSE = "probe:", 0.02
"""Of a difference's file: the first values of some weights that it is for, and how near these have to be."""


def network_identity(name: str) -> dict[str, str]:
    """What identifies a network: its name and, of what is on this disk, its fingerprint. Nothing is loaded.

    Raises:
        InputError: there is no such folder, or it holds no network.
    """
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
            f"save_pretrained wrote, the id of a pipeline on the hub, or {BUNDLED!r}"
        )
    return {"name": name, "fingerprint": fingerprint(folder)}


def load_network(name: str, pipe: Pipeline, family: Family, what: str) -> tuple[list[nn.Module], str]:
    """The networks that a name means beside those of a pipeline, and what tells them apart.

    Args:
        name: a folder of a pipeline or of a network, the hub id of a pipeline, or ``"bundled"``.
        pipe: the pipeline.
        family: its record.
        what: it is, for messages.

    Returns:
        A network for each denoiser of the pipeline, or one for all; and its identity in a line.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    identity, folder = " ".join(network_identity(name).values()), folder_of(name)
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


def loaded(cls: Any, place: str | Path, subfolder: str, what: str) -> nn.Module:
    """A network of a class, from a folder, or from a subfolder of a model on the hub; in float32 on the CPU.

    Raises:
        InputError: it cannot be loaded, or is of another class.
    """
    asked = False
    if isinstance(place, Path):
        try:
            found = json_of(read_bytes(place / "config.json", "network's configuration", LARGEST_INDEX))
            name = found["_class_name"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{what}: {str(place / 'config.json')!r} is no configuration of a network") from None
        if name != cls.__name__:
            raise InputError(
                f"{what} at {str(place)!r} is a {shown(name)}; for this model it has to be a {cls.__name__}"
            )
        if not any(place.glob("*.safetensors")):
            raise InputError(f"{what}: {str(place)!r} has no weights in safetensors, which alone are loaded")
    else:
        asked = reachable(place)
    try:
        network = cls.from_pretrained(str(place), subfolder=subfolder, use_safetensors=True, local_files_only=not asked)
    except Exception as error:  # the libraries raise what a damaged file makes them run into
        if lacks_memory(error):
            raise
        told = first_line(error) if isinstance(place, Path) else why(error, asked)
        raise InputError(f"cannot load {what} from {str(place)!r}: {told}") from error
    network.requires_grad_(False).eval()
    return network  # type: ignore[no-any-return]


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
