"""What the lab has made, written down as it is made, so that `takeover lab down` can remove all of it even when the
process that held the lab is gone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from state.errors import LocalError

FOLDER = Path("/run/takeover")
_RECORD = FOLDER / "lab.json"
_LOCK = Path("/run/takeover.lock")
CONTROL = FOLDER / "control.sock"
_GONE_SECONDS = 5.0


class LabError(LocalError):
    """The lab cannot do what was asked."""


class Record:
    """Processes (pid and start time, so that a reused pid is never hit), namespaces, bridges, interfaces."""

    def __init__(self) -> None:
        self.processes: dict[int, int] = {}
        self.namespaces: list[int] = []
        self.bridges: list[str] = []
        self.links: list[str] = []
        self.hosts: dict[str, int] = {}
        """Name of a host -> pid of the shell that holds its namespace."""

    def save(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        temporary = _RECORD.with_suffix(".new")
        temporary.write_text(json.dumps(vars(self)))
        temporary.replace(_RECORD)

    @classmethod
    def load(cls) -> Record | None:
        try:
            saved = json.loads(_RECORD.read_text())
        except (OSError, ValueError):
            return None
        record = cls()
        vars(record).update(saved)
        record.processes = {int(pid): start for pid, start in saved["processes"].items()}
        return record

    def add_process(self, pid: int) -> None:
        start = start_time(pid)
        if start is not None:
            self.processes[pid] = start
            self.save()

    def add_host(self, name: str, pid: int) -> None:
        self.hosts[name] = pid
        self.namespaces.append(os.stat(f"/proc/{pid}/ns/net").st_ino)
        self.add_process(pid)

    def remove_everything(self) -> None:
        """No process, namespace, bridge, interface or file of the lab remains."""
        own = os.getpid()
        victims = [pid for pid, start in self.processes.items() if start_time(pid) == start and pid != own]
        victims += [pid for pid in _inside(self.namespaces) if pid != own and pid not in victims]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_gone(victims)
        for bridge in self.bridges:
            _run("ovs-vsctl", "--timeout=5", "--if-exists", "del-br", bridge)
        for link in [*self.links, *self.bridges]:
            _run("ip", "link", "delete", link)
        shutil.rmtree(FOLDER, ignore_errors=True)
        with contextlib.suppress(OSError):
            _LOCK.unlink()


def lock() -> int:
    """One lab at a time on a machine: names of hosts and interfaces are shared. Raises `LabError`."""
    descriptor = os.open(_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LabError("a lab is up already: takeover lab down ends it") from None
    return descriptor


def start_time(pid: int) -> int | None:
    """When the process began (clock ticks since boot); None when there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _inside(namespaces: list[int]) -> list[int]:
    """Processes in these network namespaces."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in namespaces:
                    found.append(int(entry))
    return found


def _wait_gone(pids: list[int]) -> None:
    limit = time.monotonic() + _GONE_SECONDS
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            select.select([descriptor], [], [], max(0.0, limit - time.monotonic()))
        os.close(descriptor)


def _run(*command: str) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
