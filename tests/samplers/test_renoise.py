"""CFG++ on every scheduler, as it is: limits, closed forms, and the published equations.

The wanted values are computed here in float64, from the equations, by code that shares none with the package. Most
schedulers of diffusers step in float32 whatever they are given: `CLOSE` is what that leaves of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import RuleError, UnsupportedSchedulerError
from guidestack.guidance.prediction import X0, Level, Prediction, convert
from guidestack.guidance.rules.cfg_pp import MATCHED, matching_cfg_scale
from guidestack.guidance.step import Estimate
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser
from guidestack.samplers import Grid, grid, parameterization, supported
from guidestack.samplers.levels import remembers
from guidestack.samplers.noise import seeded
from guidestack.samplers.renoise import UNCLIPPED, Renoising, _Homogeneous
from guidestack.samplers.stepping import Stepper

from .test_levels import IDS, ROWS, SPACINGS, is_random, scheduler_for

STEPS = 10
CLOSE = 3e-5
EVERY = pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
SPARSE = [(name, options) for name, options in ROWS if not any(options.get(one) for one in SPACINGS)]
SOME = pytest.mark.parametrize(("name", "options"), SPARSE, ids=[i for i, r in zip(IDS, ROWS) if r in SPARSE])
MIXTURE = GaussianMixture.example()
Answer = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
"""(D, R), both as x0, for samples at a level."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, of diffusers' float32 sigmas
    pytest.mark.filterwarnings("ignore:The `scale_model_input` function should be called:UserWarning"),
]


def mixture(x: Tensor, level: Level, *components: int) -> Tensor:
    """The posterior mean of a class, in float64."""
    if not level.alpha:
        return MIXTURE.denoised(x, Level(1e-9, level.sigma), MIXTURE.condition(*components).expand(len(x), -1))
    return MIXTURE.denoised(x.double(), level, MIXTURE.condition(*components).expand(len(x), -1))


def cfg_pp(scale: float) -> Answer:
    """CFG++ of a class against all data."""

    def answer(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        c, u = mixture(x, level, 1, 2), mixture(x, level)
        return u + scale * (c - u), u

    return answer


D = 0.5 * (torch.arange(18.0, dtype=torch.float64) * 1.3).sin().reshape(1, 2, 3, 3)
R = 0.5 * (torch.arange(18.0, dtype=torch.float64) * 2.9).cos().reshape(1, 2, 3, 3)


def constant(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Two denoisers that do not look at x."""
    return D, R


def start(level: Level) -> Tensor:
    noise = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return level.alpha * R + level.sigma * noise


def course(
    scheduler: Any, answer: Answer, begin: int = 0, make: Callable[..., Any] = Renoising
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, x before, x after) of each evaluation of a run under re-noising that begins at point `begin`."""
    schedule, emits = grid(scheduler), parameterization(scheduler)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    renoising, advance = make(scheduler, schedule, begin), Stepper(scheduler)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(3)} if takes else {}
    x = start(schedule.points[begin].level)
    with seeded(scheduler, [0]):
        for index in range(begin, len(schedule.points)):
            level, timestep, before = schedule.points[index].level, scheduler.timesteps[index], x
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, timestep)
            jump, back = (
                Prediction(convert(value, x, level, X0, emits), x, level, emits) for value in answer(x, level)
            )
            told, at = renoising.before(Estimate(jump, back), x)
            x = advance(told, timestep, at, **options).double()
            x = renoising.after(x)
            yield index, before, x


