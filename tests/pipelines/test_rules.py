"""Every rule through guide() on the stock pipeline, and through sample(), against a loop over single samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidestack as gs

from . import by_hand
from .by_hand import (
    Course,
    Guide,
    adaptive,
    adg,
    apg,
    cfg,
    cfg_plus_plus,
    cfg_zero,
    key,
    perp_neg,
    prefix,
    renoised,
    rescale,
    tcfg,
    tsg,
)

STEPS, SAMPLES = 6, 3
CLOSE = 2e-5  # relative, in float32
PROMPTS = ["a cat", "red", "sea"]
NEGATIVES = ["dog", "blue", "land"]
MANY = [["dog", "pale"], ["blue"], []]
EXTRA: list[list[str]] = [[], ["sun"], ["moon", "star"]]
SCHEDULERS: dict[str, Any] = {
    "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
    "EulerDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
}


@dataclass(frozen=True)
class Case:
    """A stack, and the rule that it is for each sample; what is given beside the prompts."""

    stack: gs.Rule
    guides: Sequence[Guide]
    negative: Any = field(default_factory=lambda: NEGATIVES)
    extra: Any = None


def same(stack: gs.Rule, guide: Guide, negative: Any = NEGATIVES) -> Case:
    return Case(stack, [guide] * SAMPLES, negative)


APG_ALL: dict[str, Any] = {"eta": 0.3, "radius": 4.0}
CASES = {
    "cfg": same(gs.CFG(3), cfg(3)),
    "cfg, no negative": same(gs.CFG(3), cfg(3, "null"), None),
    "cfg against null": same(gs.CFG(3, against="null") | gs.CFG(2), cfg(2, inner=cfg(3, "null"))),
    "apg": same(gs.APG(4, **APG_ALL, momentum=-0.5), apg(4, **APG_ALL, beta=-0.5)),
    "apg, eta 0": same(gs.APG(4), apg(4)),
    "cfg zero": same(gs.CFGZero(4), cfg_zero(4)),
    "tcfg": same(gs.TCFG(4), tcfg(4)),
    "adg": same(gs.ADG(3), adg(3)),
    "perpneg": Case(
        gs.PerpNeg(3, weights=(1, 0.5), positive_weights=(0.7, 1.5)),
        [
            perp_neg(3, len(negatives), len(positives), (1, 0.5), (0.7, 1.5))
            for negatives, positives in zip(MANY, EXTRA, strict=True)
        ],
        MANY,
        EXTRA,
    ),
    "perpneg, no negatives": Case(gs.PerpNeg(3), [perp_neg(3, 0)] * SAMPLES, None),
    "cfg++": same(gs.CFGPlusPlus(0.6), cfg_plus_plus(0.6)),
    "cfg++ written out": same(gs.CFG(0.6) | gs.Renoise("negative"), cfg_plus_plus(0.6)),
    "renoised with null": same(gs.CFG(0.6) | gs.Renoise(), renoised(cfg(0.6), "null")),
    "perpneg, renoised": Case(
        gs.PerpNeg(0.6) | gs.Renoise(), [renoised(perp_neg(0.6, len(one)), "null") for one in MANY], MANY
    ),
    "adaptive": same(gs.AdaptiveGuidance(gs.CFG(3), threshold=0.97), adaptive(cfg(3), 0.97)),
    "adaptive apg": same(
        gs.AdaptiveGuidance(gs.APG(4, **APG_ALL, momentum=-0.5), threshold=0.97),
        adaptive(apg(4, **APG_ALL, beta=-0.5), 0.97),
    ),
    "prefix": same(gs.Prefix(gs.CFG(3), 2), prefix(cfg(3), 2)),
    "icg, tokens": same(gs.ICG(3), cfg(3, "independent:tokens"), None),
    "icg, gaussian": same(gs.ICG(3, source="gaussian"), cfg(3, "independent:gaussian"), None),
    "tsg": same(gs.TSG(3, strength=1.5), tsg(3, 1.5), None),
    "tsg, power and window": same(
        gs.TSG(3, strength=2, power=1, window=(0.3, 0.9)), tsg(3, 2, 1, window=(0.3, 0.9)), None
    ),
    "rescale": same(gs.CFG(3) | gs.Rescale(0.7), rescale(cfg(3), 0.7)),
    "three rules": same(
        gs.APG(3, **APG_ALL) | gs.TSG(2, strength=1.5) | gs.Rescale(0.5),
        rescale(tsg(2, 1.5, inner=apg(3, **APG_ALL)), 0.5),
    ),
}


def seeded(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + sample) for sample in range(count)]


def scheduled(pipe: Any, name: str) -> Any:
    pipe.scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    return pipe


def texts(case: Case, sample: int) -> dict[str, str]:
    """What each condition says to a sample."""
    negative, extra = (one[sample] if one else [] for one in (case.negative, case.extra))
    negatives = [negative] if isinstance(negative, str) else negative
    return {
        "positive": PROMPTS[sample],
        "null": "",
        "negative": negatives[0] if negatives else "",
        **{f"negative:{i}": text for i, text in enumerate(negatives)},
        **{f"positive:{i}": text for i, text in enumerate(extra, 1)},
    }


def embedded(pipe: Any, text: str) -> Tensor:
    with torch.no_grad():
        return pipe.encode_prompt([text], "cpu", 1, False)[0]  # type: ignore[no-any-return]


def answer(pipe: Any, x: Tensor, t: Any, step: int, name: str, said: dict[str, Tensor], seed: int) -> Tensor:
    """What the network answers to one sample: one call, without the package."""
    prompt = said["positive"]
    if name == "independent:tokens":
        ids = torch.randint(pipe.text_encoder.config.vocab_size, (16,), generator=key(seed, step, name))
        return pipe.unet(x, t, pipe.text_encoder(ids[None])[0]).sample  # type: ignore[no-any-return]
    if name == "independent:gaussian":
        normal = torch.randn(16, 16, generator=key(seed, step, name))
        return pipe.unet(x, t, normal[None] * prompt.std()).sample  # type: ignore[no-any-return]
    if name.startswith("weak"):
        normal = torch.randn(pipe.unet.time_embedding.linear_2.out_features, generator=key(seed, step, "time positive"))
        amount = float(name.split()[1])
        hook = pipe.unet.time_embedding.register_forward_hook(
            lambda module, args, embedding: embedding + amount * embedding.std() * normal
        )
        output = pipe.unet(x, t, prompt).sample
        hook.remove()
        return output  # type: ignore[no-any-return]
    return pipe.unet(x, t, said[name]).sample  # type: ignore[no-any-return]


def alone(pipe: Any, case: Case, sample: int, seed: int, shape: tuple[int, ...] = (4, 8, 8)) -> Course:
    """The sample's run by hand."""
    said = {name: embedded(pipe, text) for name, text in texts(case, sample).items()}

    def network(x: Tensor, t: Any, step: int, name: str) -> Tensor:
        return answer(pipe, x, t, step, name, said, seed)

    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    return by_hand.run(network, start, pipe.scheduler, STEPS, case.guides[sample])


