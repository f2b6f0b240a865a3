"""RTSP on a byte stream: whole messages come out, however the bytes come in, and nothing grows without a limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.rtsp.message import (
    LIMIT_BODY,
    LIMIT_FRAME,
    LIMIT_HEAD,
    LIMIT_HEADERS,
    REASONS,
    Answered,
    Interleaved,
    Reader,
    Request,
    RtspMalformed,
    response,
)

OPTIONS = b"OPTIONS rtsp://vip/clip.ts RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: Lavf\r\n\r\n"
PARAMETERS = b"GET_PARAMETER * RTSP/1.0\nCSeq: 2\nContent-Length: 10\n\n$a\r\n\r\nnow."
FRAME = b"$\x01\x00\x05RR\r\n\r"
ANSWER = b"RTSP/1.0 200 OK\r\nCSeq: 4\r\nContent-Length: 3\r\n\r\nabc"


def read(*pieces: bytes) -> list[Request | Interleaved | Answered]:
    reader, found = Reader(), []
    for piece in pieces:
        reader.feed(piece)
        while (message := reader.next()) is not None:
            found.append(message)
    return found


def malformed(data: bytes) -> RtspMalformed:
    with pytest.raises(RtspMalformed) as caught:
        read(data)
    return caught.value


def test_requests_frames_and_answers_come_out_in_their_order() -> None:
    stream = b"\r\n" + OPTIONS + FRAME + b"\n" + PARAMETERS + ANSWER + OPTIONS
    assert read(stream) == [
        Request("OPTIONS", "rtsp://vip/clip.ts", {"cseq": "1", "user-agent": "Lavf"}),
        Interleaved(1, b"RR\r\n\r"),
        Request("GET_PARAMETER", "*", {"cseq": "2", "content-length": "10"}, b"$a\r\n\r\nnow."),
        Answered(),
        Request("OPTIONS", "rtsp://vip/clip.ts", {"cseq": "1", "user-agent": "Lavf"}),
    ]


@given(st.lists(st.integers(0, 200), max_size=20))
def test_it_does_not_matter_how_the_bytes_come(cuts: list[int]) -> None:
    stream = OPTIONS + FRAME + PARAMETERS + ANSWER + OPTIONS
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(places)]
    assert read(*pieces) == read(stream)
    assert len(read(stream)) == 5


def test_what_is_pending_makes_the_same_messages_elsewhere() -> None:
    reader = Reader()
    reader.feed(OPTIONS + PARAMETERS[:60])
    assert reader.next() is not None and reader.next() is None
    other = Reader(reader.pending)
    other.feed(PARAMETERS[60:])
    assert other.next() == read(PARAMETERS)[0]


def test_headers_that_come_twice_are_one_list() -> None:
    (request,) = read(b"SETUP rtsp://vip/a RTSP/1.0\r\nRequire: a\r\nCSeq:7\r\nrequire :\tb\r\n\r\n")
    assert isinstance(request, Request)
    assert (request.headers["require"], request.cseq) == ("a, b", 7)


@pytest.mark.parametrize("number", ["", "x", "-1", "1 2", "12345678901", "\u0661"])
def test_a_sequence_number_is_digits(number: str) -> None:
    assert Request("OPTIONS", "*", {"cseq": number}).cseq is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS rtsp://vip/ RTSP/2.0\r\nCSeq: 3\r\n\r\n", 505),
        (b"OPTIONS  rtsp://vip/ RTSP/1.0\r\n\r\n", 400),
        (b"OPTIONS\r\n\r\n", 400),
        (b"OPT(ONS * RTSP/1.0\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nno header\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: a\x00b\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: a\r\n folded\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: \xff\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: -1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: %d\r\n\r\n" % (LIMIT_BODY + 1), 413),
        (b"OPTIONS * RTSP/1.0\r\n" + b"X: y\r\n" * (LIMIT_HEADERS + 1) + b"\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: " + b"y" * LIMIT_HEAD, 413),
        (b"$\0" + LIMIT_FRAME.to_bytes(2, "big"), 413),
    ],
)
def test_what_cannot_be_understood_has_its_status(data: bytes, status: int) -> None:
    assert malformed(data).status == status


def test_a_refusal_can_still_be_numbered() -> None:
    assert malformed(b"OPTIONS * RTSP/2.0\r\nCSeq: 3\r\n\r\n").cseq == 3


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: f"{text}\r\n\r\n".encode()))
def test_no_input_does_more_than_be_malformed(data: bytes) -> None:
    try:
        read(data, b"\r\n\r\n")
    except RtspMalformed as error:
        assert error.status in REASONS


@given(st.binary(max_size=120), st.integers(0, 100))
def test_damage_to_a_request_does_no_more_than_that_either(damage: bytes, place: int) -> None:
    try:
        read(OPTIONS[:place] + damage + OPTIONS[place:])
    except RtspMalformed as error:
        assert error.status in REASONS


def test_a_response_is_what_its_reader_expects() -> None:
    assert response(454, 9, [("Server", "x")]) == b"RTSP/1.0 454 Session Not Found\r\nCSeq: 9\r\nServer: x\r\n\r\n"
    assert response(200, None, body=b"abc").endswith(b"\r\nContent-Length: 3\r\n\r\nabc")
