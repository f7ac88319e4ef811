"""Rules of one's own: in a Python file that the user names, or in an installed package.

Importing either runs it. A file is therefore imported only where the user names it himself: on the command line
(``--rules``), in a sweep that he runs (``rules:``), or to `load_rules`. A file that an image, a preset or a model's
folder names is never imported, and a report imports none by itself. Packages are those that the user has installed;
their modules are imported when the rules are listed, or when a name is not known without them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import GuidestackError, InputError, cut, reason, warn
from ..reading import read_bytes
from ..rule import Rule
from .registry import _ENTRIES, OTHERS, RUNNING, Source, rules

T = TypeVar("T")
GROUP = "guidestack.rules"
"""The entry-point group of installed packages; each entry point names a module whose import registers rules."""
MAX_BYTES = 1_000_000  # bytes of a rules file
_LOCK = threading.RLock()  # one import at a time, which may ask for the list of rules itself
_looked = False  # whether installed packages have been imported


def load_rules(path: str | Path) -> Source:
    """Import a Python file that registers rules, metrics or records of pipelines.

    Their names are then known in text, YAML and commands. A file is imported once: the same contents again do nothing,
    also under another path. A file that has changed since replaces the rules that it registered before.

    Args:
        path: path of the file, which ends in ``.py``. It is imported by itself: its folder does not get onto
            ``sys.path``.

    Returns:
        The file with the digest of its contents, which tells samples apart that were made with different versions.

    Raises:
        InputError: the file cannot be read, has another ending, raises an exception, registers nothing, or takes a name
            that is taken. No rule is registered then.
    """
    if Path(path).suffix != ".py":
        raise InputError(f"a rules file is a Python file, whose name ends in .py; got {cut(repr(str(path)), 300)}")
    data = read_bytes(path, "rules file", MAX_BYTES)
    file = Source(Path(path).resolve(), hashlib.sha256(data).hexdigest()[:16])
    with _LOCK:
        rules()  # those of packages first: whose name is taken does not depend on the order
        if same := next((one for one in loaded_files() if one.digest == file.digest), None):
            return same
        if _module_name(file) in OTHERS:
            return file
        with _undone_on_error(_ENTRIES) as before:
            for name, entry in before.items():
                if entry.source is not None and entry.source.path == file.path:
                    del _ENTRIES[name]
            with _module(file) as module:
                _execute(file, data, module)
                new = {name: entry for name, entry in _ENTRIES.items() if entry is not before.get(name)}
                if not new and module.__name__ not in OTHERS:
                    raise InputError(f"{_called(file)} registers no rule; decorate the class of a rule with @register")
            _ENTRIES.update({name: dataclasses.replace(entry, source=file) for name, entry in new.items()})
    return file


def loaded_files() -> tuple[Source, ...]:
    """The files that rules were imported from, in the order of their import."""
    return tuple(dict.fromkeys(entry.source for entry in _ENTRIES.values() if entry.source is not None))


def files_of(stack: Rule) -> tuple[Source, ...]:
    """The files that the rules of `stack` were imported from, sorted; none for a stack of other rules."""
    kinds = {type(part) for part in stack.parts()}
    found = {entry.source for entry in _ENTRIES.values() if entry.source is not None and entry.rule in kinds}
    return tuple(sorted(found, key=lambda file: (file.name, file.digest)))


def load_installed() -> None:
    """Import the rules of installed packages, once a process; one that cannot be imported is a warning."""
    global _looked
    with _LOCK:
        if _looked:
            return
        _looked = True  # before the first import: a module that lists the rules comes here again
        imported(GROUP, "rules", _ENTRIES)


def imported(group: str, what: str, registered: dict[str, Any]) -> dict[str, str]:
    """Import what installed packages bring; one that cannot be imported is a warning.

    Args:
        group: of entry points.
        what: they bring, for messages.
        registered: where what is imported registers itself by name.

    Returns:
        Those that cannot, by the name of their entry point, with why.
    """
    failed: dict[str, str] = {}
    for point in importlib.metadata.entry_points(group=group):
        try:
            with _undone_on_error(registered):
                point.load()
        except (Exception, SystemExit) as error:  # of whatever kind: the package is not ours
            failed[point.name] = f"importing {point.value} raises {_message_of(error)}"
            package = point.dist.name if point.dist else point.name
            warn(f"the {what} of the package {package} are left out, since {failed[point.name]}; update or remove it")
    return failed


@contextmanager
def _undone_on_error(registered: dict[str, T]) -> Iterator[Mapping[str, T]]:
    """Restore what was registered before the block, if an error ends it."""
    before = dict(registered)
    try:
        yield before
    except BaseException:
        registered.clear()
        registered.update(before)
        raise


@contextmanager
def _module(file: Source) -> Iterator[types.ModuleType]:
    """A module for the file, where dataclasses and pickle look for it; it goes after an error in the block."""
    module = types.ModuleType(_module_name(file))
    module.__file__ = str(file.path)
    sys.modules[module.__name__] = module
    try:
        yield module
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _execute(file: Source, data: bytes, module: types.ModuleType) -> None:
    """Run a rules file: what was hashed is what runs, and no bytecode is written.

    Raises:
        InputError: it raises an exception.
    """
    RUNNING.append(module.__name__)
    try:
        exec(compile(data, str(file.path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        line = _line(error, str(file.path))
        at = f", line {line}" if line else ""
        raise InputError(f"{_called(file)} cannot be imported{at}: {_message_of(error)}") from error
    finally:
        RUNNING.pop()


def _module_name(file: Source) -> str:
    return f"guidestack_rules_{file.digest}"


def _called(file: Source) -> str:
    return f"the rules file {cut(repr(str(file.path)), 300)}"


def _message_of(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else reason(error)
    return text if isinstance(error, GuidestackError) else f"{type(error).__name__}: {text}"


def _line(error: BaseException, path: str) -> int | None:
    """The last line of the file at `path` that ran before the error, or that cannot be read."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else None
