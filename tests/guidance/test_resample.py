"""Particles: how they are drawn, that groups stay apart, and what is refused. Their laws are in tests/samplers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance import Level, check_move
from guidestack.guidance.errors import (
    CompositionError,
    GuidestackError,
    InputError,
    RuleError,
    UnsupportedSchedulerError,
)
from guidestack.guidance.keyed import Keys
from guidestack.guidance.rules.resample import Weighted, jumps, systematic
from guidestack.guidance.step import Run, Step
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.guidance.testing.checks import Oracle, oracle_run
from guidestack.guidance.turn import Sight

LOOSE = "not applicable: "


@pytest.mark.parametrize(
    "text", ["resample(3, 4)", "resample(3, (('positive', 1), ('negative', -0.5)), clamp=0.1, below=0.9)"]
)
def test_particles_keep_the_invariants(text: str) -> None:
    results = check_move(gs.parse(text).rules[0])
    assert "6. a batch equals its samples alone, in any order" in results
    assert {name[:3] for name, result in results.items() if result.startswith(LOOSE)} <= {
        "1. ",
        "6. ",
        "10.",
        "11.",
        "12.",
    }


def turned(rule: gs.Resample, weights: list[float], x: Tensor, seeds: tuple[int, ...] = ()) -> tuple[Tensor, Any]:
    run = Run(tuple(x.shape), seeds=seeds or tuple(range(len(x))))
    sight = Sight({}, Keys(run.seeds, 1, 0, 1), lambda told: x)
    return rule.turn(
        x, sight, Step(run, 1, Level.ve(1.0), before=Level.ve(2.0)), Weighted(torch.tensor(weights).double())
    )


def test_equal_weights_keep_every_particle() -> None:
    x = torch.randn(4096, 1)
    for seed in range(20):
        moved, state = turned(gs.Resample(4096, 3), [0.3] * 4096, x, tuple(range(seed, seed + 4096)))
        assert torch.equal(moved, x)
    assert not state.log_weights.any()


def test_systematic_resampling_gives_each_particle_its_share_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn((200, 8), generator=generator, dtype=torch.float64).mul(2).softmax(1)
    start = torch.rand(200, generator=generator, dtype=torch.float64)
    chosen = systematic(shares, start)
    offspring = torch.nn.functional.one_hot(chosen, 8).sum(1)
    assert ((offspring - 8 * shares).abs() < 1).all()
    assert (chosen.diff(dim=1) >= 0).all()
    many = torch.linspace(1e-6, 1 - 1e-6, 5001, dtype=torch.float64)
    mean = torch.nn.functional.one_hot(systematic(shares[:1].expand(5001, -1), many), 8).double().mean((0, 1))
    assert torch.allclose(mean, shares[0], atol=1e-3)


def test_groups_do_not_mix_and_weights_draw() -> None:
    x = torch.arange(6.0)[:, None]
    moved, _ = turned(gs.Resample(3, 3), [-50, 0, -50, -50, -50, 0], x)
    assert moved.flatten().tolist() == [1, 1, 1, 5, 5, 5]
    other, _ = turned(gs.Resample(3, 3), [0, 0, -50, -50, -50, 0], x)
    assert other.flatten().tolist()[3:] == [5, 5, 5]
    assert set(other.flatten().tolist()[:3]) == {0, 1}


def test_a_group_is_drawn_anew_only_below_its_size() -> None:
    x = torch.arange(4.0)[:, None]
    rule = gs.Resample(2, 3, below=0.6)
    moved, state = turned(rule, [0, -0.1, -50, 0], x)  # effective sizes 2 and 1
    assert moved.flatten().tolist() == [0, 1, 3, 3]
    assert state.log_weights.tolist() == [0, pytest.approx(-0.1), 0, 0]


@pytest.mark.parametrize("power", [0, 1])
def test_weights_vanish_where_one_law_is_the_target(power: float) -> None:
    report = oracle_run(gs.Resample(3, power), Oracle()).run.report
    weights = [record.traces["log_weight"] for record in report.steps if "log_weight" in record.traces]
    assert all(not one.any() for one in weights)
    assert report.evaluations == [6 if power else 12] * 3


def test_a_window_and_a_clamp_bound_what_changes_weights() -> None:
    def weights(rule: gs.Resample) -> list[Tensor]:
        return [record.traces["log_weight"] for record in oracle_run(rule, Oracle()).run.report.steps]

    free = weights(gs.Resample(3, 4, below=0))
    assert all(one.abs().max() > 0 for one in free[:-1])
    windowed = weights(gs.Resample(3, 4, sigma=(0.5, 2), below=0))
    inside = [0.5 < level.k_sigma <= 2 for level in Oracle().levels]
    changed = [bool((now - before).any()) for before, now in zip([0 * free[0], *windowed], windowed, strict=False)]
    assert changed == [one and place < 5 for place, one in enumerate(inside)]
    clamped = weights(gs.Resample(3, 4, clamp=0.05, below=0))
    assert (
        max(float((now - before).abs().max()) for before, now in zip([0 * clamped[0], *clamped], clamped, strict=False))
        <= 0.05 + 1e-9
    )


BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def drawn(stack: str, scheduler: Any, count: int, steps: int = 60, **more: Any) -> Any:
    mixture = gs.guidance.GaussianMixture(
        torch.zeros(2, 1).double(), torch.tensor([1.0, 2.0]).double().sqrt(), torch.ones(2).double()
    )
    rows = {name: torch.eye(2)[[place]].expand(count, -1) for place, name in enumerate(("positive", "null"))}
    return gs.sample(
        MixtureDenoiser(mixture), stack, scheduler, conditions=rows, shape=(1,), seeds=range(count), steps=steps, **more
    )


def test_particles_widen_what_guidance_makes_too_narrow() -> None:
    """N(0, 2) and N(0, 1) at scale 3: CFG with the SDE ends at a variance of 0.39, the target has 0.5."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**BETAS, clip_sample=False)
    alone, particles = drawn("cfg(3)", scheduler, 1000), drawn("resample(500, 3)", scheduler, 1000)
    # In so few steps everything is narrower: the law of the prompt, 1, as well.
    wide = float(drawn("stack()", scheduler, 1000).x.var())
    assert float(alone.x.var()) / wide == pytest.approx(0.3875, abs=0.05)
    assert float(particles.x.var()) / wide == pytest.approx(0.5, abs=0.07)
    assert particles.report.evaluations == alone.report.evaluations
    again = drawn("resample(500, 3)", scheduler, 500)
    assert torch.equal(again.x, particles.x[:500])  # a group is made alike in any batch


