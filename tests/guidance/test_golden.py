"""Ten-step runs of every rule against a second computation, written from the papers' formulas.

The mixture's posterior mean, the sampler, the conversions and the rules are computed here once more, in float64. Above
the line "the package's run" there is none of the package's code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.keyed import Keys
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, V
from guidestack.guidance.report import Report
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Run
from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser

# --- the data: three samples of shape (2, 3, 4), four Gaussians, different classes for every sample ----------------

BATCH, SHAPE, STEPS = 3, (2, 3, 4), 10
NUMBERS = torch.arange(4 * math.prod(SHAPE), dtype=torch.float64)
MEANS = 0.96 * (NUMBERS**2 * 0.37).cos().reshape(4, *SHAPE)
STDS = torch.tensor([1.1, 1.4, 1.3, 1.9], dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
START = (NUMBERS[: BATCH * math.prod(SHAPE)] * 2.9).sin().reshape(BATCH, *SHAPE) * 1.3
# "null" leaves the prompt's Gaussians out: else the two agree in the end, and Perp-Neg projects along what rounding
# left of their difference. "vague" has them in, so that Adaptive Guidance comes to its end.
CLASSES: dict[str, tuple[tuple[int, ...], ...]] = {
    "null": ((1, 2, 3), (0, 2), (0, 1, 3)),
    "vague": ((0, 1, 2, 3),) * 3,
    "negative": ((1, 2), (0,), (0, 1)),
    "negative:0": ((1,), (2,), (0, 1)),
    "negative:1": ((3,), (0,), (1,)),
    "positive": ((0,), (1, 3), (2,)),
    "positive:1": ((2, 3), (2,), (3,)),
}


@dataclass(frozen=True)
class Family:
    """A path with what its network emits: (alpha, sigma) before each of ten steps and after the last."""

    path: str
    emits: str
    levels: tuple[tuple[float, float], ...]


ALPHA_BARS = (0.015, 0.03, 0.08, 0.17, 0.3, 0.45, 0.6, 0.75, 0.88, 0.97, 1.0)
VP = tuple((math.sqrt(bar), math.sqrt(1 - bar)) for bar in ALPHA_BARS)
VE = tuple((1.0, sigma) for sigma in (8.0, 6.5, 5.0, 3.0, 2.0, 1.2, 0.8, 0.5, 0.3, 0.1, 0.0))
STRAIGHT = tuple((1 - s, s) for s in (0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.05, 0.0))
FAMILIES = {
    "vp-epsilon": Family("diffusion", "epsilon", VP),
    "vp-v": Family("diffusion", "v", VP),
    "ve-x0": Family("diffusion", "x0", VE),
    "flow": Family("flow", "flow", STRAIGHT),
}
PLAIN = FAMILIES["vp-epsilon"]

# --- the second computation: `wrong` names a mistake to make, each seen or likely in some implementation -----------


WIDER = 1.4
"""The weak network believes in Gaussians so many times as wide."""


def posterior_mean(x: Tensor, alpha: float, sigma: float, classes: Sequence[int], wider: float = 1.0) -> Tensor:
    """E[x0 | x] of one sample, x = alpha x0 + sigma eps, x0 of one of the Gaussians in `classes`."""
    log_weights, means = [], []
    for k in classes:
        # p(x|k) = N(alpha mu, alpha^2 s^2 + sigma^2);  E[x0|x,k]: precisions 1/s^2 and alpha^2/sigma^2 add up.
        std = wider * STDS[k]
        variance = alpha**2 * std**2 + sigma**2
        square = ((x - alpha * MEANS[k]) ** 2).sum()
        log_weights.append(WEIGHTS[k].log() - square / (2 * variance) - x.numel() / 2 * variance.log())
        precise, seen = 1 / std**2, alpha**2 / sigma**2
        means.append((precise * MEANS[k] + seen * x / alpha) / (precise + seen))
    unnormalized = (torch.stack(log_weights) - max(log_weights)).exp()
    weights = unnormalized / unnormalized.sum()
    return torch.stack([p * mean for p, mean in zip(weights, means, strict=True)]).sum(0)


@dataclass
class At:
    """One evaluation: x at a level, and what the exact network answers there."""

    x: Tensor
    alpha: float
    sigma: float
    emits: str
    answers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def k(self) -> float:
        return self.sigma / self.alpha

    def D(self, name: str) -> Tensor:
        if name not in self.answers:
            condition, _, network = name.partition("@")
            rows, wider = zip(self.x, CLASSES[condition], strict=True), WIDER if network else 1.0
            means = [posterior_mean(one, self.alpha, self.sigma, classes, wider) for one, classes in rows]
            self.answers[name] = torch.stack(means)
        return self.answers[name]

    def eps(self, D: Tensor) -> Tensor:
        return (self.x - self.alpha * D) / self.sigma

    def velocity(self, D: Tensor) -> Tensor:
        """eps - x0 for flow, else v = (alpha eps - sigma x0)/|(alpha, sigma)|, the length being 1 in VP."""
        eps = self.eps(D)
        length = math.hypot(self.alpha, self.sigma)
        return eps - D if self.emits == "flow" else (self.alpha * eps - self.sigma * D) / length

    def clean_of_velocity(self, v: Tensor) -> Tensor:
        """D of the flow's velocity: x - s v; of v: alpha x - sigma v, x and its level divided by |(alpha, sigma)|."""
        if self.emits == "flow":
            return self.x - self.sigma * v
        length = math.hypot(self.alpha, self.sigma)
        return (self.alpha * self.x / length - self.sigma * v) / length

    def output(self, D: Tensor) -> Tensor:
        """What the network emits where the clean sample is D."""
        return {"epsilon": self.eps, "x0": lambda D: D, "v": self.velocity, "flow": self.velocity}[self.emits](D)

    def clean(self, output: Tensor) -> Tensor:
        """D of eps: (x - sigma eps)/alpha; of v: alpha x - sigma v; of flow: x - s v."""
        if self.emits == "epsilon":
            return (self.x - self.sigma * output) / self.alpha
        if self.emits == "x0":
            return output
        return (self.alpha if self.emits == "v" else 1.0) * self.x - self.sigma * output


