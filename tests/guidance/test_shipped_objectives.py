"""The objectives that come with guidestack: their values and gradients against other computations of the same."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance.errors import InputError, RuleError, StackSyntaxError
from guidestack.guidance.notation.objectives import kinds, objective, objectives
from guidestack.guidance.objective import Bound
from guidestack.guidance.objectives import Linear
from guidestack.guidance.objectives.classes import Classified, smooth
from guidestack.guidance.objectives.efficientnet import CLASSES, network, prepared
from guidestack.guidance.objectives.emoji import classes

SIDE = 12


def pictures(batch: int = 2, side: int = SIDE, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(4)
    return torch.rand(batch, 3, side, side, generator=random, dtype=torch.float64).to(dtype)


def image(side: int = SIDE, mode: str = "RGB") -> Image.Image:
    numbers = np.random.default_rng(0).integers(0, 256, (side, side, len(mode)), dtype=np.uint8)
    return Image.fromarray(numbers, mode)


def made(text: str, given: Any = None) -> Any:
    return objective(text, {} if given is None else {text.partition("(")[0]: given})


def test_color() -> None:
    x = pictures()
    target = torch.tensor([0, 128 / 255, 128 / 255]).double().reshape(3, 1, 1)
    wanted = -((x - target) ** 2).sum((1, 2, 3)) / (2 * 0.25**2)
    assert torch.allclose(made("color('teal', spread=0.25)")(x), wanted)
    assert torch.equal(made("color('#008080', 0.25)")(x), made("color('teal', 0.25)")(x))
    assert torch.equal(made("blue")(x), made("color('blue')")(x))
    with pytest.raises(RuleError, match="target is a color such as 'teal'"):
        made("color('bluish')")
    with pytest.raises(RuleError, match="spread must be above 0"):
        made("color('blue', spread=0)")


def test_palette() -> None:
    """Each pixel by itself, in a loop, against the color that is nearest to it."""
    x = pictures()
    colors = [(0, 128 / 255, 128 / 255), (1, 1, 1), (1, 215 / 255, 0)]
    wanted = torch.zeros(2, dtype=torch.float64)
    slopes = torch.zeros_like(x)
    for b in range(2):
        for i in range(SIDE):
            for j in range(SIDE):
                away = [sum((float(x[b, c, i, j]) - one[c]) ** 2 for c in range(3)) for one in colors]
                nearest = colors[away.index(min(away))]
                wanted[b] -= min(away) / (2 * 0.25**2)
                for c in range(3):
                    slopes[b, c, i, j] = (nearest[c] - x[b, c, i, j]) / 0.25**2
    value, slope = objectives().find("palette('teal, #ffffff, gold', spread=0.25)").gradient(x)
    assert torch.allclose(value, wanted)
    assert torch.allclose(slope, slopes)
    assert torch.allclose(made("palette('teal', 0.25)")(x), made("color('teal', 0.25)")(x))
    for wrong in ("palette('')", "palette('teal,')", "palette(3)"):
        with pytest.raises(RuleError, match="colors are 1 to 64 with commas between them, such as 'teal, gold"):
            made(wrong)
    with pytest.raises(RuleError, match="unknown color 'whit'; a color is such as 'teal' or '#00a0ff'"):
        made("palette('black, whit')")
    with pytest.raises(RuleError, match="spread must be above 0"):
        made("palette('blue', spread=0)")


def test_known_pixels_count_by_their_opacity() -> None:
    x, y = pictures(), image(mode="RGBA")
    numbers = torch.from_numpy(np.array(y)).permute(2, 0, 1) / 255
    wanted = -(numbers[3:] * (numbers[:3] - x) ** 2).sum((1, 2, 3)) / (2 * 0.5**2)
    found = made("known(spread=0.5)", y)(x)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert torch.allclose(made("known(0.5)", numbers)(x), wanted, rtol=1e-5)
    opaque = -((numbers[:3] - x) ** 2).sum((1, 2, 3)) / 2
    for whole in (y.convert("RGB"), y.convert("RGB").convert("RGBA")):
        with pytest.warns(gs.GuidestackWarning, match="'known' is opaque all over.*transparent in it"):
            assert torch.allclose(made("known", whole)(x), opaque, rtol=1e-5)
    unknown = numbers.clone()
    unknown[3] = 0
    assert torch.equal(made("known", unknown)(x), torch.zeros(2).double())


@pytest.mark.parametrize(
    "text", ["blur(1.5)", "blur(30)", "superres(3)", "gray(3, 1, 2)", "projection(40)", "projection(144, seed=2)"]
)
def test_measurements_are_linear_and_have_their_adjoint(text: str) -> None:
    measurement: Linear = made(text, pictures(1, 4 if "superres" in text else SIDE)[0].float())
    x, other = pictures(), pictures().flip(0)
    y = torch.randn(measurement.measure(x).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = 1e-4 if "projection" in text else 1e-6  # torch's Fourier transform is asked for in float32
    assert torch.allclose(
        measurement.measure(2 * x - other), 2 * measurement.measure(x) - measurement.measure(other), atol=exact
    )
    left = (measurement.measure(x) * y).flatten(1).sum(1)
    right = (x * measurement.adjoint(y, SIDE, SIDE)).flatten(1).sum(1)
    assert torch.allclose(left, right, atol=20 * exact)
    target = measurement.target(x)
    residual = target - measurement.measure(x)
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(measurement(point).sum(), point)
    assert torch.allclose(slope, measurement.adjoint(residual, SIDE, SIDE), atol=20 * exact)
    assert torch.allclose(measurement(x), -(residual**2).flatten(1).sum(1) / 2)


@dataclass(frozen=True)
class Rough(Linear):
    """A measurement whose graph of gradients is cut."""

    spread: float = 1.0
    given_picture: Tensor | None = None

    def measure(self, x0: Tensor) -> Tensor:
        return x0.detach().flatten(1)


def test_a_measurement_without_an_adjoint_is_said_in_a_line() -> None:
    with pytest.raises(InputError, match="the measurement 'rough' has no adjoint: what `measure` returns") as said:
        Rough().adjoint(torch.zeros(1, 12), 2, 2)
    assert "\n" not in str(said.value)
    sample = {"conditions": {"positive": torch.ones(1, 1)}, "shape": (3, 2, 2), "seeds": [0], "steps": 2}
    rough = Rough(1.0, torch.zeros(12))
    with pytest.raises(InputError, match="'mine' has no gradient with respect to the sample"):
        gs.sample(lambda x, level, told: x, "tfg('mine', mu=1)", DDIMScheduler(), objectives={"mine": rough}, **sample)


def test_what_the_measurements_are() -> None:
    x = pictures(1, dtype=torch.float32)
    flat = torch.full((1, 3, SIDE, SIDE), 0.3)
    assert torch.allclose(made("blur(2)", x[0]).measure(flat), flat)
    point = torch.zeros(1, 3, SIDE, SIDE)
    point[:, :, 6, 6] = 1
    blurred = made("blur(1)", x[0]).measure(point)[0, 0]
    assert torch.allclose(blurred[6, 7] / blurred[6, 6], torch.tensor(math.exp(-0.5)), rtol=1e-4)
    assert torch.allclose(blurred[8, 6] / blurred[6, 6], torch.tensor(math.exp(-2)), rtol=1e-4)
    small = made("superres(4)", pictures(1, 3)[0].float()).measure(x)
    assert torch.allclose(small[0, :, 0, 1], x[0, :, :4, 4:8].mean((1, 2)))
    whole = made("projection(144)", x[0])
    assert torch.allclose(whole(x), torch.zeros(1), atol=1e-6)  # what it was given
    assert len({float(made(f"projection(9, seed={seed})", x[0]).measure(x).sum()) for seed in range(3)}) == 3


def test_a_border_is_the_outermost_pixels() -> None:
    x = pictures()
    outer = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outer[3:-3, 3:-3] = False
    wanted = -((x - 1) ** 2)[..., outer].flatten(1).sum(1) / (2 * 0.5**2)
    assert torch.allclose(made("border('white', 0.5, share=0.25)")(x), wanted)


def test_a_picture_of_another_size_is_one_line() -> None:
    x = pictures()
    with pytest.raises(InputError, match="the picture of the objective 'known' is for 10x10 pixels, and the run makes"):
        made("known", image(10, "RGBA"))(x)
    with pytest.raises(InputError, match=r"the measurements of the objective 'superres' have shape \(3, 5, 5\)"):
        made("superres(4)", image(5))(x)
    with pytest.raises(InputError, match=r"'blur' have shape \(3, 10, 10\), and pictures of the run, 12x12 pixels "):
        made("blur(1)", image(10))(x)
    with pytest.raises(InputError, match=r"projection\(200\) measures 200 of the 144 pixels"):
        made("projection(200)", image())(x)
    with pytest.raises(InputError, match="the picture of the objective 'projection' is for 10x10 pixels, and the run"):
        made("projection(9)", image(10))(x)  # as many numbers, and of others


@pytest.mark.parametrize(
    ("text", "fits", "wrong"),
    [("known", 12, 10), ("blur(1)", 12, 13), ("superres(4)", 3, 12), ("projection(9)", 12, 10), ("similar", 7, 0)],
)
def test_a_picture_of_another_size_is_refused_before_the_run(text: str, fits: int, wrong: int) -> None:
    """`sample` of pictures knows their size: the network is not asked, and neither is the objective."""
    asked = []

    def network(x: Tensor, time: Tensor, condition: Any) -> Tensor:
        asked.append(time)
        return torch.zeros_like(x)

    def run(side: int) -> None:
        stack, objectives = f"tfg({text!r}, mu=1)", {text.partition("(")[0]: image(side, "RGBA")}
        about: dict[str, Any] = {"conditions": {"positive": torch.zeros(1, 1)}, "shape": (3, SIDE, SIDE), "seeds": [0]}
        gs.sample(network, stack, DDIMScheduler(), steps=1, objectives=objectives, **about)

    run(fits)
    assert len(asked) == 1
    if wrong:
        with pytest.raises(InputError, match=text.partition("(")[0]):
            run(wrong)
        assert len(asked) == 1


def test_what_is_given_is_a_picture() -> None:
    for value in (torch.zeros(2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), 3, "no-such-file"):
        with pytest.raises(InputError, match="the objective 'known' takes a picture"):
            made("known", value)
    with pytest.raises(InputError, match=r"'blur' takes a picture: --objective blur=FILE"):
        made("blur(2)")
    with pytest.raises(StackSyntaxError, match="blur has no argument 'size'"):
        made("blur(size=2)", image())
    with pytest.raises(InputError, match="was given no picture"):
        kinds()["blur"]()(pictures())  # type: ignore[call-arg]


def test_a_class_is_the_classifiers_probability() -> None:
    x = pictures(2, 40, torch.float32)
    with torch.no_grad():
        logits = network()(prepared(x, 64))
    assert torch.allclose(made("imagenet(207, side=64)")(x), logits.log_softmax(1)[:, 207], atol=1e-5)
    assert torch.allclose(made("imagenet(207, margin=0, side=64)")(x), logits[:, 207])
    assert torch.allclose(
        made("imagenet(3, margin=0.5, side=64)")(x), logits[:, 3] - (0.5 * logits).logsumexp(1), atol=1e-5
    )
    alone = made("imagenet(3, side=64)")(x[1:])
    assert torch.allclose(alone, made("imagenet(3, side=64)")(x)[1:], atol=1e-5)
    with pytest.raises(RuleError, match="label is the number of a class, 0 to 999; got 1000"):
        made(f"imagenet({CLASSES})")


class Linear3(Classified):
    """Three classes by a matrix, in place of a network."""

    weights = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [2.0, 0.1, 0.7]]).double()
    softplus = 0.0

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, x0: Tensor) -> Tensor:
        return self.of_class(x0.mean((2, 3)) @ self.weights.T, 1)


def test_the_margin_tends_to_the_joint_direction_and_to_the_probability() -> None:
    def slope(margin: float) -> Tensor:
        return Bound("mine", Linear3(margin)).gradient(pictures())[1]

    logits = pictures().mean((2, 3)) @ Linear3.weights.T
    for margin in (0.0, 1e-7, 0.5, 1.0):  # grad f_y minus the mean of m grad f_i by softmax(m f)
        by_hand = Linear3.weights[1] - margin * (margin * logits).softmax(1) @ Linear3.weights
        wanted = (by_hand / SIDE**2)[:, :, None, None].expand(-1, -1, SIDE, SIDE)
        assert torch.allclose(slope(margin), wanted, atol=1e-12)
    assert torch.allclose(slope(1e-7), slope(0), atol=1e-7)
    assert torch.allclose(Linear3(1)(pictures()), logits.log_softmax(1)[:, 1])
    shifted = Linear3(1).of_class(logits + 3, 1) - Linear3(1).of_class(logits, 1)
    assert torch.allclose(shifted, torch.zeros(2).double(), atol=1e-12)
    shifted = Linear3(0.5).of_class(logits + 3, 1) - Linear3(0.5).of_class(logits, 1)
    assert torch.allclose(shifted, torch.full((2,), 1.5).double())  # only at m = 1 a constant added to all says nothing


def test_softplus_tends_to_the_activations_of_the_training() -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    for kind, beta in itertools.product((nn.ReLU, nn.ReLU6), (1.0, 5.0, 80.0)):
        found = smooth(nn.Sequential(nn.Sequential(kind())), beta)(x)
        low, high = (torch.logaddexp(beta * one, 0 * one) / beta for one in (x, x - 6))
        assert torch.allclose(found, low - high if kind is nn.ReLU6 else low, atol=1e-8)
        assert (found - kind()(x)).abs().max() < 0.7 / beta
    network, text = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double(), "imagenet(3, side=64{})"
    plain = network(x[:, None])
    assert torch.allclose(smooth(network, 1e6)(x[:, None]), plain, atol=1e-5)
    assert torch.equal(smooth(network, 0.0)(x[:, None]), plain)
    given = pictures(1, 64, torch.float32)
    exact = made(text.format(""))(given)
    away = [abs(float(made(text.format(f", softplus={beta}"))(given) - exact)) for beta in (5, 500)]
    assert 0 < away[1] < 0.1 * away[0]
    with pytest.raises(RuleError, match="softplus is 0"):
        made("imagenet(3, softplus=1e-12)")


def test_the_classifier_knows_a_picture_of_its_class() -> None:
    """Red all over is nothing, and a class whose probability is raised by its gradient is the class that is asked."""
    bound = objectives().find("imagenet(7, side=64)")
    x = pictures(1, 64, torch.float32)
    for _ in range(40):
        _, slope = bound.gradient(x)
        x = (x + 0.1 * slope / slope.flatten(1).norm()).clamp(0, 1) + 0.0
        x = x + 0.9 * slope / slope.flatten(1).norm()
    with torch.no_grad():
        assert int(network()(prepared(x, 64)).argmax()) == 7


def test_similarity_is_0_for_the_picture_itself_and_rises_along_its_gradient() -> None:
    x = pictures(2, 32, torch.float32)
    bound = objectives({"similar": x[0]}).find("similar(side=64)")
    values, slope = bound.gradient(x)
    assert abs(float(values[0])) < 1e-3 > float(values[1])
    nearer = x + 0.02 * slope / slope.flatten(1).norm(dim=1).reshape(2, 1, 1, 1)
    assert float(bound(nearer)[1]) > float(values[1])
    features = made("similar(side=64)", x[0]).features(x)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    assert torch.allclose(values[1], (features[0] @ features[1] - 1) / 0.01, rtol=1e-3)


def on_white(count: int = 24) -> tuple[Tensor, list[str], list[str]]:
    """Pictures that the emoji classifier was trained on, some of which it has not seen, with concept and style."""
    from guidestack.evaluation.emoji.pictures import on_background
    from guidestack.evaluation.emoji.vocabulary import labels
    from guidestack.evaluation.references import drawings

    known = drawings()
    rows = [int(row) for row in torch.linspace(0, len(known.slugs) - 1, count)]
    shown = torch.from_numpy(on_background(known.rgba[rows], (255, 255, 255))).permute(0, 3, 1, 2)
    return shown, [labels()[known.slugs[row]] for row in rows], [str(known.styles[row]) for row in rows]


def test_emoji_are_known_by_concept_style_and_background() -> None:
    x, concepts, styles = on_white()
    logits = made("emoji(background='white')").logits(x)
    told = classes()
    assert [len(told[part]) for part in ("concept", "style", "background")] == [429, 4, 12]
    found = [[words[int(row.argmax())] for row in one] for words, one in zip(told.values(), logits, strict=True)]
    assert sum(map(str.__eq__, found[0], concepts)) >= 20
    assert sum(map(str.__eq__, found[1], styles)) >= 18
    assert set(found[2]) == {"white"}
    one = made(f"emoji({concepts[0]!r}, style={styles[0]!r}, background='blue')")(x)
    wanted = [told["concept"].index(concepts[0]), told["style"].index(styles[0]), told["background"].index("blue")]
    parts = [one.log_softmax(1)[:, label] for one, label in zip(logits, wanted, strict=True)]
    assert torch.allclose(one, torch.stack(parts).sum(0), atol=1e-4)
    assert torch.equal(made(f"emoji({concepts[0]!r}, margin=0)")(x), logits[0][:, wanted[0]])
    assert torch.allclose(made("emoji(style='flat')")(x[3:4]), made("emoji(style='flat')")(x)[3:4], atol=1e-5)


def test_emoji_have_a_gradient_towards_what_is_asked() -> None:
    x = on_white(4)[0]
    for text in ("emoji('red heart')", "emoji(background='red')", "emoji('red heart', softplus=5)"):
        bound = objectives().find(text)
        values, slope = bound.gradient(x)
        nearer = x + 0.5 * slope / slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        assert (bound(nearer) > values).all()
    double = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    assert objectives().find("emoji('red heart')").gradient(double)[1].shape == double.shape


def test_what_emoji_do_not_know_is_one_line() -> None:
    with pytest.raises(RuleError, match="there is no concept 'cat fase'; did you mean 'cat face'"):
        made("emoji('cat fase')")
    with pytest.raises(RuleError, match="there is no background 'teal'"):
        made("emoji(background='teal')")
    with pytest.raises(RuleError, match="name a concept, a style or a background"):
        made("emoji")
    with pytest.raises(RuleError, match="margin must be"):
        made("emoji('cat face', margin=-1)")


def test_the_size_of_a_file_has_no_gradient() -> None:
    x = pictures(2, 32, torch.float32)
    x[1] = 0.5
    found = made("jpeg(80)")(x)
    for one, value in zip(x, found, strict=True):
        numbers = (one.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(numbers).save(file, "JPEG", quality=80)
        assert float(value) == pytest.approx(-len(file.getvalue()) / 1000)
    assert found[1] > found[0]
    with pytest.raises(RuleError, match="the objective 'jpeg' has no gradient, and this rule needs one"):
        gs.guide(gs.load_emoji(), "tfg('jpeg', mu=1)")


def test_every_kind_is_tested_here_or_by_name() -> None:
    tested = {"red", "green", "blue", "color", "palette", "known", "blur", "superres", "projection", "imagenet"}
    assert set(kinds()) == tested | {"similar", "jpeg", "blobs", "emoji", "gray", "border"}
