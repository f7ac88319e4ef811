"""register_family(): the example of docs/families.md on a pipeline made up here, and records that are refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.pipelines import families
from guidestack.pipelines.families.record import FAMILIES, Family

RECORDS = Path(families.__file__).parent
PAGE = Path(gs.__file__).parent / "docs" / "families.md"
PROMPTS, NEGATIVES = ["cat", "a red sea"], ["dog", "land"]


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(9, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor]:
        time = (t / 1000).expand(len(x), 1)
        return (self.second(torch.tanh(self.first(torch.cat([x, time, 3 * text], 1)))),)


class TinyTextPipeline:
    """A pipeline as others write theirs; its text encoder takes the first four letters."""

    def __init__(self) -> None:
        from diffusers import DDIMScheduler

        self.network, self.scheduler = Network(), DDIMScheduler(clip_sample=False)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[letter / 128 for letter in (text.encode() + bytes(4))[:4]] for text in texts])

    @torch.no_grad()
    def __call__(self, prompt: list[str], negative_prompt: list[str] | None = None, weight: float = 4.0) -> Any:
        self.guiding = weight > 1
        self.scheduler.set_timesteps(3)
        text = self.embed(prompt)
        if self.guiding:
            text = torch.cat([self.embed(negative_prompt or [""] * len(prompt)), text])
        x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(len(prompt))])
        for t in self.scheduler.timesteps:
            (out,) = self.network(torch.cat([x, x]) if self.guiding else x, t, text=text)
            if self.guiding:
                u, c = out.chunk(2)
                out = u + weight * (c - u)
            x = self.scheduler.step(out, t, x).prev_sample
        return x


def of_records() -> str:
    """The part of the page that says how to write a record."""
    return PAGE.read_text().partition("## Writing a record")[2]


@pytest.fixture
def record() -> Iterator[Family]:
    """The record of the documentation, entered for the length of a test."""
    before = dict(FAMILIES)
    example, _ = re.findall(r"```python\n(.*?)```", of_records(), re.DOTALL)
    exec(compile(example, "docs/families.md", "exec"), {})
    yield FAMILIES["TinyTextPipeline"]
    FAMILIES.clear()
    FAMILIES.update(before)


def test_the_example_of_the_documentation(record: Family) -> None:
    pipe = TinyTextPipeline()
    guided = gs.guide(pipe, gs.CFG(4))
    assert torch.equal(guided(PROMPTS, NEGATIVES), pipe(PROMPTS, NEGATIVES, weight=4.0))
    assert torch.equal(guided(PROMPTS), pipe(PROMPTS, weight=4.0))
    assert torch.equal(gs.guide(pipe, gs.Stack())(PROMPTS), pipe(PROMPTS, weight=1.0))
    with pytest.warns(gs.GuidestackWarning, match=r"weight=9 .* counts is cfg\(4\); .*put cfg\(scale\)"):
        assert torch.equal(guided(PROMPTS, weight=9), pipe(PROMPTS, weight=4.0))
    # Another contrast, at first alone and then with a negative prompt beside it.
    null = gs.guide(pipe, gs.CFG(4, against="null"))
    both = gs.guide(pipe, gs.CFG(4, against="null") | gs.CFG(1.5) | gs.CFG(0.5))
    assert (null(PROMPTS) - both(PROMPTS, NEGATIVES)).abs().max() < 1e-5
    assert both.report is not None
    assert both.report.evaluations == [9, 9]
    assert not pipe.network._forward_hooks
    assert type(pipe.network) is Network


def test_the_self_test_of_the_documentation(record: Family, capsys: pytest.CaptureFixture[str]) -> None:
    _, example = re.findall(r"```python\n(.*?)```", of_records(), re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", of_records(), re.DOTALL)
    exec(compile(example, "docs/families.md", "exec"), {"gs": gs, "TinyTextPipeline": TinyTextPipeline})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"halves": ("positive", "negative")}, "halves"),
        ({"branches": lambda pipe, call: False}, "gate"),
        ({"encode": lambda pipe, call, texts, as_prompt: {"text": pipe.embed(["no"] * len(texts))}}, "prompts"),
        ({"clock": lambda pipe, told: 1000 * told}, "time"),
        ({"rows": ()}, "rows"),
    ],
)
def test_the_self_test_names_what_is_wrong(
    record: Family, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], failed: str
) -> None:
    monkeypatch.setitem(FAMILIES, "TinyTextPipeline", replace(record, **change))
    assert failed in gs.doctor(TinyTextPipeline(), rules=False).failed


def test_a_record_of_ones_own_is_corrected_by_entering_it_again(record: Family) -> None:
    names = {"guided": {"wieght": 2.0}, "unguided": {"wieght": 1.0}, "owned": {"wieght": "cfg(scale)"}}
    gs.register_family(replace(record, **names))  # type: ignore[arg-type]
    diagnosis = gs.doctor(TinyTextPipeline(), rules=False)
    assert diagnosis.failed == ("record",)
    assert diagnosis["record"].reason == (
        "`guided` and `owned` of the record of TinyTextPipeline name 'wieght', which its __call__ does not take; did "
        "you mean 'weight'?"
    )
    assert gs.register_family(corrected := replace(record)) is corrected
    assert gs.doctor(TinyTextPipeline(), rules=False).ok
    assert pickle.loads(pickle.dumps(corrected)) is corrected


def test_a_class_of_others_with_the_name_of_one_of_diffusers_is_not_that_one(new_pipe: Callable[..., Any]) -> None:
    other = type("StableDiffusionPipeline", (TinyTextPipeline,), {})
    with pytest.raises(UnsupportedPipelineError, match="is not diffusers' StableDiffusionPipeline, whose"):
        gs.guide(other(), gs.CFG(4))
    pipe = new_pipe()
    pipe.__class__ = type("StableDiffusionPipeline", (type(pipe),), {})  # which inherits the loop
    assert gs.guide(pipe, gs.CFG(4))


def test_without_a_record_it_is_refused() -> None:
    with pytest.raises(UnsupportedPipelineError, match="no family record for TinyTextPipeline"):
        gs.guide(TinyTextPipeline(), gs.CFG(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline": "FluxPipeline"}, "there is a family record for 'FluxPipeline' already"),
        ({"denoiser": ""}, "Another: denoiser must be a name, got ''"),
        ({"sample": ""}, "sample must be a name"),
        ({"halves": ("negative",)}, "halves must be different conditions with 'positive' among them"),
        ({"halves": ("positive", "positive")}, "halves must be different"),
        ({"halves": ("positive",), "sequential": True}, "sequential=True needs two halves"),
        ({"embeds": {"prompt_embeds": "txet"}}, "embeds has 'txet', which is none of rows: text"),
        ({"axes": {"txet": 1}}, "axes has 'txet', which is none of rows: text"),
        ({"listed": ("ids",)}, "listed has 'ids'"),
        ({"rows": ("x", "text")}, "rows has 'x', which is the sample"),
        ({"guided": {"wieght": 2.0}}, "guided sets 'wieght'; name the rule that replaces it in owned"),
    ],
)
def test_a_wrong_record_is_refused(record: Family, change: dict[str, Any], message: str) -> None:
    known = dict(FAMILIES)
    with pytest.raises(InputError, match=message):
        gs.register_family(replace(record, **{"pipeline": "Another", **change}))
    assert known == FAMILIES


def test_a_record_states_only_what_is_special() -> None:
    record = gs.Family(pipeline="Another", rows=("encoder_hidden_states",))
    assert (record.denoiser, record.sample, record.scale) == ("transformer", "hidden_states", "guidance_scale")
    assert not record.cannot(None)
    known = dict(FAMILIES)
    assert gs.register_family(record) is pickle.loads(pickle.dumps(record))
    FAMILIES.clear()
    FAMILIES.update(known)


def test_the_built_in_records_come_through_the_same_door() -> None:
    for name, record in FAMILIES.items():
        assert gs.register_family(record) is record
        with pytest.raises(InputError, match=f"there is a family record for '{name}' already"):
            gs.register_family(replace(record))
    for file in sorted(RECORDS.glob("*.py")):
        text = file.read_text()
        if file.name != "record.py":
            assert not re.search(r"FAMILIES\[[^]]+\] =", text), f"{file.name} enters a record past register_family"
        if re.search(r"^ *register_family\(|= register_family\(", text, re.MULTILINE):
            assert file.stem in vars(families), f"{file.name} is not in families/__init__.py"


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(InputError, match="register_family takes a Family, got 3"):
        gs.register_family(3)