@dataclass
class Memory:
    """What one run remembers, and notes for the tests."""

    step: int = 0
    m: Tensor | float = 0.0
    renoise: Tensor | None = None
    stopped: Tensor = field(default_factory=lambda: torch.zeros(BATCH, dtype=torch.bool))
    guided: list[list[bool]] = field(default_factory=list)
    paid: Tensor = field(default_factory=lambda: torch.zeros(BATCH, dtype=torch.int64))


Guide = Callable[[At, Memory], Tensor]
"""The guided D at one evaluation."""


@dataclass
class Course:
    """A run: the guided D at every step, x after it, and what the run remembered."""

    denoised: list[Tensor]
    samples: list[Tensor]
    memory: Memory


def golden_run(guide: Guide, family: Family) -> Course:
    """DDIM: x' = alpha' D + sigma' eps, eps that of D unless the rule sets another one."""
    x = family.levels[0][0] * MEANS[:BATCH] + family.levels[0][1] * START
    course = Course([], [], Memory())
    for (alpha, sigma), (alpha_next, sigma_next) in zip(family.levels, family.levels[1:], strict=False):
        at = At(x, alpha, sigma, family.emits)
        D = guide(at, course.memory)
        eps = at.eps(D) if course.memory.renoise is None else course.memory.renoise
        course.memory.renoise = None
        x = alpha_next * D + sigma_next * eps
        course.denoised.append(D)
        course.samples.append(x)
    return course


def prompt(at: At, memory: Memory) -> Tensor:
    """Without guidance."""
    return at.D("positive")


OWN, WHOLE = (1, 2, 3), (0, 1, 2, 3)  # all axes of a sample; with the batch's, which is wrong


def dot(a: Tensor, b: Tensor, axes: tuple[int, ...] = OWN) -> Tensor:
    return (a * b).sum(dim=axes, keepdim=True)


def norm(a: Tensor, axes: tuple[int, ...] = OWN) -> Tensor:
    return dot(a, a, axes).sqrt()


