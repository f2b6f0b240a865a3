"""What a request does to a session, and how it is answered: RFC 2326 appendix A.2 as pure functions.

    init ──SETUP──▶ ready ──PLAY──▶ playing          PAUSE or the end of the range: playing ──▶ ready
                      ▲──SETUP        ▲──PLAY        TEARDOWN, or silence for TIMEOUT: any ──▶ init

A session in *init* does not exist; `Session.active` tells *playing* from *ready*. A request changes one session at
most: `decide` takes it as it is, with the facts of the moment, and returns the response and the session as it is from
now on. Whoever sends compares the two and does what follows (`protocol`). Sessions are values and are the checkpoint.

A presentation here is one file with one stream. PLAY with a range while playing goes there at once, as every server
does whose clients are in use, instead of queueing (section 10.5). A multicast group has one stream for all: who plays
while it is on the air joins it where it is, and the answer's Range says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dataplane.rtp.media import Media
from dataplane.rtp.plan import Plan, Playing
from dataplane.rtsp import sdp
from dataplane.rtsp.headers import TRACK, Range, Target, Transport, npt, parse_range, target, transports
from dataplane.rtsp.message import LIMIT_URL, Request, RtspError, response
from state.datablock import Port, UInt16, UInt63
from state.sections import ObjectRef

TIMEOUT = 60.0
"""Seconds without a word from the client, by RTSP or by RTCP, after which a session ends."""
METHODS = ("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PAUSE", "GET_PARAMETER", "SET_PARAMETER", "TEARDOWN")
_KNOWN_ELSEWHERE = ("ANNOUNCE", "RECORD", "REDIRECT")
_WITH_SESSION = ("PLAY", "PAUSE", "TEARDOWN")
_LIMIT_ECHO = 256
"""Characters of a header that are said back: responses are part of checkpoints until they have arrived."""


class Way(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the packets travel."""

    kind: Literal["unicast", "multicast", "interleaved"]
    address: Annotated[str, Meta(max_length=64)]
    """The client's, or the group's."""
    ports: tuple[UInt16, UInt16]
    """RTP's and RTCP's there; interleaved: the two channels."""
    server_port: UInt16 = 0
    """RTP's here; RTCP's is the next. 0: interleaved."""
    ttl: Annotated[int, Meta(ge=0, le=255)] = 0


