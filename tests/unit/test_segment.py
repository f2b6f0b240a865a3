"""TCP segments held against scapy, in both directions and families; malformed bytes raise only SegmentMalformed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)

from dataplane.segment import ACK, FIN, PSH, RST, SYN, Segment, build, checksum, parse
from dataplane.sequence import Seq
from state.errors import SegmentMalformed
from tests.unit.builders import CLIENT, CLIENT6, MODULUS, VIP, VIP6

UINT32 = st.integers(0, MODULUS - 1) | st.sampled_from((0, 1, MODULUS - 1))
SEQS = UINT32.map(Seq)
PORTS = st.integers(0, 65535)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    source, destination = draw(st.sampled_from(((VIP, CLIENT), (VIP6, CLIENT6))))
    timestamps = draw(st.none() | st.tuples(UINT32, UINT32))
    payload = draw(st.binary(max_size=40))
    return Segment(
        source=source,
        source_port=draw(PORTS),
        destination=destination,
        destination_port=draw(PORTS),
        seq=draw(SEQS),
        ack=draw(SEQS),
        flags=draw(st.integers(0, 255)),
        window=draw(PORTS),
        payload_length=len(payload),
        payload=payload,
        timestamps=timestamps,
        sack=tuple(draw(st.lists(st.tuples(SEQS, SEQS), max_size=4 if timestamps is None else 3))),
        dscp=draw(st.integers(0, 63)),
    )


def probe(**changes: Any) -> Segment:
    base = Segment(VIP, 80, CLIENT, 40001, Seq(MODULUS - 1), Seq(31), ACK, 512, 1, b"\0", (1, 2))
    return replace(base, **changes)


def dissected(packet: bytes) -> Any:
    """As scapy sees it."""
    return IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)


def without_syn_options(segment: Segment) -> Segment:
    """They are only read, never built."""
    return replace(segment, syn_options=b"")


# --- against scapy ---
@settings(max_examples=60)
@given(segments())
def test_scapy_reads_what_was_built(segment: Segment) -> None:
    packet = build(segment)
    seen = dissected(packet)
    tcp = seen[TCP]
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.ack,
    )
    assert (int(tcp.flags), tcp.window, bytes(tcp.payload)) == (segment.flags, segment.window, segment.payload)
    options = {name: value for name, value in tcp.options if name != "NOP"}
    expected: dict[str, tuple[int, ...]] = {}
    if segment.timestamps is not None:
        expected["Timestamp"] = segment.timestamps
    if segment.sack:
        expected["SAck"] = tuple(edge for block in segment.sack for edge in block)
    assert options == expected
    assert (seen.tc if seen.version == 6 else seen.tos) >> 2 == segment.dscp


@settings(max_examples=60)
@given(segments())
def test_scapy_computes_the_same_checksums(segment: Segment) -> None:
    packet = build(segment)
    again = dissected(packet)
    del again[TCP].chksum
    if again.version == 4:
        del again.chksum
    assert bytes(again) == packet


@settings(max_examples=60)
@given(segments(), st.booleans())
def test_what_scapy_built_is_read(segment: Segment, padded: bool) -> None:
    options: list[tuple[str, Any]] = []
    if segment.timestamps is not None:
        options.append(("Timestamp", segment.timestamps))
    if segment.sack:
        options += [("NOP", None), ("SAck", tuple(int(edge) for block in segment.sack for edge in block))]
    family = IPv6 if len(segment.source) == 16 else IP
    names = {"tc": segment.dscp << 2} if family is IPv6 else {"tos": segment.dscp << 2, "id": 7, "ttl": 3}
    text = [dissected(build(segment)).src, dissected(build(segment)).dst]
    packet = family(src=text[0], dst=text[1], **names) / TCP(
        sport=segment.source_port,
        dport=segment.destination_port,
        seq=int(segment.seq),
        ack=int(segment.ack),
        flags=segment.flags,
        window=segment.window,
        options=options,
    )
    trailer = b"ethernet padding" if padded else b""
    assert without_syn_options(parse(bytes(packet / segment.payload) + trailer)) == segment


def test_other_options_are_passed_over() -> None:
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, MODULUS - 1)), ("NOP", None), ("WScale", 9)]
    packet = bytes(IP(src="10.0.0.7", dst="10.0.0.100") / TCP(flags="S", options=options))
    segment = parse(packet)
    assert (segment.flags, segment.timestamps, segment.sack) == (SYN, (7, MODULUS - 1), ())


def test_the_options_end_at_their_end_mark() -> None:
    options = [("EOL", None), ("Timestamp", (1, 2))]
    assert parse(bytes(IP() / TCP(options=options))).timestamps is None


def test_options_of_an_ip_header_are_passed_over() -> None:
    packet = build(probe())
    longer = bytes([0x46]) + packet[1:2] + (len(packet) + 4).to_bytes(2, "big") + packet[4:20] + b"\1\1\1\0"
    assert parse(longer + packet[20:]) == probe()


LONG_OPTION = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(30))])


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(),
        LONG_OPTION,
        IPv6ExtHdrHopByHop() / LONG_OPTION / IPv6ExtHdrRouting(),
    ],
)
def test_extension_headers_of_ipv6_are_passed_over(headers: Any) -> None:
    segment = probe(source=VIP6, destination=CLIENT6, sack=((Seq(1), Seq(2)),))
    plain = IPv6(build(segment))
    packet = bytes(IPv6(src=plain.src, dst=plain.dst) / headers / plain[TCP])
    assert parse(packet) == segment
    for length in range(len(packet)):
        with pytest.raises(SegmentMalformed):
            parse(packet[:length])


def test_a_fragment_of_ipv6_is_refused_by_its_name() -> None:
    with pytest.raises(SegmentMalformed, match="IPv6 next header 44 is not TCP"):
        parse(bytes(IPv6() / IPv6ExtHdrFragment(m=1) / TCP()))


# --- round trip ---
@given(segments())
def test_parsing_gives_back_what_was_built(segment: Segment) -> None:
    assert without_syn_options(parse(build(segment))) == segment


def test_the_flags_are_those_of_the_standard() -> None:
    seen = IP(build(probe(flags=FIN | RST | PSH)))[TCP]
    assert str(seen.flags) == "FRP"
    assert str(IP(build(probe(flags=SYN | ACK)))[TCP].flags) == "SA"


def test_numbers_wrap_on_the_wire_as_in_arithmetic() -> None:
    segment = parse(build(probe(seq=Seq(MODULUS - 1), sack=((Seq(MODULUS - 1), Seq(0)),))))
    assert segment.seq + segment.payload_length == 0
    ((left, right),) = segment.sack
    assert left + 1 == right


def test_the_checksum_is_that_of_the_standard() -> None:
    """The example of RFC 1071, section 3: the sum of these words is ddf2."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(bytes.fromhex("0001f203f4f5f6f7dd")) == checksum(bytes.fromhex("0001f203f4f5f6f7dd00"))


