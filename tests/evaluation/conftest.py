"""Processes for the tests that need several, or one to kill."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server() -> Any:
    """Makes processes that start with everything imported, and without this one's threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
            "diffusers.schedulers.scheduling_ddim",
            "transformers.models.clip.tokenization_clip",
            "guidestack.evaluation.run.runner",
        ]
    )
    return context


@pytest.fixture(scope="session")
def reported(model_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the tiny pipeline with its report."""
    from guidestack.evaluation.report.report import report
    from guidestack.evaluation.store.folder import RunFolder

    from .common import run
    from .reported import WICKED

    out = tmp_path_factory.mktemp("reported") / "run"
    run(model_folder, out, prompts=[WICKED, "red", "sea", "b", "c"], metrics=["saturation", "contrast"], traces=True)
    report(RunFolder(out))
    return out
