"""Makes a network from another one and a file of their difference, which is smaller than the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...guidance.errors import InputError, reason
from ...guidance.reading import read_bytes

LARGEST = 20_000_000  # bytes of a file
PROBE, CLOSE = "probe:", 0.02
"""Prefix of a file's entries with the first values of some weights that it is for, and how near these must be."""


def twin(network: nn.Module, path: Path) -> nn.Module:
    """Return the twin of a network: the same network with the difference in a file added to its weights.

    Args:
        network: the network that the difference is from, in any type and on any device; left as it is.
        path: the file, as `guidestack.scripts.dev.emoji.twin` writes it.

    Returns:
        A network of the same class, device and type.

    Raises:
        InputError: the file cannot be read, or is for another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        difference = load(read_bytes(path, "difference of networks", LARGEST))
    except SafetensorError as error:
        raise InputError(f"{str(path)!r} is no difference of networks: {reason(error)}") from error
    own: Any = network
    other = type(own).from_config(own.config)
    weights = {name: value.detach() for name, value in network.state_dict().items() if name in other.state_dict()}
    if not _is_for(difference, weights):
        raise InputError(
            f"{path.name} is a difference from the bundled model's network, and this pipeline's network is another; "
            "give the folder of an earlier checkpoint of it"
        )
    other.load_state_dict({name: changed(value, difference, name) for name, value in weights.items()})
    device, dtype = next(iter(weights.values())).device, next(iter(weights.values())).dtype
    # torch's own `to`: that of diffusers warns of every change of type.
    found: nn.Module = nn.Module.to(other, device, dtype)
    return found.requires_grad_(False).eval()


def _is_for(difference: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether a difference was taken from these weights, whose type may differ."""
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
    """Return a weight with its part of a difference added: ``left @ right``, in 8 bits with a scale for each rank."""
    if f"{name}.left" not in difference:
        return weight.float()
    left, right = difference[f"{name}.left"].float(), difference[f"{name}.right"].float()
    change = (left * difference[f"{name}.scale"].float()) @ right
    return weight.float() + change.reshape(weight.shape).to(weight.device)
