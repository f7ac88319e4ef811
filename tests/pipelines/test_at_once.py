"""Guided calls at the same time, and what guidance does not hang on: the pipelines' callbacks."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError

GIVEN: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, all running at once."""
    results: list[Any] = [None] * len(work)

    def one(place: int) -> None:
        try:
            results[place] = work[place]()
        except Exception as error:  # handed to the test
            results[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_two_pipelines_in_lockstep_do_not_meet(new_pipe: Any) -> None:
    """Each waits for the other at every call of its network, under one stack object with a memory."""
    pipes = [new_pipe(), new_pipe()]
    stack = gs.AdaptiveGuidance(gs.APG(5, momentum=-0.5), threshold=0.9999, space="denoised") | gs.TSG(2)
    guided = [gs.guide(pipe, stack) for pipe in pipes]
    prompts = ["a cat", "red sky"]

    def run(which: int) -> Any:
        return guided[which](prompts[which], generator=seeded(which), **GIVEN).images

    alone = [run(0), run(1)]
    evaluations = [one.report.evaluations for one in guided]
    barrier, met = threading.Barrier(2, timeout=30), []

    def wait(module: Any, args: Any) -> None:
        barrier.wait()
        met.append(threading.get_ident())

    handles = [pipe.unet.conv_in.register_forward_pre_hook(wait) for pipe in pipes]
    together = in_threads(lambda: run(0), lambda: run(1))
    for handle in handles:
        handle.remove()
    assert len(set(met)) == 2
    assert min(met.count(one) for one in set(met)) >= 4
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [one.report.evaluations for one in guided] == evaluations
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("shared", ["pipeline", "network", "scheduler"])
def test_another_thread_cannot_have_it_meanwhile(new_pipe: Any, shared: str) -> None:
    pipe = other = new_pipe()
    if shared != "pipeline":
        other = new_pipe()
        if shared == "network":
            other.unet = pipe.unet
        else:
            other.scheduler = pipe.scheduler
    first, second = gs.guide(pipe, gs.CFG(3)), gs.guide(other, gs.CFG(6))
    wanted = first("a", generator=seeded(1), **GIVEN).images
    inside, done = threading.Event(), threading.Event()

    def wait(module: Any, args: Any) -> None:
        inside.set()
        done.wait(30)

    handle = pipe.unet.register_forward_pre_hook(wait)

    def meanwhile() -> Any:
        inside.wait(30)
        try:
            return second("a", generator=seeded(1), **GIVEN).images
        finally:
            done.set()

    got, refused = in_threads(lambda: first("a", generator=seeded(1), **GIVEN).images, meanwhile)
    handle.remove()
    assert isinstance(refused, GuidanceNotAppliedError)
    assert "is in the middle of another guided call; wait for it, or give each thread a pipeline of its own" in str(
        refused
    )
    assert torch.equal(got, wanted)  # which did not notice
    assert second("a", generator=seeded(1), **GIVEN).images.shape == wanted.shape  # and is free again afterwards


def test_no_code_names_the_callbacks() -> None:
    """Several pipelines have none; the names stand only where a user's own arguments are handed on."""
    root = Path(gs.__file__).parent
    naming = {
        str(path.relative_to(root))
        for part in ("guidance", "samplers", "pipelines", "bridges")
        for path in (root / part).rglob("*.py")
        if "callback_on_step_end" in path.read_text() and path.name != "inversion.py"
    }
    assert naming == set()


def test_pipelines_without_callbacks_are_guided(dit: Any) -> None:
    assert "callback_on_step_end" not in inspect.signature(dit.__call__).parameters
    guided = gs.guide(dit, gs.APG(3, momentum=-0.5))
    guided([3, 5], generator=seeded(1), num_inference_steps=4, output_type="np")
    assert guided.report is not None
    assert guided.report.evaluations == [8, 8]


def test_a_users_callback_is_called_as_without_guidance(pipe: Any) -> None:
    seen: list[tuple[int, int, tuple[str, ...]]] = []

    def note(inner: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert inner is pipe
        seen.append((step, int(timestep), tuple(tensors)))
        return {}

    more = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    pipe("a", generator=seeded(1), guidance_scale=3.0, **more, **GIVEN)
    stock, seen = seen, []
    stack = gs.AdaptiveGuidance(gs.APG(5, momentum=-0.5), threshold=0.9999, space="denoised")
    guided = gs.guide(pipe, stack)
    with_it = guided("a", generator=seeded(1), **more, **GIVEN).images
    assert seen == stock
    assert torch.equal(guided("a", generator=seeded(1), **GIVEN).images, with_it)
