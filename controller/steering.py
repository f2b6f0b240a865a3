"""What stands in the switch. Pure: functions of the configuration and of ownership that *return* OpenFlow 1.3 messages.

    table 0  admission   ARP and Neighbour Discovery for a VIP are answered by the switch itself; to a VIP -> 1; from a
                         VIP -> 2; else NORMAL
    table 1  slots       service or data port, bits of the client's port or address -> the home's group, which rewrites
                         the MAC and outputs
    table 2  homes       the same bits in the other direction -> metadata = home
    table 3  fence       (home, port of its owner) -> 4; everything else that claims to be the VIP is dropped, counted
    table 4  close gate  FIN and RST pass only with the close mark; unmarked ones go to the controller, metered; it is
                         shown the SYNs of data connections, too, and those to the VIP in table 0 (`witness`)
    table 5  neighbours  solicitations for a VIP, advertisements of a VIP; what is not about one -> NORMAL
    table 6  advertise   second half of the answer to a neighbour solicitation

A takeover is one atomic bundle of three messages per home (`hand_over`): the group's bucket, and the permit of table 3
withdrawn from the old owner and given to the new one. Its cost does not depend on the number of connections.

Homes, groups and the fence know nothing of address families; each VIP has flows of its own family beside them.

A service's data connections (`data_ports`, TCP and UDP) have flows of their own with the service's key, so that a
bundle is in one slot; TCP ones pass the close gate like the service's port.

Everything works while the controller is away: no flow expires, and finding a VIP's MAC needs no controller.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controller.ownership import Ownership, SlotId
from controller.ryu_adapter import DESCRIPTION, OFP, PARSER
from state import ports
from state.configuration import Configuration, Service, Vip
from state.messages import CLOSE_MARK

COOKIE = 0x74616B65_00000000
COOKIE_MASK = 0xFFFFFFFF_00000000
COOKIE_LATE = COOKIE | 1
"""Packets that claim to come from a VIP and come from a port that does not own it: the fence's catch."""
COOKIE_GATE = COOKIE | 2
"""FIN and RST without the close mark."""
COOKIE_WITNESS = COOKIE | 3
"""SYN and SYN-ACK of data connections, in both directions."""

ADMISSION, SLOTS, HOMES, FENCE, GATE, NEIGHBOURS, ADVERTISE = range(7)
_GATE_METER, _WITNESS_METER = 1, 2
_PACKETS_PER_SECOND = {_GATE_METER: 20_000, _WITNESS_METER: 2_000}
"""What is more is dropped: OpenFlow 1.3 has no meter for the controller's copy alone. So a flood of SYNs to data ports
loses SYNs, and their clients send them again."""
_GROUP_ADD_OR_MOD = 0x8000  # OVS: OFPGC11_ADD_OR_MOD
_ARP, _TCP, _UDP = 0x0806, 6, 17
_OPPOSITE = {
    f"{header}_{one}": f"{header}_{other}"
    for header in ("ipv4", "ipv6", "tcp", "udp")
    for one, other in (("src", "dst"), ("dst", "src"))
}
_FIN, _SYN, _RST = 0x01, 0x02, 0x04
_SOLICITATION, _ADVERTISEMENT = 135, 136
_TARGET_LINK_LAYER_ADDRESS = 2
_SOLICITED, _OVERRIDE = 1 << 30, 1 << 29
_ALL_NODES, _ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"

Message = Any


@dataclass(frozen=True)
class _Family:
    """OpenFlow's words for one version of IP."""

    eth_type: int
    source: str
    destination: str
    icmp: int
    icmp_name: str
    errors: tuple[int, ...]
    """Types of ICMP errors: unreachable (path MTU, too), time exceeded, parameter problem (RFC 792, RFC 4443)."""


_FAMILIES = {
    4: _Family(0x0800, "ipv4_src", "ipv4_dst", 1, "icmpv4", (3, 11, 12)),
    6: _Family(0x86DD, "ipv6_src", "ipv6_dst", 58, "icmpv6", (1, 2, 3, 4)),
}
_NEIGHBOUR = {"eth_type": _FAMILIES[6].eth_type, "ip_proto": _FAMILIES[6].icmp, "icmpv6_code": 0}


@dataclass(frozen=True)
class Attachment:
    """Where a server is: number of its switch port, and its MAC."""

    port: int
    mac: str


