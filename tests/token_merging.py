"""Token merging by hand: one row, one token after the other, in lists."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidestack.guidance.keyed import keyed


def drawn(seed: int, before: int, places: tuple[int, ...]) -> Tensor:
    """The numbers that the evaluation behind step `before` goes by."""
    return torch.rand(places, generator=keyed(seed, before, 0, "tome"))


def groups(tokens: Tensor, numbers: Tensor, important: Tensor | None, ratio: float) -> list[list[int]]:
    """Tokens that are made one, the destination first; `tokens` of shape (N, C), the others of (h, w)."""
    count, width = len(tokens), numbers.shape[1]
    removed = math.floor(count * ratio)
    by_chance = sorted(range(count), key=lambda token: -float(numbers.flatten()[token]))
    if important is None:
        cells: dict[tuple[int, int], int] = {}
        for token in by_chance:  # the first that comes
            row, column = divmod(token, width)
            if row < numbers.shape[0] // 2 * 2 and column < width // 2 * 2:
                cells.setdefault((row // 2, column // 2), token)
        into, pool = list(cells.values()), list(range(count))
    else:
        by_importance = sorted(by_chance, key=lambda token: -float(important.flatten()[token]))  # keeps the order
        pool = by_importance[: min(count, int(1.4 * (count - removed)))]
        into = [token for token in by_chance if token in pool][: count // 4]
    least = -math.inf if important is None else float(important.flatten()[pool[-1]])
    links = []
    for token in range(count):
        if token in into:
            continue
        cosines = {to: float(torch.cosine_similarity(tokens[token], tokens[to], dim=0)) for to in into}
        nearest = max(cosines, key=lambda to: cosines[to])
        outside = important is not None and float(important.flatten()[token]) < least
        links.append((not outside, -cosines[nearest], token, nearest))
    merged: dict[int, list[int]] = {token: [token] for token in range(count)}
    for _, _, token, nearest in sorted(links)[:removed]:
        merged[nearest].append(token)
        del merged[token]
    return list(merged.values())


def apart(tokens: Tensor, found: list[list[int]], average: bool) -> Tensor:
    """One token for each group, shape (groups, C)."""
    return torch.stack([tokens[group].mean(0) if average else tokens[group[0]] for group in found])


def back(merged: Tensor, found: list[list[int]], count: int) -> Tensor:
    """Each token with what its group has, shape (N, C)."""
    out = merged.new_empty(count, merged.shape[-1])
    for value, group in zip(merged, found, strict=True):
        out[group] = value
    return out
