"""Raw packets, only while a takeover lasts: probes out, and the clients' answers in.

Answers are taken with AF_PACKET behind a kernel filter (classic BPF), because the kernel has no socket for them yet.
Outside a takeover no such socket exists, so that no packet costs anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

from dataplane.segment import EXTENSION_HEADERS
from dataplane.socket_address import family, socket_address

_ETH_P = {4: 0x0800, 16: 0x86DD}
"""EtherType by the length of a packed address."""
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 16 * 1024 * 1024

# linux/bpf_common.h
_LD_B_ABS, _LD_W_ABS, _LDX_MSH, _LDX_IMM, _LD_B_IND, _LD_H_IND = 0x30, 0x20, 0xB1, 0x01, 0x50, 0x48
_JEQ, _JGE, _RSH, _AND, _RET = 0x15, 0x35, 0x74, 0x54, 0x06
_NEXT, _TAKE, _DROP, _PLAIN = "next", "take", "drop", "plain"
_PORTS_FILTERED = 200
"""More would lie beyond the reach of a jump; then every segment is heard."""

_Line = tuple[int, int] | tuple[int, int, str, str]
"""Code and operand; of a jump also where to go if true and if false."""

# With TCP's offset in X: RST is set, or the header is longer than 32 bytes, or it is exactly 32 bytes long and its
# first option after two NOPs is SACK. Of a busy client's segments only those that may be answers pass.
_MAY_BE_ANSWER: tuple[_Line, ...] = (
    (_LD_B_IND, 13),
    (_AND, 0x04),
    (_JEQ, 0, _NEXT, _TAKE),
    (_LD_B_IND, 12),
    (_RSH, 4),
    (_JGE, 9, _TAKE, _NEXT),
    (_JEQ, 8, _NEXT, _PLAIN),
    (_LD_B_IND, 22),
    (_JEQ, 5, _TAKE, _PLAIN),
)


_NO_ANSWER: tuple[_Line, ...] = (
    (_LD_B_ABS, 13),
    (_AND, 0x07),
    (_JEQ, 0, _NEXT, _TAKE),
    (_LD_B_ABS, 12),
    (_RSH, 4),
    (_JGE, 9, _DROP, _NEXT),
    (_JEQ, 8, _NEXT, _TAKE),
    (_LD_B_ABS, 22),
    (_JEQ, 5, _DROP, _TAKE),
)


def answer_filter(vip: bytes, plain: Sequence[int] = ()) -> bytes:
    """The kernel's program (an array of `struct sock_filter`) that takes TCP to this packed address which may be an
    answer to a probe, and all that comes from the client ports in `plain`: they answer without SACK blocks. Offsets are
    from the IP header. Packets with IPv6 extension headers are left to the parser."""
    words = struct.unpack(f"!{len(vip) // 4}I", vip)
    program: list[_Line] = []
    if len(vip) == 4:
        program += [(_LD_B_ABS, 9), (_JEQ, socket.IPPROTO_TCP, _NEXT, _DROP)]
        program += [(_LD_W_ABS, 16), (_JEQ, words[0], _NEXT, _DROP), (_LDX_MSH, 0)]
    else:
        for i, word in reversed(list(enumerate(words))):
            program += [(_LD_W_ABS, 24 + 4 * i), (_JEQ, word, _NEXT, _DROP)]
        program.append((_LD_B_ABS, 6))
        program += [(_JEQ, kind, _TAKE, _NEXT) for kind in EXTENSION_HEADERS]
        program += [(_JEQ, socket.IPPROTO_TCP, _NEXT, _DROP), (_LDX_IMM, 40)]
    program += _MAY_BE_ANSWER
    after_all = len(program)
    if len(plain) > _PORTS_FILTERED:
        program += [(_JGE, 0, _TAKE, _TAKE)]
    elif plain:
        program += [(_LD_H_IND, 0), *((_JEQ, port, _TAKE, _NEXT) for port in plain)]
    return _assembled(program, after_all)


def hush_filter() -> bytes:
    """The kernel's program that takes all but plain segments with SACK blocks. Offsets are from TCP's header, which is
    where a TCP socket's filter begins."""
    return _assembled(_NO_ANSWER)


