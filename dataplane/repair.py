"""Linux TCP_REPAIR: read a live connection's numbers, recreate a connection, give one away in silence.

The recipe for recreating (order matters; kernel that each step needs):

    socket()
    TCP_REPAIR = 1                3.5   CAP_NET_ADMIN; bind() now may share VIP:port with the listener
    bind(VIP:port)                      do not set SO_REUSEADDR before: it undoes the forced reuse
    TCP_MAXSEG                    3.5   before connect, or the first flight goes out in 524-byte segments
    TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ     send: the client's proven ACK; receive: the checkpoint's RCV.NXT
    connect(client)                     sends nothing; the socket is ESTABLISHED
    TCP_REPAIR_OPTIONS            3.5   MSS, window scale (send | receive << 16), SACK, timestamps: value 0, else EINVAL
    TCP_TIMESTAMP                 3.9   our next TSval; below the client's newest it costs seconds (PAWS)
    TCP_REPAIR_WINDOW             4.8   the client's window, and what we may assume to have offered
    TCP_REPAIR = -1               4.19  leave without the window probe that 0 would send
    SO_REUSEADDR                        leaving cleared it: without it the service cannot be started again

Nothing is in either queue: bytes that the dead server had sent and the client had not acknowledged are sent again from
the object, which the caller has.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass

from dataplane import orphans
from dataplane.judge import Proof
from dataplane.sequence import Seq
from dataplane.socket_address import family, socket_address
from state.datablock import FourTuple
from state.errors import RepairError
from state.messages import CLOSE_MARK
from state.sections import TcpSection

# linux/tcp.h
_TCP_REPAIR = 19
_TCP_REPAIR_QUEUE = 20
_TCP_QUEUE_SEQ = 21
_TCP_REPAIR_OPTIONS = 22
_TCP_TIMESTAMP = 24
_TCP_REPAIR_WINDOW = 29
_REPAIR_ON = 1
_REPAIR_OFF_NO_WINDOW_PROBE = -1
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2
_OPTION_MSS, _OPTION_WINDOW, _OPTION_SACK, _OPTION_TIMESTAMP = 2, 3, 4, 8
_INFO_TIMESTAMPS, _INFO_SACK, _INFO_WSCALE = 1, 2, 4

_SIOCOUTQ = termios.TIOCOUTQ
_SIOCOUTQNSD = 0x894B  # linux/sockios.h
_CLOSE_TOS = socket.IP_TOS

ABORT = struct.pack("ii", 1, 0)
"""For SO_LINGER: close with RST."""

_OPTION = struct.Struct("=II")
_WINDOW = struct.Struct("=5I")
_INFO_HEAD = struct.Struct("=8B")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Numbers of a live connection, taken at accept. `iss` and `irs` are those of the SYNs."""

    iss: Seq
    irs: Seq
    tcp: TcpSection


def read(connection: socket.socket) -> Snapshot:
    """The numbers of a connection on which nothing was sent yet. About 40 us. Raises `RepairError`."""
    try:
        # Urgent bytes are input like any other: else they are not read, and what was read is no count of what came.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
            snd_nxt = connection.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _RECEIVE_QUEUE)
            # Input may arrive between two questions: the answers belong together if RCV.NXT stayed the same.
            rcv_nxt, before = connection.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ), None
            while rcv_nxt != before:
                before = rcv_nxt
                unread = input_unread(connection)
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
                rcv_nxt = connection.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
            mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        finally:
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WINDOW_PROBE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        state, _, _, _, _, options, wscale, _ = _INFO_HEAD.unpack(info)
        tsval = connection.getsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP) if options & _INFO_TIMESTAMPS else 0
    except OSError as error:
        raise RepairError(f"reading a connection: {error}") from None
    # RCV.NXT counts what the application has not read yet, and the client's FIN once it arrived (state CLOSE_WAIT).
    fin_received = state == _TCP_CLOSE_WAIT
    return Snapshot(
        iss=Seq(snd_nxt) - 1,
        irs=Seq(rcv_nxt) - 1 - unread - fin_received,
        tcp=TcpSection(
            mss=mss,
            snd_wscale=wscale & 0x0F,
            rcv_wscale=wscale >> 4,
            window_scaling=bool(options & _INFO_WSCALE),
            sack=bool(options & _INFO_SACK),
            timestamps=bool(options & _INFO_TIMESTAMPS),
            tsval=tsval & 0xFFFF_FFFF,
            wmax=0xFFFF << (wscale & 0x0F),
        ),
    )


_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # net/tcp_states.h