class Session(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session, as it is in checkpoints."""

    id: Annotated[str, Meta(min_length=8, max_length=64)]
    object: ObjectRef
    url: Annotated[str, Meta(max_length=LIMIT_URL)]
    """The presentation's, as the client writes it."""
    way: Way
    playing: Playing
    """Of a session that is not active, the rest of what was: nothing is left to send, but its numbers go on."""
    active: bool = False
    elapsed_ns: UInt63 = 0
    """How far the plan's time was when the checkpoint was made: the backup's clock goes on from here."""


@dataclass(frozen=True)
class Found:
    """An object and its table."""

    ref: ObjectRef
    media: Media


@dataclass(frozen=True)
class Offers:
    """What this server can do for this client now."""

    server_port: Port | None = None
    """UDP port for RTP, the next being for RTCP; None: no UDP."""
    group: str | None = None
    """Multicast group of the object asked for; None: no multicast."""
    group_ports: tuple[int, int] = (5004, 5005)
    ttl: int = 16
    interleaved: bool = True
    another: bool = True
    """May this connection have one session more?"""


@dataclass(frozen=True)
class Facts:
    """The moment. `found`: for requests that `needs` an object, it or why there is none."""

    now_ns: int
    client: str
    server: str
    draw: Callable[[int], int]
    """A random number of so many bits."""
    found: Found | RtspError | None = None
    sent: int = 0
    """How many packets of the session's plan, or of `on_air`, were sent or are as good as sent."""
    on_air: Playing | None = None
    """What other sessions play to the group that this one listens to."""
    offers: Offers = Offers()


@dataclass(frozen=True)
class Decision:
    """The response's bytes, and the session as it is now; None: there is none, or no longer."""

    status: int
    response: bytes
    session: Session | None


def session_id(request: Request) -> str | None:
    """The session that a request speaks of."""
    value = request.headers.get("session")
    return None if value is None else value.partition(";")[0].strip()


def needs(request: Request, session: Session | None) -> str | None:
    """Identifier of the object without which the request cannot be answered. Malformed URLs need none."""
    if request.method in ("DESCRIBE", "SETUP") and not _too_long(request):
        try:
            return target(request.url).identifier
        except RtspError:
            return None
    return session.object.identifier if session is not None and request.method in ("PLAY", "PAUSE") else None


def decide(request: Request, session: Session | None, facts: Facts) -> Decision:
    """`session`: that of `session_id`, if it exists on this connection."""
    try:
        if request.cseq is None:
            raise RtspError(400, "a request has a CSeq")
        _check(request, session)
        headers, body, after = _METHODS[request.method](request, session, facts)
        status = 200
    except RtspError as error:
        status, after = error.status, session
        headers, body = [*error.headers], f"{error.sentence[:_LIMIT_ECHO]}\n".encode()
        headers.append(("Content-Type", "text/plain; charset=utf-8"))
    known = after or session
    if known is not None and status in (200, 455, 457):
        headers.insert(0, ("Session", f"{known.id};timeout={TIMEOUT:.0f}" if request.method == "SETUP" else known.id))
    return Decision(status, response(status, request.cseq, [*headers, ("Server", "takeover")], body), after)


def ended(session: Session, media: Media) -> Session:
    """The last packet of the range was sent: playing goes over to ready."""
    return stopped(session, media, session.playing.stop - session.playing.start)


def stopped(session: Session, media: Media, sent: int) -> Session:
    """Nothing more is sent; the next packet would be number `sent` of the plan."""
    rest = Plan(media, session.playing, "").stopped(sent)
    return msgspec.structs.replace(session, playing=rest, active=False, elapsed_ns=0)


def joined(session: Session, playing: Playing) -> Session:
    """The session has its part in what is sent to its group."""
    return msgspec.structs.replace(session, playing=playing, active=True)


def at(session: Session, elapsed_ns: int) -> Session:
    """The plan's time is so far."""
    return msgspec.structs.replace(session, elapsed_ns=elapsed_ns)


_Answer = tuple[list[tuple[str, str]], bytes, Session | None]


def _check(request: Request, session: Session | None) -> None:
    """What is the same for all methods. Raises `RtspError`."""
    if _too_long(request):
        raise RtspError(414, f"a URL has at most {LIMIT_URL} bytes")
    if request.method in _KNOWN_ELSEWHERE:
        raise RtspError(405, f"{request.method} is not possible here", ("Allow", ", ".join(METHODS)))
    if request.method not in _METHODS:
        raise RtspError(501, "this method is not known", ("Public", ", ".join(METHODS)))
    required = [request.headers[name] for name in ("require", "proxy-require") if name in request.headers]
    if required:
        raise RtspError(551, "no options are supported", ("Unsupported", ", ".join(required)[:_LIMIT_ECHO]))
    if session is None and (request.method in _WITH_SESSION or "session" in request.headers):
        raise RtspError(454, "this connection has no such session")
    if session is not None and request.method in _WITH_SESSION and _target(request).identifier != _identifier(session):
        raise RtspError(459, "the session is of another presentation")


def _too_long(request: Request) -> bool:
    return len(request.url.encode()) > LIMIT_URL


def _target(request: Request) -> Target:
    return target(request.url)


def _identifier(session: Session) -> str:
    return session.object.identifier


def _found(facts: Facts) -> Found:
    if isinstance(facts.found, RtspError):
        raise facts.found
    if facts.found is None:
        raise RtspError(500, "the object was not looked for")
    return facts.found


def _options(request: Request, session: Session | None, facts: Facts) -> _Answer:
    return [("Public", ", ".join(METHODS))], b"", session


def _describe(request: Request, session: Session | None, facts: Facts) -> _Answer:
    named = _target(request)
    accepted = [kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", sdp.TYPE).split(",")]
    if not {sdp.TYPE, "application/*", "*/*"}.intersection(accepted):
        raise RtspError(406, f"descriptions here are {sdp.TYPE}")
    found = _found(facts)
    headers = [("Content-Base", f"{named.base}/"), ("Content-Type", sdp.TYPE)]
    return headers, sdp.describe(found.ref, found.media, facts.server), session


def _setup(request: Request, session: Session | None, facts: Facts) -> _Answer:
    named = _target(request)
    proposals = transports(request.headers.get("transport"))
    if session is not None and session.active:
        raise RtspError(455, "the session is playing", ("Allow", "OPTIONS, PLAY, PAUSE, TEARDOWN, GET_PARAMETER"))
    if session is not None and named.identifier != _identifier(session):
        raise RtspError(459, "the session is of another presentation")
    if session is None and not facts.offers.another:
        raise RtspError(453, "this connection has too many sessions")
    found = _found(facts)
    way = _way(proposals, facts)
    if session is None:
        begin = Playing(facts.draw(32), 0, 0, facts.draw(16), facts.draw(32), facts.now_ns)
        session = Session(f"{facts.draw(64):016x}", found.ref, named.base, way, begin)
    else:
        session = msgspec.structs.replace(session, way=way)
    return [("Transport", _transport(session, facts.server))], b"", session


def _way(proposals: list[Transport], facts: Facts) -> Way:
    """The first alternative that can be. Raises `RtspError` 461."""
    offers = facts.offers
    for proposal in proposals:
        if not proposal.play:
            continue
        if proposal.lower == "tcp":
            if offers.interleaved and not proposal.multicast:
                return Way("interleaved", facts.client, proposal.channels or (0, 1))
        elif proposal.multicast:
            if offers.group is not None and offers.server_port is not None:
                return Way("multicast", offers.group, offers.group_ports, offers.server_port, offers.ttl)
        elif (
            offers.server_port is not None
            and proposal.ports is not None
            and _same_host(proposal.destination, facts.client)
        ):
            return Way("unicast", facts.client, proposal.ports, offers.server_port)
    raise RtspError(461, "none of these transports can be had here")


def _same_host(destination: str | None, client: str) -> bool:
    """Streams go to who asks for them, and to nobody else (section 16, "persistently suspicious behavior")."""
    try:
        return destination is None or ip_address(destination) == ip_address(client)
    except ValueError:
        return False


def _transport(session: Session, server: str) -> str:
    way, (first, second) = session.way, session.way.ports
    if way.kind == "interleaved":
        return f"RTP/AVP/TCP;unicast;interleaved={first}-{second};ssrc={session.playing.ssrc:08X}"
    if way.kind == "multicast":
        return f"RTP/AVP;multicast;destination={way.address};port={first}-{second};ttl={way.ttl};source={server}"
    here = f"{way.server_port}-{way.server_port + 1}"
    return f"RTP/AVP;unicast;client_port={first}-{second};server_port={here};ssrc={session.playing.ssrc:08X}"


def _play(request: Request, session: Session | None, facts: Facts) -> _Answer:
    assert session is not None
    media, on_air = _found(facts).media, facts.on_air
    wanted = parse_range(request.headers["range"]) if "range" in request.headers else None
    if on_air is not None:
        playing, sent = on_air, facts.sent
        after = joined(session, playing)
    elif session.active and (wanted is None or session.way.kind == "multicast"):
        playing, sent, after = session.playing, facts.sent, session
    else:
        rest = Plan(media, session.playing, "").stopped(facts.sent) if session.active else session.playing
        start, stop = _span(wanted, rest.start, media)
        playing, sent = msgspec.structs.replace(rest, start=start, stop=stop, began_ns=facts.now_ns), 0
        after = msgspec.structs.replace(session, playing=playing, active=True, elapsed_ns=0)
    plan = Plan(media, playing, "")
    here = media.ticks(playing.start + min(sent, plan.count))
    info = f"url={session.url}/{TRACK};seq={plan.seq(sent)};rtptime={plan.timestamp(min(sent, plan.count))}"
    return [("Range", f"npt={npt(here)}-{npt(media.ticks(playing.stop))}"), ("RTP-Info", info)], b"", after


def _span(wanted: Range | None, position: int, media: Media) -> tuple[int, int]:
    """(first, after the last) packet to play. Raises `RtspError` 457 for a range outside the presentation."""
    if wanted is None:
        return position if position < media.packets else 0, media.packets
    start = position if wanted.start is None else media.entry(wanted.start)
    duration = media.ticks(media.packets)
    if start >= media.packets or (wanted.start is not None and wanted.start >= duration):
        raise RtspError(457, f"the presentation has {npt(duration)} seconds")
    stop = media.packets if wanted.stop is None or wanted.stop >= duration else media.due(wanted.stop - 1)
    if stop <= start:
        raise RtspError(457, "there is nothing in this range")
    return start, stop


def _pause(request: Request, session: Session | None, facts: Facts) -> _Answer:
    assert session is not None
    if not session.active and not session.playing.packets:
        raise RtspError(455, "the session has not played", ("Allow", "OPTIONS, SETUP, PLAY, TEARDOWN, GET_PARAMETER"))
    if "range" in request.headers:
        raise RtspError(456, "PAUSE works at once: it takes no Range")
    media = _found(facts).media
    # GStreamer pauses what has come to its end already, and must not be told that this is an error.
    after = stopped(session, media, facts.sent) if session.active else session
    return [("Range", f"npt={npt(media.ticks(after.playing.start))}-")], b"", after


def _teardown(request: Request, session: Session | None, facts: Facts) -> _Answer:
    return [], b"", None


def _get_parameter(request: Request, session: Session | None, facts: Facts) -> _Answer:
    if request.body.strip():
        raise RtspError(451, "there are no parameters")
    return [], b"", session


def _set_parameter(request: Request, session: Session | None, facts: Facts) -> _Answer:
    raise RtspError(451, "there are no parameters")


_METHODS: dict[str, Callable[[Request, Session | None, Facts], _Answer]] = {
    "OPTIONS": _options,
    "DESCRIBE": _describe,
    "SETUP": _setup,
    "PLAY": _play,
    "PAUSE": _pause,
    "GET_PARAMETER": _get_parameter,
    "SET_PARAMETER": _set_parameter,
    "TEARDOWN": _teardown,
}
