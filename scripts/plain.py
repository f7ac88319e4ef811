r"""Docstrings as plain text for a terminal or a tooltip: LaTeX becomes symbols, other marks are dropped.

>>> print(plain(r"The share :math:`\tfrac12\, \hat D_{t-1}` of ``x``."))
The share 1/2 D̂_(t-1) of `x`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from unicodedata import normalize

GREEK = "alpha beta gamma delta epsilon eta theta lambda mu pi rho sigma tau phi Delta Sigma"
SYMBOLS = dict(zip(GREEK.split(), "αβγδεηθλμπρστφΔΣ", strict=True)) | {
    **{"nabla": "∇", "sum": "∑", "prod": "∏", "perp": "⊥", "parallel": "∥", "mid": "|", "dots": "...", "sim": "~"},
    **{"le": "≤", "ge": "≥", "in": "∈", "to": "→", "leftarrow": "←", "cdot": "·", "times": "×"},
    **{"langle": "⟨", "rangle": "⟩", "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|"},
    **{"lfloor": "⌊", "rfloor": "⌋", "quad": "   ", "qquad": "   ", "\\": "\n"},
    **dict.fromkeys((",", ";", ":", " "), " "),
    **dict.fromkeys(["big", "Big", "left", "right", "textstyle", "!"], ""),
}
ACCENTS = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304"}  # combining: they stand behind their letter
UPRIGHT = ("mathrm", "text", "operatorname")
FUNCTIONS = "min max log exp sin cos"
TOKEN = re.compile(r"\\(?:lVert|langle|nabla|sum) *|\\[a-zA-Z]+|\\.|\s|.", re.DOTALL)


def plain(text: str) -> str:
    """A docstring as plain text: what it says as mathematics is written in symbols, one line a line."""
    text = re.sub(r"^( *)\.\. math::(.*(?:\n\1 +.*)*)", _block, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda found: _formula(found[1].replace("\n", " ")), text)
    return re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text.replace("``", "`"))


def _block(found: re.Match[str]) -> str:
    lines = (line.strip() for line in _formula(found[2].replace("&", "")).splitlines())
    return textwrap.indent("\n".join(filter(None, lines)), found[1] + "    ")


def _formula(latex: str) -> str:
    told = _terms(iter(TOKEN.findall(latex)))
    told = re.sub(r"\(\(([^()]*)\)\)", r"(\1)", told)  # a fraction that stands in brackets already
    told = re.sub(r"([0-9]/[0-9])(?=\(|[^\W\d_])", r"\1 ", told)
    told = re.sub(rf"\b({FUNCTIONS.replace(' ', '|')})(?=[^\W\d_])", r"\1 ", told)
    return re.sub(r" +", lambda gap: "   " if len(gap[0]) > 2 else " ", normalize("NFC", told)).strip()


def _terms(tokens: Iterator[str]) -> str:
    """What tokens say, up to the bracket that closes their group."""
    told = ""
    for token in tokens:
        if token == "}":
            break
        told += _term(token, tokens)
    return told


def _term(token: str, tokens: Iterator[str]) -> str:
    """What a token says, with those behind it that are its arguments."""
    name = (token[1:].rstrip() or " ") if token.startswith("\\") else ""
    if token == "{":
        return _terms(tokens)
    if token in ("^", "_"):
        told = _argument(tokens)
        return token + (told if len(told) == 1 else _whole(told, "[^\\W_]*"))
    if name in UPRIGHT:
        return _term(next(tokens, ""), tokens)
    if name in ("frac", "tfrac"):
        above, below = _argument(tokens), _argument(tokens)
        return f"{above}/{below}" if (above + below).isdigit() else f"({_whole(above)} / {_whole(below)})"
    if name == "sqrt":
        return "√" + _whole(_argument(tokens))
    if name in ACCENTS:
        letter = _argument(tokens)
        return letter[:1] + ACCENTS[name] + letter[1:]
    return SYMBOLS.get(name, name) if name else token


def _argument(tokens: Iterator[str]) -> str:
    """What the next token says that is no blank."""
    token = next((one for one in tokens if not one.isspace()), "")
    return _term(token, tokens).strip()


def _whole(told: str, one: str = r"\w*") -> str:
    """What is said, in brackets where it is more than `one` name or number: a mark beside it is of all of it."""
    inner = re.sub(r"[\u0300-\u036f']", "", told)  # accents and primes
    rest = inner
    while (fewer := re.sub(r"\([^()]*\)|⟨[^⟨⟩]*⟩|‖[^‖]*‖", "x", rest)) != rest:
        rest = fewer
    return told if re.fullmatch(one, rest) else f"({told})"
