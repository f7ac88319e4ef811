"""Names of samplers, whatever the spelling, and which of them a model can use."""

from __future__ import annotations

import importlib.util
from typing import Any

import diffusers
import pytest
from diffusers.utils import dummy_torch_and_torchsde_objects

from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.guidance.prediction import EPSILON, FLOW, Parameterization, V
from guidestack.pipelines.models.bundled import EMOJI
from guidestack.samplers import SAMPLERS, by_name, canonical, grid, parameterization, scheduler_with_steps
from guidestack.samplers.names import NEEDED
from guidestack.samplers.renoise import Renoising

pytestmark = pytest.mark.filterwarnings("ignore")  # what diffusers says of a configuration is not this test's
DIFFUSION = [name for name in SAMPLERS if not name.startswith(("edm", "flow"))]
SLOW = ("kdpm2", "kdpm2-a", "dpm++sde")
"""Making one of them takes seconds."""
ON_FLOWS = ["dpm++2m", "dpm++2m-sde", "dpm++2s", "unipc", "deis", "sa-solver", "flow-euler", "flow-heun"]
"""Those that have flow sigmas, when the model's own scheduler says that they are on."""
MODELS: dict[str, tuple[str, dict[str, Any], Parameterization, list[str]]] = {
    "Stable Diffusion 1": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, EPSILON, DIFFUSION),
    "Stable Diffusion 2": ("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}, V, DIFFUSION),
    "SDXL": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, EPSILON, DIFFUSION),
    "saved with an SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, EPSILON, DIFFUSION),
    "saved with DEIS": ("DEISMultistepScheduler", {}, EPSILON, DIFFUSION),
    "saved with SA": ("SASolverScheduler", {"algorithm_type": "noise_prediction"}, EPSILON, DIFFUSION),
    "DDPM": ("DDPMScheduler", {"variance_type": "learned_range"}, EPSILON, DIFFUSION),
    "SD3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, FLOW, ["flow-euler", "flow-heun"]),
    "Flux": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, FLOW, ["flow-euler", "flow-heun"]),
    "Wan": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        FLOW,
        ON_FLOWS,
    ),
    "Playground": ("EDMDPMSolverMultistepScheduler", {}, Parameterization("edm"), ["edm-euler", "edm-dpm++2m"]),
    "Stable Audio": (
        "CosineDPMSolverMultistepScheduler",
        {},
        Parameterization("edm-v", 1.0),
        ["edm-euler", "edm-dpm++2m"],
    ),
}


def own(model: str) -> Any:
    name, options, _, _ = MODELS[model]
    return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_gets_the_samplers_that_read_what_its_network_emits_and_no_others(model: str) -> None:
    scheduler, (_, _, emits, fit) = own(model), MODELS[model]
    assert parameterization(scheduler) == emits
    for name in SAMPLERS:
        if name in SLOW and name in fit:  # of a class of their own, so that once is enough
            continue
        if name in fit:
            made = scheduler_with_steps(name, scheduler, 6)
            assert parameterization(made) == emits
            assert grid(made).steps == len({point.step for point in grid(made).points})
        else:
            with pytest.raises(InputError) as caught:
                by_name(name, scheduler)
            assert str(caught.value).startswith(f"sampler {name!r} is for a network that emits ")
            assert str(caught.value).endswith(f"; it can use {', '.join([*fit, 'own'])}")


def test_what_is_said_of_a_sampler_for_another_kind_of_network() -> None:
    bundled = diffusers.DPMSolverMultistepScheduler.from_pretrained(EMOJI, subfolder="scheduler")
    for name, reads in (("flow-euler", "flow"), ("flow-heun", "flow"), ("edm-euler", "edm-v")):
        with pytest.raises(InputError) as caught:
            by_name(name, bundled)
        message = str(caught.value)
        assert message.startswith(f"sampler '{name}' is for a network that emits '{reads}', and this model's emits 'v'")
        assert message.endswith(f"it can use {', '.join(DIFFUSION)}, own")


def test_what_the_models_scheduler_does_not_do_is_not_begun() -> None:
    """A default of the new one would cut latents off at 1, and a flow's shift has two names."""
    for name in ("ddim", "ddpm", "lcm", "tcd"):
        assert not by_name(name, own("SDXL")).config.clip_sample
        assert by_name(name, diffusers.DDPMScheduler(clip_sample=True)).config.clip_sample
    assert by_name("flow-euler", own("Wan")).config.shift == 3.0
    assert by_name("dpm++2m", own("Wan")).config.flow_shift == 3.0


