"""A live connection: the shell that joins a socket, the byte stream and an application protocol.

The kernel moves the bytes (`sendfile`); this code runs when input arrives, when the send buffer has room again, and
when a checkpoint was stored. Orderly closing is marked, everything else is silent (see `repair.abandon`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

import msgspec

from dataplane import repair
from dataplane.held_objects import HeldObjects
from dataplane.host import Host, Related
from dataplane.judge import Proof
from dataplane.objects import GeneratedObject, OpenObject, key_of
from dataplane.output import Output
from dataplane.packet_socket import deafen
from dataplane.sequence import Seq
from dataplane.sequence_map import ObjectByte
from dataplane.stack import Application, TcpLayer, Timer, make_block
from dataplane.standing import Standing
from dataplane.stream import ByteStream
from dataplane.tail import Stuck, Tail
from state.datablock import FourTuple, Header
from state.errors import CheckpointRefused
from state.messages import CLOSE_MARK
from state.sections import LIMIT_EXTENTS, ObjectRef

_ROOM_CHECK = 0.02
_DISCARD_BYTES = 1 << 20
"""So much input of a closing connection is read and thrown away, so that the client reads its answer and not an RST."""

_log = logging.getLogger(__name__)


class LiveConnection:
    """One client's connection on its owner. Implements `stack.Stream` for its application."""

    def __init__(
        self,
        host: Host,
        sock: socket.socket,
        connection: FourTuple,
        stream: ByteStream,
        tcp: TcpLayer,
        application: Application,
        irs: Seq,
        *,
        protected: bool = True,
        serial: int = 0,
        objects: list[OpenObject | GeneratedObject] | None = None,
        bundle: Related | None = None,
    ) -> None:
        """`bundle`: it is one of this bundle's data connections."""
        self.connection = connection
        self.application = application
        self.stream = stream
        self._host = host
        self._sock = sock
        self._fd = sock.fileno()
        self._tcp = tcp
        self._irs = irs
        self.standing = Standing(sock, connection, stream, tcp, irs)
        self._protected = protected
        self._serial = serial
        self._loop = asyncio.get_running_loop()
        self._objects = HeldObjects(host.root, objects or (), self._digest_known)
        self._output = Output(sock, connection, stream, self._objects, host.root, self._pump)
        self._bundle = bundle
        self._live = False
        """Its application was told `opened` or `ready`: bytes may go to the kernel."""
        self._checkpoint_scheduled = False
        self._closing_stored = stream.closing
        self._over = False
        self.was_reset = False
        """It ended because this side wanted it to end at once."""
        self._tail: Tail | None = None
        self._stuck: Stuck | None = None
        self._discarded = 0
        self._held = False
        """The application takes no input now."""
        self._room: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._input_expected: tuple[int, Callable[[bool], None]] | None = None
        self._when_sending: Callable[[], None] | None = None
        self._when_stored: Callable[[], None] | None = None

    # --- life ---
    def start(self) -> None:
        """A client was accepted."""
        self._listen_for_input()
        self._live = True
        self._tell(self.application.opened, self)
        self.schedule_checkpoint()

    def resume(self, position: int, at_first: int | None = None) -> None:
        """The connection was recreated here: ready, go on. `at_first`: send so many bytes, and more after `go_on`.

        The old owner's checkpoint stands for it until there is time for one of this server's (`checkpoint_now`), or
        until there is something new to say."""
        if self._over:
            return  # the control connection's application wanted it so
        if at_first is not None:
            self._output.until = position + at_first
        self._listen_for_input()
        self._tell(self.application.ready, self, position)
        self._live = True
        if self.stream.closing:
            self._watch_progress()
        elif self.stream.input_ended:
            self._tell(self.application.input_ended)
        if not self._over:
            self._pump()

    def go_on(self) -> None:
        """Send without the limit that `resume` was given."""
        self._output.until = None
        if not self._output.waits:
            self._pump()

    def expect_input(self, count: int, told: Callable[[bool], None]) -> None:
        """The client sent `count` bytes (its FIN counts as one) more than the checkpoint knew. It sends them again,
        unless the dead server's kernel had acknowledged them. `told` is called with True when they are here, with
        False when the connection ended before."""
        self._input_expected = (self.stream.rcv_nxt_offset + count, told)

    def when_sending(self, call: Callable[[], None]) -> None:
        """Call it once, when bytes are next handed to the kernel."""
        self._when_sending = call

    def when_stored(self, call: Callable[[], None]) -> None:
        """Call it once, when the next checkpoint is stored and what it allows to be sent was handed to the kernel."""
        self._when_stored = call

    def _tell_input(self) -> None:
        if self._input_expected is not None:
            expected, told = self._input_expected
            if self._over or self.stream.rcv_nxt_offset >= expected:
                self._input_expected = None
                if self._held and not self._over:
                    self._loop.remove_reader(self._fd)
                told(not self._over)

    def carry_out(self, call: Callable[..., None], *arguments: object) -> None:
        """Call the application back on behalf of its bundle."""
        self._tell(call, *arguments)

    def rebuild(self, proof: Proof) -> None:
        """What this kernel thinks of the connection is useless (`stall_guard`): make it anew. Raises `RepairError`."""
        self._read_all()
        if self._over:
            return
        self._loop.remove_reader(self._fd)
        self._output.pause()
        self._leave_tail()
        repair.abandon(self._sock)
        if (newest := Seq(self._tcp.section.tsval)) > Seq(proof.tsecr):
            proof = msgspec.structs.replace(proof, tsecr=int(newest))  # what this kernel has sent may arrive yet
        self.stream.rewind(proof)
        rcv_nxt = self.standing.rcv_nxt
        self._sock = repair.recreate(self.connection, self._tcp.section, proof, rcv_nxt, self._host.interface)
        self._fd = self._sock.fileno()
        self._output.move(self._sock)
        self.standing = Standing(self._sock, self.connection, self.stream, self._tcp, self._irs)
        if self.stream.closing:
            self._watch_progress()
        self._listen_for_input()
        self._pump()

    def lost(self) -> None:
        """The kernel's connection is gone and cannot be made again."""
        if not self._over:
            self._detach()
            self.standing.note()
            self._sock.close()
            self._finish()

    def stopping(self) -> None:
        """The server is about to end."""
        self._tell(self.application.stopping)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        """Call the application. What its author did not foresee ends this connection and nothing else."""
        if self._over:
            return
        try:
            call(*arguments)
        except Exception:
            _log.exception("%s: %s failed; the connection is reset", self.connection.id, self.application.name)
            self.reset()

    def _read_all(self) -> None:
        """Take in what the kernel has acknowledged: bytes, and a FIN, which no count of unread bytes shows. It
        acknowledges nothing more: this kernel's connection is about to be abandoned."""
        if self._over:
            return
        deafen(self._sock)
        while not self._over and not self.stream.input_ended:
            try:
                self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError:  # said once: the next read would tell of an end that its client never sent
                self._end()
                return
            self._readable()

    @property
    def sack(self) -> bool:
        """SACK was negotiated (RFC 2018)."""
        return self._tcp.section.sack

    @property
    def over(self) -> bool:
        return self._over

    @property
    def protected(self) -> bool:
        """Somebody else can take it over."""
        return self._protected

    def hand_in(self) -> None:
        """Take in what the kernel has acknowledged, have it stored, and abandon: another server goes on from here. All
        of a bundle is handed in together."""
        if self._bundle is not None:
            self._bundle.hand_in()
        else:
            self.take_in()
            self.abandon()

    def take_in(self) -> None:
        """What the kernel has acknowledged, and have it stored."""
        self._read_all()
        self._checkpoint()

    def abandon(self) -> None:
        """Give the connection up without a word: another server has it."""
        if self._over:
            return
        self._detach()
        self.standing.note()
        repair.abandon(self._sock)
        self._finish(silently=True)

    def _detach(self) -> None:
        self._loop.remove_reader(self._fd)
        self._output.leave()
        self._leave_tail()
        for timer in (self._room, *self._timers):
            if timer is not None:
                timer.cancel()

    def _leave_tail(self) -> None:
        for watch in (self._tail, self._stuck):
            if watch is not None:
                watch.leave()
        self._tail = self._stuck = None

    def _finish(self, *, silently: bool = False) -> None:
        """`silently`: another server has it, and all of its bundle."""
        self._over = True
        try:
            self.application.ended()
        except Exception:
            _log.exception("%s: %s failed at its end", self.connection.id, self.application.name)
        self._objects.release()
        if self._bundle is not None:
            self._bundle.left(self, silently=silently)
        self._host.ended(self)
        self._tell_input()
        self._when_sending = self._when_stored = None  # they refer to this connection

    def _end(self) -> None:
        """Close the socket; the kernel has nothing unmarked to say."""
        if self._over:
            return
        self._detach()
        self.standing.note()
        with contextlib.suppress(OSError):  # already reset by the client
            repair.mark_close(self._sock, CLOSE_MARK)
        self._sock.close()
        self._finish()

    # --- input ---
    def _readable(self) -> None:
        try:
            data = self._sock.recv(self.application.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._end()  # reset by the client, or the kernel gave up
            return
        stream = self.stream
        if data:
            stream.received += len(data)
            self._tell_input()
            if not stream.closing:
                self._tell(self.application.received, data)
            else:
                self._discard(len(data))
        else:
            stream.input_ended = True
            self._tell_input()
            self._loop.remove_reader(self._fd)
            if self._tail is not None:
                self._tail.watch()
                return
            if not stream.closing:
                self._tell(self.application.input_ended)
        if not self._over:
            self.schedule_checkpoint()

    def _discard(self, count: int) -> None:
        """Input that nobody wants. Beyond a limit it stays in the kernel, and the client's window closes."""
        self._discarded += count
        if self._discarded > _DISCARD_BYTES:
            self._loop.remove_reader(self._fd)

    # --- output: what the application calls ---
    def write(self, data: bytes) -> Seq:
        seq = self.stream.map.literal(data)
        self.schedule_checkpoint()
        return seq

    @property
    def bundle(self) -> Related:
        if self._bundle is None:
            self._bundle = self._host.bundle(self)
        return self._bundle

    @property
    def related(self) -> Related | None:
        """The bundle that it belongs to, if it has one by now."""
        return self._bundle

    def send_object(self, opened: OpenObject | GeneratedObject, offset: int, length: int) -> Seq:
        if opened not in self._objects:
            self._objects.keep(self._keys_in_flight())
        if not self._objects.hold(opened, lambda key: key in self._keys_in_flight()):
            self.reset()
            return self.stream.map.seq(self.stream.map.end)
        seq = self.stream.map.object(opened.ref, offset, length)
        self.schedule_checkpoint()
        return seq

    def _keys_in_flight(self) -> set[tuple[str, bytes]]:
        """Of the objects of which bytes are planned that the client may not have."""
        self.standing.note()
        return {key_of(ref) for ref in self.stream.map.objects}

    def associate(self, identifier: str, offset: int = 0, length: int | None = None) -> Seq:
        seq = self.stream.map.associate(identifier, offset, length)
        self.schedule_checkpoint()
        return seq

    def seq_of(self, identifier: str, offset: int) -> Seq:
        return self.stream.map.seq_of(identifier, offset)

    def object_at(self, position: int) -> ObjectByte | None:
        return self.stream.map.object_at(position)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = self._loop.call_later(seconds, self._tell, callback)
        if self._over:
            timer.cancel()
        if self._timers:
            now = self._loop.time()
            self._timers = [old for old in self._timers if not old.cancelled() and old.when() > now]
        self._timers.append(timer)
        return timer

    def hold_input(self, held: bool) -> None:
        if self._held == held:
            return
        self._held = held
        if not held:
            self._listen_for_input()
        elif self._input_expected is None:
            self._loop.remove_reader(self._fd)

    def _listen_for_input(self) -> None:
        held = self._held and self._input_expected is None  # what is missing is waited for in any case
        if not (held or self._over or self.stream.input_ended):
            self._loop.add_reader(self._fd, self._readable)

    def changed(self) -> None:
        self.schedule_checkpoint()

    def release(self, position: int | None) -> None:
        self.stream.released = position
        if not self._output.waits:
            self._pump()

    def truncate(self, position: int) -> None:
        self.stream.truncate(position)
        self.schedule_checkpoint()

    @property
    def handed_over(self) -> int:
        return self.stream.reached

    @property
    def planned(self) -> int:
        return self.stream.map.end

    def close(self) -> None:
        self.stream.closing = True
        self._watch_progress()
        self.schedule_checkpoint()

    def _watch_progress(self) -> None:
        """From now on nobody but this connection minds whether its client takes anything."""
        if self._stuck is None and not self._over:
            self._stuck = Stuck(self._loop, lambda: self.stream.map.end - self.unacknowledged, self.reset)

    def reset(self) -> None:
        if self._over:
            return
        self.was_reset = True
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, repair.ABORT)
        self._end()

    @property
    def unsent(self) -> int:
        return self.stream.map.end - self.stream.sent

    @property
    def unacknowledged(self) -> int:
        try:
            acked = self.standing.acked() if not self._over else self.stream.map.acked
        except OSError:  # the kernel has nothing of the connection any more
            acked = self.stream.map.acked
        return max(0, self.stream.map.end - max(acked, self.stream.map.acked))

    def has_room(self) -> bool:
        stream = self.stream
        if stream.crowded:
            self.standing.learn()
        if not stream.crowded:
            return True
        if self._room is None:
            self._room = self._loop.call_later(_ROOM_CHECK, self._look_for_room)
        return False

    def _look_for_room(self) -> None:
        """No event tells when the client has acknowledged something. A stream that is paced (`release`) is planned
        long before it is sent: that it is not finished must not keep what else is to be said from being planned.
        Nor does one tell that a client is gone whose input is held."""
        self._room = None
        if repair.is_closed(self._sock):
            self._end()
        elif self.has_room():
            self._tell(self.application.drained)

    def _digest_known(self, old: ObjectRef, new: ObjectRef) -> None:
        if not self._over and self.stream.map.update_object(old, new):
            self._host.checkpoint_later(self)  # all that send the object hear of it at once

    # --- checkpoints ---
    def schedule_checkpoint(self) -> None:
        """Make one checkpoint of all that changed in this turn of the loop."""
        if not self._checkpoint_scheduled and not self._over:
            self._checkpoint_scheduled = True
            self._loop.call_soon(self._checkpoint)

    def checkpoint_now(self) -> None:
        """Make one in this very turn, whether anything changed or not."""
        self._checkpoint_scheduled = True
        self._checkpoint()

    def checkpoint_if_due(self) -> None:
        """The one that is scheduled, if any: what is said next goes after it."""
        self._checkpoint()

    def _checkpoint(self) -> None:
        if self._over or not self._checkpoint_scheduled:
            return
        self._checkpoint_scheduled = False
        if self._bundle is not None:
            self._bundle.checkpoint_others(self)
            if self._over:
                return
        end, closing, plan = self.stream.map.end, self.stream.closing, self.stream.plan
        try:
            if self._protected:
                block = self.block()
            else:
                block = None
                self.standing.learn()
        except CheckpointRefused as error:
            _log.warning("%s: %s; the connection is reset", self.connection.id, error)
            self.reset()
            return
        except OSError:
            self._end()
            return
        except Exception:
            _log.exception("%s: checkpoint of %s failed; reset", self.connection.id, self.application.name)
            self.reset()
            return
        if block is None:
            self._stored(end, closing, plan)
        else:
            self._host.store(block, lambda: self._stored(end, closing, plan))

    def block(self) -> bytes:
        """The checkpoint of this moment. Raises `CheckpointRefused` when it grew beyond its limits."""
        self.standing.learn()
        stream = self.stream
        if len(stream.map.extents) > LIMIT_EXTENTS or len(stream.map.labels) > LIMIT_EXTENTS:
            raise CheckpointRefused("extents", "too many in flight")
        self._serial += 1
        related = self._bundle.layers(self) if self._bundle is not None else ()
        identifier, first = stream.current_object()
        header = Header(
            server=self._host.name,
            incarnation=self._host.incarnation,
            epoch=self._host.epoch,
            serial=self._serial,
            time=self._host.wall_clock(),
            connection=self.connection,
            protocol=self.application.name,
            # Plain integers: the codec knows no subclass of int.
            iss=int(stream.map.iss),
            irs=int(self._irs),
            snd_una=int(stream.map.seq(stream.map.acked)),
            snd_nxt=int(stream.map.seq(stream.sent)),
            rcv_nxt=int(self.standing.rcv_nxt),
            object=identifier,
            object_first=int(first),
            bundle=self._bundle.id if self._bundle is not None and related else "",
        )
        return make_block(header, (self._tcp, stream, *related, self.application)).encode()

    def _stored(self, end: int, closing: bool, plan: int) -> None:
        if self._over:
            return
        self.stream.checkpointed(end, plan)
        self._closing_stored |= closing
        if not self._output.waits:
            self._pump()
        if self._when_stored is not None:
            call, self._when_stored = self._when_stored, None
            call()

    # --- output: towards the kernel ---
    def _pump(self) -> None:
        if not self._live or self._over:
            return
        try:
            turn = self._output.turn()
        except OSError:
            self._end()
            return
        if turn.cut:
            self.reset()
            return
        if turn.grown_old:
            self.schedule_checkpoint()
        if turn.sent and self._when_sending is not None:
            call, self._when_sending = self._when_sending, None
            call()
        if self.stream.finished:
            if self.stream.closing:
                if self._closing_stored and not self.standing.shut:
                    self._shut_down()
            elif turn.sent:
                self._tell(self.application.drained)

    def _shut_down(self) -> None:
        """All was said: FIN, with the mark. The checkpoint stays until the client has everything."""
        self.standing.shut = True
        try:
            repair.mark_close(self._sock, CLOSE_MARK)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end()
            return
        self._leave_tail()
        self._tail = Tail(self._sock, self.stream, self._end, self.reset)
        self._tail.watch()
