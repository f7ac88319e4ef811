"""The figures of docs/methods.md: what they show is what their table says, on the same seeds in every row."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import guidestack as gs
from guidestack.guidance.notation.presets import names
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.pipelines.models.files import grid
from guidestack.scripts.dev.figures import methods, worlds
from guidestack.scripts.dev.figures.__main__ import group
from guidestack.scripts.dev.figures.shared import contrast, saturation
from guidestack.scripts.dev.figures.specs import FIGURES, Case, Figure, Row

ROOT = Path(gs.__file__).parent
PAGE = (ROOT / "docs" / "methods.md").read_text()


def pixels(image: Image.Image) -> Any:
    return np.asarray(image)


def quick(name: str) -> Figure:
    return replace(FIGURES[name], cases=FIGURES[name].cases[:2], steps=2)


# A fit of LinearAG is of one model and its steps, and refuses the tiny one.
@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"linear_ag"}))
@pytest.mark.filterwarnings("ignore:.*stopped guiding every sample at the first step")
def test_every_figure_can_be_drawn(pipe: Any, name: str) -> None:
    figure, scheduler = quick(name), pipe.scheduler
    picture, means = methods.draw(pipe, figure, weak=pipe)
    assert pipe.scheduler is scheduler
    assert [one.label for one in means] == [row.label for row in figure.rows]
    assert picture.height > 128 * len(figure.rows)
    assert picture.width > 128 * 2


def test_a_fit_is_shown_with_the_steps_that_it_is_of() -> None:
    figure = FIGURES["linear_ag"]
    for row in figure.rows:
        for rule in gs.parse(row.stack).rules:
            if isinstance(rule, gs.LinearAG):
                assert linear.read(linear.locate(rule.coefficients)).steps == figure.steps


def test_rows_differ_in_guidance_and_in_nothing_else(pipe: Any) -> None:
    case = Case("a cat", "a dog")
    figure = Figure((case, case, Case("red")), (Row("stack()"),), steps=2)
    first = methods.row(pipe, figure, Row("cfg(3)"))
    again = methods.row(pipe, figure, Row("cfg(3)"))
    assert [pixels(one.image).tobytes() for one in first] == [pixels(one.image).tobytes() for one in again]
    assert pixels(first[0].image).tobytes() != pixels(first[1].image).tobytes()  # each column has its own seed
    away = methods.row(pipe, figure, Row("cfg(3)", negative=True))
    assert pixels(first[0].image).tobytes() != pixels(away[0].image).tobytes()
    assert pixels(first[2].image).tobytes() == pixels(away[2].image).tobytes()  # which has no negative
    assert [one.evaluations for one in first] == [4, 4, 4]


def test_captions_and_lines_are_measured(pipe: Any) -> None:
    figure = Figure((Case("a"), Case("b")), (Row("stack()"), Row("prefix(cfg(3), 1)")), steps=2, under="evaluations")
    made = methods.row(pipe, figure, figure.rows[1])
    assert [one.caption("evaluations") for one in made] == ["3 evaluations"] * 2
    assert made[0].caption("") == ""
    look = made[0].caption("looks")
    assert look == f"sat {saturation(made[0].image):.2f} con {contrast(made[0].image):.2f}"
    means = methods.Means.of("x | y", made)
    assert means.evaluations == 3
    assert means.saturation == pytest.approx(sum(saturation(one.image) for one in made) / 2)
    assert means.contrast == pytest.approx(sum(contrast(one.image) for one in made) / 2)
    assert f" 3.0 evaluations, saturation {means.saturation:.3f}" in means.line()
    assert means.cells().startswith("| `x \\| y` | 3 | ")


@pytest.mark.parametrize(
    ("measure", "colours", "value"),
    [
        (saturation, ["red", "red"], 1.0),
        (saturation, ["red", "white"], 0.5),
        (saturation, ["gray", "black"], 0.0),
        (contrast, ["black", "white"], 0.5),
        (contrast, ["blue", "blue"], 0.0),
    ],
)
def test_looks_of_known_pictures(measure: Callable[[Image.Image], float], colours: list[str], value: float) -> None:
    image = Image.new("RGB", (4, 4), colours[0])
    image.paste(Image.new("RGB", (4, 2), colours[1]))
    assert measure(image) == pytest.approx(value, abs=0.003)


def test_captions_stand_under_their_images() -> None:
    images = [[Image.new("RGB", (128, 128), "red")] * 2] * 2
    plain = grid(images, ["a", "b"], ["c", "d"])
    captioned = grid(images, ["a", "b"], ["c", "d"], captions=[["x", ""], ["", ""]])
    assert captioned.width == plain.width
    assert captioned.height == plain.height + 2 * 16
    red = (pixels(captioned) == (255, 0, 0)).all(2)
    last = np.nonzero(red.any(1))[0]
    first_row = last[: np.nonzero(np.diff(last) > 1)[0][0] + 1]
    under = pixels(captioned)[first_row[-1] + 1 : first_row[-1] + 20]
    assert (under < 128).any()  # ink of the x
    assert not (under[:, captioned.width // 2 :] < 128).any()  # and none of the empty caption beside it


def test_long_row_labels_are_wrapped() -> None:
    images = [[Image.new("RGB", (128, 128), "red")]]
    assert grid(images, ["word " * 20], ["c"]).width < 128 + 2 * 128 + 50


def test_the_command_writes_the_figures_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(methods, "FIGURES", {name: quick(name) for name in ("icg", "tsg", "apg")})
    run = CliRunner().invoke
    page = tmp_path / "deep.md"
    page.write_text("a\n<!-- numbers: icg -->\nold\n<!-- /numbers -->\nb\n<!-- numbers: tsg -->\n<!-- /numbers -->\n")
    asked = ["methods", "--model", str(model_folder), "--to", str(tmp_path / "deep")]
    done = run(group, [*asked, "--only", "icg", "--only", "tsg"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["icg.png", "tsg.png"]
    assert "icg.png: dpm++2m, 2 steps" in done.output
    assert done.output.count("saturation") == len(FIGURES["icg"].rows) + len(FIGURES["tsg"].rows)
    text = page.read_text()
    assert (text.startswith("a\n<!-- numbers: icg -->\n| |"), "old" in text, "\nb\n" in text) == (True, False, True)
    for row in (*FIGURES["icg"].rows, *FIGURES["tsg"].rows):
        assert f"| `{row.label}` | " in text
    assert "no place for the numbers of apg" in run(group, [*asked, "--only", "apg"]).output
    wrong = run(group, [*asked, "--only", "apq"])
    assert wrong.exit_code == 1
    assert "no figure 'apq'; did you mean 'apg'?" in wrong.output
    assert run(group, ["methods", "--model", "/nowhere/model", "--only", "icg"]).exit_code == 1


def test_prompts_of_the_figures_are_not_cut() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "pipelines" / "emoji" / "tokenizer")
    for figure in FIGURES.values():
        for case in figure.cases:
            for text in (case.prompt, case.negative):
                assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length


def test_the_page_shows_every_figure_and_no_other() -> None:
    shown = set(re.findall(r"\]\(methods/([a-z0-9_-]+)\.png\)", PAGE))
    assert shown == set(FIGURES) | {f"world-{name}" for name in worlds.PICTURES}
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.png")} == shown


def test_the_page_has_every_rule_and_preset() -> None:
    headings = set(re.findall(r"^### `([a-z0-9_]+)`", PAGE, re.MULTILINE))
    assert headings == {entry.name for entry in rules()}, "write an entry ### `name` in docs/methods.md"
    assert {preset for line in PAGE.splitlines() for preset in re.findall(r"`@([\w.-]+)`", line)} == set(names())


def test_the_pages_numbers_are_of_the_rows_of_the_figures() -> None:
    for name, figure in FIGURES.items():
        _, _, rest = PAGE.partition(f"<!-- numbers: {name} -->\n")
        table = rest.partition("<!-- /numbers -->")[0]
        labels = re.findall(r"^\| `(.+)` \| \d", table, re.MULTILINE)
        assert [label.replace("\\|", "|") for label in labels] == [row.label for row in figure.rows], name


def test_links_of_the_page_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_stacks_of_the_page_can_be_read() -> None:
    stacks = re.findall(r"^Example: `([^`]+)`", PAGE, re.MULTILINE)
    assert len(stacks) >= 8
    for text in stacks:
        gs.parse(text)


def test_a_picture_of_the_plane_world_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "COUNT", 20)
    told = CliRunner().invoke(group, ["worlds", "perpneg", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    with Image.open(tmp_path / "world-perpneg.png") as image:
        assert image.width > 3 * image.height  # four panels in a row
    assert "did you mean 'cfg'" in CliRunner().invoke(group, ["worlds", "cgf"]).output
