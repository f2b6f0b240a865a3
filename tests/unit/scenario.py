"""Builders that the controller's tests share: configurations, checkpoints, and a conductor with its servers up."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controller.actions import Action, Commit, Send
from controller.conductor import Conductor
from controller.detector import TICK
from state import configuration, messages
from state.configuration import Configuration
from state.datablock import DataBlock, FourTuple, Header
from state.sections import STREAM, TCP, Extent, ObjectRef, StreamSection, TcpSection
from tests.unit.flow_table import ACK, NORMAL, FlowTable, from_vip

VIP = "10.0.0.100"
CLIENT = "10.0.1.1"
VIP6, CLIENT6 = "fd00::64", "fd00:1::1"
NEAR_WRAP = 0xFFFF_FF00
"""Sequence numbers of tests start here, so that they wrap."""
CLIENT_SWITCH_PORT = 9

MessageT = TypeVar("MessageT", bound=messages.Message)


def mac(number: int) -> str:
    return f"0a:00:00:00:00:{number:02x}"


def text(
    servers: int = 3,
    *,
    vips: Iterable[str] = (VIP,),
    slots: int = 8,
    affinity: str = "connection",
    backups: dict[str, list[str]] | None = None,
    protected: bool = True,
) -> str:
    """A configuration file. Without `backups` every server has all others, beginning with the next."""
    names = [f"s{number}" for number in range(1, servers + 1)]
    lines = ["switch: {bridge: br0, listen: '127.0.0.1:6653'}", "agents: {listen: '127.0.0.1:7000'}", "vips:"]
    for vip in vips:
        lines += [
            f"  - address: {vip}",
            f"    slots: {slots}",
            f"    affinity: {affinity}",
            f"    services: [{{port: 80, protocol: http, protected: {str(protected).lower()}}}]",
        ]
    lines.append("servers:")
    for i, name in enumerate(names):
        order = backups.get(name, []) if backups is not None else names[i + 1 :] + names[:i]
        row = f"{{name: {name}, address: 10.0.0.{i + 1}, port: {name}-eth0, docroot: /srv"
        lines.append("  - " + row + (f", backups: [{', '.join(order)}]}}" if order else "}"))
    lines.append("state: {embedded: /var/lib/takeover/state.db}")
    return "\n".join(lines) + "\n"


def config(servers: int = 3, **options: Any) -> Configuration:
    return configuration.parse(text(servers, **options), "test.yaml")


def four_tuple(client_port: int, client: str = CLIENT, vip: str = VIP) -> FourTuple:
    packed = [ipaddress.ip_address(address).packed for address in (vip, client)]
    return FourTuple(packed[0], 80, packed[1], client_port)


def block(
    server: str,
    client_port: int,
    *,
    incarnation: int = 1,
    epoch: int = 1,
    serial: int = 1,
    iss: int = NEAR_WRAP,
    client: str = CLIENT,
) -> bytes:
    """A checkpoint in the middle of an object of 1,000 bytes, across the wrap of the sequence numbers."""
    first = (iss + 1) & 0xFFFF_FFFF
    header = Header(
        server=server,
        incarnation=incarnation,
        epoch=epoch,
        serial=serial,
        time=1_700_000_000_000_000_000,
        connection=four_tuple(client_port, client),
        protocol="http/1.1",
        iss=iss,
        irs=7,
        snd_una=first,
        snd_nxt=(first + 500) & 0xFFFF_FFFF,
        rcv_nxt=108,
        object="/object.bin",
        object_first=first,
    )
    data = DataBlock(header)
    data.append(TCP, TcpSection(1460, 7, 7, True, True, True, 12345, 65535))
    objects = [ObjectRef("/object.bin", 1000, 1, b"")]
    data.append(STREAM, StreamSection(0, 500, 100, False, False, objects, [Extent(0, 1000, object=0)]))
    return data.encode()


def hello(server: str, incarnation: int = 1, *, version: int = messages.PROTOCOL_VERSION) -> messages.Hello:
    number = int(server[1:]) if server[1:].isdigit() else 0
    return messages.Hello(version, server, incarnation, mac(number), 1000 + number)


# --- reading actions ---
def said(actions: Iterable[Action], server: str, kind: type[MessageT]) -> list[MessageT]:
    """Messages of one kind to one server, in order."""
    sends = [action for action in actions if isinstance(action, Send)]
    return [action.message for action in sends if action.server == server and isinstance(action.message, kind)]


def commits(actions: Iterable[Action]) -> list[Commit]:
    return [action for action in actions if isinstance(action, Commit)]


def backed_up(actions: Iterable[Action], server: str, owner: str) -> set[int]:
    """Client ports of the checkpoints of `owner` that `server` is given."""
    blocks = [b for message in said(actions, server, messages.Backup) if message.owner == owner for b in message.blocks]
    return {DataBlock.decode(data).header.connection.destination_port for data in blocks}


def kinds(actions: Iterable[Action]) -> list[str]:
    """The actions' kinds, sends with their message's."""
    return [
        f"Send {type(action.message).__name__}" if isinstance(action, Send) else type(action).__name__
        for action in actions
    ]


@dataclass
class Scene:
    """A conductor whose switch is connected, and a clock. `up` brings servers in their first life."""

    configuration: Configuration = field(default_factory=config)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.conductor = Conductor(self.configuration)
        self.conductor.switch_connected(self.ports())

    def ports(self, *without: str) -> dict[str, int]:
        """Switch ports by name; those of the servers are numbered from 1. `without` are servers."""
        servers = enumerate(self.configuration.servers, 1)
        ports = {server.port: number for number, server in servers if server.name not in without}
        return {**ports, "c1-eth0": CLIENT_SWITCH_PORT}

    def up(self, *names: str, incarnation: int = 1) -> Scene:
        for name in names or [server.name for server in self.configuration.servers]:
            self.hello(name, incarnation)
        return self

    def hello(self, name: str, incarnation: int = 1) -> list[Action]:
        return self.conductor.hello(hello(name, incarnation), self.now)

    def store(self, name: str, *client_ports: int, epoch: int = 1, serial: int = 1) -> list[Action]:
        """The server makes checkpoints; they go where the runtime would bring them."""
        life = self.conductor.servers[name].incarnation
        blocks = [block(name, port, incarnation=life, epoch=epoch, serial=serial) for port in client_ports]
        intake = self.conductor.collector.take(name, life, blocks)
        assert not intake.refused
        return self.conductor.stored(name, intake.accepted)

    def end(self, name: str) -> list[Action]:
        """The server's process ends."""
        return self.conductor.disconnected(name, self.now)

    def commit(self, number: int) -> list[Action]:
        return self.conductor.committed(number, self.now)

    def report(
        self,
        name: str,
        takeover: int,
        resumed: Iterable[int] = (),
        reset: Iterable[tuple[int, str]] = (),
        waiting: int = 0,
    ) -> list[Action]:
        """The heir tells the fate of connections, named by their client's port."""
        fates = [four_tuple(port).id for port in resumed], [(four_tuple(port).id, reason) for port, reason in reset]
        return self.conductor.received(name, messages.Resumed(takeover, *fates, waiting, 400, 900, 20), self.now)

    def restarted(self, configuration: Configuration | None = None) -> Scene:
        """The controller dies and comes back with what it had stored; the switch is connected again."""
        scene = Scene(configuration or self.configuration, self.now)
        scene.conductor = Conductor(scene.configuration)
        scene.conductor.recover(self.conductor.saved().value, self.now)
        for name in self.conductor.collector.names():
            record = self.conductor.collector.get(name)
            assert record is not None
            scene.conductor.load(record.header.server, record.block)
        scene.conductor.settle_responsibility(scene.now)
        scene.conductor.switch_connected(scene.ports())
        return scene

    def owners(self) -> dict[int, str]:
        """Owner of each slot of the first VIP."""
        ownership = self.conductor.ownership
        return {number: ownership.owner[home] for (_, number), home in ownership.home.items()}


def ticks(scene: Scene, seconds: float) -> list[Action]:
    """Time passes at the loop's pace; the actions of all ticks."""
    actions: list[Action] = []
    for _ in range(round(seconds / TICK)):
        scene.now += TICK
        actions += scene.conductor.tick(scene.now)
    return actions


def passing(table: FlowTable, client_port: int) -> list[int]:
    """Switch ports from which the VIP's packet for this client leaves."""
    return [
        port
        for port in (1, 2, 3)
        if [out.port for out in table.send(from_vip(client_port, flags=ACK), port)] == [NORMAL]
    ]
