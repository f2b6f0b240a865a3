"""The example of the authors' page: whatever the moment of its server's death, every line comes once and in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import CheckpointRefused, DataBlock, ObjectByte
from dataplane.examples.ticker import (
    NAME,
    OBJECT,
    PATIENCE_MILLISECONDS,
    TICKER,
    Ticker,
    TickerSection,
    line,
    offset_of,
)
from dataplane.stream import ByteStream
from state.datablock import LIMIT_BYTES
from state.sections import STREAM, StreamSection
from tests.unit.builders import ISS, document_root, header, proof
from tests.unit.live import live


def text(first: int, count: int) -> bytes:
    return b"".join(line(number) for number in range(first, first + count))


# --- lines ---
def test_a_line_is_its_number_and_the_digest_of_it() -> None:
    assert line(5) == b"5 ef2d127de37b942baad06145e54b0c619a1f22327b2ebbcfbec78f5564afe39d\n"


@given(st.integers(0, 2000))
def test_a_line_begins_where_those_before_it_end(number: int) -> None:
    assert offset_of(number) == len(text(0, number))


@given(st.integers(0, 10**12))
def test_between_two_lines_lies_one(number: int) -> None:
    assert offset_of(number + 1) - offset_of(number) == len(line(number))


# --- a conversation ---
def conversation(folder: Path, said: bytes) -> tuple[bytes, list[DataBlock]]:
    async def run() -> tuple[bytes, list[DataBlock]]:
        with document_root(folder) as root:
            async with live(root, TICKER.fresh(root)) as made:
                made.connection.start()
                for byte in said:
                    await made.say(bytes([byte]))
                    await asyncio.sleep(0)
                if not said:
                    made.client.shutdown(1)
                return await made.hear_all(), made.host.checkpoints

    return asyncio.run(run())


def test_lines_come_as_asked_for_and_then_the_end(tmp_path: Path) -> None:
    heard, checkpoints = conversation(tmp_path, b"START 98 5 1\n")
    assert heard == text(98, 5)
    last = checkpoints[-1]
    assert last.header.object == OBJECT
    assert (last.header.iss + 1 - last.header.object_first) % 2**32 == offset_of(98)
    assert last.section(NAME, TickerSection) == TickerSection(b"", 103, 103, 1)


class FullStream:
    """`stack.Stream` of a client that takes nothing: there is room for one line."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.was_reset = False
        self.waits: list[tuple[float, Callable[[], None]]] = []

    def associate(self, identifier: str, offset: int = 0) -> None:
        return

    def has_room(self) -> bool:
        return not self.said

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waits.append((seconds, callback))

    def reset(self) -> None:
        self.was_reset = True


def test_a_client_that_takes_nothing_is_reset(tmp_path: Path) -> None:
    with document_root(tmp_path) as root:
        ticker, stream, seconds = Ticker(root), FullStream(), 0.0
        ticker.opened(stream)  # type: ignore[arg-type]
        ticker.received(b"START 0 100 1000\n")
        while stream.waits:
            wait, tick = stream.waits.pop()
            seconds += wait
            tick()
            assert stream.was_reset == (seconds > PATIENCE_MILLISECONDS / 1000)
    assert stream.was_reset and stream.said == [line(0)]


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"STOP\n",
        b"START\n",
        b"START 1\n",
        b"START 1 0\n",
        b"START 1 1 0\n",
        b"START 1 1 60001\n",
        b"START -1 5\n",
        b"START 1 2 3 4\n",
        b"START 1 1000000000000\n",
        b"START 1 two\n",
        b"x" * 64,
        b"\n",
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_request_is_answered_by_one_line_and_closed(tmp_path: Path, request_: bytes) -> None:
    heard, checkpoints = conversation(tmp_path, request_)
    assert heard.startswith(b"ERROR ")
    assert heard.count(b"\n") == 1
    assert checkpoints[-1].section(NAME, TickerSection).end == 0


def test_a_client_that_takes_nothing_gets_no_more_than_a_checkpoint_can_hold(tmp_path: Path) -> None:
    async def run() -> None:
        with document_root(tmp_path) as root:
            async with live(
                root, TICKER.fresh(root), stores=False
            ) as made:  # nothing goes out: nothing is acknowledged
                made.connection.start()
                await made.say(b"START 0 100000 1\n")
                while made.connection.has_room():
                    await asyncio.sleep(0)
                full = made.connection.unacknowledged
                await asyncio.sleep(0.02)
                assert made.connection.unacknowledged == full < LIMIT_BYTES // 4
                made.connection.stream.checkpointed(made.connection.stream.map.end)
                made.connection.schedule_checkpoint()
                made.host.stores = True  # now they go out, and the rest follows
                assert await made.hear(2 * full) == text(0, 1000)[: 2 * full]

    asyncio.run(run())


# --- a death at any moment ---
FIRST, COUNT = 7, 12


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[DataBlock]:
    """Every checkpoint of one ticker's life, byte by byte of its request."""
    heard, checkpoints = conversation(tmp_path_factory.mktemp("life"), b"START %d %d 1\n" % (FIRST, COUNT))
    assert heard == text(FIRST, COUNT)
    return checkpoints


@pytest.mark.parametrize("seed", range(40))
def test_the_heir_sends_exactly_what_the_client_does_not_have(life: list[DataBlock], tmp_path: Path, seed: int) -> None:
    """Any checkpoint, any byte up to which the client may have come when it was the last one stored."""
    choice = random.Random(seed)
    block = DataBlock.decode(choice.choice(life).encode())
    section = block.section(STREAM, StreamSection)
    position = choice.randint(section.acked, section.end)
    request = b"START %d %d 1\n" % (FIRST, COUNT)

    async def run() -> bytes:
        with document_root(tmp_path) as root:
            application = TICKER.unready(root, block)
            stream = ByteStream.resumed(ISS, section, proof(position))
            assert position == 0 or stream.map.object_at(position) == ObjectByte(OBJECT, offset_of(FIRST) + position)
            async with live(root, application, stream) as made:
                made.connection.resume(position)
                await made.say(request[section.received :])
                return await made.hear_all()

    assert text(FIRST, COUNT)[:position] + asyncio.run(run()) == text(FIRST, COUNT)


@pytest.mark.parametrize(
    "section",
    [
        TickerSection(b"", 6, 5, 100),
        TickerSection(b"x" * 65, 0, 0, 100),
        TickerSection(b"", 0, 5, 0),
        TickerSection(b"", -1, 5, 1),
        TickerSection(b"", 0, 10**12 + 1, 1),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(tmp_path: Path, section: TickerSection) -> None:
    block = DataBlock(header())
    block.append(NAME, section)
    with document_root(tmp_path) as root, pytest.raises(CheckpointRefused):
        Ticker.unready(root, block)
