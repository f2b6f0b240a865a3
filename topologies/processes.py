"""What the kernel says about processes of a lab, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_GONE_SECONDS = 5.0
_SHOWN = 80


@dataclass(frozen=True)
class Condition:
    """What has become of a process, proc_pid_stat(5)."""

    letter: str | None
    """The state's letter, `Z` for one that has ended and was not waited for; None when there is none any more."""
    ended: int | None = None
    """How it has ended, as wait(2) says it, where the kernel still knows (and tells only root)."""

    @property
    def alive(self) -> bool:
        return self.letter is not None and self.letter not in "ZX"

    @property
    def stopped(self) -> bool:
        """By SIGSTOP or a terminal: it does nothing and answers nobody."""
        return self.letter == "T"


def condition(pid: int, start: int) -> Condition:
    """Of the process that began at `start` (`start_time`); another one that has its pid now is not meant."""
    fields = _stat(pid)
    if fields is None or int(fields[19]) != start:
        return Condition(None)
    if fields[0] in "ZX":
        return Condition(fields[0], int(fields[49]) if os.geteuid() == 0 else None)
    return Condition(fields[0])


def start_time(pid: int) -> int | None:
    """When the process began (clock ticks since boot); None when there is none or it is a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def command_line(pid: int) -> str:
    """For a sentence: its beginning, on one line; empty when nobody knows it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in words), _SHOWN, placeholder=" ...")


@dataclass(frozen=True)
class Namespace:
    """A network namespace that the lab has made. The kernel gives its inode number to another one when it is gone."""

    inode: int
    shell: int
    start: int
    """The process that holds it, and when that began."""
    interface: str
    """One of the lab's own in it."""


def network(pid: int) -> int:
    """Inode number of the network namespace that a process is in. Raises `OSError`."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def inside(namespaces: Iterable[Namespace]) -> list[int]:
    """Processes in these network namespaces, and in none that only has such a number now."""
    wanted, found = {namespace.inode: namespace for namespace in namespaces}, []
    held = {inode for inode, namespace in wanted.items() if start_time(namespace.shell) == namespace.start}
    for pid in _all():
        with contextlib.suppress(OSError):
            inode = network(pid)
            if inode in wanted and (inode in held or wanted[inode].interface in _interfaces(pid)):
                found.append(pid)
    return found


def _interfaces(pid: int) -> list[str]:
    """Of the network namespace that a process is in."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def marked(mark: str) -> list[int]:
    """Processes that were started with this `NAME=VALUE` in their environment, and their children."""
    wanted, found = mark.encode(), []
    for pid in _all():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; returns when they are gone, or after five seconds."""
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + _GONE_SECONDS
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            select.select([descriptor], [], [], max(0.0, limit - time.monotonic()))
        os.close(descriptor)


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields from the third, `state`, on: the second may hold any character."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
