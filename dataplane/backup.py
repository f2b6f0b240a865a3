"""The backup's part: unready connections ahead of any failure, and a takeover when the controller says so.

`UnreadySet` keeps, per owner, what was built from that owner's checkpoints (claim 14): the decoded block, the judge's
expectation, the application in its unready state, the objects opened and compared. `Takeover` runs one takeover: prove,
recreate, ready, resume (claims 1, 2, 12, 13). Nothing is sent to a client before `Takeover.begin`, which the agent
calls only after the switch has fenced the old owner.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from dataplane import repair
from dataplane.connection import Host, LiveConnection
from dataplane.event_loop import Paced
from dataplane.judge import Doubt, Expectation, Proof
from dataplane.objects import DocumentRoot, ObjectMissing, OpenObject
from dataplane.prover import Key, Patience, Verdict, key_of, nudge_segment, reset_segment
from dataplane.proving import Proving
from dataplane.sequence import Seq
from dataplane.sequence_map import SequenceMap
from dataplane.stack import Application, Registry, TcpLayer
from dataplane.stream import ByteStream
from state.datablock import DataBlock, FourTuple, Header, decode_header
from state.errors import CheckpointRefused, TakeoverError
from state.messages import CLOSE_MARK, LIMIT_COMPARISONS, Comparison
from state.sections import STREAM, TCP, ObjectRef, StreamSection, TcpSection

RESUMED = "resumed"
OBJECT_DIFFERS = "object differs at the backup"
OBJECT_MISSING = "object missing at the backup"
CLIENT_GONE = "client gone"
CANNOT_PROBE = "backup cannot probe"
CLIENT_SILENT = "client silent"
NO_PROOF = "no proof from the client in time"
NOT_RECREATED = "kernel refused the connection"
INPUT_LOST = "input was lost with its server"
_REASONS = {Doubt.GONE: CLIENT_GONE, Doubt.SILENT: CLIENT_SILENT, Doubt.UNPROVEN: NO_PROOF}
_NUDGES = (0.3, 1.2)
"""Seconds after a reset at which the client is nudged, in case the RST did not reach it or was not where it stands. By
then the shared state has forgotten the connection, so that the close gate lets the kernel's own RST out."""

_REPORT_SECONDS = 0.01
_RELEASED_AT_ONCE = 64

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Unready:
    """One connection that could be taken over. `missing` are objects that this server does not have."""

    header: Header
    tcp: TcpSection
    stream: StreamSection
    expected: Expectation
    application: Application
    objects: dict[str, OpenObject]
    missing: set[str]

    def release(self, root: DocumentRoot) -> None:
        """Nobody will resume it."""
        try:
            self.application.ended()
        except Exception:  # the protocol's author did not foresee it; other connections go on
            _log.exception("%s: %s failed at its end", self.header.connection.id, self.header.protocol)
        for opened in self.objects.values():
            root.release(opened)

    def comparison(self, proof: Proof | None, outcome: str) -> Comparison:
        """What was compared with what, for those who ask later. `outcome`: `RESUMED`, or why it was reset."""
        header, stream = self.header, self.stream
        map_ = SequenceMap.restored(header.iss, stream.acked, stream.objects, stream.extents, stream.labels)
        at = map_.object_at(proof.position) if proof is not None else None
        if proof is None or at is None:
            object_, offset, first = header.object, None, header.object_first
        else:
            object_, offset, first = at.identifier, at.offset, int(proof.ack - at.offset)
        return Comparison(
            connection=header.connection.id,
            protocol=header.protocol,
            outcome=outcome,
            snd_una=header.snd_una,
            end=int(map_.seq(map_.end)),
            ack=int(proof.ack) if proof is not None else None,
            object=object_,
            offset=offset,
            object_first=first,
        )


