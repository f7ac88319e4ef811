"""guide() amid what people do to their pipelines: offload, compile, LoRA, adapters, slicing, half precision.

Offload is meant for an accelerator. Its hooks run here all the same, from the CPU to the CPU: they replace ``forward``,
move weights to the meta device and back, and are taken off and put on by every call of the pipeline.
"""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance.errors import InputError
from guidestack.pipelines.families.record import FAMILIES

from . import by_hand
from .left import state, weights
from .stock import Stock, recorded, trajectory
from .test_families import FROM_ZERO, KNOWN, TWO_SCALES, arguments, near
from .test_families import seen as counted
from .tiny import load
from .tiny.text import NEGATIVES

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated"),
    # What diffusers says itself when some of this is switched on.
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]

ONE_BATCH, IN_CALLS, TWO = "StableDiffusionXLPipeline", "FluxPipeline", "WanPipeline, two transformers"
DENOISERS = ("unet", "transformer", "transformer_2")
CPU = torch.device("cpu")
PERTURBED = "tsg(3)"
EDITED = "pag(2) | seg(2, sigma=0.7) | slg(0.3, 'middle') | s2(0.3, share=0.5) | tpg(0.3) | sg(2)"
"""Every edit of a network, each in a call of its own."""
RICH = "perpneg(3, weights=(1.0, 0.5)) | apg(2, eta=0.3, radius=3, momentum=-0.5, against='null') | rescale(0.5)"
"""Two negatives and the true empty prompt beside what the pipeline itself evaluates, a memory, and a pass over all."""


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name in DENOISERS if (part := getattr(pipe, name, None)) is not None}


def rich(name: str) -> dict[str, Any]:
    return arguments(name, negative_prompt=[[one, "sea"] for one in NEGATIVES[:3]])


# --- offload, device maps, slicing, compiled modules ---------------------------------------------------------------


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    # What pipe.enable_sequential_cpu_offload does; on "cpu:0", which it asks for, accelerate loses the parameters.
    from accelerate import cpu_offload

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


def group_offload(**options: Any) -> Callable[[Any], None]:
    return lambda pipe: pipe.enable_group_offload(CPU, CPU, **options)


