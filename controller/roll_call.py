"""Which connections a server has, as it says after its hello: what ended while the controller was away is found so.

A server names all that it had when it was welcome; what began later it stores. Its settled records of neither kind are
phantoms: nobody would ever say of them that they ended. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from controller.collector import Collector
from state.datablock import Header

_AT_ONCE = 64
"""Phantoms that are forgotten in one go."""


class RollCall:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._present: dict[str, set[str]] = {}
        """Of the servers that have not named all yet."""
        self._phantoms: deque[tuple[str, str, Header]] = deque()

    def begin(self, server: str) -> None:
        """It said hello."""
        self._present[server] = set()

    def heard(self, server: str, connections: Iterable[str]) -> None:
        """It has these."""
        present = self._present.get(server)
        if present is not None:
            present.update(connections)

    def end(self, server: str) -> None:
        """It has named all."""
        present = self._present.pop(server, None)
        if present is not None:
            for name, record in self._collector.of(server):
                if record.settled and name not in present:
                    self._phantoms.append((server, name, record.header))

    def cancel(self, server: str) -> None:
        """It is dead: all that is known of it is its heir's."""
        self._present.pop(server, None)

    def phantoms(self) -> tuple[str, list[str]]:
        """A server and some connections of it to forget; none, and then nothing is left, if the list is empty."""
        server = ""
        found: list[str] = []
        while self._phantoms and len(found) < _AT_ONCE and self._phantoms[0][0] == (server or self._phantoms[0][0]):
            server, name, header = self._phantoms.popleft()
            record = self._collector.get(name)
            if record is not None and record.header is header:  # else another connection has the name by now
                found.append(name)
        return server, found
