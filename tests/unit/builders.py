"""One example connection, whose sequence numbers wrap on both sides, and the pieces that tests make of it.

The client has asked for a file of 10,000 bytes. The response is a header of 200 bytes (positions 0 to 199) and the file
(200 to 10,199). ISS lies 300 below the wrap, so that byte 99 of the file has sequence number 0; the request's 80 bytes
make RCV.NXT wrap too.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dataplane.judge import Expectation, Proof
from dataplane.objects import DocumentRoot
from dataplane.segment import ACK, Segment
from dataplane.sequence import Seq
from state.datablock import MAGIC, VERSION, DataBlock, FourTuple, Header
from state.sections import STREAM, TCP, Extent, ObjectRef, StreamSection, TcpSection

MODULUS = 2**32
VIP = bytes([10, 0, 0, 100])
CLIENT = bytes([10, 0, 0, 7])
VIP6 = bytes.fromhex("fd00000000000000000000000000 0064".replace(" ", ""))
CLIENT6 = bytes.fromhex("fd00000000000000000000000000 0007".replace(" ", ""))

ISS = MODULUS - 300
IRS = MODULUS - 50
HEAD = bytes(range(200))
FILE_SIZE = 10_000
REQUEST = 80
END = len(HEAD) + FILE_SIZE
ACKED, SENT = 150, 5000
RCV_NXT = 31
"""IRS + 1 + 80 modulo 2**32."""
TSVAL = MODULUS - 5

FILE = ObjectRef("/film.bin", FILE_SIZE, 1_700_000_000_123_456_789, b"d" * 32)


def wire(position: int) -> int:
    """The sequence number of the byte at that position, by the definition and not by the code under test."""
    return (ISS + 1 + position) % MODULUS


def four_tuple(**changes: Any) -> FourTuple:
    fields: dict[str, Any] = {
        "source": VIP,
        "source_port": 80,
        "destination": CLIENT,
        "destination_port": 40001,
    }
    return FourTuple(**(fields | changes))


def header(**changes: Any) -> Header:
    fields: dict[str, Any] = {
        "server": "web1",
        "incarnation": 1_700_000_000_000_000_001,
        "epoch": 3,
        "serial": 7,
        "time": 1_700_000_000_000_000_002,
        "connection": four_tuple(),
        "protocol": "http/1.1",
        "iss": ISS,
        "irs": IRS,
        "snd_una": wire(ACKED),
        "snd_nxt": wire(SENT),
        "rcv_nxt": RCV_NXT,
        "object": FILE.identifier,
        "object_first": wire(len(HEAD)),
    }
    return Header(**(fields | changes))


def tcp_section(**changes: Any) -> TcpSection:
    fields: dict[str, Any] = {
        "mss": 1460,
        "snd_wscale": 7,
        "rcv_wscale": 9,
        "window_scaling": True,
        "sack": True,
        "timestamps": True,
        "tsval": TSVAL,
        "wmax": 65535 << 7,
    }
    return TcpSection(**(fields | changes))


def stream_section(**changes: Any) -> StreamSection:
    fields: dict[str, Any] = {
        "acked": ACKED,
        "sent": SENT,
        "received": REQUEST,
        "input_ended": False,
        "closing": False,
        "objects": [FILE],
        "extents": [
            Extent(0, len(HEAD), literal=HEAD),
            Extent(len(HEAD), FILE_SIZE, object=0, offset=0),
        ],
    }
    return StreamSection(**(fields | changes))


def block(**changes: Any) -> DataBlock:
    made = DataBlock(header(**changes))
    made.append(TCP, tcp_section())
    made.append(STREAM, stream_section())
    return made


def sealed(body: bytes) -> bytes:
    """Any bytes as a block's body, with a prefix that is right."""
    return struct.pack("!3sBI", MAGIC, VERSION, zlib.crc32(body)) + body


def sealed_list(fields: list[Any], sections: Any = ()) -> bytes:
    """A block whose header has just these fields."""
    return sealed(msgspec.msgpack.encode([fields, list(sections)]))


def header_list(**changes: Any) -> list[Any]:
    """The header's fields in their order, some of them replaced by whatever one likes."""
    fields = msgspec.to_builtins(header(), builtin_types=(bytes,))
    for name, value in changes.items():
        fields[Header.__struct_fields__.index(name)] = value
    return list(fields)


def expectation(**changes: Any) -> Expectation:
    """What the judge may accept of the example connection."""
    fields: dict[str, Any] = {
        "connection": four_tuple(),
        "acked": ACKED,
        "acked_seq": Seq(wire(ACKED)),
        "end": END,
        "closing": False,
        "rcv_nxt": Seq(RCV_NXT),
        "snd_wscale": 7,
        "timestamps": True,
        "tsval": TSVAL,
        "sack": True,
    }
    return Expectation(**(fields | changes))


def answer(probe: int, position: int, **changes: Any) -> Segment:
    """The client's answer to a probe: it has everything below `position`."""
    fields: dict[str, Any] = {
        "source": CLIENT,
        "source_port": 40001,
        "destination": VIP,
        "destination_port": 80,
        "seq": Seq(RCV_NXT),
        "ack": Seq(wire(position)),
        "flags": ACK,
        "window": 502,
        "timestamps": (777, TSVAL),
        "sack": ((Seq(probe), Seq(probe + 1)),),
    }
    return Segment(**(fields | changes))


def proof(position: int, sacked: int | None = None) -> Proof:
    return Proof(
        ack=Seq(wire(position)),
        position=position,
        seq=Seq(RCV_NXT),
        input_missing=0,
        window=502 << 7,
        tsval=777,
        tsecr=TSVAL,
        sacked=position if sacked is None else sacked,
    )


@contextmanager
def document_root(folder: Path, **files: bytes) -> Iterator[DocumentRoot]:
    """A root with these files (`name` is served as `/name.bin`), all last changed at the same known second."""
    for name, content in files.items():
        (folder / f"{name}.bin").write_bytes(content)
        os.utime(folder / f"{name}.bin", ns=(10**18, 10**18))
    root = DocumentRoot(str(folder))
    try:
        yield root
    finally:
        root.close()
