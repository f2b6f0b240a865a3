"""What a bundle may open and what it may not, who reaches its ports, and what its checkpoint says: over real sockets of
this machine's loopback. (`tests/packet/test_bundles.py` goes on where root is needed.)"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane import LocalError
from dataplane.bundle import LiveBundle
from dataplane.connecting import Connecting
from dataplane.datagrams import UdpPart
from dataplane.passive_ports import Listening, PassivePorts
from state.configuration import Service
from state.ports import DataPorts
from state.sections import BUNDLE, CONTROL, LIMIT_PARTS, BundleSection, Part
from tests.unit.builders import document_root
from tests.unit.live import Live, StoringHost, live
from tests.unit.test_live_connection import Plain

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
GROUP = ("239.255.7.7", 6000)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((HERE, 0))
        return int(sock.getsockname()[1])


Test = Callable[[Live, LiveBundle], Awaitable[None]]


class Ports:
    """Free ports of this machine, as the service's data ports."""

    def __init__(self) -> None:
        self.tcp, self.udp = free_port(), free_port(socket.SOCK_DGRAM)
        self.service = Service(
            7000, "plain", data_ports=(DataPorts(self.tcp, self.tcp, "tcp"), DataPorts(self.udp, self.udp, "udp"))
        )


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Ports:
    made = Ports()
    monkeypatch.setattr(StoringHost, "service", made.service)
    return made


def in_a_bundle(folder: Path, test: Test) -> Live:
    """The test runs with a live control connection, and its bundle."""

    async def run() -> Live:
        with document_root(folder) as root:
            async with live(root, Plain()) as made:
                made.connection.start()
                bundle = made.connection.bundle
                assert isinstance(bundle, LiveBundle)
                await test(made, bundle)
            made.host.passive.close()
            return made

    return asyncio.run(run())


def ignore(*_: object) -> None:
    """Nobody looks."""


