"""Learned tokens: the embedding of one word of a prompt, optimized for an objective or for pictures, and used again.

`learn_objective`, for a count say, and `learn_pictures`, textual inversion, share the optimizer. A token is kept as
``load_textual_inversion`` of diffusers reads it; the pipeline is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ..guidance.errors import InputError, NonFiniteError, UnsupportedPipelineError, shown
from ..guidance.fields import count
from ..guidance.files import replacing
from ..guidance.keyed import keyed, normal
from ..guidance.objective import Bound, check_recording
from ..guidance.prediction import Level, Prediction
from ..samplers import grid, parameterization, scheduler_with_steps
from ..samplers.names import OWN, by_name
from .attention_masks import places
from .decoding import decoded
from .families.record import Pipeline
from .gradients import check_backward
from .latents import latents_of

STAND_IN = "a"
"""A word that is one token everywhere, in the place of the learned one where a prompt is tokenized."""


@dataclass(frozen=True)
class Descent:
    """How an embedding is optimized: AdamW with gradients clipped by their norm.

    Args:
        steps: the largest number of optimizer steps.
        rate: the learning rate.
        decay: the weight decay.
        clip: the largest norm of a gradient.
        patience: steps without a smaller loss, after which the optimization ends with the best embedding so far.

    The defaults are those of arXiv:2408.11721 in its official code.
    """

    steps: int = 50
    rate: float = 0.01
    decay: float = 0.01
    clip: float = 1.0
    patience: int = 15

    def __post_init__(self) -> None:
        count("steps", self.steps)
        count("patience", self.patience)

    def run(self, start: Tensor, loss: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, list[float]]:
        """Optimize an embedding; returns the one with the smallest loss, and the losses of all steps.

        Args:
            start: the embedding to begin with, shape ``(D,)``.
            loss: ``loss(embedding, step)``, one number with a gradient.

        Raises:
            NonFiniteError: a loss is NaN or Inf.
        """
        check_recording()
        with torch.enable_grad():
            embedding = start.detach().float().clone().requires_grad_()
            optimizer = torch.optim.AdamW([embedding], lr=self.rate, weight_decay=self.decay)
            best, least, since, losses = embedding.detach().clone(), math.inf, 0, list[float]()
            for step in range(self.steps):
                value = loss(embedding, step)
                losses.append(float(value.detach()))
                if not math.isfinite(losses[-1]):
                    raise NonFiniteError(f"the loss of the token is {losses[-1]} at step {step}; take a smaller rate")
                if losses[-1] < least:
                    best, least, since = embedding.detach().clone(), losses[-1], 0
                else:
                    since += 1
                if since >= self.patience:
                    break
                embedding.grad = torch.autograd.grad(value, embedding)[0].clone()
                torch.nn.utils.clip_grad_norm_([embedding], self.clip)
                optimizer.step()
        return best, losses


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned token: its text, its embedding and the losses on the way.

    Args:
        token: its text in prompts.
        embedding: its vector, shape ``(D,)``.
        losses: the loss of each step of the optimizer.
    """

    token: str
    embedding: Tensor
    losses: list[float] = field(default_factory=list, repr=False)

    def save(self, path: Path | str) -> None:
        """Write the embedding as safetensors, for diffusers' ``pipe.load_textual_inversion(path, token=...)``."""
        with replacing(Path(path)) as beside:
            save_file({self.token: self.embedding[None].contiguous()}, beside)


def first_embedding(pipe: Pipeline, word: str | Tensor, cross: bool = False) -> Tensor:
    """Return the embedding that a learned token begins at: that of a word, or the text encoder's output for it.

    Args:
        pipe: a pipeline with one CLIP text encoder.
        word: one word or several, of which the mean is taken; or the embedding itself.
        cross: Cross Initialization: the text encoder's output at the word, in a prompt of that word alone. Learned
            embeddings come to lie there, at norms far from those of the embeddings of words.

    Returns:
        Shape ``(D,)``, in float32.

    References:
        Pang et al., "Cross Initialization for Personalized Text-to-Image Generation", arXiv:2312.15905.
    """
    if isinstance(word, Tensor):
        return word
    encoder: Any = _encoder(pipe)
    tokens = pipe.tokenizer(word, add_special_tokens=False).input_ids
    if not tokens:
        raise InputError(f"a token begins at a word; got {shown(word)}")
    with torch.no_grad():
        if not cross:
            return encoder.get_input_embeddings().weight[tokens].float().mean(0)  # type: ignore[no-any-return]
        text = pipe.encode_prompt(word, pipe._execution_device, 1, False)[0]
        return text[0, places(pipe.tokenizer, word, word)].float().mean(0)  # type: ignore[no-any-return]