def group_id(configuration: Configuration, home: str) -> int:
    return 1 + next(i for i, server in enumerate(configuration.servers) if server.name == home)


def _flow(table: int, priority: int, match: dict[str, Any], instructions: list[Any], cookie: int = COOKIE) -> Message:
    return PARSER.OFPFlowMod(
        DESCRIPTION,
        cookie=cookie,
        table_id=table,
        command=OFP.OFPFC_ADD,
        priority=priority,
        match=PARSER.OFPMatch(**match),
        instructions=instructions,
    )


def _apply(*actions: Any) -> Any:
    return PARSER.OFPInstructionActions(OFP.OFPIT_APPLY_ACTIONS, list(actions))


def _goto(table: int) -> Any:
    return PARSER.OFPInstructionGotoTable(table)


def _output(port: int, length: int = OFP.OFPCML_NO_BUFFER) -> Any:
    return PARSER.OFPActionOutput(port, length)


def clear() -> list[Message]:
    """Remove every flow that an earlier life of the controller left."""
    return [
        PARSER.OFPFlowMod(
            DESCRIPTION,
            cookie=COOKIE,
            cookie_mask=COOKIE_MASK,
            table_id=OFP.OFPTT_ALL,
            command=OFP.OFPFC_DELETE,
            out_port=OFP.OFPP_ANY,
            out_group=OFP.OFPG_ANY,
            match=PARSER.OFPMatch(),
        )
    ]


def meter() -> list[Message]:
    """The rate limits of what reaches the controller. Not part of a bundle (OVS takes none there).

    One of each two is refused or needless. Deleting first would delete the gate's flows with the meter, and let closes
    through until they stand again.
    """
    flags = OFP.OFPMF_PKTPS | OFP.OFPMF_BURST
    return [
        PARSER.OFPMeterMod(
            DESCRIPTION,
            command=command,
            flags=flags,
            meter_id=number,
            bands=[PARSER.OFPMeterBandDrop(rate=rate, burst_size=rate)],
        )
        for number, rate in _PACKETS_PER_SECOND.items()
        for command in (OFP.OFPMC_ADD, OFP.OFPMC_MODIFY)
    ]


def static(configuration: Configuration) -> list[Message]:
    """What depends on the configuration alone."""
    flows = [_flow(table, 0, {}, [_apply(_output(OFP.OFPP_NORMAL))]) for table in (ADMISSION, NEIGHBOURS)]
    for kind in (_SOLICITATION, _ADVERTISEMENT):
        flows.append(_flow(ADMISSION, 300, {**_NEIGHBOUR, "icmpv6_type": kind}, [_goto(NEIGHBOURS)]))
    for vip in configuration.vips:
        family = _FAMILIES[vip.version]
        to_vip = {"eth_type": family.eth_type, family.destination: vip.address}
        flows += _arp(vip) if vip.version == 4 else _neighbour_discovery(vip)
        flows += [
            # The MAC first: else packets *from* the VIP are compared with its address, too, and the switch caches them
            # by client, not by slot. (Of IPv4 addresses it compares but the bits that matter, by its own default.)
            _flow(ADMISSION, 210, {**to_vip, "eth_dst": vip.mac}, [_goto(SLOTS)]),
            _flow(ADMISSION, 200, {"eth_type": family.eth_type, family.source: vip.address}, [_goto(HOMES)]),
            _flow(ADMISSION, 190, to_vip, [_goto(SLOTS)]),
        ]
        for kind in family.errors:
            error = {**to_vip, "ip_proto": family.icmp, f"{family.icmp_name}_type": kind}
            flows.append(_flow(SLOTS, 60, error, [_apply(*_consult(_ETH_DST), *_every_home(configuration))]))
    flows += [
        _flow(SLOTS, 0, {}, []),
        _flow(HOMES, 0, {}, []),
        _flow(FENCE, 0, {}, [], COOKIE_LATE),
    ]
    return flows + _gate(configuration) + _witness(configuration)


def _every_home(configuration: Configuration) -> list[Any]:
    """An ICMP error tells by its payload which connection it is about, and OpenFlow cannot look there. So every server
    gets it; the kernels of those that have no such connection ignore it."""
    return [PARSER.OFPActionGroup(group_id(configuration, server.name)) for server in configuration.servers]


