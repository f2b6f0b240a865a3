"""`takeover lab status`: what has become of each of a lab's processes, from what the lab has written down and what the
kernel says. Nobody is asked, so it answers as well when whoever holds the lab is dead, stopped or busy."""

from __future__ import annotations

import signal
from typing import Any

from topologies import lock
from topologies.lock import Owner
from topologies.processes import Condition
from topologies.record import FOLDER, LabError, Record


def current() -> dict[str, Any]:
    """Of this machine's lab, see `of`. Raises `LabError` when there is none."""
    record, holder = Record.load(), lock.owner()
    if record is None:
        if holder is None or not holder.condition.alive:
            raise LabError("no lab is up: takeover lab up makes one")
        record = Record()  # its holder has only just begun
    return of(record, holder)


def of(record: Record, holder: Owner | None) -> dict[str, Any]:
    """`processes`: pids by name. `states`: each process's state by name, with `holder`: `running`, `stopped` (somebody
    sent SIGSTOP), `failed` (it was made to) or `died` (by itself); the holder's is `gone` when it is. `failed`: how, by
    name. `problems`: a sentence, and what to do, for whatever the user has not asked for."""
    conditions = {name: record.condition(pid) for name, pid in record.names.items()}
    states = {name: state(found, record.failed.get(name)) for name, found in conditions.items()}
    held = holder is not None and holder.condition.alive
    problems = []
    if holder is None or not held:
        pid = "" if holder is None else f", pid {holder.pid},"
        problems.append(f"the process that held the lab{pid} is gone: takeover lab down removes what is left")
    elif holder.condition.stopped:
        problems.append(f"the process that holds the lab is stopped: kill -CONT {holder.pid} lets it go on")
    for name, found in conditions.items():
        # Only the lab's holder can start it again.
        remedy = f": takeover lab heal {name} starts it again" if held and holder and holder.role == "up" else ""
        if states[name] == "died":
            problems.append(f"{name} died by itself{cause(found)}, its log is {FOLDER / name}.log{remedy}")
        elif states[name] == "stopped":
            problems.append(f"{name} was stopped by a signal: kill -CONT {record.names[name]} lets it go on")
    return {
        "ready": record.ready,
        "holder": None if holder is None else {"pid": holder.pid, "role": holder.role},
        "hosts": sorted(record.hosts),
        "processes": dict(record.names),
        "states": {"holder": state(holder.condition, None) if held and holder else "gone", **states},
        "failed": dict(record.failed),
        "problems": problems,
        **record.facts,
    }


def state(found: Condition, how: str | None) -> str:
    """One process's state in a word; `how` it was made to fail, if it was."""
    if not found.alive:
        return "failed" if how in ("kill", "power", "stop") else "died"
    if how is not None:
        return "failed"
    return "stopped" if found.stopped else "running"


def cause(found: Condition) -> str:
    """How it ended, in brackets; empty when the kernel does not tell."""
    if found.ended is None:
        return ""
    number = found.ended & 0x7F  # wait(2)
    return f" ({signal.Signals(number).name})" if number else f" (status {found.ended >> 8})"
