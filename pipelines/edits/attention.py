"""Replacement of the product inside attention; what the module's processor does before and after it stays as it is.

A module's queries, keys and values are made by its own layers (with LoRA), normalized, rotated and joined with the
text's by its own processor (also the user's). Only the product itself is computed by an edit, in this thread's calls,
while a context lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...guidance.errors import GuidanceNotAppliedError
from ...guidance.prediction import wide
from ..hooks import Hook


@dataclass
class Product:
    """One product of attention: ``softmax(query key^T) value``.

    Args:
        query: shape ``(B, heads, N, D)``; from processors that slice, ``(rows of their slice, 1, N, D)``.
        key: shape ``(B, heads, M, D)``.
        value: shape ``(B, heads, M, D)``.
        mask: which keys may be looked at, or what is added to the scores, or None.
        options: what else `torch.nn.functional.scaled_dot_product_attention` was given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Tensor:
        """The product, shape ``(B, heads, N, D)``."""
        return functional.scaled_dot_product_attention(
            self.query, self.key, self.value, attn_mask=self.mask, **self.options
        )


Answer = Callable[[Product], Tensor]
"""What answers a product: its result, of the same shape."""
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class Multiplying(TorchFunctionMode):
    """A context in which the products of attention in this thread are computed by `answer`.

    Args:
        answer: see `Answer`; products that it makes itself are plain ones.

    Attributes:
        answered: how many were.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer, self.answered = answer, 0
        self._scores: Product | None = None

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept every function of torch in this thread, and replace the product of attention."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(_NAMES, args, strict=False)) | kwargs
            query, key, value, mask = (given.pop(name, None) for name in _NAMES[:4])
            self.answered += 1
            return self.answer(Product(query, key, value, mask, given))
        if func is torch.baddbmm:  # of processors that multiply by themselves: AttnProcessor, SlicedAttnProcessor
            mask, query, key = args
            mask = None if kwargs.get("beta") == 0 else mask[:, None]
            self._scores = Product(query[:, None], key.mT[:, None], key, mask, {"scale": kwargs.get("alpha", 1)})
        elif func is torch.bmm and self._scores is not None:
            product, self._scores = self._scores, None
            product.value = args[1][:, None]
            self.answered += 1
            return self.answer(product)[:, 0]
        return func(*args, **kwargs)


def multiplying(module: nn.Module, answer: Answer) -> Hook:
    """A hook on the calls of an attention module, whose products `answer` gives.

    Raises (the hook):
        GuidanceNotAppliedError: the module multiplied in another way, which is not seen.
    """

    def hook(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with Multiplying(answer) as seen:
            output = original(*args, **kwargs)
        if not seen.answered:
            processor = type(getattr(module, "processor", module)).__name__
            raise GuidanceNotAppliedError(
                f"{processor} does not multiply by PyTorch's scaled_dot_product_attention, where an edit of attention "
                "takes place; give the network its default processors and the attention backend 'native'"
            )
        return output

    return hook


def scores(product: Product) -> Tensor:
    """Return the scores of a product before the softmax, in float32 or better, ``(B, heads, N, M)``; -inf if masked."""
    scale = product.options.get("scale") or product.query.shape[-1] ** -0.5
    found: Tensor = (product.query @ product.key.mT).float() * scale
    mask = product.mask
    if mask is None:
        return found
    return found.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else found + mask


def alone(product: Product, picture: slice | Tensor) -> Tensor:
    """The product with the tokens of the picture each attending to itself, and to what is no picture."""
    length = product.query.shape[-2]
    value = product.value
    if product.options.get("enable_gqa"):
        value = value.repeat_interleave(product.query.shape[1] // value.shape[1], 1)
    if picture == slice(length):
        return value
    ours = torch.zeros(len(value) if isinstance(picture, Tensor) else 1, length, dtype=torch.bool, device=value.device)
    if isinstance(picture, Tensor):
        ours.scatter_(1, picture, True)
    else:
        ours[:, picture] = True
    seen = ~(ours[:, :, None] & ours[:, None, :]) | torch.eye(length, dtype=torch.bool, device=value.device)
    mask = product.mask
    if mask is None:
        mask = seen[:, None]
    elif mask.dtype == torch.bool:
        mask = mask & seen[:, None]
    else:
        mask = mask.masked_fill(~seen[:, None], -math.inf)
    return Product(product.query, product.key, product.value, mask, product.options)()


def blurred(product: Product, picture: slice | Tensor, grid: tuple[int, int, int], sigma: float) -> Tensor:
    """The product with the queries of the picture's tokens blurred over height and width."""
    if sigma == 0:
        return product()
    query = product.query
    batch, heads, length, size = query.shape
    if math.isinf(sigma) and product.mask is None and not product.options.get("is_causal") and picture == slice(length):
        # All tokens of a frame have one query, and so one output.
        mean = query.to(wide(query.dtype)).reshape(batch, heads, grid[0], -1, size).mean(3).to(query.dtype)
        output = Product(mean, product.key, product.value, None, product.options)()
        return output.repeat_interleave(length // grid[0], 2)
    if isinstance(picture, Tensor):
        place = picture[:, None, :, None].expand(batch, heads, -1, size)
        ours = query.gather(2, place)
    else:
        ours = query[:, :, picture]
    height, width = (_blur(length, sigma, query.device) for length in grid[1:])
    here = ours.reshape(batch, heads, *grid, size).to(height.dtype)
    smooth = torch.einsum("yh,xw,bkfhwd->bkfyxd", height, width, here).reshape(ours.shape).to(query.dtype)
    if isinstance(picture, Tensor):
        query = query.scatter(2, place, smooth)
    else:
        query = query.clone()
        query[:, :, picture] = smooth
    return Product(query, product.key, product.value, product.mask, product.options)()


def _blur(length: int, sigma: float, device: torch.device) -> Tensor:
    """The blur of one axis as a matrix: at most as wide as the axis, reflected at its ends."""
    if math.isinf(sigma):
        return torch.full((length, length), 1 / length, device=device)
    wide = math.ceil(6 * sigma)
    half = min(wide + 1 - wide % 2, length + 1 - length % 2) // 2
    away = torch.arange(-half, half + 1, device=device)
    kernel = torch.exp(-0.5 * (away / sigma) ** 2)
    unit = torch.eye(length, device=device)[:, None]  # a row for each token, blurred at once
    padded = functional.pad(unit, (half, half), mode="reflect")
    return functional.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T.contiguous()
