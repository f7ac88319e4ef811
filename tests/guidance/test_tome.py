"""Token merging: the groups against a computation by hand, their limits, and importance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError, RuleError
from guidestack.guidance.prediction import Level
from guidestack.guidance.rules.tome import Groups, grouped
from guidestack.guidance.testing.checks import LEVELS, check_rule

from .. import token_merging as by_hand


def numbers(rows: int, grid: tuple[int, int], important: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1 + important, *grid, generator=generator)


def hidden(rows: int, count: int, size: int = 5) -> Tensor:
    return torch.randn(rows, count, size, generator=torch.Generator().manual_seed(3))


def sets(found: Groups, row: int) -> set[frozenset[int]]:
    return {frozenset((found.group[row] == group).nonzero().flatten().tolist()) for group in range(found.kept.shape[1])}


def made(tokens: Tensor, maps: Tensor, ratio: float) -> Groups:
    found = grouped(tokens, maps, ratio)
    assert found is not None
    return found


@pytest.mark.parametrize("important", [False, True])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_the_groups_by_hand(grid: tuple[int, int], ratio: float, important: bool) -> None:
    count = grid[0] * grid[1]
    tokens, maps = hidden(2, count), numbers(2, grid, important)
    found = made(tokens, maps, ratio)
    assert found.kept.shape[1] == count - int(count * ratio)
    for row in range(2):
        wanted = by_hand.groups(tokens[row], maps[row, 0], maps[row, 1] if important else None, ratio)
        assert sets(found, row) == set(map(frozenset, wanted))
        assert {int(token) for token in found.kept[row]} == {group[0] for group in wanted}
        for average in (True, False):
            seen = found.unmerged(found.merged(tokens, average))[row]
            assert torch.allclose(seen, by_hand.back(by_hand.apart(tokens[row], wanted, average), wanted, count))


def test_destinations_and_single_tokens_come_back_to_the_bit() -> None:
    tokens, maps = hidden(2, 24), numbers(2, (4, 6), True)
    found = made(tokens, maps, 0.5)
    back = found.unmerged(found.merged(tokens, average=False))
    alone = torch.stack([torch.bincount(row, minlength=12)[row] == 1 for row in found.group])
    kept = torch.zeros_like(alone).scatter_(1, found.kept, True)
    assert torch.equal(back[kept], tokens[kept])
    assert torch.equal(found.unmerged(found.merged(tokens))[alone], tokens[alone])
    assert grouped(tokens, maps, 0.04) is None  # less than one token
    for dtype in (torch.bfloat16, torch.float16):
        half = tokens.to(dtype)
        assert made(half, maps, 0.5).merged(half).dtype == dtype
    same = torch.full((1, 24, 3), 0.75)
    found = made(same, maps[:1], 0.75)
    assert torch.equal(found.unmerged(found.merged(same)), same)  # what is the same everywhere stays


def test_what_is_important_stays() -> None:
    """With too little to merge among the others, no token of the pool is merged if none is alike."""
    grid, ratio = (4, 6), 0.3
    maps = numbers(1, grid, True)
    tokens = torch.eye(24)[None]  # all cosines are 0
    found = made(tokens, maps, ratio)
    pool = set(maps[0, 1].flatten().topk(int(1.4 * (24 - 7))).indices.tolist())
    into = {int(token) for token in found.kept[0]}
    gone = set(range(24)) - into
    assert len(gone) == 7
    assert len(gone - pool) == 1 == 24 - len(pool)  # those outside of the pool went first
    # Equal importance is none: chance decides.
    flat = torch.cat([maps[:, :1], torch.zeros(1, 1, *grid)], 1)
    other = torch.cat([numbers(1, grid, False, seed=1), torch.zeros(1, 1, *grid)], 1)
    assert not torch.equal(made(tokens, flat, ratio).group, made(tokens, other, ratio).group)


def test_a_permutation_of_the_tokens_is_one_of_the_groups() -> None:
    tokens, maps = hidden(1, 24), numbers(1, (1, 24), True)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    before, after = made(tokens, maps, 0.5), made(tokens[:, order], maps[..., order], 0.5)
    assert {frozenset(int(order[one]) for one in group) for group in sets(after, 0)} == sets(before, 0)
    one = made(tokens, maps, 0.5)
    both = made(torch.cat([tokens, -tokens]), torch.cat([maps, maps]), 0.5)  # two conditions of one sample
    assert torch.equal(one.group, both.group[:1])
    assert {int(i) for i in both.kept[0]} & {int(i) for i in both.kept[1]}


def reference(
    ratio: float, scale: float = 3, prune: int = 2, seeds: tuple[int, ...] = (7, 8, 9)
) -> Callable[..., Tensor]:
    """CFG on the mixture's answers, of which both are merged by the difference of the step before."""
    important: list[Tensor] = []

    def answer(D: Callable[[str], Tensor], x: Tensor, level: Level) -> Tensor:
        index = len(important)
        out = {"positive": [], "negative": []}  # type: dict[str, list[Tensor]]
        for condition, rows in out.items():
            whole = D(condition)
            for row, seed in enumerate(seeds):
                tokens = x[row].flatten(1).T
                by = important[-1][row] if index >= max(prune, 1) else None
                found = by_hand.groups(tokens, by_hand.drawn(seed, index - 1, (3, 3)), by, ratio)
                merged = by_hand.apart(whole[row].flatten(1).T, found, index >= prune)
                rows.append(by_hand.back(merged, found, 9).T.reshape(2, 3, 3))
        c, u = torch.stack(out["positive"]), torch.stack(out["negative"])
        important.append((c - u).abs().mean(1).float())
        return u + scale * (c - u)

    return answer


