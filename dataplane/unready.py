"""Unready connections (claim 14): what a backup has of other servers' connections ahead of any failure.

An unready connection is built from a checkpoint by every layer of the stack. It holds open copies of its objects, and
sends nothing. `backup` makes it a connection when its owner has died and its client has proven where it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from dataplane.event_loop import Paced
from dataplane.host import Host
from dataplane.judge import Expectation, Proof
from dataplane.objects import DocumentRoot, GeneratedObject, ObjectMissing, OpenObject, key_of
from dataplane.prepared_sockets import PreparedSockets
from dataplane.sequence_map import SequenceMap
from dataplane.socket_address import family
from dataplane.stack import Application, Registry
from state.datablock import DataBlock, Header, decode_header
from state.errors import CheckpointRefused
from state.messages import Comparison
from state.sections import BUNDLE, STREAM, TCP, BundleSection, ObjectRef, StreamSection, TcpSection

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
    objects: dict[tuple[str, bytes], OpenObject | GeneratedObject]
    missing: set[tuple[str, bytes]]
    bundle: BundleSection | None = None

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
        self.sockets = PreparedSockets()
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
            self.sockets.provide(family(block.header.connection.source), len(self))
            if old is not None:
                self.release(old)

    def _unready(self, block: DataBlock) -> Unready:
        header = block.header
        tcp = block.section(TCP, TcpSection)
        stream = block.section(STREAM, StreamSection)
        stream.check()
        stream.check_against(header)
        bundle = _bundle(header, block)
        application = self._application(header, block)
        objects: dict[tuple[str, bytes], OpenObject | GeneratedObject] = {}
        missing: set[tuple[str, bytes]] = set()
        for ref in stream.objects:
            try:
                objects[key_of(ref)] = self._object(application, ref)
            except ObjectMissing:
                missing.add(key_of(ref))
        expected = Expectation.of(header, tcp, stream)
        return Unready(header, tcp, stream, expected, application, objects, missing, bundle)

    def _object(self, application: Application, ref: ObjectRef) -> OpenObject | GeneratedObject:
        if not ref.parameters:
            return self._host.root.open_copy(ref)
        try:
            return application.generate(ref)
        except ObjectMissing:
            raise
        except Exception as error:  # the protocol's author did not foresee it; other connections go on
            _log.warning("%s: %s cannot be computed", application.name, ref.identifier, exc_info=True)
            raise ObjectMissing(f"{ref.identifier}: {type(error).__name__}: {error}") from error

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


def _bundle(header: Header, block: DataBlock) -> BundleSection | None:
    """Raises `CheckpointRefused` when header and section contradict each other."""
    if not header.bundle:
        return None
    section = block.section(BUNDLE, BundleSection)
    section.check(header.connection.id)
    if section.id != header.bundle:
        raise CheckpointRefused("bundle", f"the header says {header.bundle}, the section {section.id}")
    return section