def arguments(case: Case, **more: Any) -> dict[str, Any]:
    given = {"prompt": PROMPTS, "num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(SAMPLES)}
    given |= {"negative_prompt": case.negative} if case.negative is not None else {}
    return given | ({"extra_prompt": case.extra} if case.extra is not None else {}) | more


def close(seen: Tensor, wanted: Tensor) -> bool:
    return bool((seen - wanted).abs().max() < CLOSE * wanted.abs().max())


@contextmanager
def counted(module: Any) -> Iterator[list[int]]:
    """The rows of every call of a network, as the network itself gets them."""
    rows: list[int] = []
    hook = module.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_samples_by_hand(pipe: Any, name: str, scheduler: str) -> None:
    case = CASES[name]
    guided = gs.guide(scheduled(pipe, scheduler), case.stack)
    with counted(pipe.unet) as rows:
        images = guided(**arguments(case)).images
    courses = [alone(pipe, case, sample, sample) for sample in range(SAMPLES)]
    for image, course in zip(images, courses, strict=True):
        assert close(image, course.x[0])
    assert guided.report.evaluations == [course.evaluations for course in courses]
    assert guided.report.rows == sum(rows) == sum(course.evaluations for course in courses)
    assert guided.report.calls == len(rows)
    if name.startswith("adaptive"):
        assert len({course.evaluations for course in courses}) > 1  # each stops in its own time
        assert max(course.evaluations for course in courses) < 2 * STEPS


@pytest.mark.filterwarnings("ignore:.* weights for . (negative|further positive) prompts")  # in the smaller batches
@pytest.mark.parametrize(
    "name", ["apg", "perpneg", "cfg++", "adaptive apg", "icg, tokens", "icg, gaussian", "tsg", "three rules"]
)
def test_a_sample_does_not_see_its_neighbours(pipe: Any, name: str) -> None:
    case = CASES[name]
    guided = gs.guide(scheduled(pipe, "DDIMScheduler"), case.stack)
    together = guided(**arguments(case)).images
    # Another order, and one left out.
    for chosen in ([0], [1], [2], [2, 0]):
        given = arguments(case, prompt=[PROMPTS[one] for one in chosen])
        given["generator"] = [seeded(SAMPLES)[one] for one in chosen]
        for argument in {"negative_prompt", "extra_prompt"} & set(given):
            given[argument] = [given[argument][one] for one in chosen]
        for image, one in zip(guided(**given).images, chosen, strict=True):
            assert close(image, together[one])


def test_the_rules_differ(pipe: Any) -> None:
    """The tiny network is no judge that lets everything pass: what two rules make of it is far apart."""
    scheduled(pipe, "DDIMScheduler")
    twins = ("cfg++ written out", "perpneg, no negatives")  # which are cfg++, and cfg with no negative
    ends = {name: alone(pipe, case, 1, 1).x for name, case in CASES.items() if name not in twins}
    for (a, one), (b, other) in itertools.combinations(ends.items(), 2):
        assert (one - other).abs().max() > 50 * CLOSE * one.abs().max(), (a, b)


# --- several images a prompt, one prompt, embeddings ---------------------------------------------------------------


def test_perp_neg_with_several_images_a_prompt(pipe: Any) -> None:
    case = CASES["perpneg"]
    guided = gs.guide(scheduled(pipe, "DDIMScheduler"), case.stack)
    with counted(pipe.unet) as rows:
        images = guided(**arguments(case, num_images_per_prompt=2, generator=seeded(6))).images
    for image, seed in zip(images, range(6), strict=True):
        assert close(image, alone(pipe, case, seed // 2, seed).x[0])
    each = [2 + len(MANY[sample]) + len(EXTRA[sample]) for sample in (0, 0, 1, 1, 2, 2)]
    assert guided.report.evaluations == [STEPS * one for one in each]
    assert guided.report.rows == sum(rows)


def test_perp_neg_with_one_prompt_and_a_list(pipe: Any) -> None:
    guide = perp_neg(3, 2, 1)
    case = Case(gs.PerpNeg(3), [guide], [["dog", "pale"]], [["sun"]])
    wanted = alone(scheduled(pipe, "DDIMScheduler"), case, 0, 0).x[0]
    guided = gs.guide(pipe, case.stack)
    for prompt, negative, extra in (
        (PROMPTS[0], ["dog", "pale"], "sun"),
        (PROMPTS[0], ("dog", "pale"), ["sun"]),
        ([PROMPTS[0]], [["dog", "pale"]], ["sun"]),
    ):
        given = {"prompt": prompt, "negative_prompt": negative, "extra_prompt": extra, "generator": seeded(1)}
        assert close(guided(**arguments(case, **given)).images[0], wanted)


@pytest.mark.parametrize("name", ["perpneg", "cfg++", "icg, tokens", "adaptive"])
def test_prompts_as_embeddings(pipe: Any, name: str) -> None:
    case = CASES[name]
    guided = gs.guide(scheduled(pipe, "DDIMScheduler"), case.stack)
    wanted = guided(**arguments(case)).images
    embeddings = torch.cat([embedded(pipe, prompt) for prompt in PROMPTS])
    given = {"prompt": None, "prompt_embeds": embeddings}
    assert close(guided(**arguments(case, **given)).images, wanted)
    if name == "cfg++":
        given["negative_prompt"] = None
        given["negative_prompt_embeds"] = torch.cat([embedded(pipe, text) for text in NEGATIVES])
        assert close(guided(**arguments(case, **given)).images, wanted)


def test_perp_neg_with_a_negative_as_embeddings(pipe: Any) -> None:
    case = Case(gs.PerpNeg(3), [perp_neg(3, 1)] * SAMPLES)
    guided = gs.guide(scheduled(pipe, "DDIMScheduler"), case.stack)
    given = arguments(case, prompt=None, prompt_embeds=torch.cat([embedded(pipe, prompt) for prompt in PROMPTS]))
    given["negative_prompt_embeds"] = torch.cat([embedded(pipe, text) for text in given.pop("negative_prompt")])
    for sample, image in enumerate(guided(**given).images):
        assert close(image, alone(pipe, case, sample, sample).x[0])


# --- the cost ------------------------------------------------------------------------------------------------------

RULES: dict[str, gs.Rule] = {
    "cfg": gs.CFG(3),
    "cfg at 1": gs.CFG(1),
    "null": gs.CFG(3, against="null"),
    "apg": gs.APG(3, momentum=-0.5),
    "perpneg": gs.PerpNeg(3, weights=(1, 0.5)),
    "cfg++": gs.CFGPlusPlus(0.6),
    "renoise": gs.Renoise("positive"),
    "adaptive": gs.AdaptiveGuidance(gs.CFG(3), threshold=0.97),
    "during": gs.During(gs.CFG(3, against="null"), progress=(0.3, 0.8)),
    "prefix": gs.Prefix(gs.ICG(3, source="gaussian"), 2),
    "icg": gs.ICG(3),
    "tsg": gs.TSG(3),
    "tsg in a window": gs.TSG(3, window=(0.2, 0.7)),
}
PAIRS = [
    ("cfg", "null"),
    ("cfg", "tsg"),
    ("cfg", "icg"),
    ("perpneg", "cfg"),
    ("perpneg", "icg"),
    ("perpneg", "renoise"),
    ("adaptive", "tsg in a window"),
    ("adaptive", "perpneg"),
    ("cfg++", "tsg"),
    ("during", "adaptive"),
    ("prefix", "icg"),
    ("tsg", "tsg in a window"),
    ("icg", "prefix"),
    ("apg", "cfg++"),
    ("adaptive", "cfg++"),
]


@pytest.mark.filterwarnings("ignore:a negative prompt was given")
@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("names", [(name,) for name in RULES] + PAIRS, ids=" | ".join)
def test_what_is_reported_is_what_the_network_saw(pipe: Any, names: tuple[str, ...], max_rows: int | None) -> None:
    stack = gs.Stack(*(RULES[name] for name in names))
    guided = gs.guide(scheduled(pipe, "DDIMScheduler"), stack, max_rows=max_rows)
    with counted(pipe.unet) as rows:
        guided(**arguments(Case(stack, [], MANY if "perpneg" in names else NEGATIVES)))
    report = guided.report
    assert (report.calls, report.rows) == (len(rows), sum(rows))
    assert sum(report.evaluations) == report.rows
    assert max(rows) <= (max_rows or 100)


# --- flow matching, and any model: sample() ------------------------------------------------------------------------


class Unet:
    """The tiny UNet as a model of sample(): on the flow's path its time is the level."""

    perturbations = frozenset({"time"})

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def __call__(
        self, x: Tensor, level: Any, text: Tensor, perturbation: Any = None, generators: Sequence[Any] = ()
    ) -> Tensor:
        hooks = []
        if perturbation:
            normal = torch.stack([torch.randn(32, generator=one) for one in generators])

            def add(module: Any, args: Any, embedding: Tensor) -> Tensor:
                return embedding + perturbation.amount * embedding.std(1, keepdim=True) * normal

            hooks.append(self.unet.time_embedding.register_forward_hook(add))
        output = self.unet(x, 1000 * level.sigma, text).sample
        for hook in hooks:
            hook.remove()
        return output  # type: ignore[no-any-return]


@cache
def flow_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)


def conditions(pipe: Any, case: Case) -> dict[str, Any]:
    said = [texts(case, sample) for sample in range(SAMPLES)]
    most = {kind: max(sum(name.startswith(f"{kind}:") for name in one) for one in said) for kind in said[0]}
    names = ["positive", "null", *(["negative"] if case.negative else [])]
    names += [f"{kind}:{i + (kind == 'positive')}" for kind in ("negative", "positive") for i in range(most[kind])]
    given: dict[str, Any] = {
        name: torch.cat([embedded(pipe, one.get(name, "")) for one in said]) for name in dict.fromkeys(names)
    }

    def tokens(generators: Sequence[torch.Generator]) -> Tensor:
        ids = torch.stack([torch.randint(pipe.text_encoder.config.vocab_size, (16,), generator=g) for g in generators])
        return pipe.text_encoder(ids)[0]  # type: ignore[no-any-return]

    def gaussian(generators: Sequence[torch.Generator]) -> Tensor:
        normal = torch.stack([torch.randn(16, 16, generator=g) for g in generators])
        return normal * given["positive"].std(dim=(1, 2), keepdim=True)

    return given | {"independent:tokens": tokens, "independent:gaussian": gaussian}


@pytest.mark.parametrize("name", CASES)
def test_flow_matching_is_its_samples_by_hand(pipe: Any, name: str) -> None:
    case = CASES[name]
    scheduler, unet = flow_scheduler(), Unet(pipe.unet)
    given = conditions(pipe, case)
    if isinstance(case.negative, list) and isinstance(case.negative[0], list):
        del given["negative"]  # the prompts have a number of them each
    with counted(pipe.unet) as rows:
        done = gs.sample(
            unet,
            case.stack,
            scheduler,
            conditions=given,
            shape=(4, 8, 8),
            seeds=range(SAMPLES),
            steps=STEPS,
            negatives=[len([t for t in texts(case, s) if t.startswith("negative:")]) for s in range(SAMPLES)]
            if case.negative
            else None,
            positives=[len(one) for one in case.extra] if case.extra else None,
        )
    pipe.scheduler = scheduler
    courses = [alone(pipe, case, sample, sample) for sample in range(SAMPLES)]
    for x, course in zip(done.x, courses, strict=True):
        assert close(x, course.x[0])
    assert done.report.evaluations == [course.evaluations for course in courses]
    assert (done.report.rows, done.report.calls) == (sum(rows), len(rows))


def test_momentum_begins_at_zero_wherever_the_run_begins(pipe: Any) -> None:
    """A run that begins at step 2 of 6, as image-to-image does."""
    from guidestack.guidance.network import CallableNetwork
    from guidestack.guidance.run import GuidedRun
    from guidestack.guidance.step import Run

    case, scheduler = CASES["apg"], flow_scheduler()
    scheduler.set_timesteps(STEPS)
    schedule = gs.samplers.grid(scheduler)
    start = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(SAMPLES)])
    x = start
    run = GuidedRun(gs.Stack(case.stack), Run(tuple(x.shape), steps=STEPS))
    given = {name: value for name, value in conditions(pipe, case).items() if isinstance(value, Tensor)}
    for index in range(2, STEPS):
        point = schedule.points[index]
        network = CallableNetwork(
            {"main": Unet(pipe.unet)}, x, point.level, given, gs.samplers.parameterization(scheduler)
        )
        with torch.no_grad():
            estimate = run.estimate(network, x, index, point.level)
        x = x + (schedule.after(index).sigma - point.level.sigma) * estimate.prediction.native

    def ends(guide: Guide) -> list[Tensor]:
        found = []
        for sample in range(SAMPLES):
            said = {name: value[sample : sample + 1] for name, value in given.items()}

            def network(x: Tensor, t: Any, step: int, name: str, said: dict[str, Tensor] = said) -> Tensor:
                return answer(pipe, x, t, step, name, said, 0)

            found.append(by_hand.run(network, start[sample : sample + 1], scheduler, STEPS, guide, begin=2).x[0])
        return found

    assert all(map(close, x, ends(case.guides[0])))
    assert not any(map(close, x, ends(apg(4, **APG_ALL))))  # without momentum


# --- half precision ------------------------------------------------------------------------------------------------


def test_bfloat16(new_pipe: Any, pipe: Any) -> None:
    """Each rule keeps the type, draws the same numbers, and stays by what it is in float32."""
    from diffusers import DDIMScheduler

    half = new_pipe().to(torch.bfloat16)
    half.scheduler = DDIMScheduler(**SCHEDULERS["DDIMScheduler"])
    scheduled(pipe, "DDIMScheduler")
    for name in ("apg", "perpneg", "cfg++", "icg, tokens", "icg, gaussian", "tsg", "three rules"):
        case = CASES[name]
        seen = gs.guide(half, case.stack)(**arguments(case)).images
        wanted = gs.guide(pipe, case.stack)(**arguments(case)).images
        assert seen.dtype == torch.bfloat16, name
        assert (seen.float() - wanted).norm() < 0.03 * wanted.norm(), name  # of weights rounded to 8 bits
