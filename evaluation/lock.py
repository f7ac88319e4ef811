"""Who writes to a run folder: one run at a time, and no run that is dead."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from ..guidance.errors import InputError
from .location import Location

FOLDER = "locks"
BEAT = 10.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a run on another machine counts as dead


@dataclass(frozen=True)
class Owner:
    """A process that writes to a run folder.

    Args:
        name: of its lock, random.
        launch: what the processes of one launch have in common.
        rank: its place among these.
        host: its machine.
        pid: its process there.
        born: when that process started, which tells it from a later one of the same number; seconds since 1970.
        since: when it took the lock.
        beat: its last sign of life.
    """

    name: str
    launch: str
    rank: int
    host: str
    pid: int
    born: float
    since: float
    beat: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def alive(self) -> bool:
        """Whether it runs: on this machine the process itself is looked for, elsewhere its signs of life count."""
        if self.host == socket.gethostname():
            try:
                return bool(abs(psutil.Process(self.pid).create_time() - self.born) < 1)
            except psutil.Error:
                return False
        return time.time() - self.beat < STALE


@dataclass(frozen=True)
class Launch:
    """The processes that `accelerate launch` or torchrun starts together; one by itself otherwise.

    Args:
        name: the same for all of them.
        rank: place of this one.
        world: how many.
        local: its place on its machine.
    """

    name: str = ""
    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Launch:
        """As the environment says."""

        def first(*names: str, default: str) -> str:
            return next((os.environ[name] for name in names if os.environ.get(name)), default)

        world = int(first("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", default="1"))
        rank = int(first("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", default="0"))
        local = int(first("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", default="0"))
        if world == 1:
            return cls()
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return cls(f"{where} {os.environ.get('TORCHELASTIC_RUN_ID', '')} {world}", rank, world, local)


def owners(location: Location) -> list[Owner]:
    """Everybody who has a lock, dead or alive."""
    found = []
    for name in location.names(FOLDER):
        try:
            found.append(Owner(**json.loads(location.read(f"{FOLDER}/{name}"))))
        except (FileNotFoundError, ValueError, TypeError):
            continue  # released in the meantime, or of another version
    return found


@contextmanager
def held(location: Location, launch: Launch) -> Iterator[Owner]:
    """Hold the lock of a run folder.

    Everybody writes a lock of their own and then looks who else has one: whoever came first stays.

    Args:
        location: the run folder.
        launch: processes of one launch share the folder.

    Raises:
        InputError: another run is writing to it.
    """
    process, now = psutil.Process(), time.time()
    owner = Owner(
        secrets.token_hex(8),
        launch.name or secrets.token_hex(8),
        launch.rank,
        socket.gethostname(),
        process.pid,
        process.create_time(),
        now,
        now,
    )
    file = f"{FOLDER}/{owner.name}.json"
    beating = _Heart(location, file, owner)
    try:
        beating.write()
        for other in owners(location):
            if other.name == owner.name:
                continue
            if not other.alive():
                location.remove(f"{FOLDER}/{other.name}.json")
            elif (other.launch != owner.launch or other.rank == owner.rank) and (
                (other.since, other.name) < (owner.since, owner.name)
            ):
                raise InputError(
                    f"{other} is writing to {location} since {time.strftime('%H:%M:%S', time.localtime(other.since))}; "
                    "wait for it, stop it, or choose another --out"
                )
        location.clear(FOLDER)  # a process of this launch whose write that meets writes again
        beating.start()
        yield owner
    finally:
        beating.stop()
        location.remove(file)


class _Heart(threading.Thread):
    """Signs of life, until it is stopped."""

    def __init__(self, location: Location, file: str, owner: Owner) -> None:
        super().__init__(daemon=True, name="guidestack-lock")
        self.location, self.file, self.owner = location, file, owner
        self.stopped = threading.Event()

    def write(self) -> None:
        """Say that the owner lives."""
        written: dict[str, Any] = asdict(replace(self.owner, beat=time.time()))
        self.location.write(self.file, json.dumps(written).encode())

    def run(self) -> None:
        """Beat."""
        while not self.stopped.wait(BEAT):
            try:
                self.write()
            except InputError:
                continue  # whoever writes results meets the same trouble and says so

    def stop(self) -> None:
        """Beat no more."""
        self.stopped.set()
        if self.is_alive():
            self.join()
