"""Labs that end otherwise than planned: whoever made, holds or serves one is killed, stopped or taken by surprise."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.system.test_lab_commands import TAKEOVER, assert_nothing_remains, takeover
from topologies import lock
from topologies.lab import READY_SECONDS
from topologies.lock import Owner
from topologies.record import FOLDER, Record

_PROGRAM = """
from topologies import Lab
with Lab(servers=1) as lab:
    print("up", flush=True)
    input()
"""


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def holder() -> Owner:
    found = lock.owner()
    assert found is not None
    return found


def wait_gone(pid: int, seconds: float = 30.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], seconds)[0]
        finally:
            os.close(descriptor)


def status() -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(takeover("lab", "status", "--json").stdout)
    return answer


@pytest.fixture
def up() -> Iterator[None]:
    """A lab as `takeover lab up` makes it."""
    assert takeover("lab", "up").returncode == 0
    yield
    assert takeover("lab", "down").returncode == 0
    assert_nothing_remains()


@contextlib.contextmanager
def program() -> Iterator[subprocess.Popen[str]]:
    """A Python program that holds a lab."""
    command = [sys.executable, "-c", _PROGRAM]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


def recorded(what: Callable[[Record], object]) -> Callable[[], object]:
    def look() -> object:
        record = Record.load()
        return record is not None and what(record)

    return look


_MOMENTS = {
    "begun": lambda: lock.owner() is not None,
    "bridge": recorded(lambda record: record.bridges),
    "controller": recorded(lambda record: "controller" in record.names),
    "agents": recorded(lambda record: "s2" in record.names),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "begun"),
        (signal.SIGKILL, "bridge"),
        (signal.SIGKILL, "controller"),
        (signal.SIGKILL, "agents"),
        (signal.SIGTERM, "controller"),
        (signal.SIGINT, "bridge"),
    ],
)
def test_a_lab_that_nobody_waits_for_any_more_is_not_built(number: signal.Signals, moment: str) -> None:
    command = subprocess.Popen([TAKEOVER, "lab", "up"])
    until(_MOMENTS[moment])
    maker = holder()
    if moment == "agents":
        # This lab does not become ready, and its holder would wait for that longer than this test waits for the holder.
        os.kill(Record.load().names["s2"], signal.SIGSTOP)  # type: ignore[union-attr]
    command.send_signal(number)
    ended = command.wait(30)
    if number == signal.SIGKILL:
        built_on = False
        while maker.condition.alive and moment != "agents":
            built_on = built_on or bool(_MOMENTS["agents"]())
        assert not built_on
        wait_gone(maker.pid, READY_SECONDS / 3)
    else:
        # The command itself has waited until nothing was left.
        assert ended == 128 + number
        assert not maker.condition.alive
    assert_nothing_remains()


def test_down_ends_a_lab_that_is_being_made() -> None:
    with subprocess.Popen([TAKEOVER, "lab", "up"], stderr=subprocess.PIPE, text=True) as command:
        until(_MOMENTS["controller"])
        assert takeover("lab", "down").returncode == 0
        assert_nothing_remains()
        _, said = command.communicate(timeout=30)
    assert command.returncode == 1
    assert said == "takeover: the lab was taken down before it was ready\n"


def test_status_says_who_died_and_heal_starts_it_again(up: None) -> None:
    assert status()["states"] == dict.fromkeys(("holder", "controller", "s1", "s2"), "running")
    for name in ("s1", "controller"):
        os.kill(status()["processes"][name], signal.SIGKILL)
        until(lambda name=name: status()["states"][name] == "died")  # type: ignore[misc]
        shown = takeover("lab", "status")
        assert shown.returncode == 0
        assert f"takeover: {name} died by itself (SIGKILL), its log is {FOLDER / name}.log" in shown.stderr
        refused = takeover("lab", "fail", name)
        assert (refused.returncode, refused.stderr) == (1, f"takeover: {name} has died by itself: heal it first\n")
        assert takeover("lab", "heal", name).returncode == 0
        assert (status()["states"][name], status()["problems"]) == ("running", [])


def test_a_lab_whose_holder_is_dead(up: None) -> None:
    pid = holder().pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not holder().condition.alive)
    gone = f"takeover: the process that held the lab, pid {pid}, is gone: takeover lab down removes what is left\n"
    shown = takeover("lab", "status")
    assert (shown.returncode, shown.stderr) == (1, gone)
    assert status()["states"] == {"holder": "gone", "controller": "running", "s1": "running", "s2": "running"}
    failed = takeover("lab", "fail", "s1")
    assert (failed.returncode, failed.stderr) == (1, gone)


def test_a_lab_whose_holder_is_stopped(up: None) -> None:
    pid = holder().pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: holder().condition.stopped)
    stopped = f"takeover: the process that holds the lab is stopped: kill -CONT {pid} lets it go on\n"
    shown = takeover("lab", "status")
    assert (shown.returncode, shown.stderr) == (0, stopped)
    failed = takeover("lab", "fail", "s1")
    assert (failed.returncode, failed.stderr) == (1, stopped)


def test_a_programs_lab_is_its_own() -> None:
    with program() as process:
        for command in (["down"], ["up"], ["fail", "s1"]):
            refused = takeover("lab", *command)
            assert refused.returncode == 1
            assert f"belongs to a program that runs, pid {process.pid} (" in refused.stderr
        assert status()["holder"] == {"pid": process.pid, "role": "program"}
        assert takeover("lab", "exec", "c1", "--", "curl", "-sSfo", "/dev/null", "http://vip/1k").returncode == 0
        assert takeover("lab", "down", "--force").returncode == 0
        assert_nothing_remains()
        _, said = process.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_a_dead_programs_lab_needs_no_force() -> None:
    with program() as process:
        process.kill()
        process.wait()
        assert takeover("lab", "status").returncode == 1
        assert takeover("lab", "down").returncode == 0
    assert_nothing_remains()
