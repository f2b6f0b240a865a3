"""An HTTP server over a stream that only records: what is planned for which input can be read as the client would."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import h11

from dataplane.http import HttpApplication
from dataplane.http.protocol import HttpSection
from dataplane.objects import DocumentRoot, OpenObject
from dataplane.sequence import Seq
from dataplane.sequence_map import SequenceMap
from dataplane.stack import make_block
from state.configuration import Serving
from state.datablock import DataBlock, FourTuple
from tests.unit.builders import ISS, four_tuple, header

NOW = 1_700_000_000.5
LIMITS = Serving(header_bytes=4096, header=15_000, idle=120_000, send=300_000)
FILM = bytes(i % 251 for i in range(3000))
GET = b"GET /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n"
HEAD = b"HEAD /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n"
AHEAD = 8


@dataclass
class RecordedTimer:
    seconds: float
    callback: Callable[[], None]
    running: bool = True

    def cancel(self) -> None:
        self.running = False


class RecordingStream:
    """A `stack.Stream` over a real sequence map: what was planned can be read as the client would."""

    def __init__(self) -> None:
        self.map = SequenceMap(ISS)
        self.opened: dict[str, OpenObject] = {}
        self.closed = False
        self.was_reset = False
        self.acknowledged = 0
        self.sent = 0
        self.room = True
        self.held = False
        self.timers: list[RecordedTimer] = []

    @property
    def connection(self) -> FourTuple:
        return four_tuple()

    def write(self, data: bytes) -> Seq:
        assert not self.closed, "nothing follows the end"
        return self.map.literal(data)

    def send_object(self, opened: OpenObject, offset: int, length: int) -> Seq:
        self.opened[opened.ref.identifier] = opened
        return self.map.object(opened.ref, offset, length)

    def seq_of(self, identifier: str, offset: int) -> Seq:
        return self.map.seq_of(identifier, offset)

    def close(self) -> None:
        self.closed = True

    def reset(self) -> None:
        self.was_reset = True

    @property
    def unsent(self) -> int:
        return self.map.end - self.sent

    @property
    def unacknowledged(self) -> int:
        return self.map.end - self.acknowledged

    def has_room(self) -> bool:
        return self.room

    def hold_input(self, held: bool) -> None:
        self.held = held

    def call_later(self, seconds: float, callback: Callable[[], None]) -> RecordedTimer:
        assert not any(timer.running for timer in self.timers), "one thing is waited for at a time"
        self.timers.append(RecordedTimer(seconds, callback))
        return self.timers[-1]

    @property
    def waits(self) -> list[float]:
        """The limits that were set, in order."""
        return [timer.seconds for timer in self.timers]

    def late(self) -> None:
        """The time of what is waited for is over."""
        (timer,) = [timer for timer in self.timers if timer.running]
        timer.running = False
        timer.callback()

    @property
    def bytes(self) -> bytes:
        out = b""
        for extent in self.map:
            if extent.literal is not None:
                out += extent.literal
            else:
                assert extent.object is not None
                opened = self.opened[self.map.objects[extent.object].identifier]
                out += os.pread(opened.fd, extent.length, extent.offset)
        return out


class Server:
    """An application with its stream, as a client reaches it."""

    def __init__(
        self, root: DocumentRoot, application: HttpApplication | None = None, limits: Serving = LIMITS
    ) -> None:
        self.stream = RecordingStream()
        self.root = root
        self.application = application or HttpApplication(root, limits, lambda: NOW)
        if application is None:
            self.application.opened(self.stream)

    def says(self, data: bytes) -> Server:
        """Input arrives; a connection that is closing reads it and passes nothing on."""
        if not self.stream.closed:
            self.application.received(data)
        return self

    def responses(self, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """(status, headers, body) of each, as h11 reads them; `GET` unless told otherwise."""
        found = []
        data, number = self.stream.bytes, 0
        while data:
            client = h11.Connection(h11.CLIENT)
            method = methods[number] if number < len(methods) else "GET"
            client.send(h11.Request(method=method, target="/", headers=[("Host", "vip")]))
            client.send(h11.EndOfMessage())
            client.receive_data(data)
            response, body = client.next_event(), b""
            assert isinstance(response, h11.Response), response
            while isinstance(event := client.next_event(), h11.Data):
                body += bytes(event.data)
            assert isinstance(event, h11.EndOfMessage), event
            data = client.trailing_data[0]
            number += 1
            headers = {name.decode(): value.decode() for name, value in response.headers}
            found.append((response.status_code, headers, body))
        return found

    def drains(self) -> Server:
        """Everything goes to the kernel."""
        self.stream.sent = self.stream.map.end
        self.application.drained()
        return self

    @property
    def pending(self) -> bytes:
        block = make_block(header(), (self.application,))
        return DataBlock.decode(block.encode()).section("http/1.1", HttpSection).pending

    def dies(self) -> Server:
        """The backup's, from the checkpoint of this moment; told *ready* with its own recording stream."""
        block = DataBlock.decode(make_block(header(), (self.application,)).encode())
        backup = Server(self.root, HttpApplication.unready(self.root, block, LIMITS, lambda: NOW))
        assert backup.stream.map.end == 0
        backup.stream.closed = self.stream.closed
        backup.application.ready(backup.stream, self.stream.map.end)
        return backup