def _arp(vip: Vip) -> list[Message]:
    """The switch answers who has the VIP; nobody else may claim it (RFC 826)."""
    mac = vip.mac
    answer = [
        PARSER.NXActionRegMove(src_field="eth_src", dst_field="eth_dst", n_bits=48),
        PARSER.OFPActionSetField(eth_src=mac),
        PARSER.OFPActionSetField(arp_op=2),
        PARSER.NXActionRegMove(src_field="arp_sha", dst_field="arp_tha", n_bits=48),
        PARSER.OFPActionSetField(arp_sha=mac),
        PARSER.NXActionRegMove(src_field="arp_spa", dst_field="arp_tpa", n_bits=32),
        PARSER.OFPActionSetField(arp_spa=vip.address),
        _output(OFP.OFPP_IN_PORT),
    ]
    request = {"eth_type": _ARP, "arp_tpa": vip.address, "arp_op": 1}
    return [
        _flow(ADMISSION, 300, request, [_apply(*answer)]),
        _flow(ADMISSION, 250, {"eth_type": _ARP, "arp_spa": vip.address}, []),
    ]


def _neighbour_discovery(vip: Vip) -> list[Message]:
    """The same for IPv6 (RFC 4861): a neighbour solicitation for the VIP turns into its advertisement and goes back.

    Open vSwitch sets a target link-layer address only where the match says that the packet is an advertisement; after
    its type was changed it has to go through a table again. A host that is about to take the VIP for its own asks from
    the unspecified address (RFC 4862, 5.4.3): it is told, as all nodes, that the address is in use.
    """
    solicitation = {**_NEIGHBOUR, "icmpv6_type": _SOLICITATION}
    advertisement = {**_NEIGHBOUR, "icmpv6_type": _ADVERTISEMENT, "ipv6_nd_target": vip.address}
    answer = [
        PARSER.OFPActionSetField(eth_src=vip.mac),
        PARSER.OFPActionSetField(ipv6_src=vip.address),
        PARSER.OFPActionSetField(icmpv6_type=_ADVERTISEMENT),
        PARSER.OFPActionSetField(nd_options_type=_TARGET_LINK_LAYER_ADDRESS),
    ]
    to_asker = [
        PARSER.NXActionRegMove(src_field="eth_src", dst_field="eth_dst", n_bits=48),
        PARSER.NXActionRegMove(src_field="ipv6_src", dst_field="ipv6_dst", n_bits=128),
        *answer,
        PARSER.OFPActionSetField(nd_reserved=_SOLICITED | _OVERRIDE),
    ]
    to_all = [
        PARSER.OFPActionSetField(eth_dst=_ALL_NODES_MAC),
        PARSER.OFPActionSetField(ipv6_dst=_ALL_NODES),
        *answer,
        PARSER.OFPActionSetField(nd_reserved=_OVERRIDE),
    ]
    target = [PARSER.OFPActionSetField(ipv6_nd_tll=vip.mac), _output(OFP.OFPP_IN_PORT)]
    asked = {**solicitation, "ipv6_nd_target": vip.address}
    return [
        _flow(NEIGHBOURS, 300, {**asked, "ipv6_src": "::"}, [_apply(*to_all), _goto(ADVERTISE)]),
        _flow(NEIGHBOURS, 200, asked, [_apply(*to_asker), _goto(ADVERTISE)]),
        _flow(NEIGHBOURS, 100, {**solicitation, "ipv6_src": vip.address}, []),
        _flow(NEIGHBOURS, 100, advertisement, []),
        _flow(ADVERTISE, 100, advertisement, [_apply(*target)]),
    ]


def _gate(configuration: Configuration) -> list[Message]:
    """Closing is a privilege: see the module's table. The mark never leaves the switch."""
    normal = _output(OFP.OFPP_NORMAL)
    flows = [_flow(GATE, 0, {}, [_apply(normal)])]
    for version in sorted({vip.version for vip in configuration.vips}):
        marked = {"eth_type": _FAMILIES[version].eth_type, "ip_dscp": CLOSE_MARK}
        flows.append(_flow(GATE, 300, marked, [_apply(PARSER.OFPActionSetField(ip_dscp=0), normal)]))
    for vip in configuration.vips:
        family = _FAMILIES[vip.version]
        for service in vip.services:
            if not service.protected:
                continue
            sources = [match for match in _ports(service) if match["ip_proto"] == _TCP]
            for source, flag in itertools.product(sources, (_FIN, _RST)):
                from_vip = {"eth_type": family.eth_type, family.source: vip.address}
                match = {**from_vip, **source, "tcp_flags": (flag, flag)}
                to_controller = [PARSER.OFPInstructionMeter(_GATE_METER), _apply(_output(OFP.OFPP_CONTROLLER))]
                flows.append(_flow(GATE, 200, match, to_controller, COOKIE_GATE))
    return flows


