"""The report's files: what stands in them, without a browser (test_page.py has that)."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from guidestack.evaluation.analysis.matched import Comparison, compare
from guidestack.evaluation.analysis.measure import Cells
from guidestack.evaluation.analysis.methods import Matched, MethodCells, method_cells
from guidestack.evaluation.csvs import written_csv
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.plots import alone
from guidestack.evaluation.report.figures import by_column, difference, front
from guidestack.evaluation.report.found import Column, Found
from guidestack.evaluation.report.gather import gather
from guidestack.evaluation.report.page import conclusion, script_safe
from guidestack.evaluation.report.plot import NEUTRAL, Mark, Plot, Series, drawn
from guidestack.evaluation.report.report import report
from guidestack.evaluation.report.words import ComparisonRow, Kind, number, verdict
from guidestack.evaluation.store.folder import RunFolder

from .common import SAMPLES, run
from .reported import WICKED, data_of, nowhere_else


@pytest.fixture(scope="module")
def baselined(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a metric that compares with a cell amid its method's others, with its report."""
    out = tmp_path_factory.mktemp("baselined") / "run"
    axes = {"w": [2, 3, 5, 7]}
    run(model_folder, out, axes=axes, metrics=["psnr", "saturation"], baseline={"stack": "cfg({w})", "w": 3})
    report(RunFolder(out))
    return out


def html_of(out: Path) -> str:
    return (out / "report.html").read_text()


def test_everything_is_written(reported: Path) -> None:
    page = html_of(reported)
    assert (reported / "plots").is_dir()
    plots = sorted(path.name for path in (reported / "plots").iterdir())
    kinds = ("by-effective-scale", "by-evaluations", "difference-1")
    names = itertools.product(("contrast", "saturation"), kinds, ("csv", "svg"))
    assert plots == [f"{metric}-{plot}.{kind}" for metric, plot, kind in names]
    for name in plots:
        if name.endswith("svg"):
            assert ElementTree.parse(reported / "plots" / name).getroot().tag.endswith("svg")
        assert f"plots/{name}" in page
    data = data_of(page)
    assert len(data["samples"]) == SAMPLES
    assert [cell["stack"] for cell in data["cells"]] == ["cfg(2)", "cfg(5)", "apg(2)", "apg(5)"]
    assert data["axes"] == [
        {"name": "stack", "values": ["cfg({w})", "apg({w}, eta=0)"]},
        {"name": "w", "values": ["2", "5"]},
    ]
    assert "cfg(w)" in page
    assert "apg(w, eta=0)" in page
    assert f"guidestack evaluate {reported}/sweep.yaml --out {reported}" in page
    assert "- cfg({w})" in page  # the sweep itself


def test_every_sample_has_its_record_and_its_image(reported: Path) -> None:
    data = data_of(html_of(reported))
    rows = {row["address"]: row for row in RunFolder(reported).records().to_pylist()}
    for sample in data["samples"]:
        row = rows.pop(sample["a"])
        assert data["cells"][sample["c"]]["id"] == row["cell"]
        assert data["prompts"][str(sample["p"])]["text"] == row["prompt"]
        assert (sample["s"], sample["e"], sample["i"]) == (row["seed"], row["evaluations"], row["image"])
        assert sample["w"] == pytest.approx(row["effective_scale"], rel=1e-4)
        assert sample["g"] == row["guided_steps"]
        assert sample["m"] == pytest.approx([row["metric.saturation"], row["metric.contrast"]], rel=1e-4)
        assert sample["d"].startswith("data:image/png;base64,")
        assert len(sample["n"]) == 3
        if row["stack"].startswith("cfg"):
            scale = float(row["stack"][4:-1])
            assert sample["w"] == pytest.approx(scale, abs=1e-3)
            assert sample["n"] == pytest.approx([scale] * 3, abs=1e-3)
    assert not rows


def test_nothing_in_it_is_asked_of_anyone(reported: Path) -> None:
    assert nowhere_else(html_of(reported)) == []
    assert nowhere_else('<img src="https://a/b">') == ["https://a/b"]  # so that it can be seen


