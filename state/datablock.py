"""The checkpoint of one connection: a typed, versioned *data block* (claims 3, 8, 19).

    +-------+---------+-----------+------------------------------------------+
    | "TKO" | version | CRC-32    | MessagePack: [header, [[name, bytes] ..]] |
    |  3 B  |   1 B   | 4 B, big  |                                          |
    +-------+---------+-----------+------------------------------------------+

The **header** is what every checkpoint must carry whatever the protocol: who wrote it and when, which connection it
is, its sequence numbers, and where the object now being sent begins. The controller reads nothing else, so that a
checkpoint costs it microseconds. The **sections** belong to the layers of the protocol stack: each layer is handed the
block and appends its own (`dataplane.stack`). A reader looks a section up by its layer's name, with the type that it
expects.

Decoding is strict: a wrong length, version, checksum, type, range or an unknown field refuses the whole block with the
name of what was wrong. Blocks come over the network from servers that may be dying or of another version.
"""

from __future__ import annotations

import functools
import socket
import struct
import zlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from state.errors import CheckpointRefused

MAGIC = b"TKO"
VERSION = 1
LIMIT_BYTES = 64 * 1024
"""No block is larger. The largest parts are response headers and input that was read but not yet answered."""
LIMIT_SECTIONS = 16

_PREFIX = struct.Struct("!3sBI")

