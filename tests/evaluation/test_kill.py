"""kill -9 at any moment of a sweep, also while merging: what is made in the end is what an undisturbed run makes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guidestack.evaluation.store.folder import RunFolder

from .common import SAMPLES, assert_same, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(model_folder, out)
    return out


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(model: str, out: str, at: int, slowly: float) -> None:
    """Run the sweep, and die before or after operation number `at` on its files, or in the middle of a write."""
    import torch

    from guidestack.evaluation.run import writer
    from guidestack.evaluation.store import location

    torch.set_num_threads(1)
    writer.TOGETHER = 3  # so that parts become larger ones in so short a run
    left = [at]

    def deadly(name: str) -> None:
        real = getattr(location.Location, name)

        def operation(self: Any, *args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and at % 2:
                die()
            time.sleep(slowly)
            result = real(self, *args)
            if left[0] == 0:
                die()
            return result

        setattr(location.Location, name, operation)

    for name in ("write", "remove"):
        deadly(name)
    if at % 3 == 0:
        real_write = location._write_local

        def half(path: Path, data: bytes) -> None:
            if left[0] == 0:
                path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])
                die()
            real_write(path, data)

        location._write_local = half
    from .common import run

    run(Path(model), out)


def started(server: Any, model: Path, out: Path, at: int = -1, slowly: float = 0.0) -> Any:
    process = server.Process(target=child, args=(str(model), str(out), at, slowly))
    process.start()
    return process


def points() -> Iterator[int]:
    """Operations to die at: early ones, and on; the run that dies there does what those before it left."""
    yield from (1, 2, 3, 4, 5, 6, 9, 12, 15)


def test_killed_at_every_kind_of_moment(server: Any, model_folder: Path, whole: Path, tmp_path: Path) -> None:
    counts = []
    for at in points():
        process = started(server, model_folder, tmp_path, at)
        process.join()
        assert process.exitcode == -signal.SIGKILL, at
        counts.append(len(RunFolder(tmp_path).addresses()))
    assert counts == sorted(counts)  # nothing that was finished is lost
    run(model_folder, tmp_path)
    assert_same(tmp_path, whole)


def test_killed_while_merging(server: Any, model_folder: Path, whole: Path, tmp_path: Path) -> None:
    """With all samples made, every further operation is the merge's."""
    run(model_folder, tmp_path)
    folder = RunFolder(tmp_path)
    table = folder.records()
    for first in (0, 6, 12):
        folder.add_records(table.slice(first, 8))
    (tmp_path / "records.parquet").unlink()
    deaths = 0
    for at in range(2, 12):
        process = started(server, model_folder, tmp_path, at)
        process.join()
        deaths += process.exitcode == -signal.SIGKILL
        assert len(RunFolder(tmp_path).addresses()) == SAMPLES
    assert deaths >= 3
    run(model_folder, tmp_path)
    assert_same(tmp_path, whole)


def test_killed_at_random_moments(server: Any, model_folder: Path, whole: Path, tmp_path: Path) -> None:
    random_, deaths = random.Random(0), 0
    for _ in range(8):
        process = started(server, model_folder, tmp_path, slowly=0.02)
        wait = time.monotonic() + 10
        while not (tmp_path / "locks").exists() and time.monotonic() < wait:
            time.sleep(0.01)  # a run that has not begun has nothing to lose
        time.sleep(random_.uniform(0, 0.7))
        process.kill()
        process.join()
        deaths += process.exitcode == -signal.SIGKILL
    assert deaths
    run(model_folder, tmp_path)
    assert_same(tmp_path, whole)
