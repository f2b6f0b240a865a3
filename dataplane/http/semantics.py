"""What to answer to a request for a file: pure functions of the request and of the file's facts (RFC 9110)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from dataplane.http.conditions import Fields, Validators, evaluate, range_applies
from dataplane.http.ranges import Span, content_range, multipart, spans_of
from dataplane.names import text_of

ALLOWED = b"GET, HEAD, OPTIONS"
_KNOWN = frozenset((b"POST", b"PUT", b"PATCH", b"DELETE", b"CONNECT", b"TRACE"))
_ABSOLUTE = re.compile(rb"http://[^/?#]*", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999: an HTTP date has four digits for the year."""

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class File:
    """What the answer depends on. `digest`: SHA-256 of the content, empty while it is not known."""

    identifier: str
    size: int
    mtime_ns: int
    digest: bytes = b""

    def validators(self, now: float) -> Validators:
        """A file from the future was modified now (RFC 9110 section 8.8.2.1)."""
        modified = min(max(0, self.mtime_ns // 10**9), int(now), _LAST_SECOND)
        tags = [b'"%x-%x"' % (self.mtime_ns & (1 << 64) - 1, self.size)]
        if self.digest:
            tags.insert(0, b'"%b"' % self.digest[:16].hex().encode())
        return Validators(tuple(tags), modified)


@dataclass(frozen=True)
class Answer:
    """Status and headers, and a body made of literal bytes and of spans of the file."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: list[bytes | Span] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(part.length if isinstance(part, Span) else len(part) for part in self.body)


def path_of(target: bytes) -> str | None:
    """The identifier of the object that a request target names; None when it names nothing a file can be.

    Origin-form and absolute-form (RFC 9112 section 3.2). Every file has one identifier: empty and `.` segments are
    left out, and a `..` segment names nothing.
    """
    absolute = _ABSOLUTE.match(target)
    path = re.split(rb"[?#]", target[absolute.end() :] if absolute else target, maxsplit=1)[0]
    if absolute and not path:
        path = b"/"
    if not path.startswith(b"/") or _BROKEN_ESCAPE.search(path):
        return None
    text = text_of(unquote_to_bytes(path))
    segments = text.split("/")
    if "\0" in text or ".." in segments:
        return None
    plain = "/" + "/".join(segment for segment in segments if segment not in ("", "."))
    return plain if segments[-1] not in ("", ".") or plain == "/" else plain + "/"


def refuse(status: int, sentence: str, extra: Headers = ()) -> Answer:
    """An error with a sentence for a person."""
    body = f"{sentence}\n".encode()
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Length", b"%d" % len(body)), *extra]
    return Answer(status, headers, [body])


def other_method(method: bytes) -> Answer:
    """The answer to anything but GET and HEAD, wherever it is aimed."""
    allow = [(b"Allow", ALLOWED)]
    if method == b"OPTIONS":
        return Answer(204, allow)
    if method in _KNOWN:
        return refuse(405, "only GET, HEAD and OPTIONS are served", allow)
    return refuse(501, "this method is not known", allow)


def combined(headers: Headers) -> dict[bytes, bytes]:
    """Fields by lower-case name; several lines of one name are joined (RFC 9110 section 5.3)."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        key = name.lower()
        fields[key] = fields[key] + b", " + value if key in fields else value
    return fields


def answer(method: bytes, fields: Fields, file: File, now: float) -> Answer:
    """The answer to GET or HEAD for a file that exists. `now`: Unix time."""
    validators = file.validators(now)
    etag = validators.tags[0]
    known = [(b"ETag", etag), (b"Last-Modified", validators.last_modified), (b"Accept-Ranges", b"bytes")]
    status = evaluate(fields, validators)
    if status == 304:
        return Answer(304, known)
    if status == 412:
        return refuse(412, "the object is not the one that the request is meant for", known)
    kind = content_type(file.identifier)
    wanted = fields.get(b"range")
    spans = None
    if method == b"GET" and wanted is not None and range_applies(fields, validators, now):
        spans = spans_of(wanted, file.size)
    if spans is None:
        whole: list[bytes | Span] = [Span(0, file.size)] if file.size else []
        return _of(200, whole, [(b"Content-Type", kind), *known])
    if not spans:
        nowhere = [(b"Content-Range", b"bytes */%d" % file.size), *known]
        return refuse(416, "no byte of the object is in that range", nowhere)
    if len(spans) == 1:
        where = [(b"Content-Range", content_range(spans[0], file.size)), (b"Content-Type", kind)]
        return _of(206, [spans[0]], [*where, *known])
    boundary, body = multipart(spans, file.size, kind, etag)
    return _of(206, body, [(b"Content-Type", b"multipart/byteranges; boundary=" + boundary), *known])


def _of(status: int, body: list[bytes | Span], headers: list[tuple[bytes, bytes]]) -> Answer:
    made = Answer(status, headers, body)
    headers.insert(0, (b"Content-Length", b"%d" % made.length))
    return made


# --- media types ---
_types = mimetypes.MimeTypes()
"""Python's own table, and not the machine's: servers with the same files say the same of them."""
for _type, _suffix in (
    ("video/mp2t", ".ts"),
    ("video/x-matroska", ".mkv"),
    ("video/iso.segment", ".m4s"),
    ("video/ogg", ".ogv"),
    ("audio/mp4", ".m4a"),
    ("audio/ogg", ".ogg"),
    ("audio/flac", ".flac"),
    ("application/vnd.apple.mpegurl", ".m3u8"),
    ("application/dash+xml", ".mpd"),
):
    _types.add_type(_type, _suffix)
_PACKED = {"gzip": b"application/gzip", "bzip2": b"application/x-bzip2", "xz": b"application/x-xz"}


def content_type(identifier: str) -> bytes:
    """The media type that the file's name says. A packed file is of its packing's type: it is sent as it is."""
    kind, packing = _types.guess_type(identifier)
    if packing is not None:
        return _PACKED.get(packing, b"application/octet-stream")
    return kind.encode() if kind is not None else b"application/octet-stream"
