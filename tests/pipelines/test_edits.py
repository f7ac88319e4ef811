"""Edits of the network: in which networks, which tokens and blocks, whose, and only for one pass."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance.errors import UnsupportedPipelineError
from guidestack.guidance.keyed import keyed
from guidestack.guidance.query import Perturbation
from guidestack.pipelines.edits import architecture, check, edited
from guidestack.pipelines.families.lookup import denoisers_of
from guidestack.pipelines.families.record import FAMILIES

from .left import state
from .test_families import BATCH, KNOWN, arguments, made

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule"),
]

BLOCKS = {
    "UNet2DConditionModel": "down.1, mid, up.0",
    "AudioLDM2UNet2DConditionModel": "down.1, mid, up.0",
    "Kandinsky3UNet": "",
    "SD3Transformer2DModel": "0 to 1",
    "MochiTransformer3DModel": "0 to 1",
    "HunyuanDiT2DModel": "0 to 1",
    "FluxTransformer2DModel": "0, single.0",
    "Flux2Transformer2DModel": "0, single.0",
    "ChromaTransformer2DModel": "0, single.0",
    "AuraFlowTransformer2DModel": "0, single.0",
    "HiDreamImageTransformer2DModel": "0, single.0",
    "HunyuanVideoTransformer3DModel": "0, single.0",
}
"""What the blocks of the tiny networks are called; those of the others "0"."""


def network(name: str) -> nn.Module:
    pipe = made(name)
    found: nn.Module = denoisers_of(pipe, FAMILIES[type(pipe).__name__])[0]
    return found


NETWORKS = list({type(network(name)).__name__: name for name in reversed(KNOWN)}.values())
"""A pipeline for each class of denoiser."""
BLOCKLESS = [name for name in NETWORKS if name.startswith("Kandinsky3")]
SMALL = Perturbation("identity"), Perturbation("blur", math.inf), Perturbation("blur", 0.7), Perturbation("skip")
EDITS = [*SMALL, Perturbation("drop", 0.5), Perturbation("shuffle"), Perturbation("identity", blocks="0")]


class Called:
    """A denoiser as its pipeline calls it, for a batch."""

    def __init__(self, name: str) -> None:
        self.module = network(name)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.args, self.kwargs = copy.deepcopy((args, kwargs))

        handle = self.module.register_forward_pre_hook(note, with_kwargs=True)
        gs.guide(made(name), "stack()")(**arguments(name, num_inference_steps=2))
        handle.remove()

    def __call__(self, only: int | None = None) -> Tensor:
        """What it answers; with other noise in every sample but `only`."""
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        if only is not None:
            sample = args[0] if args else next(iter(kwargs.values()))
            for row in set(range(BATCH)) - {only}:
                sample[row].copy_(sample[row].flip(-1) * 1.3)
        with torch.no_grad():
            output = self.module(*args, **kwargs)[0]
        return torch.stack(list(output)) if isinstance(output, list) else output


@cache
def called(name: str) -> Called:
    return Called(name)


def seeds(rows: int = BATCH) -> list[torch.Generator]:
    return [keyed(row, 0, "an edit") for row in range(rows)]


def under(name: str, edit: Perturbation, only: int | None = None) -> Tensor:
    check(network(name), edit)
    with edited(network(name), edit, seeds()):
        return called(name)(only)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_have_names(name: str) -> None:
    found = architecture(network(name))
    assert (found.listed if found.blocks else "") == BLOCKS.get(type(network(name)).__name__, "0")
    assert len({block.name for block in found.blocks}) == len(found.blocks)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKLESS])
def test_every_edit_of_every_network(name: str) -> None:
    """It changes each row, whatever the others are, for one pass, in the same way again, and leaves nothing behind."""
    base, before = called(name)(), state(made(name))
    largest = base.abs().max()
    first = architecture(network(name)).blocks[0].name
    for edit in [Perturbation(one.kind, one.amount, first if one.blocks else 0) for one in EDITS]:
        if edit.kind == "blur" and name.startswith("Sana"):
            with pytest.raises(UnsupportedPipelineError, match="block '0' is linear: it has no queries to blur"):
                check(network(name), edit)
            continue
        seen = under(name, edit)
        assert (seen - base).flatten(1).abs().amax(1).min() > 1e-6 * largest, edit
        assert torch.equal(under(name, edit), seen), edit
        for row in (0, BATCH - 1):
            assert (under(name, edit, row)[row] - seen[row]).abs().max() < 1e-5 * largest, edit
    assert state(made(name)) == before
    assert torch.equal(called(name)(), base)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKLESS])
def test_an_edit_of_nothing_is_the_clean_pass(name: str) -> None:
    if not name.startswith("Sana"):
        assert torch.equal(under(name, Perturbation("blur", 0.0)), called(name)())
    assert torch.equal(under(name, Perturbation("shift", 0.0)), called(name)())
