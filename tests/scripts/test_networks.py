"""Second networks through every door: the command line, images that are made again, sweeps, tuning, the weak twin."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import guidestack as gs
from guidestack.evaluation import load_sweep, run
from guidestack.evaluation.spec.cells import Addresses, expand
from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.pipelines.models import manifest
from guidestack.pipelines.models.bundled import FLOW_TWIN
from guidestack.pipelines.models.differences import twin
from guidestack.pipelines.models.files import opened, read_recipe
from guidestack.pipelines.models.generator import Generator
from guidestack.pipelines.models.networks import TWIN, network_identity
from guidestack.pipelines.models.recipe import Recipe
from guidestack.scripts.dev.emoji.twin import write_twin

from .test_parts import lora_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def weak_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worse network than the tiny model's, as a folder of its own."""
    folder = tmp_path_factory.mktemp("weak") / "unet"
    shutil.copytree(model_folder / "unet", folder)
    weights = load_file(folder / WEIGHTS)
    torch.manual_seed(4)
    save_file({name: value * (1 + 0.4 * torch.randn(value.shape)) for name, value in weights.items()}, folder / WEIGHTS)
    return folder


def other(folder: Path, to: Path) -> Path:
    """A copy of a network with other weights."""
    shutil.copytree(folder, to)
    weights = load_file(to / WEIGHTS)
    save_file({name: value * 1.5 for name, value in weights.items()}, to / WEIGHTS)
    return to


def options(model_folder: Path, out: Path, *more: object) -> list[object]:
    return ["generate", "a cat", "--model", model_folder, "--out", out, "--steps", 2, "--sampler", "ddim", *more]


