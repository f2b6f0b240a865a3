"""Sockets that an earlier life of the agent left in this kernel.

A killed process's connections do not end with it: the kernel goes on retransmitting their data and FIN, for minutes if
nobody answers, and nobody does, because the switch has fenced them. They can do no harm outside, but they occupy their
addresses and ports: a connection that another server took over meanwhile could not come back here.

Also half-open ones stand in a takeover's way: a client's SYN that came here just before its slot went to another server
was answered by this kernel, which waits for a minute for an ACK that cannot come.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import subprocess
from collections.abc import Iterable

from state.datablock import FourTuple
from state.errors import LocalError

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST, _ACKNOWLEDGE = 0x01, 0x04
_ERROR_MESSAGE = 2
_SYN_RECV = 3
_NO_COOKIE = b"\xff" * 8
_COOKIE_AT = 4 + 40
"""In `inet_diag_msg`: behind family, state, timer, retransmissions, and the ports, addresses and interface."""
_MESSAGE = struct.Struct("=IHHII")
_SOCKET = struct.Struct("=BBBBI")
_ID = struct.Struct("!HH16s16s")
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


def unaccepted(address: str, port: int) -> list[FourTuple]:
    """Established connections to this service that wait in the listener's queue: they belong to no process yet, so the
    kernel names no inode. Raises `LocalError` when `ss` cannot say."""
    host = f"[{address}]" if ":" in address else address
    command = ["ss", "-Htne", "state", "connected", "src", host, "and", "sport", "=", f":{port}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise LocalError(f"connections of {host}:{port} cannot be listed: {error}") from None
    found: list[FourTuple] = []
    for line in done.stdout.splitlines():
        words = line.split()
        if words[0] in ("ESTAB", "CLOSE-WAIT") and "ino:0" in words:
            (here, here_port), (there, there_port) = (_place(word) for word in words[3:5])
            found.append(FourTuple(here, here_port, there, there_port))
    return found


def _place(text: str) -> tuple[bytes, int]:
    """`10.0.0.1:80` or `[fd00::1%eth0]:80`."""
    host, _, port = text.rpartition(":")
    return ipaddress.ip_address(host.strip("[]").partition("%")[0]).packed, int(port)


def destroy_half_open(connection: FourTuple, interface: int = 0) -> bool:
    """End a connection of which this kernel has but the client's SYN (net/core/sock_diag.c). False: it has none such.

    `interface`: index of the one towards the clients. Raises `OSError`.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.bind((0, 0))
        kind, body = _asked(netlink, _SOCK_DIAG_BY_FAMILY, _REQUEST, connection, interface, _NO_COOKIE)
        if kind == _ERROR_MESSAGE or body[1] != _SYN_RECV:
            return False
        cookie = body[_COOKIE_AT : _COOKIE_AT + 8]  # this very one, whatever has come meanwhile
        kind, body = _asked(netlink, _SOCK_DESTROY, _REQUEST | _ACKNOWLEDGE, connection, interface, cookie)
        return kind == _ERROR_MESSAGE and _ERROR.unpack_from(body) == (0,)


def _asked(
    netlink: socket.socket, kind: int, flags: int, connection: FourTuple, interface: int, cookie: bytes
) -> tuple[int, bytes]:
    """The answer's type and body."""
    family = socket.AF_INET if len(connection.source) == 4 else socket.AF_INET6
    body = (
        _SOCKET.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        + _ID.pack(
            connection.source_port,
            connection.destination_port,
            connection.source.ljust(16, b"\0"),
            connection.destination.ljust(16, b"\0"),
        )
        + struct.pack("=I", interface)
        + cookie
    )
    netlink.send(_MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, 1, 0) + body)
    answer = netlink.recv(8192)
    return _MESSAGE.unpack_from(answer)[1], answer[_MESSAGE.size :]
