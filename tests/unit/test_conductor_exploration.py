"""Every order of events that two failures and one return can come in, for two and for three servers. After each step
the invariants of the design are asked; a violation is reported with the shortest path of events that leads to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from controller.actions import Action, Commit, Send
from controller.conductor import Conductor
from controller.takeover import Phase
from state import messages
from state.configuration import Configuration
from state.datablock import decode_header
from tests.unit import scenario
from tests.unit.flow_table import FlowTable, from_vip, to_vip

FAILURES, RETURNS = 2, 1
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
    broken: set[str] = field(default_factory=set)

    def clone(self) -> World:
        kept = {id(self.configuration): self.configuration}
        return World(
            self.configuration,
            copy.deepcopy(self.conductor, kept),
            FlowTable(dict(self.switch.flows), dict(self.switch.groups)),
            {name: agent.clone() for name, agent in self.agents.items()},
            list(self.bundles),
            list(self.replies),
            set(self.committed),
            dict(self.moved),
            self.failures,
            self.returns,
            self.connected,
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
        )

    # --- events ---
    def possible(self) -> Iterator[Event]:
        if self.failures < FAILURES:
            yield from (("fail", name) for name in sorted(self.agents))
        if self.returns < RETURNS and self.failures:
            yield from (("return", name) for name in self.conductor.servers if name not in self.agents)
        if self.returns and not self.connected and self.reached(NEW) == [self.owner(NEW)]:
            yield ("connect",)
        if self.bundles:
            yield ("switch",)
        if self.replies:
            yield ("reply", str(self.replies[0]))
        for name, agent in sorted(self.agents.items()):
            for number, (undecided, _) in sorted(agent.orders.items()):
                if len(undecided) > 1:
                    yield ("decide one", name, str(number))
                yield ("decide all", name, str(number))

    def quiet(self) -> bool:
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

    def owner(self, client_port: int) -> str | None:
        return self.conductor.ownership.server_for(scenario.four_tuple(client_port))

    def reached(self, client_port: int) -> list[str]:
        """Living servers that a client's packet reaches."""
        out = self.switch.send(to_vip(client_port), scenario.CLIENT_SWITCH_PORT)
        return [name for name in self.agents if int(name[1:]) in [leaving.port for leaving in out]]

    def _fail(self, name: str) -> None:
        self.failures += 1
        del self.agents[name]
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
            if isinstance(action, Commit):
                self.bundles.append(action)
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
            if self.moved[message.takeover] - ready:
                self.broken.add("checkpoints")
            if any(ready & other.live for other in self.agents.values()):
                self.broken.add("elsewhere")
            agent.epoch = max(agent.epoch, message.epoch)
            agent.orders[message.takeover] = (ready, message.epoch)

    # --- invariants ---
    def _check(self, *, switched: bool) -> None:
        up = set(self.agents)
        if switched:
            may_speak = set(self.conductor.servers) if self.bundles else up
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


def beginning(servers: int) -> World:
    """Everybody is up and has the connections of its slots."""
    configuration = scenario.config(servers, slots=SLOTS)
    world = World(configuration, Conductor(configuration), FlowTable())
    ports = {server.port: number for number, server in enumerate(configuration.servers, 1)}
    world._perform(world.conductor.switch_connected(ports))
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


def explore(servers: int) -> Explored:
    """Breadth first, so that the first path found is the shortest. A world that broke is not followed further."""
    found = Explored()
    frontier: list[tuple[World, list[Event]]] = [(beginning(servers), [])]
    seen = {frontier[0][0].key()}
    while frontier:
        following: list[tuple[World, list[Event]]] = []
        for world, path in frontier:
            for event in world.possible():
                then = world.clone()
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
    return explore(request.param)


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_in_every_order_of_failures_commits_reports_and_returns(explored: Explored, invariant: str) -> None:
    path = explored.violations.get(invariant)
    assert path is None, f"not so: {INVARIANTS[invariant]}, after " + "; ".join(" ".join(event) for event in path)


def test_the_exploration_reaches_ends_and_is_not_small(explored: Explored) -> None:
    assert explored.worlds > 300 and explored.quiet > 50
