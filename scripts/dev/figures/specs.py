"""What each figure of docs/methods.md shows: a new method is a new entry of `FIGURES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....guidance.rules.cfg_pp import MATCHED, matching_cfg_scale


@dataclass(frozen=True)
class Case:
    """A column of a figure.

    Args:
        prompt: the prompt; "" is none.
        negative: for the rows that take one.
    """

    prompt: str
    negative: str = ""

    @property
    def label(self) -> str:
        """The text above the column."""
        return (self.prompt or "(no prompt)") + (f" [negative: {self.negative}]" if self.negative else "")


@dataclass(frozen=True)
class Row:
    """A row of a figure.

    Args:
        stack: its text, which is also the label.
        negative: whether the negative prompts are given.
    """

    stack: str
    negative: bool = False

    @property
    def label(self) -> str:
        """The text to the left of the row."""
        return self.stack + (" with the negative" if self.negative else "")


@dataclass(frozen=True)
class Figure:
    """One picture: the same prompts and seeds in every row.

    Args:
        cases: the columns.
        rows: the rows.
        sampler: short name, as of ``guidestack generate``.
        steps: of the sampler.
        under: what is written under each image: ``"evaluations"``, ``"looks"`` (saturation and contrast), or "".
        seed: of the first column; it goes up from column to column.
    """

    cases: tuple[Case, ...]
    rows: tuple[Row, ...]
    sampler: str = "dpm++2m"
    steps: int = 25
    under: str = ""
    seed: int = 1


CASES = tuple(
    map(
        Case,
        (
            "cat face, noto style, blue background",
            "hamburger, flat style, white background",
            "rocket, twemoji style, black background",
            "rose, gradient style, yellow background",
            "penguin, noto style, cyan background",
            "red heart, flat style, pink background",
        ),
    )
)
"""Those of the picture in the README."""

OVERLAPPING = (
    Case("red heart, flat style, white background", "heart"),
    Case("red apple, noto style, white background", "green apple"),
    Case("cat face, noto style, blue background", "cat"),
    Case("tiger face, twemoji style, white background", "cat face"),
    Case("evergreen tree, flat style, cyan background", "palm tree"),
    Case("birthday cake, noto style, pink background", "pink background"),
)
"""Prompts with a negative that shares something with them."""

# SDXL's radius of 15 for latents of 4x128x128, scaled to the bundled model's 4x16x16 by the root of the sizes.
RADIUS = 15 / 8

FIGURES: Mapping[str, Figure] = {
    "during": Figure(
        CASES,
        (Row("cfg(8)"), Row("during(cfg(8), sigma=(0.3, 20))"), Row("during(cfg(8), sigma=(0.3, 5))")),
        under="evaluations",
    ),
    "rescale": Figure(CASES, (Row("cfg(4)"), Row("cfg(8)"), Row("cfg(8) | rescale(0.7)")), under="looks"),
    "perpneg": Figure(
        OVERLAPPING,
        (
            Row("cfg(4)"),
            Row("cfg(4)", negative=True),
            # u + 4*((p - u) - (n - u)): what Perp-Neg is without its projection.
            Row("cfg(0, against='null') | cfg(5)", negative=True),
            Row("perpneg(4)", negative=True),
        ),
        under="evaluations",
    ),
    "apg": Figure(
        CASES,
        (
            Row("cfg(4)"),
            *(
                Row(text)
                for scale in (8, 15)
                for text in (f"cfg({scale})", f"apg({scale}, radius={RADIUS}, momentum=-0.5)")
            ),
        ),
        under="looks",
    ),
    "cfgpp": Figure(
        CASES,
        tuple(
            Row(text)
            for scale, _ in MATCHED[::2]
            for text in (f"cfg({matching_cfg_scale(scale):g})", f"cfgpp({scale:g})")
        ),
        sampler="ddim",
        steps=50,
        under="looks",
    ),
    "adaptive": Figure(
        CASES,
        (
            Row("cfg(4)"),
            *(Row(f"adaptive(cfg(4), threshold={limit}, space='denoised')") for limit in (0.999, 0.99, 0.95)),
            Row("adaptive(cfg(4), threshold=0.991)"),
        ),
        under="evaluations",
    ),
    "linear_ag": Figure(
        CASES,
        (Row("cfg(4)"), Row("linear_ag(cfg(4), 'emoji-cfg4-20')"), Row("prefix(cfg(4), 5)")),
        steps=20,  # that of the fit
        under="evaluations",
    ),
    "icg": Figure(CASES, (Row("stack()"), Row("cfg(4)"), Row("icg(4)"), Row("icg(4, source='gaussian')"))),
    "tsg": Figure(
        (Case(""),) * 6,
        (Row("stack()"), Row("tsg(3, strength=1.25, window=(0.1, 0.9))")),
    ),
}
"""By the name of the rule: the file is NAME.png."""
