"""The prompts of a sweep: written in it, in a file, drawn for the bundled model, or classes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...guidance.errors import InputError, shown
from ..values import BOUNDS, check_plain, is_text, meant

SUFFIXES = (".txt", ".jsonl", ".csv")
KEYS = ("prompt", "negative", "extra", "class", "labels")
LARGEST_CLASS = 10**6
MAX_PROMPTS = 1_000_000  # prompts of a file


@dataclass(frozen=True)
class Prompt:
    """What one image is asked to show.

    Args:
        text: the prompt, or the number of its class.
        negative: the negative prompt, or ""; under Perp-Neg several, with ``|`` between them.
        extra: under Perp-Neg, positives beside the prompt, likewise.
        class_id: of a class-conditional model; None for a text.
        labels: what the picture is to show, by kind, for metrics that check it.
    """

    text: str
    negative: str = ""
    extra: str = ""
    class_id: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    def as_plain(self) -> str | dict[str, Any]:
        """The prompt as a sweep or a file of JSON Lines has it: a text, or a mapping."""
        whole: dict[str, Any] = {"prompt": self.text} if self.class_id is None else {"class": self.class_id}
        whole |= {"negative": self.negative} if self.negative else {}
        whole |= {"extra": self.extra} if self.extra else {}
        whole |= {"labels": dict(self.labels)} if self.labels else {}
        return self.text if list(whole) == ["prompt"] else whole


def prompt_of(value: Any, where: str) -> Prompt:
    """A prompt as it is written: a text, or a mapping with some of `KEYS`.

    Args:
        value: that.
        where: it stands, for messages.

    Raises:
        InputError: another form.
    """
    check_plain(value, where)
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a prompt is a text or a mapping with 'prompt'; got {shown(value)}")
    if unknown := [key for key in value if key not in KEYS]:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}{_meant(str(unknown[0]), KEYS)}")
    if ("prompt" in value) == ("class" in value):
        raise InputError(f"{where}: give 'prompt' or 'class', one of the two")
    class_id = value.get("class")
    if "class" in value and (type(class_id) is not int or not 0 <= class_id < LARGEST_CLASS):
        raise InputError(f"{where}: a class is a whole number, 0 or more; got {shown(class_id)}")
    text = str(class_id) if "class" in value else value["prompt"]
    if not is_text(text):
        raise InputError(f"{where}: a prompt is a text of {BOUNDS}; got {shown(text)}")
    labels = value.get("labels") or {}
    if not isinstance(labels, Mapping) or not all(
        isinstance(key, str) and key.isidentifier() and isinstance(label, str) for key, label in labels.items()
    ):
        raise InputError(f"{where}: labels must be a mapping of names to texts; got {shown(labels)}")
    negative, extra = (_bars(value.get(key), key, where) for key in ("negative", "extra"))
    return Prompt(text, negative, extra, class_id, dict(labels))


def _bars(value: Any, key: str, where: str) -> str:
    """A text, or several with ``|`` between them."""
    if value is None:
        return ""
    texts = value if isinstance(value, list | tuple) else [value]
    if not all(map(is_text, texts)):
        raise InputError(f"{where}: {key} must be a text or a list of texts, of {BOUNDS}; got {shown(value)}")
    return " | ".join(texts)


def parse_prompts(data: bytes, name: str) -> list[Prompt]:
    """The prompts in a file: ``.txt``, one a line; ``.jsonl``, a text or a mapping a line; ``.csv`` with a header.

    A CSV file has the column ``prompt`` or ``class``, and may have ``negative``, ``extra`` and ``label.NAME``.

    Args:
        data: its contents.
        name: its name, for its kind and for messages.

    Raises:
        InputError: a line cannot be read (its number), or there is no prompt.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    reader = {".txt": _lines, ".jsonl": _json_lines, ".csv": _csv}.get(name[name.rfind(".") :].lower())
    if reader is None:
        raise InputError(f"prompts come from {', '.join(SUFFIXES)} files; got {shown(name)}")
    name = name if len(name) <= 60 else shown(name)
    lines = itertools.islice(reader(text, name), MAX_PROMPTS + 1)
    prompts = [prompt_of(value, f"{name} line {line}") for line, value in lines]
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"{name} has more than {MAX_PROMPTS} prompts; take it apart")
    if not prompts:
        raise InputError(f"{name} has no prompts")
    return prompts


def _lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{name} line {number}: not JSON: {error.msg}, at character {error.pos + 1}"
                ) from error
            except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
                raise InputError(f"{name} line {number}: not JSON that can be read: {error}") from error


def _csv(text: str, name: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if not header:
                header = _checked_header([cell.strip() for cell in row], name)
                continue
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{name} line {reader.line_num}: {len(row)} fields, and the header has {len(header)}; put a text "
                    "with commas into quotes"
                )
            yield reader.line_num, _csv_value(dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num}: {error}") from error


def _checked_header(header: list[str], name: str) -> list[str]:
    known = [key for key in KEYS if key != "labels"]
    for column in header:
        if column not in known and not column.startswith("label."):
            raise InputError(f"{name} line 1: unknown column {shown(column)}{_meant(column, [*known, 'label.NAME'])}")
    if len(set(header)) < len(header):
        raise InputError(f"{name} line 1: a column comes twice: {', '.join(header)}")
    return header


def _meant(name: str, valid: Collection[str]) -> str:
    """As `meant`, also for what others call a prompt."""
    if name.lower() in ("text", "texts", "caption", "captions", "description"):
        return f"; did you mean 'prompt'? Allowed: {', '.join(valid)}"
    return meant(name, valid)


def _csv_value(row: Mapping[str, str]) -> dict[str, Any]:
    value: dict[str, Any] = {key: cell for key, cell in row.items() if not key.startswith("label.")}
    if re.fullmatch(r"\s*[0-9]{1,18}\s*", number := value.get("class", "")):
        value["class"] = int(number)
    labels = {key.removeprefix("label."): cell for key, cell in row.items() if key.startswith("label.") and cell}
    return value | ({"labels": labels} if labels else {})


def bundled(count: int, seed: int) -> list[Prompt]:
    """Prompts for the bundled model with what they ask for, as its quality was measured; a prefix of any longer list.

    Args:
        count: of the prompts.
        seed: the same one draws the same prompts.
    """
    from ..emoji.vocabulary import drawn_requests, labels

    return [
        Prompt(one.prompt, labels={"concept": one.slug, "style": one.style, "background": one.background})
        for one in drawn_requests(labels(), count, seed)
    ]


def written_prompt(prompt: Prompt) -> bytes:
    """The part of a prompt that decides the image, as bytes for addresses."""
    return stable_bytes([prompt.text, prompt.negative, prompt.extra, prompt.class_id])


def stable_bytes(value: Any) -> bytes:
    """Plain values as bytes that are the same wherever they are made: what hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
