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
        sampler: short name, as in ``guidestack generate``.
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


def rows(*stacks: str) -> tuple[Row, ...]:
    """A row for each stack."""
    return tuple(map(Row, stacks))


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
    "cfg_zero": Figure(CASES, rows("cfg(4)", "cfg_zero(4)", "cfg(8)", "cfg_zero(8)"), under="looks"),
    "tcfg": Figure(CASES, rows("cfg(4)", "tcfg(4)", "cfg(8)", "tcfg(8)"), under="looks"),
    "fdg": Figure(CASES, rows("cfg(4)", "fdg(2, 4)", "fdg(4, 8)", "fdg(8, 4)"), under="looks"),
    "fresca": Figure(CASES, rows("cfg(4)", "fresca(4, high=1.5)", "fresca(4, low=1.5)"), under="looks"),
    "mambo_g": Figure(CASES, rows("cfg(8)", "mambo_g(8, alpha=2)", "mambo_g(8)"), under="looks"),
    "smc_cfg": Figure(CASES, rows("cfg(4)", "smc_cfg(4, gain=0.01)", "smc_cfg(4, gain=0.05)"), under="looks"),
    "adg": Figure(CASES, rows("cfg(4)", "adg(4)", "cfg(15)", "adg(15)"), under="looks"),
    # By the authors' recipe for 25 steps, prior 0.95, t0 0.5 and t1 0.4, at this model's levels.
    "fbg": Figure(CASES, rows("cfg(2)", "cfg(4)", "fbg(0.95, 0.01, -0.2)"), under="looks"),
    "skimmed": Figure(CASES, rows("cfg(4)", "cfg(15)", "skimmed(15, skim=4)"), under="looks"),
    "momentum": Figure(CASES, rows("stack()", "momentum(0.5)", "cfg(4)", "cfg(4) | momentum(0.5)"), under="looks"),
    "threshold": Figure(CASES, rows("cfg(4)", "cfg(15)", "cfg(15) | threshold(mimic=4)"), under="looks"),
    "epsilon_scaling": Figure(
        CASES, rows("cfg(4)", "cfg(4) | epsilon_scaling(1.005)", "cfg(4) | epsilon_scaling(1.02)"), under="looks"
    ),
    "ramp": Figure(CASES, rows("cfg(4)", "ramp(cfg(4))", "ramp(cfg(4), 'linear-down')"), under="looks"),
    "pag": Figure(CASES, (Row("stack()"), Row("pag(3)"), Row("cfg(4)"), Row("cfg(4) | pag(2)"))),
    "seg": Figure(
        CASES, (Row("stack()"), Row("seg(3)"), Row("cfg(4)"), Row("cfg(4) | seg(2)"), Row("cfg(4) | seg(2, sigma=1)"))
    ),
    "slg": Figure(CASES, (Row("cfg(4)"), Row("cfg(4) | slg(1, 'middle')"), Row("cfg(4) | slg(1, 'up.0.1')"))),
    "tpg": Figure(CASES, (Row("stack()"), Row("tpg(3)"), Row("cfg(4)"), Row("cfg(4) | tpg(2)"))),
    "sg": Figure(CASES, (Row("stack()"), Row("sg(3)"), Row("cfg(4)"), Row("cfg(4) | sg(3)"))),
    "s2": Figure(CASES, (Row("stack()"), Row("s2(0.5)"), Row("cfg(4)"), Row("cfg(4) | s2(0.5)"))),
    "autoguidance": Figure(
        CASES,
        (Row("stack()"), Row("autoguidance(2)"), Row("cfg(4)"), Row("cfg(3) | autoguidance(2)")),
    ),
    "nag": Figure(
        OVERLAPPING,
        (Row("stack()"), Row("nag(4)", negative=True), Row("nag(8, alpha=0.5)", negative=True)),
    ),
    "nasa": Figure(
        OVERLAPPING,
        (Row("stack()"), Row("nasa(0.2)", negative=True), Row("nasa(0.5)", negative=True)),
    ),
    "pladis": Figure(CASES, (Row("stack()"), Row("pladis(2)"), Row("cfg(4)"), Row("pladis(2) | cfg(4)"))),
    "tome": Figure(CASES, rows("cfg(4)", "tome(cfg(4), 0.3)", "tome(cfg(4), 0.5)", "tome(cfg(4), 0.7)"), under="looks"),
    "tsg": Figure(
        (Case(""),) * 6,
        (Row("stack()"), Row("tsg(3, strength=1.25, window=(0.1, 0.9))")),
    ),
}
"""By the name of the rule: the file is NAME.png."""
