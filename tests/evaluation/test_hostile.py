"""Whatever is in a sweep, a prompt file or a run folder: one line of the project's own, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from guidestack.evaluation import values
from guidestack.evaluation.analysis.measure import measure
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.report.report import report
from guidestack.evaluation.run import history
from guidestack.evaluation.run.meter import Meter
from guidestack.evaluation.run.runner import Options, Prepared, merge_only, run_sweep
from guidestack.evaluation.spec.cells import Addresses, baseline_of, expand
from guidestack.evaluation.spec.prompts import parse_prompts, prompt_of, written_prompt
from guidestack.evaluation.spec.sweep import KEYS, Seeds, Sweep, load_sweep, parse_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.store.lock import Launch
from guidestack.guidance import reading
from guidestack.guidance.errors import GuidestackError, InputError

from .common import run, sweep_of, written

LONGEST = 1500  # characters of a message

bounded = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)


def checked(read: Callable[[], Any]) -> Any:
    """What is read, or the error that a user sees, which is one line of bounded length."""
    try:
        found = read()
    except GuidestackError as error:
        found = error
        text = str(error)
        assert text.strip()
        assert len(text) <= LONGEST
        assert "\n" not in text
    return found


def whole(data: bytes) -> Sweep:
    """A sweep checked as far as that needs no model, and what a run folder would hold of it."""
    sweep = parse_sweep(data, "s.yaml")
    cells = expand(sweep)
    baseline_of(sweep, cells)
    addresses = Addresses("model")
    history.check(sweep, cells, addresses)
    json.dumps(history.described(cells, addresses), ensure_ascii=False).encode()
    for prompt in sweep.prompts:
        written_prompt(prompt)
    again = parse_sweep(sweep.as_yaml().encode(), "again")
    assert again == sweep
    return sweep


# --- sweeps ----------------------------------------------------------------------------------------------------------

SWEEPS: dict[str, tuple[str, str]] = {
    "no date": ("stack: cfg(2)\nscale: 2001-99-99", "line 2: '2001-99-99' cannot be read as timestamp"),
    "no date as a value": ("stack: cfg({w})\naxes: {w: [2001-99-99]}", "cannot be read as timestamp"),
    "a date": ("stack: cfg({w})\naxes: {w: [2001-01-01]}", "a value is a number"),
    "a tag of int": ("stack: cfg(2)\nsteps: !!int abc", "line 2: 'abc' cannot be read as int"),
    "a tag of float": ("stack: cfg(2)\nsteps: !!float abc", "line 2: 'abc' cannot be read as float"),
    "a tag of bool": ("stack: cfg(2)\ntraces: !!bool abc", "line 2: 'abc' cannot be read as bool"),
    "a tag of timestamp": ("stack: cfg(2)\nsteps: !!timestamp abc", "line 2: 'abc' cannot be read as timestamp"),
    "a tag of set": ("stack: cfg(2)\nsteps: !!set [1, 2]", "expected a mapping node"),
    "a set": ("stack: !!set {a, b}", "must be a template, a list of them"),
    "a tag of omap": ("stack: cfg(2)\nsteps: !!omap [1]", "not the YAML"),
    "a tag of binary": ("stack: cfg(2)\nsteps: !!binary é", "not the YAML"),
    "bytes": ("stack: cfg({w})\naxes: {w: [!!binary YQ==]}", "a value is a number"),
    "a tag of Python": ("stack: !!python/object/apply:os.system ['id']", "could not determine a constructor"),
    "a list as a key": ("stack: cfg(2)\n? [a]\n: 1", "not the YAML"),
    "null as a key": ("stack: cfg(2)\n~: 1", "unknown key None"),
    "400 digits": ("stack: cfg({w})\naxes: {w: [1" + "0" * 400 + "]}", "<a whole number of 1329 bits> is too large"),
    "5,000 digits": ("stack: cfg({w})\naxes: {w: [1" + "0" * 5000 + "]}", "cannot be read as int"),
    "5,000 hexadecimal digits": (
        "stack: cfg(2)\nsteps: 0x1" + "0" * 5000,
        r"<a whole number of \d+ bits> is too large",
    ),
    "sexagesimal digits": (
        "stack: cfg(2)\nseeds: [" + "1:" * 3000 + "1]",
        r"<a whole number of \d+ bits> is too large",
    ),
    "digits in a baseline": (
        "stack: cfg({w})\naxes: {w: [2]}\nbaseline: {w: 1" + "0" * 400 + "}",
        "<a whole number of 1329 bits> is too large",
    ),
    "digits in what matters": (
        "stack: cfg({w})\naxes: {w: [1, 2]}\nclaim: {words: a, paper: b, expect: [{metric: contrast, of: {w: 1}, "
        "be: lower, than: {w: 2}, matters: 1" + "0" * 400 + "}]}",
        "<a whole number of 1329 bits> is too large",
    ),
    "a range of large numbers": (
        "stack: cfg({w})\naxes: {w: '1e5000, 2e5000, ..., 9e5000'}",
        r"between -2\^63 and 2\^63",
    ),
    "a range of huge ones": ("stack: cfg({w})\naxes: {w: '1, 2, ..., 1e999999999'}", "a range is numbers"),
    "a range of no numbers": ("stack: cfg({w})\naxes: {w: '1, sNaN, ..., 3'}", "a range is numbers"),
    "a list in zip": (
        "stack: cfg({w})\naxes: {w: [1]}\nzip: [[[w], {a: 1}]]",
        "zip: entry 1 must be a text",
    ),
    "a list in stack": ("stack: [[1]]", r"stack: entry 1 must be a text; got \[1\]"),
    "a mapping in stack": ("stack: [{a: 1}]", "stack: entry 1 must be a text"),
    "NUL in a path": ('stack: cfg(2)\nprompts: "a\\0b.txt"', "none of them NUL"),
    "NUL in a model": ('stack: cfg(2)\nmodel: "a\\0b"', "none of them NUL"),
    "a long path": ("stack: cfg(2)\nprompts: " + "a" * 5000 + ".txt", "cannot be looked for: File name too long"),
    "a long model": ("stack: cfg(2)\nmodel: " + "a" * 5000, "cannot be looked for: File name too long"),
    "a long template": ("stack: cfg(2)" + " " * 20_000 + "| rescale(0.1)", "at most 10000 characters"),
    "twenty thousand keys": ("stack: cfg(2)\n" + "\n".join(f"k{i}: 1" for i in range(20_000)), "unknown key 'k0'"),
    "a key twice in twenty thousand": (
        "\n".join(f"k{i}: 1" for i in range(20_000)) + "\nk777: 2",
        "the key 'k777' comes twice",
    ),
    "twenty thousand axes": (
        "stack: cfg(2)\naxes:\n" + "\n".join(f"  k{i}: [1]" for i in range(20_000)),
        "axes must have at most 100 items",
    ),
    "twenty thousand values": (
        "stack: cfg({w})\naxes: {w: " + json.dumps(list(range(20_000))) + "}",
        "20000 values; 10000 are the most",
    ),
    "twenty thousand templates": (
        "stack: " + json.dumps([f"cfg({i})" for i in range(1, 20_001)]),
        "at most 10000 items",
    ),
    "a million cells": (
        "stack: cfg({w})\naxes: {w: '1, 2, ..., 1000', steps: '1, 2, ..., 1000'}",
        "1000000 cells, and 10000 are",
    ),
    "too many samples": (
        "stack: cfg({w})\naxes: {w: '1, 2, ..., 1000'}\nseeds: {count: 1000000}",
        "1000000000 samples, and 10000000 are",
    ),
    "seeds without bound": (
        "stack: cfg(2)\nseeds: {count: 10000000, times: 1000000}",
        "seeds: count must be less than or equal to 1000000; got 10000000",
    ),
    "seeds times seeds": ("stack: cfg(2)\nseeds: {count: 1000000, times: 1000000}", "1000000000000 seeds of a prompt"),
    "seeds of each": ("stack: cfg(2)\nseeds: {each: 1000000, times: 1000000}", "1000000000000 seeds of a prompt"),
    "seeds beyond the last": (
        "stack: cfg(2)\nseeds: {each: 2, start: 9223372036854775806}",
        "seeds end at 9223372036854775807",
    ),
    "bytes without bound": ("stack: cfg(2) #" + " " * 2_000_000, "2000000 at most"),
    "deep lists": ("stack: " + "[" * 300 + "]" * 300, "more than (20|150) deep"),
    "deeper lists": ("stack: " + "[" * 100_000, "not the YAML"),
    "deep mappings": ("stack: " + "{a: " * 300 + "}" * 300, "more than (20|150) deep"),
    "a list in itself": ("stack: &a [*a]", "anchors and aliases are not read"),
    "half a pair": ('stack: cfg(2)\nprompts: ["\\ud800 cat"]', "not the YAML"),
    "half a pair as a name": ('stack: {"\\ud800": cfg(2)}', "not the YAML"),
    "a side without bound": (
        "stack: cfg(2)\nsize: 99999x8",
        "size must have sides of 1 to 8192 pixels, or be 'model'; got '99999x8'",
    ),
    "NUL in a prompt": ('stack: cfg(2)\nprompts: ["cat\\0dog"]', "entry 1: a prompt is a text of .*, none of them NUL"),
    "NUL in negatives": ('stack: cfg(2)\nprompts: [a]\nnegatives: "cat\\0dog"', "none of them NUL"),
    "an unknown kind of negatives": ("stack: cfg(2)\nprompts: [a]\nnegatives: {a: 1}", "one text for all 1 prompts"),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_hostile_sweep_gets_one_line(name: str) -> None:
    text, message = SWEEPS[name]
    found = checked(lambda: whole(text.encode()))
    assert isinstance(found, InputError)
    with pytest.raises(InputError, match=message):
        raise found


def test_yaml_is_read_alike_where_it_was_built_without_its_part_in_c() -> None:
    class Slow(reading._Loader, yaml.SafeLoader):  # type: ignore[misc]
        pass

    for text in ("a: [1, {b: c}]", "a: !!bool b", "a: &a [*a]", "a: 1\na: 2"):
        found = [checked(lambda loader=loader, text=text: read(loader, text)) for loader in (reading._Loader, Slow)]
        assert str(found[0]) == str(found[1])


def read(loader: Any, text: str) -> Any:
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from None


SCALARS = [
    "2001-99-99",
    "2001-01-01",
    "!!int abc",
    "!!bool abc",
    "!!timestamp abc",
    "!!set [1, 2]",
    "!!set {a}",
    "!!binary YQ==",
    "!!float .",
    "!!null 3",
    "!!str 3",
    "!!omap [1]",
    "!!map [1]",
    "!!seq {a: 1}",
    "!foo 1",
    "~",
    "yes",
    ".inf",
    "-.nan",
    "0x1F",
    "0o7",
    "1:30",
    "1_000",
    "1e400",
    "9" * 400,
    "0x" + "f" * 5000,
    '"\\ud800"',
    '"\\0"',
    '"\\uFFFE"',
    "*a",
    "&a 1",
    "<<",
    "=",
    "|",
    "'",
    "{",
    "[]",
    "{}",
    "cfg(2)",
    "cfg({w})",
    "'@rescale'",
    "'1, 2, ..., 4'",
    "'1, ..., 1e9'",
    "{w: [2, 4]}",
    "[[w, steps]]",
    "{bundled: {count: 2}}",
    "{classes: '0, ..., 3'}",
    "{count: 3}",
    "{each: 2, times: 3}",
    "{count: 1000000, times: 1000000}",
    "p.txt",
    "[a, b]",
]
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values_of = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fragments = st.sampled_from(SCALARS) | values_of.map(lambda value: json.dumps(value)) | st.text(max_size=12)
keys = st.sampled_from([key for key in KEYS if key != "model"])


@bounded
@given(st.dictionaries(keys, fragments, max_size=5), st.booleans())
@example({"zip": "[[[w], {a: 1}]]"}, True)
@example({"prompts": '["\\ud83d\\ude00"]'}, True)
def test_any_sweep_reads_back_or_gets_one_line(lines: dict[str, str], begun: bool) -> None:
    """Also that what is read is what a run folder can hold, and reads back from it."""
    start = {"stack": "cfg({w})", "axes": "{w: [2, 4]}", "prompts": "[a]"} if begun else {}
    text = "\n".join(f"{key}: {value}" for key, value in {**start, **lines}.items())
    checked(lambda: whole(text.encode("utf-8", "surrogatepass")))


@bounded
@given(st.binary(max_size=60))
def test_any_bytes_are_a_sweep_or_get_one_line(data: bytes) -> None:
    checked(lambda: whole(data))


@bounded
@given(st.dictionaries(keys, values_of, max_size=4))
def test_any_values_are_a_sweep_or_get_one_line(given_values: dict[str, Any]) -> None:
    text = yaml.safe_dump({"stack": "cfg({w})", "axes": {"w": [2, 4]}, **given_values})
    checked(lambda: whole(text.encode("utf-8", "surrogatepass")))


def test_a_sweep_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "stack: cfg(2)\nseeds: " + json.dumps([4 * seed for seed in range(1000)])
    whole(text.encode())
    monkeypatch.setattr(values, "MAX_BYTES", len(text))
    with pytest.raises(InputError, match=r"this sweep has \d+ bytes when it is written out, and \d+ are the most"):
        whole(text.encode())


def test_more_seeds_have_the_same_bounds() -> None:
    for seeds in (Seeds((1, 2)), Seeds(each=2)):
        with pytest.raises(InputError, match="2000000 seeds of a prompt, and 1000000 are the most"):
            seeds.more(10**6)
    with pytest.raises(InputError, match="seeds end at"):
        parse_sweep(b"stack: cfg(2)\nseeds: {count: 3, start: 9223372036854775806}", "s")
    assert Seeds(each=2, times=3).count == Seeds(tuple(range(6))).count == 6


# --- files that a sweep names ----------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[str, bytes, str]] = {
    "no UTF-8": ("p.txt", b"a\nb\xff\n", "p.txt line 2: not UTF-8"),
    "half a pair": ("p.jsonl", b'"a"\n"\\ud800 cat"\n', "p.jsonl line 2: .* half of a surrogate pair at character 1"),
    "half a pair in a label": ("p.jsonl", b'{"prompt": "a", "labels": {"b": "\\udfff"}}', "half of a surrogate pair"),
    "half a pair as a key": ("p.jsonl", b'{"\\ud800": 1}', "half of a surrogate pair"),
    "digits": ("p.jsonl", b'{"class": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    "400 digits": ("p.jsonl", b'{"class": ' + b"9" * 400 + b"}", "<a whole number of 1329 bits> is too large"),
    "digits in a column": ("p.csv", b"class\n" + b"9" * 5000, "a class is a whole number"),
    "digits of another script": ("p.csv", "class\n²".encode(), "a class is a whole number"),
    "depth": ("p.jsonl", b"[" * 100_000, "not JSON that can be read"),
    "some depth": ("p.jsonl", b"[" * 300 + b"]" * 300, "more than (20|150) deep"),
    "NaN": ("p.jsonl", b'{"class": NaN}', "a class is a whole number"),
    "a long prompt": ("p.txt", b"a" * 20_000, "at most 10000 characters"),
    "a large field": ("p.csv", b"prompt\n" + b"a" * 200_000, "field larger than field limit"),
    "NUL": ("p.csv", b"prompt\n\0\n\xff", "not UTF-8"),
    "NUL in a prompt": ("p.txt", b"a\ncat\0dog", "p.txt line 2: a prompt is a text of .*, none of them NUL"),
    "NUL in a mapping": ("p.jsonl", b'{"prompt": "cat\\u0000dog"}', "none of them NUL"),
    "NUL in a negative": (
        "p.jsonl",
        b'{"prompt": "a", "negative": ["b", "\\u0000"]}',
        "negative must be .*none of them NUL",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_hostile_prompt_file_gets_one_line(name: str) -> None:
    file, data, message = PROMPTS[name]
    found = checked(lambda: parse_prompts(data, file))
    with pytest.raises(InputError, match=message):
        raise found


lines_of = st.lists(values_of.map(json.dumps) | st.text(max_size=20), max_size=5).map("\n".join)
rows_of = st.tuples(st.sampled_from(["prompt", "class", "prompt,negative", "prompt,label.a", "a"]), lines_of).map(
    "\n".join
)


@bounded
@given(
    st.sampled_from([".txt", ".jsonl", ".csv", ".TXT", ".md", ""]),
    st.binary(max_size=60) | (lines_of | rows_of).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_any_prompt_file_reads_back_or_gets_one_line(suffix: str, data: bytes) -> None:
    found = checked(lambda: parse_prompts(data, f"p{suffix}"))
    for one in found if isinstance(found, list) else []:
        again = json.loads(json.dumps(one.as_plain(), ensure_ascii=False).encode())
        assert prompt_of(again, "again") == one


def test_too_many_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.evaluation.spec import prompts

    monkeypatch.setattr(prompts, "MAX_PROMPTS", 3)
    assert len(parse_prompts(b"a\n" * 3, "p.txt")) == 3
    with pytest.raises(InputError, match="more than 3 prompts"):
        parse_prompts(b"a\n" * 4, "p.txt")


@pytest.mark.parametrize("what", ["sweep", "prompts", "coefficients", "run", "records", "tune"])
def test_a_pipe_is_not_waited_for(what: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    os.mkfifo("pipe.safetensors")
    Path("s.yaml").write_text("stack: cfg(2)\nprompts: pipe.txt\n")
    if what == "sweep":
        os.mkfifo("pipe.yaml")
    if what in ("run", "records"):
        Path("run/parts").mkdir(parents=True)
        os.mkfifo("run/sweep.yaml" if what == "run" else "run/parts/0-a.parquet")
    if what == "coefficients":
        with pytest.raises(InputError, match="cannot read the coefficients"):
            Addresses("m").cell(
                expand(parse_sweep(b"stack: cfg(2)", "s"))[0].__class__(
                    "linear_ag(cfg(2), 'pipe.safetensors')", "ddim", 5, None, "float32", 1, ()
                )
            )
        return
    if what == "records":
        with pytest.raises(InputError, match="a pipe or a device"):
            RunFolder("run", patience=0).addresses()
        return
    arguments = {
        "sweep": ("evaluate", "pipe.yaml", "--out", "new"),
        "prompts": ("evaluate", "s.yaml", "--out", "new"),
        "run": ("report", "run"),
        "tune": ("tune", "--prompts", "pipe.txt", "--held-out", "pipe.txt", "--likeness", "ssim>=0.9", "--out", "new"),
    }[what]
    status, said, err = command(*arguments)
    assert (status, said) == (2, "")
    assert "a pipe or a device" in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("new").exists()


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "\udcff.yaml", "--out", "run"), "is not UTF-8 text"),
        (("evaluate", "a" * 5000 + ".yaml", "--out", "run"), "File name too long"),
        (("evaluate", "smoke", "--out", "a\udcff"), "is not UTF-8 text"),
        (("evaluate", "smoke", "--out", "a" * 5000), "File name too long"),
        (
            ("evaluate", "smoke", "--out", "run", "--times", "1" * 30),
            "times must be a whole number between 1 and 1e",
        ),
        (("report", "a\udcff"), "is not UTF-8 text"),
        (("report", "nowhere"), "is no run folder"),
        (("report", "a" * 5000), "File name too long"),
        (("tune", "--prompts", "²", "--likeness", "ssim>=0.9", "--out", "t"), "cannot read"),
        (("tune", "--prompts", "9" * 5000, "--likeness", "ssim>=0.9", "--out", "t"), "a number of 5000 digits"),
        (("tune", "--likeness", "ssim>=nan", "--out", "t"), "cannot read the stack 'ssim>=nan'"),
        (("tune", "--likeness", "ssim>=1e999", "--out", "t"), "'1e999' is no number"),
        (("tune", "--evaluations", "nan", "--out", "t"), "--evaluations is 1 at least"),
    ],
)
def test_hostile_arguments_get_one_line(
    arguments: tuple[str, ...], message: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said, err = command(*arguments)
    assert (status, said) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"prompts": ["\ud800 cat"]},
        {"prompts": "lone.jsonl"},
        {"negatives": "\udfff"},
        {"stack": {"\ud800": "cfg({w})"}},
        {"prompts": [{"prompt": "a", "labels": {"style": "\ud800"}}]},
        {"claim": {"words": "a", "paper": "b", "expect": [
            {"metric": "contrast", "of": {"w": 3}, "be": "lower", "than": {"stack": "cfg({w})", "w": 2},
             "matters": 0.1}]}},
    ],
)  # fmt: skip
def test_no_run_folder_is_written_on_an_error_and_the_corrected_sweep_runs(
    keys: dict[str, Any], command: Any, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "lone.jsonl").write_text('"a"\n"\\ud800 cat"\n')
    (tmp_path / "s.yaml").write_text(written(model_folder, **{"steps": 1, "prompts": ["a"], "batch": 4} | keys))
    status, said, err = command("evaluate", tmp_path / "s.yaml", "--out", tmp_path / "run")
    assert (status, said) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    (tmp_path / "s.yaml").write_text(written(model_folder, steps=1, prompts=["a"], batch=4))
    status, said, err = command("evaluate", tmp_path / "s.yaml", "--out", tmp_path / "run")
    assert (status, err.count("warning")) == (0, 0)
    assert "4 images made: 8 network evaluations" in said


@pytest.fixture(scope="module")
def generator(model_folder: Path) -> Any:
    return Prepared(sweep_of(model_folder, steps=1), Options()).generator


@settings(bounded, max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=8) | st.sampled_from(["\ud800", "a\0b", "\x85", "=1+1", "\u2028", "{", "😀"]),
    st.sampled_from(["prompts", "negatives", "label", "stack", "jsonl"]),
)
def test_any_text_is_run_or_refused_before_there_is_a_run_folder(
    generator: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory, text: str, where: str
) -> None:
    out = tmp_path_factory.mktemp("any") / "run"
    plain: dict[str, Any] = {
        "model": str(model_folder),
        "steps": 1,
        "sampler": "ddim",
        "stack": "cfg(2)",
        "prompts": ["a"],
    }
    placed: dict[str, dict[str, Any]] = {
        "prompts": {"prompts": [text]},
        "negatives": {"negatives": text},
        "label": {"prompts": [{"prompt": "a", "labels": {"style": text}}]},
        "stack": {"stack": {text: "cfg(2)"}},
        "jsonl": {"prompts": "p.jsonl"},
    }
    lines = json.dumps(text).encode()

    def go(keys: dict[str, Any]) -> Any:
        data = json.dumps({**plain, **keys}).encode()  # which is YAML, but for pairs of surrogates
        sweep = parse_sweep(data, "s.yaml", lambda file: lines)
        return run_sweep(Prepared(sweep, Options(), generator), RunFolder(out))

    found = checked(lambda: go(placed[where]))
    if isinstance(found, GuidestackError):
        assert not out.exists()
        assert go({}).made == 1
    else:
        assert found.made == 1
        assert RunFolder(out).sweep()
        report(RunFolder(out))


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a folder can have."""
    out = tmp_path_factory.mktemp("base") / "run"
    prompts = [{"prompt": text, "labels": {"style": "flat"}} for text in "ab"]
    keys: dict[str, Any] = {"prompts": prompts, "steps": 2, "traces": True, "metrics": ["saturation", "ssim"]}
    run(model_folder, out, baseline={"stack": "cfg({w})", "w": 2}, **keys)
    measure(RunFolder(out), [parse_metric(one) for one in ("saturation", "ssim")])
    return out


