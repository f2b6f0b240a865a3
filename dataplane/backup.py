"""The backup's part in a takeover: prove, recreate, ready, resume (claims 1, 2, 12, 13).

`Takeover` runs one, with the unready connections (`unready`) of the server that died. Nothing is sent to a client
before `Takeover.begin`, which the agent calls only after the switch has fenced the old owner.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from dataplane import repair
from dataplane.all_or_none import CONTROL_OVER, Candidate, Group, groups
from dataplane.connection import LiveConnection
from dataplane.event_loop import Paced
from dataplane.host import Host
from dataplane.judge import Doubt, Proof
from dataplane.objects import OBJECT_DIFFERS, OBJECT_MISSING, ObjectMissing, key_of
from dataplane.prepared_sockets import PreparedSockets
from dataplane.prover import Key, Patience, Verdict
from dataplane.prover import key_of as prover_key
from dataplane.proving import Proving
from dataplane.sequence import Seq
from dataplane.socket_address import family
from dataplane.stack import TcpLayer
from dataplane.stream import ByteStream
from dataplane.unready import Unready
from state.datablock import FourTuple
from state.errors import TakeoverError
from state.messages import LIMIT_COMPARISONS, Comparison
from state.sections import CONTROL, ObjectRef, TcpSection

RESUMED = "resumed"
CLIENT_GONE = "client gone"
CANNOT_PROBE = "backup cannot probe"
CLIENT_SILENT = "client silent"
NO_PROOF = "no proof from the client in time"
NOT_RECREATED = "kernel refused the connection"
INPUT_LOST = "input was lost with its server"
ENDED = "reset by its protocol as it was resumed"
_REASONS = {Doubt.GONE: CLIENT_GONE, Doubt.SILENT: CLIENT_SILENT, Doubt.UNPROVEN: NO_PROOF}
_REPORT_SECONDS = 0.025
_FIRST_FLIGHT = 4 * 1024
"""Bytes that a connection may send while others are still to be asked: their probes stand in the same queues."""
_GOING_ON_AT_ONCE, _GOING_ON_SECONDS = 2, 0.001
"""Then so many at a time send what they have: together they would fill every queue on the way."""

_log = logging.getLogger(__name__)


def _can_wait(entry: Unready, proof: Proof) -> bool:
    """There is something to send, and the client holds nothing of it: else its ACK may jump beyond a small flight."""
    return entry.tcp.sack and proof.sacked <= proof.position < entry.expected.end


@dataclass
class Progress:
    """What has been decided since the last report."""

    resumed: list[str] = field(default_factory=list)
    reset: list[tuple[str, str]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    proved_us: int = 0
    resumed_us: int = 0
    recreate_us: int = 0


@dataclass(eq=False)
class Together:
    """Connections that were recreated in one turn: one, or those of a bundle. `late`: of so many, input is missing."""

    members: list[tuple[Unready, Proof, LiveConnection]]
    late: int = 0
    given_up: bool = False


class Adopter(Protocol):
    """Who owns connections from now on: the agent."""

    def has(self, connection: FourTuple) -> bool:
        """It lives here already."""

    def yield_up(self, key: Key, to: Takeover) -> None:
        """No other takeover is to resume this connection."""

    def adopt(self, connection: LiveConnection, proof: Proof) -> None: ...

    def over(self, connection: str) -> None:
        """This connection needs no owner any more."""

    def report(self, takeover: int, progress: Progress, waiting: int) -> None: ...


class Takeover:
    """One takeover on the backup, from the controller's word to the last connection's fate."""

    def __init__(
        self,
        number: int,
        host: Host,
        adopter: Adopter,
        proving: Proving,
        unready: list[Unready],
        patience: Patience,
        sockets: PreparedSockets,
    ) -> None:
        self._number = number
        self._sockets = sockets
        self._host = host
        self._adopter = adopter
        self._proving = proving
        self._loop = asyncio.get_running_loop()
        self._unready = unready
        self._sorting: Paced[Unready | None] = Paced(self._sort)
        self._planned: list[Unready] = []
        self._idle: list[Unready] = []
        self._unasked: Paced[Unready] = Paced(self._ask, proving.ready)
        self._waiting: dict[Key, Unready] = {}
        self._bundles: dict[str, list[Candidate]] = {}
        """By id; those of which nobody was asked yet."""
        self._alone: set[str] = set()
        """Ids of connections that say nothing of a bundle, if there is a part whose control connection is not here."""
        self._groups: dict[Key, Group] = {}
        self._over: set[Key] = set()
        """Connections of bundles that had ended, and only their owner had not said so yet."""
        self._controls: dict[Group, LiveConnection] = {}
        """Control connections of bundles that were resumed."""
        self._patience = patience
        self._held_back: deque[LiveConnection] = deque()
        self._late: dict[Together, asyncio.TimerHandle] = {}
        """Live here already, but input that their clients have sent is missing."""
        self._began = 0.0
        self._compared = 0
        self._progress = Progress()
        self._report_timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The fence stands: probe every connection, in portions: the queues of switches and of clients are short."""
        self._began = time.perf_counter()
        self._sorting.extend((*self._unready, None))
        self._unready = []
        self._schedule_report()

    def _sort(self, entry: Unready | None) -> None:
        """The more was planned, the likelier a client waits for some of it. None: that were all."""
        if entry is None:
            self._sorted()
            return
        (self._planned if entry.expected.acked < entry.expected.end else self._idle).append(entry)
        if entry.bundle is not None and not self._adopter.has(entry.header.connection):
            candidate = Candidate(prover_key(entry.expected), entry.header.connection, entry.bundle, entry.stream)
            self._bundles.setdefault(entry.bundle.id, []).append(candidate)

    def _sorted(self) -> None:
        if any(all(one.section.role != CONTROL for one in bundle) for bundle in self._bundles.values()):
            every = (*self._planned, *self._idle)
            self._alone = {entry.header.connection.id for entry in every if entry.bundle is None}
        self._planned.sort(key=lambda entry: entry.expected.acked - entry.expected.end)
        self._unasked.extend((*self._planned, *self._idle))
        self._planned, self._idle = [], []

    def _look_at_bundle(self, identifier: str) -> None:
        """Once, when the first of its connections is to be asked: there may be thousands."""
        found, over = groups(self._bundles.pop(identifier, ()), self._alone)
        self._groups.update(found)
        self._over.update(over)

    def _ask(self, entry: Unready) -> None:
        if entry.bundle is not None:
            self._look_at_bundle(entry.bundle.id)
        if self._adopter.has(entry.header.connection):
            # After its own restart the controller may not know yet that it was adopted here already.
            self._progress.resumed.append(entry.header.connection.id)
            entry.release(self._host.root)
            self._schedule_report()
            return
        key = prover_key(entry.expected)
        self._adopter.yield_up(key, self)  # still waiting; the controller's last life had ordered it
        self._waiting[key] = entry
        group = self._groups.get(key)
        if key in self._over:
            self._ended(key, None)
        elif group is not None and group.doom is not None:
            self._reset(key, None, group.doom)
        else:
            try:
                self._proving.prove(entry.expected, self._patience, functools.partial(self._decide, key))
            except OSError:
                self._fail(key, None, CANNOT_PROBE)

    def yield_up(self, key: Key) -> None:
        """Another takeover of this server has been told to resume this connection."""
        entry = self._waiting.pop(key, None)
        if entry is not None:
            self._proving.give_up(key)
            entry.release(self._host.root)
            self._schedule_report()
            if (group := self._groups.get(key)) is not None:
                group.leave(key)

    def _decide(self, key: Key, verdict: Verdict) -> None:
        entry, group = self._waiting[key], self._groups.get(key)
        self._progress.proved_us = self._elapsed()
        if isinstance(verdict.outcome, Doubt):
            if group is not None and group.may_end(key, verdict.outcome):
                self._ended(key, None)
            else:
                gone = verdict.outcome is Doubt.GONE
                self._fail(key, verdict.claimed, _REASONS[verdict.outcome], gone=gone)
            return
        proof = verdict.outcome
        flaw = self._flaw(entry, proof)
        if flaw is not None:
            self._fail(key, proof, flaw)
            return
        if entry.expected.closing and proof.position > entry.expected.end:
            self._ended(key, proof)  # the client has everything, and the FIN
            return
        if group is None:
            self._resume([(key, proof)], None)
            return
        if not group.proofs:  # its client speaks
            self._loop.call_later(self._patience.speaking, self._group_late, group)
        group.proofs[key] = proof
        self._settle(group)

    # --- bundles: all or none ---
    def _settle(self, group: Group) -> None:
        """One of its connections was decided: are they all?"""
        control = self._controls.get(group)
        if control is not None and control.over:
            group.doom = CONTROL_OVER
        if group.doom is not None:
            for key in group.roles:
                if key in self._waiting:
                    self._reset(key, group.proofs.get(key), group.doom)
        elif group.complete:
            self._resume([(key, proof) for key, proof in group.standing() if key in self._waiting], group)

    def _group_late(self, group: Group) -> None:
        """One of its connections was proven, so its client is there. It has not spoken of all."""
        if not group.complete and group.doom is None:
            group.doom = NO_PROOF
            self._settle(group)

    def _fail(self, key: Key, standing: Proof | None, reason: str, *, gone: bool = False) -> None:
        """It cannot be resumed, nor can what belongs to it. `gone`: its client knows of no such connection."""
        self._reset(key, standing, reason, gone=gone)
        group = self._groups.get(key)
        if group is not None:
            group.doom = group.doom or reason
            self._settle(group)

    def _ended(self, key: Key, proof: Proof | None) -> None:
        """It has come to its end by itself; what the client still says of it, the kernel answers with RST."""
        entry = self._waiting.pop(key)
        self._proving.give_up(key)
        entry.release(self._host.root)
        self._resumed(entry, proof)
        self._adopter.over(entry.header.connection.id)
        group = self._groups.get(key)
        if group is not None:
            group.leave(key)
            self._settle(group)

    def _resume(self, standing: list[tuple[Key, Proof]], group: Group | None) -> None:
        """Recreate these, or none; then *ready*, the control connection first."""
        entries = [(key, self._waiting[key], proof) for key, proof in standing]
        socks: list[socket.socket] = []
        try:
            for _, entry, proof in entries:
                socks.append(self._recreate(entry, proof))
        except TakeoverError as error:
            _log.warning("%s", error)
            for sock in socks:
                repair.abandon(sock)
            for key, proof in standing:
                if key in self._waiting:
                    self._fail(key, proof, NOT_RECREATED)
            return
        together = Together([])
        for sock, (key, entry, proof) in zip(socks, entries, strict=True):
            together.members.append((entry, proof, self._connection(key, entry, proof, sock, group)))
            del self._waiting[key]
        for _, proof, connection in together.members:
            self._adopter.adopt(connection, proof)
            if proof.input_missing:
                together.late += 1
                connection.expect_input(proof.input_missing, functools.partial(self._input, together))
        if together.late:
            self._late[together] = self._loop.call_later(self._patience.speaking, self._input_lost, together)
        for entry, proof, connection in together.members:
            if self._unasked and _can_wait(entry, proof):
                self._hold_back(connection)
                connection.resume(proof.position, _FIRST_FLIGHT)
            else:
                connection.resume(proof.position)
        if together.given_up:
            return
        for member in [member for member in together.members if member[2].was_reset]:
            together.members.remove(member)
            self._count_reset(member[0], member[1], ENDED)
        if not together.late:
            self._all_resumed(together)

    def _hold_back(self, connection: LiveConnection) -> None:
        if not self._held_back:
            self._loop.call_later(_GOING_ON_SECONDS, self._let_go_on)
        self._held_back.append(connection)

    def _let_go_on(self) -> None:
        """All were asked: those that have more to send may send it, a few at a time."""
        for _ in range(0 if self._unasked else min(_GOING_ON_AT_ONCE, len(self._held_back))):
            self._held_back.popleft().go_on()
        if self._held_back:
            self._loop.call_later(_GOING_ON_SECONDS, self._let_go_on)

    def _input(self, together: Together, arrived: bool) -> None:
        """Input that was missing is here, or the connection ended before it came."""
        timer = self._late.get(together)
        if timer is None:
            return  # it was reset for want of it, or this server was fenced
        together.late -= 1
        if not arrived:
            self._give_late_up(together, CLIENT_GONE)
        elif together.late == 0:
            del self._late[together]
            timer.cancel()
            self._all_resumed(together)

    def _input_lost(self, together: Together) -> None:
        """The client does not send it again: the dead server's kernel had acknowledged it."""
        self._give_late_up(together, INPUT_LOST)

    def _give_late_up(self, together: Together, reason: str) -> None:
        self._late.pop(together).cancel()
        together.given_up = True
        for entry, proof, connection in together.members:
            connection.reset()
            self._count_reset(entry, proof, reason)

    def _all_resumed(self, together: Together) -> None:
        for entry, proof, _ in together.members:
            self._resumed(entry, proof)

    def _flaw(self, entry: Unready, proof: Proof) -> str | None:
        """Why it cannot go on from here. What the client has already needs no object."""
        try:
            obstacle = entry.application.obstacle()
        except Exception as error:  # the protocol's author did not foresee it; other connections go on
            _log.warning("%s: %s", entry.header.connection.id, entry.header.protocol, exc_info=True)
            obstacle = f"{entry.header.protocol}: {type(error).__name__}"
        if obstacle is not None:
            return obstacle
        for extent in entry.stream.extents:
            if extent.object is None or extent.end <= proof.position:
                continue
            flaw = self._object_flaw(entry, entry.stream.objects[extent.object])
            if flaw is not None:
                return flaw
        return None

    def _object_flaw(self, entry: Unready, wanted: ObjectRef) -> str | None:
        key, root = key_of(wanted), self._host.root
        opened = entry.objects.get(key)
        if opened is not None and root.same(opened, wanted):
            return None
        flaw = OBJECT_MISSING if opened is None else OBJECT_DIFFERS
        if wanted.parameters:
            return flaw
        try:  # this server's copy may have come, or become the same, after the checkpoint did
            copy = root.open_copy(wanted)
        except ObjectMissing:
            return flaw
        if not root.same(copy, wanted):
            root.release(copy)
            return OBJECT_DIFFERS
        if opened is not None:
            root.release(opened)
        entry.objects[key] = copy
        return None

    def _recreate(self, entry: Unready, proof: Proof) -> socket.socket:
        """The kernel's part."""
        header, began = entry.header, time.perf_counter()
        prepared = self._sockets.take(family(header.connection.source))
        sock = repair.recreate(header.connection, entry.tcp, proof, Seq(header.rcv_nxt), self._host.interface, prepared)
        self._progress.recreate_us += int((time.perf_counter() - began) * 1e6)
        return sock

    def _connection(
        self, key: Key, entry: Unready, proof: Proof, sock: socket.socket, group: Group | None
    ) -> LiveConnection:
        """The stack above it; it sends nothing before `resume`."""
        header, tcp = entry.header, entry.tcp
        if tcp.timestamps:
            tcp = TcpSection(
                tcp.mss, tcp.snd_wscale, tcp.rcv_wscale, tcp.window_scaling, tcp.sack, True, proof.tsecr, tcp.wmax
            )
        is_part = group is not None and key != group.control
        bundle = self._controls[group].bundle if group is not None and is_part else None
        connection = LiveConnection(
            self._host,
            sock,
            header.connection,
            ByteStream.resumed(header.iss, entry.stream, proof),
            TcpLayer(tcp, self._loop.time(), self._loop.time),
            entry.application,
            Seq(header.irs),
            serial=header.serial,
            objects=list(entry.objects.values()),
            bundle=bundle,
        )
        if bundle is not None and group is not None:
            bundle.adopt(connection, group.roles[key])
        elif group is not None:
            self._controls[group] = connection
        return connection

    def _reset(self, key: Key, standing: Proof | None, reason: str, *, gone: bool = False) -> None:
        entry = self._waiting.pop(key)
        self._proving.give_up(key)
        if not gone:
            self._proving.dismiss(entry.expected, standing)
        entry.release(self._host.root)
        self._count_reset(entry, standing, reason)

    def _count_reset(self, entry: Unready, proof: Proof | None, reason: str) -> None:
        self._progress.reset.append((entry.header.connection.id, reason))
        self._note(entry, proof, reason)
        self._schedule_report()

    def _note(self, entry: Unready, proof: Proof | None, outcome: str) -> None:
        if self._compared < LIMIT_COMPARISONS:
            self._compared += 1
            self._progress.comparisons.append(entry.comparison(proof, outcome))

    def _resumed(self, entry: Unready, proof: Proof | None) -> None:
        self._note(entry, proof, RESUMED)
        self._progress.resumed.append(entry.header.connection.id)
        self._progress.resumed_us = self._elapsed()
        self._schedule_report()

    def _elapsed(self) -> int:
        return int((time.perf_counter() - self._began) * 1e6)

    def _schedule_report(self) -> None:
        """One report for what was decided in some milliseconds; the last one is not delayed."""
        if self._report_timer is None:
            self._report_timer = self._loop.call_later(_REPORT_SECONDS if self._left else 0, self._report)
        elif not self._left:
            self._report_timer.cancel()
            self._report_timer = self._loop.call_later(0, self._report)

    @property
    def _left(self) -> int:
        late = sum(len(together.members) for together in self._late)
        return (
            len(self._sorting) + len(self._planned) + len(self._idle) + len(self._unasked) + len(self._waiting) + late
        )

    def _report(self) -> None:
        self._report_timer = None
        progress, self._progress = self._progress, Progress()
        self._adopter.report(self._number, progress, self._left)

    def end(self) -> None:
        """This server was fenced: connections that still wait are forgotten without a word."""
        for key, entry in self._waiting.items():
            self._proving.give_up(key)
            entry.release(self._host.root)
        for left in (*self._sorting.clear(), *self._planned, *self._idle, *self._unasked.clear()):
            if left is not None:
                left.release(self._host.root)
        self._planned, self._idle = [], []
        if self._report_timer is not None:
            self._report_timer.cancel()
        self._waiting.clear()
        for timer in self._late.values():
            timer.cancel()
        self._late.clear()
