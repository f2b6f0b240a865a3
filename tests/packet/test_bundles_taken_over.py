"""Bundles at a backup, without a switch: all or none of their connections are recreated, on this machine's loopback.
Root is needed. The kernel's part is real; what the clients prove is decided by the test."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from dataplane import ApplicationKind, DataBlock, DocumentRoot, PartKind, Stream, segment
from dataplane.all_or_none import CONTROL_OVER, PART_MISSING
from dataplane.backup import (
    CLIENT_GONE,
    CLIENT_SILENT,
    ENDED,
    INPUT_LOST,
    NO_PROOF,
    NOT_RECREATED,
    OBJECT_MISSING,
    Progress,
    Takeover,
)
from dataplane.connection import LiveConnection
from dataplane.judge import Doubt, Expectation, Proof
from dataplane.prover import Key, Patience, Verdict, key_of, reset_segment
from dataplane.sequence import Seq
from dataplane.stack import Registry
from dataplane.unready import Unready, UnreadySet
from state.datablock import FourTuple, Header
from state.sections import (
    BUNDLE,
    CONTROL,
    STREAM,
    TCP,
    BundleSection,
    Extent,
    ObjectRef,
    Part,
    StreamSection,
    TcpSection,
)
from tests.packet.noting import Hindered, Nothing, Noting, NotingData, until
from tests.unit.builders import document_root
from tests.unit.live import StoringHost

HERE = "127.0.0.1"
ADDRESS = socket.inet_aton(HERE)
ISS, IRS, TSVAL = 0xFFFF_FFF0, 7000, 1_000_000


@dataclass
class Net:
    """Stands for `Proving`: what clients prove is said by the test, what is sent to them is noted."""

    decided: dict[Key, Callable[[Verdict], None]] = field(default_factory=dict)
    sent: list[segment.Segment] = field(default_factory=list)

    def prove(self, expected: Expectation, patience: Patience, decided: Callable[[Verdict], None]) -> Key:
        self.decided[key_of(expected)] = decided
        return key_of(expected)

    def ready(self) -> bool:
        return True

    def give_up(self, key: Key) -> None:
        self.decided.pop(key, None)

    def dismiss(self, expected: Expectation, standing: Proof | None) -> None:
        self.sent.append(segment.parse(reset_segment(expected, standing, 0)))

    def resets(self) -> set[int]:
        """Client ports that were sent an RST."""
        return {one.destination_port for one in self.sent if one.flags & segment.RST}


class Backup(StoringHost):
    """Host and adopter of a takeover."""

    def __init__(self, root: DocumentRoot) -> None:
        super().__init__(root, True)
        self.adopted: list[LiveConnection] = []
        self.ends: list[str] = []
        self.resumed: list[str] = []
        self.reset: list[tuple[str, str]] = []
        self.waiting = -1

    def adopt(self, connection: LiveConnection, proof: Proof) -> None:
        self.adopted.append(connection)

    def over_(self, connection: str) -> None:
        self.ends.append(connection)

    def report(self, takeover: int, progress: Progress, waiting: int) -> None:
        self.resumed += progress.resumed
        self.reset += progress.reset
        self.waiting = waiting


CONTROL_PORT, FIRST, SECOND = 29_001, 29_002, 29_003
SERVICE_PORT, DATA_PORT = 28_021, 28_020
"""None is of those that kernels give to clients (from 32768 on), where one that has just ended would be in the way."""
IDLE = StreamSection(0, 0, 0, False, False, [], [])
CLOSING = StreamSection(0, 5, 0, False, True, [], [Extent(0, 5, literal=b"hello")])
AT_ITS_END = StreamSection(5, 5, 0, True, True, [], [Extent(0, 5, literal=b"hello")])
WITH_OBJECT = StreamSection(0, 0, 0, False, False, [ObjectRef("/lost.bin", 5, 1, b"")], [Extent(0, 5, object=0)])


def four(client_port: int) -> FourTuple:
    return FourTuple(ADDRESS, SERVICE_PORT if client_port == CONTROL_PORT else DATA_PORT, ADDRESS, client_port)


def block(client_port: int, stream: StreamSection = IDLE, listed: tuple[int, ...] | None = (FIRST, SECOND)) -> bytes:
    """`listed`: client ports of the control connection's parts; None: it says nothing of a bundle."""
    is_control = client_port == CONTROL_PORT
    header = Header(
        "s1",
        1,
        1,
        1,
        1,
        four(client_port),
        Noting.name if is_control else NotingData.name,
        ISS,
        IRS,
        (ISS + 1 + stream.acked) % 2**32,
        (ISS + 1 + stream.sent) % 2**32,
        IRS + 1 + stream.received + stream.input_ended,
        stream.objects[0].identifier if stream.objects else "",
        (ISS + 1) % 2**32 if stream.objects else 0,
        bundle=four(CONTROL_PORT).id if listed is not None else "",
    )
    made = DataBlock(header)
    made.append(TCP, TcpSection(1460, 7, 7, True, True, True, TSVAL, 65535))
    made.append(STREAM, stream)
    if listed is not None:
        parts = [Part("data", "tcp", DATA_PORT, HERE, port) for port in listed] if is_control else []
        made.append(BUNDLE, BundleSection(header.bundle, CONTROL if is_control else "data", parts))
    made.append(header.protocol, Nothing())
    return made.encode()


