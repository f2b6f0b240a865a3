"""One playing of a file: the same packets, reports and interleaved bytes wherever they are made."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.rtp import RTP

from dataplane.rtp import rtcp
from dataplane.rtp.mpegts import PAYLOAD_BYTES, TransportStream
from dataplane.rtp.packet import HEADER_BYTES, RtpMalformed, RtpPacket, header
from dataplane.rtp.plan import REPORT_TICKS, Interleaved, Plan, Playing
from state.errors import CheckpointRefused
from tests.unit.transport_streams import reader, steady

BEGAN = 1_700_000_000 * 10**9
DATA = steady(70_003, ticks_per_packet=90)
"""70 seconds; the last RTP packet is short."""
MEDIA = TransportStream.index(reader(DATA), len(DATA))
READ = reader(DATA)


def plan(start: int = 0, stop: int = MEDIA.packets) -> Plan:
    """Sequence number and timestamp wrap within the first packets."""
    return Plan(MEDIA, Playing(0xDEADBEEF, start, stop, 0xFFFE, 2**32 - 1000, BEGAN), "10.0.0.100")


# --- packets ---
def test_packets_are_rtp_as_others_read_it() -> None:
    for number in (0, 1, 2, 3, 9999, MEDIA.packets - 1):
        data = plan().packet(number, READ)
        parsed = RTP(data)
        assert (parsed.version, parsed.padding, parsed.extension, parsed.numsync, parsed.marker) == (2, 0, 0, 0, 0)
        assert (parsed.payload_type, parsed.sourcesync) == (33, 0xDEADBEEF)
        assert parsed.sequence == (0xFFFE + number) % 2**16
        assert parsed.timestamp == (2**32 - 1000 + number * 630) % 2**32
        assert bytes(parsed.payload) == DATA[number * PAYLOAD_BYTES : (number + 1) * PAYLOAD_BYTES]


def test_all_payloads_together_are_the_file() -> None:
    made = plan()
    assert b"".join(RtpPacket.parse(made.packet(n, READ)).payload for n in range(made.count)) == DATA


def test_a_part_is_numbered_from_its_own_beginning() -> None:
    part = plan(100, 200)
    first = RtpPacket.parse(part.packet(0, READ))
    assert (first.seq, first.timestamp) == (0xFFFE, 2**32 - 1000)
    assert first.payload == DATA[100 * PAYLOAD_BYTES : 101 * PAYLOAD_BYTES]
    assert (part.count, part.duration, part.ticks(99)) == (100, 63_000, 99 * 630)


@given(st.integers(-10_000, 80 * 90_000))
def test_what_is_due_is_what_has_a_time_not_after_now(ticks: int) -> None:
    part = plan(100, 5000)
    due = part.due(ticks)
    assert 0 <= due <= part.count
    assert due == 0 or part.ticks(due - 1) <= ticks
    assert due == part.count or part.ticks(due) > ticks


def test_a_plan_beyond_the_file_is_refused() -> None:
    with pytest.raises(CheckpointRefused):
        plan(0, MEDIA.packets + 1)
    with pytest.raises(CheckpointRefused):
        plan(10, 9)


# --- stopping and going on ---
@given(st.integers(0, 5000))
def test_numbers_go_on_after_a_stop(sent: int) -> None:
    before = plan(0, 5000)
    rest = before.stopped(sent)
    assert rest.start == rest.stop == sent
    after = Plan(
        MEDIA, Playing(rest.ssrc, 7, 50, rest.first_seq, rest.first_timestamp, 1, rest.packets, rest.octets), "x"
    )
    assert after.seq(0) == before.seq(sent) and after.timestamp(0) == before.timestamp(sent)
    assert after.sent_before(1) == (sent + 1, (sent + 1) * PAYLOAD_BYTES)


# --- reports ---
def test_reports_come_every_five_seconds_of_media_and_tell_the_time() -> None:
    made = plan()
    with_report = [number for number in range(made.count) if made.has_report(number)]
    assert len(with_report) == 15
    assert all(
        made.ticks(number) >= at * REPORT_TICKS > made.ticks(number - 1)
        for at, number in enumerate(with_report)
        if number
    )
    report = made.report(with_report[3])
    assert report[:4] == b"\x80\xc8\x00\x06" and report[4:8] == b"\xde\xad\xbe\xef"
    seconds = int.from_bytes(report[8:12], "big") - 2_208_988_800 + int.from_bytes(report[12:16], "big") / 2**32
    assert seconds == pytest.approx(BEGAN / 1e9 + made.ticks(with_report[3]) / 90_000, abs=1e-5)
    assert int.from_bytes(report[16:20], "big") == made.timestamp(with_report[3])
    assert int.from_bytes(report[20:24], "big") == with_report[3]
    assert int.from_bytes(report[24:28], "big") == with_report[3] * PAYLOAD_BYTES


def places_of_reports(made: Plan) -> list[int]:
    """All of them, one after another: before the first packet, then before the first of every five seconds."""
    places: list[int] = []
    while not places or places[-1] < made.count:
        begin = made.ticks(places[-1]) // REPORT_TICKS * REPORT_TICKS + REPORT_TICKS if places else 0
        place = made.due(begin - 1) if places else 0
        if place >= made.count:
            break
        places.append(place)
    return places


_SECOND = 27_000_000
_STEPS = st.lists(
    st.tuples(
        st.sampled_from([188, 188 * 3, PAYLOAD_BYTES, PAYLOAD_BYTES * 9]),
        st.sampled_from([0, _SECOND // 3, _SECOND * 4, REPORT_TICKS * 300, _SECOND * 9, _SECOND * 40]),
    ),
    min_size=1,
    max_size=12,
)


@given(_STEPS, st.integers(0, 100), st.integers(0, 100))
@example([(PAYLOAD_BYTES, _SECOND * 9), (PAYLOAD_BYTES, 0), (PAYLOAD_BYTES * 9, _SECOND * 40)], 0, 100)
def test_reports_stand_where_they_did_also_in_films_with_long_silences(
    steps: list[tuple[int, int]], start: int, stop: int
) -> None:
    """What another server's checkpoint planned must be the same here, byte for byte."""
    offsets, times = ([0, *accumulate(column)] for column in zip(*steps, strict=True))
    media = TransportStream(offsets, times, [])
    stop = min(stop, media.packets)
    made = Plan(media, Playing(7, min(start, stop), stop, 0, 0, BEGAN), "x")
    places = places_of_reports(made)
    assert [packet for packet in range(made.count) if made.has_report(packet)] == places
    for packet in range(made.count + 1):
        assert made.reports_before(packet) == sum(place < packet for place in places)


