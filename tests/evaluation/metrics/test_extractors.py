from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guidestack.evaluation import extractors, references
from guidestack.evaluation.metrics import Metric, SampleMetric, parse_metric, registry
from guidestack.evaluation.metrics.clip import ClipScore
from guidestack.guidance.errors import InputError

NOISE = np.random.default_rng(1).integers(0, 256, (3, 40, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP."""
    from transformers import CLIPConfig, CLIPModel

    from ...conftest import make_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=small | text, vision_config=small | vision, projection_dim=12)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_the_default_has_its_filter_and_size_in_its_name() -> None:
    assert extractors.full_name("efficientnet-lite0") == "efficientnet-lite0@128-bicubic-aa"
    net = extractors.load("efficientnet-lite0")
    assert (net.name, net.dimensions) == ("efficientnet-lite0@128-bicubic-aa", 1280)
    assert extractors.load("efficientnet-lite0") is net
    assert extractors.load("efficientnet-lite0@128-bicubic-aa").name == net.name


def test_features_do_not_depend_on_the_batch_and_are_the_same_twice() -> None:
    net = extractors.load("efficientnet-lite0")
    together = net(NOISE)
    assert together.shape == (3, 1280)
    assert together.dtype == np.float32
    assert np.array_equal(net(NOISE), together)
    np.testing.assert_allclose(net(NOISE, batch=1), together, atol=2e-5)
    np.testing.assert_allclose(net(NOISE[::-1]), together[::-1], atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05
    assert net(NOISE[:0]).shape == (0, 1280)


def test_feature_maps_are_of_five_layers_and_the_network_s_own() -> None:
    net = extractors.load("efficientnet-lite0")
    maps = net.maps(NOISE, batch=2)
    assert [one.shape for one in maps] == [
        (3, 16, 64, 64),
        (3, 24, 32, 32),
        (3, 40, 16, 16),
        (3, 112, 8, 8),
        (3, 320, 4, 4),
    ]
    distance = parse_metric("feature_distance")
    found = distance.compare(NOISE, NOISE[[0, 2, 1]])  # type: ignore[attr-defined]
    assert found[0] < 1e-9 < 0.01 < found[1]
    assert found[1] == pytest.approx(found[2], rel=1e-4)


def test_resizing_is_pillow_s_bicubic_with_antialiasing() -> None:
    for size in (16, 96):
        planes = [Image.fromarray(NOISE[0, :, :, channel].astype(np.float32)) for channel in range(3)]
        expected = np.stack([np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes])
        found = extractors.resized(torch.from_numpy(NOISE[:1]).permute(0, 3, 1, 2).float(), size)[0].numpy()
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_the_default_tells_concepts_apart_across_backgrounds() -> None:
    drawn = references.drawings()
    chosen = np.arange(0, 1716, 43)
    net = extractors.load("efficientnet-lite0")
    white, blue = (net(_on(drawn.rgba[chosen], colour)) for colour in ("white", "blue"))
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (white, blue)]
    assert ((units[0] @ units[1].T).argmax(1) == np.arange(len(chosen))).mean() > 0.85


def _on(rgba: np.ndarray, colour: str) -> np.ndarray:
    from guidestack.evaluation.emoji.pictures import on_background
    from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS

    return (on_background(rgba, BACKGROUNDS[colour]) * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inceptoin", "unknown extractor 'inceptoin'; did you mean 'inception'"),
        ("efficientnet-lite0@64", "unknown extractor"),
        ("inception", "needs your own files: inception:FILE"),
        ("dinov2:", "needs your own files: dinov2:FOLDER"),
        ("clip:/nowhere", "no weights at /nowhere"),
    ],
)
def test_an_extractor_that_is_not_there_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        extractors.load(text)
    assert "\n" not in str(error.value)


def test_a_dinov2_is_read_from_a_folder(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=1
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    net = extractors.load(f"dinov2:{tmp_path}")
    assert net.dimensions == 16
    assert net.name == f"dinov2-{extractors.digest(tmp_path)}@224-bicubic-aa"
    pixels = torch.from_numpy(NOISE).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True) / 255
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model((resized - mean) / deviation).pooler_output
    np.testing.assert_allclose(net(NOISE), expected.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="has no feature maps"):
        net.maps(NOISE)


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    before = extractors.digest(tmp_path)
    save_file({"a": torch.ones(3)}, tmp_path / "weights.safetensors")
    assert extractors.digest(tmp_path) != before


def test_the_clip_score_is_the_cosine_that_the_whole_model_gives(clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    images, prompts = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8), ["a", "b c", "a", "dd"]
    metric = parse_metric(f"clip_score(model={str(clip)!r})")
    assert isinstance(metric, ClipScore)
    assert metric.full_name == f"clip_score[clip-{extractors.digest(clip)}@32-bicubic-aa]"
    features = extractors.load(metric.extractor)(images)
    found = metric.measure(images, {}, prompts, features)
    model, tokens = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in extractors.CLIP)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens(prompts, padding=True, return_tensors="pt"))
    cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    assert found == pytest.approx((100 * cosine.clamp(min=0)).tolist(), abs=1e-3)
    assert cosine.min() < 0 < cosine.max()
    assert metric.measure(images[2:3], {}, prompts[2:3], features[2:3])[0] == pytest.approx(found[2], abs=1e-4)


def example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Metric:
    """A worked example of the page, with its folder exchanged for a tiny model's."""
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    code = next(one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f'@register("{name}")' in one)
    written, count = re.subn(r"models/[\w-]+", str(folder), code)
    assert count == 1
    exec(compile(written, name, "exec"), {"__name__": __name__})
    return parse_metric(name)


def test_the_page_s_preference_score_is_the_model_s_own_logit(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    model, tokens = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    small = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model.save_pretrained(tmp_path)
    CLIPProcessor(CLIPImageProcessor(**small), tokens).save_pretrained(tmp_path)
    metric = example("pickscore", tmp_path, monkeypatch)
    assert isinstance(metric, SampleMetric)
    assert metric.preference
    images, prompts = NOISE[:, :32, :32], ["a", "b c", "a"]
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in extractors.CLIP)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens(prompts, padding=True, return_tensors="pt"))
        logits = model.logit_scale.exp() * (output.image_embeds * output.text_embeds).sum(1)
    assert metric.measure(images, {}, prompts, None) == pytest.approx(logits.tolist(), abs=1e-4)


def test_the_page_s_distance_is_the_frechet_distance_of_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = example("fd_dinov2", Path("folder"), monkeypatch)
    assert (metric.extractor, metric.better) == ("dinov2:folder", "down")
    assert isinstance(metric, type(parse_metric("frechet")))


def test_a_folder_of_something_else_is_one_line(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no DINOv2"):
        extractors.load(f"dinov2:{clip}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is no CLIP that transformers can load") as error:
        extractors.load(f"clip:{tmp_path}")
    assert "\n" not in str(error.value)


def test_weights_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = None  # type: ignore[attr-defined]  # never called
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"weights": Runs(str(tmp_path / "it-ran"))}, tmp_path / "inception.pth")
    with pytest.raises(InputError, match="has more than weights; convert it to safetensors"):
        extractors.load(f"inception:{tmp_path / 'inception.pth'}")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot read the weights"):
        extractors.load(f"inception:{tmp_path / 'broken.safetensors'}")
    assert not (tmp_path / "it-ran").exists()


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.path, "w"))


def test_an_inception_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    sys.modules.pop("torch_fidelity", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        with pytest.raises(InputError, match="pip install torch-fidelity"):
            extractors.load(f"inception:{tmp_path / 'w.safetensors'}")


def test_an_inception_gets_bytes_and_the_weights_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stand(torch.nn.Module):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert features_list == ["2048"]
            self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            assert pixels.dtype == torch.uint8
            return (pixels.float().mean((2, 3)).repeat(1, 683)[:, :2048] * self.scale,)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Stand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    save_file({"scale": torch.tensor(2.0)}, tmp_path / "w.safetensors")
    net = extractors.load(f"inception:{tmp_path / 'w.safetensors'}")
    assert net.name == f"inception-{extractors.digest(tmp_path / 'w.safetensors')}@299-bilinear-tf1"
    assert net(NOISE)[:, 0] == pytest.approx(2 * NOISE[..., 0].mean((1, 2)), rel=1e-5)
