"""Several stacks in one batch: each sample as in a run of its own stack."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

import guidestack as gs
from guidestack.guidance.errors import CompositionError, RuleError
from guidestack.guidance.rows import EachRow
from guidestack.guidance.rule import Run
from guidestack.guidance.stack import Stack
from guidestack.guidance.testing.checks import IDENTITY, LEVELS, Oracle, OracleRun, oracle_run
from guidestack.pipelines import guide

TEXTS = (
    "stack()",
    "cfg(4)",
    "apg(6, eta=0.2, radius=3, momentum=-0.5) | rescale(0.5)",
    "adaptive(cfg(4), threshold=0.9)",
    "during(cfg(3), progress=(0.2, 0.6))",
    "perpneg(3, weights=(1, 0.5))",
    "icg(3)",
    "prefix(cfg(5), 2) | rescale(0.7)",
    "cfg(3, against='null@weak')",
    "linear_ag(cfg(4), 'oracle.safetensors', policy='POLICY')",
)
RENOISING = ("cfgpp(0.6)", "cfg(0.6) | renoise('negative')", "perpneg(0.6) | renoise()")


@pytest.fixture
def _fit(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    """A file of coefficients for runs of the oracle."""
    from guidestack.guidance.rules.linear_ag import fit as linear

    steps = len(LEVELS)
    triangle = torch.triu(torch.arange(1.0, 4 * steps**2 + 1, dtype=torch.float64).reshape(2 * steps, -1).sin())
    fit = linear.Fit("cfg(4)", steps, dict(IDENTITY), triangle + 2 * torch.eye(2 * steps, dtype=torch.float64))
    monkeypatch.chdir(tmp_path)
    linear.write(fit, tmp_path / "oracle.safetensors", [True] * steps)


def parsed(text: str) -> Stack:
    return gs.parse(text.replace("POLICY", "ge" + "c" * (len(LEVELS) - 2)))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to rounding in float64, which the last steps enlarge: the end of a tensor takes other instructions."""
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def compare(stacks: list[Stack], rows: list[int], samples: list[int]) -> OracleRun:
    together = oracle_run(EachRow(tuple(stacks), tuple(rows)), Oracle(samples=tuple(samples)))
    report = together.run.report
    for place, stack in enumerate(stacks):
        own = [row for row, its in enumerate(rows) if its == place]
        alone = oracle_run(stack, Oracle(samples=tuple(samples[row] for row in own)))
        for step in range(len(LEVELS)):
            assert close(together.outputs[step][own], alone.outputs[step]), (str(stack), step)
        assert close(together.inputs[-1][own], alone.inputs[-1])
        assert [report.evaluations[row] for row in own] == alone.run.report.evaluations, str(stack)
        for with_all, by_itself in zip(report.steps, alone.run.report.steps, strict=True):
            for name, values in by_itself.traces.items():
                here = with_all.traces[name][own]
                assert close(here.nan_to_num(-7), values.nan_to_num(-7)), (str(stack), name)
    return together


@pytest.mark.usefixtures("_fit")
@pytest.mark.parametrize("text", TEXTS)
def test_a_sample_is_as_under_its_own_stack(text: str) -> None:
    other = parsed("cfg(2)")
    compare([parsed(text), other], [0, 0, 1, 1, 0, 1], [0, 1, 2, 0, 2, 1])


@pytest.mark.usefixtures("_fit")
def test_all_at_once_and_in_any_order() -> None:
    stacks = [parsed(text) for text in TEXTS]
    compare(stacks, [*range(len(stacks)), *range(len(stacks))], [0, 1, 2, 0, 1] * 4)
    compare(stacks, [row for row in range(len(stacks)) for _ in range(2)], [0, 1, 2, 0, 1] * 4)


@pytest.mark.usefixtures("_fit")
def test_what_is_measured_is_as_under_its_own_stack() -> None:
    pytest.importorskip("pyarrow")
    from guidestack.evaluation.effective_scale import gathered, strength

    def observed(stack: gs.Rule, samples: tuple[int, ...]):  # noqa: ANN202
        oracle = Oracle(samples=samples)
        run = oracle.begin(stack)
        run.observe = strength
        return gathered(oracle_run(stack, oracle, run).run.report)

    stacks = [parsed(text) for text in TEXTS]
    rows, samples = [*range(len(stacks)), *range(len(stacks))], (0, 1, 2, 0, 1) * 4
    together = observed(EachRow(tuple(stacks), tuple(rows)), samples)
    for place, stack in enumerate(stacks):
        own = [row for row, its in enumerate(rows) if its == place]
        alone = observed(stack, tuple(samples[row] for row in own))
        for name in ("effective_scale", "across", "guided", "contrast_norm"):
            assert_allclose(together.values[name][own], alone.values[name], rtol=1e-5, atol=1e-6)
        assert together.guided_steps[own].tolist() == alone.guided_steps.tolist()


def test_stacks_that_renoise_share_a_batch_with_one_another() -> None:
    stacks = [parsed(text) for text in RENOISING]
    together = compare(stacks, [2, 0, 1, 0, 2], [0, 1, 2, 2, 1])
    assert together.run.stack.renoises
    with pytest.raises(RuleError, match="renoise"):
        EachRow((parsed("cfgpp(0.6)"), parsed("cfg(2)")), (0, 1))
    guided = parsed("cfgpp(0.6, second_order='guided')")
    assert EachRow((guided, guided | parsed("rescale(0.5)")), (0, 1)).guides_history
    with pytest.raises(RuleError, match="renoise in one way"):
        EachRow((parsed("cfgpp(0.6)"), guided), (0, 1))


def test_a_stack_costs_its_own_samples_only() -> None:
    together = compare([parsed("stack()"), parsed("cfg(2)")], [0, 1, 0], [0, 1, 2])
    assert together.run.report.evaluations == [len(LEVELS), 2 * len(LEVELS), len(LEVELS)]
    assert together.run.report.rows == 4 * len(LEVELS)
    assert together.run.report.calls == len(LEVELS)


def test_rows_that_do_not_fit_are_refused() -> None:
    stacks = (parsed("cfg(2)"), parsed("cfg(3)"))
    for rows in ((0, 0), (0, 2), (1,)):
        with pytest.raises(RuleError, match="rows"):
            EachRow(stacks, rows)
    with pytest.raises(RuleError, match="batch of 2"):
        EachRow(stacks, (0, 1)).init(Run((3, 1)))
    with pytest.raises(CompositionError):
        Stack(EachRow(stacks, (0, 1)), gs.Rescale(0.5))


def test_through_a_pipeline(pipe) -> None:  # noqa: ANN001
    stacks = tuple(map(gs.parse, ("stack()", "apg(4)", "cfg(3)", "adaptive(cfg(3), threshold=0.97)")))
    rows = (0, 1, 1, 2, 3)
    prompts = ["a cat", "red", "sea", "b", "c"]

    def run(stack: gs.Rule, chosen: list[int]):  # noqa: ANN202
        guided = guide(pipe, stack)
        generators = [torch.Generator().manual_seed(row) for row in chosen]
        texts = [prompts[row] for row in chosen]
        images = guided(texts, num_inference_steps=5, generator=generators, output_type="latent").images
        return images, guided.report.evaluations

    together, evaluations = run(EachRow(stacks, rows), list(range(5)))
    for place, stack in enumerate(stacks):
        own = [row for row, its in enumerate(rows) if its == place]
        alone, cost = run(stack, own)
        torch.testing.assert_close(together[own], alone, rtol=2e-5, atol=2e-5)
        assert [evaluations[row] for row in own] == cost
