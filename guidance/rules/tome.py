"""Token merging by the size of the guidance difference (Wu et al. 2025; Bolya & Hoffman 2023)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from ..fields import block_names, number, whole
from ..keyed import Keys
from ..notation.registry import register
from ..per_sample import own_axes
from ..prediction import wide
from ..query import POSITIVE, Edits, Predictions, PromptEdit
from ..rule import Wrapper
from ..step import Estimate, Run, State, Step

WU_2025 = """@inproceedings{wu2025importance,
  title     = {Importance-Based Token Merging for Efficient Image and Video Generation},
  author    = {Wu, Haoyu and Xu, Jingyi and Le, Hieu and Samaras, Dimitris},
  booktitle = {International Conference on Computer Vision},
  year      = {2025},
  note      = {arXiv:2411.16720}
}"""
BOLYA_2023 = """@inproceedings{bolya2023token,
  title     = {Token Merging for Fast Stable Diffusion},
  author    = {Bolya, Daniel and Hoffman, Judy},
  booktitle = {CVPR Workshop on Efficient Deep Learning for Computer Vision},
  year      = {2023},
  note      = {arXiv:2303.17604}
}"""
KIND = "tome"
SHARE = 0.25
"""The share of the tokens that others are merged into."""
POOL = 1.4
"""Important tokens, over those that are left."""
AT_ONCE = 4096
"""Tokens whose similarities to the destinations are in memory at a time."""


class Groups(NamedTuple):
    """The groups of a picture's tokens, each of which is merged into one token.

    Attributes:
        group: the group of each token, shape ``(R, N)``.
        kept: the token that a group is named after, shape ``(R, groups)``: its destination, or its only token.
    """

    group: Tensor
    kept: Tensor

    def merged(self, tokens: Tensor, average: bool = True) -> Tensor:
        """Tokens of shape ``(R, N, C)`` as one for each group: its mean, or with ``average=False`` its `kept` one."""
        count, size = self.kept.shape[1], tokens.shape[-1]
        if not average:
            return tokens.gather(1, self.kept[:, :, None].expand(-1, -1, size))
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        place = (self.group + rows * count).flatten()
        kind = wide(tokens.dtype)
        # `index_add_`, which has a form without atomics for whoever asks torch for deterministic algorithms.
        total = tokens.new_zeros(len(tokens) * count, size, dtype=kind).index_add_(
            0, place, tokens.flatten(0, 1).to(kind)
        )
        members = total.new_zeros(len(total)).index_add_(0, place, total.new_ones(len(place)))
        return (total / members[:, None]).reshape(len(tokens), count, size).to(tokens.dtype)

    def unmerged(self, merged: Tensor) -> Tensor:
        """Each token with what its group has, shape ``(R, N, C)``, from shape ``(R, groups, C)``."""
        return merged.gather(1, self.group[:, :, None].expand(-1, -1, merged.shape[-1]))


@torch.no_grad()
def grouped(tokens: Tensor, maps: Tensor, ratio: float) -> Groups | None:
    """The groups of tokens that are merged; None where there are too few tokens to merge any.

    Args:
        tokens: hidden states, shape ``(R, N, C)``, whose cosine says which tokens are alike.
        maps: at each token a number drawn at random, and behind it the importance where it is known; shape
            ``(R, 1 or 2, *grid)`` with N places in the grid, in the order of the tokens.
        ratio: the share of the tokens that is merged into others.
    """
    count = tokens.shape[1]
    removed = int(count * ratio)
    if removed == 0:
        return None
    drawn, important = maps[:, 0].flatten(1), maps[:, 1].flatten(1) if maps.shape[1] > 1 else None
    if important is None:
        into, low = _one_of_each_cell(maps[:, :1]), torch.full_like(drawn, False, dtype=torch.bool)
    else:
        size, many = min(count, max(1, int(POOL * (count - removed)))), max(1, int(SHARE * count))
        order = drawn.argsort(1, descending=True)  # among equally important tokens chance decides
        order = order.gather(1, important.gather(1, order).argsort(dim=1, descending=True, stable=True))
        pool = order[:, :size]
        into = pool.gather(1, drawn.gather(1, pool).topk(many, 1).indices)
        low = important < important.gather(1, pool[:, -1:])
    many = into.shape[1]
    others = torch.zeros_like(low).scatter_(1, into, True).byte().argsort(dim=1, stable=True)[:, : count - many]
    similarity, nearest = _nearest(tokens, others, into)
    similarity = similarity + 4 * low.gather(1, others)  # a cosine is in [-1, 1]: the unimportant ones come first
    order = similarity.argsort(dim=1, descending=True, stable=True)
    gone, left = order[:, :removed], order[:, removed:]
    first = left.shape[1]
    group = order.new_empty(len(tokens), count)
    places = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    group.scatter_(1, others.gather(1, left), places[:, :first])
    group.scatter_(1, into, places[:, first : first + many])
    group.scatter_(1, others.gather(1, gone), nearest.gather(1, gone) + first)
    return Groups(group, torch.cat([others.gather(1, left), into], 1))


def _one_of_each_cell(drawn: Tensor) -> Tensor:
    """The token of each cell of two by two that has the largest number, shape ``(R, cells)``."""
    *_, height, width = drawn.shape
    frames = drawn.reshape(len(drawn), -1, height, width)
    cell = (min(2, height), min(2, width))
    found = functional.max_pool2d(frames, cell, return_indices=True)[1].flatten(2)
    frame = torch.arange(frames.shape[1], device=drawn.device)[:, None] * (height * width)
    return (found + frame).flatten(1)


def _nearest(tokens: Tensor, others: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each of the `others` with one `into` which tokens merge, and which of these it is."""
    unit = functional.normalize(tokens.to(wide(tokens.dtype)), dim=-1).to(tokens.dtype)

    def taken(index: Tensor) -> Tensor:
        return unit.gather(1, index[:, :, None].expand(-1, -1, unit.shape[-1]))

    aims = taken(into).mT
    found = [(taken(some) @ aims).max(-1) for some in torch.split(others, AT_ONCE, 1)]
    values = torch.cat([one.values for one in found], 1).to(wide(tokens.dtype))
    return values, torch.cat([one.indices for one in found], 1)


