"""RTSP messages on a byte stream (RFC 2326 sections 4 to 7), and the binary data interleaved with them (10.12).

    reader = Reader()
    reader.feed(data)
    while (message := reader.next()) is not None: ...

Requests come out whole, with their body. `reader.pending` is the input that no message came out of yet, for a
checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from state.errors import PeerError

LIMIT_HEAD = 16 * 1024
LIMIT_BODY = 4 * 1024
LIMIT_HEADERS = 64
LIMIT_FRAME = 16 * 1024
"""Receiver reports are far smaller; what is pending must fit into a checkpoint."""
LIMIT_URL = 2 * 1024
"""Bytes. Sessions keep theirs, in checkpoints too."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VERSION = re.compile(r"RTSP/([0-9]{1,4})\.([0-9]{1,4})\Z")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_END = re.compile(rb"\r?\n\r?\n")

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    413: "Request Entity Too Large",
    414: "Request-URI Too Long",
    415: "Unsupported Media Type",
    451: "Parameter Not Understood",
    453: "Not Enough Bandwidth",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    456: "Header Field Not Valid for Resource",
    457: "Invalid Range",
    459: "Aggregate Operation Not Allowed",
    461: "Unsupported Transport",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "RTSP Version Not Supported",
    551: "Option not supported",
}


class RtspError(PeerError):
    """A request that is answered by an error: `status`, and headers that belong to it."""

    def __init__(self, status: int, sentence: str, *headers: tuple[str, str]) -> None:
        super().__init__(f"{status} {REASONS[status]}: {sentence}")
        self.status = status
        self.sentence = sentence
        self.headers = headers


class RtspMalformed(RtspError):
    """Input after which nothing can be understood any more: answer, then close. `cseq` where it could be read."""

    cseq: int | None = None


@dataclass(frozen=True)
class Request:
    """One request. Header names are in lower case; of a header that comes again the values are joined by commas."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def cseq(self) -> int | None:
        """The number that the response repeats; None when the client gave none (section 12.17)."""
        value = self.headers.get("cseq", "")
        return int(value) if _NUMBER.match(value) else None


@dataclass(frozen=True)
class Interleaved:
    """Binary data from the client, such as its receiver reports."""

    channel: int
    data: bytes


@dataclass(frozen=True)
class Answered:
    """A client's response. This server asks nothing, so it means nothing."""


@dataclass
class Reader:
    """The client's side of a connection, as messages."""

    pending: bytes = b""
    _head: tuple[Request | Answered, int, int] | None = field(default=None, init=False)
    """A head that is complete, its length, its body's length: not to be parsed again at every byte of a body."""

    def feed(self, data: bytes) -> None:
        self.pending += data

    def next(self) -> Request | Interleaved | Answered | None:
        """The next message that is complete. Raises `RtspMalformed`: then there is no way on."""
        if self._head is None:
            self.pending = self.pending.lstrip(b"\r\n")  # empty lines between messages
            if self.pending[:1] == b"$":
                return self._interleaved()
            self._head = self._read_head()
            if self._head is None:
                return None
        message, head, body = self._head
        if len(self.pending) < head + body:
            return None
        content, self.pending = self.pending[head : head + body], self.pending[head + body :]
        self._head = None
        if isinstance(message, Request):
            return Request(message.method, message.url, message.headers, content)
        return message

    def _interleaved(self) -> Interleaved | None:
        if len(self.pending) < 4:
            return None
        end = 4 + int.from_bytes(self.pending[2:4], "big")
        if end > LIMIT_FRAME:
            raise RtspMalformed(413, f"interleaved data has at most {LIMIT_FRAME} bytes")
        if len(self.pending) < end:
            return None
        message = Interleaved(self.pending[1], self.pending[4:end])
        self.pending = self.pending[end:]
        return message

    def _read_head(self) -> tuple[Request | Answered, int, int] | None:
        found = _END.search(self.pending, 0, LIMIT_HEAD)
        if found is None:
            if len(self.pending) >= LIMIT_HEAD:
                if b"\n" not in self.pending[:LIMIT_HEAD]:
                    raise RtspMalformed(414, f"a URL has at most {LIMIT_URL} bytes")
                raise RtspMalformed(413, f"a request's head has at most {LIMIT_HEAD} bytes")
            return None
        try:
            lines = self.pending[: found.start()].decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise RtspMalformed(400, "the request's head is not UTF-8") from None
        lines = [line.removesuffix("\r") for line in lines]
        headers = _headers(lines[1:])
        length = headers.get("content-length", "0")
        try:
            if not _NUMBER.match(length):
                raise RtspMalformed(400, "Content-Length is not a number")
            if int(length) > LIMIT_BODY:
                raise RtspMalformed(413, f"a request's body has at most {LIMIT_BODY} bytes")
            return _start(lines[0], headers), found.end(), int(length)
        except RtspMalformed as error:
            error.cseq = Request("", "", headers).cseq
            raise


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > LIMIT_HEADERS:
        raise RtspMalformed(400, f"a request has at most {LIMIT_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name, value = name.rstrip(), value.replace("\t", " ")
        if not colon or not _TOKEN.match(name) or not value.isprintable():
            raise RtspMalformed(400, "a line of the head is not a header")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _start(line: str, headers: dict[str, str]) -> Request | Answered:
    words = line.split(" ")
    if _VERSION.match(words[0]):
        return Answered()
    if len(words) != 3 or not _TOKEN.match(words[0]) or not words[1] or not words[1].isprintable():
        raise RtspMalformed(400, "the request line is not METHOD URL RTSP/1.0")
    version = _VERSION.match(words[2])
    if version is None:
        raise RtspMalformed(400, "the request line does not end with RTSP/1.0")
    if int(version[1]) != 1:
        raise RtspMalformed(505, "this server speaks RTSP/1.0")
    return Request(words[0], words[1], headers)


def response(status: int, cseq: int | None, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> bytes:
    """A whole response. A body brings its Content-Length."""
    lines = [f"RTSP/1.0 {status} {REASONS[status]}"]
    if cseq is not None:
        lines.append(f"CSeq: {cseq}")
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8") + body
