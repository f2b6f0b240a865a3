"""HTTP over a stream that only records: what is planned for which input, and how a backup goes on in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.http import HttpApplication
from dataplane.http.protocol import HttpSection
from dataplane.objects import DocumentRoot
from dataplane.stack import make_block
from state.configuration import LIMIT_HEADER_BYTES
from state.datablock import DataBlock
from state.errors import CheckpointRefused
from tests.unit.builders import document_root, header, wire
from tests.unit.http_server import AHEAD, FILM, GET, HEAD, Server


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


def test_several_ranges_are_literal_part_headers_between_runs_of_the_object(server: Server) -> None:
    server.says(GET[:-2] + b"Range: bytes=2000-2999,0-99\r\n\r\n")
    extents = server.stream.map.extents
    assert [extent.object for extent in extents] == [None, 0, None, 0, None]
    assert [(extents[n].offset, extents[n].length) for n in (1, 3)] == [(2000, 1000), (0, 100)]
    ((status, headers, content),) = server.responses()
    assert (status, headers["content-length"]) == (206, str(len(content)))
    boundary = headers["content-type"].removeprefix("multipart/byteranges; boundary=").encode()
    first, second = content.split(b"--" + boundary)[1:-1]
    assert first == (
        b"\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 2000-2999/3000\r\n\r\n"
        + FILM[2000:]
        + b"\r\n"
    )
    assert second.endswith(b"Content-Range: bytes 0-99/3000\r\n\r\n" + FILM[:100] + b"\r\n")
    opened = server.stream.opened["/film.bin"]
    assert opened.users == 2, "one for each run; the stream keeps them"


# --- many requests ---
def test_a_connection_is_kept_and_requests_follow_each_other(server: Server) -> None:
    for _ in range(3):
        server.says(GET).drains()
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
    server.drains()
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


# --- other forms of requests ---
@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET http://vip/film.bin?token=x HTTP/1.1\r\nHost: vip\r\n\r\n", 200, FILM),
        (b"GET HTTP://other:8080/film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 200, FILM),
        (b"GET /%66ilm%2Ebin HTTP/1.1\r\nHost: vip\r\n\r\n", 200, FILM),
        (b"GET /.//film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 200, FILM),
        (b"\r\n\r\n" + GET, 200, FILM),
        (GET.replace(b"\r\n", b"\n"), 200, FILM),
        (GET[:-2] + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 200, FILM),
        (GET[:-2] + b"Expect: 100-continue\r\n\r\n", 200, FILM),
        (GET[:-2] + b"Content-Length: 0\r\n\r\n", 200, FILM),
        (GET[:-2] + b'If-None-Match: "a"\r\nIf-None-Match: "de0b6b3a7640000-bb8"\r\n\r\n', 304, b""),
        (b"OPTIONS /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 204, b""),
        (b"OPTIONS * HTTP/1.1\r\nHost: vip\r\n\r\n", 204, b""),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else str(value),
)
def test_requests_of_every_form_are_answered_and_others_may_follow(
    server: Server, request_: bytes, status: int, body: bytes
) -> None:
    server.says(request_).drains().says(GET)
    assert [(status, body) for status, _, body in server.responses()] == [(status, body), (200, FILM)]


def test_a_client_of_http_1_0_needs_no_host_and_gets_its_answer_and_the_end(server: Server) -> None:
    server.says(b"GET /film.bin HTTP/1.0\r\nRange: bytes=1-2\r\nConnection: keep-alive\r\n\r\n")
    ((status, headers, body),) = server.responses()
    assert (status, body, headers["connection"]) == (206, FILM[1:3], "close")
    assert server.stream.closed


def test_a_body_that_comes_with_its_header_is_what_is_refused(server: Server) -> None:
    """Not the length of what came: that is the body's."""
    server.says(b"PUT /x HTTP/1.1\r\nHost: vip\r\nContent-Length: 5000000\r\n\r\n" + bytes(64 * 1024))
    assert [status for status, _, _ in server.responses()] == [413]


