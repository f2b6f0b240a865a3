"""An OpenFlow 1.3 pipeline in memory: it takes the messages that `controller.steering` returns and answers where a
packet leaves, and changed how. It refuses what Open vSwitch would refuse, so that such a mistake shows already here."""

from __future__ import annotations

import functools
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from controller.ryu_adapter import OFP, PARSER

NORMAL = "normal"
CONTROLLER = "controller"
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
IP, IP6, ARP, TCP, ICMP, ICMP6 = 0x0800, 0x86DD, 0x0806, 6, 1, 58
SOLICITATION, ADVERTISEMENT = 135, 136

_ADD_OR_MOD = 0x8000
_NEIGHBOUR = ("icmpv6_type", (SOLICITATION, ADVERTISEMENT))
_PREREQUISITES: dict[str, tuple[str, tuple[int, ...]]] = {
    "ipv4": ("eth_type", (IP,)),
    "ipv6": ("eth_type", (IP6,)),
    "arp": ("eth_type", (ARP,)),
    "ip": ("eth_type", (IP, IP6)),
    "tcp": ("ip_proto", (TCP,)),
    "icmpv4": ("ip_proto", (ICMP,)),
    "icmpv6": ("ip_proto", (ICMP6,)),
    "ipv6_nd_target": _NEIGHBOUR,
    "ipv6_nd_sll": ("icmpv6_type", (SOLICITATION,)),
    "ipv6_nd_tll": ("icmpv6_type", (ADVERTISEMENT,)),
    "nd": _NEIGHBOUR,
}
"""Field, or its name's first word -> the field that the match must have, too, and with which values."""
_BITS = {"eth": 48, "ipv4": 32, "ipv6": 128, "metadata": 64}
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")

Packet = dict[str, Any]


class SwitchRefused(Exception):
    """The switch would answer this message with an error."""


@dataclass(frozen=True)
class Leaving:
    """A packet that leaves: by which port (a number, `NORMAL` or `CONTROLLER`), with which fields."""

    port: int | str
    packet: Packet


@dataclass
class Flow:
    table: int
    priority: int
    match: dict[str, tuple[int, int]]
    """Field to (value, mask)."""
    cookie: int
    instructions: list[Any]
    packets: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.table, self.priority, tuple(sorted(self.match.items())))

    @property
    def text(self) -> str:
        return json.dumps([instruction.to_jsondict() for instruction in self.instructions], sort_keys=True)

    def matches(self, packet: dict[str, int]) -> bool:
        return all(name in packet and packet[name] & mask == value for name, (value, mask) in self.match.items())

    def within(self, match: dict[str, tuple[int, int]]) -> bool:
        """Does a non-strict delete with `match` name this flow? It must be as specific, or more so."""
        for name, (value, mask) in match.items():
            own = self.match.get(name)
            if own is None or own[1] & mask != mask or own[0] & mask != value:
                return False
        return True


