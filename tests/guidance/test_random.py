"""Rules that draw: ICG and TSG on the mixture against straight-line runs, and the scheme of the draws itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.keyed import Keys, keyed, normal
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, V
from guidestack.guidance.report import Report
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Run
from guidestack.guidance.testing.checks import Oracle, oracle_run
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser
from guidestack.samplers.noise import initial_noise

from .test_mixture import classify

SHAPE, STEPS, SEEDS = (2, 4), 10, (5, 6, 7)
NUMBERS = torch.arange(3 * 8, dtype=torch.float64)
MEANS = 0.9 * (NUMBERS**2 * 0.41).cos().reshape(3, *SHAPE)
STDS = torch.tensor([0.9, 1.2, 1.6], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
START = (NUMBERS * 3.1).sin().reshape(3, *SHAPE) * 1.4
PROMPTS = (0, 2, 1)  # the class that each sample is asked for
BARS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.88, 0.97, 1.0)
TIMES = tuple(1 - step / STEPS for step in range(STEPS))

# --- by hand: nothing of the package ------------------------------------------------------------------------------


def key(seed: int, step: int, purpose: str, evaluation: int = 0) -> torch.Generator:
    digest = hashlib.blake2b(repr((seed, step, evaluation, purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def mean_of_class(x: Tensor, alpha: float, sigma: float, k: int) -> Tensor:
    """E[x0 | x] for x0 ~ N(mu, s^2), x = alpha x0 + sigma eps."""
    s = float(STDS[k])
    return (sigma**2 * MEANS[k] + alpha * s**2 * x) / (sigma**2 + alpha**2 * s**2)


Weak = Callable[[Tensor, float, float, int, int], Tensor | None]
"""``weak(x, alpha, sigma, sample, step)``: the answer to guide away from, or None."""


def by_hand(scale: float, weak: Weak) -> Tensor:
    """DDIM, one sample after the other: D~ = D_w + s (D - D_w);  x' = alpha' D~ + sigma' (x - alpha D~)/sigma."""
    ends = []
    for sample, k in enumerate(PROMPTS):
        x = math.sqrt(BARS[0]) * MEANS[sample] + math.sqrt(1 - BARS[0]) * START[sample]
        for step in range(STEPS):
            alpha, sigma = math.sqrt(BARS[step]), math.sqrt(1 - BARS[step])
            D = mean_of_class(x, alpha, sigma, k)
            D_w = weak(x, alpha, sigma, sample, step)
            if D_w is not None:
                D = D_w + scale * (D - D_w)
            x = math.sqrt(BARS[step + 1]) * D + math.sqrt(1 - BARS[step + 1]) * (x - alpha * D) / sigma
        ends.append(x)
    return torch.stack(ends)


def random_class(x: Tensor, alpha: float, sigma: float, sample: int, step: int) -> Tensor:
    drawn = int(torch.randint(3, (), generator=key(SEEDS[sample], step, "independent:class")))
    return mean_of_class(x, alpha, sigma, drawn)


def believing(strength: float, power: float, window: tuple[float, float]) -> Weak:
    """The mixture's stand-in for a noisy time: it believes in exp(s t^a n) times the true sigma/alpha."""

    def weak(x: Tensor, alpha: float, sigma: float, sample: int, step: int) -> Tensor | None:
        t = TIMES[step]
        if not window[0] <= t <= window[1]:
            return None
        n = float(torch.randn((), generator=key(SEEDS[sample], step, "time positive")))
        return mean_of_class(x / alpha, 1.0, sigma / alpha * math.exp(strength * t**power * n), PROMPTS[sample])

    return weak


# --- the package's run --------------------------------------------------------------------------------------------


def condition(k: int | None) -> Tensor:
    """A class as the mixture takes it: its weight over the Gaussians; None for all of them."""
    return WEIGHTS if k is None else torch.zeros(3, dtype=torch.float64).index_fill(0, torch.tensor(k), 1.0)


