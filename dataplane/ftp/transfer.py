"""A data connection of FTP: one file, one listing, or one upload; its end is the end of the connection (MODE S).

It is idle until its control connection (`protocol`) has a transfer for it. What it sends is planned: a file as a run of
the object, a listing line by line as there is room, so that a checkpoint holds little of it. What it receives is not
in checkpoints: an upload does not survive its server, and its client is told so by a reset.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from dataplane.ftp import listing
from dataplane.ftp.reply import reply
from dataplane.ftp.session import Path, Transfer
from dataplane.ftp.tree import Tree
from dataplane.ftp.upload import Upload
from dataplane.objects import OBJECT_MISSING, OpenObject
from dataplane.stack import Application, Stream, Timer
from state.configuration import Serving
from state.datablock import DataBlock

NAME = "ftp-data"
UPLOAD_LOST = "an upload's bytes were lost with its server"
_CHUNK = 4096
"""Bytes of a listing that are planned at a time."""
_LIMIT_EARLY = 64 * 1024
"""Input of a client that does not wait for 150."""

State = Literal["idle", "early", "file", "listing", "listed", "storing", "over"]


class DataSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=1, le=2**62)]
    """Which of its session's data connections it is."""
    state: State
    listed: Transfer | None = None
    after: Path = ""
    """Of the listing: the last name that is planned."""


class Control(Protocol):
    """What a data connection tells its control connection."""

    def data_opened(self, data: FtpData) -> None: ...

    def transfer_ended(self, data: FtpData, answer: bytes) -> None:
        """The transfer is over; this is what is said of it."""

    def data_gone(self, data: FtpData) -> None:
        """The connection is over, whether it had a transfer or not."""


