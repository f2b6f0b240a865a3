"""Every order of events that two failures and one return can come in, for two and for three servers. After each step
the invariants of the design are asked; a violation is reported with the shortest path of events that leads to it.
tests/exhaustive has the same with a restart of the controller."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from controller.actions import Action, Commit, Persist, Send
from controller.conductor import RECOVERY_GRACE, Conductor
from controller.takeover import Phase
from state import messages
from state.configuration import Configuration
from state.datablock import decode_header
from tests.unit import scenario
from tests.unit.flow_table import FlowTable, from_vip, to_vip

SLOTS = 4
CONNECTIONS = {40_000 + 2 * slot for slot in range(SLOTS - 1)}
"""Client ports: one connection in each slot but the last."""
NEW = 40_000 + 2 * (SLOTS - 1)
"""In the last slot, a client connects after a server has returned."""

INVARIANTS = {
    "speakers": "at most one server's packets leave for a connection, and never a fenced one's",
    "resume": "Resume is never sent before the commit of its own takeover, and only to the heir",
    "heir": "a failed server is never heir",
    "checkpoints": "an heir that is told to resume has the checkpoint of every connection that it is to resume",
    "elsewhere": "an heir resumes no connection that lives at another server",
    "accepted": "the checkpoints that an heir makes of what it took over are accepted",
    "ends": "no takeover waits for ever once commits and reports were delivered",
    "accounted": "once all was delivered every connection lives at the owner of its slot, or waits while nobody is up",
    "owned": "once all was delivered every slot is served by a server that is up, if one is",
}

Event = tuple[str, ...]


@dataclass(frozen=True)
class Bounds:
    servers: int
    failures: int = 2
    returns: int = 1
    restarts: int = 0
    """Of the controller. If any, an heir decides all of a takeover at once, to keep the worlds few."""


@dataclass
class Agent:
    """A server's agent as far as the controller can see it."""

    incarnation: int
    epoch: int = 0
    unready: dict[str, set[int]] = field(default_factory=dict)
    """Client ports of the unready connections, by owner."""
    orders: dict[int, tuple[set[int], int]] = field(default_factory=dict)
    """Takeovers that it works at: connections not yet decided, epoch."""
    live: set[int] = field(default_factory=set)

    def clone(self) -> Agent:
        unready = {owner: set(ports) for owner, ports in self.unready.items()}
        orders = {number: (set(ports), epoch) for number, (ports, epoch) in self.orders.items()}
        return Agent(self.incarnation, self.epoch, unready, orders, set(self.live))


