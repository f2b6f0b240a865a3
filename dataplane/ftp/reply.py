"""FTP replies (RFC 959 section 4.2). Pure."""

from __future__ import annotations

from collections.abc import Iterable


def reply(code: int, sentence: str) -> bytes:
    """One line. Control characters of a path do not get into it."""
    return f"{code} {_clean(sentence)}\r\n".encode("utf-8", "replace")


def lines(code: int, first: str, between: Iterable[str], last: str) -> bytes:
    """Several lines: those between begin with a space, so that none looks like the last."""
    text = [f"{code}-{_clean(first)}", *(f" {_clean(line)}" for line in between), f"{code} {_clean(last)}"]
    return ("\r\n".join(text) + "\r\n").encode("utf-8", "replace")


def _clean(text: str) -> str:
    return "".join(character if character >= " " and character != "\x7f" else "?" for character in text)