def test_nobody_is_told_to_continue(server: Server) -> None:
    """RFC 9110, 10.1.1: a final status instead of 100 for a body that is refused."""
    server.says(b"PUT /x HTTP/1.1\r\nHost: vip\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
    assert server.stream.bytes.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
    assert server.stream.closed


# --- refusals ---
@pytest.mark.parametrize(
    ("request_", "status", "closes"),
    [
        (b"GET /missing HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET /../film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"GET /%2e%2e/film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"GET //[ HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET /film.bin/ HTTP/1.1\r\nHost: vip\r\n\r\n", 404, False),
        (b"GET /%zz HTTP/1.1\r\nHost: vip\r\n\r\n", 400, False),
        (b"DELETE /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 405, False),
        (b"CONNECT vip:80 HTTP/1.1\r\nHost: vip\r\n\r\n", 405, False),
        (b"BREW /film.bin HTTP/1.1\r\nHost: vip\r\n\r\n", 501, False),
        (GET[:-2] + b'If-Match: "x"\r\n\r\n', 412, False),
        (GET[:-2] + b"Range: bytes=3000-\r\n\r\n", 416, False),
        (GET[:-2] + b"Expect: coffee\r\n\r\n", 417, True),
        (b"POST /film.bin HTTP/1.1\r\nHost: vip\r\nContent-Length: 5\r\n\r\nhello", 413, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", 413, True),
        (b"PUT /x HTTP/1.1\r\nHost: vip\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", 413, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nTransfer-Encoding: gzip\r\n\r\n", 501, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nContent-Length: " + b"9" * 3000 + b"\r\n\r\n", 400, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nHost: other\r\n\r\n", 400, True),
        (b"GET /film.bin HTTP/2.0\r\nHost: vip\r\n\r\n", 505, True),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, True),
        (b"GET /film.bin HTTP/1.1\r\n\r\n", 400, True),
        (b"rubbish\r\n\r\n", 400, True),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nX: " + b"x" * 4096, 431, True),
        (b"GET /film.bin HTTP/1.1\r\nHost: vip\r\nX: " + b"x" * 4096 + b"\r\n\r\n", 431, True),
        (b"GET /" + b"x" * 5000, 414, True),
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
    assert ("connection" in headers) == closes
    if status in (405, 501) and not closes:
        assert headers["allow"] == "GET, HEAD, OPTIONS"
    if not closes:
        server.says(GET)
        assert server.responses()[1][2] == FILM


@pytest.mark.parametrize("between", [b"\r\n", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_empty_lines_between_requests_are_no_error(server: Server, between: bytes, pieces: int) -> None:
    said = between.join((b"", GET, HEAD, GET, b""))
    for start in range(0, len(said), pieces):
        server.says(said[start : start + pieces])
    assert [status for status, _, _ in server.responses("GET", "HEAD")] == [200, 200, 200]
    assert server.pending == b"" and not server.stream.closed
    server.application.input_ended()
    assert server.stream.closed


def test_a_client_that_is_ahead_waits_and_is_answered(server: Server) -> None:
    """As the stack reads: no more than `read_bytes` at once, and nothing while it is held."""
    said, piece = GET * 1000, server.application.read_bytes
    while said:
        while server.stream.held:
            server.drains()
        server.says(said[:piece])
        said = said[piece:]
        assert len(server.pending) <= 2 * LIMIT_HEADER_BYTES
        assert server.stream.held == (len(server.pending) >= len(GET))
    while server.stream.held:
        server.drains()
    assert [status for status, _, _ in server.responses()] == [200] * 1000


def test_a_client_that_is_refused_is_read_again(server: Server) -> None:
    """What it sends is thrown away, so that it reads its answer and no RST."""
    server.says(GET * (AHEAD + 1) + b"rubbish\r\n\r\n")
    assert server.stream.held
    server.drains()
    assert server.stream.closed and not server.stream.held


def test_too_much_input_ahead_is_refused(server: Server) -> None:
    server.says(GET * (AHEAD + 1))
    server.says(GET * 1000)
    statuses = [status for status, _, _ in server.responses()]
    assert statuses == [200] * AHEAD + [431]
    assert server.stream.closed


# --- anything at all ---
PIECES = [
    b"GET ",
    b"HEAD ",
    b"/film.bin",
    b"/missing",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b"\r\n",
    b"\n",
    b"Host: vip\r\n",
    b"Range: bytes=0-1,900-901\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Upgrade: x\r\n",
    b": ",
    b"\0",
    GET,
    HEAD,
    b"CONNECT vip HTTP/1.1\r\nHost: vip\r\n\r\n",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)), max_size=12), st.integers(0, 12))
def test_whatever_arrives_is_answered_in_http_or_waits_for_more(
    root: DocumentRoot, pieces: list[bytes], dies_before: int
) -> None:
    """Nothing raises; all that is sent is responses; and a backup that takes over anywhere sends the same."""
    undisturbed, server, before = Server(root), Server(root), b""
    for number, piece in enumerate(piece for piece in pieces if piece):
        if number == dies_before:
            before, server = server.stream.bytes, server.dies()
        undisturbed.says(piece)
        server.says(piece)
    assert before + server.stream.bytes == undisturbed.stream.bytes
    undisturbed.application.input_ended()
    data = undisturbed.stream.bytes
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        candidates = [0, int(fields.get(b"Content-Length", b"0"))]  # to HEAD, the length comes alone
        data = next(data[n:] for n in candidates if not data[n:] or data[n:].startswith(b"HTTP/1.1 "))


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


@pytest.mark.parametrize("data", [b"rubbish\r\n\r\n", GET[:-2] + b"X: " + b"x" * 5000], ids=["400", "431"])
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