def _encoder(pipe: Pipeline) -> Any:
    """The text encoder of a pipeline that has one.

    Raises:
        UnsupportedPipelineError: it has none, or several.
    """
    encoder = getattr(pipe, "text_encoder", None)
    if encoder is None or hasattr(pipe, "text_encoder_2") or not hasattr(pipe, "unet"):
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has another kind of text encoder than Stable Diffusion 1 and 2, whose tokens can "
            "be learned here"
        )
    return encoder


@contextmanager
def _learning(pipe: Pipeline, prompt: str, token: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """While the context lasts, a function from the embedding of `token` to the embeddings of `prompt`, ``(1, T, D)``.

    Raises:
        InputError: the token is not in the prompt once, as a word of its own.
    """
    encoder = _encoder(pipe)
    check_backward(encoder)
    check_backward(pipe.unet)
    words = prompt.replace(token, f" {STAND_IN} ")
    before, _, behind = prompt.partition(token)
    if not token.strip() or token not in prompt or token in behind:
        raise InputError(f"the token {shown(token)} stands in the prompt once; got {shown(prompt)}")
    place = 1 + len(pipe.tokenizer(before, add_special_tokens=False).input_ids)
    whole = pipe.tokenizer(words, truncation=True, max_length=pipe.tokenizer.model_max_length).input_ids
    if place >= len(whole) - 1:
        raise InputError(f"the token {shown(token)} is behind the last one that the text encoder reads")
    held: list[Tensor] = []

    def replaced(module: Any, args: Any, output: Tensor) -> Tensor:
        ours = torch.zeros(output.shape[:2], dtype=torch.bool, device=output.device)
        ours[:, place] = True
        return torch.where(ours[..., None], held[0].to(output), output)

    hook = encoder.get_input_embeddings().register_forward_hook(replaced)

    def embeddings(embedding: Tensor) -> Tensor:
        held[:] = [embedding]
        text: Tensor = pipe.encode_prompt(words, pipe._execution_device, 1, False)[0]
        return text

    trained = [one for part in (encoder, pipe.unet, pipe.vae) for one in part.parameters() if one.requires_grad]
    try:
        for one in trained:
            one.requires_grad_(False)
        yield embeddings
    finally:
        hook.remove()
        for one in trained:
            one.requires_grad_(True)


def learn_objective(
    pipe: Pipeline,
    prompt: str,
    objective: Any,
    token: str = "<some>",
    start: str | Tensor = STAND_IN,
    *,
    cross: bool = False,
    steps: int = 1,
    seeds: Sequence[int] = (0,),
    descent: Descent | None = None,
) -> Learned:
    """Learn a token that makes an objective of pictures large, such as a count.

    Pictures are made without guidance by `steps` steps of DDIM. The gradient goes back through all of them, the
    autoencoder and the text encoder, to the token's embedding alone.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompt: a prompt with the token in it once, ``"a photo of <some> five oranges"``.
        objective: ``log f(x0) -> (B,)`` of pictures, as in `guide`. It may count, see `objectives.Counted`.
        token: its text.
        start: a word whose embedding it begins at, or a tensor.
        cross: Cross Initialization, see `first_embedding`.
        steps: of DDIM, from pure noise. The paper takes one, with a model made for that. Memory goes up with them.
        seeds: of the noise, the same at each step of the optimizer; the loss is the mean over them.
        descent: how to optimize.

    Raises:
        InputError: the prompt has no such token, or the objective returned something else than a number a picture.
        UnsupportedPipelineError: the pipeline has other text encoders, or is offloaded.
        NonFiniteError: the loss is NaN or Inf.

    Cost: of each step of the optimizer `steps` evaluations of each seed, forwards and backwards.

    References:
        arXiv:2408.11721.
    """
    bound = Bound("objective", objective)
    descent = descent or Descent()
    scheduler = scheduler_with_steps(OWN, pipe.scheduler, count("steps", steps))
    points, emits = grid(scheduler).points, parameterization(scheduler)
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)
    device = pipe._execution_device
    noise = normal([keyed(seed, "token") for seed in seeds], shape, device).to(pipe.unet.dtype)

    first = first_embedding(pipe, start, cross)
    with _learning(pipe, prompt, token) as embeddings:

        def loss(embedding: Tensor, _step: int) -> Tensor:
            text = embeddings(embedding).to(noise.dtype).expand(len(noise), -1, -1)
            x = noise * math.hypot(points[0].level.alpha, points[0].level.sigma)
            x0 = x
            for here, after in zip(points, [*(one.level for one in points[1:]), points[-1].returned], strict=True):
                inside = x / math.hypot(here.level.alpha, here.level.sigma)
                answer = pipe.unet(inside, here.timestep, encoder_hidden_states=text, return_dict=False)[0]
                found = Prediction(answer, x, here.level, emits)
                x0 = found.denoised.to(noise.dtype)
                x = after.alpha * x0 + after.sigma * found.noise.to(noise.dtype)
            return -bound(decoded(pipe, None, x0)).mean()

        return Learned(token, *descent.run(first, loss))


