"""What a run folder keeps, and reads back: its own, an older version's, and not what would harm."""

from __future__ import annotations

import copy
import functools
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guidestack.evaluation.run import writer
from guidestack.evaluation.run.writer import Finished, Writer
from guidestack.evaluation.store.folder import COLUMNS, RunFolder, column_type, parquet_bytes
from guidestack.evaluation.store.location import Location
from guidestack.guidance.errors import InputError


def address(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"


def table(numbers: list[int], **columns: Any) -> pa.Table:
    whole = {"address": [address(number) for number in numbers], "seed": numbers, **columns}
    return pa.table({name: pa.array(values, column_type(name)) for name, values in whole.items()})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_parts_and_merged_records_are_one_table(folder: RunFolder) -> None:
    folder.add_records(table([3, 1]))
    folder.add_records(table([2, 5]))
    assert folder.merge() == 4
    assert folder.record_files() == ["records.parquet"]
    folder.add_records(table([5, 4]))  # 5 comes twice
    found = folder.records(["seed"])
    assert sorted(found.column("seed").to_pylist()) == [1, 2, 3, 4, 5]
    assert folder.addresses() == {address(number) for number in range(1, 6)}
    whole = folder.records()
    assert whole.column("address").to_pylist() == sorted(whole.column("address").to_pylist())
    assert set(COLUMNS) <= set(whole.column_names)
    assert folder.merge() == 5
    assert folder.records().to_pylist() == whole.to_pylist()
    assert folder.merge() == 5


def test_nothing_to_merge(folder: RunFolder) -> None:
    assert folder.merge() == 0
    assert folder.records().num_rows == 0
    assert folder.addresses() == set()


def test_records_of_another_version_still_load(folder: RunFolder) -> None:
    """Last month's: columns that are new now are missing, one has another type, and one is known no more."""
    old = pa.table(
        {
            "address": [address(1), address(2)],
            "seed": pa.array([1, 2], pa.int32()),
            "steps": pa.array([5, 5], pa.int16()),
            "prompt": pa.array(["a", "b"]).dictionary_encode(),
            "mood": ["good", "bad"],
        }
    )
    folder.location.create()
    pq.write_table(old, f"{folder}/records.parquet")
    folder.add_records(table([3], **{"metric.saturation": [0.5], "axis.w": ["4"]}))
    for _ in range(2):
        found = folder.records(["seed", "mood", "metric.saturation", "axis.w", "evaluations", "metric.never", "novel"])
        assert sorted(found.to_pylist(), key=lambda row: row["seed"]) == [
            {"seed": 1, "mood": "good"} | dict.fromkeys(found.column_names[2:]),
            {"seed": 2, "mood": "bad"} | dict.fromkeys(found.column_names[2:]),
            {"seed": 3, "mood": None, "metric.saturation": 0.5, "axis.w": "4"} | dict.fromkeys(found.column_names[4:]),
        ]
        assert {row["prompt"] for row in folder.records().to_pylist()} == {"a", "b", None}
        folder.merge()


def test_a_merge_is_sorted_and_has_each_address_once(folder: RunFolder) -> None:
    numbers = list(range(500))
    np.random.default_rng(0).shuffle(numbers)
    for start in range(0, 500, 40):
        folder.add_records(table(numbers[start : start + 60]))
    assert folder.merge() == 500
    found = folder.read_records("records.parquet")
    assert found.column("address").to_pylist() == sorted(map(address, range(500)))
    assert sorted(found.column("seed").to_pylist()) == list(range(500))
    assert not list(Path(str(folder)).glob(".*"))


def test_a_damaged_file_is_named(folder: RunFolder) -> None:
    name = folder.add_records(table([1]))
    data = folder.location.read(name)
    folder.location.write(name, data[: len(data) // 2])
    for read in (folder.records, folder.addresses, folder.merge):
        with pytest.raises(InputError, match=rf"{name} of .* is damaged: .*remove it"):
            read()
    folder.location.write(name, parquet_bytes(pa.table({"seed": [1]})))
    with pytest.raises(InputError, match=r"no column 'address'"):
        folder.records()
    shard = folder.add_features("net", [address(1)], np.ones((1, 2), np.float32))
    folder.location.write(shard, b"\0" * 20)
    with pytest.raises(InputError, match="is damaged"):
        folder.features("net")


def test_features(folder: RunFolder) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    folder.add_features("efficientnet-lite0@64 bicubic", [address(1), address(2)], rows[:2])
    folder.add_features("efficientnet-lite0@64 bicubic", [address(3), address(4)], rows[2:])
    folder.add_features("efficientnet-lite0@64 bicubic", [address(4)], rows[3:])
    addresses, found = folder.features("efficientnet-lite0@64 bicubic")
    order = [addresses.index(address(number)) for number in range(1, 5)]
    assert np.array_equal(found[order], rows)
    assert found.dtype == np.float32
    assert folder.features("another")[0] == []


def test_traces_of_runs_of_different_lengths(folder: RunFolder) -> None:
    one = {"cosine": np.array([0.1, np.nan, 0.3]), "scale": np.array([4.0, 4.0, 1.0])}
    two = {"scale": np.array([2.0, 2.0])}
    folder.add_traces({address(1): one, address(2): two})
    folder.add_traces({address(3): two})
    found = folder.traces([address(1), address(2), address(9)])
    assert set(found) == {address(1), address(2)}
    assert set(found[address(1)]) == {"cosine", "scale"}
    assert np.array_equal(found[address(1)]["cosine"], one["cosine"], equal_nan=True)
    assert set(found[address(2)]) == {"scale"}
    assert np.array_equal(found[address(2)]["scale"], [2.0, 2.0])


def test_many_small_files_become_a_few(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "TOGETHER", 3)
    written: list[tuple[int, int]] = []
    made = Writer(folder, lambda count, evaluations: written.append((count, evaluations)))
    for number in range(20):
        rows = np.full((1, 2), number, np.float32)
        traces = {address(number): {f"t{number % 2}": np.full(1 + number, float(number))}}
        batch = Finished(table([number]), {}, {"net": ([address(number)], rows)}, traces)
        made.add(functools.partial(copy.copy, batch), number)
    made.close()
    assert written == [(1, number) for number in range(20)]
    for kind in ("parts", "features/net", "traces"):
        assert len(folder.location.names(kind)) == 20 // 3 + 20 % 3
    assert folder.addresses() == {address(number) for number in range(20)}
    addresses, rows = folder.features("net")
    assert {one: row[0] for one, row in zip(addresses, rows, strict=True)} == {
        address(number): number for number in range(20)
    }
    traces = folder.traces([address(number) for number in range(20)])
    for number in range(20):
        (name,) = traces[address(number)]
        assert name == f"t{number % 2}"
        assert np.array_equal(traces[address(number)][name], np.full(1 + number, float(number)))


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "images\\..\\x", "", "a\0b"])
def test_nothing_leaves_the_folder(folder: RunFolder, path: str) -> None:
    for act in (folder.image, lambda one: folder.write_bytes(one, b"x"), folder.location.read, folder.location.remove):
        with pytest.raises(InputError, match="no path inside"):
            act(path)


def test_an_image_that_is_none(folder: RunFolder) -> None:
    folder.location.create()
    folder.write_bytes("images/a.png", b"GIF89a")
    with pytest.raises(InputError, match=r"cannot read the image 'images/a.png' of .*: it is none"):
        folder.image("images/a.png")
    with pytest.raises(InputError, match=r"no image images/b\.png"):
        folder.image("images/b.png")


def test_locations_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot use the location"):
        RunFolder("nothing-like-this://a")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        RunFolder(tmp_path / "file").location.create()
    with pytest.raises(InputError, match="is no run folder"):
        RunFolder(tmp_path).sweep()
    with pytest.raises(InputError, match="is no run folder"):
        RunFolder(tmp_path).cells()


class Foreign:
    """A file system of somebody else, with errors of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        def fail(*given: Any, **more: Any) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such\nname"), r"cannot read a of memory://foreign: no such name$"),
        (NotImplementedError(), "cannot read a of memory://foreign: NotImplementedError$"),
        (RuntimeError("no answer"), r"no answer, for 0\.01 s; what is finished is safe"),  # it may come back
    ],
)
def test_errors_of_other_file_systems_are_one_line(error: Exception, message: str) -> None:
    location = Location("memory://foreign", patience=0.01)
    location.fs = Foreign(error)
    with pytest.raises(InputError, match=message):
        location.read("a")


@pytest.mark.parametrize(
    "address", ["reference://x", "github://x", "generic://x", "a\0b", "\udcff", "x" * 5000, "zip://a::b"]
)
def test_addresses_that_are_none_are_one_line(address: str) -> None:
    with pytest.raises(InputError, match="the location"):
        Location(address)


def test_a_file_is_whole_and_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, synced = Location(tmp_path), []
    path, real = tmp_path / "a" / "b", os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            synced.append((os.fstat(descriptor).st_size, path.read_bytes() if path.exists() else None))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    location.write("a/b", b"first")
    location.write("a/b", b"second one")
    assert synced == [(5, None), (10, b"first")]
    assert location.names("a") == ["b"]


class Slow(Location):
    """A store that is neither a disk nor an object store: files are written beside and renamed."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.protocols = {"ftp"}


def test_elsewhere_files_are_written_beside_and_renamed() -> None:
    location = Slow("memory://beside")
    seen: list[str] = []
    real = location.fs.mv
    try:
        location.fs.mv = lambda one, other: (seen.append(one), real(one, other))
        location.write("a/b", b"x")
        location.write("a/b", b"y")
        assert location.read("a/b") == b"y"
        assert location.names("a") == ["b"]
        assert seen == ["/beside/a/.b.part"] * 2
    finally:
        del location.fs.mv
        location.fs.rm("/beside", recursive=True)
