"""The node pack on ComfyUI's interface: on a stand-in, or on a real ComfyUI whose folder GUIDESTACK_COMFYUI names."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.bridges.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, comfy_entrypoint
from guidestack.bridges.comfyui.guided import _of_rows, guiding, readable
from guidestack.bridges.comfyui.nodes import GuidestackGuider, GuidestackPatch, GuidestackReport
from guidestack.guidance.errors import GuidestackWarning, InputError, NonFiniteError, RuleError

from . import comfyui_fake

REAL = os.environ.get("GUIDESTACK_COMFYUI", "")
PACK = Path(gs.__file__).parent / "bridges" / "comfyui"
BATCH = 2
SIGMAS = {False: [14.0, 7.0, 3.0, 1.0, 0.3, 0.1, 0.0], True: [1.0, 0.85, 0.7, 0.5, 0.3, 0.1, 0.0]}
STEPS = 6
FLOW = pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
# ComfyUI's samplers warn of their own ways with tensors and of Brownian motion at its ends.
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*:{kind}") for kind in ("UserWarning", "DeprecationWarning") if REAL]


@pytest.fixture(autouse=True)
def comfyui(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not REAL:
        comfyui_fake.install(lambda modules, name, module: monkeypatch.setitem(modules, name, module))
    elif REAL not in sys.path:
        sys.path.insert(0, REAL)
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
    import comfy.samplers

    with torch.inference_mode():
        yield comfy.samplers


def model(flow: bool = False, wide: float = 1.0) -> Any:
    """A MODEL with random weights, not the same for another `wide`."""
    if not REAL:
        return comfyui_fake.ModelPatcher(comfyui_fake.Model(flow, wide))
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    unet = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1]}
    unet |= {"channel_mult": [1, 2], "use_spatial_transformer": True, "transformer_depth": [1, 1], "context_dim": 4}
    unet |= {"transformer_depth_output": [1] * 4, "transformer_depth_middle": 1, "use_linear_in_transformer": False}
    unet |= {"legacy": False, "adm_in_channels": None, "use_temporal_attention": False, "dtype": torch.float32}
    kinds = comfy.model_base.ModelType
    config = comfy.supported_models.SD15(unet)
    made = comfy.model_base.BaseModel(config, model_type=kinds.FLOW if flow else kinds.EPS)
    weights = torch.Generator().manual_seed(int(10 * wide))
    for name, parameter in made.diffusion_model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=weights) / max(1, parameter[0].numel()) ** 0.5
        loud = 3 if "attn2" in name else 0.5  # so that conditions make a difference
        parameter.data = drawn * loud if parameter.ndim > 1 else torch.full_like(parameter, float("weight" in name))
    return comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))


def told(seed: int, rows: int = 1) -> Any:
    """A CONDITIONING."""
    drawn = torch.randn(rows, *(7, 4) if REAL else (4,), generator=torch.Generator().manual_seed(seed))
    return [[drawn, {}]]


class Counted:
    """The rows of each call of a MODEL's network."""

    def __init__(self, patcher: Any) -> None:
        self.rows: list[int] = []
        patcher.model.diffusion_model.register_forward_hook(lambda module, args, out: self.rows.append(len(out)))


def sample(guider: Any, flow: bool = False, sampler: str = "euler", batch: int = BATCH) -> Tensor:
    import comfy.samplers

    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)  # some samplers draw from there
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object(sampler),
        torch.tensor(SIGMAS[flow]),
        disable_pbar=True,
        seed=5,
    )


def near(samples: Tensor, others: Tensor) -> bool:
    """Whether nothing but rounding differs, which a network with random weights amplifies from step to step."""
    return bool((samples - others).abs().mean() < (1e-2 if REAL else 1e-5) * others.std())


