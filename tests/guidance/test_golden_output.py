"""Ten-step runs of the rules of the output against a second computation, written from the papers' formulas.

The mixture, the sampler and the conversions are those of `test_golden`. Above the line "the package's runs" there is
none of the package's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs

from .test_golden import (
    CLEARLY,
    EXACT,
    FAMILIES,
    OWN,
    STEPS,
    WHOLE,
    At,
    Case,
    Guide,
    Memory,
    apart,
    apg,
    cfg,
    dot,
    golden_run,
    norm,
    package_run,
)


def tcfg(scale: float, wrong: str = "") -> Guide:
    """[eps_c; eps_u] = U S V^T for each sample; u' = <eps_u, v_1> v_1; eps~ = u' + s (eps_c - u')."""

    def guide(at: At, memory: Memory) -> Tensor:
        read = (lambda D: D) if wrong == "denoised" else at.eps
        c, u = read(at.D("positive")), read(at.D("negative"))
        out = []
        for one, other in zip(c, u, strict=True):
            _, _, rows = torch.linalg.svd(torch.stack([one.flatten(), other.flatten()]), full_matrices=False)
            kept = rows[1 if wrong == "second vector" else 0]
            damped = ((other.flatten() @ kept) * kept).reshape(one.shape)
            out.append((other if wrong == "base" else damped) + scale * (one - damped))
        eps = torch.stack(out)
        return eps if wrong == "denoised" else (at.x - at.sigma * eps) / at.alpha

    return guide


def halved_and_doubled(size: int) -> Tensor:
    """The low band of a pyramid along one axis, as a matrix: blur, halve, double, blur."""

    def reflected(i: int) -> int:
        if size < 3:
            return min(max(i, 0), size - 1)
        i = abs(i)
        return i if i < size else 2 * (size - 1) - i

    def resized(here: int, there: int) -> Tensor:  # linear, in the middles of cells
        matrix = torch.zeros(there, here, dtype=torch.float64)
        for i in range(there):
            place = min(max((i + 0.5) * here / there - 0.5, 0.0), here - 1.0)
            below = int(place)
            matrix[i, below] += 1 - (place - below)
            matrix[i, min(below + 1, here - 1)] += place - below
        return matrix

    blur = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for away, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            blur[i, reflected(i + away)] += weight / 16
    half = (size + 1) // 2
    return blur @ resized(half, size) @ resized(size, half) @ blur


def pyramid(d: Tensor) -> Tensor:
    return halved_and_doubled(d.shape[-2]) @ d @ halved_and_doubled(d.shape[-1]).T


def disc(d: Tensor, cutoff: float, square: bool = False) -> Tensor:
    """The sum over all frequencies within the radius, wave by wave."""
    height, width = d.shape[-2:]
    radius, out = cutoff * min(height, width) / 2, torch.zeros_like(d)
    down, right = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    for k in range(height):
        for m in range(width):
            ky, kx = (k if 2 * k < height else k - height), (m if 2 * m < width else m - width)
            if (max(abs(kx), abs(ky)) <= radius) if square else (kx**2 + ky**2 <= radius**2):
                wave = torch.exp(2j * math.pi * (k * down / height + m * right / width))
                share = (d * wave.conj()).sum((-2, -1), keepdim=True) / (height * width)
                out += (share * wave).real
    return out


def banded(low: float, high: float, band: Callable[[Tensor], Tensor], wrong: str = "") -> Guide:
    """D~ = D_u + low L(D_c - D_u) + high (1 - L)(D_c - D_u)."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D("negative")
        lows = band(c - u)
        if wrong == "swapped":
            return u + high * lows + low * (c - u - lows)
        return (c if wrong == "base" else u) + low * lows + high * (c - u - lows)

    return guide


def mambo(scale: float, alpha: float, wrong: str = "") -> Guide:
    """s' = 1 + (s - 1) exp(-alpha |v_c - v_u|/|v_u|);  v~ = v_u + s' (v_c - v_u)."""

    def guide(at: At, memory: Memory) -> Tensor:
        read = at.eps if wrong == "in noise" else at.velocity
        c, u = read(at.D("positive")), read(at.D("negative"))
        axes = WHOLE if wrong == "whole batch" else OWN
        fall = (-alpha * norm(c - u, axes) / norm(c if wrong == "along c" else u, axes)).exp()
        factor = scale * fall if wrong == "scale" else 1 + (scale - 1) * fall
        return at.D("negative") + factor * (at.D("positive") - at.D("negative"))

    return guide


def smc(scale: float, decay: float, gain: float, unit: bool = False, wrong: str = "") -> Guide:
    """z = (e - e^_prev) + l e^_prev;  e^ = e - k sign(z) (or z/|z|);  v~ = v_u + s e^;  e^_prev = e at the start."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.velocity(at.D("positive")), at.velocity(at.D("negative"))
        e = c - u
        before = e if memory.step == 0 else memory.m
        z = (e - before) + decay * before
        corrected = e - gain * (z / norm(z, WHOLE if wrong == "whole batch" else OWN) if unit else z.sign())
        memory.m, memory.step = (e if wrong == "remembers e" else corrected), memory.step + 1
        return at.clean_of_velocity(u + scale * corrected)

    return guide


def momentum(inner: Guide, amount: float, decay: float, wrong: str = "") -> Guide:
    """v~ = v + m (v - a);  a <- b a + (1 - b) v;  a = v at the start. v is the velocity of a flow, else D."""

    def guide(at: At, memory: Memory) -> Tensor:
        D = inner(at, memory)
        velocities = (at.emits == "flow") != (wrong == "other form")
        v = at.velocity(D) if velocities else D
        average = v if memory.step == 0 else memory.m
        out = v + amount * (v - average)
        memory.m = decay * average + (1 - decay) * (out if wrong == "averages the result" else v)
        memory.step += 1
        return at.clean_of_velocity(out) if velocities else out

    return guide


def epsilon_scaling(inner: Guide, divisor: float, wrong: str = "") -> Guide:
    """eps~ = eps/k."""

    def guide(at: At, memory: Memory) -> Tensor:
        eps = at.eps(inner(at, memory))
        return (at.x - at.sigma * (eps * divisor if wrong == "multiplied" else eps / divisor)) / at.alpha

    return guide


def skim_one(A: Tensor, B: Tensor, w: float, s: float, x: Tensor, wrong: str = "") -> Tensor:
    """The node's: where sign(A - B) = sign(A) = sign(D) = sign(D - x), D = B + w (A - B):  A <- A - (D_w - D_s)/w."""
    D = B + w * (A - B)
    outer = ((A - B).sign() == A.sign()) & (A.sign() == D.sign())
    if wrong != "no filter":
        outer &= D.sign() == (D - x).sign()
    return torch.where(outer, A - (D - (B + s * (A - B))) / w, A)


def skimmed(w: float, s: float, wrong: str = "") -> Guide:
    """First the contrast against the prompt, then the prompt against that;  D~ = u' + w (c' - u')."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u, x = at.D("positive"), at.D("negative"), at.x if wrong == "own scaling" else at.x / at.alpha
        u_new = u if wrong == "prompt only" else skim_one(u, c, w, s, x, wrong)
        return u_new + w * (skim_one(c, u_new, w, s, x, wrong) - u_new)

    return guide


def thresholded(inner: Guide, quantile: float, ceiling: float = math.inf, wrong: str = "") -> Guide:
    """r = min(max(quantile of |D|, 1), ceiling);  D~ = clip(D, -r, r)/r."""

    def guide(at: At, memory: Memory) -> Tensor:
        out = []
        D = inner(at, memory)
        for one in D:
            q = float((D if wrong == "whole batch" else one).abs().flatten().quantile(quantile))
            r = min(max(q, 1.0), ceiling)
            out.append(one.clamp(-r, r) / (1 if wrong == "only clipped" else r))
        return torch.stack(out)

    return guide


def mimicking(inner: Guide, quantile: float, scale: float, wrong: str = "") -> Guide:
    """For each channel, less its mean: R = max(quantile of |z^|, max |z|);  mean + r/R clip(z^, -R, R), r = max |z|."""

    def guide(at: At, memory: Memory) -> Tensor:
        D, small = inner(at, memory), cfg(scale)(at, memory)
        out = torch.empty_like(D)
        for sample in range(len(D)):
            for channel in range(D.shape[1]):
                here, like = D[sample, channel], small[sample, channel]
                if wrong == "whole sample":
                    mean, z = here.mean(), here - here.mean()
                    r = float((small[sample] - small[sample].mean()).abs().max())
                else:
                    mean, z = here.mean(), here - here.mean()
                    r = float((like - like.mean()).abs().max())
                R = max(float(z.abs().flatten().quantile(quantile)), r)
                out[sample, channel] = mean + z.clamp(-R, R) * r / R
        return out

    return guide


def adg(scale: float, largest: float, wrong: str = "") -> Guide:
    """theta = acos(<c,u>/(|c||u|)), g = min((s - 1) theta, largest), e = c - <c,u>/<u,u> u.

    D~ = cos(g) c + sin(g)/sin(theta) e.
    """

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D("negative")
        if wrong == "in noise":
            c, u = at.eps(c), at.eps(u)
        theta = (dot(c, u) / (norm(c) * norm(u))).acos()
        angle = ((scale if wrong == "scale" else scale - 1) * theta).clamp(
            max=math.inf if wrong == "no limit" else largest
        )
        e = c - dot(c, u) / dot(u, u) * u
        out = angle.cos() * c + angle.sin() / theta.sin() * e
        return (at.x - at.sigma * out) / at.alpha if wrong == "in noise" else out

    return guide


def fbg(prior: float, tau: float, delta: float, largest: float = 10.0, wrong: str = "") -> Guide:
    """w = p/(p - (1 - pi));  log p += -tau/(2 v) (|y' - mu_c|^2 - |y' - mu_u|^2) + delta, between the bounds."""

    def guide(at: At, memory: Memory) -> Tensor:
        c, u = at.D("positive"), at.D("negative")
        y, k = at.x / at.alpha, at.k
        if memory.step == 0:
            memory.m = (torch.zeros(len(y), 1, 1, 1, dtype=torch.float64),)  # type: ignore[assignment]
        log, *before = memory.m  # type: ignore[misc]
        if before:
            y_before, k_before, c_before, u_before = before
            r = k**2 / k_before**2
            variance = (k_before**2 - k**2) * (1 if wrong == "variance" else r)
            far = [((y - (r * y_before + (1 - r) * D)) ** 2).sum(OWN, keepdim=True) for D in (c_before, u_before)]
            if wrong == "whole batch":
                far = [one.sum(0, keepdim=True) for one in far]
            log = log - tau / (2 * variance) * (far[0] - far[1]) + delta
            log = log.clamp(math.log((1 - prior) * largest / (largest - 1)), 3.0)
        memory.m, memory.step = (log, y, k, c, u), memory.step + 1  # type: ignore[assignment]
        w = log.exp() / (log.exp() - (1 - prior))
        return u + w * (c - u)

    return guide


def ramped(make: Callable[[float], Guide], scale: float, f: Callable[[float], float], floor: float = 0.0) -> Guide:
    """s_i = 1 + (s - 1) max(f(q), floor), q = (i + 1/2)/N."""

    def guide(at: At, memory: Memory) -> Tensor:
        q = (memory.step + 0.5) / STEPS
        D = make(1 + (scale - 1) * max(f(q), floor))(at, memory)
        memory.step += 1
        return D

    return guide


# --- the package's runs -------------------------------------------------------------------------------------------

CASES = {
    "tcfg": Case(gs.TCFG(4), partial(tcfg, 4)),
    "fdg": Case(gs.FDG(2, 5), partial(banded, 2, 5, pyramid)),
    "fdg, equal": Case(gs.FDG(3, 3), partial(cfg, 3)),
    "fresca": Case(gs.FreSca(3, low=0.5, high=1.5, cutoff=0.7), partial(banded, 1.5, 4.5, partial(disc, cutoff=0.7))),
    "mambo": Case(gs.MamboG(10, alpha=2), partial(mambo, 10, 2)),
    "mambo, alpha 0": Case(gs.MamboG(4, alpha=0), partial(cfg, 4)),
    "smc": Case(gs.SMCCFG(3, decay=4, gain=0.05), partial(smc, 3, 4, 0.05)),
    "smc, unit": Case(gs.SMCCFG(3, gain=0.5, switching="unit"), partial(smc, 3, 5, 0.5, True)),
    "momentum": Case(gs.Momentum(0.4), partial(momentum, lambda at, memory: at.D("positive"), 0.4, 0.6)),
    "cfg, momentum": Case(gs.CFG(3) | gs.Momentum(0.4, decay=0.3), partial(momentum, cfg(3), 0.4, 0.3)),
    "epsilon scaling": Case(gs.CFG(3) | gs.EpsilonScaling(1.02), partial(epsilon_scaling, cfg(3), 1.02)),
    "skimmed": Case(gs.Skimmed(6, skim=2), partial(skimmed, 6, 2)),
    "skimmed, none": Case(gs.Skimmed(6, skim=6), partial(cfg, 6)),
    "threshold": Case(gs.CFG(6) | gs.Threshold(quantile=0.8), partial(thresholded, cfg(6), 0.8)),
    "threshold, ceiling": Case(
        gs.CFG(6) | gs.Threshold(quantile=0.9, ceiling=1.2), partial(thresholded, cfg(6), 0.9, 1.2)
    ),
    "threshold, latents": Case(gs.CFG(6) | gs.Threshold(quantile=0.8, mimic=2), partial(mimicking, cfg(6), 0.8, 2)),
    "adg": Case(gs.ADG(4), partial(adg, 4, math.pi / 3)),
    "adg, small": Case(gs.ADG(1.5, largest=9), partial(adg, 1.5, math.pi / 20)),
    "fbg": Case(gs.FBG(0.9, temperature=0.1, offset=-0.3), partial(fbg, 0.9, 0.1, -0.3)),
    "fbg, largest": Case(gs.FBG(0.8, temperature=0.02, offset=-0.9, largest=4), partial(fbg, 0.8, 0.02, -0.9, 4.0)),
    "ramp": Case(gs.Ramp(gs.CFG(3)), lambda **_: ramped(cfg, 3, lambda q: 2 * q)),
    "ramp, cosine down": Case(
        gs.Ramp(gs.CFG(4) | gs.Rescale(0.0), "cosine-down", floor=0.5),
        lambda **_: ramped(cfg, 4, lambda q: 1 + math.cos(math.pi * q), 0.5),
    ),
    "ramp, apg": Case(
        gs.Ramp(gs.APG(4, momentum=-0.5), "cosine"),
        lambda **_: ramped(lambda s: apg(s, beta=-0.5), 4, lambda q: 1 - math.cos(math.pi * q)),
    ),
}


@cache
def seen(name: str, family: str = "vp-epsilon") -> Any:
    return package_run(CASES[name].rule, FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_agree_with_the_formula(name: str, family: str) -> None:
    assert apart(seen(name, family), golden_run(CASES[name].make(), FAMILIES[family])) < EXACT


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tcfg", "second vector"),
        ("tcfg", "base"),
        ("tcfg", "denoised"),
        ("fdg", "swapped"),
        ("fdg", "base"),
        ("fresca", "swapped"),
        ("mambo", "in noise"),
        ("mambo", "whole batch"),
        ("mambo", "along c"),
        ("mambo", "scale"),
        ("smc", "remembers e"),
        ("smc, unit", "remembers e"),
        ("smc, unit", "whole batch"),
        ("momentum", "other form"),
        ("momentum", "averages the result"),
        ("epsilon scaling", "multiplied"),
        ("skimmed", "no filter"),
        ("skimmed", "prompt only"),
        ("skimmed", "own scaling"),
        ("threshold", "whole batch"),
        ("threshold", "only clipped"),
        ("threshold, latents", "whole sample"),
        ("adg", "in noise"),
        ("adg", "scale"),
        ("adg, small", "no limit"),
        ("fbg", "variance"),
        ("fbg", "whole batch"),
    ],
)
def test_a_wrong_formula_does_not_agree(name: str, wrong: str) -> None:
    assert apart(seen(name), golden_run(CASES[name].make(wrong=wrong), FAMILIES["vp-epsilon"])) > CLEARLY


def test_a_square_of_frequencies_is_not_the_papers_disc() -> None:
    wrong = banded(1.5, 4.5, partial(disc, cutoff=0.7, square=True))
    assert apart(seen("fresca"), golden_run(wrong, FAMILIES["vp-epsilon"])) > CLEARLY
