"""The README shows what is there, its example and its files; docs/rules.md has every rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guidestack.scripts.rules import markdown

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_table_of_rules_is_what_the_command_prints() -> None:
    assert markdown() in (ROOT / "docs" / "rules.md").read_text(), "run: make tables"


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_it_stays_short() -> None:
    assert len(TEXT.splitlines()) <= 100


def test_its_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(example.splitlines()) <= 12
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["image"].size == (64, 64)  # type: ignore[attr-defined]
    assert "evaluations" in capsys.readouterr().out
