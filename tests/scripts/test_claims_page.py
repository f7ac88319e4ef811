"""The page of the claims: made of the files of what was found, and the one in the documentation is of those there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import guidestack as gs
from guidestack.evaluation.spec.sweep import FOLDERS
from guidestack.scripts.dev import beside, claims
from guidestack.scripts.dev.claims import Current

DOCS = Path(gs.__file__).parent / "docs"


def found(name: str, away: float, **changes: Any) -> dict[str, Any]:
    """As if every difference of a claim were `away`, known to a tenth."""
    expect = Current(name).of.rows if name in beside.CLAIMS else Current(name).of.expect
    numbers = {"of": away, "than": 0.0, "low": away - 0.1, "high": away + 0.1, "prompts": 96, "samples": 192}
    rows = [{"expected": str(one), "be": one.be, "matters": one.matters, **numbers, "note": ""} for one in expect]
    told = {"weights": claims.weights(), "form": Current(name).form, "made": "2026-11-29", "hours": 0.5}
    return told | {"machine": "x", "versions": {"torch": "2"}, "rows": rows} | changes


def written(folder: Path, **files: dict[str, Any]) -> str:
    for name, told in files.items():
        (folder / f"{name}.json").write_text(json.dumps(told))
    return claims.page(folder)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    text = written(tmp_path, rescale=found("rescale", 9.0), cfgpp_paths=found("cfgpp_paths", -9.0))
    claim = Current("rescale").of
    assert f"| [{claim.words}](#rescale) | [{claim.paper}](https://arxiv.org/abs/" in text
    words = "holds in 1 of 3 rows; does not hold in 2"  # saturation is to be lower, and is higher by 9
    assert f"| {words} |" in text
    assert f"{claim.words} *{words}*: 192 pairs of samples from 96 prompts; 2026-11-29, torch 2." in text
    assert text.count("| +9 [+8.9, +9.1] |") == len(claim.expect)
    assert "*holds in its 1 row*" in text
    assert f"Weights `{claims.weights()}`: 2 claims of {len(claims.names())} tested.\n" in text
    assert "earlier weights" not in text


def test_rows_of_other_weights_are_named_so_in_a_line(tmp_path: Path) -> None:
    text = written(tmp_path, rescale=found("rescale", 9.0, weights="0123"), icg=found("icg", 0.0))
    assert f"1 claim of {len(claims.names())} tested. Of earlier weights, and marked so below: rescale." in text
    line = f"Measured on earlier weights, `0123`; the bundled ones are `{claims.weights()}`."
    assert text.count(line) == 1
    assert text.index("## rescale") < text.index(line)
    assert text.count("(earlier weights) |") == 1


def test_a_claim_of_another_form_is_not_tested_yet(tmp_path: Path) -> None:
    (tmp_path / claims.BEFORE).write_text("## Measured before\n")
    told = {name: found(name, 0.0) for name in claims.names()}
    assert "## Not tested yet" not in written(tmp_path, **told)
    text = written(tmp_path, icg=found("icg", 0.0, form="other"))
    assert f"\n* `icg`: {Current('icg').of.words}\n" in text
    assert "## icg\n" not in text
    assert text.endswith("## Measured before\n")


@pytest.mark.parametrize(
    ("change", "same"),
    [({"remark": "So."}, True), ({"words": "So."}, True), ({"expect": []}, False)],
)
def test_a_form_is_of_what_is_tested_and_not_of_the_words(change: dict[str, Any], same: bool) -> None:
    one, other = Current("rescale"), Current("rescale")
    other.__dict__["sweep"] = dataclasses.replace(one.sweep, claim=one.of.model_copy(update=change))
    assert (one.form == other.form) == same


def test_what_is_of_today_is_not_tested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[str] = []
    monkeypatch.setattr(Current, "test", lambda self, out: tested.append(self.name) or found(self.name, 0.0))
    written(tmp_path, rescale=found("rescale", 0.0), icg=found("icg", 0.0, weights="0123"))
    arguments = ["--results", str(tmp_path), "--page", str(tmp_path / "page.md"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(claims.main, ["rescale", "icg", "seg", *arguments])
    assert result.exit_code == 0, result.output
    assert tested == ["icg", "seg"]
    assert (tmp_path / "page.md").read_text() == claims.page(tmp_path)
    assert json.loads((tmp_path / "icg.json").read_text())["weights"] == claims.weights()


def test_the_documentation_is_of_the_files_and_the_claims_that_there_are() -> None:
    """Claims that were changed are to be tested again: ``python -m guidestack.scripts.dev.claims``."""
    assert (DOCS / "evidence.md").read_text(encoding="utf-8") == claims.page(DOCS / "claims")
    for path in (DOCS / "claims").glob("*.json"):
        assert path.stem in claims.names()
    assert {path.stem for path in FOLDERS[1].glob("*.yaml")} <= set(claims.names())
