"""A stack for samplers of the k-diffusion form: against the sampling loop, and against formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError, InputError, NonFiniteError, QueryError
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level
from guidestack.guidance.testing.checks import Oracle
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser

from ..spoiling import Spoil

MIXTURE = GaussianMixture.example()
STEPS = 5
SAMPLES = {1: (1,), 3: (0, 1, 2)}
STACKS = (
    "stack()",
    "cfg(3)",
    "perpneg(3, weights=(1, 0.5))",
    "apg(3, radius=2, momentum=-0.5)",
    "icg(3)",
    "tsg(3, strength=0.8)",
    "cfg(3) | rescale(0.7, space='denoised')",
    "cfg(3) | renorm(space='denoised')",
    "during(cfg(3), sigma=(0.5, 6))",
    "during(cfg(3), progress=(0.25, 0.7))",
    "prefix(apg(3, momentum=-0.5), 2)",
    "adaptive(cfg(3), threshold=0.9, space='denoised')",
    "adaptive(apg(3, against='negative:1'), threshold=0.5) | rescale(0.5, space='denoised')",
    "cfg(2, against='positive@weak')",
    "cfg(0.5, against='null')",
)


def k_model(widen: float = 1.0, path: str = "ve") -> Callable[..., Tensor]:
    """The mixture in k-diffusion's form."""
    inner = MixtureDenoiser(MIXTURE, X0, widen)

    class Model:
        perturbations = inner.perturbations

        def __call__(self, x: Tensor, sigma: Tensor, weights: Tensor, **options: Any) -> Tensor:
            assert sigma.shape == (len(x),)
            level = Level.ve(float(sigma[0])) if path == "ve" else Level.flow(float(sigma[0]))
            return inner(x, level, weights, **options)

    return Model()


def euler(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for i in range(len(sigmas) - 1):
        d = (x - model(x, sigmas[i] * x.new_ones(len(x)))) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for i in range(len(sigmas) - 1):
        d = (x - model(x, sigmas[i] * x.new_ones(len(x)))) / sigmas[i]
        there = x + d * (sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] == 0:
            return there
        d2 = (there - model(there, sigmas[i + 1] * x.new_ones(len(x)))) / sigmas[i + 1]
        x = x + (d + d2) / 2 * (sigmas[i + 1] - sigmas[i])
    return x


def scheduler_of(sampler: str) -> Any:
    import diffusers

    if sampler == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=1.7)
    name = {"euler": "EulerDiscreteScheduler", "heun": "HeunDiscreteScheduler"}[sampler]
    return getattr(diffusers, name)(beta_schedule="scaled_linear")


def told(samples: tuple[int, ...]) -> dict[str, Any]:
    """The oracle's conditions as arguments of the model."""
    given = {name: tree for name, tree in Oracle(samples).conditions().items() if name != "negative"}
    draw = given.pop("independent")
    return {
        **{name: {"weights": tree} for name, tree in given.items()},
        "independent": lambda generators: {"weights": draw(generators)},
    }


def start(samples: tuple[int, ...], sigma: float) -> Tensor:
    generators = [torch.Generator().manual_seed(11 + sample) for sample in samples]
    return sigma * torch.stack([torch.randn(2, 3, 3, dtype=torch.float64, generator=one) for one in generators])


