"""Strangers on the switch speak in a client's name while its connection is taken over. None is believed.

A *knowing* stranger has read the shared state: addresses, ports, sequence numbers. He lacks only what the probes carry,
because the switch does not show them to him.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane.segment import ACK, Segment, build
from dataplane.sequence import Seq
from tests.fate import fate, taken_over
from tests.system.client_at_hand import KINDS, Client, by_itself, held_back, inside, kind_of_client, rules, to
from topologies import Lab
from topologies.vip import VIP

_TRIES = 10_000
_AT_ONCE = 250
_PLANNED = 1 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A client that only strangers speak for is not given up while they do: 10,000 tries take their time."""
    with Lab(servers=2, clients=2, detection={"proof_ms": 60_000}) as running:
        yield running


@pytest.fixture(autouse=True)
def every_test_for_itself(lab: Lab) -> Iterator[None]:
    with by_itself(lab):
        yield


@contextmanager
def raw_socket(lab: Lab, host: str) -> Iterator[socket.socket]:
    with inside(lab, host, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sock:
        yield sock


def received(lab: Lab, server: str) -> int:
    """Packets that reached a server's interface."""
    path = f"/sys/class/net/{server}-eth0/statistics/rx_packets"
    return int(lab.run(server, ["cat", path], capture_output=True, text=True, check=True).stdout)


def forgeries(client: Client, known: dict[str, Any], timestamps: bool, *, blind: bool) -> Iterator[bytes]:
    source = random.Random(20261103)
    acked = Seq(known["snd_una"])
    like = Segment(
        socket.inet_aton(client.address),
        client.port,
        socket.inet_aton(client.service),
        80,
        Seq(known["rcv_nxt"]),
        acked,
        ACK,
        501,
    )
    while True:
        probe = acked - 2 - source.randrange(1 << 30)
        yield build(
            replace(
                like,
                seq=Seq(source.randrange(2**32)) if blind else like.seq,
                ack=Seq(source.randrange(2**32)) if blind else acked + source.randrange(_PLANNED),
                timestamps=(1, source.randrange(2**32)) if timestamps else None,
                sack=((probe, probe + 1),) if source.random() < 0.5 else (),
            )
        )


@pytest.mark.parametrize("blind", [True, False], ids=["blind", "knowing"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_ten_thousand_forged_acknowledgements_are_not_believed(lab: Lab, kind: str, blind: bool) -> None:
    """From another host, while the client hears no probes. Then it does, and is resumed."""
    before = len(lab.takeovers())
    with kind_of_client(lab, "c1", kind), Client(lab, receive_buffer=1 << 16) as client, raw_socket(lab, "c2") as wire:
        client.ask("/1m")
        client.wait_unread(10_000)
        connection = client.connection()
        assert connection is not None
        forged = forgeries(client, connection["checkpoint"], "timestamps" in kind, blind=blind)
        with rules(lab, "c1", f"in {to(client)} drop"):
            dead, _ = client.killed()

            def heirs() -> list[str]:
                return [t["to"] for t in [fate(lab, before, dead)] if t and t["state"] == "resuming"]

            for _ in range(_TRIES // _AT_ONCE):
                lab.until(heirs, "nobody takes over")
                (heir,) = heirs()
                arrived = received(lab, heir)
                for _ in range(_AT_ONCE):
                    wire.sendto(next(forged), (VIP, 0))
                lab.until(lambda h=heir, a=arrived: received(lab, h) >= a + _AT_ONCE, "what was forged does not arrive")
            takeover = fate(lab, before, dead)
            assert takeover is not None
            assert (takeover["state"], takeover["resumed"], takeover["reset"]) == ("resuming", 0, {})
        assert client.answer() == Path(lab.status()["docroot"] + "/1m").read_bytes()
        takeover = taken_over(lab, before)
        assert (takeover["resumed"], takeover["reset"]) == (1, {})


@pytest.mark.parametrize("kind", KINDS)
def test_stale_acknowledgements_come_first_and_are_not_believed(lab: Lab, kind: str) -> None:
    """The client's own, of long ago, over and over, among its answers."""
    before = len(lab.takeovers())
    with (
        kind_of_client(lab, "c1", kind),
        Client(lab, receive_buffer=1 << 20) as client,
        raw_socket(lab, "c1") as wire,
    ):
        client.owner()
        connection = client.connection()
        assert connection is not None
        stale = next(forgeries(client, connection["checkpoint"], "timestamps" in kind, blind=False))
        with held_back(client, 200_000):
            client.ask("/1m")
            client.wait_unread(200_000)
            client.killed()
            for _ in range(200):
                wire.sendto(stale, (VIP, 0))
            takeover = taken_over(lab, before)
            assert (takeover["resumed"], takeover["reset"]) == (1, {})
        assert client.answer() == Path(lab.status()["docroot"] + "/1m").read_bytes()
