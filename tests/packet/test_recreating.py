"""The kernel's part, in two namespaces without a switch: a connection is read, abandoned without a word, proven and
recreated, and the client's stream goes on. The client is a plain socket that knows of nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).resolve().parents[2])
_SERVER, _CLIENT = "tkot-server", "tkot-client"

_RECEIVER = """
import hashlib, socket, sys
sock = socket.create_connection((sys.argv[1], 80), timeout=10)
digest, count = hashlib.sha256(), 0
while data := sock.recv(1 << 20):
    digest.update(data)
    count += len(data)
print(count, digest.hexdigest())
"""

_OWNER_AND_BACKUP = """
import asyncio, hashlib, json, random, socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
from dataplane import repair, segment
from dataplane.judge import Expectation, Proof
from dataplane.prover import Patience
from dataplane.proving import Proving
from dataplane.sequence import Seq
from state.datablock import FourTuple

TOTAL, SENT, VIP, INTERFACE = 600_000, int(sys.argv[2]), sys.argv[3], socket.if_nametoindex("vs")
content = random.Random(3).randbytes(TOTAL)
listener = socket.socket(socket.AF_INET6 if ":" in VIP else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((VIP, 80))
listener.listen()
print("listening", flush=True)
first, peer = listener.accept()
snapshot = repair.read(first)
assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
first_mss = first.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
first.sendall(content[:SENT])
while repair.unacknowledged(first):
    pass
repair.abandon(first)
if "half-open" in sys.argv:
    # What a server has that was asked first, and whose answer was lost.
    subprocess.run(["nft", "add rule inet g o tcp flags & (syn | ack) == (syn | ack) drop"], check=True)
    client, vip = (socket.inet_pton(listener.family, address) for address in (peer[0], VIP))
    syn = segment.Segment(client, peer[1], vip, 80, snapshot.irs, Seq(0), segment.SYN, 65535)
    with socket.socket(listener.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(segment.build(syn), (VIP, 0))
    while not subprocess.run(["ss", "-Htn", "state", "syn-recv", "sport", "=", ":80"], capture_output=True).stdout:
        pass

async def take_over():
    proving = Proving(INTERFACE)
    family = listener.family
    connection = FourTuple(socket.inet_pton(family, VIP), 80, socket.inet_pton(family, peer[0]), peer[1])
    expected = Expectation(connection, 0, snapshot.iss + 1, TOTAL, False, snapshot.irs + 1, snapshot.tcp.snd_wscale,
                           snapshot.tcp.timestamps, snapshot.tcp.tsval)
    outcome = asyncio.get_running_loop().create_future()
    proving.prove(expected, Patience(5, 5), outcome.set_result)
    proving.turn()
    proof = (await outcome).outcome
    assert isinstance(proof, Proof), proof
    again = repair.recreate(connection, snapshot.tcp, proof, snapshot.irs + 1, INTERFACE)
    again.setblocking(True)
    again.sendall(content[proof.position:])
    again.shutdown(socket.SHUT_WR)
    assert again.recv(1) == b""
    return {"position": proof.position, "mss": [first_mss, again.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)],
            "client": peer[0], "digest": hashlib.sha256(content).hexdigest()}

print(json.dumps(asyncio.run(take_over())))
"""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[None]:
    try:
        for name in (_SERVER, _CLIENT):
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", "vs", "netns", _SERVER, "type", "veth", "peer", "name", "vc", "netns", _CLIENT)
        for name, link, number in ((_SERVER, "vs", 1), (_CLIENT, "vc", 2)):
            _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0")
            _run("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv6.conf.{link}.accept_dad=0")
            _run("ip", "-n", name, "address", "add", f"10.9.0.{number}/24", "dev", link)
            for address in (f"fd09::{number}", f"fe80::{number}"):
                _run("ip", "-n", name, "address", "add", f"{address}/64", "dev", link)
            _run("ip", "-n", name, "link", "set", link, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        # A network on which the client has none but its link-local address.
        _run("ip", "-n", _SERVER, "link", "set", "vs", "address", "02:00:00:00:00:01")
        _run("ip", "-n", _SERVER, "address", "add", "fd0a::1/128", "dev", "lo")
        _run("ip", "-n", _CLIENT, "neigh", "add", "fd0a::1", "lladdr", "02:00:00:00:00:01", "dev", "vc")
        _run("ip", "-n", _CLIENT, "route", "add", "fd0a::1", "dev", "vc", "src", "fe80::2")
        # The switch's close gate, in small: the kernel without a socket would answer the client with RST.
        gate = "add table inet g; add chain inet g o { type filter hook output priority 0; }; \
add rule inet g o tcp flags & rst == rst drop"
        _run("ip", "netns", "exec", _SERVER, "nft", gate)
        yield
    finally:
        for name in (_SERVER, _CLIENT):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.parametrize("sent", [0, 1, 400_000])
@pytest.mark.parametrize(
    ("vip", "client"),
    [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2"), ("fd0a::1", "fe80::2")],
    ids=["IPv4", "IPv6", "link-local client"],
)
def test_a_recreated_connection_goes_on_at_the_right_byte(two_hosts: None, sent: int, vip: str, client: str) -> None:
    _goes_on(sent, vip, client)


@pytest.mark.parametrize(("vip", "client"), [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")], ids=["IPv4", "IPv6"])
def test_a_half_open_connection_of_the_same_client_is_not_in_the_way(two_hosts: None, vip: str, client: str) -> None:
    """The SYN came to this server first, and its answer did not leave; then the client was another's."""
    _goes_on(1, vip, client, "half-open")


def _goes_on(sent: int, vip: str, client: str, *more: str) -> None:
    server = subprocess.Popen(
        ["ip", "netns", "exec", _SERVER, sys.executable, "-c", _OWNER_AND_BACKUP, _ROOT, str(sent), vip, *more],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        receiver = subprocess.run(
            ["ip", "netns", "exec", _CLIENT, sys.executable, "-c", _RECEIVER, vip],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        told = json.loads(server.communicate(timeout=30)[0])
    finally:
        server.kill()  # it would wait for its client for ever
        server.wait()
    assert server.returncode == 0
    assert told["client"] == client
    assert told["position"] == sent
    before, after = told["mss"]
    assert before <= after <= before + 12  # with or without timestamps; not the 524 bytes of an MSS set too late
    assert receiver.stdout.split() == ["600000", told["digest"]]
