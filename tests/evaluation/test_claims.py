"""Claims: how an interval is judged, how a claim is read, and what a run says of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guidestack.evaluation.analysis.findings import (
    CONTRARY,
    HOLDS,
    UNDECIDED,
    cell_meant,
    findings,
    judge,
    markdown,
    overall,
    table,
)
from guidestack.evaluation.spec.cells import expand
from guidestack.evaluation.spec.sweep import FOLDERS, load_sweep, parse_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.guidance.errors import InputError

from .common import run, sweep_of, written

CLAIM: dict[str, Any] = {
    "words": "More guidance costs more.",
    "paper": "2207.12598",
    "expect": [
        {"metric": "evaluations", "of": {"w": 3}, "be": "higher", "than": {"w": 1}},
        {"metric": "evaluations", "of": {"w": 1}, "be": "lower", "than": {"w": 3}, "margin": 2},
        {"metric": "evaluations", "of": {"w": 3}, "be": "not lower", "than": {"w": 1}},
    ],
}
ONE = {"stack": "cfg({w})", "axes": {"w": [1, 3]}}


@pytest.mark.parametrize(
    ("low", "high", "be", "margin", "verdict"),
    [
        (-2, -1, "lower", 0, HOLDS),
        (-2, 1, "lower", 0, UNDECIDED),
        (1, 2, "lower", 0, CONTRARY),
        (-2, -1, "lower", 1.5, UNDECIDED),
        (-0.5, 0.5, "lower", 1, CONTRARY),
        (1, 2, "higher", 0, HOLDS),
        (1, 2, "higher", 1.5, UNDECIDED),
        (-2, -1, "higher", 0, CONTRARY),
        (-0.4, 2, "not lower", 0.5, HOLDS),
        (-0.6, 2, "not lower", 0.5, UNDECIDED),
        (-2, -0.6, "not lower", 0.5, CONTRARY),
        (-2, 0.4, "not higher", 0.5, HOLDS),
        (0.6, 2, "not higher", 0.5, CONTRARY),
        (-0.4, 0.4, "same", 0.5, HOLDS),
        (-0.6, 0.4, "same", 0.5, UNDECIDED),
        (0.5, 0.9, "same", 0.5, CONTRARY),
        (-0.9, -0.5, "same", 0.5, CONTRARY),
    ],
)
def test_an_interval_is_judged(low: float, high: float, be: str, margin: float, verdict: str) -> None:
    assert judge(low, high, be, margin) == verdict


def test_a_claim_is_tested_on_a_run(tmp_path: Path, model_folder: Path) -> None:
    keys = {**ONE, "claim": CLAIM}
    run(model_folder, tmp_path / "run", **keys)
    folder = RunFolder(tmp_path / "run")
    claim = folder.sweep().claim  # as it was resolved
    assert claim == sweep_of(model_folder, **keys).claim
    assert claim is not None
    found = findings(folder, claim)
    assert [(one.of, one.than, one.low, one.high) for one in found] == [(6, 3, 3, 3), (3, 6, -3, -3), (6, 3, 3, 3)]
    assert [one.verdict for one in found] == [HOLDS, HOLDS, HOLDS]
    assert {(one.samples, one.prompts) for one in found} == {(5, 5)}
    assert overall(found) == HOLDS
    assert "on this model: holds" in table(claim, found)
    assert markdown(found).count("| holds |") == 3


def test_a_claim_fails_if_one_expectation_is_contrary(tmp_path: Path, model_folder: Path) -> None:
    expect = [*CLAIM["expect"], {"metric": "evaluations", "of": {"w": 3}, "be": "lower", "than": {"w": 1}}]
    run(model_folder, tmp_path / "run", **ONE, claim={**CLAIM, "expect": expect})
    folder = RunFolder(tmp_path / "run")
    claim = folder.sweep().claim
    assert claim is not None
    found = findings(folder, claim)
    assert [one.verdict for one in found] == [HOLDS, HOLDS, HOLDS, CONTRARY]
    assert overall(found) == CONTRARY
    assert overall(found[:3]) == HOLDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": None}, "words"),
        ({"expects": []}, "unknown key 'expects'"),
        ({"expect": []}, "expect must have at least 1 item; got []"),
        ({"expect": [{**CLAIM["expect"][0], "be": "greater"}]}, "be"),
        ({"expect": [{**CLAIM["expect"][0], "be": "same"}]}, "give margin, a number above 0, for 'same'"),
        (
            {"expect": [{**CLAIM["expect"][0], "margin": -1}]},
            "entry 1: margin must be greater than or equal to 0; got -1",
        ),
        ({"expect": [{**CLAIM["expect"][0], "metric": "evaluation"}]}, "unknown metric 'evaluation'"),
        ({"expect": [{**CLAIM["expect"][0], "of": {"v": 3}}]}, "unknown key 'v'"),
        ({"expect": [{**CLAIM["expect"][0], "of": 3}]}, "entry 1: of must be a mapping; got 3"),
    ],
)
def test_a_claim_is_read_strictly(model_folder: Path, change: dict[str, Any], message: str) -> None:
    text = written(model_folder, **ONE, claim={**CLAIM, **change})
    with pytest.raises(InputError) as error:
        parse_sweep(text.encode(), "s.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cell_that_is_not_one_is_refused() -> None:
    cells = [{"cell": name, "template": "cfg", "axes": {"w": name}} for name in ("1", "2")]
    assert cell_meant(cells, {"stack": "cfg", "w": "2"}) == "2"
    with pytest.raises(InputError, match="means 2 cells"):
        cell_meant(cells, {"stack": "cfg"})
    with pytest.raises(InputError, match="means 0 cells"):
        cell_meant(cells, {"w": "3"})


@pytest.mark.parametrize("path", sorted(FOLDERS[1].glob("*.yaml")), ids=lambda path: path.stem)
def test_the_claims_that_ship_compare_cells_that_they_have(path: Path) -> None:
    sweep = load_sweep(str(path))
    assert sweep.claim is not None
    cells = [
        {"cell": str(place), "template": dict(cell.axes)["stack"], "axes": dict(cell.axes)}
        for place, cell in enumerate(expand(sweep))
    ]
    for one in sweep.claim.expect:
        assert cell_meant(cells, one.of) != cell_meant(cells, one.than)
        assert one.metric in sweep.metrics
    assert load_sweep(path.stem) == sweep or path.stem in {other.stem for other in FOLDERS[0].glob("*.yaml")}
