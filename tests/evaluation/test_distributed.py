"""Several processes make what one makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guidestack.evaluation.run import runner
from guidestack.evaluation.run.runner import Options, Prepared, run_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.store.lock import Launch
from guidestack.guidance.errors import InputError

from .common import SAMPLES, assert_same, run, sweep_of, written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(model_folder, out)
    return out


def one_of(model: str, out: str, rank: int, world: int, results: Any) -> None:
    import torch

    torch.set_num_threads(1)
    prepared = Prepared(sweep_of(Path(model)), Options(launch=Launch("together", rank, world)))
    outcome = run_sweep(prepared, RunFolder(out))
    whole = outcome.existing + outcome.made + outcome.others
    results.put((rank, outcome.made, whole, outcome.records))


def start(server: Any, model: Path, out: Path, ranks: range, world: int) -> tuple[list[Any], Any]:
    results = server.Queue()
    processes = [server.Process(target=one_of, args=(str(model), str(out), rank, world, results)) for rank in ranks]
    for process in processes:
        process.start()
    return processes, results


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_sweep(server: Any, whole: Path, model_folder: Path, tmp_path: Path, world: int) -> None:
    processes, results = start(server, model_folder, tmp_path, range(world), world)
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert sum(made for _, made, _, _ in found) == SAMPLES
    assert found[0][2] == SAMPLES  # what the others made is counted by the first one
    assert [records for _, _, _, records in found] == [SAMPLES, *[0] * (world - 1)]  # the first one merges
    assert_same(tmp_path, whole)


def test_what_a_dead_process_leaves_is_made_by_the_next_run(
    server: Any, whole: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    monkeypatch.setattr(runner, "POLL", 0.05)
    (other,), _ = start(server, model_folder, tmp_path, range(1, 2), 2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "locks").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    prepared = Prepared(sweep_of(model_folder), Options(launch=Launch("together", 0, 2)))
    outcome = run_sweep(prepared, RunFolder(tmp_path))
    assert outcome.missing > 0
    assert outcome.existing + outcome.made + outcome.others == outcome.records
    assert outcome.records == SAMPLES - outcome.missing
    with pytest.raises(InputError, match=f"{outcome.missing} samples are missing"):
        runner.refuse_missing(outcome.missing)
    run(model_folder, tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_under_a_launcher(whole: Path, model_folder: Path, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder))
    command = {
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        ],
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"],
    }[launcher]
    arguments = ["-m", "guidestack.scripts.evaluate", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "images made by 2 processes" in done.stdout
    assert f"{SAMPLES} rows" in done.stdout
    assert_same(tmp_path / "run", whole)
