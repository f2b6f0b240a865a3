"""Which byte of which object has which sequence number (claims 12, 13, 22).

The application says what the stream will consist of: literal bytes (a response's header) and runs of objects' bytes.
The map answers both ways: the *current or future* send sequence number of a byte, and the byte that an acknowledgement
number stands before. It holds the extents that are not wholly acknowledged, and nothing else.

    map = SequenceMap(iss)
    map.literal(b"HTTP/1.1 200 OK...")
    seq = map.object(ref, offset=0, length=ref.size)   # byte 0 of ref will be sent as sequence number `seq`
    map.locate(map.position(ack))                      # -> which extent, how far into it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.sequence import Seq
from state.errors import LocalError
from state.sections import Extent, ObjectRef


class MapError(LocalError):
    """A question about bytes that are not in the map."""


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

    __slots__ = ("_extents", "_objects", "acked", "end", "iss")

    def __init__(self, iss: int, acked: int = 0) -> None:
        self.iss = Seq(iss)
        self.acked = acked
        """Position up to which everything is known to be acknowledged."""
        self.end = acked
        """Position after the last planned byte: the next byte that the application associates goes here."""
        self._extents: list[Extent] = []
        self._objects: list[ObjectRef] = []

    @classmethod
    def restored(cls, iss: int, acked: int, objects: list[ObjectRef], extents: list[Extent]) -> SequenceMap:
        """The map of a checkpoint's stream section, which has been checked."""
        map_ = cls(iss, acked)
        map_._extents = list(extents)
        map_._objects = list(objects)
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
        if data:
            self._extents.append(Extent(self.end, len(data), literal=data))
            self.end += len(data)
        return first

    def object(self, ref: ObjectRef, offset: int, length: int) -> Seq:
        """Plan `length` bytes of an object next. Returns the (future) sequence number of byte `offset`."""
        if offset < 0 or length < 0 or offset + length > ref.size:
            raise MapError(f"{ref.identifier} has no bytes {offset} to {offset + length}: it has {ref.size}")
        first = self.seq(self.end)
        if length:
            try:
                index = self._objects.index(ref)
            except ValueError:
                index = len(self._objects)
                self._objects.append(ref)
            self._extents.append(Extent(self.end, length, object=index, offset=offset))
            self.end += length
        return first

    def seq_of(self, identifier: str, offset: int) -> Seq:
        """The current or future sequence number of byte `offset` of an object (claim 22). Raises `MapError`."""
        for extent in reversed(self._extents):
            if extent.object is not None and self._objects[extent.object].identifier == identifier:
                into = offset - extent.offset
                if 0 <= into < extent.length:
                    return self.seq(extent.position + into)
        raise MapError(f"byte {offset} of {identifier} is not planned")

    def locate(self, position: int) -> Location | None:
        """Where the byte at `position` comes from; None at `end`. Raises `MapError` outside the map."""
        if position == self.end:
            return None
        for extent in self._extents:
            if extent.position <= position < extent.end:
                ref = self._objects[extent.object] if extent.object is not None else None
                return Location(extent, position - extent.position, ref)
        raise MapError(f"position {position} is not between {self.acked} and {self.end}")

    def current_object(self, position: int) -> tuple[ObjectRef, Seq] | None:
        """The object being sent at `position` (or the last before it) and the sequence number of its byte 0."""
        found: tuple[ObjectRef, Seq] | None = None
        for extent in self._extents:
            if extent.object is None:
                continue
            if found is not None and extent.position > position:
                break
            found = (self._objects[extent.object], self.seq(extent.position) - extent.offset)
        return found

    def acknowledge(self, position: int) -> None:
        """Everything below `position` has arrived: forget extents that lie wholly below it."""
        if position < self.acked:
            return
        if position > self.end:
            raise MapError(f"position {position} lies beyond the planned end {self.end}")
        self.acked = position
        if self._extents and self._extents[0].end <= position:
            self._extents = [extent for extent in self._extents if extent.end > position]
            used = sorted({extent.object for extent in self._extents if extent.object is not None})
            if len(used) != len(self._objects):
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
        """(extents, bytes) that a checkpoint must carry for this map: literal bytes and objects' identifiers."""
        literal = sum(len(extent.literal) for extent in self._extents if extent.literal is not None)
        return len(self._extents), literal + sum(len(ref.identifier) for ref in self._objects)

    @property
    def extents(self) -> list[Extent]:
        return list(self._extents)

    @property
    def objects(self) -> list[ObjectRef]:
        return list(self._objects)

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)
