"""``--rules FILE.py``: rules of one's own at the command line, and what is written into images and read from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from guidestack.guidance.notation import plugins
from guidestack.guidance.notation.plugins import loaded_files
from guidestack.guidance.notation.registry import _ENTRIES
from guidestack.pipelines.models.files import KEY, read_recipe, write

from ..own_rules import HALVED, OTHER, written

pytestmark = pytest.mark.usefixtures("own_rules")

QUICK = ["--steps", "2", "--sampler", "ddim"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Any) -> Run:
    """``run(*arguments) -> (exit status, stdout, stderr)``: as a process of its own, which knows no rules but ours."""
    ours = {name: entry for name, entry in _ENTRIES.items() if entry.source is None}

    def call(*arguments: object) -> tuple[int, str, str]:
        _ENTRIES.clear()
        _ENTRIES.update(ours)
        return command(*arguments)

    return call


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return written(tmp_path / "mine.py")


@pytest.fixture
def made(run: Run, own: Path, model_folder: Path, tmp_path: Path) -> Path:
    """An image of the tiny model under a rule of a file."""
    out = tmp_path / "made"
    options = ["--model", model_folder, "--out", out, "--guidance", "halved(5)", "--rules", own, *QUICK]
    status, said, err = run("generate", "a cat", *options)
    assert status == 0, err
    assert "4 network evaluations" in said
    (image,) = out.glob("*.png")
    return image


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_command_that_reads_stacks_takes_it(run: Run, own: Path, model_folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "i.png"
    write(Image.fromarray(np.zeros((16, 16, 3), np.uint8)), image, {"prompt": "a cat"})
    sweep = tmp_path / "s.yaml"
    sweep.write_text(json.dumps({"model": str(model_folder), "prompts": ["a"], "stack": "halved(2)", "steps": 2}))
    prompts, others = written(tmp_path / "p.txt", "a\nb\n"), written(tmp_path / "q.txt", "c\nd\n")
    for arguments in (
        ["generate", "a", "--guidance", "halved(2)", "--device", "cuda:99"],
        ["edit", image, "red", "--guidance", "halved(2)", "--device", "cuda:99"],
        ["explain", "halved(2)", "--sampler", "cuda:99"],
        ["evaluate", sweep, "--dry-run", "--device", "cuda:99"],
        ["tune", "--reference", "halved(2)", "--prompts", prompts, "--held-out", others, "--evaluations", 3,
         "--out", tmp_path / "tuned", "--device", "cuda:99", "--model", model_folder],
    ):  # fmt: skip
        status, _, err = run(*arguments, "--rules", own)
        assert (status, "cuda:99" in err) == (2, True), err  # the first that is wrong: the stack is read before it
        if arguments[0] != "evaluate":  # which looks at the device first
            status, _, err = run(*arguments)
            assert (status, "unknown rule 'halved'" in err) == (2, True), err
    status, out, _ = run("rules", "--rules", own)
    assert "halved(scale=3)\n    Half of the way of classifier-free guidance.\n    evaluations a step: 2\n" in out
    assert "    of the file mine.py\n" in out
    assert "halved" not in run("rules")[1]
    status, out, err = run("doctor", model_folder, "--rules", own)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines() if line.startswith("halved()")] == [["halved()", "2"]]


def test_it_may_be_given_several_times(run: Run, own: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.py", OTHER.replace("halved", "quarter").replace("Halved", "Quarter"))
    status, out, err = run("explain", "halved(2) | quarter(2)", "--steps", 2, "--rules", own, "--rules", other)
    assert (status, err) == (0, "")
    assert "halved(scale=2) | quarter(scale=2)" in out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere.py", None, "No such file"),
        ("mine.txt", HALVED, "whose name ends in .py"),
        ("mine.py", "1 / 0\n", "line 1: ZeroDivisionError: division by zero"),
        ("mine.py", "", "registers no rule"),
        ("mine.py", HALVED.replace('"halved"', '"cfg"'), "the rule name 'cfg' is taken by CFG"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        written(tmp_path / name, text)
    status, out, err = run("explain", "cfg(2)", "--rules", tmp_path / name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("guidestack: ")
    assert name in err
    assert message in err


def test_a_rules_file_that_warns_is_a_line(run: Run, tmp_path: Path) -> None:
    warns = HALVED + "\nimport warnings\nfrom guidestack import GuidestackWarning\n"
    own = written(tmp_path / "mine.py", f"{warns}warnings.warn('old', GuidestackWarning)\nwarnings.warn('none')\n")
    status, _, err = run("rules", "--rules", own)
    assert (status, err) == (0, "warning: old\n")


def test_a_package_that_is_broken_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spoilt_module.py").write_text("1 / 0\n")
    info = tmp_path / "spoilt-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spoilt\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[guidestack.rules]\nmine = spoilt_module\n")
    for command in (["rules"], ["explain", "cgf(3)"]):
        monkeypatch.setattr(plugins, "_looked", False)
        _, _, err = run(*command)
        assert err.startswith("warning: the rules of the package spoilt are left out"), err
    monkeypatch.setattr(plugins, "_looked", False)
    assert run("explain", "cfg(3)")[2] == ""


def test_an_image_says_what_file_its_rule_is_from(run: Run, own: Path, made: Path) -> None:
    (file,) = loaded_files()
    assert read_recipe(made)["rules"] == [{"file": "mine.py", "digest": file.digest}]


def test_an_image_of_our_rules_says_nothing_of_files(run: Run, own: Path, model_folder: Path, tmp_path: Path) -> None:
    """Its recipe and its name are those of an image that was made without --rules."""
    options = ["a cat", "--model", model_folder, "--guidance", "cfg(3)", *QUICK]
    assert run("generate", *options, "--out", tmp_path / "with", "--rules", own)[0] == 0
    assert run("generate", *options, "--out", tmp_path / "without")[0] == 0
    (one,), (other,) = (list((tmp_path / name).glob("*.png")) for name in ("with", "without"))
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()
    assert "rules" not in read_recipe(one)


def test_like_asks_for_the_file(run: Run, own: Path, made: Path, model_folder: Path, tmp_path: Path) -> None:
    again = ["generate", "--like", made, "--model", model_folder, "--out", tmp_path / "again"]
    status, _, err = run(*again)
    assert status == 2
    asked = "was made with a rule of the file 'mine.py'; give that file with --rules FILE.py"
    assert err == f"guidestack: {made} {asked}\n"
    status, _, err = run(*again, "--rules", own)
    assert status == 0, err
    assert "warning" not in err
    assert np.array_equal(pixels(tmp_path / "again" / made.name), pixels(made))
    moved = written(tmp_path / "moved.py")  # the same contents under another name
    status, _, err = run(*again, "--rules", moved, "--overwrite")
    assert (status, "warning" in err) == (0, False)


def test_like_notes_another_version_of_the_file(
    run: Run, own: Path, made: Path, model_folder: Path, tmp_path: Path
) -> None:
    there = read_recipe(made)["rules"][0]["digest"]
    status, _, err = run(
        "generate", "--like", made, "--model", model_folder, "--out", tmp_path / "again", "--rules",
        written(own, OTHER),
    )  # fmt: skip
    assert status == 0
    (here,) = loaded_files()
    (line,) = [one for one in err.replace("\r", "\n").splitlines() if one.startswith("warning")]
    assert f"was made with 'mine.py' ('{there}'), and its rules are from 'mine.py' ('{here.digest}') here" in line
    (image,) = (tmp_path / "again").glob("*.png")
    assert image.name != made.name  # it is another image
    assert not np.array_equal(pixels(image), pixels(made))


def test_no_file_that_an_image_names_is_imported(run: Run, model_folder: Path, tmp_path: Path, made: Path) -> None:
    """Whatever stands in it, and wherever the file lies."""
    trap = written(tmp_path / "trap.py", f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n{HALVED[36:]}")
    shutil.copy(trap, tmp_path / "made")
    for listed in (
        [{"file": str(trap), "digest": ""}],
        [{"file": "trap.py", "digest": "", "path": str(trap)}],
        {"trap.py": ""},
        [str(trap)],
        "trap.py",
        [{"file": "x" * 20_000, "digest": ""}],
        [{"file": 3, "digest": None}],
    ):
        text = PngImagePlugin.PngInfo()
        text.add_itxt(KEY, json.dumps({**read_recipe(made), "rules": listed}))
        image = tmp_path / "bad.png"
        Image.open(made).save(image, pnginfo=text)
        status, _, err = run("generate", "--like", image, "--model", model_folder, "--out", tmp_path / "again")
        assert (status, err.count("\n")) == (2, 1)
        assert "give that file with --rules" in err or "does not say how it was made in a form" in err
    assert not (tmp_path / "sprung").exists()


def test_an_edit_says_it_as_well(run: Run, own: Path, model_folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "i.png"
    write(Image.fromarray(np.full((16, 16, 3), 90, np.uint8)), image, {"prompt": "a cat"})
    options = ["--model", model_folder, "--out", tmp_path / "out", "--steps", 2, "--rules", own]
    for inversion in ("halved(2)", "cfg(2)"):
        status, _, err = run("edit", image, "red", "--guidance", "cfg(2)", "--inversion", inversion, *options)
        assert status == 0, err
    found = [read_recipe(path) for path in (tmp_path / "out").iterdir()]
    assert {one["inversion"]: [file["file"] for file in one.get("rules", [])] for one in found} == {
        "halved(scale=2)": ["mine.py"],
        "cfg(2)": [],
    }


def test_a_stack_beside_a_model_needs_the_file(run: Run, own: Path, model_folder: Path, tmp_path: Path) -> None:
    """A model's folder says the rule's name; where its file is says the user."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    written(model / "guidance.yaml", "rules:\n- halved: {scale: 2}\n")
    shutil.copy(own, model)
    options = ["generate", "a cat", "--model", model, "--out", tmp_path / "out", *QUICK]
    status, _, err = run(*options)
    assert (status, "unknown rule 'halved'" in err) == (2, True)
    status, _, err = run(*options, "--rules", own)
    assert status == 0, err