def cfg(scale: float, against: str = "negative", wrong: str = "") -> Guide:
    """D~ = D_u + s (D_c - D_u)."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D(against)
        return (c if wrong == "base" else u) + scale * (c - u)

    return guide


def added(first: Callable[..., Guide], second: Callable[..., Guide], wrong: str = "") -> Guide:
    """Both differences from D_c."""

    def guide(at: At, memory: Memory) -> Tensor:
        return first()(at, memory) + second()(at, memory) - at.D("positive")

    return guide


def rescale(inner: Guide, phi: float, wrong: str = "") -> Guide:
    """g~ = g std(c)/std(g);  out = phi g~ + (1 - phi) g;  on what the network emits, std of each sample."""

    def guide(at: At, memory: Memory) -> Tensor:
        g, c = at.output(inner(at, memory)), at.output(at.D("positive"))
        ratio = torch.stack([one.std() / other.std() for one, other in zip(c, g, strict=True)]).reshape(BATCH, 1, 1, 1)
        if wrong == "whole batch":
            ratio = c.std() / g.std()
        share = 1 - phi if wrong == "phi" else phi
        return at.clean(share * g * ratio + (1 - share) * g)

    return guide


def during(inner: Guide, low: float, high: float, wrong: str = "") -> Guide:
    """w(sigma) = w if low < sigma/alpha <= high, else 1; outside, the rule does not run."""

    def guide(at: At, memory: Memory) -> Tensor:
        inside = low < at.k <= high
        if wrong == "closed below":
            inside = low <= at.k <= high
        if wrong == "open above":
            inside = low < at.k < high
        if wrong == "in sigma":
            inside = low < at.sigma <= high
        if inside:
            return inner(at, memory)
        if wrong == "remembers outside":
            inner(at, memory)
        return at.D("positive")

    return guide


def perp_neg(
    scale: float,
    weights: Sequence[float],
    positive_weights: Sequence[float],
    negatives: Sequence[int],
    positives: Sequence[int],
    wrong: str = "",
) -> Guide:
    """eps~ = eps_u + s [e_p + sum_j w+_j perp(e_j; e_p) - sum_i w_i perp(e_i; e_p)], for the prompts a sample has."""

    def guide(at: At, memory: Memory) -> Tensor:
        origin = at.eps(at.D("negative:0" if wrong == "origin is the negative" else "null"))
        e_p = at.eps(at.D("positive")) - origin
        axes = WHOLE if wrong == "whole batch" else OWN

        def perp(e: Tensor) -> Tensor:  # e - <e, e_p>/<e_p, e_p> e_p
            return e if wrong == "composition" else e - dot(e, e_p, axes) / dot(e_p, e_p, axes) * e_p

        total = e_p
        for kind, first, sign, strengths, counts in (
            ("positive", 1, 1, positive_weights, positives),
            ("negative", 0, -1, weights, negatives),
        ):
            for index, strength in enumerate(strengths):
                share = [sign * strength * (index < count or wrong == "counts") for count in counts]
                weight = torch.tensor(share, dtype=torch.float64).reshape(-1, 1, 1, 1)
                total = total + weight * perp(at.eps(at.D(f"{kind}:{index + first}")) - origin)
        eps = origin + scale * total
        return (at.x - at.sigma * eps) / at.alpha

    return guide


def apg(
    scale: float,
    eta: float = 0.0,
    radius: float = math.inf,
    beta: float = 0.0,
    axes: tuple[int, ...] = OWN,
    against: str = "negative",
    wrong: str = "",
) -> Guide:
    """m <- D_c - D_u + beta m;  d = m min(1, r/|m|);  D~ = D_c + (s - 1)(d_perp + eta d_par), d_par along D_c."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D(against)
        if wrong == "in noise":
            c, u = at.eps(c), at.eps(u)
        m = c - u + beta * memory.m
        if wrong == "average":
            m = (1 - beta) * (c - u) + beta * memory.m
        memory.m = m
        clip = (radius / norm(m, WHOLE if wrong == "whole batch's norm" else axes)).clamp(max=1)
        if wrong == "no clip":
            clip = torch.ones_like(clip)
        if wrong == "always clip":
            clip = radius / norm(m, axes)
        d = m * clip
        if wrong == "clipped memory":
            memory.m = d
        projected = {"whole batch": WHOLE, "norm only": OWN}.get(wrong, axes)
        along = u if wrong == "along u" else c
        direction = along / norm(along, projected)
        d_par = dot(d, direction, projected) * direction
        d_perp = d - d_par
        if wrong == "clip last":
            d_par = dot(m, direction) * direction
            d_perp = (m - d_par) * (radius / norm(m - d_par)).clamp(max=1)
        update = d_perp + eta * d_par
        if wrong == "base":
            return u + scale * update
        if wrong == "scale":
            return c + scale * update
        guided = c + (scale - 1) * update
        return (at.x - at.sigma * guided) / at.alpha if wrong == "in noise" else guided

    return guide