def test_what_a_request_costs_does_not_grow_with_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is made on the event loop, up to three times per request."""
    seconds = 2 * 3600
    film = TransportStream([n * 10**6 for n in range(seconds + 1)], [n * _SECOND for n in range(seconds + 1)], [])
    looked, ticks = [], TransportStream.ticks
    monkeypatch.setattr(TransportStream, "ticks", lambda self, packet: looked.append(packet) or ticks(self, packet))
    made = Plan(film, Playing(7, 1000, film.packets, 0, 0, BEGAN), "x")
    made.stopped(5000)
    Interleaved(made, (0, 1))
    assert len(looked) < 20


def test_a_report_names_its_source_and_the_last_one_says_good_bye() -> None:
    made = plan(0, 10)
    first, last = made.report(0), made.report(10)
    description = first[28:]
    assert description[:8] == b"\x81\xca\x00\x05\xde\xad\xbe\xef"
    assert description[8:20] == b"\x01\x0a10.0.0.100" and not any(description[20:])
    assert made.has_report(10) and last.endswith(b"\x81\xcb\x00\x01\xde\xad\xbe\xef")
    assert len(last) == len(first) + 8


def test_nothing_to_play_is_a_good_bye() -> None:
    nothing = plan(5, 5)
    assert (nothing.count, nothing.duration, nothing.due(10**9)) == (0, 0, 0)
    assert Interleaved(nothing, (0, 1)).size == 4 + len(nothing.report(0))


# --- interleaved ---
SHORT = Interleaved(plan(0, 2000), (4, 5))
BYTES = SHORT.read(0, SHORT.size + 1, READ)


def test_interleaved_bytes_are_frames_of_the_packets_and_the_reports() -> None:
    made, at, packets, reports = SHORT.plan, 0, [], []
    while at < len(BYTES):
        assert BYTES[at : at + 1] == b"$"
        length = int.from_bytes(BYTES[at + 2 : at + 4], "big")
        (packets if BYTES[at + 1] == 4 else reports).append((len(packets), BYTES[at + 4 : at + 4 + length]))
        assert BYTES[at + 1] in (4, 5)
        at += 4 + length
    assert at == SHORT.size == len(BYTES)
    assert [data for _, data in packets] == [made.packet(number, READ) for number in range(2000)]
    assert reports == [(number, made.report(number)) for number in range(2001) if made.has_report(number)]


@given(st.integers(0, SHORT.size - 1), st.integers(1, 9000))
def test_any_run_of_bytes_can_be_made_alone(offset: int, length: int) -> None:
    assert SHORT.read(offset, length, READ) == BYTES[offset : offset + length]


@given(st.integers(0, SHORT.size))
def test_a_boundary_is_the_first_frame_at_or_after_an_offset(offset: int) -> None:
    group = SHORT.boundary(offset)
    assert group == 2001 or SHORT.offset_of(group) >= offset
    assert group == 0 or SHORT.offset_of(group - 1) < offset
    if offset < SHORT.size:
        inside = SHORT.group_at(offset)
        assert SHORT.offset_of(inside) <= offset and (inside == 2000 or offset < SHORT.offset_of(inside + 1))


def test_bytes_are_released_by_the_clock_and_the_end_with_the_last_of_the_time() -> None:
    assert SHORT.released(-1) == 0
    assert SHORT.released(0) == SHORT.offset_of(1)
    assert SHORT.released(630 * 1000) == SHORT.offset_of(1001)
    assert SHORT.released(SHORT.plan.duration - 1) == SHORT.offset_of(2000)
    assert SHORT.released(SHORT.plan.duration) == SHORT.size


def test_a_file_that_was_cut_short_gives_less_and_nothing_false() -> None:
    cut = DATA[: 100 * PAYLOAD_BYTES + 500]
    offset = SHORT.offset_of(99)
    made = SHORT.read(offset, 100_000, reader(cut))
    assert made[: SHORT.offset_of(100) - offset] == BYTES[offset : SHORT.offset_of(100)]
    assert len(made) < SHORT.offset_of(102) - offset


# --- reading what receivers send ---
def test_reception_reports_are_read() -> None:
    block = (
        (7).to_bytes(4, "big") + b"\x40\xff\xff\xff" + (70_000).to_bytes(4, "big") + (90).to_bytes(4, "big") + bytes(8)
    )
    report = b"\x81\xc9\x00\x07" + bytes(4) + block
    (found,) = rtcp.receptions(report + rtcp.bye(1))
    assert found == rtcp.Reception(7, 64, -1, 70_000, 90)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: b"\x9f\xc9\x00\x10" + rest))
def test_no_report_of_a_receiver_does_harm(data: bytes) -> None:
    assert all(0 <= found.fraction_lost < 256 for found in rtcp.receptions(data))


@given(st.binary(max_size=100))
def test_what_is_no_rtp_is_refused(data: bytes) -> None:
    try:
        packet = RtpPacket.parse(data)
    except RtpMalformed:
        return
    assert len(packet.payload) <= len(data) - HEADER_BYTES


def test_contributing_sources_extension_and_padding_are_skipped() -> None:
    plain = bytearray(header(33, 1, 2, 3, True))
    plain[0] |= 0x31
    data = bytes(plain) + bytes(4) + b"\xbe\xde\x00\x01" + bytes(4) + b"payload" + b"\0\0\3"
    assert RtpPacket.parse(data) == RtpPacket(33, 1, 2, 3, True, b"payload")
