"""The lab from the shell, as a user has it: it comes up, runs commands, and leaves nothing behind, whatever crashed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from state import messages
from topologies import Lab, lock
from topologies.record import FOLDER, LabError

TAKEOVER = str(Path(sys.executable).with_name("takeover"))


def takeover(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TAKEOVER, *arguments], capture_output=True, text=True, timeout=seconds, check=False)


def assert_nothing_remains() -> None:
    bridges = subprocess.run(["ovs-vsctl", "list-br"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert bridges == ""
    assert "tko0" not in links
    assert "mgmt-" not in links
    assert not FOLDER.exists()
    assert not lock.PATH.exists()
    words = (b"takeover.yaml", b"topologies.holder", b"mininet:")
    lines = [_command_line(process) for process in Path("/proc").iterdir() if process.name.isdigit()]
    assert [line for line in lines if any(word in line for word in words)] == []


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_up_exec_fail_status_down() -> None:
    assert takeover("lab", "up").returncode == 0
    try:
        second = takeover("lab", "up")
        assert second.returncode == 1
        assert second.stderr == "takeover: a lab is up already: takeover lab down ends it\n"
        echoed = subprocess.run(
            [TAKEOVER, "lab", "exec", "c1", "--", "sh", "-c", "cat; echo problem >&2; exit 7"],
            input="through",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (echoed.returncode, echoed.stdout, echoed.stderr) == (7, "through", "problem\n")
        assert takeover("lab", "exec", "c9", "--", "true").returncode == 1
        assert takeover("lab", "fail", "s1", "--how", "kill").returncode == 0
        status = json.loads(takeover("lab", "status", "--json").stdout)
        assert status["failed"] == {"s1": "kill"}
        assert takeover("lab", "fail", "s1").returncode == 1
        assert takeover("lab", "heal", "s1").returncode == 0
        servers = json.loads(takeover("servers", "--json").stdout)["items"]
        assert {server["name"]: server["state"] for server in servers} == {"s1": "up", "s2": "up"}
    finally:
        assert takeover("lab", "down").returncode == 0
    assert_nothing_remains()
    after = takeover("lab", "exec", "c1", "--", "true")
    assert (after.returncode, after.stderr) == (1, "takeover: no lab is up: takeover lab up makes one\n")


def test_a_port_in_use_is_one_sentence_and_nothing_remains() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8080))
        taken.listen()
        failed = takeover("lab", "up")
    assert failed.returncode == 1
    assert "api.listen: cannot listen on 127.0.0.1:8080: Address already in use" in failed.stderr
    assert_nothing_remains()


def test_what_is_not_the_labs_is_refused_and_left_alone() -> None:
    subprocess.run(["ip", "link", "add", "tko0-s1", "type", "veth", "peer", "name", "tkx0"], check=True)
    try:
        failed = takeover("lab", "up")
        assert failed.returncode == 1
        assert "interface tko0-s1 exists and is not a lab's" in failed.stderr
        assert subprocess.run(["ip", "link", "show", "tko0-s1"], capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "link", "delete", "tko0-s1"], check=True)
    assert_nothing_remains()


def test_wrong_options_make_nothing() -> None:
    for options in (
        {"servers": 0},
        {"docroot": "/nowhere"},
        {"state": "paper"},
        {"config": "docs/takeover.example.yaml", "services": {7000: "http"}},
    ):
        with pytest.raises(LabError):
            Lab(**options)  # type: ignore[arg-type]
    assert not FOLDER.exists()


def test_strangers_on_the_control_connection_are_turned_away() -> None:
    """An unknown name, bytes that are no message, a frame above the limit: refused with a sentence, and counted."""
    with Lab(servers=2) as lab:
        address = (lab.configuration.agents.host, lab.configuration.agents.port)

        def say(data: bytes) -> str:
            with socket.create_connection(address, timeout=5) as sock:
                sock.sendall(data)
                answer = b"".join(iter(lambda: sock.recv(4096), b""))
            (refused,) = messages.FrameReader(from_agent=False).feed(answer)
            assert isinstance(refused, messages.Refused)
            assert not refused.fenced
            return refused.sentence

        hello = messages.Hello(messages.PROTOCOL_VERSION, "s9", 1, "02:00:00:00:00:01", 1)
        assert say(messages.encode(hello)) == "no server named s9 is in the configuration; known are s1, s2"
        assert "malformed" in say(b"\0\0\0\1x")
        assert "exceeds the limit" in say(b"\xff\xff\xff\xff")
        metrics = subprocess.run(["curl", "-sS", lab.api + "/metrics"], capture_output=True, text=True, check=True)
        assert "takeover_agents_refused_total" in metrics.stdout
        assert {server["state"] for server in lab.servers()} == {"up"}
