"""Rules that steer by classifiers: against closed forms, by hand, and in the limits that the papers name."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import InputError, NonFiniteError, RuleError
from guidestack.guidance.keyed import Keys
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.notation.objectives import objectives
from guidestack.guidance.observe import Seen
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.prediction import EPSILON, Level, Prediction
from guidestack.guidance.query import POSITIVE
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Estimate, Run, Step
from guidestack.guidance.testing.checks import LEVELS, oracle_run
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser
from guidestack.guidance.turn import Sight

from .test_objectives import CONDITIONS, MIXTURE, NORMAL, STEPS, F, Waits, ddim, gradient, latents, sampled

NOISE, MEASURED = 0.25, 1.2
"""The variance of a measurement of a standard normal x0, and what was measured."""


class Likelihood:
    """log p(y | x) of the measurement at a level, of a standard normal prior."""

    space = "noisy"

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        gain = level.alpha / (level.alpha**2 + level.sigma**2)
        left = level.sigma**2 / (level.alpha**2 + level.sigma**2)
        return -(MEASURED - gain * x).square().flatten(1).sum(1) / (2 * (NOISE + left))


def at(rule: gs.Rule, objective: Any, x: Tensor, levels: tuple[Level, ...], index: int) -> Estimate:
    """One estimate on the standard normal prior, at a step of a schedule."""
    about = Run(
        tuple(x.shape), x.dtype, steps=len(levels) - 1, levels=levels, objectives=objectives({"mine": objective})
    )
    conditions = {"positive": torch.ones(len(x), 1).double()}
    network = CallableNetwork({"main": MixtureDenoiser(NORMAL)}, x, levels[index], conditions, EPSILON)
    return GuidedRun(gs.Stack(rule), about).estimate(network, x, index, levels[index])


def ddpm_mean(estimate: Estimate, x: Tensor, here: Level, after: Level) -> Tensor:
    """The mean of a DDPM step whose clean sample a rule has moved, with the noise of the first one."""
    renoise = (estimate.renoise or estimate.prediction).denoised
    kept = here.alpha / after.alpha * (after.sigma / here.sigma) ** 2
    mean = (after.alpha - kept * here.alpha) * renoise + kept * x
    return mean + after.alpha * (estimate.prediction.denoised - renoise)


# --- the product of Sohl-Dickstein et al. -----------------------------------------------------------------------------


def posterior(rule: gs.Rule, steps: int) -> tuple[float, float]:
    """Mean and variance of what a DDPM sampler under the rule draws: every step is affine, with normal noise."""
    bars = torch.linspace(0, 1, steps + 2, dtype=torch.float64)[1:].square()
    levels = tuple(Level.vp(float(bar)) for bar in bars)
    mean, variance = 0.0, 1.0
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    for index, (here, after) in enumerate(itertools.pairwise(levels)):
        found = ddpm_mean(at(rule, Likelihood(), x, levels, index), x, here, after)[:, 0]
        shift, slope = float(found[0]), float(found[1] - found[0])
        fresh = after.sigma**2 / here.sigma**2 * (1 - (here.alpha / after.alpha) ** 2)
        mean, variance = shift + slope * mean, slope**2 * variance + fresh
    return mean, variance


@pytest.mark.parametrize("form", ["mean", "product"])
def test_products_with_the_likelihood_tend_to_the_exact_posterior(form: str) -> None:
    exact = torch.tensor([MEASURED / (1 + NOISE), NOISE / (1 + NOISE)])
    rule = gs.ClassifierGuidance(1, "mine", form=form)
    away = [float((torch.tensor(posterior(rule, steps)) - exact).abs().max()) for steps in (50, 200)]
    assert away[1] < 0.5 * away[0]  # of the order of a step
    assert away[1] < 0.05
    plain = torch.tensor(posterior(gs.Stack(), 200))
    assert (plain - torch.tensor([0.0, 1.0])).abs().max() < 0.05 < (plain - exact).abs().max()


def test_a_step_is_the_product_of_its_kernel_and_a_gaussian_to_the_order_of_its_variance() -> None:
    """The exact product of N(mu, v) and a Gaussian r, against mu moved by v times the gradient of log r at mu."""
    x, here = torch.tensor([[0.4, -1.2]]).double(), Level.vp(0.3)

    class Gaussian:
        space = "noisy"

        def __call__(self, x: Tensor, level: Level) -> Tensor:
            assert level == after  # that of the sample which the step leads to
            return -(x - 0.7).square().flatten(1).sum(1) / (2 * NOISE)

    errors = []
    for bar in (0.301, 0.3001):
        after = Level.vp(bar)
        levels = (here, after, Level.ve(0.0))
        plain = ddpm_mean(at(gs.Stack(), F, x, levels, 0), x, here, after)
        moved = ddpm_mean(
            at(gs.ClassifierGuidance(1, "mine", form="product"), Gaussian(), x, levels, 0), x, here, after
        )
        variance = after.sigma**2 / here.sigma**2 * (1 - here.alpha**2 / after.alpha**2)
        exact = (plain / variance + 0.7 / NOISE) / (1 / variance + 1 / NOISE)
        assert (exact - plain).abs().max() > variance / 10
        errors.append(float((moved - exact).abs().max()))
    assert errors[1] < 0.02 * errors[0]


# --- EluCD ------------------------------------------------------------------------------------------------------------


def test_elucd_moves_the_mean_by_its_schedule() -> None:
    """A run of DDPM, step by step: sigma_t^2 + gamma max sigma^2 sin(pi t / T), t counted down to 0."""
    times, gamma, k = (800, 500, 200), 0.3, 0.4
    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small")
    seen: list[tuple[Tensor, Tensor, Level]] = []

    def observe(one: Seen) -> dict[str, Tensor]:
        kept = one.estimate.renoise or one.estimate.prediction
        seen.append((kept.denoised, one.estimate.prediction.denoised - kept.denoised, one.step.level))
        return {}

    gs.sample(
        MixtureDenoiser(MIXTURE), gs.EluCD(k, "mine", sine=gamma), scheduler, conditions=CONDITIONS, shape=(1, 2, 2),
        seeds=(3, 4), timesteps=times, dtype=torch.float64, objectives={"mine": F}, observe=observe,
    )  # fmt: skip
    bars = [level.alpha**2 for _, _, level in seen] + [1.0]
    most = 0.0
    for index, (x0, moved, _) in enumerate(seen):
        bar, after, t = bars[index], bars[index + 1], len(times) - 1 - index
        variance = (1 - after) / (1 - bar) * (1 - bar / after)
        most = max(most, variance)
        weight = variance + gamma * most * math.sin(math.pi * t / len(times))
        assert torch.allclose(math.sqrt(after) * moved, k * weight * gradient(F, x0), atol=1e-6)
    assert float(seen[0][1].abs().max()) > 1e-3
    assert float(seen[-1][1].abs().max()) == 0  # neither the variance nor the sine


def test_elucd_without_the_sine_is_the_form_of_the_mean() -> None:
    one, other = (
        sampled(rule, DDPMScheduler(clip_sample=False))
        for rule in (gs.EluCD(0.4, "mine", sine=0), gs.ClassifierGuidance(0.4, "mine", form="mean"))
    )
    assert torch.equal(one, other)


# --- PPGN -------------------------------------------------------------------------------------------------------------

LINE = GaussianMixture(
    torch.tensor([[-1.0], [0.5], [1.5]]).double(), torch.tensor([0.3, 0.4, 0.2]).double(), torch.tensor([0.3, 0.4, 0.3])
)
CLASS, ALL = LINE.condition(0, 2), LINE.condition()


class OnALine:
    space = "noisy"

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        joint = [LINE.log_joint(x, level, one.repeat(len(x), 1)).logsumexp(1) for one in (CLASS, ALL)]
        return joint[0] - joint[1]


def chain(rule: gs.PPGN, x: Tensor, level: Level, size: float) -> Tensor:
    """The transition matrix of the rule's steps at one level, between cells about the places `x` of a line."""
    about = Run(tuple(x.shape), x.dtype, objectives=objectives({"mine": OnALine()}))
    step = Step(about, 1, level, before=level)
    seen = Estimate(Prediction(MixtureDenoiser(LINE)(x, level, ALL.repeat(len(x), 1)), x, level, EPSILON))
    still = gs.PPGN(rule.objective, prior=rule.prior, condition=rule.condition, noise=0)
    sight = Sight({}, Keys(tuple(range(len(x))), 1, 0, 1), lambda estimate: x, seen)
    mean, _ = still.turn(x, sight, step, ())
    moved, _ = rule.turn(x, sight, step, ())
    assert torch.allclose(moved - mean, size * level.sigma * sight.noise(x, "ppgn"))
    weights = (-(x.T - mean).square() / (2 * (size * level.sigma) ** 2)).exp()
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("level", [Level.vp(0.6), Level.ve(0.5)])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_stationary_law_of_ppgn_at_one_level(level: Level, power: float) -> None:
    """p(x) p(y | x)^s of a mixture on a line: the chain of small steps is left there, and larger ones come near."""
    x = torch.linspace(-3.5, 3.5, 400, dtype=torch.float64)[:, None]
    likely = OnALine()(x, level)
    law = (LINE.log_density(x, level, ALL.repeat(len(x), 1)) + power * likely).softmax(0)
    away = []
    for prior in (0.04, 0.01):
        rule = gs.PPGN("mine", prior=prior, condition=power * prior)
        matrix = chain(rule, x, level, math.sqrt(1 - (1 - prior) ** 2))
        for _ in range(20):  # 2^20 steps
            matrix = matrix @ matrix
        away.append(float((matrix[200] - law).abs().sum() / 2))
    assert away[1] < 0.5 * away[0]
    assert away[1] < 0.01
    free = LINE.log_density(x, level, ALL.repeat(len(x), 1)).softmax(0)
    assert (free - law).abs().sum() / 2 > 0.1


