"""docs/tuning.md: what it says was measured is what the shipped presets say, and its tables come from files."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image, ImageColor

import guidestack as gs
from guidestack.evaluation.plots import LIGHT
from guidestack.evaluation.spec.cells import baseline_of, expand
from guidestack.evaluation.spec.sweep import load_sweep
from guidestack.evaluation.tune.frontier import figure
from guidestack.guidance.notation.presets import load_preset, names, tuned_for
from guidestack.scripts.dev.figures.__main__ import group
from guidestack.scripts.dev.figures.tune import frontier_table, sweep_table

ROOT = Path(gs.__file__).parent
PAGE = (ROOT / "docs" / "tuning.md").read_text()
TUNED = [name for name in names() if name.startswith("tuned-emoji")]


def row(stack: str, evaluations: float, value: float, steps: int = 25) -> dict[str, Any]:
    return {
        "stack": stack, "steps": steps, "evaluations": evaluations, "ssim": value, "ssim_low": value - 0.1,
        "ssim_high": value + 0.05,
    }  # fmt: skip


TOLD: dict[str, Any] = {
    "reference": "cfg(4)",
    "steps": 25,
    "sampler": "ddim",
    "evaluations": 50,
    "metric": "ssim",
    "names": {"ssim": "ssim[rgb]"},
    "frontier": [row("cfg(4) | rescale(0.5)", 20, 0.8)],
    "tried": [row("cfg(4) | rescale(0.5)", 20, 0.8), row("x", 30, 0.7)],
    "fewer_steps": [row("cfg(4)", 24, 0.75, 12)],
    "held_out": [row("cfg(4) | rescale(0.5)", 20, 0.79)],
}


def test_a_frontier_is_a_table() -> None:
    assert frontier_table(TOLD) == (
        "|  | evaluations | ssim |\n| --- | --- | --- |\n"
        "| `cfg(4) \\| rescale(0.5)` | 20 | 0.8000 [0.7000, 0.8500] |\n"
        "| `cfg(4)`, 12 steps | 24 | 0.7500 [0.6500, 0.8000] |\n"
        "| `cfg(4) \\| rescale(0.5)`, 25 steps, held-out prompts | 20 | 0.7900 [0.6900, 0.8400] |\n"
    )


def test_a_run_is_a_table() -> None:
    numbers = [
        {"cell": "a", "text": text, "value": 0.5, "low": 0.4, "high": high} for text, high in (("m", 0.6), ("n", 0.4))
    ]
    assert sweep_table([{"cell": "a", "stack": "cfg(4)"}], numbers) == (
        "|  | m | n |\n| --- | --- | --- |\n| `cfg(4)` | 0.5000 [0.4000, 0.6000] | 0.5 |\n"
    )


def test_the_picture_has_what_was_measured() -> None:
    with Image.open(io.BytesIO(figure(TOLD, "png"))) as picture:
        assert picture.width > 600
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 20)}
    assert {ImageColor.getrgb(LIGHT[place]) for place in (0, 4)} <= colours
    assert figure(TOLD) == figure(TOLD)
    for shown in ("tried", "frontier", "fewer_steps", "held_out"):
        assert figure({**TOLD, shown: []}) != figure(TOLD)


def test_the_command_fills_the_page(tmp_path: Path) -> None:
    page = tmp_path / "tuning.md"
    page.write_text("before\n<!-- numbers: tune -->\nold\n<!-- /numbers -->\nafter\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "frontier.json").write_text(json.dumps(TOLD))
    result = CliRunner().invoke(group, ["tune", str(tmp_path / "run"), "--page", str(page)])
    assert result.exit_code == 0, result.output
    assert page.read_text() == (f"before\n<!-- numbers: tune -->\n{frontier_table(TOLD)}<!-- /numbers -->\nafter\n")
    assert (tmp_path / "tune.png").read_bytes()[:4] == b"\x89PNG"
    result = CliRunner().invoke(group, ["tune", str(tmp_path / "nothing"), "--page", str(page)])
    assert result.exit_code == 1
    assert "Error: " in result.output


def test_the_page_shows_the_presets_that_are_shipped() -> None:
    assert TUNED
    table = PAGE.partition("<!-- numbers: tune -->")[2].partition("<!-- /numbers -->")[0]
    held_out = re.findall(r"^\| `(.+)`, \d+ steps, held-out prompts \| ([\d.]+)", table, re.MULTILINE)
    assert any(str(load_preset(name)) == stack for name in TUNED for stack, _ in held_out)


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_preset_says_what_it_was_verified_on(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    for wanted in ("Tuned: ", "For the model bundled ", "held-out prompts", "fewer steps of the reference", "made: 20"):
        assert wanted in text
    assert yaml.safe_load(text).keys() == {"rules", "tuned"}
    tuned = tuned_for(name)
    assert tuned is not None
    assert f"For the model {tuned.model} {tuned.fingerprint}, sampler {tuned.sampler}, {tuned.steps} steps." in text


def test_the_sweep_that_reproduces_them_has_them_all() -> None:
    sweep = load_sweep("tuned")
    cells = expand(sweep)
    stacks = {cell.stack for cell in cells}
    assert {str(load_preset(name)) for name in TUNED} <= stacks
    baseline = baseline_of(sweep, cells)
    assert baseline is not None
    assert baseline.stack == "cfg(4)"
    assert {cell.steps for cell in cells} == {25}
    from guidestack.scripts.tune import prompt_sets

    _, held_out = prompt_sets("12", "48", None, 0)
    assert [one.text for one in sweep.prompts] == [one.text for one in held_out.prompts]
    assert sweep.seeds.of(0)[0] == held_out.start


def test_what_make_installs_can_tune() -> None:
    """The README leads from `make demo` to the page."""
    installed = (ROOT / "Makefile").read_text().partition("$(VENV)/.installed:")[2].partition("\n\n")[0]
    assert '--editable ".[tune]"' in installed
    assert "[tune]" in PAGE
