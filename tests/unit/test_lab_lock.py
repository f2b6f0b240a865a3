"""Whose a lab is, and how it is taken from a process that is dead, asleep or unwilling. Real processes, no lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from topologies import lock, processes, record, removal
from topologies.lock import Lock, Owner, Role
from topologies.record import LabError, Record

_HOLD = """
import os, signal, sys, time
from pathlib import Path
from topologies import lock
lock.PATH = Path(sys.argv[1])
held = lock.Lock.acquire(sys.argv[2])
{more}
print(os.getpid(), flush=True)
try:
    signal.pause()
finally:
    held.release()
"""
_UNWILLING = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)"
_LEAVES_A_CHILD = "os.fork() and os._exit(0)"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lock and record in a folder of the test."""
    monkeypatch.setattr(lock, "PATH", tmp_path / "takeover.lock")
    monkeypatch.setattr(record, "FOLDER", tmp_path / "takeover")
    monkeypatch.setattr(record, "_RECORD", tmp_path / "takeover" / "lab.json")
    return tmp_path


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Processes that hold the lock; each is gone when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def run(role: Role, more: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLD.format(more=more), str(lock.PATH), role]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        process.says = int(process.stdout.readline())  # type: ignore[attr-defined]
        return process

    yield run
    for process in started:
        for pid in {process.pid, process.says}:  # type: ignore[attr-defined]
            processes.kill([pid])
        process.communicate()


def holder() -> Owner:
    found = lock.owner()
    assert found is not None
    return found


def test_one_lab_at_a_time_and_no_file_afterwards(place: Path) -> None:
    held = Lock.acquire("up")
    assert (holder().pid, holder().role, holder().condition.alive) == (os.getpid(), "up", True)
    with pytest.raises(LabError, match=r"^a lab is up already: takeover lab down ends it$"):
        Lock.acquire("program")
    held.release()
    assert lock.owner() is None
    assert list(place.iterdir()) == []


def test_a_program_that_holds_the_lab_is_named_to_the_next(start: Start) -> None:
    process = start("program")
    with pytest.raises(LabError, match=f"belongs to a program that runs, pid {process.pid} "):
        Lock.acquire("up")


def test_release_leaves_a_file_that_is_not_its_own_alone() -> None:
    first = Lock.acquire("up")
    lock.PATH.unlink()
    second = Lock.acquire("program")
    first.release()
    assert holder().role == "program"
    second.release()


@pytest.mark.parametrize(("role", "asks"), [("up", signal.SIGTERM), ("program", signal.SIGINT)])
def test_whoever_holds_the_lab_is_asked_first(start: Start, role: Role, asks: signal.Signals) -> None:
    process = start(role)
    lock.end(holder())
    assert process.wait(5) == -asks


@pytest.mark.parametrize("role", ["up", "program"])
def test_a_stopped_process_is_woken_to_hear_it(start: Start, role: Role) -> None:
    process = start(role)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert holder().condition.stopped
    lock.end(holder())
    assert process.wait(5) in (-signal.SIGTERM, -signal.SIGINT)


@pytest.mark.parametrize("role", ["up", "program"])
def test_who_does_not_listen_is_killed(start: Start, role: Role) -> None:
    process = start(role, _UNWILLING)
    lock.end(holder(), grace=0.2)
    assert process.wait(5) == -signal.SIGKILL


def test_a_program_may_live_on_without_its_lab(start: Start) -> None:
    gives_it_up = "signal.signal(signal.SIGINT, lambda *_: (lock.PATH.unlink(), signal.pause()))"
    process = start("program", gives_it_up)
    lock.end(holder())
    assert process.poll() is None


def test_another_process_with_the_pid_of_a_dead_holder_is_not_touched(start: Start) -> None:
    process = start("up")
    lock.end(Owner(process.pid, holder().start - 1, "up"), grace=0.2)
    assert process.poll() is None


def test_down_refuses_a_program_and_force_interrupts_it(start: Start) -> None:
    process = start("program")
    Record().save()
    with pytest.raises(LabError, match=rf"pid {process.pid} .*takeover lab down --force interrupts that program$"):
        removal.remove()
    assert process.poll() is None
    assert Record.load() is not None
    removal.remove(force=True)
    assert process.wait(5) == -signal.SIGINT
    assert Record.load() is None


@pytest.mark.parametrize(("role", "more"), [("up", ""), ("program", ""), ("up", _UNWILLING)])
def test_down_of_a_dead_holders_lab_asks_nobody(start: Start, place: Path, role: Role, more: str) -> None:
    process = start(role, more)
    Record().save()
    process.kill()
    process.wait()
    removal.remove()
    assert list(place.iterdir()) == []


def test_down_where_a_child_of_the_dead_holder_has_inherited_the_lock(start: Start, place: Path) -> None:
    process = start("program", _LEAVES_A_CHILD)
    Record().save()
    assert process.wait(5) == 0
    with pytest.raises(LabError, match="a lab is up already"):
        Lock.acquire("up")
    removal.remove()
    assert list(place.iterdir()) == []


def test_down_waits_for_another_down_and_does_not_disturb_it(start: Start) -> None:
    process = start("down", "import threading; threading.Timer(0.3, lock.PATH.unlink).start()")
    removal.remove()
    assert process.poll() is None


def test_down_without_a_lab_is_done_at_once(place: Path) -> None:
    removal.remove()
    assert list(place.iterdir()) == []


def test_what_the_lab_had_no_time_to_write_down_is_found_by_its_mark(place: Path) -> None:
    made = Record()
    with (
        subprocess.Popen(["sleep", "60"], env=made.environment()) as unrecorded,
        subprocess.Popen(["sleep", "60"]) as other,
    ):
        made.remove_everything()
        assert unrecorded.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
