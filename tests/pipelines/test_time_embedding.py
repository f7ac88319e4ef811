"""Noise on the time embedding: in which networks, how much, whose, and only for one pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError, UnsupportedPipelineError
from guidestack.guidance.keyed import keyed
from guidestack.guidance.query import Perturbation
from guidestack.pipelines.time_embedding import check, perturbed

from ..conftest import make_dit, make_stable_diffusion, make_unconditional

ROWS = 3
TIMES = torch.tensor([100, 400, 900])


def noise(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(len(shape)))


def seeds(rows: Sequence[int] = range(ROWS)) -> list[torch.Generator]:
    return [keyed(row, 0, "time positive") for row in rows]


def dit() -> nn.Module:
    return make_dit().transformer  # type: ignore[no-any-return]


def unet(**options: Any) -> nn.Module:
    return make_stable_diffusion(**options).unet  # type: ignore[no-any-return]


def sdxl() -> nn.Module:
    return unet(addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=17)


def unconditional() -> nn.Module:
    return make_unconditional().unet  # type: ignore[no-any-return]


def with_classes() -> nn.Module:
    return make_unconditional(num_class_embeds=5).unet  # type: ignore[no-any-return]


SMALL: dict[str, Any] = {"num_attention_heads": 2, "num_layers": 1, "in_channels": 4, "sample_size": 8}


def pixart(**options: Any) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    given = {"attention_head_dim": 6, "cross_attention_dim": 12, "caption_channels": 16, "out_channels": 8}
    return PixArtTransformer2DModel(**SMALL, **given, **{"use_additional_conditions": False} | options)  # type: ignore[no-any-return]


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    given = {"attention_head_dim": 4, "joint_attention_dim": 16, "caption_projection_dim": 8, "out_channels": 4}
    return SD3Transformer2DModel(**SMALL, **given, pooled_projection_dim=5, pos_embed_max_size=8)  # type: ignore[no-any-return]


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    given = {"attention_head_dim": 8, "joint_attention_dim": 16, "num_single_layers": 1, "axes_dims_rope": (2, 2, 4)}
    return FluxTransformer2DModel(  # type: ignore[no-any-return]
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_attention_heads=1,
        **given,
        pooled_projection_dim=5,
        guidance_embeds=True,
    )


def wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    given = {"num_attention_heads": 1, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 8}
    return WanTransformer3DModel(in_channels=4, out_channels=4, num_layers=1, rope_max_seq_len=32, **given)  # type: ignore[no-any-return]


def aura() -> nn.Module:
    from diffusers import AuraFlowTransformer2DModel

    given = {"attention_head_dim": 8, "joint_attention_dim": 16, "caption_projection_dim": 8, "pos_embed_max_size": 16}
    return AuraFlowTransformer2DModel(  # type: ignore[no-any-return]
        sample_size=8, num_attention_heads=1, num_mmdit_layers=1, num_single_dit_layers=1, **given
    )


Made = tuple[Callable[[], nn.Module], Callable[[Any, Any], Any]]
NETWORKS: dict[str, Made] = {
    "sd": (unet, lambda model, r: model(noise(4, 8, 8)[r], TIMES[1], noise(16, 16)[r])),
    "sdxl": (
        sdxl,
        lambda model, r: model(
            noise(4, 8, 8)[r],
            TIMES[1],
            noise(16, 16)[r],
            added_cond_kwargs={"text_embeds": noise(5)[r], "time_ids": torch.ones(ROWS, 6)[r]},
        ),
    ),
    "ddpm": (unconditional, lambda model, r: model(noise(3, 8, 8)[r], TIMES[1])),
    "ddpm, classes": (
        with_classes,
        lambda model, r: model(noise(3, 8, 8)[r], TIMES[1], class_labels=torch.tensor([0, 2, 4])[r]),
    ),
    "dit": (dit, lambda model, r: model(noise(4, 8, 8)[r], TIMES[r], torch.tensor([1, 2, 3])[r])),
    "pixart": (pixart, lambda model, r: model(noise(4, 8, 8)[r], noise(5, 16)[r], TIMES[r])),
    "pixart, sizes": (
        lambda: pixart(use_additional_conditions=True),
        lambda model, r: model(
            noise(4, 8, 8)[r],
            noise(5, 16)[r],
            TIMES[r],
            {"resolution": torch.full((ROWS, 2), 8.0)[r], "aspect_ratio": torch.ones(ROWS, 1)[r]},
        ),
    ),
    "sd3": (sd3, lambda model, r: model(noise(4, 8, 8)[r], noise(5, 16)[r], noise(5)[r], TIMES[r])),
    "flux": (
        flux,
        lambda model, r: model(
            noise(4, 4)[r],
            noise(5, 16)[r],
            noise(5)[r],
            TIMES[r] / 1000,
            torch.zeros(4, 3),
            torch.zeros(5, 3),
            torch.full((ROWS,), 3.5)[r],
        ),
    ),
    "wan": (wan, lambda model, r: model(noise(4, 1, 4, 4)[r], TIMES[r], noise(5, 16)[r])),
    "aura": (aura, lambda model, r: model(noise(4, 8, 8)[r], noise(5, 16)[r], TIMES[r] / 1000)),
}
ADDS = ["sdxl", "ddpm, classes", "dit", "pixart, sizes", "sd3", "flux"]
"""Networks that add something else to the time's embedding."""
ONLY_TIME = ["sd", "ddpm", "pixart"]
BLOCKS = ["sd", "sdxl", "ddpm", "ddpm, classes", "dit"]
KINDS = [(name, kind) for name in NETWORKS for kind in ("time", "conditioning") if name not in ("wan", "aura")]
KINDS += [("wan", "time"), ("aura", "time")]


@cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


def answered(name: str, rows: Any = slice(None)) -> Tensor:
    with torch.no_grad():
        return NETWORKS[name][1](network(name), rows)[0]  # type: ignore[no-any-return]


def weak(name: str, perturbation: Perturbation, rows: Sequence[int] = range(ROWS)) -> Tensor:
    check(network(name), perturbation)
    with perturbed(network(name), perturbation, seeds(rows)):
        return answered(name, list(rows))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_answer_changes_for_one_pass_and_not_at_strength_0(name: str, kind: str) -> None:
    base = answered(name)
    assert torch.equal(weak(name, Perturbation(kind, 0.0)), base)
    seen = weak(name, Perturbation(kind, 1.0))
    assert (seen - base).flatten(1).abs().amax(1).min() > 1e-3 * base.abs().max()  # of every row
    assert torch.equal(answered(name), base)
    assert hooks(network(name)) == 0
    assert torch.equal(weak(name, Perturbation(kind, 1.0)), seen)  # keyed


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_each_row_has_noise_of_its_own(name: str, kind: str) -> None:
    seen = weak(name, Perturbation(kind, 1.0))
    for rows in ([1], [2, 0]):
        assert (weak(name, Perturbation(kind, 1.0), rows) - seen[rows]).abs().max() < 1e-5 * seen.abs().max()


@pytest.mark.parametrize("name", ADDS)
def test_time_and_conditioning_differ_where_something_is_added(name: str) -> None:
    time, conditioning = (weak(name, Perturbation(kind, 1.0)) for kind in ("time", "conditioning"))
    assert (time - conditioning).abs().max() > 1e-3 * time.abs().max()


@pytest.mark.parametrize("name", ONLY_TIME)
def test_time_and_conditioning_are_the_same_where_nothing_is_added(name: str) -> None:
    assert torch.equal(*(weak(name, Perturbation(kind, 1.0)) for kind in ("time", "conditioning")))


def fails(model: nn.Module) -> None:
    assert hooks(model) > 0
    raise ZeroDivisionError


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exception_leaves_no_hooks(name: str) -> None:
    for kind in ("time", "conditioning"):
        for blocks in (0, 1):
            perturbation = Perturbation(kind, 1.0, blocks)
            try:
                check(network(name), perturbation)
            except UnsupportedPipelineError:
                continue
            with pytest.raises(ZeroDivisionError), perturbed(network(name), perturbation, seeds()):
                fails(network(name))
            assert hooks(network(name)) == 0


# --- how much ------------------------------------------------------------------------------------------------------