def device_map(pipe: Any) -> None:
    """A denoiser that is spread over devices, part by part, which all are this one."""
    from accelerate import dispatch_model

    for part in denoisers(pipe).values():
        parts = [name for name, _ in (*part.named_children(), *part.named_parameters(recurse=False))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not look for parameters of the module itself
            dispatch_model(part, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)


def slicing(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def compiled(pipe: Any) -> None:
    for part in denoisers(pipe).values():
        part.compile(backend="eager")


def wrapped(pipe: Any) -> None:
    for name, part in denoisers(pipe).items():
        setattr(pipe, name, torch.compile(part, backend="eager"))


def blocks(pipe: Any) -> None:
    for part in denoisers(pipe).values():
        part.compile_repeated_blocks(backend="eager")


AROUND: dict[str, Callable[[Any], None]] = {
    "model offload": model_offload,
    "sequential offload": sequential_offload,
    "group offload of leaves": group_offload(offload_type="leaf_level"),
    "group offload of blocks": group_offload(offload_type="block_level", num_blocks_per_group=1),
    "device map": device_map,
    "attention slicing": slicing,
    "compile": compiled,
    "torch.compile": wrapped,
    "compiled blocks": blocks,
}
COMPILED = ("compile", "torch.compile", "compiled blocks")
OTHERS_COMPILED = ((ONE_BATCH, "torch.compile"), (IN_CALLS, "compiled blocks"))


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """How many graphs were compiled so far."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield lambda: int(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("name", "around"),
    # The other two ways of compiling take seconds each, and differ from the first in what stands for a module.
    [
        (name, around)
        for name in (ONE_BATCH, IN_CALLS, TWO)
        for around in AROUND
        if around not in ("torch.compile", "compiled blocks") or (name, around) in OTHERS_COMPILED
    ],
)
def test_the_same_images(name: str, around: str, graphs: Callable[[], int]) -> None:
    builder = load(name)
    plain, pipe = builder.make(), builder.make()
    AROUND[around](pipe)
    stock = trajectory(pipe, pipe, arguments(name, on=True))
    before, places, count = state(pipe), weights(pipe), graphs()
    assert (count > 0) == (around in COMPILED)
    cfg = gs.guide(pipe, gs.CFG(builder.ON))
    for _ in range(3):  # the hooks of offload are others after each call
        assert torch.equal(trajectory(pipe, cfg, arguments(name)), stock)
        assert cfg.report.evaluations == [2 * len(cfg.report.steps)] * 3
    assert graphs() == count, "compiled again"
    assert state(pipe) == before
    # Rules that ask for other rows, and one that puts hooks of its own into the network.
    for stack in (RICH, PERTURBED, EDITED):
        given, again = (rich(name) if stack == RICH else arguments(name, negative=False) for _ in range(2))
        wanted = trajectory(plain, gs.guide(plain, stack), given)
        assert near(trajectory(pipe, gs.guide(pipe, stack), again), wanted, 1e-6 if stack != EDITED else 1e-5)
    assert state(pipe) == before
    assert weights(pipe) == places or "offload" in around  # which moves them
    assert torch.equal(trajectory(pipe, pipe, arguments(name, on=True)), stock)


@pytest.mark.parametrize("around", ["model offload", "sequential offload", "group offload of leaves", "compile"])
def test_a_call_that_fails_leaves_it_as_it_was(around: str) -> None:
    pipe = load(ONE_BATCH).make()
    AROUND[around](pipe)
    guided = gs.guide(pipe, gs.CFG(3))
    wanted, before = trajectory(pipe, guided, arguments(ONE_BATCH)), state(pipe)

    def fail(pipe: Any, step: int, t: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        guided(**arguments(ONE_BATCH, callback_on_step_end=fail))
    assert state(pipe) == before
    assert torch.equal(trajectory(pipe, guided, arguments(ONE_BATCH)), wanted)


@pytest.mark.parametrize("around", ["model offload", "compile"])
def test_switched_on_between_two_calls(around: str) -> None:
    pipe = load(ONE_BATCH).make()
    guided = gs.guide(pipe, gs.CFG(3))
    wanted = trajectory(pipe, guided, arguments(ONE_BATCH))
    AROUND[around](pipe)
    for _ in range(2):
        assert torch.equal(trajectory(pipe, guided, arguments(ONE_BATCH)), wanted)


@pytest.mark.filterwarnings("ignore:adaptive.* stopped guiding every sample")
def test_stopped_samples_compile_no_more_than_their_sizes_need(graphs: Callable[[], int]) -> None:
    pipe = load(ONE_BATCH).make()
    compiled(pipe)
    guided = gs.guide(pipe, gs.AdaptiveGuidance(gs.CFG(3), threshold=-1, space="denoised"))
    guided(**arguments(ONE_BATCH))
    assert guided.report.evaluations == [3] * 3  # two rows a sample, then one
    count = graphs()
    for _ in range(2):
        guided(**arguments(ONE_BATCH))
    assert graphs() == count


def overwriting(graph: Any, inputs: Any) -> Callable[..., Any]:
    """A backend that returns the same memory at every run, as CUDA graphs do."""
    kept: dict[tuple[int, ...], Tensor] = {}

    def run(*args: Any) -> Any:
        outputs = graph.forward(*args)
        given = []
        for place, output in enumerate(outputs):
            static = kept.setdefault((place, *output.shape), torch.empty_like(output))
            given.append(static.copy_(output))
        return tuple(given)

    return run


@pytest.mark.parametrize("how", ["module", "wrapper"])
@pytest.mark.parametrize("name", [ONE_BATCH, "ChromaPipeline"])
def test_a_graph_that_overwrites_its_last_answer(name: str, how: str) -> None:
    pipe, builder = load(name).make(), load(name)
    history = gs.Stack(gs.CFG(builder.ON)), gs.parse(RICH)
    wanted = [trajectory(pipe, gs.guide(pipe, stack), rich(name) if stack != history[0] else arguments(name))
              for stack in history]  # fmt: skip
    torch._dynamo.reset()
    for part_name, part in denoisers(pipe).items():
        if how == "module":
            part.compile(backend=overwriting)
        else:
            setattr(pipe, part_name, torch.compile(part, backend=overwriting))
    for stack, one in zip(history, wanted, strict=True):
        given = rich(name) if stack != history[0] else arguments(name)
        guided = gs.guide(pipe, stack, max_rows=1 if stack != history[0] else None)
        assert near(trajectory(pipe, guided, given), one, 1e-5)
    torch._dynamo.reset()


def test_tiles_and_slices_of_the_decoder(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    given = {"output_type": "np", "num_inference_steps": 2, "height": 32, "width": 32}

    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(sample) for sample in range(2)]

    whole = pipe(["a cat", "red"], guidance_scale=5.0, generator=seeded(), **given).images
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8
    stock = pipe(["a cat", "red"], guidance_scale=5.0, generator=seeded(), **given).images
    assert abs(whole - stock).max() > 0  # there are tiles
    before = state(pipe)
    assert (gs.guide(pipe, gs.CFG(5))(["a cat", "red"], generator=seeded(), **given).images == stock).all()
    assert state(pipe) == before
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing


# --- LoRA ----------------------------------------------------------------------------------------------------------


def config(*targets: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=8, target_modules=list(targets))


def heard(module: nn.Module) -> None:
    """Random weights for what begins training at zero."""
    torch.manual_seed(5)
    for key, parameter in module.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=0.5)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a LoRA of a tiny pipeline's denoiser."""

    def make(name: str) -> Path:
        from peft.utils import get_peft_model_state_dict

        folder: Path = tmp_path_factory.mktemp("lora")
        pipe = load(name).make()
        ((part, module),) = denoisers(pipe).items()
        module.add_adapter(config("to_q", "to_v", "to_out.0"))
        heard(module)
        pipe.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(module)})
        return folder

    return make


