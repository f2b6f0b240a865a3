"""What goes wrong and must not end anything: counted every time, logged seldom."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

_SECONDS = 5.0
"""Between two lines of one kind."""

_log = logging.getLogger(__name__)


class Complaints:
    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._counts = counts
        self._clock = clock
        self._due: dict[str, float] = {}

    def store(self, error: Exception) -> None:
        if self._counted("store"):
            _log.error("%s; going on without; %d times so far", error, self._counts["store"])

    def unexpected(self, kind: str) -> None:
        """Call it where an exception is being handled that nobody foresaw."""
        if self._counted(kind):
            _log.exception("unexpected, in %s; %d times so far", kind, self._counts[kind])

    def _counted(self, kind: str) -> bool:
        """May it be logged again?"""
        self._counts[kind] += 1
        now = self._clock()
        if now < self._due.get(kind, now):
            return False
        self._due[kind] = now + _SECONDS
        return True
