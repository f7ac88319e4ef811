"""Write the model card: its figures come from ``made.json`` and ``measured.json`` beside it, none is typed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ....evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, concepts
from ....guidance.files import write_whole
from .measure import weights_of

TEMPLATE = Path(__file__).parent / "card.md"
EARLIER = (
    (1050, 64, "all 1,643 concepts"),
    (500, 64, "the 429 concepts"),
    (1900, 16, "the 429 concepts"),
    (5100, 16, "the 429 concepts, linear betas and the pooled text"),
    (9500, 16, "the 429 concepts"),
)
"""Steps, batch and data of the checkpoint that training went on from: the weights bundled before."""

NAMES = {
    "background": "background: nearest of the twelve colours to the border's median",
    "pixels_top1": "concept: the nearest reference picture shows it (16x16 pixels)",
    "pixels_top5": "concept: one of the five nearest reference pictures shows it",
    "pixels_top5_concepts": "concept: among the five nearest concepts",
    "pixels_style": "style: nearest of the concept's own pictures",
    "features_top1": "concept by features of EfficientNet-Lite0: the nearest picture shows it",
    "features_top5": "concept by features: one of the five nearest pictures",
    "features_top5_concepts": "concept by features: among the five nearest concepts",
    "features_style": "style by features",
}


def training_rows(made: dict[str, Any]) -> str:
    """The denoiser's training as rows of a table."""
    started = bool(made["init"])
    rows = [(f"{steps:,}", str(batch), f"{what} (the checkpoint)") for steps, batch, what in EARLIER if started]
    focused = f", {made['focus']:.1%} of each batch at the levels of the details" if made["focus"] else ""
    minutes = f"{made['seconds'] / 60:.0f} minutes"
    rows.append((f"{made['step']:,}", str(made["batch"]), f"the 429 concepts{focused}; {minutes}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def figure_rows(measured: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """The measured shares as rows of a table: with 95% intervals, and before this training where that is known."""
    rows = []
    for key, share in measured["shares"].items():
        before = baseline["shares"].get(key) if baseline else None
        cells = (
            NAMES[key],
            f"**{share['share']:.1%}**",
            f"{share['low']:.1%} to {share['high']:.1%}",
            f"{before['share']:.1%}" if before else "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def copied(found: dict[str, Any] | None) -> str:
    """What is said of copies of training pictures."""
    if found is None:
        return "Whether pictures are copies of training pictures has not been measured."
    near, away, others = found["near"], f"{found['made']:.3f}", f"{found['held_out']:.3f}"
    span = f"{near['low']:.1%} to {near['high']:.1%}"
    return (
        f"Is a picture a copy? The nearest training picture on its background is {away} away (median; root mean square "
        f"of the pixels in [0, 1]); for {found['pictures']} pictures of other concepts, which were not trained on, it "
        f"is {others}. {near['share']:.1%} of the generated pictures ({span}) are nearer to a training picture than "
        "95% of those are. A prompt names one training picture, which the model is meant to draw: of this model some "
        "of it is the point."
    )


def card(folder: Path) -> None:
    """Write ``README.md`` into the pipeline folder, from the JSON files there."""
    made, measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("made", "measured"))
    if measured["weights"] != weights_of(folder):
        raise click.ClickException(f"{folder / 'measured.json'} is of other weights: run the step `measure` first")
    before = folder / "baseline.json"
    values = {
        "concepts": len(concepts()),
        "styles": ", ".join(f"`{style}`" for style in STYLES),
        "backgrounds": ", ".join(BACKGROUNDS),
        "training": training_rows(made),
        "rate": made["rate"],
        "total": f"{made['step'] + (sum(steps for steps, *_ in EARLIER) if made['init'] else 0):,}",
        "figures": figure_rows(measured, json.loads(before.read_text()) if before.exists() else None),
        "copies": copied(measured.get("copies")),
        **{key: measured[key] for key in ("prompts", "references", "scale", "steps", "seed")},
    }
    write_whole(folder / "README.md", TEMPLATE.read_text().format(**values))
