"""FTP as an application of the stack: the control connection. `session` decides what a command does, this does it and
keeps the checkpoint; `transfer` is the data connection.

A backup needs the session, input that has no reply yet (without passwords), and what is under way: the port where the
client is awaited, the transfer, and which data connection it has. A reply is planned in the turn in which what it
speaks of is done, so that one checkpoint covers both: 150 with the first byte of a transfer, 226 with its end. So each
of them comes once and in order, whenever the server dies.

Of the queue of commands only ABOR and STAT are looked at during a transfer (RFC 959 section 4.1.3).
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Annotated

import msgspec
from msgspec import Meta

from dataplane.ftp import paths
from dataplane.ftp import session as session_
from dataplane.ftp.command import LIMIT_LINES, LIMIT_PENDING, Command, Malformed, Reader, redacted
from dataplane.ftp.doorkeeper import Doorkeeper
from dataplane.ftp.reply import reply
from dataplane.ftp.session import Facts, Session, Transfer
from dataplane.ftp.transfer import NAME as DATA_NAME
from dataplane.ftp.transfer import FtpData
from dataplane.ftp.tree import Tree
from dataplane.ftp.upload import Upload
from dataplane.objects import DocumentRoot, ObjectMissing, ObjectUnavailable
from dataplane.stack import Application, ApplicationKind, Awaited, PartKind, Stream, Timer
from state.configuration import Serving
from state.datablock import DataBlock, UInt16, UInt63
from state.errors import LocalError

NAME = "ftp"
ROLE = "data"
DATA_SECONDS, HEIR_DATA_SECONDS = 30.0, 5.0
"""How long a transfer waits for its data connection; and if its port was told by an earlier owner. Then the client may
have connected there in the last moments, so that no checkpoint knows of it: it will not connect again."""
_ACTIVE_PORT = 20
_URGENT = frozenset(("ABOR", "STAT"))
_TURN = 8
"""Commands that are carried out in one turn of the loop: others' connections wait for it. STAT of a folder ends it."""
_UNPROVEN = b"PASS \r\n"

_log = logging.getLogger(__name__)


class FtpSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pending: Annotated[bytes, Meta(max_length=2 * LIMIT_PENDING)]
    """Input that has no reply yet. In the place of a password there is nothing: a backup refuses it, and asks again."""
    session: Session
    count: UInt63 = 0
    """Data connections so far."""
    data: UInt63 = 0
    """Number of the one that the next or the present transfer has; 0: none."""
    passive: UInt16 = 0
    """Port where the client is awaited; 0: none."""
    transfer: Transfer | None = None
    running: bool = False
    """150 was said."""
    leaving: bool = False
    """QUIT was said, or the client has no more to say."""


