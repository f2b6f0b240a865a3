"""An FTP control connection over a stream that only records, as far as no data connection is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dataplane.ftp import FtpApplication, kind
from dataplane.ftp.protocol import FtpSection
from dataplane.objects import DocumentRoot
from dataplane.stack import ApplicationKind, Member, make_block
from state.configuration import Serving
from state.datablock import DataBlock, FourTuple
from tests.unit.builders import four_tuple, header


@dataclass
class Timer:
    seconds: float
    callback: Callable[[], None]
    running: bool = True

    def cancel(self) -> None:
        self.running = False


@dataclass
class Listening:
    """`stack.Awaited`."""

    local_port: int

    def close(self) -> None:
        return


@dataclass
class RecordingBundle:
    client: str = "10.0.0.7"
    vip: str = "10.0.0.100"
    id: str = "ftp"

    def listen(self, role: str, accepted: object, port: int | None = None) -> Listening:
        return Listening(port or 40_960)

    def data_ports(self, transport: str) -> tuple[range, ...]:
        return (range(20, 21),)

    def connect(self, role: str, port: int, remote: object, application: object, failed: object) -> Listening:
        return Listening(port)

    def connections(self) -> list[Member]:
        return []


@dataclass
class RecordingStream:
    """`stack.Stream`, for what writes and waits."""

    bundle: RecordingBundle = field(default_factory=RecordingBundle)
    said: bytes = b""
    held: bool = False
    room: bool = True
    closed: bool = False
    unsent: int = 0
    handed_over: int = 0
    timers: list[Timer] = field(default_factory=list)

    @property
    def connection(self) -> FourTuple:
        return four_tuple()

    @property
    def planned(self) -> int:
        return len(self.said)

    @property
    def unacknowledged(self) -> int:
        return len(self.said)

    def write(self, data: bytes) -> None:
        assert not self.closed, "nothing follows the end"
        self.said += data

    def has_room(self) -> bool:
        return self.room

    def hold_input(self, held: bool) -> None:
        self.held = held

    def changed(self) -> None:
        return

    def close(self) -> None:
        self.closed = True

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    def turn(self) -> bool:
        """The next turn of the loop; False when nothing is to be done in it."""
        due = [timer for timer in self.timers if timer.running and timer.seconds == 0]
        for timer in due:
            timer.running = False
            timer.callback()
        return bool(due)


class Server:
    """The application with its stream, as a client reaches it."""

    def __init__(
        self,
        root: DocumentRoot,
        limits: Serving | None = None,
        block: DataBlock | None = None,
        made_of: ApplicationKind | None = None,
    ) -> None:
        """`block`: it is ready from this checkpoint. `made_of`: another connection of the same agent."""
        self.root, self.limits = root, limits or Serving()
        self.kind = made_of or kind(self.limits)
        self.stream = RecordingStream()
        made = self.kind.fresh(root) if block is None else self.kind.unready(root, block)
        assert isinstance(made, FtpApplication)
        self.application = made
        if block is None:
            made.opened(self.stream)  # type: ignore[arg-type]
        else:
            made.ready(self.stream, 0)  # type: ignore[arg-type]

    def says(self, data: bytes) -> Server:
        """Input arrives in the pieces in which the stack reads it; what is held arrives when there is a turn for it."""
        while data and not self.stream.closed:
            if not self.stream.held:
                piece, data = data[: self.application.read_bytes], data[self.application.read_bytes :]
                self.application.received(piece)
            elif not self.stream.turn():
                break
        while self.stream.turn():
            pass
        return self

    def log_in(self) -> Server:
        self.says(b"USER anonymous\r\nPASS x\r\n")
        self.stream.said = b""
        return self

    @property
    def codes(self) -> list[int]:
        """Of all replies of one line."""
        return [int(line[:3]) for line in self.stream.said.split(b"\r\n") if line[:3].isdigit() and line[3:4] == b" "]

    @property
    def section(self) -> FtpSection:
        return self.block.section("ftp", FtpSection)

    @property
    def block(self) -> DataBlock:
        return DataBlock.decode(make_block(header(), (self.application,)).encode())

    def dies(self) -> Server:
        """The backup's, from the checkpoint of this moment; it is ready."""
        return Server(self.root, self.limits, self.block)


def count_calls(calls: list[object], real: Callable[..., object]) -> Callable[..., object]:
    """The same function, which notes what it is called with."""

    def counting(*given: object) -> object:
        calls.append(given)
        return real(*given)

    return counting


def lines(words: Iterable[bytes]) -> bytes:
    return b"".join(word + b"\r\n" for word in words)