def classes(generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([condition(int(torch.randint(3, (), generator=one))) for one in generators])


def package_run(
    rule: gs.Rule,
    samples: Sequence[int] = (0, 1, 2),
    emits: Parameterization = EPSILON,
    independent: Callable[[Sequence[torch.Generator]], Tensor] = classes,
) -> tuple[Tensor, Report]:
    """Where the samples end, and the report."""
    model = MixtureDenoiser(GaussianMixture(MEANS, STDS, WEIGHTS), emits)
    conditions: dict[str, Any] = {
        "null": torch.stack([condition(None) for _ in samples]),
        "independent:class": independent,
        "positive": torch.stack([condition(PROMPTS[sample]) for sample in samples]),
    }
    seeds = tuple(SEEDS[sample] for sample in samples)
    run = GuidedRun(gs.Stack(rule), Run((len(samples), *SHAPE), torch.float64, steps=STEPS, seeds=seeds))
    levels = [Level.vp(bar) for bar in BARS]
    x = levels[0].noised(MEANS[list(samples)], START[list(samples)])
    for step in range(STEPS):
        network = CallableNetwork({"main": model}, x, levels[step], conditions, emits, {}, Keys(seeds, step))
        estimate = run.estimate(network, x, step, levels[step], time=TIMES[step])
        x = levels[step + 1].noised(estimate.prediction.denoised, estimate.prediction.noise)
    return x, run.finish()


EXACT = 1e-10


@pytest.mark.parametrize("emits", [EPSILON, X0, V], ids=lambda one: one.name)
def test_independent_condition_guidance_in_ten_steps(emits: Parameterization) -> None:
    seen, report = package_run(gs.ICG(2.5, source="class"), emits=emits)
    assert (seen - by_hand(2.5, random_class)).abs().max() < EXACT
    assert report.evaluations == [2 * STEPS] * 3


@pytest.mark.parametrize("emits", [EPSILON, X0, V], ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("strength", "power", "window"), [(0.3, 0.0, (0.0, 1.0)), (0.5, 1.0, (0.0, 1.0)), (0.3, 0.25, (0.35, 0.85))]
)
def test_time_step_guidance_in_ten_steps(
    emits: Parameterization, strength: float, power: float, window: tuple[float, float]
) -> None:
    rule = gs.TSG(2.0, strength=strength, power=power, window=window)
    seen, report = package_run(rule, emits=emits)
    assert (seen - by_hand(2.0, believing(strength, power, window))).abs().max() < EXACT
    inside = sum(window[0] <= t <= window[1] for t in TIMES)
    assert report.evaluations == [STEPS + inside] * 3


def test_other_draws_end_elsewhere() -> None:
    """Each mistake that public code makes with the draws: one for the run, one for the batch, shares as 0 to 1000."""
    seen, _ = package_run(gs.ICG(2.5, source="class"))

    def once_a_run(x: Tensor, alpha: float, sigma: float, sample: int, step: int) -> Tensor:
        return random_class(x, alpha, sigma, sample, 0)

    def once_a_batch(x: Tensor, alpha: float, sigma: float, sample: int, step: int) -> Tensor:
        drawn = int(torch.randint(3, (), generator=key(SEEDS[0], step, "independent:class")))
        return mean_of_class(x, alpha, sigma, drawn)

    for wrong in (once_a_run, once_a_batch):
        assert (seen - by_hand(2.5, wrong)).abs().max() > 1e-3
    weak, _ = package_run(gs.TSG(2.0, strength=0.5, power=1))
    assert (weak - by_hand(2.0, believing(0.5, 0.0, (0, 1)))).abs().max() > 1e-3
    assert (weak - by_hand(2.0, believing(0.5, 1.0, (0.2, 1)))).abs().max() > 1e-3


@pytest.mark.parametrize("rule", [gs.ICG(2.5, source="class"), gs.TSG(2.0, strength=0.5)], ids=str)
def test_a_sample_draws_the_same_alone(rule: gs.Rule) -> None:
    together, _ = package_run(rule)
    for samples in ([0], [1], [2], [2, 0]):
        assert (package_run(rule, samples)[0] - together[samples]).abs().max() < EXACT


# --- limits of ICG -------------------------------------------------------------------------------------------------


def test_the_null_class_as_the_random_one_is_cfg() -> None:
    def null(generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([condition(None) for _ in generators])

    seen, _ = package_run(gs.ICG(2.5, source="class"), independent=null)
    assert torch.equal(seen, package_run(gs.CFG(2.5, against="null"))[0])


def test_the_prompt_as_the_random_class_is_no_guidance() -> None:
    def prompt(generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([condition(k) for k in PROMPTS])

    seen, _ = package_run(gs.ICG(2.5, source="class"), independent=prompt)
    assert torch.equal(seen, package_run(gs.Stack())[0])
    alone, report = package_run(gs.ICG(1.0, source="class"))
    assert torch.equal(alone, seen)
    assert report.evaluations == [STEPS] * 3


@pytest.mark.parametrize("level", [Level.vp(0.1), Level.ve(1.5), Level.flow(0.6)], ids=["vp", "ve", "flow"])
def test_over_the_classes_as_likely_as_x_says_it_is_cfg(level: Level) -> None:
    r"""``sum_y p(y|x) D(x|y) = D(x)``: the guided answers average to CFG's, so that draws from p(y|x) have no bias."""
    emits = FLOW if level.path == "flow" else EPSILON
    mixture = GaussianMixture(MEANS, STDS, WEIGHTS)
    x = level.noised(MEANS, START)
    shares = torch.stack([classify(mixture, x, level, condition(k).expand(3, -1) * WEIGHTS) for k in range(3)]).exp()
    assert torch.allclose(shares.sum(0), torch.ones(3, dtype=torch.float64))

    def guided(rule: gs.Rule, k: int = 0) -> Tensor:
        conditions: dict[str, Any] = {
            "null": torch.stack([condition(None)] * 3),
            "independent:class": lambda generators: torch.stack([condition(k)] * 3),
            "positive": torch.stack([condition(one) for one in PROMPTS]),
        }
        network = CallableNetwork({"main": MixtureDenoiser(mixture, emits)}, x, level, conditions, emits)
        run = GuidedRun(gs.Stack(rule), Run((3, *SHAPE), torch.float64))
        return run.estimate(network, x, 0, level).prediction.denoised

    average = sum(shares[k].reshape(3, 1, 1) * guided(gs.ICG(3.0, source="class"), k) for k in range(3))
    wanted = guided(gs.CFG(3.0, against="null"))
    assert (average - wanted).abs().max() < EXACT
    # Classes drawn uniformly, as the paper draws them, do have one.
    uniform = sum(guided(gs.ICG(3.0, source="class"), k) for k in range(3)) / 3
    assert (uniform - wanted).abs().max() > 1e-2


# --- limits of TSG -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [gs.TSG(1.0), gs.TSG(3.0, strength=0), gs.TSG(3.0, window=(0.0, 0.05))], ids=["scale", "strength", "window"]
)
def test_where_time_step_guidance_does_nothing_it_costs_nothing(rule: gs.Rule) -> None:
    seen, report = package_run(rule)
    assert torch.equal(seen, package_run(gs.Stack())[0])
    assert report.evaluations == [STEPS] * 3


def test_at_time_0_a_power_schedule_is_over() -> None:
    network_time = Run((3, *SHAPE), torch.float64, steps=STEPS, seeds=SEEDS)
    from guidestack.guidance.step import Step

    step = Step(network_time, STEPS - 1, Level.vp(0.99), time=0.0)
    assert gs.TSG(3.0, power=1).queries(step, ()) == {}
    assert len(gs.TSG(3.0, power=0).queries(step, ())) == 2


# --- the draws -----------------------------------------------------------------------------------------------------


def test_the_documented_scheme_is_the_one() -> None:
    generators = Keys((7, 8), 3, 1).generators([1, 0], "independent:tokens")
    for seed, generator in zip((8, 7), generators, strict=True):
        assert generator.initial_seed() == key(seed, 3, "independent:tokens", 1).initial_seed()
    # Written out once, so that no later change of both goes unnoticed.
    assert key(7, 0, "independent:tokens").initial_seed() == PINNED


PINNED = int(hashlib.blake2b(b"(7, 0, 0, 'independent:tokens')", digest_size=8).hexdigest(), 16) >> 1


def test_a_numpy_seed_draws_as_its_number_does() -> None:
    import numpy

    assert keyed(numpy.int64(7), 0).initial_seed() == keyed(7, 0).initial_seed()  # type: ignore[arg-type]


def test_every_part_of_the_key_matters() -> None:
    parts = [
        (seed, step, evaluation, purpose)
        for seed in (1, 12)
        for step in (0, 1)
        for evaluation in (0, 1)
        for purpose in ("time positive", "independent:tokens")
    ]
    assert len({keyed(*part).initial_seed() for part in parts}) == len(parts)


def test_row_i_is_of_generator_i_alone() -> None:
    rows = normal([keyed(seed) for seed in (1, 2, 3)], (4, 5))
    assert rows.shape == (3, 4, 5)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[1], normal([keyed(2)], (4, 5))[0])
    assert torch.equal(rows[2], torch.randn(4, 5, generator=keyed(3)))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_new_draws_at_every_evaluation_of_every_sample(scheduler: str) -> None:
    import diffusers

    mixture = GaussianMixture(MEANS, STDS, WEIGHTS)
    seen: list[list[int]] = []

    def noting(generators: Sequence[torch.Generator]) -> Tensor:
        seen.append([one.initial_seed() for one in generators])
        return classes(generators)

    conditions = {"positive": torch.stack([condition(k) for k in PROMPTS]), "independent": noting}
    options: dict[str, Any] = {"conditions": conditions, "shape": SHAPE, "seeds": SEEDS, "steps": 4}
    sampler = getattr(diffusers, scheduler)()
    before = torch.get_rng_state()
    gs.sample(MixtureDenoiser(mixture), gs.ICG(2, source="class"), sampler, **options)
    assert torch.equal(torch.get_rng_state(), before)  # nothing from the global generator
    evaluations = [(step, 0) for step in range(4)]
    if scheduler.startswith("Heun"):
        evaluations = [(step, evaluation) for step in range(4) for evaluation in (0, 1)][:-1]
    assert seen == [
        [key(seed, step, "independent", evaluation).initial_seed() for seed in SEEDS]
        for step, evaluation in evaluations
    ]
    assert len({one for row in seen for one in row}) == 3 * len(evaluations)


@pytest.fixture
def _default_of_float64() -> Iterator[None]:
    """Some scientific code sets this at its beginning."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn_by_rules() -> list[Tensor]:
    network = Oracle(dtype=torch.float32)
    stacks = ("icg(3)", "icg(3, source='class')", "tsg(3)", "tsg(3, stage='conditioning') | icg(2)", "cfg(3)")
    ends = [oracle_run(gs.parse(stack), network).outputs[-1] for stack in stacks]
    noise = initial_noise((4, 8), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    return [*ends, noise, normal([keyed(7, "x")], (3, 5))]


def test_the_draws_do_not_depend_on_the_default_dtype(request: pytest.FixtureRequest) -> None:
    expected = drawn_by_rules()
    request.getfixturevalue("_default_of_float64")
    for one, other in zip(drawn_by_rules(), expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # the oracle itself is made in that type
    assert torch.equal(drawn_by_rules()[-1], expected[-1])
    assert torch.equal(drawn_by_rules()[-2], expected[-2])
