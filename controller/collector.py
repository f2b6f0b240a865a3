"""The checkpoints of all connections, as the controller knows them: taken in, indexed by who is responsible.

A block is accepted when it is well formed (`state.datablock`), comes from the server that it names, in that server's
present life, and is not older than what is known. Of a bundle's blocks in one message all are accepted or none: they
speak of each other. *Responsible* is the server that has the connection or is taking it over; until a new owner has
made its own checkpoint, the old owner's block remains the connection's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from state.datablock import FourTuple, Header, decode_header
from state.errors import CheckpointRefused


@dataclass(slots=True)
class Record:
    header: Header
    block: bytes
    responsible: str
    settled: bool = True
    """The responsible server has made a checkpoint of its own in its present life: the connection lives there."""
    received_ns: int = 0
    """When this controller received it (claim 19): nanoseconds, wall clock; 0 if an earlier life of it did."""


@dataclass
class Intake:
    """What became of one message's blocks."""

    accepted: list[tuple[str, str, bytes]]
    """(connection id, server, block), for the store and for the backup."""
    refused: list[CheckpointRefused]


class Collector:
    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._by_server: dict[str, dict[str, None]] = {}
        self._bundles: dict[str, None] = {}
        self.refused: Counter[str] = Counter()
        """Blocks that were refused, by field."""
        self.taken = 0
        self.taken_bytes = 0

    def take(self, server: str, incarnation: int, blocks: Iterable[bytes], received_ns: int = 0) -> Intake:
        """The blocks of one message of a server. Those that are refused are counted; the others stand, except of a
        bundle of which one was refused."""
        intake = Intake([], [])
        good: list[tuple[Header, bytes]] = []
        newest: dict[str, Header] = {}
        torn: set[str] = set()
        for block in blocks:
            bundle = ""
            try:
                header = decode_header(block)
                bundle, name = header.bundle, header.connection.id
                self._check(server, incarnation, header, newest.get(name))
            except CheckpointRefused as error:
                self._refuse(error, intake)
                torn.add(bundle)
                continue
            newest[name] = header
            good.append((header, block))
        for header, block in good:
            if header.bundle and header.bundle in torn:
                self._refuse(CheckpointRefused("bundle", f"another block of {header.bundle} was refused"), intake)
                continue
            name = header.connection.id
            self._put(name, Record(header, block, server, received_ns=received_ns))
            self.taken += 1
            self.taken_bytes += len(block)
            intake.accepted.append((name, server, block))
        return intake

    def _refuse(self, error: CheckpointRefused, intake: Intake) -> None:
        self.refused[error.field] += 1
        intake.refused.append(error)

    def _check(self, server: str, incarnation: int, header: Header, before: Header | None) -> None:
        """`before`: of the same connection in the same message."""
        if header.server != server:
            raise CheckpointRefused("server", f"{header.server} was sent by {server}")
        if header.incarnation != incarnation:
            raise CheckpointRefused("incarnation", "of another life of the server")
        known = self._records.get(header.connection.id)
        old = before or (known.header if known is not None else None)
        if old is None:
            return
        if header.epoch < old.epoch:
            raise CheckpointRefused("epoch", f"goes back from {old.epoch} to {header.epoch}")
        same_life = old.server == server and old.incarnation == incarnation and old.iss == header.iss
        if same_life and header.serial < old.serial:
            raise CheckpointRefused("serial", f"goes back from {old.serial} to {header.serial}")

    def _put(self, name: str, record: Record) -> None:
        old = self._records.get(name)
        if old is not None and old.responsible != record.responsible:
            self._by_server[old.responsible].pop(name, None)
        self._records[name] = record
        if record.header.bundle == name:
            self._bundles[name] = None
        else:
            self._bundles.pop(name, None)
        self._by_server.setdefault(record.responsible, {})[name] = None

    def load(self, server: str, block: bytes) -> None:
        """A block from the store, at the start. Raises `CheckpointRefused`."""
        header = decode_header(block)
        self._put(header.connection.id, Record(header, block, server, header.server == server))

    def forget(self, server: str, names: Iterable[str]) -> list[str]:
        """These connections ended, says their server. Returns those that were its to end."""
        gone = []
        for name in names:
            record = self._records.get(name)
            if record is not None and record.responsible == server:
                del self._records[name]
                del self._by_server[server][name]
                self._bundles.pop(name, None)
                gone.append(name)
        return gone

    def reassign(self, server: str, heir: str) -> list[str]:
        """`heir` is responsible for everything of `server` from now on."""
        names = list(self._by_server.pop(server, {}))
        heirs = self._by_server.setdefault(heir, {})
        for name in names:
            record = self._records[name]
            record.responsible, record.settled = heir, False
            heirs[name] = None
        return names

    def reassign_one(self, name: str, heir: str) -> None:
        record = self._records[name]
        del self._by_server[record.responsible][name]
        record.responsible, record.settled = heir, False
        self._by_server.setdefault(heir, {})[name] = None

    def get(self, name: str) -> Record | None:
        return self._records.get(name)

    def count(self, server: str) -> int:
        return len(self._by_server.get(server, ()))

    def of(self, server: str) -> Iterator[tuple[str, Record]]:
        for name in self._by_server.get(server, ()):
            yield name, self._records[name]

    def servers(self) -> list[str]:
        """Servers that are responsible for any connection."""
        return [server for server, names in self._by_server.items() if names]

    def connections(self) -> Iterator[FourTuple]:
        for record in self._records.values():
            yield record.header.connection

    def names(self) -> list[str]:
        return list(self._records)

    def bundles(self) -> list[str]:
        """Ids of the bundles, which are those of their control connections."""
        return list(self._bundles)

    def __len__(self) -> int:
        return len(self._records)
