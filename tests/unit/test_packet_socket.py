"""The kernel's filter of packets that may be answers, run by the kernel: attached to one end of a socket pair (a filter
sees a datagram's bytes there, as it sees a packet's behind a packet socket), it takes or drops what the other sends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting

from dataplane.packet_socket import answer_filter, attach, hush_filter
from dataplane.segment import ACK, FIN, PSH, RST, SYN, Segment, build
from dataplane.sequence import Seq
from dataplane.socket_address import socket_address
from tests.unit.builders import CLIENT, CLIENT6, VIP, VIP6

FAMILIES = [(CLIENT, VIP), (CLIENT6, VIP6)]
PROBED = (Seq(5), Seq(6))


class Filtered:
    """A socket behind a filter."""

    def __init__(self, program: bytes) -> None:
        self._inner, self._outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inner.setblocking(False)
        attach(self._inner, program)

    def takes(self, packet: bytes) -> bool:
        self._outer.send(packet)
        try:
            return self._inner.recv(65536) == packet
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._inner.close()
        self._outer.close()


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def case(request: pytest.FixtureRequest) -> Any:
    client, vip = request.param
    filtered = Filtered(answer_filter(vip))
    yield filtered, Segment(client, 40_001, vip, 80, Seq(31), Seq(7), ACK, 512, timestamps=(1, 2))
    filtered.close()


def test_answers_to_probes_are_taken(case: Any) -> None:
    filtered, segment = case
    for timestamps in ((1, 2), None):
        for sack in ((PROBED,), (PROBED, (Seq(9), Seq(12))), (PROBED,) * 3):
            assert filtered.takes(build(replace(segment, timestamps=timestamps, sack=sack)))


def test_a_reset_is_taken_whatever_else_it_is(case: Any) -> None:
    filtered, segment = case
    for flags in (RST, RST | ACK):
        for timestamps in ((1, 2), None):
            assert filtered.takes(build(replace(segment, flags=flags, timestamps=timestamps)))


def test_a_busy_clients_acknowledgements_and_requests_are_dropped(case: Any) -> None:
    filtered, segment = case
    for flags in (ACK, ACK | PSH, ACK | FIN):
        for timestamps in ((1, 2), None):
            for payload in (b"", b"GET / HTTP/1.1\r\n\r\n"):
                assert not filtered.takes(build(replace(segment, flags=flags, timestamps=timestamps, payload=payload)))


@pytest.mark.parametrize(("client", "vip"), FAMILIES, ids=["IPv4", "IPv6"])
def test_from_some_ports_everything_is_taken_and_from_all_if_there_are_too_many(client: bytes, vip: bytes) -> None:
    for count, others in ((1, False), (200, False), (201, True)):
        ports = range(30_000, 30_000 + count)
        filtered = Filtered(answer_filter(vip, ports))
        for timestamps in ((1, 2), None):
            plain = Segment(client, ports[-1], vip, 80, Seq(31), Seq(7), ACK, 512, timestamps=timestamps)
            assert filtered.takes(build(plain))
            assert filtered.takes(build(replace(plain, source_port=5))) is others
            assert not filtered.takes(build(replace(plain, destination=client)))
        filtered.close()


def test_a_syn_has_more_options_and_is_left_to_the_judge(case: Any) -> None:
    filtered, segment = case
    plain = (IP if len(segment.source) == 4 else IPv6)(build(segment))
    options = [("MSS", 1440), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 9)]
    packet = plain.copy()
    packet[TCP].remove_payload()
    packet[TCP].flags, packet[TCP].options, packet[TCP].dataofs = SYN, options, None
    for name in ("len", "plen"):
        if name in packet.fields:
            packet.setfieldval(name, None)
    assert filtered.takes(bytes(packet))


def test_what_is_for_another_address_is_dropped(case: Any) -> None:
    filtered, segment = case
    answer = replace(segment, sack=(PROBED,))
    for i in range(len(segment.destination)):
        other = bytearray(segment.destination)
        other[i] ^= 1
        assert not filtered.takes(build(replace(answer, destination=bytes(other))))


def test_what_is_no_tcp_is_dropped(case: Any) -> None:
    filtered, segment = case
    packet = bytearray(build(replace(segment, sack=(PROBED,))))
    at = 9 if len(segment.source) == 4 else 6
    for protocol in (1, 17, 58):
        packet[at] = protocol
        assert not filtered.takes(bytes(packet))


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])
def test_packets_of_the_other_family_and_stubs_are_dropped(family: tuple[bytes, bytes]) -> None:
    filtered = Filtered(answer_filter(family[1]))
    other = FAMILIES[0] if family == FAMILIES[1] else FAMILIES[1]
    answer = build(Segment(family[0], 40_001, family[1], 80, Seq(1), Seq(2), ACK, 1, sack=(PROBED,)))
    foreign = build(Segment(other[0], 40_001, other[1], 80, Seq(1), Seq(2), ACK, 1, sack=(PROBED,)))
    assert filtered.takes(answer)
    assert not filtered.takes(foreign)
    header = 20 if len(family[0]) == 4 else 40
    for length in range(1, header + 13):  # the filter reads no further than the flags of a long header
        assert not filtered.takes(answer[:length])
    filtered.close()


def test_options_of_an_ipv4_header_move_the_segment() -> None:
    filtered = Filtered(answer_filter(VIP))
    packet = build(Segment(CLIENT, 40_001, VIP, 80, Seq(1), Seq(2), ACK, 1, sack=(PROBED,)))
    assert filtered.takes(bytes([0x46]) + packet[1:20] + b"\1\1\1\0" + packet[20:])
    plain = build(Segment(CLIENT, 40_001, VIP, 80, Seq(1), Seq(2), ACK, 1, timestamps=(1, 2)))
    assert not filtered.takes(bytes([0x46]) + plain[1:20] + b"\1\1\1\0" + plain[20:])
    filtered.close()


def test_extension_headers_of_ipv6_are_left_to_the_parser_and_fragments_dropped() -> None:
    filtered = Filtered(answer_filter(VIP6))
    answer = IPv6(build(Segment(CLIENT6, 40_001, VIP6, 80, Seq(1), Seq(2), ACK, 1, sack=(PROBED,))))
    for header, taken in (
        (IPv6ExtHdrHopByHop(), True),
        (IPv6ExtHdrDestOpt(), True),
        (IPv6ExtHdrRouting(), True),
        (IPv6ExtHdrFragment(), False),
    ):
        assert filtered.takes(bytes(IPv6(src=answer.src, dst=answer.dst) / header / answer[TCP])) is taken
    filtered.close()


def test_addresses_as_sockets_take_them() -> None:
    assert socket_address(VIP, 80, 3) == ("10.0.0.100", 80)
    assert socket_address(VIP6, 80, 3) == ("fd00::64", 80, 0, 3)


# --- what a listening socket is spared ---
@pytest.fixture
def hushed(case: Any) -> Any:
    filtered = Filtered(hush_filter())
    _, sample = case
    header = 20 if len(sample.source) == 4 else 40
    yield lambda segment: filtered.takes(build(segment)[header:])
    filtered.close()


def test_a_hushed_listener_does_not_see_answers_to_probes(case: Any, hushed: Any) -> None:
    _, segment = case
    for timestamps in ((1, 2), None):
        for sack in ((PROBED,), (PROBED, (Seq(9), Seq(12))), (PROBED,) * 3):
            assert not hushed(replace(segment, timestamps=timestamps, sack=sack))


def test_a_hushed_listener_sees_whatever_makes_a_connection(case: Any, hushed: Any) -> None:
    _, segment = case
    for timestamps in ((1, 2), None):
        for flags in (SYN, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK):
            plain = replace(segment, timestamps=timestamps, flags=flags)
            assert hushed(plain)
            assert hushed(replace(plain, payload=b"GET / HTTP/1.1"))
    for flags in (SYN, FIN | ACK, RST | ACK):
        assert hushed(replace(segment, flags=flags, sack=(PROBED,)))
