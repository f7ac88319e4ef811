"""Whatever a file, a text or a mapping holds: guidestack's own errors, in one line; what is read can be written."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import guidestack as gs
from guidestack.evaluation.values import read_yaml
from guidestack.guidance.errors import LONGEST, GuidestackError, InputError, RuleError, StackSyntaxError, nearest, shown
from guidestack.guidance.notation.presets import MAX_BYTES, as_stack, load_preset, names, tuned_for
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.notation.text import MAX_TEXT
from guidestack.guidance.reading import DEEPEST, check_plain, json_of, read_bytes, yaml_of
from guidestack.guidance.rule import DEEPEST as NESTED
from guidestack.guidance.testing.composition import STACKS, standing

FUZZ = settings(max_examples=150, deadline=None, derandomize=True)


def told(call: Callable[[], Any], kind: type[Exception] = GuidestackError) -> str:
    """The one line of the error that a call ends in."""
    with pytest.raises(kind) as caught:
        call()
    return one_line(caught.value)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) <= LONGEST
    return message


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns; None for one that ends in an error of guidestack's."""
    try:
        return call()
    except GuidestackError as error:
        one_line(error)
    return None


def nested(depth: int, inner: str = "cfg(4)") -> str:
    return "prefix(" * depth + inner + ", 2)" * depth


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"cfg(1{'0' * 400})", "at character 5: <a whole number of 1329 bits> is too large"),
        (f"prefix(cfg(1), 1{'0' * 400})", "is too large"),
        (f"perpneg(1, weights=(1, -1{'0' * 400}))", "is too large"),
        (f"cfg(1{'0' * 5000})", "4300 digits"),
        (f"cfg(0x{'f' * 5000})", "<a whole number of 20000 bits> is too large"),
        ("cfg(1e999)", "finite number"),
        (f"cfg({'-' * 995}4)", "more than 100 calls, tuples and signs"),
        (f"perpneg(1, weights={'(' * 150}1{',)' * 150})", "more than 100 calls, tuples and signs"),
        (nested(198), "more than 100 calls"),
        (nested(NESTED), "at most 30 rules stand inside one another"),
        (" | ".join(["cfg(1e5)"] * 890), "at most 10000 characters, and this stack's has"),
        ("cfg(1if 2 else 3)", "at character 5: invalid decimal literal"),
        (r"linear_ag(cfg(4), 'a\d')", "invalid escape sequence"),
        ("cfg(\ud800)", "surrogates not allowed"),
        (r"linear_ag(cfg(4), '\ud800.safetensors')", "half of a surrogate pair at character 1"),
        (f"cfg(4, against='positive+time({'9' * 150}e308)')", "a query is written 'condition'"),
        (
            f"cfg(4, against='positive+time(1, blocks={'9' * 5000})')",
            "200 characters at most; got 'positive+time(1, blocks=",
        ),
        (f"cfg(4, against='negative:{'9' * 5000}')", "200 characters at most"),
        ("x" * 10**6, "at most 10000 characters, got 1000000"),
        ("x" * 9999, "expected a number such as 4"),
        ("cfg(four)", "'four' is not a call; expected a number such as 4, a text in quotes"),
        ("cfg(rescale)", "write rescale with its arguments, rescale(phi, space='native')"),
        ("cfgg", "did you mean 'cfg'?"),
        ("7.5", "a scale of classifier-free guidance is written cfg(7.5)"),
        ("-3", "is written cfg(-3)"),
        ("cfg(4), rescale(0.7)", "between bars: cfg(4) | rescale(0.7)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_text_beyond_the_bounds_is_one_line(text: str, message: str) -> None:
    assert message in told(lambda: gs.parse(text))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("own.yaml", "write @own.yaml"),
        (" my presets/own.yml ", "write @my presets/own.yml"),
        ("interval-edm2", "@interval-edm2"),
        ("rescale", "@rescale"),
    ],
)
def test_a_file_or_a_preset_without_its_sign_is_told_it(text: str, hint: str) -> None:
    assert hint in told(lambda: as_stack(text), StackSyntaxError)


def test_the_deepest_stack_can_be_written() -> None:
    stack = gs.parse(nested(NESTED - 1))
    assert gs.parse(str(stack)) == gs.from_config(gs.to_config(stack)) == stack
    assert yaml_of(yaml.safe_dump(gs.to_config(stack)).encode(), "x", "a stack") == gs.to_config(stack)
    rule: gs.Rule = gs.CFG(4)
    for _ in range(NESTED - 1):
        rule = gs.Prefix(rule, 2)
    assert "at most 30 rules" in told(lambda: gs.During(rule, sigma=(0, 1)), RuleError)


def test_blanks_in_quotes_stay() -> None:
    stack = gs.parse("linear_ag(cfg(4),\n  'a  b.safetensors')")
    assert stack == gs.Stack(gs.LinearAG(gs.CFG(4), "a  b.safetensors")) == gs.parse(str(stack))
    spread = "schedule(cfg(4)\n| rescale(0.5),\u00a0'g2\n c')"
    assert gs.parse(spread) == gs.parse("schedule(cfg(4) | rescale(0.5), 'g2 c')")


