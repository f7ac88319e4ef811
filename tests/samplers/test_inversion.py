"""First-order steps undone: exact where the network's answer stays the same, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError, InputError, UnsupportedSchedulerError
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, Prediction, V, convert
from guidestack.guidance.query import Query
from guidestack.guidance.step import Estimate
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser
from guidestack.samplers import grid, invert, parameterization, supported
from guidestack.samplers.inversion import FIRST_ORDER, placed, undone

MIXTURE = GaussianMixture.example()
SHAPE = (2, 3, 3)
DATA = 0.5 * (torch.arange(36.0, dtype=torch.float64) * 0.7).sin().reshape(2, *SHAPE)
CONDITIONS = {
    "positive": MIXTURE.condition(1, 2).expand(2, -1),
    "null": MIXTURE.condition().expand(2, -1),
}
FINE = {"clip_sample": False}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", FINE),
    ("DDIMScheduler", {**FINE, "timestep_spacing": "trailing", "set_alpha_to_one": False}),
    ("CogVideoXDDIMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
]
FORMS = {
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "CogVideoXDDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "EulerDiscreteScheduler": ("epsilon", "v_prediction", "sample"),
    "EDMEulerScheduler": ("epsilon", "v_prediction"),
}


def make(name: str, options: dict[str, Any] | None = None) -> Any:
    """A scheduler, in float64 where it is one that steps in the type of its tables."""
    scheduler = getattr(diffusers, name)(**(options or {}))
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    return scheduler


def inverted(scheduler: Any, stack: str, model: Any = None, x0: Tensor = DATA, **more: Any) -> Any:
    model = model or MixtureDenoiser(MIXTURE, parameterization(scheduler))
    return invert(model, stack, scheduler, x0, conditions=CONDITIONS, **{"steps": 10, **more})


def sampled(scheduler: Any, stack: str, start: Tensor, model: Any = None, steps: int = 10) -> Tensor:
    model = model or MixtureDenoiser(MIXTURE, parameterization(scheduler))
    return gs.sample(
        model, stack, scheduler, conditions=CONDITIONS, shape=SHAPE, seeds=[0, 1], steps=steps, start=start,
        dtype=torch.float64,
    ).x  # fmt: skip


def away(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- exact where the answer stays the same ---------------------------------------------------------------------------

FROZEN = {
    "positive": (torch.arange(36.0, dtype=torch.float64) * 1.9).sin().reshape(2, *SHAPE),
    "null": (torch.arange(36.0, dtype=torch.float64) * 3.1).cos().reshape(2, *SHAPE),
}


# Where DDIM steps beside its own next timestep.
BESIDE: list[tuple[str, dict[str, Any], int]] = [
    (name, {**options, "timestep_spacing": spacing}, steps)
    for name, options in (("DDIMScheduler", FINE), ("CogVideoXDDIMScheduler", {}))
    for spacing, steps in (("linspace", 10), ("linspace", 50), ("trailing", 7), ("leading", 7))
]


@pytest.mark.parametrize(("name", "options", "steps"), [*((*row, 10) for row in ROWS), *BESIDE])
@pytest.mark.parametrize("stack", ["stack()", "cfg(4)", "cfgpp(0.6)", "cfgpp(1)", "cfg(0.8) | renoise()"])
def test_frozen_answers_come_back_exactly(name: str, options: dict[str, Any], steps: int, stack: str) -> None:
    """A network that says the same everywhere: noise, or the velocity of a flow. Which condition, a weight tells."""
    scheduler = make(name, options)

    def model(x: Tensor, level: Level, condition: Tensor) -> Tensor:
        answers = torch.where(condition[:, 0].reshape(-1, 1, 1, 1) > 0, FROZEN["null"][:1], FROZEN["positive"][:1])
        path = FLOW if level.path == "flow" else EPSILON
        return convert(answers, x, level, path, parameterization(scheduler)).to(x)

    noisy = inverted(scheduler, stack, model, steps=steps)
    back = sampled(scheduler, stack, noisy.x, model, steps)
    # DDIM steps in float64 here; the others convert samples to float32, and Euler's are large at the start.
    assert (back - DATA).abs().max() < (1e-12 if "DDIM" in name else 2e-6 * float(noisy.x.abs().max()))
    assert away(noisy.x, DATA) > 0.5


@pytest.mark.parametrize("emits", [EPSILON, X0, V, FLOW, Parameterization("edm")], ids=lambda one: one.name)
@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
def test_one_step_and_back(path: str, emits: Parameterization) -> None:
    """The step of the equation, in float64 and with nobody's code, and its undoing."""
    noisier, level = {
        "vp": (Level.vp(0.3), Level.vp(0.6)),
        "ve": (Level.ve(3.0), Level.ve(1.2)),
        "flow": (Level.flow(0.7), Level.flow(0.4)),
    }[path]
    x, o_jump, o_back = DATA, FROZEN["positive"], FROZEN["null"]

    def solve(o: Tensor, x: Tensor, at: Level) -> tuple[Tensor, Tensor]:
        """(x0, eps) from what is frozen: eps, or eps - x0."""
        return (x - at.sigma * o, x + at.alpha * o) if path == "flow" else ((x - at.sigma * o) / at.alpha, o)

    reached = level.alpha * solve(o_jump, x, noisier)[0] + level.sigma * solve(o_back, x, noisier)[1]
    frozen = FLOW if path == "flow" else EPSILON

    def said(o: Tensor) -> Prediction:
        return Prediction(convert(o, reached, noisier, frozen, emits), reached, noisier, emits)

    estimate = Estimate(said(o_jump), said(o_back))
    assert away(undone(estimate, reached, level), x) < 1e-14
    # R where D belongs and the other way round is another place: the roles change between the two directions.
    assert away(undone(Estimate(estimate.renoise or said(x), estimate.prediction), reached, level), x) > 0.1


