"""The heart of the controller: events in, actions out. Pure: no socket, no switch, no clock of its own.

Servers' lives:

    failed --Hello--> up --failure--> failed        (a life is an *incarnation*; a failed one never comes back:
                                                     its agent is told that it was fenced and begins another)

A failure of a server that owns homes starts a takeover: one atomic bundle fences the dead and steers to the first
backup that is up; when the switch has committed it, the backup is told to resume. Until then the backup sends nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller import announce, remembered, steering
from controller.actions import Action, Commit, Drop, Persist, Send, SendToSwitch
from controller.collector import Collector
from controller.detector import Cause, Detector, Failure
from controller.gate import HOLD_SECONDS, Decision, Gate, Held, decide, kind_of
from controller.ownership import Ownership
from controller.remembered import Remembered, RememberedServer
from controller.roll_call import RollCall
from controller.server_state import ServerState
from controller.steering import Attachment
from controller.takeover import History, Phase, Takeover
from controller.witness import Witness
from dataplane import segment
from state import messages
from state.configuration import Configuration
from state.datablock import FourTuple

NO_BACKUP = "no backup came up"
UNHEARD = "its server hung before it heard of it"
WAIT_FOR_BACKUP = 60.0
"""Seconds that the connections of a dead server wait for any server to come up; a client's TCP waits longer."""
RECOVERY_GRACE = 1.0
"""After its own restart the controller waits so long for the agents that it knew before it calls them dead."""

INHERITING_LIMIT = 5.0
"""Seconds after its beginning in which a takeover's heir refuses nobody."""
INHERITED_GRACE = 0.1
"""Seconds after a takeover in which a packet of its heir's kernel, sent before, may still reach the controller."""


