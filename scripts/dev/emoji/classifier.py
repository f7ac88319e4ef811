"""Train the classifier of the objective ``emoji``: concept, style and background of 64x64 pictures without noise.

Beside the pictures as they are it sees them as the model makes them: through the autoencoder with noise on the latents,
and through one step of the denoiser from a noise level at which the picture still shows. One picture of every third
concept is held out. The logits of each part are scaled by one number, fitted on half of the held-out pictures, so that
their probabilities are right on average.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ....evaluation.emoji import pictures
from ....evaluation.emoji.pictures import shrink
from ....evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, Request, caption, drawn_requests, labels
from ....evaluation.references import drawings
from ....guidance.files import replacing
from ....guidance.objectives.classes import smooth
from ....guidance.objectives.emoji import PARTS, EmojiNetwork
from . import harvested, sampling
from .harvested import Drawing
from .latents import encode
from .measure import backgrounds_right, recognized
from .training import Trainer, generators

SEED = 20261129
SOFT, DENOISED = 2, 1  # softened pictures of each drawing through the decoder, and through the denoiser
LATENT_NOISE = 0.3  # largest standard deviation of the noise on latents, whose own is 1
LEVELS = (0.2, 2.0)  # k_sigma from which the denoiser makes its one step
SHIFT = 3  # pixels
LABEL_SMOOTHING = 0.05
BATCH = 64


def words() -> dict[str, tuple[str, ...]]:
    """The words of each part, in the order of the network's answers."""
    return {"concept": tuple(labels().values()), "style": tuple(STYLES), "background": tuple(BACKGROUNDS)}


def named(told: Mapping[str, Sequence[str]], numbers: Sequence[int]) -> list[str]:
    """The words of the numbers of concept, style and background."""
    return [told[part][number] for part, number in zip(PARTS, numbers, strict=True)]


def truths(backgrounds: Sequence[int] | NDArray[np.intp], rows: Sequence[int] | NDArray[np.intp]) -> Tensor:
    """The numbers of concept, style and background, shape ``(N, 3)``, of drawings on backgrounds."""
    known, told = drawings(), words()
    slugs = list(labels())
    return torch.tensor(
        [
            (slugs.index(known.slugs[row]), told["style"].index(known.styles[row]), int(place))
            for row, place in zip(rows, backgrounds, strict=True)
        ]
    )


def held_out() -> NDArray[np.bool_]:
    """Which of the drawings the classifier never sees: one of every third concept, each style equally often."""
    known, slugs, styles = drawings(), list(labels()), list(STYLES)
    places = [slugs.index(slug) for slug in known.slugs]
    return np.array(
        [
            place % 3 == 0 and styles.index(style) == place // 3 % len(STYLES)
            for place, style in zip(places, known.styles, strict=True)
        ]
    )


def shown(rows: Sequence[int] | NDArray[np.intp], backgrounds: Sequence[int] | NDArray[np.intp]) -> Tensor:
    """Drawings on backgrounds, by their numbers: pictures ``(N, 3, 64, 64)`` in [-1, 1]."""
    colours = list(BACKGROUNDS.values())
    found = [pictures.on_background(drawings().rgba[row], colours[place]) for row, place in zip(rows, backgrounds)]
    return harvested.to_tensor(np.stack(found))


@torch.no_grad()
def softened(pipe: Any, images: Tensor, prompts: Sequence[str], random: torch.Generator, by_denoiser: bool) -> Tensor:
    """Pictures in [-1, 1] as the model makes them: through the decoder, or through the denoiser and the decoder."""
    latents = encode(pipe.vae, images)
    noise = torch.randn(latents.shape, generator=random)
    size = torch.rand(len(latents), 1, 1, 1, generator=random)
    if by_denoiser:
        wanted = (math.log(LEVELS[0]) + (math.log(LEVELS[1]) - math.log(LEVELS[0])) * size).exp()
        bars = pipe.scheduler.alphas_cumprod
        times = (((1 - bars) / bars).sqrt() - wanted.reshape(-1, 1)).abs().argmin(1)
        alpha, sigma = (one.reshape(-1, 1, 1, 1) for one in (bars[times].sqrt(), (1 - bars[times]).sqrt()))
        x = alpha * latents + sigma * noise
        ids = pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        told = pipe.text_encoder(ids)[0]
        latents = alpha * x - sigma * pipe.unet(x, times, encoder_hidden_states=told).sample  # it emits v
    else:
        latents = latents + LATENT_NOISE * size * noise
    decoded: Tensor = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return decoded.clamp(-1, 1)