def test_ppgn_without_a_condition_is_the_langevin_step_of_that_length() -> None:
    """And an objective that says nothing is none, to the bit."""
    nothing = latents(lambda x0: 0 * x0.flatten(1).sum(1))
    rules = [gs.PPGN("mine", 2, prior=0.3), gs.PPGN("mine", 2, prior=0.3, condition=0)]
    none, off = sampled(rules[0], objective=nothing), sampled(rules[1])
    assert torch.equal(none, off)
    assert not torch.allclose(sampled(rules[0]), off, atol=1e-2)
    assert torch.equal(sampled(gs.PPGN("mine", 0)), sampled(gs.Stack()))


# --- classifier-reference guidance ------------------------------------------------------------------------------------

THREE = {
    "positive": MIXTURE.condition(0).repeat(2, 1),
    "negative:0": MIXTURE.condition(1).repeat(2, 1),
    "negative:1": MIXTURE.condition(2).repeat(2, 1),
}


def of(component: int) -> Any:
    """log p(component | x0), up to a constant."""
    return latents(lambda x0: MIXTURE.log_joint(x0, Level.vp(0.5), torch.ones(len(x0), 3).double())[:, component])


CLASSES = {"a": of(0), "b": of(1), "c": of(2)}


def referred(rule: Any, conditions: Any = None, given: Any = None, **options: Any) -> Any:
    return gs.sample(
        MixtureDenoiser(MIXTURE), rule, ddim(), conditions=conditions or THREE, shape=(1, 2, 2), seeds=(3, 4),
        steps=STEPS, dtype=torch.float64, objectives=CLASSES if given is None else given, **options,
    )  # fmt: skip


