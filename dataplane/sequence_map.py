"""Which byte of which object has which sequence number (claims 12, 13, 22).

The application says what the stream will consist of: literal bytes (a response's header) and runs of objects' bytes.
Of literal bytes that it makes itself, it may say of which object they are (`associate`). The map answers both ways: the
*current or future* send sequence number of a byte, and the byte that an acknowledgement number stands before. It holds
what is not wholly acknowledged, and nothing else.

    map = SequenceMap(iss)
    map.literal(b"HTTP/1.1 200 OK...")
    seq = map.object(ref, offset=0, length=ref.size)   # byte 0 of ref will be sent as sequence number `seq`
    seq = map.associate("log", offset=700)             # so will byte 700 of "log", which is yet to be written
    map.locate(map.position(ack))                      # -> which extent, how far into it
    map.object_at(map.position(ack))                   # -> which byte of which object
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataplane.sequence import Seq
from state.errors import LocalError
from state.sections import Extent, Label, ObjectRef


class MapError(LocalError):
    """A question about bytes that are not in the map."""


@dataclass(frozen=True, slots=True)
class ObjectByte:
    """One byte of an object: the object's identifier, and how many of its bytes come before."""

    identifier: str
    offset: int


@dataclass(frozen=True, slots=True)
class Location:
    """The byte `into` an extent. `object` is None for literal bytes; `offset` is then meaningless."""

    extent: Extent
    into: int
    object: ObjectRef | None

    @property
    def offset(self) -> int:
        """Offset in the object of the byte that is located."""
        return self.extent.offset + self.into


