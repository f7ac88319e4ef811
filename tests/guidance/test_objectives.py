"""Objectives and their gradients: against closed forms on Gaussians, and against loops written from the papers."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import guidestack as gs
from guidestack.guidance.errors import (
    CompositionError,
    InputError,
    NonFiniteError,
    QueryError,
    RuleError,
    UnsupportedError,
)
from guidestack.guidance.keyed import Keys, normal
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.notation.objectives import objectives
from guidestack.guidance.objective import Bound, smoothed, smoothed_gradient
from guidestack.guidance.observe import Seen
from guidestack.guidance.prediction import EPSILON, Level
from guidestack.guidance.query import POSITIVE, Network, evaluate
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Estimate, Run, Step
from guidestack.guidance.testing.checks import Oracle, oracle_run
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser

NORMAL = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1).double(), torch.ones(1).double())
LEVELS = [Level.vp(0.5), Level.vp(0.1), Level.ve(1.5), Level.flow(0.7)]


def latents(function: Callable[[Tensor], Tensor]) -> Any:
    function.space = "latents"  # type: ignore[attr-defined]
    return function


def measured(y: Tensor, variance: float) -> Any:
    """log N(y; x0, variance), but for a constant."""
    return latents(lambda x0: -(y - x0).square().flatten(1).sum(1) / (2 * variance))


def once(rule: gs.Rule, objective: Any, x: Tensor, level: Level) -> Tensor:
    """The clean sample of one estimate on the standard normal prior."""
    about = Run(tuple(x.shape), x.dtype, levels=(level, Level.ve(0.0)), objectives=objectives({"mine": objective}))
    conditions = {"positive": torch.ones(len(x), 1).double()}
    network = CallableNetwork({"main": MixtureDenoiser(NORMAL)}, x, level, conditions, EPSILON)
    return GuidedRun(gs.Stack(rule), about).estimate(network, x, 0, level).prediction.denoised


def posterior_variance(level: Level) -> float:
    return 1 / (1 + (level.alpha / level.sigma) ** 2)


def variance_preserving(level: Level) -> float:
    """sigma^2 of the level in the scaling in which papers count."""
    return (level.sigma / math.hypot(level.alpha, level.sigma)) ** 2


@pytest.mark.parametrize("level", LEVELS)
def test_smoothing_with_the_posteriors_variance_gives_the_exact_posterior_mean(level: Level) -> None:
    """Prior N(0, 1), measurement y = x0 + N(0, 0.1): with rho the square of sigma, TFG's step is the exact one."""
    x, y, noise = torch.tensor([[0.4, -1.2], [2.0, 0.3]]).double(), torch.tensor([1.0, -0.5]).double(), 0.1
    smoothed = measured(y, noise + posterior_variance(level))
    rule = gs.TFG("mine", rho=variance_preserving(level), over="constant")
    precision = 1 + (level.alpha / level.sigma) ** 2 + 1 / noise
    exact = (level.alpha / level.sigma**2 * x + y / noise) / precision
    assert torch.allclose(once(rule, smoothed, x, level), exact, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_dps_is_off_by_the_known_factor(level: Level) -> None:
    x, y, noise = torch.tensor([[0.4, -1.2]]).double(), torch.tensor([1.0, -0.5]).double(), 0.1
    plain = once(gs.Stack(), measured(y, 1.0), x, level)
    rule = gs.TFG.dps("mine", variance_preserving(level))
    exact = once(rule, measured(y, noise + posterior_variance(level)), x, level) - plain
    dps = once(rule, measured(y, noise), x, level) - plain
    assert torch.allclose(dps, (1 + posterior_variance(level) / noise) * exact, rtol=1e-12)


def test_averages_over_noise_tend_to_the_closed_form() -> None:
    y, size = torch.tensor([1.0, -0.5]).double(), 0.4
    x0 = torch.tensor([[0.4, -1.2], [0.0, 0.3]]).double()
    random = torch.Generator().manual_seed(0)
    bound = Bound("mine", measured(y, 0.5))
    noises = [size * torch.randn(2, 2, generator=random, dtype=torch.float64) for _ in range(6000)]
    value, slope = smoothed_gradient(bound, x0, noises)
    exact = (y - x0) / (0.5 + size**2)
    assert torch.allclose(slope, exact, atol=0.03)
    wanted = measured(y, 0.5 + size**2)(x0) - math.log(1 + size**2 / 0.5)  # two numbers: the normalization twice a half
    assert torch.allclose(value, wanted, atol=0.03)
    several = smoothed_gradient(bound, x0, noises[:7])
    stacked = torch.stack([measured(y, 0.5)(x0 + noise) for noise in noises[:7]])
    assert torch.allclose(several[0], stacked.logsumexp(0) - math.log(7))
    weights = stacked.softmax(0).unsqueeze(-1)
    slopes = torch.stack([(y - x0 - noise) / 0.5 for noise in noises[:7]])
    assert torch.allclose(several[1], (weights * slopes).sum(0))


def test_a_smoothed_objective_is_the_average_of_its_likelihoods() -> None:
    y, size, x0 = torch.tensor([1.0, -0.5]).double(), 0.4, torch.tensor([[0.4, -1.2], [0.0, 0.3]]).double()
    many = smoothed(measured(y, 0.5), size, 4000)
    assert torch.allclose(many(x0), measured(y, 0.5 + size**2)(x0) - math.log(1 + size**2 / 0.5), atol=0.05)
    few = smoothed(measured(y, 0.5), size, 3)
    assert few.space == "latents"
    assert torch.equal(few(x0), few(x0))
    assert torch.allclose(few(x0)[1:], few(x0[1:]))
    assert not torch.allclose(few(x0), many(x0), atol=1e-3)
    for wrong in ((3, 0.5, 2), (Classifier(), 0.5, 2), (F, 0.0, 2), (F, 0.5, 0), (F, 0.5, 1.5)):
        with pytest.raises(InputError):
            smoothed(*wrong)


# --- loops written from the papers ------------------------------------------------------------------------------------

MIXTURE = GaussianMixture.example((1, 2, 2), 3)
CONDITIONS = {"positive": MIXTURE.condition(0, 2).repeat(2, 1), "null": MIXTURE.condition().repeat(2, 1)}
STEPS = 5
TARGET = torch.tensor([[[0.9, -0.4], [0.1, 0.6]]]).double()
F = latents(lambda x0: -(x0 - TARGET).square().flatten(1).sum(1) / 2 - 0.1 * x0.flatten(1).pow(4).sum(1))


def ddim() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


def sampled(stack: Any, scheduler: Any = None, objective: Any = F, **options: Any) -> Tensor:
    given = {"conditions": CONDITIONS, "shape": (1, 2, 2), "seeds": (3, 4), "steps": STEPS, "dtype": torch.float64}
    return gs.sample(
        MixtureDenoiser(MIXTURE), stack, scheduler or ddim(), objectives={"mine": objective}, **given, **options
    ).x


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        return torch.autograd.grad(function(point).sum(), point)[0]


def by_hand(
    rho: float = 0.0, mu: float = 0.0, inner: int = 1, over: str = "constant", w: float = 1.0, recur: int = 1
) -> Tensor:
    """Algorithm 1 of TFG with DDIM, as the paper writes it, without smoothing."""
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    bars = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [1.0]
    alphas = [here / after for here, after in itertools.pairwise(bars)]
    weights = {"constant": [1.0] * STEPS, "increase": alphas, "decrease": [1 - one for one in alphas]}[over]
    weights = [one * STEPS / sum(weights) for one in weights]
    model = MixtureDenoiser(MIXTURE)
    x = torch.cat([torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]).double()
    for index, (bar, after, alpha, weight) in enumerate(zip(bars, bars[1:], alphas, weights, strict=False)):

        def clean(x: Tensor, bar: float = bar) -> Tensor:
            level = Level.vp(bar)
            c, u = (model(x, level, CONDITIONS[name]) for name in ("positive", "null"))
            return (x - math.sqrt(1 - bar) * (u + w * (c - u))) / math.sqrt(bar)

        for turn in (*range(1, recur), 0):  # the last one is the sampler's own
            x0 = clean(x)
            noise = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
            through = rho * weight * gradient(lambda x: F(clean(x)), x)
            moved = x0
            for _ in range(inner):
                moved = moved + mu * weight * gradient(F, moved)
            x = math.sqrt(after) * x0 + math.sqrt(1 - after) * noise
            x = x + through / math.sqrt(alpha) + math.sqrt(after) * (moved - x0)
            if turn:
                drawn = normal(Keys((3, 4), index, 0, turn).generators((0, 1), "recur"), x.shape[1:])
                x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * drawn
    return x


LOOPS: list[tuple[gs.Rule, dict[str, Any]]] = [
    (gs.TFG.dps("mine", 0.3), {"rho": 0.3}),
    (gs.TFG.freedom("mine", 0.3), {"rho": 0.3}),
    (gs.TFG.mpgd("mine", 0.2), {"mu": 0.2}),
    (gs.TFG.ugd("mine", 0.3, 0.1, 3), {"rho": 0.3, "mu": 0.1, "inner": 3}),
    (gs.TFG("mine", rho=0.3, mu=0.1, inner=2), {"rho": 0.3, "mu": 0.1, "inner": 2, "over": "increase"}),
    (gs.TFG("mine", rho=0.2, over="decrease"), {"rho": 0.2, "over": "decrease"}),
    (gs.CFG(2) | gs.TFG("mine", rho=0.3, mu=0.1), {"rho": 0.3, "mu": 0.1, "over": "increase", "w": 2.0}),
    (gs.TFG.freedom("mine", 0.3) | gs.Recur(2), {"rho": 0.3, "recur": 2}),
    (
        gs.CFG(2) | gs.TFG.ugd("mine", 0.3, 0.1, 2) | gs.Recur(3),
        {"rho": 0.3, "mu": 0.1, "inner": 2, "w": 2.0, "recur": 3},
    ),
]


@pytest.mark.parametrize(("rule", "settings"), LOOPS, ids=[str(rule) for rule, _ in LOOPS])
def test_each_setting_equals_its_own_loop(rule: gs.Rule, settings: dict[str, Any]) -> None:
    assert torch.allclose(sampled(rule), by_hand(**settings), atol=1e-6)
    assert not torch.allclose(sampled(rule), sampled(gs.CFG(settings.get("w", 1.0))), atol=1e-2)


# --- classifier guidance ----------------------------------------------------------------------------------------------


class Classifier:
    """The mixture's own: log p(class | x) at a level, of the classes of `CONDITIONS`."""

    space = "noisy"

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        wide = x.double()
        joint = [MIXTURE.log_joint(wide, level, CONDITIONS[name][: len(x)]) for name in ("positive", "null")]
        return (joint[0].logsumexp(1) - joint[1].logsumexp(1)).to(x.dtype)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_guidance_by_the_exact_classifier_is_cfg(scheduler: str) -> None:
    """Of scale s on the unconditional model; of scale 1 + s on the prompt's."""
    import diffusers

    def end(stack: gs.Rule, positive: str) -> Tensor:
        conditions = {**CONDITIONS, "positive": CONDITIONS[positive]}
        options = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
        return gs.sample(
            MixtureDenoiser(MIXTURE), stack, getattr(diffusers, scheduler)(**options), conditions=conditions,
            shape=(1, 2, 2), seeds=(3, 4), steps=STEPS, dtype=torch.float64, objectives={"class": Classifier()},
        ).x  # fmt: skip

    rule = gs.ClassifierGuidance(2.5, "class")
    assert torch.allclose(end(rule, "null"), end(gs.CFG(2.5, against="null"), "positive"), atol=1e-6)
    assert torch.allclose(end(rule, "positive"), end(gs.CFG(3.5, against="null"), "positive"), atol=1e-6)


def test_the_form_of_the_mean_is_that_of_ddpm() -> None:
    """A step by hand: the posterior's mean moved by its variance times the gradient."""
    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small")

    def seen(stack: gs.Rule) -> list[tuple[Tensor, Level]]:
        found: list[tuple[Tensor, Level]] = []

        def observe(one: Seen) -> dict[str, Tensor]:
            found.append((one.predictions[POSITIVE].x, one.step.level))
            return {}

        gs.sample(
            MixtureDenoiser(MIXTURE), stack, scheduler, conditions=CONDITIONS, shape=(1, 2, 2), seeds=(3, 4),
            timesteps=(600, 300), dtype=torch.float64, objectives={"class": Classifier()}, observe=observe,
        )  # fmt: skip
        return found

    (x, level), (moved, after) = seen(gs.ClassifierGuidance(1.5, "class", form="mean"))
    _, (plain, _) = seen(gs.Stack())
    variance = after.sigma**2 / level.sigma**2 * (1 - level.alpha**2 / after.alpha**2)
    wanted = 1.5 * variance * gradient(lambda x: Classifier()(x, level), x)
    assert torch.allclose(moved - plain, wanted, atol=1e-6)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("other", ["mean", "product"])
def test_the_forms_agree_to_the_order_of_a_step(other: str) -> None:
    def end(steps: int, form: str) -> Tensor:
        scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing", variance_type="fixed_small")
        rule = gs.ClassifierGuidance(1.0, "class", form=form)
        return gs.sample(
            MixtureDenoiser(MIXTURE), rule, scheduler, conditions=CONDITIONS, shape=(1, 2, 2), seeds=(3, 4),
            steps=steps, dtype=torch.float64, objectives={"class": Classifier()},
        ).x  # fmt: skip

    away = [float((end(steps, "noise") - end(steps, other)).abs().max()) for steps in (20, 200)]
    assert away[1] < 0.25 * away[0]


def test_a_noisy_objective_is_for_the_rule_that_asks_it_so() -> None:
    with pytest.raises(RuleError, match=r"sees noisy samples, and this rule gives it clean ones; take classifier"):
        sampled(gs.TFG("mine", mu=1), objective=Classifier())


def test_the_scaling_of_x_makes_no_difference() -> None:
    level, x, y = Level.vp(0.3), torch.tensor([[0.4, -1.2]]).double(), torch.tensor([1.0, 0.0]).double()
    rule = gs.TFG("mine", rho=0.3, mu=0.1, over="constant")
    total = level.alpha + level.sigma
    for scale, other in ((1 / level.alpha, Level.ve(level.k_sigma)), (1 / total, Level.flow(level.sigma / total))):
        seen, wanted = once(rule, measured(y, 0.5), scale * x, other), once(rule, measured(y, 0.5), x, level)
        assert torch.allclose(seen, wanted, atol=1e-12)


def test_a_constant_objective_is_the_plain_sampler_to_the_bit() -> None:
    nothing = latents(lambda x0: 0 * x0.flatten(1).sum(1))
    for rule in (gs.TFG("mine", rho=2, mu=3, inner=2), gs.CFG(3) | gs.TFG("mine", rho=2, smoothing=1, samples=2)):
        plain = sampled(gs.CFG(3) if isinstance(rule, gs.Stack) else gs.Stack())
        assert torch.equal(sampled(rule, objective=nothing), plain)


def test_smoothing_draws_by_the_seed_of_the_sample() -> None:
    rule = gs.TFG("mine", rho=0.3, smoothing=0.5, samples=3)
    together = sampled(rule)
    model, conditions = MixtureDenoiser(MIXTURE), {name: rows[:1] for name, rows in CONDITIONS.items()}
    alone = gs.sample(
        model, rule, ddim(), conditions=conditions, shape=(1, 2, 2), seeds=(4,), steps=STEPS, dtype=torch.float64,
        objectives={"mine": F},
    )  # fmt: skip
    assert torch.allclose(alone.x, together[1:], atol=1e-12)
    assert not torch.allclose(sampled(gs.TFG("mine", rho=0.3)), together, atol=1e-4)


# --- the mechanism ------------------------------------------------------------------------------------------------


def test_what_a_backward_pass_is_called_in_the_report_and_in_a_plan() -> None:
    report = oracle_run(gs.CFG(3) | gs.During(gs.TFG("blue", rho=1), sigma=(0.5, 2))).run.report
    names = [sorted(map(str, one.queries)) for one in report.steps]
    assert ["negative+grad", "positive+grad"] in names
    assert ["negative", "positive"] in names  # outside of the window nothing is differentiated
    assert report.evaluations == [12] * 3
    assert all(not record.traces or record.traces["log_f"].shape == (3,) for record in report.steps)


class Alive:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_nothing_is_kept_from_step_to_step() -> None:
    alive: weakref.WeakSet[Alive] = weakref.WeakSet()
    left: list[int] = []
    inner = MixtureDenoiser(MIXTURE)

    def model(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        left.append(len(alive))
        return inner(x, level, conditions)

    def pack(value: Tensor) -> Alive:
        kept = Alive(value.detach())  # not the tensor itself, which may lead to what keeps it
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.value):
        gs.sample(
            model, gs.APG(3, against="null", momentum=-0.5) | gs.TFG("mine", rho=1, mu=1), ddim(),
            conditions=CONDITIONS, shape=(1, 2, 2), seeds=(3, 4), steps=4, objectives={"mine": F},
        )  # fmt: skip
        assert len(left) == 4
        assert max(left) == left[0]  # what the present evaluation has made so far
        gs.sample(
            model, gs.TFG("mine", mu=1), ddim(), conditions=CONDITIONS, shape=(1, 2, 2), seeds=(3, 4), steps=2,
            objectives={"mine": F}, observe=lambda seen: {"through": torch.full((2,), float(len(alive)))},
        )  # fmt: skip
    assert left[4:] == [0, 0]  # not through the denoiser


class Waits(TorchDispatchMode):
    """Refuses what would make a host wait for an accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("text", ["tfg('blue', rho=1, mu=1, inner=2, smoothing=1, samples=2)", "tfg('blue', mu=1)"])
def test_a_rule_that_steers_waits_for_nothing(text: str) -> None:
    oracle, stack = Oracle(), gs.parse(text)
    run, x = oracle.begin(stack).run, oracle.start()
    state, level = stack.init(run), oracle.levels[2]
    step = Step(run, 2, level)
    with torch.set_grad_enabled(stack.differentiated(step, state)):
        done = evaluate(oracle.network(x, level), {}, x, level, grad=stack.differentiated(step, state))
        with Waits():
            stack.update(Estimate(done.predictions[POSITIVE]), done.predictions, step, state)


# --- what bad input gets ------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x0: -x0.square().mean(), r"returned torch.float64 of shape \(\) for 2 samples; expected .* shape \(2,\)"),
    (lambda x0: -x0.square().sum((1, 2, 3), keepdim=True), r"shape \(2, 1, 1, 1\) for 2 samples"),
    (lambda x0: 3.0, r"returned float for 2 samples"),
    (lambda x0: x0.flatten(1).sum(1) > 0, r"returned torch.bool of shape \(2,\)"),
    (lambda x0: x0.detach().flatten(1).sum(1), r"has no gradient with respect to the sample"),
    (lambda x0: torch.zeros(2, requires_grad=True), r"has no gradient with respect to the sample"),
    (lambda x0: x0.flatten(1).sum(1).to("meta"), r"returned a tensor on meta, and the samples are on cpu"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_a_bad_objective_is_one_line(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sampled(gs.TFG("mine", mu=1), objective=function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [gs.TFG("mine", mu=1), gs.TFG("mine", rho=1), gs.ClassifierGuidance(1, "mine")])
def test_nan_in_one_sample_loses_that_sample_and_names_the_objective(rule: gs.Rule) -> None:
    def half(x0: Tensor) -> Tensor:
        return F(x0) * torch.tensor([1.0, math.nan], dtype=x0.dtype)[: len(x0)]

    with pytest.raises(NonFiniteError, match=r"in what the objective 'mine' returned.*lost: samples \[1\]") as caught:
        sampled(rule, objective=latents(half))
    assert torch.isfinite(caught.value.output.x[0]).all()


def test_names_that_are_wrong() -> None:
    for stack, given, message in (
        ("tfg('blues', mu=1)", {}, r"there is no objective 'blues'; did you mean 'blue'\?"),
        ("tfg('min', mu=1)", {"mine": F}, r"did you mean 'mine'\?"),
        ("tfg('mine(2)', mu=1)", {"mine": F}, r"was given as an object"),
        ("tfg('mine', mu=1)", {"mine": 3}, r"no objective 'mine'.*log f\(x0\) -> \(B,\).*given 3"),
        ("tfg('knwn', mu=1)", {"knwn": 3}, r"there is no objective 'knwn'; did you mean 'known'\?"),
        ("tfg('blue', mu=1)", {"blue": "a.png"}, r"takes no file"),
        ("tfg('mine', mu=1)", [F], r"objectives are given by name"),
        ("tfg('mine', mu=1)", {"a b": F}, r"a name is a word"),
    ):
        with pytest.raises(InputError, match=message):
            gs.sample(
                MixtureDenoiser(MIXTURE), stack, ddim(), conditions=CONDITIONS, shape=(1, 2, 2), seeds=(3, 4), steps=2,
                objectives=given,  # type: ignore[arg-type]
            )  # fmt: skip
    for text in ("tfg('', mu=1)", "tfg('a b', mu=1)", "tfg(3, mu=1)", "tfg('blur(', mu=1)"):
        with pytest.raises(RuleError, match="an objective is named"):
            gs.parse(text)
    with pytest.raises(RuleError, match=r"write tfg\(...\) \| recur\(2\) for recur=2"):
        gs.TFG("blue", rho=1, recur=2)
    with pytest.raises(RuleError, match="smoothing above 0"):
        gs.TFG("blue", rho=1, samples=2)


def test_where_gradients_cannot_be_taken() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode"):
        sampled(gs.TFG("mine", rho=1))
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode"):
        sampled(gs.TFG("mine", mu=1))

    class Answers(Network):
        parameterization, conditions = EPSILON, ("positive",)

        def run(self, requests: Sequence[Any]) -> list[Tensor]:
            return [torch.zeros(2, 1, 2, 2) for _ in requests]

    about = Run((2, 1, 2, 2), levels=(Level.vp(0.5), Level.ve(0)), objectives=objectives({"mine": F}))
    with pytest.raises(QueryError, match="gives no gradients"):
        GuidedRun(gs.Stack(gs.TFG("mine", rho=1)), about).estimate(Answers(), torch.zeros(2, 1, 2, 2), 0, Level.vp(0.5))
    with pytest.raises(UnsupportedError, match=r"this loop hands rules none; use guidestack\.guide"):
        GuidedRun(gs.Stack(gs.TFG("mine", mu=1)), Run((2, 1, 2, 2)))


def test_what_may_stand_behind_it() -> None:
    for text in (
        "tfg('blue', rho=1) | cfg(3)",
        "tfg('blue', mu=1) | rescale(0.5)",
        "during(tfg('blue', mu=1), progress=(0, 1)) | cfg(2)",
    ):
        with pytest.raises(CompositionError, match=r"works on the finished estimate, and .* changes it; write"):
            gs.parse(text)
    for text in (
        "cfgpp(0.5) | tfg('blue', rho=1)",
        "cfg(3) | tfg('blue', rho=1) | tfg('red', mu=1)",
        "tfg('blue', mu=1) | nag(3)",
    ):
        gs.parse(text)