SCALED = {ONE_BATCH: "cross_attention_kwargs", IN_CALLS: "joint_attention_kwargs"}
FAR = 1e-2


def far(one: Tensor, another: Tensor) -> bool:
    return bool((one - another).abs().max() > FAR * one.abs().max())


@pytest.mark.parametrize("name", SCALED)
def test_a_lora_before_and_between_calls(name: str, lora: Callable[[str], Path]) -> None:
    pipe, on = load(name).make(), load(name).ON
    guided, half = gs.guide(pipe, gs.CFG(on)), {SCALED[name]: {"scale": 0.5}}
    without = trajectory(pipe, guided, arguments(name))
    pipe.load_lora_weights(lora(name), adapter_name="one")
    stock = trajectory(pipe, pipe, arguments(name, on=True))
    before = state(pipe)
    assert torch.equal(trajectory(pipe, guided, arguments(name)), stock)
    assert torch.equal(trajectory(pipe, gs.guide(pipe, gs.CFG(on)), arguments(name)), stock)
    assert state(pipe) == before
    halved = trajectory(pipe, guided, arguments(name, **half))
    assert torch.equal(halved, trajectory(pipe, pipe, arguments(name, on=True, **half)))
    assert far(stock, without)
    assert far(stock, halved)
    assert far(halved, without)
    pipe.set_adapters("one", 0.5)
    assert torch.equal(trajectory(pipe, guided, arguments(name)), trajectory(pipe, pipe, arguments(name, on=True)))
    pipe.unload_lora_weights()
    assert torch.equal(trajectory(pipe, guided, arguments(name)), without)
    pipe.load_lora_weights(lora(name), adapter_name="one")
    before, edited = state(pipe), gs.guide(pipe, EDITED)
    wanted = trajectory(pipe, edited, arguments(name, negative=False))
    assert state(pipe) == before
    pipe.fuse_lora()  # into the weights: the layers that an edited pass runs are those with the adapter
    assert near(trajectory(pipe, edited, arguments(name, negative=False)), wanted, 1e-4)


