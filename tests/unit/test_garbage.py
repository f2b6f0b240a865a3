"""Agents do not let the garbage collector look through old objects. So connections must not need it: one that ends, and
an unready one that is not needed any more, leave nothing behind that only the collector could free."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.http import HttpApplication
from state.process import Sweeping
from tests.unit.builders import document_root
from tests.unit.test_connection import Pair, Server
from tests.unit.test_expected import Backup, block
from tests.unit.virtual_time import VirtualLoop


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Server]:
    with document_root(tmp_path, film=b"f" * 10_000, small=b"12345") as root:
        yield Server(root)


def _by_the_client(pair: Pair) -> None:
    pair.client.close()


def _by_a_reset(pair: Pair) -> None:
    pair.connection.reset()


def _given_away(pair: Pair) -> None:
    pair.connection.abandon()


def _lives_and_ends(loop: VirtualLoop, host: Server, end: Callable[[Pair], None]) -> list[weakref.ref[object]]:
    pair = Pair(loop, host, HttpApplication(host.root))
    pair.client.send(b"GET /small.bin HTTP/1.1\r\nHost: vip\r\n\r\n" * 2)
    assert loop.until(lambda: len(pair.reads(1000)) > 10, 10)
    pair.client.send(b"GET /small.bin HTTP/1.1\r\n")
    loop.passes(0.1)
    end(pair)
    assert loop.until(lambda: pair.connection.over, 200)
    pair.client.close()
    host.over.clear()
    return [weakref.ref(pair.connection), weakref.ref(pair.application)]


@pytest.mark.parametrize("end", [_by_the_client, _by_a_reset, _given_away])
def test_a_connection_that_ended_is_gone(host: Server, end: Callable[[Pair], None]) -> None:
    loop = VirtualLoop()
    watched = _lives_and_ends(loop, host, end)
    loop.passes(0)
    assert [what() for what in watched] == [None, None]
    loop.close()


def test_an_unready_connection_that_was_replaced_or_forgotten_is_gone(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        backup.build(backup.set.expect("s1", [block(1, 1), block(2, 1)]))
        watched = [weakref.ref(entry.application) for entry in backup.set._owners["s1"].values()]
        backup.build(backup.set.expect("s1", [block(1, 2)]))
        backup.set.forget("s1", [])
        while backup.set._needless:
            await asyncio.sleep(0)
        assert [what() for what in watched] == [None, None]

    asyncio.run(play())


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def _beats(sweeping: Sweeping, count: int, *, idle: bool) -> None:
    for _ in range(count):
        sweeping.beat(idle=idle)


def test_young_garbage_is_swept_on_the_beat_and_old_garbage_when_nothing_is_going_on() -> None:
    sweeping = Sweeping()
    young = weakref.ref(_Cycle())
    _beats(sweeping, 1, idle=False)
    assert young() is None
    kept = _Cycle()
    old = weakref.ref(kept)
    _beats(sweeping, 20, idle=False)
    del kept
    _beats(sweeping, 20, idle=False)
    assert old() is not None, "looking through the old ones takes too long"
    _beats(sweeping, 2000, idle=True)
    assert old() is None
