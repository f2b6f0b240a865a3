"""The checkpoints of all connections, as the controller knows them: taken in, indexed by who is responsible.

A block is accepted when it is well formed (`state.datablock`), comes from the server that it names, in that server's
present life, and is not older than what is known. Of a bundle's blocks in one message all are accepted or none: they
speak of each other. *Responsible* is the server that has the connection or is taking it over; until a new owner has
made its own checkpoint, the old owner's block remains the connection's state.

A connection belongs to a *share*. Every server has a share of its own, with the connections that live there, and those
that it took over from others. A takeover gives whole shares to the heir, so that its cost does not depend on the number
of connections. Each share counts its connections by slot, so that nobody needs to look through them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from controller.ownership import SlotId
from state.datablock import FourTuple, Header, decode_header
from state.errors import CheckpointRefused


@dataclass(slots=True, eq=False)
class _Share:
    server: str
    settled: bool
    records: dict[str, Record] = field(default_factory=dict)
    slots: Counter[SlotId] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class Record:
    header: Header
    block: bytes
    share: _Share
    slot: SlotId | None
    received_ns: int = 0
    """When this controller received it (claim 19): nanoseconds, wall clock; 0 if an earlier life of it did."""

    @property
    def responsible(self) -> str:
        return self.share.server

    @property
    def settled(self) -> bool:
        """The responsible server has made a checkpoint of its own in its present life: the connection lives there."""
        return self.share.settled


@dataclass
class Intake:
    """What became of one message's blocks."""

    accepted: list[tuple[str, str, bytes]]
    """(connection id, server, block), for the store and for the backup."""
    refused: list[CheckpointRefused]


def _no_slot(connection: FourTuple) -> SlotId | None:
    return None


class Collector:
    def __init__(self, slot_of: Callable[[FourTuple], SlotId | None] = _no_slot) -> None:
        self._slot_of = slot_of
        self._records: dict[str, Record] = {}
        self._shares: dict[str, list[_Share]] = {}
        """Of each server; the first is its own."""
        self._bundles: dict[str, None] = {}
        self.refused: Counter[str] = Counter()
        """Blocks that were refused, by field."""
        self.taken = 0
        self.taken_bytes = 0

    def take(self, server: str, incarnation: int, blocks: Iterable[bytes], received_ns: int = 0) -> Intake:
        """The blocks of one message of a server. Those that are refused are counted; the others stand, except of a
        bundle of which one was refused."""
        intake = Intake([], [])
        share = self._own(server)
        good: list[tuple[Header, bytes]] = []
        newest: dict[str, Header] = {}
        torn: set[str] = set()
        for block in blocks:
            bundle = ""
            try:
                header = decode_header(block)
                bundle, name = header.bundle, header.connection.id
                known = self._records.get(name)
                before = newest.get(name) or (known.header if known is not None else None)
                _check(server, incarnation, header, before)
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
            self._put(name, header, block, share, received_ns)
            self.taken += 1
            self.taken_bytes += len(block)
            intake.accepted.append((name, server, block))
        return intake

    def _refuse(self, error: CheckpointRefused, intake: Intake) -> None:
        self.refused[error.field] += 1
        intake.refused.append(error)

    def _own(self, server: str) -> _Share:
        return self._all(server)[0]

    def _all(self, server: str) -> list[_Share]:
        if server not in self._shares:
            self._shares[server] = [_Share(server, True)]
        return self._shares[server]

    def _taken_over(self, server: str) -> _Share:
        """For single connections: a share of this server that is not its own."""
        shares = self._all(server)
        if len(shares) == 1:
            shares.append(_Share(server, False))
        return shares[-1]

    def _put(self, name: str, header: Header, block: bytes, share: _Share, received_ns: int) -> None:
        record = self._records.get(name)
        if record is not None and record.share is share:
            record.header, record.block, record.received_ns = header, block, received_ns
        else:
            self._remove(name)
            record = Record(header, block, share, self._slot_of(header.connection), received_ns)
            self._records[name] = share.records[name] = record
            if record.slot is not None:
                share.slots[record.slot] += 1
        if header.bundle == name:
            self._bundles[name] = None
        else:
            self._bundles.pop(name, None)

    def _remove(self, name: str) -> None:
        record = self._records.pop(name, None)
        if record is None:
            return
        self._bundles.pop(name, None)
        share, slot = record.share, record.slot
        del share.records[name]
        if slot is not None:
            share.slots[slot] -= 1
            if not share.slots[slot]:
                del share.slots[slot]
        if not share.records and not share.settled:
            self._shares[share.server].remove(share)

    def load(self, server: str, incarnation: int, block: bytes) -> Header:
        """A block from the store, at the start; `server` was in this life then. Raises `CheckpointRefused`.

        A block of a former life says nothing of where the connection lives now: its takeover had not ended."""
        header = decode_header(block)
        name = header.connection.id
        lives = header.server == server and header.incarnation == incarnation
        share = self._own(server) if lives else self._taken_over(server)
        self._put(name, header, block, share, 0)
        return header

    def forget(self, server: str, names: Iterable[str]) -> list[str]:
        """These connections ended, says their server. Returns those that were its to end."""
        gone = []
        for name in names:
            record = self._records.get(name)
            if record is not None and record.responsible == server:
                self._remove(name)
                gone.append(name)
        return gone

    def reassign(self, server: str, heir: str) -> int:
        """`heir` is responsible for everything of `server` from now on. Returns how much that is."""
        shares = [share for share in self._shares.pop(server, ()) if share.records]
        for share in shares:
            share.server, share.settled = heir, False
        self._all(heir).extend(shares)
        return sum(len(share.records) for share in shares)

    def reassign_one(self, name: str, heir: str) -> None:
        record = self._records[name]
        self._put(name, record.header, record.block, self._taken_over(heir), record.received_ns)

    def get(self, name: str) -> Record | None:
        return self._records.get(name)

    def count(self, server: str) -> int:
        return sum(len(share.records) for share in self._shares.get(server, ()))

    def of(self, server: str) -> Iterator[tuple[str, Record]]:
        for share in self._shares.get(server, ()):
            yield from share.records.items()

    def all(self) -> Iterator[tuple[str, Record]]:
        yield from self._records.items()

    def servers(self) -> list[str]:
        """Servers that are responsible for any connection."""
        return [server for server in self._shares if self.count(server)]

    def slots(self, server: str | None = None) -> set[SlotId]:
        """Slots in which this server, or any, has connections."""
        chosen = self._shares if server is None else [server]
        return {slot for name in chosen for share in self._shares.get(name, ()) for slot in share.slots}

    def names(self) -> list[str]:
        return list(self._records)

    def bundles(self) -> list[str]:
        """Ids of the bundles, which are those of their control connections."""
        return list(self._bundles)

    def __len__(self) -> int:
        return len(self._records)


def _check(server: str, incarnation: int, header: Header, old: Header | None) -> None:
    if header.server != server:
        raise CheckpointRefused("server", f"{header.server} was sent by {server}")
    if header.incarnation != incarnation:
        raise CheckpointRefused("incarnation", "of another life of the server")
    if old is None:
        return
    if header.epoch < old.epoch:
        raise CheckpointRefused("epoch", f"goes back from {old.epoch} to {header.epoch}")
    same_life = old.server == server and old.incarnation == incarnation and old.iss == header.iss
    if same_life and header.serial < old.serial:
        raise CheckpointRefused("serial", f"goes back from {old.serial} to {header.serial}")
