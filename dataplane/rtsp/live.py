"""A session with what it holds on its server: the open file and its table, its sockets, and what sends for it.

`session.decide` says what a session becomes; here it is made so. After a takeover, `resume` does the same from a
checkpoint.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import msgspec

from dataplane.objects import OpenObject
from dataplane.rtp.media import Media
from dataplane.rtp.plan import Interleaved, Plan
from dataplane.rtsp import session as session_
from dataplane.rtsp.sending import (
    InterleavedObject,
    InterleavedSender,
    MediaClock,
    Outlet,
    Parameters,
    UdpSender,
    reader,
)
from dataplane.rtsp.session import Session, Way
from dataplane.rtsp.station import Station
from dataplane.stack import Datagrams, Stream
from state.errors import TakeoverError


class LiveSession:
    """One session. `media` is None until the file's table is there; before that nothing can be sent.

    `changed` is called when the session becomes another by itself: when a plan was sent to its end, the session is
    *ready* then; or when the digest of its file is known.
    """

    def __init__(
        self,
        station: Station,
        session: Session,
        opened: OpenObject,
        media: Media | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.session = session
        self.opened = opened
        self.media = media
        self.clock = MediaClock()
        """Of the plan, as long as the session is active."""
        self.heard = time.monotonic()
        """The client's last word."""
        self.sender: UdpSender | InterleavedSender | None = None
        self._station = station
        self._changed = changed
        self._ports: tuple[Datagrams, Datagrams] | None = None
        self._outlet: Outlet | None = None
        if not opened.ref.digest:
            opened.digest_known.append(lambda old, new: changed())

    @property
    def interleaved(self) -> InterleavedSender | None:
        """What is sending inside the connection."""
        return self.sender if isinstance(self.sender, InterleavedSender) else None

    @property
    def sent(self) -> int:
        """Packets of the plan."""
        return self.sender.sent if self.sender is not None else 0

    @property
    def on_air(self) -> UdpSender | None:
        """What is sent to the group that the session's client was told."""
        way = self.session.way
        return self._station.on_air.get((self.opened, way.address)) if way.kind == "multicast" else None

    def snapshot(self) -> Session:
        """The session as it is now, with its clock, for a checkpoint; and with the digest that makes two copies of its
        file the same, as soon as it is known here."""
        session, ref = self.session, self.opened.ref
        if ref.digest and ref != session.object:
            session = msgspec.structs.replace(session, object=ref)
        return session_.at(session, max(0, self.clock.now_ns)) if session.active else session

    # --- sockets ---
    def open_ports(self, stream: Stream, way: Way) -> None:
        """Instead of those that were. Raises `LocalError`: then there are none."""
        self.close_ports()
        if way.kind == "interleaved":
            return
        bundle, here = stream.bundle, way.server_port
        rtp, rtcp = ((way.address, port) for port in way.ports)
        first = bundle.datagrams("rtp", here, rtp, self._punched, ttl=way.ttl or 1)
        try:
            self._ports = first, bundle.datagrams("rtcp", here + 1, rtcp, self._reported, ttl=way.ttl or 1)
        except TakeoverError:
            first.close()
            raise

    @property
    def has_ports(self) -> bool:
        return self._ports is not None

    def has_ports_for(self, after: Session) -> bool:
        """Are those that it has those that it needs, or does it need none yet?"""
        if after.way != self.session.way:
            return False
        return after.way.kind == "interleaved" or self.has_ports or not after.active

    def close_ports(self) -> None:
        for port in self._ports or ():
            port.close()
        self._ports = None

    def _punched(self, data: bytes, source: tuple[str, int]) -> None:
        """Clients behind a translator send something to open a way back; it means nothing else."""

    def _reported(self, data: bytes, source: tuple[str, int]) -> None:
        """A receiver's report: the client is there."""
        self.heard = time.monotonic()

    # --- sending ---
    def start(self, stream: Stream, cname: str) -> None:
        """Send the session's plan from its beginning; or join those to whom it is being sent."""
        assert self.media is not None
        session = self.session
        plan = Plan(self.media, session.playing, cname)
        if session.way.kind != "interleaved":
            self._send(stream, plan, 0)
            return
        self.opened.users += 1  # the object's own
        parameters = Parameters(session.playing, session.way.ports, cname)
        made = InterleavedObject.planned(self.opened, Interleaved(plan, session.way.ports), parameters)
        self.sender = InterleavedSender.begun(stream, made, self.clock, self.finish)
        self.sender.tick()

    def resume(self, stream: Stream, cname: str) -> None:
        """Over UDP, go on where the clock is now, which was an earlier owner's: what was due until now is over."""
        assert self.media is not None
        plan = Plan(self.media, self.session.playing, cname)
        self._send(stream, plan, plan.due(self.clock.ticks))

    def resume_inside(self, stream: Stream, made: InterleavedObject, base: int, rest: int) -> None:
        """Go on with what an earlier owner had planned inside the connection."""
        self.sender = InterleavedSender(stream, made, self.clock, base, self.finish, rest)
        self.sender.tick()

    def _send(self, stream: Stream, plan: Plan, sent: int) -> None:
        """Over UDP. Whoever comes first to a group sends for all."""
        assert self._ports is not None
        station, on_air = self._station, self.on_air
        if on_air is not None:
            sender = on_air
        elif self.session.way.kind == "multicast":
            opened, group = self.opened, self.session.way.address  # this session may have others when it is over
            over = functools.partial(station.go_off_air, opened, group)
            sender = UdpSender(plan, self.clock, reader(opened), sent, over)
            station.go_on_air(opened, group, sender)
        else:
            sender = UdpSender(plan, self.clock, reader(self.opened), sent)
        self.session = session_.joined(self.session, sender.plan.playing)
        self.sender, self.clock = sender, sender.clock
        self._outlet = Outlet(stream, *self._ports, self.finish)
        sender.join(self._outlet)

    def finish(self) -> None:
        """The plan is at its end."""
        assert self.media is not None
        self.sender = self._outlet = None
        self.session = session_.ended(self.session, self.media)
        self._changed()

    def stop(self, *, goodbye: bool = False) -> None:
        """Send no more of the plan. `goodbye`: the receivers are told, if nobody else goes on."""
        sender, self.sender = self.sender, None
        if isinstance(sender, InterleavedSender):
            sender.stop()
        elif sender is not None and self._outlet is not None:
            sender.leave(self._outlet, goodbye=goodbye)
        self._outlet = None

    def leave(self) -> None:
        """The connection is over, and what was planned with it. Others of its group go on."""
        if not isinstance(self.sender, InterleavedSender):
            self.stop()
        self.close_ports()
