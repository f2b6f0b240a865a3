"""What the conductor decides, for the runtime to carry out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controller import steering
from state.messages import Message


@dataclass(frozen=True)
class Send:
    """A message to an agent; `last` closes the connection after it."""

    server: str
    message: Message
    last: bool = False


@dataclass(frozen=True)
class Commit:
    """An atomic bundle for the switch; these takeovers wait for its commit. `messages` are to be gone through once."""

    messages: Iterable[steering.Message]
    takeovers: tuple[int, ...] = ()


@dataclass(frozen=True)
class SendToSwitch:
    message: steering.Message


@dataclass(frozen=True)
class Persist:
    """Facts that a restarted controller needs."""

    name: str
    value: bytes


@dataclass(frozen=True)
class Drop:
    """The store need not keep these connections."""

    connections: list[str]


@dataclass(frozen=True)
class Announce:
    """An event for the API's stream."""

    kind: str
    body: dict[str, object]


Action = Send | Commit | SendToSwitch | Persist | Drop | Announce
