"""Data connections that no checkpoint has, over this machine's loopback: what their handshake tells is what the kernel
knows, and what is recreated from it goes on. Root is needed to see packets and to recreate connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from dataplane import repair, young
from dataplane.backup import INPUT_LOST, NO_PROOF
from dataplane.handshake import agreed
from dataplane.judge import Doubt, Expectation, Proof
from dataplane.passive_ports import Listening, PassivePorts
from dataplane.prover import Key, Patience, Verdict, key_of
from dataplane.segment import SYN, Segment, parse
from dataplane.sequence import Seq
from dataplane.young import YoungConnections
from state.datablock import FourTuple
from state.errors import SegmentMalformed
from state.messages import Handshake

_ETHERNET, _ALL = 14, 3
PATIENCE = Patience(2.0, 2.0)
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@dataclass
class Opened:
    """A connection as both ends have it, and as the switch would show it."""

    client: socket.socket
    server: socket.socket
    handshake: Handshake

    def proof(self, missing: int = 0) -> Proof:
        """Where the client stands: nothing was sent to it."""
        tcp, ack = self.handshake.tcp, young.expectation(self.handshake).acked_seq
        seq = young.expectation(self.handshake).rcv_nxt + missing
        return Proof(ack, 0, seq, missing, 65535, 0, tcp.tsval)


def syns(packets: socket.socket, client_port: int, port: int) -> Iterator[Segment]:
    while True:
        frame, about = packets.recvfrom(2048)
        if about[2] == socket.PACKET_OUTGOING:
            continue  # on the loopback everything is seen twice
        try:
            found = parse(frame[_ETHERNET:])
        except SegmentMalformed:
            continue
        if found.flags & SYN and {found.source_port, found.destination_port} == {client_port, port}:
            yield found


@contextmanager
def opened(family: int = socket.AF_INET, mss: int = 1000) -> Iterator[Opened]:
    """A client's connection to a port that nobody listens on any more."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as packets,
        socket.socket(family) as listener,
        socket.socket(family) as client,
    ):
        packets.bind(("lo", _ALL))
        packets.settimeout(10)
        listener.bind((LOOPBACK[family], 0))
        listener.listen()
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        client.connect(listener.getsockname()[:2])
        server, peer = listener.accept()
        listener.close()
        found = syns(packets, peer[1], server.getsockname()[1])
        theirs, ours = next(found), next(found)
        handshake = agreed(ours, theirs)
        assert handshake is not None
        with server:
            yield Opened(client, server, handshake)


@pytest.mark.parametrize("family", LOOPBACK)
@pytest.mark.parametrize("mss", [536, 1400])
def test_the_handshake_says_what_the_kernel_knows(family: int, mss: int) -> None:
    with opened(family, mss) as one:
        snapshot = repair.read(one.server)
        known, told = snapshot.tcp, one.handshake.tcp
        assert (one.handshake.iss, one.handshake.irs) == (snapshot.iss, snapshot.irs)
        assert (told.snd_wscale, told.rcv_wscale, told.window_scaling) == (
            known.snd_wscale,
            known.rcv_wscale,
            known.window_scaling,
        )
        assert (told.sack, told.timestamps, told.wmax) == (known.sack, known.timestamps, known.wmax)
        assert told.mss == known.mss
        assert abs(Seq(told.tsval).distance(known.tsval)) < 10_000, "one clock, read at two moments"
        assert one.handshake.connection.destination_port == one.client.getsockname()[1]


@dataclass
class Net:
    """The proving, decided by the test."""

    asked: dict[Key, tuple[Expectation, Callable[[Verdict], None]]] = field(default_factory=dict)
    dismissed: list[tuple[Expectation, Proof | None]] = field(default_factory=list)

    def prove(self, expected: Expectation, patience: Patience, decided: Callable[[Verdict], None]) -> Key:
        self.asked[key_of(expected)] = expected, decided
        return key_of(expected)

    def dismiss(self, expected: Expectation, standing: Proof | None) -> None:
        self.dismissed.append((expected, standing))

    def decide(self, outcome: Proof | Doubt) -> None:
        ((key, (_, decided)),) = self.asked.items()
        decided(Verdict(key, outcome))


@dataclass
class Heir:
    net: Net
    young: YoungConnections
    ports: PassivePorts
    live: set[FourTuple]
    fates: list[str | None]
    accepted: list[tuple[socket.socket, tuple[str, int]]] = field(default_factory=list)
    joined: list[tuple[FourTuple, Proof]] = field(default_factory=list)

    def awaits(self, one: Opened) -> Listening:
        vip, port = one.server.getsockname()
        one.server.close()  # its owner is dead: in silence
        peer = one.client.getsockname()[0]
        return self.ports.listen(
            vip, peer, (), port, lambda *found: self.accepted.append(found), lambda listening: None
        )