def _assembled(lines: Sequence[_Line], plain: int = 0) -> bytes:
    """`plain`: number of the line to which `_PLAIN` goes."""
    program: list[_Line] = [*lines, (_RET, 0), (_RET, 0x40000)]
    drop, take = len(program) - 2, len(program) - 1
    code = b""
    for at, line in enumerate(program):
        after = {_NEXT: 0, _TAKE: take - at - 1, _DROP: drop - at - 1, _PLAIN: plain - at - 1}
        true, false = (after[line[2]], after[line[3]]) if len(line) == 4 else (0, 0)
        code += struct.pack("HBBI", line[0], true, false, line[1])
    return code


def attach(sock: socket.socket, code: bytes) -> None:
    """Let only what the program takes into the socket."""
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(code) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def deafen(sock: socket.socket) -> None:
    """From now on the kernel drops what is sent to this TCP socket, before it is looked at: nothing is acknowledged or
    answered. Raises `OSError`."""
    attach(sock, struct.pack("HBBI", _RET, 0, 0, 0))


def hush(listener: socket.socket) -> None:
    """Let the kernel not answer the answers to probes with RST while it has no socket for their connections.

    The close gate would stop those RSTs, but each costs the switch and the controller more than the answer itself. A
    segment that opens a connection has no SACK blocks. Accepted sockets inherit the filter: `unhush` them, too.
    """
    with contextlib.suppress(OSError):  # closed: this server is about to leave
        attach(listener, hush_filter())


def unhush(sock: socket.socket) -> None:
    """Undo `hush`; harmless where nothing is to be undone."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


class AnswerSocket:
    """Receives the packets that may be answers to probes, for one VIP, on every interface."""

    def __init__(self, vip: bytes) -> None:
        # Python cannot bind a packet socket to every interface, so it listens from its first moment; what came in
        # before the filter was attached is judged like anything else.
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P[len(vip)]))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._vip = vip
        self.closed = False
        self.hear_plainly(())

    def hear_plainly(self, ports: Sequence[int]) -> None:
        """Hear every segment from these client ports, and of others only what carries RST or SACK blocks."""
        attach(self._sock, answer_filter(self._vip, ports))

    def fileno(self) -> int:
        return self._sock.fileno()

    def packets(self) -> Iterator[bytes]:
        """Those that are waiting, from the IP header on; none is lost where the caller stops."""
        while not self.closed:
            try:
                packet, address = self._sock.recvfrom(2048)
            except BlockingIOError:
                return
            if address[2] != socket.PACKET_OUTGOING:
                yield packet

    def close(self) -> None:
        """On a thread: the kernel waits for its readers (synchronize_net), some 10 ms."""
        self.closed = True
        threading.Thread(target=self._sock.close, name="answers-close", daemon=True).start()


class ProbeSocket:
    """Sends whole IP packets. It receives nothing (IPPROTO_RAW).

    `interface`: index of the one towards the clients; link-local addresses of IPv6 mean nothing without it.
    """

    def __init__(self, interface: int = 0) -> None:
        self._interface = interface
        self._socks: dict[int, socket.socket] = {}

    def send(self, packet: bytes) -> bool:
        """False when the kernel would not take it now; the next try comes anyway."""
        try:
            destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
            self._socket(family(destination)).sendto(packet, socket_address(destination, 0, self._interface))
        except OSError:
            return False
        return True

    def _socket(self, kind: int) -> socket.socket:
        """Made when it is first needed: a host may lack a family."""
        sock = self._socks.get(kind)
        if sock is None:
            sock = socket.socket(kind, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
            self._socks[kind] = sock
        return sock

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
