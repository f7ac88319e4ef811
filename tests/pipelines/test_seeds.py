"""Where the randomness of guidance comes from: a sample's own, another in each call, and never the pipeline's noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import guidestack as gs

from .tiny import load

RANDOM = ["icg(3)", "icg(3, source='gaussian')", "tsg(3)", "apg(3, against='independent:tokens')"]
GIVEN: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def xl() -> Any:
    return load("StableDiffusionXLPipeline").make()


@pytest.fixture(params=["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def either(request: Any, pipe: Any, xl: Any) -> Any:
    return pipe if request.param == "StableDiffusionPipeline" else xl


def images(pipe: Any, stack: Any, prompt: Any = "a", **more: Any) -> torch.Tensor:
    made: torch.Tensor = gs.guide(pipe, stack)(prompt, **GIVEN, **more).images
    return made


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("stack", RANDOM)
def test_one_generator_for_a_batch_is_a_seed_for_each_sample(either: Any, stack: str) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=generator(1)).repeat(3, 1, 1, 1)
    for more in ({"prompt": ["a"] * 3}, {"prompt": "a", "num_images_per_prompt": 3}):
        one = images(either, stack, **more, latents=latents, generator=generator())
        away = [(one[a] - one[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))]
        assert min(away) > 1e-4 * one.abs().max()
        each = images(either, stack, **more, latents=latents, generator=[generator(7 + sample) for sample in range(3)])
        assert torch.equal(one, each)


@pytest.mark.parametrize("stack", RANDOM)
def test_a_generator_for_many_calls_and_none_at_all(either: Any, stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.pipelines.session import Session

    seeds: list[tuple[int, ...]] = []
    begin = Session._begin

    def watched(self: Any, *args: Any) -> Any:
        run = begin(self, *args)
        seeds.append(run.run.seeds)
        return run

    monkeypatch.setattr(Session, "_begin", watched)

    def several(given: Any) -> list[torch.Tensor]:
        return [images(either, stack, ["a", "b"], generator=given) for _ in range(3)]

    def starts(given: Any) -> list[Any]:
        if given is None:
            torch.manual_seed(7)
        return several(given)

    for make in (generator, lambda: [generator(7), generator(9)], lambda: None):
        seeds.clear()
        first = starts(make())
        assert len(set(seeds)) == 3  # one set for each call, the same at all its evaluations
        assert len({seed for one in seeds for seed in one}) == 6
        again = starts(make())
        assert all(map(torch.equal, first, again))


def test_the_seed_of_a_generator_that_has_not_drawn_is_its_own(pipe: Any) -> None:
    """So that a run can be told by its seed, and repeated elsewhere."""
    made = gs.guide(pipe, "icg(3)")
    made(["a", "b"], generator=[generator(5), generator(2**63 - 1)], **GIVEN)
    assert made.run is not None
    assert made.run.run.seeds == (5, 2**63 - 1)


@pytest.mark.parametrize("name", ["a generator", "a list", "none"])
def test_guidance_does_not_move_the_noise_of_the_pipeline(either: Any, name: str) -> None:
    def made(call: Any, **more: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The images of two calls, and the states of all generators behind them."""
        torch.manual_seed(7)
        given = {"a generator": [generator()], "a list": [generator(7), generator(8)], "none": [None]}[name]
        one = given if len(given) > 1 else given[0]
        found = [call(["a", "b"], generator=one, **GIVEN, **more).images for _ in range(2)]
        return found, [torch.get_rng_state(), *(each.get_state() for each in given if each is not None)]

    images, states = made(either, guidance_scale=3.0)
    guided, behind = made(gs.guide(either, "cfg(3)"))
    assert all(map(torch.equal, images, guided))
    assert all(map(torch.equal, states, behind))
    for stack in RANDOM:
        _, behind = made(gs.guide(either, stack))
        assert all(map(torch.equal, states, behind))
