"""A paper's claim: in words, as expectations on the cells of a sweep, and what a run says of it.

An expectation compares a metric in two cells over the samples of the same prompts and seeds. The interval of the
difference, at 95%, is that of `intervals.jackknife`: both cells lose the same prompts; of shares that of
`intervals.paired_share`. A margin ``m`` is in the metric's unit:

=============  =================================  ==================================
``be``         holds if the interval lies         contrary if it lies
=============  =================================  ==================================
`lower`        below -m                           above -m
`higher`       above m                            below m
`not lower`    above -m                           below -m
`not higher`   below m                            above m
`same`         within (-m, m)                     outside of (-m, m)
=============  =================================  ==================================

and is undecided otherwise. A claim holds if all its expectations do, does not hold if one is contrary, and is undecided
else. Intervals are of each expectation by itself, not of all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.words import counted
from .. import statistics as intervals
from .. import values
from ..analysis.measure import Cells, singly
from ..metrics import SampleMetric, SetMetric, parse_metric
from ..store.folder import RunFolder

KEYS = ("words", "paper", "expect", "remark")
EXPECTATION = ("metric", "of", "be", "than", "margin")
MOST = 100  # expectations of a claim
FORMS = ("lower", "higher", "not lower", "not higher", "same")
HOLDS, CONTRARY, UNDECIDED = "holds", "does not hold", "undecided"


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
        return f"{self.metric} of {_named(self.of)} is {self.be} {'as' if self.be == 'same' else 'than'} that of " + (
            f"{_named(self.than)}{margin}"
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
        """As it stands in a sweep."""
        expect = []
        for one in self.expect:
            written: dict[str, Any] = {"metric": one.metric, "of": dict(one.of), "be": one.be, "than": dict(one.than)}
            expect.append(written | ({"margin": one.margin} if one.margin else {}))
        whole: dict[str, Any] = {"words": self.words, "paper": self.paper, "expect": expect}
        return whole | ({"remark": self.remark} if self.remark else {})


@dataclass(frozen=True)
class Finding:
    """What a run says of an expectation.

    Args:
        expectation: that.
        of: the metric in its one cell.
        than: in the other.
        low, high: interval of the difference ``of - than`` at 95%.
        prompts: that both cells have.
        samples: pairs of samples.
        note: what is to be said of so few.
    """

    expectation: Expectation
    of: float
    than: float
    low: float
    high: float
    prompts: int
    samples: int
    note: str = ""

    @property
    def told(self) -> str:
        """Both values, and the difference with its interval."""
        return (
            f"{self.of:.4g} and {self.than:.4g}, difference {self.of - self.than:+.4g} "
            f"[{self.low:+.4g}, {self.high:+.4g}], {counted(self.samples, 'pair')} of "
            f"{counted(self.prompts, 'prompt')}" + (f" ({self.note})" if self.note else "")
        )

    @property
    def verdict(self) -> str:
        """`HOLDS`, `CONTRARY` or `UNDECIDED`."""
        return judge(self.low, self.high, self.expectation.be, self.expectation.margin)


def judge(low: float, high: float, be: str, margin: float = 0.0) -> str:
    """What an interval of a difference says of an expectation; see the table above.

    Args:
        low: its lower end.
        high: its upper end.
        be: one of `FORMS`.
        margin: 0 or more.
    """
    if be in ("lower", "not higher"):  # the mirror image
        return judge(-high, -low, {"lower": "higher", "not higher": "not lower"}[be], margin)
    if be == "same":
        inside, outside = -margin < low and high < margin, high <= -margin or low >= margin
    else:
        bound = margin if be == "higher" else -margin
        inside, outside = low > bound, high < bound
    return HOLDS if inside else CONTRARY if outside else UNDECIDED


def overall(findings: Sequence[Finding]) -> str:
    """The verdict on a claim."""
    verdicts = {one.verdict for one in findings}
    return CONTRARY if CONTRARY in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def findings(run: RunFolder, claim: Claim) -> list[Finding]:
    """What a run says of each expectation of a claim.

    Raises:
        InputError: a cell has no samples, or a metric needs what is not there.
    """
    cells = Cells(run)
    return [_found(cells, one) for one in claim.expect]


def _found(cells: Cells, expectation: Expectation) -> Finding:
    one, other = (cell_meant(cells.told["cells"], which) for which in (expectation.of, expectation.than))
    metric = parse_metric(expectation.metric)
    prompts, of, than = cells.paired(metric, one, other)

    def difference(rows: NDArray[np.int64]) -> float:
        return of(rows) - than(rows)

    everything = np.arange(len(prompts))
    if isinstance(metric, SampleMetric | SetMetric) and metric.share:
        values = singly(of, everything), singly(than, everything)
        known = ~np.isnan(values[0]) & ~np.isnan(values[1])
        low, high = intervals.paired_share(values[0][known], values[1][known], prompts[known])
    else:
        low, high = intervals.jackknife(difference, prompts, difference(everything))
    units, note = len(np.unique(prompts)), metric.note(len(prompts))
    return Finding(expectation, of(everything), than(everything), low, high, units, len(prompts), note)


def cell_meant(cells: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]) -> str:
    """The hash of the one cell with these values of axes.

    Args:
        cells: as `RunFolder.cells` tells them.
        wanted: axes, with ``"stack"`` for the name of the template.

    Raises:
        InputError: no cell has them, or several.
    """
    found = [one["cell"] for one in cells if all(_axes(one).get(name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise InputError(
            f"the claim compares {_named(wanted)}, which means {counted(len(found), 'cell')}; name the values of one"
        )
    return str(found[0])


def _axes(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**cell["axes"], "stack": cell["template"]}


def table(claim: Claim, found: Sequence[Finding]) -> str:
    """The claim, what was found, and the verdict: for a terminal."""
    lines = [f"claim (arXiv:{claim.paper}): {claim.words}"]
    for one in found:
        lines.append(f"  {one.verdict}: {one.expectation}: {one.told}")
    return "\n".join([*lines, f"on this model: {overall(found)}"])


def markdown(found: Sequence[Finding]) -> str:
    """What was found, as rows of a table: expectation, both values, difference with interval, verdict."""
    lines = ["| expected | here | difference, 95% | |", "|---|---|---|---|"]
    for one in found:
        difference = f"{one.of - one.than:+.4g} [{one.low:+.4g}, {one.high:+.4g}]"
        lines.append(f"| {one.expectation} | {one.of:.4g} and {one.than:.4g} | {difference} | {one.verdict} |")
    return "\n".join(lines)


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
        raise InputError(f"{where}: expect is a list of 1 to {MOST} expectations; got {values.shown(expect)}")
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
        raise InputError(f"{where}: margin is a number, 0 or more, and above 0 for 'same'; got {values.shown(margin)}")
    cells = []
    for key in ("of", "than"):
        if not isinstance(given[key], Mapping) or not given[key]:
            raise InputError(f"{where}: {key} is a mapping of axes to values; got {values.shown(given[key])}")
        values.check_keys(given[key], axes, f"{where}: {key}")
        cells.append({name: values.value_text(value) for name, value in given[key].items()})
    metric = values.text(given["metric"], f"{where}: metric")
    parse_metric(metric)
    return Expectation(metric, cells[0], be, cells[1], float(margin))


def _named(cell: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" if name != "stack" else value for name, value in cell.items())