def at_the_heir(test: Callable[[Heir, Opened], Awaitable[None]]) -> None:
    async def run() -> None:
        net, live, fates = Net(), set[FourTuple](), list[str | None]()

        def told(takeover: int, connection: FourTuple, reason: str | None) -> None:
            assert takeover == 7 and connection == one.handshake.connection
            fates.append(reason)

        joined = list[tuple[FourTuple, Proof]]()
        connections = YoungConnections(
            net,  # type: ignore[arg-type]
            0,
            live.__contains__,
            told,
            lambda connection, proof: joined.append((connection, proof)),
        )
        ports = PassivePorts(connections.awaited)
        heir = Heir(net, connections, ports, live, fates, joined=joined)
        with opened() as one:
            repair.abandon(one.server.dup())
            try:
                await test(heir, one)
            finally:
                ports.close()
                for sock, _ in heir.accepted:
                    sock.close()

    asyncio.run(run())


def test_who_is_awaited_and_proves_itself_is_accepted() -> None:
    async def test(heir: Heir, one: Opened) -> None:
        heir.young.expect(7, [one.handshake], PATIENCE)
        assert heir.net.asked == {}, "nobody is asked before it is awaited"
        heir.awaits(one)
        ((expected, _),) = heir.net.asked.values()
        assert (expected.acked, expected.end, expected.closing) == (0, 0, False)
        heir.net.decide(one.proof())
        ((sock, peer),) = heir.accepted
        assert peer == one.client.getsockname()
        assert heir.joined == [(one.handshake.connection, one.proof())]
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"from the heir")
        assert await asyncio.to_thread(one.client.recv, 100) == b"from the heir"
        await asyncio.to_thread(one.client.sendall, b"to the heir")
        assert await loop.sock_recv(sock, 100) == b"to the heir"
        assert heir.net.dismissed == [] and heir.fates == [None]

    at_the_heir(test)


@pytest.mark.parametrize("doubt,told", [(Doubt.UNPROVEN, True), (Doubt.GONE, False), (Doubt.SILENT, False)])
def test_who_proves_nothing_is_not_accepted(doubt: Doubt, told: bool) -> None:
    async def test(heir: Heir, one: Opened) -> None:
        heir.young.expect(7, [one.handshake], PATIENCE)
        heir.awaits(one)
        heir.net.decide(doubt)
        assert heir.accepted == [] and bool(heir.net.dismissed) == told
        assert heir.fates == ([NO_PROOF] if told else [])

    at_the_heir(test)


def test_input_that_the_dead_server_may_have_acknowledged_is_lost() -> None:
    async def test(heir: Heir, one: Opened) -> None:
        heir.young.expect(7, [one.handshake], PATIENCE)
        heir.awaits(one)
        heir.net.decide(one.proof(missing=5))
        assert heir.accepted == [] and len(heir.net.dismissed) == 1
        assert heir.fates == [INPUT_LOST]

    at_the_heir(test)


def test_who_is_not_awaited_any_more_is_reset() -> None:
    async def test(heir: Heir, one: Opened) -> None:
        heir.young.expect(7, [one.handshake], PATIENCE)
        heir.awaits(one).close()
        heir.net.decide(one.proof())
        assert heir.accepted == [] and len(heir.net.dismissed) == 1
        assert heir.fates == [young.NOT_AWAITED]

    at_the_heir(test)


@pytest.mark.parametrize("outcome", ["live", "gone", "proven"])
def test_who_is_never_awaited_is_reset_if_its_client_has_it(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control connection was not resumed, or it ended before its server could say that it began. What lives here
    has begun anew."""
    monkeypatch.setattr(young, "CLAIM_SECONDS", 0.01)

    async def test(heir: Heir, one: Opened) -> None:
        if outcome == "live":
            heir.live.add(one.handshake.connection)
        heir.young.expect(7, [one.handshake], PATIENCE)
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, over.set)  # after that of the young one
        await over.wait()
        assert bool(heir.net.asked) == (outcome != "live") and heir.net.dismissed == []
        if outcome != "live":
            heir.net.decide(one.proof() if outcome == "proven" else Doubt.GONE)
        assert bool(heir.net.dismissed) == (outcome == "proven")
        assert heir.fates == ([young.NOT_AWAITED] if outcome == "proven" else [])
        heir.net.asked.clear()
        heir.awaits(one)
        assert heir.net.asked == {} and heir.accepted == []

    at_the_heir(test)


def test_a_fenced_server_says_nothing_to_them() -> None:
    async def test(heir: Heir, one: Opened) -> None:
        heir.young.expect(7, [one.handshake], PATIENCE)
        heir.young.clear()
        heir.awaits(one)
        assert heir.net.asked == {}

    at_the_heir(test)
