"""Who writes to a run folder: the processes of one launch at a time, and never one that is dead.

Every process has a lock of its own, named by its rank, so that two launches meet at rank 0. A process takes its lock
first and looks at all others then, and lets go again if one of them is of another launch: of two launches that begin at
the same moment at least one sees the other.

* On a file system the lock is the kernel's (`filelock`). It is free as soon as its process has ended, also where that
  was killed and nobody has reaped it. Network file systems free it when they miss the machine.
* On an object store the lock is an object that is created only where there is none. Its owner writes it anew every
  `BEAT` seconds, with another number. Whoever meets it watches by its own clock whether it changes; what has not
  changed for `STALE` seconds has no owner any more.

No clock is compared with the clock of another machine.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from ...guidance.errors import InputError, cut, reason
from .location import Location

FOLDER = "locks"
WAIT = 1.0  # seconds for which a lock that is taken is tried again: whoever looks at one has it for a moment
BEAT = 2.0  # seconds between two signs of life on an object store
STALE = 20.0  # seconds without one after which the owner counts as dead
LOOK = 0.1  # seconds between two looks at a lock


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
        """The launch that the environment of this process describes.

        Raises:
            InputError: the environment has a number of processes that is none.
        """

        def first(*names: str, default: str) -> int:
            return int(next((os.environ[name] for name in names if os.environ.get(name)), default))

        try:
            world = first("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", default="1")
            rank = first("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", default="0")
            local = first("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", default="0")
        except ValueError as error:
            raise InputError(
                f"WORLD_SIZE, RANK and LOCAL_RANK of the environment are whole numbers: {error}"
            ) from error
        if world == 1:
            return cls()
        if not 0 <= rank < world:
            raise InputError(f"RANK of the environment is 0 to WORLD_SIZE - 1; got {rank} of {world}")
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return cls(f"{where} {os.environ.get('TORCHELASTIC_RUN_ID', '')} {world}", rank, world, local)


@contextmanager
def held(location: Location, launch: Launch) -> Iterator[Lock]:
    """Hold a lock of a run folder.

    Args:
        location: the run folder, which is there.
        launch: processes of one launch share the folder.

    Raises:
        InputError: another run is writing to it, or it cannot be locked.
    """
    lock: Lock = FileLock(location, launch) if location.local else ObjectLock(location, launch)
    try:
        lock.take()
        lock.settle()
        location.clear(FOLDER)
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock of one process on a run folder. A file says who has it; what somebody else has put there says nothing.

    Args:
        location: the run folder.
        launch: of the process.

    Attributes:
        name: of the lock, "" while it is not taken. It begins with the rank.
    """

    def __init__(self, location: Location, launch: Launch) -> None:
        self.location, self.rank, self.name, self._lost = location, launch.rank, "", False
        self.quick = copy.copy(location)  # what waits for nothing: signs of life, and what a release leaves behind
        self.quick.patience = 0.0
        self.owner: dict[str, Any] = {
            "launch": launch.name or secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%H:%M:%S"),  # by this process's own clock, for messages only
        }

    def take(self) -> None:
        """Take the lock.

        Raises:
            InputError: another process has it.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Refuse if another launch is at work, and remove what dead processes have left.

        Raises:
            InputError: another launch is at work.
        """
        for name in self._names():
            self._outlive(name)
            if not self._fellow(name):
                self.location.remove(f"{FOLDER}/{name}.json")

    def others(self) -> dict[int, bool]:
        """The other processes of this launch that have a lock or have died with one: by rank, whether each lives."""
        return {_rank(name): self._alive(name) is not False for name in self._names() if self._fellow(name)}

    def check(self) -> None:
        """Check that the lock is still this process's.

        Raises:
            InputError: another run has taken it over.
        """
        if self._lost:
            raise InputError(
                f"another run has taken over {self.location}, as this one gave no sign of life for {STALE:g} s; what "
                "is finished is safe: run again when the other one has ended"
            )

    def release(self) -> None:
        """Let go of the lock, if it was taken; nothing is left behind."""
        raise NotImplementedError

    def _alive(self, name: str) -> bool | None:
        """Whether the owner of a lock lives; None while that is not known."""
        raise NotImplementedError

    def _names(self) -> list[str]:
        """The names of all other locks."""
        names = [file.removesuffix(".json").removesuffix(".lock") for file in self.location.names(FOLDER)]
        return [name for name in dict.fromkeys(names) if name != self.name]

    def _read(self, name: str) -> bytes | None:
        try:
            return self.location.read(f"{FOLDER}/{name}.json")
        except FileNotFoundError:
            return None

    def _owner(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._read(name) or b"")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _fellow(self, name: str) -> bool:
        """Whether the owner of a lock is another process of this launch."""
        return _rank(name) != self.rank and self._owner(name).get("launch") == self.owner["launch"]

    def _outlive(self, name: str) -> None:
        """Wait until it is known that the owner of a lock is dead, or a process of this launch.

        Raises:
            InputError: it lives, and is of another launch.
        """
        until = time.monotonic() + WAIT  # for a moment a lock has the name of the one who had it before
        while not self._fellow(name) and (alive := self._alive(name)) is not False:
            if alive and time.monotonic() > until:
                raise self._taken(name)
            time.sleep(LOOK)

    def _taken(self, name: str) -> InputError:
        owner = self._owner(name)
        who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= set(owner) else "another process"
        since = f" since {owner['since']}" if owner.get("since") else ""
        return InputError(
            f"{cut(f'{who}{since}', 200)} is writing to {self.location}; wait for it, stop it, or choose another --out"
        )


