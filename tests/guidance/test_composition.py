"""Every combination of the tables: each part has an effect, and what is reported is what the networks did."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.testing import composition
from guidestack.guidance.testing.checks import LEVELS, Oracle, oracle_run
from guidestack.guidance.testing.mixture import MixtureDenoiser
from guidestack.scripts import compositions

EVERY = list(dict.fromkeys(composition.every()))
REFUSED = [text for text in EVERY if not composition.attempt(text).works]
WORKING = [text for text in EVERY if text not in REFUSED]
SCHEDULE = [SchedulePoint(index, 0, level, Oracle().time(index)) for index, level in enumerate(LEVELS)]


@cache
def samples(rule: gs.Rule) -> Tensor:
    """x at every step, which both where to jump and what to re-noise with decide: the last one one step on."""
    oracle = Oracle()
    run, x, seen = oracle.begin(rule), oracle.start(), []
    for index in range(len(LEVELS)):
        _, x = oracle.step(run, x, index)
        seen.append(x)
    return torch.stack(seen)


def without_one(stack: gs.Rule) -> Iterator[gs.Rule]:
    """The stack with one of its parts left out: a rule of a sequence, or a wrapper around its rule."""
    if isinstance(stack, gs.Stack):
        for place, rule in enumerate(stack.rules):
            before, after = stack.rules[:place], stack.rules[place + 1 :]
            for less in (gs.Stack(), *without_one(rule)):
                with suppress(CompositionError):  # a refused one is nothing that the whole could be mistaken for
                    yield gs.Stack(*before, less, *after)
    elif isinstance(inner := getattr(stack, "rule", None), gs.Rule):
        yield inner
        for less in without_one(inner):
            with suppress(CompositionError):
                yield dataclasses.replace(stack, rule=less)  # type: ignore[type-var]


REDUNDANT = {
    composition.nested(outer, inner)
    for outer in composition.wrappers()
    for inner in composition.wrappers()
    if outer == inner or "adaptive" in outer + inner
}
REDUNDANT |= {composition.pair("epsilon_scaling()", "renorm()")}  # the length is the prompt's again
# To take x for noisier does not turn the first answer of the oracle away from the true one: this stops at once.
REDUNDANT |= {composition.around(outer, "sg(3)") for outer in composition.wrappers() if "adaptive" in outer}
# The two networks of the oracle agree from the first step on.
REDUNDANT |= {composition.around(outer, "autoguidance(2)") for outer in composition.wrappers() if "adaptive" in outer}

# What guidance at a scale of 2 would reach is above what a small step along the gradient does: nothing is cut off.
REDUNDANT |= {composition.pair("classifier(0.5, 'blue')", "threshold(mimic=2)")}
# To put the same known pixels in twice is to put them in once.
REDUNDANT |= {composition.pair("replace('border')", "replace('border')")}


@pytest.mark.slow
@pytest.mark.parametrize("text", WORKING)
def test_a_composition(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is what it asks for, its counts are the calls made, samples do not meet, and no part is ignored."""
    rows: list[int] = []
    original = MixtureDenoiser.__call__

    def counting(self: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        rows.append(len(x))
        return original(self, x, *arguments, **options)

    monkeypatch.setattr(MixtureDenoiser, "__call__", counting)
    stack = gs.parse(text)
    done = oracle_run(stack, Oracle())
    monkeypatch.undo()
    report = done.run.report
    assert sum(rows) == report.rows == sum(report.evaluations)
    assert len(rows) == report.calls
    for one, record in zip(plan(stack, SCHEDULE), report.steps, strict=True):
        asked = {query for query in record.queries if record.queries[query]}
        seen = {str(query).replace("independent:tokens", "independent") for query in one.queries}
        numbered = {name for name in map(str, asked) if re.split(r"\[|\+", name)[0] in ("negative:1", "positive:1")}
        wanted = set(map(str, asked)) - numbered
        assert wanted <= seen
        if not any(part.data_dependent for part in stack.parts()):
            assert seen == wanted
    for sample in range(3) if not any(part.couples for part in stack.parts()) else ():
        alone = oracle_run(stack, Oracle(samples=(sample,))).outputs
        for one, all_ in zip(alone, done.outputs, strict=True):
            assert torch.allclose(one[0], all_[sample], rtol=1e-9, atol=1e-9)
    whole, others = samples(stack), list(without_one(stack))
    assert others
    same = [str(less) for less in others if not (samples(less) - whole).abs().max() > 1e-6]
    # A window in a window, and a wrapper that stops later than the one inside it, change nothing, as they should.
    assert not same or text in REDUNDANT, f"{text} is {same}; if that is meant, add {text!r} to REDUNDANT"


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_one_line_that_names_both(text: str) -> None:
    reason = composition.attempt(text).reason
    assert "\n" not in reason
    outer = next((name for name in ("adaptive", "ramp") if f"{name}(" in text), None)
    for party in [outer, text.split(f"{outer}(")[-1]] if outer else text.split(" | "):
        assert party.split("(")[0] in reason, party


def test_the_page_is_what_the_command_prints() -> None:
    page = Path(gs.__file__).parent / "docs" / "compositions.md"
    assert page.read_text() == compositions.markdown(), "run: make tables"


def test_every_rule_is_in_the_tables() -> None:
    from guidestack.guidance.notation.registry import rules

    seen = {type(part) for text in WORKING for part in gs.parse(text).parts()}
    assert {entry.rule for entry in rules() if not entry.rule.whole_stack} <= seen


def test_every_rule_has_an_example_of_itself() -> None:
    from guidestack.guidance.notation.registry import rules

    for entry in rules():
        assert entry.examples, entry.name
        for text in entry.examples:
            assert entry.rule in {type(part) for part in gs.parse(text).parts()}, text


def test_traces_of_two_rules_of_one_kind_are_told_apart() -> None:
    stack = gs.parse("cfg(3) | rescale(0.7) | cfg(2, against='null') | rescale(0.4) | apg(2, radius=1)")
    traces = oracle_run(stack).run.report.steps[0].traces
    assert set(traces) == {"rescale.2", "rescale.4", "apg_clip"}
    assert set(oracle_run(gs.parse("cfg(3) | rescale(0.7)")).run.report.steps[0].traces) == {"rescale"}
    assert not torch.equal(traces["rescale.2"], traces["rescale.4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "adaptive(cfg(3), against='null')",
            "against='null' is not asked by cfg(3), which asks for negative, positive",
        ),
        ("adaptive(prefix(adaptive(cfg(3)), 2))", "both decide when a sample stops"),
        ("during(cfgpp(0.5), progress=(0, 0.5)) | renoise()", "both decide what the sampler re-noises with"),
        ("during(rescale(0.5), progress=(0, 0.5)) | cfg(3)", "write cfg(3) | during(rescale(0.5)"),
        ("renoise() | rescale(0.5) | cfg(2)", "write cfg(2) | rescale(0.5)"),
    ],
)
def test_what_is_hidden_in_wrappers_is_refused_too(text: str, message: str) -> None:
    with pytest.raises(CompositionError) as caught:
        gs.parse(text)
    assert message in str(caught.value)
