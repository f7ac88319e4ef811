"""How often the model draws what was asked: the background, the concept, the style.

A generated picture is compared with the references, all pictures that the denoiser was trained on, drawn on the
background that its prompt asked for: so every prompt counts, whatever its background. By the features of a pretrained
network it is compared with the references on white.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ....evaluation.emoji import pictures
from ....evaluation.emoji.pictures import Vectors, order, place, shrink, units
from ....evaluation.emoji.vocabulary import BACKGROUNDS, Request, concepts, drawn_requests
from ....evaluation.extractors import DEFAULT, Extractor, load
from ....evaluation.metrics.neighbours import distances
from ....evaluation.statistics import share_interval
from ....guidance.files import write_whole
from . import harvested, sampling
from .harvested import Drawing

Describe = Callable[[NDArray[np.float32]], Vectors]


def requests(drawings: Sequence[Drawing], count: int, seed: int, backgrounds: Sequence[str] = ()) -> list[Request]:
    """Requests drawn evenly and independently over concepts, styles and backgrounds; a prefix of any longer list.

    Args:
        drawings: what may be asked for.
        count: of the requests.
        seed: the same one draws the same requests.
        backgrounds: colour words to choose from; all twelve if empty.
    """
    return drawn_requests({drawing.slug: drawing.label for drawing in drawings}, count, seed, backgrounds)


@dataclass(frozen=True)
class Share:
    """How often something was right.

    Args:
        right: times it was.
        of: times it was asked.
    """

    right: int
    of: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.of

    def interval(self) -> tuple[float, float]:
        """Wilson's interval, at 95%."""
        return share_interval(self.value, self.of)

    def to_json(self) -> dict[str, float]:
        """The counts, the share and the ends of its interval, by name, for JSON."""
        low, high = self.interval()
        return {"right": self.right, "of": self.of, "share": self.value, "low": low, "high": high}


def pooled(net: Extractor, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.float32]:
    """Unit vectors ``(N, 1280)`` of pictures ``(N, 64, 64, 3)`` in [0, 1]."""
    parts = torch.split(torch.from_numpy(images), batch)
    bar = tqdm(parts, desc="features", unit="batch", disable=None)
    return units(np.concatenate([net.of_pixels(part * 255) for part in bar]))


def backgrounds_right(made: NDArray[np.float32], asked: Sequence[Request]) -> Share:
    """How often the border's median is nearest to the colour that was asked for."""
    named = pictures.nearest_colour(pictures.border(made))
    return Share(sum(name == request.background for name, request in zip(named, asked, strict=True)), len(asked))


def recognized(
    made: NDArray[np.float32],
    asked: Sequence[Request],
    rgba: pictures.Pixels,
    drawings: Sequence[Drawing],
    describe: Describe,
    on: str | None = None,
) -> dict[str, Share]:
    """Whether the nearest references show what was asked for, by what `describe` says of pictures.

    Args:
        made: pictures ``(N, 64, 64, 3)``.
        asked: what each was to show.
        rgba: the references.
        drawings: what each reference shows.
        describe: a vector of each picture.
        on: background of the references; by default the one that was asked for.

    Returns:
        ``top1``: the nearest reference is of the concept, in whatever style. ``top5``: one of the five nearest is.
        ``top5_concepts``: the concept is among the five nearest distinct ones. ``style``: of the concept's own
        pictures, the one in the style is the nearest.
    """
    slugs = np.array([drawing.slug for drawing in drawings])
    styles = np.array([drawing.style for drawing in drawings])
    right = dict.fromkeys(("top1", "top5", "top5_concepts", "style"), 0)
    vectors = describe(made)
    for name in [on] if on else BACKGROUNDS:
        rows = [index for index, request in enumerate(asked) if on or request.background == name]
        if not rows:
            continue
        ranked = order(vectors[rows], describe(pictures.on_background(rgba, BACKGROUNDS[name])))
        for request, nearest in zip((asked[row] for row in rows), ranked, strict=True):
            found = place(nearest, slugs, styles, request.slug)
            right["top1"] += int(found.picture < 1)
            right["top5"] += int(found.picture < 5)
            right["top5_concepts"] += int(found.concept < 5)
            right["style"] += int(found.style == request.style)
    return {key: Share(value, len(asked)) for key, value in right.items()}


