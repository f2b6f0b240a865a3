"""Raw packets, only while a takeover lasts: probes out, and the clients' answers in.

Answers are taken with AF_PACKET behind a kernel filter (classic BPF), because the kernel has no socket for them yet.
Outside a takeover no such socket exists, so that no packet costs anything.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Sequence

ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 16 * 1024 * 1024

_Instruction = tuple[int, int, int, int]
# linux/bpf_common.h
_LD_B_ABS, _LD_W_ABS, _LDX_MSH, _LD_H_IND, _LD_B_IND = 0x30, 0x20, 0xB1, 0x48, 0x50
_JEQ, _JGE, _RSH, _AND, _RET = 0x15, 0x35, 0x74, 0x54, 0x06
_ACCEPT, _REJECT = (_RET, 0, 0, 0x40000), (_RET, 0, 0, 0)
_PEERS_FILTERED = 200
"""More would make the filter larger than the kernel takes (net.core.optmem_max); then every segment is heard."""

Peer = tuple[bytes, int]


def _filter_ipv4(address: bytes, plain: Sequence[Peer]) -> list[_Instruction]:
    """TCP to `address`: with RST, or with options beyond timestamps (SACK), or of a peer in `plain`.

    Offsets are from the IP header (SOCK_DGRAM). Options beyond timestamps: the header is longer than 32 bytes, or
    exactly 32 bytes long and its first option after two NOPs is SACK.
    """
    (word,) = struct.unpack("!I", address)
    program = [
        (_LD_B_ABS, 0, 0, 9),
        (_JEQ, 1, 0, socket.IPPROTO_TCP),
        _REJECT,
        (_LD_W_ABS, 0, 0, 16),
        (_JEQ, 1, 0, word),
        _REJECT,
        (_LDX_MSH, 0, 0, 0),
        (_LD_B_IND, 0, 0, 13),
        (_AND, 0, 0, 0x04),
        (_JEQ, 1, 0, 0),
        _ACCEPT,
        (_LD_B_IND, 0, 0, 12),
        (_RSH, 0, 0, 4),
        (_JGE, 3, 0, 9),
        (_JEQ, 0, 3, 8),
        (_LD_B_IND, 0, 0, 22),
        (_JEQ, 0, 1, 5),
        _ACCEPT,
    ]
    if len(plain) > _PEERS_FILTERED:
        return [*program, _ACCEPT]
    for client, port in plain:
        (word,) = struct.unpack("!I", client)
        program += [(_LD_W_ABS, 0, 0, 12), (_JEQ, 0, 3, word), (_LD_H_IND, 0, 0, 0), (_JEQ, 0, 1, port), _ACCEPT]
    return [*program, _REJECT]


class AnswerSocket:
    """Receives the packets that may be answers to probes, for one VIP, on every interface."""

    def __init__(self, vip: bytes) -> None:
        # Python cannot bind a packet socket to every interface, so it listens from its first moment; what came in
        # before the filter was attached is judged like anything else.
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_IP))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._vip = vip
        self.hear_plainly(())

    def hear_plainly(self, plain: Sequence[Peer]) -> None:
        """Hear every segment of these clients, and of others only what carries RST or SACK blocks."""
        program = _filter_ipv4(self._vip, plain)
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code)
        self._sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(buffer))
        )

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, limit: int = 64) -> list[bytes]:
        """Up to `limit` packets that are waiting, from the IP header on."""
        packets: list[bytes] = []
        try:
            while len(packets) < limit:
                packet, address = self._sock.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING:
                    packets.append(packet)
        except BlockingIOError:
            pass
        return packets

    def close(self) -> None:
        """On a thread: the kernel waits for its readers (synchronize_net), some 10 ms."""
        threading.Thread(target=self._sock.close, name="answers-close", daemon=True).start()


class ProbeSocket:
    """Sends whole IP packets. It receives nothing (IPPROTO_RAW)."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)

    def send(self, packet: bytes) -> bool:
        """False when the kernel would not take it now; the next try comes anyway."""
        try:
            self._sock.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()
