"""What runs is told apart from what does not, and from nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from guidestack.guidance.errors import InputError
from guidestack.samplers import by_name, grid, scheduler_identity, weights_digest


def identity(scheduler: Any, steps: int = 5) -> dict[str, str]:
    scheduler.set_timesteps(steps)
    return scheduler_identity(scheduler, grid(scheduler))


BASE = {"beta_schedule": "linear", "timestep_spacing": "trailing"}


def test_a_scheduler_is_its_class_and_what_that_is_set_to() -> None:
    first = identity(by_name("dpm++2m", BASE))
    assert first["scheduler"].startswith("DPMSolverMultistepScheduler:")
    assert first["levels"].startswith("5:")
    assert identity(by_name("dpm++2m", BASE)) == first
    # Left over from a scheduler it was made from, and options of other versions that are off.
    other = by_name("dpm++2m", {**BASE, "clip_sample": True, "set_alpha_to_one": False})
    assert dict(other.config)["clip_sample"]
    assert identity(other) == first
    other.register_to_config(use_lu_lambdas=None)
    assert identity(other) == first
    for change in ({"solver_order": 3}, {"beta_end": 0.019}, {"final_sigmas_type": "sigma_min"}):
        assert identity(by_name("dpm++2m", {**BASE, **change}))["scheduler"] != first["scheduler"], change
    assert identity(by_name("dpm++2m-karras", BASE))["levels"] != first["levels"]


def test_levels_are_those_of_the_run() -> None:
    scheduler = by_name("ddim", BASE)
    first = identity(scheduler)
    assert identity(scheduler, 6)["scheduler"] == first["scheduler"]
    assert identity(scheduler, 6)["levels"] != first["levels"]
    euler = by_name("euler", BASE)
    euler.set_timesteps(5)
    before = scheduler_identity(euler, grid(euler))
    euler.sigmas = euler.sigmas * (1 + 1e-6)
    assert scheduler_identity(euler, grid(euler)) == before  # the last digits of another machine
    euler.sigmas = euler.sigmas * 1.1
    assert scheduler_identity(euler, grid(euler))["levels"] != before["levels"]
    assert scheduler_identity(euler, grid(euler))["scheduler"] == before["scheduler"]


def test_levels_at_infinite_noise() -> None:
    zero = by_name("ddim", {**BASE, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert identity(zero)["levels"] != identity(by_name("ddim", BASE))["levels"]


def small() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Conv2d(2, 4, 3))


def test_a_model_is_its_weights_whatever_their_type_and_place_in_memory() -> None:
    model = small()
    first = weights_digest(model)
    assert first.startswith("Sequential:")
    assert weights_digest(copy.deepcopy(model).half()) == first
    assert weights_digest(copy.deepcopy(model).to(memory_format=torch.channels_last)) == first

    class Compiled:
        _orig_mod = model

    assert weights_digest(Compiled()) == first  # type: ignore[arg-type]


def changed(what: str) -> torch.nn.Module:
    model: Any = small()
    with torch.no_grad():
        if what == "a weight":
            model[1].bias[2] += 1e-2
        elif what == "an adapter":
            model[0].lora_A = torch.nn.Linear(8, 2)
        elif what == "a name":
            model = torch.nn.Sequential(model[0], torch.nn.Identity(), model[1])
        elif what == "a shape":
            model[0].weight = torch.nn.Parameter(model[0].weight.reshape(4, 16))
        elif what == "a class":
            model = torch.nn.ModuleList(model)
        elif what == "rounding":
            model.bfloat16()
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["a weight", "an adapter", "a name", "a shape", "a class", "rounding"])
def test_another_model_is_told_apart(what: str) -> None:
    assert weights_digest(changed(what)) != weights_digest(small())


def test_weights_that_are_elsewhere_are_refused() -> None:
    with pytest.raises(InputError, match=r"weights of Linear are not in memory.*switch sequential offload off"):
        weights_digest(torch.nn.Linear(2, 2, device="meta"))