@pytest.fixture
def damaged(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "run"))


def read_everything(folder: Path, generator: Any) -> list[Any]:
    """What every reader of a run folder finds or raises."""
    run = RunFolder(folder, patience=0)
    metrics = [parse_metric(one) for one in ("saturation", "ssim")]
    again: list[Callable[[], Any]] = [
        run.values,
        lambda: report(run),
        lambda: measure(run, metrics),
        lambda: list(run.feature_shards("net")),
        lambda: run_sweep(Prepared(load_sweep(str(folder / "sweep.yaml")), Options(), generator), run),
        lambda: merge_only(run, Launch()),
    ]
    return [checked(one) for one in again]


def cell_with(name: str, value: Any) -> Callable[[Path], None]:
    def change(told: Any) -> Any:
        for cell in told["cells"]:
            cell.pop(name) if value is ... else cell.update({name: value})
        return told

    return told_as(change)


def told_as(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "cells.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def column_as(name: str, change: Callable[[list[Any]], Any], kind: Any = None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "records.parquet"
        table = pq.read_table(file)
        if name not in table.column_names:
            raise KeyError(name)
        values_ = pa.array(change(table.column(name).to_pylist()), kind)
        pq.write_table(table.set_column(table.column_names.index(name), name, values_), file)

    return damage


def part_of(table: Callable[[], pa.Table]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "parts").mkdir(exist_ok=True)
        pq.write_table(table(), folder / "parts" / "0-a.parquet")

    return damage


def traced(**arrays: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        addresses = pq.read_table(folder / "records.parquet").column("address").to_pylist()
        packed = np.stack([np.frombuffer(bytes.fromhex(one), np.uint8) for one in addresses])
        made = {name: np.broadcast_to(one, (len(packed), *np.shape(one))).copy() for name, one in arrays.items()}
        (folder / "traces" / "0-a.safetensors").write_bytes(safetensors.numpy.save({"address": packed, **made}))
        for other in (folder / "traces").iterdir():
            if other.name != "0-a.safetensors":
                other.unlink()

    return damage


def file_as(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


KINDS: list[Any] = [3, None, [1], {"a": {}}, float("nan"), ...]
CELL = "cells.json of .* is damaged: cell 1 has no {}, or another kind of value there; remove it"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"cells.json: {name}: {value}": (cell_with(name, value), CELL.format(name))
        for name in ("cell", "stack", "sampler", "steps", "size", "dtype", "template", "axes")
        for value in KINDS
        if not (name == "size" and value is None)
        and not (name == "steps" and value == 3)
        and not (name == "axes" and value == {"a": {}})
    },
    "cells.json: sides": (cell_with("size", ["a", "b"]), CELL.format("size")),
    "cells.json: values of axes": (cell_with("axes", {"w": 3}), CELL.format("axes")),
    "cells.json: no mapping": (told_as(lambda told: [1]), "no list of cells"),
    "cells.json: no cells": (told_as(lambda told: {**told, "cells": [1, None]}), CELL.format("cell")),
    "cells.json: a cell twice": (told_as(lambda told: {**told, "cells": told["cells"] * 2}), "a cell comes twice"),
    "cells.json: baseline": (told_as(lambda told: {**told, "baseline": "none"}), "its baseline is no cell"),
    "cells.json: a list as baseline": (told_as(lambda told: {**told, "baseline": [1]}), "are texts"),
    "cells.json: model": (told_as(lambda told: {**told, "model": {"a": 1}}), "are texts"),
    "cells.json: samples": (told_as(lambda told: {**told, "samples": "x"}), "samples is no number"),
    "cells.json: depth": (file_as("cells.json", b"[" * 100_000), "is damaged: maximum recursion depth"),
    "cells.json: half a pair": (cell_with("sampler", "\ud800"), "half of a surrogate pair"),
    "cells.json: bytes": (file_as("cells.json", b"\xff\xfe\0"), "cells.json of .* is damaged"),
    "cells.json: digits": (cell_with("steps", 10**400), "<a whole number of 1329 bits> is too large"),
    "whole numbers as addresses": (
        column_as("address", lambda old: list(range(len(old)))),
        "are no addresses of samples",
    ),
    "nulls as addresses": (column_as("address", lambda old: [None] * len(old), pa.string()), "are no addresses"),
    "words as addresses": (column_as("address", lambda old: ["x"] * len(old)), "are no addresses of samples"),
    "lists as addresses": (column_as("address", lambda old: [[one] for one in old]), "values that are no string"),
    "text as a number": (
        column_as("effective_scale", lambda old: ["a"] * len(old)),
        "'effective_scale' has values that",
    ),
    "text as a metric": (
        column_as("metric.saturation", lambda old: ["a"] * len(old)),
        "'metric.saturation' has values",
    ),
    "lists as seeds": (column_as("seed", lambda old: [[1]] * len(old)), "'seed' has values that are no int64"),
    "nulls as places": (column_as("prompt_index", lambda old: [None, *old[1:]], pa.int64()), "no value in 1 of 8 rows"),
    "NaN as places": (column_as("prompt_index", lambda old: [float("nan")] * len(old)), "values that are no int64"),
    "nulls as seeds": (column_as("seed", lambda old: [None] * len(old), pa.int64()), "no value in 8 of 8 rows"),
    "nulls as evaluations": (
        column_as("evaluations", lambda old: [None] * len(old), pa.int64()),
        "column 'evaluations'",
    ),
    "bytes as prompts": (
        column_as("prompt", lambda old: [b"\xff"] * len(old)),
        "'prompt' has values that are no string",
    ),
    "no addresses in a part": (part_of(lambda: pa.table({"seed": [1]})), "no column 'address'"),
    "whole numbers in a part": (
        part_of(lambda: pa.table({"address": [1, 2]})),
        "parts/0-a.parquet of .* are no addresses",
    ),
    "text in a part": (
        part_of(lambda: pa.table({"address": ["0" * 32], "seed": ["a"]})),
        "'seed' has values that are no",
    ),
    "a column twice": (
        part_of(lambda: pa.table([pa.array(["0" * 32])] * 2, names=["address", "address"])),
        "a column comes twice",
    ),
    "traces without lengths": (traced(effective_scale=np.ones(2)), "traces of .* is damaged"),
    "traces of one number": (traced(steps=2, effective_scale=1.0), "traces of .* is damaged"),
    "NaN as lengths": (traced(steps=np.nan, effective_scale=np.ones(2)), "traces of .* is damaged"),
    "a history that is none": (file_as("history/0001.yaml", b"stack: !!bool abc"), "'abc' cannot be read as bool"),
    "a sweep that is none": (
        file_as("sweep.yaml", b"stack: [[1]]"),
        "stack: entry 1 must be a text",
    ),
    "records that are none": (file_as("records.parquet", b""), "records.parquet of .* is damaged"),
    "values that are none": (file_as("values.parquet", b"x"), "values.parquet of .* is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_folder_gets_one_line(name: str, damaged: Path, generator: Any) -> None:
    damage, message = DAMAGES[name]
    damage(damaged)
    found = read_everything(damaged, generator)
    errors = [one for one in found if isinstance(one, InputError)]
    assert errors
    for error in errors:
        with pytest.raises(InputError, match=message):
            raise error
    assert not list(damaged.glob(".*"))


@pytest.mark.parametrize("file", ["sweep.yaml", "history/0001.yaml"])
def test_a_damaged_sweep_of_a_run_folder_comes_with_advice(file: str, damaged: Path) -> None:
    run = RunFolder(str(damaged))
    sweep = run.sweep()
    (damaged / file).write_bytes(b"\0")
    with pytest.raises(InputError, match=f"{file}.*; if the file is damaged, remove it, and run the sweep again"):
        run.sweep() if file == "sweep.yaml" else history.versions(run, sweep, "")


NUMBERS: list[Any] = [float("nan"), float("inf"), None]


@pytest.mark.parametrize("column", ["effective_scale", "across", "seconds", "metric.saturation"])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_number_that_is_none_is_one_that_is_missing(
    column: str, number: Any, all_of_them: bool, damaged: Path, generator: Any
) -> None:
    column_as(column, lambda old: [number] * len(old) if all_of_them else [number, *old[1:]], pa.float64())(damaged)
    found = read_everything(damaged, generator)
    assert not [one for one in found if isinstance(one, GuidestackError)]
    assert "NaN" not in (damaged / "report.html").read_text().partition("<script>")[0]


def test_traces_that_are_not_finite_are_left_out(damaged: Path, generator: Any) -> None:
    traced(steps=2, effective_scale=np.array([np.inf, 1.0]))(damaged)
    assert not [one for one in read_everything(damaged, generator) if isinstance(one, GuidestackError)]


@settings(bounded, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_damage_gets_one_line(base: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any") / "run"
    shutil.copytree(base, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    file = data.draw(st.sampled_from(files))
    old = file.read_bytes()
    at = data.draw(st.integers(0, len(old)))
    cut = data.draw(st.sampled_from([0, 1, 4, len(old)]))
    file.write_bytes(old[:at] + data.draw(st.binary(max_size=8)) + old[at + cut :])
    run = RunFolder(folder, patience=0)
    reads: list[Callable[[], Any]] = [run.sweep, run.cells, run.records, run.addresses, run.values]
    checked(lambda: history.versions(run, run.sweep(), Addresses("model")))
    addresses = checked(run.addresses)
    reads.append(lambda: run.traces(addresses if isinstance(addresses, set) else ()))
    for one in reads:
        checked(one)


@settings(bounded, max_examples=60)
@given(values_of)
def test_any_account_of_cells_is_one_or_gets_one_line(told: Any) -> None:
    run = RunFolder("memory://hostile", patience=0)
    try:
        run.location.write("cells.json", json.dumps(told).encode())
        checked(run.cells)
    finally:
        run.location.fs.rm(run.location.root, recursive=True)


# --- what a spreadsheet reads ----------------------------------------------------------------------------------------


def test_a_stack_named_like_a_formula_is_text(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path, stack={"=1+1": "cfg({w})", "@a": "apg({w})"}, prompts=["a", "b"], steps=2)
    report(RunFolder(tmp_path))
    cells = [
        cell
        for file in (tmp_path / "plots").glob("*.csv")
        for row in file.read_text().splitlines()
        for cell in row.split(",")
    ]
    assert "'=1+1" in cells
    assert "'@a" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


def test_numbers_of_a_table_stay_numbers() -> None:
    from guidestack.evaluation.csvs import written_csv

    assert written_csv([["a", -1.5, "-b", "\t=1"]]) == b"a,-1.5,'-b,'\t=1\n"


# --- metrics ---------------------------------------------------------------------------------------------------------

LONG = "b" * 300
METRICS = {
    f"frechet(reference='{LONG}')": "the reference: .* cannot be looked for: File name too long",
    "frechet(reference='pictures')": "has 0 pictures",
    "frechet(reference=3)": "reference is a text in quotes; got 3",
    "frechet(reference=[1])": r"reference is a text in quotes; got \(1,\)",
    "diversity(extractor=3)": "extractor is a text in quotes; got 3",
    "diversity(extractor='inception:pipe')": "no weights at pipe",
    f"diversity(extractor='inception:{LONG}')": "the extractor inception: .* cannot be looked for: File name too long",
    "diversity(extractor='clip:clip')": "no weights at clip",
    "diversity(extractor='clip:deep')": "deep is no CLIP",
    "diversity(extractor='clip:wide')": "wide is no CLIP",
    "clip_score(model='a\\0b')": "none of them NUL",
    f"kid(degree={'9' * 400})": "<a whole number of 1329 bits> is too large",
    f"psnr(cap={'9' * 400})": "<a whole number of 1329 bits> is too large",
    f"kid(degree={'-' * 995}3)": "more than 100 calls, tuples and signs",
    f"kid(degree={'9' * 1900})": r"<a whole number of \d+ bits> is too large",
}


@pytest.mark.parametrize("text", METRICS)
def test_a_hostile_metric_gets_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "clip", "deep", "wide"):
        Path(folder).mkdir()
    for pipe in ("pipe", "pictures/a.png", "clip/config.json"):
        os.mkfifo(pipe)
    for folder, config in (("deep", "[" * 100_000), ("wide", '{"vision_config": {"image_size": 1e999}}')):
        Path(folder, "a.safetensors").write_bytes(b"x")
        Path(folder, "config.json").write_text(config)
    found = checked(lambda: Meter.of([text], [prompt_of("a", "here")], True, True, "cpu"))
    with pytest.raises(InputError, match=METRICS[text]):
        raise found
