"""Guided sampling of one sample alone, written from the papers' formulas: what guide() is compared with.

There is none of the package's code here. The network is asked for one prompt at a time, diffusers' scheduler takes the
step, and what a rule does to the answers is computed for this one sample, so that nothing of a batch can get into it.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def key(seed: int, step: int, purpose: str, evaluation: int = 0) -> torch.Generator:
    """The generator that the documentation of `guidestack.guidance.keyed` describes."""
    digest = hashlib.blake2b(repr((seed, step, evaluation, purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) before every step and after the last."""
    name = type(scheduler).__name__
    if name in ("DDIMScheduler", "DDPMScheduler"):
        bars = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
        last = float(scheduler.final_alpha_cumprod) if name == "DDIMScheduler" else 1.0
        return [(math.sqrt(bar), math.sqrt(1 - bar)) for bar in (*bars, last)]
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if name == "EulerDiscreteScheduler":
        return [(1.0, sigma) for sigma in sigmas]
    if name == "FlowMatchEulerDiscreteScheduler":
        return [(1 - sigma, sigma) for sigma in sigmas]
    assert name == "DPMSolverMultistepScheduler"
    return [(1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)) for sigma in sigmas]


@dataclass
class At:
    """One evaluation of one sample: x, shape (1, ...), at a level, and what the network answers there."""

    x: Tensor
    alpha: float
    sigma: float
    flow: bool
    step: int
    time: float
    ask: Callable[[str], Tensor]
    answers: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.answers:
            self.answers[name] = self.ask(name)
        return self.answers[name]

    def D(self, output: Tensor) -> Tensor:
        """The clean sample: (x - sigma eps)/alpha, or x - s v."""
        return self.x - self.sigma * output if self.flow else (self.x - self.sigma * output) / self.alpha

    def eps(self, output: Tensor) -> Tensor:
        """The noise: eps, or x + (1 - s) v."""
        return self.x + self.alpha * output if self.flow else output

    def output(self, D: Tensor) -> Tensor:
        """What the network emits where the clean sample is D."""
        return (self.x - (1.0 if self.flow else self.alpha) * D) / self.sigma


