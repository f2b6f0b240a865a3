"""What a live connection needs of those around it: of its agent, and of the bundle that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dataplane.objects import DocumentRoot
from dataplane.stack import Bundle, Layer

if TYPE_CHECKING:
    from dataplane.connection import LiveConnection


class Related(Bundle, Protocol):
    """What a connection needs of the bundle that it belongs to (`bundle.LiveBundle`)."""

    def adopt(self, connection: LiveConnection, role: str) -> None:
        """A data connection that was made for this bundle belongs to it."""

    def layers(self, connection: LiveConnection) -> tuple[Layer, ...]:
        """What the bundle adds to this connection's block; nothing as long as there is nothing to say."""

    def checkpoint_others(self, connection: LiveConnection) -> None:
        """This connection makes a checkpoint: others that are to make one make theirs now, for the same message."""

    def hand_in(self) -> None:
        """All of it: another server goes on from here."""

    def left(self, connection: LiveConnection, *, silently: bool) -> None:
        """This connection is over. `silently`: another server has it, and all of its bundle."""


class Host(Protocol):
    """What a connection needs of its agent."""

    name: str
    incarnation: int
    epoch: int
    root: DocumentRoot
    interface: int
    """Index of the interface towards the clients."""

    def wall_clock(self) -> int: ...

    def store(self, block: bytes, stored: Callable[[], None]) -> None:
        """Keep a checkpoint; call `stored` when it is safe."""

    def checkpoint_later(self, connection: LiveConnection) -> None:
        """Have it make a checkpoint when there is time: thousands may want to at once."""

    def ended(self, connection: LiveConnection) -> None: ...

    def bundle(self, connection: LiveConnection) -> Related:
        """A bundle of which this is the control connection. Asked at most once."""
