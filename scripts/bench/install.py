"""What guide() costs around the network: its hooks, its steps, its memory, and one call for all conditions or one each.

Modular pipelines of diffusers carry guiders, and call the network once for each condition. There is none for the
bundled model's kind, so that comparison runs on a Stable Diffusion XL with the bundled model's encoders, its decoder,
and a UNet of its size with random weights: the time does not depend on them.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch

from ...pipelines import guide
from ...pipelines.prompts import Prompts
from ...pipelines.session import Session
from .pipelines import SCALE, Bench, Side
from .timing import Spread, interleaved

LIMIT = 1e-3
"""Seconds that putting the hooks on and taking them off may cost."""
STEP_LIMIT = 1.01
CALLS = 100
CFG = Side("CFG", f"cfg({SCALE:g})")


def hooks(pipe: Any, repeats: int) -> Spread:
    """Seconds to put the hooks of a guided call on a pipeline and to take them off again."""
    guided = guide(pipe, CFG.stack)
    seconds = []
    for _ in range(repeats):
        session = Session(pipe, guided.family, guided.stack, {"prompt": "cat face"}, Prompts([[]], [[]]), None)
        began = time.perf_counter()
        with guided.hooked(session):
            pass
        seconds.append(time.perf_counter() - began)
    return Spread.of(seconds)


def objects() -> tuple[int, int]:
    """Return the number of live tensors, and their bytes."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum({one.data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@dataclass(frozen=True)
class Growth:
    """What guided calls leave behind: tensors, their bytes, and peak memory.

    Args:
        tensors: tensors alive after the calls less those before.
        size: their bytes, likewise.
        peak: growth of the process's peak resident memory, in KiB.
    """

    tensors: int
    size: int
    peak: int


def growth(pipe: Any, calls: int = CALLS) -> Growth:
    """What `calls` guided calls leave behind, after some that fill caches."""
    guided = guide(pipe, f"apg({SCALE:g}, momentum=-0.5) | rescale(0.5)")

    def call() -> None:
        guided("cat face", num_inference_steps=2, generator=torch.Generator().manual_seed(0))

    for _ in range(5):
        call()
    before, peak = objects(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(calls):
        call()
    after = objects()
    return Growth(after[0] - before[0], after[1] - before[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)


def enlarged(pipe: Any) -> Any:
    """A StableDiffusionXLPipeline of the size of `pipe`, a StableDiffusionPipeline."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    width = pipe.text_encoder.config.hidden_size
    torch.manual_seed(0)
    options = {
        **{name: value for name, value in pipe.unet.config.items() if not name.startswith("_")},
        "cross_attention_dim": 2 * width,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": pipe.text_encoder.config.projection_dim + 6 * 32,
    }
    large = StableDiffusionXLPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(pipe.text_encoder.config).eval(),
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer,
        unet=UNet2DConditionModel.from_config(options).eval(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    large.set_progress_bar_config(disable=True)
    return large


def modular(pipe: Any, guider: Any) -> Any:
    """The Modular pipeline with the components of a StableDiffusionXLPipeline, and a guider."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    found = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    found.update_components(**parts, guider=guider, force_zeros_for_empty_prompt=True)
    _silence(found._blocks)
    return found


def _silence(blocks: Any) -> None:
    # Each loop of a Modular pipeline has a progress bar of its own.
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in getattr(blocks, "sub_blocks", {}).values():
        _silence(block)


def over_modular(pipe: Any, batch: int, steps: int, repeats: int) -> dict[str, Spread]:
    """Time of guide() over a Modular pipeline's, for each rule that both have."""
    from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance

    def arguments() -> dict[str, Any]:
        generator = [torch.Generator().manual_seed(sample) for sample in range(batch)]
        side = pipe.default_sample_size * pipe.vae_scale_factor
        common = {"num_inference_steps": steps, "height": side, "width": side}
        return {"prompt": ["cat face"] * batch, "generator": generator, **common}

    def theirs(guider: Any) -> Callable[[], Any]:
        run = modular(pipe, guider)
        return lambda: run(**arguments(), output="images")

    def ours(stack: str) -> Callable[[], Any]:
        run = guide(pipe, stack)
        return lambda: run(**arguments())

    pairs = {
        "CFG": (ours(CFG.stack), ClassifierFreeGuidance(guidance_scale=SCALE)),
        "CFG, rescale": (
            ours(f"cfg({SCALE:g}) | rescale(0.7)"),
            ClassifierFreeGuidance(guidance_scale=SCALE, guidance_rescale=0.7),
        ),
        # Written so that it is the paper's, but for the space, which a guider cannot choose.
        "APG": (
            ours(f"apg({SCALE:g}, radius=15, momentum=-0.5)"),
            AdaptiveProjectedGuidance(
                guidance_scale=SCALE - 1,
                adaptive_projected_guidance_momentum=-0.5,
                adaptive_projected_guidance_rescale=15.0,
                eta=0.0,
                use_original_formulation=True,
            ),
        ),
    }
    return {
        name: interleaved(theirs(guider), {name: run}, repeats)[name].ratio for name, (run, guider) in pairs.items()
    }


def report(pipe: Any, batch: int, repeats: int) -> None:
    """Print the time of the hooks, what calls leave behind, and the comparison with the Modular pipeline."""
    cost = hooks(pipe, 200)
    verdict = "" if cost.median <= LIMIT else "  exceeded"
    click.echo(
        f"hooks on and off: {1000 * cost.median:.3f} ms ({1000 * cost.low:.3f} to {1000 * cost.high:.3f}), median of "
        f"200 <= {1000 * LIMIT:.0f} ms{verdict}"
    )
    bench = Bench(pipe, batch)
    timing = interleaved(bench.stock, {CFG.name: bench.guided(CFG)}, repeats)[CFG.name]
    verdict = "" if timing.ratio.median <= STEP_LIMIT else "  exceeded"
    click.echo(
        f"CFG of {bench.steps} steps over the stock pipeline, batch {batch}: {timing.ratio}, median of {repeats} <= "
        f"{STEP_LIMIT}{verdict}"
    )
    left = growth(pipe)
    click.echo(
        f"after {CALLS} guided calls: {left.tensors:+d} tensors, {left.size:+d} bytes in tensors, {left.peak:+d} KiB "
        "of peak memory"
    )
    large = enlarged(pipe)
    for name, ratio in over_modular(large, batch, bench.steps, repeats).items():
        click.echo(
            f"{name} through guide(), one call a step, over a Modular pipeline, one call for each condition, batch "
            f"{batch}: {ratio}, median of {repeats}"
        )
