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
            "guidestack.evaluation.runner",
        ]
    )
    return context