@dataclass
class TakingOver:
    """A takeover of these blocks has begun."""

    net: Net
    backup: Backup
    takeover: Takeover
    notes: list[str]
    entries: dict[int, Unready]

    def proves(self, client_port: int, position: int = 0, missing: int = 0) -> None:
        entry = self.entries[client_port]
        seq = Seq(entry.header.rcv_nxt)
        ack = Seq(ISS + 1 + position)
        proof = Proof(ack, position, seq + missing, missing, 65535, 5, TSVAL, position)
        self._decide(client_port, Verdict(key_of(entry.expected), proof))

    def fails(self, client_port: int, doubt: Doubt = Doubt.GONE) -> None:
        self._decide(client_port, Verdict(key_of(self.entries[client_port].expected), doubt))

    def _decide(self, client_port: int, verdict: Verdict) -> None:
        self.net.decided.pop(verdict.key)(verdict)

    @property
    def waits_for(self) -> set[int]:
        return {port for _, port, _, _ in self.net.decided}

    async def outcome(self) -> tuple[set[int], dict[int, str]]:
        """Client ports that were resumed, and those that were reset with their reasons."""
        await until(lambda: (timer := self.takeover._report_timer) is None or timer.cancelled())
        resumed = {port for port in self.entries if four(port).id in self.backup.resumed}
        return resumed, {
            port: dict(self.backup.reset)[four(port).id]
            for port in self.entries
            if four(port).id in dict(self.backup.reset)
        }


@contextmanager
def registry(notes: list[str]) -> Iterator[Registry]:
    made = Registry()
    data = PartKind(NotingData.name, lambda root, block: NotingData(notes, _name(block)))
    made.add(ApplicationKind(Noting.name, lambda root: Noting(notes), lambda root, block: Noting(notes), (data,)))
    yield made


def _name(block: DataBlock) -> str:
    return f"data {block.header.connection.destination_port}"


def taken_over(
    folder: Path,
    blocks: dict[int, bytes],
    test: Callable[[TakingOver], Awaitable[None]],
    speaking: float = 60.0,
) -> TakingOver:
    async def run() -> TakingOver:
        notes: list[str] = []
        with document_root(folder) as root, registry(notes) as known:
            backup = Backup(root)
            unready = UnreadySet(backup, known)
            unready.build("s1", blocks.values())
            assert unready.refused == {} and unready.count("s1") == len(blocks)
            entries = unready.take("s1")
            net = Net()
            adopter = _Adopter(backup)
            patience, sockets = Patience(speaking, 60.0), unready.sockets
            assert len(sockets) == len(blocks)
            takeover = Takeover(1, backup, adopter, net, entries, patience, sockets)  # type: ignore[arg-type]
            by_port = {entry.header.connection.destination_port: entry for entry in entries}
            scene = TakingOver(net, backup, takeover, notes, by_port)
            takeover.begin()
            try:
                async with asyncio.timeout(10):
                    await until(lambda: not (takeover._sorting or takeover._unasked))
                    await test(scene)
            finally:
                takeover.end()
                sockets.close()
                for connection in backup.adopted:
                    connection.abandon()
            return scene

    return asyncio.run(run())


