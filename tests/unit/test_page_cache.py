"""A file that is not in memory is read on a thread before it is sent, and comes whole."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import output
from dataplane.page_cache import Disk, in_memory
from tests.unit.builders import document_root
from tests.unit.live import live
from tests.unit.test_live_connection import Plain

_SIZE = 4 << 20
CONTENT = bytes(number * 7 % 251 for number in range(1 << 12)) * (_SIZE >> 12)


@pytest.fixture
def cold() -> Iterator[int]:
    """A file on a disk (`/var/tmp` is on one), of which nothing is in memory."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.fileno()


def test_a_cold_piece_is_known_for_one_and_brought_in(cold: int) -> None:
    assert not in_memory(cold, 0, _SIZE)

    async def run() -> None:
        disk = Disk()
        await disk.bring(cold, 0, _SIZE)
        disk.close()

    asyncio.run(run())
    assert in_memory(cold, 0, _SIZE)


def test_a_piece_of_which_only_the_end_is_missing_is_cold(cold: int) -> None:
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
    os.pread(cold, 1, 0)
    assert in_memory(cold, 0, 1)
    assert not in_memory(cold, 0, _SIZE)


def test_what_cannot_be_told_is_taken_for_warm() -> None:
    reader, writer = os.pipe()
    assert in_memory(reader, 0, 10)
    os.close(reader)
    os.close(writer)


def test_a_cold_object_comes_whole_and_its_connection_may_end_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every piece is cold, whatever was read, as some file systems say: each is brought in once."""
    asked: list[tuple[int, int]] = []

    def cold(descriptor: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return False

    monkeypatch.setattr(output, "in_memory", cold)

    async def run() -> None:
        with document_root(tmp_path, object=CONTENT) as root:
            async with live(root, Plain()) as made:
                made.connection.start()
                made.connection.send_object(root.open("/object.bin"), 0, _SIZE)
                made.connection.close()
                assert await made.hear_all() == CONTENT
            assert len(asked) >= _SIZE // (512 << 10)
            assert len({offset for offset, _ in asked}) == len(asked), "none is asked for again"
            async with live(root, Plain()) as made:
                made.connection.start()
                opened = root.open("/object.bin")
                del asked[:]
                made.connection.send_object(opened, 0, _SIZE)
                while not asked:
                    await asyncio.sleep(0)
                made.connection.reset()
                while opened.users:
                    await asyncio.sleep(0)

    asyncio.run(run())
