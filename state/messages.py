"""What controller and agents say to each other, over one TCP connection per agent.

A frame is a length (4 bytes, big endian) and a MessagePack array whose first element names the message. Decoding is
strict: an unknown message, a wrong type, an extra field or a frame above the limit ends the connection with a reason.
Messages are in order and nothing is repeated; a connection that breaks starts afresh with `Hello`, after which the
agent sends all its checkpoints again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from state.datablock import FourTuple, Name, UInt32, UInt63
from state.errors import MessageRefused
from state.sections import TcpSection

PROTOCOL_VERSION = 5
CLOSE_MARK = 43
"""The close mark: a DSCP value of the pool for local use (RFC 2474 section 6) that a server puts on a connection just
before it closes it in good order. The switch lets no other FIN or RST of a protected service out, and strips it."""
LIMIT_FRAME = 4 * 1024 * 1024
LIMIT_COMPARISONS = 32
"""Of a takeover's comparisons, the first so many are reported in full."""
LIMIT_REFUSED = 32
LIMIT_HANDSHAKES = 1024
LIMIT_UNHEARD = 256
PORTION_BLOCKS = 64
_PORTION_BYTES = 1024 * 1024
_LENGTH = struct.Struct("!I")

Text = Annotated[str, Meta(max_length=4096)]
ConnectionId = Annotated[str, Meta(min_length=1, max_length=128)]


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages."""


# --- from an agent ---
class Hello(Message):
    """The first message. `mac` is where the switch sends the VIP's frames for this server."""

    version: int
    server: Name
    incarnation: UInt63
    mac: Annotated[str, Meta(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")]
    pid: int


class Store(Message):
    """Keep these data blocks; answered by `Stored` with the same number once they are safe."""

    number: UInt63
    blocks: Sequence[bytes]


class Closed(Message):
    """These connections ended in good order."""

    connections: list[ConnectionId]


class Present(Message):
    """After `Welcome`, in portions: the connections that this server had then. What the controller knows of it beyond
    these, and beyond what is stored after `Welcome`, has ended unheard."""

    connections: list[ConnectionId]
    last: bool


class Heartbeat(Message):
    """From the very loop that serves. `lag` is how late that loop was in the last interval, in seconds.

    `unready` counts the unready connections that this server holds, by their owner.
    """

    number: UInt63
    connections: int
    load: float
    lag: float
    unready: dict[Name, int] = {}


class Died(Message):
    """From an agent's sentinel, as the only message of its connection: that life of the agent has just ended."""

    server: Name
    incarnation: UInt63


class Unheard(Message):
    """From the sentinel of an agent that does nothing any more, as the only message of its connection: connections that
    its kernel has accepted in its name, and of which it has never heard."""

    server: Name
    incarnation: UInt63
    connections: Annotated[list[FourTuple], Meta(max_length=LIMIT_UNHEARD)]


class Prepared(Message):
    """All of a synchronisation's blocks were taken: this many unready connections, and what was refused."""

    owner: Name
    unready: int
    refused: int


class Comparison(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a takeover compared for one connection, and what followed (claims 1, 9, 12). Numbers are the wire's.

    The client's `ack` is compared with the checkpoint's `snd_una` and `end`, the number after the last planned byte.
    It is related to a byte of an object: `offset` of `object`, whose byte 0 has the number `object_first`.
    """

    connection: ConnectionId
    protocol: Name
    outcome: Text
    """`resumed`, or why the connection was reset."""
    snd_una: UInt32
    end: UInt32
    ack: UInt32 | None = None
    """None when the client proved nothing."""
    object: Text = ""
    offset: UInt63 | None = None
    """None when `ack` stands before a byte of no object."""
    object_first: UInt32 = 0


class Resumed(Message):
    """Connections of a takeover whose fate was decided, in the order decided. `reset` are (connection, reason).

    Times are microseconds: since `Resume` was received, until the first and the last client had proven itself
    (`proved_us`) and until the last connection was recreated and its protocol told *ready* (`resumed_us`).
    """

    takeover: UInt63
    resumed: list[ConnectionId]
    reset: list[tuple[ConnectionId, Text]]
    waiting: int
    proved_us: int
    resumed_us: int
    recreate_us: int
    """Microseconds spent in the kernel's recreating alone, summed over the connections of this report."""
    comparisons: Annotated[list[Comparison], Meta(max_length=LIMIT_COMPARISONS)] = []


class Young(Message):
    """What became of handshakes of a `Resume`; `reset` are (connection, reason). Those that their clients know nothing
    of are not named."""

    takeover: UInt63
    resumed: list[ConnectionId]
    reset: list[tuple[ConnectionId, Text]]


# --- from the controller ---
class Welcome(Message):
    epoch: UInt63


class Refused(Message):
    """The agent may not take part, or no longer: it was fenced, or its name is unknown. The connection ends."""

    sentence: Text
    fenced: bool


class Stored(Message):
    """All messages up to this number were dealt with. `refused`: what was wrong with blocks that were not kept, a
    sentence each, at most `LIMIT_REFUSED` of them: their connections are not protected as they are now. What the store
    had no room for is told in one sentence."""

    number: UInt63
    refused: Annotated[list[Text], Meta(max_length=LIMIT_REFUSED)] = []


class Backup(Message):
    """Blocks of another server's connections: build unready connections from them (claim 14)."""

    owner: Name
    blocks: Sequence[bytes]


class Forget(Message):
    """Unready connections that are no longer needed. An empty list: all of that owner's."""

    owner: Name
    connections: list[ConnectionId]


class Synchronised(Message):
    """Every checkpoint of `owner` that the controller has was sent; answer with `Prepared`."""

    owner: Name


class Handshake(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's SYN and the VIP's SYN-ACK, as the switch saw them. `iss` is the SYN-ACK's number, `irs` the SYN's."""

    connection: FourTuple
    iss: UInt32
    irs: UInt32
    tcp: TcpSection


class Resume(Message):
    """The fence and the steering are done: prove, recreate and resume the unready connections of `owner`.

    `handshakes`: data connections that have just come to be, and that no checkpoint knows.
    """

    takeover: UInt63
    owner: Name
    epoch: UInt63
    handshakes: Annotated[list[Handshake], Meta(max_length=LIMIT_HANDSHAKES)] = []


class Dismiss(Message):
    """Reset these: only the kernel of a server that was fenced had them, and nobody knows where they stand."""

    connections: Annotated[list[FourTuple], Meta(max_length=LIMIT_UNHEARD)]


FromAgent = Hello | Store | Closed | Present | Heartbeat | Died | Unheard | Prepared | Resumed | Young
FromController = Welcome | Refused | Stored | Backup | Forget | Synchronised | Resume | Dismiss

_encoder = msgspec.msgpack.Encoder()
_from_agent = msgspec.msgpack.Decoder(FromAgent)
_from_controller = msgspec.msgpack.Decoder(FromController)


def portions(blocks: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Blocks in order, in messages that are quick to handle and whose frames stay far below the limit."""
    start = size = 0
    for i, block in enumerate(blocks):
        if i - start == PORTION_BLOCKS or (i > start and size + len(block) > _PORTION_BYTES):
            yield blocks[start:i]
            start, size = i, 0
        size += len(block)
    if start < len(blocks):
        yield blocks[start:]


def encode(message: Message) -> bytes:
    """The message's frame."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into messages. `from_agent` says which side's messages are expected."""

    def __init__(self, *, from_agent: bool) -> None:
        self._buffer = bytearray()
        self._decoder: msgspec.msgpack.Decoder[FromAgent] | msgspec.msgpack.Decoder[FromController]
        self._decoder = _from_agent if from_agent else _from_controller

    def feed(self, data: bytes) -> list[FromAgent | FromController]:
        """The messages that are complete after `data`. Raises `MessageRefused`; the stream is then unusable."""
        buffer = self._buffer
        buffer += data
        messages: list[FromAgent | FromController] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > LIMIT_FRAME:
                raise MessageRefused(f"a frame of {length} bytes exceeds the limit of {LIMIT_FRAME}")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(buffer[start + _LENGTH.size : end]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise MessageRefused(f"malformed message: {error}") from None
            start = end
        del buffer[:start]
        return messages
