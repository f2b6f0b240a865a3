"""What the lab has made, written down as it is made, so that `takeover lab down` can remove all of it even when the
process that held the lab is gone, and `takeover lab status` can say what has become of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from state.errors import LocalError
from topologies import processes

FOLDER = Path("/run/takeover")
_RECORD = FOLDER / "lab.json"
CONTROL = FOLDER / "control.sock"
_MARK = "TAKEOVER_LAB"


MOST_HOSTS = 32
"""Servers, or clients, of a lab."""


class LabError(LocalError):
    """The lab cannot do what was asked."""


class Record:
    """Processes (pid and start time, so that a reused pid is never hit), namespaces, bridges, interfaces."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.processes: dict[int, int] = {}
        self.namespaces: list[processes.Namespace] = []
        self.bridges: list[str] = []
        self.links: list[str] = []
        self.hosts: dict[str, int] = {}
        """Name of a host -> pid of the shell that holds its namespace."""
        self.names: dict[str, int] = {}
        """`controller` or a server's name -> pid of the controller or of its agent."""
        self.settings: dict[str, tuple[str, str]] = {}
        """Files of the kernel that were written for a moment: what stood there before, and what was written."""
        self.failed: dict[str, str] = {}
        """Name of a process that was made to fail -> how."""
        self.facts: dict[str, str] = {}
        """What a user asks for: `api`, `docroot`, `config`."""
        self.ready = False

    def save(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        temporary = _RECORD.with_suffix(".new")
        temporary.write_text(json.dumps(vars(self), default=asdict))
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
        record.namespaces = [processes.Namespace(**fields) for fields in saved["namespaces"]]
        return record

    def environment(self) -> dict[str, str]:
        """For a process of the lab: whoever has it belongs to the lab, even if the lab had no time to write it down."""
        return {**os.environ, _MARK: self.mark}

    def add_process(self, pid: int, name: str | None = None) -> None:
        start = processes.start_time(pid)
        if name is not None:
            self.names[name] = pid
        if start is not None:
            self.processes[pid] = start
        self.save()

    def add_host(self, name: str, pid: int, interface: str) -> None:
        """`pid` is the shell that holds its namespace, in which the interface is."""
        self.hosts[name] = pid
        start = processes.start_time(pid)
        if start is not None:
            self.namespaces.append(processes.Namespace(processes.network(pid), pid, start, interface))
        self.add_process(pid)

    @contextlib.contextmanager
    def setting(self, path: Path, value: str) -> Iterator[None]:
        """A file of the kernel says `value` meanwhile; it is put back even when this process is killed."""
        before = path.read_text()
        self.settings[str(path)] = before, value
        self.save()
        path.write_text(value)
        try:
            yield
        finally:
            self._put_back()
            self.save()

    def _put_back(self) -> None:
        for path, (before, value) in self.settings.items():
            with contextlib.suppress(OSError):
                if Path(path).read_text().strip() == value.strip():  # else somebody else wrote it since
                    Path(path).write_text(before)
        self.settings.clear()

    def condition(self, pid: int) -> processes.Condition:
        """What has become of a process of the lab."""
        return processes.condition(pid, self.processes.get(pid, -1))

    def remove_everything(self) -> None:
        """No process, namespace, bridge, interface or file of the lab remains. Raises `LabError` when one does; then
        the record remains, too, for the next try."""
        victims = {pid for pid, start in self.processes.items() if processes.start_time(pid) == start}
        victims.update(processes.inside(self.namespaces))
        victims.update(processes.marked(f"{_MARK}={self.mark}"))
        processes.kill(victims - {os.getpid()})
        self._put_back()
        deleted = [
            (bridge, _run("ovs-vsctl", "--timeout=5", "--if-exists", "del-br", bridge)) for bridge in self.bridges
        ]
        for link in [*self.links, *self.bridges]:
            _run("ip", "link", "delete", link)
        for bridge, answer in deleted:
            if answer.returncode != 0:
                raise LabError(
                    f"bridge {bridge} cannot be removed ({answer.stderr.strip()}): takeover lab down tries again"
                )
        shutil.rmtree(FOLDER, ignore_errors=True)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
