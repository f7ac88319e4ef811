"""Restoration processes: samplers of x - mu, against the published forms of their solvers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import InputError
from guidestack.samplers import grid
from guidestack.samplers.affine import Affine, restore
from guidestack.samplers.noise import generators, initial_noise

from ..conftest import make_stable_diffusion

IR = Affine.ir_sde()
MU = torch.tensor([[0.6, -0.2, 0.1], [-0.4, 0.3, 0.8]], dtype=torch.float64)
PLACE, WIDTH = 0.3, 0.5  # of Gaussian data


def clean(x: Tensor, mu: Tensor, a: float, s: float) -> Tensor:
    """The posterior mean of x0, of data N(PLACE, WIDTH^2), with a bend that makes no solver exact."""
    mean = PLACE + a * WIDTH**2 / (a * a * WIDTH**2 + s * s) * (x - mu - a * (PLACE - mu))
    return mean + 0.1 * (2 * mean).sin()


def network(emits: str, made: Any) -> Any:
    """A network that knows its time, and by that its level, as the scheduler has it."""
    made.set_timesteps(20)
    table = {time: (a, s) for a, s, time in (IR.at(point.level) for point in grid(made).points)}
    assert set(table) <= set(IR.times)

    def answer(x: Tensor, mu: Tensor, time: float, conditions: Any) -> Tensor:
        a, s = table[time]
        x0 = clean(x, mu, a, s)
        noise = (x - mu - a * (x0 - mu)) / s
        velocity = a * 50 / 255 * noise - s / (50 / 255) * (x0 - mu)
        return {"noise": noise, "data": x0, "velocity": velocity}[emits]

    return answer


def process_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(a, s) at each point of a schedule that ends without noise."""
    points = grid(scheduler).points
    return [(IR.at(point.level)[0], IR.at(point.level)[1]) for point in points]


def mr_ode_data(x: Tensor, levels: Sequence[tuple[float, float]], order: int) -> Tensor:
    """MR Sampler's ODE solvers in the data parameterization, in x, with mu in every line."""
    before: tuple[Tensor, float] | None = None
    for (a0, s0), (a, s) in itertools.pairwise(levels):
        h = math.log(a / s) - math.log(a0 / s0)
        data = clean(x, MU, a0, s0)
        shift = MU * (1 - s / s0 + s / s0 * a0 - a)
        x = s / s0 * x + a * (1 - math.exp(-h)) * data + shift
        if order == 2 and before is not None:
            slope = (data - before[0]) * h / before[1]
            x = x + a * ((math.exp(-h) - 1) / h + 1) * slope
        before = data, h
    return clean(x, MU, *levels[-1])


def dpm_solver(x: Tensor, levels: Sequence[tuple[float, float]], order: int) -> Tensor:
    """DPM-Solver++ (2M) on x - mu, as published, with r the ratio of the steps."""
    y, before = x - MU, None
    for (a0, s0), (a, s) in itertools.pairwise(levels):
        h, data = math.log(a / s) - math.log(a0 / s0), clean(y + MU, MU, a0, s0) - MU
        told = data
        if order == 2 and before is not None:
            r = before[1] / h
            # the form that is exact for a clean sample linear in log(a / s); the paper's midpoint is 1/(2r) of it
            share = ((math.exp(-h) - 1) / h + 1) / (1 - math.exp(-h)) / r
            told = data + share * (data - before[0])
        y = s / s0 * y + a * (1 - math.exp(-h)) * told
        before = data, h
    return clean(y + MU, MU, *levels[-1])


def noise_of(x: Tensor, a: float, s: float) -> Tensor:
    """What a network of the noise answers."""
    return (x - MU - a * (clean(x, MU, a, s) - MU)) / s


def mr_ode_noise(x: Tensor, levels: Sequence[tuple[float, float]], order: int) -> Tensor:
    """The same in the noise parameterization, up to the last level."""
    before: tuple[Tensor, float] | None = None
    for (a0, s0), (a, s) in itertools.pairwise(levels):
        h = math.log(a / s) - math.log(a0 / s0)
        noise = noise_of(x, a0, s0)
        x = a / a0 * x - s * (math.exp(h) - 1) * noise + MU * (1 - a / a0)
        if order == 2 and before is not None:
            x = x - s * ((math.exp(h) - 1) / h - 1) * (noise - before[0]) * h / before[1]
        before = noise, h
    return x


def mr_sde_data(x: Tensor, levels: Sequence[tuple[float, float]], order: int, draws: Callable[[], Tensor]) -> Tensor:
    """The SDE's solvers in the data parameterization."""
    before: tuple[Tensor, float] | None = None
    for (a0, s0), (a, s) in itertools.pairwise(levels):
        h = math.log(a / s) - math.log(a0 / s0)
        kept, data = math.exp(-2 * h), clean(x, MU, a0, s0)
        shift = MU * (1 - a / a0 * kept - a * (1 - kept))
        z = draws()
        x = s / s0 * math.exp(-h) * x + a * (1 - kept) * data + s * math.sqrt(1 - kept) * z + shift
        if order == 2 and before is not None:
            x = x + a * (1 - (1 - kept) / (2 * h)) * (data - before[0]) * h / before[1]
        before = data, h
    return clean(x, MU, *levels[-1])


