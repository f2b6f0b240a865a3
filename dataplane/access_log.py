"""The access log: one line per response, to the logger `takeover.access`.

A line is written when the response is decided, by the server that decided it; so a takeover neither loses nor repeats
one. It has the Common Log Format (client, time, request line, status, bytes of the body). A query, a fragment and
whatever stands before the path may hold a secret: they are left out, as all header fields are.

The lines go through a queue to a thread: whoever does not read the log stops neither the event loop nor its heartbeat.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import re
import sys
import threading
import time
from typing import TextIO

LOGGER = "takeover.access"
_LIMIT_WAITING = 10_000
"""Lines that wait for the thread; more are dropped and counted."""
_LIMIT_PATH = 1024
_LAST_WORDS = 1.0
_PATH = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?([^?#]*)")

_log = logging.getLogger(LOGGER)


Request = tuple[bytes, bytes, bytes]
"""Method, target and version."""


def line(client: bytes, when: float, request: Request | None, status: int, length: int) -> str:
    """One response's line. `client`: packed address; `when`: Unix time; no `request`: it could not be read."""
    moment = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(when))
    asked = "-"
    if request is not None:
        method, target, version = (part.decode("latin-1") for part in request)
        match = _PATH.match(target)
        path = match[1][:_LIMIT_PATH] if match is not None else ""
        asked = f"{method} {path or '/'} HTTP/{version}"
    quoted = "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\x{ord(c):02x}" for c in asked)
    return f'{ipaddress.ip_address(client)} - - [{moment}] "{quoted}" {status} {length}'


def write(client: bytes, when: float, request: Request | None, status: int, length: int) -> None:
    """Log one response; cheap when the log is off."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s", line(client, when, request, status, length))


class AccessLog(logging.Handler):
    """Writes the lines as they are, on a thread of its own. `close` gives it a moment for what still waits."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream`: where to; standard error when not given."""
        super().__init__()
        self._stream = stream if stream is not None else sys.stderr
        self._waiting: queue.Queue[str | None] = queue.Queue(_LIMIT_WAITING)
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self.dropped = 0
        """Lines that were not written because too many waited."""

    def start(self) -> None:
        _log.propagate = False
        _log.setLevel(logging.INFO)
        _log.addHandler(self)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record.getMessage())
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            while (text := self._waiting.get()) is not None:
                self._stream.write(text + "\n")
                if self._waiting.empty():
                    self._stream.flush()

    def close(self) -> None:
        _log.removeHandler(self)
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(_LAST_WORDS)
        super().close()


def switch_off() -> None:
    """Not even formatted."""
    _log.propagate = False
    _log.setLevel(logging.CRITICAL)
