"""Small sweeps on the tiny pipeline, and what it means that two run folders hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from guidestack.evaluation.run.progress import Outcome, Progress
from guidestack.evaluation.run.runner import Options, Prepared, run_sweep
from guidestack.evaluation.spec.sweep import Sweep, parse_sweep
from guidestack.evaluation.store.folder import RunFolder

# 20 samples of 4 cells, each in a batch of 3 and one of 2.
PLAIN: dict[str, Any] = {
    "prompts": ["a cat", "red", "sea", "b", "c"],
    "seeds": {"each": 1, "start": 3},
    "stack": ["cfg({w})", "apg({w}, eta=0)"],
    "axes": {"w": [2, 5]},
    "sampler": "ddim",
    "steps": 3,
    "batch": 3,
}
SAMPLES = 20
TIMES = ("seconds", "made")
"""Columns that say when and how fast; all others are the same for the same sweep."""


def written(folder: Path, **keys: Any) -> str:
    """The YAML of a sweep of the model in `folder`; None leaves a key out."""
    whole = {"model": str(folder), **PLAIN, **keys}
    return yaml.safe_dump({key: value for key, value in whole.items() if value is not None}, sort_keys=False)


def sweep_of(model: Path, **keys: Any) -> Sweep:
    return parse_sweep(written(model, **keys).encode(), "s.yaml")


def run(model: Path, out: object, progress: Progress | None = None, **keys: Any) -> Outcome:
    """Run a sweep to its end, in this process."""
    return run_sweep(Prepared(sweep_of(model, **keys), Options()), RunFolder(str(out), patience=5), progress)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The records but for times."""
    table = folder.records()
    return table.drop_columns([name for name in TIMES if name in table.column_names]).to_pylist()


def pixels(folder: RunFolder) -> dict[str, bytes]:
    """The images by address."""
    table = folder.records(["address", "image"])
    return {
        row["address"]: np.asarray(folder.image(row["image"])).tobytes()
        for row in table.to_pylist()
        if row["image"] is not None
    }


def assert_same(one: object, other: object, samples: int = SAMPLES) -> None:
    """Records and images of two folders are the same to the bit, and nothing else lies around."""
    left, right = RunFolder(str(one)), RunFolder(str(other))
    assert len(rows(left)) == samples
    assert rows(left) == rows(right)
    assert pixels(left) == pixels(right)
    assert len(set(pixels(left).values())) > samples // 2  # else the comparison would say little
    for folder in (left, right):
        assert folder.record_files() == ["records.parquet"]
        assert folder.location.names("locks") == []
        if folder.location.local:
            root = Path(folder.location.root)
            assert list(root.rglob(".*")) == []
            assert len(list(root.rglob("*.png"))) == samples
