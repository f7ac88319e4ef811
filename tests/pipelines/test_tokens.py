"""Learned tokens: gradients to one embedding, the optimizer of both kinds, and reuse by diffusers' own loader."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import InputError, NonFiniteError, UnsupportedPipelineError
from guidestack.guidance.keyed import keyed, normal
from guidestack.guidance.objectives import Blobs
from guidestack.pipelines.tokens import Descent, Learned, first_embedding, learn_objective, learn_pictures

from ..conftest import make_stable_diffusion
from .left import state
from .tiny import load

PROMPT = "a cat <some> on b"
FEW = Descent(steps=6, rate=0.05)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_stable_diffusion()


def dark(x0: Tensor) -> Tensor:
    return -x0.square().flatten(1).mean(1)


def test_the_loss_falls_and_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    before, numbers = state(pipe), pipe.text_encoder.get_input_embeddings().weight.clone()
    learned = learn_objective(pipe, PROMPT, dark, steps=2, seeds=(0, 1), descent=FEW)
    assert len(learned.losses) == 6
    assert learned.losses[-1] < learned.losses[0]
    assert state(pipe) == before
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, numbers)
    assert all(one.requires_grad for one in pipe.unet.parameters())
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    again = learn_objective(pipe, PROMPT, dark, steps=2, seeds=(0, 1), descent=FEW)
    assert again.losses == learned.losses
    assert torch.equal(again.embedding, learned.embedding)


def by_hand(pipe: Any, prompt: str, steps: int, seed: int) -> Tensor:
    """The picture's mean square of a run by diffusers' own DDIM, without guidance."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    text = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    x = normal([keyed(seed, "token")], (4, 8, 8), torch.device("cpu"))
    for time in scheduler.timesteps:
        x = scheduler.step(pipe.unet(x, time, text).sample, time, x).prev_sample
    picture = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    return picture.square().mean()


def test_the_loss_is_that_of_a_run_and_a_saved_token_is_read_by_diffusers(pipe: Any, tmp_path: Path) -> None:
    learned = learn_objective(pipe, PROMPT, dark, steps=3, seeds=(4,), descent=Descent(steps=3, rate=0.05))
    learned.save(tmp_path / "some.safetensors")
    reader = make_stable_diffusion()
    reader.load_textual_inversion(tmp_path / "some.safetensors", token="<some>")
    with torch.no_grad():
        found = by_hand(reader, PROMPT, 3, 4)
    assert float(found) == pytest.approx(min(learned.losses), rel=1e-4)


def test_the_gradient_is_that_of_differences_of_losses(pipe: Any) -> None:
    start = torch.randn(16, generator=torch.Generator().manual_seed(2))
    ahead = torch.randn(16, generator=torch.Generator().manual_seed(3))

    def first_loss(at: Tensor) -> float:
        return learn_objective(pipe, PROMPT, dark, start=at, steps=2, descent=Descent(steps=1)).losses[0]

    seen: list[Tensor] = []

    class Watching(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            (one,) = self.param_groups[0]["params"]
            seen.append(one.grad.clone())
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watching)
        learn_objective(pipe, PROMPT, dark, start=start, steps=2, descent=Descent(steps=1, clip=1e9))
    slope = (first_loss(start + 0.05 * ahead) - first_loss(start - 0.05 * ahead)) / 0.1
    assert float((seen[0] * ahead).sum()) == pytest.approx(slope, rel=0.03)


def test_the_optimizer_stops_early_and_keeps_the_best() -> None:
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    asked: list[Tensor] = []

    def loss(embedding: Tensor, step: int) -> Tensor:
        asked.append(embedding.detach().clone())
        return embedding.sum() * 0 + next(values)

    best, losses = Descent(steps=50, patience=3).run(torch.ones(4), loss)
    assert losses == [3.0, 1.0, 2.0, 2.0, 2.0]
    assert torch.equal(best, asked[1])


