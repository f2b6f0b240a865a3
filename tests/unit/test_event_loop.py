"""The fair loop: many ready files do not hold up a timer, preferred ones do not wait behind others, heaps are paced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.event_loop import SECONDS_PER_TURN, FairLoop, FairSelector, Paced, prefer

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
AT_ONCE = 8


@pytest.fixture
def selector() -> Iterator[FairSelector]:
    made = FairSelector()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Fifty socket pairs; the first of each has input."""
    made = [socket.socketpair() for _ in range(50)]
    for inner, outer in made:
        inner.setblocking(False)
        outer.send(b"x")
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=FairLoop) as made:
        yield made


def test_a_few_files_at_a_time_in_a_circle(selector: FairSelector, pairs: Any) -> None:
    for inner, _ in pairs:
        selector.register(inner, READ, inner.fileno())
    turns = [[key.data for key, _ in selector.select(0)] for _ in range(7)]
    assert [len(turn) for turn in turns] == [AT_ONCE] * 7
    assert {data for turn in turns for data in turn} == {inner.fileno() for inner, _ in pairs}, "none is passed over"


def test_a_preferred_file_does_not_wait(selector: FairSelector, pairs: Any) -> None:
    for inner, _ in pairs[:-1]:
        selector.register(inner, READ)
    selector.prefer(pairs[-1][0].fileno())
    selector.register(pairs[-1][0], READ, "preferred")
    for _ in range(3):
        assert "preferred" in [key.data for key, _ in selector.select(0)]


def test_the_preference_ends_with_the_registration(selector: FairSelector, pairs: Any) -> None:
    """Descriptors are used again, for other files."""
    last = pairs[-1][0]
    selector.prefer(last.fileno())
    selector.register(last, READ)
    selector.unregister(last)
    for inner, _ in pairs:
        selector.register(inner, READ, inner.fileno())
    seen = [len(selector.select(0)) for _ in range(7)]
    assert seen == [AT_ONCE] * 7


def test_what_is_watched_changes(selector: FairSelector, pairs: Any) -> None:
    inner, outer = pairs[0]
    selector.register(inner, READ, 1)
    with pytest.raises(KeyError):
        selector.register(inner, READ, 2)
    assert selector.modify(inner, READ | WRITE, 3).data == 3
    assert [(key.data, events) for key, events in selector.select(0)] == [(3, READ | WRITE)]
    selector.modify(inner, WRITE, 4)
    assert [(key.data, events) for key, events in selector.select(0)] == [(4, WRITE)]
    assert selector.get_key(inner).data == 4
    assert list(selector.get_map()) == [inner.fileno()]
    selector.unregister(inner)
    with pytest.raises(KeyError):
        selector.get_key(inner)
    assert selector.select(0) == []
    outer.close()


def test_a_hang_up_is_told_to_who_reads(selector: FairSelector, pairs: Any) -> None:
    inner, outer = pairs[0]
    inner.recv(1)
    selector.register(inner, READ)
    assert selector.select(0) == []
    outer.close()
    assert [events for _, events in selector.select(0)] == [READ]


def test_a_file_that_was_closed_first_is_unregistered_all_the_same(selector: FairSelector, pairs: Any) -> None:
    inner, _ = pairs[0]
    descriptor = inner.fileno()
    selector.register(descriptor, READ)
    inner.close()
    selector.unregister(descriptor)
    assert not selector.get_map()


def test_a_file_that_was_closed_here_but_lives_in_a_child_is_passed_over(selector: FairSelector, pairs: Any) -> None:
    inner, _ = pairs[0]
    selector.register(inner, READ)
    descriptor, elsewhere = inner.fileno(), os.dup(inner.fileno())
    inner.close()
    selector.unregister(descriptor)  # which epoll refuses
    assert selector.select(0) == []
    os.close(elsewhere)


def test_waiting_is_not_spinning(selector: FairSelector) -> None:
    began = time.monotonic()
    assert selector.select(0.0002) == []
    assert time.monotonic() - began >= 0.0002


def test_between_two_turns_of_the_loop_few_files_are_handled(runner: asyncio.Runner, pairs: Any) -> None:
    """Whatever else the loop has to do (timers, calls) comes after at most so many files."""
    handled: list[int] = []

    async def serve() -> None:
        loop, left = asyncio.get_running_loop(), len(pairs)
        done = loop.create_future()

        def read(inner: socket.socket) -> None:
            nonlocal left
            inner.recv(1)
            loop.remove_reader(inner.fileno())
            handled[-1] += 1
            left -= 1
            if not left:
                done.set_result(None)

        def turn() -> None:
            handled.append(0)
            loop.call_soon(turn)

        turn()
        for inner, _ in pairs:
            loop.add_reader(inner.fileno(), read, inner)
        await done

    runner.run(serve())
    assert sum(handled) == len(pairs)
    assert max(handled) == AT_ONCE


def test_streams_work_on_the_fair_loop(runner: asyncio.Runner) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk() -> int:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        prefer(asyncio.get_running_loop(), server.sockets[0].fileno())
        writer.write(bytes(3_000_000))
        writer.write_eof()
        count = len(await reader.read())
        writer.close()
        server.close()
        return count

    assert runner.run(talk()) == 3_000_000


def test_any_other_loop_has_no_preference() -> None:
    async def ask() -> None:
        prefer(asyncio.get_running_loop(), 0)

    asyncio.run(ask())


# --- Paced ---
def _busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_heap_of_work_is_done_in_order_over_many_turns(runner: asyncio.Runner) -> None:
    async def work() -> tuple[list[int], int]:
        loop, done, turns = asyncio.get_running_loop(), [], 0

        def item(number: int) -> None:
            _busy(SECONDS_PER_TURN / 2)
            done.append(number)

        paced: Paced[int] = Paced(item)
        paced.extend(range(10))
        paced.extend(range(10, 20))
        assert done == []
        assert len(paced) == 20
        while paced:
            turns += 1
            await asyncio.sleep(0)
        assert loop.is_running()
        return done, turns

    done, turns = runner.run(work())
    assert done == list(range(20))
    assert turns >= 10, "at most about two of them fit in a turn"


def test_work_may_make_more_work(runner: asyncio.Runner) -> None:
    async def work() -> list[int]:
        done: list[int] = []

        def item(number: int) -> None:
            done.append(number)
            if number < 5:
                paced.extend([number + 1])

        paced: Paced[int] = Paced(item)
        paced.extend([0])
        while paced:
            await asyncio.sleep(0)
        return done

    assert runner.run(work()) == [0, 1, 2, 3, 4, 5]


def test_an_item_that_fails_does_not_stop_the_others(runner: asyncio.Runner) -> None:
    async def work() -> tuple[list[int], list[str]]:
        done: list[int] = []
        failures: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(str(context["exception"])))

        def item(number: int) -> None:
            if number == 1:
                raise ZeroDivisionError("one")
            done.append(number)

        paced: Paced[int] = Paced(item)
        paced.extend(range(4))
        while paced:
            await asyncio.sleep(0)
        return done, failures

    assert runner.run(work()) == ([0, 2, 3], ["one"])


def test_what_is_cleared_is_not_done(runner: asyncio.Runner) -> None:
    async def work() -> tuple[list[int], list[int]]:
        done: list[int] = []
        paced: Paced[int] = Paced(done.append)
        paced.extend(range(3))
        left = paced.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return done, left

    assert runner.run(work()) == ([], [0, 1, 2])
