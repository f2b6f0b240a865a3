"""RTSP as an application of the stack. `session` decides what a request does, `live` does it; this keeps the dialogue
and the checkpoint.

What a backup needs is little, because all packets follow from a few numbers (`rtp.plan`): the sessions, how far their
clocks were, and input that has no response yet. So checkpoints are made when something changes and once a second,
never per packet. After a takeover streams go on by the clock: what was due during the stall is not sent again over
UDP; inside the connection it is, by TCP's rules, to the byte.

A session lives as long as its connection: that is the bundle's control connection, and the bundle ends with it.
"""

from __future__ import annotations

import functools
import logging
import random
import secrets
import time
from typing import Annotated

import msgspec
from msgspec import Meta

from dataplane.objects import OBJECT_DIFFERS, OBJECT_MISSING, DocumentRoot, ObjectMissing, ObjectUnavailable, OpenObject
from dataplane.rtp.media import Media, MediaRefused
from dataplane.rtsp import session as session_
from dataplane.rtsp.live import LiveSession
from dataplane.rtsp.message import Interleaved, Reader, Request, RtspError, RtspMalformed, response
from dataplane.rtsp.sending import InterleavedObject, MediaClock, Parameters
from dataplane.rtsp.session import TIMEOUT, Facts, Found, Offers, Session
from dataplane.rtsp.station import Station
from dataplane.stack import Application, ApplicationKind, Stream
from state.datablock import DataBlock, UInt63
from state.errors import LocalError, TakeoverError
from state.sections import ObjectRef

NAME = "rtsp/1.0"
LIMIT_SESSIONS = 8
"""Of one connection."""
LIMIT_URLS = 12 * 1024
"""Characters of all their URLs and names, when there may be one more: they are part of checkpoints."""
LIMIT_PENDING = 24 * 1024
"""Input without a response, which is part of checkpoints: a whole request, and what is read at once."""
_HOLD_PENDING = 4 * 1024
"""With so much of it, no more is read until there is room for responses, or the file's table is there."""
REFRESH_SECONDS = 1.0

_log = logging.getLogger(__name__)


class RtspSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pending: Annotated[bytes, Meta(max_length=LIMIT_PENDING)]
    """Input from the start of the first request that has no response yet."""
    sessions: Annotated[list[Session], Meta(max_length=LIMIT_SESSIONS)]
    base: UInt63 = 0
    """Where byte 0 of what is sent inside the connection would stand in the stream (`sending.InterleavedSender`)."""
    rest: UInt63 = 0
    """And before which of its bytes the last response stands."""