class FtpData(Application):
    name = NAME

    def __init__(self, tree: Tree, limits: Serving, number: int, control: Control | None = None) -> None:
        """`control` is None at a backup, until `join`."""
        self.number = number
        self.state: State = "idle"
        self._tree = tree
        self._limits = limits
        self._control = control
        self._stream: Stream | None = None
        self._listed: Transfer | None = None
        self._after = ""
        self._names: list[str] | None = None
        self._pattern: re.Pattern[str] | None = None
        self._next_turn: Timer | None = None
        self._upload: Upload | None = None
        self._early = b""
        self._received = 0
        self._input_ended = False
        self._seen = (0, 0)

    # --- life ---
    def opened(self, stream: Stream) -> None:
        self._stream = stream
        if self._control is not None:
            self._control.data_opened(self)

    def join(self, stream: Stream, control: Control) -> None:
        """At a backup: it is one of this control connection's."""
        self._stream, self._control = stream, control

    def ready(self, stream: Stream, position: int) -> None:
        self._stream = stream
        if self.state == "listing":
            assert self._listed is not None
            self._watch()
            self._read_names(self._listed)
        elif self.state in ("file", "listed"):
            self._watch()
            self._finish_when_drained()

    def ended(self) -> None:
        self._stream = None
        if self._upload is not None:
            self._upload.abandon()
            self._upload = None
        control, state = self._control, self.state
        self._control, self.state = None, "over"
        if control is not None:
            if state not in ("idle", "early", "over"):
                control.transfer_ended(self, reply(426, "The data connection was closed: the transfer is not whole."))
            control.data_gone(self)

    def drop(self, *, at_once: bool = False) -> None:
        """It is not wanted any more; nothing is said of it. A client that sends is reset. One that only listens gets
        the connection's end, which is repeated until it is acknowledged, by an heir if need be: with a RST that is lost
        it would wait for ever. `at_once`: the control connection ends, too."""
        stream, sending = self._stream, self.state in ("early", "storing")
        self.state = "over"
        if stream is None:
            return
        if sending or at_once:
            stream.reset()
            return
        if stream.handed_over < stream.planned:
            stream.truncate(stream.handed_over)
        stream.close()

    def _finish(self, answer: bytes) -> None:
        self.state = "over"
        assert self._stream is not None and self._control is not None
        self._stream.close()
        self._control.transfer_ended(self, answer)

    # --- sending ---
    def send_file(self, opened: OpenObject, offset: int) -> None:
        """`opened` is the connection's from now on."""
        assert self._stream is not None
        self.state = "file"
        self._watch()
        self._stream.send_object(opened, offset, opened.ref.size - offset)
        self._finish_when_drained()

    def send_listing(self, transfer: Transfer) -> None:
        self.state, self._listed, self._after = "listing", transfer, ""
        self._watch()
        assert self._stream is not None
        self._stream.changed()
        self._read_names(transfer)

    def _read_names(self, transfer: Transfer) -> None:
        """On a thread: a folder may have very many."""
        self._pattern = listing.matcher(transfer.pattern)
        names = asyncio.get_running_loop().run_in_executor(None, self._tree.names, transfer.path)
        names.add_done_callback(self._names_read)

    def _names_read(self, done: asyncio.Future[list[str]]) -> None:
        if self._stream is None or self.state != "listing":
            return
        assert self._listed is not None
        error = done.exception() if not done.cancelled() else OSError("the server ends")
        if error is not None:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "it fails"
            self._finish(reply(451, f"{self._listed.path} cannot be read: {why}"))
            return
        self._names = done.result()
        self._go_on_listing()

    def drained(self) -> None:
        if self.state == "listing":
            self._go_on_listing()
        elif self.state in ("file", "listed"):
            self._finish_when_drained()

    def _finish_when_drained(self) -> None:
        """Nothing is left to hand to the kernel; the end of the connection is planned with the answer."""
        if self._stream is not None and not self._stream.unsent:
            self._finish(reply(226, "That was all."))

    def _go_on_listing(self) -> None:
        stream, transfer = self._stream, self._listed
        assert stream is not None and transfer is not None
        if self._next_turn is None and self._names is not None and stream.has_room():
            text, last = listing.chunk(
                transfer.verb,
                transfer.path,
                self._names,
                self._tree.find,
                pattern=self._pattern,
                after=self._after,
                wanted=transfer.facts,
                now=time.time(),
                least=_CHUNK,
            )
            if text:
                stream.write(text)
            if last is None:
                self.state, self._names = "listed", None
            else:
                self._after, self._next_turn = last, stream.call_later(0, self._turn)
        if self.state == "listed":
            self._finish_when_drained()

    def _turn(self) -> None:
        """Other connections had theirs meanwhile."""
        self._next_turn = None
        if self._stream is not None and self.state == "listing":
            self._go_on_listing()

    # --- receiving ---
    def receive(self, upload: Upload) -> None:
        """`upload` is the connection's from now on. What it tells goes to `stored`."""
        assert self._stream is not None
        self.state, self._upload = "storing", upload
        early, self._early = self._early, b""
        self._watch()
        self._stream.hold_input(False)
        if early:
            upload.write(early)
        if self._input_ended:
            upload.end()
        self._stream.changed()

    def stored(self, error: OSError | None) -> None:
        """The upload is on the disk, or will never be."""
        self._upload = None
        if self.state != "storing" or self._stream is None:
            return
        if error is None:
            self._finish(reply(226, "It is on the disk."))
            return
        stream, control = self._stream, self._control
        assert control is not None
        self.state = "over"
        control.transfer_ended(self, reply(452, f"It cannot be written: {error.strerror or error}"))
        stream.reset()

    def room(self) -> None:
        """More may be written."""
        if self._stream is not None:
            self._stream.hold_input(False)

    def received(self, data: bytes) -> None:
        assert self._stream is not None
        self._received += len(data)
        if self._upload is not None and self.state == "storing":
            self._upload.write(data)
            if self._upload.crowded:
                self._stream.hold_input(True)
        elif self.state in ("idle", "early"):
            self.state = "early"
            self._early += data
            if len(self._early) >= _LIMIT_EARLY:
                self._stream.hold_input(True)

    def input_ended(self) -> None:
        self._input_ended = True
        if self._upload is not None and self.state == "storing":
            self._upload.end()

    # --- time ---
    def _watch(self) -> None:
        """A client that neither takes nor gives anything does not keep a transfer for ever."""
        assert self._stream is not None
        self._seen = self._progress()
        self._stream.call_later(self._limits.send / 1000, self._late)

    def _progress(self) -> tuple[int, int]:
        assert self._stream is not None
        return self._stream.planned - self._stream.unacknowledged, self._received

    def _late(self) -> None:
        if self._stream is None or self.state in ("idle", "early", "over"):
            return
        on_disk = self._upload is None or not self._upload.unwritten
        if on_disk and self._progress() == self._seen:
            self._stream.reset()
        else:
            self._watch()

    # --- checkpoints ---
    def checkpoint(self, block: DataBlock) -> None:
        listed = self._listed if self.state == "listing" else None
        block.append(NAME, DataSection(self.number, self.state, listed, self._after if listed is not None else ""))

    @classmethod
    def made_of(cls, block: DataBlock, tree: Tree, limits: Serving) -> FtpData:
        section = block.section(NAME, DataSection)
        data = cls(tree, limits, section.number)
        data.state, data._listed, data._after = section.state, section.listed, section.after
        if section.state == "listing" and section.listed is None:
            data.state = "listed"
        return data

    def obstacle(self) -> str | None:
        if self.state == "listing" and self._listed is not None and not self._tree.has_folder(self._listed.path):
            return OBJECT_MISSING
        return UPLOAD_LOST if self.state in ("early", "storing") else None
