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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import filelock

from ...guidance.errors import InputError
from .location import Location

FOLDER = "locks"
WAIT = 1.0  # seconds for which a lock that is taken is tried again: whoever looks at one has it for a moment
BEAT = 2.0  # seconds between two signs of life on an object store
STALE = 20.0  # seconds without one after which the owner counts as dead


@dataclass(frozen=True)
class Owner:
    """A process that writes to a run folder.

    Args:
        launch: what the processes of one launch have in common.
        rank: its place among these.
        host: its machine.
        pid: its process there.
        since: when it took the lock, by its own clock; for messages only.
        beat: a number that changes while it lives, on an object store.
    """

    launch: str
    rank: int
    host: str = ""
    pid: int = 0
    since: str = ""
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.host else "another process"

    def to_bytes(self) -> bytes:
        """The contents of the owner's file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of_bytes(cls, data: bytes) -> Owner:
        """The owner in a file; one of no launch where the file holds something else."""
        try:
            found = cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return NOBODY
        right = all(type(value) is type(getattr(NOBODY, name)) for name, value in asdict(found).items())
        return found if right else NOBODY


NOBODY = Owner("", -1)


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

        def first(*names: str, default: str) -> str:
            return next((os.environ[name] for name in names if os.environ.get(name)), default)

        try:
            world = int(first("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", default="1"))
            rank = int(first("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", default="0"))
            local = int(first("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", default="0"))
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
    name = launch.name or secrets.token_hex(8)
    owner = Owner(name, launch.rank, socket.gethostname(), os.getpid(), time.strftime("%H:%M:%S"))
    lock: Lock = FileLock(location, owner) if location.local else ObjectLock(location, owner)
    lock.take()
    try:
        lock.settle()
        location.clear(FOLDER)
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock of one process on a run folder.

    Args:
        location: the run folder.
        owner: the process.
    """

    def __init__(self, location: Location, owner: Owner) -> None:
        self.location, self.owner = location, owner
        self.quick = copy.copy(location)  # what waits for nothing: signs of life, and what a release leaves behind
        self.quick.patience = 0.0
        self.name = str(owner.rank)

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
            began = time.monotonic()
            while not self._fellow(owner := self._seen(name) or NOBODY):
                if not self._lives(name):
                    self._drop(name)
                    break
                if time.monotonic() - began > WAIT:  # for a moment a lock has the name of the one who had it before
                    raise self._taken(owner)
                time.sleep(0.05)

    def others(self) -> dict[int, bool]:
        """The other processes of this launch that have a lock or have died with one: by rank, whether each lives."""
        seen = {name: self._seen(name) or NOBODY for name in self._names()}
        return {owner.rank: self._alive(name) for name, owner in seen.items() if self._fellow(owner)}

    def check(self) -> None:
        """Make sure that the lock is still this process's.

        Raises:
            InputError: another run has taken it.
        """

    def release(self) -> None:
        """Let go of the lock; nothing is left behind."""
        raise NotImplementedError

    def _names(self) -> list[str]:
        """The names of all other locks."""
        names = [file.removesuffix(".json").removesuffix(".lock") for file in self.location.names(FOLDER)]
        return [name for name in dict.fromkeys(names) if name != self.name]

    def _seen(self, name: str) -> Owner | None:
        """Who has a lock; None where it is not there."""
        try:
            return Owner.of_bytes(self.location.read(f"{FOLDER}/{name}.json"))
        except FileNotFoundError:
            return None

    def _fellow(self, owner: Owner) -> bool:
        """Whether an owner is another process of this launch."""
        return owner.launch == self.owner.launch and owner.rank != self.owner.rank

    def _lives(self, name: str) -> bool:
        """Whether the owner of a lock lives; waits until that is known."""
        raise NotImplementedError

    def _alive(self, name: str) -> bool:
        """Whether the owner of a lock lives, as far as is known now."""
        return self._lives(name)

    def _drop(self, name: str) -> None:
        """Remove the lock of a dead process."""
        self.location.remove(f"{FOLDER}/{name}.json")

    def _taken(self, owner: Owner) -> InputError:
        since = f" since {owner.since}" * bool(owner.since)
        return InputError(
            f"{owner} is writing to {self.location}{since}; wait for it, stop it, or choose another --out"
        )