def learn_pictures(
    pipe: Pipeline,
    prompt: str,
    pictures: Any,
    token: str = "<some>",
    start: str | Tensor = STAND_IN,
    *,
    cross: bool = False,
    batch: int = 4,
    seed: int = 0,
    descent: Descent | None = None,
) -> Learned:
    """Textual inversion: learn a token that means what some pictures show.

    .. math:: \\min_v \\mathrm{E}_{x_0, t, \\epsilon} \\| o_\\theta(x_t, t, c(v)) - o(x_0, \\epsilon, t) \\|^2

    with o what the network emits.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompt: a prompt with the token in it once, ``"a photo of <some>"``.
        pictures: PIL images of one size, or as in `invert`.
        token: its text.
        start: a word whose embedding it begins at, or a tensor.
        cross: Cross Initialization, see `first_embedding`: as few as 320 steps where the embedding of a word takes
            5000, as its authors say.
        batch: noisy pictures of a step, drawn by (seed, step).
        seed: of the draws.
        descent: how to optimize; by default 320 steps, and none too few.

    Raises:
        InputError: the prompt has no such token, or pictures are of another form.
        UnsupportedPipelineError: the pipeline has other text encoders, or is offloaded.
        NonFiniteError: the loss is NaN or Inf.

    Cost: of each step of the optimizer `batch` rows, forwards and backwards.

    References:
        Gal et al., "An Image is Worth One Word", arXiv:2208.01618. Pang et al., arXiv:2312.15905.
    """
    descent = descent or Descent(steps=320, rate=0.005, decay=0.0, patience=320)
    latents = latents_of(pipe, pictures, pipe.unet.dtype)
    scheduler = by_name("ddim", pipe.scheduler)
    levels, emits = [Level.vp(float(one)) for one in scheduler.alphas_cumprod], parameterization(scheduler)

    first = first_embedding(pipe, start, cross)
    with _learning(pipe, prompt, token) as embeddings:

        def loss(embedding: Tensor, step: int) -> Tensor:
            random = keyed(seed, "token", step)
            chosen = torch.randint(len(latents), (batch,), generator=random)
            times = torch.randint(len(levels), (batch,), generator=random)
            x0 = latents[chosen.to(latents.device)]
            eps = normal([random], (batch, *x0.shape[1:]), x0.device)[0].to(x0.dtype)

            drawn = [levels[int(one)] for one in times]
            rows = [(one.alpha, one.sigma, *emits.row(one)) for one in drawn]
            alpha, sigma, p, q = torch.tensor(rows).to(x0).T.reshape(4, -1, 1, 1, 1)
            x = alpha * x0 + sigma * eps
            text = embeddings(embedding).to(x0.dtype).expand(batch, -1, -1)
            answer = pipe.unet(x, times.to(x0.device), encoder_hidden_states=text, return_dict=False)[0]
            return functional.mse_loss(answer.float(), (p * x0 + q * eps).float())

        return Learned(token, *descent.run(first, loss))
