"""One playing of a file from here to there: every packet of it, as pure functions of a few numbers.

A server that plays keeps `Playing` in its checkpoint. Packet i, the report before it, the time at which it is due, and,
where RTP travels inside the RTSP connection (RFC 2326 section 10.12), the very bytes at any offset: all follow from
`Playing` and the file's table. So a backup goes on with what comes next by the clock, with the same SSRC, sequence
numbers and timestamps, and regenerates interleaved bytes that only the dead server had.

Sender reports are part of the plan: before the first packet and then before the first packet of every five seconds of
media, with the wall-clock time at which that packet is due. After the last packet comes a BYE. Where they stand is
computed when it is asked for: a film has thousands of them, and the event loop that makes a plan must not wait.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from dataplane.rtp import rtcp
from dataplane.rtp.media import SILENCE_TICKS, Media, Read
from dataplane.rtp.packet import CLOCK_RATE, HEADER_BYTES, header
from state.datablock import UInt32, UInt63
from state.errors import CheckpointRefused

REPORT_TICKS = SILENCE_TICKS
"""RFC 3550 section 6.2: five seconds are the shortest interval that is recommended."""
_SECOND_NS = 1_000_000_000
_FRAME = 4
"""`$`, channel, length."""


class Playing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a plan is made of, beside the file. Part of the RTSP application's section."""

    ssrc: UInt32
    start: UInt63
    """Number of the first packet, in the file."""
    stop: UInt63
    """Number of the packet after the last."""
    first_seq: Annotated[int, Meta(ge=0, le=0xFFFF)]
    first_timestamp: UInt32
    began_ns: UInt63
    """Wall clock when the first packet is due."""
    packets: UInt63 = 0
    """Packets that this SSRC had sent before: sender reports count from its beginning."""
    octets: UInt63 = 0


class Plan:
    """The packets of a `Playing`, numbered from 0. Raises `CheckpointRefused` if the file has not such packets."""

    def __init__(self, media: Media, playing: Playing, cname: str) -> None:
        if not playing.start <= playing.stop <= media.packets:
            raise CheckpointRefused("playing", f"the file has {media.packets} packets, not {playing.stop}")
        self.media = media
        self.playing = playing
        self.count = playing.stop - playing.start
        self._cname = cname
        self._began = media.ticks(playing.start)
        self.duration = media.ticks(playing.stop) - self._began
        """Ticks."""
        self._left_out: list[tuple[int, int]] | None = None

    # --- when ---
    def ticks(self, packet: int) -> int:
        """When a packet is due, since the plan's beginning."""
        return self.media.ticks(self.playing.start + packet) - self._began

    def due(self, ticks: int) -> int:
        """How many packets are due when so much of the plan's time is over."""
        return min(self.count, max(0, self.media.due(self._began + ticks) - self.playing.start))

    # --- what ---
    def packet(self, packet: int, read: Read) -> bytes:
        """The RTP packet."""
        number = self.playing.start + packet
        return self._header(packet) + self.media.payload(number, read)

    def _header(self, packet: int) -> bytes:
        return header(
            self.media.payload_type,
            self.seq(packet),
            self.timestamp(packet),
            self.playing.ssrc,
            self.media.marker(self.playing.start + packet),
        )

    def seq(self, packet: int) -> int:
        """RTP sequence number; of packet `count`: the next playing's first."""
        return (self.playing.first_seq + packet) & 0xFFFF

    def timestamp(self, packet: int) -> int:
        """RTP timestamp; of packet `count`: the next playing's first, so that time goes on (RFC 2326 appendix B)."""
        return (self.playing.first_timestamp + self.ticks(packet)) & 0xFFFF_FFFF

    def sent_before(self, packet: int) -> tuple[int, int]:
        """(packets, octets) that the SSRC has sent before this one."""
        media, start = self.media, self.playing.start
        octets = media.size_before(start + packet) - media.size_before(start)
        return self.playing.packets + packet, self.playing.octets + octets

    def has_report(self, packet: int) -> bool:
        """Does a report go before this packet? Number `count` stands for the end: its report has the BYE."""
        return packet in (0, self.count) or self._interval(packet) > self._interval(packet - 1)

    def reports_before(self, packet: int) -> int:
        """How many reports go before the packets below this number."""
        if not packet:
            return 0
        silences = self._reports_left_out()
        before = bisect_left(silences, packet, key=lambda silence: silence[0])
        return self._interval(packet - 1) + 1 - (silences[before - 1][1] if before else 0)

    def _interval(self, packet: int) -> int:
        return self.ticks(packet) // REPORT_TICKS

    def _reports_left_out(self) -> list[tuple[int, int]]:
        """(packet, how many intervals before it had no packet, and so no report): only a silence can be so long."""
        if self._left_out is None:
            self._left_out, silences, start = [], self.media.silences, self.playing.start
            left_out = 0
            for number in silences[bisect_right(silences, start) : bisect_left(silences, self.playing.stop)]:
                packet = number - start
                left_out += self._interval(packet) - self._interval(packet - 1) - 1
                self._left_out.append((packet, left_out))
        return self._left_out

    def report(self, packet: int) -> bytes:
        """The compound RTCP packet that goes before a packet that `has_report`, or that tells a newcomer of now."""
        ticks = self.ticks(packet)
        when = self.playing.began_ns + ticks * _SECOND_NS // CLOCK_RATE
        packets, octets = self.sent_before(packet)
        made = rtcp.sender_report(self.playing.ssrc, when, self.timestamp(packet), packets, octets, self._cname)
        return made + rtcp.bye(self.playing.ssrc) if packet == self.count else made

    def farewell(self, packet: int) -> bytes:
        """The report that says that nothing comes from a packet on."""
        report = self.report(packet)
        return report if packet == self.count else report + rtcp.bye(self.playing.ssrc)

    def packet_bytes(self, packet: int) -> int:
        """Length of the RTP packet."""
        number = self.playing.start + packet
        return HEADER_BYTES + self.media.size_before(number + 1) - self.media.size_before(number)

    # --- the rest of a session ---
    def stopped(self, packet: int) -> Playing:
        """What goes on after this one was stopped before a packet: nothing is left of it, but numbers continue."""
        packets, octets = self.sent_before(packet)
        at = self.playing.start + packet
        return Playing(
            self.playing.ssrc, at, at, self.seq(packet), self.timestamp(packet), self.playing.began_ns, packets, octets
        )


