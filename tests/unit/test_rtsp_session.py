"""Dialogues: a request in, a response and the session out. The statuses are RFC 2326's own words for what was wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.rtp.mpegts import TransportStream
from dataplane.rtp.plan import Plan
from dataplane.rtsp.message import REASONS, Request, RtspError
from dataplane.rtsp.session import (
    METHODS,
    Decision,
    Facts,
    Found,
    Offers,
    Session,
    decide,
    ended,
    needs,
    session_id,
    stopped,
)
from state.sections import ObjectRef
from tests.unit.transport_streams import reader, steady

DATA = steady(70_000)
MEDIA = TransportStream.index(reader(DATA), len(DATA))
"""70 seconds: packet n at 630 n."""
CLIP = Found(ObjectRef("/clip.ts", len(DATA), 10**18, b""), MEDIA)
URL = "rtsp://vip/clip.ts"
UDP = "RTP/AVP;unicast;client_port=6000-6001"
TCP = "RTP/AVP/TCP;unicast;interleaved=2-3"
MULTICAST = "RTP/AVP;multicast"
SECOND = 10**9
NOW = 1_700_000_000 * SECOND


FACTS = Facts(
    now_ns=NOW,
    client="10.0.0.201",
    server="10.0.0.100",
    draw=lambda bits: 2**bits - 2,
    found=CLIP,
    offers=Offers(server_port=5004, group="239.255.1.2"),
)


class Client:
    """A client's side of a dialogue: `ask` returns the response's status and headers."""

    def __init__(self, facts: Facts = FACTS) -> None:
        self.facts = facts
        self.session: Session | None = None
        self._cseq = itertools.count(1)
        self.body = b""

    def ask(self, method: str, url: str = URL, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str]]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given.setdefault("cseq", str(next(self._cseq)))
        if self.session is not None:
            given.setdefault("session", self.session.id)
        request = Request(method, url, {name: value for name, value in given.items() if value != "none"}, body)
        known = self.session if self.session is not None and session_id(request) == self.session.id else None
        decision = decide(request, known, self.facts)
        if known is not None or decision.session is not None:
            self.session = decision.session
        return self._parsed(decision, given["cseq"] if request.cseq is not None else "none")

    def _parsed(self, decision: Decision, cseq: str) -> tuple[int, dict[str, str]]:
        head, _, self.body = decision.response.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first == f"RTSP/1.0 {decision.status} {REASONS[decision.status]}"
        headers = dict(line.split(": ", 1) for line in lines)
        assert headers.get("CSeq", "none") == cseq
        return decision.status, headers

    def later(self, seconds: float, sent: int | None = None) -> None:
        """Time goes by, and the plan with it."""
        now = self.facts.now_ns + int(seconds * SECOND)
        if sent is None and self.session is not None:
            ticks = (now - self.session.playing.began_ns) * 90_000 // SECOND
            sent = Plan(MEDIA, self.session.playing, "").due(ticks)
        self.facts = replace(self.facts, now_ns=now, sent=sent or 0)


def ready(transport: str = UDP) -> Client:
    client = Client()
    assert client.ask("SETUP", f"{URL}/trackID=0", transport=transport)[0] == 200
    return client


def playing(transport: str = UDP, **headers: str) -> Client:
    client = ready(transport)
    assert client.ask("PLAY", **headers)[0] == 200
    return client


# --- the way through ---
def test_options_says_what_is_possible() -> None:
    status, headers = Client().ask("OPTIONS", "*")
    assert (status, headers["Public"]) == (200, ", ".join(METHODS))


def test_a_description_is_sdp() -> None:
    client = Client()
    status, headers = client.ask("DESCRIBE", f"{URL}/", accept="application/sdp, text/plain")
    assert (status, headers["Content-Type"], headers["Content-Base"]) == (200, "application/sdp", f"{URL}/")
    lines = client.body.decode().split("\r\n")
    assert lines[0] == "v=0" and lines[-1] == "" and int(headers["Content-Length"]) == len(client.body)
    assert [line[:2] for line in lines if line[:1] != "a"] == ["v=", "o=", "s=", "t=", "m=", "c=", ""]
    assert "m=video 0 RTP/AVP 33" in lines and "a=rtpmap:33 MP2T/90000" in lines
    assert "a=range:npt=0-70.000" in lines and lines[-2] == "a=control:trackID=0"


def test_a_name_does_not_break_a_description() -> None:
    client = Client(replace(FACTS, found=Found(ObjectRef("/a\r\nb=evil", 1, 1, b""), MEDIA)))
    assert client.ask("DESCRIBE")[0] == 200
    assert b"s=/a??b=evil\r\n" in client.body


def test_setup_answers_with_both_ports_and_the_source() -> None:
    client = Client()
    status, headers = client.ask("SETUP", f"{URL}/trackID=0", transport=UDP)
    assert status == 200
    assert headers["Transport"] == ("RTP/AVP;unicast;client_port=6000-6001;server_port=5004-5005;ssrc=FFFFFFFE")
    assert client.session is not None and not client.session.active
    assert headers["Session"] == f"{client.session.id};timeout=60" and len(client.session.id) == 16
    assert client.session.way.address == "10.0.0.201"


def test_setup_of_interleaved_and_multicast() -> None:
    client = Client()
    assert client.ask("SETUP", transport=TCP)[1]["Transport"] == "RTP/AVP/TCP;unicast;interleaved=2-3;ssrc=FFFFFFFE"
    client = Client()
    assert client.ask("SETUP", transport=MULTICAST)[1]["Transport"] == (
        "RTP/AVP;multicast;destination=239.255.1.2;port=5004-5005;ttl=16;source=10.0.0.100"
    )


def test_play_says_with_which_packet_it_begins() -> None:
    client = ready()
    status, headers = client.ask("PLAY", f"{URL}/", range="npt=0.000-")
    assert status == 200 and client.session is not None and client.session.active
    assert headers["Range"] == "npt=0.000-70.000"
    assert headers["RTP-Info"] == f"url={URL}/trackID=0;seq=65534;rtptime=4294967294"
    assert client.session.playing.stop == MEDIA.packets and client.session.playing.began_ns == NOW


def test_a_pause_keeps_the_place_and_play_goes_on_there() -> None:
    client = playing()
    client.later(10)
    sent = client.facts.sent
    status, headers = client.ask("PAUSE")
    assert (status, headers["Range"]) == (200, "npt=10.003-")
    client.later(100)
    status, headers = client.ask("PLAY")
    assert (status, headers["Range"]) == (200, "npt=10.003-70.000")
    assert headers["RTP-Info"].endswith(f";seq={(65534 + sent) % 65536};rtptime={(2**32 - 2 + sent * 630) % 2**32}")
    assert client.session is not None and client.session.playing.octets == sent * 1316


def test_a_range_while_playing_goes_there_at_once_and_the_numbers_go_on() -> None:
    client = playing()
    client.later(10)
    _, headers = client.ask("PLAY", range="npt=50-60")
    assert headers["Range"] == "npt=49.994-60.004"
    assert f";seq={(65534 + client.facts.sent) % 65536};" in headers["RTP-Info"]


def test_play_while_playing_changes_nothing() -> None:
    client = playing()
    before = client.session
    client.later(10)
    status, headers = client.ask("PLAY")
    assert (status, client.session) == (200, before)
    assert headers["Range"] == "npt=10.003-70.000"


def test_after_the_end_play_begins_again() -> None:
    client = playing()
    assert client.session is not None
    client.session = ended(client.session, MEDIA)
    assert not client.session.active
    assert client.ask("PAUSE")[0] == 200, "it stands, as it should"
    assert not client.session.active
    status, headers = client.ask("PLAY")
    assert (status, headers["Range"]) == (200, "npt=0.000-70.000")
    assert f";seq={(65534 + MEDIA.packets) % 65536};" in headers["RTP-Info"]


def test_teardown_ends_the_session() -> None:
    client = playing()
    assert client.ask("TEARDOWN", f"{URL}/trackID=0")[0] == 200
    assert client.session is None
    assert client.ask("PLAY", session="deadbeefdeadbeef")[0] == 454


def test_a_transport_may_be_changed_before_playing() -> None:
    client = ready(UDP)
    first = client.session
    assert client.ask("SETUP", transport=TCP)[0] == 200
    assert first is not None and client.session is not None
    assert (client.session.id, client.session.way.kind) == (first.id, "interleaved")


def test_a_range_that_ends_before_now_is_none() -> None:
    client = playing()
    client.later(10)
    assert client.ask("PAUSE")[0] == 200
    assert client.ask("PLAY", range="npt=now-5")[0] == 457
    assert client.ask("PLAY", range="npt=now-11")[1]["Range"] == "npt=10.003-11.004"


# --- multicast ---
def test_who_plays_what_is_on_the_air_joins_it_where_it_is() -> None:
    first = playing(MULTICAST)
    second = ready(MULTICAST)
    first.later(20)
    assert first.session is not None
    second.facts = replace(first.facts, on_air=first.session.playing)
    status, headers = second.ask("PLAY", range="npt=0-")
    assert (status, headers["Range"]) == (200, "npt=20.006-70.000")
    assert second.session is not None
    assert second.session.playing == first.session.playing and second.session.active


def test_a_range_does_not_move_what_others_see() -> None:
    client = playing(MULTICAST)
    before = client.session
    client.later(20)
    assert client.ask("PLAY", range="npt=0-")[1]["Range"] == "npt=20.006-70.000"
    assert client.session == before


# --- refusals ---
@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("DESCRIBE", {"cseq": "none"}, 400),
        ("DESCRIBE", {"accept": "text/plain"}, 406),
        ("DESCRIBE", {"require": "com.example.x"}, 551),
        ("DESCRIBE", {"proxy_require": "com.example.x"}, 551),
        ("SETUP", {}, 400),
        ("SETUP", {"transport": "RTP/AVP;unicast;client_port=a"}, 400),
        ("SETUP", {"transport": "RTP/SAVP;unicast;client_port=1-2"}, 461),
        ("SETUP", {"transport": "RTP/AVP;unicast"}, 461),
        ("SETUP", {"transport": UDP + ";mode=record"}, 461),
        ("SETUP", {"transport": UDP + ";destination=10.0.0.202"}, 461),
        ("SETUP", {"transport": UDP + ";destination=example.org"}, 461),
        ("SETUP", {"transport": UDP, "session": "0123456789abcdef"}, 454),
        ("OPTIONS", {"session": "0123456789abcdef"}, 454),
        ("PLAY", {}, 454),
        ("PAUSE", {"session": ""}, 454),
        ("TEARDOWN", {"session": "x"}, 454),
        ("ANNOUNCE", {}, 405),
        ("RECORD", {}, 405),
        ("REDIRECT", {}, 405),
        ("options", {}, 501),
        ("BREW", {}, 501),
        ("SET_PARAMETER", {}, 451),
    ],
)
def test_without_a_session(method: str, headers: dict[str, str], status: int) -> None:
    client = Client()
    answered, shown = client.ask(method, **headers)
    assert answered == status and client.session is None
    assert client.body and int(shown["Content-Length"]) == len(client.body)
    assert (status != 551) or shown["Unsupported"] == "com.example.x"
    assert (status != 405) or "PLAY" in shown["Allow"]


@pytest.mark.parametrize(
    ("state", "method", "headers", "status"),
    [
        ("ready", "PAUSE", {}, 455),
        ("playing", "SETUP", {"transport": UDP}, 455),
        ("playing", "PAUSE", {"range": "npt=30-"}, 456),
        ("ready", "PLAY", {"range": "npt=70-"}, 457),
        ("ready", "PLAY", {"range": "npt=10-9"}, 457),
        ("ready", "PLAY", {"range": "smpte=0:00:10-"}, 457),
        ("ready", "PLAY", {"range": "npt=999999999-"}, 457),
        ("ready", "PLAY", {"range": "soon"}, 400),
        ("ready", "PLAY", {"url": "rtsp://vip/other.ts"}, 459),
        ("ready", "SETUP", {"url": "rtsp://vip/other.ts", "transport": UDP}, 459),
        ("playing", "TEARDOWN", {"url": "rtsp://vip/other.ts"}, 459),
        ("ready", "PLAY", {"url": "rtsp://vip/../clip.ts"}, 400),
        ("ready", "GET_PARAMETER", {"body": b"packets_received\r\n"}, 451),
        ("ready", "SET_PARAMETER", {}, 451),
    ],
)
def test_a_refusal_leaves_the_session_as_it_was(
    state: str, method: str, headers: dict[str, str | bytes], status: int
) -> None:
    client = ready() if state == "ready" else playing()
    before = client.session
    assert client.ask(method, **headers)[0] == status  # type: ignore[arg-type]
    assert client.session == before


def test_what_the_server_cannot_offer_is_an_unsupported_transport() -> None:
    nothing = replace(FACTS, offers=Offers(interleaved=False))
    for transport in (UDP, TCP, MULTICAST):
        assert Client(nothing).ask("SETUP", transport=transport)[0] == 461
    assert Client(nothing).ask("SETUP", transport=f"{MULTICAST},{TCP}")[0] == 461


def test_the_first_transport_that_can_be_is_taken() -> None:
    client = Client(replace(FACTS, offers=Offers(server_port=5004)))
    assert client.ask("SETUP", transport=f"{MULTICAST},{UDP},{TCP}")[0] == 200
    assert client.session is not None and client.session.way.kind == "unicast"


def test_one_session_too_many() -> None:
    client = Client(replace(FACTS, offers=Offers(server_port=5004, another=False)))
    assert client.ask("SETUP", transport=UDP)[0] == 453


@pytest.mark.parametrize("status", [404, 415])
@pytest.mark.parametrize("method", ["DESCRIBE", "SETUP"])
def test_why_an_object_cannot_be_had_is_the_answer(method: str, status: int) -> None:
    client = Client(replace(FACTS, found=RtspError(status, "because")))
    assert client.ask(method, transport=UDP)[0] == status
    assert client.body == b"because\n"


def test_a_keepalive_needs_nothing_but_the_session() -> None:
    client = playing()
    assert client.ask("GET_PARAMETER")[0] == 200
    assert client.ask("OPTIONS", "*")[0] == 200
    assert client.ask("GET_PARAMETER", session="none")[0] == 200


def test_what_must_be_looked_for() -> None:
    def asked(method: str, url: str = URL) -> str | None:
        return needs(Request(method, url, {}), ready().session)

    assert [asked(method) for method in ("DESCRIBE", "SETUP", "PLAY", "PAUSE")] == ["/clip.ts"] * 4
    assert [asked(method) for method in ("OPTIONS", "TEARDOWN", "BREW")] == [None] * 3
    assert asked("DESCRIBE", "http://vip/") is None


# --- whatever comes ---
_METHOD = st.sampled_from([*METHODS, "RECORD", "BREW"])
_HEADERS = st.dictionaries(
    st.sampled_from(["transport", "range", "session", "require", "accept", "cseq"]),
    st.sampled_from([UDP, TCP, MULTICAST, "npt=5-", "npt=now-", "npt=60-61", "npt=80-", "x", "*/*", "7"]),
)


@given(st.lists(st.tuples(_METHOD, _HEADERS, st.integers(0, 20)), max_size=20))
def test_whatever_a_client_asks_numbers_never_go_back(steps: list[tuple[str, dict[str, str], int]]) -> None:
    client = Client()
    last: tuple[str, int, int] | None = None
    for method, headers, seconds in steps:
        client.ask(method, **headers)
        client.later(seconds)
        if client.session is None:
            last = None
            continue
        playing = client.session.playing
        plan = Plan(MEDIA, playing, "")
        assert client.session.active == (plan.count > 0)
        packets, octets = plan.sent_before(min(client.facts.sent, plan.count))
        if last is not None and last[0] == client.session.id:
            assert (packets, octets) >= last[1:]
        assert plan.seq(0) == (2**16 - 2 + playing.packets) % 2**16
        last = (client.session.id, packets, octets)
        if client.session.active and client.facts.sent >= plan.count:
            client.session = stopped(client.session, MEDIA, plan.count)
            client.later(0, sent=0)
