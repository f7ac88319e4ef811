"""Guided and stock calls at the same time: whose call it is; and what guidance does not hang on: callbacks."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
import pickle
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError
from guidestack.pipelines.families.record import FAMILIES, register_family

from .test_families import arguments
from .tiny import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule"),
]

GIVEN: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, all running at once."""
    results: list[Any] = [None] * len(work)

    def one(place: int) -> None:
        try:
            results[place] = work[place]()
        except Exception as error:  # handed to the test
            results[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_two_pipelines_in_lockstep_do_not_meet(new_pipe: Any) -> None:
    """Each waits for the other at every call of its network, under one stack object with a memory."""
    pipes = [new_pipe(), new_pipe()]
    stack = gs.AdaptiveGuidance(gs.APG(5, momentum=-0.5), threshold=0.9999, space="denoised") | gs.TSG(2)
    guided = [gs.guide(pipe, stack) for pipe in pipes]
    prompts = ["a cat", "red sky"]

    def run(which: int) -> Any:
        return guided[which](prompts[which], generator=seeded(which), **GIVEN).images

    alone = [run(0), run(1)]
    evaluations = [one.report.evaluations for one in guided]
    barrier, met = threading.Barrier(2, timeout=30), []

    def wait(module: Any, args: Any) -> None:
        barrier.wait()
        met.append(threading.get_ident())

    handles = [pipe.unet.conv_in.register_forward_pre_hook(wait) for pipe in pipes]
    together = in_threads(lambda: run(0), lambda: run(1))
    for handle in handles:
        handle.remove()
    assert len(set(met)) == 2
    assert min(met.count(one) for one in set(met)) >= 4
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [one.report.evaluations for one in guided] == evaluations
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("shared", ["pipeline", "scheduler"])
def test_another_thread_cannot_have_it_meanwhile(new_pipe: Any, shared: str) -> None:
    pipe = other = new_pipe()
    if shared != "pipeline":
        other = new_pipe()
        other.scheduler = pipe.scheduler
    first, second = gs.guide(pipe, gs.CFG(3)), gs.guide(other, gs.CFG(6))
    wanted = first("a", generator=seeded(1), **GIVEN).images
    inside, done = threading.Event(), threading.Event()

    def wait(module: Any, args: Any) -> None:
        inside.set()
        done.wait(30)

    handle = pipe.unet.register_forward_pre_hook(wait)

    def meanwhile() -> Any:
        inside.wait(30)
        try:
            return second("a", generator=seeded(1), **GIVEN).images
        finally:
            done.set()

    got, refused = in_threads(lambda: first("a", generator=seeded(1), **GIVEN).images, meanwhile)
    handle.remove()
    assert isinstance(refused, GuidanceNotAppliedError)
    assert "is in the middle of another guided call; wait for it, or give each thread a pipeline of its own" in str(
        refused
    )
    assert torch.equal(got, wanted)  # which did not notice
    assert first.report.evaluations == [8]
    assert second("a", generator=seeded(1), **GIVEN).images.shape == wanted.shape  # and is free again afterwards


# --- modules that several pipelines share, a scheduler each ----------------------------------------------------------

SHARING = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "WanPipeline, two transformers",
    "LTXPipeline",
    "ZImagePipeline",
)
"""Conditions in one batch and in calls one after the other, one network and two, lists of samples."""
EDITED = "pag(2) | slg(0.3, 'middle') | tpg(0.3) | sg(2)"
STACKS = ("cfg(3)", "apg(5, momentum=-0.5) | rescale(0.5)", "perpneg(4)", "stack()", "cfgpp(0.6)", "tsg(3)", EDITED)
PERTURBED = "tsg(3)"
KINDS = ("stock", "fails", "asks", *STACKS)


def again(pipe: Any) -> Any:
    """Another pipeline object with the same modules; the scheduler and the tokenizers, which remember, are its own."""
    other = copy.copy(pipe)
    for name, part in pipe.components.items():
        if part is not None and not isinstance(part, nn.Module):
            setattr(other, name, copy.deepcopy(part))
    return other