class UnreadySet:
    """Unready connections by owner and connection id."""

    def __init__(self, host: Host, registry: Registry) -> None:
        self._host = host
        self._registry = registry
        self._owners: dict[str, dict[str, Unready]] = {}
        self._expected: dict[str, dict[str, bytes]] = {}
        self._needless: Paced[Unready] = Paced(self.release)
        self.refused: dict[str, int] = {}
        """Blocks that could not be used, counted by the field that was wrong."""

    def count(self, owner: str) -> int:
        return len(self._owners.get(owner, ()))

    def counts(self) -> dict[str, int]:
        """Unready connections by owner."""
        return {owner: len(known) for owner, known in self._owners.items()}

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))

    def expect(self, owner: str, blocks: Iterable[bytes]) -> list[str]:
        """Blocks to be built when there is time; those that wait are replaced by newer ones of the same connection.

        Returns the connections for which `build_expected` is to be called."""
        expected = self._expected.setdefault(owner, {})
        names = []
        for data in blocks:
            try:
                name = decode_header(data).connection.id
            except CheckpointRefused as error:
                self._refuse(error)
                continue
            if name not in expected:
                names.append(name)
            expected[name] = data
        return names

    def build_expected(self, owner: str, name: str) -> None:
        """Nothing happens if the connection was forgotten meanwhile."""
        data = self._expected[owner].pop(name, None)
        if data is not None:
            self.build(owner, (data,))

    def _refuse(self, error: CheckpointRefused) -> None:
        self.refused[error.field] = self.refused.get(error.field, 0) + 1

    def build(self, owner: str, blocks: Iterable[bytes]) -> None:
        """Make or replace unready connections. A block that is refused is counted, and an older one stays."""
        known = self._owners.setdefault(owner, {})
        for data in blocks:
            try:
                block = DataBlock.decode(data)
                name = block.header.connection.id
                old = known.get(name)
                if old is not None:
                    _check_newer(block.header, old.header)
                unready = self._unready(block)
            except CheckpointRefused as error:
                self._refuse(error)
                continue
            known[name] = unready
            if old is not None:
                self.release(old)

    def _unready(self, block: DataBlock) -> Unready:
        header = block.header
        tcp = block.section(TCP, TcpSection)
        stream = block.section(STREAM, StreamSection)
        stream.check()
        stream.check_against(header)
        application = self._application(header, block)
        objects: dict[str, OpenObject] = {}
        missing: set[str] = set()
        for ref in stream.objects:
            try:
                objects[ref.identifier] = self._host.root.open_copy(ref)
            except ObjectMissing:
                missing.add(ref.identifier)
        expected = Expectation.of(header, tcp, stream)
        return Unready(header, tcp, stream, expected, application, objects, missing)

    def _application(self, header: Header, block: DataBlock) -> Application:
        kind = self._registry.kind(header.protocol)
        try:
            return kind.unready(self._host.root, block)
        except CheckpointRefused:
            raise
        except Exception as error:  # the protocol's author did not foresee it; other connections go on
            _log.warning("%s: unready connection of %s", header.connection.id, header.protocol, exc_info=True)
            raise CheckpointRefused(header.protocol, f"{type(error).__name__}: {error}") from error

    def forget(self, owner: str, connections: Iterable[str]) -> None:
        """These ended; no names: all of the owner's."""
        names = list(connections)
        expected, known = self._expected.get(owner, {}), self._owners.get(owner, {})
        if not names:
            expected.clear()
            names = list(known)
        if len(names) > _RELEASED_AT_ONCE:
            self._needless.extend(known.pop(name) for name in names if name in known)
        for name in names:
            expected.pop(name, None)
            unready = known.pop(name, None)
            if unready is not None:
                self.release(unready)

    def take(self, owner: str) -> list[Unready]:
        """Hand them over to a takeover."""
        return list(self._owners.pop(owner, {}).values())

    def release(self, unready: Unready) -> None:
        """Nobody will resume it."""
        unready.release(self._host.root)


def _check_newer(header: Header, known: Header) -> None:
    """Raises `CheckpointRefused` when a block is older than what is known of its connection."""
    if header.epoch < known.epoch:
        raise CheckpointRefused("epoch", f"goes back from {known.epoch} to {header.epoch}")
    same_life = (header.server, header.incarnation, header.iss) == (known.server, known.incarnation, known.iss)
    if same_life and header.serial < known.serial:
        raise CheckpointRefused("serial", f"goes back from {known.serial} to {header.serial}")