class _Adopter:
    def __init__(self, backup: Backup) -> None:
        self.adopt, self.report, self.over = backup.adopt, backup.report, backup.over_

    def has(self, connection: FourTuple) -> bool:
        return False

    def yield_up(self, key: Key, to: Takeover) -> None:
        """There is no other takeover."""


ALL = {CONTROL_PORT, FIRST, SECOND}


def three(first: StreamSection = IDLE, control: StreamSection = IDLE) -> dict[int, bytes]:
    return {CONTROL_PORT: block(CONTROL_PORT, control), FIRST: block(FIRST, first), SECOND: block(SECOND)}


@pytest.mark.parametrize("order", [(CONTROL_PORT, FIRST, SECOND), (SECOND, FIRST, CONTROL_PORT)])
def test_all_are_resumed_together_and_the_control_connection_is_told_first(tmp_path: Path, order: tuple[int]) -> None:
    async def test(scene: TakingOver) -> None:
        for port in order:
            assert scene.backup.adopted == [] and scene.notes == []
            scene.proves(port)
        assert await scene.outcome() == (ALL, {}) and scene.backup.waiting == 0
        assert scene.backup.adopted[0].connection == four(CONTROL_PORT)
        assert scene.notes[0] == "control ready at 0 with 2"
        assert sorted(scene.notes[1:]) == [f"data {port} ready at 0 with 2" for port in (FIRST, SECOND)]
        control, *parts = scene.backup.adopted
        assert all(part.bundle is control.bundle for part in parts)
        assert {part.local_port for part in control.bundle.parts()} == {DATA_PORT}
        for connection in scene.backup.adopted:
            connection.checkpoint_now()  # as the agent does when all is quiet
        sections = [made.section(BUNDLE, BundleSection) for made in scene.backup.checkpoints]
        assert {(section.role, len(section.parts)) for section in sections} == {(CONTROL, 2), ("data", 0)}
        assert [section.role for section in sections].count("data") == 2, "each made one"
        assert not scene.net.resets()

    taken_over(tmp_path, three(), test)


@pytest.mark.parametrize(
    ("port", "doubt", "reason"),
    [
        (FIRST, Doubt.GONE, CLIENT_GONE),
        (CONTROL_PORT, Doubt.GONE, CLIENT_GONE),
        (FIRST, Doubt.UNPROVEN, NO_PROOF),
        (SECOND, Doubt.SILENT, CLIENT_SILENT),
    ],
)
@pytest.mark.parametrize("proven_before", [0, 1, 2])
def test_if_one_cannot_be_resumed_none_is(
    tmp_path: Path, port: int, doubt: Doubt, reason: str, proven_before: int
) -> None:
    async def test(scene: TakingOver) -> None:
        others = sorted(ALL - {port})
        for other in others[:proven_before]:
            scene.proves(other)
        scene.fails(port, doubt)
        assert await scene.outcome() == (set(), dict.fromkeys(ALL, reason))
        assert scene.waits_for == set() and scene.backup.waiting == 0
        assert scene.backup.adopted == []
        # Who knows of no such connection needs no RST; all others get one.
        assert scene.net.resets() == ALL - ({port} if doubt is Doubt.GONE else set())
        assert len([note for note in scene.notes if note.endswith("ended")]) == 3

    taken_over(tmp_path, three(), test)


