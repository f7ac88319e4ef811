"""Second networks through guide(): who answers is the network that was given, and nothing of it is left behind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance import Perturbation
from guidestack.guidance.errors import GuidanceNotAppliedError, InputError, QueryError, UnsupportedPipelineError
from guidestack.pipelines.families.lookup import denoisers_of
from guidestack.pipelines.families.record import FAMILIES

from . import by_hand, test_rules
from .stock import trajectory
from .test_around import config, heard
from .test_families import FRAME_BY_FRAME, KNOWN, arguments, made
from .test_rules import PROMPTS, alone, close, same, seeded
from .test_rules import arguments as of_rules
from .tiny import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:autoguidance.0. does not turn guidance off"),
]

SD, FLUX = "StableDiffusionImg2ImgPipeline", "FluxPipeline"


def worse(module: nn.Module) -> Any:
    """Another network of the same shape."""
    weak = copy.deepcopy(module)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
    return weak


@contextmanager
def instead(pipe: Any, weak: list[nn.Module]) -> Iterator[None]:
    """The pipeline with other denoisers."""
    names = [one for one in vars(pipe) if any(getattr(pipe, one) is module for module in _own(pipe))]
    own = {name: getattr(pipe, name) for name in names}
    try:
        for name, module in zip(names, weak, strict=True):
            setattr(pipe, name, module)
        yield
    finally:
        for name, module in own.items():
            setattr(pipe, name, module)


def _own(pipe: Any) -> list[nn.Module]:
    return denoisers_of(pipe, FAMILIES[type(pipe).__name__])


def given(name: str, **more: Any) -> dict[str, Any]:
    return arguments(name, 2, negative=False, **more)


@pytest.mark.parametrize("name", KNOWN)
def test_the_weak_networks_answer_is_that_networks_own(name: str) -> None:
    """At scale 0 autoguidance is the weak network, whose own run is the pipeline's with it in its place."""
    pipe = made(name)
    other = copy.copy(pipe)
    weak = [worse(one) for one in _own(pipe)]
    with instead(other, weak):
        guided = gs.guide(pipe, gs.Autoguidance(0), networks={"weak": other})
        seen = trajectory(pipe, guided, given(name))
        wanted = trajectory(other, gs.guide(other, gs.Stack()), given(name))
    if name == FRAME_BY_FRAME:
        seen, wanted = seen[:, :, :, 1:], wanted[:, :, :, 1:]
    assert torch.equal(seen, wanted)
    assert not close(seen, trajectory(pipe, gs.guide(pipe, gs.Stack()), given(name)))
    assert guided.report.evaluations == [2 * len(guided.report.steps)] * 2
    assert guided.report.calls == 2 * len(guided.report.steps)


@pytest.mark.parametrize(
    ("stack", "guide"),
    [
        (gs.Autoguidance(2.5), by_hand.cfg(2.5, "weak")),
        (gs.CFG(3) | gs.Autoguidance(2), by_hand.cfg(2, "weak", by_hand.cfg(3))),
        (gs.APG(3, against="null@weak") | gs.Rescale(0.5), by_hand.rescale(by_hand.apg(3, against="null weak"), 0.5)),
        (gs.Prefix(gs.Autoguidance(2), 2), by_hand.prefix(by_hand.cfg(2, "weak"), 2)),
        (gs.AdaptiveGuidance(gs.Autoguidance(3), threshold=0.97), by_hand.adaptive(by_hand.cfg(3), 0.97)),
    ],
    ids=lambda value: value if isinstance(value, str) else "by hand",
)
def test_rules_over_two_networks_by_hand(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, stack: gs.Rule, guide: Any
) -> None:
    weak = worse(pipe.unet)
    case = same(stack, guide, None)

    def answer(pipe: Any, x: Tensor, t: Any, step: int, name: str, said: dict[str, Tensor], seed: int) -> Tensor:
        weakly = "weak" in name or (name == "negative" and isinstance(stack, gs.AdaptiveGuidance))  # its contrast
        what = {"weak": "positive", "null weak": "null"}.get(name, "positive" if weakly else name)
        return (weak if weakly else pipe.unet)(x, t, said[what]).sample  # type: ignore[no-any-return]

    monkeypatch.setattr(test_rules, "answer", answer)
    guided = gs.guide(pipe, stack, networks={"weak": weak})
    images = guided(**of_rules(case)).images
    courses = [alone(pipe, case, sample, sample) for sample in range(len(PROMPTS))]
    for image, course in zip(images, courses, strict=True):
        assert close(image, course.x[0])
    assert guided.report.evaluations == [course.evaluations for course in courses]


