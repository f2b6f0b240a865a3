"""Multicast: packets go to the group that the client was told, and a stream is joined by those who listen to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from dataplane.objects import DocumentRoot, OpenObject
from dataplane.rtp.plan import Playing
from dataplane.rtsp.live import LiveSession
from dataplane.rtsp.session import Session, Way
from dataplane.rtsp.station import Station
from tests.unit.builders import document_root
from tests.unit.rtsp_player import FILM, MEDIA


@dataclass
class RecordingPort:
    """`stack.Datagrams`."""

    remote: tuple[str, int]
    sent: list[bytes] = field(default_factory=list)

    def send(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    def close(self) -> None:
        return


class NoTimer:
    def cancel(self) -> None:
        return


class RecordingStream:
    """`stack.Stream` and its bundle, as far as datagrams go."""

    def __init__(self) -> None:
        self.ports: list[RecordingPort] = []
        self.bundle = self

    def datagrams(self, role: str, port: int, remote: tuple[str, int], received: object, *, ttl: int) -> RecordingPort:
        self.ports.append(RecordingPort(remote))
        return self.ports[-1]

    def call_later(self, seconds: float, callback: Callable[[], None]) -> NoTimer:
        return NoTimer()

    def groups(self) -> set[str]:
        """Where something was sent to."""
        return {port.remote[0] for port in self.ports if port.sent}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[DocumentRoot]:
    with document_root(tmp_path, film=FILM) as made:
        (tmp_path / "link.bin").symlink_to("film.bin")
        yield made


def listener(station: Station, opened: OpenObject) -> tuple[LiveSession, RecordingStream]:
    """A session after SETUP."""
    way = Way("multicast", station.group(opened), (5004, 5005), 5004, 16)
    playing = Playing(7, 0, MEDIA.packets, 0, 0, 0)
    session = Session("12345678", opened.ref, "rtsp://vip/film.bin", way, playing, active=True)
    live, stream = LiveSession(station, session, opened, MEDIA), RecordingStream()
    live.open_ports(stream, way)  # type: ignore[arg-type]
    return live, stream


def test_two_names_of_a_file_are_two_groups_and_each_hears_its_own(root: DocumentRoot) -> None:
    station = Station()
    first, to_first = listener(station, root.open("/film.bin"))
    second, to_second = listener(station, root.open("/link.bin"))
    first.start(to_first, "cname")  # type: ignore[arg-type]
    third, to_third = listener(station, root.open("/link.bin"))
    for live, stream in ((second, to_second), (third, to_third)):
        live.start(stream, "cname")  # type: ignore[arg-type]
    assert to_first.groups() == {first.session.way.address}
    assert to_second.groups() == {second.session.way.address} == {third.session.way.address}
    assert to_first.groups() != to_second.groups() and second.sender is third.sender is not first.sender
    assert not to_third.groups(), "one sends for the group"


def test_a_group_is_off_the_air_when_its_last_listener_leaves_whoever_began(root: DocumentRoot) -> None:
    """Who began may have been set up anew meanwhile."""
    station = Station()
    one, stream = listener(station, root.open("/film.bin"))
    two, other = listener(station, root.open("/film.bin"))
    one.start(stream, "cname")  # type: ignore[arg-type]
    two.start(other, "cname")  # type: ignore[arg-type]
    assert one.on_air is two.on_air is two.sender is not None
    one.stop()
    one.session = msgspec.structs.replace(one.session, way=Way("unicast", "10.0.0.7", (6000, 6001), 5004))
    assert two.on_air is two.sender is not None
    two.stop()
    assert two.on_air is None and not station.on_air
