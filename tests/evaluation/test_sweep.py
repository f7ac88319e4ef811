"""What a sweep file may say, and the one line that it gets for what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from PIL import Image

from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, concepts
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.spec.cells import Addresses, Cell, baseline_of, expand
from guidestack.evaluation.spec.prompts import Prompt, bundled, parse_prompts, written_prompt
from guidestack.evaluation.spec.sweep import Seeds, Sweep, load_sweep, names, parse_sweep
from guidestack.guidance.errors import GuidestackError, InputError


def sweep(**keys: Any) -> Sweep:
    """A sweep with these keys over the least that one needs; None leaves one out."""
    whole = {"prompts": ["a cat"], "stack": "cfg({w})", "axes": {"w": [2, 4]}, **keys}
    return parse_sweep(
        yaml.safe_dump({k: v for k, v in whole.items() if v is not None}, sort_keys=False).encode(), "s.yaml"
    )


def read(keys: dict[str, Any]) -> None:
    asked = sweep(**keys)
    baseline_of(asked, expand(asked))


def test_templates_multiply_with_the_axes_they_use() -> None:
    found = expand(sweep(stack=["stack()", "cfg({w})", "apg({w}, eta={eta})"], axes={"w": [2, 4], "eta": [0, 0.5]}))
    assert [cell.stack for cell in found] == [
        "stack()", "cfg(2)", "cfg(4)", "apg(2)", "apg(2, eta=0.5)", "apg(4)", "apg(4, eta=0.5)",
    ]  # fmt: skip
    assert dict(found[0].axes) == {"stack": "stack()", "w": None, "eta": None}
    assert dict(found[-1].axes) == {"stack": "apg({w}, eta={eta})", "w": "4", "eta": "0.5"}


def test_partners_are_cells_of_one_template_at_further_steps() -> None:
    keys: dict[str, Any] = {"stack": {"one": "cfg({w})", "two": "stack()"}, "axes": {"w": [2, 4], "steps": [5, 10]}}
    assert "partners" not in sweep(**keys).as_yaml()
    asked = sweep(**keys, partners="two")
    assert asked.partners is not None
    assert asked.partners.steps is None
    assert expand(asked) == expand(sweep(**keys))
    counted = sweep(**keys, partners={"stack": "two", "steps": [10, 20]})
    *before, last = expand(counted)
    assert tuple(before) == expand(asked)
    assert (last.stack, last.steps, dict(last.axes)) == ("stack()", 20, {"stack": "two", "w": None, "steps": "20"})
    assert parse_sweep(counted.as_yaml().encode(), "again") == counted
    both = sweep(**keys, partners={"stack": "one", "steps": [20]})
    assert [(cell.stack, cell.steps) for cell in expand(both)[-2:]] == [("cfg(2)", 20), ("cfg(4)", 20)]


def test_everything_that_generate_takes_is_fixed_or_an_axis() -> None:
    (only,) = expand(sweep(stack="cfg(2)", axes=None))
    assert (only.sampler, only.steps, only.size, only.dtype, only.batch) == ("dpm++2m", 25, None, "float32", 8)
    axes = {
        "sampler": ["ddim", "euler"],
        "steps": [5, 10],
        "size": ["model", "16x24"],
        "dtype": ["float32", "bfloat16"],
    }
    found = expand(sweep(stack="cfg(2)", axes=axes, batch=3))
    assert len(found) == 16
    assert {(cell.sampler, cell.steps, cell.size, cell.dtype, cell.batch) for cell in found} == {
        (sampler, steps, size, dtype, 3)
        for sampler in ("ddim", "euler")
        for steps in (5, 10)
        for size in (None, (16, 24))
        for dtype in ("float32", "bfloat16")
    }


def test_zipped_axes_go_together_and_the_others_multiply() -> None:
    axes = {"w": [2, 4], "steps": [5, 10], "eta": [0, 1]}
    found = expand(sweep(stack="apg({w}, eta={eta})", axes=axes, zip=[["w", "steps"]]))
    assert [(cell.stack, cell.steps) for cell in found] == [
        ("apg(2)", 5), ("apg(2, eta=1)", 5), ("apg(4)", 10), ("apg(4, eta=1)", 10),
    ]  # fmt: skip
    matched = expand(sweep(stack=["cfg({w})", "cfgpp({l})"], axes={"w": [2, 4], "l": [0.2, 0.4]}, zip=[["w", "l"]]))
    assert [(cell.stack, dict(cell.axes)["w"]) for cell in matched] == [
        ("cfg(2)", "2"), ("cfg(4)", "4"), ("cfgpp(0.2)", "2"), ("cfgpp(0.4)", "4"),
    ]  # fmt: skip
    together = expand(sweep(stack=["cfg({w})", "apg({w})"], axes={"w": [2, 4]}, zip=[["stack", "w"]]))
    assert [cell.stack for cell in together] == ["cfg(2)", "apg(4)"]


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1, 2, ..., 5", [1, 2, 3, 4, 5]),
        ("7, 7.1, ..., 7.4", [7, 7.1, 7.2, 7.3, 7.4]),
        ("3, ..., 5", [3, 4, 5]),
        ("1, 2, ..., 4, 8, 10, ..., 14", [1, 2, 3, 4, 8, 10, 12, 14]),
        ("8, 6, ..., 2", [8, 6, 4, 2]),
    ],
)
def test_ranges(written: str, values: list[float]) -> None:
    assert sweep(axes={"w": written}).axes["w"] == tuple(values)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"stpes": 3},
        "unknown key 'stpes'; did you mean 'steps'\\? Allowed: model, networks, objectives, rules, prompts, .*baseline",
    ),
    "partners of no template": ({"partners": "cgf"}, "partners: no template 'cgf'"),
    "partners without an axis of steps": ({"partners": "cfg({w})"}, "make them an axis: axes: {steps: "),
    "partners in no steps": (
        {"axes": {"w": [1], "steps": [5]}, "partners": {"stack": "cfg({w})", "steps": [0]}},
        "partners: steps: entry 1: must be greater than or equal to 1|partners: steps: entry 1 must be",
    ),
    "no stack": ({"stack": None}, "give stack"),
    "unused axis": ({"axes": {"w": [1], "v": [2]}}, "no template uses the axis 'v'"),
    "a hole without an axis": ({"stack": "cfg({ww})"}, "has {ww}, and there is no such axis; did you mean 'w'"),
    "half a brace": ({"stack": "cfg({w)"}, "a brace without"),
    "an axis without values": ({"axes": {"w": []}}, "axes: w must have values; got"),
    "a value twice": ({"axes": {"w": [2, 3, 2.0]}}, "the value 2 comes twice"),
    "a value that is a mapping": ({"axes": {"w": [{"a": 1}]}}, "a value is a number"),
    "an axis that is no list": ({"axes": {"w": 3}}, "a list of values, or a range"),
    "a range that misses its end": ({"axes": {"w": "1, 3, ..., 6"}}, "does not reach 6 from 3 in steps of 2"),
    "a range of words": ({"axes": {"w": "a, ..., c"}}, "a range is numbers"),
    "a range without an end": ({"axes": {"w": "1, 2, ..."}}, "a range is numbers"),
    "an endless range": ({"axes": {"w": "0, 0.0000001, ..., 1"}}, "has more than 10000 values"),
    "an axis named stack": ({"axes": {"w": [1], "stack": ["cfg(2)"]}}, "several stacks are a list under 'stack'"),
    "a name that is no word": ({"axes": {"w": [1], "a b": [1]}}, "an axis is named by a word"),
    "fixed and an axis": ({"axes": {"w": [1], "steps": [5]}, "steps": 5}, "steps is fixed and an axis"),
    "the same cell twice": ({"stack": ["cfg({w})", "cfg({w}, against='negative')"]}, "two cells are the same"),
    "cells that differ in batch only": ({"axes": {"w": [1], "batch": [2, 4]}}, "two cells are the same"),
    "a stack that cannot be read": ({"stack": "cgf({w})"}, "'cgf\\({w}\\)' makes 'cgf\\(2\\)'.*unknown rule 'cgf'"),
    "a value that a rule refuses": ({"stack": "cfgpp({w})"}, "makes 'cfgpp\\(2\\)'.*scale interpolates"),
    "no templates": ({"stack": []}, "must be a template, a list of them, or a mapping of names"),
    "an empty template": ({"stack": [" "]}, "must be a text that is not empty"),
    "a template twice": ({"stack": ["cfg({w})", "cfg({w})"]}, "comes twice"),
    "an unknown zipped axis": ({"zip": [["w", "v"]]}, "no axis 'v'"),
    "zipped axes of different lengths": ({"axes": {"w": [1, 2], "steps": [5]}, "zip": [["w", "steps"]]}, "w has 2, s"),
    "an axis in two groups": (
        {"axes": {"w": [1], "steps": [5], "sampler": ["ddim"]}, "zip": [["w", "steps"], ["w", "sampler"]]},
        "'w' comes twice",
    ),
    "a group of one": ({"zip": [["w"]]}, "zip: entry 1 must have at least 2 items; got"),
    "zip that is no list": ({"zip": "w"}, "zip must be a valid list; got 'w'"),
    "steps": ({"steps": 0}, "steps must be greater than or equal to 1; got 0"),
    "steps that are true": ({"steps": True}, "steps must be a whole number"),
    "size": ({"size": "64"}, "size must be HEIGHTxWIDTH"),
    "dtype": ({"dtype": "float31"}, "unknown value 'float31'; did you mean 'float32'"),
    "images": ({"images": "jpeg"}, "images: unknown value 'jpeg'"),
    "traces": ({"traces": "yes please"}, "traces must be true or false; got 'yes please'"),
    "seeds": ({"seeds": [1, -1]}, "seeds: entry 2 must be greater than or equal to 0; got -1"),
    "a seed twice": ({"seeds": [1, 1]}, "comes twice"),
    "no seeds": ({"seeds": []}, "must have values"),
    "seeds of both kinds": ({"seeds": {"count": 1, "each": 1}}, "count, the same seeds for every prompt, or each"),
    "an unknown key of seeds": ({"seeds": {"cuont": 1}}, "unknown key 'cuont'; did you mean 'count'"),
    "no prompts": ({"prompts": []}, "prompts is empty"),
    "a prompt that is a number": ({"prompts": ["a", 3]}, "prompts: entry 2: a prompt is a text"),
    "an unknown key of a prompt": ({"prompts": [{"pormpt": "a"}]}, "unknown key 'pormpt'; did you mean 'prompt'"),
    "bundled prompts without a count": ({"prompts": {"bundled": {}}}, "prompts: bundled: give count"),
    "a prompt file where there can be none": ({"prompts": "p.txt"}, "no.* one beside which it could lie"),
    "a sampler that is a number": ({"sampler": 3}, "^s.yaml: sampler must be a text; got 3$"),
    "a model without a name": ({"model": ""}, "s.yaml: model must be a text that is not empty, .*; got ''"),
    "negatives for other prompts": ({"negatives": ["a", "b"]}, "one text for all 1 prompts or a list"),
    "negatives twice": ({"prompts": [{"prompt": "a", "negative": "b"}], "negatives": "c"}, "keep one of the two"),
    "metrics": ({"metrics": {"a": 1}}, "metrics: entry 1 must be a text; got"),
    "a baseline that is no cell": ({"baseline": {"w": 3}}, "means no cell"),
    "a baseline that is several": ({"baseline": {"stack": "cfg({w})"}}, "means 2 cells"),
    "a baseline of no axis": ({"baseline": {"v": 3}}, "unknown key 'v'"),
    "a baseline of no template": ({"baseline": {"stack": "cfg({v})"}}, "no template 'cfg\\({v}\\)'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sweep_gets_one_line(name: str) -> None:
    keys, message = BROKEN[name]
    with pytest.raises(GuidestackError, match=message) as caught:
        read(keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stack: [", "not the YAML"),
        ("stack: cfg(2)\nstack: cfg(3)", "'stack' comes twice"),
        ("a: &a [1]\nb: *a", "anchors"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        ("stack: \xff", "UTF-8"),
    ],
)
def test_a_file_that_is_no_sweep(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sweep(text.encode("latin-1"), "s.yaml")


def test_prompt_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n\n  red \n# no comment\n")
    (tmp_path / "p.jsonl").write_text(
        '"a"\n{"prompt": "b", "negative": ["c", "d"], "labels": {"style": "flat"}}\n\n{"class": 3}\n'
    )
    (tmp_path / "p.csv").write_text('prompt,negative,label.style\n"a, b",,flat\nc,d,\n')
    for file, wanted in {
        "p.txt": [Prompt("a cat"), Prompt("red"), Prompt("# no comment")],
        "p.jsonl": [Prompt("a"), Prompt("b", "c | d", labels={"style": "flat"}), Prompt("3", class_id=3)],
        "p.csv": [Prompt("a, b", labels={"style": "flat"}), Prompt("c", "d")],
    }.items():
        (tmp_path / "s.yaml").write_text(f"stack: cfg(2)\nprompts: {file}\n")
        assert list(load_sweep(str(tmp_path / "s.yaml")).prompts) == wanted


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("p.txt", b"a\nb\xff\n", "p.txt line 2: not UTF-8"),
        ("p.txt", b"\n\n", "no prompts"),
        ("p.jsonl", b'"a"\n{"prompt": \n', "^p.jsonl line 2: not JSON: Expecting value, at character 12$"),
        ("p.jsonl", b'{"text": "a"}\n', "p.jsonl line 1: unknown key 'text'; did you mean 'prompt'"),
        ("p.csv", b"text,negative\na,b\n", "p.csv line 1: unknown column 'text'; did you mean 'prompt'"),
        ("p.jsonl", b'"a"\n\n[1]\n', "p.jsonl line 3: a prompt is a text"),
        ("p.jsonl", b'{"prompt": "a", "label": 1}\n', "p.jsonl line 1: unknown key 'label'; did you mean 'labels'"),
        ("p.jsonl", b'{"class": -1}\n', "line 1: a class is a whole number"),
        ("p.jsonl", b'{"prompt": "a", "labels": {"b": 1}}\n', "line 1: labels must be a mapping"),
        ("p.csv", b"prompt,negatives\na,b\n", "line 1: unknown column 'negatives'; did you mean 'negative'"),
        ("p.csv", b"prompt,negative\na,b\nc,d,e\n", "p.csv line 3: 3 fields, and the header has 2"),
        ("p.csv", b'prompt\na\n"b\n', "p.csv line"),
        ("p.csv", b"prompt,prompt\na,b\n", "a column comes twice"),
        ("p.csv", b"class\nseven\n", "line 2: a class is a whole number"),
        ("p.md", b"a\n", "prompts come from .txt, .jsonl, .csv"),
    ],
)
def test_a_broken_line_is_named_by_its_number(file: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_prompts(data, file)
    assert "\n" not in str(caught.value)


def test_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("stack: cfg(2)\nprompts: p.txt\n")
    with pytest.raises(InputError, match=r"cannot read the file 'p.txt'.*beside the sweep"):
        load_sweep(str(tmp_path / "s.yaml"))
    with pytest.raises(InputError, match=r"no sweep 'smok'.*did you mean 'smoke'"):
        load_sweep("smok")


def test_a_sweep_and_its_prompts_at_an_address() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/sweeps/s.yaml": b"stack: cfg(2)\nprompts: p.txt\n", "/sweeps/p.txt": b"a cat\n"})
    try:
        assert load_sweep("memory://sweeps/s.yaml").prompts == (Prompt("a cat"),)
        files.rm("/sweeps/p.txt")
        for name in ("s", "none"):
            with pytest.raises(InputError, match=f"cannot read 'memory://sweeps/{'p.txt' if name == 's' else name}"):
                load_sweep(f"memory://sweeps/{name}.yaml")
        with pytest.raises(InputError, match=r"cannot read 'nothing://s.yaml': .*nothing"):
            load_sweep("nothing://s.yaml")
    finally:
        files.rm("/sweeps", recursive=True)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``sweeps`` with pictures, weights and a model; the working directory ``here`` has pictures too, and
    others and prompts that are nowhere else.
    """
    for folder in ("sweeps/pictures", "sweeps/clip", "sweeps/model", "here/pictures", "here/others"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sweeps" / "weights.pth").write_bytes(b"x")
    (tmp_path / "here" / "p.txt").write_text("a\n")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        ("frechet(reference='pictures')", "frechet(reference='{root}/sweeps/pictures')"),
        ("kid(reference='../sweeps/pictures', degree=2)", "kid(reference='{root}/sweeps/pictures', degree=2)"),
        ("frechet(reference='others')", "frechet(reference='{root}/here/others')"),
        ("frechet(reference='nowhere')", "frechet(reference='nowhere')"),
        ("frechet(reference='')", "frechet(reference='')"),
        ("frechet(reference='emoji-white')", "frechet(reference='emoji-white')"),
        ("diversity(extractor='inception:weights.pth')", "diversity(extractor='inception:{root}/sweeps/weights.pth')"),
        ("clip_score(model='clip')", "clip_score(model='{root}/sweeps/clip')"),
        ("clip_score( 'clip' )", "clip_score(model='{root}/sweeps/clip')"),
        ("saturation( )", "saturation( )"),
        ("frechet(reference='" + "x" * 1500 + "')", "frechet(reference='" + "x" * 1500 + "')"),
    ],
)
def test_paths_of_metrics_are_looked_for_beside_the_sweep_and_then_here(
    beside: Path, metric: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect = {"metric": metric, "of": {"w": 2}, "be": "lower", "than": {"w": 3}, "matters": 1}
    keys = {
        "model": "model", "prompts": "p.txt", "stack": "cfg({w})", "axes": {"w": [2, 3]}, "metrics": [metric],
        "claim": {"words": "a", "paper": "b", "expect": [expect]},
    }  # fmt: skip
    (beside / "sweeps" / "s.yaml").write_text(yaml.safe_dump(keys))
    found = load_sweep("../sweeps/s.yaml")
    root = beside.resolve()
    assert found.metrics == (wanted.format(root=root),)
    assert found.claim is not None
    assert found.claim.expect[0].metric == wanted.format(root=root)
    assert found.model == str(root / "sweeps" / "model")
    assert [prompt.text for prompt in found.prompts] == ["a"]
    monkeypatch.chdir("/")
    assert parse_sweep(found.as_yaml().encode(), "again") == found


def test_a_preset_is_looked_for_beside_the_sweep(beside: Path) -> None:
    (beside / "sweeps" / "mine.yaml").write_text("rules: [{cfg: {scale: 3}}]\n")
    (beside / "tuned-emoji-half").mkdir()  # a preset's name is no path
    (beside / "sweeps" / "s.yaml").write_text("stack: {mine: '@mine.yaml', half: '@tuned-emoji-half', cfg: cfg(2)}\n")
    found = load_sweep(str(beside / "sweeps" / "s.yaml"))
    path = (beside / "sweeps" / "mine.yaml").resolve()
    assert found.stacks == {"mine": f"@{path}", "half": "@tuned-emoji-half", "cfg": "cfg(2)"}
    assert [cell.stack for cell in expand(found)][::2] == ["cfg(3)", "cfg(2)"]


def test_names_of_numbers_do_not_depend_on_how_a_path_is_written(beside: Path) -> None:
    Image.new("RGB", (8, 8)).save(beside / "sweeps" / "pictures" / "a.png")
    (beside / "sweeps" / "s.yaml").write_text("stack: cfg(2)\nmetrics: [\"frechet(reference='pictures')\"]\n")
    found = load_sweep("../sweeps/s.yaml")
    assert parse_metric(found.metrics[0]).full_name == parse_metric("frechet(reference='../sweeps/pictures')").full_name


def test_bundled_prompts_say_what_they_ask_for() -> None:
    few, many = bundled(5, seed=3), bundled(50, seed=3)
    assert few == many[:5]
    for prompt in many:
        labels = prompt.labels
        assert labels["concept"] in concepts()
        assert labels["style"] in STYLES
        assert labels["background"] in BACKGROUNDS
        assert prompt.text.endswith(f", {labels['style']} style, {labels['background']} background")


def test_seeds() -> None:
    two = {"prompts": ["a", "b"]}
    assert sweep(**two).pairs == [(0, 0), (1, 0)]
    assert sweep(**two, seeds=7).pairs == [(0, 7), (1, 7)]
    assert sweep(**two, seeds=[7, 3]).pairs == [(0, 7), (0, 3), (1, 7), (1, 3)]
    assert sweep(**two, seeds={"count": 2, "start": 5}).pairs == [(0, 5), (0, 6), (1, 5), (1, 6)]
    assert sweep(**two, seeds={"each": 2, "start": 5}).pairs == [(0, 5), (0, 6), (1, 7), (1, 8)]
    twice = sweep(**two, seeds={"each": 1, "start": 5, "times": 2})
    assert twice.pairs == [(0, 5), (0, 1_000_005), (1, 6), (1, 1_000_006)]
    assert twice.seeds == Seeds(each=1, start=5).more(2)
    assert parse_sweep(twice.as_yaml().encode(), "again").seeds == twice.seeds
    assert (
        sweep(**two, seeds={"count": 2, "start": 5, "times": 2}).seeds == Seeds((5, 6)).more(2) == Seeds((5, 6, 7, 8))
    )
    assert sweep(prompts=["a", "b", "a"]).pairs == [(0, 0), (1, 0)]  # the same sample twice is one sample


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"prompts": {"bundled": {"count": 3, "seed": 1}}, "negatives": "dog", "seeds": [1, 5]},
        {"prompts": {"classes": "1, 2, ..., 5"}, "seeds": {"each": 2, "start": 4}},
        {"prompts": [{"prompt": "a", "negative": "b | c", "extra": "d", "labels": {"e": "f"}}, "g: &h"]},
        {"stack": {"one": "cfg({w})", "two": "stack()"}, "baseline": {"stack": "one", "w": 2}, "size": "16x24"},
        {"axes": {"w": [1, 2.5], "size": ["model", "8x8"]}, "zip": [["w", "size"]], "images": "none", "traces": True},
        {"stack": "apg({w}, {k})", "axes": {"w": [2], "k": ["eta=0", "eta=0.5, radius=3"]}},
    ],
)
def test_a_resolved_sweep_reads_back(keys: dict[str, Any]) -> None:
    one = sweep(**keys)
    again = parse_sweep(one.as_yaml().encode(), "again")
    assert again == one
    assert again.as_yaml() == one.as_yaml()
    assert expand(again) == expand(one)


