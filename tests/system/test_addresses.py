"""A VIP of either family on the wire: whose it is, who may say so, and clients of every kind of address."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fate import taken_over
from tests.system.client_at_hand import Client
from topologies import Lab

_REQUEST = b"GET /1m HTTP/1.1\r\nHost: x\r\n\r\n"
_HALF_CLOSED = f"""
import hashlib, socket, sys
sock = socket.create_connection((sys.argv[1], 80), timeout=20)
sock.sendall({_REQUEST})
sock.shutdown(socket.SHUT_WR)
print(sock.getsockname()[0], flush=True)
sys.stdin.readline()
received = b""
while data := sock.recv(1 << 20):
    received += data
print(hashlib.sha256(received.partition(b"\\r\\n\\r\\n")[2]).hexdigest())
"""

_FORGED = """
import sys
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.sendrecv import sendp
victim, interface, mac, *claimed = sys.argv[1:]
for address in claimed:
    if ":" in address:
        target, source = ICMPv6NDOptDstLLAddr(lladdr=mac), ICMPv6NDOptSrcLLAddr(lladdr=mac)
        claims = [IPv6(src=address, dst=victim) / ICMPv6ND_NA(tgt=address, R=0, S=solicited, O=1) / target
                  for solicited in (0, 1)]
        claims.append(IPv6(src=address, dst=victim) / ICMPv6ND_NS(tgt=victim) / source)
    else:
        claims = [ARP(op=op, hwsrc=mac, psrc=address, hwdst=mac, pdst=asked)
                  for op in (1, 2) for asked in (victim, address)]
    sendp([Ether(src=mac, dst="02:00:00:00:02:01") / claim for claim in claims], iface=interface, verbose=False)
"""


_TOO_BIG = """
import sys
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.sendrecv import send
here, vip, client, port, seq, mtu = sys.argv[1:]
tcp = TCP(sport=80, dport=int(port), seq=int(seq), flags="A")
if ":" in vip:
    error = IPv6(src=here, dst=vip) / ICMPv6PacketTooBig(mtu=int(mtu)) / IPv6(src=vip, dst=client) / tcp
else:
    error = IP(src=here, dst=vip) / ICMP(type=3, code=4, nexthopmtu=int(mtu))
    error = error / IP(src=vip, dst=client, flags="DF") / tcp
