"""Sweeps that are run, stopped, gone on with and made larger."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from guidestack.evaluation.metrics import PairMetric, SampleMetric
from guidestack.evaluation.run import history
from guidestack.evaluation.run.progress import Progress
from guidestack.evaluation.run.runner import Options, Prepared, dry_run, merge_only, refuse_lost, run_sweep
from guidestack.evaluation.run.writer import Writer
from guidestack.evaluation.spec.cells import Addresses
from guidestack.evaluation.spec.sweep import load_sweep
from guidestack.evaluation.store.folder import COLUMNS, RunFolder
from guidestack.evaluation.store.location import Location
from guidestack.evaluation.store.lock import Launch, held
from guidestack.guidance.errors import GuidestackError, InputError, NonFiniteError, UnsupportedSchedulerError
from guidestack.pipelines import guide
from guidestack.pipelines.models.files import read_recipe
from guidestack.scripts import generate

from ..spoiling import registered
from .common import SAMPLES, assert_same, pixels, rows, run, sweep_of, written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    outcome = run(model_folder, out)
    assert (outcome.made, outcome.existing, outcome.missing, outcome.records) == (SAMPLES, 0, 0, SAMPLES)
    assert outcome.evaluations == SAMPLES * 3 * 2
    return out


class Stop(Progress):
    """Ctrl-C after so many samples are written."""

    def __init__(self, after: int) -> None:
        self.left = after

    def made(self, count: int, evaluations: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


def test_a_record_says_everything(whole: Path) -> None:
    table = RunFolder(whole).records()
    assert list(COLUMNS) == table.column_names[: len(COLUMNS)]
    assert table.column("address").to_pylist() == sorted(table.column("address").to_pylist())
    row = next(one for one in table.to_pylist() if one["stack"] == "apg(5)" and one["prompt"] == "red")
    assert (row["seed"], row["prompt_index"], row["sampler"], row["steps"], row["dtype"]) == (
        4,
        1,
        "ddim",
        3,
        "float32",
    )
    assert (row["axis.stack"], row["axis.w"], row["evaluations"], row["negative"]) == ("apg({w}, eta=0)", "5", 6, "")
    assert row["seconds"] > 0
    told = RunFolder(whole).cells()
    assert [cell["stack"] for cell in told["cells"]] == ["cfg(2)", "cfg(5)", "apg(2)", "apg(5)"]
    assert {cell["cell"] for cell in told["cells"]} == set(table.column("cell").to_pylist())
    assert told["samples"] == SAMPLES


def test_an_image_is_what_its_stack_makes(whole: Path, pipe: Any) -> None:
    import torch

    from guidestack.samplers import by_name

    pipe.scheduler = by_name("ddim", dict(pipe.scheduler.config))
    folder = RunFolder(whole)
    for row in folder.records().to_pylist()[:6]:
        generator = torch.Generator().manual_seed(row["seed"])
        image = guide(pipe, row["stack"])(row["prompt"], num_inference_steps=3, generator=generator).images[0]
        away = np.abs(np.asarray(image).astype(int) - np.asarray(folder.image(row["image"])).astype(int))
        assert away.max() <= 1
        recipe = read_recipe(whole / row["image"])
        assert (recipe["guidance"], recipe["seed"], recipe["prompt"]) == (row["stack"], row["seed"], row["prompt"])


def test_a_stopped_run_goes_on(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, tmp_path, Stop(after))
    there = len(RunFolder(tmp_path).addresses())
    assert 0 < there < SAMPLES
    outcome = run(model_folder, tmp_path)
    assert (outcome.existing, outcome.made) == (there, SAMPLES - there)
    assert_same(tmp_path, whole)
    again = run(model_folder, tmp_path)
    assert (again.existing, again.made, again.evaluations) == (SAMPLES, 0, 0)


def test_a_batch_that_misses_a_sample_is_made_again_whole(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path)
    folder = RunFolder(tmp_path)
    kept = folder.records().slice(0, SAMPLES - 3)  # three of different batches are lost
    (tmp_path / "records.parquet").unlink()
    folder.add_records(kept)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    outcome = run(model_folder, tmp_path)
    assert outcome.made == 3
    assert outcome.evaluations > 3 * 6
    assert_same(tmp_path, whole)
    assert sum(path.stat().st_mtime_ns != before[path] for path in before) == 3


def test_values_are_added_and_only_they_are_made(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path, axes={"w": [5]})
    before = rows(RunFolder(tmp_path))
    images = pixels(RunFolder(tmp_path))
    outcome = run(model_folder, tmp_path, axes={"w": [2, 5, 7]})
    assert (outcome.existing, outcome.made, outcome.evaluations) == (10, 20, 20 * 6)
    outcome = run(model_folder, tmp_path, axes={"w": [2, 5, 7]}, prompts=["a cat", "red", "sea", "b", "c", "d"])
    assert (outcome.existing, outcome.made, outcome.evaluations) == (30, 6, 36)
    outcome = run(
        model_folder,
        tmp_path,
        axes={"w": [2, 5, 7]},
        prompts=["a cat", "red", "sea", "b", "c", "d"],
        stack=["cfg({w})", "apg({w}, eta=0)", "stack()"],
    )
    assert (outcome.existing, outcome.made, outcome.evaluations) == (36, 6, 18)
    after = {row["address"]: row for row in rows(RunFolder(tmp_path))}
    assert [after[row["address"]] for row in before] == before
    assert {address: pixels(RunFolder(tmp_path))[address] for address in images} == images
    assert len(after) == 42


def test_a_grown_sweep_may_be_stopped_too(model_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        run(model_folder, tmp_path / name, axes={"w": [5]}, stack="cfg({w})")
    run(model_folder, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path / "other", Stop(2), stack="cfg({w})")
    for after in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, tmp_path / "other", Stop(after))
    run(model_folder, tmp_path / "other")
    left, right = (RunFolder(tmp_path / name) for name in ("one", "other"))
    assert {row["address"] for row in rows(left)} == {row["address"] for row in rows(right)}
    assert run(model_folder, tmp_path / "other").made == 0


def test_batches_of_any_size_make_the_same(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    wanted, seen = pixels(RunFolder(whole)), {row["address"]: row for row in rows(RunFolder(whole))}
    for batch in (1, 7, 40):
        run(model_folder, tmp_path / str(batch), batch=batch)
        folder = RunFolder(tmp_path / str(batch))
        for row in rows(folder):
            assert row["evaluations"] == seen[row["address"]]["evaluations"]
        for address, image in pixels(folder).items():
            away = np.abs(
                np.frombuffer(image, np.uint8).astype(int) - np.frombuffer(wanted[address], np.uint8).astype(int)
            )
            assert away.max() <= 1
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path / "changed", Stop(5))
    assert run(model_folder, tmp_path / "changed", batch=5).records == SAMPLES  # memory was short, say


def test_a_batch_is_of_one_cell(model_folder: Path, tmp_path: Path) -> None:
    """Stacks that stop, that renoise, several negatives, samplers; prompts with negatives and without go apart."""
    stacks = ["stack()", "cfg(3)", "adaptive(cfg(3), threshold=0.97)", "cfgpp(0.6)", "perpneg(3)"]
    keys: dict[str, Any] = {
        "stack": stacks,
        "axes": {"sampler": ["ddim", "euler"]},
        "sampler": None,
        "prompts": [{"prompt": "a cat", "negative": "dog | red"}, "sea", {"prompt": "b", "negative": "c"}],
        "batch": 64,
    }
    told = Said()
    outcome = run(model_folder, tmp_path, told, **keys)
    assert outcome.records == 30
    assert "negative prompts are given, and no rule of stack() uses them" in told.notes
    table = RunFolder(tmp_path).records().to_pylist()
    evaluations = {(row["stack"], row["prompt_index"]): row["evaluations"] for row in table if row["sampler"] == "ddim"}
    assert [evaluations["stack()", place] for place in range(3)] == [3, 3, 3]
    assert [evaluations["cfg(3)", place] for place in range(3)] == [6, 6, 6]
    assert [evaluations["perpneg(3)", place] for place in range(3)] == [12, 6, 9]
    assert all(3 <= evaluations["adaptive(cfg(3), threshold=0.97)", place] <= 6 for place in range(3))
    for row in table:
        assert row["batch"] == (1 if row["prompt_index"] == 1 else 2), row


@pytest.mark.parametrize("stack", ["cfg(2)", "apg(5)"])
def test_an_image_of_a_sweep_is_made_again_to_the_bit(
    whole: Path, model_folder: Path, tmp_path: Path, stack: str
) -> None:
    """Also one of the last batch of a cell, which is smaller than the others."""
    table = [row for row in RunFolder(whole).records().to_pylist() if row["stack"] == stack]
    assert sorted(row["batch"] for row in table) == [2, 2, 3, 3, 3]
    for row in (table[0], next(one for one in table if one["batch"] != table[0]["batch"])):
        again = [str(whole / row["image"]), "--model", str(model_folder), "--device", "cpu", "--out"]
        done = CliRunner().invoke(generate.command, ["--like", *again, str(tmp_path / row["address"])])
        assert done.exit_code == 0, done.output
        (made,) = (tmp_path / row["address"]).glob("*.png")
        with Image.open(made) as image:
            assert np.asarray(image).tobytes() == pixels(RunFolder(whole))[row["address"]]


def test_both_forms_of_cfg_pp_in_one_sweep(model_folder: Path, tmp_path: Path) -> None:
    """They step in different ways, each in batches of its own; and the second is for one solver."""
    stacks = ["cfgpp(0.6)", "cfgpp(0.6, second_order='guided')"]
    forms: dict[str, Any] = {"stack": stacks, "axes": None, "prompts": ["a", "b"], "batch": 64, "steps": 4}
    assert run(model_folder, tmp_path, **forms, sampler="dpm++2m").records == 4
    table = RunFolder(tmp_path).records().to_pylist()
    assert {row["batch"] for row in table} == {2}
    with pytest.raises(UnsupportedSchedulerError, match=r"the cell cfgpp.*second_order.* UniPCMultistepScheduler"):
        run(model_folder, tmp_path / "other", **forms, sampler="unipc")
    assert not (tmp_path / "other").exists()


def test_class_and_unconditional_models(tmp_path: Path, dit: Any, unconditional: Any) -> None:
    dit.save_pretrained(tmp_path / "dit")
    unconditional.save_pretrained(tmp_path / "plain")
    keys: dict[str, Any] = {"prompts": {"classes": [3, 7]}, "seeds": [1, 2]}
    assert run(tmp_path / "dit", tmp_path / "a", **keys).records == 16
    table = RunFolder(tmp_path / "a").records().to_pylist()
    assert {row["prompt"] for row in table} == {"3", "7"}
    plain: dict[str, Any] = {"prompts": None, "seeds": [1, 2], "stack": ["stack()", "tsg(2)"], "axes": None}
    assert run(tmp_path / "plain", tmp_path / "b", **plain).records == 4
    for model, wrong, message in (
        ("dit", {}, "takes classes"),
        ("dit", {"prompts": {"classes": [1001]}}, "has the classes 0 to"),
        ("plain", {"axes": None, "stack": "stack()"}, "takes no prompts"),
        ("plain", {**plain, "stack": "cfg(2)"}, "unconditional"),
        ("dit", {**keys, "size": "32x32"}, "one size only"),
    ):
        with pytest.raises(GuidestackError, match=message):
            run(tmp_path / model, tmp_path / "c", **wrong)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sampler": "flow-euler"}, r"the cell cfg\(2\).*sampler 'flow-euler' is for a network that emits 'flow'"),
        ({"size": "17x16"}, "multiples of 8"),
        ({"stack": "icg(3, source='class')", "axes": None}, "no random condition"),
        ({"stack": "linear_ag(cfg(4), 'emoji-cfg4-20')", "axes": None}, "linear_ag|LinearAG"),
        ({"stack": "perpneg(3, weights=(1, 2))", "axes": None, "negatives": "a"}, "negatives 1 texts? at most"),
        ({"extras": "sun"}, "extras was given, and no rule of"),
        ({"stack": "cfg(2, against='null@weak')", "axes": None}, "no network of that name was given"),
        ({"prompts": None}, "needs a prompt that is not empty"),
        ({"prompts": [""]}, "needs a prompt that is not empty"),
        ({"prompts": {"classes": [1]}}, "takes prompts, and classes were given"),
    ],
)
def test_what_the_model_cannot_run_is_refused_before_it_runs(
    model_folder: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(GuidestackError, match=message) as caught:
        run(model_folder, tmp_path / "run", **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 4}, "steps is 3 there and 4 here"),
        ({"sampler": None, "axes": {"w": [2, 5], "sampler": ["ddim", "euler"]}}, "sampler is ddim there and an axis"),
        ({"axes": {"w": [2]}}, "the axis w has 5 there, and not here"),
        ({"stack": ["cfg({w})"]}, "stack has 'apg\\({w}, eta=0\\)' there, and not here"),
        ({"prompts": ["a cat", "red"]}, "5 prompts there and 2 here"),
        ({"prompts": ["red", "a cat", "sea", "b", "c"]}, "prompt 1 is 'a cat' there and 'red' here"),
        ({"negatives": "dog"}, "prompt 1 is"),
        ({"seeds": {"each": 1, "start": 4}}, "seed 3 of prompt 1 is there"),
        ({"size": "16x16"}, "size is None there and 16x16 here"),
    ],
)
def test_another_sweep_is_refused(whole: Path, model_folder: Path, keys: dict[str, Any], message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"holds another sweep: .*{message}"):
        run(model_folder, whole, **keys)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


def test_another_model_is_refused(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    prepared = Prepared(sweep_of(model_folder), Options())
    prepared.generator.identity["fingerprint"] = "another"
    prepared.addresses = Addresses("another")
    with pytest.raises(InputError, match=r"the model's fingerprint is .* there and another here"):
        run_sweep(prepared, RunFolder(whole))


def test_the_resolved_sweep_runs_again(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    sweep = load_sweep(str(whole / "sweep.yaml"))
    assert run_sweep(Prepared(sweep, Options()), RunFolder(whole)).made == 0
    outcome = run_sweep(Prepared(sweep, Options()), RunFolder(tmp_path))
    assert outcome.made == SAMPLES
    assert_same(tmp_path, whole)


def test_a_sweep_in_memory(whole: Path, model_folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, "memory://sweeps/run", Stop(4))
        run(model_folder, "memory://sweeps/run")
        assert_same("memory://sweeps/run", whole)
        assert load_sweep("memory://sweeps/run/sweep.yaml").pairs == RunFolder(whole).sweep().pairs
    finally:
        memory.rm("/sweeps", recursive=True)


def test_webp_and_no_images(model_folder: Path, whole: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "webp", images="webp")
    assert pixels(RunFolder(tmp_path / "webp")) == pixels(RunFolder(whole))
    run(model_folder, tmp_path / "none", images="none")
    assert not (tmp_path / "none" / "images").exists()
    assert RunFolder(tmp_path / "none").records(["image"]).column("image").null_count == SAMPLES


def test_two_weight_types(model_folder: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"axes": {"dtype": ["float32", "bfloat16"]}, "stack": "cfg(2)"}
    assert run(model_folder, tmp_path, **keys).records == 10
    made = pixels(RunFolder(tmp_path))
    assert len(set(made.values())) == 10


def test_two_runs_do_not_write_to_one_folder(model_folder: Path, tmp_path: Path) -> None:
    location = Location(tmp_path)
    with held(location, Launch()):
        with pytest.raises(InputError, match=rf"process {os.getpid()} on .* is writing to"):
            run(model_folder, tmp_path)
        with pytest.raises(InputError, match="no run folder"):
            merge_only(RunFolder(tmp_path), Launch())
    assert run(model_folder, tmp_path).made == SAMPLES


def test_a_dry_run_writes_nothing(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    from guidestack.evaluation.run.estimate import estimate

    prepared = Prepared(sweep_of(model_folder, stack=["cfg({w})", "adaptive(apg({w}, eta=0))"]), Options())
    found = estimate(prepared, *dry_run(prepared, RunFolder(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    assert [line.images for line in found.lines] == [5] * 4
    assert [line.each for line in found.lines] == ["6", "6", "at most 6", "at most 6"]
    assert found.missing_evaluations == SAMPLES * 6
    assert found.seconds > 0
    text = str(found)
    assert "4 cells, 20 images: at most 120 network evaluations" in text
    prepared = Prepared(sweep_of(model_folder, axes={"w": [2, 5, 7]}), Options())
    found = estimate(prepared, *dry_run(prepared, RunFolder(whole)))
    assert [line.missing for line in found.lines] == [0, 0, 5, 0, 0, 5]
    assert "30 images, of which 20 exist" in str(found)


def test_a_full_disk_loses_nothing(
    whole: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidestack.evaluation.store import location

    real, left = location._write_local, [17]

    def write(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])  # what fits
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(location, "_write_local", write)
    with pytest.raises(InputError, match="the disk is full; what is finished is safe"):
        run(model_folder, tmp_path)
    monkeypatch.undo()
    assert 0 < len(RunFolder(tmp_path).addresses()) < SAMPLES
    run(model_folder, tmp_path)
    assert_same(tmp_path, whole)


def test_a_share_that_is_away_for_a_while(
    whole: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidestack.evaluation.store import location

    out = tmp_path / "mount" / "run"
    real, seen, slept = location._write_local, [], []

    def write(path: Path, data: bytes) -> None:
        seen.append(path)
        if len(seen) == 20:
            out.parent.rename(tmp_path / "away")
        real(path, data)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            (tmp_path / "away").rename(out.parent)

    monkeypatch.setattr(location, "_write_local", write)
    monkeypatch.setattr(location.time, "sleep", sleep)
    assert run(model_folder, out).made == SAMPLES
    assert len(slept) == 4
    assert slept == sorted(slept)
    monkeypatch.undo()
    assert_same(out, whole)


def test_a_share_that_stays_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "mount" / "run", patience=0.1)
    folder.location.create()
    folder.write_bytes("a/b", b"x")
    (tmp_path / "mount").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"is not there, for 0\.1 s; what is finished is safe"):
        folder.write_bytes("a/c", b"x")
    with pytest.raises(InputError, match="is not there"):
        folder.location.read("a/b")
    assert not (tmp_path / "mount").exists()  # nothing is written where the mount would be


@pytest.mark.parametrize("at", [3, 12, 25])
def test_a_folder_that_is_removed_ends_the_run_at_once(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    from guidestack.evaluation.store import location

    real, seen = location._write_local, []

    def write(path: Path, data: bytes) -> None:
        seen.append(path)
        if len(seen) == at:
            shutil.rmtree(tmp_path / "run")
        real(path, data)

    def never(seconds: float) -> None:
        raise AssertionError("nobody waits for a folder that was removed")

    monkeypatch.setattr(location, "_write_local", write)
    monkeypatch.setattr(location.time, "sleep", never)
    with pytest.raises(InputError, match=r"^the folder .*/run was removed or renamed while it was in use; run again$"):
        run(model_folder, tmp_path / "run")


def test_an_error_of_the_writer_stops_the_run(tmp_path: Path) -> None:
    from guidestack.evaluation.run.writer import Finished

    folder = RunFolder(tmp_path)

    def broken() -> bytes:
        raise InputError("cannot")

    writer = Writer(folder)
    table = pa.table({"address": ["00" * 16]})
    for _ in range(20):  # more than are held: nobody waits for ever
        try:
            writer.add(lambda: Finished(table, {"images/x.png": broken}))
        except InputError:
            break
    with pytest.raises(InputError, match="cannot"):
        writer.close()
    assert folder.addresses() == set()


def test_versions_are_kept(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path, axes={"w": [5]})
    run(model_folder, tmp_path, axes={"w": [5]}, batch=2, metrics=[])  # no other samples
    run(model_folder, tmp_path, axes={"w": [5, 2]})
    folder = RunFolder(tmp_path)
    assert folder.location.names("history") == ["0001.yaml", "0002.yaml"]
    assert history.versions(folder, folder.sweep(), Addresses(folder.cells()["model"])) == [
        sweep_of(model_folder, axes={"w": [5]}),
        sweep_of(model_folder, axes={"w": [5, 2]}),
    ]


CLAIM = {
    "words": "More guidance, more colour.",
    "paper": "2207.12598",
    "expect": [{"metric": "contrast", "of": {"stack": "cfg({w})", "w": 5}, "be": "higher",
                "than": {"stack": "cfg({w})", "w": 2}, "matters": 0.1}],
}  # fmt: skip


def test_what_moves_no_sample_is_of_the_sweep_that_is_run_now(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    """Metrics, baseline and claim added to a finished run, changed, and taken away again."""
    shutil.copytree(whole, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    cell_of = {cell["stack"]: cell["cell"] for cell in folder.cells()["cells"]}
    records = rows(folder)
    for keys, wanted in (
        ({"metrics": ["saturation", "ssim"], "baseline": {"stack": "cfg({w})", "w": 2}}, "cfg(2)"),
        ({"metrics": ["ssim"], "baseline": {"stack": "cfg({w})", "w": 5}, "claim": CLAIM}, "cfg(5)"),
        ({}, None),
    ):
        assert run(model_folder, tmp_path / "run", **keys).made == 0
        assert folder.sweep() == sweep_of(model_folder, **keys)
        assert folder.cells()["baseline"] == cell_of.get(wanted)
        again = load_sweep(str(tmp_path / "run" / "sweep.yaml"))
        assert run_sweep(Prepared(again, Options()), folder).made == 0
        assert folder.sweep() == again
    assert folder.location.names("history") == ["0001.yaml"]
    assert rows(folder) == records


def test_a_run_that_is_stopped_may_change_its_metrics(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path, Stop(5), baseline="cfg(2)", metrics=["contrast"])
    run(model_folder, tmp_path, baseline="cfg(5)", axes={"w": [2, 5, 7]})
    run(model_folder, tmp_path, baseline="cfg(7)", axes={"w": [2, 5, 7]}, metrics=["ssim"])
    folder = RunFolder(tmp_path)
    assert folder.location.names("history") == ["0001.yaml", "0002.yaml"]
    assert (folder.sweep().baseline, folder.sweep().metrics) == ("cfg(7)", ("ssim",))
    made = pixels(folder)
    assert len(made) == 30
    assert {address: made[address] for address in pixels(RunFolder(whole))} == pixels(RunFolder(whole))


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"traces": True}, {"traces": False}, ["traces of 10 existing samples stay; new samples have none"]),
        ({}, {"traces": True}, ["10 samples were made without traces, and stay so; choose another --out"]),
        ({"images": "none"}, {"images": "png"}, ["10 samples were made without images, and stay so"]),
        ({"images": "png"}, {"images": "none"}, ["images of 10 existing samples stay"]),
        ({"images": "png"}, {"images": "webp"}, []),
    ],
)
def test_what_is_kept_may_change_for_new_samples(
    model_folder: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], said: list[str]
) -> None:
    run(model_folder, tmp_path, axes={"w": [5]}, **before)
    folder = RunFolder(tmp_path)
    records, images = rows(folder), pixels(folder)
    told = Said()
    outcome = run(model_folder, tmp_path, told, **after)
    assert (outcome.existing, outcome.made) == (10, 10)
    assert len(told.notes) == len(said)
    assert all(note.startswith(start) for note, start in zip(told.notes, said, strict=True))
    found = {row["address"]: row for row in rows(folder)}
    assert [found[row["address"]] for row in records] == records
    assert {address: pixels(folder)[address] for address in images} == images
    fresh = [row for address, row in found.items() if address not in {row["address"] for row in records}]
    assert {Path(row["image"] or "").suffix[1:] or "none" for row in fresh} == {after.get("images", "png")}
    traced = set(folder.traces(list(found)))
    old, new = {row["address"] for row in records}, {row["address"] for row in fresh}
    assert traced == (old if before.get("traces") else set()) | (new if after.get("traces") else set())


def test_the_sweep_of_a_folder_works_from_anywhere(
    whole: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model beside the sweep: the same samples as by its absolute path, and nothing relative is stored."""
    (tmp_path / "models").symlink_to(model_folder.parent)
    relative = f"../models/{model_folder.name}"
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "s.yaml").write_text(written(Path(relative)))
    monkeypatch.chdir(tmp_path / "sweeps")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(Prepared(load_sweep("s.yaml"), Options()), RunFolder("../run"), Stop(5))
    monkeypatch.chdir("/")
    sweep = load_sweep(str(tmp_path / "run" / "sweep.yaml"))
    assert sweep.model == str(model_folder.resolve())
    run_sweep(Prepared(sweep, Options()), RunFolder(tmp_path / "run"))
    assert_same(tmp_path / "run", whole)