def own(patcher: Any, scale: float, negative: Any = None) -> Any:
    """ComfyUI's own guider."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(told(1), negative or told(2))
    guider.set_cfg(scale)
    return guider


def guider(patcher: Any, stack: str, **links: Any) -> Any:
    return GuidestackGuider().execute(patcher, told(1), stack, **{"negative": told(2), **links})[0]


def report(guider: Any) -> gs.Report:
    return guiding(guider.model_patcher).report


@FLOW
def test_cfg_is_comfyuis_own_on_every_sampler(comfyui: Any, flow: bool) -> None:
    patcher = model(flow)
    for sampler in comfyui.SAMPLER_NAMES:
        scales = {"cfg": 0.6, "cfgpp": 0.6} if sampler.endswith("cfg_pp") else {"cfg": 3}
        for rule, scale in scales.items():
            ours, theirs = guider(patcher, f"{rule}({scale})"), own(patcher, scale)
            assert (sample(ours, flow, sampler) - sample(theirs, flow, sampler)).abs().max() == 0, (sampler, rule)


@FLOW
def test_perp_neg_evaluates_two_negatives_in_one_call(flow: bool) -> None:
    patcher = model(flow)
    counted = Counted(patcher)
    both = guider(patcher, "perpneg(3, weights=(1, 0.5))", null=told(3), negative_2=told(4))
    samples = sample(both, flow)
    assert counted.rows == [4 * BATCH] * STEPS
    assert (report(both).calls, report(both).rows, report(both).evaluations) == (STEPS, 8 * STEPS, [4 * STEPS] * BATCH)
    one = guider(patcher, "perpneg(3, weights=(1, 0.5))", null=told(3))
    assert not near(samples, sample(one, flow))
    # The numbers of the inputs are those of the weights.
    other = guider(patcher, "perpneg(3, weights=(0.5, 1))", null=told(3), negative=told(4), negative_2=told(2))
    assert near(samples, sample(other, flow))


@FLOW
def test_adaptive_stops_each_sample_by_itself(flow: bool) -> None:
    patcher = model(flow)
    counted = Counted(patcher)
    with pytest.warns(GuidestackWarning, match="stopped guiding every sample at the first step"):
        sample(guider(patcher, "adaptive(cfg(3), threshold=-1)"), flow)
    assert counted.rows == [2 * BATCH] + [BATCH] * (STEPS - 1)
    # The first sample's negative is its prompt, so that it stops at once; the second one's is another.
    mixed = [[torch.cat([told(1)[0][0], told(2)[0][0]]), {}]]
    counted.rows.clear()
    stack = "adaptive(cfg(3), threshold=0.999999, space='denoised')"
    together = guider(patcher, stack, negative=mixed)
    samples = sample(together, flow)
    assert counted.rows == [2 * BATCH] + [BATCH, 1] * (STEPS - 1)
    assert report(together).evaluations == [STEPS + 1, 2 * STEPS]
    assert report(together).calls == 1 + 2 * (STEPS - 1)
    assert near(samples[:1], sample(guider(patcher, "stack()"), flow)[:1])
    assert near(samples[1:], sample(own(patcher, 3), flow)[1:])
    # Who sees the batch as one is handed whole batches, with the same result.
    seen = patcher.clone()
    seen.model_options["transformer_options"]["patches"] = {"none": []}
    counted.rows.clear()
    again = sample(guider(seen, stack, negative=mixed), flow)
    assert counted.rows == [2 * BATCH] * STEPS
    assert near(again, samples)


@FLOW
def test_schedule_leaves_calls_out(flow: bool) -> None:
    patcher = model(flow)
    counted = Counted(patcher)
    skipping = guider(patcher, "schedule(cfg(3), 'g g c r s g')")
    samples = sample(skipping, flow)
    assert counted.rows == [2 * BATCH, 2 * BATCH, BATCH, BATCH, 2 * BATCH]
    assert [one.calls for one in report(skipping).steps] == [1, 1, 1, 1, 0, 1]
    assert samples.isfinite().all()
    with pytest.raises(RuleError, match="for 3 steps, and this run has 6"):
        sample(guider(patcher, "schedule(cfg(3), 'g g c')"), flow)


@FLOW
def test_a_cfg_pp_sampler_under_other_stacks(flow: bool) -> None:
    patcher = model(flow)
    plain = sample(guider(patcher, "stack()"), flow)
    assert near(sample(guider(patcher, "stack()"), flow, "euler_cfg_pp"), plain)
    skipped = sample(guider(patcher, "schedule(cfgpp(0.6), 'g g c r s g')"), flow, "euler_cfg_pp")
    assert skipped.isfinite().all()
    renoised = sample(guider(patcher, "cfg(0.6) | renoise('negative')"), flow, "euler_cfg_pp")
    assert (renoised - sample(own(patcher, 0.6), flow, "euler_cfg_pp")).abs().max() == 0
    counted = Counted(patcher)
    with pytest.raises(InputError, match=r"cfgpp\(0.6\) re-noises .* such as euler_cfg_pp"):
        sample(guider(patcher, "cfgpp(0.6)"), flow)
    assert counted.rows == []


def test_cfg_zero_zeroes_steps_of_flows() -> None:
    patcher = model(flow=True)
    counted = Counted(patcher)
    assert sample(guider(patcher, "cfg_zero(3, zero_steps=2)"), True).isfinite().all()
    assert counted.rows == [BATCH] * 2 + [2 * BATCH] * (STEPS - 2)
    with pytest.raises(RuleError, match="zero_steps is for flow models"):
        sample(guider(model(), "cfg_zero(3, zero_steps=2)"))


@FLOW
def test_windows_are_of_sigma_over_alpha(flow: bool) -> None:
    windowed = guider(model(flow), "during(cfg(3), sigma=(0.9, 3.5))")
    sample(windowed, flow)
    assert [len(one.queries) for one in report(windowed).steps] == [1, 1, 2, 2, 1, 1]
    assert {one.level.path for one in report(windowed).steps} == {"flow" if flow else "diffusion"}


def test_steps_are_levels(comfyui: Any) -> None:
    windowed = guider(model(), "during(cfg(3), sigma=(0.9, 3.5))")
    sample(windowed, sampler="heun")
    places = [(one.index, one.evaluation) for one in report(windowed).steps]
    assert places == [(0, 0), *((index, evaluation) for index in range(1, STEPS) for evaluation in (0, 1))]
    levels = {(one.index, round(one.level.sigma, 4)) for one in report(windowed).steps}
    assert levels == set(enumerate(SIGMAS[False][:-1]))
    # Back to noise: the same levels from the other end.
    noise, rising = torch.ones(1, 4, 8, 8), torch.tensor(SIGMAS[False][-2::-1])
    windowed.sample(noise, noise, comfyui.sampler_object("euler"), rising, disable_pbar=True, seed=0)
    assert [one.index for one in report(windowed).steps] == list(range(STEPS - 1))


def test_a_patched_model_under_a_plain_guider() -> None:
    patcher = model()
    (patched,) = GuidestackPatch().execute(patcher, "apg(3, eta=0) | rescale(0.5)")
    samples = sample(own(patched, 1))
    assert torch.equal(samples, sample(guider(patcher, "apg(3, eta=0) | rescale(0.5)")))
    assert guiding(patcher) is None  # it stays as it was
    assert (sample(own(patcher, 3)) - sample(guider(patcher, "cfg(3)"))).abs().max() == 0
    with pytest.raises(InputError, match=r"cfg is 8, .* set cfg to 1"):
        sample(own(patched, 8))
    with pytest.raises(InputError, match=r"perpneg.* asks for 'null', and the graph has negative, positive; link"):
        sample(own(GuidestackPatch().execute(patcher, "perpneg(3)")[0], 1))
    with pytest.raises(InputError, match=r"carries the stack apg\(3\) \| rescale\(0.5\) already"):
        guider(patched, "cfg(3)")


def test_a_guider_with_a_guidance_of_its_own_is_refused(comfyui: Any) -> None:
    class Dual(comfyui.CFGGuider):  # type: ignore[misc]
        def predict_noise(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    (patched,) = GuidestackPatch().execute(model(), "cfg(3)")
    dual = Dual(patched)
    dual.set_conds(told(1), told(2))
    with pytest.raises(InputError, match="Dual has a guidance of its own"):
        sample(dual)


def test_what_other_nodes_put_into_the_model() -> None:
    def hook(args: Any) -> Any:
        return args["denoised"] + args["cond_denoised"] - args["uncond_denoised"]

    def wrapper(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x, *args, **kwargs) + 0.1

    for put in ("set_model_sampler_cfg_function", "set_model_sampler_pre_cfg_function"):
        patcher = model()
        getattr(patcher, put)(hook)
        with pytest.raises(InputError, match=r"test_comfyui.*hook, put into the MODEL by another node \(sampler_"):
            sample(guider(patcher, "cfg(3)"))
    patcher = model()
    patcher.set_model_sampler_post_cfg_function(hook)
    patcher.add_wrapper_with_key("predict_noise", "mine", wrapper)
    ours = guider(patcher, "cfg(3)")
    assert (sample(ours) - sample(own(patcher, 3))).abs().max() == 0
    assert "predict_noise" not in vars(ours)  # nor after a failure:
    patcher.add_wrapper_with_key("predict_noise", "mine", lambda executor, *args, **kwargs: 1 / 0)
    ours = guider(patcher, "cfg(3)")
    with pytest.raises(ZeroDivisionError):
        sample(ours)
    assert "predict_noise" not in vars(ours)


def test_a_weak_model() -> None:
    patcher, weak = model(), model(wide=0.5)
    by_weak = guider(patcher, "cfg(2, against='positive@weak')", weak=weak)
    counted, weaker = Counted(patcher), Counted(weak)
    samples = sample(by_weak)
    assert counted.rows == weaker.rows == [BATCH] * STEPS
    if not REAL:
        assert (weak.began, weak.ended) == (1, 1)
    # A weak network that is as good leads nowhere.
    same = sample(guider(patcher, "cfg(2, against='positive@weak')", weak=model()))
    assert near(same, sample(guider(patcher, "stack()")))
    assert not near(samples, same)
    for stack, linked, says in (
        ("cfg(2)", weak, "asks for no weak MODEL"),
        ("cfg(2, against='positive@weak')", None, "link a weak MODEL"),
        ("cfg(2, against='positive@weak')", patcher.clone(), "second loader node"),
        ("cfg(2, against='positive@weak')", model(flow=True), "one is a flow model"),
    ):
        with pytest.raises(InputError, match=says):
            sample(guider(patcher, stack, weak=linked))


def test_samples_that_are_lost() -> None:
    patcher = model()
    spoiled = [[torch.cat([told(2)[0][0], torch.full_like(told(2)[0][0], torch.nan)]), {}]]
    with pytest.warns(GuidestackWarning, match=r"NaN or Inf .* lost: samples \[1\]"):
        samples = sample(guider(patcher, "cfg(3)", negative=spoiled))
    assert samples[0].isfinite().all()
    with pytest.raises(NonFiniteError, match="answer to 'negative'"):
        sample(guider(patcher, "cfg(3)", negative=[[spoiled[0][0][1:], {}]]))


def test_the_report() -> None:
    node, latent = GuidestackReport(), {"samples": torch.zeros(1)}
    patcher = model()
    adaptive = guider(patcher, "adaptive(cfg(3), threshold=-1)")
    with pytest.raises(InputError, match="has not run yet"):
        node.execute(latent, guider=adaptive)
    with pytest.warns(GuidestackWarning, match="stopped guiding"):
        sample(adaptive)
    done = node.execute(latent, guider=adaptive)
    text, handed = done["result"]
    assert handed is latent
    assert done["ui"] == {"text": [text]}
    lines = text.splitlines()
    assert "2 samples, 6 steps, 7 evaluations a sample, 6 network calls, 14 rows" in lines[0]
    assert lines[1].startswith("step 0: sigma/alpha 14, positive for 2, negative for 2; calls: 1, rows: 4, cosine ")
    assert len(lines) == 1 + STEPS
    (patched,) = GuidestackPatch().execute(patcher, "cfg(3)")
    sample(own(patched, 1))
    assert node.execute(latent, model=patched)["result"][0].startswith("cfg(3): 2 samples")
    for links, says in (
        ({}, "either"),
        ({"model": patched, "guider": adaptive}, "either"),
        ({"model": patcher}, "carries no stack"),
    ):
        with pytest.raises(InputError, match=says):
            node.execute(latent, **links)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cgf(3)", "did you mean 'cfg'"),
        ("cfg(3", "cannot read the stack"),
        ("rescale(0.5) | cfg(3)", "write cfg"),
        ("tsg(3)", r"perturbs the network \(time\)"),
        ("icg(3)", "draws random conditions"),
        ("linear_ag(cfg(4), 'emoji-cfg4-20')", "fitted to a model"),
        ("linear_ag(cfg(4), '/etc/passwd.safetensors')", "reads the file .* a workflow names no files"),
        ("cfg(3, against='positive@other')", "is called 'weak'"),
        ("cfgpp(0.6, second_order='guided')", "leave second_order out"),
        ("@/etc/passwd.yaml", "reads no files; got '@/etc/passwd.yaml'"),
        ("@recsale", "did you mean 'rescale'"),
        ("__import__('os').system('true')", "cannot read the stack"),
        ("", "is empty"),
    ],
)
def test_a_text_with_an_error_is_told_on_the_node(text: str, says: str) -> None:
    for node in (GuidestackGuider, GuidestackPatch):
        with pytest.raises(gs.GuidestackError, match=says) as caught:
            node().execute(model(), **({"positive": told(1)} if node is GuidestackGuider else {}), stack=text)
        said = node.VALIDATE_INPUTS(stack=text)
        assert said == str(caught.value)
        assert "\n" not in said


def test_a_text_without_one() -> None:
    assert GuidestackGuider.VALIDATE_INPUTS(stack="cfg(3)\n| rescale(0.7)") is True
    assert GuidestackGuider.VALIDATE_INPUTS() is True  # another node makes it, and it comes with the run
    assert readable("@rescale") == gs.parse("cfg(7.5) | rescale(0.7)")


def test_conditions_that_are_missing() -> None:
    patcher = model()
    for stack, links, says in (
        ("cfg(3)", {"negative": None}, "asks for 'negative', and the graph has positive; link the input negative of"),
        ("perpneg(3)", {}, "link the input null of"),
        ("cfg(3, against='negative:1')", {}, "link the input negative_2 of"),
    ):
        with pytest.raises(InputError, match=says):
            guider(patcher, stack, **links)
    with pytest.raises(InputError, match="negative_3 is linked and negative_2 is not"):
        guider(patcher, "perpneg(3)", null=told(3), negative_3=told(4))
    # The empty prompt takes a negative's place, and the networks are told what a condition is.
    alone = guider(patcher, "cfg(3)", negative=None, null=told(2))
    assert (sample(alone) - sample(own(patcher, 3))).abs().max() == 0
    assert [one[0].get("prompt_type") for one in alone.original_conds.values()] == [None, "negative"]


def test_rows_of_a_condition() -> None:
    told = SimpleNamespace(cond=torch.arange(2)), SimpleNamespace(cond=torch.zeros(1)), SimpleNamespace(cond=3)
    several = SimpleNamespace(cond=[torch.arange(3)])
    conds = dict(zip("abcd", (*told, several), strict=True))
    some = _of_rows({"model_conds": conds, "mask": torch.arange(4), "strength": 1.0}, (1, 2))
    assert some["model_conds"]["a"].cond.tolist() == [1, 0]
    assert some["model_conds"]["b"].cond is told[1].cond
    assert some["model_conds"]["c"].cond == 3
    assert some["model_conds"]["d"].cond[0].tolist() == [1, 2]
    assert some["mask"].tolist() == [1, 2]
    assert told[0].cond.tolist() == [0, 1]


def loaded_as_comfyui_does(folder: Path) -> Any:
    """The pack, imported from a link under a name of ComfyUI's."""
    spec = importlib.util.spec_from_file_location("/custom_nodes/guidestack", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_can_be_linked(tmp_path: Path) -> None:
    (tmp_path / "guidestack").symlink_to(PACK, target_is_directory=True)
    pack = loaded_as_comfyui_does(tmp_path / "guidestack")
    assert set(pack.NODE_CLASS_MAPPINGS) == {"GuidestackGuider", "GuidestackPatch", "GuidestackReport"}
    assert pack.NODE_CLASS_MAPPINGS["GuidestackGuider"] is GuidestackGuider
    assert set(pack.NODE_DISPLAY_NAME_MAPPINGS) == set(pack.NODE_CLASS_MAPPINGS)
    for node in pack.NODE_CLASS_MAPPINGS.values():
        assert node.DESCRIPTION
        assert set(node.INPUT_TYPES()) == {"required", "optional"}
        assert callable(getattr(node(), node.FUNCTION))


def test_both_registrations_are_one() -> None:
    nodes = asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())
    assert [node.__name__ for node in nodes] == list(NODE_CLASS_MAPPINGS)
    for node in nodes:
        v1, schema = NODE_CLASS_MAPPINGS[node.__name__], node.define_schema()
        names = {"id": None} if REAL else {"name": None}
        assert [getattr(one, *names) for one in schema.inputs] == [*v1.REQUIRED, *v1.OPTIONAL]
        assert [one.optional for one in schema.inputs] == [name in v1.OPTIONAL for name in (*v1.REQUIRED, *v1.OPTIONAL)]
        assert schema.display_name == NODE_DISPLAY_NAME_MAPPINGS[schema.node_id]
        assert len(schema.outputs) == len(v1.RETURN_TYPES)
        assert schema.is_output_node == v1.OUTPUT_NODE
        if REAL:
            assert node.GET_SCHEMA().node_id == node.__name__
    guide, patch, account = nodes
    patcher = model()
    made = guide.execute(model=patcher, positive=told(1), stack="cfg(3)", negative=told(2)).result[0]
    assert (sample(made) - sample(own(patcher, 3))).abs().max() == 0
    assert account.execute(latent=1, guider=made).result[1] == 1
    assert "did you mean" in guide.validate_inputs(stack="cgf(3)")
    assert patch.validate_inputs(stack="cfg(3)") is True


WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows(path: Path) -> None:
    """Every link has two ends of one type, and our nodes are written as they are now."""
    flow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in flow["nodes"]}
    for link, source, out, target, place, kind in flow["links"]:
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][place]["link"] == link
        assert kind == nodes[source]["outputs"][out]["type"]
        assert nodes[target]["inputs"][place]["type"] in (kind, "*")
    ours = [node for node in flow["nodes"] if node["type"] in NODE_CLASS_MAPPINGS]
    assert len(ours) == 2
    for node in ours:
        known = NODE_CLASS_MAPPINGS[node["type"]]
        sockets = {name: form[0] for name, form in {**known.REQUIRED, **known.OPTIONAL}.items() if form[0] != "STRING"}
        assert [(one["name"], one["type"]) for one in node["inputs"]] == list(sockets.items())
        assert tuple(one["type"] for one in node["outputs"]) == known.RETURN_TYPES
        for text in node["widgets_values"]:
            assert known.VALIDATE_INPUTS(stack=text) is True


def test_there_are_two_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ksampler", "perp_neg"]


ON_COMFYUI = pytest.mark.skipif(not REAL, reason="GUIDESTACK_COMFYUI names no folder of ComfyUI")


@ON_COMFYUI
def test_areas_masks_and_ranges_stay_in_force() -> None:
    patcher = model()
    masks = torch.rand(BATCH, 8, 8, generator=torch.Generator().manual_seed(0))
    within = [[told(6)[0][0], {"area": (4, 6, 2, 0), "strength": 0.7}], [told(7)[0][0], {"start_percent": 0.3}]]
    masked = [[told(1)[0][0], {"mask": masks, "mask_strength": 1.0}], *within]
    positive = own(patcher, 3, told(2))
    positive.set_conds(masked, told(2))
    (ours,) = GuidestackGuider().execute(patcher, masked, "cfg(3)", negative=told(2))
    assert (sample(ours) - sample(positive)).abs().max() == 0
    # A sample that stops by itself keeps its own mask.
    mixed = [[torch.cat([told(1)[0][0], told(2)[0][0]]), {"mask": masks, "mask_strength": 1.0}], *within]
    stack = "adaptive(cfg(3), threshold=0.999999, space='denoised')"
    (divided,) = GuidestackGuider().execute(patcher, masked, stack, negative=mixed)
    seen = patcher.clone()
    seen.model_options["transformer_options"]["patches"] = {"none": []}
    (whole,) = GuidestackGuider().execute(seen, masked, stack, negative=mixed)
    assert near(sample(divided), sample(whole))
    assert report(divided).evaluations == report(whole).evaluations == [STEPS + 1, 2 * STEPS]
    assert report(divided).rows < report(whole).rows


