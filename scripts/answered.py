"""Results of ``guidestack generate`` in a folder: the same command again ends at once, without importing torch.

``OUT/.answered.json`` has the names of the images for each question. A question is everything that the images depend
on: the options, the files and folders that these name, guidestack itself, and the machine, which chooses the device. If
anything differs it is another question, for which the command runs. The file records only that images exist.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..guidance.errors import InputError
from ..guidance.files import write_whole
from ..guidance.reading import json_of, read_bytes
from .wanted import Wanted

FILE = ".answered.json"
MOST = 100  # questions of a folder; the oldest go
LARGEST = 50_000_000  # bytes of the file
PACKAGE = Path(__file__).parents[1]
OURS = ("configs", "guidance", "pipelines", "samplers", "scripts")
"""The folders of the package that decide what an image is."""
NAMING = (
    *(
        "prompts_from",
        "guidance",
        "model",
        "networks",
        "objectives",
        "lora",
        "controlnet",
        "control",
        "ip_adapter",
        "ip_image",
    ),
    *("vae", "scheduler_config", "image", "mask"),
)
"""The options that name files or folders."""
NOWHERE = ("out", "overwrite", "batch", "given", "allow_pickle", "offload")
"""The options that decide no image."""


def question(wanted: Wanted) -> str | None:
    """Return a digest of everything that the images depend on; None if the command's result is more than images."""
    if wanted.overwrite or wanted.grid or wanted.axis or wanted.like or wanted.prompts_from == "-":
        return None
    options = {name: value for name, value in dataclasses.asdict(wanted).items() if name not in NOWHERE}
    steps = "steps" in wanted.given
    stamps = [stamp for name in NAMING for text in _texts(options[name]) for stamp in _stamps(text)]
    stamps += [stamp for name in OURS for stamp in _stamp(PACKAGE / name)]
    versions = [importlib.metadata.version(name) for name in ("torch", "diffusers")]
    machine = [platform.node(), {name: value for name, value in os.environ.items() if name.endswith("VISIBLE_DEVICES")}]
    told = [options, steps, stamps, versions, machine]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def answer(wanted: Wanted, asked: str | None) -> int | None:
    """Return how many images a question has, if all of them exist; None if one is missing."""
    names = _read(wanted.out).get(asked) if asked else None
    if not names or not all((wanted.out / name).is_file() for name in names):
        return None
    return len(names)


def keep(wanted: Wanted, asked: str | None, names: Sequence[str]) -> None:
    """Remember the images that answer a question. A folder that cannot be written to is left as it is."""
    if asked is None:
        return
    kept = {key: value for key, value in _read(wanted.out).items() if key != asked}
    told = dict([*kept.items(), (asked, list(names))][-MOST:])
    with suppress(OSError):
        write_whole(wanted.out / FILE, json.dumps(told), make_folder=False)


def _read(folder: Path) -> dict[str, list[str]]:
    """The answers of a folder; none where there is no such file, or one of somebody else's making."""
    try:
        found = json_of(read_bytes(folder / FILE, "answers", LARGEST))
    except (InputError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: names for key, names in pairs if isinstance(names, list) and all(map(_is_name, names))}


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) < 256 and not set("/\\\0") & set(name)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str | Path):
        yield str(value)


def _stamps(text: str) -> Iterator[tuple[str, int, int]]:
    """Return the stamps of the files that a text names: a path, ``@PATH`` of a preset, ``PATH=SCALE`` of a part."""
    for path in sorted({text, text.removeprefix("@"), text.rpartition("=")[0]}):
        if path and len(path) < 4096 and "\0" not in path:
            yield from _stamp(Path(path))


def _stamp(path: Path) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of a file, or of the files of a folder; nothing where there is none."""
    try:
        if path.is_dir():
            for one in sorted(path.iterdir()):
                if one.name != "__pycache__":
                    yield from _stamp(one)
        elif path.is_file():
            about = path.stat()
            yield str(path), about.st_size, about.st_mtime_ns
    except OSError:  # a name that no system has
        return