def cfg_plus_plus(scale: float, against: str = "negative", wrong: str = "") -> Guide:
    """D_l = D_u + l (D_c - D_u);  x' = alpha' D_l + sigma' eps_u."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D(against)
        if wrong == "conditional sampler":
            return c
        guided = u + scale * (c - u)
        memory.renoise = at.eps({"renoise with c": c, "renoise with l": guided}.get(wrong, u))
        return guided

    return guide


def cfg_zero(scale: float, zero_steps: int = 0, against: str = "negative", wrong: str = "") -> Guide:
    """v~ = a v_u + s (v_c - a v_u), a = <v_c, v_u>/<v_u, v_u>; v~ = 0 in the first steps."""

    def guide(at: At, memory: Memory) -> Tensor:
        memory.step += 1
        if memory.step <= zero_steps + (wrong == "one step more"):
            return at.clean_of_velocity(torch.zeros_like(at.x))
        read = at.eps if wrong == "in noise" else at.velocity
        c, u = read(at.D("positive")), read(at.D(against))
        axes = WHOLE if wrong == "whole batch" else OWN
        a = dot(c, u, axes) / dot(u, u, axes)
        v = a * u + scale * (c - (1 if wrong == "difference" else a) * u)
        return (at.x - at.sigma * v) / at.alpha if wrong == "in noise" else at.clean_of_velocity(v)

    return guide


def adaptive(
    inner: Guide,
    threshold: float,
    space: str = "noise",
    crossing: str = "conditional",
    against: str = "negative",
    asks: Callable[[At], bool] = lambda at: True,
    wrong: str = "",
) -> Guide:
    """gamma = <e_c, e_u>/(|e_c| |e_u|);  D~ guided while gamma < threshold, D_c from the first crossing on.

    Where the rule inside asks for nothing there is no gamma, and so no crossing.
    """

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D(against)
        before, out = memory.stopped, inner(at, memory)
        renoise = memory.renoise
        a, b = (at.eps(c), at.eps(u)) if space == "noise" or wrong == "in noise" else (c, u)
        if space == "velocity":
            a, b = at.velocity(c), at.velocity(u)
        axes = WHOLE if wrong == "whole batch" else OWN
        gamma = (dot(a, b, axes) / (norm(a, axes) * norm(b, axes))).flatten().expand(BATCH)
        if wrong == "resumes":
            before = torch.zeros_like(before)
        measured = asks(at) or wrong == "measures outside"
        after = before | (gamma >= threshold) if measured else before
        memory.stopped = after
        memory.paid = memory.paid + (~before if asks(at) else 0)
        at_once = (crossing == "conditional") != (wrong == "crossing")
        guided = ~(after if at_once else before)
        memory.guided.append(guided.tolist())
        if renoise is not None:
            memory.renoise = torch.where(guided.reshape(-1, 1, 1, 1), renoise, at.eps(c))
        return torch.where(guided.reshape(-1, 1, 1, 1), out, c)

    return guide


def edited(
    scale: float, wider: float = 1.0, noisier: Sequence[float] = (1.0,) * BATCH, inner: Guide = prompt, wrong: str = ""
) -> Guide:
    """D~ = D + s (D_c - D_weak); the weak network has wider Gaussians, or takes x for `noisier`, sample by sample."""

    def guide(at: At, memory: Memory) -> Tensor:
        weak = torch.stack(
            [
                posterior_mean(x / at.alpha, 1.0, at.k * noise, classes, wider)
                for x, classes, noise in zip(at.x, CLASSES["positive"], noisier, strict=True)
            ]
        )
        c = at.D("positive")
        base = weak if wrong == "base" else inner(at, memory)
        return base + (scale - 1 if wrong == "counts from 1" else scale) * (c - weak)

    return guide


def in_a_window(outside: Guide, inside: Guide) -> Guide:
    return lambda at, memory: (inside if in_window(at) else outside)(at, memory)


def drawn(scale: float, purpose: str, amount: float, inner: Guide = prompt, wrong: str = "") -> Guide:
    """The weak network takes x for exp(amount n) times as noisy, n of each sample's own generator (guidance.keyed)."""
    step = [-1]

    def guide(at: At, memory: Memory) -> Tensor:
        step[0] += wrong != "one draw" or step[0] < 0
        noisier = []
        for seed in range(BATCH):
            key = repr((0 if wrong == "one for all" else seed, step[0], 0, purpose))
            number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
            generator = torch.Generator().manual_seed(number)
            noisier.append(math.exp(amount * float(torch.randn((), generator=generator))))
        return edited(scale, 1.0, noisier, inner)(at, memory)

    return guide