class Merging(NamedTuple):
    """What `TokenMerge` remembers from one evaluation to the next.

    Attributes:
        maps: for each place of x a number drawn at random, and behind it the importance once there was one; shape
            ``(B, 1 or 2, *places)``, float32.
        first: index of the step at which the run began; None before the first step.
        inner: the state of the wrapped rule.
    """

    maps: Tensor
    first: int | None
    inner: State


@register(KIND, references=(WU_2025, BOLYA_2023), example="tome(cfg(3), 0.5)")
@dataclass(frozen=True)
class TokenMerge(Wrapper[Merging]):
    r"""Token merging by importance: fewer tokens in self-attention, and fewest where guidance changes little.

    The importance of a place is the size of the guidance difference of the evaluation before, for each sample

    .. math:: I = \operatorname{mean}_{\mathrm{channels}} \lvert\epsilon_c - \epsilon_u\rvert

    with what `rule` guides away from as :math:`\epsilon_u`; any form of the network's output orders the places alike.
    Of N tokens :math:`r = \lfloor\rho N\rfloor` are merged. The :math:`\min(N, 1.4\,(N - r))` most important ones are
    the pool. N/4 of the pool, drawn at random, are the destinations. Every other token has the destination to which it
    is most alike, by the cosine of the hidden states; the r that are merged are first those outside of the pool, then
    the most alike. A destination becomes the mean of what is merged into it, and after attention each token has what
    its destination has.

    The passes of all conditions are edited. They have the same pool and destinations; which tokens are alike, each
    pass says by itself.

    Args:
        rule: any rule, a stack included. Where it guides away from nothing, destinations are drawn as in the plain
            method: one of each two by two tokens.
        ratio: :math:`\rho` in [0, 0.75], the share of the tokens that is merged; 0 is off. The paper takes 0.7.
        prune: so many first steps of a run have no importance yet: there destinations are drawn as in the plain method,
            and stay as they are instead of becoming means. The authors' code takes 2.
        blocks: names of the blocks whose self-attention merges, as `guidestack doctor` prints them; None for those of
            the largest resolution, which of a transformer are all.

    Queries: those of `rule`. It saves time and no evaluations: from which ratio on, `docs/performance.md` says.

    State: two numbers for each place of x, float32, and the state of `rule`. What is drawn comes from generators keyed
    by (seed of the sample, step, evaluation), as `guidance.keyed` says. Space: that of `rule`.

    References:
        Wu, Xu, Le & Samaras, "Importance-Based Token Merging for Efficient Image and Video Generation",
        arXiv:2411.16720; the plain method: Bolya & Hoffman, "Token Merging for Fast Stable Diffusion",
        arXiv:2303.17604. For PixArt the authors' code differs: there the distance of tokens in the picture says which
        are alike, attention to the text merges too, and blocks 7 to 20 alone.

    >>> from guidestack import CFG, TokenMerge
    >>> print(TokenMerge(CFG(7.5), 0.7)), TokenMerge(CFG(7.5), 0).own_pass
    tome(cfg(7.5), 0.7)
    (None, ())
    """

    ratio: float
    prune: int = 2
    blocks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "ratio", 0.0, 1 - SHARE)
        whole(self, "prune", 0)
        block_names(self, "blocks")

    def _edit(self, average: bool) -> PromptEdit:
        return PromptEdit(KIND, (self.ratio, float(average)), self.blocks or "", shared=True)

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """The edits of the prompt's own pass: those of the inner rule, and the merging unless the ratio is 0."""
        return (*self.rule.own_pass, self._edit(True)) if self.ratio else self.rule.own_pass

    def init(self, run: Run) -> Merging:
        """Return the state before the first step, in which no importance is known."""
        return Merging(_drawn(run, -1, 0), None, self.rule.init(run))

    def rule_state(self, state: Merging) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def edits(self, step: Step, state: Merging) -> Edits:
        """Return the inner rule's edits and the merging, with the random numbers and the importance of each place."""
        found = dict(self.rule.edits(step, state.inner))
        if self.ratio:
            early = step.index - (step.index if state.first is None else state.first) < self.prune
            found[self._edit(not early)] = state.maps[:, :1] if early else state.maps
        return found

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Merging
    ) -> tuple[Estimate, Merging]:
        """Apply the inner rule, and keep the importance that the next evaluation merges by."""
        asked = self.rule.queries(step, state.inner)
        led = self.rule.away(predictions, step, state.inner) if POSITIVE in asked else None
        maps = _drawn(step.run, step.index, step.evaluation)
        if led is not None:
            away, rows = led
            important = _importance(predictions[POSITIVE].native, away.native)
            if rows is not None and state.maps.shape[1] > 1:
                mine = rows.to(important.device, non_blocking=True).reshape(-1, *[1] * (important.ndim - 1))
                important = important.where(mine, state.maps[:, 1:])
            maps = torch.cat([maps, important], 1)
        elif state.maps.shape[1] > 1:
            maps = torch.cat([maps, state.maps[:, 1:]], 1)
        estimate, inner = self.rule.update(estimate, predictions, step, state.inner)
        return estimate, Merging(maps, step.index if state.first is None else state.first, inner)

    def neutral(self) -> Self:
        """Return a copy that merges nothing, around the inner rule's neutral form."""
        return dataclasses.replace(self, rule=self.rule.neutral(), ratio=0.0)


@torch.no_grad()
def _importance(c: Tensor, u: Tensor) -> Tensor:
    """The mean size of the difference at each place, shape ``(B, 1, *places)``, float32.

    Rounded, and 0 where the difference is of the size of rounding errors: what is equal is so in each form of the
    output and in each batch.
    """
    size = (c - u).abs().mean(1, keepdim=True, dtype=wide(c.dtype)).float()
    least = torch.finfo(torch.float32).eps * c.abs().amax(own_axes(c), keepdim=True).float()
    return size * (size > least)


def _drawn(run: Run, index: int, evaluation: int) -> Tensor:
    """A number for each place of each sample, shape ``(B, 1, *places)``, for the evaluation behind this one."""
    keys = Keys(run.seeds or tuple(range(run.batch)), index, evaluation)
    drawn = [torch.rand(run.shape[2:], generator=one) for one in keys.generators(range(run.batch), KIND)]
    return torch.stack(drawn)[:, None].to(run.device, non_blocking=True)
