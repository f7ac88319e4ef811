"""Presets by name and path, wherever a stack goes; what they say they were tuned for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import guidestack as gs
from guidestack.guidance.errors import GuidestackWarning, InputError, StackSyntaxError
from guidestack.guidance.notation.presets import TunedFor, as_stack, load_preset, names, read, tuned_for
from guidestack.pipelines.models.bundled import EMOJI
from guidestack.pipelines.models.loading import fingerprint
from guidestack.pipelines.models.recipe import Recipe
from guidestack.scripts.cli import group
from guidestack.scripts.generating import check_presets

STACK = load_preset("rescale")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A preset of anybody's, in a folder with a blank."""
    path = tmp_path / "my presets" / "own.yaml"
    path.parent.mkdir()
    path.write_text("rules: [{cfg: {scale: 3}}]\ntuned: {model: other, sampler: ddim, steps: 4}\n")
    return path


def test_a_preset_stands_wherever_a_stack_does(file: Path, pipe: Any, tmp_path: Path) -> None:
    assert as_stack("@rescale") == as_stack(" @rescale\n") == STACK
    assert as_stack(f"@{file}") == gs.CFG(3) | gs.Stack()
    assert gs.guide(pipe, "@rescale").stack == STACK
    denoiser = gs.as_denoiser(f"@{file}", lambda x, sigma: x, conditions={"positive": {}}, sigmas=[1.0, 0.0])
    assert denoiser.stack == as_stack(f"@{file}")
    guider = gs.StackGuider("@rescale", pipe.scheduler)
    assert guider.stack == STACK
    assert guider.config["stack"] == str(STACK)  # what is saved is the stack, not its name
    written = gs.save_pretrained("@tuned-emoji-half", tmp_path).read_text()
    assert "tuned-emoji-half" not in written
    assert gs.from_pretrained(tmp_path) == load_preset("tuned-emoji-half")


def test_a_preset_beside_a_model_may_say_what_it_was_tuned_for(file: Path) -> None:
    (file.parent / "guidance.yaml").write_bytes(file.read_bytes())
    assert gs.from_pretrained(file.parent) == load_preset(file)


def test_text_of_others_names_no_file(file: Path, pipe: Any, tmp_path: Path) -> None:
    """`parse`, an image's recipe and a guider's folder: they do not choose what is read."""
    with pytest.raises(StackSyntaxError, match=r"'@rescale' names a preset, and parse reads no files; .*load_preset"):
        gs.parse("@rescale")
    mapping = {
        "prompt": "a", "negative": "", "extra": "", "guidance": f"@{file}", "sampler": "ddim", "steps": 2, "seed": 0,
        "size": None, "dtype": "float32", "batch": 1, "model": {}, "versions": {},
    }  # fmt: skip
    with pytest.raises(InputError, match="names a preset"):
        Recipe.read(mapping, tmp_path / "x.png")
    gs.StackGuider("cfg(3)", pipe.scheduler).save_pretrained(tmp_path / "guider")
    assert gs.StackGuider.from_pretrained(tmp_path / "guider").stack == as_stack("cfg(3)")
    (config,) = (tmp_path / "guider").iterdir()
    config.write_text(config.read_text().replace("cfg(3)", "@rescale"))
    with pytest.raises(StackSyntaxError, match="names a preset"):
        gs.StackGuider.from_pretrained(tmp_path / "guider")


@pytest.mark.parametrize("name", ["recsale", "zzz", ""])
def test_an_unknown_name_says_what_lists_the_presets(name: str) -> None:
    with pytest.raises(InputError, match="guidestack rules --presets") as caught:
        as_stack(f"@{name}")
    assert ("did you mean 'rescale'?" in str(caught.value)) == (name == "recsale")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tuned", ["3", "[a]", "{model: x}", "{model: x, sampler: y, steps: many}", "{model: x, sampler: y, steps: 4, a: 1}"]
)
def test_what_a_preset_was_tuned_for_is_checked(file: Path, tuned: str) -> None:
    assert tuned_for(file) == TunedFor("other", "ddim", 4)
    assert tuned_for("rescale") is None
    file.write_text(f"rules: [{{cfg: {{scale: 3}}}}]\ntuned: {tuned}\n")
    with pytest.raises(StackSyntaxError, match="tuned is a mapping of model, sampler, steps"):
        tuned_for(file)


def warned(text: str, *run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_presets([text], *run)
    assert all(one.category is GuidestackWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_preset_for_another_run_is_warned_of(file: Path, model_folder: Path) -> None:
    tuned = tuned_for("tuned-emoji-half")
    assert tuned is not None
    of_these_weights = tuned.fingerprint == fingerprint(EMOJI)  # not so between new weights and a new search
    assert (warned("@tuned-emoji-half", None, "dpm++2m", 25) == []) == of_these_weights
    assert warned(str(read("@tuned-emoji-half")), str(model_folder), "ddim", 25) == []  # a stack was tuned for nothing
    (told,) = warned("@tuned-emoji-half", str(model_folder), "ddim", 25)
    assert told.startswith("@tuned-emoji-half was tuned for the model bundled ")
    assert "sampler dpm++2m (here ddim)" in told
    assert warned(f"@{file}", "other", "ddim", 4) == []
    assert "4 steps (here 5)" in warned(f"@{file}", "other", "ddim", 5)[0]
    assert "the model other" in warned(f"@{file}", None, "ddim", 4)[0]


def test_a_plan_for_other_steps_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidestack.scripts.generating.Generator", lambda *_: pytest.fail("a model was loaded"))
    for text in ("@tuned-emoji-half", "schedule(cfg(4), 'g24 c')"):
        result = CliRunner().invoke(group, ["generate", "a", "--steps", "20", "--guidance", text])
        assert isinstance(result.exception, InputError)
        assert "is for 25 steps, and this run has 20" in str(result.exception)
        assert str(result.exception).startswith("@tuned") == text.startswith("@")
    check_presets(["schedule(cfg(4), 'g g c3')"], None, "dpm++2s", 8)  # 8 are asked for, and 5 made


def test_the_presets_are_listed() -> None:
    result = CliRunner().invoke(group, ["rules", "--presets"])
    for name in names():
        assert f"@{name}\n" in result.output
        assert str(load_preset(name)) in result.output
    assert "rules --presets" in CliRunner().invoke(group, ["generate", "--help"]).output
