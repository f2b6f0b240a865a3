"""Lines of listings: LIST and NLST (RFC 959), MLSD and MLST (RFC 3659 section 7). Pure.

A listing is sent in the order of names, and a checkpoint says after which name it goes on. So a heir goes on with its
own copy of the folder: whatever was there all the time is listed exactly once, as with any listing of a folder that
changes meanwhile.
"""

from __future__ import annotations

import bisect
import fnmatch
import re
import time
from collections.abc import Callable, Sequence

from dataplane.ftp import paths
from dataplane.ftp.tree import Entry
from dataplane.names import bytes_of

FACTS = ("type", "size", "modify", "perm")
_HALF_A_YEAR = 182 * 86_400
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GLOB = frozenset("*?[")
LIMIT_PATTERN, LIMIT_STARS = 255, 16
"""Characters of a pattern, and how many of them may be `*`: compiling it takes a millisecond then, and not 30."""


LIMIT_LOOKED = 100
"""Entries that are looked at in one turn of the loop, whether they are listed or not."""


def time_val(mtime_ns: int) -> str:
    """RFC 3659 section 2.3: UTC."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(mtime_ns // 10**9))


def facts(entry: Entry, wanted: Sequence[str], kind: str | None = None) -> str:
    """`type=file;size=1024;modify=...; ` without the name. `kind`: `cdir` or `pdir` of a folder."""
    known = {
        "type": kind or ("dir" if entry.folder else "file"),
        "size": None if entry.folder else str(entry.size),
        "modify": time_val(entry.mtime_ns),
        "perm": "el" if entry.folder else "r",
    }
    return "".join(f"{name}={known[name]};" for name in FACTS if name in wanted and known[name] is not None)


def line(verb: str, entry: Entry, wanted: Sequence[str], now: float) -> str:
    """One entry's line, without its end."""
    if verb == "NLST":
        return entry.name
    if verb == "MLSD":
        return f"{facts(entry, wanted)} {entry.name}"
    moment = time.gmtime(entry.mtime_ns // 10**9)
    recent = 0 <= now - entry.mtime_ns / 1e9 < _HALF_A_YEAR
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}" if recent else f"{moment.tm_year:>5}"
    mode, links = ("drwxr-xr-x", 2) if entry.folder else ("-rw-r--r--", 1)
    when = f"{_MONTHS[moment.tm_mon - 1]} {moment.tm_mday:>2} {clock}"
    return f"{mode} {links:>3} ftp      ftp      {entry.size:>12} {when} {entry.name}"


def is_pattern(name: str) -> bool:
    return not _GLOB.isdisjoint(name)


def is_affordable(pattern: str) -> bool:
    """Is it short enough to be compiled on the event loop?"""
    return len(pattern) <= LIMIT_PATTERN and pattern.count("*") <= LIMIT_STARS


def matcher(pattern: str) -> re.Pattern[str] | None:
    """Of names; None for an empty pattern: any name. Once per listing: `fnmatch` itself would keep every pattern that
    a client has thought of."""
    return re.compile(fnmatch.translate(pattern)) if pattern else None


def chunk(
    verb: str,
    folder: str,
    names: Sequence[str],
    find: Callable[[str], Entry | None],
    *,
    pattern: re.Pattern[str] | None,
    after: str,
    wanted: Sequence[str],
    now: float,
    least: int,
) -> tuple[bytes, str | None]:
    """Lines of entries after the name `after`, until they are `least` bytes or `LIMIT_LOOKED` were looked at. Returns
    them and the last name that was; None when nothing follows. `names` are sorted; `find` tells of a path what is
    there."""
    text: list[bytes] = []
    size, begin = 0, bisect.bisect_right(names, after)
    end = begin + LIMIT_LOOKED
    for name in names[begin:end]:
        if pattern is not None and not pattern.match(name):
            continue
        entry = find(paths.child(folder, name))
        if entry is None:
            continue
        text.append(bytes_of(line(verb, entry, wanted, now)) + b"\r\n")
        size += len(text[-1])
        if size >= least:
            return b"".join(text), name
    return b"".join(text), names[end - 1] if end < len(names) else None
