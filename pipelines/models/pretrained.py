"""A stack stored beside a model: ``guidance.yaml`` in its folder, on a disk or on the hub.

The file is a preset's: a comment, and the one key ``rules``. Files that its rules read, such as the coefficients of
`LinearAG`, travel along in a subfolder, named by a path relative to the model's; nothing else of a disk can be named.
Files are anybody's: YAML of plain values, and what a rule reads (safetensors, never pickles).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ...guidance.errors import InputError, reason, shown
from ...guidance.fields import parameters
from ...guidance.files import RuleFile, write_whole
from ...guidance.notation.config import to_config
from ...guidance.notation.presets import as_stack, mapping_of, stack_in
from ...guidance.reading import exists, is_folder
from ...guidance.rule import Rule, Stack
from .hub import reachable, why

NAME = "guidance.yaml"
SUBFOLDER = "guidance"
"""Where coefficients are: they are not the model's, whose fingerprint leaves them out."""


def save_pretrained(stack: Rule | str | Mapping[str, Any], folder: str | Path) -> Path:
    """Store a stack beside a model, as ``guidance.yaml`` in its folder.

    Args:
        stack: a stack, a rule, or the text or mapping of one. Files of coefficients that it names are copied into
            ``guidance/`` and named by that path.
        folder: the model's folder, such as a pipeline's ``save_pretrained`` wrote; it is made if it does not exist. A
            stack in it is replaced.

    Returns:
        The path of the file.

    Raises:
        InputError: the folder cannot be written, or a file of coefficients cannot be read.
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    >>> import tempfile
    >>> from guidestack import CFG, Rescale
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(save_pretrained(CFG(7.5) | Rescale(0.7), folder).read_text().splitlines()[0])
    ...     print(from_pretrained(folder))
    # cfg(7.5) | rescale(0.7)
    cfg(7.5) | rescale(0.7)
    """
    stack, folder = as_stack(stack), Path(folder)
    copied: dict[str, bytes] = {}

    def keep(_: str, file: RuleFile) -> str:
        file.read(file.path)  # refuses a file of another kind
        data = file.path.read_bytes()
        if copied.setdefault(file.path.name, data) != data:
            raise InputError(f"two files that the stack reads are called {file.path.name!r}; rename one of them")
        return str(PurePosixPath(SUBFOLDER) / file.path.name)

    mapping = to_config(_with_files(stack, keep))
    for name, data in copied.items():
        _write(folder / SUBFOLDER / name, data)
    head = "".join(f"# {line}\n" for line in str(stack).splitlines())
    _write(folder / NAME, (head + yaml.safe_dump(mapping, sort_keys=False)).encode())
    return folder / NAME


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Stack:
    """Load the stack that is stored beside a model, in its folder or on the hub.

    Args:
        name: the model's folder, or its id on the hub; what exists on the disk is a folder.
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept, as in huggingface_hub.
        local_files_only: read what was downloaded before, and nothing else.
        token: for private models, as in huggingface_hub.

    Raises:
        InputError: there is no such folder, model or file, the file is not YAML, or a file of coefficients cannot be
            read or lies outside of the folder.
        StackSyntaxError, RuleError: the file does not hold a stack.

    Cost: on the hub, a download of the stack's files; no weights.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"no such folder {shown(str(name))}: there is no such user") from None
    if exists(folder) or str(name).startswith((".", "/", "~")) or str(name).count("/") != 1:
        if not is_folder(folder):
            raise InputError(
                f"no such folder {str(folder)!r} with {NAME}, and no id of a model on the hub (owner/name)"
            )
        return _stack_in(lambda part: _local(folder, part), str(folder))

    asked = not local_files_only and reachable(str(name), token)

    def download(part: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            options = {"revision": revision, "cache_dir": cache_dir, "token": token}
            return Path(hf_hub_download(str(name), part, local_files_only=not asked, **options))  # type: ignore[arg-type]
        except (EntryNotFoundError, OSError, ValueError) as error:
            raise InputError(f"cannot get {part} of {str(name)!r} from the hub: {why(error, asked)}") from error

    return _stack_in(download, str(name))


def stored_beside(folder: Path) -> bool:
    """Whether a model's folder has a stack."""
    return exists(folder / NAME)


def _local(folder: Path, part: str) -> Path:
    """The path of a file in a folder.

    Raises:
        InputError: there is none, or a link leads out.
    """
    path = folder / part
    if not exists(path):
        raise InputError(f"no {part} in {str(folder)!r}; guidestack.save_pretrained(stack, folder) writes {NAME}")
    root, found = folder.resolve(), path.resolve()
    # A folder of the hub's cache consists of links to the model's blobs.
    roots = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(found.is_relative_to(one) for one in roots):
        raise InputError(f"{part} in {str(folder)!r} is a link that leads out of the folder; copy the file there")
    return path


def _stack_in(find: Callable[[str], Path], where: str) -> Stack:
    mapping = mapping_of(find(NAME), "stack")

    def place(name: str, file: RuleFile) -> str:
        part = PurePosixPath(name)
        if part.is_absolute() or ".." in part.parts or "\\" in name or ":" in name:
            raise InputError(
                f"{NAME} of {where!r} names the file {name!r}, which is not in the model's folder; "
                "guidestack.save_pretrained copies it there"
            )
        path = find(str(part))
        file.read(path)
        return str(path)

    return Stack(_with_files(stack_in(mapping, f"{NAME} of {where!r}"), place))


def _with_files(value: Any, change: Callable[[str, RuleFile], str]) -> Any:
    """A rule and the rules inside it with other names of the files that the user gave; what is no rule as it is.

    Args:
        value: a rule, or the value of a rule's parameter.
        change: makes the new name of a file from the old one.
    """
    if isinstance(value, tuple):
        return tuple(_with_files(one, change) for one in value)
    if not isinstance(value, Rule):
        return value
    if isinstance(value, Stack):
        return Stack(*_with_files(value.rules, change))
    own = {field.name: _with_files(getattr(value, field.name), change) for field in parameters(value)}
    files = {name: change(own[name], file) for name, file in value.files().items() if not file.bundled}
    return type(value)(**own | files)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: the folder, the rights, a full disk.
    """
    try:
        write_whole(path, data)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {shown(str(path))}: {reason(error)}; choose another folder") from error