def prepare(family_: int) -> socket.socket:
    """A socket in repair mode, for `recreate`. Raises `RepairError`."""
    try:
        sock = socket.socket(family_, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise RepairError(f"socket: {error}") from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as `read` does
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as accepted sockets have it
    except OSError as error:
        sock.close()
        raise RepairError(f"TCP_REPAIR: {error}") from None
    return sock


def recreate(
    connection: FourTuple,
    tcp: TcpSection,
    proof: Proof,
    rcv_nxt: Seq,
    interface: int = 0,
    prepared: socket.socket | None = None,
) -> socket.socket:
    """The connection, ESTABLISHED in this kernel, non-blocking; SND.UNA and SND.NXT are `proof.ack`.

    `interface`: index of the one towards the clients, see `socket_address`. `prepared`: as `prepare` makes them.
    Raises `RepairError` with the step that failed; nothing is left behind and nothing was sent.
    """
    sock = prepared or prepare(family(connection.source))
    step = "bind"
    try:
        sock.bind(socket_address(connection.source, connection.source_port))
        step = "TCP_MAXSEG"
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, tcp.mss)
        step = "TCP_QUEUE_SEQ"
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", proof.ack))
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _RECEIVE_QUEUE)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", rcv_nxt))
        step = "connect"
        client = socket_address(connection.destination, connection.destination_port, interface)
        try:
            sock.connect(client)
        except OSError as error:
            # A client's SYN that came here before its slot was another's: this kernel still waits for its ACK.
            if error.errno != errno.EADDRNOTAVAIL or not orphans.destroy_half_open(connection, interface):
                raise
            sock.connect(client)
        step = "TCP_REPAIR_OPTIONS"
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, _repair_options(tcp))
        if tcp.timestamps:
            step = "TCP_TIMESTAMP"
            # Even: an odd value would switch this connection to microseconds (kernel 6.7).
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP, struct.pack("=I", (proof.tsecr + 2) & 0xFFFF_FFFE))
        step = "TCP_REPAIR_WINDOW"
        sock.setsockopt(
            socket.IPPROTO_TCP,
            _TCP_REPAIR_WINDOW,
            _WINDOW.pack(rcv_nxt, proof.window, max(tcp.wmax, proof.window), _RECEIVE_WINDOW, rcv_nxt),
        )
        step = "leaving repair"
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WINDOW_PROBE)
        step = "SO_REUSEADDR"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        sock.close()
        raise RepairError(f"recreating {connection.id}: {step}: {error}") from None
    return sock


_RECEIVE_WINDOW = 65535
"""What the old owner had surely offered at least: the smallest default receive window of Linux, unscaled."""


def _repair_options(tcp: TcpSection) -> bytes:
    options = _OPTION.pack(_OPTION_MSS, tcp.mss)
    if tcp.window_scaling:
        options += _OPTION.pack(_OPTION_WINDOW, tcp.snd_wscale | tcp.rcv_wscale << 16)
    if tcp.sack:
        options += _OPTION.pack(_OPTION_SACK, 0)
    if tcp.timestamps:
        options += _OPTION.pack(_OPTION_TIMESTAMP, 0)
    return options


def abandon(connection: socket.socket) -> None:
    """Close without a word: no FIN, no RST, nothing is sent again. How an owner gives a connection away."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
    except OSError as error:
        # ENOTCONN-like states have nothing left to say; any other refusal must not end in an audible close.
        if connection.fileno() < 0:
            raise RepairError(f"abandoning a connection: {error}") from None
    connection.close()


def hold_handshake(connecting: socket.socket) -> None:
    """Before `connect`: keep the ACK of the peer's SYN-ACK back until data goes with it, `finish_handshake` is called,
    or 0.2 s are over. The peer stays in SYN-RECEIVED, and its program sees no connection, while this end is ESTABLISHED
    (net/ipv4/tcp_input.c, `tcp_rcv_synsent_state_process`: in ping-pong mode it saves one ACK, for TCP_DELACK_MAX)."""
    connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


def finish_handshake(connection: socket.socket) -> None:
    """Send the ACK that `hold_handshake` kept back, if it is still due."""
    with contextlib.suppress(OSError):  # the connection is over
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def unacknowledged(connection: socket.socket) -> int:
    """Bytes handed to the kernel that the client has not acknowledged (SIOCOUTQ; a sent FIN counts as one)."""
    return int(struct.unpack("=i", fcntl.ioctl(connection, _SIOCOUTQ, b"\0\0\0\0"))[0])


def unsent(connection: socket.socket) -> int:
    """Bytes handed to the kernel that it has not sent for the first time (SIOCOUTQNSD)."""
    return int(struct.unpack("=i", fcntl.ioctl(connection, _SIOCOUTQNSD, b"\0\0\0\0"))[0])


def input_unread(connection: socket.socket) -> int:
    """Bytes that arrived and that the application has not read (SIOCINQ)."""
    return int(struct.unpack("=i", fcntl.ioctl(connection, termios.FIONREAD, b"\0\0\0\0"))[0])


def is_closed(connection: socket.socket) -> bool:
    """The kernel has nothing of this connection any more: both sides acknowledged the end, or one reset it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE


def mark_close(connection: socket.socket, dscp: int) -> None:
    """From now on this connection's segments carry the close mark: the switch lets its FIN or RST out."""
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)
    else:
        connection.setsockopt(socket.IPPROTO_IP, _CLOSE_TOS, dscp << 2)


def refuse_quietly(sock: socket.socket) -> None:
    """A connection that could not be read at accept: abort it, marked, so that its client learns at once."""
    with contextlib.suppress(OSError):
        mark_close(sock, CLOSE_MARK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()
