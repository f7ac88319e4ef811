"""A pipeline under each rule against the same pipeline with its own guidance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...guidance.notation.presets import as_stack
from ...guidance.report import Report
from ...guidance.rule import models_of
from ...guidance.step import Run
from ...pipelines import guide
from ...pipelines.families.lookup import family_of
from ...samplers.moving import given_room

SCALE, STEPS = 4.0, 20
FITTED = 20  # steps of the runs that linear_ag's coefficients are of


@dataclass(frozen=True)
class Side:
    """One stack to time.

    Args:
        name: in the table.
        stack: its text.
        negatives: negative prompts of each image.
        max_rows: of `guide`, for each image of the batch; 0 for no bound.
        guider: the guider of diffusers that has the same rule, as `arithmetic` names it; "" where there is none.
        steps: of a run; 0 for the model's.
    """

    name: str
    stack: str
    negatives: tuple[str, ...] = ()
    max_rows: int = 0
    guider: str = ""
    steps: int = 0


NEGATIVES = ("dog face", "bear", "mouse face")
SIDES = (
    Side("unguided", "stack()"),
    Side("CFG", "cfg(4)", guider="CFG"),
    Side("Rescale", "cfg(4) | rescale(0.7)", guider="CFG, rescale"),
    Side("Renorm", "cfg(4) | renorm()"),
    Side("APG", "apg(4, radius=2, momentum=-0.5)", guider="APG"),
    Side("CFG++", "cfgpp(0.6)"),
    Side("CFG, Renoise", "cfg(0.6) | renoise('negative')"),
    Side("ICG", "icg(4)"),
    Side("TSG", "tsg(4)"),
    Side("NAG", "nag(3)"),
    Side("NASA", "nasa(0.3)"),
    Side("PLADIS", "pladis(2)"),
    Side("CFG-Zero*", "cfg_zero(4)"),
    Side("TCFG", "tcfg(4)"),
    Side("FDG", "fdg(2, 4)"),
    Side("FreSca", "fresca(4, high=1.5)"),
    Side("MAMBO-G", "mambo_g(10)"),
    Side("SMC-CFG", "smc_cfg(4, gain=0.05)"),
    Side("Momentum", "cfg(4) | momentum()"),
    Side("Skimmed CFG", "skimmed(4, skim=3)"),
    Side("Threshold", "cfg(4) | threshold(mimic=2)"),
    Side("ADG", "adg(4)"),
    Side("FBG", "fbg(0.9, 0.5, -0.1)"),
    Side("epsilon scaling", "cfg(4) | epsilon_scaling()"),
    Side("ramp", "ramp(cfg(4), 'linear')"),
    Side("token merging", "tome(cfg(4), 0.5)"),
    Side("PAG", "pag(3)"),
    Side("SEG", "seg(3)"),
    Side("SLG", "slg(2.8, blocks='middle')"),
    Side("TPG", "tpg(3)"),
    Side("SG", "sg(3)"),
    Side("S2", "s2(0.25)"),
    Side("Langevin", "cfg(4) | langevin()"),
    Side("time travel", "cfg(4) | recur(2)"),
    Side("particles", "resample(2, 4)"),
    Side("zigzag", "cfg(4) | zigzag()"),
    Side("FSG", "cfg(4) | fsg(4)"),
    Side("CFG-MP", "cfg(4) | cfg_mp()"),
    Side("Autoguidance", "autoguidance(2)"),
    Side("classifier", "cfg(4) | classifier(1, 'blue')"),
    Side("EluCD", "cfg(4) | elucd(1, 'blue')"),
    Side("classifier reference", "classifier_reference(4, 'blue', 'red')"),
    Side("PPGN", "cfg(4) | ppgn('blue', condition=0.01)"),
    Side("TFG, mean", "cfg(4) | tfg('blue', mu=0.5)"),
    Side("TFG, variance", "cfg(4) | tfg('blue', rho=0.5)"),
    Side("replacement", "cfg(4) | replace('border')"),
    Side("RED-diff", "cfg(4) | red_diff('border')"),
    Side("interval", "during(cfg(4), progress=(0.2, 0.7))"),
    Side("prefix", "prefix(cfg(4), 2)"),
    Side("Schedule", "schedule(cfg(4), 'g (rg) c*')"),
    Side("Adaptive Guidance", "adaptive(cfg(4), threshold=0.99, space='denoised')"),
    Side("LinearAG", "linear_ag(cfg(4), 'emoji-cfg4-20')", steps=FITTED),
    Side("Perp-Neg, 1 negative", "perpneg(4)", NEGATIVES[:1]),
    Side("Perp-Neg, 3 negatives", "perpneg(4)", NEGATIVES),
    Side("Perp-Neg, 3, max_rows", "perpneg(4)", NEGATIVES, max_rows=2),
)


class Bench:
    """Runs of one pipeline, stock and guided, with the same prompts and seeds.

    Args:
        pipe: a pipeline with prompts.
        batch: images of a run.
        steps: steps of a run.
        more: further arguments of every call.
    """

    def __init__(self, pipe: Any, batch: int, steps: int = STEPS, more: Mapping[str, Any] | None = None) -> None:
        self.pipe, self.batch, self.steps, self.more = pipe, batch, steps, more or {}
        self.scale = family_of(pipe).scale

    def with_steps(self, steps: int) -> Bench:
        """A bench of the same pipeline, prompts and seeds with so many steps."""
        return Bench(self.pipe, self.batch, steps, self.more)

    def _arguments(self) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(sample) for sample in range(self.batch)]
        given = {"prompt": ["cat face"] * self.batch, "num_inference_steps": self.steps, "generator": generators}
        return {**given, **self.more}

    def stock(self) -> None:
        """The pipeline by itself, with its own classifier-free guidance."""
        self.pipe(**{self.scale: SCALE}, **self._arguments())

    def guided(self, side: Side) -> Callable[[], Report]:
        """A run under a stack, which returns its account.

        Raises:
            GuidestackError: this pipeline cannot run the stack.
        """
        max_rows = side.max_rows * self.batch or None
        weak = dict.fromkeys(models_of(as_stack(side.stack)), self.pipe)  # as large as the main one
        stack = as_stack(side.stack)
        if any(part.couples for part in stack.parts()):
            stack.init(Run((self.batch, 1, 1, 1)))  # is it for so many samples?
        with given_room(self.pipe, stack):
            guided = guide(self.pipe, stack, max_rows=max_rows, networks=weak)
        more = {"negative_prompt": [list(side.negatives)] * self.batch} if side.negatives else {}

        def run() -> Report:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a random network may give a rule nothing to do
                with given_room(self.pipe, stack):
                    guided(**self._arguments(), **more)
            assert guided.report is not None  # a call leaves one
            return guided.report

        return run


def chosen(stacks: Sequence[str]) -> tuple[Side, ...]:
    """A side for each of `stacks`, texts; the known ones for none."""
    known = {side.stack: side for side in SIDES if not side.negatives}
    return tuple(known.get(text, Side(text, text)) for text in stacks) or SIDES