@dataclass
class World:
    bounds: Bounds
    configuration: Configuration
    conductor: Conductor
    switch: FlowTable
    agents: dict[str, Agent] = field(default_factory=dict)
    """Those whose process lives."""
    bundles: list[Commit] = field(default_factory=list)
    """Sent to the switch and not yet carried out; it keeps their order."""
    replies: list[int] = field(default_factory=list)
    """Takeovers whose bundle is carried out but whose reply is on its way, in the order in which they come."""
    committed: set[int] = field(default_factory=set)
    moved: dict[int, set[int]] = field(default_factory=dict)
    """Connections of each takeover."""
    failures: int = 0
    returns: int = 0
    connected: bool = False
    kept: bytes = b""
    """What the conductor had stored last: a restarted one knows no more."""
    restarts: int = 0
    attached: bool = False
    """The switch has found the controller."""
    away: set[str] = field(default_factory=set)
    """Living servers that have not found the restarted controller yet."""
    broken: set[str] = field(default_factory=set)

    def clone(self, conductor: bytes) -> World:
        """`conductor`: this world's, pickled, which is the quickest way to many copies."""
        return World(
            self.bounds,
            self.configuration,
            pickle.loads(conductor),
            FlowTable(dict(self.switch.flows), dict(self.switch.groups)),
            {name: agent.clone() for name, agent in self.agents.items()},
            list(self.bundles),
            list(self.replies),
            set(self.committed),
            dict(self.moved),
            self.failures,
            self.returns,
            self.connected,
            self.kept,
            self.restarts,
            self.attached,
            set(self.away),
        )

    def key(self) -> tuple[object, ...]:
        """Two worlds with the same key have the same future."""
        takeovers = tuple((t.number, t.phase, t.heir, t.waiting) for t in self.conductor.history.all())
        backups = tuple(server.backup for server in self.conductor.servers.values())
        held = tuple(
            (
                name,
                agent.incarnation,
                agent.epoch,
                repr(sorted(agent.unready.items())),
                repr(agent.orders),
                tuple(sorted(agent.live)),
            )
            for name, agent in sorted(self.agents.items())
        )
        collector = self.conductor.collector
        records = tuple(
            (name, collector.get(name).responsible, collector.get(name).settled) for name in collector.names()
        )
        waiting = tuple(bundle.takeovers for bundle in self.bundles)
        kept = self.conductor.saved().value
        return (
            kept,
            takeovers,
            backups,
            held,
            records,
            waiting,
            tuple(self.replies),
            self.failures,
            self.returns,
            self.connected,
            self.kept,
            self.restarts,
            self.attached,
            tuple(sorted(self.away)),
            tuple(sorted(self.conductor._recovering)),
        )

    # --- events ---
    def possible(self) -> Iterator[Event]:
        if self.failures < self.bounds.failures:
            yield from (("fail", name) for name in sorted(self.agents))
        if self.returns < self.bounds.returns and self.failures:
            yield from (("return", name) for name in self.conductor.servers if name not in self.agents)
        if self.returns and not self.connected and self.reached(NEW) == [self.owner(NEW)] and not self.away:
            yield ("connect",)
        if self.restarts < self.bounds.restarts:
            yield ("restart",)
        if not self.attached:
            yield ("attach",)
        elif self.conductor._recovering and not self.away:
            yield ("grace",)
        yield from (("rejoin", name) for name in sorted(self.away))
        if self.bundles:
            yield ("switch",)
        if self.replies:
            yield ("reply", str(self.replies[0]))
        for name, agent in sorted(self.agents.items()):
            for number, (undecided, _) in sorted(agent.orders.items()):
                if len(undecided) > 1 and not self.bounds.restarts:
                    yield ("decide one", name, str(number))
                yield ("decide all", name, str(number))

    def quiet(self) -> bool:
        """Nothing is under way that would change anything."""
        if self.away or not self.attached or self.conductor._recovering:
            return False
        return not self.bundles and not self.replies and not any(agent.orders for agent in self.agents.values())

    def do(self, event: Event) -> None:
        kind, *words = event
        if kind == "fail":
            self._fail(words[0])
        elif kind == "return":
            self.returns += self.join(words[0])
        elif kind == "connect":
            self.connected = True
            (name,) = self.reached(NEW)
            self.agents[name].live.add(NEW)
            self.store(name, {NEW}, self.agents[name].epoch)
        elif kind == "switch":
            bundle = self.bundles.pop(0)
            self.switch.apply(bundle.messages)
            self.replies += bundle.takeovers
        elif kind == "restart":
            self._restart()
        elif kind == "attach":
            self.attach()
        elif kind == "grace":
            self._perform(self.conductor.tick(0.0))
        elif kind == "rejoin":
            self._rejoin(words[0])
        elif kind == "reply":
            number = int(words[0])
            self.replies.remove(number)
            self.committed.add(number)
            self._perform(self.conductor.committed(number, 0.0))
        else:
            self._decide(words[0], int(words[1]), everything=kind == "decide all")
        self._check(switched=kind == "switch")

    def join(self, name: str) -> bool:
        """A new life says hello; was it welcome?"""
        incarnation = self.conductor.servers[name].incarnation + 1
        self.agents[name] = Agent(incarnation)
        self._perform(self.conductor.hello(scenario.hello(name, incarnation), 0.0))
        if not self.agents[name].epoch:
            del self.agents[name]
        return name in self.agents

    def attach(self) -> None:
        """The switch finds the controller."""
        self.attached = True
        ports = {server.port: number for number, server in enumerate(self.configuration.servers, 1)}
        self._perform(self.conductor.switch_connected(ports))

    def _restart(self) -> None:
        """The controller dies and comes back with what it had stored; bundles and replies under way are lost."""
        collector = self.conductor.collector
        self.conductor = Conductor(self.configuration)
        self.conductor.recover(self.kept, -RECOVERY_GRACE)
        for _, record in collector.all():
            self.conductor.load(record.header.server, record.block)
        self.conductor.settle_responsibility(0.0)
        self.bundles, self.replies, self.attached, self.away = [], [], False, set(self.agents)
        self.restarts += 1
        for agent in self.agents.values():
            agent.unready.clear()

    def _rejoin(self, name: str) -> None:
        """A server that lived on says hello to the restarted controller."""
        agent = self.agents[name]
        actions = self.conductor.hello(scenario.hello(name, agent.incarnation), 0.0)
        answers = [action.message for action in actions if isinstance(action, Send) and action.server == name]
        if isinstance(answers[0], messages.Refused) and answers[0].fenced:
            del self.agents[name]
        if isinstance(answers[0], messages.Welcome) or name not in self.agents:
            self.away.discard(name)
        self._perform(actions)
        if name in self.agents and name not in self.away:
            self.store(name, agent.live, agent.epoch)

    def owner(self, client_port: int) -> str | None:
        return self.conductor.ownership.server_for(scenario.four_tuple(client_port))

    def reached(self, client_port: int) -> list[str]:
        """Living servers that a client's packet reaches."""
        out = self.switch.send(to_vip(client_port), scenario.CLIENT_SWITCH_PORT)
        return [name for name in self.agents if int(name[1:]) in [leaving.port for leaving in out]]

    def _fail(self, name: str) -> None:
        self.failures += 1
        del self.agents[name]
        if name in self.away:
            self.away.discard(name)
            return
        collector = self.conductor.collector
        ports = {record.header.connection.destination_port for _, record in collector.of(name)}
        known = len(self.conductor.history.all())
        self._perform(self.conductor.disconnected(name, 0.0))
        for takeover in self.conductor.history.all()[known:]:
            self.moved[takeover.number] = ports
            if takeover.heir is not None and takeover.heir not in self.agents:
                self.broken.add("heir")

    def _decide(self, name: str, number: int, *, everything: bool) -> None:
        """The heir's clients prove themselves: it adopts their connections, checkpoints them, and reports."""
        agent = self.agents[name]
        undecided, epoch = agent.orders[number]
        decided = set(undecided) if everything else {min(undecided)}
        agent.live |= decided
        undecided -= decided
        if not undecided:
            del agent.orders[number]
        if name in self.away:
            return
        self.store(name, decided, epoch)
        ids = [scenario.four_tuple(port).id for port in sorted(decided)]
        report = messages.Resumed(number, ids, [], len(undecided), 0, 0, 0)
        self._perform(self.conductor.received(name, report, 0.0))

    def store(self, name: str, ports: set[int], epoch: int) -> None:
        life = self.agents[name].incarnation
        blocks = [scenario.block(name, port, incarnation=life, epoch=epoch) for port in sorted(ports)]
        intake = self.conductor.collector.take(name, life, blocks)
        if intake.refused:
            self.broken.add("accepted")
        self._perform(self.conductor.stored(name, intake.accepted))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Persist):
                self.kept = action.value
            elif isinstance(action, Commit) and self.attached:
                self.bundles.append(Commit(list(action.messages), action.takeovers))
            elif isinstance(action, Send) and action.server in self.agents:
                self._hear(action.server, self.agents[action.server], action.message)

    def _hear(self, name: str, agent: Agent, message: messages.Message) -> None:
        if isinstance(message, messages.Welcome):
            agent.epoch = message.epoch
        elif isinstance(message, messages.Backup):
            ports = {decode_header(block).connection.destination_port for block in message.blocks}
            agent.unready.setdefault(message.owner, set()).update(ports)
        elif isinstance(message, messages.Forget):
            everything = {*CONNECTIONS, NEW}
            gone = {port for port in everything if scenario.four_tuple(port).id in message.connections}
            agent.unready.get(message.owner, set()).difference_update(gone or everything)
        elif isinstance(message, messages.Resume):
            takeover = self.conductor.history.get(message.takeover)
            if message.takeover not in self.committed or takeover is None or takeover.heir != name:
                self.broken.add("resume")
            ready = agent.unready.pop(message.owner, set())
            if self.moved.get(message.takeover, set()) - ready:
                self.broken.add("checkpoints")
            if any(ready & other.live for other in self.agents.values() if other is not agent):
                self.broken.add("elsewhere")
            for undecided, _ in agent.orders.values():
                undecided -= ready  # what an earlier life of the controller had ordered gives way
            agent.epoch = max(agent.epoch, message.epoch)
            agent.orders[message.takeover] = (ready, message.epoch)

    # --- invariants ---
    def _check(self, *, switched: bool) -> None:
        up = set(self.agents)
        if switched:
            unfenced = self.bundles or self.away or self.conductor._recovering
            may_speak = set(self.conductor.servers) if unfenced else up
            for client_port in (*CONNECTIONS, NEW):
                speakers = self.speakers(client_port)
                if len(speakers) > 1 or not may_speak.issuperset(speakers):
                    self.broken.add("speakers")
        if not self.quiet():
            return
        if any(t.phase in (Phase.FENCING, Phase.RESUMING) for t in self.conductor.history.all()):
            self.broken.add("ends")
        for client_port in (*CONNECTIONS, NEW):
            owner = self.owner(client_port)
            if up and (owner not in up or self.reached(client_port) != [owner]):
                self.broken.add("owned")
        lost = sum(sum(takeover.reset.values()) for takeover in self.conductor.history.all())
        living = {port for agent in self.agents.values() for port in agent.live}
        waiting = sum(takeover.waiting for takeover in self.conductor.history.all() if takeover.phase is Phase.WAITING)
        if len(living) + lost + waiting != len(CONNECTIONS) + self.connected or (waiting and up):
            self.broken.add("accounted")
        for port in living:
            record = self.conductor.collector.get(scenario.four_tuple(port).id)
            if record is None or not record.settled or record.responsible != self.owner(port):
                self.broken.add("accounted")

    def speakers(self, client_port: int) -> list[str]:
        packet = from_vip(client_port)
        return [name for name in self.conductor.servers if self.switch.send(packet, int(name[1:]))]


