"""What to answer to a request for a file: pure functions of the request and of the file's facts (RFC 9110)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import unquote_to_bytes, urlsplit

_RANGE = re.compile(rb"^bytes=(\d{0,18})-(\d{0,18})\Z")
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class File:
    """What the answer depends on."""

    identifier: str
    size: int
    mtime_ns: int

    @property
    def etag(self) -> bytes:
        """Strong: a change of content changes the size or the modification time in nanoseconds."""
        return f'"{self.mtime_ns:x}-{self.size:x}"'.encode()

    @property
    def last_modified(self) -> bytes:
        return formatdate(self.mtime_ns // 10**9, usegmt=True).encode()


@dataclass(frozen=True)
class Answer:
    """Status and headers, and a body that is literal or `length` bytes of the file from `offset`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    literal: bytes = b""
    offset: int = 0
    length: int = 0


def path_of(target: bytes) -> str | None:
    """The identifier of the object that a request target names; None when it names nothing a file can be."""
    try:
        path = urlsplit(target).path if target.startswith((b"http://", b"/")) else b""
        text = unquote_to_bytes(path).decode("utf-8")
    except ValueError:
        return None
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        return None
    return text


def refuse(status: int, sentence: str, extra: Headers = ()) -> Answer:
    """An error with a sentence for a person."""
    body = f"{sentence}\n".encode()
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Length", b"%d" % len(body)), *extra]
    return Answer(status, headers, literal=body)


def answer(headers: Headers, file: File) -> Answer:
    """The answer to GET or HEAD for a file that exists."""
    given = {name.lower(): value.strip() for name, value in headers}
    validators = [(b"ETag", file.etag), (b"Last-Modified", file.last_modified), (b"Accept-Ranges", b"bytes")]
    if _not_modified(given, file):
        return Answer(304, validators)
    kind = mimetypes.guess_type(file.identifier)[0] or "application/octet-stream"
    common = [(b"Content-Type", kind.encode()), *validators]
    wanted = given.get(b"range")
    if wanted is not None and _range_applies(given, file):
        span = _span(wanted, file.size)
        if span is None:
            return refuse(
                416, "no byte of the object is in that range", [(b"Content-Range", b"bytes */%d" % file.size)]
            )
        if span != (0, file.size):
            first, length = span
            where = b"bytes %d-%d/%d" % (first, first + length - 1, file.size)
            partial = [(b"Content-Length", b"%d" % length), (b"Content-Range", where)]
            return Answer(206, [*partial, *common], offset=first, length=length)
    return Answer(200, [(b"Content-Length", b"%d" % file.size), *common], length=file.size)


def _not_modified(given: dict[bytes, bytes], file: File) -> bool:
    """RFC 9110 section 13.2.2: If-None-Match comes before If-Modified-Since."""
    tags = given.get(b"if-none-match")
    if tags is not None:
        listed = [tag.strip().removeprefix(b"W/") for tag in tags.split(b",")]
        return b"*" in listed or file.etag in listed
    since = _date(given.get(b"if-modified-since"))
    return since is not None and file.mtime_ns // 10**9 <= since.timestamp()


def _range_applies(given: dict[bytes, bytes], file: File) -> bool:
    """RFC 9110 section 13.1.5: If-Range must be the strong validator, or the very date."""
    condition = given.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return condition == file.etag
    return condition == file.last_modified


def _span(wanted: bytes, size: int) -> tuple[int, int] | None:
    """(first, length) of a single range; (0, size) for what is to be ignored; None when unsatisfiable."""
    match = _RANGE.match(wanted)
    if match is None or match[0] == b"bytes=-":
        return (0, size)  # malformed, another unit, or several: the whole is a correct answer (section 14.2)
    first, last = match[1], match[2]
    if not first:
        length = min(int(last), size)
        return (size - length, length) if length else None
    start = int(first)
    if last and int(last) < start:
        return (0, size)
    if start >= size:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return (start, end - start + 1)


def _date(value: bytes | None) -> datetime | None:
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
