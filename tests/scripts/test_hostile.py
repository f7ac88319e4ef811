"""Whatever a command is given, guidestack's own errors come out: one line, status 2, no model loaded."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from guidestack.guidance.errors import LONGEST, GuidestackError, InputError
from guidestack.pipelines.models import files as images
from guidestack.pipelines.models import loading as model
from guidestack.pipelines.models import recipe
from guidestack.pipelines.models.files import LARGEST_SIDE, opened, read_recipe, write
from guidestack.pipelines.models.generator import Generator
from guidestack.pipelines.models.loading import check_device, check_folder, first_line, identity_of, memory
from guidestack.pipelines.models.recipe import Recipe
from guidestack.scripts import cli, generating

QUICK = ["--steps", "2", "--sampler", "ddim"]
FUZZ = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """``run(*arguments) -> (exit status, stdout, stderr)``, in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guidestack", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture
def refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line with which a command is refused, before any model is loaded."""

    def loaded(*given: Any, **more: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", loaded)

    def call(*arguments: object) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert err.startswith("guidestack: ")
        assert len(err.splitlines()) == 1, err
        assert len(err) < LONGEST + 20
        return err

    return call


# --- options ---------------------------------------------------------------------------------------------------------

LONG = "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a", "--size", f"{'1' * 5000}x64"], "HEIGHTxWIDTH"),
        (["generate", "a", "--size", "\u0661x64"], "HEIGHTxWIDTH"),
        (["generate", "a", "--size", "60000x60000"], "sides of 1 to 8192 pixels"),
        (["generate", "a", "--count", "1000000000"], "--count"),
        (["generate", "a", "b", "--count", "60000"], "120000 images are wanted, and one run makes 100000 at most"),
        (["generate", "a", "--batch", "100000"], "--batch"),
        (["generate", "a", "--seed", "9" * 5000], "--seed"),
        (["generate", "a", "--steps", "1" * 400], "--steps"),
        (["generate", "a", "--seed", str(2**63 - 1), "--count", "2"], "is too large for 2 seeds"),
        (["generate", LONG * 3], "a prompt has 15000 characters; at most 10000"),
        (["generate", "a", "--negative", LONG * 3], "--negative has 15000 characters"),
        (["generate", "a", "--out", LONG], "File name too long"),
        (
            ["generate", "a", "--out", "x.png"],
            "--out is a folder, in which each picture gets a name of its own",
        ),
        (["generate", "a", "--out", "x.JPG"], "one labelled picture of all images is --grid FILE.png"),
        (["generate", "a", "--grid", "x.jpg"], "its name ends in .png"),
        (["generate", "a", "--grid", f"{LONG}.png"], "File name too long"),
        (["generate", "a", "--grid", f"{'x' * 252}.png"], "File name too long"),
        (["generate", "a", "--model", LONG], "no model at"),
        (["generate", "a", "--model", f"./{LONG}"], "no model at"),
        (["generate", "a", "--sampler", LONG], "unknown sampler"),
        (["generate", "a", "--sampler", "eular"], "did you mean 'euler'?"),
        (["generate", "a", "--guidance", f"cfg(1{'0' * 400})"], "is too large for a number"),
        (["generate", "a", "--guidance", f"cfg({'-' * 995}4)"], "inside one another"),
        (["generate", "a", "--guidance", "7.5"], "is written cfg(7.5)"),
        (["generate", "a", "--guidance", "own.yaml"], "write @own.yaml"),
        (["generate", "a", "--guidance", f"@{LONG}.yaml"], "File name too long"),
        (["generate", "a", "--guidance", f"@{LONG}"], "no preset 'xxx"),
        (["generate", "--prompts-from", LONG], "File name too long"),
        (["generate", "--prompts-from", "."], "it is a folder"),
        (["generate", "--prompts-from", "/dev/zero"], "a pipe or a device"),
        (["generate", "--like", LONG], "File name too long"),
        (["generate", "--like", "/dev/zero"], "a pipe or a device"),
        (
            ["generate", "a", "--device", "gpu"],
            "'gpu' cannot be used: expected cpu, cuda (NVIDIA's or AMD's)",
        ),
        (["generate", "a", "--device", LONG], "expected cpu, cuda"),
        (["generate", "a", "--device", "meta"], "device 'meta' cannot be used: expected cpu, cuda"),
        (["generate", "a", "--device", "privateuseone"], "device 'privateuseone' cannot be used: expected cpu, cuda"),
        (["generate", "a", "--device", "cuda:99999999999999999999"], "cannot be used"),
        (["generate", "a", f"--{LONG}"], "No such option"),
        (["generate", "a", "\udcff"], "argument 3 is not UTF-8 text: '\\udcff'"),
        (["generate", "a", "--out", "\udcff"], "argument 4 is not UTF-8 text"),
        (["rules", "\udcff"], "argument 2 is not UTF-8 text"),
        (["\udcff"], "is not UTF-8 text"),
        ([LONG], "no such command 'xxx"),
        (["explain", "\ud800"], "not UTF-8"),
        (["explain", "cfg(4), rescale(0.7)"], "cfg(4) | rescale(0.7)"),
        (["explain", LONG * 300], "at most 10000 characters"),
        (["explain", "cfg(4)", "--steps", "9" * 5000], "--steps"),
        (["edit", "/dev/zero", "a"], "a pipe or a device"),
        (["edit", LONG, "a"], "File name too long"),
        (["edit", "x.png", LONG * 3], "prompt has 15000 characters"),
        (["edit", "x.png", "a", "--strength", "nan"], "--strength"),
        (["edit", "x.png", "a", "--size", "9999x64"], "sides of 1 to 8192 pixels"),
        (["doctor", LONG], "no model at"),
        (["doctor", "--device", "meta"], "device 'meta' cannot be used: expected cpu, cuda"),
        (["fit-linear-ag", "--prompts", LONG, "--out", "x.safetensors"], "File name too long"),
        (["fit-linear-ag", "--prompts", "x", "--out", f"{LONG}.safetensors"], "File name too long"),
        (["fit-linear-ag", "--prompts", "x", "--out", "x.safetensors", "--trajectories", "1" * 30], "--trajectories"),
        (["fit-linear-ag", "--prompts", "x", "--out", "x.safetensors", "--batch", "99999"], "--batch"),
    ],
    ids=lambda value: None,
)
def test_options_beyond_the_bounds(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


@FUZZ
@given(
    st.sampled_from(["generate", "edit", "explain", "rules", "doctor", "fit-linear-ag"]),
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    *("--guidance", "--size", "--seed", "--steps", "--count", "--device", "--like", "--model", "--out"),
                    *("--grid", "--prompts-from", "--sampler", "--batch", "--negative", "--strength", "--prompts"),
                    *("cfg(4)", "64x64", "1", "@rescale", "nowhere/nothing", "9" * 400, "-1", "nan", "x.png", "meta"),
                    *("\udc80", "a | b", ""),
                ]
            ),
            st.text(max_size=5),
        ),
        max_size=6,
    ),
)
def test_any_arguments(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str]
) -> None:
    """They end in work, which is not done here, in help, or in one line."""

    class WorkError(BaseException):
        """A model would be loaded now."""

    def loaded(*given: Any, **more: Any) -> None:
        raise WorkError

    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", loaded)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    monkeypatch.setattr(sys, "argv", ["guidestack", command, *arguments])
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    try:
        cli.main()
    except WorkError:
        return
    except SystemExit as stop:
        status = int(stop.code or 0)
        assert status in (0, 2)
        if status:
            assert said.getvalue().startswith("guidestack: ")
            assert len(said.getvalue().splitlines()) == 1


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_files_of_prompts(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts"
    file.write_text("# a comment\n#\n  # another\n#1 dad, on a mug\na cat # with a dog\n\n")
    assert generating.read_prompts(str(file)) == ["#1 dad, on a mug", "a cat # with a dog"]
    file.write_text("# nothing\n")
    assert "has no prompts" in refused("generate", "--prompts-from", file)
    file.write_text(f"{'x' * 10_001}\n")
    assert "a prompt has 10001 characters" in refused("generate", "--prompts-from", file)
    file.write_text("a\ncat\0dog\n")
    assert "a prompt has a NUL character, after 'cat'" in refused("generate", "--prompts-from", file)
    file.write_text("a\n" * 100_001)
    assert "100001 images are wanted" in refused("generate", "--prompts-from", file)
    monkeypatch.setattr(generating, "MAX_BYTES", 10)
    assert "more than 10 bytes" in refused("generate", "--prompts-from", file)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a" * 11)))
    assert "more than 10 bytes of prompts" in refused("generate", "--prompts-from", "-")
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe or a device, and a file is expected" in refused("generate", "--prompts-from", tmp_path / "pipe")
    assert "a pipe or a device" in refused("fit-linear-ag", "--prompts", tmp_path / "pipe", "--out", "x.safetensors")


# --- pictures --------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


PICTURES = [
    (claimed(60000, 60000), "has more pixels than are read, 8192x8192"),
    (claimed(10000, 9000), "has more pixels than are read"),  # beyond ours, and nothing to the library
    (claimed(2**31 - 1, 2**31 - 1), "has more pixels than are read"),
    (claimed(0, 0), "cannot read the image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "cannot read the image"),
    (b"%PDF-1.4\n", "cannot read the image"),
    (b"P6 8 8 255 " + b"\0" * 192, "cannot read the image"),
    (b"", "cannot read the image"),
    (b"\x89PNG\r\n\x1a\n", "cannot read the image"),
    (claimed(8, 8)[:-20], "cannot read the image"),
    (claimed(8, 8).replace(b"IHDR", b"IHDX"), "cannot read the image"),
]


@pytest.mark.parametrize(("data", "message"), PICTURES, ids=range(len(PICTURES)))
@pytest.mark.parametrize("command", [["generate", "--like"], ["edit"]], ids=["like", "edit"])
def test_pictures_that_are_none(
    refused: Callable[..., str], tmp_path: Path, command: list[str], data: bytes, message: str
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    said = refused(*command, path, *(["a cat"] if command == ["edit"] else []), "--out", tmp_path)
    assert message in said
    assert "BytesIO" not in said


def test_other_formats_are_read_for_edit_alone(refused: Callable[..., str], tmp_path: Path) -> None:
    for kind, fits in (("JPEG", True), ("WEBP", True), ("GIF", False), ("BMP", False), ("TIFF", False)):
        path = tmp_path / "x.png"
        Image.new("RGB", (16, 16)).save(path, format=kind)
        said = refused("edit", path, "a cat", "--out", tmp_path)
        assert ("give it with --source" in said) == fits
        assert ("cannot read the image" in said and "as PNG or JPEG or WEBP" in said) != fits
        if not fits:
            assert "as PNG or JPEG or WEBP" in refused("generate", "--like", path, "--out", tmp_path)


def test_a_pipe_named_as_a_picture(refused: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for command in (["generate", "--like", tmp_path / "x.png"], ["edit", tmp_path / "x.png", "a"]):
        assert "it is a pipe or a device, and a file is expected" in refused(*command)


@FUZZ
@given(st.data())
def test_any_bytes_are_a_picture_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format=data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"])))
    whole = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    (tmp_path / "x.png").write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    for formats in (("PNG",), ("PNG", "JPEG", "WEBP")):
        try:
            found = opened(tmp_path / "x.png", formats)
        except InputError as error:
            one_line(error)
        else:
            assert found.width * found.height <= images.MOST_PIXELS


def one_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) <= LONGEST


# --- what is written in pictures -------------------------------------------------------------------------------------

GOOD = {
    "prompt": "a cat", "negative": "", "extra": "", "guidance": "cfg(4.0)", "sampler": "ddim", "steps": 2, "seed": 0,
    "size": None, "dtype": "float32", "batch": 1, "model": {"name": "bundled", "fingerprint": "0"}, "versions": {},
}  # fmt: skip
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"size": [10**9, 10**9]}, "size is out of range"),
    ({"size": [0, 64]}, "size is out of range"),
    ({"size": [LARGEST_SIDE + 1, 64]}, "size is out of range"),
    ({"size": [64, 64, 64]}, "in a form that this version reads"),
    ({"steps": 10**9}, "out of range"),
    ({"steps": True}, "in a form"),
    ({"seed": 10**400}, "does not say how"),
    ({"seed": 2**63}, "out of range"),
    ({"batch": 10**9}, "out of range"),
    ({"prompt": "\ud800 cat"}, "does not say how"),
    ({"prompt": "x" * 10_001}, "longer than 10000 characters"),
    ({"negative": "x" * 10**6}, "longer than 10000 characters"),
    ({"guidance": f"cfg(1{'0' * 400})"}, "is too large for a number"),
    ({"guidance": "cfg(" + "-" * 995 + "4)"}, "inside one another"),
    ({"guidance": "prefix(" * 198 + "cfg(4)" + ", 2)" * 198}, "inside one another"),
    ({"guidance": "cfg(1if 2 else 3)"}, "invalid decimal literal"),
    ({"guidance": "@own.yaml"}, "parse reads no files"),
    ({"guidance": "linear_ag(cfg(4), '/etc/x.safetensors')"}, "an image does not choose what is read"),
    ({"sampler": "x" * 10**5}, "unknown sampler"),
    ({"sampler": "ddim\x00"}, "unknown sampler"),
    ({"dtype": "float8"}, "in a form"),
    ({"model": {"name": ["x"]}}, "a value that is no text"),
    ({"model": {"name": "x" * 10**5}}, "longer than 10000 characters"),
    ({"model": []}, "in a form"),
    ({"versions": {"torch": 2}}, "a value that is no text"),
    ({"further": 1}, "in a form"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=range(len(CHANGES)))
def test_recipes_beyond_the_bounds(
    refused: Callable[..., str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    text = json.dumps(GOOD | change)  # with escapes: half a surrogate pair cannot be written otherwise
    write(Image.new("RGB", (8, 8)), tmp_path / "x.png", {"text": "here"})
    replaced = (tmp_path / "x.png").read_bytes()
    start = replaced.index(b"iTXt") - 4
    end = start + 12 + struct.unpack(">I", replaced[start : start + 4])[0]
    told = chunk(b"iTXt", b"guidestack\0\0\0\0\0" + text.encode())
    (tmp_path / "x.png").write_bytes(replaced[:start] + told + replaced[end:])
    assert message in refused("generate", "--like", tmp_path / "x.png", "--out", tmp_path)


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 5000, '{"a": ' * 300, "nan", "\udcff", "{}", "[]", "3", '"x"', ""])
def test_metadata_that_is_no_recipe(refused: Callable[..., str], tmp_path: Path, text: str) -> None:
    about = images.PngImagePlugin.PngInfo()
    about.add(b"iTXt", b"guidestack\0\0\0\0\0" + text.encode(errors="surrogateescape"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=about)
    refused("generate", "--like", tmp_path / "x.png", "--out", tmp_path)


def test_a_text_that_unfolds_without_end(refused: Callable[..., str], tmp_path: Path) -> None:
    about = images.PngImagePlugin.PngInfo()
    about.add(b"iTXt", b"guidestack\0\1\0\0\0" + zlib.compress(b"x" * 10**8))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=about)
    refused("generate", "--like", tmp_path / "x.png", "--out", tmp_path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
recipes = st.dictionaries(st.sampled_from(sorted(GOOD)), plain, max_size=4).map(lambda change: GOOD | change)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
sound = st.fixed_dictionaries(
    {"prompt": texts, "negative": texts, "steps": st.integers(1, 1000), "seed": st.integers(0, 2**63 - 1)},
    optional={"size": st.lists(st.integers(1, LARGEST_SIDE), min_size=2, max_size=2), "batch": st.integers(1, 1024)},
).map(lambda change: GOOD | change)


@FUZZ
@given(recipes | sound | plain)
def test_any_metadata_is_a_recipe_that_comes_back_or_one_line(tmp_path: Path, told: Any) -> None:
    path = tmp_path / "x.png"
    try:
        write(Image.new("RGB", (8, 8)), path, told)
    except UnicodeEncodeError:  # nobody can write half a surrogate pair; others' files are tried above
        return
    try:
        found = Recipe.read(read_recipe(path), path)
    except InputError as error:
        one_line(error)
    else:
        write(Image.new("RGB", (8, 8)), path, found.as_json())
        assert Recipe.read(read_recipe(path), path) == found


@FUZZ
@given(sound)
def test_what_is_written_into_a_picture_comes_back(tmp_path: Path, told: dict[str, Any]) -> None:
    found = Recipe.read(told, tmp_path / "x.png")
    write(Image.new("RGB", (8, 8)), tmp_path / "x.png", found.as_json())
    assert Recipe.read(read_recipe(tmp_path / "x.png"), tmp_path / "x.png") == found


# --- model folders and devices ---------------------------------------------------------------------------------------

INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
INDEXES: list[tuple[dict[str, Any], str]] = [
    ({"unet": []}, "'unet' is []; expected a library and a class"),
    ({"unet": "x"}, "'unet' is 'x'; expected a library and a class"),
    ({"unet": [1, 2]}, "'unet' is [1, 2]; expected a library"),
    ({"unet": ["diffusers"]}, "expected a library"),
    ({"unet": [None, "X"]}, "expected a library"),
    ({"unet": {"a": 1}}, ""),
    ({"unet": "x"}, ""),
    ({"unet": 3}, ""),
    ({"unet": ["x" * 10**5, "y"]}, ""),
    ({"unet": ["os", "system"]}, ""),
    ({"x" * 5000: ["diffusers", "UNet2DConditionModel"]}, "has a component 'xxx"),
    ({"../unet": ["diffusers", "UNet2DConditionModel"]}, "has a component '../unet': expected a word"),
    ({"a\0b": ["diffusers", "UNet2DConditionModel"]}, "expected a word"),
    ({"\ud800": 1}, "is no model index"),
    ({"a": 10**400}, "is no model index"),
    ({"_class_name": "x" * 10**5}, "is no model index"),
    ({"_class_name": "../x"}, "is no model index"),
    ({"_class_name": ["x"]}, "is no model index"),
]


@pytest.mark.parametrize(("change", "message"), INDEXES, ids=range(len(INDEXES)))
def test_model_folders(run: Run, model_folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    status, _, err = run("generate", "a", "--model", folder, "--out", tmp_path / "out", *QUICK)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_files_in_a_model_folder(run: Run, model_folder: Path, tmp_path: Path) -> None:
    for number, (name, data) in enumerate(
        [
            ("unet/config.json", b"[]"),
            ("unet/config.json", b"{"),
            ("unet/config.json", b'{"sample_size": [1, "x"]}'),
            ("unet/config.json", b'{"block_out_channels": "x"}'),
            ("scheduler/scheduler_config.json", b"[1]"),
            ("tokenizer/tokenizer_config.json", b"3"),
            ("text_encoder/config.json", b'{"hidden_size": null}'),
            ("unet/diffusion_pytorch_model.safetensors", b"\xff" * 100),
            ("unet/diffusion_pytorch_model.safetensors", b""),
            ("model_index.json", b"\xff\xfe"),
            ("model_index.json", b"[" * 10**5),
            ("model_index.json", b'{"_class_name": "StableDiffusionPipeline"}'),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(model_folder, folder)
        (folder / name).write_bytes(data)
        status, _, err = run("generate", "a", "--model", folder, "--out", tmp_path / "out", *QUICK)
        assert (status, len(err.splitlines())) == (2, 1), (name, data, err)


@FUZZ
@given(st.dictionaries(st.sampled_from(["_class_name", "unet", "vae", "a/b"]) | st.text(max_size=4), plain, max_size=4))
def test_any_model_index_is_one_line_or_sound(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "x.safetensors").touch()
    for mapping in (told, INDEX | told):
        (folder / "model_index.json").write_text(json.dumps(mapping))
        for check in (check_folder, lambda one: check_folder(one, doctored=True), lambda one: identity_of(str(one))):
            try:
                check(folder)
            except GuidestackError as error:
                one_line(error)


def test_devices_answer_with_a_number() -> None:
    check_device("cpu")
    for device in ("meta", "privateuseone", "gpu", "", "cpu:x", "cuda:-1", "hpu", "vulkan", "x" * 10**6):
        with pytest.raises(InputError, match="cannot be used") as caught:
            check_device(device)
        one_line(caught.value)


# --- memory, and folders that go -------------------------------------------------------------------------------------


def test_memory_on_any_device_is_one_line(run: Run, model_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ):
        with pytest.raises(InputError, match="out of memory on it; less"), memory("it", "less"):
            raise error
    with pytest.raises(RuntimeError, match="other"), memory("it", "less"):
        raise RuntimeError("other")

    def much(*given: Any, **more: Any) -> Any:
        return torch.empty(2**50)  # what the allocator of the CPU says of itself

    monkeypatch.setattr("guidestack.pipelines.models.generator.guide", lambda *given, **more: much)
    status, _, err = run("generate", "a", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 2
    assert (
        err.splitlines()[-1]
        == "guidestack: out of memory on cpu; try --dtype float16, --offload, or a smaller --batch or --size"
    )
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", much)
    status, _, err = run("generate", "b", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "out of memory on cpu; the model does not fit" in err
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("Error in loading:\n\tsize mismatch\n\tmore")) == "Error in loading: size mismatch"


@pytest.mark.parametrize("at", [2, 3])
def test_an_output_folder_that_goes_is_said(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """While images are made, and behind the last one."""
    original, calls = images.write, []

    def watched(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "out")
            if at == 3:
                (tmp_path / "out").mkdir()
        original(*arguments)

    monkeypatch.setattr(images, "write", watched)
    status, out, err = run("generate", "a", "b", "--model", model_folder, "--out", tmp_path / "out", *QUICK)
    assert (status, out) == (2, "")
    assert f"{at - 2} of 2 images finished" in err
    if at == 3:
        assert "1 image of this run went from" in err


def test_what_is_there_is_not_made_and_no_model_loaded(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tmp_path / "g" / "g.png"
    command = ["generate", "a", "b", "--model", model_folder, "--out", tmp_path, "--grid", grid, *QUICK]
    assert run(*command)[0] == 0
    grid.unlink()
    monkeypatch.setattr(
        "guidestack.pipelines.models.generator.load", lambda *given: pytest.fail("the model was loaded")
    )
    status, out, _ = run(*command)
    assert (status, out.splitlines()[0]) == (0, f"nothing to make in {tmp_path}: 2 were there already")
    assert grid.exists()
    image = next(tmp_path.glob("a-*.png"))
    status, out, _ = run("generate", "--like", image, "--model", model_folder, "--out", tmp_path)
    assert (status, out) == (0, f"nothing to make in {tmp_path}: 1 was there already\n")
    monkeypatch.undo()


def test_the_page_of_limits_has_the_numbers() -> None:
    from guidestack.guidance import errors, query, reading, rule
    from guidestack.guidance.notation import presets, text

    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    for number in (
        text.MAX_TEXT, query.LONGEST, text.DEEPEST, rule.DEEPEST, presets.MAX_BYTES, reading.DEEPEST, reading.BITS,
        errors.LONGEST, images.LARGEST_SIDE, images.MAX_BYTES, generating.MAX_BYTES, recipe.MAX_IMAGES,
        recipe.MOST_TOGETHER, recipe.LONGEST, model.LARGEST_INDEX, model.LONGEST_NAME,
    ):  # fmt: skip
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,]*\d)", page), number


def test_a_generator_says_what_it_is_before_it_is_loaded(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "guidestack.pipelines.models.generator.load", lambda *given: pytest.fail("the model was loaded")
    )
    generator = Generator(str(model_folder), "float32", "cpu")
    assert generator.identity == identity_of(str(model_folder))