WORDS = [
    *(entry.name for entry in rules()), *standing(), *STACKS, "stack()",
    "(", ")", ",", " | ", "|", "=", "'", '"', "\\", "-",
    "+", "4", "0.7", "1e308", "1e999", "9" * 320, "0x" + "f" * 400, "1if 2 else 3", "inf", "nan", "None", "'null'",
    "'\\ud800'", "\ud800", "\x00", "\n", "\u00a0", "ä", "scale=", "against=", "weights=(1, 1e300)", "'null+time(", "[",
    "sigma=(0.2, inf)", "lambda: 1", "]", "{", "}", "*", "**", "@", "#", "prefix(" * 40, "-" * 500, "f'{1}'", "b'a'",
    "1j", ":=",
]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=9).map("".join) | st.text(max_size=60)


def there_and_back(stack: gs.Stack) -> None:
    assert gs.parse(str(stack)) == stack
    assert gs.from_config(gs.to_config(stack)) == stack
    assert gs.from_config(yaml_of(yaml.safe_dump(gs.to_config(stack)).encode(), "x", "a stack")) == stack
    assert gs.from_config(json_of(json.dumps(gs.to_config(stack)))) == stack


@FUZZ
@given(texts)
def test_any_text_is_a_stack_or_one_line(text: str) -> None:
    for read in (gs.parse, as_stack):
        if stack := outcome(lambda read=read: read(text)):
            there_and_back(stack)


# --- YAML and mappings -----------------------------------------------------------------------------------------------

