"""Ship the pictures that the denoiser learns: the references of metrics."""

from __future__ import annotations

from pathlib import Path

from ....evaluation.emoji import pictures
from ....evaluation.emoji.vocabulary import concepts


def references(work: Path) -> str:
    """Write the pictures of the 429 concepts into ``evaluation/references``; says how many. About a minute."""
    from ....evaluation import references as shipped

    rgba, drawings = pictures.load(work, concepts())
    shipped.write(rgba, [drawing.slug for drawing in drawings], [drawing.style for drawing in drawings])
    return f"{len(rgba)} pictures in {shipped.HERE}"