# --- the package's run --------------------------------------------------------------------------------------------

EMITS: dict[str, Parameterization] = {"epsilon": EPSILON, "x0": X0, "v": V, "flow": FLOW}


def package_run(
    rule: gs.Rule, family: Family, negatives: tuple[int, ...] = (), positives: tuple[int, ...] = ()
) -> tuple[list[Tensor], list[Tensor], Report]:
    """The guided D at every step, x after it, and the report."""
    model, weak = (
        MixtureDenoiser(GaussianMixture(MEANS, STDS, WEIGHTS), EMITS[family.emits], wider) for wider in (1.0, WIDER)
    )
    conditions = {name: torch.zeros(BATCH, 4, dtype=torch.float64) for name in CLASSES}
    for name, rows in CLASSES.items():
        for sample, classes in enumerate(rows):
            conditions[name][sample, list(classes)] = WEIGHTS[list(classes)]
    run = GuidedRun(
        gs.Stack(rule),
        Run((BATCH, *SHAPE), torch.float64, steps=STEPS, seeds=(0, 1, 2), negatives=negatives, positives=positives),
    )
    x = family.levels[0][0] * MEANS[:BATCH] + family.levels[0][1] * START
    denoised, samples = [], []
    for index in range(STEPS):
        level = Level(*family.levels[index], path=family.path)  # type: ignore[arg-type]
        keys = Keys((0, 1, 2), index)
        models = {"main": model, "weak": weak}
        network = CallableNetwork(models, x, level, conditions, EMITS[family.emits], keys=keys)
        estimate = run.estimate(network, x, index, level)
        noise = (estimate.prediction if estimate.renoise is None else estimate.renoise).noise
        alpha_next, sigma_next = family.levels[index + 1]
        x = alpha_next * estimate.prediction.denoised + sigma_next * noise
        denoised.append(estimate.prediction.denoised)
        samples.append(x)
    return denoised, samples, run.finish()


def apart(seen: tuple[list[Tensor], list[Tensor], Any], wanted: Course) -> float:
    """The largest difference between two runs."""
    pairs = [*zip(seen[0], wanted.denoised, strict=True), *zip(seen[1], wanted.samples, strict=True)]
    return float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())


@dataclass(frozen=True)
class Case:
    """A rule, and what makes its formula; `make(wrong=...)` makes it with something wrong."""

    rule: gs.Rule
    make: Callable[..., Guide]
    negatives: tuple[int, ...] = ()
    positives: tuple[int, ...] = ()


WINDOW = (0.3, 5.0)  # two of the levels in VE


