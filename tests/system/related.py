"""A protocol of several connections, for tests: a control connection, data over TCP opened by either side, UDP, and a
multicast group. The media of the last two are a number every 10 ms, by the clock.

    PASSIVE COUNT        PASSIVE PORT: connect there for the first COUNT bytes of /object.bin
    ACTIVE PORT COUNT    CONNECTING: the server connects to PORT for them
    DATAGRAMS PORT       DATAGRAMS: numbers go there
    GROUP ADDRESS PORT   GROUP: and there
    HELLO                HELLO, and the transports of the bundle's parts

When a data connection ends: `DONE ROLE N`, N of its bytes were not acknowledged.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from msgspec import Meta

from dataplane import (
    Application,
    ApplicationKind,
    Awaited,
    DataBlock,
    Datagrams,
    DocumentRoot,
    LocalError,
    PartKind,
    Stream,
)

NAME, DATA = "related/1", "related-data/1"
CONTROL_PORT, ACTIVE_PORT, UDP_PORT = 7000, 7001, 7010
SERVICE = {
    "protocol": "tests.system.related:RELATED",
    "affinity": "service",
    "data_ports": [f"{ACTIVE_PORT}/tcp", "7168-7183/tcp", f"{UDP_PORT}/udp"],
}
TICK_NS = 10_000_000

Count = Annotated[int, Meta(ge=1, le=1 << 40)]


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """A data connection that is not there yet: the server's port, or that of the client (`active`)."""

    port: int
    count: Count
    active: bool


class RelatedSection(msgspec.Struct, frozen=True, array_like=True):
    request: bytes
    pending: list[Pending]
    remotes: list[tuple[str, int]]
    origin_ns: int
    """When number 0 was due."""


class Nothing(msgspec.Struct, frozen=True, array_like=True):
    """All that a data connection must know stands in its stream."""


class Control(Application):
    name = NAME

    def __init__(self, root: DocumentRoot) -> None:
        self._root = root
        self._stream: Stream | None = None
        self._state = RelatedSection(b"", [], [], time.time_ns())
        self._datagrams: list[Datagrams] = []

    def opened(self, stream: Stream) -> None:
        self._stream = stream

    def received(self, data: bytes) -> None:
        *lines, rest = (self._state.request + data).split(b"\n")
        self._state = msgspec.structs.replace(self._state, request=rest)
        for line in lines:
            try:
                self._carry_out(line.decode().split())
            except LocalError as error:
                self.say(f"ERROR {error}")

    def _carry_out(self, words: list[str]) -> None:
        assert self._stream is not None
        if words[0] == "PASSIVE":
            port = self._listen(Pending(0, int(words[1]), False))
            self.say(f"PASSIVE {port}")
        elif words[0] == "ACTIVE":
            self._connect(Pending(int(words[1]), int(words[2]), True))
            self.say("CONNECTING")
        elif words[0] in ("DATAGRAMS", "GROUP"):
            remote = (words[1] if words[0] == "GROUP" else self._stream.bundle.client, int(words[-1]))
            self._send_to(remote)
            self._state = msgspec.structs.replace(self._state, remotes=[*self._state.remotes, remote])
            self.say(words[0])
        else:
            self.say("HELLO " + " ".join(part.transport for part in self._stream.bundle.parts()))

    def say(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line.encode() + b"\n")

    # --- parts ---
    def _listen(self, wanted: Pending) -> int:
        assert self._stream is not None

        def accepted(remote: tuple[str, int]) -> Application:
            self._pending_over(kept)
            awaited.close()
            return Data(self._root, wanted.count)

        awaited: Awaited = self._stream.bundle.listen("passive", accepted, wanted.port or None)
        kept = Pending(awaited.local_port, wanted.count, False)
        self._state = msgspec.structs.replace(self._state, pending=[*self._state.pending, kept])
        return awaited.local_port

    def _connect(self, wanted: Pending) -> None:
        assert self._stream is not None

        def failed(sentence: str) -> None:
            self._pending_over(wanted)
            self.say(f"FAILED {sentence}")

        data = Data(self._root, wanted.count, lambda: self._pending_over(wanted))
        remote = (self._stream.bundle.client, wanted.port)
        self._stream.bundle.connect("active", ACTIVE_PORT, remote, data, failed)
        self._state = msgspec.structs.replace(self._state, pending=[*self._state.pending, wanted])

    def _pending_over(self, pending: Pending) -> None:
        left = [one for one in self._state.pending if one is not pending]
        self._state = msgspec.structs.replace(self._state, pending=left)

    def _send_to(self, remote: tuple[str, int]) -> None:
        assert self._stream is not None
        self._datagrams.append(self._stream.bundle.datagrams("media", UDP_PORT, remote, self._came))
        if len(self._datagrams) == 1:
            self._wait()

    def _came(self, data: bytes, source: tuple[str, int]) -> None:
        self.say(f"CAME {data.decode()} {source[1]}")

    def _wait(self) -> None:
        """Until the next number is due: never one that an earlier owner has sent."""
        assert self._stream is not None
        late = (time.time_ns() - self._state.origin_ns) % TICK_NS
        self._stream.call_later((TICK_NS - late) / 1e9, self._tick)

    def _tick(self) -> None:
        number = (time.time_ns() - self._state.origin_ns) // TICK_NS
        for datagrams in self._datagrams:
            datagrams.send(str(number).encode())
        self._wait()

    # --- the rest ---
    def input_ended(self) -> None:
        assert self._stream is not None
        self._stream.close()

    def drained(self) -> None:
        """Answers are short."""

    def ended(self) -> None:
        self._stream = None

    def checkpoint(self, block: DataBlock) -> None:
        block.append(NAME, self._state)

    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock) -> Control:
        control = cls(root)
        control._state = block.section(NAME, RelatedSection)
        return control

    def ready(self, stream: Stream, position: int) -> None:
        self._stream = stream
        for remote in self._state.remotes:
            self._send_to(remote)
        pending, self._state = self._state.pending, msgspec.structs.replace(self._state, pending=[])
        for one in pending:
            if one.active:
                self._connect(one)
            else:
                self._listen(one)


class Data(Application):
    """The first `count` bytes of the object, and the end."""

    name = DATA

    def __init__(self, root: DocumentRoot, count: int = 0, arrived: object = None) -> None:
        self._root = root
        self._count = count
        self._arrived = arrived
        self._stream: Stream | None = None
        self._control: Control | None = None
        self._role = ""

    def opened(self, stream: Stream) -> None:
        self._join(stream)
        if callable(self._arrived):
            self._arrived()
        stream.send_object(self._root.open("/object.bin"), 0, self._count)

    def _join(self, stream: Stream) -> None:
        self._stream = stream
        control = stream.bundle.control
        assert isinstance(control, Control)
        self._control = control
        self._role = next(member.role for member in stream.bundle.connections() if member.application is self)

    def ready(self, stream: Stream, position: int) -> None:
        self._join(stream)
        if not stream.unsent:
            stream.close()

    def drained(self) -> None:
        assert self._stream is not None
        self._stream.close()

    def received(self, data: bytes) -> None:
        """Nobody says anything here."""

    def input_ended(self) -> None:
        """The client has closed its side; it still reads."""

    def ended(self) -> None:
        if self._control is not None and self._stream is not None:
            self._control.say(f"DONE {self._role} {self._stream.unacknowledged}")

    def checkpoint(self, block: DataBlock) -> None:
        block.append(DATA, Nothing())

    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock) -> Data:
        block.section(DATA, Nothing)
        return cls(root)


RELATED = ApplicationKind(NAME, Control, Control.unready, (PartKind(DATA, Data.unready),))
