"""Sweeps of rules on particles: whole groups in a batch, every image by itself, gone on with where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guidestack.evaluation.run.runner import Options, Prepared
from guidestack.evaluation.store.folder import RunFolder

from .common import assert_same, pixels, rows, run, sweep_of
from .test_runner import Stop

PARTICLES = {"stack": ["cfg(2)", "resample(2, {w}, clamp=1)"], "axes": {"w": [2, 5]}, "sampler": "ddpm", "batch": 5}
SAMPLES = 15


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("particles") / "run"
    assert run(model_folder, out, **PARTICLES).made == SAMPLES
    return out


def test_images_cost_what_their_particles_cost(whole: Path, model_folder: Path) -> None:
    prepared = Prepared(sweep_of(model_folder, **PARTICLES), Options())
    foretold = {cell.stack: cost.mean for cell, cost in prepared.costs.items()}
    assert foretold == {"cfg(2)": 6, "resample(2, 2, clamp=1)": 12, "resample(2, 5, clamp=1)": 12}
    for row in rows(RunFolder(whole)):
        assert row["evaluations"] == foretold[row["stack"]]
        assert row["batch"] <= (5 if row["stack"] == "cfg(2)" else 2)  # two images have four particles
        assert row["effective_scale"] == row["effective_scale"]


def test_a_stopped_sweep_of_particles_goes_on(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path, Stop(3), **PARTICLES)
    assert 0 < len(RunFolder(tmp_path).addresses()) < SAMPLES
    run(model_folder, tmp_path, **PARTICLES)
    assert_same(tmp_path, whole, SAMPLES)


def test_other_cells_are_what_they_are_without_particles(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path, **{**PARTICLES, "stack": "cfg(2)", "axes": None})
    alone = pixels(RunFolder(tmp_path))
    assert {address: image for address, image in pixels(RunFolder(whole)).items() if address in alone} == alone


def test_an_image_of_a_sweep_is_made_again_by_generate(
    whole: Path, model_folder: Path, command: Any, tmp_path: Path
) -> None:
    from guidestack.pipelines.models.files import opened

    row = next(one for one in rows(RunFolder(whole)) if one["stack"] == "resample(2, 5, clamp=1)")
    status, _, err = command("generate", "--like", whole / row["image"], "--model", model_folder, "--out", tmp_path)
    assert status == 0, err
    (again,) = tmp_path.glob("*.png")
    assert np.array_equal(np.asarray(opened(again)), np.asarray(opened(whole / row["image"])))