def test_no_prompt_can_break_out(reported: Path) -> None:
    page = html_of(reported)
    assert WICKED not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<b>bold" not in page
    assert WICKED in {one["text"] for one in data_of(page)["prompts"].values()}
    for text in (WICKED, "\u2028", "<!--", "]]>", "&lt;", 'a"b\\'):
        assert json.loads(script_safe([text])) == [text]
        assert not set("<>&\u2028") & set(script_safe([text]))
    with pytest.raises(ValueError, match="Out of range"):
        script_safe([float("nan")])


def test_the_plots_have_the_numbers_of_the_cells(reported: Path) -> None:
    cells = Cells(RunFolder(reported))
    metric = parse_metric("saturation")
    with (reported / "plots" / "saturation-by-evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["cell"] for row in rows} == set(cells.by_name)
    for row in rows:
        one = cells.numbered(metric, row["cell"])
        assert (float(row["value"]), float(row["low"]), float(row["high"])) == (one.value, one.low, one.high)
        assert float(row["evaluations"]) == 6
    with (reported / "plots" / "saturation-by-effective-scale.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [row for row in rows if row["kind"] == "cell"]
    assert [row["written"] for row in points] == ["2", "5", "2", "5"]
    for row in points:
        mean = cells.by_name[row["cell"]].numbers("effective_scale").mean()
        assert float(row["effective_scale"]) == pytest.approx(mean)
    curve = [row for row in rows if row["kind"] == "curve" and row["method"] == "cfg(w)"]
    assert len(curve) == 41
    assert float(curve[0]["low"]) <= float(curve[0]["value"]) <= float(curve[0]["high"])


def test_the_plots_of_differences_have_the_band(reported: Path) -> None:
    cells = Cells(RunFolder(reported))
    matched = Matched(cells, method_cells(cells.told, RunFolder(reported).sweep().stacks, cells.by_name))
    metric = parse_metric("saturation")
    found = compare(*matched.methods(metric), matched.replicates(metric))
    with (reported / "plots" / "saturation-difference-1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["one"], row["other"]) for row in rows} == {("cfg(w)", "apg(w, eta=0)")}
    for name, values in (("effective_scale", found.x), ("difference", found.difference), ("low", found.low),
                         ("high", found.high), ("cost_one", found.costs[0])):  # fmt: skip
        assert [float(row[name]) for row in rows] == values.tolist()
    page = html_of(reported)
    said = f"95% band {number(found.low.min())} to {number(found.high.max())}"
    assert "5 samples are too few to tell, 20 are wanted at least: cfg(w) minus apg(w, eta=0) is " in page
    assert f"{said}." in page
    assert "2 comparisons can tell nothing: there are too few samples or prompts." in page
    small = page[page.index('class="difference"') :].partition("</svg>")[0]
    assert "cfg(w) higher ↑" in small
    assert 'class="zero"' in small
    assert 'class="band neutral"' in small


def test_a_difference_has_the_colour_of_who_is_better() -> None:
    found = compared([0.1, 0.2, -0.1, -0.6, -0.7], [0.3, 0.6, 0.1, -0.2, -0.3])
    for better, colours in (("up", ["s3", "s5"]), ("down", ["s5", "s3"])):
        text = difference_of(found, better).svg
        assert re.findall(r'class="band (\w+)"', text) == ["neutral", *colours]
        assert f"A {'better' if better == 'up' else 'worse'} ↑" in text
    apart = difference_of(found, "up", breaks=[2])  # nothing is drawn across what was left out
    assert [(one.colour, one.line and one.line[0].tolist()) for one in apart.series] == [
        (NEUTRAL, [2, 3]), (3, [2, 3]), (NEUTRAL, [4, 5, 6]), (5, [5, 6]),
    ]  # fmt: skip


def difference_of(found: Comparison, better: str, breaks: Any = ()) -> Any:
    metric = type("Made", (), {"better": better, "__str__": lambda self: "m"})()
    whole = Found(None, [MethodCells(name, {}, {}) for name in ("", "", "", "A", "", "B")])  # type: ignore[arg-type]
    return difference(whole, Column(metric, "m", {}), found, "effective scale", breaks, "m-difference-1")


def test_a_record_has_the_likeness_of_its_image_to_the_baseline_s(baselined: Path) -> None:
    data = data_of(html_of(baselined))
    assert data["metrics"] == ["psnr", "saturation"]
    run = RunFolder(baselined)
    rows = {row["address"]: row for row in run.records().to_pylist()}
    images = {address: np.asarray(run.image(row["image"]), float) for address, row in rows.items()}
    there = {(row["prompt_index"], row["seed"]): address for address, row in rows.items() if row["stack"] == "cfg(3)"}
    for sample in data["samples"]:
        other = there[sample["p"], sample["s"]]
        if other == sample["a"]:
            assert sample["m"][0] is None
        else:
            error = ((images[sample["a"]] - images[other]) ** 2).mean()
            assert sample["m"][0] == pytest.approx(10 * np.log10(255**2 / error), rel=1e-4)


def test_the_baseline_is_compared_with_nothing(baselined: Path) -> None:
    """A metric of pairs is of the baseline itself what it is of equal images, which says nothing of its method."""
    found = gather(RunFolder(baselined))
    baseline = found.cells.told["baseline"]
    assert baseline is not None
    matched = Matched(found.cells, found.groups)
    for text, left_out in (("psnr", True), ("saturation", False)):
        methods = matched.methods(parse_metric(text))
        curves = {method.name: [len(curve.names) for curve in method.curves] for method in methods}
        assert curves == {"cfg(w)": [1, 2] if left_out else [4], "apg(w, eta=0)": [4]}
        assert (baseline in [name for method in methods for curve in method.curves for name in curve.names]) != left_out
    psnr = next(one for one in found.verdicts if one.metric == "psnr")
    assert psnr.where != next(one for one in found.verdicts if one.metric == "saturation").where
    assert " and " in psnr.where  # nothing is compared across the baseline
    for figure in found.plots:
        marks = [mark for one in figure.series for mark in one.marks if mark.baseline]
        assert len(marks) == (figure.metric == "psnr")
        ys = [mark.y for one in figure.series for mark in one.marks if not mark.baseline]
        assert figure.metric != "psnr" or max(ys) < 100
        if figure.metric == "psnr":
            text = figure.svg
            assert text.count(">baseline</text>") == 1
            assert len(ticks_of(text)) > 4
            assert max(ticks_of(text)) < 100
            (row,) = [row for row in figure.rows if baseline in row]
            assert sum(isinstance(one, float) and np.isnan(one) for one in row) == 3
    page = html_of(baselined)
    assert page.count('<td class="num">baseline</td>') == 1
    assert "likeness to the images of the baseline, cfg(3)" in page
    assert "100 – 100" not in page


def ticks_of(text: str) -> list[float]:
    return [float(one.replace("−", "-")) for one in re.findall(r">([−.\d]+)</text>", text)]


def test_what_is_nowhere_equally_strong_is_said_once(model_folder: Path, tmp_path: Path) -> None:
    keys = {"stack": ["cfg({w})", "apg({v}, eta=1)"], "axes": {"w": [2, 3], "v": [6, 7]}}
    run(model_folder, tmp_path / "run", metrics=["saturation", "contrast"], **keys)
    report(RunFolder(tmp_path / "run"))
    page = html_of(tmp_path / "run")
    assert page.count("cannot be compared") == 1
    assert re.search(
        r"cfg\(w\) reached effective scales 2 to 3, apg\(v, eta=1\) 6 to 7. Add greater scales of cfg", page
    )
    assert "0 of 0" not in page
    assert "in common" not in page
    data = data_of(page)
    assert data["axes"] == [
        {"name": "stack", "values": ["cfg({w})", "apg({v}, eta=1)"]},
        {"name": "w", "values": ["2", "3"]},  # that a cell has none is nothing to choose
        {"name": "v", "values": ["6", "7"]},
    ]
    assert [cell["at"]["w"] for cell in data["cells"]] == ["2", "3", "–", "–"]


def test_the_columns_are_explained_and_have_their_intervals(reported: Path) -> None:
    page = html_of(reported)
    assert "<dd>Mean over the pixels of the S of HSV, in [0, 1]. <code>saturation</code></dd>" in page
    assert page.count('6<span class="interval">6 – 6</span>') == 4
    assert {sample["x"] for sample in data_of(page)["samples"][:10]} == {0}  # of cfg, as in the table


def test_commands_work_from_any_folder(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.evaluation.report.page import page

    monkeypatch.chdir(reported.parent)
    text = page(gather(RunFolder(reported.name)), 0)
    assert f"guidestack report {reported}<" in text
    assert f"evaluate {reported}/sweep.yaml --out {reported}<" in text
    assert data_of(text)["run"] == str(reported)


def test_bands_end_where_values_do(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends() -> tuple[float, float]:
        figure = next(one for one in gather(RunFolder(reported)).plots if one.name == "contrast-by-effective-scale")
        rows = [row for row in figure.rows if row[0] == "curve"]
        return min(row[-2] for row in rows), max(row[-1] for row in rows)

    low, high = ends()
    near = (low + 0.1 * (high - low), high - 0.1 * (high - low))
    monkeypatch.setattr(type(parse_metric("contrast")), "range", near)
    assert ends() == near


def test_images_beyond_the_budget_are_smaller_and_then_links(reported: Path, tmp_path: Path) -> None:
    for budget, kinds in ((0.0, {None}), (0.003, {None, "data:image/webp"})):
        from guidestack.evaluation.report.page import page

        text = page(gather(RunFolder(reported)), budget)
        samples = data_of(text)["samples"]
        assert {sample.get("d") and sample["d"].partition(";")[0] for sample in samples} == kinds
        embedded = sum(len(sample.get("d") or "") for sample in samples)
        assert embedded <= budget * 1e6
        assert all(sample["i"] for sample in samples)
        assert "made smaller" in text


def test_a_run_without_images_or_metrics(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "run", images="none", prompts=["a cat"])
    report(RunFolder(tmp_path / "run"))
    page = html_of(tmp_path / "run")
    assert "images of this run are not kept" in page
    assert not (tmp_path / "run" / "plots").exists()
    assert "There are no two methods to compare" in page
    data_of(page)


def test_a_run_of_one_cell(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "run", stack="stack()", axes=None, prompts=["a cat", "red"])
    report(RunFolder(tmp_path / "run"))
    page = html_of(tmp_path / "run")
    assert "There are no two methods to compare" in page
    assert [cell["stack"] for cell in data_of(page)["cells"]] == ["stack()"]
    assert "saturation" in page  # what a sweep that names no metric is shown with


def test_steps_make_curves_of_one_method_and_costs_equal(model_folder: Path, tmp_path: Path) -> None:
    """A claim, a metric against a baseline, several numbers of steps, and two methods of which one costs less."""
    expect = [{"metric": "psnr", "of": {"stack": "cfg", "w": 5, "steps": 2}, "be": "lower",
               "than": {"stack": "cfg", "w": 2, "steps": 2}, "matters": 0.1}]  # fmt: skip
    keys = {
        "stack": {"cfg": "cfg({w})", "first": "prefix(cfg({w}), 2)"},
        "axes": {"w": [2, 3, 5], "steps": [2, 4]},
        "steps": None,
        "metrics": ["psnr", "saturation"],
        "baseline": {"stack": "cfg", "w": 2, "steps": 4},
        "claim": {"words": "More guidance, another image.", "paper": "0000.00000", "expect": expect},
    }
    run(model_folder, tmp_path / "run", **keys)
    found = gather(RunFolder(tmp_path / "run"))
    assert [(group.name, list(group.cells)) for group in found.groups] == [("cfg", [2, 4]), ("first", [2, 4])]
    of_psnr, of_saturation = found.verdicts
    assert (of_psnr.metric, of_psnr.one, of_psnr.other) == ("psnr", "cfg", "first")
    # cfg costs 4 and 8, the other 4 and 6: both reach 6 where both guide equally hard in so many steps, else 4
    assert of_saturation.equal
    assert {row.where for _, row in found.by_cost} == {"4 to 6"}
    scales = {row[1]: set() for row in found.plots[0].rows[1:]}
    for row in found.plots[0].rows[1:]:
        scales[row[1]].add(row[2])
    assert scales == {"cfg": {2, 4}, "first": {2, 4}}
    assert found.claim is not None
    report(RunFolder(tmp_path / "run"))
    page = html_of(tmp_path / "run")
    assert "More guidance, another image." in page
    assert "psnr of cfg, w 5, steps 2 is lower than that of cfg, w 2, steps 2" in page
    assert f"<strong>{found.claim[1][0].said}</strong>" in page
    assert "Over network evaluations, at one effective scale" in page
    assert "cfg, 2 steps" in page
    assert {axis["name"] for axis in data_of(page)["axes"]} == {"stack", "w", "steps"}


def test_a_run_that_is_not_finished_says_so(reported: Path, tmp_path: Path) -> None:
    import shutil

    import pyarrow.parquet as pq

    out = tmp_path / "run"
    shutil.copytree(reported, out)
    table = pq.read_table(out / "records.parquet")
    cell = table.column("cell")[0].as_py()
    kept = [row["cell"] != cell or row["prompt_index"] < 2 for row in table.to_pylist()]
    pq.write_table(table.filter(kept), out / "records.parquet")
    report(RunFolder(out))
    page = html_of(out)
    assert f"{sum(kept)} images of {SAMPLES}" in page
    assert "on 2 prompts that all cells share" in page
    assert "too few for intervals" in page


def test_the_command(reported: Path, tmp_path: Path, command: Any) -> None:
    before = html_of(reported)
    status, said, _ = command("report", reported, "--metric", "clipping")
    assert (status, said) == (0, f"report: {reported}/report.html\n")
    assert "clipping" in html_of(reported)
    (reported / "report.html").write_text(before)
    for path in (reported / "plots").glob("clipping*"):
        path.unlink()
    for arguments, message in (
        ((tmp_path / "nowhere",), "no run folder"),
        ((reported, "--metric", "saturatoin"), "did you mean 'saturation'"),
        ((reported, "--metric", "concept"), "label 'concept'"),
        ((reported, "--embed", "-1"), "--embed"),
    ):
        status, _, err = command("report", *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    assert html_of(reported) == before


# --- what a method is ------------------------------------------------------------------------------------------------


def told(*cells: dict[str, Any]) -> dict[str, Any]:
    plain = {"sampler": "ddim", "steps": 10, "size": None, "dtype": "float32", "axes": {}}
    return {"cells": [{"cell": str(place), **plain, **cell} for place, cell in enumerate(cells)]}


def named(whole: dict[str, Any], templates: dict[str, str]) -> dict[str, dict[int, tuple[str, ...]]]:
    known = [cell["cell"] for cell in whole["cells"]]
    return {group.name: dict(group.cells) for group in method_cells(whole, templates, known)}


def test_methods_are_templates_without_what_is_swept() -> None:
    templates = {"cfg({w})": "cfg({w})", "apg": "apg({w}, eta={eta})", "none": "stack()"}
    whole = told(
        {"template": "cfg({w})", "stack": "cfg(10)", "axes": {"w": "10", "eta": None}},
        {"template": "cfg({w})", "stack": "cfg(9)", "axes": {"w": "9", "eta": None}},
        {"template": "cfg({w})", "stack": "cfg(9)", "axes": {"w": "9", "eta": None}, "steps": 20},
        {"template": "apg", "stack": "apg(10)", "axes": {"w": "10", "eta": "0"}},
        {"template": "apg", "stack": "apg(10, eta=1)", "axes": {"w": "10", "eta": "1"}},
        {"template": "none", "stack": "stack()", "axes": {"w": None, "eta": None}},
    )
    assert named(whole, templates) == {
        "cfg(w)": {10: ("1", "0"), 20: ("2",)},  # by value, not as texts sort
        "apg, eta=0": {10: ("3",)},
        "apg, eta=1": {10: ("4",)},
        "none": {10: ("5",)},
    }


def test_methods_of_plain_stacks_are_their_texts_without_the_first_number() -> None:
    stacks = ["cfg(2)", "cfg(4.5)", "adaptive(cfg(2), threshold=0.9)", "adaptive(cfg(4), threshold=0.9)", "stack()",
              "apg(3, eta=0.5) | rescale(0.7)"]  # fmt: skip
    whole = told(*({"template": text, "stack": text} for text in stacks))
    assert named(whole, {text: text for text in stacks}) == {
        "cfg(w)": {10: ("0", "1")},
        "adaptive(cfg(w), threshold=0.9)": {10: ("2", "3")},
        "stack()": {10: ("4",)},
        "apg(w, eta=0.5) | rescale(0.7)": {10: ("5",)},
    }
    beside = told(
        {"template": "cfg(2)", "stack": "cfg(2)", "sampler": "ddim"},
        {"template": "cfg(2)", "stack": "cfg(2)", "sampler": "heun"},
    )
    assert list(named(beside, {"cfg(2)": "cfg(2)"})) == ["cfg(w), ddim", "cfg(w), heun"]


def test_replicates_of_a_cell_are_means_of_its_prompts(reported: Path) -> None:
    run_folder = RunFolder(reported)
    cells = Cells(run_folder)
    matched = Matched(cells, method_cells(cells.told, run_folder.sweep().stacks, cells.by_name))
    metric = parse_metric("saturation")
    method = matched.methods(metric)[0]
    cell = cells.by_name[method.curves[0].names[1]]
    values = cell.values(metric)
    np.testing.assert_allclose(method.curves[0].y[0, 1], values.mean())
    draw = matched.replicates(metric).draws[6]
    chosen = [values[cell.prompts == matched.prompts[one]].mean() for one in draw]
    np.testing.assert_allclose(method.curves[0].y[7, 1], np.mean(chosen))
    assert method.curves[0].cost[0].tolist() == [6, 6]


# --- words, numbers, plots -------------------------------------------------------------------------------------------


def compared(low: list[float], high: list[float], costs: tuple[float, float] = (20.0, 20.0)) -> Comparison:
    x, one, other = np.arange(2.0, 2.0 + len(low)), np.array(low), np.array(high)
    both = np.array([[costs[0]] * len(low), [costs[1]] * len(low)])
    return Comparison("A", "B", x, (one + other) / 2, one, other, both, 20)


def test_verdicts() -> None:
    mixed = compared([0.1, 0.2, -0.1, -0.6], [0.3, 0.6, 0.1, -0.2])
    up, down, none = (verdict(mixed, "m", better) for better in ("up", "down", "none"))
    assert up.words == (
        "A is better than B from effective scale 2 to 3, by 0.2 to 0.4 as measured, 95% band 0.1 to 0.6; B is better "
        "than A at effective scale 5, by 0.4 as measured, 95% band 0.2 to 0.6. Elsewhere no difference found: A minus "
        "B has 95% band −0.1 to 0.1."
    )
    assert down.words.startswith("B is better than A from effective scale 2 to 3, by 0.2 to 0.4 as measured")
    assert none.words.startswith("A is higher than B from effective scale 2 to 3")
    assert {up.kind, down.kind, none.kind} == {Kind.BOTH}
    assert (up.where, up.cost, up.equal) == ("2 to 5", "20", True)
    whole = compared([0.1, 0.2], [0.3, 0.6])
    assert [verdict(whole, "m", better).kind for better in ("up", "down", "none")] == [Kind.ONE, Kind.OTHER, Kind.ONE]
    assert "Elsewhere" not in verdict(whole, "m", "up").words
    undecided = verdict(compared([-0.1, -0.1], [0.3, 0.1], (20.0, 30.0)), "m", "up")
    assert (undecided.kind, undecided.cost, undecided.equal) == (Kind.NONE, "20 against 30", False)
    assert undecided.words == (
        "No difference found: A minus B is 0 to 0.1 as measured, 95% band −0.1 to 0.3, so that greater differences are "
        "excluded."
    )
    cut = verdict(compared([0.1, 0.2, 0.3], [0.3, 0.6, 0.5]), "m", "up", breaks=[2])
    assert cut.where == "2 to 3 and 4"
    assert "from effective scale 2 to 3, by 0.2 to 0.4 as measured, 95% band 0.1 to 0.6; A is" in cut.words
    assert verdict(compared([], []), "m", "up").kind == Kind.APART
    few = verdict(compared([float("nan")], [float("nan")]), "m", "up")
    assert few.kind == Kind.FEW
    assert few.words == "No intervals from 20 prompts: A minus B is – as measured."
    few = verdict(whole, "m", "up", few="5 samples are too few to tell")
    assert few.kind == Kind.FEW
    assert few.words == "5 samples are too few to tell: A minus B is 0.2 to 0.4 as measured, 95% band 0.1 to 0.6."


def test_the_front_has_what_nothing_beats() -> None:
    generator = np.random.default_rng(0)
    points = [tuple(map(float, row)) for row in generator.integers(0, 8, (40, 2))]
    for across, up in itertools.product(("up", "down"), repeat=2):
        signs = np.array([1 if across == "up" else -1, 1 if up == "up" else -1])

        def beaten(point: Any, signs: Any = signs) -> bool:
            better = [(np.array(other) - point) * signs for other in points]
            return any((one >= 0).all() and (one > 0).any() for one in better)

        wanted = sorted({point for point in points if not beaten(point)})
        assert front(points, across, up) == wanted


def test_a_plot_is_well_formed_whatever_its_names() -> None:
    marks = [Mark(1, 2, 1.5, 2.5, said='<a & "b">'), Mark(3, 4)]
    line = (np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    band = (line[0], line[1] - 1, line[1] + 1)
    series = [Series(f"<{place}>", place, marks, line, band, label="<method> & a very long name") for place in range(9)]
    plot = Plot("<t>", "x & $y", "y", series, described='"')
    assert drawn(plot) == drawn(plot)  # no date, no random name
    for text in (drawn(plot), alone(drawn(plot))):
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"].startswith("<t>")
        points = [one for one in root.iter() if one.attrib.get("class", "").startswith("point ")]
        assert [next(iter(one)).text for one in points] == ['<a & "b">', None] * 9
        assert text.count("&lt;method&gt; &amp; a very long name</text>") == 9
        assert not re.findall(r"#[0-9a-f]{6}", text.partition("</style>")[2] or text)  # colours are variables
    empty = drawn(Plot("nothing", "x", "y", [Series("a", 0)]))
    assert ElementTree.fromstring(empty).tag == "svg"


@pytest.mark.parametrize("apart", [False, True])
def test_whiskers_are_within_the_axes(apart: bool) -> None:
    marks = [Mark(4, 0.5, 0.1, 0.9), Mark(8, 0.55, 0.2, 1.9)]
    text = drawn(Plot("t", "x", "y", [Series("a", 0, marks), Series("b", 1, marks)], apart=apart))
    found = re.findall(r'class="whisker"><path d="M [\d.]+ (-?[\d.]+)\s+L [\d.]+ (-?[\d.]+)', text)
    foot = max(float(one) for one in re.findall(r'<text [^>]*y="([\d.]+)"', text))
    assert len(found) == 4
    assert all(0 < float(y) < foot - 20 for pair in found for y in pair)


def test_what_is_named_inside_a_plot_is_its_own() -> None:
    """Several stand on one page, where a name is to be found once; else one plot has the marks of another."""
    texts = [drawn(Plot(title, "x", "y", [Series("a", 0, [Mark(1, 2), Mark(2, 3)], label="a")])) for title in "ab"]
    names = [set(re.findall(r' id="(\w+)"', text)) for text in texts]
    assert names[0]
    assert not names[0] & names[1]
    for text, own in zip(texts, names, strict=True):
        assert set(re.findall(r'#(\w+)[")]', text)) == own


def test_numbers() -> None:
    assert [number(value) for value in (0, 0.1234, -12.345, 1e-5, 12345.0, float("nan"))] == [
        "0", "0.123", "−12.3", "1.00e-05", "1.23e+04", "–",
    ]  # fmt: skip
    assert written_csv([["a", "b"], [1.5, float("nan")], ['x,"y', None]]).decode() == 'a,b\n1.5,\n"x,""y",\n'


def test_a_metric_over_alignment_has_a_line_for_each_method(baselined: Path) -> None:
    found = gather(RunFolder(baselined))
    psnr, saturation = (next(one for one in found.columns if one.text == text) for text in ("psnr", "saturation"))
    plot = by_column(found, psnr, saturation, joined=True)
    assert plot.name == "psnr-by-saturation"
    lines = {(one.name, len(one.marks), any(mark.baseline for mark in one.marks)) for one in plot.series}
    assert lines == {("cfg(w)", 1, False), ("cfg(w)", 1, True), ("cfg(w)", 2, False), ("apg(w, eta=0)", 4, False)}
    assert [one.label for one in plot.series].count("cfg(w)") == 1  # of a curve in three parts
    header, *rows = plot.rows
    for row in rows:
        told = dict(zip(header, row, strict=True))
        own, other = psnr.numbers[told["cell"]], saturation.numbers[told["cell"]]
        assert (told["saturation"], told["saturation_low"]) == (other.value, other.low)
        assert told["value"] == own.value or (told["cell"] == found.cells.told["baseline"] and np.isnan(told["value"]))
    assert plot.svg.count('class="whisker"') == 2 * 7  # of both metrics, but for the baseline


def concluded(*rows: tuple[str, Kind], each: Sequence[int] = (40, 40), **more: Any) -> str:
    """The sentence of a report of cfg and apg, from the kind of each metric's comparison."""
    made = [ComparisonRow(metric, "cfg", "apg", "", "", True, "", kind) for metric, kind in rows]
    cells = SimpleNamespace(by_name={str(place): range(count) for place, count in enumerate(each)})
    columns = [SimpleNamespace(text=metric, better="none" if metric == "saturation" else "up") for metric, _ in rows]
    told = {"verdicts": made, "cells": cells, "columns": columns, "prompts": 40, "claim": None, "apart": {}, **more}
    return conclusion(SimpleNamespace(**told))  # type: ignore[arg-type]


def test_the_first_sentence_says_who_is_better_of_how_many_images_and_whether_these_are_enough() -> None:
    assert concluded(("concept", Kind.ONE), ("saturation", Kind.OTHER), ("style", Kind.NONE), ("ssim", Kind.ONE)) == (
        "At the same strength cfg is better than apg in concept and ssim; apg is higher than cfg in saturation. "
        "40 images a cell, of 40 prompts: enough for what the bands below say."
    )
    assert concluded(("concept", Kind.NONE), ("frechet", Kind.FEW)) == (
        "At the same strength no difference was found. 40 images a cell, of 40 prompts: too few to tell anything of "
        "frechet."
    )
    assert concluded(("concept", Kind.FEW), each=(4, 6)) == (
        "Too few images to conclude anything but by looking: 4 to 6 images a cell, of 40 prompts."
    )
    assert concluded(("concept", Kind.BOTH)).startswith(
        "At the same strength which of cfg and apg is ahead depends on the strength in concept. "
    )
    assert concluded(("concept", Kind.APART), apart={("cfg", "apg"): "They have none in common."}).startswith(
        "No two methods here guide equally hard: nothing can be concluded but by looking. "
    )
    assert concluded().startswith("There are no two methods to compare: ")
    rows = [SimpleNamespace(verdict=one, said=one) for one in ("holds", "undecided")]
    assert concluded(claim=(None, rows)) == (
        "The claim holds in 1 of 2 rows; row 2: undecided. 40 images a cell, of 40 prompts: too few for 1 row."
    )
