"""What a lab wrote down is removed, and what only looks like it now is somebody else's. Real processes, no lab."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from topologies import processes, record
from topologies.processes import Namespace
from topologies.record import LabError, Record


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record in a folder of the test."""
    monkeypatch.setattr(record, "FOLDER", tmp_path / "takeover")
    monkeypatch.setattr(record, "_RECORD", tmp_path / "takeover" / "lab.json")
    return tmp_path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def own_namespace(shell: int, interface: str = "lo") -> Namespace:
    """This process's own, as if `shell` had been recorded as its holder."""
    start = processes.start_time(shell)
    assert start is not None
    return Namespace(processes.network(os.getpid()), shell, start, interface)


# --- namespaces: everything here is in one, so that only finding is tried and nothing is killed ---
def test_processes_are_found_as_long_as_the_shell_that_holds_their_namespace_lives(
    process: subprocess.Popen[bytes],
) -> None:
    namespace = own_namespace(process.pid, "s1-eth0")
    assert process.pid in processes.inside([namespace])
    assert processes.inside([replace(namespace, inode=1)]) == []


@pytest.mark.parametrize("killed", [True, False], ids=["gone", "another process has its pid"])
def test_after_that_they_are_found_by_an_interface_of_the_lab_only(
    process: subprocess.Popen[bytes], killed: bool
) -> None:
    namespace = own_namespace(process.pid, "s1-eth0")
    if killed:
        process.kill()
        process.wait()
    else:
        namespace = replace(namespace, start=namespace.start - 1)
    assert processes.inside([namespace]) == []
    assert os.getpid() in processes.inside([replace(namespace, interface="lo")])


def test_a_record_is_read_as_it_was_written(process: subprocess.Popen[bytes]) -> None:
    made = Record()
    made.add_host("s1", process.pid, "s1-eth0")
    again = Record.load()
    assert again is not None and vars(again) == vars(made)
    assert again.namespaces == [own_namespace(process.pid, "s1-eth0")]


# --- settings of the kernel ---
def test_a_setting_is_put_back_when_the_lab_was_killed_meanwhile(place: Path) -> None:
    setting = place / "rmem_default"
    setting.write_text("212992\n")
    with Record().setting(setting, "2097152"):
        assert setting.read_text() == "2097152"
        left = Record.load()
        assert left is not None
        left.remove_everything()
        assert setting.read_text() == "212992\n"
    assert setting.read_text() == "212992\n"


def test_a_setting_that_somebody_else_wrote_since_stays(place: Path) -> None:
    setting = place / "rmem_default"
    setting.write_text("212992\n")
    with Record().setting(setting, "2097152"):
        setting.write_text("4194304\n")
    assert setting.read_text() == "4194304\n"


# --- bridges ---
def programs(place: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """`ovs-vsctl` that ends so, and an `ip` that deletes nothing."""
    folder = place / "programs"
    folder.mkdir(exist_ok=True)
    for name, ends in (("ovs-vsctl", status), ("ip", 0)):
        (folder / name).write_text(f"#!/bin/sh\necho {name} is asleep >&2\nexit {ends}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_bridge_that_cannot_be_removed_is_said_and_not_forgotten(
    place: Path, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    programs(place, monkeypatch, 1)
    made = Record()
    made.bridges.append("lab-bridge")
    made.add_process(process.pid)
    with pytest.raises(LabError, match=r"lab-bridge cannot be removed .*asleep.*lab down"):
        made.remove_everything()
    assert process.wait(5) == -signal.SIGKILL, "the rest is gone"
    left = Record.load()
    assert left is not None and left.bridges == ["lab-bridge"]
    programs(place, monkeypatch, 0)
    left.remove_everything()
    assert Record.load() is None
