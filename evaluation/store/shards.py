"""Arrays by address in safetensors files that are only ever added: features and traces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ...guidance.errors import InputError, reason
from .location import Location

SUFFIX = ".safetensors"
ADDRESS = "address"  # of the tensor with the addresses, bytes of shape (N, 16)


@dataclass(frozen=True, eq=False)
class Shard:
    """Arrays with a row for each of some samples.

    Args:
        addresses: of N samples, hex.
        arrays: by name, each with N rows.
    """

    addresses: list[str]
    arrays: dict[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """The shard as the contents of a safetensors file."""
        packed = np.frombuffer(b"".join(map(bytes.fromhex, self.addresses)), np.uint8).reshape(len(self.addresses), -1)
        arrays = {name: np.ascontiguousarray(rows) for name, rows in self.arrays.items()}
        return bytes(safetensors.numpy.save({ADDRESS: packed, **arrays}))

    @classmethod
    def of_bytes(cls, data: bytes) -> Shard:
        """The shard in the contents of a file that `to_bytes` made.

        Raises:
            ValueError: the contents are no such file.
        """
        try:
            arrays = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
        packed = arrays.pop(ADDRESS, None)
        if packed is None or packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != 16:
            raise ValueError(f"no tensor {ADDRESS!r} of addresses")
        if any(rows.shape[:1] != packed.shape[:1] for rows in arrays.values()):
            raise ValueError("arrays of different lengths")
        return cls([row.tobytes().hex() for row in packed], arrays)


def joined(several: Sequence[Shard]) -> Shard:
    """Shards one below the other; where rows differ in length or are missing, NaN fills them up."""
    addresses = [address for one in several for address in one.addresses]
    arrays: dict[str, NDArray[Any]] = {}
    for name in sorted({name for one in several for name in one.arrays}):
        parts = [one.arrays.get(name) for one in several]
        known = next(part for part in parts if part is not None)
        if known.ndim == 1:
            arrays[name] = np.concatenate([part for part in parts if part is not None])
            continue
        width = max(part.shape[1] for part in parts if part is not None)
        whole = np.full((len(addresses), width), np.nan, known.dtype)
        at = 0
        for one, part in zip(several, parts, strict=True):
            if part is not None:
                whole[at : at + len(part), : part.shape[1]] = part
            at += len(one.addresses)
        arrays[name] = whole
    return Shard(addresses, arrays)


def add(location: Location, folder: str, shard: Shard) -> str:
    """Write a shard as a file of its own, whose name follows from the addresses; returns it."""
    name = f"{folder}/{digest(shard.addresses)}{SUFFIX}"
    location.write(name, shard.to_bytes())
    return name


def load(location: Location, name: str) -> Shard:
    """The shard in a file of a run folder.

    Raises:
        FileNotFoundError: it is not there.
        InputError: it is damaged.
    """
    try:
        return Shard.of_bytes(location.read(name))
    except ValueError as error:
        raise InputError(f"{name} of {location} is damaged: {reason(error)}; remove it") from error


def read(location: Location, folder: str) -> Iterator[Shard]:
    """Every shard of a folder."""
    for name in location.names(folder):
        if name.endswith(SUFFIX):
            try:
                yield load(location, f"{folder}/{name}")
            except FileNotFoundError:
                continue  # made into a larger one in the meantime, or removed


def digest(addresses: Sequence[str]) -> str:
    """A name for a set of samples."""
    return hashlib.blake2b("".join(addresses).encode(), digest_size=8).hexdigest()


def filename(text: str) -> str:
    """`text` as the name of a file; what is not a plain one gets a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60]
    return plain if plain == text else f"{plain}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