def in_window(at: At) -> bool:
    return WINDOW[0] < at.k <= WINDOW[1]


def perp(scale: float, weights: Any, positive_weights: Any, negatives: Any, positives: Any) -> Callable[..., Guide]:
    return partial(perp_neg, scale, weights, positive_weights, negatives, positives)


FEW, MANY = {"negatives": (2, 1, 0), "positives": (0, 1, 0)}, {"negatives": (2, 2, 2), "positives": (1, 1, 1)}
LIMITED = {"radius": 2.5, "momentum": -0.5}
SPARING = gs.During(gs.APG(4, eta=0.3, against="vague", radius=1.5, momentum=-0.5), sigma=WINDOW)
SPARING_GUIDE = during(apg(4, 0.3, 1.5, -0.5, against="vague"), *WINDOW)
VAGUE = gs.CFG(3, against="vague")
VAGUE_GUIDE = cfg(3, "vague")
CASES = {
    "cfg": Case(gs.CFG(3.0), partial(cfg, 3)),
    "autoguidance": Case(gs.Autoguidance(2.5), partial(cfg, 2.5, "positive@weak")),
    "autoguidance, cfg": Case(
        gs.CFG(3.0) | gs.Autoguidance(2), partial(added, partial(cfg, 3), partial(cfg, 2, "positive@weak"))
    ),
    "rescaled": Case(gs.CFG(3.0) | gs.Rescale(0.7), partial(rescale, cfg(3), 0.7)),
    "during": Case(gs.During(gs.CFG(3.0), sigma=WINDOW), partial(during, cfg(3), *WINDOW)),
    "perpneg": Case(gs.PerpNeg(4), perp(4, (1, 1), (1,), (2, 2, 2), (1, 1, 1)), **MANY),
    "perpneg, few": Case(gs.PerpNeg(4), perp(4, (1, 1), (1,), (2, 1, 0), (0, 1, 0)), **FEW),
    "perpneg, weights": Case(
        gs.PerpNeg(4, weights=(1.5, 0.5), positive_weights=(0.7,)),
        perp(4, (1.5, 0.5), (0.7,), (2, 1, 0), (0, 1, 0)),
        **FEW,
    ),
    "perpneg, one weight": Case(
        gs.PerpNeg(4, weights=0.6, positive_weights=0.4), perp(4, (0.6, 0.6), (0.4,), (2, 2, 2), (1, 1, 1)), **MANY
    ),
    "perpneg, one negative": Case(gs.PerpNeg(4, weights=1.5), perp(4, (1.5,), (), (1, 1, 1), (0, 0, 0))),
    "apg": Case(gs.APG(4), partial(apg, 4)),
    "apg, all": Case(gs.APG(4, **LIMITED), partial(apg, 4, 0, 2.5, -0.5)),
    "apg, eta": Case(gs.APG(4, eta=0.3, **LIMITED), partial(apg, 4, 0.3, 2.5, -0.5)),
    "apg, null": Case(gs.APG(4, eta=0.3, **LIMITED, against="null"), partial(apg, 4, 0.3, 2.5, -0.5, against="null")),
    "apg, unit": Case(
        gs.APG(4, eta=0.3, radius=0.5, momentum=-0.5, radius_unit="per_sqrt_dim"),
        partial(apg, 4, 0.3, 0.5 * math.sqrt(24), -0.5),
    ),
    "apg, axes": Case(gs.APG(4, radius=0.9, momentum=-0.5, axes=(2,)), partial(apg, 4, 0, 0.9, -0.5, axes=(2,))),
    "apg, axes and unit": Case(
        gs.APG(4, radius=0.5, radius_unit="per_sqrt_dim", axes=(1, 3)),
        partial(apg, 4, 0, 0.5 * math.sqrt(8), axes=(1, 3)),
    ),
    "apg during": Case(
        gs.During(gs.APG(4, eta=0.3, **LIMITED), sigma=WINDOW), partial(during, apg(4, 0.3, 2.5, -0.5), *WINDOW)
    ),
    "cfg++": Case(gs.CFGPlusPlus(0.6), partial(cfg_plus_plus, 0.6)),
    "cfg++, 1": Case(gs.CFGPlusPlus(1.0, against="null"), partial(cfg_plus_plus, 1, "null")),
    "cfg++, 0": Case(gs.CFGPlusPlus(0.0), partial(cfg_plus_plus, 0)),
    "cfg++ during": Case(gs.During(gs.CFGPlusPlus(0.6), sigma=WINDOW), partial(during, cfg_plus_plus(0.6), *WINDOW)),
    "cfg zero": Case(gs.CFGZero(4), partial(cfg_zero, 4)),
    "cfg zero, zeroed": Case(gs.CFGZero(4, zero_steps=2, against="null"), partial(cfg_zero, 4, 2, "null")),
    "adaptive": Case(gs.AdaptiveGuidance(VAGUE, 0.99975), partial(adaptive, VAGUE_GUIDE, 0.99975, against="vague")),
    "adaptive, guided": Case(
        gs.AdaptiveGuidance(VAGUE, 0.99975, crossing="guided"),
        partial(adaptive, VAGUE_GUIDE, 0.99975, crossing="guided", against="vague"),
    ),
    "adaptive, early": Case(gs.AdaptiveGuidance(VAGUE, 0.999), partial(adaptive, VAGUE_GUIDE, 0.999, against="vague")),
    "adaptive, denoised": Case(
        gs.AdaptiveGuidance(VAGUE, 0.9873, space="denoised"),
        partial(adaptive, VAGUE_GUIDE, 0.9873, "denoised", against="vague"),
    ),
    "adaptive, velocity": Case(
        gs.AdaptiveGuidance(VAGUE, 0.98, space="velocity", crossing="guided"),
        partial(adaptive, VAGUE_GUIDE, 0.98, "velocity", "guided", against="vague"),
    ),
    "adaptive, never": Case(gs.AdaptiveGuidance(gs.CFG(3), 1.5), partial(adaptive, cfg(3), 1.5)),
    "adaptive during apg": Case(
        gs.AdaptiveGuidance(SPARING, 0.999), partial(adaptive, SPARING_GUIDE, 0.999, against="vague", asks=in_window)
    ),
    "adaptive, rescaled": Case(
        gs.AdaptiveGuidance(VAGUE, 0.99975) | gs.Rescale(0.7),
        partial(rescale, adaptive(VAGUE_GUIDE, 0.99975, against="vague"), 0.7),
    ),
    "adaptive cfg++": Case(
        gs.AdaptiveGuidance(gs.CFGPlusPlus(0.8, against="vague"), 0.99975),
        partial(adaptive, cfg_plus_plus(0.8, "vague"), 0.99975, against="vague"),
    ),
}


