"""What a notebook shows of stacks, plans and reports: all of it is text, and readable in light and in dark."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import pytest

import guidestack as gs
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.notebook import MAX_STEPS
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.prediction import Level
from guidestack.guidance.report import Report
from guidestack.guidance.rule import FURTHER


def cells(shown: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", shown)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def schedule(steps: int) -> list[SchedulePoint]:
    return [SchedulePoint(index, 0, Level.flow(1 - index / steps), 1 - index / steps) for index in range(steps)]


@dataclass(frozen=True)
class Nameless(gs.Rule):
    """<b>Bold</b> words."""

    text: str = "<script>"


def test_a_stack_is_a_table_of_its_rules() -> None:
    shown = gs.parse("during(cfg(4) | rescale(0.5), progress=(0, 0.5)) | renorm()")._repr_html_()
    assert "during(cfg(4) | rescale(0.5), progress=(0, 0.5)) | renorm()" in shown
    names = [row[0] for row in cells(shown)[1:]]
    assert [name.strip() for name in names] == [
        "during(progress=(0, 0.5))",
        "cfg(scale=4)",
        "rescale(phi=0.5)",
        "renorm()",
    ]
    assert [name.startswith(FURTHER) for name in names] == [False, True, True, False]
    assert cells(shown)[2][2] == "negative, positive"
    assert "the unguided model" in gs.Stack()._repr_html_()
    assert len(cells(gs.CFG(4)._repr_html_())) == 2


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("tfg('blue', rho=1)", "the gradient of the objective 'blue', through the network"),
        ("tfg('blue', mu=1)", "the objective 'blue'"),
        ("nag(3)", "an edit of the prompt's own pass with the negative prompt's text"),
        ("pladis()", "an edit of the prompt's own pass"),
        ("langevin(2)", "turns between two steps"),
        ("zigzag()", "negative; turns between two steps"),
        ("tome(cfg(3), 0.5)", "negative, positive; an edit of every pass"),
    ],
)
def test_what_a_rule_asks_for(text: str, asked: str) -> None:
    assert html.unescape(cells(gs.parse(text)._repr_html_())[1][2]) == asked


def test_only_rules_that_ask_for_nothing_say_so() -> None:
    """Over the registry: what works on the estimate of other rules, and on what it remembers, is all there is."""
    silent = {
        row[0].strip().partition("(")[0]
        for entry in rules()
        for example in entry.examples
        for row in cells(gs.parse(example)._repr_html_())[1:]
        if row[2] == "nothing"
    }
    assert silent == {"epsilon_scaling", "momentum", "threshold"}


def test_a_plan_is_a_table_of_its_evaluations() -> None:
    made = plan(gs.Stack(gs.During(gs.CFG(4), progress=(0, 0.5))), schedule(4))
    assert (made.evaluations, made.at_most, made.cost) == (6, False, "6 evaluations a sample")
    assert [row[2] for row in cells(made._repr_html_())[1:]] == ["2", "2", "1", "1"]
    assert str(made).splitlines()[0].endswith("6 evaluations a sample; unguided: 4")
    assert len(str(made).splitlines()) == 6
    assert "at most" in str(plan(gs.parse("adaptive(cfg(4))"), schedule(2)))


def test_it_is_short_and_escaped_and_has_no_colours() -> None:
    long = plan(gs.Stack(gs.CFG(4)), schedule(1000))._repr_html_()
    assert len(cells(long)) == 1 + MAX_STEPS
    assert f"and {1000 - MAX_STEPS} more" in long
    for shown in (long, Nameless()._repr_html_(), Report("<script>", 1)._repr_html_(), gs.CFG(4)._repr_html_()):
        assert not re.search(r"<script|<b>|color|background", shown)
