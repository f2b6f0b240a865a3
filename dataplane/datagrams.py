"""UDP parts of bundles: sockets bound to the VIP, towards one address or a multicast group.

Several may have the same local address and port: the kernel gives a datagram to the socket that is connected to where
it comes from, and to one that is not connected only if there is none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable

from dataplane.socket_address import family, socket_address
from state.errors import LocalError

_READS_PER_TURN = 64
_LARGEST = 65_535

Received = Callable[[bytes, tuple[str, int]], None]


class UdpPart:
    """`stack.Datagrams`. `interface` is the index of the one towards the clients: groups and link-local addresses mean
    nothing without it."""

    def __init__(
        self,
        vip: str,
        local_port: int,
        remote: tuple[str, int],
        received: Received,
        closed: Callable[[UdpPart], None],
        *,
        ttl: int,
        interface: int,
    ) -> None:
        """`received` must not raise. Raises `LocalError` when the system refuses."""
        self.local_port = local_port
        self.remote = remote
        self.multicast = is_multicast(remote[0])
        packed = ipaddress.ip_address(remote[0]).packed
        self._address = socket_address(packed, remote[1], interface)
        self._received = received
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(family(packed), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind((vip, local_port))
            if self.multicast:
                _to_group(self._sock, ttl, interface)
            else:
                self._sock.connect(self._address)
        except OSError as error:
            self._sock.close()
            raise LocalError(f"UDP {vip}:{local_port} to {remote[0]}:{remote[1]}: {error.strerror}") from None
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, data: bytes) -> bool:
        if self._sock.fileno() < 0:
            return False
        for _ in range(2):
            try:
                if self.multicast:
                    self._sock.sendto(data, self._address)
                else:
                    self._sock.send(data)
                return True
            except ConnectionRefusedError:
                continue  # what an earlier datagram met; this one was not sent
            except OSError:
                return False
        return False

    def _readable(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._sock.fileno() < 0:
                return  # closed by what was received
            try:
                data, source = self._sock.recvfrom(_LARGEST)
            except ConnectionRefusedError:
                continue
            except OSError:
                return
            self._received(data, (source[0], source[1]))

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._closed(self)


def is_multicast(address: str) -> bool:
    """Is it a group (RFC 5771, RFC 4291)? Raises `LocalError` for what is no address."""
    try:
        return ipaddress.ip_address(address).is_multicast
    except ValueError:
        raise LocalError(f"{address[:64]!r} is not an IP address") from None


def _to_group(sock: socket.socket, ttl: int, interface: int) -> None:
    """Only outwards: this host has no receiver."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        return
    anywhere = bytes(4)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", anywhere, anywhere, interface))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
