"""The sections that the stack's own layers append to a data block: `tcp`, `stream` and `bundle`.

`tcp` is what the kernel needs to recreate the connection. `stream` says what the bytes of the connection *are*: a list
of extents, each either literal bytes or a run of an object's bytes, in the order in which they are sent, and labels, by
which a protocol says of which object its literal bytes are. With it, any acknowledgement number is a position in an
object (claims 12, 22).

Positions count bytes of the stream from the first byte after the SYN, in 63 bits, so that they do not wrap; the
sequence number of position p is (ISS + 1 + p) mod 2**32.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from state.datablock import Header, UInt16, UInt32, UInt63
from state.errors import CheckpointRefused

TCP = "tcp"
STREAM = "stream"
BUNDLE = "bundle"
CONTROL = "control"
LIMIT_EXTENTS = 256
LIMIT_PARAMETERS = 1024
LIMIT_PARTS = 64
_SEQUENCE_SPACE = 1 << 32


class TcpSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What recreating needs beside sequence numbers."""

    mss: Annotated[int, Meta(ge=1, le=65535)]
    """The client's MSS as clamped by the kernel at the handshake (RFC 9293 section 3.7.1)."""
    snd_wscale: Annotated[int, Meta(ge=0, le=14)]
    """Shift that the client announced for its window (RFC 7323)."""
    rcv_wscale: Annotated[int, Meta(ge=0, le=14)]
    """Shift that this side announced."""
    window_scaling: bool
    sack: bool
    timestamps: bool
    tsval: UInt32
    """This side's TSval when the block was made, in its own clock of 1 ms ticks; 0 without timestamps."""
    wmax: UInt32
    """Largest window that the client may be assumed to offer, in bytes."""


class ObjectRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An object and what makes another copy of it *the same*.

    `digest` is SHA-256 of the content, empty while the owner has not finished computing it; then size and
    modification time must both agree to the nanosecond.
    """

    identifier: Annotated[str, Meta(min_length=1, max_length=4096)]
    size: UInt63
    mtime_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    digest: Annotated[bytes, Meta(max_length=32)]
    parameters: Annotated[bytes, Meta(max_length=LIMIT_PARAMETERS)] = b""
    """Not empty: the object is computed from the file and these, by the protocol that planned it. `size` is the
    object's own; modification time and digest are the file's."""


class Extent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """`length` bytes of the stream from `position`: `literal`, or bytes of object number `object` from `offset`."""

    position: UInt63
    length: Annotated[int, Meta(ge=1, le=2**62)]
    literal: bytes | None = None
    object: Annotated[int, Meta(ge=0, lt=LIMIT_EXTENTS)] | None = None
    offset: UInt63 = 0

    @property
    def end(self) -> int:
        return self.position + self.length


class Label(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The protocol's own word for literal bytes (claim 22): the one at `position` is byte `offset` of an object, and
    those that follow go on with it, for `length` bytes; None: for as long as the stream goes on with it."""

    position: UInt63
    identifier: Annotated[str, Meta(min_length=1, max_length=4096)]
    offset: UInt63
    length: Annotated[int, Meta(ge=1, le=2**62)] | None = None

    def covers(self, position: int) -> bool:
        """Does the byte at `position` belong to it?"""
        return self.position <= position and (self.length is None or position < self.position + self.length)


class StreamSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Both directions of the byte stream."""

    acked: UInt63
    """Position up to which the client had acknowledged when the block was made. Extents start here or below."""
    sent: UInt63
    """Position up to which bytes were handed to the kernel."""
    received: UInt63
    """Bytes of input that the application read."""
    input_ended: bool
    """The client's FIN was seen (it occupies the sequence number after the last byte of input)."""
    closing: bool
    """This side sends FIN after the last extent."""
    objects: Annotated[list[ObjectRef], Meta(max_length=LIMIT_EXTENTS)]
    extents: Annotated[list[Extent], Meta(max_length=LIMIT_EXTENTS)]
    labels: Annotated[list[Label], Meta(max_length=LIMIT_EXTENTS)] = []

    @property
    def end(self) -> int:
        """Position after the last byte that is planned; `sent` or more."""
        return self.extents[-1].end if self.extents else self.acked

    def check(self) -> None:
        """Raises `CheckpointRefused` where the section contradicts itself."""
        if self.acked > self.sent:
            raise CheckpointRefused("acked", "lies beyond sent")
        if self.sent > self.end:
            raise CheckpointRefused("sent", "lies beyond the last extent")
        if self.extents and self.extents[0].position > self.acked:
            raise CheckpointRefused("extents", "bytes that were not acknowledged have no extent")
        expected = self.extents[0].position if self.extents else 0
        for extent in self.extents:
            if extent.position != expected:
                raise CheckpointRefused("extents", "not contiguous")
            expected = extent.end
            if (extent.literal is None) == (extent.object is None):
                raise CheckpointRefused("extents", "an extent is either literal or of an object")
            if extent.literal is not None and len(extent.literal) != extent.length:
                raise CheckpointRefused("extents", "literal bytes differ from their length")
            if extent.object is not None:
                if extent.object >= len(self.objects):
                    raise CheckpointRefused("objects", "an extent names an object that is not listed")
                if extent.offset + extent.length > self.objects[extent.object].size:
                    raise CheckpointRefused("offset", "the object is shorter than its offset")
        least = 0
        for label in self.labels:
            if label.position < least:
                raise CheckpointRefused("labels", "two of them are of the same bytes")
            if label.length is None and label is not self.labels[-1]:
                raise CheckpointRefused("labels", "one without an end is followed by another")
            least = label.position + (label.length or 0)
        if self.labels and self.labels[-1].position > self.end:
            raise CheckpointRefused("labels", "lies beyond the last extent")

    def check_against(self, header: Header) -> None:
        """Raises `CheckpointRefused` with the header's field that contradicts the section, which has been checked."""
        told = {
            "snd_una": (header.snd_una, header.iss + 1 + self.acked),
            "snd_nxt": (header.snd_nxt, header.iss + 1 + self.sent),
            "rcv_nxt": (header.rcv_nxt, header.irs + 1 + self.received + self.input_ended),
        }
        for field, (number, count) in told.items():
            if number != count % _SEQUENCE_SPACE:
                raise CheckpointRefused(field, f"is {number}, and the stream stands at {count % _SEQUENCE_SPACE}")
        if not header.object:
            return
        runs = [extent for extent in self.extents if extent.object is not None]
        firsts = {
            (header.iss + 1 + extent.position - extent.offset) % _SEQUENCE_SPACE
            for extent in runs
            if self.objects[extent.object or 0].identifier == header.object
        } | {
            (header.iss + 1 + label.position - label.offset) % _SEQUENCE_SPACE
            for label in self.labels
            if label.identifier == header.object
        }
        if not firsts:
            raise CheckpointRefused("object", f"{header.object} is not in the stream")
        if header.object_first not in firsts:
            raise CheckpointRefused("object_first", f"{header.object_first} is not where the stream has the object")


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of a bundle's connections beside the control connection (claims 4-7)."""

    role: Annotated[str, Meta(min_length=1, max_length=32)]
    """The protocol's own word for it: `data`, `rtp`, ..."""
    transport: Literal["tcp", "udp", "udp-multicast"]
    local_port: UInt16
    remote_address: Annotated[str, Meta(max_length=64)] = ""
    """Empty while a client is awaited."""
    remote_port: UInt16 = 0
    connecting: bool = False
    """This side opens it, and it is not there yet: nobody is awaited."""


class BundleSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which bundle a connection belongs to; of the control connection also what else the bundle consists of."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    """The control connection's id."""
    role: Annotated[str, Meta(min_length=1, max_length=32)]
    """`control`, or the part's."""
    parts: Annotated[list[Part], Meta(max_length=LIMIT_PARTS)]

    def check(self, connection: str) -> None:
        """Raises `CheckpointRefused` where the section of this connection contradicts itself."""
        if (self.role == CONTROL) != (self.id == connection):
            raise CheckpointRefused("bundle", f"{connection} cannot be {self.role} of {self.id}")
        for part in self.parts:
            if part.role == CONTROL:
                raise CheckpointRefused("bundle", "a part cannot be the control connection")
            if not part.remote_address:
                continue
            try:
                ipaddress.ip_address(part.remote_address)
            except ValueError:
                raise CheckpointRefused("bundle", f"{part.remote_address} is not an address") from None
            if not part.remote_port or not part.local_port:
                raise CheckpointRefused("bundle", "a part has an address and no port")
