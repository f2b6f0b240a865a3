"""The store, as far as the controller can go on without it: a full disk must neither end an agent's connection nor the
watch over the others. What could not be kept is missing after the controller's own restart only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from controller.complaints import Complaints
from state.errors import StoreError
from state.store import Store

_RETRY_SECONDS = 1.0


class Keeping:
    def __init__(self, store: Store, complaints: Complaints, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._complaints = complaints
        self._clock = clock
        self._facts: dict[str, bytes] = {}
        """The newest of each that could not be kept."""
        self._due = 0.0

    def put(self, records: Sequence[tuple[str, str, bytes]]) -> str | None:
        """Why they could not be kept, if so."""
        try:
            self._store.put(records)
        except StoreError as error:
            self._complaints.store(error)
            return f"{len(records)} could not be kept: {error}"
        return None

    def forget(self, connections: Iterable[str]) -> None:
        try:
            self._store.forget(connections)
        except StoreError as error:  # their servers will not name them when the controller asks after its restart
            self._complaints.store(error)

    def put_fact(self, name: str, value: bytes) -> None:
        self._facts[name] = value
        self._put_facts()

    def retry(self) -> None:
        """Call it often: what changes seldom must not stay unsaid because of one bad moment."""
        if self._facts and self._clock() >= self._due:
            self._put_facts()

    def _put_facts(self) -> None:
        self._due = self._clock() + _RETRY_SECONDS
        try:
            for name, value in list(self._facts.items()):
                self._store.put_fact(name, value)
                del self._facts[name]
        except StoreError as error:
            self._complaints.store(error)