class Interleaved:
    """A plan as bytes of the RTSP connection: each packet in a frame `$`, channel, length (RFC 2326 section 10.12).

    The frames are grouped: group i is packet i with the report before it, and group `count` is the end's report.
    """

    def __init__(self, plan: Plan, channels: tuple[int, int]) -> None:
        self.plan = plan
        self._rtp, self._rtcp = channels
        self._report_bytes = _FRAME + (len(plan.report(0)) if plan.count else 0)
        self.size = self.offset_of(plan.count) + len(self._group(plan.count, None))

    def offset_of(self, group: int) -> int:
        """Where a group begins."""
        plan = self.plan
        reports = plan.reports_before(group)
        _, octets = plan.sent_before(group)
        return octets - plan.playing.octets + group * (_FRAME + HEADER_BYTES) + reports * self._report_bytes

    def group_at(self, offset: int) -> int:
        """The group that the byte at `offset` belongs to."""
        return bisect_right(range(self.plan.count + 1), offset, key=self.offset_of) - 1

    def boundary(self, offset: int) -> int:
        """The first group that begins at `offset` or after it; `count + 1` after the last."""
        return bisect_left(range(self.plan.count + 1), offset, key=self.offset_of)

    def released(self, ticks: int) -> int:
        """How many bytes are due when so much of the plan's time is over."""
        due = self.plan.due(ticks)
        if due == self.plan.count and ticks >= self.plan.duration:
            return self.size
        return self.offset_of(due)

    def read(self, offset: int, length: int, read: Read) -> bytes:
        """Bytes of the plan; fewer at its end, or when the file has changed."""
        group = self.group_at(offset)
        skip, parts, have = offset - self.offset_of(group), [], 0
        for data in self._groups(group, read):
            parts.append(data)
            have += len(data)
            if have >= skip + length:
                break
        return b"".join(parts)[skip : skip + length]

    def _groups(self, group: int, read: Read) -> Iterator[bytes]:
        begin = self.offset_of(group)
        for number in range(group, self.plan.count + 1):
            data = self._group(number, read)
            yield data
            begin += len(data)
            if number < self.plan.count and begin != self.offset_of(number + 1):
                return  # the file was cut short: what would follow belongs elsewhere

    def _group(self, group: int, read: Read | None) -> bytes:
        plan, data = self.plan, b""
        if plan.has_report(group):
            data = frame(self._rtcp, plan.report(group))
        if group < plan.count and read is not None:
            data += frame(self._rtp, plan.packet(group, read))
        return data


def frame(channel: int, data: bytes) -> bytes:
    """One frame of interleaved data."""
    return b"$" + bytes((channel,)) + len(data).to_bytes(2, "big") + data
