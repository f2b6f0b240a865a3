"""The document root as FTP shows it: folders and files, and nothing that a symbolic link finds outside."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from dataclasses import dataclass

from dataplane.ftp import paths
from dataplane.names import text_of
from dataplane.objects import LIMIT_SEGMENTS

_NOT_IN_A_LINE = frozenset(b"\r\n")
"""Names with these can be neither listed nor asked for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder."""

    path: str
    folder: bool
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        return paths.parent(self.path)[1]


class Tree:
    def __init__(self, root: str) -> None:
        """`root`: as `DocumentRoot.root` has it, without symbolic links."""
        self._root = root

    def real(self, path: str, *, exists: bool = False) -> str | None:
        """Where the path leads, as Python's file functions take it; None when that is outside the root, or too deep.
        It need not exist, unless `exists` says so: then it takes no more looks at the disk than there are folders."""
        if path.count("/") > LIMIT_SEGMENTS:
            return None
        try:
            found = os.path.realpath(self._root + paths.of_file_system(path), strict=exists)
        except (OSError, ValueError):
            return None
        return found if paths.below(found, self._root) else None

    def find(self, path: str) -> Entry | None:
        """None when there is no such file or folder, or it is outside."""
        real = self.real(path, exists=True)
        if real is None:
            return None
        try:
            status = os.stat(real)
        except (OSError, ValueError):
            return None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return None
        folder = stat.S_ISDIR(status.st_mode)
        return Entry(path, folder, 0 if folder else status.st_size, status.st_mtime_ns)

    def has_folder(self, path: str) -> bool:
        found = self.find(path)
        return found is not None and found.folder

    def names(self, folder: str, limit: int | None = None) -> list[str]:
        """The names in a folder in order, or any `limit` of them; those that no line of a listing can hold are left
        out. Raises `OSError` when it cannot be read. Without a limit it may take long: it is for a thread."""
        real = self.real(folder)
        if real is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with os.scandir(real) as found:
            inside = (os.fsencode(entry.name) for entry in itertools.islice(found, limit))
            return sorted(text_of(name) for name in inside if not _NOT_IN_A_LINE.intersection(name))
