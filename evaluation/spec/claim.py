"""A paper's claim: in words, and as expectations on the cells of a sweep. `analysis.findings` says what a run shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...guidance.errors import InputError, shown
from .. import values
from ..metrics import parse_metric

KEYS = ("words", "paper", "expect", "remark")
EXPECTATION = ("metric", "of", "be", "than", "margin")
MOST = 100  # expectations of a claim
FORMS = ("lower", "higher", "not lower", "not higher", "same")


@dataclass(frozen=True)
class Expectation:
    """How a metric in one cell is to stand to the metric in another.

    Args:
        metric: as `parse_metric` reads it.
        of: values of axes that mean one cell.
        be: one of `FORMS`.
        than: values of axes that mean the other cell.
        margin: in the metric's unit, 0 or more.
    """

    metric: str
    of: Mapping[str, str]
    be: str
    than: Mapping[str, str]
    margin: float = 0.0

    def __str__(self) -> str:
        margin = f" (margin {self.margin:g})" * bool(self.margin)
        return f"{self.metric} of {named(self.of)} is {self.be} {'as' if self.be == 'same' else 'than'} that of " + (
            f"{named(self.than)}{margin}"
        )


@dataclass(frozen=True)
class Claim:
    """What a paper says.

    Args:
        words: the claim.
        paper: its number on arXiv.
        expect: what follows from it here.
        remark: why it may not show here, said after it was run; or "".
    """

    words: str
    paper: str
    expect: tuple[Expectation, ...]
    remark: str = ""

    def written(self) -> dict[str, Any]:
        """The claim as the mapping that a sweep's YAML has under ``claim``."""
        expect = []
        for one in self.expect:
            written: dict[str, Any] = {"metric": one.metric, "of": dict(one.of), "be": one.be, "than": dict(one.than)}
            expect.append(written | ({"margin": one.margin} if one.margin else {}))
        whole: dict[str, Any] = {"words": self.words, "paper": self.paper, "expect": expect}
        return whole | ({"remark": self.remark} if self.remark else {})


def parse_claim(given: Any, where: str, axes: Sequence[str]) -> Claim:
    """Read the claim of a sweep.

    Args:
        given: the mapping.
        where: it stands, for messages.
        axes: names of the sweep's axes, with ``"stack"``.

    Raises:
        InputError: another form.
    """
    given = values.check_keys(given, KEYS, where)
    for key in KEYS[:-1]:
        if key not in given:
            raise InputError(f"{where}: give {key}; a claim has {', '.join(KEYS)}")
    expect = given["expect"]
    if not isinstance(expect, list) or not 0 < len(expect) <= MOST:
        raise InputError(f"{where}: expect must be a list of 1 to {MOST} expectations; got {shown(expect)}")
    return Claim(
        words=values.text(given["words"], f"{where}: words"),
        paper=values.text(given["paper"], f"{where}: paper"),
        remark=values.text(given["remark"], f"{where}: remark") if given.get("remark") else "",
        expect=tuple(_expectation(one, f"{where}: expect {place}", axes) for place, one in enumerate(expect, 1)),
    )


def _expectation(given: Any, where: str, axes: Sequence[str]) -> Expectation:
    given = values.check_keys(given, EXPECTATION, where)
    for key in EXPECTATION[:-1]:
        if key not in given:
            raise InputError(f"{where}: give {key}; an expectation has {', '.join(EXPECTATION)}")
    margin = given.get("margin", 0.0)
    be = values.choice(given["be"], f"{where}: be", FORMS)
    if type(margin) not in (int, float) or not 0 <= margin < float("inf") or (be in ("same",) and not margin):
        raise InputError(f"{where}: margin is a number, 0 or more, and above 0 for 'same'; got {shown(margin)}")
    cells = []
    for key in ("of", "than"):
        if not isinstance(given[key], Mapping) or not given[key]:
            raise InputError(f"{where}: {key} must be a mapping of axes to values; got {shown(given[key])}")
        values.check_keys(given[key], axes, f"{where}: {key}")
        cells.append({name: values.value_text(value) for name, value in given[key].items()})
    metric = values.text(given["metric"], f"{where}: metric")
    parse_metric(metric)
    return Expectation(metric, cells[0], be, cells[1], float(margin))


def named(cell: Mapping[str, str]) -> str:
    """The values of axes that mean a cell, as messages have them."""
    return ", ".join(f"{name} {value}" if name != "stack" else value for name, value in cell.items())
