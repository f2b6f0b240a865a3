"""An event loop whose clock stands still while anything happens and jumps to the next timer when nothing does."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found: list[Any] = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sockets are real; a minute passes in no time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def until(self, condition: Callable[[], object], seconds: float = 1e9) -> bool:
        """Run until the condition holds; False when it does not within that much of the loop's time."""
        limit = self.time() + seconds

        async def watch() -> bool:
            while not condition():
                if self.time() >= limit:
                    return False
                await asyncio.sleep(min(0.01, limit - self.time()))
            return True

        return self.run_until_complete(watch())

    def passes(self, seconds: float) -> None:
        """Let so much of the loop's time go by."""
        self.run_until_complete(asyncio.sleep(seconds))