# The oracle cannot believe in another level than pure noise, where the flow begins.
CASES = [
    (text, sampler)
    for text in STACKS
    for sampler in ("euler", "heun", "flow")
    if (text[:3], sampler) != ("tsg", "flow")
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("text", "sampler"), CASES)
def test_the_same_as_the_sampling_loop(text: str, sampler: str, batch: int) -> None:
    samples = SAMPLES[batch]
    scheduler, path = scheduler_of(sampler), "flow" if sampler == "flow" else "ve"
    emits = FLOW if sampler == "flow" else EPSILON
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.to(torch.float64)
    if sampler == "heun":
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    x, seeds = start(samples, float(sigmas[0])), Oracle(samples).seeds
    options: dict[str, Any] = {"conditions": told(samples), "seeds": seeds}
    wanted = gs.sample(
        {name: Adapted(MixtureDenoiser(MIXTURE, emits, widen)) for name, widen in (("main", 1.0), ("weak", 1.5))},
        text,
        scheduler,
        shape=(2, 3, 3),
        steps=STEPS,
        start=x,
        dtype=torch.float64,
        **options,
    )
    models = {"main": k_model(path=path), "weak": k_model(1.5, path)}
    denoiser = gs.as_denoiser(
        text, models, sigmas=sigmas, path=path, evaluations=2 if sampler == "heun" else 1, **options
    )
    got = (heun if sampler == "heun" else euler)(denoiser, x, sigmas)
    # diffusers' schedulers step in float32.
    assert torch.allclose(got, wanted.x.to(got), rtol=2e-4, atol=2e-4 * float(got.abs().max()))
    report = denoiser.report
    assert report is not None
    assert (report.evaluations, report.calls, report.rows) == (
        wanted.report.evaluations,
        wanted.report.calls,
        wanted.report.rows,
    )
    for ours, theirs in zip(report.steps, wanted.report.steps, strict=True):
        assert (ours.index, ours.evaluation, ours.queries) == (theirs.index, theirs.evaluation, theirs.queries)
    for name in ("guiding", "cosine", "rescale"):
        ours_traced, theirs_traced = report.trace(name), wanted.report.trace(name)
        assert torch.allclose(torch.tensor(ours_traced), torch.tensor(theirs_traced), rtol=1e-3, equal_nan=True)


class Adapted:
    """The mixture as `sample` wants it, told by a mapping."""

    def __init__(self, inner: MixtureDenoiser) -> None:
        self.inner, self.perturbations = inner, inner.perturbations

    def __call__(self, x: Tensor, level: Level, conditions: Any, /, **options: Any) -> Tensor:
        return self.inner(x, level, conditions["weights"], **options)


SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("solver", [euler, heun])
def test_cfg_is_its_formula(solver: Any, batch: int) -> None:
    samples = SAMPLES[batch]
    conditions, model, x = told(samples), k_model(), start(samples, 8.0)

    def by_hand(x: Tensor, sigma: Tensor) -> Tensor:
        c, u = (model(x, sigma, **conditions[name]) for name in ("positive", "negative:0"))
        return u + 3 * (c - u)

    denoiser = gs.as_denoiser(
        "cfg(3)", model, conditions=conditions, sigmas=SIGMAS, evaluations=2 if solver is heun else 1
    )
    assert torch.allclose(solver(denoiser, x, SIGMAS), solver(by_hand, x, SIGMAS), rtol=1e-12, atol=1e-12)


def test_adaptive_guidance_decides_at_the_first_evaluation_of_a_step() -> None:
    conditions, x = told((0, 1, 2)), start((0, 1, 2), 8.0)
    stack = gs.AdaptiveGuidance(gs.CFG(3), threshold=0.9, space="denoised")
    denoiser = gs.as_denoiser(stack, k_model(), conditions=conditions, sigmas=SIGMAS, evaluations=2)
    heun(denoiser, x, SIGMAS)
    report = denoiser.report
    assert report is not None
    assert [(step.index, step.evaluation) for step in report.steps] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)
    ]  # fmt: skip
    assert ["cosine" in step.traces for step in report.steps] == [True, False] * 3 + [True]
    assert len(set(report.evaluations)) > 1  # samples stop at steps of their own
    assert report.steps[1].level == Level.ve(3.0)


def test_a_run_at_a_time() -> None:
    conditions, x = told((0,)), start((0,), 8.0)
    denoiser = gs.as_denoiser("apg(3, momentum=-0.5)", k_model(), conditions=conditions, sigmas=SIGMAS)
    first = euler(denoiser, x, SIGMAS)
    with pytest.raises(GuidanceNotAppliedError, match=r"4 calls were made, all of 4 steps; call reset\(\)"):
        denoiser(x, 8.0)
    denoiser.reset()
    assert denoiser.report is None
    denoiser(x, 8.0)
    with pytest.raises(GuidanceNotAppliedError, match="call 2 is at sigma 8, and step 1 of the schedule begins at 3"):
        denoiser(x, 8.0)
    with pytest.raises(GuidanceNotAppliedError, match=r"3 samples in a run of 1; call reset\(\)"):
        denoiser(start((0, 1, 2), 3.0), 3.0)
    denoiser.reset()
    assert torch.equal(euler(denoiser, x, SIGMAS), first)  # nothing is left of a run that broke off