def test_generate_and_make_again(command: Any, model_folder: Path, weak_folder: Path, tmp_path: Path) -> None:
    guidance = ("--guidance", "autoguidance(2)", "--guidance", "cfg(3)")
    status, _, err = command(*options(model_folder, tmp_path / "a", *guidance, "--network", f"weak={weak_folder}"))
    assert status == 0, err
    recipes = {read_recipe(path)["guidance"]: (path, read_recipe(path)) for path in (tmp_path / "a").glob("*.png")}
    path, recipe = recipes["autoguidance(2)"]
    assert recipe["networks"] == {"weak": network_identity(str(weak_folder))}
    assert "networks" not in recipes["cfg(3)"][1]  # which does not ask it, and is the same image without
    assert manifest.read(tmp_path / "a")[path.name]["recipe"] == recipe

    again = ("generate", "--like", path, "--model", model_folder, "--out", tmp_path / "b")
    status, _, err = command(*again)
    assert status == 2
    assert f"made with the network '{weak_folder}' as 'weak'; say where that is with --network weak=FOLDER" in err
    status, _, err = command(*again, "--network", f"weak={other(weak_folder, tmp_path / 'other')}")
    assert status == 2
    assert "made with the network 'weak' {" in err
    assert ", this one is {" in err
    moved = shutil.copytree(weak_folder, tmp_path / "moved")
    status, _, err = command(*again, "--network", f"weak={moved}")
    assert status == 0, err
    (made,) = (tmp_path / "b").glob("*.png")
    assert np.array_equal(np.asarray(opened(made)), np.asarray(opened(path)))
    status, _, err = command(*again, "--network", f"weak={moved}", "--network", f"more={moved}")
    assert status == 2
    assert "made without a network 'more'" in err


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("weak", "--network is NAME=FOLDER, such as weak=checkpoints/early; 'main' is --model; got 'weak'"),
        ("main=x", "got 'main=x'"),
        ("weak=", "got 'weak='"),
        ("weak=./nowhere", "no network at 'nowhere': there is no such folder here"),
        ("weak=bundled", "from the bundled model's network, and this pipeline's network is another"),
    ],
)
def test_what_is_no_network(command: Any, model_folder: Path, tmp_path: Path, network: str, message: str) -> None:
    status, _, err = command(
        *options(model_folder, tmp_path / "out", "--guidance", "autoguidance(2)", "--network", network)
    )
    assert (status, message in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_not_asked_is_said(
    command: Any, model_folder: Path, weak_folder: Path, tmp_path: Path
) -> None:
    status, _, err = command(*options(model_folder, tmp_path / "out", "--guidance", "autoguidance(2)"))
    assert status == 2
    assert "asks the network 'weak' for 'positive@weak', and no network of that name was given" in err
    assert "--network weak=FOLDER" in err
    given = ("--network", f"weak={weak_folder}", "--network", f"weak={weak_folder}")
    assert "--network weak comes twice" in command(*options(model_folder, tmp_path / "out", *given))[2]
    status, _, err = command(*options(model_folder, tmp_path / "out", "--guidance", "cfg(2)", *given[:2]))
    assert status == 0
    assert "--network weak was given, and no stack asks it; autoguidance(2, network='weak') does" in err


def test_explain_and_doctor(command: Any, model_folder: Path, weak_folder: Path) -> None:
    status, out, _ = command("explain", "cfg(3) | autoguidance(2)", "--steps", 3)
    assert status == 0
    assert "9 evaluations a sample in 3 steps" in out
    assert "asks the network 'weak' beside the model's own, --network weak=FOLDER: none was given" in out
    status, out, _ = command("explain", "autoguidance(2)", "--network", f"weak={weak_folder}")
    assert network_identity(str(weak_folder))["fingerprint"] in out
    status, out, err = command("doctor", model_folder, "--network", f"weak={weak_folder}")
    assert status == 0, err
    assert "pass      networks     weak: of the shape of the pipeline's own" in out
    (line,) = [line for line in out.splitlines() if "autoguidance(2)" in line]
    assert "2" in line.split()[-1:]


def test_a_recipe_that_anybody_wrote() -> None:
    mapping = {
        "prompt": "a cat", "negative": "", "extra": "", "guidance": "autoguidance(2)", "sampler": "ddim", "steps": 4,
        "seed": 0, "size": None, "dtype": "float32", "batch": 1, "model": {"name": "bundled"}, "versions": {},
        "networks": {"weak": {"name": "bundled", "fingerprint": "f"}},
    }  # fmt: skip
    recipe = Recipe.read(mapping, Path("a.png"))
    assert recipe.networks_to_load({}) == {"weak": "bundled"}
    assert Recipe.read(recipe.as_json() | {"size": None}, Path("a.png")) == recipe
    for networks in ({}, {"other": {}}, [], {"weak": "x"}, {"weak": {"name": 3}}):
        with pytest.raises(InputError, match=r"a\.png"):
            Recipe.read({**mapping, "networks": networks}, Path("a.png"))


# --- sweeps --------------------------------------------------------------------------------------------------------


def sweep(model_folder: Path, **more: Any) -> dict[str, Any]:
    keys = {"model": model_folder, "prompts": ["a cat", "red"], "seeds": [0], "steps": 2, "sampler": "ddim"}
    return {**keys, "stack": ["cfg(3)", "autoguidance(2)"], **more}


def test_a_sweep_with_a_weak_network(model_folder: Path, weak_folder: Path, tmp_path: Path) -> None:
    given = sweep(model_folder, networks={"weak": weak_folder})
    folder = run(given, tmp_path / "run", progress=False)
    rows = folder.records(["stack", "evaluations", "image"]).to_pylist()
    assert {row["stack"]: row["evaluations"] for row in rows} == {"cfg(3)": 4, "autoguidance(2)": 4}
    recipes = {row["stack"]: read_recipe(tmp_path / "run" / row["image"]) for row in rows}
    assert recipes["autoguidance(2)"]["networks"] == {"weak": network_identity(str(weak_folder))}
    assert folder.sweep().networks == {"weak": str(weak_folder)}

    again = run(tmp_path / "run" / "sweep.yaml", tmp_path / "run", progress=False)  # goes on from its own account
    assert len(again.records(["stack"])) == 4
    changed = other(weak_folder, tmp_path / "other")
    with pytest.raises(InputError, match=r"holds another sweep: the fingerprint of the network 'weak' is .* there"):
        run({**given, "networks": {"weak": changed}}, tmp_path / "run", progress=False)


def test_the_fingerprint_is_a_part_of_the_address_of_what_asks(model_folder: Path) -> None:
    cells = expand(load_sweep(sweep(model_folder, networks={"weak": "bundled"})))
    plain, one, two = (Addresses("m", networks) for networks in (None, {"weak": "1"}, {"weak": "2"}))
    by_stack = {cell.stack: [each.cell(cell) for each in (plain, one, two)] for cell in cells}
    assert len(set(by_stack["cfg(3)"])) == 1
    assert len(set(by_stack["autoguidance(2)"])) == 3


def test_a_network_beside_the_sweeps_file(model_folder: Path, weak_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(weak_folder, tmp_path / "early")
    (tmp_path / "s.yaml").write_text(
        f"model: {model_folder}\nprompts: [a cat]\nstack: autoguidance(2)\nnetworks: {{weak: early}}\n"
    )
    assert load_sweep(tmp_path / "s.yaml").networks == {"weak": str(tmp_path / "early")}


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (["weak"], "networks must be a mapping"),
        ({"main": "x"}, "a network is named by a word other than 'main'"),
        ({"weak": 3}, "networks: weak"),
        ({"weak": "./nowhere"}, "no network at 'nowhere'"),
        (None, "asks the network 'weak'"),
    ],
)
def test_a_sweep_that_cannot_be(model_folder: Path, tmp_path: Path, networks: Any, message: str) -> None:
    with pytest.raises(GuidestackError, match=message) as caught:
        run(sweep(model_folder, networks=networks), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_tuning_asks_the_weak_network(model_folder: Path, weak_folder: Path, tmp_path: Path) -> None:
    from guidestack.evaluation.run.runner import Options
    from guidestack.evaluation.tune.goal import Goal
    from guidestack.evaluation.tune.session import Tuning
    from guidestack.evaluation.tune.settings import Prompts, Settings

    from ..evaluation.tune.test_session import FIXED, prompts

    settings = Settings(
        model=str(model_folder),
        reference=gs.parse("autoguidance(2)"),
        goal=Goal("ssim", evaluations=4),
        training=prompts("red", "sea"),
        held_out=prompts("b", "c"),
        fixed=FIXED,
        budget=1,
        networks={"weak": str(weak_folder)},
    )
    assert isinstance(settings.training, Prompts)
    tuning = Tuning(settings, tmp_path / "out", Options())
    (point,) = tuning.training.measure(["autoguidance(2)"])
    assert point.cost == 2 * FIXED["steps"]


# --- the weak twin ---------------------------------------------------------------------------------------------------


def test_the_bundled_twin_is_a_small_file_for_the_bundled_network() -> None:
    assert TWIN.stat().st_size < 600_000
    pipe = gs.load_emoji()
    own = copy.deepcopy(pipe.unet.state_dict())
    weak = twin(pipe.unet, TWIN)
    assert type(weak) is type(pipe.unet)
    assert weak.dtype == pipe.unet.dtype
    assert all(torch.equal(one, own[name]) for name, one in pipe.unet.state_dict().items())  # left as it is
    change = sum(float(((one - own[name]) ** 2).sum()) for name, one in weak.state_dict().items())
    whole = sum(float((one**2).sum()) for one in own.values())
    assert 0.05 < (change / whole) ** 0.5 < 1
    half = twin(pipe.unet.to(torch.bfloat16), TWIN)
    assert half.dtype == torch.bfloat16
    assert (
        gs.guide(pipe, "autoguidance(2)", networks={"weak": "bundled"}).networks["weak"].identity.startswith("bundled ")
    )


def test_the_flow_twin_predicts_the_velocity_of_the_straight_path() -> None:
    """Of a latent at sigma 0.5: the bundled network, which predicts another velocity at another time, does not."""
    assert FLOW_TWIN.stat().st_size < 3_000_000
    diffusion, flow = gs.load_emoji(), gs.load_emoji(flow=True)
    flow.set_progress_bar_config(disable=True)
    prompt = "red heart, flat style, pink background"
    with torch.no_grad():
        drawn = torch.Generator().manual_seed(1)
        guided = gs.guide(flow, "cfg(4)")(prompt, num_inference_steps=6, generator=drawn, output_type="latent")
        clean = guided.images
        noise = torch.randn(clean.shape, generator=drawn)
        text = flow.encode_prompt(prompt, "cpu", 1, False)[0]
        errors = [
            float(((one.unet((clean + noise) / 2, 500, text).sample - (noise - clean)) ** 2).mean())
            for one in (flow, diffusion)
        ]
    assert errors[0] < 0.2 < 0.4 < errors[1]


def test_a_sampler_that_a_unet_pipeline_cannot_call_is_refused(tmp_path: Path) -> None:
    gs.load_emoji(flow=True).save_pretrained(tmp_path / "flow")
    generator = Generator(str(tmp_path / "flow"), "float32", "cpu")
    with pytest.raises(InputError, match="scale_model_input, which sampler 'flow-euler' lacks; take dpm"):
        generator.use("flow-euler")
    with pytest.raises(InputError, match="is for a network that emits"):
        generator.use("ddim")
    generator.use("unipc")


def test_a_difference_of_all_ranks_is_the_earlier_network(pipe: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    own = pipe.unet.state_dict()
    earlier = {name: value + 0.1 * torch.randn(value.shape) for name, value in own.items()}
    whole = write_twin(own, earlier, tmp_path / "whole.safetensors", 10**7, ("",))
    small = write_twin(own, earlier, tmp_path / "small.safetensors", 5_000, ("",))
    assert whole.explained > 0.999
    assert 0.05 < small.explained < 0.9
    assert small.size < 40_000
    for file, away in ((tmp_path / "whole.safetensors", 0.02), (tmp_path / "small.safetensors", 0.98)):
        weak = twin(pipe.unet, file).state_dict()
        square = sum(float(((weak[name] - earlier[name]) ** 2).sum()) for name in own)
        total = sum(float(((own[name] - earlier[name]) ** 2).sum()) for name in own)
        assert 0 < (square / total) ** 0.5 < away
    changed = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    with pytest.raises(InputError, match="this pipeline's network is another"):
        twin(changed, tmp_path / "whole.safetensors")
    for first, second, message in ((own, own, "are equal"), (own, {"a": torch.ones(1)}, "other weights")):
        with pytest.raises(InputError, match=message):
            write_twin(first, second, tmp_path / "x", 100)
    (tmp_path / "no.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="is no difference of networks"):
        twin(pipe.unet, tmp_path / "no.safetensors")


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of random numbers for the tiny model."""
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("lora")
    return lora_of(StableDiffusionPipeline.from_pretrained(model_folder), folder).rename(folder / "fur.safetensors")


def test_a_lora_as_the_weak_network(command: Any, model_folder: Path, lora: Path, tmp_path: Path) -> None:
    """It is the network with that LoRA, by diffusers' own loading, and the main network is as it was."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    network = f"weak=lora:{lora}=0.5"
    stacks = ("--guidance", "autoguidance(2)", "--guidance", "cfg(3)")
    status, _, err = command(*options(model_folder, tmp_path / "a", *stacks, "--network", network))
    assert status == 0, err
    made = {read_recipe(path)["guidance"]: path for path in (tmp_path / "a").glob("*.png")}
    assert command(*options(model_folder, tmp_path / "b", *stacks[2:]))[0] == 0
    (plain,) = (tmp_path / "b").glob("*.png")
    assert plain.read_bytes() == made["cfg(3)"].read_bytes()
    recipe = read_recipe(made["autoguidance(2)"])
    identity = network_identity(f"lora:{lora}=0.5")
    assert recipe["networks"] == {"weak": identity}
    assert identity["fingerprint"] != network_identity(f"lora:{lora}")["fingerprint"]

    pipe, other = (StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None) for _ in range(2))
    other.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="fur")
    other.set_adapters(["fur"], [0.5])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    guided = gs.guide(pipe, "autoguidance(2)", networks={"weak": other.unet})
    generator = [torch.Generator().manual_seed(0)]
    image = guided(["a cat"], num_inference_steps=2, generator=generator).images[0]
    assert np.abs(np.asarray(image, int) - np.asarray(opened(made["autoguidance(2)"]), int)).max() <= 1

    again = ("generate", "--like", made["autoguidance(2)"], "--model", model_folder, "--out", tmp_path / "c")
    assert command(*again, "--network", network)[0] == 0
    assert (tmp_path / "c" / made["autoguidance(2)"].name).read_bytes() == made["autoguidance(2)"].read_bytes()
    status, out, err = command("doctor", model_folder, "--network", network)
    assert status == 0, err
    assert "pass      networks     weak: of the shape of the pipeline's own" in out


def test_two_loras_as_networks_beside_one_of_the_users(model_folder: Path, lora: Path) -> None:
    """What the user switched on stays on, at its scale, and a file is loaded once."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="mine")
    pipe.set_adapters(["mine"], [0.3])
    x, told = torch.randn(1, 4, 8, 8), torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        before = pipe.unet(x, 5, told).sample
        for _ in range(2):
            gs.guide(pipe, "autoguidance(2)", networks={"weak": f"lora:{lora}", "other": f"lora:{lora}=2"})
        assert torch.equal(pipe.unet(x, 5, told).sample, before)
    assert len({name for names in pipe.get_list_adapters().values() for name in names}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:none.safetensors", "--network 'none.safetensors': there is no such file"),
        ("lora:x.bin", "--network takes a .safetensors file"),
        ("lora:", "--network NAME=lora: is FILE or FILE=SCALE"),
        ("lora:x.safetensors=9999", "a scale is a number between -1000 and 1000"),
    ],
)
def test_what_is_no_lora(command: Any, model_folder: Path, tmp_path: Path, text: str, message: str) -> None:
    stack = ("--guidance", "autoguidance(2)")
    status, _, err = command(*options(model_folder, tmp_path / "a", *stack, "--network", f"weak={text}"))
    assert (status, message in err) == (2, True), err
    assert len(err.strip().splitlines()) == 1


def test_a_sweeps_lora_is_beside_it(tmp_path: Path) -> None:
    from guidestack.evaluation.spec.sweep import placed

    (tmp_path / "fur.safetensors").write_bytes(b"")
    path = (tmp_path / "fur.safetensors").resolve()
    assert placed("lora:fur.safetensors=0.5", tmp_path) == f"lora:{path}=0.5"
    assert placed("lora:fur.safetensors", tmp_path) == f"lora:{path}"