def test_what_particles_cannot_run_on_is_refused_in_a_line() -> None:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler

    fit = r"use DDPMScheduler \(--sampler ddpm\) or EulerAncestralDiscreteScheduler \(--sampler euler-a\)"
    with pytest.raises(UnsupportedSchedulerError, match=f"without fresh noise; {fit}"):
        drawn("resample(2, 3)", DDIMScheduler(**BETAS, clip_sample=False), 4)
    with pytest.raises(UnsupportedSchedulerError, match=f"remembers earlier steps; {fit}"):
        drawn("resample(2, 3)", DPMSolverMultistepScheduler(**BETAS), 4)
    with pytest.raises(UnsupportedSchedulerError, match="use FlowMatchEulerDiscreteScheduler with stochastic_sampling"):
        drawn("resample(2, 3)", FlowMatchHeunDiscreteScheduler(), 4)
    with pytest.raises(RuleError, match="a batch of 5 samples does not divide into groups of 2; make 6"):
        drawn("resample(2, 3)", DDPMScheduler(**BETAS, clip_sample=False), 5)


@pytest.mark.parametrize(
    "text",
    [
        "resample(3, 1, reward='blue')",
        "resample(3, 3, reward='blue', strength=-2, sigma=(0.1, 5))",
        "resample(3, 4, draw='jumps')",
        "resample(3, 1, reward='blue', drift=1)",
        "resample(3, 3, reward='blue', strength=-2, sigma=(0.1, 5), drift=0.5, clamp=1)",
    ],
)
def test_rewards_and_jumps_keep_the_invariants(text: str) -> None:
    results = check_move(gs.parse(text).rules[0])
    assert {name[:3] for name, result in results.items() if result.startswith(LOOSE)} <= {"6. ", "10.", "11.", "12."}


def test_weights_gain_what_the_reward_does() -> None:
    """Without guidance a weight is that of the clean sample at the end, whatever lay between."""
    rewards, weights = (
        [record.traces[name] for record in oracle_run(rule, Oracle()).run.report.steps if name in record.traces]
        for rule, name in (
            (gs.Resample(3, 1, reward="blue", strength=2.5, below=0), trace) for trace in ("log_f", "log_weight")
        )
    )
    for reward, weight in zip(rewards, weights, strict=True):
        assert torch.allclose(weight, 2.5 * reward.double(), atol=1e-6)
    assert rewards[0].unique().numel() == 3
    # With guidance on top of what it changes itself; and of what has been drawn only the rest is counted again.
    alone, both = (
        [record.traces["log_weight"] for record in oracle_run(rule, Oracle()).run.report.steps if record.traces]
        for rule in (gs.Resample(3, 3, below=0), gs.Resample(3, 3, reward="blue", strength=2.5, below=0))
    )
    value = [
        one.traces["log_f"] for one in oracle_run(gs.Resample(3, 3, reward="blue", below=0), Oracle()).run.report.steps
    ]
    for one, other, reward in zip(alone, both, value, strict=True):
        assert torch.allclose(other - one, 2.5 * reward.double(), atol=1e-6)


