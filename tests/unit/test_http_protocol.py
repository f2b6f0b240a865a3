"""HTTP over a stream that only records: what is planned for which input, and how a backup goes on in the middle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h11
import pytest

from dataplane.http import HttpApplication
from dataplane.http.protocol import HttpSection
from dataplane.objects import DocumentRoot, OpenObject
from dataplane.sequence import Seq
from dataplane.sequence_map import SequenceMap
from dataplane.stack import make_block
from state.datablock import DataBlock, FourTuple
from state.errors import CheckpointRefused
from tests.unit.builders import ISS, document_root, four_tuple, header, wire

FILM = bytes(i % 251 for i in range(3000))
GET = b"GET /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n"
HEAD = b"HEAD /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n"
AHEAD = 16


class RecordingStream:
    """A `stack.Stream` over a real sequence map: what was planned can be read as the client would."""

    def __init__(self) -> None:
        self.map = SequenceMap(ISS)
        self.opened: dict[str, OpenObject] = {}
        self.closed = False
        self.was_reset = False

    @property
    def connection(self) -> FourTuple:
        return four_tuple()

    def write(self, data: bytes) -> Seq:
        assert not self.closed, "nothing follows the end"
        return self.map.literal(data)

    def send_object(self, opened: OpenObject, offset: int, length: int) -> Seq:
        self.opened[opened.ref.identifier] = opened
        return self.map.object(opened.ref, offset, length)

    def seq_of(self, identifier: str, offset: int) -> Seq:
        return self.map.seq_of(identifier, offset)

    def close(self) -> None:
        self.closed = True

    def reset(self) -> None:
        self.was_reset = True

    @property
    def unsent(self) -> int:
        return self.map.end

    @property
    def bytes(self) -> bytes:
        out = b""
        for extent in self.map:
            if extent.literal is not None:
                out += extent.literal
            else:
                assert extent.object is not None
                opened = self.opened[self.map.objects[extent.object].identifier]
                out += os.pread(opened.fd, extent.length, extent.offset)
        return out


class Server:
    """An application with its stream, as a client reaches it."""

    def __init__(self, root: DocumentRoot, application: HttpApplication | None = None) -> None:
        self.stream = RecordingStream()
        self.root = root
        self.application = application or HttpApplication(root)
        if application is None:
            self.application.opened(self.stream)

    def says(self, data: bytes) -> Server:
        """Input arrives; a connection that is closing reads it and passes nothing on."""
        if not self.stream.closed:
            self.application.received(data)
        return self

    def responses(self, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """(status, headers, body) of each, as h11 reads them; `GET` unless told otherwise."""
        found = []
        data, number = self.stream.bytes, 0
        while data:
            client = h11.Connection(h11.CLIENT)
            method = methods[number] if number < len(methods) else "GET"
            client.send(h11.Request(method=method, target="/", headers=[("Host", "vip")]))
            client.send(h11.EndOfMessage())
            client.receive_data(data)
            response, body = client.next_event(), b""
            assert isinstance(response, h11.Response), response
            while isinstance(event := client.next_event(), h11.Data):
                body += bytes(event.data)
            assert isinstance(event, h11.EndOfMessage), event
            data = client.trailing_data[0]
            number += 1
            headers = {name.decode(): value.decode() for name, value in response.headers}
            found.append((response.status_code, headers, body))
        return found

    @property
    def pending(self) -> bytes:
        block = make_block(header(), (self.application,))
        return DataBlock.decode(block.encode()).section("http/1.1", HttpSection).pending

    def dies(self) -> Server:
        """The backup's, from the checkpoint of this moment; told *ready* with its own recording stream."""
        block = DataBlock.decode(make_block(header(), (self.application,)).encode())
        backup = Server(self.root, HttpApplication.unready(self.root, block))
        assert backup.stream.map.end == 0
        backup.stream.closed = self.stream.closed
        backup.application.ready(backup.stream, self.stream.map.end)
        return backup


@pytest.fixture
def root(tmp_path: Path) -> Iterator[DocumentRoot]:
    with document_root(tmp_path, film=FILM, empty=b"") as made:
        yield made


@pytest.fixture
def server(root: DocumentRoot) -> Server:
    return Server(root)