@dataclass
class FlowTable:
    flows: dict[tuple[Any, ...], Flow] = field(default_factory=dict)
    groups: dict[int, Any] = field(default_factory=dict)
    consulted: set[str] = field(default_factory=set)
    """Fields of the last packet sent that decided its way: those that the switch's cache would match on."""

    # --- what the controller says ---
    def apply(self, messages: Iterable[Any]) -> None:
        """A bundle: all of it or nothing."""
        flows, groups = dict(self.flows), dict(self.groups)
        try:
            for message in messages:
                self._take(message)
        except SwitchRefused:
            self.flows, self.groups = flows, groups
            raise

    def _take(self, message: Any) -> None:
        if isinstance(message, PARSER.OFPGroupMod):
            self._group(message)
        elif isinstance(message, PARSER.OFPFlowMod):
            match = {name: _value_and_mask(name, value) for name, value in message.match.items()}
            if message.command == OFP.OFPFC_ADD:
                self._add(message, match)
            elif message.command == OFP.OFPFC_DELETE:
                self._delete(message, match)
            else:
                raise SwitchRefused(f"flow command {message.command} is not simulated")
        elif isinstance(message, PARSER.OFPMeterMod):
            raise SwitchRefused("Open vSwitch takes no meters in a bundle")
        else:
            raise SwitchRefused(f"{type(message).__name__} changes no table")

    def _group(self, mod: Any) -> None:
        if mod.command != _ADD_OR_MOD:
            raise SwitchRefused(f"group command {mod.command} depends on whether the group exists")
        if mod.type == OFP.OFPGT_INDIRECT and len(mod.buckets) != 1:
            raise SwitchRefused("an indirect group has exactly one bucket")
        self.groups[mod.group_id] = mod

    def _add(self, mod: Any, match: dict[str, tuple[int, int]]) -> None:
        for name, (value, mask) in match.items():
            _check_prerequisite(name, match)
            if value & ~mask:
                raise SwitchRefused(f"{name} matches bits outside its mask")
        for instruction in mod.instructions:
            if isinstance(instruction, PARSER.OFPInstructionGotoTable) and instruction.table_id <= mod.table_id:
                raise SwitchRefused("goto goes to later tables only")
            for action in getattr(instruction, "actions", []):
                if isinstance(action, PARSER.NXActionRegMove):
                    _check_prerequisite(action.src_field, match)
                    _check_prerequisite(action.dst_field, match)
                if isinstance(action, PARSER.OFPActionGroup) and action.group_id not in self.groups:
                    raise SwitchRefused(f"there is no group {action.group_id}")
                if isinstance(action, PARSER.OFPActionSetField):
                    # Open vSwitch judges by the match alone, even after an action has changed the field.
                    _check_prerequisite(action.key, match)
        if mod.idle_timeout or mod.hard_timeout:
            raise SwitchRefused("a flow that expires does not outlive the controller")
        flow = Flow(mod.table_id, mod.priority, match, mod.cookie, mod.instructions)
        self.flows[flow.key] = flow

    def _delete(self, mod: Any, match: dict[str, tuple[int, int]]) -> None:
        for key, flow in list(self.flows.items()):
            if mod.table_id not in (OFP.OFPTT_ALL, flow.table):
                continue
            if flow.cookie & mod.cookie_mask == mod.cookie & mod.cookie_mask and flow.within(match):
                del self.flows[key]

    # --- what packets meet ---
    def send(self, packet: Packet, in_port: int) -> list[Leaving]:
        """Everything that leaves because this packet came in."""
        packet, metadata, table = dict(packet), 0, 0
        leaving: list[Leaving] = []
        self.consulted = set()
        while table is not None:
            flow = self._lookup(table, {**_numbers(packet), "in_port": in_port, "metadata": metadata})
            if flow is None:
                break
            flow.packets += 1
            table = None
            for instruction in flow.instructions:
                if isinstance(instruction, PARSER.OFPInstructionActions):
                    leaving += self._act(instruction.actions, packet, in_port)
                elif isinstance(instruction, PARSER.OFPInstructionWriteMetadata):
                    mask = instruction.metadata_mask
                    metadata = metadata & ~mask | instruction.metadata & mask
                elif isinstance(instruction, PARSER.OFPInstructionGotoTable):
                    table = instruction.table_id
                elif not isinstance(instruction, PARSER.OFPInstructionMeter):
                    raise SwitchRefused(f"{type(instruction).__name__} is not simulated")
        return leaving

    def _lookup(self, table: int, packet: dict[str, int]) -> Flow | None:
        found = [flow for flow in self.flows.values() if flow.table == table and flow.matches(packet)]
        if not found:
            return None
        highest = max(flow.priority for flow in found)
        best = [flow for flow in found if flow.priority == highest]
        for flow in self.flows.values():
            if flow.table == table and flow.priority >= highest:
                self.consulted |= flow.match.keys() - {"in_port", "metadata"}
        assert len(best) == 1 or len({flow.text for flow in best}) == 1, f"which of these wins is undefined: {best}"
        return best[0]

    def _act(self, actions: list[Any], packet: Packet, in_port: int) -> list[Leaving]:
        leaving: list[Leaving] = []
        for action in actions:
            if isinstance(action, PARSER.OFPActionSetField):
                self.consulted.add(action.key)
                packet[action.key] = action.value
            elif isinstance(action, PARSER.NXActionRegMove):
                self.consulted.add(action.src_field)
                if not action.dst_field.startswith("xxreg"):
                    packet[action.dst_field] = packet[action.src_field]
            elif isinstance(action, PARSER.OFPActionGroup):
                for bucket in self.groups[action.group_id].buckets:
                    leaving += self._act(bucket.actions, dict(packet), in_port)
            elif isinstance(action, PARSER.OFPActionOutput):
                if action.port == OFP.OFPP_NORMAL:  # learns one address and looks the other up
                    self.consulted |= {"eth_src", "eth_dst"}
                if action.port != in_port:  # OpenFlow sends nothing back unless IN_PORT says so
                    leaving.append(Leaving(_port(action.port, in_port), dict(packet)))
            else:
                raise SwitchRefused(f"{type(action).__name__} is not simulated")
        return leaving

    # --- for comparing ---
    def content(self) -> dict[Any, Any]:
        """What stands in the switch, counters apart."""
        flows: dict[Any, Any] = {key: (flow.cookie, flow.text) for key, flow in self.flows.items()}
        groups = {("group", number): json.dumps(mod.to_jsondict()) for number, mod in self.groups.items()}
        return {**flows, **groups}

    def caught(self, cookie: int) -> int:
        """Packets that flows with this cookie have seen."""
        return sum(flow.packets for flow in self.flows.values() if flow.cookie == cookie)


