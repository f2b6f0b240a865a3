"""Unready connections that a backup keeps ahead of failure: built from blocks, replaced by newer ones, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.http.protocol import HTTP, NAME, HttpSection
from dataplane.stack import Registry
from dataplane.unready import Unready, UnreadySet
from state.datablock import DataBlock
from state.sections import STREAM, TCP, ObjectRef
from tests.unit.builders import FILE_SIZE, document_root, four_tuple, header, stream_section, tcp_section
from tests.unit.test_connection import Server

CONTENT = b"f" * FILE_SIZE


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Server]:
    with document_root(tmp_path, film=CONTENT, other=b"o") as root:
        yield Server(root)


def block(port: int, serial: int = 1) -> bytes:
    """Of the example connection, but for its client's port; the object is the one that this host has."""
    made = DataBlock(header(connection=four_tuple(destination_port=port), serial=serial))
    made.append(TCP, tcp_section())
    made.append(STREAM, stream_section(objects=[ObjectRef("/film.bin", FILE_SIZE, 10**18, b"")]))
    made.append(NAME, HttpSection(b""))
    return made.encode()


def name(port: int) -> str:
    return four_tuple(destination_port=port).id


class Backup:
    def __init__(self, host: Server) -> None:
        registry = Registry()
        registry.add(HTTP)
        self.root = host.root
        self.set = UnreadySet(host, registry)

    def taken(self) -> dict[str, Unready]:
        return {entry.header.connection.id: entry for entry in self.set.take("s1")}

    def build(self, names: list[str]) -> None:
        for each in names:
            self.set.build_expected("s1", each)


def test_of_blocks_that_wait_only_the_newest_of_each_connection_is_built(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        names = backup.set.expect("s1", [block(1, 1), block(2, 1), block(1, 2)])
        names += backup.set.expect("s1", [block(1, 3)])
        assert names == [name(1), name(2)]
        backup.build(names)
        assert {key: entry.header.serial for key, entry in backup.taken().items()} == {name(1): 3, name(2): 1}
        names = backup.set.expect("s1", [block(1, 4)])
        assert names == [name(1)], "it no longer waits"

    asyncio.run(play())


def test_what_is_forgotten_while_it_waits_is_not_built(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        first = backup.set.expect("s1", [block(1), block(2)])
        backup.set.forget("s1", [name(1)])
        again = backup.set.expect("s1", [block(1, 5)])
        assert again == [name(1)], "its port was used again"
        backup.set.forget("s1", [name(1)])
        backup.build([*first, *again])
        assert set(backup.taken()) == {name(2)}
        names = backup.set.expect("s1", [block(3)])
        backup.set.forget("s1", [])
        backup.build(names)
        assert len(backup.set) == 0

    asyncio.run(play())


def test_a_block_that_is_refused_is_counted_and_the_older_one_stays(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        backup.build(backup.set.expect("s1", [block(1, 1), b"damaged", block(1, 2)[:-1]]))
        assert len(backup.set) == 1
        assert sum(backup.set.refused.values()) == 2

    asyncio.run(play())


def test_a_thousand_connections_share_one_open_object_and_it_is_closed_after_the_last(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        for serial in (1, 2):
            backup.build(backup.set.expect("s1", [block(port, serial) for port in range(1, 1001)]))
        entries = backup.taken()
        opened = {id(o): o for entry in entries.values() for o in entry.objects.values()}
        (only,) = opened.values()
        assert only.users == 1000, "what was replaced let go of it"
        for entry in entries.values():
            backup.set.release(entry)
        assert only.users == 0
        assert backup.root.open("/film.bin") is not only

    asyncio.run(play())


def test_what_is_forgotten_altogether_is_let_go_in_portions(host: Server) -> None:
    async def play() -> None:
        backup = Backup(host)
        backup.build(backup.set.expect("s1", [block(port) for port in range(1, 201)]))
        held = backup.root.open("/film.bin")
        backup.set.forget("s1", [])
        assert len(backup.set) == 0
        async with asyncio.timeout(5):
            while held.users > 1:
                await asyncio.sleep(0)
        backup.root.release(held)

    asyncio.run(play())