def recorded(module: nn.Module) -> tuple[list[Tensor], Any]:
    seen: list[Tensor] = []
    return seen, module.register_forward_hook(lambda module, args, output: seen.append(output))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("sd", "time_embedding"),
        ("ddpm", "time_embedding"),
        ("dit", "transformer_blocks.1.norm1.emb.timestep_embedder"),
        ("pixart, sizes", "adaln_single.emb.timestep_embedder"),
        ("flux", "time_text_embed.timestep_embedder"),
        ("wan", "condition_embedder.time_embedder"),
    ],
)
def test_the_noise_is_so_many_standard_deviations_of_the_rows_embedding(name: str, path: str) -> None:
    embedder = network(name).get_submodule(path)
    clean, hook = recorded(embedder)  # before ours
    with perturbed(network(name), Perturbation("time", 1.5), seeds()):
        noisy, after = recorded(embedder)  # behind ours
        answered(name)
    hook.remove()
    after.remove()
    size = clean[0].shape[1]
    for before, behind, generator in zip(clean[0], noisy[0], seeds(), strict=True):
        wanted = before + 1.5 * before.std() * torch.randn(size, generator=generator)
        assert torch.allclose(behind, wanted, rtol=1e-5, atol=1e-6)


def test_the_noise_has_mean_0_and_that_standard_deviation() -> None:
    model, rows = network("ddpm"), 300
    embedder = model.get_submodule("time_embedding")
    clean, hook = recorded(embedder)
    with torch.no_grad(), perturbed(model, Perturbation("time", 0.7), seeds(range(rows))):
        noisy, after = recorded(embedder)
        model(noise(3, 8, 8)[:1].expand(rows, -1, -1, -1), TIMES[1])
    hook.remove()
    after.remove()
    unit = (noisy[0] - clean[0]) / clean[0].std(1, keepdim=True)
    count = unit.numel()
    assert abs(float(unit.mean())) < 4 * 0.7 / count**0.5
    assert abs(float(unit.std()) / 0.7 - 1) < 4 / (2 * count) ** 0.5


def test_a_stronger_noise_is_the_same_noise() -> None:
    """What differs between two amounts is the amount: the draws are keyed by the purpose alone."""
    embedder = network("ddpm").get_submodule("time_embedding")
    base, hook = recorded(embedder)
    answered("ddpm")
    hook.remove()
    added = []
    for amount in (0.5, 2.0):
        with perturbed(network("ddpm"), Perturbation("time", amount), seeds()):
            seen, hook = recorded(embedder)
            answered("ddpm")
        hook.remove()
        added.append(seen[0] - base[0])
    assert torch.allclose(4 * added[0], added[1], rtol=1e-4, atol=1e-5)


# --- in which blocks -----------------------------------------------------------------------------------------------


def handed(model: nn.Module, call: Callable[[], Any], around: Any) -> dict[str, Tensor]:
    """The sum of embeddings that each block of a UNet is called with."""
    seen: dict[str, Tensor] = {}
    own = []
    with around:
        for path in ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]:

            def note(module: Any, args: Any, kwargs: Any, path: str = path) -> None:
                seen[path] = kwargs["temb"] if "temb" in kwargs else args[1 if path == "mid_block" else 2]

            own.append(model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True))
        call()
    for hook in own:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["sd", "sdxl", "ddpm", "ddpm, classes"])
@pytest.mark.parametrize("kind", ["time", "conditioning"])
def test_only_the_first_blocks_of_a_unet(name: str, kind: str) -> None:
    from contextlib import nullcontext

    model = network(name)

    def at(blocks: int) -> dict[str, Tensor]:
        around = perturbed(model, Perturbation(kind, 1.0, blocks), seeds())
        return handed(model, lambda: answered(name), around)

    base, everywhere = handed(model, lambda: answered(name), nullcontext()), at(0)
    changed = {path for path in base if not torch.equal(base[path], everywhere[path])}
    assert changed == set(base)
    for blocks, wanted in (
        (1, {"down_blocks.0", "up_blocks.0"}),
        (2, {"down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1"}),
    ):
        seen = at(blocks)
        assert {path for path in base if not torch.equal(base[path], seen[path])} == wanted
        for path in wanted:  # and there as much as everywhere
            assert torch.allclose(seen[path], everywhere[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "path"), [("time", "norm1.emb.timestep_embedder"), ("conditioning", "norm1.emb")])
