"""The document root as FTP shows it: folders and files, and nothing that a symbolic link finds outside."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass

from dataplane.ftp import paths


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

    def real(self, path: str) -> str | None:
        """Where the path leads; None when that is outside the root. It need not exist."""
        try:
            found = os.path.realpath(self._root + path)
        except (OSError, ValueError):
            return None
        return found if paths.below(found, self._root) else None

    def find(self, path: str) -> Entry | None:
        """None when there is no such file or folder, or it is outside."""
        real = self.real(path)
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

    def names(self, folder: str, limit: int | None = None) -> list[str]:
        """The names in a folder in order, or any `limit` of them; those that no line of a listing can hold are left
        out. None at all when it cannot be read. Without a limit it may take long: it is for a thread."""
        real = self.real(folder)
        if real is None:
            return []
        try:
            with os.scandir(real) as found:
                return sorted(entry.name for entry in itertools.islice(found, limit) if _can_be_said(entry.name))
        except OSError:
            return []


def _can_be_said(name: str) -> bool:
    if any(character < " " or character == "\x7f" for character in name):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # not UTF-8 on the disk
        return False
    return True