def test_many_prompts_go_into_a_file_of_their_own() -> None:
    many = sweep(prompts=[f"p{number}" for number in range(150)])
    lines = many.prompt_lines()
    assert lines is not None
    again = parse_sweep(many.as_yaml("p.jsonl").encode(), "again", lambda file: {"p.jsonl": lines}[file])
    assert again.prompts == many.prompts


def test_shipped_sweeps_read() -> None:
    assert "smoke" in names()
    for name in names():
        asked = load_sweep(name)
        assert expand(asked)
        baseline_of(asked, expand(asked))


def test_addresses_are_what_they_were() -> None:
    """If this fails, every run folder in the world makes all of its samples again."""
    addresses = Addresses("99cb6b6aeb89775a")
    cell = Cell("cfg(4)", "dpm++2m", 25, None, "float32", 8, (("stack", "cfg(4)"),))
    of_cell = addresses.of_cell(cell)
    assert addresses.cell(cell) == "55e45a6d03e1"
    fitted = Cell("linear_ag(cfg(4), 'emoji-cfg4-20')", "ddim", 20, None, "float32", 2, ())
    assert Addresses("m").cell(fitted) == "81cfff7374e3"
    assert of_cell(written_prompt(Prompt("a cat")), 7) == "2a626ff80f7433f820e4a5e889c63f05"
    assert of_cell(written_prompt(Prompt("ein Bär", "dog", "x")), 2**62) == "41490c704c854a2d7feb4fc874227acb"


