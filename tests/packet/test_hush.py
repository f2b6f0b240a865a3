"""A hushed listening socket, in a namespace of its own: the kernel answers answers to probes with nothing instead of
RST, and still makes connections, whose sockets then hear everything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).resolve().parents[2])
_SPACE = "tkot-hush"

_PLAY = """
import json, select, socket, sys
sys.path.insert(0, sys.argv[1])
from dataplane.packet_socket import ProbeSocket, hush, unhush
from dataplane.segment import ACK, RST, Segment, build, parse
from dataplane.sequence import Seq

SERVER, CLIENT = socket.inet_aton("10.9.0.1"), socket.inet_aton("10.9.0.2")
listener = socket.socket()
listener.bind(("10.9.0.1", 80))
listener.listen()
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
probes = ProbeSocket()

def answered(port, sack):
    '''Does the kernel answer a segment of an unknown connection with RST? Another segment, which it answers in any
    case, says when to stop waiting.'''
    segment = Segment(CLIENT, port, SERVER, 80, Seq(7), Seq(9), ACK, 512, timestamps=(1, 2), sack=sack)
    probes.send(build(segment))
    probes.send(build(Segment(CLIENT, 9999, SERVER, 80, Seq(7), Seq(9), ACK, 512)))
    resets = set()
    while 9999 not in resets:
        found = parse(wire.recv(2048))
        if found.source == SERVER and found.flags & RST:
            resets.add(found.destination_port)
    return port in resets

def talks():
    '''A client connects, both sides speak; then one sends what has SACK blocks to the accepted socket.'''
    with socket.socket() as client:
        client.bind(("10.9.0.2", 0))
        client.settimeout(5)
        client.connect(("10.9.0.1", 80))
        accepted, _ = listener.accept()
        with accepted:
            unhush(accepted)
            client.sendall(b"question")
            got = accepted.recv(100)
            accepted.sendall(b"answer")
            return (got + client.recv(100)).decode()

probe = ((Seq(3), Seq(4)),)
before = answered(5001, probe), talks()
hush(listener)
during = answered(5002, probe), answered(5003, ()), talks()
unhush(listener)
unhush(listener)
after = answered(5004, probe), talks()
print(json.dumps([before, during, after]))
"""


@pytest.fixture
def space() -> Iterator[None]:
    try:
        subprocess.run(["ip", "netns", "add", _SPACE], check=True)
        subprocess.run(["ip", "-n", _SPACE, "link", "set", "lo", "up"], check=True)
        for number in (1, 2):
            subprocess.run(["ip", "-n", _SPACE, "address", "add", f"10.9.0.{number}/32", "dev", "lo"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", _SPACE], check=False, capture_output=True)


def test_the_kernel_says_nothing_to_answers_to_probes_while_it_is_hushed(space: None) -> None:
    command = ["ip", "netns", "exec", _SPACE, sys.executable, "-c", _PLAY, _ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    before, during, after = json.loads(done.stdout)
    assert before == [True, "questionanswer"]
    assert during == [False, True, "questionanswer"]
    assert after == [True, "questionanswer"]
