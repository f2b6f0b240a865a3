"""The protocol stack and its API for authors of servers (claims 2, 3, 11, 14, 22).

A connection is a stack of layers: `tcp`, the byte `stream`, and an application protocol. To make a checkpoint the
stack builds one data block and hands it down; **every layer appends its own section** (`Layer.checkpoint`).

On a backup the same stack runs the other way. `Application.unready` builds an application from a data block long
before any failure: it must not send anything. After a takeover, once the client's ACK has been compared with the
checkpoint, every application is told `ready(stream, position)`, and sending goes on at exactly that byte: the stream
already knows which object's byte it is (`Stream.object_at`).

A protocol of several connections (claims 4-7, 15-18) has one **control** connection, whose application makes the others
through `Stream.bundle`: data connections over TCP, each with an application of its own, and UDP to one address or to a
multicast group. They move together, all or none. A TCP part has a data block of its own; what a UDP part needs to go on
(sequence number, media clock) stands in the control application's section, because `Datagrams` have no state.

To write a protocol of one's own: subclass `Application`, make an `ApplicationKind` of it, name that in the
configuration (`protocol: "mypackage.module:KIND"`), and keep two rules. All that the protocol must know after a
takeover is in its section. All that it sends is planned through its `Stream`. `docs/server-authors.md` shows how.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from dataplane.objects import DocumentRoot, GeneratedObject, ObjectMissing, OpenObject
from dataplane.sequence import Seq
from dataplane.sequence_map import ObjectByte
from state.datablock import DataBlock, FourTuple, Header
from state.errors import CheckpointRefused, LocalError
from state.sections import BUNDLE, STREAM, TCP, ObjectRef, Part, TcpSection


class Layer(Protocol):
    """Anything that has a part of a connection's state."""

    def checkpoint(self, block: DataBlock) -> None:
        """Append this layer's section to the block."""


class Timer(Protocol):
    """What `Stream.call_later` returns."""

    def cancel(self) -> None:
        """Do not call back. Harmless when it has, or was cancelled before."""


class Datagrams(Protocol):
    """A UDP part of a bundle, bound to the VIP. It is closed with its bundle.

    There is none before `ready`: a backup's application opens its UDP parts again when it is told *ready*.
    """

    @property
    def local_port(self) -> int: ...

    @property
    def remote(self) -> tuple[str, int]: ...

    def send(self, data: bytes) -> bool:
        """One datagram to `remote`. False when the kernel did not take it: it is lost, as on the wire."""

    def close(self) -> None: ...


class Awaited(Protocol):
    """A data connection that is not there yet: a port that listens, or a connect that is under way."""

    @property
    def local_port(self) -> int: ...

    def close(self) -> None:
        """Nobody is awaited any more. Harmless when it is over already."""


@dataclass(frozen=True)
class Member:
    """A TCP connection of a bundle that is alive here."""

    role: str
    stream: Stream
    application: Application


class Bundle(Protocol):
    """The related connections of one control connection. Its application and those of its data connections have it.

    Ports are those that the configuration gives to the service (`data_ports`); the switch steers no others. Every
    remote address is the control connection's client, or a multicast group. All methods raise `LocalError` when that is
    not so, or when the system refuses.
    """

    @property
    def id(self) -> str:
        """The control connection's id: the bundle's name in checkpoints and in the API."""

    @property
    def control(self) -> Application:
        """The control connection's application."""

    @property
    def client(self) -> str:
        """The client's address."""

    @property
    def vip(self) -> str:
        """The service's address."""

    def data_ports(self, transport: str) -> tuple[range, ...]:
        """The service's ports for `tcp` or `udp` data, as configured."""

    def datagrams(
        self,
        role: str,
        local_port: int,
        remote: tuple[str, int],
        received: Callable[[bytes, tuple[str, int]], None],
        *,
        ttl: int = 16,
    ) -> Datagrams:
        """Open a UDP part: from VIP:`local_port` to `remote`, a multicast group if its address is one (then with that
        `ttl`, and only in a service whose affinity is `service`: one server has all its receivers).

        `received` is called with each datagram from `remote` (from anybody, to the VIP, if it is a group) and its
        source. Several bundles may have the same local port: it may even be the only one of its service.
        """

    def listen(
        self, role: str, accepted: Callable[[tuple[str, int]], Application | None], port: int | None = None
    ) -> Awaited:
        """Await the client's connection to a port of the service, by default any that is free for this client; after a
        takeover the one that it was told.

        `accepted` is called with the client's address and port for each connection that comes, and returns its
        application, which is then `opened`; or None, and the client is reset. It goes on listening until it is closed.
        Other clients that connect to the port are reset. Once this returns, the port is part of the next checkpoint:
        what is written to the client in the same turn reaches it only when that is stored.
        """

    def connect(
        self,
        role: str,
        local_port: int,
        remote: tuple[str, int],
        application: Application,
        failed: Callable[[str], None],
    ) -> Awaited:
        """Connect to the client from VIP:`local_port`. Ends with `application.opened`, or with `failed` and why; the
        application is told nothing then."""

    def connections(self) -> list[Member]:
        """The bundle's data connections over TCP. In the control application's `ready` they are all recreated; theirs
        is called right after it."""

    def parts(self) -> list[Part]:
        """Everything that the bundle consists of but its control connection, as it stands in the checkpoint."""


