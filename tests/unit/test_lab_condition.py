"""What `takeover lab status` says of each process. Real processes, no lab."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from topologies import condition, processes
from topologies.lock import Owner, Role
from topologies.processes import Condition
from topologies.record import Record


@pytest.mark.parametrize(
    ("letter", "how", "state"),
    [
        ("S", None, "running"),
        ("R", None, "running"),
        ("T", None, "stopped"),
        ("Z", None, "died"),
        (None, None, "died"),
        ("S", "link", "failed"),
        ("T", "hang", "failed"),
        (None, "kill", "failed"),
        ("Z", "power", "failed"),
        (None, "stop", "failed"),
        (None, "link", "died"),
        (None, "hang", "died"),
    ],
)
def test_a_process_in_a_word(letter: str | None, how: str | None, state: str) -> None:
    assert condition.state(Condition(letter), how) == state


@pytest.mark.parametrize(
    ("ended", "said"), [(None, ""), (9, " (SIGKILL)"), (0x8B, " (SIGSEGV)"), (0x300, " (status 3)")]
)
def test_how_it_died(ended: int | None, said: str) -> None:
    assert condition.cause(Condition("Z", ended)) == said


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes: a holder and two that it started."""
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def the_lab(sleepers: list[subprocess.Popen[bytes]], role: Role = "up") -> tuple[Record, Owner]:
    record = Record()
    for name, process in zip(("controller", "s1"), sleepers[1:], strict=True):
        start = processes.start_time(process.pid)
        assert start is not None
        record.names[name], record.processes[process.pid] = process.pid, start
    start = processes.start_time(sleepers[0].pid)
    assert start is not None
    return record, Owner(sleepers[0].pid, start, role)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_all_is_well(sleepers: list[subprocess.Popen[bytes]]) -> None:
    said = condition.of(*the_lab(sleepers))
    assert said["states"] == {"holder": "running", "controller": "running", "s1": "running"}
    assert said["problems"] == []


def test_who_died_by_itself_is_named_and_what_to_do(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers)
    kill(sleepers[2])
    said = condition.of(record, owner)
    assert said["states"]["s1"] == "died"
    (problem,) = said["problems"]
    assert problem.startswith("s1 died by itself")
    assert problem.endswith("takeover lab heal s1 starts it again")


def test_a_failure_that_was_asked_for_is_no_problem(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers)
    record.failed["s1"] = "kill"
    kill(sleepers[2])
    said = condition.of(record, owner)
    assert (said["states"]["s1"], said["failed"], said["problems"]) == ("failed", {"s1": "kill"}, [])


def test_a_dead_holder_is_gone_and_down_is_named(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers)
    kill(sleepers[0])
    said = condition.of(record, owner)
    assert said["states"] == {"holder": "gone", "controller": "running", "s1": "running"}
    assert said["problems"] == [
        f"the process that held the lab, pid {owner.pid}, is gone: takeover lab down removes what is left"
    ]


def test_without_a_lock_there_is_no_holder(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, _ = the_lab(sleepers)
    assert condition.of(record, None)["states"]["holder"] == "gone"


def test_stopped_processes_are_told_from_running_ones(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers)
    for process in sleepers[:2]:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    said = condition.of(record, owner)
    assert said["states"] == {"holder": "stopped", "controller": "stopped", "s1": "running"}
    assert [problem.partition(": ")[2] for problem in said["problems"]] == [
        f"kill -CONT {sleepers[0].pid} lets it go on",
        f"kill -CONT {sleepers[1].pid} lets it go on",
    ]


def test_only_a_holder_can_heal(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers, "program")
    kill(sleepers[2])
    (problem,) = condition.of(record, owner)["problems"]
    assert "takeover lab heal" not in problem


def test_a_pid_that_was_given_to_another_is_not_the_labs(sleepers: list[subprocess.Popen[bytes]]) -> None:
    record, owner = the_lab(sleepers)
    record.processes[sleepers[2].pid] -= 1
    assert condition.of(record, owner)["states"]["s1"] == "died"
