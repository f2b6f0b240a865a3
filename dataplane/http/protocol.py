"""HTTP/1.1 as an application of the stack: h11 reads requests, the sequence map carries the responses.

A response is its header, literal, and the object's bytes; with several ranges, literal part headers stand between
them. Everything about it is planned in one turn, so that one checkpoint covers it, and what a backup sends again is
the very same bytes. Input that was read and not yet answered is the protocol's own state: it was acknowledged, so only
the checkpoint still has it.

At any moment the connection waits for one of three things, each with its own limit of time:

    START     the first byte of a request       then it is closed, in good order
    REST      the rest of a request's header    then 408, and it is closed; more bytes do not prolong it
    PROGRESS  the client to take what was planned  then it is reset, if it took nothing at all

The limits begin anew where a backup goes on.
"""

from __future__ import annotations

import enum
import functools
import time
from collections.abc import Callable
from typing import Annotated, cast

import h11
import msgspec

from dataplane import access_log
from dataplane.http import semantics
from dataplane.http.conditions import http_date
from dataplane.objects import DocumentRoot, ObjectMissing, ObjectUnavailable, OpenObject
from dataplane.stack import Application, ApplicationKind, Stream, Timer
from state.configuration import LIMIT_HEADER_BYTES, Serving
from state.datablock import DataBlock

NAME = "http/1.1"
_LIMIT_AHEAD = 8
"""Responses planned and not yet sent: further requests wait, and then further input does, at the client."""


class HttpSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pending: Annotated[bytes, msgspec.Meta(max_length=4 * LIMIT_HEADER_BYTES)]
    """Input from the start of the first request that has no response yet."""


