"""FTP replies (RFC 959 section 4.2). Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.names import bytes_of

_NOT_IN_A_LINE = str.maketrans("\r\n\0", "???")


def reply(code: int, sentence: str) -> bytes:
    """One line, whatever a path has in it."""
    return _encoded([f"{code} {sentence}"])


def lines(code: int, first: str, between: Iterable[str], last: str) -> bytes:
    """Several lines: those between begin with a space, so that none looks like the last."""
    return _encoded([f"{code}-{first}", *(f" {line}" for line in between), f"{code} {last}"])


def _encoded(text: Iterable[str]) -> bytes:
    """Lines as the control connection has them, which is Telnet's (section 3.1): IAC is said twice."""
    return b"".join(bytes_of(line.translate(_NOT_IN_A_LINE)).replace(b"\xff", b"\xff\xff") + b"\r\n" for line in text)
