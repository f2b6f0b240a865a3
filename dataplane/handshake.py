"""What two hosts agreed on in the first two segments of a connection (RFC 9293 section 3.7.1, RFC 7323, 2018). Pure.

The switch shows the SYN and the SYN-ACK of data connections to the controller. Together they say all that is needed to
prove and to recreate a connection on which nothing was sent yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.segment import ACK, SYN, Segment
from state.datablock import FourTuple
from state.errors import SegmentMalformed
from state.messages import Handshake
from state.sections import TcpSection

_MSS, _WINDOW_SCALE, _SACK_PERMITTED = (2, 4), (3, 3), (4, 2)
_DEFAULT_MSS = {4: 536, 16: 1220}
"""By the length of an address: what a host takes that says nothing (RFC 9293, section 3.7.1)."""
_LARGEST_SCALE = 14


@dataclass(frozen=True)
class Offer:
    """The options of one SYN."""

    mss: int
    window_scale: int | None
    sack: bool
    timestamps: bool
    tsval: int


def offer(syn: Segment) -> Offer:
    """Raises `SegmentMalformed` when its options cannot be read."""
    mss, scale, sack = _DEFAULT_MSS[len(syn.source)], None, False
    for kind, value in _options(syn.syn_options):
        form = kind, len(value) + 2
        if form == _MSS:
            mss = int.from_bytes(value)
        elif form == _WINDOW_SCALE:
            scale = min(value[0], _LARGEST_SCALE)  # RFC 7323, section 2.3
        elif form == _SACK_PERMITTED:
            sack = True
    stamps = syn.timestamps
    return Offer(mss, scale, sack, stamps is not None, stamps[0] if stamps is not None else 0)


def _options(data: bytes) -> list[tuple[int, bytes]]:
    """(kind, value) of each."""
    found, at = [], 0
    while at < len(data) and data[at] != 0:
        if data[at] == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            raise SegmentMalformed("option of impossible length")
        found.append((data[at], data[at + 2 : at + length]))
        at += length
    return found


def agreed(ours: Segment, theirs: Segment) -> Handshake | None:
    """Of a client's SYN and the VIP's SYN-ACK. None when they do not belong together. Raises `SegmentMalformed`."""
    if not (theirs.flags & (SYN | ACK) == SYN and ours.flags & (SYN | ACK) == SYN | ACK):
        return None
    if ours.ack != theirs.seq + 1:
        return None
    here, there = offer(ours), offer(theirs)
    scaling = here.window_scale is not None and there.window_scale is not None
    timestamps = here.timestamps and there.timestamps
    snd_wscale = (there.window_scale or 0) if scaling else 0
    return Handshake(
        FourTuple(ours.source, ours.source_port, ours.destination, ours.destination_port),
        int(ours.seq),
        int(theirs.seq),
        TcpSection(
            mss=max(1, there.mss),
            snd_wscale=snd_wscale,
            rcv_wscale=(here.window_scale or 0) if scaling else 0,
            window_scaling=scaling,
            sack=here.sack and there.sack,
            timestamps=timestamps,
            tsval=here.tsval if timestamps else 0,
            wmax=0xFFFF << snd_wscale,
        ),
    )
