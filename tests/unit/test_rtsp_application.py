"""RTSP over this machine's loopback: real sockets, no switch; and a backup that goes on from any checkpoint."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from dataplane.datagrams import UdpPart
from dataplane.objects import OBJECT_DIFFERS, OBJECT_MISSING, DocumentRoot
from dataplane.rtp.plan import Plan, Playing
from dataplane.rtsp import RTSP, protocol
from dataplane.rtsp.protocol import RtspSection
from dataplane.rtsp.sending import TICK_SECONDS, MediaClock, Outlet, UdpSender
from dataplane.stream import ByteStream
from state.datablock import DataBlock
from state.sections import STREAM, StreamSection
from tests.unit.builders import ISS, document_root, proof
from tests.unit.live import live
from tests.unit.rtsp_player import (
    FILM,
    LONG_FILM,
    MEDIA,
    TCP,
    URL,
    Player,
    Ports,
    assert_in_a_row,
    free_pair,
    payload,
    player,
    rtsp_host,
)
from tests.unit.transport_streams import reader


# --- inside the connection ---
def test_a_film_comes_whole_inside_the_connection_at_its_own_pace(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            status, headers, body = await one.ask("DESCRIBE")
            assert (status, headers["Content-Base"]) == (200, f"{URL}/") and b"a=range:npt=0-0.500" in body
            await one.setup()
            began = time.monotonic()
            status, headers, _ = await one.ask("PLAY", Range="npt=0-")
            assert status == 200
            await one.take_to_the_end()
            assert time.monotonic() - began > 0.45
            assert payload(one.packets) == FILM
            assert_in_a_row(one.packets)
            assert f";seq={one.packets[0].seq};rtptime={one.packets[0].timestamp}" in headers["RTP-Info"]
            assert [channel for channel, _ in one.frames].count(1) == 2
            # Nothing per packet: PLAY and its acknowledgements, and what the file's digest brought.
            assert len(one.made.host.checkpoints) < 12

    asyncio.run(run())


def test_a_response_comes_between_two_packets(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.setup()
            await one.ask("PLAY")
            for _ in range(5):
                await one.take(7)
                assert (await one.ask("GET_PARAMETER"))[0] == 200
            await one.made.say(one.request("OPTIONS") + one.request("BREW"))
            assert [(await one.response())[0], (await one.response())[0]] == [200, 501]
            await one.take_to_the_end()
            assert payload(one.packets) == FILM

    asyncio.run(run())


def test_a_pause_and_what_follows_it_lose_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.setup()
            await one.ask("PLAY")
            for _ in range(3):
                await one.take(10)
                assert (await one.ask("PAUSE"))[0] == 200
                stood = len(one.frames)
                assert (await one.ask("GET_PARAMETER"))[0] == 200
                assert len(one.frames) == stood
                assert (await one.ask("PLAY"))[0] == 200
            await one.take_to_the_end()
            assert payload(one.packets) == FILM
            assert_in_a_row(one.packets)
            assert (await one.ask("PAUSE"))[0] == 200, "it has ended by itself"
            assert (await one.ask("PLAY", Range="npt=0.4-"))[0] == 200
            await one.take(3)
            assert_in_a_row(one.packets)
            assert (await one.ask("TEARDOWN"))[0] == 200
            assert (await one.ask("PLAY"))[0] == 454

    asyncio.run(run())


def test_reports_inside_the_connection_are_read_and_nothing_else_happens(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.setup()
            await one.made.say(b"$\x01\x00\x08\x80\xc9\0\1\0\0\0\7" + one.request("OPTIONS"))
            assert (await one.response())[0] == 200

    asyncio.run(run())


# --- as datagrams ---
def test_a_film_comes_whole_as_datagrams_with_reports_beside(tmp_path: Path) -> None:
    async def run() -> None:
        ports = Ports()
        async with player(tmp_path) as one:
            await one.setup(ports.transport)
            status, headers, _ = await one.ask("PLAY")
            assert status == 200
            packets = [await ports.packet() for _ in range(MEDIA.packets)]
            assert payload(packets) == FILM
            assert_in_a_row(packets)
            assert f";seq={packets[0].seq};rtptime={packets[0].timestamp}" in headers["RTP-Info"]
            first, last = await ports.report(), await ports.report()
            assert first[:2] == b"\x80\xc8" and last.endswith(b"\x81\xcb\0\1" + packets[0].ssrc.to_bytes(4, "big"))
            assert int.from_bytes(last[20:24], "big") == MEDIA.packets
            assert int.from_bytes(last[24:28], "big") == len(FILM)
            ports.close()

    asyncio.run(run())


def test_two_sessions_of_one_connection_go_their_own_ways(tmp_path: Path) -> None:
    async def run() -> None:
        ports = Ports()
        async with player(tmp_path) as one:
            await one.setup(ports.transport)
            assert (await one.ask("PLAY"))[0] == 200
            first, one.session = one.session, ""
            await one.setup(TCP)
            assert one.session != first
            status, _, _ = await one.ask("SETUP", Session="none-such-session", Transport=TCP)
            assert status == 454
            assert (await one.ask("PLAY"))[0] == 200
            assert (await one.ask("PAUSE", Session=first))[0] == 200
            one.session = first
            assert (await one.ask("TEARDOWN"))[0] == 200
            await one.take_to_the_end()
            assert payload(one.packets) == FILM
            ports.close()

    asyncio.run(run())


def test_ports_that_cannot_be_had_are_an_unsupported_transport(tmp_path: Path) -> None:
    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1] & ~1
            async with player(tmp_path, port) as one:
                status, _, _ = await one.ask("SETUP", Transport="RTP/AVP;unicast;client_port=7000-7001")
                assert status == 461
                assert (await one.ask("SETUP", Transport=TCP))[0] == 200

    asyncio.run(run())


def test_of_many_who_listen_one_sends_and_another_goes_on() -> None:
    """Two outlets of one sender, as of two sessions with one group; each has its own address, to tell them apart."""

    async def run() -> None:
        first, second, here = Ports(), Ports(), free_pair()
        plan, loop = Plan(MEDIA, _playing(), "x"), asyncio.get_running_loop()
        over: list[str] = []
        sender = UdpSender(plan, MediaClock(), reader(FILM), over=lambda: over.append("over"))
        outlets = []
        for ports, name in ((first, "first"), (second, "second")):
            sockets = [
                UdpPart("127.0.0.1", here + n, ("127.0.0.1", ports.port + n), _ignore, _ignore, ttl=1, interface=0)
                for n in (0, 1)
            ]
            outlets.append(Outlet(loop, sockets[0], sockets[1], lambda name=name: over.append(name)))  # type: ignore
            sender.join(outlets[-1])
        packets = [await first.packet() for _ in range(20)]
        sender.leave(outlets[0])
        packets += [await second.packet() for _ in range(MEDIA.packets - 20)]
        assert payload(packets) == FILM
        assert_in_a_row(packets)
        await second.report()
        assert over == ["over", "second"]
        with pytest.raises(BlockingIOError):
            first.socks[0].recv(2000)
        for each in (first, second, *(outlet.rtp for outlet in outlets), *(outlet.rtcp for outlet in outlets)):
            each.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def _ignore(*_: object) -> None:
    """Nothing is expected."""


# --- what is not to be had ---
def test_who_goes_on_sends_the_first_packet_when_it_is_due_and_later_ones_in_ticks() -> None:
    """A takeover's silence is not lengthened by a tick; a packet a millisecond does not need a timer each."""

    class Waits:
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def call_later(self, seconds: float, callback: object) -> Waits:
            self.seconds.append(seconds)
            return self

        def send(self, data: bytes) -> None:
            pass

        def cancel(self) -> None:
            pass

    stream = Waits()
    plan = Plan(MEDIA, _playing(), "cname")
    first = next(number for number in range(plan.count) if plan.ticks(number) > 0)
    before_ns = plan.ticks(first) * 10**9 // 90_000 - 1_000_000  # a millisecond before it is due
    sender = UdpSender(plan, MediaClock(before_ns), reader(FILM), first)
    sender.join(Outlet(stream, stream, stream, lambda: None))  # type: ignore[arg-type]
    assert 0 <= stream.seconds[0] <= 0.001
    sender._tick()
    assert stream.seconds[1] >= TICK_SECONDS