def test_classifier_reference_guidance_is_its_loop() -> None:
    scale, power, model = 3.0, 0.7, MixtureDenoiser(MIXTURE)
    rule = gs.ClassifierReference(scale, "a", ("b", "c"), power=power)
    result = referred(rule)
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    bars = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [1.0]
    for sample in range(2):
        x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(3 + sample)).double()
        reference = None
        for bar, after in itertools.pairwise(bars):
            level = Level.vp(bar)
            eps = [model(x, level, THREE[name][:1]) for name in ("positive", "negative:0", "negative:1")]
            x0 = (x - level.sigma * eps[0]) / level.alpha
            p = torch.stack([CLASSES[name](x0) for name in "abc"]).softmax(0)[:, 0]
            likeliest = 1 + int(p[1:].argmax())
            w = 1 + (scale - 1) * (1 - p[0]) ** power
            r = likeliest if reference is None else reference
            noise = eps[r] + w * (eps[0] - eps[r])
            clean = (x - level.sigma * noise) / level.alpha
            x, reference = math.sqrt(after) * clean + math.sqrt(1 - after) * noise, likeliest
        assert torch.allclose(result.x[sample : sample + 1], x, atol=1e-6)
    assert result.report.evaluations == [STEPS * 2 + 1] * 2  # both references at the first step, then one


def test_the_limits_of_classifier_reference_guidance() -> None:
    plain = referred(gs.Stack()).x
    assert torch.equal(referred(gs.ClassifierReference(1, "a", ("b", "c"))).x, plain)
    sure = {"a": latents(lambda x0: 0 * x0.flatten(1).sum(1) + 1e4), "b": CLASSES["b"], "c": CLASSES["c"]}
    assert torch.allclose(referred(gs.ClassifierReference(5, "a", ("b", "c")), given=sure).x, plain, atol=1e-9)
    one = {"positive": THREE["positive"], "negative": CONDITIONS["null"]}
    empty = referred(gs.ClassifierReference(3, "a", "b", power=0), one).x
    assert torch.allclose(empty, referred(gs.CFG(3), one).x, atol=1e-9)


def test_classes_and_references_in_another_order_are_the_same() -> None:
    swapped = {**THREE, "negative:0": THREE["negative:1"], "negative:1": THREE["negative:0"]}
    one = referred(gs.ClassifierReference(3, "a", ("b", "c"))).x
    assert torch.allclose(referred(gs.ClassifierReference(3, "a", ("c", "b")), swapped).x, one, atol=1e-12)


