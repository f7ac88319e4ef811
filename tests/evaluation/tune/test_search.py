"""The search on a likeness that is known in closed form: no model, no image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

import guidestack as gs
from guidestack.evaluation.tune.frontier import Point, pareto
from guidestack.evaluation.tune.goal import Goal
from guidestack.evaluation.tune.preset import candidates, verdict_on
from guidestack.evaluation.tune.search import search
from guidestack.evaluation.tune.space import Space, possible, spaced
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.guidance.plan import SchedulePoint
from guidestack.guidance.rules import Schedule
from guidestack.guidance.testing.checks import LEVELS

STEPS = len(LEVELS)
POINTS = [SchedulePoint(index, 0, level) for index, level in enumerate(LEVELS)]
WEIGHTS = np.array([9.0, 1.0, 5.0, 0.5, 3.0, 8.0])  # what leaving a step out costs in likeness


def space(reference: str = "cfg(3)") -> Space:
    return Space.of(gs.parse(reference), POINTS, lambda stack: None)


def point(stack: str, cost: float, distance: float) -> Point:
    prompts = np.arange(4)
    return Point(stack, STEPS, np.full(4, cost), {"d": distance + 0.01 * (prompts - 1.5)}, prompts)


class Synthetic:
    """The distance of a plan is the sum of what each step loses: nothing where it is guided."""

    def __init__(self, among: Space) -> None:
        self.space, self.made = among, dict[str, Point]()

    def __call__(self, stacks: Sequence[str]) -> list[Point]:
        for text in stacks:
            if text not in self.made:
                self.made[text] = point(text, self.space.cost(gs.parse(text)), self.distance(text))
        return [self.made[text] for text in stacks]

    @staticmethod
    def distance(text: str) -> float:
        rule = gs.parse(text).rules[0]
        letters = rule.letters(STEPS) if isinstance(rule, Schedule) else "g" * STEPS
        share = {"g": 0.0, "r": 0.4, "c": 0.7, "s": 1.0}
        return float(sum(weight * share[letter] for weight, letter in zip(WEIGHTS, letters, strict=True)))


def texts(points: Sequence[Point]) -> list[str]:
    return [one.stack for one in points]


def test_the_frontier_is_that_of_what_was_tried() -> None:
    synthetic = Synthetic(space())
    found = search(space(), synthetic, "d", -1, 60)
    assert len({one.stack for one in found}) == len(found) == 61
    assert found[0].stack == "cfg(3)"
    front = pareto(found, "d", -1)
    for one in found:
        beaten = any(
            other.cost <= one.cost and other.mean("d") <= one.mean("d") and other is not one for other in found
        )
        assert beaten or one in front, one.stack
    assert [one.cost for one in front] == sorted(one.cost for one in front)
    for one, other in itertools.pairwise(front):
        assert other.mean("d") < one.mean("d")


def test_it_finds_what_nobody_told_it() -> None:
    informed = Synthetic(space())
    told = pareto(informed([str(space().stack(chosen)) for chosen in space().informed()]), "d", -1)
    found = pareto(search(space(), Synthetic(space()), "d", -1, 120), "d", -1)

    def best(front: Sequence[Point], cost: float) -> float:
        return min(one.mean("d") for one in front if one.cost <= cost)

    assert sum(best(found, cost) for cost in (4, 6, 8, 10)) < sum(best(told, cost) for cost in (4, 6, 8, 10)) - 1


def test_what_is_made_already_is_not_made_again_and_changes_nothing() -> None:
    whole = Synthetic(space())
    wanted = search(space(), whole, "d", -1, 40)
    part = Synthetic(space())
    search(space(), part, "d", -1, 40 - 13)
    before = set(part.made)
    assert texts(search(space(), part, "d", -1, 40)) == texts(wanted)
    assert before < set(part.made) == set(whole.made)


def test_another_seed_proposes_otherwise() -> None:
    one, other = (texts(search(space(), Synthetic(space()), "d", -1, 40, seed)) for seed in (0, 1))
    assert one != other


def test_nothing_dearer_than_the_reference_is_tried() -> None:
    known = {str(space().stack(chosen)) for chosen in space().informed()}  # the costs of adaptive ones are bounds
    found = search(space(), Synthetic(space()), "d", -1, 60)
    assert max(one.cost for one in found if one.stack not in known | {"cfg(3)"}) < 2 * STEPS


def test_a_small_space_ends() -> None:
    small = Space.of(gs.parse("cfg(1)"), POINTS[:2], lambda stack: None)
    assert small.letters == ("g", "s")

    def measure(stacks: Sequence[str]) -> list[Point]:
        return [point(text, small.cost(gs.parse(text)), 0.0) for text in stacks]

    found = texts(search(small, measure, "d", -1, 50))
    assert found[0] == "cfg(1)"
    assert 1 < len(found) <= 1 + len(small.choices["skip_order"]) * len(small.choices["space"])
    assert all("'g s'" in text for text in found[1:])


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_nothing_is_refused(budget: int) -> None:
    with pytest.raises(InputError, match=f"--budget is the number of stacks to try, 1 at least; got {budget}"):
        search(space(), Synthetic(space()), "d", -1, budget)


def test_further_stacks_come_first_and_count() -> None:
    extra = ["prefix(cfg(3), 2)", "prefix(cfg(3), 4)"]

    class Measured(Synthetic):
        @staticmethod
        def distance(text: str) -> float:
            return 1.0

    found = texts(search(space(), Measured(space()), "d", -1, 5, extra=extra))
    assert found[1:3] == extra
    assert len(found) == 6


# --- the space ------------------------------------------------------------------------------------------------------


def test_what_a_model_cannot_run_is_left_out() -> None:
    def sequential(stack: gs.Stack) -> None:
        if stack.skips:
            raise UnsupportedPipelineError("calls it for each condition by itself")

    assert Space.of(gs.parse("cfg(3)"), POINTS, sequential).letters == ("g", "c", "r")
    with pytest.raises(
        InputError, match=r"nothing can be left out of cfg\(1\), which costs 1 evaluation a step: calls"
    ):
        Space.of(gs.parse("cfg(1)"), POINTS, sequential)
    with pytest.raises(InputError, match="is a schedule of its own; give what it stands around"):
        space("schedule(cfg(3), 'g s*')")


def test_a_rule_without_a_contrast_has_no_threshold() -> None:
    assert "threshold" in space().choices
    assert "threshold" not in space("renoise()").choices


@pytest.mark.parametrize(
    ("letters", "meant"),
    [("gcrs", "gcrs"), ("rrcg", "ggcg"), ("ssss", "gggg"), ("csrg", "csgg"), ("crgr", "cggr"), ("srgc", "gggc")],
)
def test_letters_without_anything_to_go_by_are_guided(letters: str, meant: str) -> None:
    assert possible(letters) == meant
    Schedule(gs.CFG(3), meant)


def test_what_is_informed_can_be_made() -> None:
    for reference in ("cfg(3)", "cfg(1)", "apg(3) | rescale(0.5)", "cfgpp(0.6)"):
        among = space(reference)
        stacks = [str(among.stack(chosen)) for chosen in among.informed()]
        assert len(set(stacks)) == len(stacks) > 3
        for chosen in among.informed():
            assert set(chosen) == set(among.choices)
            assert all(value in among.choices[name] for name, value in chosen.items())
    assert spaced(25, 13) == "gs" * 12 + "g"


# --- choosing -------------------------------------------------------------------------------------------------------


def test_the_cheapest_that_reaches_the_goal_is_chosen() -> None:
    points = [point("a", 50, 0.0), point("b", 20, 0.1), point("c", 25, 0.2), point("d", 12, 0.4), point("e", 6, 0.9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Goal, "sign", -1)
        assert texts(list(candidates(points, Goal("d", 0.45), None))) == ["d", "b", "a"]
        assert texts(list(candidates(points, Goal("d", evaluations=25), None))) == ["b", "d", "e"]
        assert texts(list(candidates(points, Goal("d", than="c"), points[2]))) == ["b", "a"]
        assert texts(list(candidates(points, Goal("d", 0.45, None, 12), None))) == ["d"]
        with pytest.raises(InputError, match=r"none of 5 stacks reaches d <= -1 .* the best found is a, d 0 \["):
            list(candidates(points, Goal("d", -1), None))
        with pytest.raises(InputError, match="the best found is d, "):
            list(candidates(points, Goal("d", 0.1, None, 15), None))


def test_a_goal_is_reached_with_its_whole_interval() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Goal, "sign", -1)
        one = point("one", 10, 0.5)
        low, high = one.interval("d")
        assert low < 0.5 < high
        assert verdict_on(one, Goal("d", high), None).reached
        assert not verdict_on(one, Goal("d", 0.5), None).reached
        assert verdict_on(one, Goal("d", than="other"), point("other", 10, 0.5)).reached  # equal, image by image
        assert not verdict_on(one, Goal("d", than="other"), point("other", 10, 0.499)).reached


def test_proposals_descend_from_the_best_of_what_is_informed() -> None:
    """Most letters of most proposals are those of a plan that was known before: that is what informed plans are for."""
    synthetic = Synthetic(space())
    known = {str(space().stack(chosen)) for chosen in space().informed()}

    def letters(text: str) -> str:
        rule = gs.parse(text).rules[0]
        return rule.letters(STEPS) if isinstance(rule, Schedule) else "g" * STEPS

    proposed = [text for text in texts(search(space(), synthetic, "d", -1, len(known) + 16))[1:] if text not in known]
    changed = [
        min(sum(a != b for a, b in zip(letters(text), letters(other), strict=True)) for other in known)
        for text in proposed
    ]
    assert sum(changed) / len(changed) < 2  # of 6; letters drawn at random differ more from the nearest


def test_a_comparison_says_which_is_more_alike() -> None:
    from guidestack.evaluation.tune.preset import comparison

    low, high = point("low", 10, 0.1), point("high", 12, 0.6)
    noisy = Point("noisy", STEPS, low.evaluations, {"d": np.array([0.0, 0.9, -0.4, -0.1])}, low.prompts)
    assert "the tuned is more alike (d -0.5 [-0.5, -0.5])" in comparison(low, high, ["d"], -1)
    assert "the tuned is less alike" in comparison(high, low, ["d"], -1)
    assert "the tuned is less alike" in comparison(low, high, ["d"], 1)
    assert "12 evaluations, d 0.6; " in comparison(low, high, ["d"], -1)
    assert "the tuned is not told apart" in comparison(noisy, low, ["d"], -1)