# --- UDP ---
def test_datagrams_go_to_one_address_and_come_from_it_alone(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Queue[tuple[bytes, tuple[str, int]]]()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as other:
            peer.setblocking(False)
            peer.bind((HERE, 0))
            other.bind((HERE, 0))
            part = bundle.datagrams("rtp", ports.udp, peer.getsockname(), lambda *said: came.put_nowait(said))
            assert part.send(b"media")
            assert await loop.sock_recvfrom(peer, 100) == (b"media", (HERE, ports.udp))
            other.sendto(b"stranger", (HERE, ports.udp))
            peer.sendto(b"report", (HERE, ports.udp))
            assert await came.get() == (b"report", peer.getsockname())
            assert bundle.parts() == [Part("rtp", "udp", ports.udp, *peer.getsockname())]
            part.close()
            part.close()
            assert not part.send(b"late") and bundle.parts() == []

    in_a_bundle(tmp_path, test)


def test_one_local_port_serves_several_remote_ones(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Queue[tuple[int, bytes]]()
        peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for i, peer in enumerate(peers):
            peer.setblocking(False)
            peer.bind((HERE, 0))
            bundle.datagrams(f"rtp{i}", ports.udp, peer.getsockname(), lambda data, _, i=i: came.put_nowait((i, data)))
        for i, peer in enumerate(peers):
            peer.sendto(b"%d" % i, (HERE, ports.udp))
            assert await came.get() == (i, b"%d" % i)
        for part, peer in zip(list(bundle._datagrams), peers, strict=True):
            part.send(b"x")
            assert await loop.sock_recv(peer, 10) == b"x"
            peer.close()

    in_a_bundle(tmp_path, test)


def test_a_client_that_closed_its_port_costs_one_datagram_at_most(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        loop = asyncio.get_running_loop()
        closed = free_port(socket.SOCK_DGRAM)
        part = bundle.datagrams("rtp", ports.udp, (HERE, closed), ignore)
        assert part.send(b"into the void")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.bind((HERE, closed))
            assert part.send(b"heard")
            assert await loop.sock_recv(peer, 10) == b"heard"

    in_a_bundle(tmp_path, test)


def test_a_group_is_sent_to_from_the_vip_by_the_interface_towards_the_clients(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        part = bundle.datagrams("rtp", ports.udp, GROUP, ignore, ttl=3)
        sock = part._sock
        assert sock.getsockname() == (HERE, ports.udp)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 3
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 0
        assert part.send(b"media")
        assert bundle.parts() == [Part("rtp", "udp-multicast", ports.udp, *GROUP)]

    in_a_bundle(tmp_path, test)


def test_what_an_application_does_with_a_datagram_may_close_its_part(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HERE, 0))
            done = asyncio.Event()

            def received(data: bytes, source: tuple[str, int]) -> None:
                part.close()
                done.set()

            part = bundle.datagrams("rtp", ports.udp, peer.getsockname(), received)
            for _ in range(3):
                peer.sendto(b"x", (HERE, ports.udp))
            await done.wait()
            assert bundle.parts() == []

    in_a_bundle(tmp_path, test)


def test_a_mistake_in_what_a_datagram_calls_ends_the_bundle_and_nothing_else(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HERE, 0))

            def received(data: bytes, source: tuple[str, int]) -> None:
                raise ZeroDivisionError

            bundle.datagrams("rtp", ports.udp, peer.getsockname(), received)
            peer.sendto(b"x", (HERE, ports.udp))
            await made.host.over.wait()
            assert bundle.parts() == []
            with pytest.raises(ConnectionResetError):
                await made.hear(1)

    in_a_bundle(tmp_path, test)


def test_datagrams_over_ipv6() -> None:
    async def run() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Queue[bytes]()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer, socket.socket(socket.AF_INET6) as probe:
            peer.setblocking(False)
            peer.bind(("::1", 0))
            probe.bind(("::1", 0))
            port, remote = probe.getsockname()[1], peer.getsockname()[:2]
            lo = socket.if_nametoindex("lo")
            part = UdpPart("::1", port, remote, lambda data, _: came.put_nowait(data), ignore, ttl=1, interface=lo)
            assert part.send(b"media")
            data, source = await loop.sock_recvfrom(peer, 100)
            assert (data, source[:2]) == (b"media", ("::1", port))
            peer.sendto(b"report", ("::1", port))
            assert await came.get() == b"report"
            part.close()
            group = UdpPart("::1", port, ("ff12::7", 6000), ignore, ignore, ttl=3, interface=lo)
            assert group.multicast
            assert group._sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 3
            assert group._sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == lo
            group.close()

    asyncio.run(run())


def test_a_connect_over_ipv6() -> None:
    async def run() -> None:
        done: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

        def connected(sock: socket.socket, peer: tuple[str, int]) -> None:
            done.set_result(sock.getpeername()[:2])
            sock.close()

        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
                port = probe.getsockname()[1]
            remote = server.getsockname()[:2]
            made = Connecting("::1", port, remote, connected, ignore, ignore, interface=0)
            assert await done == remote
            made.close()

    asyncio.run(run())


# --- what is refused ---
@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        ((ELSEWHERE, 5000), "127.0.0.2 is not the client"),
        (("no address", 5000), "is not an IP address"),
        ((HERE, 0), "0 is no port"),
        ((HERE, 65536), "65536 is no port"),
    ],
)
def test_data_goes_to_the_client_and_to_nobody_else(
    tmp_path: Path, ports: Ports, remote: tuple[str, int], sentence: str
) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with pytest.raises(LocalError, match=sentence):
            bundle.datagrams("rtp", ports.udp, remote, ignore)
        with pytest.raises(LocalError, match=sentence):
            bundle.connect("data", ports.tcp, remote, Plain(), ignore)
        assert bundle.parts() == []

    in_a_bundle(tmp_path, test)