def bytes_of(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes."""
    return ((images + 1) * 127.5).round().byte()


def make_pool(pipe: Any, to: Path) -> None:
    """Write the softened pictures of all drawings, with what each shows."""
    random_ = np.random.default_rng(SEED)
    random = torch.Generator().manual_seed(SEED)
    rows = np.concatenate([np.arange(len(drawings().rgba))] * (SOFT + DENOISED))
    places = random_.integers(len(BACKGROUNDS), size=len(rows))
    by_denoiser = np.arange(len(rows)) >= SOFT * len(drawings().rgba)
    told = words()
    truth = truths(places, rows)
    found = []
    for start in tqdm(range(0, len(rows), BATCH), desc="softening", unit="batch", mininterval=5):
        part = slice(start, start + BATCH)
        prompts = [
            caption(*(told[name][number] for name, number in zip(PARTS, one, strict=True)))
            for one in truth[part].tolist()
        ]
        images = shown(rows[part], places[part])
        for which in (False, True):
            mask = torch.from_numpy(by_denoiser[part] == which)
            if mask.any():
                chosen = [prompt for prompt, kept in zip(prompts, mask.tolist(), strict=True) if kept]
                images[mask] = softened(pipe, images[mask], chosen, random, which)
        found.append(bytes_of(images))
    with replacing(to) as path:
        save_file({"pictures": torch.cat(found), "truth": truth, "held": torch.from_numpy(held_out()[rows])}, path)


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Pictures moved by up to `SHIFT` pixels, each by itself, with their borders repeated."""
    padded = functional.pad(images, (SHIFT,) * 4, mode="replicate")
    side = images.shape[-1]
    moves = torch.randint(2 * SHIFT + 1, (len(images), 2), generator=random).tolist()
    return torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(padded, moves, strict=True)])