def test_a_gradient_is_clipped() -> None:
    first: list[Tensor] = []

    def loss(embedding: Tensor, step: int) -> Tensor:
        first.append(embedding.detach().clone())
        return (100 * embedding).sum()

    Descent(steps=2, rate=0.01, decay=0.0).run(torch.zeros(4), loss)
    assert torch.allclose(first[1], torch.full((4,), -0.01), atol=1e-6)  # AdamW's first step is of size `rate`


def test_a_counter_that_is_not_derivable_has_its_say(pipe: Any) -> None:
    blobs = Blobs(2, least=1)
    learned = learn_objective(pipe, PROMPT, blobs, seeds=(0, 1), descent=Descent(steps=3, rate=0.1))
    assert all(
        loss == pytest.approx(round(2 * loss) / 2, abs=1e-4) for loss in learned.losses
    )  # counts of two pictures


def test_where_a_token_begins(pipe: Any) -> None:
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer("cat", add_special_tokens=False).input_ids
    assert torch.allclose(first_embedding(pipe, "cat"), table[ids].mean(0))
    found = first_embedding(pipe, "cat", cross=True)
    with torch.no_grad():
        text = pipe.encode_prompt("cat", "cpu", 1, False)[0]
    assert torch.allclose(found, text[0, 1 : 1 + len(ids)].mean(0))
    assert found.norm() != first_embedding(pipe, "cat").norm()


def test_textual_inversion_learns_pictures_and_shares_the_optimizer(pipe: Any) -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    learned = learn_pictures(pipe, "a <it>", pictures, "<it>", "cat", cross=True, batch=3, descent=FEW)
    assert len(learned.losses) == 6
    assert isinstance(learned, Learned)
    # The first loss by hand: the draws of step 0, what the network emits, and the noise that it should.
    from guidestack.pipelines.latents import latents_of

    random = keyed(0, "token", 0)
    chosen = torch.randint(2, (3,), generator=random)
    times = torch.randint(pipe.scheduler.config.num_train_timesteps, (3,), generator=random)
    eps = normal([random], (3, 4, 8, 8), torch.device("cpu"))[0]
    x = pipe.scheduler.add_noise(latents_of(pipe, pictures, torch.float32)[chosen], eps, times)
    reader = copy.deepcopy(pipe)
    reader.load_textual_inversion({"<it>": first_embedding(pipe, "cat", cross=True)[None]}, token="<it>")
    text = reader.encode_prompt("a <it>", "cpu", 1, False)[0].expand(3, -1, -1)
    with torch.no_grad():
        answer = reader.unet(x, times, text).sample
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert learned.losses[0] == pytest.approx(float((answer - eps).square().mean()), rel=1e-4)


def test_what_cannot_be_is_one_line(pipe: Any) -> None:
    with pytest.raises(InputError, match="the token '<some>' stands in the prompt once; got 'a cat'"):
        learn_objective(pipe, "a cat", dark)
    with pytest.raises(InputError, match="stands in the prompt once"):
        learn_objective(pipe, "<some> <some>", dark)
    with pytest.raises(InputError, match="behind the last one that the text encoder reads"):
        learn_objective(pipe, "abcdefghijklmnopqrst <some>", dark)
    with pytest.raises(InputError, match="expected a floating-point tensor of shape"):
        learn_objective(pipe, PROMPT, lambda x0: x0.mean())
    with pytest.raises(NonFiniteError, match="the loss of the token is nan at step 0"):
        learn_objective(pipe, PROMPT, lambda x0: dark(x0) * float("nan"))
    with pytest.raises(InputError, match="a token begins at a word"):
        first_embedding(pipe, "")
    with torch.inference_mode(), pytest.raises(InputError, match="gradients cannot be taken"):
        learn_objective(pipe, PROMPT, dark)
    with pytest.raises(UnsupportedPipelineError, match="another kind of text encoder"):
        learn_objective(load("StableDiffusionXLPipeline").make(), PROMPT, dark)
    with pytest.raises(InputError, match="steps must be a whole number"):
        Descent(steps=0)
    assert all(one.requires_grad for one in pipe.unet.parameters())