@dataclass
class Progress:
    """What has been decided since the last report."""

    resumed: list[str] = field(default_factory=list)
    reset: list[tuple[str, str]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    proved_us: int = 0
    resumed_us: int = 0
    recreate_us: int = 0


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
    ) -> None:
        self._number = number
        self._host = host
        self._adopter = adopter
        self._proving = proving
        self._loop = asyncio.get_running_loop()
        self._unready = unready
        self._unasked: Paced[Unready] = Paced(self._ask, proving.ready)
        self._waiting: dict[Key, Unready] = {}
        self._patience = patience
        self._late: dict[Key, asyncio.TimerHandle] = {}
        """Live here already, but input that their clients have sent is missing."""
        self._began = 0.0
        self._compared = 0
        self._progress = Progress()
        self._report_timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The fence stands: probe every connection, in portions: the queues of switches and of clients are short."""
        self._began = time.perf_counter()
        # The more was planned, the likelier a client waits for some of it.
        self._unready.sort(key=lambda entry: entry.expected.acked - entry.expected.end)
        self._unasked.extend(self._unready)
        self._unready = []
        self._schedule_report()

    def _ask(self, entry: Unready) -> None:
        if self._adopter.has(entry.header.connection):
            # After its own restart the controller may not know yet that it was adopted here already.
            self._progress.resumed.append(entry.header.connection.id)
            entry.release(self._host.root)
            self._schedule_report()
            return
        key = key_of(entry.expected)
        self._adopter.yield_up(key, self)  # still waiting; the controller's last life had ordered it
        self._waiting[key] = entry
        try:
            self._proving.prove(entry.expected, self._patience, functools.partial(self._decide, key))
        except OSError:
            self._reset(key, entry, None, CANNOT_PROBE)

    def yield_up(self, key: Key) -> None:
        """Another takeover of this server has been told to resume this connection."""
        entry = self._waiting.pop(key, None)
        if entry is not None:
            self._proving.give_up(key)
            entry.release(self._host.root)
            self._schedule_report()

    def _decide(self, key: Key, verdict: Verdict) -> None:
        entry = self._waiting[key]
        self._progress.proved_us = self._elapsed()
        if isinstance(verdict.outcome, Doubt):
            self._reset(key, entry, verdict.claimed, _REASONS[verdict.outcome])
            return
        proof = verdict.outcome
        flaw = self._flaw(entry, proof)
        if flaw is not None:
            self._reset(key, entry, proof, flaw)
            return
        if entry.expected.closing and proof.position > entry.expected.end:
            # The client has everything, and the FIN; what it still says, the kernel answers with RST.
            del self._waiting[key]
            entry.release(self._host.root)
            self._resumed(entry, proof)
            self._adopter.over(entry.header.connection.id)
            return
        try:
            connection = self._recreate(entry, proof)
        except TakeoverError:
            self._reset(key, entry, proof, NOT_RECREATED)
            return
        del self._waiting[key]
        self._adopter.adopt(connection, proof)
        if proof.input_missing:
            self._late[key] = self._loop.call_later(
                self._patience.speaking, self._input_lost, key, entry, proof, connection
            )
            connection.expect_input(proof.input_missing, functools.partial(self._input, key, entry, proof))
        connection.resume(proof.position)
        if not proof.input_missing:
            self._resumed(entry, proof)

    def _input(self, key: Key, entry: Unready, proof: Proof, arrived: bool) -> None:
        """Input that was missing is here, or the connection ended before it came."""
        timer = self._late.pop(key, None)
        if timer is None:
            return  # it was reset for want of it, or this server was fenced
        timer.cancel()
        if arrived:
            self._resumed(entry, proof)
        else:
            self._count_reset(entry, proof, CLIENT_GONE)

    def _input_lost(self, key: Key, entry: Unready, proof: Proof, connection: LiveConnection) -> None:
        """The client does not send it again: the dead server's kernel had acknowledged it."""
        del self._late[key]
        connection.reset()
        self._count_reset(entry, proof, INPUT_LOST)

    def _flaw(self, entry: Unready, proof: Proof) -> str | None:
        """Why the rest of the stream cannot be sent from here. What the client has already needs no object."""
        for extent in entry.stream.extents:
            if extent.object is None or extent.end <= proof.position:
                continue
            flaw = self._object_flaw(entry, entry.stream.objects[extent.object])
            if flaw is not None:
                return flaw
        return None

    def _object_flaw(self, entry: Unready, wanted: ObjectRef) -> str | None:
        opened = entry.objects.get(wanted.identifier)
        if opened is None:
            return OBJECT_MISSING
        return None if self._host.root.same(opened, wanted) else OBJECT_DIFFERS

    def _recreate(self, entry: Unready, proof: Proof) -> LiveConnection:
        header, began = entry.header, time.perf_counter()
        stream = ByteStream.resumed(header.iss, entry.stream, proof)
        sock = repair.recreate(header.connection, entry.tcp, proof, Seq(header.rcv_nxt), self._host.interface)
        self._progress.recreate_us += int((time.perf_counter() - began) * 1e6)
        tcp = entry.tcp
        if tcp.timestamps:
            tcp = TcpSection(
                tcp.mss, tcp.snd_wscale, tcp.rcv_wscale, tcp.window_scaling, tcp.sack, True, proof.tsecr, tcp.wmax
            )
        return LiveConnection(
            self._host,
            sock,
            header.connection,
            stream,
            TcpLayer(tcp, self._loop.time(), self._loop.time),
            entry.application,
            Seq(header.irs),
            serial=header.serial,
            objects=list(entry.objects.values()),
        )

    def _reset(self, key: Key, entry: Unready, standing: Proof | None, reason: str) -> None:
        if reason != CLIENT_GONE:
            self._proving.send(reset_segment(entry.expected, standing, CLOSE_MARK))
            for later in _NUDGES:
                self._loop.call_later(later, self._proving.send, nudge_segment(entry.expected))
        del self._waiting[key]
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

    def _resumed(self, entry: Unready, proof: Proof) -> None:
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
        return len(self._unasked) + len(self._waiting) + len(self._late)

    def _report(self) -> None:
        self._report_timer = None
        progress, self._progress = self._progress, Progress()
        self._adopter.report(self._number, progress, self._left)

    def end(self) -> None:
        """This server was fenced: connections that still wait are forgotten without a word."""
        for key, entry in self._waiting.items():
            self._proving.give_up(key)
            entry.release(self._host.root)
        for entry in self._unasked.clear():
            entry.release(self._host.root)
        if self._report_timer is not None:
            self._report_timer.cancel()
        self._waiting.clear()
        for timer in self._late.values():
            timer.cancel()
        self._late.clear()
