"""Text and mappings of stacks: round trips, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import guidestack as gs
from guidestack.guidance.errors import CompositionError, GuidestackError, StackSyntaxError

numbers = st.floats(-1e6, 1e6)
spans = st.tuples(st.floats(0, 5), st.floats(6, 1e9) | st.just(float("inf")))
spaces = st.sampled_from(["native", "denoised", "noise", "velocity"])
strengths = st.floats(0, 9) | st.lists(st.floats(0, 9), min_size=1, max_size=3).map(tuple)
queries = st.sampled_from(
    ["negative", "null", "negative:3", "positive@weak", "positive+time(1.5)", "null@weak+widen(0.123456789, blocks=2)"]
)
simple = st.one_of(
    st.builds(gs.CFG, numbers, queries),
    st.builds(gs.Rescale, st.floats(0, 1), spaces),
    st.builds(gs.PerpNeg, numbers, strengths, strengths),
    st.builds(gs.APG, numbers, numbers, st.floats(0.1, 99) | st.none(), st.floats(-0.9, 0.9), against=queries),
    st.builds(gs.CFGPlusPlus, st.floats(0, 1), queries),
    st.builds(gs.CFGZero, numbers, st.integers(0, 9), queries),
    st.builds(gs.FDG, numbers, numbers, queries),
    st.builds(gs.SMCCFG, numbers, st.floats(0, 9), st.floats(0, 9), st.sampled_from(["sign", "unit"])),
    st.builds(gs.Threshold, st.floats(0.1, 1), numbers | st.none(), st.floats(1, 9), queries),
    st.builds(gs.FBG, st.floats(0.1, 1), st.floats(0, 9), numbers, st.floats(1.5, 99), queries),
    st.builds(gs.Renoise, queries),
    st.builds(gs.ICG, numbers, st.sampled_from(["tokens", "gaussian", "class"])),
    st.builds(gs.TSG, numbers, st.floats(0, 9), st.floats(0, 3), st.sampled_from([(0.0, 1.0), (0.2, 0.8)])),
)


def stack_of(rules: list[gs.Rule]) -> gs.Stack | None:
    try:
        return gs.Stack(*rules)
    except CompositionError:
        return None


def adaptive_of(rule: gs.Rule, threshold: float) -> gs.Rule | None:
    try:
        return gs.AdaptiveGuidance(rule, threshold)
    except CompositionError:
        return None


def extended(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(gs.During, inner, sigma=spans),
        st.builds(gs.Prefix, inner, st.integers(0, 9)),
        st.builds(adaptive_of, inner, st.floats(-1, 2)).filter(lambda rule: rule is not None),
        st.lists(inner, max_size=3).map(stack_of).filter(lambda rule: rule is not None),
    )


stacks = st.recursive(simple, extended, max_leaves=5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(stacks)
def test_every_stack_comes_back_from_text_and_yaml(rule: gs.Rule) -> None:
    stack = gs.Stack(rule)
    assert gs.parse(str(stack)) == stack
    assert gs.from_config(gs.to_config(stack)) == stack
    assert gs.from_config(yaml.safe_load(yaml.safe_dump(gs.to_config(stack)))) == stack


def test_readable() -> None:
    assert str(gs.parse(" during( cfg(4.0) |rescale(phi=0.7),sigma=[0.2,inf] ) ")) == (
        "during(cfg(4) | rescale(0.7), sigma=(0.2, inf))"
    )
    assert str(gs.Stack()) == "stack()"
    assert str(gs.parse("stack(cfg(2), stack(cfg(3)))")) == "cfg(2) | cfg(3)"
    assert repr(gs.Stack(gs.Rescale(1))) == "Stack(Rescale(phi=1.0, space='native'))"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cgf(4)", "at character 1: unknown rule 'cgf'; did you mean 'cfg'?"),
        ("cfg(4) | recale(1)", "at character 10: unknown rule 'recale'; did you mean 'rescale'?"),
        ("cfg(4, agianst='null')", "no argument 'agianst'; did you mean 'against'?"),
        ("cfg(4", "at character 4: '(' was never closed"),
        ("cfg()", "cfg needs 'scale': cfg(scale, against='negative')"),
        ("cfg(1, 'null', 3)", "takes 2 arguments at most, got 3"),
        ("cfg(1, scale=2)", "got 'scale' twice"),
        ("cfg(scale=1, scale=2)", "each once"),
        ("cfg('four')", "scale must be a finite number, got 'four'"),
        ("cfg", "not a call"),
        ("", "is empty"),
        ("4", "expected a rule"),
        ("cfg(4) + cfg(3)", "only rules, literals and '|'"),
        ("cfg(4) | 3", "at character 10: '|' stands between rules only"),
        ("__import__('os').system('id')", "at character 1: only rules, literals"),
        ("cfg(__import__('os'))", "at character 5: unknown rule '__import__'"),
        ("cfg(open)", "at character 5"),
        ("cfg(4 if True else 3)", "at character 5: only"),
        ("cfg(*[4])", "at character 5: only"),
        ("cfg(**{'scale': 4})", "one by one"),
        ("cfg(-'a')", "a sign stands before numbers only"),
        ("cfg(f'{4}')", "only"),
        ("(lambda: cfg(4))()", "only"),
        ("stack(scale=3)", "takes rules only"),
        ("cfg(4)\x00", "at character 7: "),
        ("cfg(4)|", "at character 7: "),
        ("cfg(4) | ", "at character 8: "),
        ("cfg(ä)", "at character 5"),
        ("'ä' | cfg(4)", "at character 1: '|' stands"),
        ("(" * 5000, "cannot read"),
        ("-" * 9000 + "4", "cannot read"),
        ("cfg(4)" + " | cfg(4)" * 5000, "at most 10000 characters"),
    ],
)
def test_what_is_no_stack_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(GuidestackError) as caught:
        gs.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "one key 'rules'"),
        ([], "one key 'rules'"),
        ({"rules": [], "name": "x"}, "one key 'rules'"),
        ({"rules": "cfg(4)"}, "one key 'rules'"),
        ({"rules": ["cfg(4)"]}, "a rule is a mapping"),
        ({"rules": [{"cgf": {"scale": 4}}]}, "did you mean 'cfg'"),
        ({"rules": [{"cfg": {"scale": 4}, "rescale": {}}]}, "with one name"),
        ({"rules": [{"cfg": 4}]}, "expected a mapping of arguments"),
        ({"rules": [{"cfg": {}}]}, "needs 'scale'"),
        ({"rules": [{"cfg": {"scale": 4, "x": 1}}]}, "no argument 'x'"),
        ({"rules": [{"cfg": {"scale": "4"}}]}, "finite number"),
        ({"rules": [{3: {}}]}, "unknown rule 3"),
    ],
)
def test_mappings_are_strict(mapping: Any, message: str) -> None:
    with pytest.raises((StackSyntaxError, GuidestackError), match=message):
        gs.from_config(mapping)


def test_citations() -> None:
    assert gs.citation(gs.Stack()) == ""
    text = gs.citation(gs.parse("during(cfg(4) | rescale(0.7), sigma=(0, 1)) | cfg(2)"))
    assert [line.split("{")[1].rstrip(",") for line in text.splitlines() if line.startswith("@")] == [
        "kynkaanniemi2024applying",
        "ho2022classifier",
        "lin2024common",
    ]
    assert text.count("{") == text.count("}")


def test_third_parties_register_rules() -> None:
    from dataclasses import dataclass

    from guidestack.guidance.errors import RuleError
    from guidestack.guidance.notation.registry import _ENTRIES

    @dataclass(frozen=True)
    class Mine(gs.Rule):
        """Mine."""

        strength: float = 1.0

    try:
        gs.register("mine")(Mine)
        assert gs.parse("mine(2.5) | cfg(3)") == gs.Stack(Mine(2.5), gs.CFG(3))
        with pytest.raises(RuleError, match="taken by Mine"):
            gs.register("mine")(Mine)
    finally:
        del _ENTRIES["mine"]
    with pytest.raises(RuleError, match="Mine has no name"):
        str(type("Mine", (Mine,), {})())
    with pytest.raises(RuleError, match="frozen dataclass"):
        gs.register("mine")(type("Loose", (gs.Rule,), {}))
    with pytest.raises(RuleError, match="identifier"):
        gs.register("stack")(Mine)
