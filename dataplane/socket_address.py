"""Packed addresses, as checkpoints and packets have them, to what Python's sockets take."""

from __future__ import annotations

import socket

from state.datablock import address_text

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def family(packed: bytes) -> int:
    """AF_INET or AF_INET6 of an address of 4 or 16 bytes."""
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6


def socket_address(packed: bytes, port: int, interface: int = 0) -> SocketAddress:
    """The address that `connect`, `bind` and `sendto` take.

    `interface`: index of the one that a link-local address of IPv6 is to mean (RFC 4007); the kernel looks at it only
    then. Such addresses are in packets and checkpoints without their zone.
    """
    if len(packed) == 4:
        return address_text(packed), port
    return address_text(packed), port, 0, interface
