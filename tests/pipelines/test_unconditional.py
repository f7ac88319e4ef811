"""DDPMPipeline and DDIMPipeline: one call of a UNet, no condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import InputError, UnsupportedPipelineError

from ..conftest import make_unconditional
from . import by_hand
from .by_hand import Guide, key, tsg

STEPS = 5


@contextmanager
def stepped(pipe: Any) -> Iterator[list[Tensor]]:
    """What the scheduler returns at every step: the pipeline clamps what it returns itself."""
    seen: list[Tensor] = []
    scheduler, step = pipe.scheduler, pipe.scheduler.step

    def recording(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        result = step(model_output, timestep, sample, **options)
        seen.append(result.prev_sample)
        return result

    scheduler.step = recording
    try:
        yield seen
    finally:
        del scheduler.step


def pictures(pipe: Any, call: Callable[..., Any], batch: int, **more: Any) -> Tensor:
    with stepped(pipe) as seen:
        generator = [torch.Generator().manual_seed(sample) for sample in range(batch)]
        call(batch, generator=generator, num_inference_steps=STEPS, output_type="pt", **more)
    assert len(seen) == STEPS
    return seen[-1]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_empty_stack_is_the_pipeline(unconditional: Any, batch: int) -> None:
    guided = gs.guide(unconditional, gs.Stack())
    assert torch.equal(pictures(unconditional, unconditional, batch), pictures(unconditional, guided, batch))
    assert guided.report.evaluations == [STEPS] * batch
    assert guided.report.calls == STEPS


def test_the_pipelines_own_arguments_pass_through() -> None:
    pipe = make_unconditional("DDIMPipeline")
    guided = gs.guide(pipe, gs.Stack())
    for more in ({"eta": 0.5}, {"use_clipped_model_output": True}):
        assert torch.equal(pictures(pipe, pipe, 2, **more), pictures(pipe, guided, 2, **more))
    one = torch.Generator().manual_seed(3)
    stock = pipe(2, one, num_inference_steps=STEPS, output_type="np").images
    ours = guided(2, one.manual_seed(3), num_inference_steps=STEPS, output_type="np").images
    assert (stock == ours).all()
    with pytest.raises(InputError, match="guidance_scale"):
        guided(2, guidance_scale=3)


TSG: dict[str, tuple[gs.Rule, Guide]] = {
    "constant": (gs.TSG(3, strength=1.5), tsg(3, 1.5)),
    "power": (gs.TSG(2.5, strength=2, power=1), tsg(2.5, 2, 1)),
    "window": (gs.TSG(3, strength=1, window=(0.2, 0.7)), tsg(3, 1, window=(0.2, 0.7))),
    "strength 0": (gs.TSG(3, strength=0), tsg(3, 0)),
}


@pytest.mark.parametrize("name", TSG)
def test_time_step_guidance_is_its_samples_by_hand(name: str) -> None:
    pipe = make_unconditional("DDIMPipeline")
    stack, guide = TSG[name]
    guided = gs.guide(pipe, stack)
    rows: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    images = pictures(pipe, guided, 3)
    hook.remove()
    for sample, image in enumerate(images):

        def network(x: Tensor, t: Any, step: int, name: str, seed: int = sample) -> Tensor:
            if name == "positive":
                return pipe.unet(x, t).sample  # type: ignore[no-any-return]
            normal, amount = torch.randn(32, generator=key(seed, step, "time positive")), float(name.split()[1])
            hook = pipe.unet.time_embedding.register_forward_hook(
                lambda module, args, embedding: embedding + amount * embedding.std() * normal
            )
            output = pipe.unet(x, t).sample
            hook.remove()
            return output  # type: ignore[no-any-return]

        start = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(sample))
        course = by_hand.run(network, start, pipe.scheduler, STEPS, guide)
        assert (image - course.x[0]).abs().max() < 2e-5 * course.x.abs().max()
        assert guided.report.evaluations[sample] == course.evaluations
    assert (guided.report.rows, guided.report.calls) == (sum(rows), len(rows))
    if name == "strength 0":
        assert torch.equal(images, pictures(pipe, pipe, 3))
    else:
        assert (images - pictures(pipe, pipe, 3)).abs().max() > 1e-2


def test_tsg_on_a_noisy_scheduler_leaves_the_schedulers_draws_alone() -> None:
    pipe = make_unconditional("DDPMPipeline")
    wanted = pictures(pipe, pipe, 2)
    assert torch.equal(pictures(pipe, gs.guide(pipe, gs.TSG(1)), 2), wanted)
    # A rule that draws and then does next to nothing: a draw from the pipeline's generators would show.
    almost = pictures(pipe, gs.guide(pipe, gs.TSG(1 + 1e-7)), 2)
    assert 0 < (almost - wanted).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (
            "cfg(3)",
            r"cfg\(3\) asks for negative; this pipeline cannot answer: it is unconditional; tsg\(scale\) or pag\(sc",
        ),
        ("perpneg(3)", "asks for negative:each, null, positive:each; .* unconditional"),
        ("cfgpp(0.6)", "asks for negative; .* unconditional"),
        ("tsg(2) | apg(3)", "asks for negative; .* unconditional"),
        ("icg(3)", "no random condition from source='tokens', nor any other"),
    ],
)
def test_what_needs_a_condition_is_refused_in_one_line(unconditional: Any, stack: str, message: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=message) as caught:
        gs.guide(unconditional, stack)
    assert "\n" not in str(caught.value)


def test_the_pipeline_is_left_as_it_was_found(unconditional: Any) -> None:
    def state() -> Any:
        modules = dict(unconditional.unet.named_modules())
        return (
            {name: type(module) for name, module in modules.items()},
            sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules.values()),
            sorted(vars(unconditional)),
            sorted(set(vars(unconditional.scheduler)) - {"num_inference_steps", "custom_timesteps"}),
        )

    before = state()
    unconditional(1, num_inference_steps=2)
    gs.guide(unconditional, gs.TSG(3))(1, num_inference_steps=2)
    assert state() == before
    assert before[1] == 0


def test_bfloat16() -> None:
    pipe = make_unconditional("DDIMPipeline").to(torch.bfloat16)
    assert torch.equal(pictures(pipe, pipe, 2), pictures(pipe, gs.guide(pipe, gs.Stack()), 2))
    seen = pictures(pipe, gs.guide(pipe, gs.TSG(3, strength=1.5)), 2)
    wide = make_unconditional("DDIMPipeline")
    wanted = pictures(wide, gs.guide(wide, gs.TSG(3, strength=1.5)), 2)
    assert seen.dtype == torch.bfloat16
    assert (seen.float() - wanted).norm() < 0.2 * wanted.norm()  # the same draws, of weights rounded to 8 bits