class FileLock(Lock):
    """The kernel's lock on a file, beside which a file says who has it."""

    def take(self) -> None:
        """Take the lock."""
        self._held = self._kernel(self.name)
        if not self._acquired(self._held, WAIT):
            raise self._taken(self._seen(self.name) or NOBODY)
        try:
            self.location.write(f"{FOLDER}/{self.name}.json", self.owner.to_bytes())
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of the lock. The files go first, while nobody else can have the lock."""
        self._remove(self.name)
        self._held.release()

    def _kernel(self, name: str) -> filelock.BaseFileLock:
        path = Path(self.location.path(f"{FOLDER}/{name}.lock"))
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise self._cannot(error) from error
        return filelock.FileLock(path, thread_local=False)

    def _acquired(self, lock: filelock.BaseFileLock, seconds: float) -> bool:
        try:
            lock.acquire(timeout=seconds, poll_interval=0.02)
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            raise self._cannot(error) from error
        return True

    def _cannot(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return InputError(f"cannot lock {self.location}: {reason}; give an --out that can be written to")

    def _lives(self, name: str) -> bool:
        lock = self._kernel(name)
        if not self._acquired(lock, 0):
            return True
        if not Path(self.location.path(f"{FOLDER}/{name}.json")).exists():  # released in the meantime
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        return False

    def _drop(self, name: str) -> None:
        lock = self._kernel(name)
        if self._acquired(lock, 0):
            self._remove(name)
            lock.release()

    def _remove(self, name: str) -> None:
        for suffix in (".json", ".lock"):
            with suppress(OSError):
                Path(self.location.path(f"{FOLDER}/{name}{suffix}")).unlink(missing_ok=True)


class ObjectLock(Lock):
    """An object that shows by its changes that its owner lives.

    Its name has a number. The object of a dead owner is replaced by creating that of the next number, which only one of
    several can do.
    """

    def __init__(self, location: Location, owner: Owner) -> None:
        super().__init__(location, owner)
        self._watched: dict[str, tuple[Owner, float]] = {}
        self._lost, self._stopped = False, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="guidestack-lock")

    def take(self) -> None:
        """Take the lock."""
        before = [name for name in self._names() if _rank(name) == self.owner.rank]
        for name in before:
            if self._lives(name):
                raise self._taken(self._seen(name) or NOBODY)
        self.name = f"{self.owner.rank}-{1 + max(map(_number, before), default=0)}"
        if not self.location.create_file(f"{FOLDER}/{self.name}.json", self.owner.to_bytes()):
            raise self._taken(NOBODY)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still this process's."""
        if self._lost:
            raise InputError(
                f"another run has taken over {self.location}, as this one gave no sign of life for {STALE:g} s; what "
                "is finished is safe: run again when the other one has ended"
            )

    def release(self) -> None:
        """Let go of the lock."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(InputError):
            self.quick.remove(f"{FOLDER}/{self.name}.json")

    def _beat(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT) and not self._lost:
            beat += 1
            with suppress(InputError):  # whoever writes results meets the same trouble and says so
                same = [name for name in self.quick.names(FOLDER) if _rank(name) == self.owner.rank]
                self._lost = any(_number(name) > _number(self.name) for name in same)
                if not self._lost:
                    self.quick.write(f"{FOLDER}/{self.name}.json", replace(self.owner, beat=beat).to_bytes())

    def _lives(self, name: str) -> bool:
        first, began = self._seen(name), time.monotonic()
        while first is not None and time.monotonic() - began < STALE:
            time.sleep(BEAT / 2)
            now = self._seen(name)
            if now is None or now != first:
                return now is not None
        return False

    def _alive(self, name: str) -> bool:
        now, last = self._seen(name), self._watched.get(name)
        if now is None:
            return False
        if last is None or last[0] != now:
            self._watched[name] = (now, time.monotonic())
        return time.monotonic() - self._watched[name][1] < STALE


def _rank(name: str) -> int:
    rank = name.partition("-")[0]
    return int(rank) if rank.isdecimal() else -1


def _number(name: str) -> int:
    number = name.removesuffix(".json").partition("-")[2]
    return int(number) if number.isdecimal() else 0