def test_options_that_a_scheduler_was_left_and_does_not_read() -> None:
    """from_config keeps all of another scheduler's configuration, also what the new class knows nothing of."""
    flow = diffusers.DDIMScheduler.from_config(own("Wan").config, clip_sample=False, prediction_type="epsilon")
    assert flow.config.use_flow_sigmas
    assert parameterization(flow) == EPSILON
    pixels = diffusers.DDPMScheduler(clip_sample=True, thresholding=True)
    euler = diffusers.EulerDiscreteScheduler.from_config(pixels.config)
    euler.set_timesteps(4)
    assert euler.config.clip_sample
    assert euler.config.thresholding
    assert Renoising(euler, grid(euler)).clip is None


SPELLINGS = {
    "DPM++ 2M": "dpm++2m",
    "DPM++ 2M Karras": "dpm++2m-karras",
    "dpm++ 2m karras": "dpm++2m-karras",
    "DPM++ 2M SDE": "dpm++2m-sde",
    "DPM++ 2M SDE Karras": "dpm++2m-sde-karras",
    "DPM++ 2M SDE Exponential": "dpm++2m-sde-exponential",
    "DPM++ SDE": "dpm++sde",
    "DPM++ SDE Karras": "dpm++sde-karras",
    "Euler": "euler",
    "Euler a": "euler-a",
    "EULER A": "euler-a",
    "Euler Beta": "euler-beta",
    "LMS": "lms",
    "LMS Karras": "lms-karras",
    "Heun": "heun",
    "DPM2": "kdpm2",
    "DPM2 a": "kdpm2-a",
    "DPM2 Karras": "kdpm2-karras",
    "DPM2 a Karras": "kdpm2-a-karras",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "euler_ancestral": "euler-a",
    "dpm_2_ancestral": "kdpm2-a",
    "uni_pc": "unipc",
    "sa_solver": "sa-solver",
}


@pytest.mark.parametrize(("said", "meant"), SPELLINGS.items())
def test_names_of_other_programs(said: str, meant: str) -> None:
    assert canonical(said) == canonical(meant) == meant


def test_a_name_of_another_program_makes_the_same_scheduler() -> None:
    for said, meant in (("DPM++ 2M SDE Karras", "dpm++2m-sde-karras"), ("Euler a", "euler-a"), ("PLMS", "pndm")):
        assert type(by_name(said)) is type(by_name(meant))
        assert by_name(said).config == by_name(meant).config
    assert by_name("DPM++ 2M Karras").config.use_karras_sigmas
    assert type(by_name("DPM2 a")).__name__ == "KDPM2AncestralDiscreteScheduler"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_short_name_is_its_own(name: str) -> None:
    assert canonical(name) == name
    assert canonical(f"{name}-karras") == f"{name}-karras"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("DPM++ 2S a", "did you mean 'dpm..2s'"),  # it is ancestral, ours is not
        ("Eular", "did you mean 'euler'"),
        ("DPM++ 2M Karas", "did you mean 'dpm..2m-karras'"),
        ("dpm++sde exponental", "did you mean 'dpm..sde-exponential'"),
        ("DPM++ 3M SDE Karras", "unknown sampler 'DPM.. 3M SDE Karras'"),
        ("Restart", "expected one of: ddim, "),
        ("ddim-karras", "sampler 'ddim-karras' has no use_karras_sigmas; drop '-karras'"),
        ("", "unknown sampler ''"),
    ],
)
def test_unknown_names(said: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        by_name(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "package"), [("dpm++sde", "torchsde"), ("lms", "scipy"), ("euler-beta", "scipy")])
def test_a_missing_package_is_one_line_that_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == package else found(one, *rest))
    with pytest.raises(InputError, match=rf"needs the package {package}.*pip install 'guidestack\[schedulers\]'$"):
        by_name(name)
    by_name("euler-karras")


@pytest.mark.parametrize("package", ["torchsde", "scipy"])
def test_a_sampler_that_does_not_fit_is_refused_for_that_whatever_package_is_missing(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a class whose package is missing, diffusers has one that answers nothing, not even what it takes."""
    found, stub = importlib.util.find_spec, dummy_torch_and_torchsde_objects.DPMSolverSDEScheduler
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == package else found(one, *rest))
    without = [name for name in SAMPLERS if NEEDED.get(name) == package]
    for name in without:
        monkeypatch.setattr(diffusers, SAMPLERS[name][0], stub)
    for model, name in (("SDXL", "flow-euler"), ("Stable Diffusion 2", "edm-euler"), ("Wan", "ddim")):
        _, _, emits, fit = MODELS[model]
        with pytest.raises(InputError) as caught:
            by_name(name, own(model))
        assert str(caught.value).startswith(f"sampler {name!r} is for a network that emits ")
        expected = ", ".join(one for one in fit if one not in without)
        assert str(caught.value).endswith(f" emits {emits.name!r}; it can use {expected}, own")


def test_a_number_of_steps_that_a_sampler_does_not_take() -> None:
    for name, steps in (("lcm", 60), ("ddim", 1001)):
        with pytest.raises(GuidestackError, match=rf"{name} does not take {steps} steps: "):
            scheduler_with_steps(name, own("SDXL"), steps)