def test_no_gradient_is_taken_of_a_reference() -> None:
    for one in CLASSES.values():
        one.differentiable = False
    try:
        with torch.inference_mode():
            referred(gs.ClassifierReference(3, "a", ("b", "c")))
    finally:
        for one in CLASSES.values():
            one.differentiable = True


def test_another_choice_is_a_subclass() -> None:
    class Farthest(gs.ClassifierReference):
        _name = "farthest"

        def choose(self, likely: Tensor) -> Tensor:
            return likely.argmin(1)

        def weights(self, confidence: Tensor) -> Tensor:
            return torch.full_like(confidence, self.scale)

    first, second = (
        referred(gs.CFG(3), {"positive": THREE["positive"], "negative": THREE[f"negative:{index}"]}).x
        for index in range(2)
    )
    found = referred(gs.Stack(Farthest(3, "a", ("b", "c"))), given={**CLASSES, "c": lambda x0: CLASSES["b"](x0) - 100})
    assert torch.allclose(found.x, second, atol=1e-9)
    assert not torch.allclose(first, second, atol=1e-3)


def test_more_negatives_than_references_are_refused() -> None:
    with pytest.raises(RuleError, match="has 1 references for 2 negative prompts; give one for each"):
        referred(gs.ClassifierReference(3, "a", "b"))
    with pytest.raises(InputError, match="there is no objective 'x'"):
        referred(gs.ClassifierReference(3, "a", ("b", "x")))
    with pytest.raises(RuleError, match="references must be one objective at least"):
        gs.ClassifierReference(3, "a", ())


def test_plans_count_what_runs_ask_for() -> None:
    schedule = [SchedulePoint(index, 0, level) for index, level in enumerate(LEVELS)]
    rule = gs.parse("classifier_reference(3, 'a', ('b', 'c'))")
    planned = plan(rule, schedule, negatives=2)
    assert [len(one.queries) for one in planned] == [3, 2, 2, 2, 2, 2]
    assert planned.at_most
    assert plan(gs.parse("cfg(3) | ppgn('blue', 2)"), schedule).evaluations == 2 * (6 + 2 * 5)
    assert plan(gs.parse("cfg(3) | elucd(1, 'blue')"), schedule).evaluations == 2 * 6


# --- all of them ------------------------------------------------------------------------------------------------------

STEERED = [
    gs.ClassifierGuidance(2, "mine"),
    gs.ClassifierGuidance(2, "mine", form="mean"),
    gs.ClassifierGuidance(2, "mine", form="product"),
    gs.EluCD(2, "mine"),
]


@pytest.mark.parametrize("rule", STEERED, ids=str)
def test_a_constant_objective_is_the_plain_sampler_to_the_bit(rule: gs.Rule) -> None:
    nothing = latents(lambda x0: 0 * x0.flatten(1).sum(1))
    assert torch.equal(sampled(gs.CFG(3) | rule, objective=nothing), sampled(gs.CFG(3)))
    assert torch.equal(sampled(gs.CFG(3) | rule.neutral()), sampled(gs.CFG(3)))
    assert not torch.allclose(sampled(gs.CFG(3) | rule), sampled(gs.CFG(3)), atol=1e-2)


@pytest.mark.parametrize("rule", STEERED, ids=str)
def test_nan_in_one_sample_loses_that_sample(rule: gs.Rule) -> None:
    def half(x0: Tensor) -> Tensor:
        return F(x0) * torch.tensor([1.0, math.nan], dtype=x0.dtype)[: len(x0)]

    with pytest.raises(NonFiniteError, match=r"in what the objective 'mine' returned.*lost: samples \[1\]") as caught:
        sampled(rule, objective=latents(half))
    assert torch.isfinite(caught.value.output.x[0]).all()


@pytest.mark.parametrize("rule", STEERED[1:], ids=str)
def test_a_loop_without_a_schedule_is_refused(rule: gs.Rule) -> None:
    about = Run((2, 1, 2, 2), objectives=objectives({"mine": F}))
    with pytest.raises(RuleError, match="needs the schedule, which this loop does not give"):
        rule.init(about)


@pytest.mark.parametrize("text", ["elucd(1, 'blue')", "classifier(1, 'blue')", "classifier(1, 'blue', form='product')"])
def test_they_wait_for_nothing(text: str) -> None:
    stack = gs.parse(text)
    run = oracle_run(gs.Stack())
    x, level = run.inputs[2], Level.vp(0.3)
    about = Run(tuple(x.shape), x.dtype, levels=(level, Level.vp(0.6)), objectives=run.run.run.objectives)
    prediction = Prediction(torch.zeros_like(x), x, level, EPSILON)
    with Waits():
        stack.rules[0].update(Estimate(prediction), {POSITIVE: prediction}, Step(about, 0, level), ())  # type: ignore[arg-type]