@ON_COMFYUI
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_comfyui_takes_the_workflows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own check of a graph finds nothing wrong, and finds a text that is."""
    import execution
    import nodes

    for module in ("nodes_custom_sampler", "nodes_preview_any"):
        path_of = Path(REAL) / "comfy_extras" / f"{module}.py"
        asyncio.run(nodes.load_custom_node(str(path_of), module_parent="comfy_extras"))
    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    checkpoint = "v1-5-pruned-emaonly-fp16.safetensors"
    monkeypatch.setattr("folder_paths.get_filename_list", lambda name: [checkpoint])
    flow = json.loads(path.read_text())
    ends = {link[0]: [str(link[1]), link[2]] for link in flow["links"]}
    prompt: dict[str, Any] = {}
    for node in flow["nodes"]:
        forms = nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
        linked = {one["name"]: ends[one["link"]] for one in node["inputs"] if one["link"]}
        asked = {**forms["required"], **forms.get("optional", {})}
        free = [name for name in asked if name not in {one["name"] for one in node["inputs"]}]
        values = [value for value in node["widgets_values"] if value != "fixed"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**linked, **dict(zip(free, values))}}
    assert asyncio.run(execution.validate_prompt("1", prompt, None))[0] is True
    ours = next(one for one in prompt.values() if "stack" in one["inputs"])
    ours["inputs"]["stack"] = "cgf(3)"
    good, _, _, errors = asyncio.run(execution.validate_prompt("1", prompt, None))
    assert not good
    assert "did you mean 'cfg'" in str(errors)
