"""``guidestack rules NAME``: one rule's page and its picture; words that complete on Tab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from PIL import Image

from guidestack.guidance.notation.registry import rules
from guidestack.scripts.plain import plain
from guidestack.scripts.rules import cost, entry_of


def test_every_rule_has_a_page(command: Any) -> None:
    status, out, _ = command("rules", "apg")
    assert status == 0
    assert out.startswith("apg(scale, eta=0, ")
    equation = "\n    D\N{COMBINING TILDE} = D_c + (s - 1) (d_⊥ + η d_∥),\n"
    for part in ("Adaptive projected", equation, "radius:", "Evaluations a step: 2", "Examples:", "2410.02416"):
        assert part in out, part
    assert ">>>" not in out
    from guidestack.scripts.rules import page

    for entry in rules():
        text = page(entry)
        assert text.startswith(entry.signature)
        told = text.partition("\nEvaluations a step: ")[0]  # behind it are examples and BibTeX
        assert re.findall(r"\\|:[a-z]+:`|\.\. [a-z]+::|``|\*\*", told) == [], entry.name
    told = json.loads(command("rules", "cfg", "--json")[1])["rules"]
    assert [one["name"] for one in told] == ["cfg"]
    assert told[0]["about"].startswith(told[0]["summary"])


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\tilde D = \frac{a + b}{c}\,d", "D̃ = ((a + b) / c) d"),
        (r"\big(\frac{a}{b_t}\big)^2 \tfrac12\Big(x\Big)", "(a / b_t)^2 1/2 (x)"),
        (r"\sqrt{1 - \bar\alpha_{t-1}}\;z", "√(1 - ᾱ_(t-1)) z"),
        (r"\lVert x\rVert \cos\gamma \le \log p", "‖x‖ cos γ ≤ log p"),
        (r"x\ \text{if } y \in \{0, 1\}, N_{recur}^{(i)}", "x if y ∈ {0, 1}, N_recur^(i)"),
        (r"\unknown{x}", "unknownx"),
    ],
)
def test_what_formulas_become(latex: str, text: str) -> None:
    text = normalize("NFC", text)
    assert plain(f"so :math:`{latex}`.") == f"so {text}."
    block = f".. math::\n    y &= {latex} \\\\\n    &+ 1"
    assert plain(f"It is\n\n{block}\n\nas") == f"It is\n\n    y = {text}\n    + 1\n\nas"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CFG"], "there is no rule 'CFG'; did you mean 'cfg'?"),
        (["apgg"], "there is no rule 'apgg'; did you mean 'apg'?"),
        (["--picture", "x.png"], "--picture is of one rule; name it"),
        (["cfg", "--presets"], "NAME and --picture are for one rule"),
        (["cfg", "--picture", "x.jpg"], "its name ends in .png"),
    ],
)
def test_what_is_no_rule(command: Any, arguments: list[str], message: str) -> None:
    status, _, err = command("rules", *arguments)
    assert (status, message in err) == (2, True), err


def test_a_picture_of_a_rule(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidestack.scripts.rules.STEPS", 2)
    status, _, err = command("rules", "apg", "--picture", tmp_path / "apg.png")
    assert status == 0, err
    with Image.open(tmp_path / "apg.png") as image:
        assert image.width > 3 * 128
        assert image.height > 2 * 128


@pytest.mark.parametrize(
    ("words", "found"),
    [("guidestack ge", {"generate"}), ("guidestack generate --control", {"--control", "--controlnet"})],
)
def test_words_complete_without_torch(words: str, found: set[str]) -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['guidestack']\n"
    code += "from guidestack.scripts.cli import main; main()"
    given = {"_GUIDESTACK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == found, done.stderr


def test_the_help_of_generate_does_not_load_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['guidestack', 'generate', '--help']\n"
    code += "from guidestack.scripts.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "--axis NAME=VALUES" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    {
        "cfg": "2",
        "momentum": "0 more",
        "perpneg": "3, 1 more for each further negative, 1 more for each further positive",
        "classifier_reference": "at most 2 to 3",
        "tfg": "0 more, up to 1 with a backward pass",
    }.items(),
)
def test_what_a_rule_costs_is_counted_from_its_examples(name: str, told: str) -> None:
    assert cost(entry_of(name)) == told