class FtpApplication(Application):
    name = NAME
    read_bytes = 4 * 1024

    def __init__(self, root: DocumentRoot, limits: Serving, doorkeeper: Doorkeeper) -> None:
        self._root = root
        self._doorkeeper = doorkeeper
        self._tree = Tree(root.root)
        self._limits = limits
        self._stream: Stream | None = None
        self._reader = Reader()
        self._session = Session()
        self._count = 0
        self._data: FtpData | None = None
        self._alive: set[FtpData] = set()
        """Data connections, those among them whose last bytes are on their way."""
        self._awaited: Awaited | None = None
        """A port that listens, or a connect that is under way."""
        self._passive = 0
        self._inherited = False
        """The client was told that port by an earlier owner."""
        self._transfer: Transfer | None = None
        self._running = False
        self._leaving = False
        self._proving = self._input_ended = self._working = False
        self._next_turn: Timer | None = None
        self._waiting: Timer | None = None
        self._heard = 0.0
        self._taken: FtpSection | None = None

    # --- life ---
    def opened(self, stream: Stream) -> None:
        self._stream = stream
        self._say(session_.GREETING)
        self._heard = time.monotonic()
        stream.call_later(self._limits.idle / 1000, self._idle)

    def ended(self) -> None:
        self._stream = None

    def drained(self) -> None:
        self._work()

    def input_ended(self) -> None:
        self._input_ended = True
        self._work()

    def _leave(self) -> None:
        """Close once all data connections have come to their end: with the control connection they would be reset."""
        self._leaving = True
        self._drop_awaited()
        if self._stream is not None:
            self._stream.hold_input(False)
        if not self._running:
            self._over()
            self._drop_data(at_once=True)
        if self._stream is not None and not self._alive:
            self._stream.close()

    def _idle(self) -> None:
        stream, silent = self._stream, time.monotonic() - self._heard
        limit = self._limits.idle / 1000
        if stream is None or self._leaving:
            return
        if self._transfer is not None or silent < limit:
            stream.call_later(max(limit - silent, 1.0), self._idle)
        else:
            self._say(reply(421, "Nothing was heard of you for a long time: goodbye."))
            self._leave()

    # --- input ---
    def received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        if self._leaving:
            return
        self._reader.feed(data)
        self._work()

    def _work(self) -> None:
        """Carry out some of the commands that are complete, as far as there is room for replies; then the next ones.
        Meanwhile the client's further input waits, but not during a transfer: there may be an ABOR in it."""
        if self._working or self._next_turn is not None:
            return
        self._working = True
        try:
            more = self._take_turn()
        finally:
            self._working = False
        stream = self._stream
        if stream is None or self._leaving:
            return
        if self._crowded:
            self._reader.clear()
            self._say(reply(421, "Too many commands ahead: goodbye."))
            self._leave()
            return
        if more:
            self._next_turn = stream.call_later(0, self._go_on)
        stream.hold_input(self._reader.lines > 0 and self._transfer is None)
        if self._input_ended and not (self._transfer is not None or self._proving or self._reader.lines):
            self._leave()

    def _go_on(self) -> None:
        self._next_turn = None
        self._work()

    @property
    def _crowded(self) -> bool:
        return self._reader.crowded or (self._transfer is not None and self._reader.lines > LIMIT_LINES)

    def _take_turn(self) -> bool:
        """May there be more to do? No: only once something has happened."""
        for _ in range(_TURN):
            if self._stream is None or self._leaving or self._crowded or not self._stream.has_room():
                return False
            command: Command | Malformed | None = None
            if self._transfer is not None:
                command = self._reader.next_of(_URGENT)
            elif not self._proving:
                command = self._reader.next()
            if command is None:
                return False
            self._take(command)
            if isinstance(command, Command) and command.verb == "STAT":
                break
        return True

    def _say(self, data: bytes) -> None:
        if self._stream is not None and data:
            self._stream.write(data)

    def _take(self, command: Command | Malformed) -> None:
        if isinstance(command, Malformed):
            self._say(reply(command.code, command.sentence))
            return
        self._decided(session_.decide(command, self._session, self._facts()))

    def _decided(self, decision: session_.Decision) -> None:
        self._session = decision.session
        self._say(decision.replies)
        action = decision.action
        if isinstance(action, session_.Login):
            self._prove(action)
        elif isinstance(action, session_.Passive):
            self._listen(action.extended)
        elif isinstance(action, session_.Active):
            self._drop_awaited()
            self._drop_data()
        elif isinstance(action, session_.Begin):
            self._begin(action.transfer)
        elif isinstance(action, session_.Abort):
            self._abort()
        elif isinstance(action, session_.Status):
            self._say(session_.status(self._session, self._facts(), self._under_way()))
        elif isinstance(action, session_.Quit):
            self._leave()

    def _facts(self) -> Facts:
        assert self._stream is not None
        bundle = self._stream.bundle
        return Facts(
            client=bundle.client,
            vip=bundle.vip,
            now=time.time(),
            find=self._tree.find,
            names=self._tree.names,
            may_write=self._may_write,
            anonymous=self._limits.ftp.anonymous,
        )

    def _under_way(self) -> str:
        if self._transfer is None:
            return "No transfer is under way"
        what = f"{self._transfer.verb} {self._transfer.path}"
        return f"{what} is under way" if self._running else f"{what} waits for a data connection"

    # --- users ---
    def _prove(self, login: session_.Login) -> None:
        self._proving = True
        if not self._doorkeeper.ask(login.user, login.password, self._proven):
            self._proving = False
            self._say(reply(421, "Too many passwords are being proven: try again later."))
            self._leave()

    def _proven(self, proven: bool) -> None:
        self._proving = False
        if self._stream is not None and not self._leaving:
            self._decided(session_.logged_in(self._session, proven))
            self._work()

    def _may_write(self, user: str, path: str) -> bool:
        """By where the path leads: a link from a folder where the user may write to another one does not help."""
        folder = self._tree.real(paths.parent(path)[0])
        allowed = [
            self._tree.real(one) for known in self._limits.ftp.users if known.name == user for one in known.write
        ]
        return folder is not None and any(one is not None and paths.below(folder, one) for one in allowed)

    # --- data connections ---
    def _new_data(self) -> FtpData:
        self._count += 1
        return FtpData(self._tree, self._limits, self._count, self)

    def _listen(self, extended: bool, port: int | None = None) -> None:
        """`port`: the one that the client was told by an earlier owner, so that it is not told again."""
        assert self._stream is not None
        self._drop_awaited()
        if port is None:
            self._drop_data()
        bundle = self._stream.bundle
        try:
            awaited = bundle.listen(ROLE, self._accepted, port)
        except LocalError as error:
            _log.warning("%s", error)
            if port is None:
                self._say(reply(425, "No port is free for a data connection."))
            return
        self._awaited, self._passive, self._inherited = awaited, awaited.local_port, port is not None
        if port is None:
            self._say(session_.passive_reply(extended, bundle.vip, awaited.local_port))

    def _accepted(self, remote: tuple[str, int]) -> FtpData:
        self._drop_awaited()
        return self._new_data()

    def _connect(self, remote: tuple[str, int]) -> None:
        assert self._stream is not None
        bundle = self._stream.bundle
        ports = bundle.data_ports("tcp")
        port = _ACTIVE_PORT if any(_ACTIVE_PORT in run for run in ports) else next((run.start for run in ports), 0)
        try:
            self._awaited = bundle.connect(ROLE, port, remote, self._new_data(), self._not_connected)
        except LocalError as error:
            self._not_connected(str(error))

    def _not_connected(self, sentence: str) -> None:
        self._awaited = None
        self._give_up(reply(425, f"No data connection: {sentence}"))

    def data_opened(self, data: FtpData) -> None:
        self._awaited = None
        if self._stream is None or self._leaving:
            data.drop(at_once=True)
            return
        self._session = msgspec.structs.replace(self._session, remote=None)
        self._data = data
        self._alive.add(data)
        if self._transfer is not None:
            self._run()

    def data_gone(self, data: FtpData) -> None:
        self._alive.discard(data)
        if self._data is data:
            self._data = None
        if self._leaving and self._stream is not None and not self._alive:
            self._stream.close()

    def _drop_awaited(self) -> None:
        awaited, self._awaited, self._passive, self._inherited = self._awaited, None, 0, False
        if awaited is not None:
            awaited.close()

    def _drop_data(self, *, at_once: bool = False) -> None:
        data, self._data = self._data, None
        if data is not None:
            data.drop(at_once=at_once)

    # --- transfers ---
    def _begin(self, transfer: Transfer) -> None:
        """As soon as there is a data connection."""
        self._transfer, self._running = transfer, False
        if self._data is not None:
            self._run()
        elif self._awaited is not None:
            self._wait()
        elif self._session.remote is not None:
            self._wait()
            self._connect(self._session.remote)
        else:
            self._give_up(reply(425, "Say PASV, EPSV, PORT or EPRT first."))

    def _wait(self) -> None:
        assert self._stream is not None
        seconds = HEIR_DATA_SECONDS if self._inherited else DATA_SECONDS
        self._waiting = self._stream.call_later(seconds, self._no_data)

    def _no_data(self) -> None:
        if self._transfer is not None and not self._running:
            assert self._stream is not None
            _log.info("%s: no data connection for %s", self._stream.connection.id, self._transfer.verb)
            self._give_up(reply(425, "No data connection was made."))

    def _over(self) -> None:
        self._transfer, self._running = None, False
        self._heard = time.monotonic()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self, answer: bytes) -> None:
        """There will be no transfer."""
        self._over()
        self._session = msgspec.structs.replace(self._session, remote=None)
        self._drop_awaited()
        self._drop_data()
        self._say(answer)
        self._work()

    def _run(self) -> None:
        """The data connection is there."""
        data, transfer = self._data, self._transfer
        assert data is not None and transfer is not None
        if self._waiting is not None:
            self._waiting.cancel()
        opened, upload = None, None
        try:
            if transfer.verb == "RETR":
                opened = self._root.open(transfer.path)
                if transfer.offset > opened.ref.size:
                    self._root.release(opened)
                    raise ObjectMissing(f"{transfer.path} has become shorter")
            elif transfer.verb in session_.UPLOADS:
                upload = self._upload(transfer, data)
            elif not self._tree.has_folder(transfer.path):
                raise ObjectMissing(f"{transfer.path} is gone")
        except (ObjectMissing, OSError) as error:
            sentence = error.strerror or "it fails" if isinstance(error, OSError) else "it is not there any more"
            code = 450 if isinstance(error, ObjectUnavailable) else 550
            self._give_up(reply(code, f"{transfer.path}: {sentence}"))
            return
        self._running = True
        kind = "text" if transfer.verb in ("LIST", "NLST", "MLSD") else "bytes"
        self._say(reply(150, f"Here come the {kind} of {transfer.path}" if upload is None else "I am listening."))
        if opened is not None:
            data.send_file(opened, transfer.offset)
        elif upload is not None:
            data.receive(upload)
        else:
            data.send_listing(transfer)

    def _upload(self, transfer: Transfer, data: FtpData) -> Upload:
        """Raises `OSError`, and `ObjectMissing` for what leads out of the root."""
        folder, name = paths.parent(transfer.path)
        real = self._tree.real(folder)
        if real is None:
            raise ObjectMissing(f"{transfer.path} is outside the document root")
        new = transfer.verb == "STOR" and transfer.offset == 0
        offset, exactly = None if new else transfer.offset, transfer.verb == "APPE"
        return Upload(f"{real}/{paths.of_file_system(name)}", offset, data.stored, data.room, exactly=exactly)

    def transfer_ended(self, data: FtpData, answer: bytes) -> None:
        if self._data is not data or self._stream is None:
            return
        self._data = None
        self._over()
        self._say(answer)
        self._work()

    def _abort(self) -> None:
        under_way = self._transfer is not None
        self._over()
        self._drop_awaited()
        self._drop_data()
        if under_way:
            self._say(reply(426, "The transfer was aborted."))
        self._say(reply(226, "Nothing is under way."))

    # --- what a backup must know, and the backup ---
    def checkpoint(self, block: DataBlock) -> None:
        pending = (_UNPROVEN if self._proving else b"") + redacted(self._reader.pending)
        block.append(
            NAME,
            FtpSection(
                pending=pending,
                session=self._session,
                count=self._count,
                data=self._data.number if self._data is not None else 0,
                passive=self._passive,
                transfer=self._transfer,
                running=self._running,
                leaving=self._leaving,
            ),
        )

    @classmethod
    def unready(cls, root: DocumentRoot, block: DataBlock, limits: Serving, doorkeeper: Doorkeeper) -> FtpApplication:
        """From a checkpoint (claim 14)."""
        section = block.section(NAME, FtpSection)
        application = cls(root, limits, doorkeeper)
        application._taken = section
        application._reader.feed(section.pending)
        application._session, application._count = section.session, section.count
        application._transfer, application._running = section.transfer, section.running
        return application

    def ready(self, stream: Stream, position: int) -> None:
        """The client is awaited again where it was; a transfer that is running goes on by itself."""
        self._stream = stream
        self._heard = time.monotonic()
        stream.call_later(self._limits.idle / 1000, self._idle)
        section, self._taken = self._taken, None
        assert section is not None
        for member in stream.bundle.connections():
            if isinstance(member.application, FtpData):
                member.application.join(member.stream, self)
                self._alive.add(member.application)
                if member.application.number == section.data:
                    self._data = member.application
        if section.passive and self._data is None:
            self._listen(extended=False, port=section.passive)
        if section.leaving:
            self._leave()
            return
        if self._transfer is not None and not self._running:
            self._begin(self._transfer)
        elif self._transfer is not None and (self._data is None or self._data.state == "over"):
            self._give_up(reply(426, "The data connection was closed with its server: the transfer is not whole."))
        self._work()  # also during a transfer: an ABOR may wait


def kind(limits: Serving) -> ApplicationKind:
    """The protocol with these limits and users."""
    doorkeeper = Doorkeeper(limits.ftp)

    def data(root: DocumentRoot, block: DataBlock) -> FtpData:
        return FtpData.made_of(block, Tree(root.root), limits)

    return ApplicationKind(
        NAME,
        functools.partial(FtpApplication, limits=limits, doorkeeper=doorkeeper),
        functools.partial(FtpApplication.unready, limits=limits, doorkeeper=doorkeeper),
        (PartKind(DATA_NAME, data),),
    )
