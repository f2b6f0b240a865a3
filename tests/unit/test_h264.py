"""H.264 byte streams as RTP: what is sent, put together again, is the file's NAL units; pictures have their times."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.rtp.h264 import LARGEST_PAYLOAD, ByteStreamH264, nal_units, parse_sps
from dataplane.rtp.media import MediaRefused
from dataplane.rtp.packet import RtpPacket
from dataplane.rtp.plan import Plan, Playing
from dataplane.rtsp.station import index
from tests.unit.transport_streams import reader


def encoded(folder: Path, *options: str) -> bytes:
    """Two seconds of ffmpeg's test source at 30 pictures a second, with a key picture each half second."""
    path = folder / "film.h264"
    source = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=30:duration=2"]
    coder = ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "1", "-g", "15", "-pix_fmt", "yuv420p", *options]
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", *source, *coder, "-y", str(path)], check=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoded(tmp_path_factory.mktemp("film"), "-bf", "0")


def depacketised(packets: list[RtpPacket]) -> list[bytes]:
    """NAL units of single packets and FU-A fragments, as RFC 6184 says in section 5."""
    units: list[bytes] = []
    for packet in packets:
        kind = packet.payload[0] & 0x1F
        if kind != 28:
            assert 1 <= kind <= 23
            units.append(packet.payload)
            continue
        indicator, head = packet.payload[0], packet.payload[1]
        if head & 0x80:
            assert not head & 0x40
            units.append(bytes([indicator & 0xE0 | head & 0x1F]))
        units[-1] += packet.payload[2:]
    return units


def test_all_nal_units_arrive_in_packets_that_fit(film: bytes) -> None:
    media = ByteStreamH264.index(reader(film), len(film))
    plan = Plan(media, Playing(9, 0, media.packets, 5, 6, 0), "x")
    packets = [RtpPacket.parse(plan.packet(number, reader(film))) for number in range(plan.count)]
    assert all(len(packet.payload) <= LARGEST_PAYLOAD and packet.payload_type == 96 for packet in packets)
    units = [film[offset : offset + length] for offset, length, _ in nal_units(reader(film), len(film))]
    assert len(units) > 60 and any(len(unit) > LARGEST_PAYLOAD for unit in units)
    assert depacketised(packets) == units
    assert plan.sent_before(plan.count)[1] == sum(len(packet.payload) for packet in packets)


def test_pictures_have_their_times_and_end_with_a_marker(film: bytes) -> None:
    media = ByteStreamH264.index(reader(film), len(film))
    assert media.ticks(media.packets) == 2 * 90_000
    ends = [number for number in range(media.packets) if media.marker(number)]
    assert [media.ticks(number) for number in ends] == [picture * 3000 for picture in range(60)]
    assert media.due(2999) == ends[0] + 1 and media.due(3000) == ends[1] + 1


def test_a_decoder_begins_with_parameter_sets_and_a_key_picture(film: bytes) -> None:
    media = ByteStreamH264.index(reader(film), len(film))
    entry = media.entry(100_000)
    assert media.ticks(entry) == 90_000
    kinds = [media.payload(number, reader(film))[0] & 0x1F for number in range(entry, entry + 3)]
    assert kinds[:2] == [7, 8]


def test_a_description_has_what_a_decoder_needs(film: bytes) -> None:
    media = index(reader(film), len(film))
    assert isinstance(media, ByteStreamH264)
    given = dict(each.split("=", 1) for each in media.parameters.split(";"))
    sps, pps = (base64.b64decode(each) for each in given["sprop-parameter-sets"].split(","))
    assert (sps[0] & 0x1F, pps[0] & 0x1F, given["packetization-mode"]) == (7, 8, "1")
    assert given["profile-level-id"] == sps[1:4].hex().upper() == "42C00D"


def test_a_rate_of_a_film_is_read(tmp_path: Path) -> None:
    film = encoded(tmp_path, "-bf", "0", "-r", "30000/1001")
    media = ByteStreamH264.index(reader(film), len(film))
    assert media.ticks(media.due(3003) - 1) == 3003


@pytest.mark.parametrize(
    "options",
    [("-bf", "2", "-profile:v", "main"), ("-x264-params", "interlaced=1", "-bf", "0", "-profile:v", "main")],
    ids=["B pictures", "interlaced"],
)
def test_pictures_in_another_order_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    film = encoded(tmp_path, *options)
    with pytest.raises(MediaRefused):
        ByteStreamH264.index(reader(film), len(film))


def test_high_profiles_are_read_to_the_end(tmp_path: Path) -> None:
    film = encoded(tmp_path, "-profile:v", "high", "-bf", "0", "-preset", "medium")
    media = ByteStreamH264.index(reader(film), len(film))
    assert media.ticks(media.packets) == 180_000


@pytest.mark.parametrize(
    "data", [b"\0\0\1", b"\0\0\0\1\x65\x88", b"\0\0\1\x67\x42", b"\0\0\1\x67\x42\xc0\x0d", b"\0" * 100, b"\0\0\1" * 50]
)
def test_what_is_no_film_is_refused(data: bytes) -> None:
    with pytest.raises(MediaRefused):
        index(reader(data), len(data))


def test_units_are_found_across_the_pieces_in_which_a_file_is_read() -> None:
    piece = 1 << 20
    for place in range(piece - 5, piece + 2):
        data = b"\0\0\1\x67" + b"\xff" * (place - 4) + b"\0\0\0\1\x68abc\0\0\0"
        units = [data[offset : offset + length] for offset, length, _ in nal_units(reader(data), len(data))]
        assert units == [b"\x67" + b"\xff" * (place - 4), b"\x68abc"]


@given(st.binary(max_size=400).map(lambda data: b"\0\0\1" + data))
def test_no_file_does_more_than_be_refused(data: bytes) -> None:
    try:
        media = index(reader(data), len(data))
    except MediaRefused:
        return
    assert media.packets > 0


@given(st.integers(0, 300), st.integers(0, 255))
def test_damage_does_no_more_either(film: bytes, place: int, value: int) -> None:
    damaged = film[:place] + bytes([value]) + film[place + 1 : 20_000]
    try:
        media = index(reader(damaged), len(damaged))
    except MediaRefused:
        return
    times = [media.ticks(number) for number in range(media.packets + 1)]
    assert times == sorted(times)
    assert all(len(media.payload(number, reader(damaged))) for number in range(media.packets))


@given(st.binary(max_size=60))
def test_no_parameter_set_does_more_than_be_refused(data: bytes) -> None:
    try:
        parameters = parse_sps(b"\x67" + data)
    except MediaRefused:
        return
    assert parameters.rate is None or parameters.rate[0] > 0
