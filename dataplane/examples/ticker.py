"""A protocol of one's own that survives its server's death: a ticker whose lines are a function of their number.

    client: START 5 100 20\n                     first line, how many, milliseconds between them (100 if not given)
    server: 5 ef2d127de37b942baad06145e54b0c619a1f22327b2ebbcfbec78f5564afe39d\n
            6 e7f6c011776e8db7cd330b54174fd76f7d0216b612387a5ffcfb81e6f0919683\n
            ...

After the last line the server closes. A request that is not understood is answered by one line and closed.

All lines together, from line 0 on and without end, are one object, `ticker`. So every byte that is sent has a place in
it: line 5 begins at `offset_of(5)`, whoever sends it. `START` associates the next byte of the stream with that place.

What a backup must know is in the section: the request as far as it came, the next line, the last, and the pace. It is
of the same checkpoint as the lines that are planned. So a line is either planned there, and sent from there, or it is
still the next.

    services:
      - {port: 7000, protocol: "dataplane.examples.ticker:TICKER"}
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from dataplane import Application, ApplicationKind, CheckpointRefused, DataBlock, DocumentRoot, Stream

NAME = "ticker/1"
OBJECT = "ticker"
LINE_LIMIT = 10**12
REQUEST_LIMIT = 64
PATIENCE_MILLISECONDS = 60_000
"""Of a server, with a client that takes nothing: this is no part of checkpoints, and begins anew at a backup."""

Number = Annotated[int, Meta(ge=0, le=LINE_LIMIT)]


def line(number: int) -> bytes:
    """The line of that number: the number and the SHA-256 of its digits."""
    digits = str(number).encode()
    return digits + b" " + hashlib.sha256(digits).hexdigest().encode() + b"\n"


def offset_of(number: int) -> int:
    """How many bytes all lines before it have."""
    bytes_, counted, digits = 0, 0, 1
    while counted < number:
        until = min(number, 10**digits)  # the first number that has more digits
        bytes_ += (until - counted) * (digits + 66)
        counted, digits = until, digits + 1
    return bytes_


class TickerSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """This protocol's part of a checkpoint. Until the request is complete there is no line to come."""

    request: Annotated[bytes, Meta(max_length=REQUEST_LIMIT)]
    next: Number
    end: Number
    """The number after the last line's."""
    milliseconds: Annotated[int, Meta(ge=1, le=60_000)]


class Ticker(Application):
    name = NAME

    def __init__(self, root: DocumentRoot) -> None:
        self._stream: Stream | None = None
        self._request = b""
        self._next = self._end = 0
        self._milliseconds = 100
        self._waited = 0

    # --- the owner ---
    def opened(self, stream: Stream) -> None:
        self._stream = stream

    def received(self, data: bytes) -> None:
        if self._end:
            return  # one request per connection
        self._request += data[: REQUEST_LIMIT - len(self._request)]
        request, newline, _ = self._request.partition(b"\n")
        if newline:
            self._start(request.split())
        elif len(self._request) == REQUEST_LIMIT:
            self._refuse(b"a request has at most 63 characters")

    def input_ended(self) -> None:
        if not self._end:
            self._refuse(b"no request came")

    def drained(self) -> None:
        """The ticker goes by its clock, not by the room in the kernel's buffer."""

    def ended(self) -> None:
        self._stream = None

    def _start(self, words: list[bytes]) -> None:
        assert self._stream is not None
        numbers = [int(word) for word in words[1:] if word.isdigit()]
        if words[:1] != [b"START"] or len(numbers) != len(words) - 1 or len(numbers) not in (2, 3):
            self._refuse(b"say START, the first line's number, how many lines, and perhaps milliseconds")
            return
        first, count, milliseconds = (*numbers, 100)[:3]
        if count < 1 or first + count > LINE_LIMIT or not 1 <= milliseconds <= 60_000:
            self._refuse(b"from 1 line up to line 10**12, 1 to 60000 milliseconds apart")
            return
        self._request, self._next, self._end, self._milliseconds = b"", first, first + count, milliseconds
        self._stream.associate(OBJECT, offset_of(first))
        self._tick()

    def _refuse(self, sentence: bytes) -> None:
        assert self._stream is not None
        self._end = -1
        self._stream.write(b"ERROR " + sentence + b"\n")
        self._stream.close()

    def _tick(self) -> None:
        assert self._stream is not None
        if self._stream.has_room():  # or else the line waits for the next tick
            self._stream.write(line(self._next))
            self._next, self._waited = self._next + 1, 0
        else:
            self._waited += self._milliseconds
        if self._waited > PATIENCE_MILLISECONDS:
            self._stream.reset()  # a client that takes nothing is not kept for ever
        elif self._next < self._end:
            self._stream.call_later(self._milliseconds / 1000, self._tick)
        else:
            self._stream.close()

    # --- what a backup must know ---
    def checkpoint(self, block: DataBlock) -> None:
        block.append(NAME, TickerSection(self._request, self._next, max(self._end, 0), self._milliseconds))

    # --- the backup ---
    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock) -> Ticker:
        """As the owner was when it made this checkpoint, but for the stream: there is none before `ready`."""
        section = block.section(NAME, TickerSection)
        if section.next > section.end:
            raise CheckpointRefused("next", "lies beyond the last line")
        application = cls(root)
        application._request = section.request
        application._next, application._end = section.next, section.end
        application._milliseconds = section.milliseconds
        return application

    def ready(self, stream: Stream, position: int) -> None:
        """The lines that were planned are sent again from `position` on, by the stream. Timers are not taken over."""
        self._stream = stream
        if self._next < self._end:
            stream.call_later(self._milliseconds / 1000, self._tick)


TICKER = ApplicationKind(NAME, Ticker, Ticker.unready)
