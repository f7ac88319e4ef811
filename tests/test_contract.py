"""The floors above the rules know a rule by its members: a rule of a third party is served as the built-in ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

import guidestack as gs
from guidestack.evaluation.spec.cells import Addresses, Cell
from guidestack.guidance import RuleFile, Wrapper
from guidestack.guidance.errors import CompositionError, InputError, RuleError
from guidestack.guidance.notation.registry import _ENTRIES, rules
from guidestack.pipelines.models.recipe import Recipe, check_several
from guidestack.pipelines.prompts import Prompts
from guidestack.scripts import explain
from guidestack.scripts.generating import check_presets

ROOT = Path(gs.__file__).parent


def read_table(path: Path) -> str:
    """A file of this rule's kind."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"cannot read the table {str(path)!r}: {error.strerror}") from None
    if not text.startswith("table"):
        raise InputError(f"{str(path)!r} is no table")
    return text


@dataclass(frozen=True)
class Tabled(Wrapper):
    """A rule that reads a file, has two weights, takes 4 steps, and decides as it goes."""

    data_dependent: ClassVar[bool] = True

    table: str = "shipped"

    @property
    def weight_counts(self) -> Mapping[str, int]:
        return {"negative": 2}

    def files(self) -> Mapping[str, RuleFile]:
        return {"table": RuleFile(Path(self.table), read_table, bundled=self.table == "shipped")}

    def check_steps(self, steps: int) -> None:
        if steps != 4:
            raise RuleError(f"{self} is for 4 steps, and this run has {steps}")


@pytest.fixture(autouse=True)
def tabled() -> Iterator[None]:
    gs.register("tabled")(Tabled)
    yield
    del _ENTRIES["tabled"]


@pytest.mark.parametrize("form", ["tabled(cfg(4), {!r})", "during(tabled(cfg(4), {!r}), progress=(0, 0.5)) | cfg(2)"])
def test_its_file_is_a_part_of_addresses_and_saved_beside_a_model(form: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.txt", tmp_path / "model"
    text, found = form.format(str(file)), []
    for content in ("table 1", "table 2"):
        file.write_text(content)
        found.append(Addresses("m").cell(Cell(text, "ddim", 5, None, "float32", 2, ())))
    assert found[0] != found[1]

    gs.save_pretrained(text, folder)
    file.write_text("no more of it")
    loaded = gs.from_pretrained(folder)
    assert loaded == gs.parse(form.format(str(folder / "guidance" / "mine.txt")))
    assert (folder / "guidance" / "mine.txt").read_text() == "table 2"
    with pytest.raises(InputError, match="is no table"):
        gs.save_pretrained(text, folder)
    written = (folder / "guidance.yaml").read_text().replace("guidance/mine.txt", "../mine.txt")
    (folder / "guidance.yaml").write_text(written)
    with pytest.raises(InputError, match="not in the model's folder"):
        gs.from_pretrained(folder)


def test_an_image_does_not_name_its_file_but_may_name_a_shipped_one() -> None:
    mapping = {
        "prompt": "a cat", "negative": "", "extra": "", "guidance": "tabled(cfg(4))", "sampler": "ddim", "steps": 4,
        "seed": 0, "size": None, "dtype": "float32", "batch": 1, "model": {"name": "bundled"}, "versions": {},
    }  # fmt: skip
    assert Recipe.read(mapping, Path("a.png")).guidance == "tabled(cfg(4))"
    with pytest.raises(InputError, match=r"names the file '/etc/x', and an image does not choose"):
        Recipe.read({**mapping, "guidance": "tabled(cfg(4), '/etc/x')"}, Path("a.png"))


def test_its_cost_is_a_bound_and_what_needs_certain_evaluations_refuses_it() -> None:
    result = CliRunner().invoke(explain.command, ["tabled(cfg(4))", "--steps", "4"])
    assert "at most 8 evaluations a sample" in result.output
    for wrap in (gs.AdaptiveGuidance, lambda rule: gs.LinearAG(rule, "emoji-cfg4-20")):
        with pytest.raises(CompositionError, match="keep one of the two"):
            wrap(Tabled(gs.CFG(4)))


def test_its_steps_and_weights_are_checked_before_anything_runs() -> None:
    check_presets(["tabled(cfg(4))"], None, "ddim", 4)
    with pytest.raises(InputError, match="is for 4 steps, and this run has 5"):
        check_presets(["tabled(cfg(4))"], None, "ddim", 5)
    stack = gs.parse("tabled(perpneg(4))")
    check_several(stack, ["a | b"], [""])
    with pytest.raises(InputError, match="has 2 weights and --negative 1 text at most"):
        check_several(stack, ["a"], [""])
    assert Prompts([["a", "b"]], [[]]).unused_weights(stack) == []
    assert Prompts([["a"]], [[]]).unused_weights(stack) == [
        "tabled(perpneg(4)) has 2 weights for 1 negative prompts: the last are not used"
    ]


def test_no_rule_is_known_by_its_class_outside_of_its_file() -> None:
    names = {entry.rule.__name__ for entry in rules()}
    for folder in ("guidance", "samplers", "pipelines", "bridges", "evaluation", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                    asked = {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)}
                    assert not asked & names, f"{file.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}"
