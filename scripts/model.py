"""Loading the model a user names: a folder or a hub id, safetensors only."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..guidance.errors import GuidestackWarning, InputError, UnsupportedPipelineError
from ..guidance.hub import reachable, why
from ..guidance.pretrained import SUBFOLDER
from ..pipelines import guide as guide  # its import enters the family records
from ..pipelines.bundled import EMOJI
from ..pipelines.family import FAMILIES
from ..pipelines.nearest import nearest_records

PICKLES = ("*.bin", "*.pt", "*.ckpt", "*.pth", "*.pkl")


@contextmanager
def notices() -> Iterator[None]:
    """Show guidestack's own warnings, one line each and once, and keep the libraries' off the terminal."""

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("once", category=GuidestackWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def quiet() -> None:
    """Keep the libraries' own log lines and progress bars off the terminal."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that cannot be used, before a model is loaded.

    Raises:
        InputError: it cannot.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _index(folder: Path) -> dict[str, Any]:
    """What a model folder says it has; ``_class_name`` is a string.

    Raises:
        InputError: it is no model folder.
    """
    index = folder / "model_index.json"
    if not folder.is_dir() or not index.is_file():
        lacks = "it has no model_index.json" if folder.is_dir() else "there is no such folder here"
        raise InputError(
            f"no model at {str(folder)!r}: {lacks}; expected a folder that save_pretrained wrote, or the id of a model "
            "on the hub"
        )
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        components = None
    if not isinstance(components, dict) or not isinstance(components.get("_class_name"), str):
        raise InputError(f"{index} is no model index: expected JSON with '_class_name'")
    return components


def class_of(folder: Path) -> str:
    """The pipeline class of a model folder.

    Raises:
        InputError: it is no model folder.
    """
    return str(_index(folder)["_class_name"])


def components_of(folder: Path) -> list[str]:
    """The names of the components of a model folder.

    Raises:
        InputError: it is no model folder.
    """
    return [name for name in _index(folder) if not name.startswith("_")]


def pipeline_class(name: str) -> type | None:
    """The class of diffusers of that name, if there is one."""
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) else None


def check_folder(folder: Path, allow_pickle: bool = False, doctored: bool = False) -> str:
    """The pipeline class of a model folder.

    Args:
        folder: the folder.
        allow_pickle: whether weights may be pickles.
        doctored: whether a pipeline will do that takes no prompts, or has no record.

    Raises:
        InputError: it is missing or incomplete, or holds pickles only.
        UnsupportedPipelineError: no family record for its class.
    """
    components = _index(folder)
    name = components["_class_name"]
    if not doctored:
        _check_class(folder, name)
    for part, kind in components.items():
        if part.startswith("_") or not isinstance(kind, list) or kind[0] is None:
            continue
        if not (folder / part).is_dir():
            raise InputError(f"the model at {folder} is incomplete: no folder {part!r}")
        weights = not part.endswith(("scheduler", "tokenizer", "feature_extractor"))
        if weights and not any((folder / part).glob("*.safetensors")):
            if any(file for pattern in PICKLES for file in (folder / part).glob(pattern)):
                if not allow_pickle:
                    raise InputError(
                        f"{folder / part} holds pickles only, which can run code when they are loaded; convert them to "
                        "safetensors, or pass --allow-pickle if you trust them"
                    )
            else:
                raise InputError(f"the model at {folder} is incomplete: no weights in {part!r}")
    return str(name)


def _check_class(folder: Path, name: str) -> None:
    if name not in FAMILIES:
        nearest = nearest_records(name, pipeline_class(name), components_of(folder))
        raise UnsupportedPipelineError(
            f"{folder} holds a {name}, for which there is no family record; {nearest[0]} and {nearest[1]} are nearest. "
            f"`guidestack doctor {folder}` says how to enter a copy with register_family, in Python"
        )
    if FAMILIES[name].encode is None:
        raise UnsupportedPipelineError(
            f"{folder} holds a {name}, which takes no prompts; guidestack.guide() guides it from Python"
        )


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change with the model: every file's name and size, and the ends of its contents.

    A stack that is stored beside it is not the model.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.parent == folder / SUBFOLDER:
            continue
        if path.suffix in {".json", ".safetensors", ".txt", ".bin"} and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 16))
                file.seek(max(0, size - (1 << 16)))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def load(
    name: str | None, dtype: Any, device: str, allow_pickle: bool = False, doctored: bool = False
) -> tuple[Any, dict[str, str]]:
    """The pipeline, and what identifies the model: its name and, of a folder, its fingerprint.

    Args:
        name: a folder or a hub id; None for the bundled model.
        dtype: type of the weights.
        device: where to put it.
        allow_pickle: load weights that are not safetensors.
        doctored: also load a pipeline that takes no prompts, or has no record.

    Raises:
        InputError: the model cannot be loaded.
        UnsupportedPipelineError: no family record for it.
    """
    quiet()
    from diffusers import DiffusionPipeline

    source = EMOJI if name is None else Path(name)
    local = name is None or source.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if local:
        check_folder(source, allow_pickle, doctored)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    asked = not local and reachable(str(name))
    try:
        pipe = DiffusionPipeline.from_pretrained(source if local else name, local_files_only=not asked, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0] if local else why(error, asked)
        raise InputError(f"cannot load the model {str(name or EMOJI)!r}: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    identity = {"name": "bundled" if name is None else str(name)}
    if local:
        identity["fingerprint"] = fingerprint(source)
    return pipe.to(device), identity
