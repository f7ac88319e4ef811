"""Claims: how an interval is judged, how a claim is read, and what a run says of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guidestack.evaluation.analysis.findings import cell_meant, findings, table
from guidestack.evaluation.spec.cells import expand
from guidestack.evaluation.spec.sweep import FOLDERS, load_sweep, parse_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.verdicts import CONTRARY, HOLDS, overall
from guidestack.guidance.errors import InputError

from .common import run, sweep_of, written

CLAIM: dict[str, Any] = {
    "words": "More guidance costs more.",
    "paper": "2207.12598",
    "expect": [
        {"metric": "evaluations", "of": {"w": 3}, "be": "higher", "than": {"w": 1}, "matters": 1},
        {"metric": "evaluations", "of": {"w": 1}, "be": "lower", "than": {"w": 3}, "matters": 2},
        {"metric": "evaluations", "of": {"w": 3}, "be": "not lower", "than": {"w": 1}, "matters": 1},
    ],
}
ONE = {"stack": "cfg({w})", "axes": {"w": [1, 3]}}


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
    assert "on this model it holds in all 3 rows" in table(claim, found)
    assert found[0].plain() == {
        "expected": "evaluations of w 3 is higher than that of w 1",
        **{"be": "higher", "matters": 1.0, "of": 6.0, "than": 3.0, "low": 3.0, "high": 3.0},
        **{"prompts": 5, "samples": 5, "note": ""},
    }


def test_a_claim_fails_if_one_expectation_is_contrary(tmp_path: Path, model_folder: Path) -> None:
    expect = [
        *CLAIM["expect"],
        {"metric": "evaluations", "of": {"w": 3}, "be": "lower", "than": {"w": 1}, "matters": 1},
    ]
    run(model_folder, tmp_path / "run", **ONE, claim={**CLAIM, "expect": expect})
    folder = RunFolder(tmp_path / "run")
    claim = folder.sweep().claim
    assert claim is not None
    found = findings(folder, claim)
    assert [one.verdict for one in found] == [HOLDS, HOLDS, HOLDS, CONTRARY]
    assert overall(found) == "holds in 3 of 4 rows; row 4: does not hold"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": None}, "words"),
        ({"expects": []}, "unknown key 'expects'"),
        ({"expect": []}, "expect must have at least 1 item; got []"),
        ({"expect": [{**CLAIM["expect"][0], "be": "greater"}]}, "be"),
        ({"expect": [{**CLAIM["expect"][0], "matters": 0}]}, "entry 1: matters must be greater than 0; got 0"),
        (
            {"expect": [{key: value for key, value in CLAIM["expect"][0].items() if key != "matters"}]},
            "entry 1: give matters, the smallest difference",
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
