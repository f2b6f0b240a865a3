"""The access log: its lines, what they never say, and that a reader who sleeps stops nobody."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import access_log
from dataplane.access_log import LOGGER, AccessLog, line
from dataplane.objects import DocumentRoot
from tests.unit.builders import CLIENT, CLIENT6, document_root
from tests.unit.http_server import FILM, GET, HEAD, Server

WHEN = 1_000_000_000.9


def target(text: bytes) -> str:
    return line(CLIENT, WHEN, (b"GET", text, b"1.1"), 200, 5).split('"')[1]


def test_a_line_has_the_common_log_format() -> None:
    assert (
        line(CLIENT, WHEN, (b"GET", b"/film.bin", b"1.1"), 206, 1000)
        == '10.0.0.7 - - [09/Sep/2001:01:46:40 +0000] "GET /film.bin HTTP/1.1" 206 1000'
    )
    assert line(CLIENT6, WHEN, None, 408, 43) == 'fd00::7 - - [09/Sep/2001:01:46:40 +0000] "-" 408 43'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"/a?token=secret", "/a"),
        (b"/a#secret", "/a"),
        (b"http://user:secret@vip/a?secret", "/a"),
        (b"https://user:secret@vip", "/"),
        (b"*", "*"),
        (b'/a"b\\c', "/a\\x22b\\x5cc"),
        (b"/a%0Ab", "/a%0Ab"),
        (b"/\x1b[31m\n", "/\\x1b[31m\\x0a"),
        (b"/" + b"x" * 5000, "/" + "x" * 1023),
    ],
)
def test_only_the_path_is_shown_and_it_cannot_break_the_line(text: bytes, shown: str) -> None:
    assert target(text) == f"GET {shown} HTTP/1.1"


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_whatever_is_asked_a_line_is_a_line_of_plain_text(method: bytes, text: bytes) -> None:
    made = line(CLIENT, WHEN, (method, text, b"1.1"), 200, 5)
    assert made.isprintable()
    assert made.isascii()
    assert made.count('"') == 2


# --- the handler ---
@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """Left as it was."""
    logger = logging.getLogger(LOGGER)
    level, propagate = logger.level, logger.propagate
    yield logger
    logger.setLevel(level)
    logger.propagate = propagate
    assert not any(isinstance(handler, AccessLog) for handler in logger.handlers)


def test_each_response_is_one_line_where_it_is_decided(tmp_path: Path) -> None:
    out = io.StringIO()
    log = AccessLog(out)
    log.start()
    with document_root(tmp_path, film=FILM) as root:
        server = Server(root).says(GET + HEAD + GET[:-2] + b"Range: bytes=0-9\r\nCookie: secret\r\n\r\n" + GET[:9])
        backup = server.dies().says(GET[9:] + b"GET /missing?secret HTTP/1.1\r\nHost: vip\r\n\r\n" + b"rubbish\r\n\r\n")
    log.close()
    assert backup.stream.closed
    lines = out.getvalue().splitlines()
    assert [entry.split("] ")[1] for entry in lines] == [
        '"GET /film.bin HTTP/1.1" 200 3000',
        '"HEAD /film.bin HTTP/1.1" 200 0',
        '"GET /film.bin HTTP/1.1" 206 10',
        '"GET /film.bin HTTP/1.1" 200 3000',
        '"GET /missing HTTP/1.1" 404 24',
        f'"-" 400 {len(backup.responses()[-1][2])}',
    ]
    assert {entry.split(" - - [")[0] for entry in lines} == {"10.0.0.7"}
    assert "secret" not in out.getvalue()


class Stuck(io.StringIO):
    """Nobody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.release = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.release.wait()
        return super().write(text)


def test_a_reader_who_sleeps_stops_nobody_and_lines_beyond_a_limit_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "_LIMIT_WAITING", 3)
    out = Stuck()
    log = AccessLog(out)
    log.start()
    access_log.write(CLIENT, WHEN, None, 200, 0)
    assert out.reached.wait(5)
    for status in range(201, 206):
        access_log.write(CLIENT, WHEN, None, status, 0)
    assert log.dropped == 2
    out.release.set()
    log.close()
    assert [entry.split()[-2] for entry in out.getvalue().splitlines()][:1] == ["200"]


def test_switched_off_nothing_is_even_formatted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    access_log.switch_off()
    monkeypatch.setattr(access_log, "line", lambda *_: pytest.fail("formatted"))
    with document_root(tmp_path, film=FILM) as root:
        made: DocumentRoot = root
        Server(made).says(GET)
