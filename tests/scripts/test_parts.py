"""Pictures, LoRAs, ControlNets, IP-Adapters and other parts on the command line, against the pipelines by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from guidestack.guidance.errors import UnsupportedPipelineError
from guidestack.pipelines.models.files import read_recipe
from guidestack.pipelines.models.parts import as_task
from guidestack.samplers import by_name

from ..pipelines.tiny import load, parts

QUICK = ["--steps", "3", "--sampler", "ddim", "--guidance", "cfg(3)", "--seed", "5"]
CLASSES = {"sd": "StableDiffusion", "xl": "StableDiffusionXL"}
SEEN = 6  # numbers that an image encoder answers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    """Folders of the tiny Stable Diffusion and the tiny XL."""
    folder = tmp_path_factory.mktemp("xl")
    load("StableDiffusionXLPipeline").make().save_pretrained(folder)
    return {"sd": model_folder, "xl": folder}


def hand(kind: str, models: dict[str, Path], end: str = "", **more: Any) -> Any:
    """A pipeline of diffusers on a tiny model, with DDIM as `generate` sets it up."""
    import diffusers

    cls = getattr(diffusers, f"{CLASSES[kind]}{end}Pipeline")
    pipe = cls.from_pretrained(models[kind], **more)
    pipe.scheduler = by_name("ddim", pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_hand(pipe: Any, **arguments: Any) -> Any:
    with torch.no_grad():
        generator = [torch.Generator().manual_seed(5)]
        given = {"prompt": ["a cat"], "num_inference_steps": 3, "guidance_scale": 3.0, "generator": generator}
        return np.asarray(pipe(**given | arguments).images[0])


def picture(seed: int, path: Path | None = None, size: tuple[int, int] = (16, 16)) -> Any:
    """A random picture, which is also written where a path is given."""
    found = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    if path:
        found.save(path)
    return found


def half(path: Path) -> Any:
    """A mask: the left half."""
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(path)
    return mask


@pytest.fixture
def make(command: Any, models: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """``make(kind, *options)``: pixels of the one image that `generate` makes, and its path; or raises its message."""

    def call(kind: str, *options: object, out: str = "out") -> tuple[Any, Path]:
        status, _, err = command(
            "generate", "a cat", "--model", models[kind], "--out", tmp_path / out, *QUICK, *options
        )
        assert status == 0, err
        (path,) = (tmp_path / out).glob("*.png")
        return np.asarray(Image.open(path)), path

    return call


def lora_of(pipe: Any, folder: Path) -> Path:
    """A LoRA of a pipeline's network, as the file that diffusers writes."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(5)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder / "pytorch_lora_weights.safetensors"


