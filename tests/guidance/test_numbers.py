"""Numbers as parameters: those of numpy and torch are plain numbers, and what a rule accepts it can compute with."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import RuleError
from guidestack.guidance.fields import LARGEST, SMALLEST
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.prediction import EPSILON, FLOW, Level, Parameterization, Prediction
from guidestack.guidance.query import POSITIVE, Predictions, Query
from guidestack.guidance.step import Estimate, Run, Step

EXAMPLES: tuple[gs.Rule, ...] = (
    gs.CFG(3),
    gs.Rescale(1),
    gs.Renorm(axes=(1, 2)),
    gs.PerpNeg(3, weights=(2, 1), positive_weights=2),
    gs.APG(3, eta=1, radius=2, momentum=-0.5, axes=(2,)),
    gs.CFGPlusPlus(1),
    gs.CFGZero(3, zero_steps=2),
    gs.TCFG(3),
    gs.FDG(2, 4),
    gs.FreSca(3, low=2, high=4, cutoff=1),
    gs.MamboG(3, alpha=2),
    gs.SMCCFG(3, decay=2, gain=1),
    gs.Momentum(2, decay=0.5),
    gs.EpsilonScaling(2),
    gs.Skimmed(3, skim=2),
    gs.Threshold(quantile=1, mimic=2, ceiling=2),
    gs.ADG(3, largest=1),
    gs.FBG(0.5, temperature=2, offset=-1, largest=4),
    gs.Ramp(gs.CFG(3), floor=1),
    gs.Renoise(),
    gs.ICG(3),
    gs.TSG(3, strength=2, power=1, window=(0, 1), blocks=2),
    gs.During(gs.CFG(3), sigma=(1, 2)),
    gs.During(gs.CFG(3), progress=(0, 1), per_step=True),
    gs.Prefix(gs.CFG(3), 2),
    gs.AdaptiveGuidance(gs.CFG(3), threshold=1, lag=1),
    gs.LinearAG(gs.CFG(3), "mine.safetensors"),
    gs.Schedule(gs.CFG(3), "g c*", order=0),
    gs.PAG(3, blocks="mid"),
    gs.SEG(3, sigma=1, blocks="mid"),
    gs.SLG(3, blocks="7,8"),
    gs.TPG(3),
    gs.SelfGuidance(3, shift=10),
    gs.S2(3, share=0.5),
    gs.NAG(3, tau=2, alpha=1),
    gs.NASA(1),
    gs.PLADIS(2),
    gs.Autoguidance(3),
    gs.TokenMerge(gs.CFG(3), 0.5, prune=1),
    gs.TFG("blue", rho=2, mu=1, smoothing=1, inner=2, samples=2),
    gs.ClassifierGuidance(3, "blue"),
    gs.EluCD(3, "blue", sine=1),
    gs.ClassifierReference(3, "blue", ("red", "green")),
    gs.PPGN("blue", 2, prior=0.5, condition=2, noise=2),
    gs.Replace("border", fresh=True),
    gs.REDDiff("border", 2, 1),
    gs.Langevin(2, power=3, snr=1),
    gs.Recur(2, length=2),
    gs.Resample(4, 3, sigma=(1, 2), clamp=2, below=1, reward="blue", strength=2),
    gs.ZSampling(2, times=2),
    gs.FSG(3, ((0, 0.5, 2),), inverse=1),
    gs.CFGMP(2, damping=1),
    gs.RectifiedCFG(2, ahead=1),
)
TEXTS = ("apg(1e308, radius=1e-300)", "perpneg(4, weights=(1e300, 1e300))", "cfg(3, against='positive+time(1e999)')")


def numeric(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, tuple) and all(map(numeric, value)))


def parameters() -> list[Any]:
    """Every parameter of every rule that is a number, or several."""
    return [
        pytest.param(rule, field.name, id=f"{type(rule).__name__}.{field.name}")
        for rule in EXAMPLES
        for field in dataclasses.fields(rule)
        if numeric(getattr(rule, field.name))
    ]


def test_every_rule_has_an_example() -> None:
    assert {entry.rule for entry in rules()} == {type(rule) for rule in EXAMPLES}


def one_by_one(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: [make(one) for one in value] if isinstance(value, tuple) else make(value)


@pytest.mark.parametrize("made", [np.array, torch.tensor, one_by_one(np.array), one_by_one(torch.tensor)])
@pytest.mark.parametrize(("rule", "name"), parameters())
def test_numbers_of_numpy_and_torch_are_plain_numbers(rule: gs.Rule, name: str, made: Callable[[Any], Any]) -> None:
    changed = dataclasses.replace(rule, **{name: made(getattr(rule, name))})
    assert changed == rule
    assert hash(changed) == hash(rule)
    assert repr(changed) == repr(rule)  # no trace of the other library is left, also where it is read back
    assert gs.parse(str(changed)) == changed
    assert gs.from_config(gs.to_config(changed)) == changed
    assert pickle.loads(pickle.dumps(changed)) == rule


@pytest.mark.parametrize("number", [np.int64(4), np.float32(4), np.float64(4), torch.tensor(4), torch.tensor(4.0), 4])
def test_a_number_is_the_same_whoever_made_it(number: Any) -> None:
    assert gs.CFG(number) == gs.CFG(4.0)
    assert repr(gs.CFG(number)) == repr(gs.CFG(4))


def test_texts_of_numpy_are_plain_texts() -> None:
    rule = gs.LinearAG(gs.CFG(3), np.str_("a.safetensors"), policy=np.str_("gc"))
    assert str(rule) == "linear_ag(cfg(3), 'a.safetensors', policy='gc')"
    assert str(gs.ICG(3, source=np.str_("class"))) == "icg(3, source='class')"
    assert str(gs.CFG(3, against=np.str_("null"))) == "cfg(3, against='null')"


@pytest.mark.parametrize("rule", EXAMPLES, ids=str)
def test_a_stack_of_one_rule_equals_the_rule(rule: gs.Rule) -> None:
    if rule.refines:
        rule = gs.Stack(gs.CFG(3), rule)
    read = gs.parse(str(rule))
    assert read == rule
    assert rule == read
    assert (read != rule) is False
    assert len({rule, read, gs.Stack(read)}) == 1
    other = gs.CFG(2.5)
    assert gs.Stack(other) != rule
    assert rule != gs.Stack(other)
    if not (
        rule.whole_stack or rule.renoises or isinstance(rule, gs.Resample | gs.Replace | gs.REDDiff)
    ):  # which stand alone
        assert gs.Stack(rule, gs.CFG(2.5)) != rule
    assert gs.Stack() != rule
    assert read != str(rule)


HUGE: Mapping[str, float] = {
    "400 digits": 10**400,
    "minus 400 digits": -(10**400),
    "5000 digits": 10**5000,
    "minus 5000 digits": -(10**5000),
    "1e300": 1e300,
    "inf": math.inf,
    "nan": math.nan,
    "twice the largest": 2 * LARGEST,
}
WRONG: Mapping[str, Any] = {
    "an integer": 10**5000,
    "a list": [10**5000],
    "a mapping": {"a": 10**5000},
    "a text": "? " * 10**6,
    "an array of texts": np.array(["a", "b"]),
    "complex": 1j,
}


@pytest.mark.parametrize("wrong", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize(("rule", "name"), parameters())
def test_numbers_that_no_tensor_holds_are_refused(rule: gs.Rule, name: str, wrong: Any) -> None:
    value = getattr(rule, name)
    for given in (wrong, (value[0], wrong), (wrong, value[1])) if isinstance(value, tuple) and value[1:] else (wrong,):
        if name == "sigma" and given in ((1.0, 1e300), (1.0, math.inf), (1.0, 2 * LARGEST)):
            continue  # noise levels are only compared
        if isinstance(rule, gs.SEG) and given == math.inf:
            continue  # a blur without an end is the mean
        with pytest.raises(RuleError) as caught:
            dataclasses.replace(rule, **{name: given})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", TEXTS)
def test_text_with_such_numbers_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        gs.parse(text)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("rule", EXAMPLES, ids=str)
def test_any_wrong_value_is_one_short_line(rule: gs.Rule, wrong: Any) -> None:
    for field in dataclasses.fields(rule):
        if field.name == "coefficients" and isinstance(wrong, str):
            continue  # whether there is such a file is asked when a run begins
        with pytest.raises(gs.GuidestackError) as caught:
            dataclasses.replace(rule, **{field.name: wrong})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


EXTREME: tuple[gs.Rule, ...] = (
    gs.CFG(LARGEST),
    gs.CFG(-LARGEST) | gs.Rescale(1),
    gs.CFG(LARGEST) | gs.Renorm(),
    gs.PerpNeg(LARGEST, weights=LARGEST, positive_weights=LARGEST) | gs.Rescale(1),
    gs.PerpNeg(-LARGEST, weights=(LARGEST, LARGEST)),
    gs.APG(LARGEST, eta=LARGEST, momentum=1 - 1e-12),
    gs.APG(LARGEST, eta=LARGEST, radius=SMALLEST, momentum=-0.5) | gs.Rescale(1),
    gs.APG(-LARGEST, eta=-LARGEST, radius=LARGEST, radius_unit="per_sqrt_dim", axes=(2,)),
    gs.APG(3, radius=SMALLEST, axes=(1,)),
    gs.ICG(LARGEST),
    gs.TSG(LARGEST, strength=LARGEST, power=LARGEST),
    gs.CFGZero(LARGEST),
    gs.TCFG(LARGEST),
    gs.FDG(LARGEST, -LARGEST),
    gs.FreSca(1e3, low=1e3, high=-1e3),
    gs.MamboG(LARGEST, alpha=LARGEST),
    gs.SMCCFG(LARGEST, decay=LARGEST, gain=LARGEST),
    gs.SMCCFG(LARGEST, decay=LARGEST, gain=LARGEST, switching="unit"),
    gs.CFG(3) | gs.Momentum(LARGEST, decay=1),
    gs.EpsilonScaling(LARGEST),
    gs.Skimmed(LARGEST, skim=-LARGEST),
    gs.CFG(LARGEST) | gs.Threshold(quantile=1e-9),
    gs.CFG(LARGEST) | gs.Threshold(mimic=LARGEST),
    gs.ADG(LARGEST),
    gs.FBG(1e-9, temperature=LARGEST, offset=-LARGEST, largest=LARGEST),
    gs.FBG(0.5, temperature=LARGEST, offset=LARGEST, largest=1.001),
    gs.Ramp(gs.CFG(LARGEST / 2)),
    gs.AdaptiveGuidance(gs.PerpNeg(LARGEST, weights=LARGEST), threshold=LARGEST),
    gs.Schedule(gs.PerpNeg(LARGEST, weights=LARGEST), "g2 r s r"),
    gs.PerpNeg(LARGEST, weights=LARGEST) | gs.APG(LARGEST, eta=LARGEST) | gs.CFGPlusPlus(1),
)


@pytest.mark.parametrize("emits", [EPSILON, FLOW], ids=["epsilon", "flow"])
@pytest.mark.parametrize("rule", EXTREME, ids=str)
@pytest.mark.parametrize("equal", [False, True], ids=["predictions differ", "predictions are equal"])
def test_what_is_accepted_stays_finite_in_float32(rule: gs.Rule, emits: Parameterization, equal: bool) -> None:
    shape, generator = (2, 4, 8, 8), torch.Generator().manual_seed(0)
    run = Run(shape, steps=5, seeds=(0, 1), negatives=(2, 1), positives=(1, 0))
    state = gs.Stack(rule).init(run)
    for index in range(5):
        level = Level.ve(14.0 - 3 * index) if emits is EPSILON else Level.flow(0.98 - 0.2 * index)
        step = Step(run, index, level, step_level=level, time=1 - index / 5)
        x, c = (30 * torch.randn(shape, generator=generator) for _ in range(2))
        answers: dict[Query, Tensor] = {POSITIVE: c}
        for query in gs.Stack(rule).queries(step, state):
            answers.setdefault(query, c.clone() if equal else 30 * torch.randn(shape, generator=generator))
        read = {query: Prediction(value, x, level, emits) for query, value in answers.items()}
        predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
        estimate, state = gs.Stack(rule).update(Estimate(read[POSITIVE]), predictions, step, state)
        assert torch.isfinite(estimate.prediction.native).all()