def test_files_that_are_not_there_or_no_films_have_their_statuses(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            assert (await one.ask("DESCRIBE", "rtsp://vip/none.ts"))[0] == 404
            assert (await one.ask("DESCRIBE", "rtsp://vip/text.bin"))[0] == 415
            assert (await one.ask("SETUP", "rtsp://vip/text.bin", Transport=TCP))[0] == 415
            assert (await one.ask("DESCRIBE", "rtsp://vip/%2e%2e/film.bin"))[0] == 400
            assert (await one.ask("OPTIONS", "*"))[0] == 200
            assert all(opened.users == 0 for opened in one.made.host.root._open.values())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n", 400), (b"OPTIONS * RTSP/3.0\r\n\r\n", 505), (b"$\0\xff\xff", 413)],
)
def test_input_that_cannot_be_understood_is_answered_and_closed(tmp_path: Path, sent: bytes, status: int) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.made.say(sent + b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
            answer = await one.made.hear_all()
            assert answer.startswith(b"RTSP/1.0 %d " % status) and answer.count(b"Server: ") == 1

    asyncio.run(run())


def test_many_requests_at_once_are_all_answered(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.made.say(b"".join(one.request("DESCRIBE") for _ in range(60)))
            assert [(await one.response())[0] for _ in range(60)] == [200] * 60

    asyncio.run(run())


def test_a_client_that_leaves_ends_its_sessions(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.setup()
            await one.ask("PLAY")
            await one.take(5)
            one.made.client.shutdown(socket.SHUT_WR)
            rest = await one.made.hear_all()
            assert len(rest) < len(FILM) // 2
            assert not one.made.host.root._open or all(o.users <= 1 for o in one.made.host.root._open.values())

    asyncio.run(run())


def test_silence_ends_a_session_and_then_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "TIMEOUT", 0.4)
    monkeypatch.setattr(protocol, "REFRESH_SECONDS", 0.02)

    async def run() -> None:
        ports = Ports()
        async with player(tmp_path, film=LONG_FILM) as one:
            await one.setup(ports.transport)
            await one.ask("PLAY")
            began = time.monotonic()
            while time.monotonic() - began < 0.9:  # its reports keep it
                await ports.packet()
                ports.socks[1].sendto(b"\x80\xc9\0\1\0\0\0\7", ("127.0.0.1", one.made.host.service.data_ports[0].last))
            assert (await one.ask("GET_PARAMETER"))[0] == 200
            assert await one.made.hear_all() == b""
            reports = [await ports.report(), await ports.report()]
            assert b"\x81\xcb\0\1" not in reports[0] and b"\x81\xcb\0\1" in reports[1], "and it is told"
            ports.close()

    asyncio.run(run())


# --- a backup ---
def test_the_clock_of_a_checkpoint_goes_on_and_never_back() -> None:
    second = 10**9
    wall, here = time.time_ns(), time.monotonic_ns()
    taken = MediaClock.taken_over(5 * second, wall - 2 * second, here - second)
    assert 7 * second <= taken.now_ns < 8 * second
    slow = MediaClock.taken_over(5 * second, wall + 3600 * second, here - second)
    assert 6 * second <= slow.now_ns < 7 * second, "this server's wall clock is an hour behind the owner's"
    assert abs(MediaClock(second).ticks - 90_000) < 9000


def test_over_udp_the_heir_goes_on_by_the_clock(tmp_path: Path) -> None:
    """From any of its checkpoints, with the same source, numbers and times; what was due meanwhile is left out."""

    async def run() -> None:
        ports = Ports()
        async with player(tmp_path, film=LONG_FILM) as one:
            await one.setup(ports.transport)
            await one.ask("PLAY")
            before = [await ports.packet() for _ in range(20)]
            block = one.made.host.checkpoints[-1]
        stopped, packets = time.monotonic(), -(-len(LONG_FILM) // 1316)
        with document_root(tmp_path, film=LONG_FILM) as root:
            host = rtsp_host(root, free_pair())
            section = block.section(STREAM, StreamSection)
            application = RTSP.unready(root, DataBlock.decode(block.encode()))
            stream = ByteStream.resumed(ISS, section, proof(section.end))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    late = await ports.packet()
                    while late.seq == (before[-1].seq + 1) % 2**16:  # one may have been on its way
                        before.append(late)
                        late = await ports.packet()
            async with live(root, application, stream, host=host) as made:
                made.connection.resume(section.end)
                silence = time.monotonic() - stopped
                after = [await ports.packet()]
                while (after[-1].seq - before[0].seq) % 2**16 < packets - 1:
                    after.append(await ports.packet())
                assert_in_a_row(after)
                gap = (after[0].timestamp - before[-1].timestamp) % 2**32 / 90_000
                assert silence <= gap < silence + 1
                assert after[0].ssrc == before[0].ssrc
                first = (after[0].seq - before[0].seq) % 2**16
                assert payload(after) == LONG_FILM[first * 1316 :]
        ports.close()

    asyncio.run(run())


def test_a_film_that_differs_or_is_not_there_ends_the_connection(tmp_path: Path) -> None:
    async def run() -> DataBlock:
        ports = Ports()
        async with player(tmp_path) as one:
            await one.setup(ports.transport)
            await one.ask("PLAY")
            ports.close()
            return one.made.host.checkpoints[-1]

    async def resumed(folder: Path, block: DataBlock, films: dict[str, bytes], reason: str | None) -> None:
        with document_root(folder, **films) as root:
            section = block.section(STREAM, StreamSection)
            stream = ByteStream.resumed(ISS, section, proof(section.end))
            application = RTSP.unready(root, block)
            assert application.obstacle() == reason
            async with live(root, application, stream, host=rtsp_host(root, free_pair())) as made:
                made.connection.resume(section.end)
                with pytest.raises(ConnectionResetError):
                    await made.hear_all()

    block = asyncio.run(run())
    others: list[tuple[str, dict[str, bytes], str | None]] = [
        ("none", {}, OBJECT_MISSING),
        ("other", {"film": FILM[:-188]}, OBJECT_DIFFERS),
        ("no", {"film": b"x" * len(FILM)}, None),  # known only when its digest or its table is
    ]
    for name, films, reason in others:
        folder = tmp_path / name
        folder.mkdir()
        asyncio.run(resumed(folder, block, films, reason))


def test_a_copy_of_another_time_is_the_same_film_once_its_digest_is_known(tmp_path: Path) -> None:
    """It is learned after SETUP, and a checkpoint says so at once, by which the heir knows its own copy."""

    async def owner() -> DataBlock:
        async with player(tmp_path) as one:
            is_set_up = threading.Event()
            one.made.host.root._thread.submit(is_set_up.wait)  # digests come after it
            await one.setup("RTP/AVP;unicast;client_port=50000-50001")
            is_set_up.set()
            while True:
                block = one.made.host.checkpoints[-1]
                if any(session.object.digest for session in block.section(protocol.NAME, RtspSection).sessions):
                    return block
                await asyncio.sleep(0)

    block = asyncio.run(owner())
    folder = tmp_path / "heir"
    folder.mkdir()
    with document_root(folder, film=FILM) as root:
        os.utime(folder / "film.bin", ns=(1, 1))
        asyncio.run(root.index())
        assert asyncio.run(_obstacle(root, block)) is None


async def _obstacle(root: DocumentRoot, block: DataBlock) -> str | None:
    return RTSP.unready(root, block).obstacle()


def _playing() -> Playing:
    return Playing(7, 0, MEDIA.packets, 65_500, 2**32 - 5000, time.time_ns())


class Life:
    """What one player heard, byte by byte, and every checkpoint of it."""

    def __init__(self) -> None:
        self.bytes = b""
        self.checkpoints: list[DataBlock] = []


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Interleaved, with a pause, a question in between and two runs."""
    made = Life()

    async def run() -> None:
        async with player(tmp_path_factory.mktemp("life")) as one:

            async def more() -> bytes:
                data = await Player._more(one)
                made.bytes += data
                return data

            one._more = more  # type: ignore[method-assign]
            await one.setup()
            await one.ask("PLAY")
            await one.take(20)
            await one.ask("GET_PARAMETER")
            await one.take(15)
            await one.ask("PAUSE")
            await one.ask("PLAY")
            await one.take(10)
            await one.ask("OPTIONS")
            await one.take_to_the_end()
            made.checkpoints = one.made.host.checkpoints

    asyncio.run(run())
    return made


@pytest.mark.parametrize("seed", range(30))
def test_the_heir_sends_exactly_the_bytes_that_the_client_does_not_have(life: Life, tmp_path: Path, seed: int) -> None:
    """Any checkpoint, and any byte up to which the client may have come when it was the last one stored."""
    choice = random.Random(seed)
    number = choice.randrange(len(life.checkpoints))
    block = DataBlock.decode(life.checkpoints[number].encode())
    section = block.section(STREAM, StreamSection)
    # Up to where the old owner can have sent before it planned otherwise: the next checkpoint tells.
    later = [DataBlock.decode(each.encode()).section(STREAM, StreamSection) for each in life.checkpoints[number:]]
    same = [each for each in later if each.received == section.received]
    position = choice.randint(section.acked, min(same[-1].sent, section.end))

    async def run() -> bytes:
        with document_root(tmp_path, film=FILM) as root:
            application = RTSP.unready(root, block)
            stream = ByteStream.resumed(ISS, section, proof(position))
            objects = [application.generate(ref) for ref in section.objects]
            host = rtsp_host(root, free_pair())
            async with live(root, application, stream, host=host, objects=objects) as made:
                made.connection.resume(position)
                one = Player(made)
                await asyncio.sleep(0)
                heard = b""
                while len(heard) < section.end - position:
                    heard += await one._more()
                return heard

    heard = asyncio.run(run())
    # What was said later (answers to later requests) shifts what the heir, which never heard them, goes on with.
    # What was planned after this checkpoint (an answer that took time) is no part of what it plans.
    known = min(same[-1].sent, section.end)
    assert heard[: known - position] == life.bytes[position:known]
    assert len(heard) == section.end - position
