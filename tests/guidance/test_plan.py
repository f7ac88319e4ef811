"""The plan of a stack: what it says before anything runs is what a run then asks for."""

from __future__ import annotations

import re

import pytest

import guidestack as gs
from guidestack.guidance import Level, Wrapper
from guidestack.guidance.notation.registry import Entry, rules
from guidestack.guidance.plan import When, never_asking, plan
from guidestack.guidance.testing import composition
from guidestack.guidance.testing.checks import LEVELS, Oracle, oracle_run

SCHEDULE = [When(index, 0, level, Oracle().time(index)) for index, level in enumerate(LEVELS)]


@pytest.mark.parametrize("text", [text for text in composition.every() if composition.attempt(text).works])
def test_a_plan_is_what_a_run_asks_for(text: str) -> None:
    stack = gs.parse(text)
    planned = plan(stack, SCHEDULE)
    records = oracle_run(stack).run.report.steps
    for one, record in zip(planned, records, strict=True):
        asked = {query for query in record.queries if record.queries[query]}
        seen = {str(query).replace("independent:tokens", "independent") for query in one.queries}
        numbered = {name for name in map(str, asked) if name in ("negative:1", "positive:1")}
        wanted = set(map(str, asked)) - numbered
        assert wanted <= seen
        if not any(part.data_dependent for part in stack.parts()):
            assert seen == wanted


@pytest.mark.parametrize("entry", rules(), ids=lambda entry: entry.name)
def test_the_cost_in_words_is_what_a_plan_counts(entry: Entry) -> None:
    # Bundled coefficients are for 20 steps. One negative prompt and no positive beside the prompt.
    schedule = [When(index, 0, Level.vp((index + 0.5) / 20), 1 - index / 20) for index in range(20)]

    def most(*rules: gs.Rule) -> int:
        return max(len(one.queries) for one in plan(gs.Stack(*rules), schedule))

    stack = gs.parse(entry.examples[0])
    rule = next(part for part in stack.parts() if type(part) is entry.rule)
    number = re.match(r"\d+", entry.cost)
    if isinstance(rule, Wrapper):
        assert "that of the rule" in entry.cost
        assert most(rule) == most(rule.rule)
    elif entry.cost == "1 + positives + negatives":
        assert most(rule) == 1 + 1 + 1
    elif entry.cost.endswith("of its own"):
        assert number
        assert most(stack) - most(*(one for one in stack.rules if one is not rule)) == int(number[0])
    else:
        assert number
        assert most(rule) == int(number[0])
        if neutral := re.search(r"(\d+)( outside and)? at scale 1", entry.cost):
            assert most(rule.neutral()) == int(neutral[1])


def test_a_window_outside_of_the_schedule_is_noticed() -> None:
    stack = gs.parse("cfg(2) | during(cfg(3), sigma=(1e5, 1e6)) | rescale(0.5) | cfg(1)")
    assert never_asking(stack, plan(stack, SCHEDULE)) == [1]


def test_a_prefix_ends() -> None:
    asked = [len(one.queries) for one in plan(gs.parse("prefix(cfg(3), 2)"), SCHEDULE)]
    assert asked == [2, 2, 1, 1, 1, 1]