def test_an_address_is_of_what_decides_the_picture_and_of_nothing_else() -> None:
    plain: dict[str, Any] = {
        "stack": "cfg(4)", "sampler": "ddim", "steps": 5, "size": None, "dtype": "float32", "batch": 2, "axes": (),
    }  # fmt: skip

    def address(model: str = "m", prompt: Prompt = Prompt("a"), seed: int = 0, **changed: Any) -> str:  # noqa: B008
        return Addresses(model).of_cell(Cell(**{**plain, **changed}))(written_prompt(prompt), seed)

    different = [
        address(),
        address(model="n"),
        address(prompt=Prompt("b")),
        address(prompt=Prompt("a", "n")),
        address(prompt=Prompt("a", "", "n")),
        address(prompt=Prompt("3")),
        address(prompt=Prompt("3", class_id=3)),
        address(seed=1),
        address(stack="cfg(5)"),
        address(sampler="euler"),
        address(steps=6),
        address(size=(16, 24)),
        address(size=(24, 16)),
        address(dtype="float16"),
    ]
    assert len(set(different)) == len(different)
    assert {address(batch=3), address(axes=(("w", "4"),)), address(prompt=Prompt("a", labels={"x": "y"}))} == {
        address()
    }


def test_an_address_has_the_contents_of_fitted_coefficients(tmp_path: Path) -> None:
    file = tmp_path / "fit.safetensors"
    text = f"linear_ag(cfg(4), '{file}')"
    cell = Cell(text, "ddim", 5, None, "float32", 2, ())
    found = []
    for data in (b"one", b"two"):
        file.write_bytes(data)
        found.append(Addresses("m").cell(cell))
    assert found[0] != found[1]
    file.unlink()
    with pytest.raises(InputError, match="cannot read the coefficients"):
        Addresses("m").cell(cell)