class TableSwitch:
    """A connected switch, as `controller.runtime` sees one: it carries a bundle out at once, or refuses it."""

    def __init__(self) -> None:
        self.table = FlowTable()
        self.refusals = 0
        """So many of the next bundles are refused."""

    def commit(self, bundle: list[Any], committed: Callable[[], None], refused: Callable[[], None]) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            refused()
            return
        self.table.apply(bundle)
        committed()

    def send(self, message: Any) -> None:
        message.serialize()


def _check_prerequisite(name: str, match: dict[str, tuple[int, int]]) -> None:
    field, values = _PREREQUISITES.get(name) or _PREREQUISITES.get(name.split("_")[0], ("", ()))
    if field and match.get(field, (None,))[0] not in values:
        raise SwitchRefused(f"{name} needs {field}={values}")


def _port(port: int, in_port: int) -> int | str:
    named = {OFP.OFPP_NORMAL: NORMAL, OFP.OFPP_CONTROLLER: CONTROLLER, OFP.OFPP_IN_PORT: in_port}
    return named.get(port, port)


@functools.cache
def _number(value: int | str) -> int:
    if isinstance(value, int):
        return value
    if _MAC.fullmatch(value):
        return int(value.replace(":", ""), 16)
    return int(ipaddress.ip_address(value))


def _numbers(packet: Packet) -> dict[str, int]:
    return {name: _number(value) for name, value in packet.items()}


def _value_and_mask(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, tuple):
        return _number(value[0]), _number(value[1])
    return _number(value), (1 << _BITS.get(name.split("_")[0], 32)) - 1


# --- packets ---
def ip(source: str, destination: str, **fields: Any) -> Packet:
    """The header of either family."""
    six = ":" in source
    names = ("ipv6_src", "ipv6_dst") if six else ("ipv4_src", "ipv4_dst")
    return {
        "eth_type": IP6 if six else IP,
        "eth_src": "0a:00:00:00:01:01",
        "eth_dst": "02:7a:0a:00:00:64",
        "ip_dscp": 0,
        **dict(zip(names, (source, destination), strict=True)),
        **fields,
    }


def to_vip(client_port: int, *, client: str = "10.0.1.1", vip: str = "10.0.0.100", port: int = 80, flags: int = SYN):
    """A client's segment for the VIP, as it enters the switch."""
    return ip(client, vip, ip_proto=TCP, tcp_src=client_port, tcp_dst=port, tcp_flags=flags)


def from_vip(
    client_port: int,
    *,
    flags: int = ACK,
    mark: int = 0,
    client: str = "10.0.1.1",
    vip: str = "10.0.0.100",
    port: int = 80,
):
    """A server's segment with the VIP as its source."""
    macs = {"eth_src": "0a:00:00:00:00:01", "eth_dst": "0a:00:00:00:01:01"}
    tcp = {"tcp_src": port, "tcp_dst": client_port, "tcp_flags": flags}
    return ip(vip, client, ip_proto=TCP, ip_dscp=mark, **tcp, **macs)


def arp(operation: int, sender: str, target: str, mac: str = "0a:00:00:00:01:01"):
    """An ARP packet: `sender` asks for `target` (operation 1), or answers it (2)."""
    return {
        "eth_type": ARP,
        "eth_src": mac,
        "eth_dst": "ff:ff:ff:ff:ff:ff",
        "arp_op": operation,
        "arp_sha": mac,
        "arp_spa": sender,
        "arp_tha": "00:00:00:00:00:00",
        "arp_tpa": target,
    }


def neighbour(kind: int, sender: str, target: str, mac: str = "0a:00:00:00:01:01"):
    """A neighbour solicitation (135) of `sender` for `target`, or its advertisement (136) that it has `target`.

    Of the option only the type and the address are here, under the name that its type gives it.
    """
    return {
        "eth_type": IP6,
        "eth_src": mac,
        "eth_dst": "33:33:ff:00:00:64",
        "ip_proto": ICMP6,
        "ip_dscp": 0,
        "ipv6_src": sender,
        "ipv6_dst": "ff02::1:ff00:64",
        "icmpv6_type": kind,
        "icmpv6_code": 0,
        "ipv6_nd_target": target,
        **({"nd_options_type": 1, "ipv6_nd_sll": mac} if kind == SOLICITATION else {}),
        **({"nd_options_type": 2, "ipv6_nd_tll": mac} if kind == ADVERTISEMENT else {}),
    }