def test_a_model_may_move(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    """It is known by its fingerprint; an older folder has a path that leads nowhere from here."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(model_folder, tmp_path / "moved")
    for file in (tmp_path / "run" / "sweep.yaml", tmp_path / "run" / "history" / "0001.yaml"):
        file.write_text(file.read_text().replace(str(model_folder), "some/where/else"))
    assert run(tmp_path / "moved", tmp_path / "run").made == 0
    assert RunFolder(tmp_path / "run").sweep().model == str(tmp_path / "moved")


def test_a_record_has_the_size_of_its_image_and_the_version(whole: Path) -> None:
    from guidestack import __version__

    folder = RunFolder(whole)
    for row in folder.records().to_pylist():
        assert folder.image(row["image"]).size == (row["width"], row["height"])
        assert json.loads(row["versions"])["guidestack"] == __version__
    assert {cell["size"] for cell in folder.cells()["cells"]} == {None}


def test_traces_on_request(model_folder: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"stack": ["cfg(3)", "prefix(cfg(3), 1)", "adaptive(cfg(3), threshold=2)"], "axes": None}
    run(model_folder, tmp_path, **keys, traces=True, batch=64)
    table = RunFolder(tmp_path).records().to_pylist()
    traces = RunFolder(tmp_path).traces([row["address"] for row in table])
    assert len(traces) == 15
    for row in table:
        own = traces[row["address"]]
        assert own["evaluations"].sum() == row["evaluations"]
        wanted = {"cfg(3)": [2, 2, 2], "prefix(cfg(3), 1)": [2, 1, 1]}.get(row["stack"], [2, 2, 2])
        assert own["evaluations"].tolist() == wanted
        assert row["guided_steps"] == sum(count > 1 for count in wanted)
        assert own["effective_scale"].round(3).tolist() == [3.0 if count > 1 else 1.0 for count in wanted]
        assert row["effective_scale"] == pytest.approx(own["effective_scale"].mean())
        assert ("rule.cosine" in own) == row["stack"].startswith("adaptive")
    run(model_folder, tmp_path / "none", **keys)
    assert not (tmp_path / "none" / "traces").exists()


# --- what is measured while images are made -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mean(SampleMetric):
    """Mean of the pixels, and how often the image was to be in a style."""

    name = "mean"
    labels = ("style",)

    def measure(self, images: Any, labels: Any, prompts: Any, features: Any) -> Any:
        wanted = [style == "flat" for style in labels["style"]]
        return images.mean((1, 2, 3)) + 1000 * np.array(wanted)


@dataclasses.dataclass(frozen=True)
class Away(PairMetric):
    name = "away"


def test_metrics_are_taken_while_images_are_made(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidestack.evaluation import metrics
    from guidestack.evaluation.metrics import registry
    from guidestack.evaluation.run import meter

    known = {"mean": Mean(), "away": Away()}
    for module in (meter, metrics, registry):
        monkeypatch.setattr(module, "parse_metric", known.__getitem__)
    keys: dict[str, Any] = {"metrics": ["mean"], "prompts": [{"prompt": "a", "labels": {"style": "flat"}}, "b"]}
    run(model_folder, tmp_path / "kept", **keys)
    run(model_folder, tmp_path / "none", **keys, images="none")
    folder = RunFolder(tmp_path / "kept")
    table = folder.records().to_pylist()
    assert len(table) == 8
    for row in table:
        mean = np.asarray(folder.image(row["image"])).mean()
        assert row["metric.mean"] == pytest.approx(mean + 1000 * (row["prompt"] == "a"))
    other = RunFolder(tmp_path / "none").records(["metric.mean"])
    assert other.column("metric.mean").to_pylist() == [row["metric.mean"] for row in table]
    with pytest.raises(InputError, match="needs the label 'style', which no prompt has"):
        run(model_folder, tmp_path / "no", metrics=["mean"])
    with pytest.raises(InputError, match="compares with a baseline"):
        run(model_folder, tmp_path / "no", metrics=["away"])
    run(model_folder, tmp_path / "no", metrics=["away"], baseline={"stack": "cfg({w})", "w": 2})
    assert RunFolder(tmp_path / "no").cells()["baseline"] is not None


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sample_that_is_nan_is_lost_and_no_other(whole: Path, tmp_path: Path, model_folder: Path, batch: int) -> None:
    """The others are kept and measured, the loss is said once, and a later run tries it again."""
    keys = {"stack": ["cfg({w})", "apg({w}, eta=0)", "cfg({w}) | spoil(4)"], "metrics": ["saturation"], "batch": batch}
    told = Notes()
    with registered():
        outcome = run(model_folder, tmp_path / "run", told, **keys)
        assert (outcome.made, outcome.lost, outcome.missing, outcome.records) == (28, 2, 0, 28)
        assert len([note for note in told.notes if "NaN or Inf at step 0 of 3" in note]) == 1
        with pytest.raises(NonFiniteError, match=r"2 samples are lost and all others kept.*NaN or Inf at step 0 of 3"):
            refuse_lost(outcome)
        there = rows(RunFolder(tmp_path / "run"))
        assert {(row["stack"], row["seed"]) for row in there if "spoil" in row["stack"]} == {
            (f"cfg({w}) | spoil(4, start=0)", seed) for w in (2, 5) for seed in (3, 5, 6, 7)
        }
        assert all(row["metric.saturation"] is not None for row in there)
        again = run(model_folder, tmp_path / "run", **keys)
        assert (again.made, again.lost, again.existing) == (0, 2, 28)
    if batch == 3:
        kept, wanted = pixels(RunFolder(tmp_path / "run")), pixels(RunFolder(whole))
        assert all(kept[address] == image for address, image in wanted.items())


def test_partner_cells_have_the_evaluations_of_the_others(tmp_path: Path, model_folder: Path) -> None:
    keys: dict[str, Any] = {
        "prompts": ["a cat"],
        "stack": {"none": "stack()", "cfg": "cfg({w})", "half": "prefix(cfg({w}), {n})", "some": "adaptive(cfg({w}))"},
        "axes": {"w": [2], "n": [1], "steps": [2, 3]},
        "steps": None,
        "partners": "none",
    }
    prepared = Prepared(sweep_of(model_folder, **keys), Options())
    partners = prepared.sweep.partners
    assert partners is not None
    assert partners.steps == [3, 4, 6]  # of prefix at 2 steps, of cfg at 2 and prefix at 3, of cfg at 3
    assert [(cell.stack, cell.steps, prepared.costs[cell].mean) for cell in prepared.cells[-2:]] == [
        ("stack()", 4, 4.0), ("stack()", 6, 6.0),
    ]  # fmt: skip
    assert [note for note in prepared.notes if "partner" in note] == [
        f"adaptive(cfg(2)) (w=2, steps={steps}) has no partner: how many evaluations it takes is known when it has run"
        for steps in (2, 3)
    ]
    run = RunFolder(str(tmp_path / "run"))
    assert run_sweep(prepared, run).made == 10
    assert run.sweep().partners == partners
    assert run_sweep(Prepared(sweep_of(model_folder, **keys), Options()), run).made == 0
    more = {**keys, "axes": {**keys["axes"], "n": [1, 2]}}
    grown = Prepared(sweep_of(model_folder, **more), Options())
    assert run_sweep(grown, run).made == 3  # prefix at two numbers of steps, and at 5 its partner


def test_partners_that_cannot_be_counted(model_folder: Path) -> None:
    axes = {"w": [2], "steps": [3]}
    keys: dict[str, Any] = {"steps": None, "axes": axes, "stack": {"one": "prefix(cfg({w}), 1)", "two": "cfg({w})"}}
    odd = Prepared(sweep_of(model_folder, **keys, partners="two"), Options())  # 4 evaluations are 2 steps of cfg
    assert odd.sweep.partners is not None
    assert odd.sweep.partners.steps == [2]
    keys["stack"]["one"] = "prefix(cfg({w}), 2)"
    odd = Prepared(sweep_of(model_folder, **keys, partners="two"), Options())
    assert odd.sweep.partners is not None
    assert odd.sweep.partners.steps == []
    assert odd.notes == [
        "prefix(cfg(2), 2) (w=2, steps=3) has no partner: no number of steps of cfg(2) has its 5 evaluations"
    ]
    keys["stack"]["two"] = "adaptive(cfg({w}))"
    with pytest.raises(InputError, match=r"equal evaluations, known before they run; .* has at most 6$"):
        Prepared(sweep_of(model_folder, **keys, partners="two"), Options())
    keys["stack"] = {"one": "stack()", "two": "prefix(cfg(2), {w})"}
    keys["axes"] = {"w": [1, 2], "steps": [3]}
    with pytest.raises(InputError, match=r"equal evaluations, known before they run; .* has 5$"):
        Prepared(sweep_of(model_folder, **keys, partners="two"), Options())
