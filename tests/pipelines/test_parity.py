"""CFG through guide() is the pipeline's own CFG, to the bit: the table of the project's first promise."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import guidestack as gs

SCHEDULERS = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
PROMPTS = ["a cat", "red", "the sky", "b", "no dog"]
NEGATIVES = ["blue", "x", "a tree", "dim", "fog"]
STEPS = 3


def use(pipe: Any, name: str) -> Any:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return pipe


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    """Fresh generators each time: a pipeline moves them on."""
    given: dict[str, Any] = {"prompt": PROMPTS[:batch], "num_inference_steps": STEPS, "output_type": "latent"}
    given["generator"] = [torch.Generator().manual_seed(7 + sample) for sample in range(batch)]
    if negative:
        given["negative_prompt"] = NEGATIVES[:batch]
    return given | more


def guided(pipe: Any, stack: Any, given: dict[str, Any]) -> tuple[Any, gs.guide]:  # type: ignore[valid-type]
    run = gs.guide(pipe, stack)
    if given.get("negative_prompt") and stack == gs.CFG(1):
        with pytest.warns(gs.GuidestackWarning, match="no rule of cfg\\(1\\) uses it"):
            return run(**given).images, run
    return run(**given).images, run


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("scale", [1, 1.5, 7.5])
def test_cfg_is_the_pipelines_own(pipe: Any, scheduler: str, scale: float) -> None:
    use(pipe, scheduler)
    for batch, negative in itertools.product([1, 2, 5], [False, True]):
        stock = pipe(guidance_scale=scale, **arguments(batch, negative)).images
        ours, run = guided(pipe, gs.CFG(scale), arguments(batch, negative))
        assert torch.equal(stock, ours), (batch, negative)
        points = 2 * STEPS - 1 if scheduler == "HeunDiscreteScheduler" else STEPS
        each = points if scale == 1 else 2 * points
        assert run.report.evaluations == [each] * batch
        assert run.report.calls == points
        assert run.report.rows == each * batch


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_empty_stack_is_the_pipeline_without_guidance(pipe: Any, scheduler: str) -> None:
    use(pipe, scheduler)
    ours, run = guided(pipe, gs.Stack(), arguments(2))
    assert torch.equal(pipe(guidance_scale=1.0, **arguments(2)).images, ours)
    points = 2 * STEPS - 1 if scheduler == "HeunDiscreteScheduler" else STEPS
    assert run.report.evaluations == [points] * 2
    assert run.report.rows == 2 * points


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_rescale_is_guidance_rescale(pipe: Any, scheduler: str, prediction: str) -> None:
    use(pipe, scheduler)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction)
    for batch, negative in [(1, False), (2, True), (5, False)]:
        stock = pipe(guidance_scale=7.5, guidance_rescale=0.7, **arguments(batch, negative)).images
        ours, _ = guided(pipe, gs.CFG(7.5) | gs.Rescale(0.7), arguments(batch, negative))
        assert torch.equal(stock, ours)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="epsilon")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_several_images_a_prompt(pipe: Any, scheduler: str) -> None:
    use(pipe, scheduler)

    def given() -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(sample) for sample in range(4)]
        return arguments(2, negative=True, num_images_per_prompt=2, generator=generators)

    stock = pipe(guidance_scale=7.5, **given()).images
    ours, run = guided(pipe, gs.CFG(7.5), given())
    assert torch.equal(stock, ours)
    assert len(run.report.evaluations) == 4


@pytest.mark.parametrize("output_type", ["latent", "np", "pil", "pt"])
def test_every_output_type(pipe: Any, output_type: str) -> None:
    stock = pipe(guidance_scale=4.0, **arguments(2, output_type=output_type)).images
    ours, _ = guided(pipe, gs.CFG(4), arguments(2, output_type=output_type))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, ours, strict=True))


def test_one_generator_for_the_batch_and_none_at_all(pipe: Any) -> None:
    for scheduler in ("DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        use(pipe, scheduler)
        stock = pipe(guidance_scale=4.0, **arguments(3, generator=torch.Generator().manual_seed(1))).images
        ours, _ = guided(pipe, gs.CFG(4), arguments(3, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(stock, ours)
        torch.manual_seed(5)
        stock = pipe(guidance_scale=4.0, **arguments(1, generator=None)).images
        torch.manual_seed(5)
        ours, _ = guided(pipe, gs.CFG(4), arguments(1, generator=None))
        assert torch.equal(stock, ours)


def test_the_pipelines_own_arguments_pass_through(pipe: Any) -> None:
    use(pipe, "DDIMScheduler")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for more in ({"latents": latents}, {"eta": 0.5}, {"height": 24, "width": 16}):
        assert torch.equal(
            pipe(guidance_scale=4.0, **arguments(2, **more)).images, guided(pipe, gs.CFG(4), arguments(2, **more))[0]
        ), more
    embeddings, negatives = pipe.encode_prompt(PROMPTS[:2], "cpu", 1, True, negative_prompt=NEGATIVES[:2])
    more = {"prompt": None, "prompt_embeds": embeddings, "negative_prompt_embeds": negatives}
    stock = pipe(guidance_scale=4.0, **arguments(2, **more)).images
    assert torch.equal(stock, guided(pipe, gs.CFG(4), arguments(2, **more))[0])
    positional = gs.guide(pipe, gs.CFG(4))(
        PROMPTS[:1], 16, 16, **{k: v for k, v in arguments(1).items() if k != "prompt"}
    )
    assert torch.equal(positional.images, pipe(guidance_scale=4.0, **arguments(1)).images)


def test_callbacks_see_and_change_what_they_do_without_us(pipe: Any) -> None:
    for scheduler in SCHEDULERS:
        use(pipe, scheduler)
        seen: list[tuple[int, float]] = []

        def halve(pipe: Any, i: int, t: Any, tensors: dict[str, Any], seen: list[Any] = seen) -> dict[str, Any]:
            seen.append((i, float(t)))
            return {"latents": tensors["latents"] * 0.9}

        more = {"callback_on_step_end": halve, "callback_on_step_end_tensor_inputs": ["latents"]}
        stock = pipe(guidance_scale=4.0, **arguments(2, **more)).images
        ours, _ = guided(pipe, gs.CFG(4), arguments(2, **more))
        assert torch.equal(stock, ours)
        assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_cpu_offload_hooks_are_inside_ours(new_pipe: Any) -> None:
    """What model CPU offload does to a module, call after call, on a machine without an accelerator."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = new_pipe()
    stock = pipe(guidance_scale=4.0, **arguments(2)).images

    class Counting(ModelHook):  # type: ignore[misc]  # accelerate ships no types
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            Counting.calls += 1
            return args, kwargs

    for number in (1, 2, 3):
        add_hook_to_module(pipe.unet, Counting())
        ours, _ = guided(pipe, gs.CFG(4), arguments(2))
        assert torch.equal(stock, ours)
        assert Counting.calls == number * STEPS
        remove_hook_from_module(pipe.unet)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(new_pipe: Any, dtype: torch.dtype) -> None:
    pipe = new_pipe().to(dtype)
    stock = pipe(guidance_scale=4.0, **arguments(2)).images
    ours, _ = guided(pipe, gs.CFG(4), arguments(2))
    assert ours.dtype == dtype
    assert torch.equal(stock, ours)
