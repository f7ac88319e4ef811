"""The tiny pipelines are fit for tests: they run, hear their prompts, and repeat themselves to the bit."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch

from .tiny import PIPELINES, load


def run(pipe: Any, builder: Any, guided: bool, batch: int = 1, **more: Any) -> torch.Tensor:
    """What the denoiser told the scheduler at each step, one below the other."""
    told: list[torch.Tensor] = []
    step = pipe.scheduler.step

    @functools.wraps(step)  # pipelines look whether it takes a generator
    def watched(*args: Any, **kwargs: Any) -> Any:
        told.append(torch.as_tensor(args[0] if args else kwargs["model_output"]).clone())
        return step(*args, **kwargs)

    pipe.scheduler.step = watched
    try:
        output = pipe(**builder.arguments(batch, **{builder.SCALE: builder.ON if guided else builder.OFF}, **more))[0]
    finally:
        del pipe.scheduler.step
    assert torch.isfinite(output).all()  # the last step can fail by itself
    return torch.stack(told)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_tiny_pipeline(name: str) -> None:
    builder = load(name)
    pipe = builder.make()
    assert type(pipe).__name__ == name.partition(",")[0]
    first = run(pipe, builder, guided=False)
    assert torch.isfinite(first).all()
    assert torch.equal(first, run(pipe, builder, guided=False))
    size = first.abs().max()
    # Another prompt, guidance, and guidance against another negative are all far from each other.
    guided = run(pipe, builder, guided=True, negative=True)
    pairs = [(first, run(pipe, builder, guided=False, prompt=["dogs"])), (first, guided)]
    if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
        pairs.append((guided, run(pipe, builder, guided=True, negative_prompt=[""])))
    for one, another in pairs:
        assert (one[0] - another[0]).abs().max() > 1e-3 * size
    assert torch.equal(guided, run(pipe, builder, guided=True, negative=True))
    for on in (False, True):
        assert run(pipe, builder, guided=on, batch=3, negative=on).shape[1] == 3 * first.shape[1]
