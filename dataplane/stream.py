"""One connection's byte stream, without its socket: what may be sent now, and what a checkpoint says of it.

The application plans bytes (`write`, `send_object`); a checkpoint that covers them is made; once it is *stored*, and
not before, they may go to the kernel. So a client can never acknowledge a byte of an object that the shared state does
not know (invariant 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.judge import Proof
from dataplane.sequence import Seq
from dataplane.sequence_map import MapError, SequenceMap
from state.datablock import DataBlock
from state.sections import LIMIT_EXTENTS, STREAM, ObjectRef, StreamSection

REFRESH_BYTES = 1 << 30
"""A new checkpoint at the latest after this many bytes: an ACK must stay within 2**31 of the last one."""
_CROWD_EXTENTS = LIMIT_EXTENTS // 4
_CROWD_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Literal:
    """Send these bytes next."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """Send up to `length` bytes of the object, from `offset`, next."""

    object: ObjectRef
    offset: int
    length: int


class ByteStream:
    """The layer between TCP and the application. `map` plans the output; input is only counted."""

    name = STREAM

    def __init__(self, map_: SequenceMap) -> None:
        self.map = map_
        self.sent = map_.acked
        self._reached = map_.acked
        self._unnamed = map_.acked
        """Up to here the client may hold bytes that an earlier owner sent: an answer has room to name three islands,
        and that of a client without SACK names none."""
        self.stored = map_.acked
        """Up to here a stored checkpoint covers the stream."""
        self.released: int | None = None
        """Nothing from here on may be handed to the kernel yet, says the application; None: it does not say."""
        self.plan = 0
        """Grows when what was planned is planned anew: a checkpoint of an earlier plan covers nothing of this one."""
        self.received = 0
        self.input_ended = False
        self.closing = False
        self._refresh_at = self.sent + REFRESH_BYTES

    @classmethod
    def resumed(cls, iss: int, section: StreamSection, proof: Proof) -> ByteStream:
        """The stream of a checkpoint, where the client has proven to stand."""
        stream = cls(SequenceMap.restored(iss, section.acked, section.objects, section.extents, section.labels))
        stream.rewind(proof)
        stream._reached = max(stream._reached, min(section.sent, stream.map.end))
        stream._unnamed = min(proof.position + proof.window, stream.map.end)
        stream.stored = stream.map.end  # the old owner's checkpoint covers it all
        stream.received = section.received
        stream.input_ended = section.input_ended
        stream.closing = section.closing
        stream._refresh_at = stream.sent + REFRESH_BYTES
        return stream

    def next(self) -> Literal | Run | None:
        """What to hand to the kernel next; None when there is nothing, or nothing that is stored yet."""
        limit = self.limit
        if self.sent >= limit:
            return None
        location = self.map.locate(self.sent)
        if location is None:
            return None
        length = min(location.extent.end, limit) - self.sent
        if location.object is None:
            assert location.extent.literal is not None
            return Literal(location.extent.literal[location.into : location.into + length])
        return Run(location.object, location.offset, length)

    @property
    def limit(self) -> int:
        """Up to here bytes may go to the kernel: a checkpoint covers them, and the application has released them."""
        return self.stored if self.released is None else min(self.stored, self.released)

    @property
    def reached(self) -> int:
        """Up to here the client may have bytes, in order or not: what is planned below stays as it is. What is paced
        (`released`) an earlier owner has not sent sooner, either."""
        unnamed = self._unnamed if self.released is None else min(self._unnamed, self.released)
        return max(self._reached, unnamed)

    def truncate(self, position: int) -> None:
        """Plan nothing from `position` on. Raises `MapError` when the client may have bytes from there on, sent by this
        server or by an earlier owner, or when none are planned.

        What is planned there next is covered only by a checkpoint that is made after this.
        """
        if position < self.reached:
            raise MapError(f"cannot truncate at {position}: bytes up to {self.reached} were handed over")
        self.map.truncate(position)
        self.stored = min(self.stored, position)
        self.plan += 1

    def rewind(self, proof: Proof) -> None:
        """The kernel's connection is made anew from this proof: everything beyond it is to be sent again."""
        self.sent = min(proof.position, self.map.end)
        self._reached = max(self._reached, self.sent, proof.sacked)
        self.map.acknowledge(self.sent)

    def handed_over(self, count: int) -> bool:
        """The kernel took `count` bytes. True when the checkpoint has grown old and must be made again."""
        self.sent += count
        self._reached = max(self._reached, self.sent)
        if self.sent >= self._refresh_at:
            self._refresh_at = self.sent + REFRESH_BYTES
            return True
        return False

    def checkpointed(self, position: int, plan: int | None = None) -> None:
        """A checkpoint covering everything below `position` of that `plan` (None: the present one) is stored."""
        if plan is None or plan == self.plan:
            self.stored = max(self.stored, position)

    @property
    def crowded(self) -> bool:
        """So much is unacknowledged that, with much more, a checkpoint could outgrow its limits."""
        extents, size = self.map.crowd
        return extents >= _CROWD_EXTENTS or size >= _CROWD_BYTES

    @property
    def finished(self) -> bool:
        """Everything planned was handed to the kernel."""
        return self.sent == self.map.end

    @property
    def rcv_nxt_offset(self) -> int:
        """RCV.NXT - IRS - 1: the client's FIN counts as one."""
        return self.received + self.input_ended

    def checkpoint(self, block: DataBlock) -> None:
        """Append this layer's section (claim 3)."""
        block.append(
            STREAM,
            StreamSection(
                acked=self.map.acked,
                sent=self.sent,
                received=self.received,
                input_ended=self.input_ended,
                closing=self.closing,
                objects=self.map.objects,
                extents=self.map.extents,
                labels=self.map.labels,
            ),
        )

    def current_object(self) -> tuple[str, Seq]:
        """Identifier and first sequence number for the checkpoint's header: the last object planned, if any."""
        return self.map.current_object(self.map.end) or ("", Seq(0))
