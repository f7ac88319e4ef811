"""What callbacks change in the middle of a guided call: conditions are followed, changed guidance is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError
from guidestack.pipelines import prepared

from .stock import trajectory
from .test_families import arguments, near
from .tiny import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule"),
]

# --- conditions that are written into ---------------------------------------------------------------------------------

HANDED = {
    "StableDiffusionXLPipeline": ("prompt_embeds", "add_text_embeds"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    "FluxPipeline": ("prompt_embeds",),
    "QwenImagePipeline": ("prompt_embeds",),
    "WanPipeline": ("prompt_embeds",),
    "LTXPipeline": ("prompt_embeds",),
    "SanaPipeline": ("prompt_embeds",),
}
"""What these pipelines hand a callback."""


def written(value: Tensor) -> None:
    value.mul_(-1.5)


def by_data(value: Tensor) -> None:
    """Tensors do not count these."""
    value.data.mul_(-1.5)


def by_numpy(value: Tensor) -> None:
    np.multiply(value.numpy(), -1.5, out=value.numpy())


def edited(pipe: Any, guided: Any, name: str, change: Callable[[Tensor], Any], inference: bool) -> Tensor:
    """The samples of a run of three steps of which a callback writes into the conditions after the first."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            for one in HANDED[name]:
                if (other := change(tensors[one])) is not None:
                    tensors[one] = other
        return tensors

    given = arguments(
        name,
        2,
        num_inference_steps=3,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=list(HANDED[name]),
    )
    with torch.inference_mode(inference):
        return trajectory(pipe, guided, given).clone()


@pytest.mark.parametrize("name", HANDED)
def test_conditions_that_are_written_into(name: str) -> None:
    """Rows of both conditions in a call are cut out and joined; the whole batch is what the pipeline made."""
    pipe = load(name).make()
    whole, cut = gs.guide(pipe, "cfg(4)"), gs.guide(pipe, "cfg(4)", max_rows=3)

    def nothing(value: Tensor) -> None: ...

    wanted = edited(pipe, whole, name, written, False)
    assert not near(wanted, edited(pipe, whole, name, nothing, False), 1e-2)
    for change, inference in ((written, False), (written, True), (by_data, False), (by_numpy, True)):
        for guided in (whole, cut):
            assert near(edited(pipe, guided, name, change, inference), wanted, 1e-5), (change, inference)


