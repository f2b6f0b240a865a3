"""The control connection of FTP: what one turn of the loop may cost, and what waits for a transfer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.ftp import command
from dataplane.ftp.command import LIMIT_LINES
from dataplane.ftp.protocol import DATA_SECONDS, HEIR_DATA_SECONDS
from dataplane.objects import DocumentRoot
from tests.unit.builders import document_root
from tests.unit.ftp_server import Server, count_calls


@pytest.fixture
def root(tmp_path: Path) -> Iterator[DocumentRoot]:
    with document_root(tmp_path, film=b"12345") as made:
        yield made


# --- an heir ---
@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (b"", HEIR_DATA_SECONDS),
        (b"ABOR\r\nPORT 10,0,0,7,100,1\r\n", DATA_SECONDS),
        (b"PASV\r\n", DATA_SECONDS),
        (b"PORT 10,0,0,7,100,1\r\n", DATA_SECONDS),
    ],
)
def test_only_who_was_told_a_port_by_an_earlier_owner_has_little_time(
    root: DocumentRoot, said: bytes, seconds: float
) -> None:
    heir = Server(root).log_in().says(b"PASV\r\n").dies().says(said + b"RETR film.bin\r\n")
    assert heir.stream.timers[-1].seconds == seconds


# --- turns ---
def test_commands_that_come_at_once_are_carried_out_in_turns(root: DocumentRoot) -> None:
    server = Server(root).log_in()
    server.application.received(b"NOOP\r\n" * 500)
    assert len(server.codes) <= 8 and server.stream.held
    while server.stream.turn():
        assert server.stream.held == bool(server.section.pending)
    assert server.codes == [200] * 500 and not server.stream.held


def test_a_look_into_a_folder_is_a_turn_of_its_own(root: DocumentRoot) -> None:
    server = Server(root).log_in()
    server.application.received(b"STAT *\r\n" * 3)
    assert server.stream.said.count(b"\r\n213 End\r\n") == 1
    server.says(b"")
    assert server.stream.said.count(b"\r\n213 End\r\n") == 3


def test_a_client_that_reads_no_replies_is_not_read_either(root: DocumentRoot) -> None:
    server = Server(root).log_in()
    server.stream.room = False
    server.says(b"NOOP\r\n" * 10_000)
    assert server.stream.held and server.codes == [] and len(server.section.pending) <= server.application.read_bytes
    server.stream.room = True
    server.application.drained()
    server.says(b"")
    assert set(server.codes) == {200} and not server.stream.held and not server.stream.closed


def test_the_end_of_the_input_is_noticed_after_its_last_command(root: DocumentRoot) -> None:
    server = Server(root).log_in()
    server.application.received(b"NOOP\r\n" * 20)
    server.application.input_ended()
    assert not server.stream.closed
    server.says(b"")
    assert server.codes == [200] * 20 and server.stream.closed


# --- during a transfer ---
def test_what_waits_for_a_transfer_is_looked_at_once(root: DocumentRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(root).log_in().says(b"PASV\r\nRETR film.bin\r\n")
    looked: list[object] = []
    monkeypatch.setattr(command, "_plain", count_calls(looked, command._plain))
    for _ in range(LIMIT_LINES - 1):
        server.says(b"\n")
        assert server.section.pending
    assert len(looked) < LIMIT_LINES and not server.stream.held
    server.says(b"ABOR\r\n")
    assert server.codes[:3] == [227, 426, 226] and server.codes[3:] == [500] * (LIMIT_LINES - 1)


def test_an_abor_that_waits_when_its_server_dies_is_carried_out_by_the_heir(root: DocumentRoot) -> None:
    server = Server(root).log_in().says(b"PASV\r\nRETR film.bin\r\n")
    server.stream.room = False
    server.says(b"ABOR\r\n")
    assert server.codes == [227] and server.section.pending == b"ABOR\r\n"
    assert server.dies().codes == [426, 226]


@pytest.mark.parametrize("said", [b"\n" * (LIMIT_LINES + 2), b"\n" * 20_000, b"SIZE film.bin\r\n" * 2000])
def test_so_many_commands_during_a_transfer_are_too_many(root: DocumentRoot, said: bytes) -> None:
    server = Server(root).log_in().says(b"PASV\r\nRETR film.bin\r\n").says(said)
    assert server.codes == [227, 421] and server.stream.closed and not server.stream.held