CASES |= {
    "pag": Case(gs.PAG(2), partial(edited, 2, 2)),
    "cfg, pag": Case(gs.CFG(3) | gs.PAG(2), partial(edited, 2, 2, inner=cfg(3))),
    "seg": Case(gs.SEG(2), partial(edited, 2, 2)),
    "seg, blur": Case(gs.SEG(2, sigma=0.6), partial(edited, 2, 1 + 0.6 / 1.6)),
    "slg during": Case(
        gs.CFG(3) | gs.During(gs.SLG(2.5, "7,8"), sigma=WINDOW),
        lambda wrong="": in_a_window(cfg(3), edited(2.5, 2, inner=cfg(3), wrong=wrong)),
    ),
    "sg": Case(gs.SelfGuidance(3, shift=4), partial(edited, 3, noisier=(math.exp(0.8),) * BATCH)),
    "tpg": Case(gs.TPG(0.5), partial(drawn, 0.5, "shuffle positive", 3.0)),
    "s2": Case(gs.CFG(3) | gs.S2(2, share=0.2), partial(drawn, 2, "drop positive", 2.2, cfg(3))),
}


@cache
def seen(name: str, family: str = "vp-epsilon") -> tuple[list[Tensor], list[Tensor], Report]:
    case = CASES[name]
    return package_run(case.rule, FAMILIES[family], case.negatives, case.positives)


