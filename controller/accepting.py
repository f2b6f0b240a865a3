"""A listening socket that one failed `accept` does not end: out of descriptors or memory, the backlog waits."""

from __future__ import annotations

import errno
import logging
from typing import Any

import eventlet

_PAUSE_SECONDS = 0.1
_ENDED = (errno.EBADF, errno.EINVAL)
"""The socket is closed."""

_log = logging.getLogger(__name__)


class Accepting:
    """As a socket, to whoever calls `accept` again and again."""

    def __init__(self, sock: Any, name: str) -> None:
        self._sock = sock
        self._name = name
        self._failed = False

    def accept(self) -> Any:
        while True:
            try:
                accepted = self._sock.accept()
            except OSError as error:
                if error.errno in _ENDED:
                    raise
                if not self._failed:  # said once, not at every try
                    _log.warning("%s: accept: %s; trying again", self._name, error)
                self._failed = True
                eventlet.sleep(_PAUSE_SECONDS)
            else:
                self._failed = False
                return accepted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