def test_a_sampler_that_makes_more_calls_than_was_said() -> None:
    denoiser = gs.as_denoiser("cfg(3)", k_model(), conditions=told((0,)), sigmas=SIGMAS)
    with pytest.raises(GuidanceNotAppliedError, match="does the sampler not make evaluations=1 calls in a step"):
        heun(denoiser, start((0,), 8.0), SIGMAS)
    # Levels so near to one another that the second call of a step could be a third step begun above its level.
    sigmas = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.0], dtype=torch.float64)
    denoiser = gs.as_denoiser("cfg(3)", k_model(), conditions=told((0,)), sigmas=sigmas)
    with pytest.raises(GuidanceNotAppliedError, match=r"call 3 is at sigma 0\.9, and step 2 of the schedule"):
        heun(denoiser, start((0,), 1.0), sigmas)


def test_steps_that_begin_above_their_level() -> None:
    denoiser = gs.as_denoiser("cfg(3)", k_model(), conditions=told((0,)), sigmas=SIGMAS)
    x = start((0,), 8.0)
    denoiser(x, 8.0 * 1.4)
    denoiser(x, torch.tensor([3.3]))
    assert denoiser.run is not None
    assert [round(step.level.sigma, 4) for step in denoiser.run.report.steps] == [11.2, 3.3]
    with pytest.raises(GuidanceNotAppliedError, match=r"call 3 is at sigma 1\.6"):
        denoiser(x, 1.6)


def test_what_models_are_told() -> None:
    """Arguments of unlike forms go in calls of their own; a row for all is one each; options go to every call."""
    seen: list[tuple[int, tuple[str, ...], str]] = []

    def model(x: Tensor, sigma: Tensor, mode: str = "", **arguments: Tensor) -> Tensor:
        seen.append((len(x), tuple(sorted(arguments)), mode))
        assert all(len(value) == len(x) for value in arguments.values())
        return x / 2

    conditions: dict[str, Any] = {"positive": {"text": torch.ones(1, 4)}, "null": {"text": torch.zeros(3, 4)}}
    x = torch.ones(3, 2)
    gs.as_denoiser("cfg(3)", model, conditions=conditions, sigmas=[2, 0])(x, 2.0, mode="fast")
    assert seen == [(6, ("text",), "fast")]
    seen.clear()
    unlike = {"positive": {"text": torch.ones(1, 4)}, "null": {}}
    gs.as_denoiser("cfg(3)", model, conditions=unlike, sigmas=[2, 0])(x, 2.0)
    assert seen == [(3, (), ""), (3, ("text",), "")]
    seen.clear()
    gs.as_denoiser("cfg(3)", model, conditions=conditions, sigmas=[2, 0], max_rows=4)(x, 2.0)
    assert [rows for rows, _, _ in seen] == [4, 2]
    with pytest.raises(InputError, match="'text' is a tensor, of which it is not known whether it has rows"):
        gs.as_denoiser("cfg(3)", model, conditions=unlike, sigmas=[2, 0])(x, 2.0, text=torch.ones(3, 4))
    wrong = {**conditions, "positive": {"text": torch.ones(2, 4)}}
    with pytest.raises(QueryError, match="condition 'positive' has 2 rows, the batch has 3"):
        gs.as_denoiser("cfg(3)", model, conditions=wrong, sigmas=[2, 0])(x, 2.0)
    drawn = {**conditions, "independent": lambda generators: {"text": torch.ones(3, 5)}}
    with pytest.raises(QueryError, match="'independent' draws arguments of another form than those of 'positive'"):
        gs.as_denoiser("icg(3)", model, conditions=drawn, sigmas=[2, 0])(x, 2.0)
    with pytest.raises(InputError, match="sigma must be one level for all samples"):
        gs.as_denoiser("cfg(3)", model, conditions=conditions, sigmas=[2, 0])(x, torch.tensor([2.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"stack": "cfgpp(0.6)"}, r"cfgpp\(0.6\) re-noises with a second prediction"),
        ({"stack": "cfg(3) | during(renoise(), progress=(0, 0.5))"}, r"renoise\(\) re-noises"),
        ({"conditions": {"null": {}}}, r"conditions need 'positive'; got \['null'\]"),
        ({"conditions": {"positive": torch.ones(1)}}, r"conditions\['positive'\] must be a mapping of arguments"),
        ({"sigmas": [1.0]}, "sigmas must fall"),
        ({"sigmas": [1.0, 1.0, 0.0]}, "sigmas must fall"),
        ({"sigmas": [1.0, -1.0]}, "sigmas must fall"),
        ({"sigmas": [2.0, 0.0], "path": "flow"}, r"path is 've', or 'flow' with sigmas in \[0, 1\]"),
        ({"path": "vp"}, "path is 've', or 'flow'"),
        ({"evaluations": 0}, "evaluations is the number of calls in a step"),
        (
            {"stack": "tsg(3, stage='conditioning')", "model": lambda x, sigma: x},
            "perturbs the conditioning embedding .* give it an attribute perturbations={'conditioning'}",
        ),
        ({"stack": "during(tsg(3), progress=(0, 0.5))", "model": lambda x, sigma: x}, r"tsg\(3\).* does not show"),
    ],
)
def test_what_is_refused(given: dict[str, Any], reason: str) -> None:
    arguments = {"stack": "cfg(3)", "conditions": {"positive": {}, "null": {}}, "sigmas": [1.0, 0.0], **given}
    with pytest.raises(InputError, match=reason) as caught:
        gs.as_denoiser(arguments.pop("stack"), arguments.pop("model", k_model()), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (
            "cfg(3)",
            r"answers 'negative': .* 'positive'; give conditions\['negative'\], or conditions\['null'\] for the",
        ),
        ("cfg(3, against='null')", r"answers 'null': conditions has 'positive'; give conditions\['null'\] with the"),
        ("icg(3)", r"answers 'independent:tokens': .* give conditions\['independent'\], a function draw\(generators\)"),
    ],
)
def test_a_condition_that_is_not_there(stack: str, reason: str) -> None:
    denoiser = gs.as_denoiser(stack, k_model(), conditions={"positive": told((0,))["positive"]}, sigmas=SIGMAS)
    with pytest.raises(QueryError, match=reason) as caught:
        denoiser(start((0,), 8.0), 8.0)
    assert "\n" not in str(caught.value)