@dataclass
class Conductor:
    """All of the controller's state but the blocks in the store. Every method is one event and returns actions."""

    configuration: Configuration
    collector: Collector = field(init=False)
    gate: Gate = field(default_factory=Gate)
    witness: Witness = field(default_factory=Witness)
    history: History = field(default_factory=History)
    epoch: int = 1
    refused_hellos: int = 0
    wall_offset_ns: int = 0
    """Wall clock minus the clock of `now`, in nanoseconds: only to show times to people."""

    def __post_init__(self) -> None:
        self.ownership = Ownership(self.configuration)
        self.collector = Collector(self.ownership.slot)
        self.detector = Detector(self.configuration.detection.timeout / 1000)
        self.servers = {server.name: ServerState(server.name) for server in self.configuration.servers}
        self._vips = {ipaddress.ip_address(vip.address).packed for vip in self.configuration.vips}
        self._roll_call = RollCall(self.collector)
        self._ports: dict[str, int] = {}
        self._number = 0
        self._active: dict[int, Takeover] = {}
        self._recovering: dict[str, float] = {}
        self._inherited: dict[str, float] = {}
        """When a server had last finished a takeover."""

    # --- the controller's own restart ---
    def saved(self) -> Persist:
        servers = {
            s.name: RememberedServer(s.incarnation, s.mac, s.up or s.name in self._recovering)
            for s in self.servers.values()
        }
        state = Remembered(self.epoch, self._number, servers, self.ownership.encode())
        return Persist(remembered.NAME, state.encode())

    def recover(self, saved: bytes, now: float) -> None:
        """Take up what the last life of the controller knew. Servers that were up have a grace to say hello."""
        state = remembered.decode(saved)
        if state is None:
            return
        self.ownership.restore(state.ownership)
        self.epoch, self._number = state.epoch, state.number
        for name, old in state.servers.items():
            server = self.servers.get(name)
            if server is not None:
                server.incarnation, server.mac = old.incarnation, old.mac
                if old.up:
                    self._recovering[name] = now + RECOVERY_GRACE

    def load(self, server: str, block: bytes) -> None:
        """A block from the store, after `recover`. Raises `CheckpointRefused`."""
        known = self.servers.get(server)
        header = self.collector.load(server, known.incarnation if known is not None else 0, block)
        self.epoch = max(self.epoch, header.epoch)

    def settle_responsibility(self, now: float) -> None:
        """After the stored blocks were loaded: whoever owns a connection's slot is responsible for it.

        Connections of a server that was dead already wait for the next server that comes.
        """
        for name in self.collector.names():
            record = self.collector.get(name)
            assert record is not None
            if record.slot in self.ownership.unsure and record.settled and record.responsible in self.servers:
                self.ownership.follow(record.slot, record.responsible)
                self.ownership.unsure.discard(record.slot)
            owner = self.ownership.server_for(record.header.connection)
            if owner is not None and owner != record.responsible:
                self.collector.reassign_one(name, owner)
        for source in self.collector.servers():
            if source not in self._recovering:
                count = self.collector.count(source)
                takeover = self._record(Failure(source, Cause.ABSENT, now), None, count, now)
                takeover.phase = Phase.WAITING

    # --- the switch ---
    def switch_connected(self, ports: dict[str, int]) -> list[Action]:
        """Install everything, atomically; `ports` are the switch's port numbers by name."""
        self._ports = dict(ports)
        for server in self.configuration.servers:
            self.servers[server.name].port = self._ports.get(server.port)
        return [*self.reinstall(), *self._take_in(), *self._synchronise()]

    def reinstall(self) -> list[Action]:
        """Say to the switch everything that should stand in it; takeovers that wait for a fence wait for this one."""
        whole = steering.everything(self.configuration, self.ownership.frozen(), self._attachments())
        meters: list[Action] = [SendToSwitch(message) for message in steering.meter()]
        fencing = tuple(t.number for t in self._active.values() if t.phase is Phase.FENCING)
        return [*meters, Commit(whole, fencing)]

    def port_changed(self, name: str, number: int, up: bool, now: float) -> list[Action]:
        """A port came, went, or changed its carrier."""
        server = next((s for s in self.configuration.servers if s.port == name), None)
        if server is None:
            return []
        state = self.servers[server.name]
        state.port = number if up else None
        self._ports[name] = number
        if not up:
            failure = self.detector.failed(server.name, Cause.LINK_DOWN)
            return self._failed(failure, now) if failure is not None else []
        return [*self._take_in(), *self._synchronise()]

    def _attachments(self) -> dict[str, Attachment]:
        return {
            s.name: Attachment(s.port, s.mac)
            for s in self.servers.values()
            if s.port is not None and s.mac and (s.up or s.name in self._recovering)
        }

    def committed(self, number: int, now: float) -> list[Action]:
        """The switch has committed a takeover's bundle: the fence stands, the heir may begin."""
        takeover = self._active.get(number)
        if takeover is None or takeover.phase is not Phase.FENCING or takeover.heir is None:
            return []
        takeover.committed(now)
        young = self._young(takeover)
        order = messages.Resume(number, takeover.source, takeover.epoch, young)
        actions: list[Action] = [Send(takeover.heir, order)]
        # The next failure may come before the heir has made checkpoints of its own: its backup needs these blocks.
        second = self.servers[takeover.heir].backup
        if second is not None:
            actions += self._blocks_for(second, takeover.heir)
        return [*actions, *self._synchronise(), announce.takeover(takeover)]

    def _young(self, takeover: Takeover) -> list[messages.Handshake]:
        """Data connections of the source that no checkpoint knows."""
        homes = set(takeover.homes)
        found = []
        for handshake in self.witness.handshakes():
            slot = self.ownership.slot(handshake.connection)
            if slot is not None and self.ownership.home[slot] in homes:
                found.append(handshake)
        return found[-messages.LIMIT_HANDSHAKES :]

    # --- agents ---
    def hello(self, hello: messages.Hello, now: float) -> list[Action]:
        """An agent introduced itself. The first action is its answer."""
        server = self.servers.get(hello.server)
        if hello.version != messages.PROTOCOL_VERSION:
            return self._refuse(hello, f"protocol version {hello.version} is not {messages.PROTOCOL_VERSION}")
        if server is None:
            known = ", ".join(self.servers)
            return self._refuse(hello, f"no server named {hello.server} is in the configuration; known are {known}")
        recovering = server.name in self._recovering
        if hello.incarnation == server.incarnation:
            if not server.up and not recovering:
                return self._refuse(hello, f"{server.name} was fenced in epoch {server.epoch}", fenced=True)
            self._recovering.pop(server.name, None)
            return self._join(server, hello, now, again=True, recovering=recovering)
        actions: list[Action] = []
        if server.up:
            failure = self.detector.failed(server.name, Cause.RESTARTED) or Failure(server.name, Cause.RESTARTED, now)
            actions += self._failed(failure, now)
        if others := self._recovering.keys() - {server.name}:
            # One of them may be its heir, or become it, and nobody has told that one to resume yet.
            return [*actions, *self._refuse(hello, f"its takeover waits for {', '.join(sorted(others))}")]
        if recovering:
            del self._recovering[server.name]
            actions += self._failed(Failure(server.name, Cause.RESTARTED, now), now)
        if any(t.source == server.name and t.phase is Phase.FENCING for t in self._active.values()):
            return [*actions, *self._refuse(hello, f"the fence of {server.name} is not up yet")]
        if server.port is None:
            return [*actions, *self._refuse(hello, f"port of {server.name} is not up on the switch")]
        return [*actions, *self._join(server, hello, now, again=False)]

    def _refuse(self, hello: messages.Hello, sentence: str, *, fenced: bool = False) -> list[Action]:
        self.refused_hellos += 1
        return [Send(hello.server, messages.Refused(sentence, fenced), last=True)]

    def _join(
        self, server: ServerState, hello: messages.Hello, now: float, *, again: bool, recovering: bool = False
    ) -> list[Action]:
        """The server is up; in a new life it gets its home and its idle slots back, and all that the dead left."""
        moved_mac = server.mac != hello.mac
        server.state, server.incarnation, server.mac = "up", hello.incarnation, hello.mac
        server.pid, server.epoch = hello.pid, self.epoch
        self.detector.watch(server.name, now)
        self._needs_blocks(server.name)
        self._roll_call.begin(server.name)
        actions: list[Action] = [Send(server.name, messages.Welcome(self.epoch))]
        waiting: tuple[int, ...] = ()
        # What it left itself in its last life comes first: what it inherits would be given to it twice.
        for source in () if again else sorted(self._left(), key=lambda source: source != server.name):
            sends, numbers = self._inherit(source, server.name)
            actions += sends
            waiting += numbers
        if not again or moved_mac:
            actions.append(self._give_back(server, waiting))
        if recovering:
            actions += self._take_up(server, now)
        if again:
            actions += self._take_in()
        actions += [self.saved(), *self._synchronise(), announce.server(server)]
        return actions

    def _take_up(self, heir: ServerState, now: float) -> list[Action]:
        """A takeover that the controller's last life did not see the end of: the heir may not have been told."""
        actions: list[Action] = []
        pending: dict[str, list[bytes]] = {}
        for _, record in self.collector.of(heir.name):
            if not record.settled:
                pending.setdefault(record.header.server, []).append(record.block)
        for source, blocks in pending.items():
            self._record(Failure(source, Cause.ABSENT, now), heir.name, len(blocks), now)
            actions += [*_backup(heir.name, source, blocks), Commit([], (self._number,))]
        return actions

    def _give_back(self, server: ServerState, takeovers: tuple[int, ...]) -> Commit:
        """Its home and its idle slots; these takeovers wait for the bundle, which steers all that it owns to it."""
        moves = self.ownership.give_back(server.name, self.collector.slots())
        attachment = self._attachments().get(server.name)
        homes, slots = self.ownership.homes_of(server.name), [move.slot for move in moves]
        bundle = steering.give_back(self.configuration, self.ownership.frozen(), homes, attachment, slots)
        return Commit(bundle, takeovers)

    def disconnected(self, name: str, now: float) -> list[Action]:
        """The agent's control connection closed: its process ended."""
        failure = self.detector.failed(name, Cause.PROCESS_ENDED)
        return self._failed(failure, now) if failure is not None else []

    def died(self, died: messages.Died, now: float) -> list[Action]:
        """A sentinel saw its agent's process end, before the kernel has closed anything of it."""
        server = self.servers.get(died.server)
        if server is None or server.incarnation != died.incarnation:
            return []
        return self.disconnected(died.server, now)

    def unheard(self, unheard: messages.Unheard) -> list[Action]:
        """A sentinel saw that its agent hangs, and which clients' connections the kernel has taken in its name. Who was
        not fenced yet may still hear of them."""
        server = self.servers.get(unheard.server)
        if server is None or server.up or server.incarnation != unheard.incarnation:
            return []
        heirs: dict[str, list[FourTuple]] = {}
        for connection in unheard.connections:
            heir = self.ownership.server_for(connection)
            if heir is not None and self.collector.get(connection.id) is None:
                heirs.setdefault(heir, []).append(connection)
        actions: list[Action] = [Send(heir, messages.Dismiss(lost)) for heir, lost in heirs.items()]
        takeover = next((t for t in reversed(self.history.all()) if t.source == server.name), None)
        if actions and takeover is not None:
            takeover.found(0, [UNHEARD] * sum(map(len, heirs.values())))
            actions.append(announce.takeover(takeover))
        return actions

    def received(self, name: str, message: messages.FromAgent, now: float) -> list[Action]:
        """Anything but `Hello` and `Store`."""
        server = self.servers[name]
        self.detector.heard(name, now)
        if isinstance(message, messages.Heartbeat):
            server.connections, server.load, server.lag = message.connections, message.load, message.lag
            for owner, unready in message.unready.items():
                if owner in self.servers and self.servers[owner].backup == name:
                    self.servers[owner].unready = unready
            server.lag_most = max(server.lag_most, message.lag)
            survived = self.gate.alive(name, lambda connection: self.collector.get(connection) is not None)
            return [SendToSwitch(steering.forward(held.in_port, held.packet)) for held in survived]
        if isinstance(message, messages.Prepared):
            if message.owner in self.servers:
                self.servers[message.owner].unready = message.unready
            return []
        if isinstance(message, messages.Resumed):
            return self._resumed(name, message, now)
        if isinstance(message, messages.Young):
            return self._young_decided(name, message)
        if isinstance(message, messages.Present):
            self._roll_call.heard(name, message.connections)
            if message.last:
                self._roll_call.end(name)
        return []

    def stored(self, name: str, accepted: list[tuple[str, str, bytes]]) -> list[Action]:
        """Checkpoints were stored: the backup builds unready connections from them."""
        if self.witness:
            for connection, _, _ in accepted:
                self.witness.known(connection)
        names = [connection for connection, _, _ in accepted]
        self._roll_call.heard(name, names)
        actions = self._follow_strays(name, names)
        backup = self.servers[name].backup
        if backup is not None and accepted:
            actions += _backup(backup, name, [block for _, _, block in accepted])
        return actions

    def _follow_strays(self, name: str, connections: list[str]) -> list[Action]:
        """Connections that a server accepted just before their slot, idle as it seemed, went to another server.

        The slot follows the connection. If the slot's new owner has connections in it already, the stray is given up:
        unknown to the shared state, it is reset by the first packet that its client sends.
        """
        actions: list[Action] = []
        moved = False
        for connection in connections:
            record = self.collector.get(connection)
            slot = record.slot if record is not None else None
            if slot is None or (owner := self.ownership.owner[self.ownership.home[slot]]) == name:
                continue
            taken = slot in self.collector.slots(owner)
            move = None if taken else self.ownership.follow(slot, name)
            if move is None:
                gone, forget = self.closed(name, [connection])
                actions += [*forget, Drop(gone)]
            else:
                actions.append(Commit(steering.slot(self.configuration, self.ownership, slot)))
                moved = True
        if moved:  # else a restarted controller would tell the slot's old owner to resume what lives here
            actions.append(self.saved())
        return actions

    def closed(self, name: str, connections: Iterable[str]) -> tuple[list[str], list[Action]]:
        """Connections ended in good order: (those that were this server's, actions)."""
        connections = list(connections)
        for connection in connections if self.witness else ():
            self.witness.known(connection)
        gone = self.collector.forget(name, connections)
        actions: list[Action] = [
            SendToSwitch(steering.forward(held.in_port, held.packet)) for held in self.gate.closed(name, gone)
        ]
        backup = self.servers[name].backup
        if backup is not None and gone:
            actions.append(Send(backup, messages.Forget(name, gone)))
        return gone, actions

    # --- failures ---
    def tick(self, now: float) -> list[Action]:
        """Call every `detector.TICK` seconds."""
        actions: list[Action] = []
        self.gate.expire(now)
        self.witness.expire(now)
        server_name, phantoms = self._roll_call.phantoms()
        if phantoms:
            ended, forget = self.closed(server_name, phantoms)
            actions += [*forget, Drop(ended)]
        for takeover in list(self._active.values()):
            if takeover.phase is Phase.WAITING and now - takeover.detected > WAIT_FOR_BACKUP:
                actions += self._give_up(takeover, now)
        for failure in self.detector.tick(now):
            actions += self._failed(failure, now)
        if self._ports:
            for server in self.servers.values():
                gone = self.detector.failed(server.name, Cause.LINK_DOWN) if server.up and server.port is None else None
                if gone is not None:
                    actions += self._failed(gone, now)
        else:
            self._recovering = dict.fromkeys(self._recovering, now + RECOVERY_GRACE)
        for name, limit in list(self._recovering.items()):
            if now >= limit:
                del self._recovering[name]
                actions += self._failed(Failure(name, Cause.ABSENT, now), now)
        return actions

    def _failed(self, failure: Failure, now: float) -> list[Action]:
        """Fence and repoint at once; the rest follows when the switch has committed."""
        server = self.servers[failure.server]
        prepared = server.backup
        server.state, server.connections, server.unready, server.backup = "failed", 0, 0, None
        self._needs_blocks(server.name)
        self.gate.dead(server.name)
        self._roll_call.cancel(server.name)
        inherited = [takeover for takeover in self._active.values() if takeover.heir == server.name]
        if any(takeover.phase is Phase.FENCING for takeover in inherited):
            prepared = None  # its blocks were to go to the next backup with the commit
        ended = [self._end(takeover, now) for takeover in inherited]
        self.epoch += 1
        server.epoch = self.epoch
        heir = self._heir(server.name)
        more, superseded = self._supersede(server.name, heir, now)
        count = self.collector.count(server.name) + more
        takeover = self._record(failure, heir, count, now)
        fenced = messages.Refused(f"{server.name} was fenced in epoch {self.epoch}: {failure.cause.value}", True)
        actions: list[Action] = []
        if heir is None:
            actions.append(Commit(steering.hand_over(self.configuration, takeover.homes, None)))
            takeover.phase = Phase.WAITING
            if count == 0:
                self._give_up(takeover, now)
        else:
            attachment = self._attachments()[heir]
            self.ownership.fail_over(server.name, heir)
            # First of all, the fence: the blocks come to the heir in time, before the order to resume.
            actions.append(Commit(steering.hand_over(self.configuration, takeover.homes, attachment), (self._number,)))
            if prepared != heir:
                actions += self._blocks_for(heir, server.name)
            self.collector.reassign(server.name, heir)
        actions += [Send(server.name, fenced, last=True), self.saved()]
        return [*actions, announce.server(server), *ended, *superseded, announce.takeover(takeover)]

    def _end(self, takeover: Takeover, now: float) -> Action:
        """Its connections go on to another takeover."""
        takeover.fail(now)
        del self._active[takeover.number]
        return announce.takeover(takeover)

    def _supersede(self, source: str, heir: str | None, now: float) -> tuple[int, list[Action]]:
        """The heir was not told yet to resume what an earlier life left: it does so in one with the rest. Returns how
        many connections that is."""
        fencing = [t for t in self._active.values() if t.phase is Phase.FENCING]
        found = [t for t in fencing if (t.source, t.heir) == (source, heir)]
        return sum(t.waiting for t in found), [self._end(t, now) for t in found]

    def _record(self, failure: Failure, heir: str | None, connections: int, now: float) -> Takeover:
        """A takeover begins."""
        self._number += 1
        takeover = Takeover(
            number=self._number,
            cause=failure.cause.value,
            source=failure.server,
            heir=heir,
            epoch=self.epoch,
            homes=self.ownership.homes_of(failure.server),
            since=failure.since,
            detected=now,
            detected_wall_ns=int(now * 1e9) + self.wall_offset_ns,
            connections=connections,
            waiting=connections,
        )
        self.history.add(takeover)
        self._active[self._number] = takeover
        return takeover

    # --- what servers left that died while nobody could be their heir ---
    def _left(self) -> list[str]:
        """Dead servers that own homes, and servers whose connections wait."""
        dead = [o for o in self.ownership.owner.values() if not self.servers[o].up and o not in self._recovering]
        waiting = [t.source for t in self._active.values() if t.phase is Phase.WAITING]
        return list(dict.fromkeys(dead + waiting))

    def _take_in(self) -> list[Action]:
        """A backup may be up and attached by now: it came, or its switch port did."""
        actions: list[Action] = []
        for source in self._left():
            heir = self._heir(source)
            if heir is None:
                continue
            homes, attachment = self.ownership.homes_of(source), self._attachments()[heir]
            sends, numbers = self._inherit(source, heir)
            actions += [*sends, Commit(steering.hand_over(self.configuration, homes, attachment), numbers)]
        return [*actions, self.saved()] if actions else []

    def _inherit(self, source: str, heir: str) -> tuple[list[Action], tuple[int, ...]]:
        """The homes of the dead, and its connections that wait: (actions, takeovers that wait for the steering)."""
        waiting = [t for t in self._active.values() if t.phase is Phase.WAITING and t.source == source]
        actions: list[Action] = []
        for takeover in waiting:
            more, superseded = self._supersede(source, heir, takeover.detected)
            takeover.inherited(heir, more)
            actions += superseded
            actions += self._blocks_for(heir, source)
            self.collector.reassign(source, heir)
        self.ownership.fail_over(source, heir)
        return actions, tuple(takeover.number for takeover in waiting)

    def _give_up(self, takeover: Takeover, now: float) -> list[Action]:
        """Nobody came."""
        source = takeover.source
        gone = self.collector.forget(source, [name for name, _ in self.collector.of(source)])
        takeover.lost(len(gone), NO_BACKUP)
        takeover.waiting = 0
        takeover.fail(now)
        del self._active[takeover.number]
        return [Drop(gone), announce.takeover(takeover)]

    def _heir(self, name: str) -> str | None:
        """The first backup that is up and attached; the one that has the unready connections comes first."""
        server = self.configuration.server(name)
        if server is None:  # no longer in the configuration
            return None
        attached = self._attachments()
        return next((b for b in server.backups if self.servers[b].up and b in attached), None)

    def _resumed(self, name: str, report: messages.Resumed, now: float) -> list[Action]:
        takeover = self._active.get(report.takeover)
        if takeover is None or takeover.heir != name:
            return []
        takeover.progressed(report, now)
        gone, actions = self.closed(name, [connection for connection, _ in report.reset])
        actions.append(Drop(gone))
        if takeover.phase is Phase.DONE:
            del self._active[takeover.number]
            self._inherited[name] = now
            actions.append(announce.takeover(takeover))
        return actions

    def _young_decided(self, name: str, report: messages.Young) -> list[Action]:
        """Also when all that the takeover began with is decided."""
        takeover = self.history.get(report.takeover)
        if takeover is None or takeover.heir != name:
            return []
        takeover.found(len(report.resumed), [reason for _, reason in report.reset])
        return [announce.takeover(takeover)]

    # --- backups ahead of failure ---
    def _synchronise(self) -> list[Action]:
        """Give every server that is up a backup that is up, and that backup all of the server's blocks.

        Not yet while that one is to resume what the server left in its last life: it would resume these, too."""
        actions: list[Action] = []
        fencing = {(t.source, t.heir) for t in self._active.values() if t.phase is Phase.FENCING}
        for server in self.servers.values():
            backup = self._heir(server.name) if server.up else None
            if (server.name, backup) in fencing:
                backup = None
            if backup == server.backup:
                continue
            if server.backup is not None and self.servers[server.backup].up:
                actions.append(Send(server.backup, messages.Forget(server.name, [])))
            server.backup, server.unready = backup, 0
            if backup is not None:
                actions += self._blocks_for(backup, server.name)
                actions.append(Send(backup, messages.Synchronised(server.name)))
        return actions

    def _needs_blocks(self, name: str) -> None:
        """What this server was given as a backup is gone with its life or its connection."""
        for other in self.servers.values():
            if other.backup == name:
                other.backup, other.unready = None, 0

    def _blocks_for(self, backup: str, owner: str) -> list[Action]:
        """Everything that `owner` is responsible for."""
        return _backup(backup, owner, [record.block for _, record in self.collector.of(owner)])

    # --- the close gate ---
    def close_seen(self, in_port: int, connection: FourTuple, packet: bytes, now: float) -> list[Action]:
        """A FIN or RST without the close mark reached the controller."""
        sender = next((s for s in self.servers.values() if s.port == in_port), None)
        inheriting = sender is not None and self._inherits(sender.name, now)
        record = self.collector.get(connection.id)
        refusal, ends = kind_of(packet)
        decision = decide(
            record,
            sender.name if sender else None,
            sender.up if sender else False,
            refusal=refusal,
            inheriting=inheriting,
            ends=ends,
            young=connection.id in self.witness,
        )
        if decision is Decision.HOLD:
            assert sender is not None
            until, known = now + HOLD_SECONDS, record is not None
            self.gate.hold(Held(connection.id, sender.name, in_port, packet, until, known))
            return []
        self.gate.counts[decision.value] += 1
        return [SendToSwitch(steering.forward(in_port, packet))] if decision is Decision.FORWARD else []

    def _inherits(self, name: str, now: float) -> bool:
        """Does this server take over another, or did it just now? What its kernel said before may be seen after.

        Not for as long as a silent client is waited for: whoever is told of a port to connect to speaks.
        """
        active = any(t.heir == name and now < t.detected + INHERITING_LIMIT for t in self._active.values())
        return active or now < self._inherited.get(name, 0.0) + INHERITED_GRACE

    def handshake_seen(self, found: segment.Segment, now: float) -> None:
        """A SYN or SYN-ACK of a data connection passed the switch."""
        self.witness.saw(found, from_vip=found.source in self._vips, now=now)


def _backup(backup: str, owner: str, blocks: list[bytes]) -> list[Action]:
    return [Send(backup, messages.Backup(owner, portion)) for portion in messages.portions(blocks)]