Memory = dict[str, Any]
Guide = Callable[[At, Memory], Tensor]
"""The guided output; ``memory["renoise"]`` is the output to re-noise with, if it is another one."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def unguided(at: At, memory: Memory) -> Tensor:
    return at["positive"]


def cfg(scale: float, against: str = "negative", inner: Guide = unguided) -> Guide:
    """D~ = D_u + s (D_c - D_u); behind other rules D^ + (s - 1)(D_c - D_u)."""

    def guide(at: At, memory: Memory) -> Tensor:
        return inner(at, memory) + (scale - 1) * (at["positive"] - at[against])

    return guide


def apg(
    scale: float, eta: float = 0.0, radius: float = math.inf, beta: float = 0.0, against: str = "negative"
) -> Guide:
    """m <- D_c - D_u + beta m;  d = m min(1, r/|m|);  D~ = D_c + (s - 1)(d_perp + eta d_par), d_par along D_c."""

    def guide(at: At, memory: Memory) -> Tensor:
        D_c, D_u = at.D(at["positive"]), at.D(at[against])
        memory["m"] = D_c - D_u + beta * memory.get("m", 0.0)
        d = memory["m"] * min(1.0, radius / float(memory["m"].norm()))
        unit = D_c / D_c.norm()
        parallel = dot(d, unit) * unit
        return at.output(D_c + (scale - 1) * (d - parallel + eta * parallel))

    return guide


def cfg_zero(scale: float) -> Guide:
    """v~ = a v_u + s (v_c - a v_u), a = <v_c, v_u>/<v_u, v_u>;  v = eps - x0, or (alpha eps - sigma x0)/length."""

    def guide(at: At, memory: Memory) -> Tensor:
        length = math.hypot(at.alpha, at.sigma)

        def v(output: Tensor) -> Tensor:
            return output if at.flow else (at.alpha * output - at.sigma * at.D(output)) / length

        c, u = v(at["positive"]), v(at["negative"])
        a = dot(c, u) / dot(u, u)
        guided = a * u + scale * (c - a * u)
        return guided if at.flow else at.output((at.alpha * at.x / length - at.sigma * guided) / length)

    return guide


def tcfg(scale: float) -> Guide:
    """u' = <eps_u, v_1> v_1, v_1 the first right singular vector of [eps_c; eps_u];  eps~ = u' + s (eps_c - u').

    At pure noise both are x, and of the flow's velocities what is left is half of d and of its part along x.
    """

    def guide(at: At, memory: Memory) -> Tensor:
        if at.alpha == 0:
            d = at["positive"] - at["negative"]
            return at["positive"] + (scale - 1) / 2 * (d + dot(d, at.x) / dot(at.x, at.x) * at.x)
        c, u = at.eps(at["positive"]), at.eps(at["negative"])
        first = torch.linalg.svd(torch.stack([c.flatten(), u.flatten()]).double(), full_matrices=False)[2][0]
        damped = (dot(u.flatten().double(), first) * first).to(u.dtype).reshape(u.shape)
        eps = damped + scale * (c - damped)
        return (eps - at.x) / at.alpha if at.flow else eps

    return guide


def adg(scale: float) -> Guide:
    """cos(g) c + sin(g)/sin(theta) e, g = min((s - 1) theta, 60 degrees), e = c - <c,u>/<u,u> u."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D(at["positive"]).double(), at.D(at["negative"]).double()
        theta = math.acos(float(dot(c, u) / (c.norm() * u.norm())))
        angle = min((scale - 1) * theta, math.pi / 3)
        e = c - dot(c, u) / dot(u, u) * u
        return at.output((math.cos(angle) * c + math.sin(angle) / math.sin(theta) * e).to(at.x.dtype))

    return guide


def perp_neg(
    scale: float,
    negatives: int,
    positives: int = 0,
    weights: Sequence[float] = (1.0, 1.0),
    positive_weights: Sequence[float] = (1.0, 1.0),
) -> Guide:
    """eps_u + s [e_p + sum_j w+_j perp(e_j) - sum_i w_i perp(e_i)], perp(e) = e - <e, e_p>/<e_p, e_p> e_p."""

    def guide(at: At, memory: Memory) -> Tensor:
        origin = at["null"]
        e_p = total = at["positive"] - origin
        for name, weight in [
            *((f"positive:{1 + j}", positive_weights[j]) for j in range(positives)),
            *((f"negative:{i}", -weights[i]) for i in range(negatives)),
        ]:
            e = at[name] - origin
            total = total + weight * (e - dot(e, e_p) / dot(e_p, e_p) * e_p)
        return origin + scale * total

    return guide


def renoised(inner: Guide, query: str) -> Guide:
    """x' = alpha' D~ + sigma' eps_q."""

    def guide(at: At, memory: Memory) -> Tensor:
        memory["renoise"] = at[query]
        return inner(at, memory)

    return guide


def cfg_plus_plus(scale: float, against: str = "negative") -> Guide:
    """D_l = D_u + l (D_c - D_u), re-noised with eps_u."""
    return renoised(cfg(scale, against), against)


def adaptive(inner: Guide, threshold: float, against: str = "negative") -> Guide:
    """Until <e_c, e_u>/(|e_c| |e_u|) >= threshold for the first time, which is where it ends."""

    def guide(at: At, memory: Memory) -> Tensor:
        if memory.get("stopped"):
            return at["positive"]
        c, u = at.eps(at["positive"]), at.eps(at[against])
        memory.setdefault("cosines", []).append(float(dot(c, u) / (c.norm() * u.norm())))
        memory["stopped"] = memory["cosines"][-1] >= threshold
        return at["positive"] if memory["stopped"] else inner(at, memory)

    return guide


def prefix(inner: Guide, steps: int) -> Guide:
    """The first `steps` steps."""

    def guide(at: At, memory: Memory) -> Tensor:
        return inner(at, memory) if at.step < steps else at["positive"]

    return guide


def tsg(
    scale: float, strength: float, power: float = 0.0, window: tuple[float, float] = (0, 1), inner: Guide = unguided
) -> Guide:
    """D~ = D(t~) + w (D(t) - D(t~)) inside the window; the weak answer has the noise's amount in its name."""

    def guide(at: At, memory: Memory) -> Tensor:
        amount = strength * at.time**power
        if amount == 0 or not window[0] <= at.time <= window[1]:
            return inner(at, memory)
        return cfg(scale, f"weak {amount!r}", inner)(at, memory)

    return guide


def rescale(inner: Guide, phi: float) -> Guide:
    """phi g std(c)/std(g) + (1 - phi) g."""

    def guide(at: At, memory: Memory) -> Tensor:
        g = inner(at, memory)
        return phi * g * at["positive"].std() / g.std() + (1 - phi) * g

    return guide


@dataclass
class Course:
    """A run of one sample: where it ended, what it asked for, and what its rule remembers."""

    x: Tensor
    memory: Memory
    asked: list[list[str]] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        return sum(map(len, self.asked))


def run(
    network: Callable[[Tensor, Any, int, str], Tensor],
    x: Tensor,
    scheduler: Any,
    steps: int,
    guide: Guide,
    begin: int = 0,
) -> Course:
    """Sample.

    Args:
        network: ``network(x, timestep, step, name)``, given x as the scheduler scales it for the network.
        x: noise of unit variance, shape (1, ...).
        scheduler: a diffusers scheduler with one evaluation a step; a copy of it is used.
        steps: steps of the schedule.
        guide: the rule.
        begin: the step at which the run begins.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    table = levels(scheduler)
    course = Course(x * float(getattr(scheduler, "init_noise_sigma", 1.0)), {})
    for step, t in enumerate(scheduler.timesteps[begin:], begin):
        x = course.x
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x

        def ask(name: str, seen: Tensor = seen, t: Any = t, step: int = step) -> Tensor:
            with torch.no_grad():
                return network(seen, t, step, name)

        at = At(x, *table[step], type(scheduler).__name__.startswith("FlowMatch"), step, float(t) / 1000, ask)
        output = guide(at, course.memory)
        base = course.memory.pop("renoise", output)
        course.x = scheduler.step(base, t, x, return_dict=False)[0]
        course.x = course.x + table[step + 1][0] * (at.D(output) - at.D(base))
        course.asked.append(sorted({"positive", *at.answers}))
    return course
