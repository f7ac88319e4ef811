"""A folder at any fsspec address, in which files are there and whole, or not there."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from ...guidance.errors import GuidestackError, InputError, reason, shown
from ...guidance.files import replacing
from ..values import check_plain, file

T = TypeVar("T")

AT_ONCE = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "cos", "r2"})
"""Protocols whose stores show an object when all of it has arrived; elsewhere a file is written beside and renamed."""

PATIENCE = 120.0  # seconds; a network share that vanishes for a minute comes back within that
PERMANENT = frozenset(
    getattr(errno, name)
    for name in ("EROFS", "EACCES", "EPERM", "ENAMETOOLONG", "EISDIR", "ENOTDIR", "EFBIG", "EINVAL", "ENOSPC", "EDQUOT")
    if hasattr(errno, name)
)
"""What waiting does not mend. A full disk is one: whoever waits for room holds a machine."""
FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
REQUIRED = object()  # of a file whose absence is an error


class Location:
    """A folder at an fsspec address.

    Args:
        address: a path, or an address such as ``s3://bucket/folder`` or ``memory://folder``.
        patience: seconds for which an operation that fails is tried again, as on a share that is away for a while.

    Raises:
        InputError: no such protocol, or its package is not installed.
    """

    def __init__(self, address: str | Path, patience: float = PATIENCE) -> None:
        self.address, self.patience = str(address), patience
        check_plain(self.address, "the location")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address)
        except Exception as error:  # every file system has its own errors
            raise InputError(f"cannot use the location {shown(self.address)}: {reason(error)}") from error
        protocol = self.fs.protocol
        self.protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.local = bool(self.protocols & {"file", "local"})
        if self.local:
            file(self.root, "the location")
        self._made: set[str] = set()
        self._seen: int | None = None  # the device of the folder, once it has been there: only then can it have gone

    def __str__(self) -> str:
        return self.address

    @property
    def folder(self) -> Path | None:
        """The folder, if it is on this machine."""
        return Path(self.root) if self.local else None

    def path(self, relative: str) -> str:
        """The whole path of a file of the folder.

        Raises:
            InputError: it would leave the folder.
        """
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative or not pure.parts:
            raise InputError(f"{relative!r} is no path inside of {self.address}")
        return f"{self.root.rstrip('/')}/{pure}"

    def check(self) -> None:
        """Check that no file of this machine is in the folder's place.

        Raises:
            InputError: one is.
        """
        if self.local and Path(self.root).exists() and not Path(self.root).is_dir():
            raise InputError(f"{self.address} is a file; give a folder")

    def create(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made, or a file is in its place.
        """
        self.check()
        self._patiently(lambda: self.fs.makedirs(self.root, exist_ok=True), "make", "the folder")
        self._here()

    def exists(self, relative: str = "") -> bool:
        """Whether the file, or the folder itself, is there."""
        path = self.path(relative) if relative else self.root
        return bool(self._patiently(lambda: self._fresh().exists(path), "look into", relative))

    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a folder, sorted; none where it is not there."""
        path = self.path(folder)
        found = self._patiently(lambda: self._fresh().ls(path, detail=False), "list", folder, absent=[])
        names = (one.rstrip("/").rsplit("/", 1)[-1] for one in found)
        return sorted(name for name in names if not name.startswith("."))

    def read(self, relative: str) -> bytes:
        """The contents of a file.

        Raises:
            FileNotFoundError: it is not there.
            InputError: it cannot be read.
        """
        return bytes(self._found(self.fs.cat_file, relative))

    def open(self, relative: str) -> Any:
        """A file to read from.

        Raises:
            FileNotFoundError: it is not there.
            InputError: it cannot be read.
        """
        return self._found(lambda path: self.fs.open(path, "rb"), relative)

    def write(self, relative: str, data: bytes) -> None:
        """Write a file: it is there with these contents, or as it was before.

        Raises:
            InputError: it cannot be written.
        """
        path = self.path(relative)

        def write() -> None:
            self._make_parent(path)
            if self.local:
                _write_local(Path(path), data)
            elif self.protocols & AT_ONCE:
                self.fs.pipe_file(path, data)
            else:
                beside = _beside(path)
                self.fs.pipe_file(beside, data)
                self.fs.mv(beside, path)

        self._patiently(write, "write", relative)

    def create_file(self, relative: str, data: bytes) -> bool:
        """Write a file that is not there yet; of several who do it at once one succeeds, where the store can do that.

        Returns:
            Whether the file is there with these contents by this call; False where another one is in its place.

        Raises:
            InputError: it cannot be written.
        """
        path = self.path(relative)

        def create() -> bool:
            self._make_parent(path)
            try:
                self.fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return bool(self.fs.cat_file(path) == data)  # an attempt that seemed to fail may have succeeded
            return True

        return self._patiently(create, "write", relative)

    def remove(self, relative: str) -> None:
        """Remove a file; one that is not there is no error."""
        path = self.path(relative)
        self._patiently(lambda: self.fs.rm_file(path), "remove", relative, absent=None)

    def clear(self, folder: str) -> None:
        """Remove the unfinished files that killed writes have left in a folder of this machine."""
        if self.local:
            for left in Path(self.path(folder)).glob(".*.part"):
                left.unlink(missing_ok=True)

    def _found(self, read: Callable[[str], T], relative: str) -> T:
        path = self.path(relative)
        value = self._patiently(lambda: read(self._regular(path)), "read", relative, absent=None)
        if value is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", relative)
        return value

    def _regular(self, path: str) -> str:
        """`path`, which is no pipe or device of this machine: to open one may wait for ever.

        Raises:
            OSError: it is one.
        """
        if self.local and not stat.S_ISREG(Path(path).stat().st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, and not a file")
        return path

    def _fresh(self) -> Any:
        self.fs.invalidate_cache()
        return self.fs

    def _here(self) -> None:
        """Tell a file that is not there from a folder that was removed, and from a share that is gone.

        Raises:
            InputError: somebody has removed the folder: where it was is still the same file system.
            OSError: the folder is gone with its file system, which may come back.
        """
        if not self.local:
            return
        root = Path(self.root)
        if root.is_dir():
            self._seen = root.stat().st_dev
        elif self._seen is not None:
            if root.parent.is_dir() and root.parent.stat().st_dev == self._seen:
                raise InputError(f"the folder {self.address} was removed or renamed while it was in use; run again")
            raise OSError(errno.ENOTCONN, f"{self.address} is not there")

    def _make_parent(self, path: str) -> None:
        """Make the folder of a file, but never the root: where a share has vanished, that is the machine's own disk."""
        parent = path.rsplit("/", 1)[0]
        if not self.local:
            if parent not in self._made:
                self.fs.makedirs(parent, exist_ok=True)
                self._made.add(parent)
            return
        if parent in self._made and Path(parent).is_dir():
            return
        root = Path(self.root)
        self._here()
        if self._seen is None:
            self.create()
        below = Path(parent).relative_to(root)
        for depth in range(1, len(below.parts) + 1):
            root.joinpath(*below.parts[:depth]).mkdir(exist_ok=True)
        self._made.add(parent)

    def _patiently(self, action: Callable[[], T], verb: str, what: str, absent: Any = REQUIRED) -> T:
        """Call `action`, and again for a while if it fails; returns `absent`, if given, where a file is not there.

        Raises:
            InputError: it fails still, or for a reason that waiting does not mend.
        """
        began, wait = time.monotonic(), 0.05
        while True:
            try:
                try:
                    return action()
                except FileNotFoundError:
                    if absent is REQUIRED:
                        raise
                    self._here()
                    return absent  # type: ignore[no-any-return]
            except Exception as error:  # file systems of other packages have errors that are no OSError
                if isinstance(error, GuidestackError) or (self.local and not isinstance(error, OSError)):
                    raise
                where = f"{what} of {self.address}" if what else self.address
                number = getattr(error, "errno", None)
                if number in FULL:
                    raise InputError(
                        f"cannot {verb} {where}: the disk is full; what is finished is safe: make room and run again"
                    ) from error
                if number in PERMANENT or isinstance(error, ValueError | TypeError | NotImplementedError):
                    raise InputError(f"cannot {verb} {where}: {reason(error)}") from error
                with suppress(OSError):
                    self._here()
                if time.monotonic() - began + wait > self.patience:
                    raise InputError(
                        f"cannot {verb} {where}: {reason(error)}, for {self.patience:g} s; what is finished is safe: "
                        "run again when it is back"
                    ) from error
                time.sleep(wait)
                wait = min(2 * wait, 5.0)


def _beside(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.part"


def _write_local(path: Path, data: bytes) -> None:
    with replacing(path, make_folder=False) as beside, beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the system lets a folder be opened and synchronized."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