def test_what_can_be_given(pipe: Any, tmp_path: Path) -> None:
    weak = worse(pipe.unet)
    other = copy.copy(pipe)
    other.unet = weak
    weak.save_pretrained(tmp_path / "network")
    other.save_pretrained(tmp_path / "model")

    def images(network: Any, stack: str = "autoguidance(3)") -> Tensor:
        guided = gs.guide(pipe, stack, networks={"weak": network})
        return guided(PROMPTS, num_inference_steps=2, generator=seeded(3), output_type="latent").images  # type: ignore[no-any-return]

    wanted = images(weak)
    for network in (other, gs.guide(other, "cfg(3)"), tmp_path / "network", str(tmp_path / "model")):
        assert torch.equal(images(network), wanted), network
    assert torch.equal(images(weak, "cfg(3, against='positive@weak')"), wanted)
    # Itself is no guidance, to the bit.
    assert torch.equal(images(pipe.unet), images(weak, "stack()"))
    perturbed = gs.guide(pipe, "cfg(3, against='positive+time(0.5)')")
    seen = perturbed(PROMPTS, num_inference_steps=2, generator=seeded(3), output_type="latent").images
    assert torch.equal(images(Perturbation("time", 0.5)), seen)


def test_several_networks_and_their_identities(pipe: Any) -> None:
    weak, weaker = worse(pipe.unet), worse(worse(pipe.unet))
    stack = "autoguidance(2) | autoguidance(3, network='weaker')"
    guided = gs.guide(pipe, stack, networks={"weak": weak, "weaker": weaker})
    guided("a", num_inference_steps=2, output_type="latent", generator=seeded(1))
    assert guided.report.evaluations == [6]
    assert len({one.identity for one in guided.networks.values()}) == 2
    with pytest.raises(UnsupportedPipelineError, match=r"asks the network 'weakest'.*did you mean 'weake?r?'"):
        guided.stack = "autoguidance(2, network='weakest')"