def ip_adapter_of(pipe: Any, folder: Path) -> Path:
    """An IP-Adapter of a pipeline's network, as one file, with its image encoder beside it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(6)
    width = pipe.unet.config.cross_attention_dim
    layers = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    weights = {"image_proj.proj.weight": torch.randn(4 * width, SEEN), "image_proj.proj.bias": torch.randn(4 * width)}
    weights |= {"image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for place in range(len(layers)):
        for kind in "kv":
            weights[f"ip_adapter.{1 + 2 * place}.to_{kind}_ip.weight"] = torch.randn(16, width)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, projection_dim=SEEN, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    save_file(weights, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


@pytest.mark.parametrize("kind", CLASSES)
def test_from_a_picture(make: Any, command: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    start = picture(1, tmp_path / "start.png")
    found, path = make(kind, "--image", tmp_path / "start.png", "--strength", 0.7)
    wanted = by_hand(hand(kind, models, "Img2Img"), image=start, strength=0.7)
    assert np.array_equal(found, wanted)
    assert read_recipe(path)["strength"] == 0.7
    # Strengths do not go into one call.
    more = ["--axis", "strength=0.7,0.4", "--batch", 2, "--image", tmp_path / "start.png"]
    status, _, err = command("generate", "a cat", "--model", models[kind], "--out", tmp_path / "both", *QUICK, *more)
    assert status == 0, err
    made = {read_recipe(one)["strength"]: np.asarray(Image.open(one)) for one in (tmp_path / "both").glob("a-*.png")}
    assert int(np.abs(made[0.7].astype(int) - found).max()) <= 1
    assert not np.array_equal(made[0.4], found)
    assert not np.array_equal(found, make(kind, out="without")[0])


@pytest.mark.parametrize("kind", CLASSES)
def test_inpainting(make: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    start, mask = picture(1, tmp_path / "start.png"), half(tmp_path / "mask.png")
    found, _ = make(kind, "--image", tmp_path / "start.png", "--mask", tmp_path / "mask.png", "--strength", 1)
    wanted = by_hand(hand(kind, models, "Inpaint"), image=start, mask_image=mask, strength=1.0, height=16, width=16)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "task"), [("sd", ""), ("xl", "Img2Img"), ("sd", "Inpaint")])
def test_controlnet(make: Any, models: dict[str, Path], tmp_path: Path, kind: str, task: str) -> None:
    torch.manual_seed(3)
    net = parts.controlnet(hand(kind, models).unet)
    net.save_pretrained(tmp_path / "net")
    start, follow, mask = (
        picture(1, tmp_path / "start.png"),
        picture(2, tmp_path / "follow.png"),
        half(tmp_path / "m.png"),
    )
    options = {"": [], "Img2Img": ["--image", tmp_path / "start.png", "--strength", 0.8]}
    options["Inpaint"] = [*options["Img2Img"], "--mask", tmp_path / "m.png"]
    given = {"": {"image": follow}, "Img2Img": {"image": start, "control_image": follow, "strength": 0.8}}
    given["Inpaint"] = {**given["Img2Img"], "mask_image": mask}
    found, path = make(
        kind, "--controlnet", f"{tmp_path / 'net'}=0.7", "--control", tmp_path / "follow.png", *options[task]
    )
    wanted = by_hand(
        hand(kind, models, f"ControlNet{task}", controlnet=net), controlnet_conditioning_scale=0.7, **given[task]
    )
    assert np.array_equal(found, wanted)
    assert read_recipe(path)["parts"]["controlnet"][0]["scale"] == 0.7


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("kind", CLASSES)
def test_loras(make: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    one = lora_of(hand(kind, models), tmp_path / "one")
    found, _ = make(kind, "--lora", f"{one}=0.8", "--lora", tmp_path / "one")
    pipe = hand(kind, models)
    for name in ("first", "second"):
        pipe.load_lora_weights(one.parent, weight_name=one.name, adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.8, 1.0])
    assert np.array_equal(found, by_hand(pipe))
    pipe.unload_lora_weights()
    assert not np.array_equal(found, by_hand(pipe))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_lora_as_other_programs_write_it(make: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    one = lora_of(hand(kind, models), tmp_path / "one")
    theirs = {}
    for name, value in load_file(one).items():
        module, _, end = name.removeprefix("unet.").partition(".lora_")
        key = f"lora_unet_{module.replace('.', '_')}"
        theirs[f"{key}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
        theirs[f"{key}.alpha"] = torch.tensor(2.0)  # of rank 2: a scale of 1
    save_file(theirs, tmp_path / "theirs.safetensors")
    found, _ = make(kind, "--lora", f"{tmp_path / 'theirs.safetensors'}=0.7")
    pipe = hand(kind, models)
    pipe.load_lora_weights(tmp_path, weight_name="theirs.safetensors", adapter_name="one")
    pipe.set_adapters(["one"], [0.7])
    assert np.array_equal(found, by_hand(pipe))
    pipe.unload_lora_weights()
    assert not np.array_equal(found, by_hand(pipe))


@pytest.mark.parametrize("kind", CLASSES)
def test_ip_adapter(make: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    file, shown = ip_adapter_of(hand(kind, models), tmp_path), picture(4, tmp_path / "shown.png", (24, 20))
    found, _ = make(kind, "--ip-adapter", f"{file}=0.6", "--ip-image", tmp_path / "shown.png")
    pipe = hand(kind, models)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, local_files_only=True)
    pipe.set_ip_adapter_scale(0.6)
    assert np.array_equal(found, by_hand(pipe, ip_adapter_image=shown))


def test_another_autoencoder_and_scheduler(make: Any, models: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    torch.manual_seed(9)
    vae = parts.vae()
    vae.save_pretrained(tmp_path / "vae")
    config = EulerDiscreteScheduler(beta_start=0.002, steps_offset=1)
    config.save_pretrained(tmp_path / "scheduler")
    options = ["--vae", tmp_path / "vae", "--scheduler-config", tmp_path / "scheduler" / "scheduler_config.json"]
    pipe = hand("sd", models, vae=vae)
    pipe.scheduler = config
    found, _ = make("sd", *options, "--sampler", "own")
    assert np.array_equal(found, by_hand(pipe))
    assert read_recipe(make("sd", *options, "--sampler", "ddim", out="ddim")[1])["sampler"] == "ddim"


def test_everything_is_made_again(make: Any, command: Any, models: dict[str, Path], tmp_path: Path) -> None:
    one = lora_of(hand("sd", models), tmp_path / "one")
    picture(1, tmp_path / "start.png")
    found, path = make("sd", "--lora", f"{one}=0.5", "--image", tmp_path / "start.png", "--strength", 0.9)
    again = ["generate", "--like", path, "--model", models["sd"], "--out", tmp_path / "again"]
    status, _, err = command(*again, "--image", tmp_path / "start.png")
    assert (status, "the image was made with --lora" in err) == (2, True), err
    status, _, err = command(*again, "--lora", one)
    assert (status, "made from a picture; give it again with --image FILE" in err) == (2, True), err
    status, _, err = command(*again, "--lora", one, "--image", tmp_path / "start.png")
    assert status == 0, err
    (second,) = (tmp_path / "again").glob("*.png")
    assert second.name == path.name
    assert np.array_equal(np.asarray(Image.open(second)), found)
    other = lora_of(hand("sd", models), tmp_path / "other")
    save_file({"unet.lora": torch.ones(1)}, other)
    status, _, err = command(*again, "--lora", other, "--image", tmp_path / "start.png")
    assert (status, "made with the lora 1" in err) == (2, True), err


def test_what_does_not_fit_is_one_line(command: Any, models: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    xl = hand("xl", models)
    parts.controlnet(xl.unet).save_pretrained(tmp_path / "net")
    parts.vae(8).save_pretrained(tmp_path / "vae")
    lora, adapter = lora_of(xl, tmp_path / "xl"), ip_adapter_of(xl, tmp_path)
    own = lora_of(hand("sd", models), tmp_path / "own")
    picture(1, tmp_path / "start.png")
    picture(1, tmp_path / "large.png", (24, 24))
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    # A part of it fits: only what has no place tells that the rest is of another model.
    other = {f"{name[:4]}.elsewhere.{name[5:]}": value for name, value in load_file(own).items()}
    save_file(load_file(own) | other, tmp_path / "more.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    start, net = ["--image", tmp_path / "start.png"], ["--controlnet", tmp_path / "net"]
    shown = ["--ip-image", tmp_path / "start.png"]
    for options, message in (
        (["--lora", lora], "is for another model than this StableDiffusionPipeline"),
        (["--lora", tmp_path / "more.safetensors"], "of its"),
        (["--lora", tmp_path / "plain.safetensors"], "holds no LoRA"),
        (["--lora", tmp_path / "no.safetensors"], "cannot be read as safetensors"),
        (["--lora", tmp_path / "weights.bin"], "takes a .safetensors file"),
        (["--lora", tmp_path / "nothing.safetensors"], "there is no such file"),
        (["--lora", f"{lora}=nan"], "a scale is a number between"),
        (["--mask", tmp_path / "start.png"], "no picture was given; give --image FILE"),
        ([*start, "--mask", tmp_path / "large.png"], "has 24x24 pixels and --image"),
        (["--image", tmp_path / "large.png"], "give --size 16x16 to have it resized"),
        (["--strength", "0.5"], "give --image FILE"),
        ([*start, "--strength", "0.1", "--steps", "2"], "strength"),
        (["--control", tmp_path / "start.png"], "there is none; give --controlnet FOLDER"),
        (net, "there are 1 and 0"),
        ([*net, "--control", tmp_path / "start.png"], "its cross_attention_dim is 32, this model's is 16"),
        (["--ip-adapter", adapter], "give both"),
        (["--ip-adapter", adapter, *shown], "is for another model than this StableDiffusionPipeline"),
        (["--ip-adapter", tmp_path / "plain.safetensors", *shown], "holds no IP-Adapter"),
        (["--vae", tmp_path / "vae"], "its latent_channels is 8, this model's is 4"),
        (["--vae", tmp_path / "empty"], "has no weights in safetensors"),
        (["--vae", tmp_path / "nowhere"], "no network at --vae"),
        (["--scheduler-config", tmp_path / "empty" / "config.json"], "names no scheduler of diffusers"),
    ):
        status, out, err = command(
            "generate", "a", "--model", models["sd"], "--out", tmp_path / "out", "--steps", 2, *options
        )
        line = err.strip().replace("\r", "\n").splitlines()[-1]
        assert (status, out, message in line) == (2, "", True), (options, err)
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists(), options


@pytest.mark.parametrize("kind", CLASSES)
def test_weights_in_prompts(command: Any, models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    import compel

    def made(name: str, *options: object) -> Any:
        quick = [] if "--like" in options else QUICK
        line = ["generate", *options, "--model", models[kind], "--out", tmp_path / name, *quick]
        status, _, err = command(*line)
        assert status == 0, err
        (path,) = (tmp_path / name).glob("*.png")
        return np.asarray(Image.open(path)), path

    found, path = made("weighted", "a (cat)1.4", "--weights", "--negative", "dim++")
    pipe = hand(kind, models)
    with torch.no_grad():
        answer = getattr(compel, {"sd": "CompelForSD", "xl": "CompelForSDXL"}[kind])(pipe)(
            "a (cat)1.4", negative_prompt="dim++"
        )
    given = {"prompt_embeds": answer.embeds, "negative_prompt_embeds": answer.negative_embeds}
    if kind == "xl":
        given |= {"pooled_prompt_embeds": answer.pooled_embeds}
        given |= {"negative_pooled_prompt_embeds": answer.negative_pooled_embeds}
    assert np.array_equal(found, by_hand(pipe, prompt=None, **given))
    assert read_recipe(path)["weights"] is True
    assert not np.array_equal(found, made("text", "a (cat)1.4", "--negative", "dim++")[0])
    # Without a weight in it, a prompt is what it is without the option; and images are made again.
    assert np.array_equal(made("plain", "a cat", "--weights")[0], made("none", "a cat")[0])
    again, _ = made("again", "--like", path)
    assert np.array_equal(again, found)


def test_weights_that_cannot_be_read(command: Any, models: dict[str, Path], tmp_path: Path) -> None:
    more = ["--model", models["sd"], "--out", tmp_path / "out", "--steps", 2, "--weights"]
    for options, message in (
        (["a", "--guidance", "perpneg(2)"], "takes several negative prompts, and with --weights there is one"),
        (["a", "a cat and two big dogs on the hill", "--batch", 2], "cannot share a batch; give --batch 1"),
    ):
        status, _, err = command("generate", *options, *more)
        assert (status, message in err) == (2, True), err


def test_a_batch_of_everything_is_its_images(command: Any, models: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    parts.controlnet(hand("sd", models).unet).save_pretrained(tmp_path / "net")
    lora, adapter = lora_of(hand("sd", models), tmp_path / "lora"), ip_adapter_of(hand("sd", models), tmp_path)
    for name in ("start", "follow", "shown"):
        picture(len(name), tmp_path / f"{name}.png")
    half(tmp_path / "mask.png")
    options = ["--image", tmp_path / "start.png", "--mask", tmp_path / "mask.png", "--strength", 0.9, "--lora", lora]
    options += ["--controlnet", tmp_path / "net", "--control", tmp_path / "follow.png"]
    options += ["--ip-adapter", adapter, "--ip-image", tmp_path / "shown.png"]
    images = []
    for batch in (1, 3):
        more = ["--guidance", "cfg(3)", "--guidance", "apg(3)", "--out", tmp_path / str(batch), "--count", 3]
        line = ["generate", "a cat", "--model", models["sd"], "--batch", batch, "--steps", 3, "--sampler", "ddim"]
        status, _, err = command(*line, *options, *more)
        assert status == 0, err
        images.append(
            [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / str(batch)).glob("*.png"))]
        )
    assert len(images[0]) == len(images[1]) == 6
    assert max(int(np.abs(one - other).max()) for one, other in zip(*images, strict=True)) <= 1
    assert min(int(np.abs(images[0][0] - other).max()) for other in images[0][1:]) > 1


def test_models_for_pictures(command: Any, models: dict[str, Path], tmp_path: Path) -> None:
    """A folder may hold a pipeline for another task than the one that is asked for."""
    for name in ("StableDiffusionInpaintPipeline, 9 channels", "StableDiffusionControlNetPipeline"):
        load(name).make().save_pretrained(tmp_path / name.partition(",")[0])
    start, mask = picture(1, tmp_path / "start.png"), half(tmp_path / "mask.png")
    inpaint = tmp_path / "StableDiffusionInpaintPipeline"
    pictures = ["--image", tmp_path / "start.png", "--mask", tmp_path / "mask.png"]

    def made(folder: Path, *options: object) -> tuple[int, str]:
        status, _, err = command("generate", "a cat", "--model", folder, "--out", tmp_path / "out", *QUICK, *options)
        return status, err

    for options in ([], pictures[:2]):
        status, err = made(inpaint, *options)
        assert (status, "sees a mask; give --image and --mask" in err) == (2, True), err
    status, err = made(inpaint, *pictures, "--strength", 1)
    assert status == 0, err
    (path,) = (tmp_path / "out").glob("*.png")
    pipe = hand("sd", {"sd": inpaint}, "Inpaint")
    wanted = by_hand(pipe, image=start, mask_image=mask, strength=1.0, height=16, width=16)
    assert np.array_equal(np.asarray(Image.open(path)), wanted)
    status, err = made(tmp_path / "StableDiffusionControlNetPipeline")
    assert (status, "follows a picture; give --control IMAGE" in err) == (2, True), err
    assert made(tmp_path / "StableDiffusionControlNetPipeline", "--control", tmp_path / "start.png")[0] == 0


def test_a_folder_for_pictures_makes_images_from_text(command: Any, tmp_path: Path) -> None:
    load("StableDiffusionImg2ImgPipeline").make().save_pretrained(tmp_path / "model")
    status, _, err = command("generate", "a cat", "--model", tmp_path / "model", "--out", tmp_path / "out", *QUICK)
    assert status == 0, err


@pytest.mark.parametrize(("task", "message"), [("image", "begins from a picture"), ("inpaint", "paints in a picture")])
def test_a_family_without_the_task(dit: Any, task: str, message: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=f"a DiTPipeline's components that {message}"):
        as_task(dit, task)
