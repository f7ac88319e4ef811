"""Cross-attention as an objective: how much a subject's words decide each number of the latents, and masks made of it.

`KeepOutside` is a callback for the pipelines' own ``callback_on_step_end=``: at chosen steps it finds where the subject
is, and puts a reference picture's latents everywhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..guidance.errors import GuidanceNotAppliedError, InputError, UnsupportedPipelineError, shown
from ..guidance.fields import count
from ..guidance.keyed import keyed, normal
from ..guidance.objective import check_recording
from ..samplers import grid
from .edits.architecture import Architecture, architecture
from .edits.attention import Product, multiplying, scores
from .families.record import Pipeline
from .gradients import check_backward
from .hooks import calling, in_this_thread
from .latents import latents_of
from .time_embedding import eager

PARTS: Mapping[str, Callable[[Tensor], Tensor]] = {"abs": torch.abs, "relu": torch.relu}
"""What is taken of each derivative: its size (Abs-Grad-SAM), or what is positive of it (Grad-SAM)."""
ADDED = {"add_text_embeds": "text_embeds", "add_time_ids": "time_ids"}
"""What Stable Diffusion XL tells its network beside the prompt: the pipeline's name, and the network's."""


def places(tokenizer: Any, prompt: str, subject: str) -> list[int]:
    """The places of a subject's words among the tokens of a prompt.

    Args:
        tokenizer: of the text encoder.
        prompt: the prompt.
        subject: words as they stand in it, one behind the other.

    Raises:
        InputError: they do not stand in it, or behind the last token that the text encoder reads.
    """
    whole = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    words = tokenizer(subject, add_special_tokens=False).input_ids
    found = [
        start + place
        for start in range(len(whole) - len(words) + 1)
        if words and whole[start : start + len(words)] == words
        for place in range(len(words))
    ]
    if not found:
        raise InputError(f"{shown(subject)} does not stand in the prompt {shown(prompt)}, as its tokens are read")
    return found


def importance(
    denoiser: nn.Module,
    call: Callable[[int], Tensor],
    tokens: Sequence[Sequence[int]],
    part: str = "abs",
    every: int = 1,
    copies: int = 16,
) -> dict[str, Tensor]:
    r"""How much the attention to some tokens decides each number that a network answers, for each block.

    .. math:: I^{(l)}_e = \sum_{h, n, k} A^{(l)}_{hnk} \left| \frac{\partial z_e}{\partial A^{(l)}_{hnk}} \right|

    with e a number of the answer z, A the weights of the cross-attention of the block l, h its heads, n the places of
    the picture there, and k the subject's tokens. The derivative is the whole one, through all that follows. With
    ``part="relu"`` it is :math:`\mathrm{ReLU}(\partial z_e / \partial A)` in place of the size.

    Args:
        denoiser: a diffusers network with cross-attention.
        call: calls it with each sample's row so many times, one behind the other, and returns what it answers, shape
            ``(B * copies, C, h, w)``.
        tokens: of each sample the places of the subject's tokens.
        part: ``"abs"`` or ``"relu"``.
        every: evaluate every n-th number across and down only, which stands for its neighbours.
        copies: numbers that one backward pass looks at. Memory is that of the graph of so many rows of each sample.

    Returns:
        By the name of the block, shape ``(B, C, h, w)``, in float32 or better.

    Raises:
        UnsupportedPipelineError: the network has no cross-attention, or is offloaded.
        GuidanceNotAppliedError: it did not reach its cross-attention.
        InputError: `part` is neither of the two, or under ``torch.inference_mode()``.

    Cost: a forward pass of `copies` rows of each sample, and backward passes of ``C * h * w / every**2`` rows.

    References:
        arXiv:2408.16232, which names them Abs-Grad-SAM and Grad-SAM.
    """
    if part not in PARTS:
        raise InputError(f"part is 'abs' or 'relu'; got {shown(part)}")
    check_recording()
    check_backward(denoiser)
    found = architecture(denoiser)
    with torch.enable_grad(), _leaves(found, tokens, copies) as leaves:
        z = call(copies)
    if not leaves:
        raise GuidanceNotAppliedError(
            f"a pass of {type(found.denoiser).__name__} did not reach its cross-attention; was its forward compiled "
            "or replaced?"
        )
    batch, (channels, height, width) = len(tokens), z.shape[1:]
    rows, columns = (torch.arange(every // 2, size, every) for size in (height, width))
    elements = torch.cartesian_prod(torch.arange(channels), rows, columns)
    sums = {name: z.new_zeros(batch, len(elements), dtype=torch.float32) for name in leaves}
    for start in range(0, len(elements), copies):
        some = elements[start : start + copies]
        wanted = z.new_zeros(batch, copies, *z.shape[1:])
        wanted[:, torch.arange(len(some)), *some.T] = 1
        last = start + copies >= len(elements)
        slopes = torch.autograd.grad(
            z, [leaf for leaf, _ in leaves.values()], wanted.flatten(0, 1), retain_graph=not last
        )
        for (name, (_, weights)), slope in zip(leaves.items(), slopes, strict=True):
            each = (weights * PARTS[part](slope)).float().sum((1, 2, 3)).reshape(batch, copies)
            sums[name][:, start : start + len(some)] = each[:, : len(some)]
    shape = (batch, channels, len(rows), len(columns))
    return {
        name: functional.interpolate(one.reshape(shape), (height, width)) if every > 1 else one.reshape(shape)
        for name, one in sums.items()
    }


@contextmanager
def _leaves(
    found: Architecture, tokens: Sequence[Sequence[int]], copies: int
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While the context lasts, weights of attention to the tokens have a leaf of 0 added, ``(rows, heads, N, K)``.

    Yields:
        By the name of the block, once it ran, the leaf, and the weights there.
    """
    blocks = [block for block in found.blocks if block.cross is not None]
    if not blocks:
        raise UnsupportedPipelineError(
            f"{type(found.denoiser).__name__} has no cross-attention, whose gradients could be taken"
        )
    most = max(map(len, tokens))
    index = torch.tensor([[*one, *[one[0]] * (most - len(one))] for one in tokens]).repeat_interleave(copies, 0)
    wanted = torch.tensor([[1.0] * len(one) + [0.0] * (most - len(one)) for one in tokens])
    wanted = wanted.repeat_interleave(copies, 0)
    leaves: dict[str, tuple[Tensor, Tensor]] = {}

    def answered(name: str, product: Product) -> Tensor:
        if name in leaves:  # products behind the first are those of adapters with pictures
            return product()
        if len(product.query) != len(index):
            raise GuidanceNotAppliedError(
                f"the attention of block {name!r} is made for {len(product.query)} of {len(index)} rows at a time; "
                "switch attention slicing off, and give the network its default processors"
            )
        weights = scores(product).softmax(-1)
        place = index.to(weights.device)[:, None, None].expand(*weights.shape[:3], -1)
        ours = weights.detach().gather(3, place) * wanted.to(weights.device)[:, None, None]
        leaf = torch.zeros_like(ours, requires_grad=True)
        leaves[name] = leaf, ours
        weights = weights.scatter_add(3, place, leaf)
        return weights.to(product.value.dtype) @ product.value

    with ExitStack() as stack:
        stack.enter_context(eager(found.compiled))
        for block in blocks:
            hook = multiplying(block.cross, functools.partial(answered, block.name))  # type: ignore[arg-type]
            stack.enter_context(calling(block.cross, hook, in_this_thread(), inside=True))
        yield leaves


