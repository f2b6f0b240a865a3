"""Sockets that an earlier life of the agent left in this kernel.

A killed process's connections do not end with it: the kernel goes on retransmitting their data and FIN, for minutes if
nobody answers, and nobody does, because the switch has fenced them. They can do no harm outside, but they occupy their
addresses and ports: a connection that another server took over meanwhile could not come back here.

Also half-open ones stand in a takeover's way: a client's SYN that came here just before its slot went to another server
was answered by this kernel, which waits for a minute for an ACK that cannot come.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterable

from state.datablock import FourTuple
from state.errors import LocalError

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG = 4
_SOCK_DESTROY = 21
_REQUEST_AND_ACKNOWLEDGE = 0x01 | 0x04
_NO_COOKIE = 0xFFFFFFFF
_MESSAGE = struct.Struct("=IHHII")
_SOCKET = struct.Struct("=BBBBI")
_ID = struct.Struct("!HH16s16s")
_ID_TAIL = struct.Struct("=III")
_ERROR = struct.Struct("=i")


def destroy(services: Iterable[tuple[str, int, int]]) -> None:
    """End every connected socket of these (address, first port, last port), as `ss -K` does (SOCK_DESTROY, kernel 4.5).

    The kernel may send RST for some of them; the server is fenced, or not yet permitted, when this runs.
    Raises `LocalError` when `ss` cannot do it.
    """
    for address, first, last in services:
        host = f"[{address}]" if ":" in address else address
        ports = ["sport", ">=", f":{first}", "and", "sport", "<=", f":{last}"]
        command = ["ss", "-K", "-tn", "state", "connected", "src", host, "and", *ports]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"orphaned sockets cannot be destroyed: {error}") from None
        if done.returncode != 0:
            raise LocalError(f"orphaned sockets of {host}:{first}-{last} cannot be destroyed: {done.stderr.strip()}")


def destroy_one(connection: FourTuple, interface: int = 0) -> bool:
    """End what this kernel has of this connection, half-open or not (net/core/sock_diag.c). False: it has nothing.

    `interface`: index of the one towards the clients. Raises `OSError`.
    """
    family = socket.AF_INET if len(connection.source) == 4 else socket.AF_INET6
    body = (
        _SOCKET.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        + _ID.pack(
            connection.source_port,
            connection.destination_port,
            connection.source.ljust(16, b"\0"),
            connection.destination.ljust(16, b"\0"),
        )
        + _ID_TAIL.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.bind((0, 0))
        netlink.send(_MESSAGE.pack(_MESSAGE.size + len(body), _SOCK_DESTROY, _REQUEST_AND_ACKNOWLEDGE, 1, 0) + body)
        (error,) = _ERROR.unpack_from(netlink.recv(8192), _MESSAGE.size)
    return bool(error == 0)
