"""An RTSP client over this machine's loopback, and the server's connection that it speaks to."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dataplane.objects import DocumentRoot
from dataplane.rtp.mpegts import TransportStream
from dataplane.rtp.packet import RtpPacket
from dataplane.rtsp import RTSP
from state.configuration import Service
from state.ports import DataPorts
from tests.unit.builders import document_root
from tests.unit.live import Live, StoringHost, live
from tests.unit.transport_streams import reader, steady

FILM = steady(600, ticks_per_packet=75)
"""Half a second in 86 packets, the last of which is short."""
LONG_FILM = steady(2400, ticks_per_packet=75)
"""Two seconds in 343 packets: a busy machine has time for something before it is over."""
MEDIA = TransportStream.index(reader(FILM), len(FILM))
URL = "rtsp://vip/film.bin"
TCP = "RTP/AVP/TCP;unicast;interleaved=0-1"


def rtsp_host(root: DocumentRoot, port: int) -> StoringHost:
    host = StoringHost(root)
    host.service = Service(554, "rtsp", affinity="service", data_ports=(DataPorts(port, port + 1, "udp"),))
    return host


class Player:
    """A client that asks and takes apart what it is answered."""

    def __init__(self, made: Live, heard: bytes = b"") -> None:
        self.made = made
        self.heard = heard
        """Not taken apart yet."""
        self.frames: list[tuple[int, bytes]] = []
        self.session = ""
        self._cseq = itertools.count(1)

    async def ask(self, method: str, url: str = URL, **headers: str) -> tuple[int, dict[str, str], bytes]:
        await self.made.say(self.request(method, url, **headers))
        return await self.response()

    def request(self, method: str, url: str = URL, **headers: str) -> bytes:
        if self.session:
            headers.setdefault("Session", self.session)
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {next(self._cseq)}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """The next response; frames before it are kept."""
        while True:
            await self.frame_or_head()
            if self.heard[:1] == b"$":
                self._take_frame()
                continue
            head, _, rest = self.heard.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            length = int(headers.get("Content-Length", 0))
            while len(rest) < length:
                rest += await self._more()
            self.heard = rest[length:]
            self.session = headers.get("Session", self.session).partition(";")[0]
            return int(first.split()[1]), headers, rest[:length]

    async def take(self, count: int) -> None:
        """Until there are so many frames more."""
        wanted = len(self.frames) + count
        while len(self.frames) < wanted:
            await self.frame_or_head()
            assert self.heard[:1] == b"$", self.heard[:80]
            self._take_frame()

    async def take_to_the_end(self) -> None:
        """Until the BYE."""
        while not (self.frames and self.frames[-1][0] == 1 and b"\x81\xcb\0\1" in self.frames[-1][1]):
            await self.take(1)

    async def frame_or_head(self) -> None:
        while not self._complete():
            self.heard += await self._more()

    def _complete(self) -> bool:
        if self.heard[:1] == b"$":
            return len(self.heard) >= 4 and len(self.heard) >= 4 + int.from_bytes(self.heard[2:4], "big")
        return b"\r\n\r\n" in self.heard

    def _take_frame(self) -> None:
        end = 4 + int.from_bytes(self.heard[2:4], "big")
        self.frames.append((self.heard[1], self.heard[4:end]))
        self.heard = self.heard[end:]

    async def _more(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self.made.client, 1 << 16)
        assert data, "the server ended"
        return data

    @property
    def packets(self) -> list[RtpPacket]:
        return [RtpPacket.parse(data) for channel, data in self.frames if channel == 0]

    async def setup(self, transport: str = TCP) -> None:
        status, _, _ = await self.ask("SETUP", f"{URL}/trackID=0", Transport=transport)
        assert status == 200


@asynccontextmanager
async def player(folder: Path, port: int = 0, film: bytes = FILM) -> AsyncIterator[Player]:
    with document_root(folder, film=film, text=b"no film at all\n" * 1000) as root:
        host = rtsp_host(root, port or free_pair())
        async with live(root, RTSP.fresh(root), host=host) as made:
            made.connection.start()
            yield Player(made)


def free_pair() -> int:
    """An even UDP port that is free with its successor. Tests that run side by side look in different places."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(20_000 + worker % 10 * 1000, 60_000, 2):
        try:
            for number in (port, port + 1):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise AssertionError("no UDP ports are free")


class Ports:
    """A client's pair of UDP sockets."""

    def __init__(self) -> None:
        self.port = free_pair()
        self.socks = []
        for number in (self.port, self.port + 1):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.bind(("127.0.0.1", number))
            self.socks.append(sock)

    @property
    def transport(self) -> str:
        return f"RTP/AVP;unicast;client_port={self.port}-{self.port + 1}"

    async def packet(self) -> RtpPacket:
        return RtpPacket.parse(await asyncio.get_running_loop().sock_recv(self.socks[0], 2000))

    async def report(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socks[1], 2000)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def payload(packets: list[RtpPacket]) -> bytes:
    return b"".join(packet.payload for packet in packets)


def assert_in_a_row(packets: list[RtpPacket]) -> None:
    assert len({packet.ssrc for packet in packets}) == 1
    for before, after in itertools.pairwise(packets):
        assert after.seq == (before.seq + 1) % 2**16
        assert (after.timestamp - before.timestamp) % 2**32 < 2**31
