"""Where image pipelines begin their runs: each level is that of the timestep that the network is told.

The levels themselves are held to what schedulers do with them in ``tests/samplers/test_runs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError
from guidestack.guidance.prediction import Level
from guidestack.pipelines.families.record import FAMILIES

from .stock import denoising
from .tiny import load

PNDM = [("PNDMScheduler", {"skip_prk_steps": skip}) for skip in (True, False)]
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    *PNDM,
    ("DDIMScheduler", {"timestep_spacing": "linspace"}),
    ("LCMScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
]
DIFFUSION = [
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "KolorsImg2ImgPipeline",
]
FLOWS = [
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
]


@cache
def made(name: str) -> Any:
    return load(name).make()


def check(name: str, scheduler: str, options: dict[str, Any], steps: int, strength: float) -> None:
    """A run under CFG is the pipeline's own, and its levels are those of the timesteps that the network is told."""
    pipe = made(name)
    own = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(own.config, **options)
    try:
        check_with(pipe, name, steps, strength)
    finally:
        pipe.scheduler = own


def check_with(pipe: Any, name: str, steps: int, strength: float) -> None:
    builder, family, scheduler = load(name), FAMILIES[name], type(pipe.scheduler).__name__
    told: list[float] = []

    def note(original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        more = arguments.pop("kwargs", {})
        time = arguments[family.timestep]
        told.append(family.clock(pipe, float(time.max() if torch.is_tensor(time) else time)))
        return original(**arguments, **more)

    more = {"num_inference_steps": steps, "strength": strength, "output_type": "latent"}
    stock = pipe(**builder.arguments(1, negative=True, **more, **{builder.SCALE: builder.ON})).images
    with denoising(pipe, note):
        guided = gs.guide(pipe, f"cfg({builder.ON})")
        ours = guided(**builder.arguments(1, negative=True, **more)).images
    assert torch.equal(stock, ours)
    if family.sequential:
        told = told[::2]
    seen = guided.report.steps
    assert len(told) == len(seen) > 0
    entries = pipe.scheduler.timesteps.tolist()[-len(told) :]  # the rest of the schedule
    assert told == pytest.approx(entries, rel=1e-5)
    for timestep, record in zip(entries, seen, strict=True):
        if scheduler.startswith(("DPMSolver", "Euler")):  # their timesteps are rounded, or at least their tables
            low, high = (k_at(pipe.scheduler, timestep + half) for half in (-0.51, 0.51))
            assert 0.9999 * low <= record.level.k_sigma <= 1.0001 * high, timestep
        if not hasattr(pipe.scheduler, "sigmas"):
            assert record.level == Level.vp(float(pipe.scheduler.alphas_cumprod[int(timestep)]))
        elif scheduler.startswith("Flow"):
            assert record.level.sigma == pytest.approx(timestep / 1000, rel=1e-5)


def k_at(scheduler: Any, timestep: float) -> float:
    """sigma / alpha at a timestep that need not be whole, between those of whole ones."""
    timestep = min(max(timestep, 0.0), len(scheduler.alphas_cumprod) - 1.0)
    pair = [math.floor(timestep), math.ceil(timestep)]
    low, high = [math.sqrt((1 - bar) / bar) for bar in scheduler.alphas_cumprod[pair].tolist()]
    return low + (high - low) * (timestep - pair[0])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("scheduler", "options"), SCHEDULERS)
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.9), (20, 0.95), (6, 0.5)])
def test_stable_diffusion_begins_midway(scheduler: str, options: dict[str, Any], steps: int, strength: float) -> None:
    check("StableDiffusionImg2ImgPipeline", scheduler, options, steps, strength)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of an import of Kolors'
@pytest.mark.parametrize(("scheduler", "options"), PNDM)
@pytest.mark.parametrize("name", DIFFUSION)
def test_pndm_begins_midway(name: str, scheduler: str, options: dict[str, Any]) -> None:
    """It has no begin_index, and its timesteps stand twice or more often."""
    for steps, strength in ((10, 0.9), (10, 0.8), (7, 0.5)):
        check(name, scheduler, options, steps, strength)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        *((name, "FlowMatchEulerDiscreteScheduler") for name in FLOWS),
        *((name, "FlowMatchHeunDiscreteScheduler") for name in FLOWS if "3" in name),  # Flux sets its own sigmas
    ],
)
def test_flows_begin_midway(name: str, scheduler: str) -> None:
    for steps, strength in ((5, 0.9), (5, 0.5)):
        check(name, scheduler, {}, steps, strength)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "CogVideoXVideoToVideoPipeline",
    ],
)
def test_a_strength_that_leaves_no_step_is_said_to(name: str) -> None:
    pipe, builder = made(name), load(name)
    for steps, strength, instead in (
        (3, 0.3, "strength=0.34 or more, or 4 steps"),
        (1, 0.8, "strength=1 or more, or 2"),
    ):
        given = builder.arguments(1, num_inference_steps=steps, strength=strength, output_type="latent")
        with pytest.raises(
            InputError, match=f"^strength={strength} of {steps} steps is less than one .* give {instead}"
        ):
            gs.guide(pipe, "cfg(3)")(**given)