def test_nobody_connects_to_a_group(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with pytest.raises(LocalError, match="is not the client"):
            bundle.connect("data", ports.tcp, GROUP, Plain(), ignore)

    in_a_bundle(tmp_path, test)


def test_only_a_service_that_is_all_in_one_slot_sends_to_groups(
    tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoringHost, "affinity", "client")

    async def test(made: Live, bundle: LiveBundle) -> None:
        with pytest.raises(LocalError, match="affinity: service"):
            bundle.datagrams("rtp", ports.udp, GROUP, ignore)

    in_a_bundle(tmp_path, test)


def test_only_the_services_data_ports_are_used(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        remote, other = (HERE, 5000), ports.tcp + 1
        for opening in (
            lambda: bundle.datagrams("rtp", ports.udp + 1, remote, ignore),
            lambda: bundle.listen("data", ignore, other),
            lambda: bundle.connect("data", other, remote, Plain(), ignore),
        ):
            with pytest.raises(LocalError, match=r"is no data port of plain on 127\.0\.0\.1"):
                opening()
        assert [list(run) for run in bundle.data_ports("tcp")] == [[ports.tcp]]
        assert [list(run) for run in bundle.data_ports("udp")] == [[ports.udp]]

    in_a_bundle(tmp_path, test)


@pytest.mark.parametrize("role", ["", CONTROL, "x" * 33])
def test_a_role_that_no_checkpoint_could_carry_is_refused(tmp_path: Path, ports: Ports, role: str) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with pytest.raises(LocalError, match="cannot be a role"):
            bundle.listen(role, ignore)

    in_a_bundle(tmp_path, test)


def test_no_part_is_opened_when_there_are_too_many_and_each_is_counted_as_long_as_it_is_open(
    tmp_path: Path, ports: Ports
) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        parts = [bundle.datagrams("rtp", ports.udp, (HERE, port), ignore) for port in (1, 2)]
        client = made.connection.connection.destination
        assert made.host.parts == [client, client]
        parts[0].close()
        parts[0].close()
        assert made.host.parts == [client]
        made.host.room = False
        with pytest.raises(LocalError, match="too many connections"):
            bundle.datagrams("rtp", ports.udp, (HERE, 3), ignore)
        with pytest.raises(LocalError, match="too many connections"):
            bundle.listen("data", ignore)
        made.connection.reset()
        assert made.host.parts == []

    in_a_bundle(tmp_path, test)


def test_a_bundle_has_only_so_many_parts(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        for port in range(1, LIMIT_PARTS + 1):
            bundle.datagrams("rtp", ports.udp, (HERE, port), ignore)
        with pytest.raises(LocalError, match=f"{LIMIT_PARTS} parts already"):
            bundle.datagrams("rtp", ports.udp, (HERE, 5000), ignore)

    in_a_bundle(tmp_path, test)


def test_a_service_without_data_ports_opens_nothing(tmp_path: Path) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        with pytest.raises(LocalError, match="no data port is free"):
            bundle.listen("data", ignore)

    in_a_bundle(tmp_path, test)


# --- checkpoints ---
def test_a_connection_without_parts_says_nothing_of_a_bundle(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        made.connection.write(b"x")
        assert await made.hear(1) == b"x"

    (block, *_) = in_a_bundle(tmp_path, test).host.checkpoints
    assert block.header.bundle == "" and BUNDLE not in [section.name for section in block.sections]


def test_what_is_open_and_what_is_awaited_stands_in_the_checkpoint(tmp_path: Path, ports: Ports) -> None:
    """It does before the client can read what was written in the same turn."""

    async def test(made: Live, bundle: LiveBundle) -> None:
        awaited = bundle.listen("data", ignore)
        part = bundle.datagrams("rtp", ports.udp, (HERE, 5000), ignore)
        made.connection.write(b"x")
        assert await made.hear(1) == b"x"
        block = made.host.checkpoints[-1]
        section = block.section(BUNDLE, BundleSection)
        assert block.header.bundle == section.id == bundle.id == made.connection.connection.id
        assert (section.role, section.parts) == (CONTROL, bundle.parts())
        assert section.parts == [Part("data", "tcp", ports.tcp), Part("rtp", "udp", ports.udp, HERE, 5000)]
        section.check(block.header.connection.id)
        awaited.close()
        part.close()
        made.connection.write(b"y")
        assert await made.hear(1) == b"y"
        assert made.host.checkpoints[-1].header.bundle == ""

    in_a_bundle(tmp_path, test)


def test_the_end_of_the_control_connection_closes_what_is_open(tmp_path: Path, ports: Ports) -> None:
    async def test(made: Live, bundle: LiveBundle) -> None:
        bundle.listen("data", ignore)
        part = bundle.datagrams("rtp", ports.udp, (HERE, 5000), ignore)
        made.connection.reset()
        assert bundle.parts() == [] and not part.send(b"x")
        with pytest.raises(LocalError, match="is over"):
            bundle.listen("data", ignore)
        with socket.socket() as sock:
            assert sock.connect_ex((HERE, ports.tcp)) != 0

    in_a_bundle(tmp_path, test)


# --- passive ports ---
@asynccontextmanager
async def passive() -> AsyncIterator[PassivePorts]:
    made = PassivePorts()
    try:
        yield made
    finally:
        made.close()


class Desk:
    """Awaits clients and notes who came."""

    def __init__(self, ports: PassivePorts, runs: list[range]) -> None:
        self._ports, self._runs = ports, runs
        self.came: asyncio.Queue[tuple[str, tuple[str, int]]] = asyncio.Queue()
        self.closed: list[str] = []

    def await_(self, client: str, port: int | None = None) -> Listening:
        def accepted(sock: socket.socket, peer: tuple[str, int]) -> None:
            sock.close()
            self.came.put_nowait((client, peer))

        return self._ports.listen(HERE, client, self._runs, port, accepted, lambda _: self.closed.append(client))


async def connect(source: str, port: int) -> bytes:
    """Connect from that address; what is read: nothing at a close."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.bind((source, 0))
        await loop.sock_connect(sock, (HERE, port))
        return await loop.sock_recv(sock, 1)


def test_who_connects_is_told_apart_by_address() -> None:
    async def run() -> None:
        port = free_port()
        async with passive() as ports:
            desk = Desk(ports, [range(port, port + 1)])
            first, second = desk.await_(HERE), desk.await_(ELSEWHERE)
            assert first.local_port == second.local_port == port
            for source in (ELSEWHERE, HERE, HERE):
                assert await connect(source, port) == b""
                client, peer = await desk.came.get()
                assert client == peer[0] == source
            first.close()
            with pytest.raises(ConnectionResetError):
                await connect(HERE, port)
            assert await connect(ELSEWHERE, port) == b""
            second.close()
            second.close()
            assert desk.closed == [HERE, ELSEWHERE]
            with pytest.raises(ConnectionRefusedError):
                await connect(ELSEWHERE, port)

    asyncio.run(run())


def test_a_client_is_awaited_once_at_a_port() -> None:
    async def run() -> None:
        port = free_port()
        async with passive() as ports:
            desk = Desk(ports, [range(port, port + 1)])
            desk.await_(HERE, port)
            with pytest.raises(LocalError, match="is awaited there already"):
                desk.await_(HERE, port)
            with pytest.raises(LocalError, match="no data port is free"):
                desk.await_(HERE)
            assert desk.await_(ELSEWHERE, port).local_port == port

    asyncio.run(run())


def test_any_port_is_one_that_nobody_else_has() -> None:
    async def run() -> None:
        with socket.socket() as taken:
            taken.bind((HERE, 0))
            taken.listen()
            first = taken.getsockname()[1]
            async with passive() as ports:
                with pytest.raises(LocalError, match="no data port is free"):
                    Desk(ports, [range(first, first + 1)]).await_(HERE)
                with pytest.raises(LocalError, match="cannot be listened on"):
                    Desk(ports, []).await_(HERE, first)
                other = free_port()
                assert Desk(ports, [range(first, first + 1), range(other, other + 1)]).await_(HERE).local_port == other

    asyncio.run(run())


def test_a_privileged_port_is_taken_only_by_its_number() -> None:
    """Port 20 is the one from which an FTP server connects: nobody may listen there by chance."""

    async def run() -> None:
        async with passive() as ports:
            with pytest.raises(LocalError, match="no data port is free"):
                Desk(ports, [range(20, 1024)]).await_(HERE)

    asyncio.run(run())


def test_the_next_port_cannot_be_guessed() -> None:
    async def run() -> None:
        async with passive() as ports:
            desk = Desk(ports, [range(41_000, 42_000)])
            taken = [desk.await_(HERE).local_port for _ in range(8)]
            assert len(set(taken)) == 8
            assert taken != list(range(taken[0], taken[0] + 8))

    asyncio.run(run())
