"""An asyncio loop that stays responsive when thousands of connections are ready at once.

asyncio handles every file that is ready before it looks at a timer again: two thousand requests at the same moment
would hold the heartbeat up for longer than a live server may be silent. So this loop takes a few ready files per turn;
epoll hands the others out next time, in a circle. Files that are *preferred* (the controller's orders, the answers to
probes) do not wait in that circle. Work that comes in heaps is done by `Paced`, a little per turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

_FILES_PER_TURN = 8
SECONDS_PER_TURN = 0.001
"""What one heap of work may take of a turn of the loop."""

_READY_CHECK = 0.001

T = TypeVar("T")


class FairSelector(selectors.BaseSelector):
    """Level-triggered epoll: preferred files, and at most `_FILES_PER_TURN` of the others at a time."""

    def __init__(self) -> None:
        self._first = select.epoll()
        self._others = select.epoll()
        self._first.register(self._others.fileno(), select.EPOLLIN)
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._preferred: set[int] = set()

    def prefer(self, descriptor: int) -> None:
        """From its next registration on, until it is unregistered."""
        self._preferred.add(descriptor)

    def _epoll(self, descriptor: int) -> select.epoll:
        return self._first if descriptor in self._preferred else self._others

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = _descriptor(fileobj)
        if descriptor in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        self._epoll(descriptor).register(descriptor, _mask(events))
        key = self._keys[descriptor] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        descriptor = _descriptor(fileobj)
        key = self._keys.pop(descriptor)
        with contextlib.suppress(OSError):  # the file was closed before: epoll has forgotten it by itself
            self._epoll(descriptor).unregister(descriptor)
        self._preferred.discard(descriptor)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = _descriptor(fileobj)
        if events != self._keys[descriptor].events:
            self._epoll(descriptor).modify(descriptor, _mask(events))
        key = self._keys[descriptor] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Rounded up to epoll's milliseconds: rounded down, the loop would spin until a timer is due.
        seconds = -1.0 if timeout is None else math.ceil(max(0.0, timeout) * 1000) / 1000
        ready = self._first.poll(seconds)
        found: list[tuple[selectors.SelectorKey, int]] = []
        for descriptor, mask in ready:
            if descriptor == self._others.fileno():
                for other in self._others.poll(0, _FILES_PER_TURN):
                    self._add(found, *other)
            else:
                self._add(found, descriptor, mask)
        return found

    def _add(self, found: list[tuple[selectors.SelectorKey, int]], descriptor: int, mask: int) -> None:
        key = self._keys.get(descriptor)
        if key is None:
            return  # closed here, but a child process that is about to begin still has it
        # An error or a hang-up is told to whoever waits, be it to read or to write.
        events = (mask & ~select.EPOLLIN and selectors.EVENT_WRITE) | (mask & ~select.EPOLLOUT and selectors.EVENT_READ)
        found.append((key, events & key.events))

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def close(self) -> None:
        self._first.close()
        self._others.close()
        self._keys.clear()


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _mask(events: int) -> int:
    return (events & selectors.EVENT_READ and select.EPOLLIN) | (events & selectors.EVENT_WRITE and select.EPOLLOUT)


class FairLoop(asyncio.SelectorEventLoop):
    """For `asyncio.Runner(loop_factory=FairLoop)`."""

    def __init__(self) -> None:
        self._fair = FairSelector()
        super().__init__(self._fair)

    def prefer(self, descriptor: int) -> None:
        """This file, once it is watched, does not wait behind connections."""
        self._fair.prefer(descriptor)


def prefer(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """As `FairLoop.prefer`; any other loop has no order."""
    if isinstance(loop, FairLoop):
        loop.prefer(descriptor)


class Paced(Generic[T]):
    """A queue whose items are worked off in order, for about `SECONDS_PER_TURN` per turn of the running loop."""

    def __init__(self, work: Callable[[T], None], ready: Callable[[], bool] = lambda: True) -> None:
        """Nothing is done while `ready` says no; it is asked before each item, and then every millisecond."""
        self._work = work
        self._ready = ready
        self._items: deque[T] = deque()
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._items)

    def extend(self, items: Iterable[T]) -> None:
        """The first portion is done in the next turn."""
        self._items.extend(items)
        if self._items and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._items and not self._ready():
            self._scheduled = True
            asyncio.get_running_loop().call_later(_READY_CHECK, self._turn)
            return
        until = time.perf_counter() + SECONDS_PER_TURN
        try:
            while self._items and time.perf_counter() < until and self._ready():
                self._work(self._items.popleft())
        finally:
            self.extend(())

    def clear(self) -> list[T]:
        """Do not do what waits; returns it."""
        items = list(self._items)
        self._items.clear()
        return items
