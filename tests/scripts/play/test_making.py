"""What the page makes, without a browser: the same images as the command line and Python, and it stops at once."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import guidestack as gs
from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.pipelines.models.files import read_recipe
from guidestack.pipelines.models.generator import Generator
from guidestack.pipelines.models.recipe import Recipe
from guidestack.scripts.play import files
from guidestack.scripts.play.axes import axes_of, chosen
from guidestack.scripts.play.controls import changed
from guidestack.scripts.play.copies import command_of, python_of
from guidestack.scripts.play.files import Given, misfits, place_of
from guidestack.scripts.play.making import SETTINGS, Cell, Job, Maker, planned, read, recipe_of

TYPED = {"prompt": "cat face, 'noto' style", "sampler": "euler-a", "steps": "2", "seed": "3"}


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    one = Maker(Generator(None, "float32", "cpu"))
    yield one
    one.close()


def settings(**typed: str) -> dict[str, Any]:
    found, wrong = read({**TYPED, **typed}, None)
    assert not wrong
    return found


def made(maker: Maker, *recipes: Recipe) -> list[Cell]:
    job = Job([Cell(recipe) for recipe in recipes])
    maker.start(job).result()
    return list(job.cells)


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_an_image_is_made_again_by_its_file_by_the_command_and_by_python(
    maker: Maker, command: Any, tmp_path: Path
) -> None:
    stack = gs.parse("perpneg(3, weights=(1, 0.5))")
    recipe, _ = recipe_of(stack, settings(negative="dog | it's red", extra="big"), "float32")
    (cell,) = made(maker, recipe)
    assert (cell.state, cell.error, cell.width) == ("made", "", 64)
    assert cell.report is not None
    assert (cell.report.evaluations, len(cell.scales)) == ([10], 2)
    name, file = maker.picture(cell.picture) or ("", b"")
    path = tmp_path / name
    path.write_bytes(file)
    assert read_recipe(path)["negative"] == "dog | it's red"

    status, _, err = command("generate", "--like", path, "--out", tmp_path / "again", "--threads", 1)
    assert status == 0, err
    assert (tmp_path / "again" / name).read_bytes() == file

    program, *words = shlex.split(command_of(recipe, None, {}))
    assert program == "guidestack"
    status, _, err = command(*words[:-2], "--out", tmp_path / "told", *words[-2:])
    assert status == 0, err
    assert (tmp_path / "told" / name).read_bytes() == file

    names: dict[str, Any] = {}
    exec(compile(python_of(recipe, None, {}, "cpu"), "copied", "exec"), names)
    assert np.array_equal(np.asarray(names["image"]), pixels(file))


def saved(folder: Path, name: str, side: int = 64) -> Path:
    numbers = np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(numbers).resize((side, side)).save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def lora(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of random numbers for the bundled model."""
    pytest.importorskip("peft")
    maker.loaded.result()  # diffusers loads one model at a time
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe, folder = gs.load_emoji(), tmp_path_factory.mktemp("lora")
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"]))
    for place, (name, weight) in enumerate(pipe.unet.named_parameters()):
        if "lora_B" in name:
            weight.data.normal_(generator=torch.Generator().manual_seed(place))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return (folder / "pytorch_lora_weights.safetensors").rename(folder / "fur.safetensors")


