"""A bundle on its owner: one control connection, and the data connections that its application opened (claims 4-7,
15-18). `stack.Bundle` says what applications see of it.

TCP parts are connections like any other, with a data block of their own; a section `bundle` says to what they belong,
and the control connection's says what else there is. Their blocks are made in the same turn, so that they travel in one
message: the shared state never knows one without the other. UDP parts have no block and no state.

The end of the control connection ends all; the end of a data connection is told to its application only.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from dataplane import repair
from dataplane.connecting import Connecting
from dataplane.connection import LiveConnection
from dataplane.datagrams import Received, UdpPart, is_multicast
from dataplane.host import Host
from dataplane.passive_ports import Listening, PassivePorts
from dataplane.sequence_map import SequenceMap
from dataplane.stack import Application, Layer, Member, TcpLayer
from dataplane.stream import ByteStream
from state import ports
from state.configuration import Service
from state.datablock import DataBlock, FourTuple
from state.errors import LocalError, RepairError
from state.sections import BUNDLE, CONTROL, LIMIT_PARTS, BundleSection, Part

_log = logging.getLogger(__name__)

Accepted = Callable[[tuple[str, int]], Application | None]


class BundleHost(Host, Protocol):
    """What a bundle needs of its agent."""

    passive: PassivePorts

    def opened(self, connection: LiveConnection) -> None:
        """A data connection lives here from now on."""

    def has_room_for_part(self) -> bool:
        """This process may open as much."""

    def part_opened(self, client: bytes) -> None:
        """A UDP port of this client's."""

    def part_closed(self, client: bytes) -> None: ...