EXACT, CLEARLY = 1e-10, 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_agree_with_the_formula(name: str, family: str) -> None:
    assert apart(seen(name, family), golden_run(CASES[name].make(), FAMILIES[family])) < EXACT


WRONG = [
    ("cfg", "base"),
    ("autoguidance", "base"),
    ("rescaled", "whole batch"),
    ("rescaled", "phi"),
    ("during", "closed below"),
    ("during", "open above"),
    ("during", "in sigma"),
    ("perpneg", "composition"),
    ("perpneg", "whole batch"),
    ("perpneg", "origin is the negative"),
    ("perpneg, few", "counts"),
    ("apg, all", "base"),
    ("apg, all", "scale"),
    ("apg, all", "in noise"),
    ("apg, all", "average"),
    ("apg, all", "no clip"),
    ("apg, all", "always clip"),
    ("apg, all", "clipped memory"),
    ("apg, all", "clip last"),
    ("apg, all", "whole batch"),
    ("apg, all", "whole batch's norm"),
    ("apg, all", "along u"),
    ("apg, eta", "base"),
    ("apg, axes", "norm only"),
    ("apg, axes and unit", "norm only"),
    ("apg during", "remembers outside"),
    ("cfg++", "renoise with c"),
    ("cfg++", "renoise with l"),
    ("cfg++, 1", "conditional sampler"),
    ("cfg zero", "in noise"),
    ("cfg zero", "whole batch"),
    ("cfg zero", "difference"),
    ("cfg zero, zeroed", "one step more"),
    ("adaptive", "crossing"),
    ("adaptive, early", "resumes"),
    ("adaptive, early", "whole batch"),
    ("adaptive, denoised", "in noise"),
    ("adaptive during apg", "measures outside"),
    ("pag", "base"),
    ("pag", "counts from 1"),
    ("cfg, pag", "base"),
    ("slg during", "counts from 1"),
    ("tpg", "one draw"),
    ("s2", "one for all"),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_formula_does_not_agree(name: str, wrong: str) -> None:
    # The levels of this family lie on both ends of the window.
    family = "ve-x0" if wrong in ("closed below", "open above") else "vp-epsilon"
    assert apart(seen(name, family), golden_run(CASES[name].make(wrong=wrong), FAMILIES[family])) > CLEARLY


@pytest.mark.parametrize(
    ("name", "guided"),
    [
        ("adaptive", [5, 4, 3]),
        ("adaptive, guided", [6, 5, 4]),  # the crossing step too
        ("adaptive, early", [4, 0, 3]),
        ("adaptive, never", [10, 10, 10]),
    ],
)
def test_each_sample_stops_by_itself_and_is_not_evaluated_any_more(name: str, guided: list[int]) -> None:
    memory = golden_run(CASES[name].make(), PLAIN).memory
    assert torch.tensor(memory.guided).sum(0).tolist() == guided
    evaluations = seen(name)[2].evaluations
    assert evaluations == [STEPS + int(paid) for paid in memory.paid]
    crossing_paid = name in ("adaptive", "adaptive, early")
    assert evaluations == [STEPS + steps + crossing_paid for steps in guided]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["adaptive, denoised", "adaptive during apg", "adaptive cfg++"])
def test_adaptive_guidance_pays_until_the_crossing(name: str, family: str) -> None:
    memory = golden_run(CASES[name].make(), FAMILIES[family]).memory
    assert seen(name, family)[2].evaluations == [STEPS + int(paid) for paid in memory.paid]


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("cfg", [20, 20, 20]),
        ("during", [17, 17, 17]),  # seven of the levels lie in the window
        ("perpneg", [50, 50, 50]),
        ("perpneg, few", [40, 40, 20]),
        ("perpneg, one negative", [30, 30, 30]),
        ("apg, all", [20, 20, 20]),
        ("cfg++, 1", [20, 20, 20]),
        ("cfg++, 0", [20, 20, 20]),
    ],
)
def test_each_sample_costs_what_the_formula_reads(name: str, evaluations: list[int]) -> None:
    assert seen(name)[2].evaluations == evaluations
