"""Sending a plan as its clock goes: as datagrams, or inside the RTSP connection.

There is no timer per packet. A tick sends everything that is due and sets the next one to when something will be, but
not sooner than in `TICK_SECONDS`; the first one comes exactly then, which shortens the silence of a takeover. What is
due is asked of the clock each time, so that lateness does not add up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from dataplane.objects import GeneratedObject, OpenObject
from dataplane.rtp.media import Media, Read
from dataplane.rtp.packet import CLOCK_RATE
from dataplane.rtp.plan import Interleaved, Plan, Playing
from dataplane.stack import Datagrams, Stream, Timer
from state.errors import CheckpointRefused

TICK_SECONDS = 0.004
BATCH = 64
"""Datagrams per tick and sender: about a millisecond. A burst beyond that waits for the next turn."""
_PIECE_BYTES = 64 * 1024
Channel = Annotated[int, Meta(ge=0, le=255)]
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class MediaClock:
    """A plan's time: it had run for `elapsed_ns` when the monotonic clock showed `at_ns`."""

    elapsed_ns: int = 0
    at_ns: int = field(default_factory=time.monotonic_ns)

    @property
    def now_ns(self) -> int:
        return self.elapsed_ns + time.monotonic_ns() - self.at_ns

    @property
    def ticks(self) -> int:
        return self.now_ns * CLOCK_RATE // _SECOND_NS

    @classmethod
    def taken_over(cls, elapsed_ns: int, taken_ns: int, received_ns: int) -> MediaClock:
        """The clock of a checkpoint made at `taken_ns` (wall clock) that came here at `received_ns` (monotonic).

        The two wall clocks are taken as equal. A slow one here must not make the stream go back: the time since the
        checkpoint came is over in any case.
        """
        here, wall = time.monotonic_ns(), time.time_ns()
        return cls(elapsed_ns + max(wall - taken_ns, here - received_ns, 0), here)


def reader(opened: OpenObject) -> Read:
    """How a plan reads its file."""
    descriptor = opened.fd
    return lambda offset, length: os.pread(descriptor, length, offset)


class Sender(Protocol):
    """What a session needs of that which sends for it."""

    plan: Plan
    clock: MediaClock

    @property
    def sent(self) -> int:
        """Packets of the plan that were sent: the number of the next."""


@dataclass(eq=False)
class Outlet:
    """A session's pair of sockets. `finished` is called when the plan's end was sent."""

    stream: Stream
    rtp: Datagrams
    rtcp: Datagrams
    finished: Callable[[], None]


class UdpSender:
    """Sends a plan as datagrams: to one client, or once to a group for all sessions that listen to it.

    One of the outlets does it, the first that came of those that are left; the others are ready to go on.
    """

    def __init__(
        self, plan: Plan, clock: MediaClock, read: Read, sent: int = 0, over: Callable[[], None] = lambda: None
    ) -> None:
        """`sent`: so many packets are left out. `over` is called when nobody is left, or nothing."""
        self.plan = plan
        self.clock = clock
        self.outlets: list[Outlet] = []
        self._read = read
        self._next = sent
        self._over = over
        self._timer: Timer | None = None

    @property
    def sent(self) -> int:
        return self._next

    def join(self, outlet: Outlet) -> None:
        self.outlets.append(outlet)
        if len(self.outlets) == 1:
            self._tick(0.0)

    def leave(self, outlet: Outlet, *, goodbye: bool = False) -> None:
        """`goodbye`: the receivers are told when it was the last."""
        if outlet not in self.outlets:
            return
        first = self.outlets[0] is outlet
        self.outlets.remove(outlet)
        if not first:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.outlets:
            self._tick()
        else:
            if goodbye:
                outlet.rtcp.send(self.plan.farewell(self._next))
            self._over()

    def _tick(self, least: float = TICK_SECONDS) -> None:
        """`least`: seconds until the next one."""
        plan, outlet = self.plan, self.outlets[0]
        ticks = self.clock.ticks
        due = plan.due(ticks)
        for number in range(self._next, min(due, self._next + BATCH)):
            if plan.has_report(number):
                outlet.rtcp.send(plan.report(number))
            packet = plan.packet(number, self._read)
            if len(packet) < plan.packet_bytes(number):
                self._finish()  # the file was cut short
                return
            outlet.rtp.send(packet)
            self._next = number + 1
        if self._next == plan.count and ticks >= plan.duration:
            self._finish()
            return
        late = self._next < due
        self._timer = outlet.stream.call_later(0 if late else _until(plan, self._next, ticks, least), self._tick)

    def _finish(self) -> None:
        self.outlets[0].rtcp.send(self.plan.farewell(self._next))
        outlets, self.outlets = self.outlets, []
        self._over()
        for outlet in outlets:
            outlet.finished()


