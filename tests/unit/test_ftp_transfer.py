"""A data connection of FTP: what a listing says of a folder that cannot be read, and what one turn of it may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.ftp.listing import LIMIT_LOOKED
from dataplane.ftp.session import Transfer
from dataplane.ftp.transfer import NAME, DataSection, FtpData
from dataplane.ftp.tree import Tree
from dataplane.objects import OBJECT_MISSING
from state.configuration import Serving
from state.datablock import DataBlock
from tests.unit.builders import document_root, header
from tests.unit.ftp_server import RecordingStream, Server, count_calls


class Control:
    """`transfer.Control`."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.answered = asyncio.Event()

    def data_opened(self, data: FtpData) -> None:
        return

    def transfer_ended(self, data: FtpData, answer: bytes) -> None:
        self.answers.append(answer)
        self.answered.set()

    def data_gone(self, data: FtpData) -> None:
        return


def listed(tree: Tree, transfer: Transfer, between: Callable[[RecordingStream], None]) -> tuple[bytes, bytes]:
    """What a listing sends, and the reply to it; `between` its turns."""

    async def run() -> tuple[bytes, bytes]:
        stream, control = RecordingStream(), Control()
        data = FtpData(tree, Serving(), 1, control)
        data.opened(stream)  # type: ignore[arg-type]
        data.send_listing(transfer)
        async with asyncio.timeout(10):
            while not control.answers:
                await asyncio.sleep(0)
                between(stream)
        assert stream.closed and len(control.answers) == 1
        return stream.said, control.answers[0]

    return asyncio.run(run())


# --- turns ---
def test_a_listing_looks_at_few_entries_in_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that lead outside are not listed, but looked at."""
    for number in range(1000):
        (tmp_path / f"{number:04}").symlink_to("/")
    (tmp_path / "last").mkdir()
    looked: list[object] = []
    turns: list[int] = []
    monkeypatch.setattr(Tree, "find", count_calls(looked, Tree.find))

    def between(stream: RecordingStream) -> None:
        before = len(looked)
        stream.turn()
        turns.append(len(looked) - before)

    said, answer = listed(Tree(str(tmp_path)), Transfer("NLST", "/"), between)
    assert said == b"last\r\n" and answer.startswith(b"226 ")
    assert len(looked) == 1001 and max(turns) <= LIMIT_LOOKED


# --- folders that cannot be read ---
def test_a_listing_of_a_folder_that_cannot_be_read_is_no_success(tmp_path: Path) -> None:
    said, answer = listed(Tree(str(tmp_path)), Transfer("LIST", "/gone"), lambda stream: None)
    assert said == b"" and answer == b"451 /gone cannot be read: No such file or directory\r\n"


def test_a_folder_that_vanishes_before_its_listing_begins_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with document_root(tmp_path) as root:
        server = Server(root).log_in().says(b"PASV\r\nLIST folder\r\n")
        (tmp_path / "folder").rmdir()
        data = server.application._accepted(("10.0.0.7", 50_000))
        data.opened(RecordingStream())  # type: ignore[arg-type]
        assert server.codes == [227, 550]


def test_stat_of_a_folder_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tree: Tree, folder: str, limit: int | None = None) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Tree, "names", refuse)
    with document_root(tmp_path) as root:
        assert Server(root).log_in().says(b"STAT /\r\n").codes == [450]


def test_an_heir_without_the_folder_cannot_go_on_with_its_listing(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for path, obstacle in (("/here", None), ("/gone", OBJECT_MISSING)):
        block = DataBlock(header())
        block.append(NAME, DataSection(1, "listing", Transfer("LIST", path), "b"))
        assert FtpData.made_of(block, Tree(str(tmp_path)), Serving()).obstacle() == obstacle