# --- a response is two extents ---
def test_a_response_is_a_literal_header_and_a_run_of_the_object(server: Server) -> None:
    server.says(GET)
    head, body = server.stream.map.extents
    assert head.literal is not None
    assert head.literal.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.literal.endswith(b"\r\n\r\n")
    assert (body.object, body.offset, body.length) == (0, 0, len(FILM))
    assert server.stream.map.objects[0].identifier == "/film.bin"
    assert server.stream.seq_of("/film.bin", 0) == wire(len(head.literal))
    ((status, headers, content),) = server.responses()
    assert (status, content, headers["content-length"]) == (200, FILM, "3000")
    assert not server.stream.closed


def test_a_range_is_a_run_from_its_offset(server: Server) -> None:
    server.says(GET[:-2] + b"Range: bytes=1000-1999\r\n\r\n")
    assert (server.stream.map.extents[1].offset, server.stream.map.extents[1].length) == (1000, 1000)
    ((status, headers, content),) = server.responses()
    assert (status, content, headers["content-range"]) == (206, FILM[1000:2000], "bytes 1000-1999/3000")


def test_head_has_the_facts_of_get_and_no_body(server: Server) -> None:
    server.says(HEAD + GET)
    (_, facts, nothing), (_, of_get, content) = server.responses("HEAD", "GET")
    assert facts == of_get
    assert (nothing, content) == (b"", FILM)


def test_a_range_is_of_get_only(server: Server) -> None:
    """RFC 9110, 14.2: with any other method a server must ignore it."""
    server.says(HEAD[:-2] + b"Range: bytes=1000-1999\r\n\r\n")
    ((status, headers, _),) = server.responses("HEAD")
    assert (status, headers["content-length"]) == (200, "3000")


def test_an_empty_file_and_one_that_was_not_modified_have_no_body(server: Server) -> None:
    server.says(b"GET /empty.bin HTTP/1.1\r\nHost: vip\r\n\r\n" + GET[:-2] + b"If-None-Match: *\r\n\r\n" + GET)
    assert [(status, body) for status, _, body in server.responses()] == [(200, b""), (304, b""), (200, FILM)]


# --- many requests ---
def test_a_connection_is_kept_and_requests_follow_each_other(server: Server) -> None:
    for _ in range(3):
        server.says(GET)
        server.application.drained()
    assert [body for _, _, body in server.responses()] == [FILM] * 3
    assert not server.stream.closed


def test_requests_cut_anywhere_are_answered_alike(root: DocumentRoot) -> None:
    for cut in range(1, len(GET + HEAD)):
        server = Server(root)
        server.says((GET + HEAD)[:cut]).says((GET + HEAD)[cut:])
        assert [(status, body) for status, _, body in server.responses("GET", "HEAD")] == [(200, FILM), (200, b"")]


def test_pipelined_requests_are_answered_in_order_and_only_so_many_ahead(server: Server) -> None:
    requests = [GET[:-2] + b"Range: bytes=%d-%d\r\n\r\n" % (n, n) for n in range(AHEAD + 4)]
    server.says(b"".join(requests))
    assert [body for _, _, body in server.responses()] == [FILM[n : n + 1] for n in range(AHEAD)]
    assert server.pending == b"".join(requests[AHEAD:])
    server.application.drained()
    assert [body for _, _, body in server.responses()] == [FILM[n : n + 1] for n in range(AHEAD + 4)]
    assert server.pending == b""


@pytest.mark.parametrize(
    "last", [GET[:-2] + b"Connection: close\r\n\r\n", b"GET /film.bin HTTP/1.0\r\n\r\n"], ids=["close", "1.0"]
)
def test_after_the_last_request_the_connection_closes_in_good_order(server: Server, last: bytes) -> None:
    server.says(GET + last + GET)
    assert [status for status, _, _ in server.responses()] == [200, 200]
    assert server.stream.closed
    server.application.received(GET)
    server.application.drained()
    assert len(server.responses()) == 2


def test_a_client_that_ends_its_input_gets_what_it_asked_for(server: Server) -> None:
    server.says(GET)
    server.application.input_ended()
    assert [body for _, _, body in server.responses()] == [FILM]
    assert server.stream.closed


def test_a_client_that_ends_within_a_request_is_told(server: Server) -> None:
    server.says(GET[:20])
    server.application.input_ended()
    assert [status for status, _, _ in server.responses()] == [400]
    assert server.stream.closed


