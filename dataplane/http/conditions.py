"""Conditional requests (RFC 9110 section 13): may the method be applied to what the server has? Pure.

A file is known by a strong entity tag, made of its digest, so that every server with the same copy says the same. While
the digest is not known (a large file that is new), the tag is made of size and modification time. A client that was
given that one is understood later, too: `Validators.tags` has both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime

_TAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DATE = re.compile(
    r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT"
    r"|[A-Z][a-z]{5,8}, \d{2}-[A-Z][a-z]{2}-\d{2} \d{2}:\d{2}:\d{2} GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2} \d{4}"
)
"""The three forms of section 5.6.7."""

Fields = Mapping[bytes, bytes]
"""A request's header fields by lower-case name; those that came in several lines are joined (section 5.3)."""


@dataclass(frozen=True)
class Validators:
    """`tags`: strong entity tags of the file, quoted, the one that is said first. `modified`: Unix time in seconds."""

    tags: tuple[bytes, ...]
    modified: int

    @property
    def last_modified(self) -> bytes:
        return http_date(self.modified)


def evaluate(fields: Fields, validators: Validators) -> int | None:
    """412 or 304 where a precondition of a GET or HEAD says so, in the order of section 13.2.2; None to go on."""
    match, unmodified = fields.get(b"if-match"), _date(fields.get(b"if-unmodified-since"))
    if match is not None:
        if not _listed(match, validators, weak=False):
            return 412
    elif unmodified is not None and validators.modified > unmodified:
        return 412
    none_match, modified = fields.get(b"if-none-match"), _date(fields.get(b"if-modified-since"))
    if none_match is not None:
        return 304 if _listed(none_match, validators, weak=True) else None
    if modified is not None and validators.modified <= modified:
        return 304
    return None


def range_applies(fields: Fields, validators: Validators, now: float) -> bool:
    """If-Range (section 13.1.5): only for the very file that the client has a part of.

    A date is as good as a tag only if the file did not change again within that second: it must lie a second back.
    """
    condition = fields.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return condition in validators.tags
    return condition == validators.last_modified and validators.modified + 1 < now


def _listed(field: bytes, validators: Validators, *, weak: bool) -> bool:
    """Is one of the file's tags in the list? `weak`: tags that are marked weak count, too (section 8.8.3.2)."""
    if field == b"*":
        return True
    return any(tag in validators.tags and (weak or not mark) for mark, tag in _TAG.findall(field))


def _date(value: bytes | None) -> float | None:
    """Unix time; None for what is no HTTP date, which is to be ignored."""
    if value is None:
        return None
    text = value.decode("latin-1")
    if not _DATE.fullmatch(text):
        return None
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def http_date(when: float) -> bytes:
    """A Date field's value for a Unix time."""
    return formatdate(when, usegmt=True).encode()