def test_an_object_that_is_missing_for_one_resets_all(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.proves(FIRST)
        assert await scene.outcome() == (set(), dict.fromkeys(ALL, OBJECT_MISSING))
        assert scene.net.resets() == ALL

    taken_over(tmp_path, three(WITH_OBJECT), test)


@pytest.mark.parametrize("before", [None, b"other"])
def test_a_copy_that_came_after_the_checkpoint_will_do(tmp_path: Path, before: bytes | None) -> None:
    """There was none, or another one, when the unready connection was built."""

    def has(content: bytes) -> None:
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", ns=(1, 1 if content == b"hello" else 2))
        os.replace(tmp_path / "new", tmp_path / "lost.bin")

    async def test(scene: TakingOver) -> None:
        has(b"hello")
        for port in ALL:
            scene.proves(port)
        assert await scene.outcome() == (ALL, {})

    if before is not None:
        has(before)
    taken_over(tmp_path, three(WITH_OBJECT), test)


@pytest.mark.parametrize(
    ("role", "reason"), [("data", "it was on that server alone"), ("broken", "noting-data/1: ValueError")]
)
def test_what_an_application_lacks_at_the_backup_resets_all(tmp_path: Path, role: str, reason: str) -> None:
    async def test(scene: TakingOver) -> None:
        scene.entries[FIRST].application = Hindered(scene.notes, role)
        scene.proves(CONTROL_PORT)
        scene.proves(FIRST)
        assert await scene.outcome() == (set(), dict.fromkeys(ALL, reason))
        assert scene.net.resets() == ALL

    taken_over(tmp_path, three(), test)


def test_if_the_kernel_refuses_one_none_is_resumed(tmp_path: Path) -> None:
    """Its address is taken: a socket of this host has the very connection."""

    async def test(scene: TakingOver) -> None:
        with socket.create_server((HERE, SECOND)), socket.socket() as taken:
            taken.bind((HERE, DATA_PORT))
            taken.connect((HERE, SECOND))
            for port in ALL:
                scene.proves(port)
            assert await scene.outcome() == (set(), dict.fromkeys(ALL, NOT_RECREATED))
        assert scene.backup.adopted == [] and scene.net.resets() == ALL

    taken_over(tmp_path, three(), test)


@pytest.mark.parametrize("present", [{CONTROL_PORT, FIRST}, {FIRST, SECOND}, {CONTROL_PORT}, {SECOND}])
def test_a_bundle_of_which_a_checkpoint_is_missing_is_reset_at_once(tmp_path: Path, present: set[int]) -> None:
    async def test(scene: TakingOver) -> None:
        assert await scene.outcome() == (set(), dict.fromkeys(present, PART_MISSING))
        assert scene.waits_for == set() and scene.net.resets() == present

    taken_over(tmp_path, {port: made for port, made in three().items() if port in present}, test)


def test_a_part_that_had_ended_already_is_no_part(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        assert scene.waits_for == {CONTROL_PORT, FIRST}
        scene.proves(CONTROL_PORT)
        scene.proves(FIRST)
        assert await scene.outcome() == (ALL, {})
        assert scene.backup.ends == [four(SECOND).id]
        assert "control ready at 0 with 1" in scene.notes and not scene.net.resets()

    taken_over(tmp_path, three() | {CONTROL_PORT: block(CONTROL_PORT, listed=(FIRST,))}, test)


def test_the_last_part_had_ended_if_the_control_connection_says_nothing_of_a_bundle_any_more(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        assert await scene.outcome() == ({CONTROL_PORT, FIRST}, {})
        assert scene.net.resets() == set()

    taken_over(tmp_path, {CONTROL_PORT: block(CONTROL_PORT, listed=None), FIRST: block(FIRST)}, test)


def test_a_client_that_has_closed_what_the_server_was_closing_ends_nothing_else(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.fails(FIRST, Doubt.GONE)
        assert scene.backup.adopted == []
        scene.proves(SECOND)
        assert await scene.outcome() == (ALL, {}) and scene.backup.ends == [four(FIRST).id]
        assert len(scene.backup.adopted) == 2 and not scene.net.resets()

    taken_over(tmp_path, three(CLOSING), test)


def test_one_that_both_sides_have_closed_is_not_waited_for_and_may_come_later(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.proves(SECOND)
        assert (await scene.outcome())[0] == {CONTROL_PORT, SECOND}
        scene.proves(FIRST, 5)
        assert await scene.outcome() == (ALL, {})
        assert scene.backup.adopted[2].bundle is scene.backup.adopted[0].bundle
        assert f"data {FIRST} ready at 5 with 2" in scene.notes

    taken_over(tmp_path, three(AT_ITS_END), test)


def test_one_that_comes_later_than_the_end_of_its_bundle_is_reset(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.proves(SECOND)
        scene.backup.adopted[0].reset()
        scene.proves(FIRST, 5)
        assert await scene.outcome() == ({CONTROL_PORT, SECOND}, {FIRST: CONTROL_OVER})
        assert scene.net.resets() == {FIRST}

    taken_over(tmp_path, three(AT_ITS_END), test)


def test_a_control_connection_that_is_over_takes_its_parts_with_it(tmp_path: Path) -> None:
    """The client has everything of it, and the FIN."""

    async def test(scene: TakingOver) -> None:
        scene.proves(FIRST)
        scene.proves(CONTROL_PORT, 6)
        resumed, reset = await scene.outcome()
        assert (resumed, reset) == ({CONTROL_PORT}, dict.fromkeys((FIRST, SECOND), CONTROL_OVER))

    taken_over(tmp_path, three(control=CLOSING), test)


def test_a_client_that_speaks_of_one_connection_must_soon_speak_of_all(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(FIRST)
        while len(scene.backup.reset) < 3:
            await asyncio.sleep(0.001)
        assert await scene.outcome() == (set(), dict.fromkeys(ALL, NO_PROOF))
        assert scene.waits_for == set()

    taken_over(tmp_path, three(), test, speaking=0.02)


def test_input_that_one_has_lost_resets_all(tmp_path: Path) -> None:
    """An upload whose last bytes only the dead server's kernel had."""

    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.proves(SECOND)
        scene.proves(FIRST, missing=10)
        assert await scene.outcome() == (set(), {}) and scene.backup.waiting == 3
        while len(scene.backup.reset) < 3:
            await asyncio.sleep(0.001)
        assert await scene.outcome() == (set(), dict.fromkeys(ALL, INPUT_LOST)) and scene.backup.waiting == 0
        assert all(connection.over for connection in scene.backup.adopted)

    taken_over(tmp_path, three(), test, speaking=0.5)


@pytest.mark.parametrize("missing", [0, 10])
def test_one_whose_protocol_ends_it_as_it_is_resumed_is_counted_once_as_reset(tmp_path: Path, missing: int) -> None:
    class Failing(NotingData):
        def ready(self, stream: Stream, position: int) -> None:
            raise ValueError("the author did not foresee this")

    async def test(scene: TakingOver) -> None:
        scene.entries[FIRST].application = Failing(scene.notes, "failing")
        for port in ALL:
            scene.proves(port, missing=missing if port == FIRST else 0)
        resumed, reset = await scene.outcome()
        told = [identifier for identifier, _ in scene.backup.reset] + scene.backup.resumed
        assert sorted(told) == sorted(four(port).id for port in ALL)
        if missing:  # what it lacked was waited for, and all stand or fall together
            assert (resumed, reset) == (set(), dict.fromkeys(ALL, CLIENT_GONE))
        else:
            assert (resumed, reset) == ({CONTROL_PORT, SECOND}, {FIRST: ENDED})
        assert scene.backup.waiting == 0

    taken_over(tmp_path, three(), test)


def test_what_is_recreated_sends_small_pieces_at_once_as_accepted_connections_do(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        for port in ALL:
            scene.proves(port)
        await scene.outcome()
        socks = [connection._sock for connection in scene.backup.adopted]
        assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in socks] == [1, 1, 1]

    taken_over(tmp_path, three(), test)


def test_a_connection_of_no_bundle_goes_its_own_way(tmp_path: Path) -> None:
    alone = FIRST + 100

    def plain() -> bytes:
        made = DataBlock.decode(block(FIRST))
        header = msgspec.structs.replace(made.header, connection=four(alone), bundle="")
        return DataBlock(header, [section for section in made.sections if section.name != BUNDLE]).encode()

    async def test(scene: TakingOver) -> None:
        scene.proves(alone)
        assert await scene.outcome() == ({alone}, {})
        scene.fails(FIRST)
        assert await scene.outcome() == ({alone}, dict.fromkeys(ALL, CLIENT_GONE))

    taken_over(tmp_path, three() | {alone: plain()}, test)


def test_a_fenced_server_forgets_all_without_a_word(tmp_path: Path) -> None:
    async def test(scene: TakingOver) -> None:
        scene.proves(CONTROL_PORT)
        scene.takeover.end()
        assert await scene.outcome() == (set(), {})
        assert scene.waits_for == set() and scene.net.sent == []

    taken_over(tmp_path, three(), test)