def test_only_the_first_blocks_of_a_dit(kind: str, path: str) -> None:
    model = network("dit")

    def at(blocks: int, amount: float = 1.0) -> list[list[Tensor]]:
        with perturbed(model, Perturbation(kind, amount, blocks), seeds()):
            own = [recorded(block.get_submodule(path)) for block in model.transformer_blocks]  # type: ignore[union-attr]
            answered("dit")
        for _, hook in own:
            hook.remove()
        return [seen for seen, _ in own]

    base = at(0, amount=0.0)
    # The output layer takes the embedding of block 0 for itself: twice in a pass.
    assert [len(seen) for seen in base] == [2, 1]
    for blocks, wanted in ((0, [[True, True], [True]]), (1, [[True, False], [False]]), (2, [[True, False], [True]])):
        seen = at(blocks)
        changed = [
            [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]
            for one, other in zip(seen, base, strict=True)
        ]
        assert changed == wanted, blocks


@pytest.mark.parametrize("name", BLOCKS)
def test_fewer_blocks_are_another_answer(name: str) -> None:
    base = answered(name)
    ends = [base, *(weak(name, Perturbation("time", 1.0, blocks)) for blocks in (0, 1, 2))]
    for i in range(4):
        for j in range(i):
            assert (ends[i] - ends[j]).abs().max() > 1e-4 * base.abs().max(), (i, j)


# --- what is refused -----------------------------------------------------------------------------------------------


