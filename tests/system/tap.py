"""What one client says and hears, seen at its port of the switch: no process runs in the client.

The kernel queues a copy of each frame on its way to the switch: whatever a client got an answer to is there to be read.
The filter lets through what a client that was not disturbed says once, SYNs, bytes, FINs and RSTs, and no bare ACKs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import scapy.layers.l2  # noqa: F401 - tells the socket what an Ethernet frame is
from scapy.arch.linux import L2ListenSocket

from dataplane import segment
from dataplane.segment import FIN, RST, SYN
from topologies.vip import BRIDGE

_ETHERNET = 14
_FILTER = (
    "tcp dst port 80 and (tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0"
    " or ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) > 0)"
)


@dataclass(frozen=True)
class Said:
    """A segment of the client that opens a connection (`data` is empty) or carries bytes."""

    at_ns: int
    """Nanoseconds, wall clock."""
    port: int
    data: bytes

    @property
    def opens(self) -> bool:
        return not self.data


class Tap:
    """Listens from `with` on."""

    def __init__(self, client: str) -> None:
        self._port = f"{BRIDGE}-{client}"
        self._known: dict[tuple[int, int], Said] = {}
        self._closed: dict[int, int] = {}

    def __enter__(self) -> Tap:
        self._socket = L2ListenSocket(iface=self._port, filter=_FILTER, promisc=False)
        self._socket.ins.setblocking(False)
        self._before = self._sent_to_client()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def _sent_to_client(self) -> int:
        return int(Path(f"/sys/class/net/{self._port}/statistics/tx_bytes").read_text())

    @property
    def arrived(self) -> int:
        """Bytes that went to the client so far, headers included."""
        return self._sent_to_client() - self._before

    def said(self) -> list[Said]:
        """Everything so far, in order; what was sent again (same port and sequence number) counts once."""
        self._read()
        return list(self._known.values())

    def closed(self) -> dict[int, int]:
        """When the client ended its connections, by port: nanoseconds, wall clock. It did so by its first FIN, or by an
        RST where bytes that it had not read came."""
        self._read()
        return self._closed

    def _read(self) -> None:
        for frame, at in self._frames():
            found = segment.parse(frame[_ETHERNET:])
            at_ns = round(at * 1e9)
            syn = bool(found.flags & SYN)
            if syn or found.payload:
                said = Said(at_ns, found.source_port, b"" if syn else found.payload)
                self._known.setdefault((found.source_port, int(found.seq)), said)
            if found.flags & (FIN | RST):
                self._closed.setdefault(found.source_port, at_ns)

    def _frames(self) -> Iterator[tuple[bytes, float]]:
        with contextlib.suppress(BlockingIOError):
            while True:
                _, frame, at = self._socket.recv_raw()
                yield frame, float(at)

    def opened(self) -> list[int]:
        """Ports of the connections that the client opened."""
        return [said.port for said in self.said() if said.opens]

    def requests(self) -> list[tuple[int, str]]:
        """Port and request line of every request."""
        return [(said.port, said.data.split(b"\r\n")[0].decode()) for said in self.said() if not said.opens]