def test_it_follows_the_type_and_device_of_the_main_network(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    weak = worse(pipe.unet)
    guided = gs.guide(pipe, gs.Autoguidance(0), networks={"weak": weak})
    pipe.to(torch.bfloat16)
    images = guided("a", num_inference_steps=2, output_type="latent", generator=seeded(1)).images
    assert images.dtype == weak.dtype == torch.bfloat16


# --- adapters ------------------------------------------------------------------------------------------------------


def adapted(name: str) -> tuple[Any, nn.Module]:
    """A pipeline whose network has two adapters, "one" and "two", the first of them on."""
    pipe = load(name).make()
    (module,) = _own(pipe)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for adapter in ("one", "two"):
            module.add_adapter(config("to_q", "to_v", "to_out.0"), adapter_name=adapter)
    heard(module)
    module.set_adapters(["one"], [0.7])
    return pipe, module


def standing(module: nn.Module) -> list[Any]:
    """How adapters are set."""
    layers: list[Any] = [
        part for part in module.modules() if hasattr(part, "active_adapters") and hasattr(part, "scaling")
    ]
    grads = [parameter.requires_grad for parameter in module.parameters()]
    return [[(list(one.active_adapters), one.disable_adapters, dict(one.scaling)) for one in layers], grads]


@pytest.mark.parametrize("name", [SD, FLUX])
@pytest.mark.parametrize("names", [("two",), (), ("one", "two")])
def test_adapters_are_switched_for_the_weak_calls_only(name: str, names: tuple[str, ...]) -> None:
    pipe, module = adapted(name)
    before = standing(module)
    guided = gs.guide(pipe, gs.Autoguidance(0), networks={"weak": gs.Adapters(*names)})
    seen = trajectory(pipe, guided, given(name))
    assert standing(module) == before
    with_one = trajectory(pipe, gs.guide(pipe, gs.Stack()), given(name))
    module.set_adapters(list(names), 0.7) if names else module.disable_adapters()
    if names == ("one", "two"):
        module.set_adapters(list(names), [0.7, 1.0])
    elif names:
        module.set_adapters(list(names), 1.0)
    assert torch.equal(seen, trajectory(pipe, gs.guide(pipe, gs.Stack()), given(name)))
    assert not close(seen, with_one)


def test_adapters_are_put_back_after_an_error_and_must_be_there() -> None:
    pipe, module = adapted(SD)
    guided = gs.guide(pipe, gs.CFG(2, against="positive@weak"), networks={"weak": gs.Adapters()})
    before, calls = standing(module), []

    def fail(part: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the weak call")

    hook = module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the weak call"):
        guided(**given(SD))
    hook.remove()
    assert standing(module) == before
    with pytest.raises(
        InputError, match=r"Adapters\('on'\): .* no such adapter; it has 'one', 'two'; did you mean 'one'"
    ):
        gs.guide(pipe, "autoguidance(2)", networks={"weak": gs.Adapters("on")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.delete_adapters(["one", "two"])
    with pytest.raises(InputError, match="no such adapter"):
        guided(**given(SD))


def test_two_pipelines_do_not_switch_the_adapters_of_one_network_at_once() -> None:
    pipe, _ = adapted(SD)
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    networks = {"weak": gs.Adapters()}
    inner = gs.guide(other, "autoguidance(2)", networks=networks)

    def call(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        inner(**given(SD))
        return values

    with pytest.raises(GuidanceNotAppliedError, match="in the middle of another guided call"):
        gs.guide(pipe, "autoguidance(2)", networks=networks)(**given(SD, callback_on_step_end=call))


# --- beside caches and patches -------------------------------------------------------------------------------------


def test_a_cache_of_the_main_network_is_not_asked_for_another(pipe: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    flux = load(FLUX).make()
    weak = worse(flux.transformer)
    wanted = trajectory(flux, gs.guide(flux, gs.Autoguidance(0), networks={"weak": weak}), given(FLUX))
    flux.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    try:
        cached = trajectory(flux, gs.guide(flux, gs.Autoguidance(0), networks={"weak": weak}), given(FLUX))
        assert torch.equal(cached, wanted)
        with pytest.raises(InputError, match="'weak' has FirstBlockCache"):
            gs.guide(flux, gs.Autoguidance(0), networks={"weak": copy.deepcopy(flux.transformer)})
    finally:
        flux.transformer.disable_cache()


def test_a_patch_that_remembers_the_main_networks_call_bears_another_network(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    weak = worse(pipe.unet)
    own = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: own(*args, **kwargs)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    gs.guide(pipe, "autoguidance(2)", networks={"weak": weak})("a", **options)
    with pytest.raises(UnsupportedPipelineError, match="remember"):
        gs.guide(pipe, "autoguidance(2)", networks={"weak": Perturbation("time", 0.5)})("a", **options)


def test_calls_of_one_form_have_no_second_network(pipe: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match="asks for positive@weak"):
        gs.guide(pipe, "cfg(3) | autoguidance(2)", networks={"weak": worse(pipe.unet)}, rows="pipeline")


# --- what cannot be ------------------------------------------------------------------------------------------------


def test_another_shape_is_one_line_at_construction(pipe: Any, new_pipe: Callable[..., Any], tmp_path: Path) -> None:
    import diffusers

    def network(**changed: Any) -> Any:
        own = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
        return type(pipe.unet)(**{**own, **changed})

    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    pipe.unet.save_config(tmp_path / "pickled")
    transformer = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, num_layers=1)
    transformer.save_pretrained(tmp_path / "dit")
    load(FLUX).make().save_pretrained(tmp_path / "flux")
    for given, message in (
        (network(in_channels=9), "the network 'weak' has in_channels=9, and the pipeline's own has 4"),
        (network(cross_attention_dim=8), "has cross_attention_dim=8, and the pipeline's own has 16"),
        (network(class_embed_type="timestep"), "class_embed_type='timestep'"),
        (transformer, "is a DiTTransformer2DModel, and the pipeline's own is a UNet2DConditionModel"),
        (3, "is a network, a pipeline with one, a folder"),
        (tmp_path / "nowhere", "no network at .*: there is no such folder here"),
        (tmp_path / "empty", "it has no model_index.json and no config.json"),
        (tmp_path / "pickled", "has no weights in safetensors"),
        (tmp_path / "dit", "is a 'DiTTransformer2DModel'"),
        (tmp_path / "flux", "has no unet"),
        ("bundled", "from the bundled model's network, and this pipeline's network is another"),
        (gs.Adapters(), "no such adapter; it has none"),
        (Perturbation("time", 1.0, 9), "got blocks=9"),
    ):
        with pytest.raises((InputError, UnsupportedPipelineError), match=message) as caught:
            gs.guide(pipe, "autoguidance(2)", networks={"weak": given})
        assert "\n" not in str(caught.value)
    for networks, message in (
        ({"main": pipe.unet}, "a name is a word other than 'main'"),
        ({"no word": pipe.unet}, "a name is a word"),
        ([pipe.unet], "are given by name"),
    ):
        with pytest.raises(InputError, match=message):
            gs.guide(pipe, "autoguidance(2)", networks=networks)
    # A smaller network of the same interface will do.
    gs.guide(pipe, "autoguidance(2)", networks={"weak": network(layers_per_block=2)})
    # Its own width of attention is no part of the interface where the network projects its text itself.
    pixart = load("PixArtAlphaPipeline").make()
    own = {name: value for name, value in pixart.transformer.config.items() if not name.startswith("_")}
    width = own["attention_head_dim"]
    smaller = type(pixart.transformer)(**{**own, "num_attention_heads": 1, "cross_attention_dim": width})
    gs.guide(pixart, "autoguidance(2)", networks={"weak": smaller})


def test_one_call_has_one_perturbation(pipe: Any) -> None:
    networks = {"weak": Perturbation("time", 0.5)}
    with pytest.raises(QueryError, match=r"is perturbed, and so is the network 'weak'"):
        gs.guide(pipe, "cfg(2, against='positive@weak+time(1)')", networks=networks)("a", num_inference_steps=1)


def test_a_network_for_an_inversion(pipe: Any) -> None:
    weak = worse(pipe.unet)
    latents = torch.randn(1, 4, 8, 8, generator=seeded(1)[0])
    inverting = gs.invert(pipe, "autoguidance(1.2)", networks={"weak": weak})
    noise = inverting("a cat", image=latents, num_inference_steps=40).latents
    options: dict[str, Any] = {"latents": noise, "num_inference_steps": 40, "output_type": "latent"}
    again = gs.guide(pipe, "autoguidance(1.2)", networks={"weak": weak})("a cat", **options).images
    plain = gs.guide(pipe, "stack()")("a cat", **options).images
    assert (again - latents).abs().mean() < 0.5 * (plain - latents).abs().mean()
