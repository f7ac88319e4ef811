"""The arithmetic of one step: all that a rule does once the network has answered, against diffusers' APG guider."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.notation.presets import as_stack
from ...guidance.prediction import EPSILON, Level, Prediction
from ...guidance.query import POSITIVE, Predictions, Query
from ...guidance.rule import Rule, sole
from ...guidance.step import Estimate, Run, Step
from ...samplers import grid
from ...samplers.renoise import Renoising
from .timing import Timing, interleaved

SHAPE = (8, 4, 128, 128)  # eight images of 1024x1024 pixels
SCALE, RADIUS, MOMENTUM, PHI = 10.0, 15.0, -0.5, 0.7


@dataclass(frozen=True)
class Side:
    """One stack to time.

    Args:
        name: in the table.
        stack: its text.
        limit: time over the guider's that is not to be exceeded.
        over: the guider of diffusers: ``"APG"``, or ``"CFG, rescale"``, classifier-free guidance with its rescale.
        negatives: negative prompts of each image.
    """

    name: str
    stack: str
    limit: float = 0.5  # the APG guider computes in float64, which no rule needs
    over: str = "APG"
    negatives: int = 1


SIDES = (
    Side("CFG", "cfg(10)"),
    Side("APG", "apg(10, radius=15, momentum=-0.5)"),
    Side("APG, no momentum", "apg(10, radius=15)"),
    Side("Perp-Neg, 1 negative", "perpneg(10)"),
    Side("Perp-Neg, 3 negatives", "perpneg(10)", 1.0, negatives=3),
    Side("CFG++", "cfgpp(0.8)"),
    Side("ICG", "icg(10)"),
    Side("CFG-Zero*", "cfg_zero(10)"),
    Side("TCFG", "tcfg(10)"),
    Side("MAMBO-G", "mambo_g(10)"),
    Side("SMC-CFG", "smc_cfg(10, gain=0.05)"),
    Side("Momentum", "cfg(10) | momentum()"),
    Side("ADG", "adg(10)", 0.75),  # two norms and a product more than APG without momentum
    Side("epsilon scaling", "cfg(10) | epsilon_scaling()"),
    # Two products of matrices, a Fourier transform, a quantile, and two tests of each element: see docs/performance.md.
    Side("FDG", "fdg(5, 10)", 1.25),
    Side("FreSca", "fresca(10, high=1.5)", 1.0),
    Side("Threshold", "cfg(10) | threshold(mimic=7)", 1.25),
    Side("Skimmed CFG", "skimmed(10, skim=7)", 1.0),
    # Nearly all of it is torch's own standard deviation, which the stock pipelines take and the rule equals to the bit.
    Side("CFG and Rescale", "cfg(10) | rescale(0.7)", 1.1, over="CFG, rescale"),
)


class Answers:
    """What a network has answered at one step: random numbers, float32, one tensor for each query.

    Args:
        shape: of x.
    """

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        self.x = torch.randn(shape, generator=generator)
        common = torch.randn(shape, generator=generator)
        conditions = ("positive", "null", "negative", "negative:0", "negative:1", "negative:2", "independent:tokens")
        self.native = {
            Query(condition): common + 0.1 * torch.randn(shape, generator=generator) for condition in conditions
        }

    def predictions(self, level: Level) -> Predictions:
        """The answers, none of them converted yet."""
        answers = {query: Prediction(native, self.x, level, EPSILON) for query, native in self.native.items()}
        return Predictions(answers, {query: query for query in answers}, answers[POSITIVE])


def of_stack(side: Side, answers: Answers) -> Callable[[], Tensor]:
    """Return one step of a side's stack as a function: from the network's answers to the scheduler's input.

    Of a stack that re-noises, also what is added to the sample after the scheduler's step.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    schedule, index = grid(scheduler), 10
    level = schedule.points[index].level
    rule: Rule = sole(as_stack(side.stack), "Side")
    batch = answers.shape[0]
    run = Run(answers.shape, steps=20, seeds=tuple(range(batch)), negatives=(side.negatives,) * batch)
    step, state = Step(run, index, level), rule.init(run)

    def once() -> Tensor:
        predictions = answers.predictions(level)
        estimate, _ = rule.update(Estimate(predictions[POSITIVE]), predictions, step, state)
        if not rule.renoises:
            return estimate.prediction.native
        renoising = Renoising(scheduler, schedule, begin=index)
        _, at = renoising.before(estimate, answers.x)
        return renoising.after(at)

    return once


def of_diffusers(answers: Answers) -> dict[str, Callable[[], Tensor]]:
    """One step of each guider of diffusers that sides are compared with, on the same answers.

    APG has the paper's base term. It works on the network's output as it is; the rule, on denoised samples, converts
    beside.
    """
    from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance

    guiders: dict[str, Any] = {
        "APG": AdaptiveProjectedGuidance(
            SCALE - 1,
            adaptive_projected_guidance_momentum=MOMENTUM,
            adaptive_projected_guidance_rescale=RADIUS,
            eta=0.0,
            use_original_formulation=True,
        ),
        "CFG, rescale": ClassifierFreeGuidance(SCALE, guidance_rescale=PHI),
        "CFG": ClassifierFreeGuidance(SCALE),
    }
    positive, negative = (answers.native[Query(name)] for name in ("positive", "negative"))
    for guider in guiders.values():
        guider.set_state(step=0, num_inference_steps=20, timestep=torch.tensor(500))
        guider.prepare_inputs({"text": (positive, negative)})  # makes APG's buffer for the momentum
    return {name: functools.partial(_forward, guider, positive, negative) for name, guider in guiders.items()}


def _forward(guider: Any, positive: Tensor, negative: Tensor) -> Tensor:
    return guider.forward(positive, negative).pred  # type: ignore[no-any-return]


def paired(answers: Answers, repeats: int) -> dict[str, Timing]:
    """The same rule over its guider, for each guider."""
    guiders = of_diffusers(answers)
    sides = {"CFG": "CFG", "APG": "APG", "CFG, rescale": "CFG and Rescale"}
    steps = {side.name: of_stack(side, answers) for side in SIDES if side.name in sides.values()}
    return {
        name: interleaved(guiders[name], {name: steps[side]}, repeats, clock=time.thread_time)[name]
        for name, side in sides.items()
    }


def timed(answers: Answers, repeats: int) -> dict[str, Timing]:
    """Each side over its guider.

    By the processor time of this thread: what else the machine does counts for neither.
    """
    found: dict[str, Timing] = {}
    for name, guider in of_diffusers(answers).items():
        sides = {side.name: of_stack(side, answers) for side in SIDES if side.over == name}
        found |= interleaved(guider, sides, repeats, clock=time.thread_time)
    return found
