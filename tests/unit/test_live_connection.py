"""What an application may ask of its connection, and what its own mistakes may do: over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dataplane import Application, DataBlock, ObjectByte, Stream
from dataplane.stream import ByteStream
from state.sections import LIMIT_EXTENTS, Extent
from tests.unit.builders import ISS, document_root, proof, stream_section, wire
from tests.unit.live import Live, live


class Nothing(msgspec.Struct, array_like=True):
    pass


class Plain(Application):
    """Does what the test says when input comes."""

    name = "plain/1"

    def __init__(self, on_input: Callable[[Stream, bytes], object] = lambda stream, data: None) -> None:
        self._on_input = on_input
        self.calls: list[str] = []

    def opened(self, stream: Stream) -> None:
        self.stream = stream

    def received(self, data: bytes) -> None:
        self._on_input(self.stream, data)

    def input_ended(self) -> None:
        self.calls.append("input ended")

    def drained(self) -> None:
        self.calls.append("drained")

    def checkpoint(self, block: DataBlock) -> None:
        block.append(self.name, Nothing())

    def ready(self, stream: Stream, position: int) -> None:
        self.stream = stream

    def ended(self) -> None:
        self.calls.append("ended")


async def conversation(folder: Path, application: Application, said: bytes = b"go") -> tuple[bytes, Live]:
    """Say this, hear until the server ends the connection."""
    with document_root(folder) as root:
        async with live(root, application) as made:
            made.connection.start()
            await made.say(said)
            heard = await made.hear_all()
            made.client.close()
            await made.host.over.wait()
        return heard, made


# --- timers ---
def test_a_timer_calls_back_once_after_its_time(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        fired: list[float] = []

        def on_input(stream: Stream, data: bytes) -> None:
            began = loop.time()
            stream.call_later(0.005, lambda: fired.append(loop.time() - began))
            stream.call_later(0.02, stream.close)

        application = Plain(on_input)
        with document_root(tmp_path) as root:
            async with live(root, application) as made:
                made.connection.start()
                await made.say(b"go")
                assert await made.hear_all() == b""
        assert len(fired) == 1
        assert fired[0] >= 0.005

    asyncio.run(run())


def test_a_cancelled_timer_and_those_of_an_ended_connection_never_call_back(tmp_path: Path) -> None:
    async def run() -> None:
        fired: list[str] = []

        def on_input(stream: Stream, data: bytes) -> None:
            stream.call_later(0.001, lambda: fired.append("cancelled")).cancel()
            stream.call_later(0.002, lambda: fired.append("of an ended connection"))
            stream.reset()
            stream.call_later(0.0, lambda: fired.append("asked for after the end"))

        with document_root(tmp_path) as root:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                await made.host.over.wait()
                await asyncio.sleep(0.01)
        assert fired == []

    asyncio.run(run())


# --- input ---
def test_input_that_is_held_waits_and_then_comes_whole(tmp_path: Path) -> None:
    async def run() -> None:
        heard: list[bytes] = []

        def on_input(stream: Stream, data: bytes) -> None:
            heard.append(data)
            if len(heard) == 1:
                stream.hold_input(True)
                stream.call_later(0.02, lambda: (heard.append(b"|"), stream.hold_input(False)))

        with document_root(tmp_path) as root:
            application = Plain(on_input)
            async with live(root, application) as made:
                made.connection.start()
                await made.say(b"one")
                while not heard:
                    await asyncio.sleep(0)
                await made.say(b"two")
                made.client.shutdown(socket.SHUT_WR)
                while "input ended" not in application.calls:
                    await asyncio.sleep(0)
        assert heard == [b"one", b"|", b"two"]

    asyncio.run(run())


# --- association (claim 22) ---
def test_an_association_stands_in_the_very_checkpoint_that_its_first_byte_waits_for(tmp_path: Path) -> None:
    numbers: list[int] = []

    def on_input(stream: Stream, data: bytes) -> None:
        numbers.append(stream.write(b"greeting "))
        numbers.append(stream.associate("log", 700))
        assert stream.unsent == len(b"greeting "), "nothing of it was sent, and the byte is not even written"
        numbers.append(stream.write(b"entry"))
        numbers.append(stream.seq_of("log", 704))
        assert stream.object_at(9) == ObjectByte("log", 700)
        stream.close()

    heard, made = asyncio.run(conversation(tmp_path, Plain(on_input)))
    assert heard == b"greeting entry"
    assert numbers == [wire(0), wire(9), wire(9), wire(13)]
    first_with_it = next(block.header for block in made.host.checkpoints if block.header.object)
    assert (first_with_it.object, first_with_it.object_first) == ("log", wire(9) - 700)
    assert first_with_it.snd_nxt == wire(0), "the checkpoint was made before a byte was handed to the kernel"


def test_bytes_count_as_unacknowledged_until_the_client_has_them(tmp_path: Path) -> None:
    async def run() -> None:
        application = Plain(lambda stream, data: stream.write(data * 100))
        with document_root(tmp_path) as root:
            async with live(root, application) as made:
                made.connection.start()
                await made.say(b"0123456789")
                assert len(await made.hear(1000)) == 1000
                while made.connection.unacknowledged:
                    await asyncio.sleep(0)
                assert made.connection.unsent == 0
                application.stream.write(b"more")
                assert (application.stream.unacknowledged, application.stream.unsent) == (4, 4)

    asyncio.run(run())


def test_one_that_is_held_back_sends_a_small_flight_and_the_rest_when_it_may_go_on(tmp_path: Path) -> None:
    said = bytes(range(256)) * 40
    extents = [Extent(0, len(said), literal=said)]

    async def run() -> tuple[bytes, int, bytes]:
        section = stream_section(acked=0, sent=0, objects=[], extents=extents)
        with document_root(tmp_path) as root:
            async with live(root, Plain(), ByteStream.resumed(ISS, section, proof(100))) as made:
                made.connection.resume(100, 4096)
                first = await made.hear(4096)
                left = made.connection.unsent
                made.connection.go_on()
                return first, left, await made.hear(len(said) - 100 - 4096)

    first, left, rest = asyncio.run(run())
    assert (first + rest, left) == (said[100:], len(said) - 100 - 4096)


@pytest.mark.parametrize("protected", [True, False])
def test_a_connection_that_lasts_keeps_nothing_of_what_its_client_has(tmp_path: Path, protected: bool) -> None:
    async def run() -> None:
        with document_root(tmp_path) as root:
            async with live(root, Plain(lambda stream, data: stream.write(data)), protected=protected) as made:
                made.connection.start()
                for _ in range(2 * LIMIT_EXTENTS):
                    await made.say(b"x" * 100)
                    assert len(await made.hear(100)) == 100
                assert sum(extent.length for extent in made.connection.stream.map) <= 1000

    asyncio.run(run())


# --- an author's mistakes ---
class Failing(Plain):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__(lambda stream, data: stream.write(b"answer"))
        self._where = where

    def _fail(self, where: str) -> None:
        if where == self._where:
            raise ZeroDivisionError(where)

    def opened(self, stream: Stream) -> None:
        super().opened(stream)
        self._fail("opened")

    def received(self, data: bytes) -> None:
        super().received(data)
        self._fail("received")
        if self._where == "timer":
            self.stream.call_later(0, lambda: self._fail("timer"))

    def drained(self) -> None:
        self._fail("drained")

    def checkpoint(self, block: DataBlock) -> None:
        super().checkpoint(block)
        self._fail("checkpoint")


@pytest.mark.parametrize("where", ["opened", "received", "timer", "drained", "checkpoint"])
def test_what_an_application_raises_is_logged_and_resets_its_own_connection(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    application = Failing(where)

    async def run() -> None:
        with pytest.raises(ConnectionResetError):
            await conversation(tmp_path, application)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert application.calls == ["ended"]
    (logged,) = [record for record in caplog.records if record.name == "dataplane.connection"]
    assert "plain/1" in logged.getMessage()
    assert logged.exc_info is not None


def test_one_that_fails_at_its_end_is_ended_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FailsAtEnd(Plain):
        def ended(self) -> None:
            raise ZeroDivisionError("ended")

    _, made = asyncio.run(conversation(tmp_path, FailsAtEnd(lambda stream, data: stream.close())))
    assert made.connection.over
    assert "failed at its end" in caplog.text


def test_more_literal_bytes_than_a_checkpoint_holds_reset_the_connection_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with pytest.raises(ConnectionResetError):
            await conversation(tmp_path, Plain(lambda stream, data: stream.write(bytes(70_000))))

    asyncio.run(run())
    assert "exceed the limit of 65536" in caplog.text
