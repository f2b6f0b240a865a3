"""Paths as clients write them: absolute below the document root, with `/` between names. Pure.

A path is text of any bytes (`names`). It never leads out of the root, because `..` of the root is the root; where
symbolic links lead, `tree` looks.
"""

from __future__ import annotations

import os
import posixpath

from dataplane.names import bytes_of
from dataplane.objects import LIMIT_SEGMENTS

LIMIT_PATH = 4096


def resolve(folder: str, argument: str) -> str | None:
    """The path that `argument` means in `folder`, absolute and without `.` and `..`; None when it cannot be one."""
    named = posixpath.join(folder, argument)
    if named.count("/") > LIMIT_SEGMENTS:
        return None
    path = "/" + posixpath.normpath("/" + named).lstrip("/")
    return path if len(path.encode("utf-8", "replace")) <= LIMIT_PATH and "\0" not in path else None


def of_file_system(path: str) -> str:
    """As Python's file functions take it."""
    return os.fsdecode(bytes_of(path))


def parent(path: str) -> tuple[str, str]:
    """Folder and name."""
    folder, _, name = path.rpartition("/")
    return folder or "/", name


def child(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def quoted(path: str) -> str:
    """As 257 has it: a quotation mark is doubled (RFC 959 appendix II)."""
    return '"' + path.replace('"', '""') + '"'


def below(path: str, folder: str) -> bool:
    """Is it this folder, or anything in it?"""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