def test_ddim_inversion_of_cfg_pp_is_the_published_equation() -> None:
    """x_next = sqrt(ab_next) (x - sqrt(1-ab) eps_u) / sqrt(ab) + sqrt(1-ab_next) eps_l, eps at x and the next time."""
    scheduler = make("DDIMScheduler", FINE)
    seen = inverted(scheduler, "cfgpp(0.6)").x
    x, bars = DATA, scheduler.alphas_cumprod.tolist()
    for index in reversed(range(10)):
        t = int(scheduler.timesteps[index])
        bar, bar_next = bars[t - 100] if t >= 100 else 1.0, bars[t]
        level = Level.vp(bar_next)
        eps = [
            (x - math.sqrt(bar_next) * MIXTURE.denoised(x, level, CONDITIONS[name])) / math.sqrt(1 - bar_next)
            for name in ("positive", "null")
        ]
        guided = eps[1] + 0.6 * (eps[0] - eps[1])
        x = math.sqrt(bar_next) * (x - math.sqrt(1 - bar) * eps[1]) / math.sqrt(bar) + math.sqrt(1 - bar_next) * guided
    assert away(seen, x) < 1e-12


@pytest.mark.parametrize("stack", ["stack()", "cfg(3)"])
def test_ddim_inversion_is_that_of_diffusers(stack: str) -> None:
    scheduler, model = make("DDIMScheduler", FINE), MixtureDenoiser(MIXTURE)
    inverse = diffusers.DDIMInverseScheduler(clip_sample=False)
    inverse.set_timesteps(10)
    weight, x = 3.0 if stack == "cfg(3)" else 1.0, DATA
    for t in inverse.timesteps:
        level = Level.vp(float(scheduler.alphas_cumprod[int(t)]))
        c, u = model(x, level, CONDITIONS["positive"]), model(x, level, CONDITIONS["null"])
        x = inverse.step(u + weight * (c - u), int(t), x, return_dict=False)[0]
    assert away(inverted(scheduler, stack).x, x) < 1e-5  # its tables are float32


