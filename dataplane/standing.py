"""Where this host's kernel stands with a connection that lives here: what it was given, has sent, and knows to be
acknowledged. Positions are of the send direction (`sequence_map`); a FIN counts as one.

`stall_guard` compares it with what the client says.
"""

from __future__ import annotations

import contextlib
import socket

from dataplane import repair
from dataplane.judge import Expectation
from dataplane.sequence import Seq
from dataplane.stack import TcpLayer
from dataplane.stream import ByteStream
from state.datablock import FourTuple


class Standing:
    """Of one socket. Everything raises `OSError` when the kernel has the connection no more, but for `note`."""

    def __init__(self, sock: socket.socket, connection: FourTuple, stream: ByteStream, tcp: TcpLayer, irs: Seq) -> None:
        self._sock = sock
        self._connection = connection
        self._stream = stream
        self._tcp = tcp
        self._irs = irs
        self.shut = False
        """The kernel was given the FIN."""

    def written(self) -> int:
        """Position after what this kernel was given."""
        return self._stream.sent + self.shut

    def acked(self) -> int:
        """Position up to which this kernel knows the client to have everything."""
        written = self.written()
        if written == self._stream.map.acked:
            return written
        return written - repair.unacknowledged(self._sock)

    def snd_nxt(self) -> int:
        """Position of SND.NXT: an ACK beyond it is ignored by this kernel."""
        return self.written() - repair.unsent(self._sock)

    @property
    def rcv_nxt(self) -> Seq:
        """What was read of the client's input, not what the kernel has."""
        return self._irs + 1 + self._stream.rcv_nxt_offset

    def expectation(self) -> Expectation:
        """What the judge may accept of the client now."""
        stream, tcp = self._stream, self._tcp.section
        position = max(stream.map.acked, self.acked())
        return Expectation(
            connection=self._connection,
            acked=position,
            acked_seq=stream.map.seq(position),
            end=stream.map.end,
            closing=stream.closing,
            rcv_nxt=self.rcv_nxt + repair.input_unread(self._sock),
            snd_wscale=tcp.snd_wscale if tcp.window_scaling else 0,
            timestamps=tcp.timestamps,
            tsval=tcp.tsval,
            sack=tcp.sack,
        )

    def learn(self) -> None:
        """Forget what the client has."""
        stream = self._stream
        stream.map.acknowledge(max(stream.map.acked, min(stream.sent, self.acked())))

    def note(self) -> None:
        """As `learn`, if the kernel still knows: before the socket is closed, for whoever asks afterwards."""
        if self._sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.learn()