def whole_steps(schedule: Grid, run: Iterator[tuple[int, Tensor, Tensor]]) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(index where the step begins, index where it ends, x before, x after) of each step of the sampler."""
    first, before = None, None
    for index, x, after in run:
        if first is None or before is None:
            first, before = index, x
        if schedule.ends_step(index):
            yield first, index, before, after
            first = None


def kept(scheduler: Any, before: Level, after: Level, timestep: float) -> float:
    """The share of a step's noise that survives the step: what of ``x - alpha D`` is in x' beside ``alpha' D``.

    A deterministic step keeps ``sigma'/sigma``; one that draws all noise anew, as DDPM, the share k'/k of that, with
    ``k = sigma/alpha``.
    """
    name = type(scheduler).__name__
    if name == "LCMScheduler":
        return 0.0
    if name == "TCDScheduler":  # to a level beyond the next, and back up with fresh noise
        target = after_timestep(scheduler, timestep)
        beyond = Level.vp(float(scheduler.alphas_cumprod[math.floor(0.7 * target)]))
        return after.alpha / beyond.alpha * beyond.sigma / before.sigma
    anew = 0
    if name == "SASolverScheduler":
        anew = scheduler.tau_func(timestep) ** 2
    elif is_random(name, scheduler.config):
        anew = 1
    return after.sigma / before.sigma * (after.sigma * before.alpha / (after.alpha * before.sigma)) ** anew


def after_timestep(scheduler: Any, timestep: float) -> float:
    """The entry that follows; 0 after the last."""
    entries = [*scheduler.timesteps.tolist(), 0]
    return float(entries[entries.index(timestep) + 1])


def close(seen: Tensor, wanted: Tensor, size: float = 1.0, tolerance: float = CLOSE) -> bool:
    """Equal to `tolerance` of the largest number in it, or of `size`."""
    return bool((seen - wanted).abs().max() <= tolerance * max(size, float(wanted.abs().max())))


def quietly(name: str, options: dict[str, Any], steps: int = STEPS) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers says of a configuration is not this test's
        return scheduler_for(name, options, steps)


# --- limits ----------------------------------------------------------------------------------------------------------


@SOME
def test_the_same_estimate_twice_is_the_base_solver(name: str, options: dict[str, Any]) -> None:
    def same(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return (mixture(x, level, 1, 2),) * 2

    class Nothing:
        """The scheduler alone."""

        def __init__(self, *rest: Any) -> None:
            pass

        def before(self, estimate: Estimate, x: Tensor) -> tuple[Tensor, Tensor]:
            return estimate.prediction.native, x

        def after(self, x: Tensor) -> Tensor:
            return x

    scheduler = quietly(name, options)
    base = [x for _, _, x in course(copy.deepcopy(scheduler), same, make=Nothing)]
    ours = [x for _, _, x in course(scheduler, same)]
    assert len(ours) == len(grid(scheduler).points)
    for x, wanted in zip(ours, base, strict=True):
        assert close(x, wanted) if remembers(scheduler) else torch.equal(x, wanted)


@SOME
def test_scale_0_is_the_unconditional_sampler(name: str, options: dict[str, Any]) -> None:
    seen, wanted = sampled(quietly(name, options), "cfgpp(0)"), sampled(quietly(name, options), "stack()", (0, 1, 2, 3))
    assert close(seen, wanted)
    assert not close(seen, sampled(quietly(name, options), "stack()"), tolerance=1e-2)


@SOME
def test_scale_1_is_not_the_conditional_sampler(name: str, options: dict[str, Any]) -> None:
    seen, conditional = sampled(quietly(name, options), "cfgpp(1)"), sampled(quietly(name, options), "stack()")
    if name == "LCMScheduler":  # re-noises with noise alone: the only one for which it is
        assert close(seen, conditional, tolerance=1e-3)
    else:
        assert not close(seen, conditional, tolerance=1e-2)


def sampled(scheduler: Any, stack: str, prompt: tuple[int, ...] = (1, 2), seeds: tuple[int, ...] = (5, 6)) -> Tensor:
    """The samples of a mixture, through the package's own loop."""
    model = MixtureDenoiser(MIXTURE, parameterization(scheduler))
    conditions = {
        "positive": MIXTURE.condition(*prompt).expand(len(seeds), -1),
        "null": MIXTURE.condition().expand(len(seeds), -1),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = gs.sample(
            model, stack, scheduler, conditions=conditions, shape=(2, 3, 3), seeds=seeds, steps=STEPS,
            dtype=torch.float64,
        )  # fmt: skip
    return done.x


NOISY = ("TCDScheduler", "SASolverScheduler", "DEISMultistepScheduler")  # stop short of data without noise
EXTRAPOLATE = ("LMSDiscreteScheduler", "PNDMScheduler")  # to the very end, from the noise of earlier steps


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name, options in SPARSE
        if name not in (*NOISY, *EXTRAPOLATE)
        and not {"final_sigmas_type", "set_alpha_to_one", "interpolation_type"} & set(options)
    ],
)
def test_the_last_step_ends_at_the_jump(name: str, options: dict[str, Any]) -> None:
    last: list[Tensor] = []

    def answer(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        last[:] = D + 0.1 * (x / math.hypot(level.alpha, level.sigma)).sin(), R + 0.2 * x.cos()
        return last[0], last[1]

    scheduler = quietly(name, options)
    *_, (_, _, x) = course(scheduler, answer)
    assert grid(scheduler).final.sigma == 0
    assert close(x, last[0])
    assert not close(x, last[1], tolerance=1e-2)


# --- two constant denoisers --------------------------------------------------------------------------------------


def check_constant(scheduler: Any, begin: int = 0, make: Callable[..., Any] = Renoising) -> None:
    """On two constant denoisers ``x' = alpha' D + kept (x - alpha R) + fresh noise``, whatever the solver's order.

    Fresh noise is that of the same run with R alone: it enters by addition.
    """
    name, schedule = type(scheduler).__name__, grid(scheduler)
    base: dict[int, Tensor] = {}
    if is_random(name, scheduler.config):

        def alone(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            return R, R

        for begun, ended, before, x in whole_steps(schedule, course(copy.deepcopy(scheduler), alone, begin)):
            level, reached = schedule.points[begun].level, schedule.after(ended)
            share = kept(scheduler, level, reached, schedule.points[begun].timestep)
            base[begun] = x - reached.alpha * R - share * (before - level.alpha * R)
    seen = 0
    for begun, ended, before, x in whole_steps(schedule, course(scheduler, constant, begin, make)):
        level, reached = schedule.points[begun].level, schedule.after(ended)
        share = kept(scheduler, level, reached, schedule.points[begun].timestep)
        wanted = reached.alpha * D + share * (before - level.alpha * R) + base.get(begun, 0)
        assert close(x, wanted, float(before.abs().max())), f"step from {begun} to {ended}"
        seen += 1
    assert seen == schedule.steps - schedule.points[begin].step


# Begun later than at their first step diffusers' own are off their schedule, without any re-noising: PNDM counts its
# evaluations from where a run begins, and LMS weighs one noise with the coefficients of four.
LOST = ("PNDMScheduler", "LMSDiscreteScheduler")


@SOME
def test_a_run_may_begin_in_the_middle(name: str, options: dict[str, Any]) -> None:
    scheduler = quietly(name, options)
    begin = next(index for index, point in enumerate(grid(scheduler).points) if point.step == 3)
    if name not in LOST:
        return check_constant(scheduler, begin)

    def alone(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return R, R

    schedule = grid(scheduler)
    level = schedule.points[begin].level
    noise = (start(level) - level.alpha * R) / level.sigma
    wanted = [(schedule.after(index).noised(R, noise), x) for index, _, x in course(scheduler, alone, begin)]
    # If this fails, diffusers has mended it: take the name out of LOST.
    assert not all(close(x, one, tolerance=1e-2) for one, x in wanted)


@pytest.mark.parametrize("begin", [3, 4, 5])
def test_a_single_step_solver_may_begin_inside_of_a_step(begin: int) -> None:
    """Begun at an inner evaluation, diffusers takes a first-order step from there."""
    options = {"solver_order": 3}
    check_constant(quietly("DPMSolverSinglestepScheduler", options, 12), begin)


class Naive(Renoising):
    """Hands every scheduler the samples as they were moved."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.homogeneous = None


class Offset(Renoising):
    """Keeps the offset apart for every scheduler."""

    def __init__(self, scheduler: Any, *rest: Any) -> None:
        super().__init__(scheduler, *rest)
        self.homogeneous = _Homogeneous(scheduler)


class AlphaBefore(Renoising):
    """Adds at the level before the step."""

    def after(self, x: Tensor) -> Tensor:
        level, reached = self.schedule.points[self.position].level, self.schedule.after(self.position)
        if self.added is not None:
            self.added = self.added * level.alpha / reached.alpha
        return super().after(x)


class Twice(Renoising):
    """Adds twice."""

    def after(self, x: Tensor) -> Tensor:
        self.added = None if self.added is None else 2 * self.added
        return super().after(x)


class Inner(Renoising):
    """Adds at every evaluation of a step."""

    def before(self, estimate: Estimate, x: Tensor) -> tuple[Tensor, Tensor]:
        told = super().before(estimate, x)
        self.added = estimate.prediction.denoised - (estimate.renoise or estimate.prediction).denoised
        return told


@EVERY
def test_constant_denoisers_have_their_closed_form(name: str, options: dict[str, Any]) -> None:
    """On every scheduler; those that the records say remember samples, and no others, need the offset for it."""
    scheduler = quietly(name, options)
    check_constant(copy.deepcopy(scheduler))
    if remembers(scheduler):
        with pytest.raises(AssertionError, match="step from"):
            check_constant(scheduler, make=Naive)
    else:
        check_constant(scheduler, make=Naive)


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("DDIMScheduler", {"clip_sample": False}, AlphaBefore),
        ("FlowMatchEulerDiscreteScheduler", {}, AlphaBefore),
        ("UniPCMultistepScheduler", {}, AlphaBefore),
        ("EulerDiscreteScheduler", {}, Twice),
        ("DEISMultistepScheduler", {}, Twice),
        ("HeunDiscreteScheduler", {}, Inner),
        ("FlowMatchHeunDiscreteScheduler", {}, Inner),
        ("KDPM2DiscreteScheduler", {}, Inner),
        ("PNDMScheduler", {"skip_prk_steps": False}, Inner),
    ],
)
def test_the_closed_form_notices(name: str, options: dict[str, Any], make: Any) -> None:
    with pytest.raises(AssertionError):
        check_constant(quietly(name, options), make=make)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_an_offset_kept_apart_changes_nothing_where_none_is_needed(name: str) -> None:
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    plain = [x for _, _, x in course(quietly(name, options), cfg_pp(0.6))]
    apart = [x for _, _, x in course(quietly(name, options), cfg_pp(0.6), make=Offset)]
    assert all(close(a, b) for a, b in zip(apart, plain, strict=True))


@pytest.mark.parametrize(
    "name",
    ["UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler", "DPMSolverSinglestepScheduler"],
)
def test_whatever_the_network_emits(name: str) -> None:
    """One answer in three forms takes the same course, though some of these remember noise and told samples differ."""
    seen = [
        list(course(quietly(name, {"prediction_type": kind}), cfg_pp(0.6)))
        for kind in ("epsilon", "v_prediction", "sample")
    ]
    for (_, _, a), (_, _, b), (_, _, c) in zip(*seen, strict=True):
        assert close(b, a)
        assert close(c, a)


# --- first order: CFG with a scale of its own at each step -----------------------------------------------------------

FIRST_ORDER: list[tuple[str, dict[str, Any]]] = [
    (name, options)
    for name, options in ROWS
    if name in ("DDIMScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler")
    and not options.get("rescale_betas_zero_snr")  # from alpha = 0 the weight of CFG is finite and its x0 is not
]


def cfg(weight: float) -> Callable[[Tensor, Level], Tensor]:
    def answer(x: Tensor, level: Level) -> Tensor:
        c, u = mixture(x, level, 1, 2), mixture(x, level)
        return u + weight * (c - u)

    return answer


@pytest.mark.parametrize(("name", "options"), FIRST_ORDER)
@pytest.mark.parametrize("scale", [0.2, 0.6, 1.0])
def test_a_first_order_step_is_cfg_of_scale_lambda_k_over_k_minus_k_after(
    name: str, options: dict[str, Any], scale: float
) -> None:
    scheduler, rule = quietly(name, options), gs.CFGPlusPlus(scale)
    exact = in_float64(scheduler)
    schedule = grid(scheduler)
    levels = [*(point.level for point in schedule.points), schedule.final]
    x = y = z = start(levels[0])
    ours = list(course(scheduler, cfg_pp(scale)))
    for (_, _, seen), level, reached in zip(ours, levels, levels[1:]):
        # The published CFG++, and plain CFG, in float64 and with nobody's code.
        jump, back = cfg_pp(scale)(x, level)
        x = reached.alpha * jump + reached.sigma * (x - level.alpha * back) / level.sigma
        if reached.k_sigma == level.k_sigma:  # Euler with final_sigmas_type="sigma_min" stays where it is
            break
        weight = rule.cfg_scale(level.k_sigma, reached.k_sigma)
        s, after = level.sigma, reached.sigma
        by_hand = s * (1 - after) / (s - after) if level.path == "flow" else 1 / (1 - reached.k_sigma / level.k_sigma)
        assert weight == pytest.approx(scale * by_hand, rel=1e-9)
        for wrong, w in ((False, weight), (True, scale)):
            value = z if wrong else y
            guided = cfg(w)(value, level)
            value = reached.alpha * guided + reached.sigma * (value - level.alpha * guided) / level.sigma
            y, z = (y, value) if wrong else (value, z)
        assert close(y, x, tolerance=1e-12)
        assert close(seen, x, tolerance=1e-12 if exact else CLOSE)
    # The same number as the scale of CFG is another thing; but beta spacing goes nearly all the way in its last step.
    assert options.get("use_beta_sigmas") or not close(z, x, tolerance=1e-2)


@pytest.mark.parametrize("name", ["DDIMScheduler", "CogVideoXDDIMScheduler"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [6, 10, 30])
def test_ddim_lands_t_over_n_further_on_and_not_at_the_next_entry(name: str, spacing: str, steps: int) -> None:
    """x' = alpha' D_l + sigma' eps_u, alpha' and sigma' those of the timestep t - T // n, whatever the spacing."""
    scheduler = quietly(name, {"timestep_spacing": spacing, "clip_sample": False}, steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    bars, beside = scheduler.alphas_cumprod.tolist(), 0
    entries = [*scheduler.timesteps.tolist(), -1]
    for index, before, seen in course(scheduler, cfg_pp(0.6)):
        t, target = entries[index], entries[index] - 1000 // steps
        beside += target != entries[index + 1] and target >= 0
        bar, reached = bars[t], bars[target] if target >= 0 else 1.0
        jump, back = cfg_pp(0.6)(before, Level.vp(bar))
        noise = (before - math.sqrt(bar) * back) / math.sqrt(1 - bar)
        wanted = math.sqrt(reached) * jump + math.sqrt(1 - reached) * noise
        assert close(seen, wanted, tolerance=1e-12), index
        assert grid(scheduler).after(index).alpha == pytest.approx(math.sqrt(reached))
    assert (beside > 0) == (spacing == "linspace" or (spacing == "trailing" and steps != 10))


def in_float64(scheduler: Any) -> bool:
    """Give a scheduler that steps in the type of its tables and samples tables in float64; whether it is one."""
    if type(scheduler).__name__ != "DDIMScheduler":  # the others convert samples to float32 themselves
        return False
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return True


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ancestral_euler_by_sigma_down(prediction: str) -> None:
    """x' = D_l + (sigma_down/sigma)(x - D_u) + sigma_up z; and so it is CFG of scale lambda k / (k - k_down)."""
    scheduler = quietly("EulerAncestralDiscreteScheduler", {"prediction_type": prediction})
    schedule, draws = grid(scheduler), torch.Generator().manual_seed(3)
    for index, before, seen in course(scheduler, cfg_pp(0.6)):
        level, reached = schedule.points[index].level, schedule.after(index)
        up = math.sqrt(reached.sigma**2 * (level.sigma**2 - reached.sigma**2) / level.sigma**2)
        down = math.sqrt(reached.sigma**2 - up**2)
        fresh = up * torch.randn(before.shape, generator=draws, dtype=torch.float64)
        jump, back = cfg_pp(0.6)(before, level)
        wanted = jump + down / level.sigma * (before - back) + fresh
        assert close(seen, wanted, float(before.abs().max()))
        guided = cfg(gs.CFGPlusPlus(0.6).cfg_scale(level.sigma, down))(before, level)
        assert close(guided + down / level.sigma * (before - guided) + fresh, wanted, tolerance=1e-12)


def test_ddim_with_fresh_noise() -> None:
    """x' = alpha' D_l + sqrt(1 - alpha_bar' - s^2) eps_u + s z at eta = 1, which is DDPM."""
    ddim, ddpm = (quietly(name, {"clip_sample": False}) for name in ("DDIMScheduler", "DDPMScheduler"))
    schedule, draws = grid(ddim), torch.Generator().manual_seed(3)
    ddim.step = lambda *a, original=ddim.step, **k: original(*a, eta=1.0, **k)
    # Its generator goes by name: the loop reads it from the signature, which a lambda does not show.
    ddim.step.__signature__ = inspect.signature(ddpm.step)  # type: ignore[attr-defined]
    for (index, before, seen), (_, _, other) in zip(course(ddim, cfg_pp(0.6)), course(ddpm, cfg_pp(0.6)), strict=True):
        level, reached = schedule.points[index].level, schedule.after(index)
        variance = reached.sigma**2 / level.sigma**2 * (1 - level.alpha**2 / reached.alpha**2)
        fresh = math.sqrt(variance) * torch.randn(before.shape, generator=draws, dtype=torch.float64)
        jump, back = cfg_pp(0.6)(before, level)
        noise = (before - level.alpha * back) / level.sigma
        wanted = reached.alpha * jump + math.sqrt(reached.sigma**2 - variance) * noise + fresh
        assert close(seen, wanted)
        assert close(other, seen, tolerance=1e-3)  # DDPM draws nothing in its last step, and floors its variance


# --- the published multistep and two-evaluation forms ----------------------------------------------------------------


def two_m(
    x: Tensor, level: Level, reached: Level, old: Tensor | None, last_h: float, guided_history: bool = False
) -> tuple[Tensor, Tensor]:
    """One step in k-scaling and D_u; Euler's where there is no history, and in the last."""
    jump, back = cfg_pp(0.6)(level.alpha * x, level)
    if old is None or reached.k_sigma == 0:
        return jump + reached.k_sigma / level.k_sigma * (x - back), back
    h = math.log(level.k_sigma / reached.k_sigma)
    e, share = math.exp(-h), -math.expm1(-h) * h / (2 * last_h)
    if guided_history:  # (D_l - D_u,old), as several public files have it
        return jump - e * back + share * (jump - old) + e * x, back
    return jump + (share - e) * back - share * old + e * x, back


guided_history = functools.partial(Renoising, guides_history=True)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("steps", "begin"), [(STEPS, 0), (20, 0), (STEPS, 3)])
def test_2m_is_the_authors_own(name: str, guided: bool, steps: int, begin: int) -> None:
    """x' = D_l + a D_u + b D_u,old + c x in k-scaling; first and last step Euler's.

    The paper's general form and the authors' SDXL file have no history of what was guided; their Stable Diffusion 1.5
    file has D_l in the difference with D_u,old.
    """
    scheduler = quietly(name, {}, steps)
    schedule = grid(scheduler)
    levels = [*(point.level for point in schedule.points), schedule.final][begin:]
    x = other = start(levels[0]) / levels[0].alpha
    old = other_old = None
    last_h = math.nan
    run = course(scheduler, cfg_pp(0.6), begin, guided_history if guided else Renoising)
    for (index, _, seen), level, reached in zip(run, levels, levels[1:]):
        x, old = two_m(x, level, reached, old, last_h, guided)
        other, other_old = two_m(other, level, reached, other_old, last_h, not guided)
        last_h = math.log(level.k_sigma / reached.k_sigma) if reached.k_sigma else math.nan
        assert close(seen / reached.alpha, x), index
    assert not close(other, x, tolerance=1e-2)


def test_2m_whose_last_step_is_of_the_second_order() -> None:
    """It is with 15 steps or more that do not end at 0, and not below or with euler_at_final."""
    for steps, final, second in ((20, False, True), (20, True, False), (14, False, False)):
        scheduler = quietly(
            "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "euler_at_final": final}, steps
        )
        scheduler.sigmas[-1] = 0.5 * scheduler.sigmas[-2]  # which it would not move on to otherwise
        schedule = grid(scheduler)
        last, final = schedule.points[-1].level, schedule.final
        ends = []
        for make in (Renoising, guided_history):
            *_, (_, before, after) = course(copy.deepcopy(scheduler), constant, make=make)
            ends.append(
                after - final.sigma / last.sigma * before
            )  # what the last step adds to the samples that it keeps
        h, last_h = math.log(2), math.log(schedule.points[-2].level.k_sigma / last.k_sigma)
        share = -math.expm1(-h) * h / (2 * last_h) if second else 0.0
        assert close(ends[1] - ends[0], share * final.alpha * (D - R), tolerance=1e-4)


def test_the_form_of_2m_is_the_rules_parameter() -> None:
    """Through the loop; inside of other rules; and with a first-order solver, which has no difference, the same."""
    both = {}
    for stack in (
        "cfgpp(0.6)",
        "cfgpp(0.6, second_order='guided')",
        "during(cfgpp(0.6, second_order='guided'), sigma=(0, 9e9))",
    ):
        both[stack] = sampled(quietly("DPMSolverMultistepScheduler", {}), stack)
        assert str(gs.parse(stack)) == str(gs.parse(str(gs.parse(stack))))
    plain, guided, inside = both.values()
    assert torch.equal(guided, inside)
    assert not close(guided, plain, tolerance=1e-2)
    for name, options in (("EulerDiscreteScheduler", {}), ("DPMSolverMultistepScheduler", {"solver_order": 1})):
        one, other = (sampled(quietly(name, options), stack) for stack in list(both)[:2])
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UniPCMultistepScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_the_second_form_is_refused_by_other_solvers(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=rf"a form of DPM-Solver\+\+ 2M, and {name} .* leave it out"):
        sampled(quietly(name, options), "cfgpp(0.6, second_order='guided')")
    with pytest.raises(RuleError, match="unknown second_order 'guide'; did you mean 'guided'"):
        gs.CFGPlusPlus(0.6, second_order="guide")


def test_2s_adds_at_the_second_evaluation_only() -> None:
    """Inner: the solver on D_u alone. Then x' = solver(D_u, D_u,2) + (D_l,2 - D_u,2) in k-scaling."""
    scheduler = quietly("DPMSolverSinglestepScheduler", {"solver_order": 2})
    schedule = grid(scheduler)
    assert [(p.step, p.evaluation) for p in schedule.points[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    run = {index: (before, after) for index, before, after in course(scheduler, cfg_pp(0.6))}
    pairs = 0
    for index, point in enumerate(schedule.points):
        if point.evaluation or index + 2 > len(schedule.points) or not schedule.points[index + 1].evaluation:
            continue
        level, inner, reached = point.level, schedule.points[index + 1].level, schedule.after(index + 1)
        x = run[index][0] / level.alpha
        h, h_inner = math.log(level.k_sigma / reached.k_sigma), math.log(level.k_sigma / inner.k_sigma)
        first = cfg_pp(0.6)(level.alpha * x, level)[1]
        middle = math.exp(-h_inner) * x - math.expm1(-h_inner) * first
        assert close(run[index][1] / inner.alpha, middle)
        jump, back = cfg_pp(0.6)(inner.alpha * middle, inner)
        # h_inner = h/2 is the published one: then the two weights are 0 and 1.
        share = h / (2 * h_inner)
        wanted = math.exp(-h) * x - math.expm1(-h) * ((1 - share) * first + share * back) + jump - back
        assert close(run[index + 1][1] / reached.alpha, wanted)
        pairs += 1
    assert pairs == 4  # the last two of ten evaluations are steps of the first order


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_heun_adds_at_the_second_evaluation_only(name: str) -> None:
    scheduler = quietly(name, {})
    schedule = grid(scheduler)
    run = {index: (before, after) for index, before, after in course(scheduler, cfg_pp(0.6))}
    for index, point in enumerate(schedule.points[:-2]):
        if point.evaluation:
            continue
        level, reached = point.level, schedule.after(index)
        x = run[index][0]
        back = cfg_pp(0.6)(x, level)[1]
        inner = reached.alpha * back + reached.sigma / level.sigma * (x - level.alpha * back)
        size = float(x.abs().max())
        assert close(run[index][1], inner, size)
        jump, second = cfg_pp(0.6)(inner, reached)
        slopes = [
            (value - lvl.alpha * d) / lvl.sigma - (d if lvl.path == "flow" else 0)  # dx/dsigma: eps, or eps - x0
            for value, lvl, d in ((x, level, back), (inner, reached, second))
        ]
        wanted = x + (reached.sigma - level.sigma) * (slopes[0] + slopes[1]) / 2 + reached.alpha * (jump - second)
        assert close(run[index + 1][1], wanted, size)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverSinglestepScheduler"])
def test_every_evaluation_asks_the_stack(name: str) -> None:
    scheduler = quietly(name, {})
    conditions = {"positive": MIXTURE.condition(1)[None], "null": MIXTURE.condition()[None]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = gs.sample(
            MixtureDenoiser(MIXTURE), "cfgpp(0.6)", scheduler, conditions=conditions, shape=(2, 3, 3), seeds=[1],
            steps=STEPS,
        )  # fmt: skip
    assert done.report.evaluations == [2 * len(grid(scheduler).points)]


@pytest.mark.parametrize(
    ("name", "options"),
    [row for row in SPARSE if is_random(*row)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_fresh_noise_is_each_samples_own(name: str, options: dict[str, Any]) -> None:
    together = sampled(quietly(name, options), "cfgpp(0.6)", seeds=(5, 6, 7))
    alone = sampled(quietly(name, options), "cfgpp(0.6)", seeds=(6,))
    assert close(together[1:2], alone)
    assert not close(together[1:2], sampled(quietly(name, options), "cfgpp(0.6)", seeds=(8,)), tolerance=1e-2)


# --- what schedulers do to x0, and what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 0.3])
def test_a_clipped_jump_is_clipped_as_the_scheduler_clips(limit: float) -> None:
    clipped: dict[str, Any] = {"clip_sample": True, "clip_sample_range": limit}
    ddim = quietly("DDIMScheduler", clipped)
    schedule = grid(ddim)
    for index, before, seen in course(ddim, cfg_pp(0.6)):
        level, reached = schedule.points[index].level, schedule.after(index)
        jump, back = cfg_pp(0.6)(before, level)
        assert index < STEPS - 2 or (jump.abs() > limit).any()
        noise = (before - level.alpha * back) / level.sigma  # of what the network said: the scheduler does not clip it
        assert close(seen, reached.alpha * jump.clamp(-limit, limit) + reached.sigma * noise)


@pytest.mark.parametrize("name", [name for name in supported() if "clip_sample" in getattr(diffusers, name)().config])
def test_the_last_step_ends_at_the_clipped_jump(name: str) -> None:
    scheduler = quietly(name, {"clip_sample": True, "clip_sample_range": 0.2})
    *_, (index, before, x) = course(scheduler, constant)
    level, final = grid(scheduler).points[index].level, grid(scheduler).final
    share = kept(scheduler, level, final, float(scheduler.timesteps[-1]))
    assert (D.abs() > 0.2).any()
    jump = D if name in UNCLIPPED else D.clamp(-0.2, 0.2)
    assert close(x, final.alpha * jump + share * (before - level.alpha * R))


@pytest.mark.parametrize("name", [name for name in supported() if "thresholding" in getattr(diffusers, name)().config])
def test_thresholding_is_refused(name: str) -> None:
    scheduler = getattr(diffusers, name)(thresholding=True)
    with pytest.raises(UnsupportedSchedulerError, match=f"{name} with thresholding=True .* needs thresholding=False"):
        sampled(scheduler, "cfgpp(0.6)")
    sampled(scheduler, "cfg(2)")  # which is none of its business


def test_a_scheduler_without_levels_is_refused() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="levels of VQDiffusionScheduler are not known"):
        sampled(diffusers.VQDiffusionScheduler(num_vec_classes=4), "cfgpp(0.6)")


# --- through a pipeline ----------------------------------------------------------------------------------------------


# The first two are for networks of another kind, and the step of the last takes other arguments.
ALIEN = ("EDM", "FlowMatch", "CogVideoXDPM")


@pytest.mark.parametrize("name", [name for name in supported() if not name.startswith(ALIEN)])
def test_a_pipeline_takes_the_plain_loops_course(pipe: Any, name: str) -> None:
    """The pipeline's own loop with hooks on its scheduler, against `sample` on its network: to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        seed, steps = 4, 6
        eta = (
            {"eta": 0.3} if name == "TCDScheduler" else {}
        )  # the pipeline passes its own default on, which is not TCD's

        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        with seeded(pipe.scheduler, [seed]):
            seen = gs.guide(pipe, "cfgpp(0.6)")(
                "a cat", num_inference_steps=steps, output_type="latent", generator=generator(), **eta
            ).images
        text = {"positive": "a cat", "null": ""}
        conditions = {key: pipe.encode_prompt(value, "cpu", 1, False)[0] for key, value in text.items()}

        def model(x: Tensor, level: Level, condition: Tensor) -> Tensor:
            place = grid(pipe.scheduler)
            timestep = next(p.timestep for p in place.points if p.level == level)
            scale = 1.0 if place.points[0].level.alpha < 1 else math.hypot(1, level.sigma)
            return pipe.unet(x / scale, timestep, condition).sample  # type: ignore[no-any-return]

        wanted = gs.sample(
            model, "cfgpp(0.6)", pipe.scheduler, conditions=conditions, shape=(4, 8, 8), seeds=[seed], steps=steps
        ).x
    assert close(seen.double(), wanted.double())
    assert torch.isfinite(seen).all()
    assert not {"step", "scale_model_input", "set_timesteps"} & set(vars(pipe.scheduler))


# --- the rule's own numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "near", "match"), [(5, "5", "0.4"), (7.5, "7.5", "0.6"), (30, "12.5", "1")])
def test_a_scale_of_cfg_is_refused_with_its_counterpart(scale: float, near: str, match: str) -> None:
    wanted = (
        rf"interpolates .* not the scale of CFG; got {scale}; a CFG scale of {near} corresponds to {match} \(50 steps"
    )
    with pytest.raises(RuleError, match=wanted):
        gs.CFGPlusPlus(scale)
    with pytest.raises(RuleError, match=r"not the scale of CFG; got -0\.1$"):
        gs.CFGPlusPlus(-0.1)


def test_the_scale_of_cfg_of_a_step() -> None:
    rule = gs.CFGPlusPlus(0.6)
    assert rule.cfg_scale(2.0, 0.0) == 0.6  # the last step
    assert rule.cfg_scale(math.inf, 14.6) == 0.6  # from pure noise, whose x0 the step keeps nothing of
    assert [matching_cfg_scale(scale) for scale, _ in MATCHED] == [cfg for _, cfg in MATCHED]
    for wrong in ((2.0, 2.0), (2.0, 3.0), (2.0, -1.0)):
        with pytest.raises(RuleError, match="a step leads from a noise level k to a lower one"):
            rule.cfg_scale(*wrong)
