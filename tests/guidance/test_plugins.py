"""Rules of one's own: from a file that the user names, and from installed packages."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guidestack as gs
from guidestack.guidance import check_rule, load_rules
from guidestack.guidance.notation import plugins
from guidestack.guidance.notation.plugins import files_of, loaded_files
from guidestack.guidance.notation.registry import _ENTRIES, rules

from ..own_rules import HALVED, OTHER, written

pytestmark = pytest.mark.usefixtures("own_rules")


FUTURE = "from __future__ import annotations"


def names() -> list[str]:
    return [entry.name for entry in rules()]


def test_a_rule_of_a_file_is_a_rule_like_ours(tmp_path: Path) -> None:
    file = load_rules(written(tmp_path / "mine.py"))
    assert (file.name, file.path) == ("mine.py", (tmp_path / "mine.py").resolve())
    assert file.digest == hashlib.sha256(HALVED.encode()).hexdigest()[:16]
    stack = gs.parse("halved(4) | rescale(0.5)")
    assert gs.from_config(gs.to_config(stack)) == stack
    assert pickle.loads(pickle.dumps(stack)) == stack
    assert set(check_rule(stack.rules[0]).values()) >= {"passed"}
    (entry,) = [one for one in rules() if one.name == "halved"]
    assert (entry.summary, entry.source) == ("Half of the way of classifier-free guidance.", file)


def test_which_files_a_stack_is_of(tmp_path: Path) -> None:
    first = load_rules(written(tmp_path / "b.py"))
    second = load_rules(written(tmp_path / "a.py", HALVED.replace("halved", "other").replace("Halved", "Other")))
    assert files_of(gs.parse("cfg(3) | rescale(0.5)")) == ()
    assert files_of(gs.parse("during(halved(3), progress=(0, 0.5))")) == (first,)
    assert files_of(gs.parse("halved(3) | other(2) | halved(2)")) == (second, first)


def test_the_same_contents_are_imported_once(tmp_path: Path) -> None:
    count = HALVED + "\nimport builtins\nbuiltins.times = getattr(builtins, 'times', 0) + 1\n"
    first = load_rules(written(tmp_path / "a.py", count))
    before = gs.parse("halved(3)")
    assert load_rules(tmp_path / "a.py") == first
    assert load_rules(written(tmp_path / "copy.py", count)) == first
    import builtins

    assert builtins.times == 1  # type: ignore[attr-defined]
    del builtins.times  # type: ignore[attr-defined]
    assert gs.parse("halved(3)") == before


def test_a_file_that_has_changed_replaces_its_rules(tmp_path: Path) -> None:
    first = load_rules(written(tmp_path / "mine.py"))
    old = _ENTRIES["halved"].rule
    second = load_rules(written(tmp_path / "mine.py", OTHER))
    assert (second.path, second.digest != first.digest) == (first.path, True)
    assert _ENTRIES["halved"].rule is not old
    assert loaded_files() == (second,)
    with pytest.raises(gs.InputError, match=r"line 10: the rule name 'halved' is taken by Halved of mine\.py"):
        load_rules(written(tmp_path / "another.py"))
    assert loaded_files() == (second,)
    with pytest.raises(gs.InputError, match=r"line 27: ZeroDivisionError"):
        load_rules(written(tmp_path / "mine.py", HALVED + "\n1 / 0\n"))
    assert loaded_files() == (second,)  # as it was before


def test_a_file_is_a_module_of_its_own(tmp_path: Path) -> None:
    """Neither what stands beside it is imported, nor does it see what this package imports from the future."""
    written(tmp_path / "beside.py", "")
    with pytest.raises(gs.InputError, match="ModuleNotFoundError: No module named 'beside'"):
        load_rules(written(tmp_path / "mine.py", HALVED + "\nimport beside\n"))
    eager = "def f(x: 1 / 2): pass\nassert f.__annotations__ == {'x': 0.5}\n"
    load_rules(written(tmp_path / "mine.py", eager + HALVED.replace(FUTURE, "")))
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere.py", None, "cannot read the rules file .*nowhere.py': No such file"),
        ("mine.txt", HALVED, r"a rules file is a Python file, whose name ends in \.py; got .*mine.txt'"),
        ("mine.py", "import os\n\n\nfoo\n", r"mine.py' cannot be imported, line 4: NameError: name 'foo' is not"),
        ("mine.py", "def f():\n    raise OSError(5, 'gone')\nf()\n", "line 2: OSError: gone"),
        ("mine.py", HALVED + "\ndef f(:\n", "line 27: SyntaxError: invalid syntax$"),
        ("mine.py", "\0", "cannot be imported"),
        ("mine.py", HALVED + "\nraise SystemExit(3)\n", "line 27: SystemExit: 3"),
        ("mine.py", "import json\njson.loads('{')\n", "line 2: JSONDecodeError: "),
        ("mine.py", "x = 1\n", "registers no rule; decorate the class of a rule with @register"),
        ("mine.py", HALVED.replace('"halved"', '"cfg"'), "line 10: the rule name 'cfg' is taken by CFG; choose"),
        ("mine.py", HALVED.replace('"halved"', '"2"'), "line 10: a rule's name is an identifier"),
        ("mine.py", HALVED + "\nfrom guidestack import CFG\nCFG('x')\n", "line 28: CFG: scale must be a finite"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    before, modules = dict(_ENTRIES), set(sys.modules)
    with pytest.raises(gs.InputError, match=message) as caught:
        load_rules(path)
    assert "\n" not in str(caught.value)
    assert before == _ENTRIES
    assert not {one for one in set(sys.modules) - modules if one.startswith("guidestack_rules")}
    if "line" in message:
        assert caught.value.__cause__ is not None


def test_a_folder_is_no_rules_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").mkdir()
    with pytest.raises(gs.InputError, match="it is a folder"):
        load_rules(tmp_path / "mine.py")


def test_ctrl_c_is_no_fault_of_the_file(tmp_path: Path) -> None:
    before = dict(_ENTRIES)
    with pytest.raises(KeyboardInterrupt):
        load_rules(written(tmp_path / "mine.py", HALVED + "\nraise KeyboardInterrupt\n"))
    assert before == _ENTRIES


Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(package, text)``: a package with an entry point for a module of that text; nothing is looked up yet."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_looked", False)
    made: list[str] = []

    def call(package: str, text: str) -> None:
        module = f"{package}_module"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[guidestack.rules]\nmine = {module}\n")

    yield call
    for module in made:
        sys.modules.pop(module, None)


def test_a_package_is_imported_when_a_name_is_not_known_without_it(install: Install) -> None:
    install("halving", HALVED)
    for known in ("cfg(3)", "during(cfg(3), progress=(0, 0.5)) | rescale(0.5)", "stack()"):
        gs.parse(known)
        gs.from_config(gs.to_config(gs.parse(known)))
    assert "halving_module" not in sys.modules
    assert str(gs.parse("halved(2)")) == "halved(scale=2)"
    assert files_of(gs.parse("halved(2)")) == ()  # packages have versions, not files


def test_a_package_is_imported_when_the_rules_are_listed(install: Install) -> None:
    install("halving", HALVED + "\nfrom guidestack.guidance.notation.registry import rules\nrules()\n")
    assert "halved" in names()
    assert "halved" in names()


def test_a_package_that_is_broken_is_one_warning(install: Install) -> None:
    install("broken", HALVED.replace("halved", "broken") + "\nimport nowhere\n")
    install("greedy", HALVED.replace('"halved"', '"cfg"'))
    install("leaving", "raise SystemExit(1)")
    install("sound", HALVED)
    with pytest.warns(gs.GuidestackWarning) as warned:
        assert {"halved", "cfg"} <= set(names())
    told = sorted(str(one.message) for one in warned)
    assert [text.partition(",")[0] for text in told] == [
        f"the rules of the package {package} are left out" for package in ("broken", "greedy", "leaving")
    ]
    assert "ModuleNotFoundError: No module named 'nowhere'" in told[0]
    assert "the rule name 'cfg' is taken by CFG" in told[1]
    assert "broken" not in names()  # nothing of it, also not what came before the error


def test_a_file_does_not_take_the_name_of_a_package(install: Install, tmp_path: Path) -> None:
    install("halving", HALVED)
    with pytest.raises(gs.InputError, match="the rule name 'halved' is taken by Halved"):
        load_rules(written(tmp_path / "mine.py", OTHER))