def test_a_carried_text_that_is_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the attention is handed for the negative text is found once a run, unless a callback may change it."""
    name = "StableDiffusionXLPipeline"
    pipe = load(name).make()
    guided = gs.guide(pipe, "nag(3) | cfg(4)")
    changes = (written, lambda value: value * -1.5)  # in place, and another tensor
    found = [edited(pipe, guided, name, change, False) for change in changes]

    class Forgetting(dict[Any, Any]):
        def __contains__(self, key: object) -> bool:
            return False

    kept = Forgetting()
    monkeypatch.setattr(prepared.Prepared, "carried", property(lambda self: kept, lambda self, value: None), False)
    for change, one in zip(changes, found, strict=True):
        assert torch.equal(one, edited(pipe, guided, name, change, False))


# --- guidance that is changed -----------------------------------------------------------------------------------------

CUTOFFS = {
    "StableDiffusionPipeline": "SDCFGCutoffCallback",
    "StableDiffusionXLPipeline": "SDXLCFGCutoffCallback",
    "StableDiffusionXLControlNetPipeline": "SDXLControlnetCFGCutoffCallback",
    "StableDiffusion3Pipeline": "SD3CFGCutoffCallback",
}
CHANGED = {
    "StableDiffusionPipeline": ("_guidance_scale", "_guidance_rescale"),
    "StableDiffusionXLPipeline": ("_guidance_scale", "_guidance_rescale"),
    "StableDiffusionInstructPix2PixPipeline": ("_guidance_scale", "_image_guidance_scale"),
    "StableDiffusion3Pipeline": ("_guidance_scale",),
    "ChromaPipeline": ("_guidance_scale",),
    "AuraFlowPipeline": ("_guidance_scale",),
    "Lumina2Pipeline": ("_guidance_scale",),
    "ZImagePipeline": ("_guidance_scale", "_cfg_truncation"),
    "Flux2KleinPipeline": ("_guidance_scale",),
    "HiDreamImagePipeline": ("_guidance_scale",),
    "WanPipeline": ("_guidance_scale",),
    "WanPipeline, two transformers": ("_guidance_scale", "_guidance_scale_2"),
    "CogVideoXPipeline": ("_guidance_scale",),
    "LTXPipeline": ("_guidance_scale", "_guidance_rescale"),
    "MochiPipeline": ("_guidance_scale",),
    "CogView4Pipeline": ("_guidance_scale",),
    "SanaPipeline": ("_guidance_scale",),
    "HunyuanDiTPipeline": ("_guidance_scale", "_guidance_rescale"),
    "KolorsPipeline": ("_guidance_scale",),
    "Kandinsky3Pipeline": ("_guidance_scale",),
}
"""Attributes that a pipeline has its own guidance in."""


def called(name: str, new_pipe: Any) -> tuple[Any, Callable[..., dict[str, Any]]]:
    """A pipeline, and what makes the arguments of a call."""
    if name != "StableDiffusionPipeline":
        return load(name).make(), lambda **more: arguments(name, 1, **more)
    given = {"prompt": ["a cat"], "negative_prompt": ["red"], "output_type": "latent"}
    return new_pipe(), lambda **more: {**given, "generator": [torch.Generator().manual_seed(0)], **more}


@pytest.mark.parametrize("name", CUTOFFS)
def test_official_cutoff_callbacks_are_refused_and_a_prefix_does_the_same(name: str, new_pipe: Any) -> None:
    import diffusers.callbacks

    pipe, given = called(name, new_pipe)
    on = {"guidance_scale": 5.0, "num_inference_steps": 4}

    def cutoff() -> Any:
        return getattr(diffusers.callbacks, CUTOFFS[name])(cutoff_step_ratio=None, cutoff_step_index=1)

    guided = gs.guide(pipe, "cfg(5)")
    with pytest.raises(GuidanceNotAppliedError) as refused:
        guided(**given(callback_on_step_end=cutoff(), num_inference_steps=4))
    text, cls = str(refused.value), type(pipe).__name__
    assert "\n" not in text
    assert f"_guidance_scale of {cls} was set to 0.0 in the middle of a guided call, before step 2 of 4" in text
    (instead,) = re.findall(r"prefix\(.*?\), \d+\)|prefix\([^,]*, \d+\)", text)
    assert instead == "prefix(cfg(5), 2)"
    stock = trajectory(pipe, pipe, given(callback_on_step_end=cutoff(), **on))
    assert near(trajectory(pipe, gs.guide(pipe, instead), given(num_inference_steps=4)), stock, 1e-5)


@pytest.mark.parametrize("name", CHANGED)
def test_guidance_that_a_callback_changes_is_refused(name: str, new_pipe: Any) -> None:
    pipe, given = called(name, new_pipe)
    cls, stack = type(pipe).__name__, "perpneg(3)" if name in ("WanPipeline", "StableDiffusion3Pipeline") else "cfg(3)"
    guided = gs.guide(pipe, stack)
    # Without guidance, InstructPix2Pix itself fails before it calls the network.
    for attribute, value in itertools.product(CHANGED[name], (1.7,) if "InstructPix2Pix" in name else (0.25, 1.7)):

        def change(pipe: Any, step: int, *rest: Any, attribute: str = attribute, value: float = value) -> Any:
            if step == 0:
                assert vars(pipe)[attribute] != value
                setattr(pipe, attribute, value)
            return {}

        with pytest.raises(GuidanceNotAppliedError) as refused:
            guided(**given(callback_on_step_end=change, num_inference_steps=3))
        text = str(refused.value)
        assert text.startswith(
            f"{attribute} of {cls} was set to {value!r} in the middle of a guided call, before step "
        )
        assert f"prefix({stack}, 1) to guide no longer, during({stack}, progress=(0, " in text


def test_the_windows_that_are_named_are_the_steps(new_pipe: Any) -> None:
    """Of any number of steps; they take over where the change was."""
    pipe = new_pipe()
    given = {"output_type": "latent"}
    for steps, at in ((3, 1), (3, 2), (7, 3), (9, 8)):

        def change(pipe: Any, step: int, *rest: Any, at: int = at) -> Any:
            if step == at - 1:
                pipe._guidance_scale = 1.5
            return {}

        with pytest.raises(GuidanceNotAppliedError) as refused:
            gs.guide(pipe, "cfg(6)")("a", callback_on_step_end=change, num_inference_steps=steps, **given)
        (windows,) = re.findall(r"during\(cfg\(6\).* \| during\(OTHER.*\)\)", str(refused.value))
        guided = gs.guide(pipe, windows.replace("OTHER", "cfg(1.5)"))

        def stock(pipe: Any, step: int, *rest: Any, at: int = at) -> Any:
            if step == at - 1:
                pipe._guidance_scale = 1.5
            return {}

        more = {"num_inference_steps": steps, **given}
        wanted = pipe(
            "a", guidance_scale=6.0, callback_on_step_end=stock, generator=torch.manual_seed(0), **more
        ).images
        assert near(guided("a", generator=torch.manual_seed(0), **more).images, wanted, 1e-4)


def test_what_is_no_guidance_may_be_changed(new_pipe: Any) -> None:
    """An adapter's scale, a LoRA's: as in the stock pipeline. So may guidance after the last step."""
    from diffusers.callbacks import IPAdapterScaleCutoffCallback

    pipe, scales = load("StableDiffusionXLPipeline").make(), list[float]()
    pipe.set_ip_adapter_scale = scales.append
    cutoff = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    guided = gs.guide(pipe, "cfg(3)")
    wanted = trajectory(pipe, guided, arguments("StableDiffusionXLPipeline", num_inference_steps=4))
    given = arguments("StableDiffusionXLPipeline", num_inference_steps=4, callback_on_step_end=cutoff)
    assert torch.equal(trajectory(pipe, guided, given), wanted)
    assert scales == [0.0]

    def last(pipe: Any, step: int, *rest: Any) -> Any:
        if step == 3:
            pipe._guidance_scale = 1.5
        return {}

    given = arguments("StableDiffusionXLPipeline", num_inference_steps=4, callback_on_step_end=last)
    assert torch.equal(trajectory(pipe, guided, given), wanted)


def test_a_scale_that_the_network_was_handed_may_be_changed() -> None:
    """Flux was handed its own at the start; what a callback sets does nothing in the stock pipeline either."""

    def change(pipe: Any, step: int, *rest: Any) -> Any:
        pipe._guidance_scale = 1.5
        return {}

    name = "FluxPipeline, distilled"
    pipe = load(name).make()
    guided = gs.guide(pipe, "cfg(3)")
    wanted = trajectory(pipe, guided, arguments(name))
    assert torch.equal(trajectory(pipe, guided, arguments(name, callback_on_step_end=change)), wanted)