class Videos(nn.Module):
    """A network that embeds the time of every frame: `frames` rows of the embedding for each of the batch."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding

        torch.manual_seed(0)
        self.time_embedding, self.frames = TimestepEmbedding(4, 6), frames

    def forward(self, x: Tensor) -> Tensor:
        return self.time_embedding(x.repeat_interleave(self.frames, 0))  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_frames_of_a_video_have_the_noise_of_their_sample() -> None:
    model, x = Videos(2), noise(4)
    base = model(x)
    with perturbed(model, Perturbation("time", 1.0), seeds()):
        seen = model(x)
    for row in range(2 * ROWS):
        normal = torch.randn(6, generator=seeds()[row // 2])
        assert torch.allclose(seen[row], base[row] + base[row].std() * normal, atol=1e-6)
    with (
        pytest.raises(UnsupportedPipelineError, match="embedding has 6 rows and the batch 4"),
        perturbed(model, Perturbation("time", 1.0), seeds(range(4))),
    ):
        model(x)
    assert hooks(model) == 0


@torch.no_grad()
def test_one_embedding_for_all_rows_gets_the_noise_of_each() -> None:
    model, x = Videos(1), noise(4)[:1]
    base = model(x)
    with perturbed(model, Perturbation("time", 1.0), seeds()):
        seen = model(x)
    assert torch.allclose(seen, base + base.std() * torch.stack([torch.randn(6, generator=g) for g in seeds()]))


def test_what_has_no_time_embedding_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedPipelineError, match="the time embedding of Linear was not found") as caught:
        check(nn.Linear(2, 2), Perturbation("time"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "perturbation", "message"),
    [
        ("wan", Perturbation("conditioning"), "WanTransformer3DModel adds other embeddings .* use stage='time'"),
        ("sd3", Perturbation("time", blocks=1), "embeds the time once for all its blocks: blocks must be 0"),
        ("dit", Perturbation("time", blocks=3), "has 2 blocks, got blocks=3"),
        ("sd", Perturbation("time", blocks=3), "has 2 blocks on each side, got blocks=3"),
    ],
)
def test_what_a_network_does_not_have_is_refused(name: str, perturbation: Perturbation, message: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=message):
        check(network(name), perturbation)


def test_a_unet_whose_blocks_do_not_get_the_embedding_itself() -> None:
    for options in (
        {"time_embedding_act_fn": "silu"},
        {"class_embed_type": "timestep", "class_embeddings_concat": True},
    ):
        model = unet(**options)
        check(model, Perturbation("time"))
        check(model, Perturbation("conditioning", blocks=1))
        with pytest.raises(UnsupportedPipelineError, match="changes the time's embedding before its blocks get it"):
            check(model, Perturbation("time", blocks=1))


def test_a_unet_whose_blocks_call_it_otherwise() -> None:
    class Kandinsky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time_embedding = Videos(1).time_embedding
            self.down_blocks = self.up_blocks = nn.ModuleList([nn.Linear(2, 2)])

    check(Kandinsky(), Perturbation("time"))
    with pytest.raises(UnsupportedPipelineError, match="use stage='time'"):
        check(Kandinsky(), Perturbation("conditioning"))


def test_guide_refuses_before_anything_runs(pipe: Any) -> None:
    from diffusers import UNet2DConditionModel

    with pytest.raises(UnsupportedPipelineError, match="has 2 blocks on each side, got blocks=5"):
        gs.guide(pipe, gs.TSG(3, blocks=5))

    class Unet(UNet2DConditionModel):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    found = pipe.unet
    pipe.unet = Unet()
    try:
        with pytest.raises(UnsupportedPipelineError, match="time embedding of Unet was not found"):
            gs.guide(pipe, gs.TSG(3))
    finally:
        pipe.unet = found


# --- compiled networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_compiled_network_runs_its_weak_pass_uncompiled(new_pipe: Any, how: str) -> None:
    """A compiled graph does not see a hook that came after it: the weak answer would be the strong one."""
    given: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}

    def images(pipe: Any) -> Tensor:
        generator = [torch.Generator().manual_seed(7 + sample) for sample in range(2)]
        return gs.guide(pipe, gs.TSG(3, strength=1.5))(["a", "b"], generator=generator, **given).images  # type: ignore[no-any-return]

    pipe = new_pipe()
    wanted = images(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own
        if how == "in place":
            pipe.unet.compile(backend="eager")
        else:
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        assert (images(pipe) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert (images(pipe) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_pass_that_did_not_come_by_its_embedding_is_an_error() -> None:
    model = Videos(1)
    with (
        pytest.raises(GuidanceNotAppliedError, match=r"pass of Videos did not reach its time embedding.*time\(0\.5\)"),
        perturbed(model, Perturbation("time", 0.5), seeds()),
    ):
        model.frames += 1  # anything but a pass
    assert hooks(model) == 0


# --- as a rule -----------------------------------------------------------------------------------------------------


def test_outside_the_window_it_costs_one_evaluation(pipe: Any) -> None:
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    guided = gs.guide(pipe, gs.TSG(3, window=(0.3, 0.6)))
    guided("a", num_inference_steps=10, output_type="latent", generator=torch.Generator().manual_seed(0))
    times = [float(t) / 1000 for t in pipe.scheduler.timesteps]
    assert [record.rows for record in guided.report.steps] == [1 + (0.3 <= time <= 0.6) for time in times]
    assert guided.report.evaluations == [10 + sum(0.3 <= time <= 0.6 for time in times)]


def test_a_sampler_without_times_can_have_the_constant_schedule_only() -> None:
    from diffusers import EDMEulerScheduler

    from guidestack.guidance.errors import RuleError
    from guidestack.guidance.testing.mixture import GaussianMixture, MixtureDenoiser
    from guidestack.samplers import parameterization

    mixture, scheduler = GaussianMixture.example(), EDMEulerScheduler()
    model = MixtureDenoiser(mixture, parameterization(scheduler))
    given: dict[str, Any] = {
        "conditions": {"positive": mixture.condition(0, 2)[None]},
        "shape": (2, 3, 3),
        "seeds": [1],
        "steps": 4,
    }
    assert gs.sample(model, gs.TSG(2, strength=0.2), scheduler, **given).report.evaluations == [8]
    for rule in (gs.TSG(2, power=1), gs.TSG(2, window=(0.1, 0.9))):
        with pytest.raises(RuleError, match="which this sampler's timesteps do not give; power=0 without a window"):
            gs.sample(model, rule, scheduler, **given)
