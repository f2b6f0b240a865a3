"""Byte ranges (RFC 9110 section 14): from the Range field to the spans of a file that are sent. Pure.

What a client can make a server do with one small field is bounded: at most `LIMIT_RANGES` ranges are looked at, and
ranges that overlap, or lie closer together than a part's header is long, become one. So a response is never longer
than the file and `LIMIT_RANGES` part headers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT_RANGES = 32
"""A field with more ranges is ignored: the whole is a correct answer (section 14.2)."""
_LEAST_GAP = 80
"""About the length of a part's header: a smaller gap is cheaper to send than to leave out (section 15.3.7.2)."""
_SPEC = re.compile(rb"(\d*)-(\d*)\Z")
_LIMIT_DIGITS = 18
_UNIT = b"bytes="


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes of a file from `offset`; at least one."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def spans_of(field: bytes, size: int) -> list[Span] | None:
    """What a Range field asks of a file of `size` bytes, in the order asked for.

    None: the field is not understood, or asks for too many ranges, and is to be ignored. An empty list: it is
    understood, and no byte of the file is in it (416).
    """
    if field[: len(_UNIT)].lower() != _UNIT:
        return None
    specs = [stripped for spec in field[len(_UNIT) :].split(b",") if (stripped := spec.strip(b" \t"))]
    if not 1 <= len(specs) <= LIMIT_RANGES:
        return None
    spans = []
    for spec in specs:
        match = _SPEC.match(spec)
        if match is None or spec == b"-":
            return None
        first, last = (_number(digits) for digits in match.groups())
        if first is None:
            assert last is not None
            first, last = max(0, size - last), (size - 1 if last else -1)
        elif last is None:
            last = size - 1
        elif last < first:
            return None  # one wrong range makes the whole field invalid (section 14.1.1)
        if first <= min(last, size - 1):
            spans.append(Span(first, min(last, size - 1) - first + 1))
    return _joined(spans)


def _number(digits: bytes) -> int | None:
    """None for no digits. No file is as long as a number that is cut here."""
    if not digits:
        return None
    significant = digits.lstrip(b"0") or b"0"
    return int(significant) if len(significant) <= _LIMIT_DIGITS else int(10**_LIMIT_DIGITS)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans that overlap or nearly touch made one, each at the place of the first that went into it."""
    merged: list[tuple[int, Span]] = []
    for place, span in sorted(enumerate(spans), key=lambda entry: entry[1].offset):
        if merged and span.offset - merged[-1][1].end < _LEAST_GAP:
            before, last = merged[-1]
            end = max(last.end, span.end)
            merged[-1] = (min(before, place), Span(last.offset, end - last.offset))
        else:
            merged.append((place, span))
    return [span for _, span in sorted(merged, key=lambda entry: entry[0])]


def content_range(span: Span, size: int) -> bytes:
    """The Content-Range field of one span."""
    return b"bytes %d-%d/%d" % (span.offset, span.end - 1, size)


def multipart(spans: Sequence[Span], size: int, kind: bytes, etag: bytes) -> tuple[bytes, list[bytes | Span]]:
    """Several spans as multipart/byteranges (section 14.6): (boundary, body in its order).

    The boundary is made of what the response is made of, so that the same request for the same file is always answered
    with the same bytes; a file cannot be made to contain it on purpose, because its own digest is in it.
    """
    asked = b",".join(b"%d-%d" % (span.offset, span.end) for span in spans)
    boundary = hashlib.sha256(b"\n".join((etag, kind, asked))).hexdigest()[:32].encode()
    body: list[bytes | Span] = []
    start = b"--"
    for span in spans:
        where = content_range(span, size)
        body.append(b"%b%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n" % (start, boundary, kind, where))
        body.append(span)
        start = b"\r\n--"
    body.append(b"\r\n--%b--\r\n" % boundary)
    return boundary, body
