"""DiT: class-conditional, [conditional, unconditional] in one batch, learned variances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.guidance.keyed import keyed
from guidestack.pipelines.families.record import FAMILIES

from ..conftest import make_dit
from . import by_hand
from .by_hand import Guide, apg, cfg, cfg_plus_plus, key, tsg

STEPS, CLASSES = 5, [7, 300, 999]
SCHEDULERS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def decoded(pipe: Any) -> Iterator[list[Tensor]]:
    """The latents that the pipeline hands to its decoder: it has no output of latents."""
    seen: list[Tensor] = []
    decode = pipe.vae.decode

    def recording(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(latents)
        return decode(latents, *args, **kwargs)

    pipe.vae.decode = recording
    try:
        yield seen
    finally:
        del pipe.vae.decode


def latents(pipe: Any, call: Callable[..., Any], classes: Sequence[int], seeds: Sequence[int], **more: Any) -> Tensor:
    with decoded(pipe) as seen:
        call(list(classes), generator=seeded(seeds), num_inference_steps=STEPS, output_type="pt", **more)
    return seen[0]


def scheduled(pipe: Any, name: str) -> Any:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return pipe


def close(seen: Tensor, wanted: Tensor) -> bool:
    return bool((seen - wanted).abs().max() < 2e-5 * wanted.abs().max())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("scale", [1, 1.5, 4])
def test_cfg_is_the_pipelines_own(dit: Any, scheduler: str, scale: float) -> None:
    scheduled(dit, scheduler)
    for classes in ([7], CLASSES):
        guided = gs.guide(dit, gs.CFG(scale))
        stock = latents(dit, dit, classes, range(len(classes)), guidance_scale=scale)
        assert torch.equal(stock, latents(dit, guided, classes, range(len(classes))))
        assert guided.report.evaluations == [STEPS * (1 if scale == 1 else 2)] * len(classes)
        assert guided.report.calls == STEPS


@pytest.mark.parametrize("out_channels", [4, 8])
def test_with_and_without_learned_variances(out_channels: int) -> None:
    pipe = make_dit(out_channels=out_channels)
    stock = latents(pipe, pipe, CLASSES, range(3), guidance_scale=4.0)
    assert torch.equal(stock, latents(pipe, gs.guide(pipe, gs.CFG(4)), CLASSES, range(3)))
    # In pieces the prompt's variances come in pieces too.
    for max_rows in (1, 2, 4):
        assert close(latents(pipe, gs.guide(pipe, gs.CFG(4), max_rows=max_rows), CLASSES, range(3)), stock)


def test_a_noisy_scheduler_draws_what_it_draws_without_us(dit: Any) -> None:
    scheduled(dit, "DDPMScheduler")  # it is given no generator
    torch.manual_seed(3)
    stock = latents(dit, dit, CLASSES, range(3), guidance_scale=4.0)
    torch.manual_seed(3)
    assert torch.equal(stock, latents(dit, gs.guide(dit, gs.CFG(4)), CLASSES, range(3)))


def test_the_null_class_is_the_contrast_under_every_name(dit: Any) -> None:
    ends = [latents(dit, gs.guide(dit, gs.CFG(3, against=name)), CLASSES, range(3)) for name in ("null", "negative")]
    assert torch.equal(*ends)


# --- against a loop by hand ----------------------------------------------------------------------------------------


def network_of(pipe: Any, label: int, seed: int) -> Callable[[Tensor, Any, int, str], Tensor]:
    """The network for one sample: one condition in one call, the first four channels of the answer."""

    def network(x: Tensor, t: Any, step: int, name: str) -> Tensor:
        which, hooks = {"positive": label, "negative": 1000, "null": 1000}.get(name, label), []
        if name == "independent:class":
            which = int(torch.randint(1000, (), generator=key(seed, step, name)))
        if name.startswith("weak"):
            normal, amount = torch.randn(8, generator=key(seed, step, "time positive")), float(name.split()[1])

            def add(module: Any, args: Any, embedding: Tensor) -> Tensor:
                return embedding + amount * embedding.std() * normal

            embedders = [block.norm1.emb.timestep_embedder for block in pipe.transformer.transformer_blocks]
            hooks = [embedder.register_forward_hook(add) for embedder in embedders]
        output = pipe.transformer(x, t[None], torch.tensor([which])).sample[:, :4]
        for hook in hooks:
            hook.remove()
        return output  # type: ignore[no-any-return]

    return network


CASES: dict[str, tuple[gs.Rule, Guide]] = {
    "apg": (gs.APG(3, eta=0.2, radius=3, momentum=-0.5), apg(3, 0.2, 3, -0.5)),
    "cfg++": (gs.CFGPlusPlus(0.6), cfg_plus_plus(0.6)),
    "icg": (gs.ICG(1.5, source="class"), cfg(1.5, "independent:class")),
    "tsg": (gs.TSG(2, strength=2, power=1), tsg(2, 2, 1)),
    "cfg and tsg": (gs.CFG(2) | gs.TSG(2), tsg(2, 1, inner=cfg(2))),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS[:2])  # the pipeline does not scale its noise as Euler needs it
@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_samples_by_hand(dit: Any, name: str, scheduler: str) -> None:
    stack, guide = CASES[name]
    guided = gs.guide(scheduled(dit, scheduler), stack)
    rows: list[int] = []
    hook = dit.transformer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    seen = latents(dit, guided, CLASSES, [4, 5, 6]) * dit.vae.config.scaling_factor
    hook.remove()
    for sample, (label, seed) in enumerate(zip(CLASSES, [4, 5, 6], strict=True)):
        start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        course = by_hand.run(network_of(dit, label, seed), start, dit.scheduler, STEPS, guide)
        assert close(seen[sample], course.x[0])
        assert guided.report.evaluations[sample] == course.evaluations
    assert (guided.report.rows, guided.report.calls) == (sum(rows), len(rows))


# --- random classes ------------------------------------------------------------------------------------------------


def drawn(pipe: Any, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """The random classes that the network is asked for, shape (steps, samples)."""
    labels: list[Tensor] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: labels.append(kwargs["class_labels"]), with_kwargs=True
    )
    latents(pipe, gs.guide(pipe, gs.ICG(1.5, source="class")), classes, seeds)
    hook.remove()
    assert all(one[: len(classes)].tolist() == list(classes) for one in labels)
    return torch.stack([one[len(classes) :] for one in labels])


def test_random_classes_are_keyed_by_seed_and_step(dit: Any) -> None:
    seeds = [11, 12, 13]
    seen = drawn(dit, CLASSES, seeds)
    assert seen.tolist() == [
        [int(torch.randint(1000, (), generator=key(seed, step, "independent:class"))) for seed in seeds]
        for step in range(STEPS)
    ]
    assert len(seen.unique()) > 10  # of 15: new ones at every step, for every sample
    assert torch.equal(seen, drawn(dit, CLASSES, seeds))
    assert torch.equal(seen[:, 1:2], drawn(dit, [42], [12]))  # whatever the class and the neighbours


def test_random_classes_are_uniform_and_real(dit: Any) -> None:
    draw = FAMILIES["DiTPipeline"].random["class"]
    labels = torch.zeros(5000, dtype=torch.int64)
    seen = draw(dit, {"class_labels": labels}, [keyed(seed, 0) for seed in range(5000)])["class_labels"]
    assert seen.dtype == labels.dtype
    counts = torch.bincount(seen // 100, minlength=10)
    assert counts.shape == (10,)  # 1000, the null class, is never drawn
    assert (counts - 500).abs().max() < 5 * (5000 * 0.1 * 0.9) ** 0.5
    few = make_dit(num_embeds_ada_norm=3)
    seen = draw(few, {"class_labels": labels}, [keyed(seed, 0) for seed in range(50)])["class_labels"]
    assert sorted(set(seen.tolist())) == [0, 1, 2]


# --- what is refused, and what is left behind ----------------------------------------------------------------------


def test_what_the_pipeline_cannot_do_is_refused(dit: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"perpneg\(3\) needs prompts, and DiTPipeline has none"):
        gs.guide(dit, gs.PerpNeg(3))
    with pytest.raises(UnsupportedPipelineError, match="no random condition from source='tokens'; it has 'class'"):
        gs.guide(dit, gs.ICG(3))
    guided = gs.guide(dit, gs.CFG(3))
    with pytest.warns(gs.GuidestackWarning, match=r"guidance_scale=4 .*put cfg\(scale\)"):
        guided([1], guidance_scale=4, num_inference_steps=1, output_type="np")
    with pytest.raises(InputError, match="negative_prompt"):
        guided([1], negative_prompt="dog")
    with pytest.raises(InputError, match=r"extra_prompt was given, and no rule of cfg\(3\) uses it"):
        guided([1], extra_prompt="dog")


def test_the_pipelines_null_class_is_1000_whatever_the_network() -> None:
    few = make_dit(num_embeds_ada_norm=10)
    with pytest.raises(UnsupportedPipelineError, match=r"entry 1000 of the class embedding .* this network's is 10"):
        gs.guide(few, gs.CFG(3))
    guided = gs.guide(few, gs.ICG(3, source="class"))  # needs no null class
    assert latents(few, guided, [1, 2], [0, 1]).isfinite().all()
    assert guided.report.evaluations == [2 * STEPS] * 2


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was_found(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_dit()

    def state() -> dict[str, Any]:
        modules = dict(pipe.transformer.named_modules())
        return {
            "vars": {name: value for name, value in vars(pipe).items() if name != "_execution_device"},
            "types": {name: type(module) for name, module in modules.items()},
            "hooks": [(module._forward_hooks, module._forward_pre_hooks) for module in modules.values()],
            "scheduler": set(vars(pipe.scheduler)) - {"num_inference_steps"},
        }

    before = copy.deepcopy(state())
    guided = gs.guide(pipe, gs.CFG(2) | gs.TSG(2) | gs.ICG(2, source="class"))
    if fails:
        block = pipe.transformer.transformer_blocks[1]

        def fail(*args: Any, **kwargs: Any) -> Any:
            return 1 / 0

        fail.remembers = False  # type: ignore[attr-defined]
        monkeypatch.setattr(type(block), "forward", fail)
        with pytest.raises(ZeroDivisionError):
            latents(pipe, guided, [1, 2], [0, 1])
        monkeypatch.undo()
    else:
        latents(pipe, guided, [1, 2], [0, 1])
    after = state()
    assert after["hooks"] == before["hooks"]
    assert not any(hook for pair in after["hooks"] for hook in pair)
    assert after["types"] == before["types"]
    assert after["scheduler"] == before["scheduler"]
    assert set(after["vars"]) == set(before["vars"])
    fresh = make_dit()
    assert torch.equal(latents(pipe, pipe, [1, 2], [0, 1]), latents(fresh, fresh, [1, 2], [0, 1]))


def test_bfloat16(dit: Any) -> None:
    pipe = make_dit().to(torch.bfloat16)
    stock = latents(pipe, pipe, CLASSES, range(3), guidance_scale=4.0)
    assert torch.equal(stock, latents(pipe, gs.guide(pipe, gs.CFG(4)), CLASSES, range(3)))
    for stack in (gs.APG(3, radius=3, momentum=-0.5), gs.CFGPlusPlus(0.6), gs.ICG(2, source="class"), gs.TSG(2)):
        seen = latents(pipe, gs.guide(pipe, stack), CLASSES, range(3))
        assert seen.dtype == torch.bfloat16
        assert seen.isfinite().all()
        wanted = latents(dit, gs.guide(dit, stack), CLASSES, range(3))
        assert (seen.float() - wanted).norm() < 0.2 * wanted.norm()  # of weights rounded to 8 bits
