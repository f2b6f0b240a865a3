"""Slow and malicious clients of HTTP: every wait has its limit, and what may be planned has one, too. No test waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.http import HttpApplication
from dataplane.objects import DocumentRoot
from dataplane.stack import make_block
from state.configuration import Serving
from state.datablock import DataBlock
from tests.unit.builders import document_root, header
from tests.unit.http_server import AHEAD, FILM, GET, LIMITS, Server

HEADER, IDLE, SEND = 15.0, 120.0, 300.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[DocumentRoot]:
    with document_root(tmp_path, film=FILM) as made:
        yield made


@pytest.fixture
def server(root: DocumentRoot) -> Server:
    return Server(root)


def acknowledged(server: Server, up_to: int | None = None) -> Server:
    """The client takes bytes, all of them when not told otherwise."""
    server.stream.acknowledged = server.stream.map.end if up_to is None else up_to
    return server


# --- nothing is asked ---
def test_a_connection_on_which_nothing_is_asked_is_closed_in_good_order(server: Server) -> None:
    assert server.stream.waits == [IDLE]
    server.stream.late()
    assert server.stream.closed
    assert not server.stream.was_reset
    assert server.stream.bytes == b""


def test_the_time_between_two_requests_begins_when_the_answer_was_given(server: Server) -> None:
    server.says(GET)
    assert server.stream.waits == [IDLE, SEND]
    acknowledged(server.drains())
    assert server.stream.waits == [IDLE, SEND, IDLE]
    server.stream.late()
    assert server.stream.closed
    assert [body for _, _, body in server.responses()] == [FILM]


def test_a_client_that_still_takes_the_last_answer_is_not_idle(server: Server) -> None:
    acknowledged(server.says(GET).drains(), 100)
    server.stream.late()
    assert not server.stream.closed
    assert server.stream.waits[-1] == SEND
    acknowledged(server)
    server.stream.late()
    assert not server.stream.closed
    assert server.stream.waits[-1] == IDLE, "from now on it is"


# --- half a request ---
def test_a_request_that_is_not_complete_in_time_is_answered_with_408(server: Server) -> None:
    server.says(GET[:20])
    assert server.stream.waits == [IDLE, HEADER]
    server.stream.late()
    ((status, headers, _),) = server.responses()
    assert (status, headers["connection"]) == (408, "close")
    assert server.stream.closed
    assert server.stream.waits[-1] == SEND, "and the client has so long to take the answer"


def test_a_byte_now_and_then_does_not_prolong_the_time(server: Server) -> None:
    for byte in GET[:-1]:
        server.says(bytes([byte]))
    assert server.stream.waits == [IDLE, HEADER]


def test_the_rest_of_a_request_behind_an_answer_has_its_time_from_when_the_answer_was_given(server: Server) -> None:
    server.says(GET + GET[:10])
    assert server.stream.waits == [IDLE, SEND]
    server.drains()
    assert server.stream.waits == [IDLE, SEND, HEADER]
    server.says(GET[10:])
    assert len(server.responses()) == 2
    assert server.stream.waits[-1] == SEND


def test_empty_lines_are_no_beginning_of_a_request(server: Server) -> None:
    server.says(b"\r\n").says(b"\r").says(b"\n\n")
    assert server.stream.waits == [IDLE]


# --- a client that takes nothing ---
def test_a_client_that_takes_nothing_is_reset_and_one_that_takes_little_is_not(server: Server) -> None:
    server.says(GET)
    for taken in (1, 2, 1000):
        acknowledged(server, taken).stream.late()
        assert not server.stream.was_reset
        assert server.stream.waits[-1] == SEND
    server.stream.late()
    assert server.stream.was_reset


def test_a_client_that_asks_for_more_and_takes_nothing_is_reset(server: Server) -> None:
    for _ in range(AHEAD + 3):
        server.says(GET)
    planned = len(server.stream.waits)
    server.says(GET)
    assert len(server.stream.waits) == planned, "a request that is not answered is no progress"
    server.stream.late()
    assert server.stream.was_reset


def test_a_client_that_takes_nothing_of_the_last_answer_is_reset(server: Server) -> None:
    server.says(b"GET /film.bin HTTP/1.0\r\n\r\n")
    assert server.stream.closed
    assert server.stream.waits[-1] == SEND
    server.stream.late()
    assert server.stream.was_reset


# --- room for answers ---
def test_without_room_requests_wait_and_are_not_late(server: Server) -> None:
    server.stream.room = False
    server.says(GET)
    assert server.stream.bytes == b""
    assert server.pending == GET
    assert server.stream.waits == [IDLE, SEND]
    server.stream.room = True
    server.application.drained()
    assert [body for _, _, body in server.responses()] == [FILM]


# --- takeover ---
@pytest.mark.parametrize(
    ("data", "limit"), [(b"", IDLE), (GET[:20], HEADER), (GET * (AHEAD + 1), SEND)], ids=["idle", "half", "ahead"]
)
def test_where_a_backup_goes_on_the_limits_begin_anew(root: DocumentRoot, data: bytes, limit: float) -> None:
    server = Server(root)
    if data:
        server.says(data)
    backup = server.dies()
    assert backup.stream.waits == [limit]


def test_what_the_old_owner_had_planned_is_watched_by_the_new_one(server: Server) -> None:
    block = DataBlock.decode(make_block(header(), (server.says(GET).application,)).encode())
    backup = Server(server.root, HttpApplication.unready(server.root, block, LIMITS))
    backup.stream.map.literal(b"x" * 500)  # what the stream's own section brought
    backup.application.ready(backup.stream, 0)
    assert backup.stream.waits == [SEND]
    backup.stream.late()
    assert backup.stream.was_reset


def test_an_application_that_has_ended_does_not_wake(server: Server) -> None:
    server.says(GET[:5])
    server.application.ended()
    server.stream.late()  # the connection cancels it; even if not
    assert server.stream.bytes == b""


# --- the server stops ---
def test_a_server_that_stops_ends_each_connection_with_its_next_answer(server: Server) -> None:
    server.says(GET).drains()
    server.application.stopping()
    assert not server.stream.closed
    server.says(GET + GET)
    assert [headers.get("connection") for _, headers, _ in server.responses()] == [None, "close"]
    assert server.stream.closed


# --- the limits are the operator's ---
def test_the_configured_limits_are_the_ones_that_hold(root: DocumentRoot) -> None:
    server = Server(root, limits=Serving(header_bytes=1024, header=100, idle=200, send=1000))
    server.says(GET[:10]).says(GET[10:]).drains()
    assert server.stream.waits == [0.2, 0.1, 1.0, 0.2]
    server.says(GET[:-2] + b"X: " + b"x" * 1024 + b"\r\n\r\n")
    assert [status for status, _, _ in server.responses()] == [200, 431]
