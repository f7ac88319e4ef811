"""Edits against other people's code on the same tensors: diffusers' PAG pipelines, SD3's skipped layers, guiders."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.query import Perturbation
from guidestack.pipelines.edits import edited
from guidestack.pipelines.edits.attention import Product, blurred

from .stock import trajectory
from .test_edits import called, network, seeds
from .test_families import BATCH, arguments, made
from .tiny import load
from .tiny.text import request

pytestmark = pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule")

PAG = {
    "StableDiffusionPipeline": ("StableDiffusionPAGPipeline", "up_blocks.0.attentions.1", "up.0.1"),
    "StableDiffusionImg2ImgPipeline": ("StableDiffusionPAGImg2ImgPipeline", "mid", "mid"),
    "StableDiffusionInpaintPipeline": ("StableDiffusionPAGInpaintPipeline", "mid", "mid"),
    "StableDiffusionInpaintPipeline, 9 channels": ("StableDiffusionPAGInpaintPipeline", "mid", "mid"),
    "StableDiffusionControlNetPipeline": ("StableDiffusionControlNetPAGPipeline", "mid", "mid"),
    "StableDiffusionControlNetInpaintPipeline": ("StableDiffusionControlNetPAGInpaintPipeline", "mid", "mid"),
    "StableDiffusionXLPipeline": ("StableDiffusionXLPAGPipeline", ["mid", "down_blocks.1"], "mid,down.1"),
    "StableDiffusionXLImg2ImgPipeline": ("StableDiffusionXLPAGImg2ImgPipeline", "mid", "mid"),
    "StableDiffusionXLInpaintPipeline": ("StableDiffusionXLPAGInpaintPipeline", "mid", "mid"),
    "StableDiffusionXLControlNetPipeline": ("StableDiffusionXLControlNetPAGPipeline", "mid", "mid"),
    "StableDiffusionXLControlNetImg2ImgPipeline": ("StableDiffusionXLControlNetPAGImg2ImgPipeline", "mid", "mid"),
    "KolorsPipeline": ("KolorsPAGPipeline", "mid", "mid"),
    "StableDiffusion3Pipeline": ("StableDiffusion3PAGPipeline", "blocks.1", "1"),
    "StableDiffusion3Img2ImgPipeline": ("StableDiffusion3PAGImg2ImgPipeline", "blocks.0", "0"),
    "PixArtSigmaPipeline": ("PixArtSigmaPAGPipeline", "blocks.0", "0"),
    "HunyuanDiTPipeline": ("HunyuanDiTPAGPipeline", ["blocks.0", "blocks.1"], "0,1"),
    "SanaPipeline": ("SanaPAGPipeline", "transformer_blocks.0", "0"),
}
"""Our pipeline, theirs, and blocks in their terms and in ours: all their classes but that of AnimateDiff."""
TOLERANCE = 2e-5  # theirs are rows of one batch, ours are calls of their own


WITH_CFG = ["HunyuanDiTPipeline"]
"""Their PAG pipeline fails without classifier-free guidance: it makes a row too many of the sizes."""


def their_class(name: str) -> Any:
    if name.startswith("Kolors"):  # diffusers exports it where sentencepiece is, of which nothing here makes use
        from diffusers.pipelines.pag.pipeline_pag_kolors import KolorsPAGPipeline

        return KolorsPAGPipeline
    return getattr(diffusers, name)


def theirs(cls: Any, pipe: Any, **options: Any) -> Any:
    """A pipeline of another class with the parts of `pipe`."""
    taken = inspect.signature(cls.__init__).parameters
    given = {name: value for name, value in pipe.components.items() if name in taken}
    options |= {name: pipe.config[name] for name in pipe.config if name in taken and name not in given}
    made = cls(**given, **options)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", PAG)
def test_pag_is_that_of_diffusers_pipelines(name: str, pipe: Any) -> None:
    cls, layers, blocks = PAG[name]
    if name == "StableDiffusionPipeline":
        one, on, off = pipe, 5.0, 1.0

        def given(**more: Any) -> dict[str, Any]:
            return request(BATCH, True, {}, more)
    else:
        builder = load(name)
        one, on, off = made(name), builder.ON, builder.OFF

        def given(**more: Any) -> dict[str, Any]:
            return arguments(name, **more, **({"strength": 1.0} if name.startswith("StableDiffusionInp") else {}))

    for scale in [on] if name in WITH_CFG else [on, off]:
        stack = f"cfg({scale}) | pag(2, blocks={blocks!r})"
        guided = gs.guide(one, stack)
        seen = trajectory(one, guided, given())
        assert set(guided.report.evaluations) == {len(guided.report.steps) * (2 if scale == off else 3)}
        without = trajectory(one, gs.guide(one, f"cfg({scale})"), given())
        stock = theirs(their_class(cls), one, pag_applied_layers=layers)
        denoiser = getattr(one, "unet", None) or one.transformer
        processors = denoiser.attn_processors
        wanted = trajectory(stock, stock, given(guidance_scale=scale, pag_scale=2.0))
        denoiser.set_attn_processor(processors)  # some of them leave their own behind
        assert (seen - wanted).abs().max() < TOLERANCE * wanted.abs().max(), stack
        assert (without - wanted).abs().max() > 5 * TOLERANCE * wanted.abs().max(), stack


# --- Stable Diffusion 3's skipped layers ----------------------------------------------------------------------------


def test_slg_is_that_of_stable_diffusion_3() -> None:
    """Whose window is open on both ends: steps strictly between 0.01 and 0.7 of 5."""
    name = "StableDiffusion3Pipeline"
    pipe = made(name)
    given: dict[str, Any] = {"num_inference_steps": 5}
    own = {"guidance_scale": 5.0, "skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.0}
    window = {"skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.7}
    wanted = trajectory(pipe, pipe, arguments(name, **given, **own, **window))
    guided = gs.guide(pipe, "cfg(5) | during(slg(2, blocks=1), progress=(0.2, 0.7))")
    seen = trajectory(pipe, guided, arguments(name, **given))
    assert [record.rows for record in guided.report.steps] == [BATCH * count for count in (2, 3, 3, 3, 2)]
    assert (seen - wanted).abs().max() < TOLERANCE * wanted.abs().max()
    without = trajectory(pipe, gs.guide(pipe, "cfg(5)"), arguments(name, **given))
    assert (without - wanted).abs().max() > 1e-3 * wanted.abs().max()


# --- diffusers' guiders ---------------------------------------------------------------------------------------------


class Driven:
    """A guider of diffusers on one call of a network, as its loops drive it; the other half has other noise."""

    def __init__(self, name: str, guider: Any) -> None:
        self.called, self.guider = called(name), guider
        module = self.called.module
        guider.set_state(1, 10, torch.tensor(500))
        x = self.called.sample
        batches = guider.prepare_inputs({"x": (x, x.flip(-1) * 0.9)})
        for batch in batches:
            guider.prepare_models(module)
            batch.noise_pred = self.called.told(batch.x)
            guider.cleanup_models(module)
        self.pred = guider(batches).pred
        self.answers: dict[str, Tensor] = {batch.__guidance_identifier__: batch.noise_pred for batch in batches}


def ours(name: str, edit: Perturbation) -> Tensor:
    with edited(called(name).module, edit, seeds()):
        return called(name)()


def near(seen: Tensor, wanted: Tensor) -> bool:
    return bool((seen - wanted).abs().max() < TOLERANCE * wanted.abs().max())


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "CogView4Pipeline", "QwenImagePipeline"])
def test_pag_and_the_guider_of_diffusers(name: str) -> None:
    """Equal where the attention has the picture alone; beside a text theirs cuts the text off as well."""
    driven = Driven(name, diffusers.PerturbedAttentionGuidance(5.0, 2.0, perturbed_guidance_layers=[0]))
    c, u, weak = (driven.answers[f"pred_{which}"] for which in ("cond", "uncond", "cond_skip"))
    assert near(driven.pred, u + 5 * (c - u) + 2 * (c - weak))
    assert near(ours(name, Perturbation("identity", blocks="0")), weak) is name.startswith("PixArt")


def test_without_cfg_the_guiders_perturbed_pass_is_the_unconditional_one() -> None:
    """A known fault: the rule is then CFG with the scale of PAG; `pag` alone is away from the edited prompt."""
    guider = diffusers.PerturbedAttentionGuidance(1.0, 2.0, perturbed_guidance_layers=[0])
    driven = Driven("PixArtAlphaPipeline", guider)
    x = called("PixArtAlphaPipeline").sample
    assert torch.equal(driven.answers["pred_cond_skip"], called("PixArtAlphaPipeline").told(x.flip(-1) * 0.9))
    assert not near(driven.answers["pred_cond_skip"], ours("PixArtAlphaPipeline", Perturbation("identity", blocks="0")))


def test_slg_and_the_guider_of_diffusers() -> None:
    """Equal where a block returns one stream; theirs returns two in one order for all classes, which breaks SD3."""
    driven = Driven("WanPipeline", diffusers.SkipLayerGuidance(5.0, 2.0, skip_layer_config=skip()))
    assert near(ours("WanPipeline", Perturbation("skip", blocks="0")), driven.answers["pred_cond_skip"])
    with pytest.raises(RuntimeError):
        Driven("StableDiffusion3Pipeline", diffusers.SkipLayerGuidance(5.0, 2.0, skip_layer_config=skip()))
    diffusers.hooks.HookRegistry.check_if_exists_or_initialize(network("StableDiffusion3Pipeline")).remove_hook(
        "SkipLayerGuidance_0", recurse=True
    )


def skip() -> Any:
    return diffusers.LayerSkipConfig(indices=[0], fqn="auto", skip_attention=True, skip_ff=True, dropout=1.0)


def test_seg_and_the_guider_of_diffusers() -> None:
    """Known faults: theirs never puts its hook on, and the hook has finite and infinite blurs exchanged."""
    from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d

    driven = Driven("WanPipeline", diffusers.SmoothedEnergyGuidance(5.0, 2.0, seg_guidance_layers=[0]))
    assert torch.equal(driven.answers["pred_cond_seg"], driven.answers["pred_cond"])
    assert not near(ours("WanPipeline", Perturbation("blur", math.inf, "0")), driven.answers["pred_cond"])
    query = torch.randn(2, 3, 16, 5, generator=torch.Generator().manual_seed(0))
    product = Product(query, query, query)
    seen: list[Tensor] = []
    for sigma, threshold in ((0.7, 0.1), (3.0, 9.0)):  # the threshold says which branch is taken, the wrong way round
        flat = query.transpose(1, 2).flatten(2)
        theirs = _gaussian_blur_2d(flat.clone(), math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2, sigma, threshold)
        blurry = theirs.reshape(2, 16, 3, 5).transpose(1, 2)
        seen.append(Product(blurry, query, query)())
    assert near(blurred(product, slice(16), (1, 4, 4), 0.7), seen[0])
    assert near(blurred(product, slice(16), (1, 4, 4), math.inf), seen[1])