def networks(pipe: Any) -> list[nn.Module]:
    found = (getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2"))
    return [one for one in found if one is not None]


def layer(module: nn.Module) -> nn.Module:
    """One of its layers."""
    return next(one for one in module.modules() if isinstance(one, nn.Linear | nn.Conv2d | nn.Conv3d))


def untouched(pipe: Any) -> None:
    """Nothing is left on a pipeline's networks and scheduler."""
    for module in networks(pipe):
        assert type(module).__module__.startswith("diffusers.")
        assert not any("_compiled_call_impl" in vars(one) for one in module.modules())
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
    assert not any(callable(value) for value in vars(pipe.scheduler).values())


class Family:
    """Stock and guided calls of a tiny pipeline, each with a pipeline object of its own, and what they give alone."""

    def __init__(self, pipe: Any, arguments: Callable[[bool], dict[str, Any]], kinds: Sequence[str] = KINDS) -> None:
        self.pipe, self.arguments, self.kinds = pipe, arguments, kinds
        self.alone = {kind: self.run(kind) for kind in kinds}

    def run(self, kind: str, **more: Any) -> Any:
        if kind == "asks":  # a metric, or a preview: the network itself
            return self.network()
        pipe = again(self.pipe)
        if kind == "stock":
            return pipe(**self.arguments(True), **more)[0]
        if kind != "fails":
            given = self.arguments(False)
            if kind in ("stack()", PERTURBED, EDITED):
                given = {name: value for name, value in given.items() if name != "negative_prompt"}
            made = gs.guide(pipe, kind)(**given, **more)[0]
            untouched_scheduler(pipe)
            return made

        def fail(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and next(calls) == 1:
                raise KeyError("on purpose")

        thread, calls = threading.get_ident(), itertools.count()
        handle = networks(pipe)[0].register_forward_hook(fail)
        try:
            with pytest.raises(KeyError, match="on purpose"):
                gs.guide(pipe, "apg(5, momentum=-0.5)")(**self.arguments(False))
        finally:
            handle.remove()
        untouched_scheduler(pipe)
        return None

    def network(self) -> Any:
        """An answer of the network by itself."""
        module = networks(self.pipe)[0]
        if not hasattr(self, "question"):
            asked: list[Any] = []
            handle = module.register_forward_pre_hook(
                lambda module, args, kwargs: asked.append(copy.deepcopy((args, kwargs))), with_kwargs=True
            )
            again(self.pipe)(**self.arguments(True))
            handle.remove()
            self.question = asked[0]
        args, kwargs = copy.deepcopy(self.question)
        with torch.no_grad():
            return module(*args, **kwargs)[0]


def untouched_scheduler(pipe: Any) -> None:
    assert not any(callable(value) for value in vars(pipe.scheduler).values())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return all(map(same, one, other))
    return one is other or bool(torch.equal(one, other))


class Turns:
    """Threads that run one at a time and change places wherever they call `pause`, as a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random, self.turn, self.names = random.Random(seed), threading.Condition(), list[str]()
        self.now, self.changes = "", 0

    def pause(self, *ignored: Any) -> None:
        name = threading.current_thread().name
        with self.turn:
            if name not in self.names:
                return
            if self.now == name:
                self._next()
            assert self.turn.wait_for(lambda: self.now == name, 60)

    def _next(self) -> None:
        before, self.now = self.now, self.random.choice(self.names) if self.names else ""
        self.changes += self.now != before
        self.turn.notify_all()

    def run(self, *work: Callable[[], Any]) -> list[Any]:
        def one(name: str, call: Callable[[], Any]) -> Any:
            threading.current_thread().name = name
            self.pause()
            try:
                return call()
            finally:
                with self.turn:
                    self.names.remove(name)
                    self._next()

        self.names = [f"turn {place}" for place in range(len(work))]
        self.now = self.names[0]
        return in_threads(*(functools.partial(one, *both) for both in zip(list(self.names), work, strict=True)))


def interleaved(family: Family, seeds: Sequence[int]) -> None:
    """Random calls in three threads, which change places inside their networks and around each step."""
    changes = 0
    for seed in seeds:
        turns, choice = Turns(seed), random.Random(seed)
        inner = [layer(module) for module in networks(family.pipe)]
        plans = [[choice.choice(family.kinds) for _ in range(choice.choice((1, 1, 2)))] for _ in range(3)]

        def work(plan: list[str], turns: Turns = turns) -> list[Any]:
            return [(turns.pause(), family.run(kind), turns.pause())[1] for kind in plan]

        handles = [module.register_forward_pre_hook(turns.pause) for module in inner]
        found = turns.run(*(functools.partial(work, plan) for plan in plans))
        for handle in handles:
            handle.remove()
        for plan, made in zip(plans, found, strict=True):
            assert not isinstance(made, BaseException), (seed, plans, made)
            for kind, one in zip(plan, made, strict=True):
                assert same(one, family.alone[kind]), (seed, plans, kind)
        untouched(family.pipe)
        changes += turns.changes
    assert changes > 5 * len(seeds)


def of_stable_diffusion(pipe: Any, kinds: Sequence[str] = KINDS) -> Family:
    given = {"prompt": ["a cat"], "num_inference_steps": 3, "output_type": "latent"}
    return Family(
        pipe,
        lambda on: {
            **given,
            "negative_prompt": ["red"],
            "generator": [seeded(1)],
            **({"guidance_scale": 5.0} if on else {}),
        },
        kinds,
    )


def of(name: str) -> Family:
    kinds = [kind for kind in KINDS if "ZImage" not in name or kind != PERTURBED]
    return Family(load(name).make(), lambda on: arguments(name, 1, on=on), kinds)


def test_interleaved_calls_are_what_they_are_alone(new_pipe: Any) -> None:
    interleaved(of_stable_diffusion(new_pipe()), range(10))


@pytest.mark.slow
def test_many_interleaved_calls(new_pipe: Any) -> None:
    interleaved(of_stable_diffusion(new_pipe()), range(10, 80))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
def test_interleaved_calls_of_other_families(name: str) -> None:
    interleaved(of(name), range(15))


@pytest.mark.parametrize("kind", ["stock", "fails", "asks", "apg(5, momentum=-0.5) | rescale(0.5)", PERTURBED])
def test_calls_inside_a_callback(new_pipe: Any, kind: str) -> None:
    in_a_callback(of_stable_diffusion(new_pipe()), kind)


@pytest.mark.parametrize("name", SHARING)
def test_calls_inside_a_callback_of_other_families(name: str) -> None:
    family = of(name)
    for kind in ("stock", "asks", "apg(5, momentum=-0.5) | rescale(0.5)"):
        in_a_callback(family, kind)


def in_a_callback(family: Family, kind: str) -> None:
    """Another call of the same modules by the same thread: by a callback, and by a hook on a module of the network."""
    found: list[Any] = []
    busy: list[bool] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        found.append(family.run(kind))
        return {}

    def hook(module: Any, args: Any) -> None:
        if not busy and len(found) < 3:
            busy.append(True)
            found.append(family.run(kind))
            busy.clear()

    for outer in ("apg(5, momentum=-0.5) | rescale(0.5)", "cfg(3)"):
        made = family.run(outer, callback_on_step_end=callback)
        assert same(made, family.alone[outer])
        assert len(found) >= 2
        assert all(same(one, family.alone[kind]) for one in found), kind
        found.clear()
    handle = layer(networks(family.pipe)[0]).register_forward_pre_hook(hook)
    assert same(family.run("cfg(3)"), family.alone["cfg(3)"])
    handle.remove()
    assert len(found) >= 2
    assert all(same(one, family.alone[kind]) for one in found), kind
    untouched(family.pipe)


def test_a_pipeline_of_another_class_inside_a_callback(new_pipe: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = new_pipe()
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    picture = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)

    def variation() -> Any:
        return other("red", picture, generator=seeded(3), **GIVEN).images

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        found.append(variation())
        return {}

    guided, found, alone = gs.guide(pipe, "cfg(6)"), list[Any](), variation()
    wanted = guided("a", generator=seeded(1), **GIVEN).images
    assert torch.equal(guided("a", generator=seeded(1), callback_on_step_end=callback, **GIVEN).images, wanted)
    assert len(found) == 4
    assert all(torch.equal(one, alone) for one in found)
    untouched(pipe)


@pytest.mark.parametrize("same_object", [True, False])
@pytest.mark.parametrize("name", ["EulerDiscrete", "DDIM", "PNDM", "UniPCMultistep"])
def test_a_scheduler_that_somebody_else_uses_meanwhile_is_refused(new_pipe: Any, name: str, same_object: bool) -> None:
    """The other call is served, between two steps and within one; the guided one does not go on with what it left."""
    pipe = new_pipe()
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler")(beta_schedule="scaled_linear")
    other = pipe
    if not same_object:
        other = copy.copy(pipe)
    stock = other("red", generator=seeded(3), **GIVEN).images
    found = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        found.append(other("red", generator=seeded(3), **GIVEN).images)
        return {}

    guided = gs.guide(pipe, "cfg(6)")
    with pytest.raises(GuidanceNotAppliedError, match="was used by somebody else in the middle of a guided call"):
        guided("a", generator=seeded(1), callback_on_step_end=callback, **GIVEN)
    assert torch.equal(found[0], stock)
    untouched(pipe)

    def hook(module: Any, args: Any) -> None:
        handle.remove()
        found.append(other("red", generator=seeded(3), **GIVEN).images)

    handle = layer(pipe.unet).register_forward_pre_hook(hook)
    with pytest.raises(GuidanceNotAppliedError, match="was used by somebody else in the middle of a guided call"):
        guided("a", generator=seeded(1), **GIVEN)
    assert torch.equal(found[1], stock)
    untouched(pipe)

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.scheduler.scale_model_input(tensors["latents"], timestep)
        return {}

    wanted = guided("a", generator=seeded(1), **GIVEN).images
    assert torch.equal(guided("a", generator=seeded(1), callback_on_step_end=look, **GIVEN).images, wanted)


def test_copies_and_pickles_made_meanwhile_have_no_hooks(new_pipe: Any, tmp_path: Path) -> None:
    pipe = new_pipe()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)
    guided = gs.guide(pipe, "cfg(6)")
    wanted = guided("a", generator=seeded(1), **GIVEN).images
    stock = pipe("red", generator=seeded(3), **GIVEN).images
    found: list[Any] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step not in (0, 3):
            return {}
        pipe.save_pretrained(tmp_path / str(step))
        found.extend((copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe)), copy.deepcopy(guided).pipe))
        found.append(type(pipe).from_pretrained(tmp_path / str(step), safety_checker=None))
        shallow = copy.copy(pipe)
        shallow.unet, shallow.scheduler = copy.copy(pipe.unet), copy.copy(pipe.scheduler)
        found.append(shallow)
        return {}

    assert torch.equal(guided("a", generator=seeded(1), callback_on_step_end=callback, **GIVEN).images, wanted)
    assert len(found) == 10
    for one in found:
        untouched(one)
        assert one.unet is not pipe.unet
        one.set_progress_bar_config(disable=True)
        assert torch.equal(one("red", generator=seeded(3), **GIVEN).images, stock)
    again = gs.guide(found[0], "cfg(6)")
    assert torch.equal(again("a", generator=seeded(1), **GIVEN).images, wanted)


def test_guided_pipelines_are_pickled(new_pipe: Any) -> None:
    pipe = new_pipe()
    for one in (gs.guide(pipe, "apg(5, momentum=-0.5) | tsg(2)"), gs.invert(pipe, "cfg(3)"), gs.edit(pipe, "cfg(3)")):
        assert repr(pickle.loads(pickle.dumps(one))) == repr(one)
        assert repr(copy.deepcopy(one)) == repr(one)
    guided = gs.guide(pipe, "adaptive(apg(5, momentum=-0.5), threshold=0.9999, space='denoised')")
    wanted = guided("a", generator=seeded(1), **GIVEN).images
    for other in (pickle.loads(pickle.dumps(guided)), copy.deepcopy(guided)):
        assert other.report.evaluations == guided.report.evaluations
        assert other.family is guided.family
        assert torch.equal(other("a", generator=seeded(1), **GIVEN).images, wanted)


@pytest.mark.parametrize("where", ["method", "decorated", "function", "callback"])
def test_whose_code_calls_the_network(new_pipe: Any, where: str) -> None:
    """The pipeline's are its class's functions; not those that the user hands it, even if written there."""
    from diffusers import StableDiffusionPipeline

    def predict(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        return pipe.unet(*args, **kwargs)

    class Mine(StableDiffusionPipeline):  # type: ignore[misc]
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            (answer,) = [self.unet(*args, **kwargs) for _ in range(1)]
            return answer

        @torch.no_grad()
        def __call__(
            self, prompt: str, guidance_scale: float = 1.0, num_inference_steps: int = 2, look: Any = None
        ) -> Any:
            self._guidance_scale = guidance_scale
            texts = torch.cat(self.encode_prompt([prompt], "cpu", 1, True)[::-1])
            self.scheduler.set_timesteps(2)
            x = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
            for t in self.scheduler.timesteps:
                both = torch.cat([x] * 2) if guidance_scale > 1 else x
                ask = {"method": self.predict, "decorated": torch.no_grad()(self.predict), "callback": self.unet}.get(
                    where, functools.partial(predict, self)
                )
                out = ask(both, t, encoder_hidden_states=texts[-len(both) :], return_dict=False)[0]
                if guidance_scale > 1:
                    out = out[:1] + guidance_scale * (out[1:] - out[:1])
                x = self.scheduler.step(out, t, x, return_dict=False)[0]
                if look is not None:
                    look(x, t, texts[1:])
            return (x,)

        def preview(self, x: Any, t: Any, text: Any) -> None:
            looked.append(self.unet(x, t, encoder_hidden_states=text, return_dict=False)[0])

    looked: list[Any] = []
    base = new_pipe()
    pipe = Mine(**base.components, requires_safety_checker=False)
    record = dataclasses.replace(
        FAMILIES["StableDiffusionPipeline"],
        pipeline="Mine",
        guided={"guidance_scale": 2.0},
        unguided={"guidance_scale": 1.0},
        owned={"guidance_scale": "cfg(scale)"},
        branches=lambda pipe, call: call["guidance_scale"] > 1,
    )
    register_family(record)
    try:
        guided = gs.guide(pipe, "cfg(4)")
        if where == "function":
            with pytest.raises(
                GuidanceNotAppliedError, match=r"It was called by \S*predict\(\) in .*, which is no code of Mine"
            ):
                guided("a")
            return
        stock = pipe("a", guidance_scale=4.0)[0]
        assert torch.equal(guided("a")[0], stock)
        if where == "callback":
            pipe("a", guidance_scale=4.0, look=pipe.preview)
            seen, looked[:] = looked[:], []
            assert torch.equal(guided("a", look=pipe.preview)[0], stock)
            assert all(torch.equal(a, b) for a, b in zip(seen, looked, strict=True))
    finally:
        del FAMILIES["Mine"]


@pytest.mark.slow
def test_a_compiled_network_is_shared_and_not_compiled_again(new_pipe: Any) -> None:
    from torch._dynamo.utils import counters

    for how in ("module", "wrapper"):
        torch._dynamo.reset()
        counters.clear()
        pipe = new_pipe()
        if how == "module":
            pipe.unet.compile(backend="eager")
        else:
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        family = of_stable_diffusion(pipe, ("stock", "cfg(3)", PERTURBED))
        count = counters["stats"]["unique_graphs"]
        assert count > 0
        found = []

        def callback(
            pipe: Any, step: int, timestep: Any, tensors: dict[str, Any], family: Family = family, found: Any = found
        ) -> dict[str, Any]:
            for kind in ("stock", "cfg(3)", PERTURBED):
                found.append(same(family.run(kind), family.alone[kind]))
            return {}

        assert same(family.run("cfg(3)", callback_on_step_end=callback), family.alone["cfg(3)"])
        assert len(found) == 9
        assert all(found)
        assert counters["stats"]["unique_graphs"] == count
        assert ("_compiled_call_impl" in vars(pipe.unet)) == (how == "module")
        assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()
    counters.clear()


# --- callbacks -------------------------------------------------------------------------------------------------------


def test_no_code_names_the_callbacks() -> None:
    """Several pipelines have none; the names stand only where a user's own arguments are checked and handed on.

    `KeepOutside` in attention_masks.py is such an argument.
    """
    root = Path(gs.__file__).parent
    naming = {
        str(path.relative_to(root))
        for part in ("guidance", "samplers", "pipelines", "bridges")
        for path in (root / part).rglob("*.py")
        if "callback_on_step_end" in path.read_text()
        and path.name not in ("inversion.py", "arguments.py", "attention_masks.py")
    }
    assert naming == set()


def test_pipelines_without_callbacks_are_guided(dit: Any) -> None:
    assert "callback_on_step_end" not in inspect.signature(dit.__call__).parameters
    guided = gs.guide(dit, gs.APG(3, momentum=-0.5))
    guided([3, 5], generator=seeded(1), num_inference_steps=4, output_type="np")
    assert guided.report is not None
    assert guided.report.evaluations == [8, 8]


def test_a_users_callback_is_called_as_without_guidance(pipe: Any) -> None:
    seen: list[tuple[int, int, tuple[str, ...]]] = []

    def note(inner: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert inner is pipe
        seen.append((step, int(timestep), tuple(tensors)))
        return {}

    more = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    pipe("a", generator=seeded(1), guidance_scale=3.0, **more, **GIVEN)
    stock, seen = seen, []
    stack = gs.AdaptiveGuidance(gs.APG(5, momentum=-0.5), threshold=0.9999, space="denoised")
    guided = gs.guide(pipe, stack)
    with_it = guided("a", generator=seeded(1), **more, **GIVEN).images
    assert seen == stock
    assert torch.equal(guided("a", generator=seeded(1), **GIVEN).images, with_it)