def test_the_checksum_carries_around_twice() -> None:
    """In one's complement ffff is zero, so that these words sum to 1."""
    assert checksum(bytes.fromhex("ffffffff0001")) == 0xFFFF - 1


# --- malformed ---
@pytest.mark.parametrize("segment", [probe(), probe(source=VIP6, destination=CLIENT6, sack=((Seq(1), Seq(2)),))])
def test_a_packet_cut_anywhere_is_malformed(segment: Segment) -> None:
    packet = build(segment)
    for length in range(len(packet)):
        with pytest.raises(SegmentMalformed):
            parse(packet[:length])


def patched(packet: bytes, at: int, *values: int) -> bytes:
    return packet[:at] + bytes(values) + packet[at + len(values) :]


V4, V6 = build(probe()), build(probe(source=VIP6, destination=CLIENT6))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        patched(V4, 0, 0x55),
        patched(V4, 0, 0x44),
        patched(V4, 0, 0x4F),
        patched(V4, 9, 17),
        patched(V4, 6, 0x20, 0),
        patched(V4, 6, 0, 1),
        patched(V4, 2, 0, 39),
        patched(V4, 2, 255, 255),
        patched(V4, 32, 0x40),
        patched(V4, 32, 0xF0),
        patched(V4, 40, 8, 1),
        patched(V4, 40, 8, 0),
        patched(V4, 40, 8, 13),
        patched(V4, 40, *(1,) * 11, 8),
        patched(V6, 6, 17),
        patched(V6, 6, 0),
        patched(V6, 4, 0, 19),
        patched(V6, 4, 255, 255),
        patched(V6, 52, 0x40),
    ],
)
def test_what_is_no_whole_tcp_segment_is_malformed(packet: bytes) -> None:
    with pytest.raises(SegmentMalformed):
        parse(packet)


@pytest.mark.parametrize("length", [3, 9, 11])
def test_a_sack_option_of_an_odd_length_names_nothing(length: int) -> None:
    packet = build(probe(timestamps=None, sack=((Seq(1), Seq(2)),)))
    assert parse(patched(packet, 43, 10)).sack == ((1, 2),)
    if length <= 10:
        assert parse(patched(packet, 43, length, *(1,) * 8)).sack == ()
    else:
        with pytest.raises(SegmentMalformed):
            parse(patched(packet, 43, length))


@settings(max_examples=400)
@given(st.sampled_from((V4, V6)), st.data())
def test_a_packet_damaged_anywhere_is_read_or_malformed_and_nothing_worse(packet: bytes, data: st.DataObject) -> None:
    damaged = bytearray(packet)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    try:
        segment = parse(bytes(damaged))
    except SegmentMalformed:
        return
    assert segment.payload_length == len(segment.payload)


@given(st.binary(max_size=90), st.sampled_from((b"", b"\x45", b"\x60")))
def test_random_bytes_are_read_or_malformed_and_nothing_worse(data: bytes, start: bytes) -> None:
    try:
        segment = parse(start + data)
    except SegmentMalformed:
        return
    assert len(segment.source) in (4, 16)