class _Body:
    """Stands for bytes that are planned apart: h11 only counts them."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class _Waits(enum.Enum):
    START = "the first byte of a request"
    REST = "the rest of a request"
    PROGRESS = "the client to take what was planned"
    NOTHING = "nothing"


class HttpApplication(Application):
    name = NAME
    read_bytes = LIMIT_HEADER_BYTES

    def __init__(
        self, root: DocumentRoot, limits: Serving | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock`: Unix time."""
        self._root = root
        self._limits = limits or Serving()
        self._clock = clock
        self._stream: Stream | None = None
        self._h11: h11.Connection | None = None
        self._pending = b""
        """Input for a parser that does not exist yet."""
        self._request: h11.Request | None = None
        self._ahead = 0
        self._blocked = False
        self._waits = _Waits.NOTHING
        self._unacknowledged = 0
        self._timer: Timer | None = None
        self._stopping = False
        self._ended = False

    @classmethod
    def unready(
        cls,
        root: DocumentRoot,
        block: DataBlock,
        limits: Serving | None = None,
        clock: Callable[[], float] = time.time,
    ) -> HttpApplication:
        """From a checkpoint (claim 14). Nothing is parsed and nothing is sent before `ready`."""
        section = block.section(NAME, HttpSection)
        application = cls(root, limits, clock)
        application._pending = section.pending
        return application

    @property
    def _parser(self) -> h11.Connection:
        """Made when it is needed: most connections of a busy server are idle, and so are most of its backup's."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
            if self._pending:
                self._h11.receive_data(self._pending)
                self._pending = b""
        return self._h11

    def opened(self, stream: Stream) -> None:
        self._stream = stream
        self._watch()

    def ready(self, stream: Stream, position: int) -> None:
        self._stream = stream
        if self._unread:
            self._work()
        else:
            self._watch()

    def checkpoint(self, block: DataBlock) -> None:
        block.append(NAME, HttpSection(pending=b"" if self._ended else self._unread))

    @property
    def _unread(self) -> bytes:
        return self._pending if self._h11 is None else bytes(self._h11.trailing_data[0])

    def received(self, data: bytes) -> None:
        if self._ended:
            return
        if not self._unread and self._parser.their_state is h11.IDLE:
            data = data.lstrip(b"\r\n")  # empty lines before a request are no error (RFC 9112 section 2.2)
        if data:
            self._parser.receive_data(data)
        self._work()
        if not self._ended and len(self._unread) > 2 * LIMIT_HEADER_BYTES:  # read although it was held: handed over
            self._refuse(431, "too many requests ahead")

    def input_ended(self) -> None:
        if self._ended:
            return
        self._parser.receive_data(b"")
        self._work()

    def drained(self) -> None:
        self._ahead = 0
        self._work()

    def stopping(self) -> None:
        self._stopping = True

    def ended(self) -> None:
        self._stream = None
        self._ended = True

    # --- time ---
    def _watch(self) -> None:
        """What is waited for may have changed. More input of the same request changes nothing."""
        stream = self._stream
        if stream is None:
            return
        if stream.unsent or self._blocked:
            waits = _Waits.PROGRESS
        elif self._ended:
            waits = _Waits.NOTHING
        else:
            waits = _Waits.REST if self._unread else _Waits.START
        if waits is not self._waits:
            self._wait_for(waits)

    def _wait_for(self, waits: _Waits) -> None:
        assert self._stream is not None
        self._waits = waits
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if waits is _Waits.PROGRESS:
            self._unacknowledged = self._stream.unacknowledged
        if waits is not _Waits.NOTHING:
            limits = self._limits
            limit = limits.idle if waits is _Waits.START else limits.header if waits is _Waits.REST else limits.send
            self._timer = self._stream.call_later(limit / 1000, self._late)

    def _late(self) -> None:
        """What was waited for has not come in time."""
        stream = self._stream
        if stream is None:
            return
        if self._waits is _Waits.REST:
            self._refuse(408, "the request was not complete in time")
        elif unacknowledged := stream.unacknowledged:
            if self._waits is _Waits.PROGRESS and unacknowledged >= self._unacknowledged:
                stream.reset()
            else:
                self._wait_for(_Waits.PROGRESS)
        elif not self._ended:
            if self._waits is _Waits.START:
                self._close()
            else:
                self._waits = _Waits.NOTHING
                self._watch()

    # --- requests ---
    def _work(self) -> None:
        """Answer every request that is complete, as far as there is room for answers."""
        while not self._ended and self._stream is not None:
            if self._request is None:  # one whose header was taken in is answered: only here it is still known
                self._blocked = self._ahead >= _LIMIT_AHEAD or not self._stream.has_room()
                if self._blocked:
                    break
            if self._h11 is None and not self._pending:
                break  # nothing to read: no parser is made for that
            before = len(self._unread)
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse_unread(error)
                break
            if isinstance(event, h11.Request):
                self._asked(event, before - len(self._unread))
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                self._respond(self._request)
            elif isinstance(event, h11.ConnectionClosed):
                self._close()
            else:  # NEED_DATA or PAUSED
                break
        if self._stream is not None and not self._ended:
            self._stream.hold_input(self._blocked and bool(self._unread))
        self._watch()

    def _asked(self, request: h11.Request, size: int) -> None:
        """A request's header of `size` bytes is there: is it one that may have an answer other than the end?"""
        self._request = request
        expected = [value.lower() for name, value in request.headers if name == b"expect"]
        if size > self._limits.header_bytes:
            self._refuse_length(414 if len(request.target) > self._limits.header_bytes // 2 else 431)
        elif not request.http_version.startswith(b"1."):
            self._refuse(505, "HTTP/1.1 is spoken here")
        elif expected and expected != [b"100-continue"]:
            self._refuse(417, "of expectations, only 100-continue is known")
        elif _has_body(request):
            # At once, without `100 Continue`: a client that waits for that need not send it.
            self._refuse(413, "a request with a body is not accepted here")

    def _refuse_unread(self, error: h11.RemoteProtocolError) -> None:
        if error.error_status_hint == 431:
            self._refuse_length(431 if b"\n" in self._unread else 414)
        else:
            self._refuse(error.error_status_hint, str(error))

    def _refuse_length(self, status: int) -> None:
        what = "target" if status == 414 else "header"
        self._refuse(status, f"the request's {what} is too long: {self._limits.header_bytes} bytes of header may come")

    def _respond(self, request: h11.Request) -> None:
        if request.method not in (b"GET", b"HEAD"):
            self._plan(semantics.other_method(request.method))
            return
        path = semantics.path_of(request.target)
        if path is None:
            self._plan(semantics.refuse(400, "the request target is not a path"))
            return
        try:
            opened = self._root.open(path)
        except ObjectUnavailable:
            self._plan(semantics.refuse(503, "too many files are open", [(b"Retry-After", b"1")]))
            return
        except ObjectMissing:
            self._plan(semantics.refuse(404, "there is no such object"))
            return
        ref = opened.ref
        file = semantics.File(ref.identifier, ref.size, ref.mtime_ns, ref.digest)
        fields = semantics.combined(request.headers)
        self._plan(semantics.answer(request.method, fields, file, self._clock()), opened)

    # --- responses ---
    def _plan(self, answer: semantics.Answer, opened: OpenObject | None = None, *, last: bool = False) -> None:
        """Plan the whole response. Takes one use of `opened`. `last`: the connection ends with it."""
        stream, request = self._stream, self._request
        assert stream is not None
        self._ahead += 1
        self._request = None
        self._waits = _Waits.NOTHING  # for its limit of time, this is progress
        body = [] if request is not None and request.method == b"HEAD" else answer.body
        length = answer.length if body else 0
        self._write_log(request, answer.status, length)
        literal = self._head(answer, length, last=last or self._stopping)
        for part in body:
            if isinstance(part, bytes):
                literal += part
                continue
            assert opened is not None
            stream.write(literal)
            stream.send_object(self._root.again(opened), part.offset, part.length)
            literal = b""
            if self._ended:
                break  # planning reset the connection
        if opened is not None:
            self._root.release(opened)
        if self._ended:
            return
        stream.write(literal)
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._next_request()
        else:
            self._close()

    def _next_request(self) -> None:
        """Empty lines before it are no error (RFC 9112 section 2.2)."""
        rest, ended = self._parser.trailing_data
        self._pending, self._h11 = bytes(rest).lstrip(b"\r\n"), None
        if ended:
            self._parser.receive_data(b"")

    def _head(self, answer: semantics.Answer, length: int, *, last: bool) -> bytes:
        """The response's header; h11 then takes the message as sent."""
        headers = [(b"Date", http_date(self._clock())), (b"Server", b"takeover"), *answer.headers]
        if last:
            headers.append((b"Connection", b"close"))
        reason = _REASONS.get(answer.status, b"")
        head = self._parser.send(h11.Response(status_code=answer.status, headers=headers, reason=reason)) or b""
        if length:
            self._parser.send_with_data_passthrough(h11.Data(data=cast(bytes, _Body(length))))
        self._parser.send(h11.EndOfMessage())
        return head

    def _write_log(self, request: h11.Request | None, status: int, length: int) -> None:
        assert self._stream is not None
        asked = (request.method, request.target, request.http_version) if request is not None else None
        access_log.write(self._stream.connection.destination, self._clock(), asked, status, length)

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer with an error and close: what follows in the input cannot be trusted."""
        if self._parser.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._plan(semantics.refuse(status, sentence), last=True)
        if not self._ended:
            self._close()

    def _close(self) -> None:
        self._ended = True
        if self._stream is not None:
            self._stream.hold_input(False)
            self._stream.close()
            self._watch()


def _has_body(request: h11.Request) -> bool:
    framing = dict(request.headers)
    return b"transfer-encoding" in framing or int(framing.get(b"content-length", b"0")) != 0


_REASONS = {
    200: b"OK",
    204: b"No Content",
    206: b"Partial Content",
    304: b"Not Modified",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    414: b"URI Too Long",
    416: b"Range Not Satisfiable",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}


def kind(limits: Serving) -> ApplicationKind:
    """The protocol with these limits."""
    return ApplicationKind(
        NAME,
        functools.partial(HttpApplication, limits=limits),
        functools.partial(HttpApplication.unready, limits=limits),
    )


HTTP = kind(Serving())
