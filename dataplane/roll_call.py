"""After a hello an agent names the connections that it has: the controller cannot know which ended while it was away.

Connections that begin later are named by their checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dataplane.event_loop import Paced
from state import messages
from state.datablock import FourTuple
from state.messages import Message

_PORTION = 256


class RollCall:
    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._named: Paced[tuple[tuple[FourTuple, ...], bool]] = Paced(self._name)

    def begin(self, connections: Iterable[FourTuple]) -> None:
        """In portions, in the loop's next turns; one that was under way is void."""
        every = tuple(connections)
        starts = range(0, max(1, len(every)), _PORTION)
        self._named.clear()
        self._named.extend((every[start : start + _PORTION], start == starts[-1]) for start in starts)

    def _name(self, portion: tuple[tuple[FourTuple, ...], bool]) -> None:
        connections, last = portion
        self._send(messages.Present([connection.id for connection in connections], last))