# --- refusals ---
@pytest.mark.parametrize(
    ("request_", "status", "closes"),
    [
        (b"GET /missing HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET /../film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"GET /%2e%2e/film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"GET //[ HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"DELETE /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 405, False),
        (b"POST /film.bin HTTP/1.1\r\nHost: vip\r\nContent-Length: 5\r\n\r\nhello", 413, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", 413, True),
        (b"GET /film.bin HTTP/1.1\r\n\r\n", 400, True),
        (b"rubbish\r\n\r\n", 400, True),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nX: " + b"x" * 20_000, 431, True),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    server: Server, request_: bytes, status: int, closes: bool
) -> None:
    server.says(request_)
    ((found, headers, body),) = server.responses()
    assert found == status
    assert body.endswith(b"\n")
    assert server.stream.closed == closes
    if status == 405:
        assert headers["allow"] == "GET, HEAD"
    if not closes:
        server.says(GET)
        assert server.responses()[1][2] == FILM


def test_too_much_input_ahead_is_refused(server: Server) -> None:
    server.says(GET * (AHEAD + 1))
    server.says(GET * 1000)
    statuses = [status for status, _, _ in server.responses()]
    assert statuses == [200] * AHEAD + [431]
    assert server.stream.closed


# --- takeover ---
def test_half_a_request_is_carried_and_answered_where_its_rest_arrives(root: DocumentRoot) -> None:
    for cut in range(1, len(GET)):
        server = Server(root).says(GET[:cut])
        assert server.pending == GET[:cut]
        backup = server.dies()
        assert backup.stream.map.end == 0
        backup.says(GET[cut:])
        assert [body for _, _, body in backup.responses()] == [FILM]


def test_what_was_answered_is_not_answered_again(server: Server) -> None:
    server.says(GET + HEAD[:10])
    assert server.pending == HEAD[:10]
    backup = server.dies().says(HEAD[10:] + GET)
    assert [body for _, _, body in backup.responses("HEAD", "GET")] == [b"", FILM]


def test_requests_that_wait_behind_others_are_answered_by_the_backup(server: Server) -> None:
    backup = server.says(GET * (AHEAD + 3)).dies()
    assert [body for _, _, body in backup.responses()] == [FILM] * 3


def test_an_unready_application_sends_nothing_and_survives_another_death(root: DocumentRoot) -> None:
    block = make_block(header(), (Server(root).says(GET[:30]).application,))
    first = HttpApplication.unready(root, block)
    again = make_block(header(), (first,))
    assert again.section("http/1.1", HttpSection) == HttpSection(pending=GET[:30])


def test_after_the_last_response_a_backup_says_nothing_more(server: Server) -> None:
    """The connection is closing: what the client sent behind its last request has no answer, here as there."""
    server.says(GET[:-2] + b"Connection: close\r\n\r\n" + GET)
    assert server.stream.closed
    assert server.dies().stream.bytes == b""


@pytest.mark.parametrize("data", [b"rubbish\r\n\r\n", GET[:-2] + b"X: " + b"x" * 20_000], ids=["400", "431"])
def test_a_refusal_is_not_repeated_by_the_backup(server: Server, data: bytes) -> None:
    server.says(data)
    assert server.stream.closed
    assert server.dies().stream.bytes == b""


def test_a_body_that_arrives_at_the_backup_is_not_taken_for_a_request(server: Server) -> None:
    """A head without a response is still pending, even if the server has read it and waits for the body."""
    server.says(b"POST /film.bin HTTP/1.1\r\nHost: vip\r\nContent-Length: %d\r\n\r\n" % len(GET))
    backup = server.dies().says(GET)
    assert [status for status, _, _ in server.responses() + backup.responses()] == [413]


def test_pending_input_beyond_its_limit_is_refused(root: DocumentRoot) -> None:
    block = DataBlock(header())
    block.append("http/1.1", HttpSection(pending=b"x" * (64 * 1024 + 1)))
    with pytest.raises(CheckpointRefused) as caught:
        HttpApplication.unready(root, block)
    assert caught.value.field == "http/1.1"


# --- the files ---
def test_objects_that_are_not_sent_are_released_and_others_are_the_streams(server: Server) -> None:
    server.says(HEAD + GET[:-2] + b"If-None-Match: *\r\n\r\n" + GET[:-2] + b"Range: bytes=3000-\r\n\r\n")
    assert server.stream.opened == {}
    kept = server.root.open("/film.bin")
    assert kept.users == 1
    server.says(GET)
    assert server.stream.opened["/film.bin"] is kept
    assert kept.users == 2


def test_an_application_that_has_ended_plans_nothing(server: Server) -> None:
    server.says(GET * (AHEAD + 1))
    planned = server.stream.map.end
    server.application.ended()
    server.application.drained()
    server.says(GET)
    server.application.input_ended()
    assert server.stream.map.end == planned
