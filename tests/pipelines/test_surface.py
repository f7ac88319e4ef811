"""A guided pipeline as an object: what it has of its pipeline, what may be guided, and what is refused in words."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError, StackSyntaxError, UnsupportedPipelineError
from guidestack.guidance.report import Report
from guidestack.pipelines.families.record import FAMILIES

from .tiny import load

GIVEN: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
FORWARDED = ("StableDiffusionXLPipeline", "FluxPipeline", "SanaPipeline", "HunyuanDiTPipeline", "WanPipeline")


def seeded(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- the pipeline's own names ----------------------------------------------------------------------------------------


@pytest.fixture(params=["guide", "invert", "edit"])
def around(request: pytest.FixtureRequest, pipe: Any) -> Any:
    return getattr(gs, request.param)(pipe, "cfg(2)")


def test_what_the_pipeline_has_is_there(around: Any, pipe: Any) -> None:
    assert around.scheduler is pipe.scheduler
    assert around.unet is pipe.unet
    assert around.components == pipe.components
    assert (around.device, around.dtype) == (pipe.device, pipe.dtype)
    assert {"scheduler", "enable_model_cpu_offload", "components", "pipe"} <= set(dir(around))
    assert around.to(torch.float32) is around
    assert around.to("cpu").pipe is pipe
    with pytest.raises(AttributeError, match=r"no attribute 'shceduler', nor has its StableDiffusionPipeline"):
        _ = around.shceduler
    assert not hasattr(around, "__len__")
    assert copy.copy(around).pipe is pipe


def test_what_is_set_is_set_on_the_pipeline(around: Any, pipe: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    other = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    around.scheduler = other
    assert pipe.scheduler is other
    assert "scheduler" not in vars(around)
    around.set_progress_bar_config(disable=True, desc="x")
    assert pipe._progress_bar_config["desc"] == "x"
    pipe.set_progress_bar_config(disable=True)


def test_another_scheduler_makes_other_images(pipe: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    guided = gs.guide(pipe, "cfg(3)")
    before = guided("a", generator=seeded(), **GIVEN).images
    guided.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    after = guided("a", generator=seeded(), **GIVEN).images
    assert torch.equal(after, gs.guide(pipe, "cfg(3)")("a", generator=seeded(), **GIVEN).images)
    assert not torch.equal(after, before)


def test_another_stack_may_be_set_in_every_form(pipe: Any) -> None:
    guided = gs.guide(pipe, "cfg(3)")
    wanted = gs.guide(pipe, "cfg(5)")("a", generator=seeded(), **GIVEN).images
    for form in ("cfg(5)", gs.CFG(5), gs.Stack(gs.CFG(5)), gs.to_config(gs.CFG(5))):
        guided.stack = "cfg(3)"
        guided.stack = form
        assert str(guided) == "guide(StableDiffusionPipeline, 'cfg(5)')"
        assert torch.equal(guided("a", generator=seeded(), **GIVEN).images, wanted)
    with pytest.raises(UnsupportedPipelineError, match="no random condition from source='class'"):
        guided.stack = "icg(3, source='class')"
    with pytest.raises(StackSyntaxError, match=r"write 'cfg\(7\.5\)'"):
        guided.stack = 7.5
    assert str(guided.stack) == "cfg(5)"


def test_what_is_guided_already_is_guided_anew(pipe: Any) -> None:
    wanted = gs.guide(pipe, "cfg(5)")("a", generator=seeded(), **GIVEN).images
    for already in (gs.guide(pipe, "cfg(3)"), gs.invert(pipe, "cfg(2)"), gs.edit(pipe, "cfg(2)")):
        with silent():
            again = gs.guide(already, "cfg(5)")
        assert again.pipe is pipe
        assert torch.equal(again("a", generator=seeded(), **GIVEN).images, wanted)
    guided = gs.guide(pipe, "cfg(3)")
    assert gs.invert(guided, "cfg(2)").pipe is gs.edit(guided, "cfg(2)").pipe is pipe
    assert gs.doctor(guided, rules=False).ok


# --- classes that hand their calls on ---------------------------------------------------------------------------------


def changed(pipe: Any, cls: type) -> Any:
    """`pipe` as an object of a class that derives from its own."""
    mine = copy.copy(pipe)
    mine.__class__ = cls
    return mine


@pytest.mark.parametrize("name", FORWARDED)
def test_a_class_that_hands_its_calls_on_is_what_it_derives_from(name: str) -> None:
    builder = load(name)
    pipe = builder.make()

    class Mine(type(pipe)):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """It does what it does."""
            return super().__call__(*args, **kwargs)

    class Deeper(Mine):
        extra = 1

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super(Deeper, self).__call__(*args, **kwargs)  # noqa: UP008

    wanted = gs.guide(pipe, "cfg(3)")(**builder.arguments(2, True))[0]
    for cls in (Mine, Deeper):
        with pytest.warns(gs.GuidestackWarning, match=f"{cls.__name__} hands its calls on to {name}"):
            guided = gs.guide(changed(pipe, cls), "cfg(3)")
        assert torch.equal(guided(**builder.arguments(2, True))[0], wanted)
        with pytest.raises(InputError, match="'promt'"):
            guided(promt="a")
    with pytest.warns(gs.GuidestackWarning):
        assert gs.doctor(changed(pipe, Mine), rules=False).ok


def test_with_named_parameters_too(pipe: Any) -> None:
    class Named(type(pipe)):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, *args: Any, num_inference_steps: int = 50, **kwargs: Any) -> Any:
            return super().__call__(prompt, *args, num_inference_steps=num_inference_steps, **kwargs)

    wanted = gs.guide(pipe, "cfg(3)")("a", generator=seeded(), **GIVEN).images
    with pytest.warns(gs.GuidestackWarning, match="hands its calls on"):
        guided = gs.guide(changed(pipe, Named), "cfg(3)")
    assert torch.equal(guided("a", generator=seeded(), **GIVEN).images, wanted)


def test_a_class_that_overrides_nothing_is_silent(pipe: Any) -> None:
    class Plain(type(pipe)):  # type: ignore[misc]
        pass

    with silent():
        gs.guide(changed(pipe, Plain), "cfg(3)")("a", generator=seeded(), **GIVEN)


def overriding(cls: Any) -> list[type]:
    """Classes whose calls may be others than those of `cls`."""

    class Prompted(cls):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
            return super().__call__(prompt + ", best quality", **kwargs)

    class Counting(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = 1
            return super().__call__(*args, **kwargs)

    class Dropping(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args)

    class Mistaken(cls):  # type: ignore[misc]
        def __call__(self, height: Any = None, prompt: Any = None, **kwargs: Any) -> Any:
            return super().__call__(height, prompt, **kwargs)

    class Swapped(cls):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, negative_prompt: Any = None, **kwargs: Any) -> Any:
            return super().__call__(prompt=negative_prompt, negative_prompt=prompt, **kwargs)

    class Faster(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, num_inference_steps: int = 4, **kwargs: Any) -> Any:
            return super().__call__(*args, num_inference_steps=num_inference_steps, **kwargs)

    class First(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)[0]

    class Elsewhere(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    class Cached(cls):  # type: ignore[misc]
        @functools.cache  # noqa: B019
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class Behind(Prompted):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    hidden: dict[str, Any] = {"cls": cls}
    exec("class Hidden(cls):\n    def __call__(self, *a, **k):\n        return super().__call__(*a, **k)", hidden)
    named = [Prompted, Counting, Dropping, Mistaken, Swapped, Faster, First, Elsewhere, Cached, Behind]
    return [*named, hidden["Hidden"]]


def test_a_class_that_does_more_is_refused_with_the_one_that_it_derives_from(pipe: Any) -> None:
    for cls in overriding(type(pipe)):
        told = f"no family record for {cls.__name__}, .* more than hand .* that of StableDiffusionPipeline: .*doctor"
        with pytest.raises(UnsupportedPipelineError, match=told) as caught:
            gs.guide(changed(pipe, cls), "cfg(3)")
        assert "\n" not in str(caught.value)
        assert "Kolors" not in str(caught.value)


def test_a_record_of_its_own_is_for_such_a_class(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    cls = overriding(type(pipe))[1]
    record = dataclasses.replace(FAMILIES["StableDiffusionPipeline"], pipeline=cls.__name__)
    monkeypatch.setitem(FAMILIES, cls.__name__, record)
    with silent():
        assert gs.guide(changed(pipe, cls), "cfg(3)").family is record


# --- what is no stack, and what no call can use -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7.5, r"7\.5 is no stack; write 'cfg\(7\.5\)'"),
        (4, r"write 'cfg\(4\)'"),
        (np.float32(3), r"write 'cfg\(3\)'"),
        (torch.tensor(3.5), r"write 'cfg\(3\.5\)'"),
        ([gs.CFG(3), gs.Rescale(0.7)], r"write Stack\(first, second\), or first \| second"),
        (["cfg(3)", "rescale(0.7)"], r"write 'cfg\(3\) \| rescale\(0\.7\)'"),
        ({"cfg": 3}, r"write \{'rules': \[\{'cfg': \{'scale': 3\}\}\]\}"),
        ({"apg": {"scale": 3}}, r"write \{'rules': \[\{'apg': \{'scale': 3\}\}\]\}"),
        (None, r"write stack\(\) for the unguided model"),
        (gs.CFG, r"write CFG\(\.\.\.\) with its parameters"),
        ({"cgf": 3}, "one key 'rules'"),
        ({}, "one key 'rules'"),
        ([], "expected a stack, a rule, its text or its mapping; got list"),
        ([3], "expected a stack, a rule, its text or its mapping; got list"),
        (True, "expected a stack, a rule, its text or its mapping; got bool"),
        (object(), "got object"),
    ],
)
def test_what_is_no_stack_says_what_to_write(pipe: Any, given: Any, message: str) -> None:
    from diffusers import DDIMScheduler

    for door in (
        lambda: gs.guide(pipe, given),
        lambda: gs.edit(pipe, given),
        lambda: gs.as_denoiser(given, lambda x, sigma: x, conditions={"positive": {}}, sigmas=[1.0, 0.0]),
        lambda: gs.StackGuider(given),
        lambda: gs.sample(
            lambda x, level, told: x,
            given,
            DDIMScheduler(),
            conditions={"positive": torch.ones(1)},
            shape=(1,),
            seeds=[0],
        ),
    ):
        with pytest.raises(StackSyntaxError, match=message) as caught:
            door()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bound", ["2", 0, -1, 1.5, True, float("nan"), [2], torch.tensor([2, 3])])
def test_a_bound_that_is_none_is_refused_before_anything_runs(pipe: Any, bound: Any) -> None:
    from diffusers import DDIMScheduler

    conditions = {"positive": torch.ones(1), "null": torch.ones(1)}
    given: dict[str, Any] = {"conditions": conditions, "shape": (1,), "seeds": [0], "max_rows": bound}
    for door in (
        lambda: gs.guide(pipe, "cfg(3)", max_rows=bound),
        lambda: gs.invert(pipe, "cfg(3)", max_rows=bound),
        lambda: gs.edit(pipe, "cfg(3)", max_rows=bound),
        lambda: gs.sample(lambda x, level, told: 1 / 0, "cfg(3)", DDIMScheduler(), **given),
    ):
        with pytest.raises(InputError, match="max_rows must be a whole number between 1 and 1e\\+06; got") as caught:
            door()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bound", [2, 2.0, np.int64(2), torch.tensor(2)])
def test_a_bound_may_be_any_librarys_number(pipe: Any, bound: Any) -> None:
    guided = gs.guide(pipe, "cfg(3)", max_rows=bound)
    assert guided.max_rows == 2
    guided(["a", "b"], generator=seeded(2), **GIVEN)
    assert guided.report.calls == 6


PIPELINES = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "WanPipeline",
    "Kandinsky3Pipeline",
)


@pytest.mark.parametrize("name", PIPELINES)
def test_arguments_that_no_pipeline_can_use_are_one_line(name: str) -> None:
    builder = load(name)
    guided = gs.guide(builder.make(), "cfg(3)")
    for wrong, message in (
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number between 1 and 1e\\+06; got 0"),
        ({"num_inference_steps": -3}, "got -3"),
        ({"num_inference_steps": "4"}, "got '4'"),
        ({"num_inference_steps": 2.5}, "got 2.5"),
        ({"num_inference_steps": True}, "got True"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ()}, "prompt is an empty list"),
        ({"negative_prompt": ["a", 3]}, "negative_prompt is a text, or a list of one for each sample"),
        ({"prompt": ["a", 3]}, "prompt is a text, or a list of one for each sample"),
        ({"prompt": ["a", None]}, "prompt is a text"),
        ({"prompt": 3}, "prompt is a text"),
        ({"prompt": b"a"}, "prompt is a text"),
        ({"generator": 3}, r"generator is a torch\.Generator, or a list of one for each sample; got 3"),
        ({"generator": [torch.Generator(), 3]}, "generator is a torch"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is a function, called behind each step; got 3"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            guided(**{**builder.arguments(1), **wrong})
        assert "\n" not in str(caught.value)
    many = {"num_videos_per_prompt": 0} if name == "WanPipeline" else {"num_images_per_prompt": 0}
    with pytest.raises(InputError, match="_per_prompt must be a whole number"):
        guided(**{**builder.arguments(1), **many})
    for size in {"height", "width", "num_frames"} & set(inspect.signature(builder.make().__call__).parameters):
        with pytest.raises(InputError, match=f"{size} must be a whole number between 1 and 1e\\+06; got -8"):
            guided(**{**builder.arguments(1), size: -8})
    guided(**{**builder.arguments(1), "num_inference_steps": np.int64(2)})
    assert len({record.index for record in guided.report.steps}) == 2


def test_also_of_pipelines_without_prompts(dit: Any, unconditional: Any) -> None:
    with pytest.raises(InputError, match="class_labels is an empty list"):
        gs.guide(dit, "cfg(3)")(class_labels=[], num_inference_steps=2)
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        gs.guide(unconditional, "stack()")(batch_size=0, num_inference_steps=2)


def test_inverting_and_editing_and_sampling_likewise(pipe: Any) -> None:
    from diffusers import DDIMScheduler

    picture = torch.rand(1, 3, 16, 16)
    with pytest.raises(InputError, match="num_inference_steps must be a whole number"):
        gs.invert(pipe, "cfg(2)")(image=picture, prompt="a", num_inference_steps=0)
    with pytest.raises(InputError, match="num_inference_steps must be a whole number"):
        gs.edit(pipe, "cfg(2)")(picture, source="a", prompt="b", num_inference_steps=0)
    given: dict[str, Any] = {"conditions": {"positive": torch.ones(1)}, "shape": (1,), "seeds": [0]}
    for steps in (0, -1, "3", 2.5, None):
        with pytest.raises(InputError, match="steps must be a whole number"):
            gs.sample(lambda x, level, told: x, "stack()", DDIMScheduler(), **{**given, "steps": steps})
    with pytest.raises(InputError, match="seeds is empty"):
        gs.sample(lambda x, level, told: x, "stack()", DDIMScheduler(), **{**given, "seeds": []})


# --- the account ------------------------------------------------------------------------------------------------------


def test_a_report_is_a_line_and_in_a_notebook_a_table(pipe: Any) -> None:
    guided = gs.guide(pipe, "cfg(3) | rescale(0.7) | cfg(2, against='positive+time(1)')")
    guided(["a", "b"], generator=seeded(2), num_inference_steps=70, output_type="latent")
    report = guided.report
    assert repr(report) == f"<Report {report}>"
    assert len(repr(report)) < 250
    told = "positive for 2, null for 2, positive+time(1) for 2; calls: 2, rows: 6>"
    assert repr(report.steps[0]) == f"<step 0: sigma/alpha {report.steps[0].level.k_sigma:.4g}, {told}"
    table = report._repr_html_()
    assert table.count("<tr>") == 61
    assert "and 10 more" in table
    for part in (">rescale</th>", "positive+time(1): 2", "cfg(3) | rescale(0.7)", ">59</td>"):
        assert part in table
    assert "<script>" not in Report("<script>", 1)._repr_html_()