def test_a_lora_that_is_scaled_in_the_middle_of_a_call(lora: Callable[[str], Path]) -> None:
    pipe = load(ONE_BATCH).make()
    pipe.load_lora_weights(lora(ONE_BATCH), adapter_name="one")

    def weaken(pipe: Any, step: int, t: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        pipe.set_adapters("one", 0.1)
        return given

    found = []
    for run, on in ((pipe, True), (gs.guide(pipe, gs.CFG(load(ONE_BATCH).ON)), False)):
        pipe.set_adapters("one", 1.0)
        found.append(trajectory(pipe, run, arguments(ONE_BATCH, on=on, callback_on_step_end=weaken)))
    assert torch.equal(*found)
    pipe.set_adapters("one", 1.0)
    assert not near(found[0][1], trajectory(pipe, pipe, arguments(ONE_BATCH, on=True))[1], 1e-6)


@pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule")
@pytest.mark.parametrize("name", SCALED)
def test_other_prompts_are_encoded_with_a_lora_at_its_scale(name: str) -> None:
    from peft import inject_adapter_in_model

    pipe, half = load(name).make(), {SCALED[name]: {"scale": 0.5}}
    inject_adapter_in_model(config("q_proj", "v_proj"), pipe.text_encoder)
    heard(pipe.text_encoder)
    if name == ONE_BATCH:
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
    wanted = trajectory(pipe, pipe, arguments(name, negative=False, on=True, **half))
    guided = gs.guide(pipe, gs.CFG(load(name).ON, against="null"))
    assert near(trajectory(pipe, guided, arguments(name, **half)), wanted, 1e-5)
    assert (wanted - trajectory(pipe, guided, arguments(name))).abs().max() > 1e-3 * wanted.abs().max()


# --- IP-Adapter ----------------------------------------------------------------------------------------------------

SEEN = 8
"""Size of a picture's embedding."""


def adapted(name: str) -> Any:
    """The pipeline with a random IP-Adapter, which listens."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe = load(name).make()
    (denoiser,) = denoisers(pipe).values()
    torch.manual_seed(6)
    if "Flux" in name:
        width, size, first = denoiser.config.joint_attention_dim, denoiser.inner_dim, 0
        layers = [size for key in denoiser.attn_processors if not key.startswith("single")]
    else:
        width, first = denoiser.config.cross_attention_dim, 1
        layers = [16 for key in denoiser.attn_processors if key.endswith("attn2.processor")]
    attention = {}
    for place, size in enumerate(layers):
        for kind in ("k", "v"):
            attention[f"{first + (2 if first else 1) * place}.to_{kind}_ip.weight"] = torch.randn(size, width)
            attention[f"{first + (2 if first else 1) * place}.to_{kind}_ip.bias"] = torch.randn(size)
    picture = {"proj.weight": torch.randn(4 * width, SEEN), "proj.bias": torch.randn(4 * width)}
    picture |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    if "Flux" not in name:
        attention = {key: value for key, value in attention.items() if not key.endswith("bias")}
    denoiser._load_ip_adapter_weights([{"image_proj": picture, "ip_adapter": attention}], low_cpu_mem_usage=False)
    for processor in denoiser.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor2_0 | FluxIPAdapterAttnProcessor):
            processor.scale = [1.0]
    return pipe


def seen(name: str, seed: int = 8) -> dict[str, Any]:
    """What the prompts see, and what the negative prompts see: the pipelines repeat it for each sample."""
    negative, positive = torch.randn(2, 1, 1, SEEN, generator=torch.Generator().manual_seed(seed))
    if "Flux" in name:
        return {"ip_adapter_image_embeds": [positive], "negative_ip_adapter_image_embeds": [negative]}
    return {"ip_adapter_image_embeds": [torch.cat([negative, positive])]}


@pytest.mark.parametrize("name", [ONE_BATCH, "StableDiffusionImg2ImgPipeline", IN_CALLS])
def test_an_ip_adapters_pictures_go_with_their_rows(name: str) -> None:
    pipe, on = adapted(name), load(name).ON
    stock = trajectory(pipe, pipe, arguments(name, on=True, **seen(name)))
    before = state(pipe)
    guided = gs.guide(pipe, gs.CFG(on))
    assert torch.equal(trajectory(pipe, guided, arguments(name, **seen(name))), stock)
    edited = gs.guide(pipe, f"cfg({on}) | {EDITED}")
    (denoiser,) = denoisers(pipe).values()
    processors = {key: id(one) for key, one in denoiser.attn_processors.items()}
    assert far(trajectory(pipe, edited, arguments(name, **seen(name))), stock)
    one, other = (trajectory(pipe, edited, arguments(name, **seen(name, seed))) for seed in (8, 9))
    assert far(one, other)
    assert {key: id(one) for key, one in denoiser.attn_processors.items()} == processors
    assert torch.equal(trajectory(pipe, pipe, arguments(name, on=True, **seen(name))), stock)
    assert state(pipe) == before
    assert far(stock, trajectory(pipe, guided, arguments(name, **seen(name, 9))))
    # Several negatives and the empty prompt see what the pipeline's own negative prompt sees.
    first = recorded(pipe, arguments(name, on=True, **seen(name)))
    second = [one + "x" for one in NEGATIVES[:3]]
    others = {
        "negative": first,
        "null": recorded(pipe, arguments(name, negative=False, on=True, **seen(name))),
        "negative:1": recorded(pipe, arguments(name, on=True, negative_prompt=second, **seen(name))),
        "positive:1": recorded(pipe, arguments(name, on=True, prompt=["sun", "moon", "sea"], **seen(name))),
    }
    wanted = Stock(pipe, ("negative", "positive"), others).run(
        arguments(name, on=True, **seen(name)), [by_hand.perp_neg(3, 2, 1, (1.0, 0.5), (0.7,))] * 3
    )
    negatives = [[one, two] for one, two in zip(NEGATIVES, second, strict=False)]
    rule = gs.PerpNeg(3, weights=(1, 0.5), positive_weights=0.7)
    given = arguments(name, negative_prompt=negatives, extra_prompt=["sun", "moon", "sea"], **seen(name))
    assert near(trajectory(pipe, gs.guide(pipe, rule), given), torch.stack(wanted.steps))
    # Rows that are cut: a sample at a time.
    given = arguments(name, negative_prompt=negatives, extra_prompt=["sun", "moon", "sea"], **seen(name))
    assert near(trajectory(pipe, gs.guide(pipe, rule, max_rows=1), given), torch.stack(wanted.steps))


@pytest.mark.parametrize("text", ["stack()", "tsg(3)", "prefix(cfg(4), 0)", "icg(3, source='gaussian')"])
@pytest.mark.parametrize("name", [ONE_BATCH, "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_pictures_prepared_for_both_halves_where_one_is_evaluated(name: str, text: str) -> None:
    """diffusers' convention is [negative, positive] with guidance on, and the positive one alone without."""
    pipe = adapted(name)
    both = seen(name)
    alone = {"ip_adapter_image_embeds": [one.chunk(2)[1] for one in both["ip_adapter_image_embeds"]]}
    for more in ({}, {"num_images_per_prompt": 2}):

        def given(one: dict[str, Any], more: dict[str, Any] = more) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(7)
            return arguments(name, 1, negative=False, generator=generator, **more, **one)

        wanted = trajectory(pipe, gs.guide(pipe, text), given(alone))
        assert torch.equal(trajectory(pipe, gs.guide(pipe, text), given(both)), wanted)
        if text == "stack()":
            assert torch.equal(trajectory(pipe, pipe, given({**alone, load(name).SCALE: 1.0})), wanted)
    assert both["ip_adapter_image_embeds"][0].shape[0] == 2  # the caller's are left alone


def test_rows_that_are_nobodys_are_refused() -> None:
    """This pipeline repeats what it is given for each prompt: a picture for each of three makes nine, and nine more."""
    pipe = adapted(ONE_BATCH)
    pictures = seen(ONE_BATCH)["ip_adapter_image_embeds"][0]
    cfg, unguided = gs.guide(pipe, gs.CFG(3)), gs.guide(pipe, gs.Stack())
    for guided, rows, needs in (
        (cfg, 6, "one for each of negative, positive"),
        (cfg, 1, "one for each of negative, positive"),
        (unguided, 3, "one for the prompt, or 2"),
        (unguided, 6, "one for the prompt, or 2"),
    ):
        many = {"ip_adapter_image_embeds": [pictures[:1].repeat_interleave(rows, 0)]}
        with pytest.raises(InputError, match=f"ip_adapter_image_embeds has {rows} rows; .* needs {needs}"):
            guided(**arguments(ONE_BATCH, negative=guided is cfg, **many))


@pytest.mark.parametrize("text", ["stack()", "cfg(3)", "tsg(3)"])
def test_rows_that_reach_the_network_are_looked_at(text: str) -> None:
    """Flux takes the two apart, so that nothing says whose a second row is."""
    pipe = adapted(IN_CALLS)
    (picture,) = seen(IN_CALLS)["ip_adapter_image_embeds"]
    two = {**seen(IN_CALLS), "ip_adapter_image_embeds": [picture.repeat_interleave(2, 0)]}
    with pytest.raises(InputError, match=r"ip_adapter_image_embeds with 6 rows for a batch of 3, .* one for all"):
        gs.guide(pipe, text)(**arguments(IN_CALLS, negative=text == "cfg(3)", **two))


def test_the_records_know_which_pictures_come_in_halves() -> None:
    for name, family in FAMILIES.items():
        if name.startswith("Kolors"):  # diffusers hides the class where a tokenizer's package is not installed
            continue
        prepare = getattr(getattr(diffusers, name), "prepare_ip_adapter_image_embeds", None)
        halved = prepare is not None and ".chunk(" in inspect.getsource(prepare)
        assert family.halved == ("ip_adapter_image_embeds",) * halved, name


# --- half precision ------------------------------------------------------------------------------------------------

ROUNDED = [*FROM_ZERO, "Lumina2Pipeline", *(name for name in KNOWN if name.startswith("QwenImage"))]
"""Pipelines that compute another formula than CFG's, or measure norms in half precision, where rules use float32."""


HALVES = [(name, torch.bfloat16) for name in KNOWN if name not in TWO_SCALES]
HALVES += [
    (name, torch.float16) for name in KNOWN if FAMILIES[name.partition(",")[0]].upcasts or name in (ONE_BATCH, TWO)
]


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    builder = load(name)
    pipe = builder.make().to(dtype)
    family = FAMILIES[type(pipe).__name__]
    text = " | ".join(filter(None, (f"cfg({builder.ON + (name in FROM_ZERO)})", family.own)))
    stock = counted(name, trajectory(pipe, pipe, arguments(name, on=True)))
    ours = counted(name, trajectory(pipe, gs.guide(pipe, text), arguments(name)))
    assert ours.dtype == stock.dtype
    if name in ROUNDED:
        assert near(ours.float(), stock.float(), 8 * torch.finfo(dtype).eps)
    else:
        assert torch.equal(ours, stock)
    off = trajectory(pipe, pipe, builder.arguments(2, **{builder.SCALE: builder.OFF}))
    assert torch.equal(off, trajectory(pipe, gs.guide(pipe, gs.Stack()), builder.arguments(2)))


ONE_GENERATOR = ("StableDiffusion3ControlNet", "HunyuanDiTControlNet")
"""Pipelines that encode their control picture anew for each half, with noise."""
PLAIN = [name for name in KNOWN if name not in TWO_SCALES and not name.startswith(ONE_GENERATOR)]


@pytest.mark.parametrize("name", PLAIN)
def test_outside_of_a_window_the_pipeline_adds_nothing(name: str) -> None:
    """Its own combination, which is still on there, is the identity, to the bit."""
    pipe = load(name).make().to(torch.bfloat16)
    off = trajectory(pipe, pipe, arguments(name, negative=False, **{load(name).SCALE: load(name).OFF}))
    window = gs.During(gs.CFG(3), progress=(0.9, 1))
    first = counted(name, trajectory(pipe, gs.guide(pipe, window), arguments(name)))[0]
    wanted = counted(name, off)[0]
    if name.startswith("LTX"):  # which does not copy its samples where it runs alone: their order in memory is another
        assert near(first.float(), wanted.float(), 4 * torch.finfo(torch.bfloat16).eps)
    else:
        assert torch.equal(first, wanted)


def test_lumina_without_its_norm_is_cfg_in_half_precision() -> None:
    pipe = load("Lumina2Pipeline").make().to(torch.bfloat16)
    stock = trajectory(pipe, pipe, arguments("Lumina2Pipeline", on=True, cfg_normalization=False))
    guided = gs.guide(pipe, gs.CFG(load("Lumina2Pipeline").ON))
    assert torch.equal(trajectory(pipe, guided, arguments("Lumina2Pipeline")), stock)


# --- memory --------------------------------------------------------------------------------------------------------


def alive() -> tuple[int, int, int]:
    """Tensors, their bytes, and all objects that the collector knows."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [one for one in objects if type(one) in (Tensor, nn.Parameter)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if not one.is_meta}
    return len(tensors), sum(storages.values()), len(objects)


@pytest.mark.parametrize("name", [ONE_BATCH, IN_CALLS])
def test_a_hundred_calls_leave_nothing(name: str) -> None:
    pipe = load(name).make()
    (denoiser,) = denoisers(pipe).values()
    guided, given = gs.guide(pipe, RICH), [[one, "sea"] for one in NEGATIVES[:1]]
    runs: list[weakref.ref[Any]] = []

    def call() -> None:
        guided(**arguments(name, 1, negative_prompt=given))
        runs.append(weakref.ref(guided.run))

    for _ in range(5):  # caches of diffusers and torch are full
        call()
    alive()  # counting fills caches of its own
    for _ in range(30):
        call()
    before, classes = alive(), len(type(denoiser).__subclasses__())
    for _ in range(100):
        call()
    after = alive()
    assert after[:2] == before[:2]
    assert after[2] - before[2] <= 100 + 5  # the references of this test, and what the test runner does meanwhile
    assert sum(one() is not None for one in runs) == 1  # the last, whose report can be read
    assert len(type(denoiser).__subclasses__()) == classes


@pytest.mark.parametrize("stack", [RICH, PERTURBED, "icg(3)", "cfgpp(0.6)"])
def test_no_weight_is_copied(stack: str) -> None:
    pipe = load(ONE_BATCH).make()
    own = {part: key for key, part in pipe.unet.named_parameters() if part.numel() > 500}
    places, copies, looks = weights(pipe), [], 0
    # What was there before is not the call's: other tests keep pipelines with the same weights.
    there = {id(one): one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal looks
        looks += 1
        for one in gc.get_objects():
            if type(one) in (Tensor, nn.Parameter) and id(one) not in there:
                copies.extend(key for part, key in own.items() if part.shape == one.shape and torch.equal(part, one))

    handle = pipe.unet.conv_out.register_forward_hook(look)
    given = rich(ONE_BATCH) if stack == RICH else arguments(ONE_BATCH, negative=stack.startswith("cfg"))
    gs.guide(pipe, stack)(**given)
    handle.remove()
    assert looks >= 2
    assert len(own) > 20
    assert copies == []
    assert weights(pipe) == places
