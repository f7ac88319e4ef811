from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from guidestack.evaluation.metrics import SampleMetric, metrics, parse_metric, register, registry, signature, summary
from guidestack.guidance.errors import InputError

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.mark.parametrize("name", [name for name in metrics() if name != "clip_score"])
def test_every_metric_is_read_by_its_name_and_its_text_is_read_back(name: str) -> None:
    metric = parse_metric(name)
    assert str(metric) == name
    assert parse_metric(f"{name}()") == metric
    assert metric.full_name.startswith(name)
    assert metric.better in ("up", "down", "none")
    assert metric.range[0] < metric.range[1]
    assert signature(name).startswith(f"{name}(")
    assert summary(name)[0].isupper()


@pytest.mark.parametrize("text", ["concept(top=5)", "concept(by='features')", "kid(degree=2)", "recall(k=5)"])
def test_parameters_are_in_the_text_and_in_the_full_name(text: str) -> None:
    metric = parse_metric(text)
    assert str(metric) == text
    assert metric.full_name != parse_metric(metric.name).full_name
    assert parse_metric(f" {text} ") == metric


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("satturation", "unknown metric 'satturation'; did you mean 'saturation'"),
        ("", "the text of a metric is empty; write a name such as 'across'"),
        ("3", "expected a name, or a name with literal arguments"),
        ("saturation | contrast", "expected a name, or a name with literal arguments"),
        ("saturation(", "cannot read the metric"),
        ("saturation(3)", "saturation takes 0 arguments at most"),
        ("kid(degre=3)", "'kid.degre=3.' at character 1: kid has no argument 'degre'; did you mean 'degree'"),
        ("kid('x', extractor='y')", "kid got 'extractor' twice"),
        ("kid(**{'degree': 3})", "at character 7: kid takes its arguments one by one"),
        ("kid(degree=open)", "at character 12: 'open' is not a call; expected a number such as 4, or a text in quotes"),
        ("kid(degree=__import__('os'))", "at character 12: only numbers and texts in quotes are allowed"),
        ("kid(degree=cfg(3))", "only numbers and texts in quotes are allowed"),
        ("kid(degree=1 | 2)", "'.' stands between rules only"),
        ("kid(degree=None)", "degree must be a whole number"),
        ("frechet(reference=None)", "frechet: reference is a text in quotes; got None"),
        ("kid(degree=0)", r"degree must be a whole number between 1 and 1e\+06; got 0"),
        ("recall(k=2.5)", r"k must be a whole number between 1 and 1e\+06; got 2.5"),
        ("concept(by='pixel')", "unknown by 'pixel'; did you mean 'pixels'"),
        ("concept(top=0)", r"top must be a whole number between 1 and 1e\+06; got 0"),
        ("clip_score", "clip_score needs 'model'"),
        ("clip_score(model='')", "model is a folder with a CLIP"),
        ("(" * 3000, "too many nested parentheses"),
        ("(" * 30_000, "at most 10000 characters"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_metric(text)
    assert "\n" not in str(error.value)


def test_others_register_metrics_of_their_own() -> None:
    from guidestack.evaluation.metrics import registry

    try:

        @register("brightness_of_a_test")
        @dataclass(frozen=True)
        class Brightness(SampleMetric):
            """Mean of all channels."""

        assert parse_metric("brightness_of_a_test") == Brightness()
        with pytest.raises(InputError, match="no other metric has"):
            register("brightness_of_a_test")(Brightness)
        with pytest.raises(InputError, match="frozen dataclass"):
            register("another")(type("Loose", (SampleMetric,), {}))
        with pytest.raises(InputError, match=r"a kind such as SampleMetric; got .*Vague"):
            register("another")(type("Vague", (), {}))  # type: ignore[type-var]
        silent = type("Silent", (SampleMetric,), {})
        for members, message in (
            ({"better": "lower", "__doc__": "Dark."}, "better is 'up', 'down' or 'none'; got 'lower'"),
            ({}, "has no docstring"),
            ({"__doc__": " "}, "has no docstring"),
        ):
            with pytest.raises(InputError, match=message):
                register("another")(dataclass(frozen=True)(type("Dim", (silent,), members)))
        assert "another" not in metrics()
    finally:
        registry._METRICS.pop("brightness_of_a_test", None)


def test_the_example_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.evaluation.metrics import registry

    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    example = next(one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "darkness" in one)
    exec(compile(example, str(PAGE), "exec"), {"__name__": __name__})
    metric = parse_metric("darkness(below=32)")
    assert isinstance(metric, SampleMetric)
    images = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    assert metric.measure(images, {}, ["", ""], None).tolist() == [1.0, 0.0]
    assert summary("darkness") == "Share of the pixels whose channels are all below a value, in [0, 1]."


def test_the_page_has_the_table_that_the_command_prints() -> None:
    from guidestack.scripts.metrics import markdown

    assert markdown() in PAGE.read_text(), "run: make tables"


def test_the_command_lists_every_metric() -> None:
    from guidestack.scripts.metrics import command

    shown = CliRunner().invoke(command, [])
    assert shown.exit_code == 0
    assert [line.partition("(")[0] for line in shown.output.splitlines() if not line.startswith(" ")] == list(metrics())


@dataclasses.dataclass(frozen=True)
class Point:
    """An entry point as importlib has them."""

    name: str
    metric: bool

    value, dist = "my_metrics.own", None

    def load(self) -> None:
        @register(self.name)
        @dataclass(frozen=True)
        class Own(SampleMetric):
            """A metric of a package."""

        if not self.metric:
            raise ImportError("no module named 'huge'")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two packages with a metric each; the second cannot be imported."""
    before = dict(registry._METRICS)
    points = {registry.GROUP: [Point("owned", True), Point("hpsv2", False)]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.get(group, []))
    registry.plugins.cache_clear()
    yield
    registry._METRICS.clear()
    registry._METRICS.update(before)
    registry.plugins.cache_clear()


def test_a_package_brings_metrics_and_one_that_cannot_be_imported_is_a_line(installed: None) -> None:
    with pytest.warns(UserWarning, match="the metrics of the package hpsv2 are left out, since importing"):
        assert "owned" in metrics()
    assert "hpsv2" not in metrics()  # though it was registered before the import failed
    assert str(parse_metric("owned()")) == "owned"
    with pytest.raises(InputError, match=r"hpsv2 of an installed package cannot be used: .*: no module named 'huge'"):
        parse_metric("hpsv2")


@pytest.mark.parametrize(("text", "package"), [("pickscore", "transformers"), ("vqascore(model='x')", "t2v-metrics")])
def test_a_well_known_metric_that_is_not_installed_says_how_to_have_it(text: str, package: str) -> None:
    with pytest.raises(InputError, match=f"is installed; pip install {package}, and register") as error:
        parse_metric(text)
    assert "\n" not in str(error.value)


def test_the_worst_is_of_a_metric_of_single_images_with_a_direction() -> None:
    worst = parse_metric("worst(of='background')")
    assert (worst.better, worst.range) == ("up", (0.0, 1.0))
    assert worst.lacks([], False, True) == parse_metric("background").lacks([], False, True) != ""
    assert worst.named(12, 4) == "worst[background, seeds=3]"
    for text in ("worst(of='saturation')", "worst(of='frechet')", "worst(of='worst')"):
        with pytest.raises(InputError, match="worst is of a metric of single images"):
            parse_metric(text)
