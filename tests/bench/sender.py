"""Speaks to the controller as a server's agent, and sends checkpoints as fast as they are stored.

    python -m tests.bench.sender CONFIG SERVER MAC EPOCH SECONDS

The checkpoints are those of 5,000 connections that answer one request after the other. They are made before the start,
so that making them costs nothing while it is measured.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator

from dataplane.http.protocol import NAME, HttpSection
from state import configuration, messages
from state.configuration import Configuration
from state.datablock import DataBlock, FourTuple, Header
from state.messages import Hello
from state.sections import STREAM, TCP, Extent, ObjectRef, StreamSection, TcpSection
from tests.bench.report import percentile

_CONNECTIONS = 5000
_PER_STORE = 16
_OUTSTANDING = 32
"""Stores that wait for their answer: as if so many turns of an agent's loop had been quicker than the controller."""
_PER_SECOND_AT_MOST = 40_000
_OBJECT_BYTES = 1024
_HEAD = b"HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 16:00:00 GMT\r\nServer: takeover\r\nContent-Length: 1024\r\n" + (
    b'Content-Type: application/octet-stream\r\nETag: "18ad0f5e3c9b2a00-400"\r\nAccept-Ranges: bytes\r\n\r\n'
)


class _Controller:
    """The agent's end of the control connection, blocking."""

    def __init__(self, settings: Configuration, hello: Hello) -> None:
        self._sock = socket.create_connection((settings.agents.host, settings.agents.port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = messages.FrameReader(from_agent=False)
        self.send(messages.encode(hello))
        welcome = self.hear()[0]
        if not isinstance(welcome, messages.Welcome):
            raise SystemExit(f"not welcome: {welcome}")

    def send(self, frame: bytes) -> None:
        self._sock.sendall(frame)

    def hear(self) -> list[object]:
        while True:
            data = self._sock.recv(65536)
            if not data:
                return []
            heard = self._reader.feed(data)
            if heard:
                return list(heard)


def _block(hello: Hello, epoch: int, vip: bytes, port: int, serial: int) -> bytes:
    """The checkpoint of a connection that begins to answer its request number `serial`."""
    client = socket.inet_aton("10.0.0.201")
    position = (serial - 1) * (len(_HEAD) + _OBJECT_BYTES)
    first = (port * 7919 + 1 + position + len(_HEAD)) & 0xFFFF_FFFF
    header = Header(
        server=hello.server,
        incarnation=hello.incarnation,
        epoch=epoch,
        serial=serial,
        time=time.time_ns(),
        connection=FourTuple(vip, 80, client, port),
        protocol=NAME,
        iss=port * 7919,
        irs=port,
        snd_una=(port * 7919 + 1 + position) & 0xFFFF_FFFF,
        snd_nxt=(port * 7919 + 1 + position) & 0xFFFF_FFFF,
        rcv_nxt=port + 1 + 40 * serial,
        object="/1k",
        object_first=first,
    )
    block = DataBlock(header)
    block.append(TCP, TcpSection(1460, 7, 7, True, True, True, serial, 65535 << 7))
    objects = [ObjectRef("/1k", _OBJECT_BYTES, 1, b"")]
    literal = Extent(position, len(_HEAD), literal=_HEAD)
    run = Extent(literal.end, _OBJECT_BYTES, object=0)
    block.append(STREAM, StreamSection(position, position, 40 * serial, False, False, objects, [literal, run]))
    block.append(NAME, HttpSection(b""))
    return block.encode()


def _frames(settings: Configuration, hello: Hello, epoch: int, seconds: float) -> Iterator[bytes]:
    vip = socket.inet_aton(settings.vips[0].address)
    number = 0
    for serial in range(1, 2 + int(seconds * _PER_SECOND_AT_MOST / _CONNECTIONS)):
        for start in range(0, _CONNECTIONS, _PER_STORE):
            ports = range(10_000 + 4 * start, 10_000 + 4 * min(start + _PER_STORE, _CONNECTIONS), 4)
            number += 1
            blocks = [_block(hello, epoch, vip, port, serial) for port in ports]
            yield messages.encode(messages.Store(number, blocks))


def main() -> None:
    file, name, mac, epoch, seconds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    settings = configuration.load(file)
    hello = Hello(messages.PROTOCOL_VERSION, name, time.time_ns(), mac, os.getpid())
    frames = list(_frames(settings, hello, epoch, seconds))
    print("ready", flush=True)
    sys.stdin.readline()
    controller = _Controller(settings, hello)
    began = time.perf_counter()
    sent: deque[float] = deque()
    waits: list[float] = []
    done = 0
    for number, frame in enumerate(frames, 1):
        controller.send(frame)
        sent.append(time.perf_counter())
        while number - done >= _OUTSTANDING:
            for message in controller.hear():
                if not isinstance(message, messages.Stored):
                    continue  # it is a backup, too
                now = time.perf_counter()
                waits += [now - sent.popleft() for _ in range(message.number - done)]
                done = message.number
        if time.perf_counter() - began >= seconds:
            break
    told = {
        "connections": _CONNECTIONS,
        "bytes": round(statistics.mean(len(frame) for frame in frames[:100]) / _PER_STORE),
        "stored": done * _PER_STORE,
        "seconds": time.perf_counter() - began,
        "p50_ms": round(statistics.median(waits) * 1000, 1),
        "p99_ms": round(percentile(waits, 0.99) * 1000, 1),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
