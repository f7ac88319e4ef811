"""Claims that are no sweep: inversion, paths between noises, and what predictions do over the steps of a run.

Their rows are as those of sweeps: a number of each prompt in two cells, the interval of the mean difference with
prompts as what is drawn, and a smallest difference that was written down before. `claims` runs them beside the sweeps.
Counts are by a pilot of 4 prompts: deviations of 1.0, 8.4 and 2.1 dB for the three pairs, and of 0.087 for ISTD.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...evaluation import references, statistics
from ...evaluation.effective_scale import gathered, strength
from ...evaluation.emoji.pictures import on_background
from ...evaluation.emoji.vocabulary import BACKGROUNDS, Request, drawn_requests, labels
from ...evaluation.interpolation import istd, path
from ...evaluation.verdicts import Finding, expected
from ...pipelines import guide, invert
from ...pipelines.models.bundled import load_emoji
from ...samplers import by_name
from ...samplers.noise import generators, initial_noise

Values = NDArray[np.float64]
LATENT = (4, 16, 16)
STEPS, BATCH = 50, 16


@dataclass(frozen=True)
class Row:
    """How a number in one cell is to stand to that in another.

    Args:
        number: what it is.
        of, than: names of cells.
        be: one of the words of `verdicts`.
        matters: the smallest difference that matters, in the number's unit.
    """

    number: str
    of: str
    be: str
    than: str
    matters: float

    def __str__(self) -> str:
        return expected(self.number, self.of, self.be, self.than)


@dataclass(frozen=True)
class Beside:
    """A claim that no sweep can test, with its own measurement.

    Args:
        words, paper, remark: as in the claim of a sweep.
        rows: the comparisons that follow from the claim.
        measured: a function from prompts and the seed to one value for each prompt, by measured number and cell.
        count: the number of prompts.
        seed: seed of the prompts and the noise.
    """

    words: str
    paper: str
    rows: tuple[Row, ...]
    measured: Callable[[Sequence[Request], int], dict[tuple[str, str], Values]]
    count: int
    seed: int
    remark: str = ""

    def found(self, count: int | None = None) -> list[Finding]:
        """Return the rows with what was found, on the first `count` prompts or on all."""
        asked = drawn_requests(labels(), count or self.count, self.seed)
        values = self.measured(asked, self.seed)
        return [told(row, values[row.number, row.of], values[row.number, row.than]) for row in self.rows]


def told(row: Row, of: Values, than: Values) -> Finding:
    """Return what a row shows, from the values of the same prompts in two cells."""
    prompts, away = np.arange(len(of)), of - than
    ends = statistics.jackknife(lambda rows: float(away[rows].mean()), prompts, float(away.mean()))
    return Finding(str(row), row.be, row.matters, float(of.mean()), float(than.mean()), *ends, len(of), len(of))


@functools.cache
def pipeline(sampler: str) -> Any:
    """The bundled pipeline with a sampler."""
    pipe = load_emoji()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = by_name(sampler, pipe.scheduler)
    return pipe


def batches(asked: Sequence[Request], what: str) -> Iterator[tuple[list[str], list[Request], range]]:
    """Iterate over prompts, their requests and their indices, `BATCH` at a time."""
    for start in tqdm(range(0, len(asked), BATCH), desc=what, unit="batch", disable=None):
        some = list(asked[start : start + BATCH])
        yield [one.prompt for one in some], some, range(start, start + len(some))


PAIRS = ((0.2, 2), (0.6, 7.5), (1, 12.5))
"""Scales of CFG++ and of CFG that the paper matches; of its five the ends and the middle."""


def inverted(asked: Sequence[Request], seed: int) -> dict[tuple[str, str], Values]:
    """Return the PSNR of a picture after 50 steps of DDIM to its noise and 50 back, in decibels, for each prompt."""
    drawn = references.drawings()
    at = {(slug, style): place for place, (slug, style) in enumerate(zip(drawn.slugs, drawn.styles, strict=True))}
    found: dict[tuple[str, str], Values] = {}
    for scale, twin in PAIRS:
        for stack in (f"cfgpp({scale:g})", f"cfg({twin:g})"):
            pipe, values = pipeline("ddim"), []
            for prompts, some, _ in batches(asked, f"inversion, {stack}"):
                rgba = [(drawn.rgba[at[one.slug, one.style]], BACKGROUNDS[one.background]) for one in some]
                shown = torch.from_numpy(np.stack([on_background(*one) for one in rgba])).permute(0, 3, 1, 2)
                with torch.inference_mode():  # what the autoencoder makes of it: its own error is no inversion's
                    code = pipe.vae.encode(shown.to(pipe.vae.dtype) * 2 - 1).latent_dist.mean
                    known = pipe.image_processor.postprocess(pipe.vae.decode(code).sample, output_type="np")
                noise = invert(pipe, stack)(prompts, image=shown, num_inference_steps=STEPS).latents
                back = guide(pipe, stack)(prompts, latents=noise, num_inference_steps=STEPS, output_type="np").images
                error = np.square(np.asarray(back, np.float64) - known).mean((1, 2, 3))
                values.append(np.minimum(-10 * np.log10(np.maximum(error, 1e-10)), 100.0))
            found["psnr of the picture that comes back", stack] = np.concatenate(values)
    return found


POINTS = 9


def along_paths(asked: Sequence[Request], seed: int) -> dict[tuple[str, str], Values]:
    """Return for each prompt the ISTD of pixels in [0, 1] at 9 points of the great circle between two noises."""
    found: dict[tuple[str, str], Values] = {}
    for scale, twin in PAIRS[1:2]:
        for stack in (f"cfgpp({scale:g})", f"cfg({twin:g})"):
            values, guided = [], guide(pipeline("ddim"), stack)
            for place, one in enumerate(tqdm(asked, desc=f"paths, {stack}", unit="prompt", disable=None)):
                seeds = seed * 1000 + 2 * place
                ends = initial_noise(LATENT, generators([seeds, seeds + 1]))
                points = path(ends[0], ends[1], POINTS)
                images = guided(
                    [one.prompt] * POINTS, latents=points, num_inference_steps=STEPS, output_type="np"
                ).images
                values.append(istd(np.asarray(images)))
            found["istd", stack] = np.array(values)
    return found


def aligned(asked: Sequence[Request], seed: int) -> dict[tuple[str, str], Values]:
    """Return for each prompt the mean cosine of the two noise predictions, by quarter of 20 steps under CFG of 4."""
    quarters: dict[str, list[Values]] = {}
    guided = guide(pipeline("dpm++2m"), "cfg(4)", observe=strength)
    for prompts, _, places in batches(asked, "alignment"):
        seeds = [seed * 1000 + place for place in places]
        guided(prompts, num_inference_steps=20, generator=generators(seeds), output_type="latent")
        assert guided.report is not None  # of the call above
        cosines = gathered(guided.report).values["cosine"]
        for name, part in zip(("first", "second", "third", "last"), np.split(cosines, 4, axis=1), strict=True):
            quarters.setdefault(f"the {name} quarter of the steps", []).append(part.mean(1))
    return {("cosine of the noises", name): np.concatenate(parts) for name, parts in quarters.items()}


CLAIMS = {
    "adaptive_alignment": Beside(
        words="The conditional and the unconditional noise predictions are the more alike the later the step.",
        paper="2312.12487",
        rows=tuple(
            Row(
                "cosine of the noises",
                f"the {later} quarter of the steps",
                "higher",
                f"the {earlier} quarter of the steps",
                0.0005,
            )
            for earlier, later in itertools.pairwise(("first", "second", "third", "last"))
        ),
        measured=aligned,
        count=64,
        seed=27,
    ),
    "cfgpp_inversion": Beside(
        words="Inverted under CFG++ and sampled again, a picture comes back better than under CFG at a matched scale.",
        paper="2406.08070",
        rows=tuple(
            Row("psnr of the picture that comes back", f"cfgpp({scale:g})", "higher", f"cfg({twin:g})", 3.0)
            for scale, twin in PAIRS
        ),
        measured=inverted,
        count=64,
        seed=28,
    ),
    "cfgpp_paths": Beside(
        words="Along a path between two noises the images of CFG++ change more evenly than those of CFG.",
        paper="2406.08070",
        rows=(Row("istd", "cfgpp(0.6)", "lower", "cfg(7.5)", 0.05),),
        measured=along_paths,
        count=32,
        seed=29,
    ),
}
"""The claims that no sweep can test, by name."""
