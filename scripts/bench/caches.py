"""Adaptive Guidance with a feature cache: one leaves evaluations out, the other makes them cheaper; savings multiply.

The bundled model is a UNet, on which diffusers has no such cache. A random transformer of Flux's shape stands in: its
images mean nothing, and what is left out and what that saves do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import click
import torch

from ...guidance.report import Report
from ...pipelines import GuidedPipeline, guide
from .models import filled
from .pipelines import SCALE
from .timing import interleaved

STEPS, THRESHOLD = 20, 0.7
CACHE = "FirstBlockCache"
WIDTH, SEQUENCE = 256, 16


def flux(**options: Any) -> Any:
    """A FluxPipeline of 8 blocks with random weights and no text encoders.

    Random blocks change more from step to step than trained ones do: the cache's threshold is larger than in real use.

    Args:
        options: of the transformer, in the place of its own: for tests.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    shape = {"num_layers": 2, "num_single_layers": 6, "num_attention_heads": 2, "attention_head_dim": 64,
             "axes_dims_rope": (16, 24, 24), "in_channels": 16, **options}  # fmt: skip
    with torch.device("meta"):
        network = FluxTransformer2DModel(**shape, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = FluxPipeline(scheduler, None, None, None, None, None, filled(network))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bench:
    """Runs of one pipeline with the same prompts and seeds.

    Args:
        pipe: of `flux`.
        batch: images of a run.
        size: their height and width.
        threshold: of the cache.
    """

    def __init__(self, pipe: Any, batch: int = 1, size: int = 128, threshold: float = THRESHOLD) -> None:
        self.pipe, self.threshold = pipe, threshold
        generator = torch.Generator().manual_seed(0)
        self.given: dict[str, Any] = {"num_inference_steps": STEPS, "height": size, "width": size}
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            self.given[name] = torch.randn(batch, SEQUENCE, WIDTH, generator=generator)
            self.given[f"{name.removesuffix('prompt_embeds')}pooled_prompt_embeds"] = torch.randn(
                batch, WIDTH, generator=generator
            )

    def call(self, run: Callable[..., Any], **more: Any) -> None:
        """One run to the latents."""
        run(**self.given, **more, generator=torch.Generator().manual_seed(1), output_type="latent")

    def stock(self) -> None:
        """The pipeline with its own guidance and no cache."""
        self.call(self.pipe, true_cfg_scale=SCALE)

    def guided(self, stack: str) -> GuidedPipeline:
        """The pipeline under a stack, with the account of a run."""
        found = guide(self.pipe, stack)
        self.call(found)
        return found

    def stopping(self) -> str:
        """Return Adaptive Guidance with a threshold that stops it half-way, which depends on the random weights."""
        never = self.guided(f"adaptive(cfg({SCALE:g}), threshold=2, space='denoised')").report
        assert never is not None  # a run leaves one
        cosines = [min(each) for each in never.trace("cosine")]
        # The cosine as a step from which on some sample is guided no more: near the middle of the run.
        return f"adaptive(cfg({SCALE:g}), threshold={cosines[len(cosines) // 2 - 1]!r}, space='denoised')"

    @contextmanager
    def cache(self) -> Any:
        """While the context lasts, the network has the cache."""
        from diffusers import FirstBlockCacheConfig

        self.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=self.threshold))
        try:
            yield
        finally:
            self.pipe.transformer.disable_cache()


def accounts(bench: Bench) -> dict[str, tuple[Callable[[], None], Report]]:
    """The runs to compare, by name, each with the account of one."""
    adaptive, cfg = bench.stopping(), f"cfg({SCALE:g})"

    def side(stack: str, cache: bool) -> tuple[Callable[[], None], Report]:
        guided = guide(bench.pipe, stack)

        def run() -> None:
            if cache:
                with bench.cache():
                    bench.call(guided)
            else:
                bench.call(guided)

        run()
        assert guided.report is not None  # a run leaves one
        return run, guided.report

    return {
        "CFG": side(cfg, False),
        f"CFG, {CACHE}": side(cfg, True),
        "Adaptive Guidance": side(adaptive, False),
        f"Adaptive Guidance, {CACHE}": side(adaptive, True),
    }


def report(batch: int, repeats: int) -> None:
    """Print what each alone and both together cost over the stock pipeline, and the product of the two alone."""
    bench = Bench(flux(), batch)
    found = accounts(bench)
    timings = interleaved(bench.stock, {name: run for name, (run, _) in found.items()}, repeats)
    click.echo(
        f"a random Flux of 8 blocks, batch {batch}, {STEPS} steps, {torch.get_num_threads()} threads, median of "
        f"{repeats}, over the stock pipeline with its own guidance and no cache"
    )
    click.echo(f"{'':<36}  {'evaluations':>11}  {'cached':>6}  {'time':>24}")
    for name, (_, account) in found.items():
        click.echo(f"{name:<36}  {account.rows:11}  {account.cached:6}  {timings[name].ratio!s:>24}")
    _, cache, adaptive, both = (timing.ratio.median for timing in timings.values())
    click.echo(f"the two alone, multiplied: {cache * adaptive:.3f}; together: {both:.3f}")
