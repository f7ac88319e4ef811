"""Axes of `generate` in one labelled picture, and images that are made again with changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidestack.guidance.errors import InputError
from guidestack.pipelines.models.files import read_recipe
from guidestack.pipelines.models.generator import Generator
from guidestack.scripts.axes import Axis

QUICK = ["--steps", "2", "--sampler", "ddim"]


def recipes(folder: Path) -> list[dict[str, Any]]:
    return [read_recipe(path) for path in sorted(folder.glob("*.png")) if path.name != "grid.png"]


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("w=2:8:4", ("2", "4", "6", "8")),
        ("w=0:1:5", ("0", "0.25", "0.5", "0.75", "1")),
        ("w=1:0:3", ("1", "0.5", "0")),
        ("w=0:1:4", ("0", "0.333333333333", "0.666666666667", "1")),
        ("seed=3:6", ("3", "4", "5", "6")),
        ("w=1.5:3.5", ("1.5", "2.5", "3.5")),
        ("sampler=ddim, euler-a", ("ddim", "euler-a")),
        ('sampler="euler@sigmas=14,2", ddim', ("euler@sigmas=14,2", "ddim")),
        ("size=16x16", ("16x16",)),
        ("w=4:4:1", ("4",)),
        ("animal=a cat: red", ("a cat: red",)),
        ('ratio="2:6:x"', ("2:6:x",)),
    ],
)
def test_values(text: str, values: tuple[str, ...]) -> None:
    assert Axis.read(text).values == values


@pytest.mark.parametrize("text", ["w", "=2", "2=3"])
def test_what_is_no_axis(text: str) -> None:
    with pytest.raises(InputError, match="--axis is NAME=VALUES, such as"):
        Axis.read(text)


@pytest.mark.parametrize(
    "values",
    [
        *("", "1,,2", "1,1", "5:2", "1:2:1", "1:1.5", "1:9:0", "1:2:999999999"),
        *("2:6:x", "2:6:", "2:", ":6", "2:x", "x:6", "2:6:1.5", "2:6:-1", "2:6:3:4", "1e1:2", "2 : six"),
    ],
)
def test_an_axis_without_values_is_named(values: str) -> None:
    with pytest.raises(InputError, match=r"--axis w\b"):
        Axis.read(f"w={values}")


def test_two_axes_in_one_picture(command: Any, model_folder: Path, tmp_path: Path) -> None:
    options = [
        "--axis",
        "w=1:5:3",
        "--axis",
        "sampler=ddim,euler-a",
        "--model",
        model_folder,
        "--steps",
        2,
        "--batch",
        4,
    ]
    status, out, err = command("generate", "a cat", "--guidance", "cfg({w})", *options, "--out", tmp_path / "out")
    assert status == 0, err
    assert f"grid: {tmp_path / 'out' / 'grid.png'}" in out
    made = recipes(tmp_path / "out")
    wanted = {(f"cfg({w})", sampler) for w in (1, 3, 5) for sampler in ("ddim", "euler-a")}
    assert {(one["guidance"], one["sampler"]) for one in made} == wanted
    assert {one["seed"] for one in made} == {0}
    # Every place of the picture has the image of its values: the last axis has the columns.
    grid, enlarged = pixels(tmp_path / "out" / "grid.png"), 128
    left = grid.shape[1] - 2 * (enlarged + 6)
    top = grid.shape[0] - 3 * (enlarged + 6)
    made_there = sorted((tmp_path / "out").glob("a-cat*.png"))
    assert len({pixels(path).tobytes() for path in made_there}) == 6
    for path in made_there:
        recipe = read_recipe(path)
        row, column = (1, 3, 5).index(int(recipe["guidance"][4])), ("ddim", "euler-a").index(recipe["sampler"])
        x, y = left + column * (enlarged + 6), top + row * (enlarged + 6)
        there = grid[y : y + enlarged : 8, x : x + enlarged : 8]
        assert np.array_equal(there, pixels(path)), (row, column)
    # Nothing is made anew, and the same images without axes are there already.
    again = command("generate", "a cat", "--guidance", "cfg({w})", *options, "--out", tmp_path / "out")
    assert "6 were there already" in again[1]
    single = ["--guidance", "cfg(3)", "--sampler", "euler-a", "--steps", 2, "--model", model_folder]
    assert "1 was there already" in command("generate", "a cat", *single, "--out", tmp_path / "out")[1]


def test_every_kind_of_axis(command: Any, model_folder: Path, tmp_path: Path) -> None:
    """A stack that does not use an axis is made once."""
    axes = ["--axis", "animal=cat,dog", "--axis", "steps=2,3", "--axis", "seed=4:5", "--axis", "size=16x16,24x16"]
    stacks = ["--guidance", "stack()", "--guidance", "cfg(2)"]
    options = ["--model", model_folder, "--sampler", "ddim", "--out", tmp_path / "out", "--grid", tmp_path / "g.png"]
    status, _, err = command("generate", "a {animal}", "b {x}", *axes, *stacks, *options, "--batch", 3)
    assert status == 0, err
    made = recipes(tmp_path / "out")
    assert len(made) == 2 * 2 * 2 * 2 * 2 + 2 * 2 * 2 * 2  # the second prompt has no animal
    assert {one["prompt"] for one in made} == {"a cat", "a dog", "b {x}"}
    assert {(one["steps"], tuple(one["size"])) for one in made} == {(s, (h, 16)) for s in (2, 3) for h in (16, 24)}
    assert {one["seed"] for one in made} == {4, 5, 6}
    assert pixels(tmp_path / "g.png").shape[0] > 16 * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axis", "w=1,2"], "no stack or prompt uses --axis w: write {w} where its values go"),
        (["--axis", "stpes=1,2"], "did you mean 'steps'?"),
        (["--axis", "sampler=ddim,eular"], "unknown sampler 'eular'; did you mean 'euler'?"),
        (["--axis", "steps=2,x"], "--axis steps: a value is a whole number from 1 to 1000; got 'x'"),
        (["--axis", "seed=-1,2"], "--axis seed: a value is a whole number from 0"),
        (["--axis", "strength=0.5,1"], "takes no strength"),
        (["--axis", "size=16x16,4"], "HEIGHTxWIDTH"),
        (["--axis", "steps=2,3", "--axis", "steps=4"], "--axis steps comes twice"),
        (["--axis", "steps=2,3", "--steps", "4"], "--steps and --axis steps were both given"),
        (["--axis", "w=1,2", "--guidance", "cfg({w})", "--guidance", "cfg({v})"], "there is no --axis v=VALUES"),
        (["--axis", "w=1,x", "--guidance", "cfg({w})"], "at w = x: cannot read the stack 'cfg(x)' at character 5"),
        (["--axis", "w=1,2", "--axis", "p=0.5,2", "--guidance", "cfg({w}) | rescale({p})"], "at w = 1, p = 2: "),
        (["--guidance", "cfg({w})"], "there is no --axis w=VALUES"),
        (["--axis", "w=1:99999", "--axis", "seed=1:99", "--guidance", "cfg({w})"], "and one run makes 100000 at most"),
    ],
)
def test_bad_axes_are_one_line(
    command: Any, model_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    status, out, err = command("generate", "a", "--model", model_folder, "--out", tmp_path / "out", *options)
    line = err.strip().replace("\r", "\n").splitlines()[-1]
    assert (status, out, message in line) == (2, "", True), err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_made_again_with_changes(command: Any, model_folder: Path, tmp_path: Path) -> None:
    first, more = tmp_path / "first", ["--model", model_folder]
    options = ["--negative", "dog", "--guidance", "cfg(3)", "--seed", 7, "--size", "16x24", *QUICK, *more]
    assert command("generate", "a cat", *options, "--out", first)[0] == 0
    (path,) = first.glob("*.png")
    before = read_recipe(path)
    same = {"prompt", "negative", "guidance", "seed", "size", "sampler", "steps"}
    for place, (change, changed) in enumerate(
        [
            (["--guidance", "apg(2)"], {"guidance": "apg(2)"}),
            (["--seed", 9, "--steps", 3], {"seed": 9, "steps": 3}),
            (["red"], {"prompt": "red"}),
            (["--sampler", "Euler a", "--negative", ""], {"sampler": "euler-a", "negative": ""}),
        ]
    ):
        out = tmp_path / str(place)
        status, _, err = command("generate", *change, "--like", path, *more, "--out", out)
        assert status == 0, err
        (recipe,) = recipes(out)
        assert {name: recipe[name] for name in same} == {name: before[name] for name in same} | changed
    status, _, err = command("generate", "--like", path, "--axis", "seed=7:8", *more, "--out", tmp_path / "axis")
    assert status == 0, err
    images = {read_recipe(one)["seed"]: pixels(one) for one in (tmp_path / "axis").glob("a-cat*.png")}
    assert np.array_equal(images[7], pixels(path))
    assert set(images) == {7, 8}


def test_made_again_by_another_model_only_with_changes(
    command: Any, new_pipe: Any, model_folder: Path, tmp_path: Path
) -> None:
    import torch

    pipe = new_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(0.1)
    pipe.save_pretrained(tmp_path / "other")
    assert command("generate", "a cat", "--model", model_folder, *QUICK, "--out", tmp_path / "first")[0] == 0
    (path,) = (tmp_path / "first").glob("*.png")
    again = ["generate", "--like", path, "--model", tmp_path / "other", "--out", tmp_path / "second"]
    status, _, err = command(*again)
    assert (status, "the image was made with the model {" in err) == (2, True)
    status, _, err = command(*again, "--seed", 3)
    assert status == 0, err
    assert "note: the image was made with the model {" in err


@pytest.mark.parametrize(
    ("device", "model", "wanted"),
    [("cpu", None, "float32"), ("cuda:1", None, "float16"), ("cuda", "flux", "bfloat16"), ("mps", "sd", "float16")],
)
def test_the_type_of_weights_follows_the_device(tmp_path: Path, device: str, model: str | None, wanted: str) -> None:
    from guidestack.pipelines.models.loading import chosen_dtype

    names = {"flux": "FluxPipeline", "sd": "StableDiffusionPipeline"}
    if model:
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{names[model]}"}}')
    assert chosen_dtype(None, device, str(tmp_path) if model else None) == wanted
    assert chosen_dtype("float32", device, None) == "float32"


def test_an_accelerator_is_said(
    command: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def generator(model: Any, dtype: str, device: str, *more: Any, **others: Any) -> Any:
        asked.update(dtype=dtype, device=device)
        return Generator(model, "float32", "cpu")

    monkeypatch.setattr("guidestack.scripts.generating.chosen_device", lambda given: "cuda")
    monkeypatch.setattr("guidestack.scripts.generating.Generator", generator)
    status, _, err = command("generate", "a", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 0, err
    assert "on cuda, in float16\n" in err
    assert asked == {"dtype": "float16", "device": "cuda"}