class SequenceMap:
    """The planned bytes of one direction of one connection, in order.

    Positions count from the first byte after the SYN and never wrap; `seq(position)` is the wire's number.
    """

    __slots__ = ("_extents", "_labels", "_objects", "acked", "end", "iss")

    def __init__(self, iss: int, acked: int = 0) -> None:
        self.iss = Seq(iss)
        self.acked = acked
        """Position up to which everything is known to be acknowledged."""
        self.end = acked
        """Position after the last planned byte: the next byte that the application associates goes here."""
        self._extents: list[Extent] = []
        self._objects: list[ObjectRef] = []
        self._labels: list[Label] = []

    @classmethod
    def restored(
        cls, iss: int, acked: int, objects: list[ObjectRef], extents: list[Extent], labels: Iterable[Label] = ()
    ) -> SequenceMap:
        """The map of a checkpoint's stream section, which has been checked."""
        map_ = cls(iss, acked)
        map_._extents = list(extents)
        map_._objects = list(objects)
        map_._labels = list(labels)
        if extents:
            map_.end = extents[-1].end
        return map_

    def seq(self, position: int) -> Seq:
        """The sequence number that the byte at `position` has, or will have."""
        return self.iss + 1 + position

    def position(self, seq: int) -> int:
        """The position whose sequence number is `seq`, taken as not before `acked`: at most 2**32 - 1 beyond it."""
        return self.acked + self.seq(self.acked).ahead(seq)

    def literal(self, data: bytes) -> Seq:
        """Plan these very bytes next. Returns the sequence number of the first."""
        first = self.seq(self.end)
        last = self._extents[-1] if self._extents else None
        if data and last is not None and last.literal is not None:
            # One extent: what a protocol writes in small pieces is bounded by its bytes, not by their number.
            self._extents[-1] = Extent(last.position, last.length + len(data), literal=last.literal + data)
        elif data:
            self._extents.append(Extent(self.end, len(data), literal=data))
        self.end += len(data)
        return first

    def associate(self, identifier: str, offset: int = 0, length: int | None = None) -> Seq:
        """The next byte that is planned is byte `offset` of this object, and those that follow go on with it, for
        `length` bytes or until the next `associate` or `object`. Returns its (future) sequence number."""
        if not 1 <= len(identifier) <= 4096 or offset < 0 or (length is not None and length < 1):
            raise MapError(f"{identifier[:64]!r} cannot have {length} bytes from {offset}")
        self._end_label()
        self._labels.append(Label(self.end, identifier, offset, length))
        return self.seq(self.end)

    def _end_label(self) -> None:
        """What is planned from here on is not of the last label's object."""
        if not self._labels:
            return
        last = self._labels[-1]
        if last.position == self.end:
            self._labels.pop()
        elif last.covers(self.end):
            self._labels[-1] = Label(last.position, last.identifier, last.offset, self.end - last.position)

    def object(self, ref: ObjectRef, offset: int, length: int) -> Seq:
        """Plan `length` bytes of an object next. Returns the (future) sequence number of byte `offset`."""
        if offset < 0 or length < 0 or offset + length > ref.size:
            raise MapError(f"{ref.identifier} has no bytes {offset} to {offset + length}: it has {ref.size}")
        first = self.seq(self.end)
        if length:
            self._end_label()
            try:
                index = self._objects.index(ref)
            except ValueError:
                index = len(self._objects)
                self._objects.append(ref)
            self._extents.append(Extent(self.end, length, object=index, offset=offset))
            self.end += length
        return first

    def truncate(self, position: int) -> None:
        """Forget what is planned from `position` on: what is planned next goes there. Raises `MapError` for a position
        that is acknowledged, or beyond the end. The caller answers for bytes that were sent (`ByteStream.truncate`)."""
        if not self.acked <= position <= self.end:
            raise MapError(f"cannot truncate at {position}: {self.acked} to {self.end} is planned and not acknowledged")
        kept: list[Extent] = []
        for extent in self._extents:
            length = min(extent.end, position) - extent.position
            if length > 0:
                literal = extent.literal[:length] if extent.literal is not None else None
                kept.append(Extent(extent.position, length, literal, extent.object, extent.offset))
        self._extents = kept
        self._labels = [label for label in self._labels if label.position < position]
        self.end = position
        self._end_label()
        self._forget_objects()

    def seq_of(self, identifier: str, offset: int) -> Seq:
        """The current or future sequence number of byte `offset` of an object (claim 22). Raises `MapError`.

        Where the stream has that byte more than once, the last one is meant.
        """
        found = -1
        for extent in reversed(self._extents):
            if extent.object is not None and self._objects[extent.object].identifier == identifier:
                into = offset - extent.offset
                if 0 <= into < extent.length:
                    found = extent.position + into
                    break
        for label in reversed(self._labels):
            position = label.position + offset - label.offset
            if label.identifier == identifier and label.covers(position) and position < self.end:
                found = max(found, position)
                break
        if found < 0:
            raise MapError(f"byte {offset} of {identifier} is not planned")
        return self.seq(found)

    def object_at(self, position: int) -> ObjectByte | None:
        """Which byte of which object stands at `position` (claim 12); None where it is of none, or not known yet."""
        for label in reversed(self._labels):
            if label.covers(position):
                return ObjectByte(label.identifier, label.offset + position - label.position)
        for extent in self._extents:
            if extent.object is not None and extent.position <= position < extent.end:
                return ObjectByte(self._objects[extent.object].identifier, extent.offset + position - extent.position)
        return None

    def locate(self, position: int) -> Location | None:
        """Where the byte at `position` comes from; None at `end`. Raises `MapError` outside the map."""
        if position == self.end:
            return None
        for extent in self._extents:
            if extent.position <= position < extent.end:
                ref = self._objects[extent.object] if extent.object is not None else None
                return Location(extent, position - extent.position, ref)
        raise MapError(f"position {position} is not between {self.acked} and {self.end}")

    def current_object(self, position: int) -> tuple[str, Seq] | None:
        """The object being sent at `position` (or the last before it, or else the first) and the sequence number of
        its byte 0."""
        runs = [(label.position, label.identifier, label.offset) for label in self._labels]
        runs += [
            (extent.position, self._objects[extent.object].identifier, extent.offset)
            for extent in self._extents
            if extent.object is not None
        ]
        if not runs:
            return None
        begun = [run for run in runs if run[0] <= position]
        start, identifier, offset = max(begun) if begun else min(runs)
        return identifier, self.seq(start) - offset

    def acknowledge(self, position: int) -> None:
        """Everything below `position` has arrived: forget what lies below it (of an object's run: once it is all)."""
        if position < self.acked:
            return
        if position > self.end:
            raise MapError(f"position {position} lies beyond the planned end {self.end}")
        self.acked = position
        if self._labels:
            self._labels = [
                label for label in self._labels if label.length is None or label.position + label.length > position
            ]
        if position == self.end:
            self._extents, self._objects = [], []
            return
        if self._extents and self._extents[0].end <= position:
            self._extents = [extent for extent in self._extents if extent.end > position]
            self._forget_objects()
        first = self._extents[0] if self._extents else None
        if first is not None and first.literal is not None and first.position < position:
            rest = first.literal[position - first.position :]
            self._extents[0] = Extent(position, len(rest), literal=rest)

    def _forget_objects(self) -> None:
        """Those that no extent names."""
        used = sorted({extent.object for extent in self._extents if extent.object is not None})
        if len(used) == len(self._objects):
            return
        renumbered = {old: new for new, old in enumerate(used)}
        self._objects = [self._objects[old] for old in used]
        self._extents = [
            extent
            if extent.object is None
            else Extent(extent.position, extent.length, None, renumbered[extent.object], extent.offset)
            for extent in self._extents
        ]

    def update_object(self, old: ObjectRef, new: ObjectRef) -> bool:
        """The same object, now known better (its digest was computed). False if it is not in the map."""
        if old not in self._objects:
            return False
        self._objects[self._objects.index(old)] = new
        return True

    @property
    def crowd(self) -> tuple[int, int]:
        """(extents and labels, bytes) that a checkpoint must carry for this map: literal bytes and identifiers."""
        size = sum(len(extent.literal) for extent in self._extents if extent.literal is not None)
        size += sum(len(ref.identifier) for ref in self._objects) + sum(len(label.identifier) for label in self._labels)
        return len(self._extents) + len(self._labels), size

    @property
    def extents(self) -> list[Extent]:
        return list(self._extents)

    @property
    def objects(self) -> list[ObjectRef]:
        return list(self._objects)

    @property
    def labels(self) -> list[Label]:
        return list(self._labels)

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)