VALUES = [
    "2001-99-99", "!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "!!set [1, 2]", "!!omap 3",
    "!!pairs {a: b}", "!!binary '%'", "!!python/object/apply:os.system ['id']", "!mine 3", "{a: 1, a: 2}", "{[1]: 2}",
    "&a [*a]", "*a", "[" * 300 + "]" * 300, "{a: " * 300 + "1" + "}" * 300, f"0x{'f' * 5000}", f"1{'0' * 400}",
    f"1{'0' * 5000}", '"\\ud800"', '{"\\udfff": 1}', "\x00", "'", "{", "- a\n b", "<<", "{<<: 3}", "{<<: [3]}",
]  # fmt: skip
"""What the library answers with errors of many kinds, or with a value that nobody can work with."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guidance.yaml"


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_that_cannot_be_read_is_one_line_at_every_door(value: str, file: Path) -> None:
    doors = {
        f"rules: [{{cfg: {{scale: {value}}}}}]\n": lambda: load_preset(file),
        f"rules:\n- cfg:\n    scale: {value}\n": lambda: gs.from_pretrained(file.parent),
        f"rules: []\ntuned: {value}\n": lambda: tuned_for(file),
        value: lambda: load_preset(file),
    }
    for text, door in doors.items():
        file.write_bytes(text.encode())
        assert "guidance.yaml" in told(door)
    for text in (f"model: {value}", f"axes: {{w: [{value}]}}"):
        outcome(lambda text=text: read_yaml(text.encode(), "sweep.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [{cfg: {scale: 2001-99-99}}]", "line 1: '2001-99-99' cannot be read as timestamp"),
        ("rules:\n- cfg: {scale: !!int abc}", "line 2: 'abc' cannot be read as int"),
        ("rules: []\nrules: []", "the key 'rules' comes twice"),
        ("rules: [{cgf: {scale: 4}}]", "guidance.yaml': unknown rule 'cgf'; did you mean 'cfg'?"),
        ("rules: [{cfg: {scale: 4, agianst: x}}]", "guidance.yaml': cfg has no argument 'agianst'; did you mean"),
        ("stack: []", "guidance.yaml': a stack is a mapping with the one key 'rules'"),
        ("rules: [{cfg: {scale: high}}]", "guidance.yaml': CFG: scale must be a finite number"),
    ],
)
def test_what_is_wrong_in_a_preset_names_the_file_and_the_place(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    assert message in told(lambda: load_preset(file))


def test_files_that_are_none_are_never_waited_for(tmp_path: Path) -> None:
    pipe, long = tmp_path / "pipe.yaml", tmp_path / ("x" * 5000 + ".yaml")
    os.mkfifo(pipe)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for path, message in (
        (pipe, "a pipe or a device, and a file is expected"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path / "folder.yaml", "it is a folder"),
        (tmp_path / "large.yaml", f"more than {MAX_BYTES} bytes"),
        (long, "File name too long"),
        ("a\0b.yaml", "null byte"),
        ("\ud800.yaml", "surrogates not allowed"),
        (tmp_path / "none.yaml", "No such file or directory"),
    ):
        assert message in told(lambda path=path: read_bytes(path, "preset", MAX_BYTES), InputError)
        if str(path).endswith(".yaml"):
            assert message in told(lambda path=path: as_stack(f"@{path}"))
    for folder in (long, "a\0b/c", "./a\0b", f"./{'x' * 5000}", "~nobody-of-that-name/model", str(pipe)):
        assert "no such folder" in told(lambda folder=folder: gs.from_pretrained(folder), InputError)
    for folder in (long, "a\0b"):
        assert "cannot write" in told(lambda folder=folder: gs.save_pretrained("cfg(4)", folder), InputError)


def test_mappings_of_a_program_are_bounded() -> None:
    inside: list[Any] = []
    inside.append(inside)
    deep: Any = {"cfg": {"scale": 4}}
    for _ in range(300):
        deep = {"prefix": {"rule": deep, "steps": 2}}
    for mapping, message in (
        ({"rules": inside}, "nested more than 150 deep"),
        ({"rules": [deep]}, "nested more than 150 deep"),
        ({"rules": [{"cfg": {"scale": 10**400}}]}, "too large for a number"),
        ({"rules": [{"cfg": {"scale": -(16**5000)}}]}, "too large for a number"),
        ({"rules": [{16**5000: {}}]}, "too large for a number"),
        ({"rules": [{"cfg": {"scale": 4}}] * 5000}, f"at most {MAX_TEXT} characters"),
        ({"rules": [{"x" * 10**6: {}}]}, "unknown rule 'xxx"),
        ({"x" * 10**6: 1}, "one key 'rules'"),
        ({"rules": [{"cfg": ["x" * 10**6]}]}, "expected a mapping of arguments"),
        ({"rules": [{"cfg": {"\ud800": 1}}]}, "half of a surrogate pair"),
    ):
        assert message in told(lambda mapping=mapping: gs.from_config(mapping), StackSyntaxError)


KEYS = ["rules", "tuned", "scale", "against", "rule", "steps", "sigma", *(entry.name for entry in rules())]
words = st.sampled_from([10**400, "null", *KEYS])
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.text(max_size=6), words),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
wrapped = plain | plain.map(lambda value: {"rules": [value]}) | plain.map(lambda value: {"rules": [{"cfg": value}]})


@FUZZ
@given(wrapped)
def test_any_mapping_is_a_stack_or_one_line(mapping: Any) -> None:
    if stack := outcome(lambda: gs.from_config(mapping)):
        there_and_back(stack)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
        wrapped.map(lambda value: yaml.safe_dump(value).encode()),
        st.tuples(wrapped, st.sampled_from(VALUES)).map(
            lambda both: yaml.safe_dump(both[0]).replace("null", both[1]).encode()
        ),
    )
)
def test_any_yaml_is_a_stack_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(data)
    outcome(lambda: tuned_for(file))
    if stack := outcome(lambda: load_preset(file)):
        there_and_back(stack)


def test_plain_values_pass() -> None:
    for value in (None, 4, 1e300, "ä\U0001f600", ["\u2028", {"a": (1, True)}], 2**1023, [[]] * 10**5):
        check_plain(value)
    deep: Any = 1
    for _ in range(DEEPEST):
        deep = [deep]
    check_plain(deep)
    with pytest.raises(ValueError, match="nested more than 150"):
        check_plain([deep])
    with pytest.raises(ValueError, match="nested more than 150"):
        json_of("[" * 10**5)


# --- messages --------------------------------------------------------------------------------------------------------


def test_what_is_quoted_is_cut() -> None:
    inside: list[Any] = []
    inside.append(inside)

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in (
        "x" * 10**6,
        16**5000,
        10**5000,
        [10**5000] * 10**5,
        inside,
        {"a": inside},
        Bad(),
        list(range(10**6)),
        "\ud800",
    ):
        assert len(shown(value)) <= 80
        shown(value).encode()
    assert shown("four") == "'four'"
    long = GuidestackError(f"unknown {'x' * 10**6}; expected one of: a, b")
    assert len(str(long)) == LONGEST
    assert str(long).startswith("unknown xxx")
    assert str(long).endswith("; expected one of: a, b")
    assert "expected one of" in nearest("x" * 10**6, names())


def test_a_megabyte_of_text_is_not_said_again() -> None:
    huge = "x" * 10**6
    for call in (
        lambda: gs.parse(f"cfg('{huge[:9000]}')"),
        lambda: load_preset(huge),
        lambda: as_stack(f"@{huge}"),
        lambda: as_stack(f"@{huge}.yaml"),
        lambda: as_stack(f"{huge}.yaml"),
        lambda: gs.from_config({"rules": [{"cfg": {"scale": huge}}]}),
        lambda: gs.from_pretrained(f"{huge}/x/y"),
        lambda: gs.CFG(huge),  # type: ignore[arg-type]
    ):
        assert "xxx" in told(call)


def test_no_warning_of_a_text_reaches_the_user() -> None:
    """Also where warnings are no errors, as they are in these tests."""
    for text in ("cfg(1if 2 else 3)", r"linear_ag(cfg(4), 'a\d')"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told(lambda text=text: gs.parse(text), StackSyntaxError)
        assert not caught