def make_loss(net: EmojiNetwork, pool: Mapping[str, Tensor], batch: int) -> Callable[[int], Tensor]:
    """The loss of a step: the cross-entropies of the three parts, of as many pictures as they are as softened ones."""
    seen = torch.nonzero(~pool["held"]).flatten()
    plain = np.flatnonzero(~held_out())

    def loss_at(step: int) -> Tensor:
        random, _ = generators(SEED, step)
        soft = seen[torch.randint(len(seen), (3 * batch // 4,), generator=random)]
        rows = plain[torch.randint(len(plain), (batch // 4,), generator=random).numpy()]
        places = torch.randint(len(BACKGROUNDS), (len(rows),), generator=random).numpy()
        images = torch.cat([pool["pictures"][soft].float() / 127.5 - 1, shown(rows, places)])
        truth = torch.cat([pool["truth"][soft], truths(places, rows)])
        images = shifted(images, random) / 2 + 0.5
        images = images + 0.03 * torch.rand(len(images), 1, 1, 1, generator=random) * torch.randn(
            images.shape, generator=random
        )
        logits = net(images)
        terms = [
            functional.cross_entropy(answer, truth[:, place], label_smoothing=LABEL_SMOOTHING)
            for place, answer in enumerate(logits)
        ]
        return torch.stack(terms).sum()

    return loss_at


@torch.no_grad()
def answers(net: EmojiNetwork, images: Tensor) -> list[Tensor]:
    """The logits of each part of pictures in [0, 1]."""
    found = [net(part) for part in torch.split(images, BATCH)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def temperature(logits: Tensor, truth: Tensor) -> float:
    """The number that logits are divided by so that the cross-entropy of `truth` is the least."""
    tried = torch.logspace(-1, 1, 201)
    losses = torch.stack([functional.cross_entropy(logits / one, truth) for one in tried])
    return float(tried[losses.argmin()])


def calibration_error(logits: Tensor, truth: Tensor, bins: int = 10) -> float:
    """The expected calibration error: how far confidence is from accuracy, on average over bins of confidence."""
    confidence, guess = logits.softmax(1).max(1)
    right = (guess == truth).float()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    sums = [torch.zeros(bins).index_add_(0, bin_of, one) for one in (right, confidence)]
    return float((sums[0] - sums[1]).abs().sum() / len(truth))


def classifier(work: Path, folder: Path, steps: int, decay_from: int, batch: int, rate: float, to: Path) -> bool:
    """Train, or go on training, and write the weights in half precision at the end; whether it reached that."""
    work.mkdir(parents=True, exist_ok=True)
    pool_file = work / "classifier-pool.safetensors"
    if not pool_file.exists():
        make_pool(sampling.load(folder), pool_file)
    pool = load_file(pool_file)
    torch.manual_seed(SEED)
    told = words()
    net = EmojiNetwork((len(told["concept"]), len(told["style"]), len(told["background"]))).train()
    trainer = Trainer({"net": net}, work / "classifier.safetensors", rate, ema=0.99)
    if not trainer.train(make_loss(net, pool, batch), steps, decay_from, warmup=min(100, steps // 10)):
        return False
    net.load_state_dict(trainer.averaged("net"))
    net.eval()
    held = torch.nonzero(pool["held"]).flatten()[::2]
    truth = pool["truth"][held]
    for place, logits in enumerate(answers(net, pool["pictures"][held].float() / 255)):
        scale = temperature(logits, truth[:, place])
        head: Any = net.heads[place]
        with torch.no_grad():
            head.weight /= scale
            head.bias /= scale
    with replacing(to) as path:
        halved = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
        save_file(halved, path, {"classes": json.dumps(told), "seconds": f"{trainer.seconds:.0f}", "step": f"{steps}"})
        path.chmod(0o644)
    return True


def measured(images: Tensor, truth: Tensor, net: EmojiNetwork) -> dict[str, float]:
    """Share right, of the concept also among the five first, and the calibration error of each part."""
    figures: dict[str, float] = {}
    for place, (part, logits) in enumerate(zip(PARTS, answers(net, images), strict=True)):
        wanted = truth[:, place]
        figures[part] = float((logits.argmax(1) == wanted).float().mean())
        if part == "concept":
            five = logits.topk(5, 1).indices
            figures["concept_top5"] = float((five == wanted[:, None]).any(1).float().mean())
        figures[f"{part}_calibration"] = calibration_error(logits, wanted)
    return figures


def by_pixels(made: NDArray[np.float32], asked: Sequence[Request]) -> dict[str, float]:
    """The shares of generated pictures whose nearest drawing, at 16x16 pixels on the background asked for, is right."""
    known, told = drawings(), labels()
    named = [Drawing(slug, told[slug], (), style) for slug, style in zip(known.slugs, known.styles, strict=True)]
    found = recognized(made, asked, known.rgba, named, shrink)
    shares = {"concept": found["top1"], "concept_top5": found["top5"], "style": found["style"]}
    return {key: share.value for key, share in {**shares, "background": backgrounds_right(made, asked)}.items()}


def measure(work: Path, folder: Path, weights: Path, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy and calibration on held-out pictures and on generated ones, also with softplus in place of ReLU."""
    told = words()
    net = EmojiNetwork((len(told["concept"]), len(told["style"]), len(told["background"]))).eval()
    net.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    held = np.flatnonzero(held_out())
    places = np.random.default_rng(seed).integers(len(BACKGROUNDS), size=len(held))
    plain, plain_truth = shown(held, places) / 2 + 0.5, truths(places, held)
    pool = load_file(work / "classifier-pool.safetensors")
    rest = torch.nonzero(pool["held"]).flatten()[1::2]  # the other half chose the temperatures
    soft, soft_truth = pool["pictures"][rest].float() / 255, pool["truth"][rest]
    asked = drawn_requests(labels(), count, seed)
    made = sampling.generate(sampling.load(folder), [one.prompt for one in asked], seed)
    truth = torch.tensor(
        [
            tuple(
                told[part].index(word) for part, word in zip(PARTS, (one.label, one.style, one.background), strict=True)
            )
            for one in asked
        ]
    )
    images = torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()
    figures = {"generated, nearest drawing": by_pixels(made, asked)}
    for beta in (0.0, 3.0, 5.0, 10.0, 30.0):
        smooth(net, beta)
        name = f"softplus {beta:g}" if beta else "as trained"
        figures[f"held out, {name}"] = measured(plain, plain_truth, net)
        figures[f"held out and softened, {name}"] = measured(soft, soft_truth, net)
        figures[f"generated, {name}"] = measured(images, truth, net)
    return figures