@pytest.mark.parametrize(("ratio", "prune"), [(0.5, 2), (0.7, 0)])
def test_the_rule_is_merged_answers_by_the_difference_before(ratio: float, prune: int) -> None:
    checked = check_rule(gs.TokenMerge(gs.CFG(3), ratio, prune), reference(ratio, prune=prune))
    assert checked["12. golden values on the Gaussian mixture"] == "passed"
    assert len(LEVELS) > 3


@pytest.mark.parametrize(
    "text",
    [
        "tome(stack(), 0.4)",
        "tome(nag(3) | cfg(2), 0.5)",
        "tome(adaptive(cfg(3), threshold=0.95, space='denoised'), 0.5)",
        "adaptive(tome(cfg(3), 0.6), threshold=0.95, space='denoised')",
        "tome(pag(3) | perpneg(2), 0.75)",
    ],
)
def test_around_and_inside_other_rules(text: str) -> None:
    check_rule(gs.parse(text))


def test_what_cannot_be() -> None:
    for ratio in (0.8, -0.1, True):
        with pytest.raises(RuleError, match="TokenMerge: ratio must be"):
            gs.TokenMerge(gs.CFG(3), ratio)
    with pytest.raises(CompositionError, match="both edit self-attention in every pass"):
        gs.parse("tome(cfg(3), 0.5) | tome(pag(2), 0.3)")
    with pytest.raises(CompositionError, match="edits self-attention in every pass twice"):
        gs.parse("tome(tome(cfg(3), 0.5), 0.5)")
    assert gs.parse("tome(cfg(3) | nag(2), 0.5)").own_pass


@pytest.mark.parametrize("important", [False, True])
def test_nothing_waits_for_a_device(important: bool) -> None:
    """On the meta device, which has no numbers, whatever asked for one would fail."""
    tokens, maps = hidden(2, 24).to("meta"), numbers(2, (4, 6), important).to("meta")
    found = made(tokens, maps, 0.5)
    for average in (True, False):
        assert found.unmerged(found.merged(tokens, average)).shape == tokens.shape