class FileLock(Lock):
    """The kernel's lock on a file, beside which a file says who has it."""

    def take(self) -> None:
        """Take the lock."""
        name = str(self.rank)
        held = self._acquired(name, WAIT)
        if held is None:
            raise self._taken(name)
        self._held, self.name = held, name
        self.location.write(f"{FOLDER}/{name}.json", json.dumps(self.owner).encode())

    def release(self) -> None:
        """Let go of the lock. The files go first, while nobody else can have the lock."""
        if self.name:
            self._remove(self._held, self.name)

    def _alive(self, name: str) -> bool:
        """Whether the owner of a lock lives; what a dead one has left is removed."""
        lock = self._acquired(name, 0)
        if lock is None:
            return True
        self._remove(lock, name)
        return False

    def _acquired(self, name: str, seconds: float) -> filelock.BaseFileLock | None:
        """The kernel's lock of a name, which this process has now; None where another one has it."""
        path = Path(self.location.path(f"{FOLDER}/{name}.lock"))
        lock = filelock.FileLock(path, thread_local=False)
        try:
            path.parent.mkdir(exist_ok=True)
            lock.acquire(timeout=seconds, poll_interval=0.02)
        except filelock.Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            raise InputError(
                f"cannot lock {self.location}: {reason(error)}; give an --out that can be written to"
            ) from error
        return lock

    def _remove(self, lock: filelock.BaseFileLock, name: str) -> None:
        """Remove the files of a lock that this process has, and release it."""
        for suffix in (".json", ".lock"):
            with suppress(OSError):
                Path(self.location.path(f"{FOLDER}/{name}{suffix}")).unlink(missing_ok=True)
        lock.release()


class ObjectLock(Lock):
    """An object that shows by its changes that its owner lives.

    Its name has a number. The object of a dead owner is replaced by creating that of the next number, which only one of
    several can do.
    """

    def __init__(self, location: Location, launch: Launch) -> None:
        super().__init__(location, launch)
        self._watched: dict[str, tuple[bytes, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="guidestack-lock")

    def take(self) -> None:
        """Take the lock."""
        before = [name for name in self._names() if _rank(name) == self.rank]
        for name in before:
            self._outlive(name)
        name = f"{self.rank}-{1 + max(map(_number, before), default=0)}"
        if not self.location.create_file(f"{FOLDER}/{name}.json", json.dumps(self.owner).encode()):
            raise self._taken(name)
        self.name = name
        self._thread.start()

    def release(self) -> None:
        """Let go of the lock."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.name:
            with suppress(InputError):
                self.quick.remove(f"{FOLDER}/{self.name}.json")

    def _beat(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT) and not self._lost:
            beat += 1
            with suppress(InputError):  # whoever writes results meets the same trouble and says so
                same = [name for name in self.quick.names(FOLDER) if _rank(name) == self.rank]
                self._lost = any(_number(name) > _number(self.name) for name in same)
                if not self._lost:
                    told = json.dumps({**self.owner, "beat": beat}).encode()
                    self.quick.write(f"{FOLDER}/{self.name}.json", told)

    def _alive(self, name: str) -> bool | None:
        now = self._read(name)
        if now is None:
            return False
        before, since = self._watched.get(name, (None, 0.0))
        if now != before:
            self._watched[name] = (now, time.monotonic())
            return None if before is None else True
        return None if time.monotonic() - since < STALE else False


def _rank(name: str) -> int:
    rank = name.removesuffix(".json").partition("-")[0]
    return int(rank) if rank.isdecimal() else -1


def _number(name: str) -> int:
    number = name.removesuffix(".json").partition("-")[2]
    return int(number) if number.isdecimal() else 0