@pytest.mark.parametrize("name", FORMS)
def test_whatever_the_network_emits(name: str) -> None:
    options = FINE if name == "DDIMScheduler" else {}
    seen = [
        inverted(make(name, {**options, "prediction_type": kind}), "cfgpp(0.6) | rescale(0.5, space='denoised')").x
        for kind in FORMS[name]
    ]
    assert all(away(one, seen[0]) < 1e-9 for one in seen[1:])


def test_the_scaling_of_x_makes_no_difference() -> None:
    """DDIM keeps x, Euler x / alpha; at the same levels the network is handed the same numbers."""
    ddim, euler = make("DDIMScheduler", FINE), make("EulerDiscreteScheduler", {"timestep_spacing": "leading"})
    kept, scaled = inverted(ddim, "cfg(3)").x, inverted(euler, "cfg(3)").x
    assert grid(euler).points[0].timestep == grid(ddim).points[0].timestep
    assert away(scaled * grid(ddim).points[0].level.alpha, kept) < 1e-5  # Euler's sigmas are float32


def test_a_sample_is_placed_at_its_own_variance() -> None:
    x = torch.ones(1, 1, dtype=torch.float64)
    assert torch.equal(placed(x, Level.vp(0.9), Level.vp(0.2), EPSILON), x)
    assert torch.equal(placed(x, Level.flow(0.1), Level.flow(0.8), FLOW), x)
    assert float(placed(x, Level.ve(0.0), Level.ve(3.0), EPSILON)) == pytest.approx(math.sqrt(10))
    edm = Parameterization("edm", sigma_data=0.5)
    assert float(placed(x, Level.ve(0.0), Level.ve(3.0), edm)) == pytest.approx(math.sqrt(9.25) / 0.5)


@pytest.mark.parametrize(("name", "options"), [ROWS[0], ROWS[3], ROWS[5]])
def test_data_come_back_the_better_the_more_steps_there_are(name: str, options: dict[str, Any]) -> None:
    """The error is of the first order: twice the steps, half of it."""
    errors = []
    for steps in (50, 100, 200):
        scheduler = make(name, options)
        noisy = inverted(scheduler, "stack()", steps=steps).x
        errors.append(away(sampled(scheduler, "stack()", noisy, steps=steps), DATA))
    assert errors[0] < 0.3
    assert 1.5 < errors[0] / errors[1] < 3
    assert 1.5 < errors[1] / errors[2] < 3


# --- the account, and per sample -------------------------------------------------------------------------------------


def test_windows_and_cost_are_those_of_sampling() -> None:
    """A step is undone under the rules it was made under: its level is the one that the network is told."""
    scheduler = make("DDIMScheduler", FINE)
    scheduler.set_timesteps(10)
    levels = [point.level.k_sigma for point in grid(scheduler).points]
    for stack, wanted in (
        (f"during(cfg(3), sigma=({levels[5]}, {levels[2]}))", {2, 3, 4}),
        ("during(cfg(3), progress=(0.2, 0.5))", {2, 3, 4}),
    ):
        report = inverted(scheduler, stack).report
        assert [record.index for record in report.steps] == list(range(9, -1, -1))
        assert {record.index for record in report.steps if Query("null") in record.queries} == wanted
        assert report.evaluations == [13, 13]
    assert inverted(scheduler, "cfgpp(1)").report.evaluations == [20, 20]