@pytest.mark.parametrize("kind", ["image", "mask", "lora", "objective"])
def test_files_are_those_of_the_command_and_of_python(
    maker: Maker, command: Any, tmp_path: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same bits by the page, by the command that it copies, and by its Python, beside the same files."""
    paths, loras, text, typed = {}, [], "cfg(3)", {"sampler": "ddim", "steps": "4"}
    if kind in ("image", "mask"):
        paths["image"], typed["strength"] = saved(tmp_path, "start.png"), "0.7"
    if kind == "mask":
        paths["mask"] = saved(tmp_path, "where.png")
    if kind == "lora":
        loras = [(Path(shutil.copy(lora, tmp_path)), "0.8")]
    if kind == "objective":
        paths["objective known"], text = tmp_path / "known.png", "cfg(3) | tfg('known', mu=0.3)"
        Image.new("RGBA", (64, 64), (0, 0, 255, 128)).save(paths["objective known"])
    given, wrong = files.read(paths, loras)
    assert not wrong
    recipe, _ = recipe_of(gs.parse(text), settings(**typed), "float32")
    job = Job([Cell(recipe_of(gs.parse("cfg(3)"), settings(**{**typed, "strength": ""}), "float32")[0])])
    (plain,) = made(maker, *[cell.recipe for cell in job.cells])
    cell = Cell(recipe, given)
    maker.start(Job([cell])).result()
    assert (cell.state, cell.error) == ("made", "")
    _, file = maker.picture(cell.picture) or ("", b"")
    _, bare = maker.picture(plain.picture) or ("", b"")
    assert not np.array_equal(pixels(file), pixels(bare))
    monkeypatch.chdir(tmp_path)
    _, *words = shlex.split(command_of(recipe, None, {}, given))
    status, _, err = command(*words[:-2], "--out", tmp_path / "told", *words[-2:])
    assert status == 0, err
    (told,) = (tmp_path / "told").glob("*.png")
    assert told.read_bytes() == file
    names: dict[str, Any] = {}
    exec(compile(python_of(recipe, None, {}, "cpu", given), "copied", "exec"), names)
    assert np.array_equal(np.asarray(names["image"]), pixels(file))
    (again,) = made(maker, plain.recipe)  # nothing of it is left in the model
    assert (maker.picture(again.picture) or ("", b""))[1] == bare


def test_a_file_that_cannot_be_used_is_told_by_its_name(maker: Maker, tmp_path: Path, lora: Path) -> None:
    small, image = saved(tmp_path, "small.png", 32), saved(tmp_path, "image.png")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    broken = place_of(maker.folder, "broken.safetensors")
    broken.write_bytes(b"{}")
    paths = {"image": image, "mask": small, "objective known": text}
    given, wrong = files.read(paths, [(tmp_path / "x.bin", "1"), (broken, "much"), (broken, "0.5")])
    assert list(wrong) == ["mask", "lora0", "lora1", "objective known"]
    assert wrong["mask"].startswith("--mask small.png has 32x32 pixels and --image image.png 64x64")
    assert "takes a .safetensors file" in wrong["lora0"]
    assert "a scale is a number" in wrong["lora1"]
    assert "cannot read the image 'text.png'" in wrong["objective known"]
    assert str(tmp_path) not in str(wrong)
    (refused, fine) = (Cell(recipe_of(gs.parse("cfg(3)"), settings(), "float32")[0], one) for one in (given, Given()))
    maker.start(Job([refused, fine])).result()
    assert (refused.state, refused.cause, fine.state) == ("refused", "lora0", "made")
    assert refused.error.startswith("--lora 'broken.safetensors' cannot be read as safetensors")

    stacks = [gs.parse("tfg('known', rho=1)"), gs.parse("tfg('blur(2)', rho=1)")]
    unfit = misfits(files.read({"image": small, "objective blur": small}, [])[0], stacks, None, (64, 64))
    assert list(unfit) == ["image", "objective known", "objective blur"]
    assert "small.png has 32x32 pixels and this model makes 64x64" in unfit["image"]
    assert "the objective 'known' takes a picture" in unfit["objective known"]
    assert "(height x width), have (3, 64, 64)" in unfit["objective blur"]


def test_names_of_files_are_words(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "a b;$(rm).png", "", "..", "-x.png", ".hidden", "a" * 300, "C:\\x\\y.png"):
        place = place_of(tmp_path, name)
        place.write_bytes(b"")
        assert place.parent.parent == tmp_path
        assert re.fullmatch(r"\w[\w.-]{0,31}", place.name), name


def test_python_says_levels_networks_and_sizes() -> None:
    recipe, _ = recipe_of(
        gs.parse("autoguidance(2)"), settings(sampler="euler@ays", steps="3", size="64x64"), "float32"
    )
    names: dict[str, Any] = {}
    exec(compile(python_of(recipe, None, {"weak": "bundled"}, "cpu"), "copied", "exec"), names)
    assert names["image"].size == (64, 64)
    assert names["guided"].report.evaluations == [6]
    assert "--network weak=bundled" in command_of(recipe, None, {"weak": "bundled"})
    told = python_of(recipe_of(gs.parse("cfg(2)"), settings(), "float32")[0], "my/model", {}, "cuda")
    assert "DiffusionPipeline.from_pretrained('my/model').to('cuda')" in told
    compile(told, "copied", "exec")


def test_it_stops_before_the_next_evaluation(maker: Maker) -> None:
    recipe, _ = recipe_of(gs.parse("cfg(3)"), settings(steps="500"), "float32")
    job = Job([Cell(recipe), Cell(recipe)])
    begun, watch = threading.Event(), job.watch

    def seen(cell: Cell) -> Any:
        inner = watch(cell)

        def told(evaluation: Any) -> Any:
            begun.set()
            return inner(evaluation)

        return told

    job.watch = seen  # type: ignore[method-assign]
    done = maker.start(job)
    assert begun.wait(60)
    job.stop()
    assert job.over
    done.result()
    assert [cell.state for cell in job.cells] == ["stopped", "stopped"]
    assert job.cells[0].step < 100
    assert made(maker, recipe_of(gs.parse("cfg(3)"), settings(), "float32")[0])[0].state == "made"


def test_what_cannot_be_made_says_so_and_the_rest_is_made(maker: Maker) -> None:
    wrong = recipe_of(gs.parse("slg(2, blocks='nowhere')"), settings(), "float32")[0]
    right = recipe_of(gs.parse("cfg(2)"), settings(), "float32")[0]
    refused, fine = made(maker, wrong, right)
    assert (refused.state, fine.state) == ("refused", "made")
    assert "nowhere" in refused.error
    assert "\n" not in refused.error


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("prompt", "", "no prompt given"),
        ("prompt", "a" * 20_000, "20000 characters"),
        ("negative", "a\0b", "NUL"),
        ("sampler", "eulr", "did you mean 'euler'"),
        ("steps", "0", "0 is not in the range 1<=x<=1000"),
        ("steps", "many", "'many' is not a valid integer"),
        ("seed", "-1", "-1 is not in the range"),
        ("size", "64", "HEIGHTxWIDTH"),
        ("strength", "0", "0 is not in the range 0<x<=1"),
        ("strength", "half", "'half' is not a valid float"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name(name: str, text: str, said: str) -> None:
    found, wrong = read({**TYPED, name: text}, None)
    assert list(wrong) == [name]
    assert said in wrong[name]
    assert {*found, *wrong} == {*SETTINGS}


def test_the_plan_is_known_before() -> None:
    plan = planned(gs.parse("perpneg(3)"), settings(negative="a | b", extra="c"), None, {})
    assert plan.planned.evaluations == 10
    plan = planned(gs.parse("autoguidance(2)"), settings(extra="c"), None, {})
    assert [note.partition(":")[0] for note in plan.notes] == [
        "it asks the network 'weak' beside the model's own",
        "no rule of it uses the further positive prompts; perpneg(scale) does",
    ]
    with pytest.raises(GuidestackError, match=r"langevin.* moves samples between two steps"):
        planned(gs.parse("cfg(4) | langevin()"), settings(sampler="dpm++2m"), None, {})


def test_no_file_is_read_that_a_control_names(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"")
    typed = {"coefficients": str(tmp_path / "other.safetensors")}
    stack = changed(gs.parse("linear_ag(cfg(4), 'emoji-cfg4-20')"), (0,), typed)
    with pytest.raises(InputError, match="reads no file"):
        planned(stack, settings(), None, {})
    with pytest.raises(InputError, match="reads no file"):
        recipe_of(stack, settings(), "float32")


def test_axes() -> None:
    stack = gs.parse("cfg(4) | apg(3, radius=2)")
    assert list(axes_of(stack))[:3] == ["cfg.scale", "cfg.against", "apg.scale"]
    assert "cfg.scale (2)" in axes_of(gs.parse("cfg(4) | cfg(2)"))
    axis = chosen(stack, "apg.scale", "2:8:4")
    assert [str(axis.put(value, stack, TYPED)[0]) for value in axis.values][:2] == [
        "cfg(4) | apg(2, radius=2)",
        "cfg(4) | apg(4, radius=2)",
    ]
    assert chosen(stack, "seed", "1, 2").put("2", stack, TYPED)[1]["seed"] == "2"
    with pytest.raises(GuidestackError, match="phi"):
        chosen(gs.parse("cfg(2)"), "rescale.phi", "1")
    window = chosen(gs.parse("during(cfg(2), progress=(0, 1))"), "during.progress", '"0, 0.5", "0.5, 1"')
    assert str(window.put(window.values[1], gs.parse("during(cfg(2), progress=(0, 1))"), TYPED)[0]).endswith(
        "(0.5, 1))"
    )
    for text in ("", " , ", "1:2:1", "2, 2"):
        with pytest.raises(InputError, match="--axis scale"):
            chosen(stack, "cfg.scale", text)
