"""One lab at a time on a machine, for names of hosts and interfaces are shared: the lock, and whose it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from topologies import processes
from topologies.record import LabError

PATH = Path("/run/takeover.lock")
_GRACE_SECONDS = 15.0
_LAST_SECONDS = 5.0
_POLL_SECONDS = 0.05

Role = Literal["up", "program", "down"]
"""Who holds a lab: what `takeover lab up` leaves, a Python program's `with Lab(...)`, or whoever removes it."""


@dataclass(frozen=True)
class Owner:
    """The process that holds the lab: its pid, when it began (`processes.start_time`), its role."""

    pid: int
    start: int
    role: Role

    @property
    def condition(self) -> processes.Condition:
        return processes.condition(self.pid, self.start)

    def __str__(self) -> str:
        stopped = ", which is stopped" if self.condition.stopped else ""
        return f"pid {self.pid} ({processes.command_line(self.pid)}{stopped})"


class Lock:
    """Held from `acquire` to `release`, or until its process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, role: Role) -> Lock:
        """Raises `LabError` when another process holds a lab."""
        while True:
            descriptor = os.open(PATH, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise LabError(_taken(owner())) from None
            if _is_at_its_place(descriptor):
                break
            os.close(descriptor)  # its holder released it, and with it the file, between the two calls
        start = processes.start_time(os.getpid())
        assert start is not None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner(os.getpid(), start, role))).encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """No file remains."""
        if _is_at_its_place(self._descriptor):
            PATH.unlink()
        os.close(self._descriptor)


def owner() -> Owner | None:
    """Who holds the lab, or held it and died; None when nobody does, or only just begins to."""
    try:
        return Owner(**json.loads(PATH.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def end(holder: Owner, grace: float = _GRACE_SECONDS) -> None:
    """Returns when `holder` no longer holds the lab. It is asked by a signal, and may remove the lab itself; after
    `grace` seconds it is killed, and what the lab made is still there. Raises `LabError` when it cannot be killed."""
    try:
        descriptor = os.pidfd_open(holder.pid)
    except OSError:
        return
    try:
        if not holder.condition.alive:
            return
        with contextlib.suppress(ProcessLookupError):
            if holder.role != "down":
                # SIGINT leaves a program the way out of its `with` block; by SIGTERM, Python ends on the spot.
                signal.pidfd_send_signal(descriptor, signal.SIGTERM if holder.role == "up" else signal.SIGINT)
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            if _until_free(holder, descriptor, grace):
                return
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not _until_free(holder, descriptor, _LAST_SECONDS):
                raise LabError(f"{holder} does not end")
    finally:
        os.close(descriptor)


def _until_free(holder: Owner, descriptor: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if select.select([descriptor], [], [], _POLL_SECONDS)[0]:
            return True
        # A program may live on without its lab. A holder has nothing else to do.
        if holder.role != "up" and owner() != holder:
            return True
    return False


def _is_at_its_place(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(PATH))
    return False


def _taken(holder: Owner | None) -> str:
    if holder is not None and holder.role == "program" and holder.condition.alive:
        return f"a lab is up already: it belongs to a program that runs, {holder}"
    return "a lab is up already: takeover lab down ends it"
