"""Transport streams: which packet carries the clock, and when every byte is due."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.rtp.media import MediaRefused
from dataplane.rtp.mpegts import PAYLOAD_BYTES, TransportStream, clock_pid, parse_pcr, scan, timetable
from tests.unit.transport_streams import OTHER, PACKET, VIDEO, clocked, file_reader, plain, reader, steady, tables
from topologies import objects

WRAP = 1 << 33


def index(data: bytes) -> TransportStream:
    return TransportStream.index(reader(data), len(data))


def test_a_clock_reference_is_read_to_the_27_mhz() -> None:
    found = parse_pcr(clocked(WRAP - 1, extension=299, flags=0xC0), 376)
    assert found is not None
    pid, pcr = found
    assert (pid, pcr.offset, pcr.clock) == (VIDEO, 376, (WRAP - 1) * 300 + 299)
    assert pcr.discontinuity and pcr.random_access


def test_a_payload_that_looks_like_a_clock_is_none() -> None:
    assert parse_pcr(plain(fill=0x50), 0) is None


def test_a_damaged_packet_has_no_clock() -> None:
    assert parse_pcr(clocked(5, damaged=True), 0) is None


def test_between_clocks_the_rate_is_constant() -> None:
    stream = index(steady(71, ticks_per_packet=90))
    # The first packet of RTP packet n is packet 7 n of the stream.
    assert [stream.ticks(number) for number in range(4)] == [0, 630, 1260, 1890]
    assert stream.packets == 11
    assert stream.ticks(11) == 71 * 90, "the duration goes on at the last known rate"


def test_time_goes_on_where_the_clock_wraps() -> None:
    assert _times(steady(80, start=WRAP - 1234)) == _times(steady(80))


def _times(data: bytes) -> list[int]:
    stream = index(data)
    return [stream.ticks(number) for number in range(stream.packets + 1)]


@pytest.mark.parametrize("jump", [-500_000, 20 * 90_000, WRAP // 2])
def test_time_goes_on_at_the_rate_of_before_where_the_clock_jumps(jump: int) -> None:
    joined = steady(70) + steady(70, start=(70 * 90 + jump) % WRAP)
    assert _times(joined) == _times(steady(140))


def test_a_clock_that_says_that_it_jumps_is_believed_although_it_could_have_gone_on() -> None:
    joined = steady(70) + clocked(70 * 90 + 9 * 90_000, flags=0x80) + steady(69, start=71 * 90 + 9 * 90_000)
    assert index(joined).ticks(20) == 20 * 630


def test_a_jump_before_any_rate_is_known_takes_the_rate_that_follows() -> None:
    stream = index(clocked(WRAP // 2) + plain() * 9 + steady(130))
    assert stream.ticks(1) == 630
    assert stream.ticks(20) == 20 * 630


def test_what_comes_before_the_first_clock_has_its_rate() -> None:
    stream = index(plain() * 7 + steady(70))
    assert [stream.ticks(number) for number in range(3)] == [0, 630, 1260]


def test_the_program_map_names_the_clock_even_if_another_has_more() -> None:
    wrong = b"".join(clocked(number * 10, OTHER) for number in range(20))
    data = tables(VIDEO) + wrong + steady(22)
    assert clock_pid(data) == VIDEO
    stream = index(data)
    assert stream.ticks(stream.packets) == 44 * 90


def test_without_tables_the_clock_that_comes_most_often_is_taken() -> None:
    data = b"".join(clocked(number * 10, OTHER) + plain() for number in range(3)) + steady(210)
    references, named = scan(reader(data), len(data))
    assert (named, set(references)) == (None, {VIDEO, OTHER})
    assert index(data).ticks(10) == 10 * 630


def test_a_map_that_names_a_pid_without_clock_is_not_believed() -> None:
    assert index(tables(0x1FFF) + steady(70)).ticks(1) == 630


def test_a_decoder_begins_at_the_last_random_access_point_before_the_time() -> None:
    key = PAYLOAD_BYTES // PACKET * 3  # the first packet of RTP packet 3
    data = steady(70)
    data = data[: key * PACKET] + clocked(key * 90, flags=0x40) + data[(key + 1) * PACKET :]
    stream = index(data)
    assert stream.entry(5 * 630 + 7) == 3
    assert stream.entry(3 * 630) == 3
    assert stream.entry(2 * 630 + 1) == 2, "no such point before: the very packet"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x47" * 187,
        b"RIFF" + bytes(4000),
        plain() * 20,
        clocked(1) + plain() * 20,
        (clocked(7) + plain()) * 20,
        steady(20) + b"\0" * PACKET + steady(20),
        b"".join(clocked(number * 11 * 90_000) for number in range(30)),
    ],
    ids=["empty", "short", "other", "clockless", "one clock", "a clock that stands", "a hole", "only jumps"],
)
def test_what_is_no_stream_that_can_be_paced_is_refused(data: bytes) -> None:
    with pytest.raises(MediaRefused):
        index(data)


def test_a_file_that_ends_within_a_packet_is_played_to_its_last_whole_one() -> None:
    data = steady(15)
    stream = index(data + b"\x47" * 100)
    assert stream.packets == 3
    assert stream.payload(2, reader(data)) == data[14 * PACKET :]
    assert stream.size_before(3) == 15 * PACKET


@given(
    st.lists(
        st.tuples(st.sampled_from([VIDEO, OTHER]), st.integers(0, WRAP - 1), st.integers(0, 3), st.booleans()),
        max_size=40,
    )
)
def test_times_never_fall_whatever_the_clocks_say(clocks: list[tuple[int, int, int, bool]]) -> None:
    data = b"".join(clocked(c, pid, flags=0x80 if cut else 0) + plain() * more for pid, c, more, cut in clocks)
    try:
        stream = index(data)
    except MediaRefused:
        return
    times = [stream.ticks(number) for number in range(stream.packets + 1)]
    assert times == sorted(times) and times[0] == 0
    for ticks in {0, times[-1], *times, *(t + 1 for t in times)}:
        assert stream.due(ticks) == sum(t <= ticks for t in times[:-1])
        assert 0 <= stream.entry(ticks) < stream.packets


_STREAMS = st.lists(st.binary(min_size=PACKET - 1, max_size=PACKET - 1)).map(
    lambda parts: b"".join(b"\x47" + part for part in parts)
)


@given(st.binary(max_size=5 * PACKET) | _STREAMS)
def test_no_file_does_more_than_be_refused(data: bytes) -> None:
    try:
        stream = index(data)
    except MediaRefused:
        return
    assert (
        b"".join(stream.payload(n, reader(data)) for n in range(stream.packets))
        == data[: stream.size_before(stream.packets)]
    )


@given(st.binary(max_size=600))
def test_no_chunk_breaks_the_reading_of_tables(data: bytes) -> None:
    padded = data.ljust(-(-len(data) // PACKET) * PACKET, b"\xff")
    assert clock_pid(padded) is None or 0 <= (clock_pid(padded) or 0) <= 0x1FFF


def test_a_real_clip_has_the_times_that_ffprobe_gives_it(tmp_path: Path) -> None:
    clip = tmp_path / "clip.ts"
    objects.make_clip(clip, seconds=6)
    size = clip.stat().st_size
    stream = TransportStream.index(file_reader(clip), size)
    assert stream.size_before(stream.packets) == size
    assert 5.5 * 90_000 < stream.ticks(stream.packets) < 6.8 * 90_000
    # A frame's bytes are there, by the clock, before the frame is to be shown; not long before.
    asked = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v",
        "-show_entries",
        "packet=pos,dts",
        "-of",
        "json",
        str(clip),
    ]
    packets = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)["packets"]
    assert len(packets) == 150
    references, named = scan(file_reader(clip), size)
    assert named is not None
    first = references[named][0].clock // 300
    for packet in packets:
        arrives = stream.ticks(int(packet["pos"]) // PAYLOAD_BYTES)
        shown = packet["dts"] - first
        assert arrives <= shown < arrives + 2 * 90_000


def test_a_clip_has_the_same_bytes_whenever_it_is_made(tmp_path: Path) -> None:
    objects.make_clip(tmp_path / "a.ts", seconds=1)
    objects.make_clip(tmp_path / "b.ts", seconds=1)
    assert (tmp_path / "a.ts").read_bytes() == (tmp_path / "b.ts").read_bytes()


def test_offsets_of_a_timetable_rise_and_end_at_the_size() -> None:
    references, _ = scan(reader(steady(25)), 25 * PACKET)
    offsets, times = timetable(references[VIDEO], 25 * PACKET)
    assert offsets == [0, 10 * PACKET, 20 * PACKET, 25 * PACKET]
    assert times == [0, 270_000, 540_000, 675_000]