def beginning(bounds: Bounds) -> World:
    """Everybody is up and has the connections of its slots."""
    configuration = scenario.config(bounds.servers, slots=SLOTS)
    world = World(bounds, configuration, Conductor(configuration), FlowTable())
    world.attach()
    for server in configuration.servers:
        world.join(server.name)
    for port in CONNECTIONS:
        owner = world.owner(port)
        assert owner is not None
        world.agents[owner].live.add(port)
        world.store(owner, {port}, 1)
    while world.bundles:
        world.do(("switch",))
    assert not world.broken, world.broken
    return world


@dataclass
class Explored:
    worlds: int = 0
    quiet: int = 0
    violations: dict[str, list[Event]] = field(default_factory=dict)
    """The shortest path to each."""


def explore(bounds: Bounds) -> Explored:
    """Breadth first, so that the first path found is the shortest. A world that broke is not followed further."""
    found = Explored()
    frontier: list[tuple[World, list[Event]]] = [(beginning(bounds), [])]
    seen = {frontier[0][0].key()}
    while frontier:
        following: list[tuple[World, list[Event]]] = []
        for world, path in frontier:
            conductor = pickle.dumps(world.conductor, pickle.HIGHEST_PROTOCOL)
            for event in world.possible():
                then = world.clone(conductor)
                then.do(event)
                found.worlds += 1
                found.quiet += then.quiet()
                for invariant in then.broken:
                    found.violations.setdefault(invariant, [*path, event])
                key = then.key()
                if not then.broken and key not in seen:
                    seen.add(key)
                    following.append((then, [*path, event]))
        frontier = following
    return found


@pytest.fixture(scope="module", params=[2, 3], ids=["two servers", "three servers"])
def explored(request: pytest.FixtureRequest) -> Explored:
    return explore(Bounds(request.param))


def story(invariant: str, path: list[Event]) -> str:
    return f"not so: {INVARIANTS[invariant]}, after " + "; ".join(" ".join(event) for event in path)


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_in_every_order_of_failures_commits_reports_and_returns(explored: Explored, invariant: str) -> None:
    path = explored.violations.get(invariant)
    assert path is None, story(invariant, path)


def test_the_exploration_reaches_ends_and_is_not_small(explored: Explored) -> None:
    assert explored.worlds > 300 and explored.quiet > 50