send(error, verbose=False)
"""
_MTU = 1320


def _mac(lab: Lab, host: str, address: str) -> str:
    """What the host believes."""
    shown = lab.run(host, ["ip", "neigh", "show", "to", address], capture_output=True, text=True, check=True).stdout
    return shown.split("lladdr ")[1].split()[0]


@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_only_the_switch_says_where_the_vip_is(lab: Lab, vip: str) -> None:
    """c2 tells c1 that it has the VIP, and then that its own address has moved, which is its right."""
    address, foreign = lab.vips()[vip], "02:00:00:00:02:99"
    wanted = next(v.mac for v in lab.configuration.vips if v.address == address)
    victim, other = (lab.address(client, 6 if ":" in address else 4) for client in ("c1", "c2"))
    for name in (vip, other):
        lab.run("c1", ["ping", "-c", "1", "-W", "5", name], stdout=subprocess.DEVNULL, check=True)
    assert _mac(lab, "c1", address) == wanted
    forged = [sys.executable, "-c", _FORGED, victim, "c2-eth0", foreign, address, other]
    try:
        lab.run("c2", forged, check=True, timeout=30)
        lab.until(lambda: _mac(lab, "c1", other) == foreign, "what c2 said did not reach c1")
        assert _mac(lab, "c1", address) == wanted
    finally:
        lab.run("c1", ["ip", "neigh", "flush", "all"], check=True)


def test_a_host_that_configures_the_vip_learns_that_it_is_taken(lab: Lab) -> None:
    """Duplicate address detection (RFC 4862, 5.4): the switch answers it, whoever the servers are."""
    lab.run("c2", ["sysctl", "-qw", "net.ipv6.conf.c2-eth0.accept_dad=1"], check=True)
    lab.run("c2", ["ip", "address", "add", "fd00::100/64", "dev", "c2-eth0"], check=True)

    def refused() -> bool:
        shown = lab.run("c2", ["ip", "address", "show", "dev", "c2-eth0", "dadfailed"], capture_output=True, text=True)
        return "fd00::100" in shown.stdout

    try:
        lab.until(refused, "nobody told c2 that the address is taken")
    finally:
        lab.run("c2", ["ip", "address", "delete", "fd00::100/64", "dev", "c2-eth0"], check=True)


@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_a_path_mtu_error_reaches_the_server_that_has_the_connection(
    lab: Lab, vip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c2 plays a router whose next link is narrower. Whichever server has the connection must hear of it."""
    monkeypatch.setattr(Client, "vip", vip)
    version = 6 if vip == "vip6" else 4
    with contextlib.ExitStack() as open_:
        clients = {}
        while len(clients) < 2:  # one on each server
            client = open_.enter_context(Client(lab))
            client.ask("/1k")
            client.answer()
            clients[client.owner()] = client
        for owner, client in clients.items():
            connection = client.connection()
            assert connection is not None
            acked = re.search(r"bytes_acked:(\d+)", _kernel(lab, owner, client))
            assert acked is not None
            quoted = (connection["checkpoint"]["iss"] + 1 + int(acked[1])) % 2**32
            told = [lab.address("c2", version), client.service, client.address, client.port, quoted, _MTU]
            lab.run("c2", [sys.executable, "-c", _TOO_BIG, *map(str, told)], check=True, timeout=30)
            lab.until(
                lambda o=owner, c=client: f"pmtu:{_MTU}" in _kernel(lab, o, c), "the server's kernel did not hear"
            )


def _input_ended(checkpoint: dict[str, Any]) -> bool:
    """All that the half-closed client says was read, and its FIN."""
    return (checkpoint["rcv_nxt"] - checkpoint["irs"] - 1) % 2**32 == len(_REQUEST) + 1


def _kernel(lab: Lab, server: str, client: Client) -> str:
    """What a server's kernel says of a client's connection."""
    show = ["ss", "-tinH", "sport", "=", ":80", "and", "dport", "=", f":{client.port}"]
    return str(lab.run(server, show, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("client", ["IPv4", "IPv6", "link-local"])
def test_a_half_closed_client_that_does_not_read_is_taken_over(lab: Lab, client: str) -> None:
    """It has sent its FIN, its window is closed, and its server dies; then it reads."""
    lab.until(lambda: lab.connections() == [], "connections of an earlier test remain")
    vip, source = lab.vips()["vip" if client == "IPv4" else "vip6"], lab.address("c2", 4 if client == "IPv4" else 6)
    if client == "link-local":
        link_local = "fe80::ff:fe00:202"  # of its MAC
        lab.run("c2", ["ip", "route", "add", vip, "dev", "c2-eth0", "src", link_local], check=True)
        source = link_local
    reader = lab.popen(
        "c2", [sys.executable, "-c", _HALF_CLOSED, vip], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == f"{source}\n"
        lab.until(lambda: any(_input_ended(c["checkpoint"]) for c in lab.connections()), "the FIN is not known")
        (connection,) = lab.connections()
        owner, before = connection["server"], len(lab.takeovers())
        assert connection["checkpoint"]["destination_address"] == source
        lab.fail(owner, how="kill")
        takeover = taken_over(lab, before)
        assert (takeover["resumed"], takeover["reset"]) == (1, {})
        lab.heal(owner)
        told, _ = reader.communicate("\n", timeout=30)
        content = Path(lab.status()["docroot"], "1m").read_bytes()
        assert told.split() == [hashlib.sha256(content).hexdigest()]
    finally:
        reader.kill()
        reader.wait()
        if client == "link-local":
            lab.run("c2", ["ip", "route", "delete", vip, "dev", "c2-eth0"], check=True)
