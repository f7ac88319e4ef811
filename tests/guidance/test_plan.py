"""The plan of a stack, and what is said of it; that a run asks for it is in test_composition.py."""

from __future__ import annotations

import re

import guidestack as gs
from guidestack.guidance.notation.registry import Entry, rules
from guidestack.guidance.plan import SchedulePoint, never_asking, plan
from guidestack.guidance.testing.checks import LEVELS, Oracle
from guidestack.scripts.rules import cost

SCHEDULE = [SchedulePoint(index, 0, level, Oracle().time(index)) for index, level in enumerate(LEVELS)]


def test_what_the_list_of_rules_says_of_their_costs() -> None:
    costs = {entry.name: cost(entry) for entry in rules()}
    expected = {
        "cfg": "2", "cfgpp": "2", "rescale": "0 more", "renoise": "1 more", "during": "1 to 2", "prefix": "1 to 2",
        "adaptive": "at most 2", "schedule": "0 to 2", "linear_ag": "1 to 2",
        "perpneg": "3, 1 more for each further negative, 1 more for each further positive",
    }  # fmt: skip
    assert {name: costs[name] for name in expected} == expected
    assert all(re.match(r"(at most )?\d", one) for one in costs.values())
    mine = Entry("mine", gs.Rescale, ())
    assert cost(mine) == "not known without an example"


def test_a_window_outside_of_the_schedule_is_noticed() -> None:
    stack = gs.parse("cfg(2) | during(cfg(3), sigma=(1e5, 1e6)) | rescale(0.5) | cfg(1)")
    assert never_asking(stack, plan(stack, SCHEDULE)) == [1]


def test_a_prefix_ends() -> None:
    asked = [len(one.queries) for one in plan(gs.parse("prefix(cfg(3), 2)"), SCHEDULE)]
    assert asked == [2, 2, 1, 1, 1, 1]