def latent_mask(subjects: Sequence[Mapping[str, Tensor]], deviations: float = 0.5, grown: int = 3) -> Tensor:
    """Return the mask of the latents that belong to the subjects: those important for one of them, in every block.

    An importance is grown over 3 x 3 neighbours, `grown` times. Of each sample and channel what is above its mean by
    more than `deviations` standard deviations is the subject's. Subjects are united, and blocks intersected.

    Args:
        subjects: of each what `importance` returns.
        deviations: standard deviations above the mean.
        grown: how often an importance is grown.

    Returns:
        Booleans of shape ``(B, C, h, w)``.
    """
    found: list[Tensor] = []
    for name in subjects[0]:
        each = []
        for subject in subjects:
            one = subject[name]
            for _ in range(grown):
                one = functional.max_pool2d(one, 3, 1, 1)
            mean, deviation = one.mean((2, 3), keepdim=True), one.std((2, 3), keepdim=True, correction=0)
            each.append(one > mean + deviations * deviation)
        found.append(torch.stack(each).any(0))
    return torch.stack(found).all(0)


class KeepOutside:
    """A callback that keeps a reference picture's latents outside of the prompt's subjects.

    At the end of each of the chosen steps, the latents outside of the subjects' mask become those of the reference,
    noised to the level that is reached: ``mask * x + (1 - mask) * (alpha * reference + sigma * noise)``. The noise is a
    sample's own, the same at all steps.

    Args:
        reference: the picture, a PIL image, or as in `invert`; one for each sample, or one for all.
        prompt: the prompt of the call, or one for each sample.
        subjects: words of the prompt, as they stand in it: ``["cat face"]``.
        at: the numbers of the steps at whose end the latents are replaced.
        part: as in `importance`.
        every: likewise.
        copies: likewise.
        deviations: as in `latent_mask`.
        grown: likewise.
        seeds: of the noise, one for each sample; their places by default.

    Attributes:
        masks: of each step that was reached the mask, shape ``(B, C, h, w)``.

    Raises:
        InputError: no subjects, or numbers out of range.

    Cost: at each of the steps, for each subject, that of `importance`. It is no network evaluation of the call, and its
    report does not count it.

    References:
        arXiv:2408.16232: at the steps 5, 18 and 28 of 50 of DDPM.

    >>> keep = KeepOutside(None, "cat face, noto style", ["cat face"], at=(3, 8))
    >>> keep.at
    (3, 8)
    """

    def __init__(
        self,
        reference: Any,
        prompt: str | Sequence[str],
        subjects: Sequence[str],
        at: Sequence[int] = (5, 18, 28),
        *,
        part: str = "abs",
        every: int = 1,
        copies: int = 16,
        deviations: float = 0.5,
        grown: int = 3,
        seeds: Sequence[int] | None = None,
    ) -> None:
        if isinstance(subjects, str) or not subjects:
            raise InputError(f"subjects are words of the prompt, such as ['cat face']; got {shown(subjects)}")
        self.reference, self.prompt, self.subjects, self.part = reference, prompt, tuple(subjects), part
        self.at = tuple(count("at", step, 0) for step in at)
        self.every, self.copies = count("every", every), count("copies", copies)
        self.deviations, self.grown, self.seeds = float(deviations), count("grown", grown, 0), seeds
        self.masks: dict[int, Tensor] = {}

    def on(self, pipe: Pipeline) -> dict[str, Any]:
        """Return the arguments that pass this callback to a call: ``guided(prompt, ..., **keep.on(pipe))``.

        Raises:
            UnsupportedPipelineError: the pipeline has no UNet with cross-attention, or shows callbacks no embeddings.
        """
        shows = getattr(pipe, "_callback_tensor_inputs", ())
        if not hasattr(pipe, "unet") or not {"latents", "prompt_embeds"} <= set(shows):
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no UNet, or does not show its callbacks what the prompt became; masks of "
                "attention are for Stable Diffusion and XL, and pipelines like them"
            )
        inputs = [name for name in ("latents", "prompt_embeds", *ADDED) if name in shows]
        return {"callback_on_step_end": self, "callback_on_step_end_tensor_inputs": inputs}

    def __call__(self, pipe: Any, index: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        """What the pipeline calls at the end of a step."""
        if index not in self.at:
            return {}
        points = grid(pipe.scheduler).points
        if index + 1 >= len(points):
            raise InputError(f"at={self.at}: step {index} is the last one, after which the network is not evaluated")
        x = given["latents"]
        prompts = [self.prompt] * len(x) if isinstance(self.prompt, str) else list(self.prompt)
        if len(prompts) != len(x):
            raise InputError(f"prompt= has {len(prompts)} prompts, and the call makes {len(x)} samples")
        told = pipe.scheduler.timesteps[index + 1]
        inside = pipe.scheduler.scale_model_input(x, told)

        def call(copies: int) -> Tensor:
            def row(name: str) -> Tensor:  # the prompt's rows are the last ones
                tensor: Tensor = given[name][-len(x) :]
                return tensor.repeat_interleave(copies, 0)

            added = {theirs: row(name) for name, theirs in ADDED.items() if given.get(name) is not None}
            answer: Tensor = pipe.unet(
                inside.repeat_interleave(copies, 0),
                told,
                encoder_hidden_states=row("prompt_embeds"),
                **({"added_cond_kwargs": added} if added else {}),
                return_dict=False,
            )[0]
            return answer

        found = []
        for subject in self.subjects:
            tokens = [places(pipe.tokenizer, prompt, subject) for prompt in prompts]
            found.append(importance(pipe.unet, call, tokens, self.part, self.every, self.copies))
        mask = self.masks[index] = latent_mask(found, self.deviations, self.grown)
        return {"latents": torch.where(mask, x, self._noised(pipe, x, points[index + 1].level))}

    def _noised(self, pipe: Any, x: Tensor, level: Any) -> Tensor:
        """The reference's latents at a level."""
        clean = latents_of(pipe, self.reference, x.dtype).to(x)
        if clean.shape[1:] != x.shape[1:] or len(clean) not in (1, len(x)):
            raise InputError(
                f"the reference has latents of shape {tuple(clean.shape)}, and the call makes {tuple(x.shape)}; give a "
                "picture of the size of the call"
            )
        seeds = range(len(x)) if self.seeds is None else self.seeds
        noise = normal([keyed(seed, "reference") for seed in seeds], x.shape[1:], x.device).to(x.dtype)
        noised: Tensor = level.alpha * clean + level.sigma * noise
        return noised