def mr_sde_noise(x: Tensor, levels: Sequence[tuple[float, float]], order: int, draws: Callable[[], Tensor]) -> Tensor:
    """And in the noise parameterization, up to the last level."""
    before: tuple[Tensor, float] | None = None
    for (a0, s0), (a, s) in itertools.pairwise(levels):
        h = math.log(a / s) - math.log(a0 / s0)
        noise, z = noise_of(x, a0, s0), draws()
        x = a / a0 * x - 2 * s * (math.exp(h) - 1) * noise + s * math.sqrt(math.exp(2 * h) - 1) * z + MU * (1 - a / a0)
        if order == 2 and before is not None:
            x = x - 2 * s * ((math.exp(h) - 1) / h - 1) * (noise - before[0]) * h / before[1]
        before = noise, h
    return x


def scheduler(emits: str, **options: Any) -> Any:
    own = {"algorithm_type": "dpmsolver++", "solver_type": "heun", **options}
    return diffusers.DPMSolverMultistepScheduler.from_config(IR.config(emits), **own)


def begun(made: Any) -> tuple[Tensor, list[tuple[float, float]], list[torch.Generator]]:
    made.set_timesteps(20)
    levels, own = process_levels(made), generators([0, 1])
    return MU + levels[0][1] * initial_noise((3,), own, dtype=torch.float64), levels, own


@pytest.mark.parametrize("emits", ["noise", "data", "velocity"])
@pytest.mark.parametrize("order", [1, 2])
def test_mr_samplers_ode_solvers_are_dpm_solver_on_the_difference(emits: str, order: int) -> None:
    made = scheduler(emits, solver_order=order)
    ours = restore(network(emits, made), IR, MU, emits=emits, sampler=made)
    x, levels, _ = begun(made)
    torch.testing.assert_close(ours.x, mr_ode_data(x, levels, order), atol=1e-5, rtol=0)  # diffusers has x in float32
    torch.testing.assert_close(dpm_solver(x, levels, order), mr_ode_data(x, levels, order), atol=1e-12, rtol=0)
    assert ours.report.evaluations == [20, 20]