def test_rewards_go_with_their_particles() -> None:
    x = torch.arange(3.0)[:, None]
    rule = gs.Resample(3, 1, reward="blue")
    run = Run((3, 1), seeds=(0, 1, 2))
    state = Weighted(torch.tensor([-50.0, 0.0, -50.0]).double(), torch.tensor([5.0, 6.0, 7.0]).double())
    sight = Sight({}, Keys(run.seeds, 1, 0, 1), lambda told: x)
    moved, after = rule.turn(x, sight, Step(run, 1, Level.ve(1.0), before=Level.ve(2.0)), state)
    assert moved.flatten().tolist() == [1, 1, 1]
    assert after.rewards is not None
    assert after.rewards.tolist() == [6, 6, 6]


def near(x0: Tensor) -> Tensor:
    return -(x0 - 1).flatten(1).square().sum(1) / 2


near.space = "latents"  # type: ignore[attr-defined]


def scheduler_of(name: str) -> Any:
    import diffusers

    if name == "sde":
        return diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++", solver_order=1)
    if name == "euler-a":
        return diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    return diffusers.DDPMScheduler(**BETAS, clip_sample=False)


@pytest.mark.parametrize(("name", "drift"), [("ddpm", 0), ("ddpm", 1), ("ddpm", 0.5), ("euler-a", 1), ("sde", 1)])
def test_particles_have_the_law_of_a_reward(name: str, drift: float) -> None:
    """N(0, v) times exp(-(x - 1)^2 / 2) is N(v, v) / (1 + v), wherever a drift leads."""
    scheduler = scheduler_of(name)
    alone = drawn("stack()", scheduler, 1000)
    weighed = drawn(f"resample(1000, 1, reward='near', drift={drift})", scheduler, 1000, objectives={"near": near})
    v = float(alone.x.var())
    assert float(weighed.x.var()) == pytest.approx(v / (1 + v), abs=0.07)
    assert float(weighed.x.mean()) == pytest.approx(v / (1 + v), abs=0.07)
    assert weighed.report.evaluations == alone.report.evaluations


def test_particles_of_jumps_have_the_law_of_a_reward() -> None:
    scheduler = scheduler_of("ddpm")
    v = float(drawn("stack()", scheduler, 1000).x.var())
    weighed = drawn("resample(1000, 1, reward='near', draw='jumps')", scheduler, 1000, objectives={"near": near})
    assert float(weighed.x.var()) == pytest.approx(v / (1 + v), abs=0.07)
    assert float(weighed.x.mean()) == pytest.approx(v / (1 + v), abs=0.07)


def test_a_drift_keeps_more_particles() -> None:
    """Where all are led to where the target is, their weights are more alike: nearly none is lost."""
    lost = []
    for drift in (-0.5, 0, 0.5, 1):
        stack = f"resample(200, 1, reward='near', drift={drift})"
        made = drawn(stack, scheduler_of("ddpm"), 200, objectives={"near": near})
        lost.append(sum(200 - float(record.traces["ess"][0]) for record in made.report.steps if record.traces))
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.1 * lost[1]


@pytest.mark.parametrize("guidance", ["", "cfgpp(0.6) | "])
def test_a_drift_moves_and_weighs_by_the_formula(guidance: str) -> None:
    """One step of DDPM by hand: what the reward gains, and the ratio of the laws of the step."""
    seen: list[Any] = []
    made = drawn(
        f"{guidance}resample(2, 1, reward='near', strength=1.5, drift=0.7, below=0)", scheduler_of("ddpm"), 2,
        objectives={"near": near}, observe=lambda one: seen.append(one) or {},
    )  # fmt: skip
    plain: list[Any] = []
    drawn(f"{guidance}stack()", scheduler_of("ddpm"), 2, observe=lambda one: plain.append(one) or {})
    first, second = (one.estimate.prediction for one in seen[:2])
    k, after = (one.step.level.k_sigma for one in seen[:2])
    variance = after**2 * (1 - (after / k) ** 2)
    force = 1.5 * 0.7 * (1 - first.denoised) / (1 + k**2)
    unmoved = plain[1].estimate.prediction.x / seen[1].step.level.alpha
    assert torch.allclose(second.x / seen[1].step.level.alpha, unmoved + variance * force, atol=1e-5)
    noise = first if seen[0].estimate.renoise is None else seen[0].estimate.renoise
    mean = first.denoised + (after / k) ** 2 * (first.x / seen[0].step.level.alpha - noise.denoised)
    moved = unmoved + variance * force
    ratio = ((moved - variance * force - mean).square() - (moved - mean).square()).sum(1) / (2 * variance)
    weights = [record.traces["log_weight"] for record in made.report.steps]
    gained = 1.5 * (near(second.denoised) - near(first.denoised))
    assert torch.allclose(weights[1] - weights[0], (gained + ratio).double(), atol=1e-4)


