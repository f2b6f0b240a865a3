"""The protocol stack and its API for authors of servers (claims 2, 3, 11, 14, 22).

A connection is a stack of layers: `tcp`, the byte `stream`, and an application protocol. To make a checkpoint the
stack builds one data block and hands it down; **every layer appends its own section** (`Layer.checkpoint`).

On a backup the same stack runs the other way. `Application.unready` builds an application from a data block long
before any failure: it must not send anything. After a takeover, once the client's ACK has been compared with the
checkpoint, every application is told `ready(stream, position)`, and sending goes on at exactly that byte: the stream
already knows which object's byte it is (`Stream.object_at`).

To write a protocol of one's own: subclass `Application`, make an `ApplicationKind` of it, name that in the
configuration (`protocol: "mypackage.module:KIND"`), and keep two rules. All that the protocol must know after a
takeover is in its section. All that it sends is planned through its `Stream`. `docs/server-authors.md` shows how.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from dataplane.objects import DocumentRoot, OpenObject
from dataplane.sequence import Seq
from dataplane.sequence_map import ObjectByte
from state.datablock import DataBlock, FourTuple, Header
from state.errors import CheckpointRefused, LocalError
from state.sections import STREAM, TCP, TcpSection


class Layer(Protocol):
    """Anything that has a part of a connection's state."""

    def checkpoint(self, block: DataBlock) -> None:
        """Append this layer's section to the block."""


class Timer(Protocol):
    """What `Stream.call_later` returns."""

    def cancel(self) -> None:
        """Do not call back. Harmless when it has, or was cancelled before."""


class Stream(Protocol):
    """What an application may do with its connection. All positions are of the send direction."""

    @property
    def connection(self) -> FourTuple: ...

    def write(self, data: bytes) -> Seq:
        """Plan literal bytes. Returns the current or *future* sequence number of the first.

        They are part of the checkpoint until the client has acknowledged them. A checkpoint holds at most 64 KiB
        (`state.datablock.LIMIT_BYTES`): a connection with more than that is reset, so look at `unacknowledged` first.
        """

    def send_object(self, opened: OpenObject, offset: int, length: int) -> Seq:
        """Plan a run of a file's bytes, which the kernel sends: no limit. `opened` is the connection's from now on.

        Returns the current or *future* sequence number of byte `offset`. Raises `MapError` if the object has not so
        many bytes.
        """

    def associate(self, identifier: str, offset: int = 0, length: int | None = None) -> Seq:
        """Say that the next byte that is planned, yet to be written, is byte `offset` of an object of this name
        (claim 22). What is written then goes on with it: for `length` bytes, or until the next `associate` or
        `send_object`. The association is part of every checkpoint.

        Returns the byte's current or *future* send sequence number. Raises `MapError` for a name that is empty or
        longer than 4,096 characters.
        """

    def seq_of(self, identifier: str, offset: int) -> Seq:
        """The sequence number that a planned byte of an object has or will have (claim 22). Raises `MapError`."""

    def object_at(self, position: int) -> ObjectByte | None:
        """Which byte of which object stands at a position of the stream (claim 12); None where it is of none."""

    def has_room(self) -> bool:
        """May more be planned now, or is so much unacknowledged that a checkpoint could outgrow its limits?

        When it says no, `drained` is called once there is room.
        """

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, after so long. Timers are the connection's: its end cancels them, and none is taken over:
        `Application.ready` starts them again."""

    def close(self) -> None:
        """Close in good order once everything planned was sent."""

    def reset(self) -> None:
        """Abort: the client sees RST."""

    @property
    def unsent(self) -> int:
        """Bytes planned and not yet handed to the kernel."""

    @property
    def unacknowledged(self) -> int:
        """Bytes planned that the client is not known to have."""


class Application(ABC):
    """A protocol over one connection. Calls come from the agent's event loop; none may block.

    What a method raises is logged and resets its own connection; the server goes on.
    """

    name: ClassVar[str]
    """Application protocol as it stands in checkpoints, for example `http/1.1`: at most 64 characters."""

    @abstractmethod
    def opened(self, stream: Stream) -> None:
        """A client connected."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Input, in order."""

    @abstractmethod
    def input_ended(self) -> None:
        """The client will send nothing more (FIN); it may still read."""

    @abstractmethod
    def drained(self) -> None:
        """Everything that was planned was handed to the kernel, or there is room again (`Stream.has_room`)."""

    def stopping(self) -> None:  # noqa: B027 - a protocol that ignores it is right, too
        """The server is about to end: finish what is under way. What is not finished soon, a backup goes on with."""

    @abstractmethod
    def checkpoint(self, block: DataBlock) -> None:
        """Append this protocol's section (claim 3)."""

    @abstractmethod
    def ready(self, stream: Stream, position: int) -> None:
        """The connection was recreated here: the client has everything below `position` (claims 2, 12, 13), which
        is the acknowledged byte's place in the stream; `stream.object_at(position)` is the object's byte.

        Sending of what was planned goes on by itself; the application resumes its part: next requests, timers.
        """

    @abstractmethod
    def ended(self) -> None:
        """The connection is over, for whatever reason. Release what is held."""


@dataclass(frozen=True)
class ApplicationKind:
    """How to make an application for a new connection, and how from a checkpoint (claim 14)."""

    name: str
    """As in `Application.name`."""
    fresh: Callable[[DocumentRoot], Application]
    """For a new connection."""
    unready: Callable[[DocumentRoot, DataBlock], Application]
    """From a checkpoint, before any failure; raises `CheckpointRefused` if it cannot be used."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 64 or self.name in (TCP, STREAM):
            raise LocalError(f"{self.name!r} cannot be the name of a protocol: 1 to 64 characters, not tcp or stream")


class Registry:
    """The application protocols that a server knows, by the name that checkpoints and configuration use."""

    def __init__(self) -> None:
        self._kinds: dict[str, ApplicationKind] = {}

    def add(self, kind: ApplicationKind) -> None:
        """Raises `LocalError` when another protocol has that name: their checkpoints could not be told apart."""
        if self._kinds.setdefault(kind.name, kind) is not kind:
            raise LocalError(f"two different protocols are named {kind.name}")

    def kind(self, name: str) -> ApplicationKind:
        """Raises `CheckpointRefused` when this server does not know the protocol."""
        try:
            return self._kinds[name]
        except KeyError:
            raise CheckpointRefused("protocol", f"{name} is not known to this server") from None


class TcpLayer:
    """The kernel's part: constant after the handshake but for the clock of its timestamps."""

    def __init__(self, section: TcpSection, taken_at: float, clock: Callable[[], float]) -> None:
        self._section = section
        self._taken_at = taken_at
        self._clock = clock

    @property
    def section(self) -> TcpSection:
        """With TSval as it is now (1 ms per tick)."""
        if not self._section.timestamps:
            return self._section
        elapsed = int((self._clock() - self._taken_at) * 1000)
        old = self._section
        return TcpSection(
            old.mss,
            old.snd_wscale,
            old.rcv_wscale,
            old.window_scaling,
            old.sack,
            old.timestamps,
            (old.tsval + elapsed) & 0xFFFF_FFFF,
            old.wmax,
        )

    def checkpoint(self, block: DataBlock) -> None:
        block.append(TCP, self.section)


def make_block(header: Header, layers: tuple[Layer, ...]) -> DataBlock:
    """One data block, handed down the stack so that every layer appends its section."""
    block = DataBlock(header)
    for layer in layers:
        layer.checkpoint(block)
    return block
