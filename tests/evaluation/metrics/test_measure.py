"""`measure` on run folders made by hand."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from guidestack.evaluation import extractors
from guidestack.evaluation import statistics as intervals
from guidestack.evaluation.analysis import measure
from guidestack.evaluation.analysis.measure import Cells
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.store.folder import COLUMNS, EACH, METRICS, RunFolder, column_type
from guidestack.guidance.errors import InputError

from .conftest import Refer
from .made import samples, whole

PROMPTS, SEEDS = 6, 4
CELLS = {"aa": "cfg(2)", "bb": "cfg(6)"}
BESIDE = {"dtype": "float32", "template": "cfg({w})", "axes": {}}
SIDE = 16
Make = Callable[..., RunFolder]


def image_of(cell: str, prompt: int, seed: int) -> np.ndarray:
    """An image of its own for each sample, alike for those of one prompt."""
    common = np.random.default_rng(prompt).integers(0, 200, (SIDE, SIDE, 3))
    own = np.random.default_rng((prompt, seed, cell == "bb")).integers(0, 20 + 30 * (cell == "bb"), (SIDE, SIDE, 3))
    return (common + own).astype(np.uint8)


def row_of(cell: str, prompt: int, seed: int, **more: Any) -> dict[str, Any]:
    address = hashlib.blake2b(f"{cell} {prompt} {seed}".encode(), digest_size=16).hexdigest()
    return {
        "address": address,
        "cell": cell,
        "prompt": f"prompt {prompt}",
        "prompt_index": prompt,
        "seed": seed,
        "stack": CELLS[cell],
        "sampler": "ddim",
        "steps": 5,
        "evaluations": 10 - prompt % 2,
        "seconds": 0.5,
        "image": f"images/{address[:2]}/{address}.png",
        **more,
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run folder of records, with their images."""

    def made(rows: list[dict[str, Any]] | None = None, images: bool = True, baseline: str | None = "aa") -> RunFolder:
        run = RunFolder(tmp_path / "run", patience=1)
        if rows is None:
            rows = [row_of(cell, prompt, seed) for cell in CELLS for prompt in range(PROMPTS) for seed in range(SEEDS)]
        told = [
            {"cell": cell, "stack": stack, "sampler": "ddim", "steps": 5, "size": None} | BESIDE
            for cell, stack in CELLS.items()
        ]
        run.write_bytes("cells.json", json.dumps({"name": "tiny", "baseline": baseline, "cells": told}).encode())
        for row in rows:
            if not images:
                row["image"] = None
            if row["image"] is not None:
                sink = io.BytesIO()
                Image.fromarray(image_of(row["cell"], row["prompt_index"], row["seed"])).save(sink, "PNG")
                run.write_bytes(row["image"], sink.getvalue())
        names = [*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))]
        columns = {name: pa.array([row.get(name) for row in rows], column_type(name)) for name in names}
        run.add_records(pa.table(columns))
        return run

    return made


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The default extractor made cheap: mean colours; a list of the batches that it was called with."""
    calls: list[int] = []

    class Cheap:
        name, dimensions = "cheap", 3

        def __call__(self, images: np.ndarray) -> np.ndarray:
            calls.append(len(images))
            return images.mean((1, 2)).astype(np.float32)

    monkeypatch.setattr(extractors, "load", lambda text, device="cpu": Cheap())
    return calls


def measured(run: RunFolder, *texts: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = measure.measure(run, [parse_metric(text) for text in texts]).to_pylist()
    return found


def images_of(cell: str) -> np.ndarray:
    return np.stack([image_of(cell, prompt, seed) for prompt in range(PROMPTS) for seed in range(SEEDS)])


ORDER = np.repeat(np.arange(PROMPTS), SEEDS)


def test_every_cell_has_every_metric_with_its_name_value_and_interval(
    make: Make, looked: list[int], refer: Refer
) -> None:
    run = make()
    reference = refer(np.random.default_rng(0).normal(100, 20, (30, 3)))
    texts = ("saturation", "ssim", "evaluations", f"kid(reference={reference!r})", "diversity")
    rows = measured(run, *texts)
    assert [(row["cell"], row["text"]) for row in rows] == [(cell, text) for cell in CELLS for text in texts]
    assert pq.read_table(io.BytesIO(run.location.read(METRICS))).to_pylist() == rows
    by = {(row["cell"], row["metric"].partition("[")[0]): row for row in rows}

    values = parse_metric("saturation").measure(images_of("bb"), {}, [], None)  # type: ignore[attr-defined]
    row = by["bb", "saturation"]
    assert row["value"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == intervals.bootstrap(values, ORDER)
    assert (row["samples"], row["prompts"], row["level"], row["better"], row["note"]) == (24, 6, 0.95, "none", "")

    likeness = parse_metric("ssim").compare(images_of("bb"), images_of("aa"))  # type: ignore[attr-defined]
    assert by["bb", "ssim"]["value"] == pytest.approx(likeness.mean())
    assert by["bb", "ssim"]["metric"] == "ssim[window=11, sigma=1.5, rgb, baseline=cfg(2) ddim 5 steps]"
    assert by["aa", "ssim"]["value"] == 1
    assert by["aa", "evaluations"]["value"] == 9.5

    features = images_of("bb").mean((1, 2)).astype(np.float32).astype(np.float64)
    units = (features / np.linalg.norm(features, axis=1, keepdims=True)).reshape(PROMPTS, SEEDS, 3)
    expected = np.mean([1 - ((own @ own.T).sum() - 4) / 12 for own in units])
    assert by["bb", "diversity"]["value"] == pytest.approx(expected, rel=1e-6)
    row = by["bb", "kid"]
    assert row["metric"] == f"kid[efficientnet-lite0@1, reference={reference}, degree=3]"
    assert row["low"] < row["value"] < row["high"]
    assert row["note"] == "24 samples; 50 are wanted at least"


def test_it_is_the_same_again_whatever_the_order_of_the_records(
    make: Make, looked: list[int], refer: Refer, tmp_path: Path
) -> None:
    reference = refer(np.random.default_rng(0).normal(100, 20, (30, 3)))
    texts = ("contrast", "psnr", f"frechet(reference={reference!r})", f"recall(reference={reference!r})")
    run = make()
    first = measured(run, *texts)
    assert measured(run, *texts) == first
    rows = run.records().to_pylist()
    (tmp_path / "run").rename(tmp_path / "before")
    assert measured(make(rows[::-1]), *texts) == first


def test_cells_that_do_not_fit_into_memory_together_give_the_same(
    make: Make, looked: list[int], refer: Refer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (f"kid(reference={refer(np.random.default_rng(0).normal(100, 20, (30, 3)))!r})", "vendi")
    run = make()
    first = measured(run, *texts)
    monkeypatch.setattr(measure, "ROWS", 30)
    monkeypatch.setattr(measure, "IMAGES", 7)
    assert [len(names) for names in Cells(run).batches()] == [1, 1]
    assert measured(run, *texts) == first


def test_features_that_are_there_are_not_computed_again(make: Make, looked: list[int]) -> None:
    run = make()
    name = extractors.full_name("efficientnet-lite0")
    some = run.records().column("address").to_pylist()[:20]
    run.add_features(name, some, np.full((20, 3), 7, np.float32))
    measured(run, "diversity")
    assert sum(looked) == 28
    addresses, rows = run.features(name)
    assert len(addresses) == 48
    assert (rows[[addresses.index(one) for one in some]] == 7).all()
    measured(run, "diversity", "vendi")
    assert sum(looked) == 28


def test_without_images_what_was_measured_while_they_were_made_is_there(make: Make, looked: list[int]) -> None:
    rows = [row_of("aa", prompt, 0, **{"metric.saturation": prompt / 10}) for prompt in range(5)]
    rows += [row_of("aa", 9, 0, **{"metric.saturation": 0.9})]
    run = make(rows, images=False)
    run.add_features(extractors.full_name("efficientnet-lite0"), [row["address"] for row in rows], np.eye(6)[:, :3])
    assert measured(run, "saturation")[0]["value"] == pytest.approx(1.9 / 6)
    for text in ("contrast", "ssim"):
        with pytest.raises(
            InputError, match=rf"the metric {text}, cfg\(2\) ddim 5 steps: needs images, and .* keeps none"
        ):
            measured(run, text)
    assert measured(run, "diversity")[0]["note"].startswith("no value: diversity needs two seeds")
    assert looked == []


def test_features_that_are_missing_with_their_images_are_one_line(make: Make, looked: list[int]) -> None:
    with pytest.raises(
        InputError, match=r"diversity, .*needs images, and .* keeps none; run the sweep with images: png"
    ):
        measured(make(images=False), "diversity")


def test_only_samples_without_a_number_are_measured(make: Make) -> None:
    rows = [row_of("aa", prompt, 0, **{"metric.saturation": 0.25 if prompt else None}) for prompt in range(3)]
    own = parse_metric("saturation").measure(image_of("aa", 0, 0)[None], {}, [], None)  # type: ignore[attr-defined]
    assert measured(make(rows), "saturation")[0]["value"] == pytest.approx((own[0] + 0.5) / 3)


def test_pairs_are_of_the_same_prompt_and_seed(make: Make) -> None:
    rows = [row_of("aa", prompt, seed) for prompt in range(5) for seed in (0, 1)]
    rows += [row_of("bb", prompt, seed) for prompt in range(2, 7) for seed in (1, 2)]
    row = measured(make(rows), "psnr")[1]
    both = [(prompt, 1) for prompt in range(2, 5)]
    images, others = (np.stack([image_of(cell, *key) for key in both]) for cell in ("bb", "aa"))
    expected = parse_metric("psnr").compare(images, others)  # type: ignore[attr-defined]
    assert row["value"] == pytest.approx(expected.mean())
    assert (row["samples"], row["prompts"]) == (3, 3)


def test_the_values_of_single_images_are_kept(make: Make) -> None:
    run = make()
    table = measured(run, "ssim", "psnr", "contrast", "evaluations")
    values = run.values()
    assert values.schema == EACH
    names = {row["metric"] for row in table if row["text"] != "evaluations"}
    assert set(values.column("metric").to_pylist()) == names
    address_of = {(row["cell"], row["prompt_index"], row["seed"]): row["address"] for row in run.records().to_pylist()}
    wanted = dict(
        zip(
            [(p, s) for p in range(PROMPTS) for s in range(SEEDS)],
            zip(
                *(
                    parse_metric("psnr").compare(images_of("bb"), images_of("aa")),
                    parse_metric("ssim").compare(images_of("bb"), images_of("aa")),
                )
            ),
            strict=True,
        )
    )
    of = {(row["address"], row["text"]): row for row in values.to_pylist()}
    assert len(of) == 2 * PROMPTS * SEEDS * 3
    for (prompt, seed), (psnr, ssim) in wanted.items():
        address, other = (address_of[cell, prompt, seed] for cell in ("bb", "aa"))
        assert of[address, "psnr"]["value"] == pytest.approx(psnr)
        assert of[address, "ssim"]["value"] == pytest.approx(ssim)
        assert of[other, "ssim"]["value"] == pytest.approx(1)
        assert (of[address, "ssim"]["baseline"], of[address, "ssim"]["cell"]) == (other, "bb")
        assert of[address, "contrast"]["baseline"] is None
    for row in table:
        each = [one["value"] for one in values.to_pylist() if (one["cell"], one["text"]) == (row["cell"], row["text"])]
        assert not each or row["value"] == pytest.approx(np.mean(each))


def test_images_without_a_value_have_no_row(make: Make) -> None:
    rows = [row_of("bb", prompt, 0) for prompt in range(3)] + [row_of("aa", prompt, 0) for prompt in (0, 2)]
    run = make(rows)
    with pytest.raises(InputError, match=r"has no values.parquet; `guidestack evaluate` writes it"):
        run.values()
    measured(run, "ssim")
    found = [row for row in run.values().to_pylist() if row["cell"] == "bb"]
    assert {row["address"] for row in found} == {row["address"] for row in rows[:3] if row["prompt_index"] != 1}
    measured(run, "evaluations")
    assert run.values().num_rows == 0


def test_only_pairs_need_the_baseline(make: Make) -> None:
    run = make([row_of("bb", prompt, 0) for prompt in range(3)])  # stopped before the baseline's turn
    cells = Cells(run)
    assert cells.numbered(parse_metric("contrast"), "bb").value > 0
    assert cells.numbered(parse_metric("evaluations"), "bb").value > 0
    with pytest.raises(InputError, match=r"ssim.*compares with the baseline cfg\(2\).*has no samples"):
        cells.numbered(parse_metric("ssim"), "bb")


def test_a_metric_in_two_cells_is_over_what_they_share(make: Make, looked: list[int]) -> None:
    rows = [row_of("aa", prompt, seed) for prompt in range(5) for seed in (0, 1)]
    rows += [row_of("bb", prompt, seed) for prompt in range(2, 7) for seed in (0, 1, 2)]
    cells = Cells(make(rows))
    prompts, of, than = cells.paired(parse_metric("contrast"), "aa", "bb")
    assert prompts.tolist() == [2, 2, 3, 3, 4, 4]
    for place, (prompt, seed) in enumerate([(2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]):
        for statistic, cell in ((of, "aa"), (than, "bb")):
            image = image_of(cell, prompt, seed)[None]
            expected = parse_metric("contrast").measure(image, {}, [], None)  # type: ignore[attr-defined]
            assert statistic(np.array([place])) == pytest.approx(expected[0])
    prompts, of, than = cells.paired(parse_metric("diversity"), "aa", "bb")
    for statistic, cell in ((of, "aa"), (than, "bb")):
        images = np.stack([image_of(cell, prompt, seed) for prompt in (2, 3, 4) for seed in (0, 1)])
        alone = samples(images.mean((1, 2)), prompts)
        assert statistic(np.arange(6)) == pytest.approx(whole(parse_metric("diversity"), alone), rel=1e-6)


def test_two_cells_without_a_common_sample_are_one_line(make: Make) -> None:
    cells = Cells(make([row_of("aa", 0, 0), row_of("bb", 1, 0)]))
    with pytest.raises(InputError, match="have no prompt and seed in common"):
        cells.paired(parse_metric("contrast"), "aa", "bb")
    del cells.by_name["bb"]
    with pytest.raises(InputError, match=r"has no samples of cfg\(6\) ddim 5 steps"):
        cells.paired(parse_metric("contrast"), "aa", "bb")


def test_too_few_samples_give_a_row_without_a_value_and_say_why(make: Make, looked: list[int], refer: Refer) -> None:
    reference = refer(np.random.default_rng(0).normal(100, 20, (30, 3)))
    run = make([row_of("aa", prompt, 0) for prompt in range(3)])
    row = measured(run, f"recall(reference={reference!r}, k=5)")[0]
    assert (row["value"], row["low"], row["high"], row["samples"]) == (None, None, None, 3)
    assert row["note"] == "no value: recall with k=5 needs 6 samples at least; got 3"
    row = measured(run, f"kid(reference={reference!r})")[0]
    assert row["value"] is not None
    assert row["low"] is None
    assert row["note"] == "3 samples; 50 are wanted at least; no interval from 3 prompts"


def test_a_share_has_wilson_s_interval_and_a_bound_is_kept(make: Make) -> None:
    rows = [row_of("aa", prompt, 0, **{"label.background": "red", "metric.background": 1.0}) for prompt in range(30)]
    row = measured(make(rows, images=False), "background")[0]
    assert (row["value"], row["high"]) == (1.0, 1.0)
    assert row["low"] == pytest.approx(0.8865, abs=1e-3)


def test_the_worst_of_a_prompt_is_of_all_its_seeds(make: Make) -> None:
    """Of 8 prompts 3 are right with every seed; one seed has no value, and is not the worst."""
    right = np.ones((8, 3))
    right[3:, 1] = 0
    right[0, 2] = np.nan
    rows = [
        row_of(
            "aa", prompt, seed, **{"label.background": None if np.isnan(known) else "red", "metric.background": known}
        )
        for (prompt, seed), known in np.ndenumerate(right)
    ]
    row = measured(make(rows, images=False), "worst(of='background')")[0]
    assert row["value"] == pytest.approx(3 / 8)
    assert (row["metric"], row["better"], row["prompts"]) == ("worst[background, seeds=3]", "up", 8)
    assert 0 <= row["low"] < 3 / 8 < row["high"] <= 1


@pytest.mark.parametrize(
    ("text", "baseline", "message"),
    [
        ("ssim", None, "compares with a baseline; name one cell of the sweep as baseline: STACK"),
        ("ssim", "bb", r"compares with the baseline cfg\(6\) ddim 5 steps, of which .* has no samples"),
        ("concept", None, "needs the label 'concept', which no prompt has"),
        ("effective_scale", None, "the records of .* have no effective_scale"),
        ("frechet(reference='/nowhere')", None, "the reference '/nowhere' is neither"),
    ],
)
def test_what_a_metric_lacks_is_one_line_that_names_it(
    text: str, baseline: str | None, message: str, make: Make, looked: list[int]
) -> None:
    run = make([row_of("aa", prompt, 0) for prompt in range(5)], baseline=baseline)
    with pytest.raises(InputError, match=message) as error:
        measured(run, text)
    assert str(error.value).startswith(f"the metric {text}, cfg(2) ddim 5 steps: ")
    assert "\n" not in str(error.value)
    assert not run.location.exists(METRICS)


def test_images_of_two_sizes_and_a_run_without_records_are_one_line(make: Make, tmp_path: Path) -> None:
    run = make([row_of("aa", 0, 0), row_of("bb", 0, 0)])
    sink = io.BytesIO()
    Image.new("RGB", (20, 20)).save(sink, "PNG")
    run.write_bytes(row_of("bb", 0, 0)["image"], sink.getvalue())
    with pytest.raises(InputError, match="images of 20x20, and the baseline's of 16x16"):
        measured(run, "psnr")
    empty = RunFolder(tmp_path / "empty", patience=1)
    with pytest.raises(InputError, match="is no run folder"):
        measured(empty, "psnr")
    empty.write_bytes("cells.json", json.dumps({"name": "tiny", "baseline": None, "cells": []}).encode())
    with pytest.raises(InputError, match="has no records yet"):
        measured(empty, "psnr")


def test_an_interval_that_is_not_known_is_null(make: Make) -> None:
    row = measured(make([row_of("aa", 0, seed) for seed in range(5)]), "saturation")[0]
    assert not math.isnan(row["value"])
    assert (row["low"], row["high"], row["prompts"]) == (None, None, 1)
    assert row["note"] == "5 samples; 20 are wanted at least; no interval from 1 prompt"
