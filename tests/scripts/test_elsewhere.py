"""Images of A1111 and ComfyUI, made again as far as they say how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from guidestack.guidance.errors import GuidestackError
from guidestack.pipelines.models.elsewhere import read_elsewhere
from guidestack.pipelines.models.files import read_recipe

A1111 = """a cat, <lora:fur:0.8>, (red:1.2)
on two lines
Negative prompt: dog, blurry
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 12, Size: 16x24, Model hash: 6ce0161689, \
Model: v1-5-pruned, Clip skip: 2, Lora hashes: "fur: abc, more: def", Version: v1.10.1"""

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 7, "steps": 2, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 24, "height": 16, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "fur.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
}  # fmt: skip
CUSTOM: dict[str, Any] = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 9}},
    "3": {"class_type": "GuidestackGuider", "inputs": {
        "model": ["7", 0], "positive": ["8", 0], "stack": "apg(3) | rescale(0.5)"}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler_ancestral"}},
    "5": {"class_type": "BasicScheduler", "inputs": {
        "scheduler": "simple", "steps": 2, "denoise": 1.0, "model": ["7", 0]}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16}},
    "7": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m"}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
}  # fmt: skip


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def with_exif(path: Path, comment: bytes | None = None, **entries: str) -> Path:
    exif = Image.Exif()
    if comment is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    for name, text in entries.items():
        exif[ExifTags.Base[name]] = text
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_what_stands_in_exif_is_what_stands_in_png(tmp_path: Path, kind: str) -> None:
    text = A1111.replace("a cat", "a cät, 猫")
    wanted = read_elsewhere(png(tmp_path / "a.png", parameters=text))
    assert wanted is not None
    assert len(wanted.options) == 7
    for order in ("utf-16-be", "utf-16-le", "utf-16"):  # A1111's, some forks', with a mark of the order
        image = with_exif(tmp_path / f"{order}.{kind}", b"UNICODE\0" + text.encode(order))
        assert read_elsewhere(image) == wanted, order
    plain = with_exif(tmp_path / f"ascii.{kind}", b"ASCII\0\0\0" + A1111.encode())
    assert read_elsewhere(plain) == read_elsewhere(png(tmp_path / "plain.png", parameters=A1111))
    workflow, prompt = "workflow:" + json.dumps({"nodes": []}), "prompt:" + json.dumps(GRAPH)
    graph = with_exif(tmp_path / f"graph.{kind}", Make=workflow, Model=prompt)  # as SaveAnimatedWEBP writes them
    assert read_elsewhere(graph) == read_elsewhere(png(tmp_path / "graph.png", prompt=json.dumps(GRAPH)))


def test_exif_that_says_nothing(command: Any, tmp_path: Path) -> None:
    for number, comment in enumerate([None, b"", b"UNICODE", b"UNICODE\0\0", b"JIS\0\0\0\0\0x", b"\xff" * 99]):
        path = with_exif(tmp_path / f"{number}.jpg", comment, Model="Prompter 3")
        found = read_elsewhere(path)
        assert found is None or not found.options or set(found.options) == {"prompts"}, comment
    path = with_exif(tmp_path / "camera.jpg", Model="X100: prompt")
    status, _, err = command("generate", "--like", path, "--out", tmp_path / "out")
    assert (status, err.strip()) == (
        2,
        f"guidestack: {path} does not say how it was made; images of guidestack do, but no grid of them",
    )
    whole = (tmp_path / "5.jpg").read_bytes()
    for place in range(20, 140, 7):  # damaged
        (tmp_path / "damaged.jpg").write_bytes(whole[:place] + b"\xff\x00\x7f" + whole[place + 3 :])
        try:
            read_elsewhere(tmp_path / "damaged.jpg")
        except GuidestackError:
            continue


def made(command: Any, model: Path, image: Path, out: Path, *more: object) -> tuple[dict[str, Any], str]:
    status, _, err = command("generate", "--like", image, "--model", model, "--out", out, *more)
    assert status == 0, err
    (path,) = out.glob("*.png")
    return read_recipe(path), err


def test_a1111(command: Any, model_folder: Path, tmp_path: Path) -> None:
    image = png(tmp_path / "a.png", parameters=A1111)
    status, _, err = command("generate", "--like", image, "--out", tmp_path / "out")
    assert (status, "was made by A1111 with the model 'v1-5-pruned'; say where that is with --model" in err) == (
        2,
        True,
    )
    recipe, err = made(command, model_folder, image, tmp_path / "out")
    wanted = {"prompt": "a cat, , (red:1.2)\non two lines", "negative": "dog, blurry", "guidance": "cfg(6.5)"}
    wanted |= {"sampler": "dpm++2m-karras", "steps": 3, "seed": 12, "size": [24, 16]}  # height first
    assert {name: recipe[name] for name in wanted} == wanted
    (line,) = [line for line in err.splitlines() if "not carried over" in line]
    for left in (
        "<lora:fur> (give it with --lora FILE)",
        "weights in brackets",
        "Clip skip: '2'",
        "fur: abc, more: def",
    ):
        assert left in line, left
    assert "Version" not in line
    assert "expect a similar picture, not the same" in err
    recipe, _ = made(command, model_folder, image, tmp_path / "changed", "--guidance", "apg(2)", "--seed", 1)
    assert (recipe["guidance"], recipe["seed"], recipe["steps"]) == ("apg(2)", 1, 3)


def test_comfyui(command: Any, model_folder: Path, tmp_path: Path) -> None:
    recipe, err = made(command, model_folder, png(tmp_path / "a.png", prompt=json.dumps(GRAPH)), tmp_path / "out")
    wanted = {"prompt": "a cat", "negative": "dog", "guidance": "cfg(5)", "sampler": "dpm++2m-karras"}
    wanted |= {"steps": 2, "seed": 7, "size": [16, 24]}
    assert {name: recipe[name] for name in wanted} == wanted
    assert "not carried over: the node 'LoraLoader'\n" in err
    image = png(tmp_path / "b.png", prompt=json.dumps(CUSTOM))
    recipe, err = made(command, model_folder, image, tmp_path / "custom")
    wanted = {"prompt": "a cat", "guidance": "apg(3) | rescale(0.5)", "sampler": "euler-a", "steps": 2, "seed": 9}
    assert {name: recipe[name] for name in wanted} == wanted
    assert "not carried over: the spacing 'simple' of the sampler's steps\n" in err


def test_an_image_of_theirs_is_untrusted(command: Any, model_folder: Path, tmp_path: Path) -> None:
    sampler = GRAPH["3"]["inputs"]
    bad = {
        "steps": "Steps: 99999999999999999999, Seed: -1, CFG scale: nan, Sampler: __import__, Size: 9x99999999",
        "graph": {
            **GRAPH,
            "3": {**GRAPH["3"], "inputs": {**sampler, "steps": [1], "cfg": {}, "seed": True}},
        },
        "file": {**CUSTOM, "3": {**CUSTOM["3"], "inputs": {**CUSTOM["3"]["inputs"], "stack": "@/etc/passwd"}}},
        "loop": {**GRAPH, "6": {"class_type": "A", "inputs": {"a": ["6", 0], "b": ["7", 0], "c": [["6"], 0]}}},
    }
    steps = read_elsewhere(png(tmp_path / "steps.png", parameters=f"a\n{bad['steps']}"))
    assert steps is not None
    assert set(steps.options) == {"prompts"}
    assert len(steps.left) == 5
    for name in ("graph", "file", "loop"):
        found = read_elsewhere(png(tmp_path / f"{name}.png", prompt=json.dumps(bad[name])))
        assert found is not None
        assert not {"guidance"} & set(found.options) or name == "loop"
        assert found.left
    for graph, message in (
        ([], "is no graph of ComfyUI"),
        ({}, "is no graph of ComfyUI"),
        ({"1": {"inputs": []}}, "is no graph of ComfyUI"),
        ({"1": {"class_type": "Other", "inputs": {}}}, "with no sampler of KSampler"),
        ({**GRAPH, "11": GRAPH["3"]}, "with 2 samplers"),
    ):
        image = png(tmp_path / "bad.png", prompt=json.dumps(graph))
        status, _, err = command("generate", "--like", image, "--model", model_folder, "--out", tmp_path / "out")
        assert (status, message in err) == (2, True), err


ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(sorted(GRAPH)), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(GRAPH["3"]["inputs"])), ANY, max_size=4), st.text(max_size=80))
def test_whatever_is_in_it_only_own_errors_come_out(tmp_path_factory: Any, inputs: Any, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    graph = {**GRAPH, "3": {"class_type": "KSampler", "inputs": {**GRAPH["3"]["inputs"], **inputs}}}
    printable = text.replace("\0", "").encode("utf-8", "ignore").decode()
    for kind, value in (("prompt", json.dumps(graph)), ("parameters", f"{printable}\nSteps: 2, {printable}")):
        try:
            found = read_elsewhere(png(folder / "any.png", **{kind: value}))
        except GuidestackError:
            continue
        assert found is not None
        assert set(found.options) <= {"prompts", "negative", "guidance", "sampler", "steps", "seed", "size", "strength"}


def test_another_programs_picture_that_says_nothing(command: Any, tmp_path: Path) -> None:
    image = png(tmp_path / "a.png", Software="paint")
    assert read_elsewhere(image) is None
    with pytest.raises(GuidestackError, match="does not say how it was made"):
        read_recipe(image)
