"""URL, Transport and Range as clients send them, and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.rtsp.headers import Range, Target, Transport, npt, parse_range, target, transports
from dataplane.rtsp.message import RtspError

SECOND = 90_000


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("rtsp://vip/clip.ts", Target("/clip.ts", False, "rtsp://vip/clip.ts")),
        ("rtsp://vip:554/clip.ts/", Target("/clip.ts", False, "rtsp://vip:554/clip.ts")),
        ("rtsp://vip/a%20b/clip.ts/trackID=0", Target("/a b/clip.ts", True, "rtsp://vip/a%20b/clip.ts")),
        ("rtsp://[2001:db8::1]:554/clip.ts?x#y", Target("/clip.ts", False, "rtsp://[2001:db8::1]:554/clip.ts")),
        ("rtsp://vip/%e9", Target("/\uefe9", False, "rtsp://vip/%e9")),
        ("/clip.ts", Target("/clip.ts", False, "/clip.ts")),
        ("rtsp://vip//a/.//clip.ts", Target("/a/clip.ts", False, "rtsp://vip//a/.//clip.ts")),
        ("rtsp://vip/%2e/clip.ts", Target("/clip.ts", False, "rtsp://vip/%2e/clip.ts")),
    ],
)
def test_a_url_names_an_object(url: str, meant: Target) -> None:
    assert target(url) == meant


@pytest.mark.parametrize(
    "url",
    [
        "*",
        "http://vip/clip.ts",
        "rtsp://vip",
        "rtsp://[vip/clip.ts",
        "rtsp://vip/a%00b",
        "clip.ts",
        "rtsp://vip/../clip.ts",
        "rtsp://vip/a/%2e%2e/clip.ts",
        "rtsp://vip/a/..",
        "",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(RtspError) as caught:
        target(url)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("RTP/AVP;unicast;client_port=5000-5001", Transport("udp", False, (5000, 5001))),
        ("RTP/AVP/UDP;unicast;client_port=5000", Transport("udp", False, (5000, 5001))),
        ("RTP/AVP/TCP;unicast;interleaved=2-3", Transport("tcp", False, None, (2, 3))),
        ("RTP/AVP/TCP;interleaved=0", Transport("tcp", False, None, (0, 1))),
        ("RTP/AVP;multicast", Transport("udp", True)),
        ("RTP/AVP;port=6000-6001;ttl=9", Transport("udp", True, (6000, 6001))),
        (" rtp/avp ; UNICAST ; Client_Port = 1-2 ", Transport("udp", False, (1, 2))),
        ('RTP/AVP;unicast;client_port=5000;mode="RECORD"', Transport("udp", False, (5000, 5001), play=False)),
        (
            "RTP/AVP;unicast;destination=10.9.9.9;client_port=9",
            Transport("udp", False, (9, 10), destination="10.9.9.9"),
        ),
    ],
)
def test_a_transport_says_how(value: str, meant: Transport) -> None:
    assert transports(value) == [meant]


def test_alternatives_keep_their_order_and_unknown_ones_are_left_out() -> None:
    value = "x-real-rdt/udp;client_port=1, RTP/SAVP;unicast, RTP/AVP/TCP;unicast, RTP/AVP;unicast;client_port=8-9"
    assert [one.lower for one in transports(value)] == ["tcp", "udp"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, 400),
        (" ", 400),
        ("RTP/SAVP;unicast;client_port=1-2", 461),
        ("RTP/AVP;unicast;client_port=x", 400),
        ("RTP/AVP;unicast;client_port=0-1", 400),
        ("RTP/AVP;unicast;client_port=65535", 400),
        ("RTP/AVP;unicast;client_port=5-5", 400),
        ("RTP/AVP/TCP;interleaved=255", 400),
        ("RTP/AVP/TCP;interleaved=1-2-3", 400),
        (",".join(["RTP/AVP"] * 17), 400),
    ],
)
def test_a_transport_that_is_none(value: str | None, status: int) -> None:
    with pytest.raises(RtspError) as caught:
        transports(value)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("npt=0-", Range(0, None)),
        ("npt=0.000-", Range(0, None)),
        ("npt=now-", Range(None, None)),
        ("npt=10.5-20", Range(945_000, 1_800_000)),
        ("npt=-20", Range(0, 1_800_000)),
        ("npt=1:02:03.25-", Range(3723 * SECOND + SECOND // 4, None)),
        ("npt=5-;time=19970123T143720Z", Range(450_000, None)),
        ("NPT = 7. - 8", Range(630_000, 720_000)),
    ],
)
def test_a_range_is_in_normal_play_time(value: str, meant: Range) -> None:
    assert parse_range(value) == meant


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("npt", 400),
        ("npt=", 400),
        ("npt=-", 400),
        ("npt=5", 400),
        ("npt=x-", 400),
        ("npt=1e3-", 400),
        ("npt=9999999999-", 400),
        ("npt=1:60:00-", 400),
        ("npt=5-4", 457),
        ("npt=5-5", 457),
        ("smpte=0:10:20-", 457),
        ("clock=19961108T142300Z-", 457),
    ],
)
def test_a_range_that_is_none(value: str, status: int) -> None:
    with pytest.raises(RtspError) as caught:
        parse_range(value)
    assert caught.value.status == status


@given(st.integers(0, 10**6 * SECOND))
def test_what_is_said_of_a_time_is_read_again(ticks: int) -> None:
    start = parse_range(f"npt={npt(ticks)}-").start
    assert start is not None and abs(start - ticks) <= 45


@given(st.text(max_size=80) | st.text("npt=0123456789:.-now;", max_size=30))
def test_no_header_does_more_than_be_refused(value: str) -> None:
    for read in (parse_range, transports, target):
        try:
            read(value)
        except RtspError as error:
            assert error.status in (400, 457, 461)


@given(st.text("RTP/AVPTCUD;=-,unicastmlerv_o0123456789 ", max_size=60).map(lambda rest: "RTP/AVP;" + rest))
def test_no_transport_does_either(value: str) -> None:
    try:
        assert all(one.lower in ("udp", "tcp") for one in transports(value))
    except RtspError as error:
        assert error.status in (400, 461)
