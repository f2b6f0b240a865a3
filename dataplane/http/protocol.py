"""HTTP/1.1 as an application of the stack: h11 reads requests, the sequence map carries the responses.

A response is two extents: its header, literal, and the object's bytes. Everything about it is planned in one turn, so
that one checkpoint covers it, and the header that a backup sends again is the very same bytes. Input that was read and
not yet answered is the protocol's own state: it was acknowledged, so only the checkpoint still has it.
"""

from __future__ import annotations

import logging
from email.utils import formatdate
from typing import Annotated, cast

import h11
import msgspec

from dataplane.http import semantics
from dataplane.objects import DocumentRoot, ObjectMissing, OpenObject
from dataplane.stack import Application, ApplicationKind, Stream
from state.datablock import DataBlock
from state.errors import CheckpointRefused

NAME = "http/1.1"
_LIMIT_HEAD = 16 * 1024
_LIMIT_AHEAD = 16
"""Responses planned and not yet sent: further requests wait."""

_log = logging.getLogger(__name__)


class HttpSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pending: Annotated[bytes, msgspec.Meta(max_length=4 * _LIMIT_HEAD)]
    """Input from the start of the first request that has no response yet."""


class _Body:
    """Stands for bytes that the kernel will send: h11 only counts them."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class HttpApplication(Application):
    name = NAME

    def __init__(self, root: DocumentRoot) -> None:
        self._root = root
        self._stream: Stream | None = None
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_LIMIT_HEAD)
        self._request: h11.Request | None = None
        self._ahead = 0
        self._ended = False

    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock) -> HttpApplication:
        """From a checkpoint (claim 14). Nothing is parsed and nothing is sent before `ready`."""
        section = block.section(NAME, HttpSection)
        application = cls(root)
        if section.pending:
            try:
                application._parser.receive_data(section.pending)
            except h11.RemoteProtocolError as error:
                raise CheckpointRefused("pending", str(error)) from None
        return application

    def opened(self, stream: Stream) -> None:
        self._stream = stream

    def ready(self, stream: Stream, position: int) -> None:
        self._stream = stream
        self._work()

    def checkpoint(self, block: DataBlock) -> None:
        block.append(NAME, HttpSection(pending=b"" if self._ended else bytes(self._parser.trailing_data[0])))

    def received(self, data: bytes) -> None:
        if self._ended:
            return
        self._parser.receive_data(data)
        if len(self._parser.trailing_data[0]) > 2 * _LIMIT_HEAD:
            self._refuse(431, "too many requests ahead")
            return
        self._work()

    def input_ended(self) -> None:
        if self._ended:
            return
        self._parser.receive_data(b"")
        self._work()

    def drained(self) -> None:
        self._ahead = 0
        if not self._ended:
            self._work()

    def ended(self) -> None:
        self._stream = None
        self._ended = True

    def _work(self) -> None:
        """Answer every request that is complete."""
        while not self._ended and self._ahead < _LIMIT_AHEAD:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, str(error))
                return
            if isinstance(event, h11.Request):
                self._request = event
                if _has_body(event):
                    self._refuse(413, "a request with a body is not accepted here")
            elif isinstance(event, h11.Data):
                self._refuse(413, "a request with a body is not accepted here")
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                self._respond(self._request)
            elif isinstance(event, h11.ConnectionClosed):
                self._close()
            else:  # NEED_DATA or PAUSED
                return

    def _respond(self, request: h11.Request) -> None:
        opened: OpenObject | None = None
        path = semantics.path_of(request.target)
        if request.method not in (b"GET", b"HEAD"):
            answer = semantics.refuse(405, "only GET and HEAD are served", [(b"Allow", b"GET, HEAD")])
        elif path is None:
            answer = semantics.refuse(400, "the request target is not a path")
        else:
            try:
                opened = self._root.open(path)
            except ObjectMissing as error:
                answer = semantics.refuse(404, str(error))
            else:
                ref = opened.ref
                file = semantics.File(ref.identifier, ref.size, ref.mtime_ns)
                answer = semantics.answer(
                    [(k, v) for k, v in request.headers if request.method == b"GET" or k != b"range"], file
                )
        self._plan(answer, opened, with_body=request.method != b"HEAD" and answer.status != 304)

    def _plan(self, answer: semantics.Answer, opened: OpenObject | None, *, with_body: bool) -> None:
        stream = self._stream
        assert stream is not None
        self._ahead += 1
        headers = [(b"Date", formatdate(usegmt=True).encode()), (b"Server", b"takeover"), *answer.headers]
        reason = _REASONS.get(answer.status, b"")
        head = self._parser.send(h11.Response(status_code=answer.status, headers=headers, reason=reason)) or b""
        if with_body and answer.literal:
            head += self._parser.send(h11.Data(data=answer.literal)) or b""
        if with_body and answer.length:
            self._parser.send_with_data_passthrough(h11.Data(data=cast(bytes, _Body(answer.length))))
        head += self._parser.send(h11.EndOfMessage()) or b""
        stream.write(head)
        if opened is not None and with_body and answer.length:
            stream.send_object(opened, answer.offset, answer.length)
        elif opened is not None:
            self._root.release(opened)
        if self._ended:
            return  # planning reset the connection
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
        else:
            self._close()

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer with an error and close: what follows in the input cannot be trusted."""
        if self._parser.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = semantics.refuse(status, sentence, [(b"Connection", b"close")])
            self._plan(answer, None, with_body=True)
        if not self._ended:
            self._close()

    def _close(self) -> None:
        self._ended = True
        if self._stream is not None:
            self._stream.close()


def _has_body(request: h11.Request) -> bool:
    framing = dict(request.headers)
    return b"transfer-encoding" in framing or framing.get(b"content-length", b"0") != b"0"


_REASONS = {
    200: b"OK",
    206: b"Partial Content",
    304: b"Not Modified",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    416: b"Range Not Satisfiable",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
}

HTTP = ApplicationKind(NAME, HttpApplication, HttpApplication.unready)
