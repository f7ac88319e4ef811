"""``guidestack edit`` as a user meets it, and the figure of its page."""

from __future__ import annotations

import functools
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import guidestack as gs
from guidestack.pipelines.models import files as images
from guidestack.pipelines.models.files import read_recipe, write
from guidestack.scripts import cli
from guidestack.scripts.dev.figures import edit as figure
from guidestack.scripts.dev.figures import shared
from guidestack.scripts.dev.figures.shared import END, psnr

QUICK = ["--steps", "4"]


@pytest.fixture
def run(command: Any) -> Any:
    """``run(*arguments) -> (exit status, stdout, stderr)`` of ``guidestack edit``, in this process."""
    return functools.partial(command, "edit")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture of the tiny model's size, which says what it shows."""
    path = tmp_path / "cat.png"
    tones = (np.arange(16 * 16 * 3) * 37 % 256).astype(np.uint8).reshape(16, 16, 3)
    write(Image.fromarray(tones), path, {"prompt": "a cat"})
    return path


def made(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def test_an_edit_is_gs_edit(run: Any, pipe: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, err = run(
        image, "red", "--negative", "dim", "--guidance", "cfg(2)", "--inversion", "cfgpp(0.2)", "--strength", 0.5,
        "--model", model_folder, "--out", out, *QUICK,
    )  # fmt: skip
    assert status == 0, err
    (path,) = made(out)
    assert str(path) in said
    assert "8 network evaluations" in said
    assert err.count("\r  0%") == 2  # a bar for each half: of four steps two are taken back, and two forth
    assert err.count("| 2/4 [") >= 2
    recipe = read_recipe(path)
    wanted = {"prompt": "red", "source": "a cat", "negative": "dim", "guidance": "cfg(2)", "inversion": "cfgpp(0.2)"}
    assert wanted.items() <= recipe.items()
    assert (recipe["strength"], recipe["steps"], recipe["size"], recipe["sampler"]) == (0.5, 4, [16, 16], "ddim")
    with Image.open(image) as picture:
        seen = gs.edit(pipe, "cfg(2)", inversion="cfgpp(0.2)")(
            picture.convert("RGB"), source="a cat", prompt="red", negative_prompt="dim", strength=0.5,
            num_inference_steps=4,
        ).images[0]  # fmt: skip
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(seen))


def test_a_second_run_makes_nothing_again(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    command = [image, "red", "--model", model_folder, "--out", tmp_path / "out", *QUICK]
    assert run(*command)[0] == 0
    (path,) = made(tmp_path / "out")
    before = path.stat().st_mtime_ns
    assert "was there already" in run(*command)[1]
    assert path.stat().st_mtime_ns == before
    assert "network evaluations" in run(*command, "--overwrite")[1]
    for other in (["--source", "a dog"], ["--guidance", "cfg(2)"], ["--strength", "0.5"], ["--seed", "1"]):
        assert run(*command, *other)[0] == 0
    assert len(made(tmp_path / "out")) == 5


def test_an_edited_image_can_be_edited_further(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    assert run(image, "red", "--model", model_folder, "--out", tmp_path / "one", *QUICK)[0] == 0
    (first,) = made(tmp_path / "one")
    assert run(first, "blue", "--model", model_folder, "--out", tmp_path / "two", *QUICK)[0] == 0
    (second,) = made(tmp_path / "two")
    assert read_recipe(second)["source"] == "red"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK"])
def test_pictures_of_any_kind_and_size(run: Any, model_folder: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"picture.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (30, 20)).save(path)
    command = [path, "red", "--source", "a cat", "--model", model_folder, *QUICK]
    status, _, err = run(*command, "--out", tmp_path / "none")
    assert status == 2
    assert "has 20x30 pixels and this model makes 16x16 (height x width): give --size 16x16 to have it resized" in err
    status, _, err = run(*command, "--size", "16x24", "--out", tmp_path / "out")
    assert status == 0, err
    (edited,) = made(tmp_path / "out")
    with Image.open(edited) as picture:
        assert picture.size == (24, 16)


def test_several_negatives_and_prompts_that_are_cut(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    command = [image, "a cat and two big dogs", "--model", model_folder, "--out", tmp_path / "out", *QUICK]
    status, said, err = run(*command, "--guidance", "perpneg(2)", "--negative", "dog | sea")
    assert status == 0, err
    assert "32 network evaluations" in said
    assert "longer than 16 tokens; cut off: 'ogs'" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guidance", "cgf(4)"], "unknown rule 'cgf'; did you mean 'cfg'?"),
        (["--guidance", "adaptive(cfg(4), threshold=0.99)"], "remembers earlier steps of a run"),
        (["--inversion", "apg(4, momentum=-0.5)"], "remembers earlier steps of a run"),
        (["--sampler", "dpm++2m"], "--sampler dpm++2m cannot be run backwards"),
        (["--sampler", "eular"], "did you mean 'euler'"),
        (["--strength", "0"], "--strength"),
        (["--strength", "0.1"], "strength=0.1 of 4 steps is none; give at least 0.25"),
        (["--size", "15x16"], "multiples of 8 pixels; got 15x16 (height x width)"),
        (["--size", "16"], "HEIGHTxWIDTH"),
        (["--steps", "0"], "--steps"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--out", "/proc/nothing"], "cannot write"),
        (["--model", "/nowhere/model"], "no model at '/nowhere/model'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Any, model_folder: Path, image: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    given = [] if "--model" in more else ["--model", str(model_folder)]
    given += [] if "--out" in more else ["--out", str(tmp_path / "out")]
    given += [] if "--steps" in more else QUICK
    status, said, err = run(image, "red", *given, *more)
    assert status == 2
    assert message in err.strip().splitlines()[-1], err
    assert "Traceback" not in err
    assert said == ""
    assert not (tmp_path / "out").exists()


def test_images_of_others_are_untrusted(run: Any, model_folder: Path, tmp_path: Path) -> None:
    rest = ["--model", model_folder, "--out", tmp_path / "out", *QUICK]
    text, plain, odd, cut = (tmp_path / f"{name}.png" for name in ("text", "plain", "odd", "cut"))
    text.write_text("no image")
    Image.new("RGB", (16, 16)).save(plain)
    write(Image.new("RGB", (16, 16)), odd, {"prompt": ["a", "b"]})
    cut.write_bytes(plain.read_bytes()[:45])
    long = tmp_path / "long.png"
    write(Image.new("RGB", (16, 16)), long, {"prompt": "x" * 10_001})
    for path, message in (
        (tmp_path / "nothing.png", "cannot read the image"),
        (text, "cannot read"),
        (cut, "cannot read"),
        (plain, "does not hold the prompt that describes it; give it with --source"),
        (odd, "does not hold the prompt that describes it; give it with --source"),
        (long, "says of itself has 10001 characters; at most 10000"),
    ):
        status, _, err = run(path, "red", *rest)
        assert (status, message in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_a_picture_with_too_many_pixels(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # beyond twice that the library raises an error of its own
    assert "has more pixels than are read" in run(path, "red", "--source", "a cat")[2]
    monkeypatch.undo()
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    status, _, err = run(path, "red", "--source", "a cat")
    assert (status, "has more pixels than are read, 8192x8192" in err) == (2, True), err


def test_a_full_disk_leaves_nothing_half_written(
    run: Any, model_folder: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Any, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    status, _, err = run(image, "red", "--model", model_folder, "--out", tmp_path / "out", *QUICK)
    assert status == 2
    assert "No space left on device" in err
    assert not list((tmp_path / "out").iterdir())


def test_several_negatives_where_one_is_taken(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    more = ["--negative", "dog | sea", "--model", model_folder, *QUICK]
    status, _, err = run(image, "red", "--guidance", "cfg(2)", "--inversion", "cfg(1)", "--out", tmp_path / "a", *more)
    assert status == 0
    assert err.count("warning: cfg(2) takes one negative prompt: 'dog | sea' goes in as it is, with its bars") == 1
    status, _, err = run(
        image, "red", "--guidance", "perpneg(2)", "--inversion", "cfg(1)", "--out", tmp_path / "b", *more
    )
    assert status == 0
    assert "takes one negative prompt" not in err


def test_an_output_folder_is_tried_before_the_model_is_loaded(
    run: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidestack.scripts.edit.Generator", lambda *given: pytest.fail("the model was loaded"))
    status, said, err = run(image, "red", "--out", "/proc/nothing", *QUICK)
    assert (status, said) == (2, "")
    assert err.startswith("guidestack: cannot write to /proc/nothing: ")


@pytest.mark.parametrize("name", ["dpm++2m", "euler-a", "ddpm", "flow-heun"])
def test_a_sampler_that_cannot_go_back_is_named_as_it_was_given(
    run: Any, image: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("guidestack.scripts.edit.Generator", lambda *given: pytest.fail("the model was loaded"))
    status, _, err = run(image, "red", "--sampler", name)
    assert status == 2
    assert f"--sampler {name} cannot be run backwards" in err
    assert err.endswith("those of ddim, euler, edm-euler, flow-euler\n")
    assert "from_config" not in err


def test_help(run: Any) -> None:
    assert "Usage: guidestack edit [OPTIONS] IMAGE PROMPT" in run("--help")[1]


def test_an_objective_steers_the_edit(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.png"
    Image.new("RGB", (16, 16), (200, 40, 40)).save(known)
    given = [image, "a dog", "--model", model_folder, "--steps", "2", "--inversion", "cfg(1)"]
    steered = ["--guidance", "cfg(1) | tfg('known', mu=0.3)"]
    status, _, err = run(*given, *steered, "--out", tmp_path / "none")
    assert (status, "the objective 'known' takes a picture: --objective known=FILE" in err) == (2, True), err
    far = {}
    for name, more in {
        "plain": ["--guidance", "cfg(1)"],
        "steered": [*steered, "--objective", f"known={known}"],
    }.items():
        status, _, err = run(*given, *more, "--out", tmp_path / name)
        assert status == 0, err
        (path,) = (tmp_path / name).glob("*.png")
        far[name] = np.abs(np.asarray(Image.open(path), float) - (200, 40, 40)).mean()
        assert ("pictures" in read_recipe(path)) == (name == "steered")
    assert far["steered"] < far["plain"]
    Image.new("RGB", (8, 8)).save(known)
    status, _, err = run(*given, *steered, "--objective", f"known={known}", "--out", tmp_path / "small")
    assert (status, "is for 8x8 pixels, and the run makes 16x16" in err) == (2, True), err


# --- the page and its figure -----------------------------------------------------------------------------------------

PAGE = Path(gs.__file__).parent / "docs" / "editing.md"


def test_the_pages_example_runs(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.setattr(gs, "load_emoji", lambda: pipe)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["fox"].size == (16, 16)
    assert names["editing"].evaluations == [150]


def test_the_pages_commands_run(run: Any, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.pipelines.models import loading as model

    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    monkeypatch.setattr(model, "EMOJI", folder)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```\n(.venv/bin/guidestack.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines():
        command, *arguments = shlex.split(line)
        assert command == ".venv/bin/guidestack"
        given = [str(next(tmp_path.glob(one))) if "*" in one else one for one in arguments]
        monkeypatch.setattr(sys, "argv", ["guidestack", *given, "--steps", "2"])
        cli.main()
    assert len(made(tmp_path / "out" / "cat")) == len(made(tmp_path / "out" / "fox")) == 1


BEGIN = shared.BEGIN.format("edit")


def test_the_pages_table_is_the_figures() -> None:
    text = PAGE.read_text()
    table = text.partition(BEGIN)[2].partition(END)[0].splitlines()
    assert "\n".join(table[:2]) + "\n" == figure.HEAD
    assert [tuple(re.findall(r"`([^`]+)`", line)) for line in table[2:]] == list(figure.ROWS)
    assert all(re.search(r"\| \d+\.\d dB \| \d+ \|$", line) for line in table[2:])
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links == ["edit.png"]
    assert (PAGE.parent / links[0]).exists()


def test_the_figure_shows_what_its_table_says(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    own = pipe.scheduler
    picture, rows = figure.draw(pipe, 2, ["a cat", "red"])
    assert pipe.scheduler is own
    assert [(one.guidance, one.inversion) for one in rows] == list(figure.ROWS)
    assert [one.evaluations for one in rows] == [4, 8, 8, 8, 6]
    assert picture.height > 128 * len(rows)
    monkeypatch.setattr(figure, "load", lambda *given: (pipe, {}))
    page = tmp_path / "editing.md"
    page.write_text(f"a\n{BEGIN}old\n{END}\nb\n")
    done = CliRunner().invoke(figure.main, ["--out", str(tmp_path / "edit.png"), "--steps", "2"])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith(f"a\n{BEGIN}{figure.HEAD}| `cfg(1)` | `cfg(1)` |")
    assert text.endswith(f"| 6 |\n{END}\nb\n")
    assert (tmp_path / "edit.png").exists()
    page.write_text("no marks")
    done = CliRunner().invoke(figure.main, ["--out", str(tmp_path / "edit.png"), "--steps", "2"])
    assert done.exit_code == 1
    assert "no place for the numbers" in done.output


def test_psnr() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert psnr(grey, grey) == math.inf
    one = black.copy()
    one.putpixel((1, 2), (255, 0, 0))
    assert psnr(one, black) == pytest.approx(10 * math.log10(48))


def test_a_second_network(run: Any, model_folder: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [image, "red", "--inversion", "cfg(2)", "--model", model_folder, "--out", out, *QUICK]
    status, _, err = run(*command, "--guidance", "autoguidance(2)", "--network", f"weak={model_folder}")
    assert status == 0, err
    (path,) = made(out)
    assert read_recipe(path)["networks"]["weak"]["name"] == str(model_folder)
    status, _, err = run(*command, "--guidance", "autoguidance(2)")
    assert status == 2
    assert "no network of that name was given" in err
    status, _, err = run(*command, "--guidance", "cfg(2)", "--network", f"weak={model_folder}")
    assert status == 0
    assert "--network weak was given, and no stack asks it" in err
