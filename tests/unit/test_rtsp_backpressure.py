"""Clients that ask for much and read nothing: what waits for them stays bounded, and every request has its response."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from dataplane.rtsp import RTSP
from dataplane.rtsp.message import LIMIT_BODY, LIMIT_HEAD, LIMIT_URL
from dataplane.rtsp.protocol import LIMIT_SESSIONS
from dataplane.stream import ByteStream
from state.datablock import LIMIT_BYTES, DataBlock
from state.sections import STREAM, StreamSection
from tests.unit.builders import ISS, document_root, proof
from tests.unit.live import Live, live
from tests.unit.rtsp_player import FILM, LONG_FILM, TCP, Player, assert_in_a_row, free_pair, payload, player, rtsp_host

MANY = 700
_MOST = 240


async def say_all(one: Player, requests: bytes) -> asyncio.Task[None]:
    """Say it while the server takes it; whoever awaits the task has said it all."""
    saying = asyncio.create_task(one.made.say(requests))
    await asyncio.sleep(0)
    return saying


def largest(made: Live) -> int:
    return max(len(block.encode()) for block in made.host.checkpoints)


def shrink_buffers(one: Player) -> None:
    """Loopback's own would hold all that is said here."""
    for sock in (one.made.client, one.made.connection._sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP"])
def test_thousands_of_requests_at_once_are_all_answered(tmp_path: Path, method: str) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            saying = await say_all(one, b"".join(one.request(method) for _ in range(MANY)))
            answers = [(await one.response())[:2] for _ in range(MANY)]
            await saying
            assert [int(headers["CSeq"]) for _, headers in answers] == list(range(1, MANY + 1))
            assert {status for status, _ in answers} == {400 if method == "SETUP" else 200}
            assert largest(one.made) < LIMIT_BYTES

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_read_either(tmp_path: Path) -> None:
    """What it says beyond a little waits on its own side, until it reads."""

    async def run() -> None:
        async with player(tmp_path) as one:
            shrink_buffers(one)
            said = b"".join(one.request("DESCRIBE", X="y" * 500) for _ in range(500))
            saying = await say_all(one, said)
            done, _ = await asyncio.wait([saying], timeout=0.3)
            taken = one.made.connection.stream.received
            assert not done and taken < len(said) // 2
            assert {(await one.response())[0] for _ in range(500)} == {200}
            await saying
            assert largest(one.made) < LIMIT_BYTES

    asyncio.run(run())


def test_responses_come_between_the_packets_of_a_film_however_many_are_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path, film=LONG_FILM) as one:
            await one.setup()
            await one.ask("PLAY")
            for method in ("GET_PARAMETER", "DESCRIBE"):
                await one.take(5)
                saying = await say_all(one, b"".join(one.request(method) for _ in range(100)))
                assert [(await one.response())[0] for _ in range(100)] == [200] * 100
                await saying
            assert len(one.packets) < _MOST, "the film is not over before they are answered"
            await one.take_to_the_end()
            assert payload(one.packets) == LONG_FILM
            assert_in_a_row(one.packets)
            assert largest(one.made) < LIMIT_BYTES

    asyncio.run(run())