UInt16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
UInt63 = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
Port = Annotated[int, Meta(ge=1, le=0xFFFF)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
PackedAddress = Annotated[bytes, Meta(min_length=4, max_length=16)]


@functools.lru_cache(maxsize=4096)
def address_text(packed: bytes) -> str:
    """An address of 4 or 16 bytes as people write it."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


class FourTuple(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A connection's addresses and ports. *Source* is the service's side (the VIP), *destination* is the client.

    Addresses are packed: 4 bytes for IPv4, 16 for IPv6.
    """

    source: PackedAddress
    source_port: Port
    destination: PackedAddress
    destination_port: Port

    @property
    def id(self) -> str:
        """The connection's name in the API and in tables: `client-port-vip-port`, safe in a URL."""
        client, vip = address_text(self.destination), address_text(self.source)
        return f"{client}-{self.destination_port}-{vip}-{self.source_port}"


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The fields of claim 8. Sequence numbers are those on the wire, modulo 2**32 (RFC 9293 section 3.4)."""

    server: Name
    """Identifier of the server that owns the connection."""
    incarnation: UInt63
    """Which life of that server: nanoseconds since the epoch at the agent's start."""
    epoch: UInt63
    """Grows with every takeover; a block of an older epoch than the connection's is refused."""
    serial: UInt63
    """Number of this checkpoint of this connection, from 1, growing; an older one never replaces a newer one."""
    time: UInt63
    """When the state was gathered: nanoseconds since the Unix epoch, wall clock."""
    connection: FourTuple
    protocol: Name
    """Application protocol, for example `http/1.1`."""
    iss: UInt32
    """Initial send sequence number of the source (the sequence number of its SYN)."""
    irs: UInt32
    """Initial sequence number of the destination."""
    snd_una: UInt32
    """Oldest sequence number of the source that was not yet acknowledged when the block was made."""
    snd_nxt: UInt32
    """Next sequence number that the source sends."""
    rcv_nxt: UInt32
    """Next sequence number expected from the destination: input below it was read by the application."""
    object: Annotated[str, Meta(max_length=4096)] = ""
    """Identifier of the object being sent, empty when there is none."""
    object_first: UInt32 = 0
    """Sequence number of byte 0 of that object (a range that starts later extrapolates backwards)."""
    bundle: Annotated[str, Meta(max_length=128)] = ""
    """Id of the control connection if this one belongs to a bundle, or is its control connection; else empty."""


class Section(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    name: Name
    payload: bytes


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    header: Header
    sections: Annotated[list[Section], Meta(max_length=LIMIT_SECTIONS)]


class _HeaderOnly(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    header: Header
    sections: msgspec.Raw


SectionT = TypeVar("SectionT", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()
_body_decoder = msgspec.msgpack.Decoder(_Body)
_header_decoder = msgspec.msgpack.Decoder(_HeaderOnly)
_section_decoders: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}


class DataBlock:
    """A block under construction, or one that was decoded."""

    __slots__ = ("_names", "header", "sections")

    def __init__(self, header: Header, sections: list[Section] | None = None) -> None:
        self.header = header
        self.sections = sections if sections is not None else []
        self._names = {section.name for section in self.sections}

    def append(self, name: str, state: msgspec.Struct) -> None:
        """A protocol adds its section. Each name once; raises `CheckpointRefused` when it is there already."""
        if name in self._names:
            raise CheckpointRefused(name, "section appended twice")
        self._names.add(name)
        self.sections.append(Section(name, _encoder.encode(state)))

    def section(self, name: str, type_: type[SectionT]) -> SectionT:
        """The section of that name, decoded strictly. Raises `CheckpointRefused` if missing or malformed."""
        for section in self.sections:
            if section.name == name:
                decoder = _section_decoders.get(type_)
                if decoder is None:
                    decoder = _section_decoders[type_] = msgspec.msgpack.Decoder(type_)
                try:
                    state = decoder.decode(section.payload)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise CheckpointRefused(name, str(error)) from None
                assert isinstance(state, type_)
                return state
        raise CheckpointRefused(name, "section missing")

    def encode(self) -> bytes:
        """The block's bytes. Raises `CheckpointRefused` if it would exceed `LIMIT_BYTES`."""
        body = _encoder.encode(_Body(self.header, self.sections))
        if len(body) + _PREFIX.size > LIMIT_BYTES:
            raise CheckpointRefused("length", f"{len(body)} bytes exceed the limit of {LIMIT_BYTES}")
        return _PREFIX.pack(MAGIC, VERSION, zlib.crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> DataBlock:
        """The whole block. Raises `CheckpointRefused` with the name of the field that is wrong."""
        try:
            body = _body_decoder.decode(_payload(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointRefused(_field_of(error), str(error)) from None
        _check(body.header)
        names = [section.name for section in body.sections]
        if len(set(names)) != len(names):
            raise CheckpointRefused("sections", "a name appears twice")
        return cls(body.header, body.sections)


def decode_header(data: bytes) -> Header:
    """Only the header, with the same checks; the sections are left to whoever knows them."""
    try:
        header = _header_decoder.decode(_payload(data)).header
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointRefused(_field_of(error), str(error)) from None
    _check(header)
    return header


def _payload(data: bytes) -> memoryview:
    if len(data) > LIMIT_BYTES:
        raise CheckpointRefused("length", f"{len(data)} bytes exceed the limit of {LIMIT_BYTES}")
    if len(data) < _PREFIX.size:
        raise CheckpointRefused("length", f"truncated: {len(data)} bytes")
    magic, version, checksum = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CheckpointRefused("magic", "these bytes are not a checkpoint")
    if version != VERSION:
        raise CheckpointRefused("version", f"unknown version {version}, this side knows {VERSION}")
    payload = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(payload) != checksum:
        raise CheckpointRefused("checksum", "truncated or damaged")
    return payload


def _check(header: Header) -> None:
    """What types cannot say: fields that contradict each other."""
    connection = header.connection
    for field, address in (("source", connection.source), ("destination", connection.destination)):
        if len(address) not in (4, 16):
            raise CheckpointRefused(field, f"an address of {len(address)} bytes")
    if len(connection.source) != len(connection.destination):
        raise CheckpointRefused("destination", "source and destination are of different address families")
    if (header.snd_nxt - header.snd_una) & 0xFFFF_FFFF > 0x7FFF_FFFF:
        raise CheckpointRefused("snd_una", "lies beyond snd_nxt")
    if header.serial < 1:
        raise CheckpointRefused("serial", "must be at least 1")


_HEADER_FIELDS = Header.__struct_fields__
_TUPLE_FIELDS = FourTuple.__struct_fields__


def _field_of(error: Exception) -> str:
    """The field's name from msgspec's path (`$[0][7]`), as a person calls it."""
    text = str(error)
    _, _, path = text.partition("`$")
    numbers = [int(part) for part in path.rstrip("`").replace("]", "").split("[") if part.isdigit()]
    if len(numbers) >= 2 and numbers[0] == 0 and numbers[1] < len(_HEADER_FIELDS):
        name = _HEADER_FIELDS[numbers[1]]
        if name == "connection" and len(numbers) >= 3 and numbers[2] < len(_TUPLE_FIELDS):
            return _TUPLE_FIELDS[numbers[2]]
        return name
    return "sections" if numbers[:1] == [1] else "encoding"
