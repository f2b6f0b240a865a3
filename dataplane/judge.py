"""The ACK judge: is this segment proof of where the client stands? (claims 1, 2, 9, 10, 12)

A takeover knows from the checkpoint what the stream *may* be. What the client *has* is known only to the client, and
the first acknowledgement that happens to arrive may be old: data was still on its way when the server died. Restoring
from an old one hangs the connection for ever (the client's later ACKs would lie beyond SND.NXT and be ignored).

So the backup sends a **probe**: one byte of old data at a random, long acknowledged sequence number. RFC 9293 section
3.10.7.4 makes the client answer an unacceptable segment with its present ACK, and RFC 2883 makes it name the very
byte in a DSACK block. A segment is a **claim** of where the client stands if

1. it belongs to this connection, is no SYN, FIN or RST, and carries ACK;
2. its ACK lies between what the checkpoint knows to be acknowledged and the end of what was planned;
3. its SEQ is the checkpoint's RCV.NXT, or ahead of it by no more than a window (input the dead server had not
   checkpointed: the client may still hold it);
4. with timestamps, TSecr is near the owner's clock (RFC 7323).

A claim is **proof** if it answers something that was sent after the fence and that nobody off the path can know:

* *DSACK*: its first SACK block is [probe, probe + 1). It was made after all that the old owner had sent on that path,
  and whoever did not see the probe would have to guess up to 30 bits.
* *Echo*, for a client without SACK but with timestamps: an empty segment exactly at the claimed ACK carries a random
  TSval. RFC 7323 section 4.3 makes the client adopt it only if that ACK *is* its RCV.NXT; then the answer to the next
  probe echoes it, as TSecr. A wrong claim changes nothing at the client, and is never echoed.

A client with neither can prove nothing; `Prover` says what it takes instead.

`judge` is pure: bytes were parsed elsewhere, and the same arguments always give the same verdict.
"""

from __future__ import annotations

import enum
from collections.abc import Container

import msgspec

from dataplane.segment import ACK, FIN, RST, SYN, Segment
from dataplane.sequence import Seq
from state.datablock import FourTuple, Header
from state.sections import StreamSection, TcpSection

RECEIVE_WINDOW_LIMIT = 8 * 1024 * 1024
"""No more unread input than this can be on its way: the largest receive buffer that the stack uses."""
_TSECR_SLACK = 1 << 30
"""Milliseconds that TSecr may differ from the checkpoint's clock: 12 days idle, and any start of the clock."""


class Doubt(enum.Enum):
    """Why a segment proves nothing; the last two: why a connection was given up."""

    OTHER_CONNECTION = "other connection"
    NO_ACK = "not a plain acknowledgement"
    GONE = "the client answered with RST"
    NO_PROOF = "names none of the probes"
    ACK_TOO_OLD = "acknowledges less than the checkpoint knows"
    ACK_TOO_NEW = "acknowledges bytes that were never planned"
    SEQ_UNKNOWN = "sequence number is not the checkpoint's"
    TIMESTAMP = "timestamp is not the owner's"
    UNPROVEN = "the client speaks and proves nothing"
    SILENT = "nothing was heard of the client"


class Expectation(msgspec.Struct, frozen=True):
    """What the checkpoint allows. Made once, when the unready connection is built."""

    connection: FourTuple
    acked: int
    """Position known to be acknowledged."""
    acked_seq: Seq
    end: int
    """Position after the last planned byte."""
    closing: bool
    """A FIN follows `end`; the client may have acknowledged it."""
    rcv_nxt: Seq
    snd_wscale: int
    timestamps: bool
    tsval: int
    sack: bool = True

    @classmethod
    def of(cls, header: Header, tcp: TcpSection, stream: StreamSection) -> Expectation:
        return cls(
            connection=header.connection,
            acked=stream.acked,
            acked_seq=Seq(header.iss) + 1 + stream.acked,
            end=stream.end,
            closing=stream.closing,
            rcv_nxt=Seq(header.rcv_nxt),
            snd_wscale=tcp.snd_wscale if tcp.window_scaling else 0,
            timestamps=tcp.timestamps,
            tsval=tcp.tsval,
            sack=tcp.sack,
        )