def test_a_client_that_goes_without_a_word_is_noticed_although_it_is_not_read(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            saying = await say_all(one, b"".join(one.request("DESCRIBE", X="y" * 500) for _ in range(MANY)))
            received = -1
            while received != one.made.connection.stream.received:
                received = one.made.connection.stream.received
                await asyncio.sleep(0.05)
            saying.cancel()
            one.made.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.made.client.close()
            async with asyncio.timeout(2):
                await one.made.host.over.wait()

    asyncio.run(run())


def test_the_last_request_before_the_end_of_input_is_answered_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            shrink_buffers(one)
            saying = await say_all(one, b"".join(one.request("DESCRIBE") for _ in range(200)))
            answers = [(await one.response())[0] for _ in range(100)]
            await saying
            one.made.client.shutdown(socket.SHUT_WR)
            answers += [(await one.response())[0] for _ in range(100)]
            assert answers == [200] * 200
            assert await one.made.hear_all() == b""

    asyncio.run(run())


@pytest.mark.parametrize("length", [LIMIT_URL + 1, 15_000])
def test_a_url_that_is_too_long_is_refused_and_the_connection_goes_on(tmp_path: Path, length: int) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            url = "rtsp://vip/film.bin".ljust(length, "x")
            for method in ("SETUP", "DESCRIBE", "OPTIONS", "PLAY"):
                assert (await one.ask(method, url, Transport=TCP))[0] == 414
            saying = await say_all(one, b"".join(one.request("SETUP", url, Transport=TCP) for _ in range(50)))
            assert [(await one.response())[0] for _ in range(50)] == [414] * 50
            await saying
            await one.setup()

    asyncio.run(run())


def test_a_url_without_end_is_refused_and_closed(tmp_path: Path) -> None:
    async def run() -> None:
        async with player(tmp_path) as one:
            await one.made.say(b"OPTIONS rtsp://vip/" + b"x" * LIMIT_HEAD)
            assert (await one.made.hear_all()).startswith(b"RTSP/1.0 414 ")

    asyncio.run(run())


def test_the_most_that_one_connection_can_have_fits_into_its_checkpoint(tmp_path: Path) -> None:
    """Sessions with the longest names, the longest errors and descriptions not read, and the longest request begun."""
    folder = tmp_path / "/".join("x" * 250 for _ in range(7))
    folder.mkdir(parents=True)
    (folder / "film.bin").write_bytes(FILM)
    url = f"rtsp://vip/{folder.relative_to(tmp_path)}/film.bin"

    async def run() -> None:
        async with player(tmp_path) as one:
            shrink_buffers(one)
            statuses = []
            for _ in range(LIMIT_SESSIONS):
                statuses.append((await one.ask("SETUP", url, Transport=TCP))[0])
                statuses.append((await one.ask("SETUP", url, Transport="RTP/AVP;multicast"))[0])
                one.session = ""
            assert statuses.count(200) >= 4 and set(statuses) <= {200, 453, 461}
            said = b"".join(one.request("DESCRIBE", url) for _ in range(60))
            said += one.request("SETUP", url, Transport="x;" * 5000, Require="y" * 1000)
            said += b"SET_PARAMETER * RTSP/1.0\r\nContent-Length: %d\r\n" % LIMIT_BODY
            said += b"X: " + b"z" * (LIMIT_HEAD - 100) + b"\r\n\r\n" + b"0" * LIMIT_BODY
            saying = await say_all(one, said)
            await asyncio.wait([saying], timeout=0.1)
            assert {(await one.response())[0] for _ in range(60)} == {200}
            assert ((await one.response())[0], (await one.response())[0]) == (551, 400)
            await saying
            assert largest(one.made) < LIMIT_BYTES

    asyncio.run(run())


def test_an_heir_puts_what_is_asked_meanwhile_between_two_packets(tmp_path: Path) -> None:
    """Not behind the film, although it does not know the film's table yet; and not into an earlier response."""

    async def owner() -> DataBlock:
        async with player(tmp_path, film=LONG_FILM) as one:
            await one.setup()
            await one.ask("PLAY")
            await one.take(10)
            one.made.host.stores = False
            await one.made.say(b"".join(one.request("DESCRIBE") for _ in range(10)))
            count = len(one.made.host.checkpoints)
            while len(one.made.host.checkpoints) == count:
                await asyncio.sleep(0)
            return DataBlock.decode(one.made.host.checkpoints[-1].encode())

    async def heir(block: DataBlock) -> None:
        section = block.section(STREAM, StreamSection)
        with document_root(tmp_path / "heir", film=LONG_FILM) as root:
            application = RTSP.unready(root, block)
            stream = ByteStream.resumed(ISS, section, proof(section.sent))
            objects = [application.generate(ref) for ref in section.objects]
            host = rtsp_host(root, free_pair())
            async with live(root, application, stream, host=host, objects=objects) as made:
                made.connection.resume(section.sent)
                one = Player(made)
                await made.say(b"".join(one.request("DESCRIBE") for _ in range(10)))
                answers = []
                while len(answers) < 20:
                    answers.append((await one.response())[0])
                assert answers == [200] * 20
                assert len(one.packets) < _MOST, "the film is not over before they are answered"
                await one.take_to_the_end()
                assert_in_a_row(one.packets)
                assert LONG_FILM.endswith(payload(one.packets))

    (tmp_path / "heir").mkdir()
    asyncio.run(heir(asyncio.run(owner())))
