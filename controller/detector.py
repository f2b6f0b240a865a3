"""Who is dead? A pure function of evidence and time.

Evidence, from the quickest: the control connection of the agent closed (its process ended); the switch port lost its
carrier; the event loop that serves was silent for longer than the limit (hung, or the host is gone).

A controller that was itself held up must not blame others: when `tick` comes late, every silence is forgiven by the
time it came late, because heartbeats may be waiting unread.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

TICK = 0.005
"""Seconds between calls of `tick`; also how precisely silence is measured."""
_LATE = 2 * TICK


class Cause(enum.Enum):
    PROCESS_ENDED = "process ended"
    LINK_DOWN = "link down"
    SILENT = "no heartbeat"
    RESTARTED = "restarted unnoticed"
    ABSENT = "absent after the controller's restart"
    REQUESTED = "requested"


@dataclass(frozen=True)
class Failure:
    """`since` is the last evidence of life: detection took at most `now - since`."""

    server: str
    cause: Cause
    since: float


class Detector:
    """Evidence about each server that is being watched."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._heard: dict[str, float] = {}
        self._ticked: float | None = None

    def watch(self, server: str, now: float) -> None:
        """The server is well from now on."""
        self._heard[server] = now

    def unwatch(self, server: str) -> None:
        self._heard.pop(server, None)

    def heard(self, server: str, now: float) -> None:
        """A heartbeat, or anything else that its event loop said."""
        if server in self._heard:
            self._heard[server] = now

    def age(self, server: str, now: float) -> float | None:
        """Seconds since the last evidence of life; None when the server is not watched."""
        since = self._heard.get(server)
        return None if since is None else now - since

    def failed(self, server: str, cause: Cause) -> Failure | None:
        """Direct evidence. None when the server was not being watched: then it is no news."""
        since = self._heard.pop(server, None)
        return None if since is None else Failure(server, cause, since)

    def tick(self, now: float) -> list[Failure]:
        """Servers that were silent for too long."""
        late = 0.0 if self._ticked is None else now - self._ticked - TICK
        self._ticked = now
        if late > _LATE:
            for server in self._heard:
                self._heard[server] = min(now, self._heard[server] + late)
        silent = [server for server, since in self._heard.items() if now - since > self._timeout]
        return [Failure(server, Cause.SILENT, self._heard.pop(server)) for server in silent]