class Proof(msgspec.Struct, frozen=True):
    """Where the client stands: everything that recreating the connection needs and the checkpoint cannot know.

    Also the type of a claim that is not proven yet.
    """

    ack: Seq
    """The client's RCV.NXT: SND.UNA and SND.NXT of the connection to recreate."""
    position: int
    """The same as a position in the stream (see `sequence_map`); `end + 1` when the FIN was acknowledged too."""
    seq: Seq
    """The client's SND.NXT."""
    input_missing: int
    """Bytes (or a FIN) that the client sent beyond the checkpoint's RCV.NXT."""
    window: int
    """The client's receive window in bytes."""
    tsval: int
    tsecr: int
    """The newest TSval that the client has seen, or may see yet; 0 without timestamps. Go on above it."""
    sacked: int = 0
    """Position up to which the client may hold bytes out of order (the highest SACK edge), or `position`.

    Once the hole below is filled the client's ACK jumps there. A connection whose SND.NXT is still below ignores that
    ACK, and all later ones (RFC 9293, 3.10.7.4: it acknowledges something not yet sent); see `stall_guard`.
    """


def judge(
    expected: Expectation, probes: Container[int], segment: Segment, echoes: Container[int] = ()
) -> Proof | Doubt:
    """Is it proof? `probes` are the sequence numbers of the probe bytes, `echoes` the TSvals that were sent since the
    fence."""
    found = claim(expected, segment)
    if isinstance(found, Doubt) or proven(probes, echoes, segment):
        return found
    return Doubt.NO_PROOF


def proven(probes: Container[int], echoes: Container[int], segment: Segment) -> bool:
    """Does it answer what was sent?"""
    if segment.sack and segment.sack[0][0] in probes and segment.sack[0][0] + 1 == segment.sack[0][1]:
        return True
    return segment.timestamps is not None and segment.timestamps[1] in echoes


def claim(expected: Expectation, segment: Segment) -> Proof | Doubt:
    """What the segment says of the client, if it is to be believed."""
    connection = expected.connection
    if (
        segment.destination_port != connection.source_port
        or segment.source_port != connection.destination_port
        or segment.destination != connection.source
        or segment.source != connection.destination
    ):
        return Doubt.OTHER_CONNECTION
    if segment.flags & RST:
        # A host without the connection answers the probe with RST at the probe's ACK number (RFC 9293, 3.10.7.1).
        return Doubt.GONE if segment.seq == expected.rcv_nxt else Doubt.SEQ_UNKNOWN
    if segment.flags & (SYN | FIN) or not segment.flags & ACK:
        return Doubt.NO_ACK
    advance = expected.acked_seq.distance(segment.ack)
    if advance < 0:
        return Doubt.ACK_TOO_OLD
    if expected.acked + advance > expected.end + expected.closing:
        return Doubt.ACK_TOO_NEW
    ahead = expected.rcv_nxt.distance(segment.seq)
    if not 0 <= ahead <= RECEIVE_WINDOW_LIMIT:
        return Doubt.SEQ_UNKNOWN
    tsval = tsecr = 0
    if expected.timestamps:
        if segment.timestamps is None:
            return Doubt.TIMESTAMP
        tsval, tsecr = segment.timestamps
        if abs(Seq(expected.tsval).distance(tsecr)) > _TSECR_SLACK:
            return Doubt.TIMESTAMP
    held = [segment.ack.distance(right) for _, right in segment.sack[1:]]
    room = expected.end - expected.acked - advance
    return Proof(
        ack=segment.ack,
        position=expected.acked + advance,
        sacked=expected.acked + advance + max([edge for edge in held if 0 < edge <= room], default=0),
        seq=segment.seq,
        input_missing=ahead,
        window=segment.window << expected.snd_wscale,
        tsval=tsval,
        tsecr=tsecr,
    )