class Stream(Protocol):
    """What an application may do with its connection. All positions are of the send direction."""

    @property
    def connection(self) -> FourTuple: ...

    @property
    def bundle(self) -> Bundle:
        """The related connections that this one belongs to, or may open: then it is the control connection."""

    def write(self, data: bytes) -> Seq:
        """Plan literal bytes. Returns the current or *future* sequence number of the first.

        They are part of the checkpoint until the client has acknowledged them. A checkpoint holds at most 64 KiB
        (`state.datablock.LIMIT_BYTES`): a connection with more than that is reset, so look at `unacknowledged` first.
        """

    def send_object(self, opened: OpenObject | GeneratedObject, offset: int, length: int) -> Seq:
        """Plan a run of an object's bytes: no limit. Of a file, the kernel sends them; of a generated object they are
        computed when the kernel has room for them. `opened` is the connection's from now on.

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

        When it says no, `drained` is called once there is room, whether all that is planned was sent or not.
        """

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, after so long. Timers are the connection's: its end cancels them, and none is taken over:
        `Application.ready` starts them again."""

    def hold_input(self, held: bool) -> None:
        """Take no input until a later call with False: what the client sends waits in the kernel, and then at the
        client. Not for long: while it is held, the end of the connection is not noticed either."""

    def changed(self) -> None:
        """What the application's section would say has changed by itself: make a checkpoint. What is planned and what
        arrives makes one anyway."""

    def release(self, position: int | None) -> None:
        """Nothing from `position` on is handed to the kernel until a later call says so; None: no limit.

        So a stream is paced by a clock although all of it is planned. The limit is no part of checkpoints: a backup's
        application sets it in `ready`, before anything is sent.
        """

    def truncate(self, position: int) -> None:
        """Plan nothing from `position` on: what was planned there and not handed over yet is forgotten, and what is
        planned next goes there. Sent only once a checkpoint of it is stored, as everything is.

        Raises `MapError` when bytes from there on were handed over (`handed_over`), or none were planned.
        """

    @property
    def handed_over(self) -> int:
        """Position up to which bytes were handed to the kernel, of this server or of an earlier owner."""

    @property
    def planned(self) -> int:
        """Position after the last planned byte."""

    def close(self) -> None:
        """Close in good order once everything planned was sent."""

    def reset(self) -> None:
        """Abort: the client sees RST."""

    @property
    def unsent(self) -> int:
        """Bytes planned and not yet handed to the kernel."""

    @property
    def unacknowledged(self) -> int:
        """Bytes planned that the client is not known to have. In `Application.ended`: that it may never get."""


class Application(ABC):
    """A protocol over one connection. Calls come from the agent's event loop; none may block.

    What a method raises is logged and resets its own connection; the server goes on.
    """

    name: ClassVar[str]
    """Application protocol as it stands in checkpoints, for example `http/1.1`: at most 64 characters."""
    read_bytes: ClassVar[int] = 64 * 1024
    """`received` is given at most so much at a time: what a protocol must keep when it has no room (`hold_input`)."""

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

        Of a bundle, the control connection's application comes first: every connection of the bundle has proven itself
        and is recreated then, and nothing is sent yet.

        Sending of what was planned goes on by itself; the application resumes its part: next requests, timers.
        """

    @abstractmethod
    def ended(self) -> None:
        """The connection is over, for whatever reason. Release what is held.

        When a control connection ends, what is left of its bundle is reset; when a data connection ends, nothing else.
        """

    def obstacle(self) -> str | None:
        """Why this connection, unready and its client proven, cannot go on here although its checkpoint is in order:
        what it lacks was with its server alone. It is reset with that reason, a short sentence, as is its bundle."""
        return None

    def generate(self, ref: ObjectRef) -> GeneratedObject:
        """The object that this protocol computed and planned on another server (`ref.parameters` are its own). Called
        whenever an unready connection is built of a checkpoint that names one: it should be quick the second time.

        Raises `ObjectMissing` when the file or the parameters are of no use here.
        """
        raise ObjectMissing(f"{ref.identifier}: {self.name} computes no objects")


@dataclass(frozen=True)
class PartKind:
    """How to make the application of a data connection from a checkpoint (claim 14)."""

    name: str
    """As in `Application.name`."""
    unready: Callable[[DocumentRoot, DataBlock], Application]
    """From a checkpoint, before any failure; raises `CheckpointRefused` if it cannot be used."""

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class ApplicationKind:
    """How to make an application for a new connection, and how from a checkpoint (claim 14)."""

    name: str
    """As in `Application.name`."""
    fresh: Callable[[DocumentRoot], Application]
    """For a new connection."""
    unready: Callable[[DocumentRoot, DataBlock], Application]
    """From a checkpoint, before any failure; raises `CheckpointRefused` if it cannot be used."""
    parts: tuple[PartKind, ...] = ()
    """The applications of its bundles' data connections."""

    def __post_init__(self) -> None:
        _check_name(self.name)


def _check_name(name: str) -> None:
    reserved = (TCP, STREAM, BUNDLE)
    if not 1 <= len(name) <= 64 or name in reserved:
        raise LocalError(
            f"{name!r} cannot be the name of a protocol: 1 to 64 characters, none of {', '.join(reserved)}"
        )


class Registry:
    """The application protocols that a server knows, by the name that checkpoints and configuration use."""

    def __init__(self) -> None:
        self._kinds: dict[str, ApplicationKind | PartKind] = {}

    def add(self, kind: ApplicationKind) -> None:
        """With its parts. Raises `LocalError` when another has that name: checkpoints could not be told apart."""
        kinds: list[ApplicationKind | PartKind] = [kind, *kind.parts]
        for one in kinds:
            if self._kinds.setdefault(one.name, one) is not one:
                raise LocalError(f"two different protocols are named {one.name}")

    def kind(self, name: str) -> ApplicationKind | PartKind:
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