def test_the_first_order_in_the_noise_is_ddim_on_the_difference() -> None:
    made = diffusers.DDIMScheduler.from_config(IR.config(), timestep_spacing="leading", set_alpha_to_one=True)
    x, levels, _ = begun(made)
    ours = restore(network("noise", made), IR, MU, sampler=made)
    wanted = clean(mr_ode_noise(x, levels, 1), MU, *levels[-1])
    torch.testing.assert_close(ours.x, wanted, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver")  # of diffusers, which will drop them
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("emits", ["noise", "data", "velocity"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"])
def test_mr_samplers_solvers_of_the_noise_and_of_the_sde(algorithm: str, emits: str, order: int) -> None:
    """Those of the noise do not step to a level of 0, and end at the first time of the training."""
    ends = {} if algorithm.endswith("++") else {"final_sigmas_type": "sigma_min"}
    made = scheduler(emits, algorithm_type=algorithm, solver_order=order, **ends)
    x, levels, own = begun(made)
    if ends:
        levels.append(IR.at(grid(made).final)[:2])

    def draws() -> Tensor:
        return torch.stack([torch.randn(3, generator=one) for one in own]).double()

    if algorithm == "dpmsolver":
        wanted = mr_ode_noise(x, levels, order)
    else:
        wanted = (mr_sde_noise if ends else mr_sde_data)(x, levels, order, draws)
    ours = restore(network(emits, made), IR, MU, emits=emits, sampler=made)
    torch.testing.assert_close(ours.x, wanted, atol=3e-5, rtol=0)  # diffusers has x in float32
    assert ours.report.evaluations == [20, 20]


@pytest.mark.parametrize(("order", "slope"), [(1, 1.0), (2, 2.0)])
def test_the_order_of_convergence(order: int, slope: float) -> None:
    """On Gaussian data, whose flow is known: y scales as the deviation of its law."""
    a = [1 / math.hypot(1, 0.02 * 1e4 ** (place / 999)) for place in range(1000)]  # even in log(s / a)
    process = Affine(tuple(a), tuple(0.2 * math.sqrt(1 - one * one) for one in a), tuple(map(float, range(1, 1001))))

    def gaussian(x: Tensor, mu: Tensor, time: float, conditions: Any) -> Tensor:
        place = round(time) - 1
        a, s = process.a[place], process.s[place]
        return PLACE + a * WIDTH**2 / (a * a * WIDTH**2 + s * s) * (x - mu - a * (PLACE - mu))

    errors = []
    for steps in (25, 50, 100):
        made = diffusers.DPMSolverMultistepScheduler.from_config(
            process.config("data"), algorithm_type="dpmsolver++", solver_order=order, final_sigmas_type="sigma_min"
        )
        made.set_timesteps(steps)
        (a, s, _), (a_end, s_end, _) = (process.at(one) for one in (grid(made).points[0].level, grid(made).final))
        own = initial_noise((3,), generators([0, 1]), dtype=torch.float64)
        away = s * own - a * (PLACE - MU)
        grown = math.sqrt((a_end**2 * WIDTH**2 + s_end**2) / (a * a * WIDTH**2 + s * s))
        exact = MU + a_end * (PLACE - MU) + away * grown
        found = restore(gaussian, process, MU, emits="data", sampler=made, steps=steps)
        errors.append(float((found.x - exact).abs().max()))
    measured = math.log2(errors[0] / errors[2]) / 2
    assert measured == pytest.approx(slope, abs=0.35), errors


def test_a_shift_of_zero_and_a_scale_of_one_is_variance_preserving() -> None:
    process = Affine.ir_sde(scale=1.0)
    assert all(a * a + s * s == pytest.approx(1) for a, s in zip(process.a, process.s, strict=True))
    made = diffusers.DDIMScheduler.from_config(process.config())
    assert made.alphas_cumprod[-1].item() == pytest.approx(process.a[-1] ** 2, rel=1e-4)


def test_the_process_of_sgmse_solves_its_equation() -> None:
    """ds^2/dt = g^2 - 2 gamma s^2, with g^2 = 2 s_min^2 k^(2t) log k."""
    process, gamma, log_k = Affine.sgmse(steps=10_000), 1.5, math.log(10)
    t, dt = process.times[5000], 1e-4
    slope = (process.s[5001] ** 2 - process.s[4999] ** 2) / (2 * dt)
    wanted = 2 * 0.05**2 * math.exp(2 * log_k * t) * log_k - 2 * gamma * process.s[5000] ** 2
    assert slope == pytest.approx(wanted, rel=1e-4)


def test_the_network_of_a_pipeline_with_its_own_texts_and_latents() -> None:
    """Guided, with mu as further channels, against MR Sampler's first-order form in the noise."""
    pipe = make_stable_diffusion(in_channels=8, out_channels=4)
    words = {"positive": "a cat", "null": ""}
    texts = {name: {"text": pipe.encode_prompt(one, "cpu", 1, False)[0]} for name, one in words.items()}
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told: list[float] = []

    def denoiser(x: Tensor, mu: Tensor, time: float, conditions: Any) -> Tensor:
        told.append(time)
        text = conditions["text"].expand(len(x), -1, -1)
        return pipe.unet(torch.cat([x, mu], 1), torch.tensor(time), text).sample  # type: ignore[no-any-return]

    with torch.no_grad():
        mu = pipe.vae.encode(2 * picture - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        found = restore(denoiser, IR, mu, stack="cfg(3)", sampler="euler", conditions=texts, steps=4).x
        times = sorted({round(one) for one in told}, reverse=True)
        assert len(times) == 4
        (a, s), *after = ((IR.a[time - 1], IR.s[time - 1]) for time in times)
        x = mu + s * initial_noise((4, 8, 8), generators([0]))
        for time, (a_next, s_next) in zip(times, [*after, (1.0, 0.0)], strict=True):
            c, u = (denoiser(x, mu, time, texts[name]) for name in ("positive", "null"))
            noise = u + 3 * (c - u)
            x = mu + a_next * (x - mu - s * noise) / a + s_next * noise
            a, s = a_next, s_next
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-3)


def test_guidance_and_bad_input() -> None:
    """CFG over a condition beside mu: at a scale of 0 what the empty one says."""

    def told(x: Tensor, mu: Tensor, time: float, conditions: Any) -> Tensor:
        return mu + conditions["wanted"]

    conditions = {"positive": {"wanted": torch.ones(2, 3)}, "null": {"wanted": torch.zeros(2, 3)}}
    for scale, wanted in ((0, 0), (1, 1), (3, 3)):
        found = restore(told, IR, MU, emits="data", stack=f"cfg({scale})", conditions=conditions, steps=3)
        torch.testing.assert_close(found.x, MU + wanted, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="noise, data or"):
        restore(told, Affine.sgmse(), MU, emits="velocity")
    with pytest.raises(InputError, match="seeds has 3 entries for 2 signals"):
        restore(told, IR, MU, seeds=[1, 2, 3])
    with pytest.raises(InputError, match="first noise level"):
        Affine.ir_sde(5000).config()
    with pytest.raises(InputError, match="above 0"):
        Affine((1.0, 0.5), (0.0, 1.0), (1.0, 2.0))
    with pytest.raises(InputError, match="rise"):
        Affine((0.5, 0.9), (0.5, 0.5), (1.0, 2.0))
