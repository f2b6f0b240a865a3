"""A live connection over a real socket pair: timers that cost nothing, room for answers, its end, and its application's
mistakes. Time is the loop's own, which jumps; sockets are the kernel's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane import repair
from dataplane.connection import LiveConnection
from dataplane.http import HttpApplication
from dataplane.http.protocol import HttpSection
from dataplane.judge import Expectation, Proof
from dataplane.objects import DocumentRoot
from dataplane.prover import Verdict, key_of
from dataplane.sequence import Seq
from dataplane.sequence_map import SequenceMap
from dataplane.stack import Application, Stream, TcpLayer
from dataplane.stall_guard import StallGuard, Watch
from dataplane.stream import ByteStream
from state.configuration import Serving
from state.datablock import DataBlock
from state.errors import RepairError
from state.sections import STREAM, StreamSection
from tests.unit.builders import IRS, ISS, document_root, four_tuple, proof, tcp_section
from tests.unit.virtual_time import VirtualLoop

BIG = bytes(1 << 20)


class Server:
    """A `connection.Host`: what is stored is stored at once."""

    interface = 0

    def __init__(self, root: DocumentRoot) -> None:
        self.name, self.incarnation, self.epoch, self.root = "web1", 1, 1, root
        self.blocks: list[DataBlock] = []
        self.over: list[LiveConnection] = []

    def wall_clock(self) -> int:
        return 1_700_000_000_000_000_000

    def store(self, block: bytes, stored: Callable[[], None]) -> None:
        self.blocks.append(DataBlock.decode(block))
        stored()

    def checkpoint_later(self, connection: LiveConnection) -> None:
        connection.schedule_checkpoint()

    def ended(self, connection: LiveConnection) -> None:
        self.over.append(connection)


class Script(Application):
    """Notes what it is told, and raises where it is told to."""

    name = "script"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.raises = ""
        self.stream: Stream | None = None

    def _note(self, word: str) -> None:
        self.told.append(word)
        if self.raises == word:
            raise ZeroDivisionError(word)

    def opened(self, stream: Stream) -> None:
        self.stream = stream
        self._note("opened")

    def received(self, data: bytes) -> None:
        self._note("received")

    def input_ended(self) -> None:
        self._note("input_ended")

    def drained(self) -> None:
        self._note("drained")

    def late(self) -> None:
        self._note("late")

    def stopping(self) -> None:
        self._note("stopping")

    def checkpoint(self, block: DataBlock) -> None:
        pass

    def ready(self, stream: Stream, position: int) -> None:
        self._note("ready")

    def ended(self) -> None:
        self._note("ended")


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Server]:
    with document_root(tmp_path, big=BIG, small=b"12345") as root:
        yield Server(root)


class Pair:
    """A connection and its client."""

    def __init__(self, loop: VirtualLoop, host: Server, application: Application) -> None:
        self.loop, self.host, self.application = loop, host, application
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # Small buffers: a client that does not read is soon felt. Set before the handshake, as windows are.
            self.client = socket.socket()
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            self.client.connect(listener.getsockname())
            accepted, _ = listener.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self.client.setblocking(False)
        self.connection = loop.run_until_complete(self._made(accepted))

    async def _made(self, accepted: socket.socket) -> LiveConnection:
        stream = ByteStream(SequenceMap(ISS))
        tcp = TcpLayer(tcp_section(), 0.0, self.loop.time)
        made = LiveConnection(self.host, accepted, four_tuple(), stream, tcp, self.application, Seq(IRS))
        made.start()
        return made

    def reads(self, count: int) -> bytes:
        """Up to so many bytes that have come; empty at the end."""
        try:
            return self.client.recv(count)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.client.close()
        if not self.connection.over:
            self.connection.abandon()
        self.loop.passes(0)


@pytest.fixture
def pair(loop: VirtualLoop, host: Server) -> Iterator[Pair]:
    made = Pair(loop, host, Script())
    yield made
    made.close()


@pytest.fixture
def script(pair: Pair) -> Script:
    assert isinstance(pair.application, Script)
    return pair.application


# --- timers ---
def test_a_timer_calls_once_and_not_when_it_was_cancelled(pair: Pair, script: Script, loop: VirtualLoop) -> None:
    pair.connection.call_later(10, script.late)
    pair.connection.call_later(10, script.late).cancel()
    loop.passes(9.9)
    assert script.told == ["opened"]
    loop.passes(0.2)
    assert script.told == ["opened", "late"]
    loop.passes(100)
    assert script.told == ["opened", "late"]


def test_timers_end_with_the_connection(pair: Pair, script: Script, loop: VirtualLoop) -> None:
    pair.connection.call_later(10, script.late)
    pair.connection.reset()
    pair.connection.call_later(10, script.late)
    loop.passes(100)
    assert script.told == ["opened", "ended"]


# --- room ---
def test_there_is_room_again_when_the_client_has_acknowledged(pair: Pair, script: Script, loop: VirtualLoop) -> None:
    live = pair.connection
    planned = 0
    while live.has_room():
        live.write(b"x" * 100)
        planned += 100
    assert 1000 < planned < 60_000, "a checkpoint has room for what was planned, and for input"
    taken = len(pair.reads(1 << 20))

    def everything() -> bool:
        nonlocal taken
        taken += len(pair.reads(1 << 20))
        return taken == planned

    assert loop.until(everything)
    assert loop.until(lambda: script.told.count("drained") >= 2), "once when it was sent, once when there was room"
    assert live.has_room()
    assert live.unacknowledged == 0


def test_unacknowledged_is_what_the_client_has_not_acknowledged(pair: Pair, host: Server, loop: VirtualLoop) -> None:
    live = pair.connection
    live.send_object(host.root.open("/big.bin"), 0, len(BIG))
    assert live.unacknowledged == live.unsent == len(BIG)
    loop.passes(1)
    assert live.unsent < live.unacknowledged < len(BIG), "its kernel has taken some; this one holds more"
    while len(BIG) - live.unacknowledged < 200_000:
        pair.reads(1 << 20)
        loop.passes(0.01)
    assert not live.over


# --- an application's mistakes ---
@pytest.mark.parametrize("where", ["received", "input_ended", "late", "drained", "stopping"])
def test_an_application_that_raises_ends_its_own_connection(
    pair: Pair, script: Script, loop: VirtualLoop, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    script.raises = where
    live = pair.connection
    if where == "received":
        pair.client.send(b"x")
    elif where == "input_ended":
        pair.client.shutdown(socket.SHUT_WR)
    elif where == "late":
        live.call_later(1, script.late)
    elif where == "drained":
        live.write(b"x")
    else:
        live.stopping()
    assert loop.until(lambda: live.over, 10)
    assert script.told[-1] == "ended"
    assert "ZeroDivisionError" in caplog.text
    assert pair.host.over == [live]


# --- the end ---
def test_a_client_that_takes_the_tail_slowly_gets_all_of_it(pair: Pair, host: Server, loop: VirtualLoop) -> None:
    """The kernel has everything and the FIN long before the client has; it may take longer than any single wait."""
    live = pair.connection
    live.send_object(host.root.open("/big.bin"), 0, 60_000)
    live.close()
    loop.passes(1)
    assert live.unsent == 0
    taken = 0
    while True:
        taken += len(pair.reads(8192))
        if taken == 60_000:
            break
        loop.passes(100)
        assert not live.over, f"after {taken} bytes and {loop.time():.0f} s"
    assert loop.time() > 300


def test_a_client_that_takes_nothing_of_the_tail_is_reset(pair: Pair, host: Server, loop: VirtualLoop) -> None:
    live = pair.connection
    live.send_object(host.root.open("/big.bin"), 0, 60_000)
    live.close()
    loop.passes(1)
    assert live.unacknowledged > 1
    assert loop.until(lambda: live.over, 400)
    with pytest.raises(ConnectionResetError):
        while pair.client.recv(1 << 20):
            pass


def test_a_client_that_takes_so_little_that_the_end_cannot_even_be_said_is_reset(
    pair: Pair, host: Server, loop: VirtualLoop
) -> None:
    """There is more than the kernel takes, so no FIN follows; window probes are answered for ever."""
    live = pair.connection
    live.send_object(host.root.open("/big.bin"), 0, len(BIG))
    live.close()
    assert not loop.until(lambda: live.over, 290)
    assert live.unsent > 0
    for _ in range(5):
        left = live.unacknowledged
        while live.unacknowledged == left:  # the kernels' time is not virtual
            pair.reads(8192)
        assert not loop.until(lambda: live.over, 290), "it takes something now and then"
    assert loop.until(lambda: live.over, 700)


def test_a_client_that_has_everything_and_does_not_end_is_reset(pair: Pair, host: Server, loop: VirtualLoop) -> None:
    live = pair.connection
    live.write(b"goodbye")
    live.close()
    assert loop.until(lambda: live.unacknowledged == 0, 200)
    assert pair.reads(100) == b"goodbye"
    assert not live.over
    assert loop.until(lambda: live.over, 1000)


def test_when_both_sides_have_ended_it_is_over_at_once(pair: Pair, loop: VirtualLoop) -> None:
    live = pair.connection
    live.close()
    loop.passes(0.1)
    pair.client.close()
    assert loop.until(lambda: live.over, 2)


def test_of_a_body_that_nobody_wants_only_so_much_is_read(pair: Pair, loop: VirtualLoop) -> None:
    live = pair.connection
    live.close()
    sent = 0

    def stuck() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += pair.client.send(bytes(1 << 16))
        return False

    assert not loop.until(stuck, 2)
    received = live.stream.received
    assert received < 2 << 20
    assert sent > received
    assert not loop.until(stuck, 2)
    assert live.stream.received == received, "the rest waits in the kernel, and the client with it"
    assert loop.until(lambda: live.over, 1000)


# --- handing in ---
def test_what_the_kernel_has_acknowledged_is_stored_before_the_connection_is_left(
    loop: VirtualLoop, host: Server
) -> None:
    pair = Pair(loop, host, HttpApplication(host.root, Serving()))
    loop.passes(0.1)
    request = b"GET /small.bin HTTP/1.1\r\nHost: vip\r\n\r\nGET /sm"
    pair.client.send(request)
    pair.connection.hand_in()
    assert pair.connection.over
    last = host.blocks[-1]
    assert last.section("http/1.1", HttpSection).pending == b"GET /sm"
    stream = last.section(STREAM, StreamSection)
    assert stream.received == len(request)
    assert [extent.object for extent in stream.extents] == [None, 0]
    pair.close()


# --- made anew ---
class Net:
    """A `Proving` whose answers the test gives."""

    delay = 0.0

    def __init__(self) -> None:
        self.dismissed: list[tuple[Expectation, Proof | None]] = []

    def dismiss(self, expected: Expectation, standing: Proof | None) -> None:
        self.dismissed.append((expected, standing))


def test_if_the_kernel_does_not_make_it_anew_its_client_is_told(
    pair: Pair, script: Script, host: Server, loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that only receives would wait for ever."""

    def refuses(*_: object) -> None:
        raise RepairError("recreating: connect: no route to host")

    monkeypatch.setattr(repair, "recreate", refuses)
    live, net = pair.connection, Net()
    live.send_object(host.root.open("/big.bin"), 0, len(BIG))
    loop.passes(0.1)

    async def found() -> None:
        guard = StallGuard(net)  # type: ignore[arg-type]
        watch = Watch.after(proof(0))
        beyond = proof(live.standing.snd_nxt() + 1)
        guard._proven(live, watch, Verdict(key_of(live.standing.expectation()), beyond))
        assert guard.counts == {"lost": 1}
        ((expected, standing),) = net.dismissed
        assert (expected.connection, standing) == (live.connection, beyond)

    loop.run_until_complete(found())
    assert live.over and script.told[-1] == "ended"
    assert host.over == [live]
