"""No step makes the host wait for an accelerator, unless its rule says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestack import parse
from guidestack.guidance import fetched
from guidestack.guidance.errors import NonFiniteError
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.notation.presets import as_stack
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.prediction import EPSILON, Level
from guidestack.guidance.query import Query
from guidestack.guidance.rule import Stack, objectives_of
from guidestack.guidance.rules import Schedule
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Run

from ..spoiling import Spoil
from .elsewhere import Device, Elsewhere

SHAPE = (3, 2, 4, 4)
STEPS = 5
CONDITIONS = ("null", "negative", "negative:0", "negative:1", "positive:1", "positive")
EXAMPLES = [  # `adaptive` waits without a lag, the others are for other steps than there are here
    text
    for entry in rules()
    for text in entry.examples
    if entry.source is None
    and not text.startswith(("adaptive(", "linear_ag(", "schedule("))
    and not parse(text).own_pass  # which needs a network to edit
    and not parse(text).takes_turns  # for which this loop has no room
    and not objectives_of(parse(text))  # torch takes no gradients there; tests/guidance/test_objectives.py has these
    and all(str(query).removesuffix("+time(0.8)") in CONDITIONS for query in parse(text).asks())
]
"""What the model here can answer, of the examples of all rules."""
WAITLESS = (
    *EXAMPLES,
    "stack()",
    "apg(4, radius=2, axes=(2, 3))",
    "cfg_zero(4, zero_steps=1)",
    "smc_cfg(4, switching='unit')",
    "cfg(6) | threshold(mimic=2)",
    "cfg(4) | momentum(0.5)",
    "perpneg(4) | renoise('null')",
    "perpneg(4, weights=(1, 0.5))",
    "during(cfg(4), sigma=(0.5, 2))",
    "schedule(cfg(4), 'g2 r s g')",
    "adaptive(cfg(4), threshold=0.9, lag=1)",
)


class Model:
    perturbations = frozenset({"time"})

    def __call__(self, x: Tensor, level: Level, conditions: Tensor, **options: Any) -> Tensor:
        return x * (0.5 + 0.1 * conditions.reshape(-1, 1, 1, 1)) + 0.1 * bool(options)


def estimates(
    text: str | Stack, device: Device | None, scale: float = 1.0, evaluations: int = 1
) -> tuple[list[Tensor], GuidedRun]:
    """The guided estimates of a run of `STEPS` steps."""
    put = (lambda value: value) if device is None else Elsewhere
    x = put(scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    conditions: Mapping[str, Tensor] = {
        name: put(torch.full((3,), float(place))) for place, name in enumerate(CONDITIONS)
    }
    place = torch.device("meta") if device else torch.device("cpu")
    run = GuidedRun(
        as_stack(text), Run(SHAPE, device=place, steps=STEPS, seeds=(0, 1, 2), negatives=(2, 1, 0), positives=(1, 0, 0))
    )
    found = []
    for index in range(STEPS):
        level = Level.ve(3.0 - 0.5 * index)
        network = CallableNetwork({"main": Model()}, x, level, conditions, EPSILON)
        for evaluation in range(evaluations):
            estimate = run.estimate(network, x, index, level, evaluation, time=1 - index / STEPS)
        found.append(estimate.prediction.native)
        x = 0.9 * x + 0.1 * estimate.prediction.native
    return found, run


class Event:
    made: int = 0

    def record(self) -> None:
        Event.made += 1

    def synchronize(self) -> None:
        assert Event.made  # a copy that was never begun would be waited for forever


@pytest.fixture
def _events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetched.EVENTS, "meta", Event)
    monkeypatch.setattr(fetched, "_landing", lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))


@pytest.mark.usefixtures("_events")
@pytest.mark.parametrize("text", WAITLESS)
def test_no_step_waits(text: str) -> None:
    expected, _ = estimates(text, None)
    with Device() as device:
        found, run = estimates(text, device)
        assert device.waits == []
        run.finish()
        assert len(device.waits) == 1  # once a run: was everything finite?
    assert all(torch.equal(one.own, other) for one, other in zip(found, expected, strict=True))  # type: ignore[attr-defined]


def test_adaptive_guidance_waits_once_a_step() -> None:
    with Device() as device:
        _, run = estimates("adaptive(cfg(4), threshold=0.9)", device)
    assert len(device.waits) == STEPS - 1  # before the first nobody can have stopped
    assert any(samples != (0, 1, 2) for record in run.report.steps for samples in record.queries.values())


@pytest.mark.parametrize("lag", [0, 1])
def test_a_steps_second_evaluation_is_for_the_samples_of_its_first(lag: int) -> None:
    """Also in the step in which a sample stops, which here is guided once more."""
    _, run = estimates(f"adaptive(cfg(4), threshold=0.9, crossing='guided', lag={lag})", None, evaluations=2)
    samples = [record.queries.get(Query("negative"), ()) for record in run.report.steps]
    guiding = run.report.trace("guiding")
    assert guiding[0::2] == guiding[1::2]
    assert len(set(samples)) > 1  # some stop, and not all at once
    for first, second, guided in zip(samples[0::2], samples[1::2], guiding[0::2], strict=True):
        if not lag:
            assert first == second
        assert set(second) >= {sample for sample in range(3) if guided[sample]}


@pytest.mark.usefixtures("_events")
def test_a_lag_changes_what_is_evaluated_and_not_the_answer() -> None:
    exact, first = estimates("adaptive(cfg(4), threshold=0.9)", None)
    lagged, second = estimates("adaptive(cfg(4), threshold=0.9, lag=1)", None)
    assert all(torch.equal(one, other) for one, other in zip(exact, lagged, strict=True))
    guiding = torch.tensor(first.report.trace("guiding"))
    stopped_before_the_end = (guiding[:-2] == 0).any(0)
    more = [b - a for a, b in zip(first.report.evaluations, second.report.evaluations, strict=True)]
    assert stopped_before_the_end.any()
    assert more == [int(one) for one in stopped_before_the_end]


def test_what_is_not_finite_is_found_at_the_end_of_the_run() -> None:
    with Device() as device:
        _, run = estimates("cfg(4)", device, scale=1e38)
        with pytest.raises(NonFiniteError, match="step 0 of 5"):
            run.finish()


@pytest.mark.usefixtures("_events")
@pytest.mark.parametrize("text", WAITLESS)
def test_a_lost_sample_makes_no_step_wait_and_none_of_the_others_another(text: str) -> None:
    """It is found at the end of the run, on the host as on a device, and said alike."""
    expected, _ = estimates(text, None)
    stack = parse(text)
    inside = stack.rules[0] if stack.rules else None
    spoilt = (
        Schedule(inside.rule | Spoil(1, start=1), inside.plan)
        if isinstance(inside, Schedule)
        else stack | Spoil(1, start=1)
    )
    errors = []
    for where in (None, Device()):
        with where or nullcontext():
            found, run = estimates(spoilt, where)
            assert where is None or where.waits == []
            with pytest.raises(NonFiniteError) as caught:
                run.finish()
            errors.append(caught.value)
        for one, other in zip(found, expected, strict=True):
            mine = one if where is None else one.own  # type: ignore[attr-defined]
            torch.testing.assert_close(mine[[0, 2]], other[[0, 2]], rtol=1e-6, atol=1e-6)
    assert errors[0].samples == errors[1].samples == (1,)
    assert str(errors[0]) == str(errors[1])
    assert "step 1 of 5" in str(errors[0])


def test_the_device_counts_what_waits() -> None:
    with Device() as device:
        here = Elsewhere(torch.tensor([1.0, 0.0]))
        bool(here.sum() > 0)
        here.sum().item()
        here.cpu()
        here.nonzero()
        torch.ones(2).to(torch.device("meta"))
        assert len(device.waits) == 5
        torch.ones(2).to(torch.device("meta"), non_blocking=True)
        assert len(device.waits) == 5
        with pytest.raises(AssertionError, match="and on the host"):
            here + torch.ones(2)


def test_a_lag_is_written() -> None:
    text = "adaptive(cfg(4), threshold=0.9, lag=1)"
    assert str(parse(text)) == text