def _until(plan: Plan, packet: int, ticks: int, least: float = TICK_SECONDS) -> float:
    """Seconds until a packet, or the end, is due; not less than `least`."""
    return max(least, (plan.ticks(packet) - ticks) / CLOCK_RATE)


class Parameters(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a stream of interleaved packets is made of, beside the file."""

    playing: Playing
    channels: tuple[Channel, Channel]
    cname: Annotated[str, Meta(max_length=64)]


class InterleavedObject(GeneratedObject):
    """A plan's interleaved bytes as an object of the stack. Without a table (`know`) nothing of it can be read."""

    def __init__(self, file: OpenObject, size: int, parameters: Parameters) -> None:
        super().__init__(file, size, msgspec.msgpack.encode(parameters))
        self.made_of = parameters
        self.interleaved: Interleaved | None = None
        self._read = reader(file)

    @classmethod
    def planned(cls, file: OpenObject, interleaved: Interleaved, parameters: Parameters) -> InterleavedObject:
        made = cls(file, interleaved.size, parameters)
        made.interleaved = interleaved
        return made

    def know(self, media: Media) -> None:
        """The table is there. Raises `CheckpointRefused` if it is not that of the file that another server planned."""
        interleaved = Interleaved(Plan(media, self.made_of.playing, self.made_of.cname), self.made_of.channels)
        if interleaved.size != self.size:
            raise CheckpointRefused("size", f"{self.file.ref.identifier} is another stream here")
        self.interleaved = interleaved

    def read(self, offset: int, length: int) -> bytes:
        if self.interleaved is None:
            return b""
        return self.interleaved.read(offset, min(length, _PIECE_BYTES), self._read)


class InterleavedSender:
    """Sends a plan inside the RTSP connection: all of it is planned at once, and released as its clock goes.

    Byte `o` of the object stands at position `base + o` of the stream. What else is to be said (`say`) goes in between
    two packets: it moves the rest of the object, and `base`. Before the byte `rest` of the object stands what was said
    last, and that may not be handed over yet: the next is said behind it.
    """

    def __init__(
        self,
        stream: Stream,
        made: InterleavedObject,
        clock: MediaClock,
        base: int,
        finished: Callable[[], None],
        rest: int = 0,
    ) -> None:
        assert made.interleaved is not None
        self.plan = made.interleaved.plan
        self.clock = clock
        self.base = base
        self.rest = rest
        self._stream = stream
        self._object = made
        self._interleaved = made.interleaved
        self._finished = finished
        self._timer: Timer | None = None

    @classmethod
    def begun(
        cls, stream: Stream, made: InterleavedObject, clock: MediaClock, finished: Callable[[], None]
    ) -> InterleavedSender:
        """Plan the whole object next."""
        sender = cls(stream, made, clock, stream.planned, finished)
        stream.send_object(made, 0, made.size)
        return sender

    @property
    def sent(self) -> int:
        """As good as sent is also a packet of which the kernel has a part."""
        return min(self._group(), self.plan.count)

    def _group(self) -> int:
        return self._interleaved.boundary(max(self.rest, self._stream.handed_over - self.base))

    def tick(self) -> None:
        """Release what is due; then again by itself until the end."""
        if self._timer is not None:
            self._timer.cancel()
        ticks = self.clock.ticks
        released = self._interleaved.released(ticks)
        self._stream.release(self.base + released)
        if released < self._interleaved.size:
            wait = _until(self.plan, self.plan.due(ticks), ticks)
        elif self._stream.handed_over >= self.base + released:
            self._stream.release(None)
            self._finished()
            return
        else:
            wait = TICK_SECONDS * 10  # the client is slower than its stream
        self._timer = self._stream.call_later(wait, self.tick)

    def say(self, data: bytes) -> None:
        """Put something between two packets, as soon as the client has taken what the kernel has."""
        offset = self._cut()
        self._stream.write(data)
        self.base, self.rest = self.base + len(data), offset
        if offset < self._interleaved.size:
            self._object.file.users += 1  # each `send_object` takes one
            self._stream.send_object(self._object, offset, self._interleaved.size - offset)
        self.tick()

    def stop(self) -> None:
        """Plan no more of it."""
        if self._timer is not None:
            self._timer.cancel()
        self._cut()
        self._stream.release(None)

    def _cut(self) -> int:
        """Take back everything from the first packet that the kernel has nothing of; its offset in the object."""
        group = self._group()
        offset = self._interleaved.offset_of(group) if group <= self.plan.count else self._interleaved.size
        if self.base + offset < self._stream.planned:
            self._stream.truncate(self.base + offset)
        return offset
