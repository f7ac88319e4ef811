"""The level of every evaluation of every scheduler, against what the scheduler itself does with it."""

from __future__ import annotations

import copy
import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import UnsupportedSchedulerError
from guidestack.guidance.prediction import Level, Prediction
from guidestack.samplers import entry, grid, parameterization, supported
from guidestack.samplers.noise import seeded
from guidestack.samplers.stepping import Stepper

SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
PREDICTIONS = ("epsilon", "v_prediction", "sample")

ROWS: list[tuple[str, dict[str, Any]]] = [
    *(("DDIMScheduler", {"prediction_type": p, "clip_sample": False}) for p in PREDICTIONS),
    *(("DDIMScheduler", {"timestep_spacing": s, "clip_sample": False}) for s in ("leading", "trailing")),
    ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1}),
    (
        "DDIMScheduler",
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
    ),
    ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("CogVideoXDDIMScheduler", {"prediction_type": "epsilon", "timestep_spacing": "trailing"}),
    ("CogVideoXDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("CogVideoXDPMScheduler", {"prediction_type": "epsilon", "timestep_spacing": "trailing"}),
    *(("DDPMScheduler", {"prediction_type": p, "clip_sample": False}) for p in PREDICTIONS),
    *(("PNDMScheduler", {"skip_prk_steps": skip}) for skip in (True, False)),
    ("LCMScheduler", {"clip_sample": False}),
    ("LCMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}),
    ("TCDScheduler", {"clip_sample": False}),
    *(("EulerDiscreteScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("EulerDiscreteScheduler", {spacing: True}) for spacing in SPACINGS),
    *(("EulerDiscreteScheduler", {"timestep_spacing": s}) for s in ("leading", "trailing")),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    (
        "EulerDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    *(("EulerAncestralDiscreteScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("HeunDiscreteScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("HeunDiscreteScheduler", {spacing: True}) for spacing in SPACINGS),
    ("LMSDiscreteScheduler", {}),
    *(("LMSDiscreteScheduler", {spacing: True}) for spacing in SPACINGS),
    *(("KDPM2DiscreteScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("KDPM2DiscreteScheduler", {spacing: True}) for spacing in SPACINGS),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSDEScheduler", {}),
    ("DPMSolverSDEScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    *(
        (name, {"prediction_type": p})
        for name in (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
        )
        for p in PREDICTIONS
    ),
    *(
        (name, {spacing: True})
        for name in (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
        )
        for spacing in SPACINGS
    ),
    *(
        (name, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"})
        for name in (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
        )
    ),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    *(("EDMEulerScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("EDMDPMSolverMultistepScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    *(("CosineDPMSolverMultistepScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    ("CosineDPMSolverMultistepScheduler", {"sigma_schedule": "karras", "solver_type": "heun"}),
    ("CosineDPMSolverMultistepScheduler", {"sigma_min": 0.03, "sigma_max": 80, "sigma_data": 0.5}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    *(("FlowMatchEulerDiscreteScheduler", {spacing: True}) for spacing in SPACINGS),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]
STEPS = 10  # divides the 1000 training steps with an even quotient: PNDM halves it
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items()) or 'default'}" for name, options in ROWS]

# Their steps add fresh noise, so that a sample is x0 with another noise after each of them.
RANDOM = {
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "SASolverScheduler",
}


# Diffusers' own deviations, with the point at which x is no longer where the network is told it is.
ASTRAY: list[tuple[str, dict[str, Any]]] = [
    # steps by 1000 // steps whatever the spacing: with linspace it lands beside the next entry
    ("DDIMScheduler", {"timestep_spacing": "linspace", "clip_sample": False}),
    # averages the outputs of several levels, which is meant for eps: v changes along the path
    ("PNDMScheduler", {"prediction_type": "v_prediction", "skip_prk_steps": True}),
]


def is_random(name: str, options: dict[str, Any]) -> bool:
    return name in RANDOM or options.get("algorithm_type") == "sde-dpmsolver++"


def scheduler_for(name: str, options: dict[str, Any], steps: int) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def emitted(scheduler: Any, level: Level, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    """What an exact network would emit, from the textbook definition of each prediction type."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return noise - x0
    kind = scheduler.config.prediction_type
    if hasattr(scheduler.config, "sigma_data"):
        data, sigma = scheduler.config.sigma_data, level.sigma
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / math.sqrt(sigma**2 + data**2) * (-1 if kind == "v_prediction" else 1)
        return (x0 - c_skip * x) / c_out
    if kind == "v_prediction":
        alpha_bar = 1 / (1 + (level.sigma / level.alpha) ** 2) if level.alpha else 0.0
        return math.sqrt(alpha_bar) * noise - math.sqrt(1 - alpha_bar) * x0
    return {"epsilon": noise, "sample": x0, "flow_prediction": noise - x0}[kind]


def close(seen: Tensor, wanted: Tensor, scale: float) -> bool:
    """Equal to float32 accuracy: `scale` is the size of the numbers that were subtracted to get there."""
    return bool(((seen - wanted).abs() <= 3e-5 * max(1.0, scale)).all())


@pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
def test_add_noise_reads_back(name: str, options: dict[str, Any]) -> None:
    """x0 and noise come back from what the scheduler's own add_noise made of them, at every step."""
    if name == "SASolverScheduler" and any(options.get(spacing) for spacing in (*SPACINGS, "use_flow_sigmas")):
        # Its add_noise goes by the training timestep, rounded, and knows nothing of its sigmas: read it where it is.
        with pytest.raises(AssertionError):
            check_add_noise(name, options)
        return check_add_noise(name, options, by_training_timestep=True)
    return check_add_noise(name, options)


def check_add_noise(name: str, options: dict[str, Any], by_training_timestep: bool = False) -> None:
    x0, noise = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4), torch.sin(torch.arange(48.0) * 7).reshape(1, 3, 4, 4)
    scheduler = scheduler_for(name, options, 7)
    emits, checked = parameterization(scheduler), 0
    for point, timestep in zip(grid(scheduler).points, scheduler.timesteps, strict=True):
        if point.evaluation:
            # add_noise speaks of whole steps: for the second evaluation of a step it finds the level of a neighbour.
            continue
        level = point.level
        if by_training_timestep:
            level = Level.vp(float(scheduler.alphas_cumprod[int(timestep)]))
        if hasattr(scheduler, "add_noise"):
            x = scheduler.add_noise(x0, noise, timestep.reshape(1))
        else:
            # Flow matching's name for it; it finds its place once and keeps it, hence a fresh copy.
            x = copy.deepcopy(scheduler).scale_noise(x0, timestep.reshape(1), noise)
        prediction = Prediction(emitted(scheduler, level, x0, noise, x), x, level, emits)
        size = float(x.abs().max())
        if level.alpha > 1e-6 or options.get("prediction_type") == "v_prediction":
            assert close(prediction.denoised, x0, size / max(level.alpha, 1e-3) if level.alpha else size)
        assert close(prediction.noise, noise, size / level.sigma)
        checked += 1
    assert checked == grid(scheduler).steps


@pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")  # torchsde, of a float32 rounding of diffusers'
@pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
def test_the_solver_is_where_its_level_says(name: str, options: dict[str, Any]) -> None:
    """On data that is one point, x is alpha*x0 + sigma*eps along the whole path, half steps included.

    For every deterministic solver eps never changes there; a random one has unit-variance noise at every point.
    """
    check_path(name, options)


@pytest.mark.parametrize(("name", "options"), ASTRAY)
def test_where_diffusers_strays_from_its_own_levels(name: str, options: dict[str, Any]) -> None:
    """If this fails, diffusers has mended it: move the row up into the table."""
    check_add_noise(name, options)
    with pytest.raises(AssertionError, match="another noise"):
        check_path(name, options)


def check_path(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = (1, 4, 40, 40) if is_random(name, options) else (1, 3, 4, 4)
    x0, noise = torch.linspace(-1, 1, math.prod(shape)).reshape(shape), torch.randn(shape)
    scheduler = scheduler_for(name, options, STEPS)
    schedule, advance = grid(scheduler), Stepper(scheduler)
    x = schedule.points[0].level.noised(x0, noise)
    with seeded(scheduler, [0]):
        for point, timestep in zip(schedule.points, scheduler.timesteps, strict=True):
            level = point.level
            seen = (x - level.alpha * x0) / level.sigma
            if is_random(name, options):
                assert abs(float(seen.std()) - 1) < 0.05, f"noise of std {float(seen.std()):.3f} at {point}"
                assert abs(float(seen.mean())) < 0.05
            else:
                assert close(seen, noise, float(x.abs().max()) / level.sigma), f"another noise at {point}"
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, timestep)
            x = advance(emitted(scheduler, level, x0, seen, x), timestep, x)
    final = schedule.final
    if not is_random(name, options):
        assert close(x, final.noised(x0, noise), 1.0)
    elif final.sigma == 0:
        assert close(x, x0, 1.0)


def test_a_scheduler_that_does_not_remember_is_handed_its_last_prediction() -> None:
    """As CogVideoX's pipeline does it."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = scheduler_for("CogVideoXDPMScheduler", options, STEPS)
    advance, noise = Stepper(scheduler), [torch.Generator().manual_seed(1) for _ in range(2)]
    x = y = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last, before, alone = None, None, []
    for timestep in scheduler.timesteps:
        x = advance(x.sin(), timestep, x, generator=noise[0])
        alone.append(scheduler.step(y.sin(), None, timestep, None, y, generator=torch.Generator().manual_seed(2))[0])
        y, last = scheduler.step(y.sin(), last, timestep, before, y, generator=noise[1])
        before = timestep
        assert torch.equal(x, y)
    assert (alone[5] - y).abs().max() > 1e-3


def test_the_table_has_every_supported_scheduler() -> None:
    assert {name for name, _ in ROWS} == set(supported())


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_network_input_is_variance_preserving(name: str) -> None:
    scheduler = scheduler_for(name, {}, 5)
    x = torch.ones(1, 3, 4, 4)
    point = grid(scheduler).points[0]
    scaled = scheduler.scale_model_input(x, scheduler.timesteps[0])
    assert torch.allclose(scaled, x / math.sqrt(1 + point.level.sigma**2))


def test_zero_terminal_snr_starts_at_pure_noise() -> None:
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    level = grid(scheduler_for("DDIMScheduler", options, 5)).points[0].level
    assert level.alpha == 0
    assert level.sigma == 1
    assert math.isinf(level.k_sigma)
    x = torch.randn(1, 3, 4, 4)
    v = torch.randn(1, 3, 4, 4)
    prediction = Prediction(v, x, level, parameterization(scheduler_for("DDIMScheduler", options, 5)))
    assert torch.equal(prediction.denoised, -v)
    assert torch.equal(prediction.noise, x)


def test_steps_and_evaluations() -> None:
    heun = grid(scheduler_for("HeunDiscreteScheduler", {}, 3))
    assert [(p.step, p.evaluation) for p in heun.points] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    pndm = grid(scheduler_for("PNDMScheduler", {"skip_prk_steps": True}, 3))
    assert [(p.step, p.evaluation) for p in pndm.points] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert pndm.points[1].level == pndm.points[2].level
    warmed = grid(scheduler_for("PNDMScheduler", {"skip_prk_steps": False}, 6))
    assert [p.evaluation for p in warmed.points[:12]] == [0, 1, 2, 3] * 3
    assert warmed.steps == 6


def test_where_a_run_begins() -> None:
    scheduler = scheduler_for("EulerDiscreteScheduler", {}, 10)
    assert entry(scheduler, float(scheduler.timesteps[4])) == 4
    assert entry(scheduler, float(scheduler.timesteps[4].bfloat16())) == 4
    with pytest.raises(UnsupportedSchedulerError, match="not on the scheduler's schedule"):
        entry(scheduler, 12345.0)


def test_timesteps_and_sigmas_of_the_users_own() -> None:
    ddpm = diffusers.DDPMScheduler()
    with pytest.raises(UnsupportedSchedulerError, match="set_timesteps"):
        grid(ddpm)
    ddpm.set_timesteps(timesteps=[900, 500, 20])
    assert [point.level.alpha for point in grid(ddpm).points] == [
        pytest.approx(math.sqrt(float(ddpm.alphas_cumprod[t]))) for t in (900, 500, 20)
    ]
    edm = diffusers.EDMEulerScheduler()
    edm.set_timesteps(sigmas=torch.tensor([0.0, 0.5, 1.0]))  # places on its Karras ramp
    levels = [point.level.sigma for point in grid(edm).points]
    assert levels[0] == pytest.approx(edm.config.sigma_max)
    assert levels[-1] == pytest.approx(edm.config.sigma_min)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas=True"),
        ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "use_flow_sigmas": True}, "=False"),
    ],
)
def test_a_prediction_of_one_path_on_the_sigmas_of_another(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=message):
        parameterization(getattr(diffusers, name)(**options))


def test_levels_off_the_path_of_the_flow() -> None:
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_exponential_sigmas": True}
    with pytest.raises(UnsupportedSchedulerError, match="off the flow's path"):
        grid(scheduler_for("DPMSolverMultistepScheduler", options, 5))


def test_a_flow_that_is_turned_round() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(5)
    emits, schedule = parameterization(scheduler), grid(scheduler)
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = noise
    for point, timestep in zip(schedule.points, scheduler.timesteps, strict=True):
        assert torch.allclose(x, point.level.noised(x0, noise), atol=1e-5)
        prediction = Prediction(x0 - noise, x, point.level, emits)  # what Mochi's network was trained to emit
        assert torch.allclose(prediction.denoised, x0, atol=1e-4)
        assert torch.allclose(prediction.noise, noise, atol=1e-4)
        x = scheduler.step(prediction.native, timestep, x, return_dict=False)[0]
    assert (schedule.final.alpha, schedule.final.sigma) == (1.0, 0.0)
    assert torch.allclose(x, x0, atol=1e-5)


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="VQDiffusionScheduler"):
        grid(diffusers.VQDiffusionScheduler(num_vec_classes=4))
    with pytest.raises(UnsupportedSchedulerError, match="set_timesteps"):
        grid(diffusers.DDIMScheduler())
    odd = diffusers.DDIMScheduler(prediction_type="score")
    with pytest.raises(UnsupportedSchedulerError, match="'score'"):
        parameterization(odd)

    class Mine(diffusers.DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    with pytest.raises(UnsupportedSchedulerError, match="Mine"):
        parameterization(Mine())
