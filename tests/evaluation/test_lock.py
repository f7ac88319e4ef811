"""One launch at a time writes to a run folder, whatever has died before, and whatever clocks say."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from guidestack.evaluation.run import runner
from guidestack.evaluation.run.runner import Options, Prepared, run_sweep
from guidestack.evaluation.store import lock
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.store.location import Location
from guidestack.evaluation.store.lock import Launch, Lock, ObjectLock, held
from guidestack.guidance.errors import InputError

from .common import sweep_of

REFUSED = "is writing to .*; wait for it, stop it, or choose another --out"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life within the time of a test."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(lock, "WAIT", 0.05)
    monkeypatch.setattr(lock, "LOOK", 0.01)


@pytest.fixture(params=["disk", "store"])
def location(request: pytest.FixtureRequest, tmp_path: Path, quick: None) -> Iterator[Location]:
    """A run folder on a disk, and one in an object store."""
    found = Location(tmp_path if request.param == "disk" else "memory://lock")
    found.create()
    yield found
    if not found.local:
        found.fs.rm(found.root, recursive=True)


def test_a_lock_is_one_launch_s_and_leaves_nothing(location: Location) -> None:
    with held(location, Launch()):
        for launch in (Launch(), Launch("another", 1, 2)):
            with pytest.raises(InputError, match=rf"process {os.getpid()} on .* {REFUSED}"), held(location, launch):
                pass
    assert location.names("locks") == []
    with held(location, Launch()):
        pass


def test_processes_of_one_launch_share_a_folder(location: Location) -> None:
    with held(location, Launch("l", 1, 2)) as one, held(location, Launch("l", 0, 2)) as other:
        assert (one.others(), other.others()) == ({0: True}, {1: True})
        for launch in (Launch("l", 1, 2), Launch("m", 0, 2), Launch("m", 2, 3)):
            with pytest.raises(InputError, match=REFUSED), held(location, launch):
                pass
    assert location.names("locks") == []


def test_of_two_launches_at_once_one_sees_the_other(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes between the first one's taking its lock and its looking at the others."""
    real, seen = Lock.settle, []

    def settle(self: Lock) -> None:
        if not seen:
            seen.append(self)
            with pytest.raises(InputError, match=REFUSED), held(location, Launch("second", 1, 2)):
                pass
        real(self)

    monkeypatch.setattr(Lock, "settle", settle)
    with held(location, Launch("first", 0, 2)):
        pass
    assert seen


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\xff\x00",
        b"[1]",
        b"[" * 100_000,
        b"{}",
        b'{"launch": 3, "rank": "a", "host": null, "pid": [], "since": {}, "beat": NaN}',
        b'{"launch": "l", "rank": 1e999}',
        json.dumps({"name": "of an older version", "beat": 1.0}).encode(),
        b'{"launch": "dead", "rank": 0, "host": "elsewhere", "pid": 1, "since": "99:99:99", "beat": 0}',
    ],
)
@pytest.mark.parametrize("name", ["0", "0-1", "7", "0123456789abcdef", "²-³"])
def test_what_a_dead_process_or_somebody_else_has_left_blocks_nobody(
    location: Location, name: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE", 0.05)
    location.write(f"locks/{name}.json", written)
    with held(location, Launch()):
        assert name == "0" or f"{name}.json" not in location.names("locks")
    assert location.names("locks") == []


# --- on a disk -------------------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from guidestack.evaluation.store.location import Location
from guidestack.evaluation.store.lock import Launch, held
with held(Location(sys.argv[1]), Launch(sys.argv[2], int(sys.argv[3]), 2)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that holds a lock of `tmp_path`."""
    started: list[subprocess.Popen[str]] = []

    def start(launch: str = "", rank: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER, str(tmp_path), launch, str(rank)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def died(process: subprocess.Popen[str]) -> None:
    """Kill a process, and do not reap it: nobody does in many a container."""
    process.send_signal(signal.SIGKILL)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)


def test_another_process_is_refused_until_it_dies(
    tmp_path: Path, owner: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = owner()
    monkeypatch.setattr(lock.time, "time", itertools.count(-1e6, 1e5).__next__)  # clocks that differ change nothing
    with pytest.raises(InputError, match=f"process {process.pid} on "), held(Location(tmp_path), Launch()):
        pass
    died(process)  # its last thread may hold the file for a moment longer, and is waited for
    monkeypatch.setattr(lock, "WAIT", 5.0)
    with held(Location(tmp_path), Launch()):
        pass
    assert Location(tmp_path).names("locks") == []


def test_a_launch_does_not_wait_for_a_dead_process(
    tmp_path: Path, owner: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = owner("l", 1)
    monkeypatch.setattr(runner, "GRACE", 1e9)
    monkeypatch.setattr(runner, "POLL", 0.0)
    real = Lock.others

    def others(self: Lock) -> dict[int, bool]:
        found = real(self)
        if found == {1: True}:
            died(process)
        return found

    monkeypatch.setattr(Lock, "others", others)
    prepared = Prepared(sweep_of(model_folder), Options(launch=Launch("l", 0, 2)))
    assert run_sweep(prepared, RunFolder(tmp_path)).missing > 0


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot lock .*: File exists; give an --out"),
        held(Location(tmp_path), Launch()),
    ):
        pass


# --- in an object store ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(quick: None) -> Iterator[Location]:
    found = Location("memory://lock")
    found.create()
    yield found
    found.fs.rm(found.root, recursive=True)


def test_a_silent_owner_is_taken_over_and_learns_it(store: Location) -> None:
    with held(store, Launch()) as silent:
        assert isinstance(silent, ObjectLock)
        silent.check()
        real, silent.quick.write = silent.quick.write, lambda *_: None  # type: ignore[method-assign]  # a network that is gone
        with held(Location("memory://lock"), Launch()) as fresh:
            fresh.check()
            silent.quick.write = real  # type: ignore[method-assign]
            silent._thread.join(timeout=30)
            with pytest.raises(InputError, match=r"another run has taken over memory://lock, .*; what is finished"):
                silent.check()
            fresh.check()
            assert store.names("locks") == [f"{fresh.name}.json"]
    assert store.names("locks") == []


def test_an_owner_that_lives_is_not_taken_over_however_late_its_clock(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.time, "time", lambda: 0.0)
    with held(store, Launch()) as mine:
        monkeypatch.setattr(lock.time, "time", lambda: 1e10)
        monkeypatch.setattr(lock, "STALE", 1e9)
        for _ in range(3):
            with pytest.raises(InputError, match=REFUSED), held(Location("memory://lock"), Launch()):
                pass
        mine.check()


def test_only_one_of_several_takes_the_place_of_a_dead_owner(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE", 0.1)
    store.write("locks/0-4.json", b'{"launch": "dead", "host": "elsewhere", "pid": 1}')
    barrier, won, refused = threading.Barrier(3), [], []
    create = Location.create_file

    def create_at_once(self: Location, relative: str, data: bytes) -> bool:
        barrier.wait()  # all have seen that the owner is dead
        with lonely:
            return create(self, relative, data)

    lonely, ended = threading.Lock(), threading.Event()
    monkeypatch.setattr(Location, "create_file", create_at_once)

    def contend() -> None:
        try:
            with held(Location("memory://lock"), Launch()) as mine:
                won.append(mine.name)
                ended.wait(10)
        except InputError:
            refused.append(1)
            if len(refused) == 2:
                ended.set()

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (won, len(refused)) == (["0-5"], 2)
    assert store.names("locks") == []


def test_a_run_stops_when_its_folder_is_taken_over(
    store: Location, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectLock, "_lost", True, raising=False)
    monkeypatch.setattr(ObjectLock, "_beat", lambda self: setattr(self, "_lost", True))
    with pytest.raises(InputError, match="another run has taken over"):
        run_sweep(Prepared(sweep_of(model_folder), Options()), RunFolder("memory://lock"))


# --- launches --------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_who_is_launched_is_told_by_the_environment(environment: Any) -> None:
    assert Launch.here() == Launch()
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}.items():
        environment(name, value)
    found = Launch.here()
    assert (found.rank, found.world, found.local) == (3, 4, 1)
    assert found.name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "two", "whole numbers"),
        ("RANK", "9" * 5000, "whole numbers"),
        ("RANK", "4", "0 to WORLD_SIZE - 1"),
    ],
)
def test_an_environment_that_describes_no_launch(environment: Any, name: str, value: str, message: str) -> None:
    environment("WORLD_SIZE", "4")
    environment(name, value)
    with pytest.raises(InputError, match=message):
        Launch.here()