class RtspApplication(Application):
    name = NAME
    read_bytes = 4 * 1024

    def __init__(self, root: DocumentRoot) -> None:
        self._root = root
        self._station = Station.of(root)
        self._stream: Stream | None = None
        self._reader = Reader()
        self._live: dict[str, LiveSession] = {}
        self._unanswered = b""
        """The request that is being answered, or waits for a file's table."""
        self._working = False
        self._unusable = ""
        """Why nothing can be made of a checkpoint here."""
        self._missing = False
        """It is that a file is not there."""
        self._to_start: list[LiveSession] = []
        """Over UDP, once the response is out: before that, no checkpoint knows of them."""
        self._heard = time.monotonic()
        self._input_ended = False
        self._taken_ns = self._received_ns = self._base = self._rest = 0
        self._generated: list[InterleavedObject] = []
        """Of a checkpoint, until they are in use."""

    # --- life ---
    def opened(self, stream: Stream) -> None:
        self._stream = stream
        stream.call_later(REFRESH_SECONDS, self._every_second)

    def input_ended(self) -> None:
        self._input_ended = True
        self._work()

    def drained(self) -> None:
        """Responses are out, or there is room for more."""
        if self._stream is not None and not self._stream.unsent:
            self._start_waiting()
        self._work()

    def _start_waiting(self) -> None:
        starting, self._to_start = self._to_start, []
        for live in starting:
            waits = self._live.get(live.session.id) is live and live.session.active and live.sender is None
            if self._stream is not None and waits:
                live.start(self._stream, self._stream.bundle.vip)

    def ended(self) -> None:
        self._stream = None
        for live in self._live.values():
            live.leave()
            self._root.release(live.opened)
        self._live.clear()

    def _close(self) -> None:
        """Every session ends, and then the connection, in good order."""
        stream = self._stream
        if stream is None:
            return
        self._end_sessions(list(self._live))
        self._stream = None
        stream.hold_input(False)
        stream.close()

    def _end_sessions(self, names: list[str]) -> None:
        for name in names:
            live = self._live.pop(name)
            live.stop(goodbye=True)
            live.close_ports()
            self._root.release(live.opened)

    def _every_second(self) -> None:
        stream, now = self._stream, time.monotonic()
        if stream is None:
            return
        silent = [name for name, live in self._live.items() if now - live.heard > TIMEOUT]
        self._end_sessions(silent)
        if not self._live and now - self._heard > TIMEOUT:
            self._close()
            return
        if silent or any(live.session.active for live in self._live.values()):
            stream.changed()
        stream.call_later(REFRESH_SECONDS, self._every_second)

    # --- input ---
    def received(self, data: bytes) -> None:
        if self._stream is None:
            return
        self._reader.feed(data)
        self._work()
        if self._stream is not None and self._pending > LIMIT_PENDING:  # of an earlier owner, which was handed over
            self._refuse(RtspMalformed(413, "too many requests ahead"))

    @property
    def _pending(self) -> int:
        return len(self._unanswered) + len(self._reader.pending)

    def _work(self) -> None:
        """Answer every request that is complete, as far as there is room for responses. What comes meanwhile waits at
        the client."""
        if self._working:
            return
        self._working = True
        try:
            self._answer_all()
        finally:
            self._working = False
        if self._stream is None:
            return
        waits = self._waits(self._stream)
        if self._input_ended and not waits:
            self._close()
        else:
            self._stream.hold_input(waits and self._pending >= _HOLD_PENDING)

    def _waits(self, stream: Stream) -> bool:
        """For a table, for room, or until it is known again where responses have their place inside the stream."""
        return bool(self._unanswered or self._generated) or not stream.has_room()

    def _answer_all(self) -> None:
        while self._stream is not None and not self._waits(self._stream):
            before = self._reader.pending
            try:
                message = self._reader.next()
            except RtspMalformed as error:
                self._refuse(error)
                return
            if message is None:
                return
            self._heard = time.monotonic()
            if isinstance(message, Request):
                self._unanswered = before[: len(before) - len(self._reader.pending)]
                self._ask(message)
            elif isinstance(message, Interleaved):
                for live in self._live.values():
                    if live.session.way.kind == "interleaved" and message.channel in live.session.way.ports:
                        live.heard = self._heard

    def _refuse(self, error: RtspMalformed) -> None:
        """Nothing that follows in the input can be understood."""
        self._unanswered = self._reader.pending = b""
        self._say(response(error.status, error.cseq, [("Server", "takeover")], f"{error.sentence}\n".encode()))
        self._close()

    def _say(self, data: bytes) -> None:
        """A response, between packets if there are any."""
        assert self._stream is not None
        for live in self._live.values():
            if live.interleaved is not None:
                live.interleaved.say(data)
                return
        self._stream.write(data)

    # --- requests ---
    def _ask(self, request: Request) -> None:
        """Get what the request needs, now or later; then answer."""
        live = self._live.get(session_.session_id(request) or "")
        identifier = session_.needs(request, live.session if live is not None else None)
        if identifier is None:
            self._answer(request, live, None, None)
        elif live is not None and live.session.object.identifier == identifier:
            self._station.table(live.opened, functools.partial(self._asked, request, live, live.opened))
        else:
            try:
                opened = self._root.open(identifier)
            except ObjectMissing as error:
                status = 503 if isinstance(error, ObjectUnavailable) else 404
                self._answer(request, live, RtspError(status, str(error)), None)
                return
            self._station.table(opened, functools.partial(self._asked, request, live, opened))

    def _asked(
        self, request: Request, live: LiveSession | None, opened: OpenObject, made: Media | MediaRefused
    ) -> None:
        """The table is there, or why there is none. `opened` is the session's, or was opened for this request."""
        own = live is None or opened is not live.opened
        if live is not None and self._live.get(live.session.id) is not live:
            live = None  # it has ended meanwhile
        if self._stream is not None:
            found = RtspError(415, str(made)) if isinstance(made, MediaRefused) else Found(opened.ref, made)
            own = self._answer(request, live, found, opened) is None and own
        if own:
            self._root.release(opened)
        self._work()

    def _answer(
        self, request: Request, live: LiveSession | None, found: Found | RtspError | None, opened: OpenObject | None
    ) -> LiveSession | None:
        """Decide, do it, say so. Returns the session if it is new: it has `opened` from now on."""
        stream = self._stream
        assert stream is not None
        before = live.session if live is not None else None
        decision = session_.decide(request, before, self._facts(live, found, opened))
        after, answer, new = decision.session, decision.response, None
        self._unanswered = b""
        if live is None and after is not None:
            assert opened is not None and isinstance(found, Found)
            live = new = LiveSession(self._station, after, opened, found.media, self._changed)
        if live is not None and after is not None and not (before is not None and live.has_ports_for(after)):
            try:
                live.open_ports(stream, after.way)
            except LocalError as error:
                _log.warning("%s: %s", stream.connection.id, error)
                self._say(response(461, request.cseq, [("Server", "takeover")], f"{error}\n".encode()))
                self._end_sessions([after.id] if before is not None else [])
                return None
        if live is None:
            self._say(answer)
            return None
        live.heard = time.monotonic()
        moved = before is not None and before.active and (after is None or after.playing != before.playing)
        if moved:
            live.stop(goodbye=after is None)
        self._say(answer)
        if after is None:
            self._end_sessions([live.session.id])
            return None
        live.session = after
        self._live[after.id] = live
        if after.active and (moved or before is None or not before.active):
            self._start(live)
        return new

    def _start(self, live: LiveSession) -> None:
        """Over UDP, a client gets its first packet after the response, unless that has to wait for others' packets."""
        assert self._stream is not None
        live.clock, kind = MediaClock(), live.session.way.kind
        if kind == "interleaved":
            self._start_waiting()  # from now on there is always something planned
        others = any(other.interleaved is not None for other in self._live.values())
        if kind == "interleaved" or others or live.on_air is not None:
            live.start(self._stream, self._stream.bundle.vip)
        else:
            self._to_start.append(live)

    def _changed(self) -> None:
        if self._stream is not None:
            self._stream.changed()

    def _facts(self, live: LiveSession | None, found: Found | RtspError | None, opened: OpenObject | None) -> Facts:
        assert self._stream is not None
        bundle, port = self._stream.bundle, self._server_port()
        sent, on_air, group = live.sent if live is not None else 0, None, None
        if opened is not None:
            group = self._station.group(opened) if ":" not in bundle.vip else None
            if live is not None and (sender := live.on_air) is not None:
                on_air, sent = (sender.plan.playing if sender is not live.sender else None), sender.sent
        taken = any(other.session.way.kind == "interleaved" for other in self._live.values() if other is not live)
        return Facts(
            now_ns=time.time_ns(),
            client=bundle.client,
            server=bundle.vip,
            draw=secrets.randbits,
            found=found,
            sent=sent,
            on_air=on_air,
            offers=Offers(
                server_port=port,
                group=group,
                group_ports=(port, port + 1) if port is not None else (0, 0),
                interleaved=not taken,
                another=len(self._live) < LIMIT_SESSIONS and self._length_of_urls() <= LIMIT_URLS,
            ),
        )

    def _length_of_urls(self) -> int:
        sessions = [live.session for live in self._live.values()]
        return sum(len(one.url.encode()) + len(one.object.identifier.encode()) for one in sessions)

    def _server_port(self) -> int | None:
        """The first even port of the service whose successor is the service's too (RFC 3550 section 11)."""
        assert self._stream is not None
        for run in self._stream.bundle.data_ports("udp"):
            first = run.start + run.start % 2
            if first + 1 in run:
                return first
        return None

    # --- what a backup must know, and the backup ---
    def checkpoint(self, block: DataBlock) -> None:
        inside = [
            place
            for live in self._live.values()
            if live.interleaved is not None
            for place in (live.interleaved.base, live.interleaved.rest)
        ]
        pending = self._unanswered + self._reader.pending
        sessions = [live.snapshot() for live in self._live.values()]
        block.append(NAME, RtspSection(pending, sessions, *inside))

    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock) -> RtspApplication:
        """From a checkpoint. Tables begin to be made; no socket is opened and nothing is sent before `ready`, where a
        session whose file is missing here resets the connection."""
        section = block.section(NAME, RtspSection)
        application = cls(root)
        application._reader.feed(section.pending)
        application._taken_ns, application._received_ns = block.header.time, time.monotonic_ns()
        application._base, application._rest = section.base, section.rest
        try:
            for session in section.sessions:
                application._prepare(session)
        except ObjectMissing as error:
            application._unusable, application._missing = str(error), True
        return application

    def _prepare(self, session: Session) -> None:
        opened = self._root.open(session.object.identifier)
        live = LiveSession(self._station, session, opened, changed=self._changed)
        self._live[session.id] = live
        self._station.table(opened, lambda made: None)

    def generate(self, ref: ObjectRef) -> InterleavedObject:
        """What another server planned to send inside the connection. It can be read once the file's table is there."""
        try:
            parameters = msgspec.msgpack.decode(ref.parameters, type=Parameters)
        except msgspec.MsgspecError as error:
            raise ObjectMissing(f"{ref.identifier}: {error}") from None
        made = InterleavedObject(self._root.open(ref.identifier), ref.size, parameters)
        self._generated.append(made)
        self._station.table(made.file, functools.partial(self._learned, made))
        return made

    def _learned(self, made: InterleavedObject, table: Media | MediaRefused) -> None:
        try:
            if isinstance(table, MediaRefused):
                raise table
            made.know(table)
        except TakeoverError as error:
            self._unusable = str(error)
        self._go_on()

    def obstacle(self) -> str | None:
        """Of streams over UDP nothing is planned in the connection, by which it could be told that a file differs."""
        if self._missing:
            return OBJECT_MISSING
        same = all(self._root.same(live.opened, live.session.object) for live in self._live.values())
        return OBJECT_DIFFERS if self._unusable or not same else None

    def ready(self, stream: Stream, position: int) -> None:
        """Streams go on by their clocks, as soon as their tables are there: at once, if all goes as it should."""
        self.opened(stream)
        stream.release(position)
        self._heard = time.monotonic()
        for live in list(self._live.values()):
            live.heard = self._heard
            live.clock = MediaClock.taken_over(live.session.elapsed_ns, self._taken_ns, self._received_ns)
            self._station.table(live.opened, functools.partial(self._resume, live))
        self._go_on()
        self._work()

    def _resume(self, live: LiveSession, table: Media | MediaRefused) -> None:
        """A session's table is there."""
        stream, session = self._stream, live.session
        if stream is None:
            return
        try:
            if isinstance(table, MediaRefused):
                raise table
            if not self._root.same(live.opened, session.object):
                raise ObjectMissing(f"{session.object.identifier} differs at the backup")
            live.media = table
            if session.active and session.way.kind != "interleaved":
                live.open_ports(stream, session.way)
                live.resume(stream, stream.bundle.vip)
            elif session.way.kind != "interleaved":
                # Nothing is sent yet: not in the turn in which hundreds of sessions may become ready.
                stream.call_later(random.uniform(0, REFRESH_SECONDS), functools.partial(self._open_ports, live))
        except TakeoverError as error:
            self._unusable = str(error)
        self._go_on()

    def _open_ports(self, live: LiveSession) -> None:
        """Unless PLAY has done it, or the session has ended meanwhile."""
        stream = self._stream
        if stream is not None and self._live.get(live.session.id) is live and not live.has_ports:
            try:
                live.open_ports(stream, live.session.way)
            except LocalError as error:
                _log.warning("%s: %s", stream.connection.id, error)

    def _go_on(self) -> None:
        """Inside the connection, once all that was planned there can be computed again."""
        stream = self._stream
        if stream is None:
            return
        if self._unusable:
            _log.warning("%s: %s", stream.connection.id, self._unusable)
            stream.reset()
            return
        inside = [live for live in self._live.values() if live.session.way.kind == "interleaved"]
        if any(made.interleaved is None for made in self._generated) or any(live.media is None for live in inside):
            return
        generated, self._generated = self._generated, []
        active = [live for live in inside if live.session.active and live.sender is None]
        for live in active:
            playing = live.session.playing
            made = next((made for made in generated if made.made_of.playing == playing), None)
            if made is None:  # the client had everything
                live.finish()
            else:
                live.resume_inside(stream, made, self._base, self._rest)
        if not any(live.interleaved is not None for live in inside):
            stream.release(None)
        if generated:
            self._work()


RTSP = ApplicationKind(NAME, RtspApplication, RtspApplication.unready)
