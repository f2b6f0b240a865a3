"""Files that are uploaded: on a real disk, by real threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.ftp.upload import Upload

PIECE = bytes(range(256)) * 256


class Client:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        self.rooms = 0

    def room(self) -> None:
        self.rooms += 1

    def upload(self, path: Path, offset: int | None = None) -> Upload:
        return Upload(str(path), offset, self.outcome.set_result, self.room)


def run(test: Callable[[Client], object]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await test(Client())  # type: ignore[misc]

    descriptors = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_new_file_has_no_name_before_its_end(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        (tmp_path / "file").write_bytes(b"what was there")
        upload = client.upload(tmp_path / "file")
        for _ in range(40):
            upload.write(PIECE)
        assert upload.crowded and upload.unwritten == 40 * len(PIECE)
        while upload.unwritten:
            await asyncio.sleep(0)
        assert client.rooms and not upload.crowded
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"what was there"
        upload.end()
        assert await client.outcome is None
        assert (tmp_path / "file").read_bytes() == PIECE * 40
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    run(test)


def test_one_that_is_continued_is_written_where_it_is(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        (tmp_path / "file").write_bytes(b"0123456789")
        upload = client.upload(tmp_path / "file", 4)
        upload.write(b"abc")
        upload.end()
        assert await client.outcome is None
        assert (tmp_path / "file").read_bytes() == b"0123abc"

    run(test)


@pytest.mark.parametrize("started", [False, True])
def test_one_that_is_abandoned_was_never_there(tmp_path: Path, started: bool) -> None:
    async def test(client: Client) -> None:
        upload = client.upload(tmp_path / "file")
        upload.write(PIECE)
        while started and upload.unwritten:
            await asyncio.sleep(0)
        upload.abandon()
        while upload.unwritten:
            await asyncio.sleep(0)
        assert not client.outcome.done() and list(tmp_path.iterdir()) == []

    run(test)


def test_a_name_that_cannot_be_had_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        upload = client.upload(tmp_path / "folder")
        (tmp_path / "folder" / "full").mkdir(parents=True)
        upload.write(PIECE)
        upload.end()
        assert isinstance(await client.outcome, IsADirectoryError)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    run(test)


def test_a_link_is_not_followed_and_a_folder_must_be_there(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        (tmp_path / "file").write_bytes(b"x")
        (tmp_path / "link").symlink_to("file")
        for path, offset in ((tmp_path / "link", 0), (tmp_path / "none" / "file", None), (tmp_path, 0)):
            with pytest.raises(OSError):
                client.upload(path, offset)
        assert (tmp_path / "file").read_bytes() == b"x"

    run(test)