def _witness(configuration: Configuration) -> list[Message]:
    """Show the controller how data connections begin: see `witness`. On the way out behind the fence, so that it sees
    what the client does."""
    flows = []
    show, normal = _output(OFP.OFPP_CONTROLLER), _output(OFP.OFPP_NORMAL)
    metered = PARSER.OFPInstructionMeter(_WITNESS_METER)
    for vip in configuration.vips:
        family = _FAMILIES[vip.version]
        for match in (match for service in vip.services if service.protected for match in _data_ports(service)):
            if match["ip_proto"] != _TCP:
                continue
            leaving = {"eth_type": family.eth_type, family.source: vip.address, **match, "tcp_flags": (_SYN, _SYN)}
            coming = {**_turned(leaving), "eth_dst": vip.mac}
            flows += [
                _flow(ADMISSION, 220, coming, [metered, _apply(show), _goto(SLOTS)], COOKIE_WITNESS),
                _flow(GATE, 190, leaving, [metered, _apply(show, normal)], COOKIE_WITNESS),
            ]
    return flows


def slot(configuration: Configuration, ownership: Ownership, slot_: SlotId) -> list[Message]:
    """The two directions of one slot, for each service of its VIP."""
    v, number = slot_
    vip, home = configuration.vips[v], ownership.home[slot_]
    family, group = _FAMILIES[vip.version], group_id(configuration, home)
    to_vip = {"eth_type": family.eth_type, family.destination: vip.address}
    from_vip = {"eth_type": family.eth_type, family.source: vip.address}
    flows = []
    to_home = [_apply(*_consult(_ETH_DST), PARSER.OFPActionGroup(group))]
    to_fence = [PARSER.OFPInstructionWriteMetadata(group, 0xFFFF), _goto(FENCE)]
    from_home = [_apply(*_consult(_ETH_DST, _ETH_SRC, _DSCP, _FIN_SYN_RST)), *to_fence]
    plain_from_home = [_apply(*_consult(_ETH_DST, _ETH_SRC, _DSCP)), *to_fence]
    for service in vip.services:
        affinity = vip.affinity_of(service)
        if affinity == "service" and number != 0:
            continue
        keys = _slot_keys(vip, affinity, number)
        for source in _ports(service):
            egress = {**from_vip, **source, **keys}
            flows.append(_flow(SLOTS, 100, _turned(egress), to_home))
            # Of a service that is all in one slot also what goes to multicast groups: its key does not look at where.
            flows.append(_flow(HOMES, 100, egress, from_home if source["ip_proto"] == _TCP else plain_from_home))
    if number == 0:  # ping goes to whoever has the first slot
        flows.append(_flow(SLOTS, 50, {**to_vip, "ip_proto": family.icmp}, to_home))
        flows.append(_flow(HOMES, 50, {**from_vip, "ip_proto": family.icmp}, plain_from_home))
    return flows


_ETH_DST, _ETH_SRC, _DSCP = ("eth_dst", 0, 48), ("eth_src", 0, 48), ("ip_dscp", 0, 6)
_FIN_SYN_RST = ("tcp_flags", 0, 3)


def _consult(*fields: tuple[str, int, int]) -> list[Any]:
    """Actions that look at (field, first bit, bits) and change nothing: into a register that nobody reads.

    Every path of a packet must consult the same fields, whether it ends in a drop or not. Else the entries that the
    switch caches for them overlap, and Open vSwitch 3.1 may change the wrong one: a server's packets were dropped for
    as long as they came, though its fence had been lifted (`docs/decisions/008-one-mask.md`).
    """
    return [
        PARSER.NXActionRegMove(src_field=field, dst_field="xxreg0", n_bits=bits, src_ofs=first)
        for field, first, bits in fields
    ]


def _ports(service: Service) -> list[dict[str, Any]]:
    """The service's own port and those of its data connections, as matches on what a server sends."""
    return [{"ip_proto": _TCP, "tcp_src": service.port}, *_data_ports(service)]