class LiveBundle:
    """See `stack.Bundle` and `connection.Related`. `affinity`: the service's, or its VIP's if it has none."""

    def __init__(self, host: BundleHost, control: LiveConnection, service: Service, affinity: str) -> None:
        self._host = host
        self._control = control
        self._service = service
        self._affinity = affinity
        self._members: dict[LiveConnection, str] = {}
        """Data connections over TCP, with their roles."""
        self._datagrams: dict[UdpPart, str] = {}
        self._awaited: dict[Listening | Connecting, str] = {}
        self._over = False

    # --- stack.Bundle ---
    @property
    def id(self) -> str:
        return self._control.connection.id

    @property
    def control(self) -> Application:
        return self._control.application

    @property
    def client(self) -> str:
        return str(ipaddress.ip_address(self._control.connection.destination))

    @property
    def vip(self) -> str:
        return str(ipaddress.ip_address(self._control.connection.source))

    def data_ports(self, transport: str) -> tuple[range, ...]:
        return tuple(run.numbers for run in self._service.data_ports if run.transport == transport)

    def datagrams(
        self, role: str, local_port: int, remote: tuple[str, int], received: Received, *, ttl: int = 16
    ) -> UdpPart:
        self._check(role, ports.UDP, local_port)
        if not is_multicast(remote[0]):
            self._check_client(remote)
        elif self._affinity != "service":
            raise LocalError(
                f"{self.id}: to send to a group, all of the service must have one slot (affinity: service)"
            )
        told = functools.partial(self._control.carry_out, received)
        interface = self._host.interface
        part = UdpPart(self.vip, local_port, remote, told, self._closed, ttl=ttl, interface=interface)
        self._datagrams[part] = role
        self._host.part_opened(self._control.connection.destination)
        self._control.schedule_checkpoint()
        return part

    def listen(self, role: str, accepted: Accepted, port: int | None = None) -> Listening:
        self._check(role, ports.TCP, port)
        runs, ask = self.data_ports(ports.TCP), functools.partial(self._accepted, role, accepted)
        listening = self._host.passive.listen(self.vip, self.client, runs, port, ask, self._closed)
        self._awaited[listening] = role
        self._control.schedule_checkpoint()
        return listening

    def connect(
        self,
        role: str,
        local_port: int,
        remote: tuple[str, int],
        application: Application,
        failed: Callable[[str], None],
    ) -> Connecting:
        self._check(role, ports.TCP, local_port)
        self._check_client(remote)

        def connected(sock: socket.socket, peer: tuple[str, int]) -> None:
            self._join(role, sock, peer, application, functools.partial(repair.finish_handshake, sock))

        told = functools.partial(self._control.carry_out, failed)
        interface = self._host.interface
        connecting = Connecting(self.vip, local_port, remote, connected, told, self._closed, interface=interface)
        self._awaited[connecting] = role
        self._control.schedule_checkpoint()
        return connecting

    def connections(self) -> list[Member]:
        return [Member(role, connection, connection.application) for connection, role in self._members.items()]

    def parts(self) -> list[Part]:
        found = [
            Part(role, "tcp", four.source_port, str(ipaddress.ip_address(four.destination)), four.destination_port)
            for four, role in ((connection.connection, role) for connection, role in self._members.items())
        ]
        found += [Part(role, "tcp", awaited.local_port) for awaited, role in self._awaited.items()]
        found += [
            Part(role, "udp-multicast" if part.multicast else "udp", part.local_port, *part.remote)
            for part, role in self._datagrams.items()
        ]
        return found

    def _check(self, role: str, transport: str, port: int | None) -> None:
        """Raises `LocalError` for what the bundle may not open."""
        if self._over:
            raise LocalError(f"{self.id} is over")
        if not 1 <= len(role) <= 32 or role == CONTROL:
            raise LocalError(f"{role[:64]!r} cannot be a role: 1 to 32 characters, not {CONTROL}")
        if port is not None and not any(port in run for run in self.data_ports(transport)):
            raise LocalError(f"{port}/{transport} is no data port of {self._service.protocol} on {self.vip}")
        if len(self._members) + len(self._datagrams) + len(self._awaited) >= LIMIT_PARTS:
            raise LocalError(f"{self.id} has {LIMIT_PARTS} parts already")
        if not self._host.has_room_for_part():
            raise LocalError(f"{self.id} may have no more parts: there are too many connections")

    def _check_client(self, remote: tuple[str, int]) -> None:
        """Data goes to who asked for it, and nowhere else (RFC 2577, section 3: the bounce attack)."""
        address, port = remote
        if is_multicast(address) or ipaddress.ip_address(address) != ipaddress.ip_address(self.client):
            raise LocalError(f"{address} is not the client of {self.id}")
        if not 1 <= port <= 0xFFFF:
            raise LocalError(f"{port} is no port")

    # --- parts come and go ---
    def _accepted(self, role: str, accepted: Accepted, sock: socket.socket, peer: tuple[str, int]) -> None:
        if not self._host.has_room_for_part():
            repair.refuse_quietly(sock)
            return
        found: list[Application | None] = []
        self._control.carry_out(lambda: found.append(accepted(peer)))
        application = found[0] if found else None
        if application is None or self._over:
            repair.refuse_quietly(sock)
        else:
            self._join(role, sock, peer, application)

    def _join(
        self,
        role: str,
        sock: socket.socket,
        peer: tuple[str, int],
        application: Application,
        when_stored: Callable[[], None] | None = None,
    ) -> None:
        """A new data connection is there. `when_stored`: what is to be done once the shared state has it."""
        try:
            snapshot = repair.read(sock)
        except RepairError as error:
            _log.warning("%s", error)
            repair.refuse_quietly(sock)
            return
        local, loop = sock.getsockname(), asyncio.get_running_loop()
        source, destination = (ipaddress.ip_address(address[0]).packed for address in (local, peer))
        connection = LiveConnection(
            self._host,
            sock,
            FourTuple(source, local[1], destination, peer[1]),
            ByteStream(SequenceMap(snapshot.iss)),
            TcpLayer(snapshot.tcp, loop.time(), loop.time),
            application,
            snapshot.irs,
            protected=self._control.protected,
            bundle=self,
        )
        if when_stored is not None:
            connection.when_stored(when_stored)
        self.adopt(connection, role)
        self._host.opened(connection)
        connection.start()

    def _closed(self, part: Listening | Connecting | UdpPart) -> None:
        if isinstance(part, UdpPart):
            if self._datagrams.pop(part, None) is not None:
                self._host.part_closed(self._control.connection.destination)
        else:
            self._awaited.pop(part, None)
        self._control.schedule_checkpoint()

    # --- connection.Related ---
    def adopt(self, connection: LiveConnection, role: str) -> None:
        self._members[connection] = role
        self._control.schedule_checkpoint()

    def layers(self, connection: LiveConnection) -> tuple[Layer, ...]:
        if connection is not self._control:
            return (_Layer(BundleSection(self.id, self._members[connection], [])),)
        parts = self.parts()
        return (_Layer(BundleSection(self.id, CONTROL, parts)),) if parts else ()

    def checkpoint_others(self, connection: LiveConnection) -> None:
        for other in (*self._members, self._control):
            if other is not connection:
                other.checkpoint_if_due()

    def hand_in(self) -> None:
        for connection in (*self._members, self._control):
            connection.take_in()
        # The control connection first, and the others with it: what it would say of their end, another server says.
        self._control.abandon()

    def left(self, connection: LiveConnection, *, silently: bool) -> None:
        if connection is not self._control:
            if not silently:  # else it is a part for whoever has the bundle now
                self._members.pop(connection, None)
                self._control.schedule_checkpoint()
            return
        self._over = True
        _close(self._awaited)
        _close(self._datagrams)
        for member in list(self._members):
            if silently:
                member.abandon()
            else:
                member.reset()


class _Layer:
    def __init__(self, section: BundleSection) -> None:
        self._section = section

    def checkpoint(self, block: DataBlock) -> None:
        block.append(BUNDLE, self._section)


def _close(parts: Iterable[Listening | Connecting | UdpPart]) -> None:
    for part in list(parts):
        part.close()