def nearest_distances(made: NDArray[np.float32], trained: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far each picture is from the nearest of others: the root mean square of their pixels' difference, in [0, 1].

    Args:
        made: pictures ``(N, H, W, 3)`` in [0, 1].
        trained: pictures ``(M, H, W, 3)`` likewise.
    """
    rows, others = (one.reshape(len(one), -1).astype(np.float64) for one in (made, trained))
    found: NDArray[np.float64] = distances(rows, others).min(1) / np.sqrt(rows.shape[1])
    return found


HELD_OUT = 500
"""Pictures of concepts that the denoiser was not trained on, as many as are asked for."""


def copies(
    made: NDArray[np.float32],
    backgrounds: Sequence[str],
    rgba: pictures.Pixels,
    held_out: pictures.Pixels,
    seed: int,
) -> dict[str, Any]:
    """Whether pictures are copies of training pictures: how near the nearest is, against that of held-out pictures.

    A picture that was drawn by the same hands and is not among the training pictures has a nearest one as well. Where
    the generated are as far from theirs as these, nothing is copied; a picture counts as near where 95% of the
    held-out ones are farther from theirs.

    Args:
        made: generated pictures ``(N, 64, 64, 3)``.
        backgrounds: of each.
        rgba: the training pictures.
        held_out: pictures of other concepts; `HELD_OUT` of them are drawn, and get the same backgrounds in turn.
        seed: of the draw.

    Returns:
        By name: the medians of the distances of ``made`` and ``held_out``, the ``bound``, 5% of the latter, and
        ``near``, the share of the generated that are nearer.
    """
    drawn = np.random.default_rng(seed).permutation(len(held_out))[:HELD_OUT]
    own, theirs = np.empty(len(made)), np.empty(len(drawn))
    places = [backgrounds[place % len(backgrounds)] for place in range(len(drawn))]
    for name in dict.fromkeys(backgrounds):
        colour = BACKGROUNDS[name]
        trained = pictures.on_background(rgba, colour)
        rows = [place for place, one in enumerate(backgrounds) if one == name]
        own[rows] = nearest_distances(made[rows], trained)
        others = [place for place, one in enumerate(places) if one == name]
        if others:
            theirs[others] = nearest_distances(pictures.on_background(held_out[drawn[others]], colour), trained)
    bound = float(np.quantile(theirs, 0.05))
    near = Share(int((own < bound).sum()), len(own))
    medians = {"made": float(np.median(own)), "held_out": float(np.median(theirs)), "bound": bound}
    return {**medians, "pictures": len(drawn), "near": near.to_json()}


def weights_of(folder: Path) -> str:
    """A short name of a pipeline's weights: what a measurement belongs to."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measure(
    work: Path,
    folder: Path,
    count: int,
    seed: int,
    scale: float,
    steps: int,
    backgrounds: Sequence[str],
    with_features: bool,
    to: Path,
) -> dict[str, Any]:
    """Measure the pipeline in `folder` and write the figures as JSON; the arguments are the command's."""
    rgba, drawings = harvested.load(work, concepts())
    everything, known = harvested.load(work)
    held_out = everything[[place for place, one in enumerate(known) if one.slug not in set(concepts())]]
    asked = requests(drawings, count, seed, backgrounds)
    made = sampling.generate(sampling.load(folder), [request.prompt for request in asked], seed, scale, steps)
    shares = {"background": backgrounds_right(made, asked)}
    shares |= {f"pixels_{key}": share for key, share in recognized(made, asked, rgba, drawings, shrink).items()}
    if with_features:
        net = load(DEFAULT)
        # These features see through the background, and are too slow for twelve times the references.
        by_features = recognized(made, asked, rgba, drawings, lambda images: pooled(net, images), on="white")
        shares |= {f"features_{key}": share for key, share in by_features.items()}
    figures = {
        "weights": weights_of(folder),
        "prompts": count,
        "backgrounds": list(backgrounds) or list(BACKGROUNDS),
        "references": len(drawings),
        "seed": seed,
        "scale": scale,
        "steps": steps,
        "scheduler": "DPMSolverMultistepScheduler",
        "copies": copies(made, [request.background for request in asked], rgba, held_out, seed),
        "shares": {key: share.to_json() for key, share in shares.items()},
    }
    write_whole(to, json.dumps(figures, indent=1) + "\n")
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for a terminal, each with its 95% interval."""
    lines = []
    for key, share in figures["shares"].items():
        counts = f"{share['right']}/{share['of']}"
        lines.append(f"{key:24} {share['share']:6.1%}  [{share['low']:.1%}, {share['high']:.1%}]  {counts}")
    if found := figures.get("copies"):
        lines.append(
            f"nearest training picture: {found['made']:.3f} away (held-out ones: {found['held_out']:.3f}); "
            f"{found['near']['share']:.1%} nearer than 95% of the held-out ones"
        )
    return "\n".join(lines)
