"""The documentation site: every public name has an entry, and every page is in the navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import guidestack as gs
from guidestack import evaluation, guidance, samplers

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def documented(page: str) -> list[str]:
    """The last part of every name that an API page has an entry for."""
    return re.findall(r"^::: guidestack\.(?:\w+\.)*(\w+)$", (DOCS / "api" / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("guidestack.md", set(gs.__all__) - {"__version__"}),
        ("guidance.md", set(guidance.__all__)),
        ("samplers.md", set(samplers.__all__)),
        ("evaluation.md", set(evaluation.__all__)),
    ],
)
def test_every_public_name_has_one_entry(page: str, names: set[str]) -> None:
    entries = documented(page)
    assert sorted(entries) == sorted(names), f"list each public name once in docs/api/{page}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert yaml.safe_load(re.sub(r"!ENV \[[^\]]*\]", "x", text))["plugins"]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [link for link in links if not re.match(r"https?:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_options_on_the_page_of_generate_exist() -> None:
    """Every line of the page is read; what it names need not exist."""
    import shlex

    from guidestack.scripts.generate import command

    text = (DOCS / "generate.md").read_text()
    lines = re.findall(r"^guidestack generate (.*)$", text, re.MULTILINE)
    assert len(lines) > 12
    for line in lines:
        with command.make_context("generate", shlex.split(line, comments=True), resilient_parsing=False) as context:
            assert context.params["prompts"] or context.params["like"], line
    named = {name for line in lines for name in re.findall(r"--[a-z-]+", line)}
    assert {"--image", "--mask", "--lora", "--controlnet", "--ip-adapter", "--vae", "--axis", "--like"} <= named
