"""The values that RTSP requests carry: URL, Transport, Range (RFC 2326 sections 3.2, 12.39, 12.29)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from dataplane.names import text_of
from dataplane.rtp.packet import CLOCK_RATE
from dataplane.rtsp.message import RtspError

TRACK = "trackID=0"
"""The last part of the URL of the only stream of a presentation."""
LIMIT_TRANSPORTS = 16

_SECONDS = re.compile(r"([0-9]{1,9})(?:\.([0-9]{0,9}))?\Z")
_CLOCK = re.compile(r"([0-9]{1,6}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{0,9})?)\Z")
_PAIR = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_SPECS = {"RTP/AVP": "udp", "RTP/AVP/UDP": "udp", "RTP/AVP/TCP": "tcp"}


@dataclass(frozen=True)
class Target:
    """What a URL names: an object by its identifier, and whether it is its only stream that is meant (`/trackID=0`).
    Every file has one identifier: empty and `.` segments are left out."""

    identifier: str
    track: bool
    base: str
    """The presentation's URL as the client wrote it, without the stream's part and the last slash."""


def target(url: str) -> Target:
    """Raises `RtspError` 400 for what is no URL of a file."""
    try:
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        track = path.endswith("/" + TRACK)
        path = path.removesuffix("/" + TRACK)
        identifier = text_of(unquote_to_bytes(path))
    except ValueError:
        raise RtspError(400, "the URL cannot be understood") from None
    if parts.scheme not in ("rtsp", "") or not identifier.startswith("/"):
        raise RtspError(400, "the URL is not rtsp://HOST/PATH")
    segments = identifier.split("/")
    if "\0" in identifier or ".." in segments:
        raise RtspError(400, "the URL's path is not a file's")
    identifier = "/" + "/".join(segment for segment in segments if segment not in ("", "."))
    base = f"{parts.scheme}://{parts.netloc}{path}" if parts.scheme else path
    return Target(identifier, track, base)


@dataclass(frozen=True)
class Transport:
    """One alternative of a Transport header. `ports` and `channels` as the client proposes them, or None."""

    lower: str
    """`udp` or `tcp`."""
    multicast: bool
    ports: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None
    destination: str | None = None
    play: bool = True


def transports(value: str | None) -> list[Transport]:
    """The alternatives that are RTP, in the client's order of preference.

    Raises `RtspError`: 400 for a malformed header, 461 when nothing in it is RTP over UDP or TCP.
    """
    if value is None or not value.strip():
        raise RtspError(400, "SETUP needs a Transport header")
    listed = value.split(",")
    if len(listed) > LIMIT_TRANSPORTS:
        raise RtspError(400, f"a Transport header has at most {LIMIT_TRANSPORTS} alternatives")
    found = [one for one in (_transport(text) for text in listed) if one is not None]
    if not found:
        raise RtspError(461, "the streams here are RTP/AVP over UDP or TCP")
    return found


def _transport(text: str) -> Transport | None:
    words = [word.strip() for word in text.split(";")]
    lower = _SPECS.get(words[0].upper())
    if lower is None:
        return None
    given: dict[str, str] = {}
    for word in words[1:]:
        name, _, content = word.partition("=")
        given[name.strip().lower()] = content.strip().strip('"')
    # Section 12.39: multicast is the default; but TCP cannot be, and its clients leave the word out.
    multicast = "unicast" not in given and lower == "udp"
    ports = given.get("port" if multicast else "client_port")
    return Transport(
        lower,
        multicast,
        ports=_pair(ports, 1, 65535) if ports is not None else None,
        channels=_pair(given["interleaved"], 0, 255) if "interleaved" in given else None,
        destination=given.get("destination") or None,
        play=given.get("mode", "PLAY").upper() == "PLAY",
    )


def _pair(text: str, low: int, high: int) -> tuple[int, int]:
    """`a-b`, or `a` for a and the next: RTP's and RTCP's."""
    match = _PAIR.match(text)
    first = int(match[1]) if match else -1
    second = int(match[2]) if match and match[2] else first + 1
    if match is None or not low <= first <= high or not low <= second <= high or first == second:
        raise RtspError(400, f"{text!r} in the Transport header is not a pair of numbers from {low} to {high}")
    return first, second


@dataclass(frozen=True)
class Range:
    """Normal play time in ticks of 90 kHz. `start` None: now. `stop` None: the end."""

    start: int | None
    stop: int | None


def parse_range(value: str) -> Range:
    """Raises `RtspError`: 400 for a malformed one, 457 for one that is no range, or in other units than npt."""
    unit, equals, rest = value.partition(";")[0].strip().partition("=")
    if not equals:
        raise RtspError(400, "the Range header is malformed")
    if unit.strip().lower() != "npt":
        raise RtspError(457, "ranges here are in normal play time: npt=")
    begin, dash, end = (text.strip() for text in rest.partition("-"))
    if not dash or not (begin or end):
        raise RtspError(400, "the Range header is malformed")
    start = None if begin == "now" else _time(begin) if begin else 0
    stop = _time(end) if end else None
    if start is not None and stop is not None and stop <= start:
        raise RtspError(457, "the range ends before it begins")
    return Range(start, stop)


def _time(text: str) -> int:
    clock = _CLOCK.match(text)
    hours, minutes, rest = (int(clock[1]), int(clock[2]), clock[3]) if clock else (0, 0, text)
    match = _SECONDS.match(rest)
    if match is None:
        raise RtspError(400, f"{text!r} in the Range header is not a time")
    fraction = match[2] or "0"
    ticks: int = int(fraction) * CLOCK_RATE // 10 ** len(fraction)
    return ((hours * 60 + minutes) * 60 + int(match[1])) * CLOCK_RATE + ticks


def npt(ticks: int) -> str:
    """Seconds, as in a Range header."""
    return f"{ticks / CLOCK_RATE:.3f}"