def test_nan_stops_the_run() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x * torch.nan

    denoiser = gs.as_denoiser("stack()", model, conditions={"positive": {}}, sigmas=SIGMAS)
    with pytest.raises(NonFiniteError, match="NaN or Inf at step 0 of 4"):
        denoiser(torch.ones(1, 2), 8.0)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_a_sample_that_is_nan_is_warned_of_and_the_others_go_on(sampler: Any) -> None:
    """The sampler hands its samples back by itself: an error would lose all of them."""
    given: dict[str, Any] = {"conditions": told((0, 1, 2)), "sigmas": SIGMAS, "evaluations": 1 + (sampler is heun)}
    wanted = sampler(gs.as_denoiser("apg(3, momentum=-0.5)", k_model(), **given), start((0, 1, 2), 8.0), SIGMAS)
    spoilt = gs.APG(3, momentum=-0.5) | Spoil(1, start=1)
    denoiser = gs.as_denoiser(spoilt, k_model(), **given)
    with pytest.warns(gs.GuidestackWarning, match=r"step 1 of 4 .*lost: samples \[1\]; the other") as said:
        found = sampler(denoiser, start((0, 1, 2), 8.0), SIGMAS)
    assert len(said) == 1
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    with pytest.raises(NonFiniteError) as caught:
        _ = denoiser.report
    assert caught.value.samples == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_x_is_kept(dtype: torch.dtype) -> None:
    denoiser = gs.as_denoiser("apg(3, momentum=-0.5)", k_model(), conditions=told((0, 1, 2)), sigmas=SIGMAS)
    x = start((0, 1, 2), 8.0).to(dtype)
    assert denoiser(x, torch.full((3,), 8.0, dtype=dtype)).dtype == dtype