def test_a_batch_is_its_samples_alone() -> None:
    scheduler = make("DDIMScheduler", FINE)
    together = inverted(scheduler, "tsg(2, strength=0.5)", seeds=[3, 4]).x
    alone = {name: rows[1:] for name, rows in CONDITIONS.items()}
    model = MixtureDenoiser(MIXTURE)
    seen = invert(model, "tsg(2, strength=0.5)", scheduler, DATA[1:], conditions=alone, steps=10, seeds=[4]).x
    assert away(seen, together[1:]) < 1e-12
    other = invert(model, "tsg(2, strength=0.5)", scheduler, DATA[1:], conditions=alone, steps=10, seeds=[5]).x
    assert away(other, together[1:]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    scheduler = make("DDIMScheduler", FINE)
    x0 = DATA.to(dtype)
    done = inverted(scheduler, "cfg(2)", x0=x0)
    assert done.x.dtype == dtype
    assert away(done.x.double(), inverted(scheduler, "cfg(2)", x0=x0.double()).x) < (
        1e-4 if dtype.itemsize == 4 else 0.1
    )
    assert torch.equal(x0, DATA.to(dtype))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in supported() if name not in FIRST_ORDER])
def test_other_schedulers_are_refused(name: str) -> None:
    use = {"F": "FlowMatchEulerDiscreteScheduler", "E": "EDMEulerScheduler.from_config"}
    wanted = use.get(name[0] if name.startswith(("Flow", "EDM")) else "", r"DDIMScheduler.from_config\(.*clip_sample")
    with pytest.raises(UnsupportedSchedulerError, match=f"{name} cannot be inverted: .* use {wanted}"):
        inverted(getattr(diffusers, name)(), "cfg(2)")


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_every_first_order_scheduler_is_taken(name: str) -> None:
    assert name in supported()
    scheduler = make(name, FINE if name == "DDIMScheduler" else {})
    assert torch.isfinite(inverted(scheduler, "cfg(2)").x).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDIMScheduler", {}, "clip_sample=True cannot be inverted: what it cuts off is lost; set clip_sample=False"),
        ("DDIMScheduler", {**FINE, "thresholding": True}, "thresholding=True cannot be inverted"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "draws fresh noise in each step"),
    ],
)
def test_steps_that_lose_something_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=message):
        inverted(make(name, options), "cfg(2)")


def test_a_scheduler_that_steps_by_its_own_code_is_another() -> None:
    class Mine(diffusers.DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    with pytest.raises(UnsupportedSchedulerError, match="Mine"):
        inverted(Mine(clip_sample=False), "cfg(2)", MixtureDenoiser(MIXTURE))


@pytest.mark.parametrize(
    "stack",
    [
        "adaptive(cfg(4), threshold=0.99)",
        "apg(4, momentum=-0.5)",
        "prefix(cfg(4), 3)",
        "momentum(0.5)",  # it begins to at its first evaluation
        "cfg(2) | smc_cfg(3)",
        "during(adaptive(cfg(4), threshold=0.99), sigma=(0, 5))",
        "cfg(2) | apg(4, momentum=-0.5)",
    ],
)
def test_rules_that_remember_are_refused(stack: str) -> None:
    with pytest.raises(CompositionError, match=r"remembers earlier steps .* cfg\(scale\) or cfgpp\(scale\)"):
        inverted(make("DDIMScheduler", FINE), stack)
    inverted(make("DDIMScheduler", FINE), "apg(4) | rescale(0.3)")  # without momentum it remembers nothing


def test_wrong_arguments() -> None:
    scheduler = make("DDIMScheduler", FINE)
    with pytest.raises(InputError, match="seeds has 3 entries for 2 samples"):
        inverted(scheduler, "cfg(2)", seeds=[1, 2, 3])
    with pytest.raises(InputError, match="the model emits 'v' but the scheduler reads 'epsilon'"):
        inverted(scheduler, "cfg(2)", emits=V)
    with pytest.raises(InputError, match="conditions need 'positive'"):
        invert(MixtureDenoiser(MIXTURE), "cfg(2)", scheduler, DATA, conditions={"null": CONDITIONS["null"]})
    with pytest.raises(InputError, match=r"start has shape \(1, 2, 3, 3\), expected \(2, 2, 3, 3\)"):
        sampled(scheduler, "cfg(2)", DATA[:1])
