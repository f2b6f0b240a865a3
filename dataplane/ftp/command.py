"""FTP commands out of a byte stream (RFC 959 section 4.1, RFC 2640 section 3.1). Pure.

What waits here is part of checkpoints, but never a password: `redacted` is what of the input may leave the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dataplane import names

LIMIT_LINE = 4352
"""Bytes of a command: a path of 4,096 and some."""
LIMIT_PENDING = 4 * LIMIT_LINE
LIMIT_LINES = 256
"""Commands that may wait for the end of a transfer."""
_TELNET = re.compile(rb"\xff(?:[\xfb-\xfe][\x00-\xff]|[\xf0-\xfa]|\xff)?")
_SYNCH = b"\xf2\xf4"
"""Data Mark and Interrupt Process whose IAC went another way."""
_VERB = re.compile(rb"[A-Za-z]{3,4}\Z")
_SECRET = b"PASS "
_NOTHING = rb"(?>\xff(?:[\xfb-\xfe][^\n]|[\xf0-\xfa]|(?!\xff)))"
"""A command of Telnet within a line, which `_plain` leaves out."""
_SECRET_LINE = re.compile(
    rb"^(?:%b|[%b])*+%b [^\n]*" % (_NOTHING, _SYNCH, b"".join(rb"%c%b*+" % (letter, _NOTHING) for letter in b"PASS")),
    re.MULTILINE | re.IGNORECASE,
)
_ALIASES = {"XCWD": "CWD", "XCUP": "CDUP", "XPWD": "PWD"}


@dataclass(frozen=True, slots=True)
class Command:
    """`verb` in capitals, without the X of RFC 775; `argument` is empty when there is none, and may be of any bytes
    (`names`)."""

    verb: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no command, and the reply that it gets."""

    code: int
    sentence: str


class Reader:
    """Takes input in whatever pieces and gives commands. No input raises; memory is bounded by `LIMIT_PENDING` as long
    as the caller asks `crowded` after each `feed`."""

    def __init__(self) -> None:
        self.pending = b""
        self.lines = 0
        """Complete ones."""
        self._looked = 0
        """So much of them has nothing that `next_of` looks for."""

    def feed(self, data: bytes) -> None:
        self.pending += data
        self.lines += data.count(b"\n")
        start = self.pending.rfind(b"\n") + 1
        if len(self.pending) - start > LIMIT_LINE:  # the rest of the line is not wanted; its length tells
            self.pending = self.pending[: start + LIMIT_LINE + 1]

    @property
    def crowded(self) -> bool:
        return len(self.pending) > LIMIT_PENDING

    def next(self) -> Command | Malformed | None:
        """The next complete line; None when there is none."""
        line, newline, _ = self.pending.partition(b"\n")
        if not newline:
            return None
        self._take(0, len(line))
        self._looked = max(0, self._looked - len(line) - 1)
        return read_line(line)

    def next_of(self, verbs: frozenset[str]) -> Command | None:
        """The first complete command of these, whatever stands before it: what stands around it stays. They are always
        the same ones: a line that is none of them is not looked at again."""
        while (end := self.pending.find(b"\n", self._looked)) >= 0:
            found = read_line(self.pending[self._looked : end])
            if isinstance(found, Command) and found.verb in verbs:
                self._take(self._looked, end)
                return found
            self._looked = end + 1
        return None

    def _take(self, start: int, end: int) -> None:
        """Out of what is pending: a line and its LF."""
        self.pending = self.pending[:start] + self.pending[end + 1 :]
        self.lines -= 1

    def clear(self) -> None:
        self.pending, self.lines, self._looked = b"", 0, 0


def read_line(line: bytes) -> Command | Malformed:
    """A line without its LF."""
    if len(line) > LIMIT_LINE:
        return Malformed(500, "The command is too long.")
    verb, _, argument = _plain(line).partition(b" ")
    if not _VERB.match(verb):
        return Malformed(500, "This is no command.")
    if b"\r" in argument or b"\0" in argument:
        return Malformed(501, "The argument has a CR or a NUL.")
    name = verb.decode("ascii").upper()
    return Command(_ALIASES.get(name, name), names.text_of(argument))


def redacted(pending: bytes) -> bytes:
    """The same input without what a password could be: with it, PASS is refused, and nothing else differs."""
    return _SECRET_LINE.sub(_SECRET, pending)


def _plain(line: bytes) -> bytes:
    """Without the commands of Telnet, which a client sends before ABOR, and without CR."""
    return _TELNET.sub(lambda match: b"\xff" if match[0] == b"\xff\xff" else b"", line).lstrip(_SYNCH).rstrip(b"\r")