def test_births_and_deaths_are_those_of_the_weights() -> None:
    weights = torch.tensor([[-0.02, 0.0, 0.05, -0.01, 0.01]], dtype=torch.float64)
    away = (weights - weights.mean())[0]
    generator = torch.Generator().manual_seed(0)
    death, birth = torch.rand(2, 400_000, 5, generator=generator, dtype=torch.float64)
    chosen = jumps(weights.expand(400_000, -1), death, birth)
    offspring = torch.nn.functional.one_hot(chosen, 5).double().mean((0, 1)) * 5
    assert torch.allclose(offspring, 1 + away, atol=1.5e-3)  # of the second order in the changes
    alive = chosen == torch.arange(5)
    assert alive[:, away > 0].all()
    assert float(alive.double().mean()) == pytest.approx(1 - float(-torch.expm1(away.clamp(max=0)).sum()) / 5, abs=1e-3)
    even = jumps(torch.full((4, 5), 0.3, dtype=torch.float64), death[:4], birth[:4])
    assert torch.equal(even, torch.arange(5).expand(4, -1))


def test_a_reward_weighs_what_other_rules_make() -> None:
    stack = gs.parse("cfg(3) | resample(3, 1, reward='blue', below=0)")
    weighed, alone = oracle_run(stack, Oracle()), oracle_run(gs.CFG(3), Oracle())
    assert all(map(torch.equal, weighed.outputs, alone.outputs))
    assert weighed.run.report.evaluations == alone.run.report.evaluations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resample(3, 4) | resample(3, 1, reward='blue')", "several rules duplicate samples"),
        ("resample(3, 1, reward='blue') | cfg(3)", "write cfg(3) | resample"),
        ("cfg(3) | resample(3, 4, reward='blue')", "guides by itself"),
        ("resample(3, 4, draw='roulette')", "unknown draw 'roulette'"),
        ("resample(3, 4, draw='jumps', below=0.5)", "leave below out"),
        ("resample(3, 1, reward='a b')", "an objective is named"),
        ("resample(3, 1, reward='blue', strength=1e9)", "strength"),
        ("resample(3, 4, drift=1)", "drift leads along the gradient of a reward; give one"),
    ],
)
def test_rewards_that_cannot_be_are_one_line(text: str, message: str) -> None:
    with pytest.raises(GuidestackError, match=re.escape(message)) as said:
        gs.parse(text)
    assert "\n" not in str(said.value)


def test_what_remembers_samples_is_not_beside_particles() -> None:
    with pytest.raises(CompositionError, match="remembers each sample's earlier steps, and resample"):
        oracle_run(gs.parse("apg(3, momentum=-0.5) | resample(3, 1, reward='blue')"), Oracle())
    from diffusers import DDPMScheduler

    with pytest.raises(InputError, match="nothing_of_this_name"):
        drawn("resample(2, 1, reward='nothing_of_this_name')", DDPMScheduler(**BETAS, clip_sample=False), 2)


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver and sde-dpmsolver`")
@pytest.mark.parametrize("change", [{"clip_sample": True}, {"variance_type": "fixed_large"}, {"thresholding": True}])
def test_a_drift_is_refused_where_the_noise_of_a_step_is_another(change: dict[str, Any]) -> None:
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    stack, given = "resample(2, 1, reward='near', drift=1)", {"objectives": {"near": near}}
    form = {"algorithm_type": "sde-dpmsolver", "solver_order": 1, "final_sigmas_type": "sigma_min"}
    other = DPMSolverMultistepScheduler(**BETAS, **form)
    flow = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    for scheduler in (DDPMScheduler(**BETAS, **{"clip_sample": False, **change}), other, flow):
        if not change.get("thresholding"):  # which diffusers does to pictures only
            drawn("resample(2, 1, reward='near')", scheduler, 2, steps=2, **given)
        with pytest.raises(
            UnsupportedSchedulerError, match="with a drift weighs samples by the noise of the reverse SDE"
        ):
            drawn(stack, scheduler, 2, steps=2, **given)


def test_a_drift_needs_a_gradient() -> None:
    def rough(x0: Tensor) -> Tensor:
        return x0.detach().flatten(1).sum(1)

    rough.differentiable = False  # type: ignore[attr-defined]
    drawn("resample(2, 1, reward='rough')", scheduler_of("ddpm"), 2, steps=2, objectives={"rough": rough})
    with pytest.raises(RuleError, match="'rough' has no gradient"):
        drawn("resample(2, 1, reward='rough', drift=1)", scheduler_of("ddpm"), 2, steps=2, objectives={"rough": rough})