def _data_ports(service: Service) -> list[dict[str, Any]]:
    matches: list[dict[str, Any]] = []
    for run in service.data_ports:
        protocol, field = (_TCP, "tcp_src") if run.transport == ports.TCP else (_UDP, "udp_src")
        for value, mask in ports.blocks(run.first, run.last):
            matches.append({"ip_proto": protocol, field: value if mask == 0xFFFF else (value, mask)})
    return matches


def _slot_keys(vip: Vip, affinity: str, number: int) -> dict[str, Any]:
    """What tells a slot from the others, in what a server sends."""
    mask = vip.slots - 1
    if mask == 0 or affinity == "service":
        return {}
    if affinity == "client":
        family, address = _FAMILIES[vip.version], type(ipaddress.ip_address(vip.address))
        return {family.destination: (str(address(number)), str(address(mask)))}
    return {"tcp_dst": (number << 1, mask << 1)}


def _turned(match: dict[str, Any]) -> dict[str, Any]:
    """The same for the other direction."""
    return {_OPPOSITE.get(field, field): value for field, value in match.items()}


def home(configuration: Configuration, name: str, owner: Attachment | None) -> list[Message]:
    """A home's group and permit; without an owner its packets are dropped both ways."""
    group = group_id(configuration, name)
    buckets = []
    if owner is not None:
        actions = [PARSER.OFPActionSetField(eth_dst=owner.mac), _output(owner.port)]
        buckets = [PARSER.OFPBucket(actions=actions)]
    messages = [
        PARSER.OFPGroupMod(
            DESCRIPTION, _GROUP_ADD_OR_MOD, OFP.OFPGT_INDIRECT if buckets else OFP.OFPGT_ALL, group, buckets
        ),
        PARSER.OFPFlowMod(
            DESCRIPTION,
            cookie=COOKIE,
            cookie_mask=COOKIE_MASK,
            table_id=FENCE,
            command=OFP.OFPFC_DELETE,
            out_port=OFP.OFPP_ANY,
            out_group=OFP.OFPG_ANY,
            match=PARSER.OFPMatch(metadata=(group, 0xFFFF)),
        ),
    ]
    if owner is not None:
        permit = {"metadata": (group, 0xFFFF), "in_port": owner.port}
        messages.append(_flow(FENCE, 100, permit, [_goto(GATE)]))
    return messages


def everything(
    configuration: Configuration, ownership: Ownership, attachments: dict[str, Attachment]
) -> Iterator[Message]:
    """The whole state of the switch, for one atomic bundle at (re)connection. Hundreds of messages, made one after the
    other as they are asked for; `ownership` must not change meanwhile."""
    yield from clear()
    for server in configuration.servers:
        yield from home(configuration, server.name, attachments.get(ownership.owner[server.name]))
    yield from static(configuration)
    for slot_ in ownership.all_slots():
        yield from slot(configuration, ownership, slot_)


def hand_over(configuration: Configuration, homes: list[str], attachment: Attachment | None) -> list[Message]:
    """Fence and repoint in one: these homes belong to whoever is attached there."""
    messages: list[Message] = []
    for name in homes:
        messages += home(configuration, name, attachment)
    return messages


def give_back(
    configuration: Configuration,
    ownership: Ownership,
    homes: list[str],
    attachment: Attachment | None,
    slots: list[SlotId],
) -> Iterator[Message]:
    """Homes for a server that returned, and slots that moved with it. Hundreds of messages, as `everything`."""
    yield from hand_over(configuration, homes, attachment)
    for slot_ in slots:
        yield from slot(configuration, ownership, slot_)


def forward(in_port: int, packet: bytes) -> Message:
    """Let a packet that the gate held go on to its client."""
    return PARSER.OFPPacketOut(
        DESCRIPTION,
        buffer_id=OFP.OFP_NO_BUFFER,
        in_port=in_port,
        actions=[_output(OFP.OFPP_NORMAL)],
        data=packet,
    )


def late_packets() -> Message:
    """Ask how many packets the fence caught. Of that flow alone: reading all of them takes the controller 80 ms."""
    return PARSER.OFPFlowStatsRequest(
        DESCRIPTION, 0, FENCE, OFP.OFPP_ANY, OFP.OFPG_ANY, COOKIE_LATE, 0xFFFFFFFF_FFFFFFFF, PARSER.OFPMatch()
    )
