"""The levels of whole runs, begun where pipelines begin them, against what the scheduler's own steps apply.

A run is a scheduler, a number of steps or timesteps or sigmas of one's own, and the part of the schedule that a
pipeline takes: all of it, or the rest from a strength on as Stable Diffusion and SDXL count it, as Stable Diffusion 3
and Flux do, or from a share of the training as SDXL's refiner does.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import UnsupportedSchedulerError
from guidestack.guidance.prediction import Level
from guidestack.samplers import entry, grid, supported
from guidestack.samplers.noise import seeded
from guidestack.samplers.stepping import Stepper

from .test_levels import close, emitted, is_random

pytestmark = [
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, of diffusers' float32 sigmas
    pytest.mark.filterwarnings("ignore:The `scale_model_input` function should be called:UserWarning"),
]

PLAIN = {"clip_sample": False}
SPACED = ("linspace", "leading", "trailing")
VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ROWS: list[tuple[str, dict[str, Any]]] = [
    *(("DDIMScheduler", {"timestep_spacing": one, **PLAIN}) for one in SPACED),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, **PLAIN}),
    ("DDIMScheduler", {**VELOCITY, **PLAIN}),
    *(("CogVideoXDDIMScheduler", {"timestep_spacing": one}) for one in SPACED),
    ("CogVideoXDPMScheduler", {"timestep_spacing": "linspace"}),
    *(("DDPMScheduler", {"timestep_spacing": one, **PLAIN}) for one in SPACED),
    *(
        ("PNDMScheduler", {"skip_prk_steps": skip, "timestep_spacing": one, "steps_offset": 1})
        for skip in (True, False)
        for one in SPACED
    ),
    ("LCMScheduler", PLAIN),
    ("TCDScheduler", PLAIN),
    *(("EulerDiscreteScheduler", {"timestep_spacing": one}) for one in SPACED),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverSDEScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    *(("DPMSolverSinglestepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
    ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("DEISMultistepScheduler", {}),
    ("SASolverScheduler", {}),
    ("EDMEulerScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("CosineDPMSolverMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]
OWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        (name, options, {"timesteps": [980, 700, 640, 410, 33]})
        for name, options in (
            ("DDPMScheduler", PLAIN),
            ("TCDScheduler", PLAIN),
            ("EulerDiscreteScheduler", {}),
            ("HeunDiscreteScheduler", {}),
            ("DPMSolverMultistepScheduler", {}),
            ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
            ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
        )
    ),
    ("LCMScheduler", PLAIN, {"timesteps": [999, 759, 499, 259]}),
    ("LCMScheduler", PLAIN, {"timesteps": [999, 759, 499, 259], "strength": 0.5}),
    ("EulerDiscreteScheduler", {}, {"sigmas": [14.6, 6.5, 2.9, 1.1, 0.4, 0.0]}),
    (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"sigmas": np.array([1.0, 0.6])},
    ),
    ("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [1.0, 0.9, 0.5, 0.1]}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"timesteps": [1000.0, 700.0, 100.0], "sigmas": [1, 0.8, 0.3]}),
    ("EDMEulerScheduler", {}, {"sigmas": torch.tensor([0.0, 0.3, 0.9])}),
]
PARTS: list[tuple[str, float]] = [
    ("whole", 1.0),
    *(("stable diffusion", strength) for strength in (0.95, 0.9, 0.7, 0.45, 0.15)),
    *(("flux", strength) for strength in (0.98, 0.53)),
    *(("refiner", share) for share in (0.2, 0.8)),
]
COUNTS = (7, 10, 20)
PER_ROW = [(steps, *part) for steps in COUNTS for part in PARTS]


def taken(scheduler: Any, steps: int, way: str, share: float) -> Tensor:
    """The timesteps that a pipeline goes through, after telling the scheduler where it begins if it can be told."""
    if way == "refiner":
        cutoff = round(1000 - share * 1000)
        count = int((scheduler.timesteps < cutoff).sum())
        count += scheduler.order == 2 and count % 2 == 0
        start = len(scheduler.timesteps) - count
    elif way == "flux":
        start = int(max(steps - steps * share, 0)) * scheduler.order
    else:
        start = (steps - min(int(steps * share), steps)) * scheduler.order
    if way != "whole" and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]  # type: ignore[no-any-return]


def check_run(name: str, options: dict[str, Any], timesteps: Tensor, scheduler: Any) -> int:
    """Each level and each level that is returned, by samples that lie there; how many evaluations were looked at."""
    random = is_random(name, options)
    generator = torch.Generator().manual_seed(0)
    # Large data make alpha show, where the noise is not known.
    shape, size = ((1, 4, 40, 40), 30.0) if random else ((1, 3, 4, 4), 1.0)
    x0, noise = size * torch.linspace(-1, 1, math.prod(shape)).reshape(shape), torch.randn(shape, generator=generator)
    begin = len(scheduler.timesteps) - len(timesteps)
    if getattr(scheduler, "begin_index", None) is None:
        assert entry(scheduler, timesteps[0]) == begin
    schedule, advance, sought = grid(scheduler, begin), Stepper(scheduler), []
    if name == "PNDMScheduler":  # whose samples leave the path: see what it looks up
        original = scheduler._get_prev_sample
        scheduler._get_prev_sample = lambda *given: sought.append(int(given[2])) or original(*given)
    with seeded(scheduler, [0]):
        for index, timestep in enumerate(timesteps, begin):
            point = schedule.points[index]
            if hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):
                assert point.level == Level.vp(float(scheduler.alphas_cumprod[int(timestep)]))
            x = point.level.noised(x0, noise)
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, timestep)
            x = advance(emitted(scheduler, point.level, x0, noise, x), timestep, x)
            after, where = point.returned, f"{name} {options}: entry {index} of {len(schedule.points)} from {begin}"
            if name == "PNDMScheduler":
                final = float(scheduler.final_alpha_cumprod)
                bar = float(scheduler.alphas_cumprod[sought[-1]]) if sought[-1] >= 0 else final
                assert after == Level.vp(bar), where
            elif name == "LMSDiscreteScheduler":  # weighs one noise with the coefficients of four where it begins
                assert after.sigma == float(scheduler.sigmas[scheduler.step_index]), where
            elif not random:
                assert close(x, after.noised(x0, noise), max(1.0, point.level.sigma)), where
            elif after.sigma == 0:
                assert close(x, after.alpha * x0, size), where
            else:
                assert float(((x - after.alpha * x0) / after.sigma).std()) == pytest.approx(1, abs=0.06), where
    assert schedule.final == schedule.points[-1].returned
    return len(timesteps)


def made(name: str, options: dict[str, Any], **given: Any) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    if (
        name == "FlowMatchHeunDiscreteScheduler"
        or "timesteps" not in given
        or name == "FlowMatchEulerDiscreteScheduler"
    ):
        given.pop("device", None)
    scheduler.set_timesteps(**given)
    return scheduler


@pytest.mark.filterwarnings("ignore")  # what diffusers says of a configuration is not this test's
@pytest.mark.parametrize(
    ("name", "options"), ROWS, ids=lambda one: one if isinstance(one, str) else "-".join(map(str, one.values()))
)
def test_levels_of_runs_begun_anywhere(name: str, options: dict[str, Any]) -> None:
    looked = 0
    schedulers = {steps: made(name, options, num_inference_steps=steps) for steps in COUNTS}
    for steps, way, share in PER_ROW:
        scheduler = copy.deepcopy(schedulers[steps])
        if len(timesteps := taken(scheduler, steps, way, share)):
            looked += check_run(name, options, timesteps, scheduler)
    assert looked > 100


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "options", "given"), OWN)
def test_levels_of_timesteps_and_sigmas_of_ones_own(name: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    assert set(given) <= set(inspect.signature(getattr(diffusers, name).set_timesteps).parameters)
    for way, share in PARTS:
        scheduler = made(name, options, **given)
        timesteps = taken(scheduler, scheduler.num_inference_steps or len(scheduler.timesteps), way, share)
        if len(timesteps):
            check_run(name, options, timesteps, scheduler)


def test_an_entry_that_stands_twice_is_known_by_its_place_in_memory() -> None:
    """PNDM is not told where a run begins, and its second timestep stands twice."""
    scheduler = made("PNDMScheduler", {"skip_prk_steps": True}, num_inference_steps=10)
    assert float(scheduler.timesteps[1]) == float(scheduler.timesteps[2])
    for index, timestep in enumerate(scheduler.timesteps):
        assert entry(scheduler, timestep) == index
        assert entry(scheduler, timestep.expand(4), float(timestep)) == index
        assert entry(scheduler, scheduler.timesteps[index:][0]) == index
    assert entry(scheduler, float(scheduler.timesteps[0])) == 0
    for lost in (scheduler.timesteps[1].clone(), float(scheduler.timesteps[2]), scheduler.timesteps.float()[1]):
        with pytest.raises(UnsupportedSchedulerError, match="stands 2 times in the schedule of PNDMScheduler"):
            entry(scheduler, lost)
    # Others look it up themselves, and take the second: with Heun's method, the one with which a step begins.
    heun = made("HeunDiscreteScheduler", {}, num_inference_steps=5)
    assert [entry(heun, float(heun.timesteps[index])) for index in (0, 1, 2, 3, 4)] == [0, 2, 2, 4, 4]


def test_steps_of_pndm_begun_anywhere() -> None:
    """It counts evaluations from where a run begins: two of the first step, or twelve of the first three."""
    for skip, first in ((True, [0, 1]), (False, [0, 1, 2, 3] * 3)):
        scheduler = made("PNDMScheduler", {"skip_prk_steps": skip}, num_inference_steps=8)
        for begin in range(len(scheduler.timesteps)):
            points = grid(scheduler, begin).points[begin:]
            evaluations = [point.evaluation for point in points]
            assert evaluations == (first + [0] * len(points))[: len(points)]
            assert points[-1].step == 7
            assert all(b.step - a.step == (b.evaluation == 0) for a, b in itertools.pairwise(points))


def test_the_table_is_as_long_as_the_one_that_found_the_faults() -> None:
    assert len(ROWS) * len(PER_ROW) + len(OWN) * len(PARTS) >= 529
    assert {name for name, _ in ROWS} == set(supported())
