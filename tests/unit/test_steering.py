"""What stands in the switch, judged by the packets that it lets through. No test looks at a flow: each asks a simulated
OpenFlow pipeline where a packet leaves."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import steering
from controller.ownership import Ownership
from controller.ryu_adapter import DESCRIPTION, OFP, PARSER
from controller.steering import Attachment
from state.messages import CLOSE_MARK
from tests.unit import scenario
from tests.unit.flow_table import (
    ACK,
    ADVERTISEMENT,
    CONTROLLER,
    FIN,
    ICMP,
    ICMP6,
    NORMAL,
    PSH,
    RST,
    SOLICITATION,
    SYN,
    FlowTable,
    Leaving,
    Packet,
    SwitchRefused,
    arp,
    from_vip,
    ip,
    neighbour,
    to_vip,
)

CLIENT_PORT, SERVERS = scenario.CLIENT_SWITCH_PORT, {"s1": 1, "s2": 2, "s3": 3}
ATTACHED = {name: Attachment(port, scenario.mac(port)) for name, port in SERVERS.items()}
EVERY_SLOT = range(40_000, 40_016)
IPV4, IPV6 = (scenario.VIP, scenario.CLIENT), (scenario.VIP6, scenario.CLIENT6)
BOTH_FAMILIES = pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])


class Switch:
    """A switch with everything installed for three servers, each owning its home. Packets are of one family, but VIPs
    of both are there."""

    def __init__(
        self, family: tuple[str, str] = IPV4, attached: dict[str, Attachment] = ATTACHED, **options: object
    ) -> None:
        self.vip, self.client = family
        self.configuration = scenario.config(3, vips=(scenario.VIP, scenario.VIP6), **options)
        self.ownership = Ownership(self.configuration)
        self.table = FlowTable()
        self.table.apply(steering.everything(self.configuration, self.ownership, attached))

    def owner(self, client_port: int, client: str | None = None) -> str:
        owner = self.ownership.server_for(scenario.four_tuple(client_port, client or self.client, self.vip))
        assert owner is not None
        return owner

    def to_vip(self, client_port: int, **fields: object) -> Packet:
        return to_vip(client_port, **{"vip": self.vip, "client": self.client, **fields})

    def from_vip(self, client_port: int, **fields: object) -> Packet:
        return from_vip(client_port, **{"vip": self.vip, "client": self.client, **fields})

    def from_client(self, client_port: int, **fields: object) -> list[Leaving]:
        return self.table.send(self.to_vip(client_port, **fields), CLIENT_PORT)

    def from_server(self, name: str, client_port: int, **fields: object) -> list[Leaving]:
        return self.table.send(self.from_vip(client_port, **fields), SERVERS[name])

    def hand_over(self, server: str, heir: str | None) -> list[object]:
        homes = self.ownership.homes_of(server) if heir is None else self.ownership.fail_over(server, heir)
        bundle = steering.hand_over(self.configuration, homes, ATTACHED[heir] if heir else None)
        self.table.apply(bundle)
        return bundle


@pytest.fixture(params=[IPV4, IPV6], ids=["IPv4", "IPv6"])
def switch(request: pytest.FixtureRequest) -> Switch:
    return Switch(request.param)


# --- the way in ---
def test_a_syn_reaches_the_owner_of_its_slot_with_the_owners_mac(switch: Switch) -> None:
    reached = set()
    for client_port in EVERY_SLOT:
        owner = switch.owner(client_port)
        (leaving,) = switch.from_client(client_port)
        assert leaving.port == SERVERS[owner]
        assert leaving.packet == {**switch.to_vip(client_port), "eth_dst": ATTACHED[owner].mac}
        reached.add(owner)
    assert reached == set(SERVERS)


def test_every_client_port_has_exactly_one_slot(switch: Switch) -> None:
    for client_port in (1, 2, 1023, 32_767, 32_768, 65_534, 65_535):
        (leaving,) = switch.from_client(client_port)
        assert leaving.port == SERVERS[switch.owner(client_port)]


def test_a_port_of_the_vip_without_a_service_is_dropped_both_ways(switch: Switch) -> None:
    assert switch.from_client(40_000, port=22) == []
    assert switch.from_server(switch.owner(40_000), 40_000, port=22) == []


def icmp(switch: Switch, kind: int, kind6: int) -> dict[str, int]:
    if ":" in switch.vip:
        return {"ip_proto": ICMP6, "icmpv6_type": kind6}
    return {"ip_proto": ICMP, "icmpv4_type": kind}


def test_ping_reaches_the_owner_of_the_first_slot_and_its_answer_leaves(switch: Switch) -> None:
    owner = switch.ownership.owner[switch.ownership.home[0, 0]]
    there = ip(switch.client, switch.vip, **icmp(switch, 8, 128))
    back = ip(switch.vip, switch.client, **icmp(switch, 0, 129))
    assert [leaving.port for leaving in switch.table.send(there, CLIENT_PORT)] == [SERVERS[owner]]
    assert [leaving.port for leaving in switch.table.send(back, SERVERS[owner])] == [NORMAL]


@pytest.mark.parametrize("kinds", [(3, 1), (3, 2), (11, 3), (12, 4)])
def test_an_icmp_error_reaches_every_server_whichever_has_the_connection(
    switch: Switch, kinds: tuple[int, int]
) -> None:
    """Path MTU, above all: `3, 2`."""
    error = ip(switch.client, switch.vip, **icmp(switch, *kinds))
    leaving = switch.table.send(error, CLIENT_PORT)
    assert sorted(each.port for each in leaving) == sorted(SERVERS.values())
    assert len({each.packet["eth_dst"] for each in leaving}) == len(SERVERS)


def test_traffic_that_is_not_the_vips_is_switched_normally(switch: Switch) -> None:
    packet = switch.to_vip(40_000, vip="fd00::1" if ":" in switch.vip else "10.0.0.1", port=22)
    assert switch.table.send(packet, CLIENT_PORT) == [Leaving(NORMAL, packet)]


@BOTH_FAMILIES
def test_a_home_without_an_attached_owner_drops_both_ways(family: tuple[str, str]) -> None:
    switch = Switch(family, {"s2": ATTACHED["s2"]})
    alone = {client_port: switch.owner(client_port) for client_port in EVERY_SLOT}
    for client_port, owner in alone.items():
        assert len(switch.from_client(client_port)) == (owner == "s2")
        assert len(switch.from_server(owner, client_port)) == (owner == "s2")


@pytest.mark.parametrize("to_its_mac", [True, False])
def test_what_is_for_the_vip_takes_its_slots_way_whichever_mac_it_is_sent_to(switch: Switch, to_its_mac: bool) -> None:
    (mac,) = [vip.mac for vip in switch.configuration.vips if vip.address == switch.vip]
    packet = {**switch.to_vip(40_000), "eth_dst": mac if to_its_mac else ATTACHED["s3"].mac}
    owner = switch.owner(40_000)
    assert owner != "s3"
    assert switch.table.send(packet, CLIENT_PORT) == [
        Leaving(SERVERS[owner], {**packet, "eth_dst": ATTACHED[owner].mac})
    ]


# --- the fence ---
def test_only_the_owners_answer_leaves(switch: Switch) -> None:
    for client_port in EVERY_SLOT:
        for name in SERVERS:
            expected = [Leaving(NORMAL, switch.from_vip(client_port))] if name == switch.owner(client_port) else []
            assert switch.from_server(name, client_port) == expected


def test_a_client_that_claims_to_be_the_vip_is_dropped(switch: Switch) -> None:
    for client_port in EVERY_SLOT:
        assert switch.table.send(switch.from_vip(client_port), CLIENT_PORT) == []


def test_what_the_fence_drops_is_counted_under_its_cookie(switch: Switch) -> None:
    stranger = next(name for name in SERVERS if name != switch.owner(40_000))
    for _ in range(3):
        switch.from_server(stranger, 40_000)
    switch.from_server(switch.owner(40_000), 40_000)
    assert switch.table.caught(steering.COOKIE_LATE) == 3


# --- the close gate ---
@pytest.mark.parametrize("flags", [FIN | ACK, RST, RST | ACK, FIN | PSH | ACK])
def test_a_close_without_the_mark_goes_to_the_controller_only(switch: Switch, flags: int) -> None:
    leaving = switch.from_server(switch.owner(40_000), 40_000, flags=flags)
    assert leaving == [Leaving(CONTROLLER, switch.from_vip(40_000, flags=flags))]
    assert switch.table.caught(steering.COOKIE_GATE) == 1


@pytest.mark.parametrize("flags", [FIN | ACK, RST, ACK, PSH | ACK, SYN | ACK])
def test_a_marked_packet_leaves_and_the_mark_is_stripped(switch: Switch, flags: int) -> None:
    leaving = switch.from_server(switch.owner(40_000), 40_000, flags=flags, mark=CLOSE_MARK)
    assert leaving == [Leaving(NORMAL, switch.from_vip(40_000, flags=flags, mark=0))]


@pytest.mark.parametrize("flags", [ACK, PSH | ACK, SYN | ACK])
def test_what_does_not_close_needs_no_mark_and_keeps_another_one(switch: Switch, flags: int) -> None:
    for mark in (0, 46):
        leaving = switch.from_server(switch.owner(40_000), 40_000, flags=flags, mark=mark)
        assert leaving == [Leaving(NORMAL, switch.from_vip(40_000, flags=flags, mark=mark))]


def test_the_mark_opens_no_way_around_the_fence(switch: Switch) -> None:
    stranger = next(name for name in SERVERS if name != switch.owner(40_000))
    for flags in (FIN | ACK, RST, ACK):
        assert switch.from_server(stranger, 40_000, flags=flags, mark=CLOSE_MARK) == []


@BOTH_FAMILIES
def test_an_unprotected_service_closes_as_it_likes(family: tuple[str, str]) -> None:
    switch = Switch(family, protected=False)
    for flags in (FIN | ACK, RST):
        (leaving,) = switch.from_server(switch.owner(40_000), 40_000, flags=flags)
        assert leaving.port == NORMAL


# --- taking over ---
def test_a_hand_over_fences_the_old_owner_and_repoints_to_the_new(switch: Switch) -> None:
    before = {client_port: switch.owner(client_port) for client_port in EVERY_SLOT}
    switch.hand_over("s1", "s2")
    for client_port, old in before.items():
        new = "s2" if old == "s1" else old
        assert [leaving.port for leaving in switch.from_client(client_port, flags=ACK)] == [SERVERS[new]]
        passing = [name for name in SERVERS if switch.from_server(name, client_port)]
        assert passing == [new]
        if old == "s1":
            assert switch.from_server("s1", client_port, flags=RST, mark=CLOSE_MARK) == []


def test_a_second_hand_over_takes_the_inherited_homes_along(switch: Switch) -> None:
    switch.hand_over("s1", "s2")
    switch.hand_over("s2", "s3")
    for client_port in EVERY_SLOT:
        assert [leaving.port for leaving in switch.from_client(client_port)] == [SERVERS["s3"]]
        assert [name for name in SERVERS if switch.from_server(name, client_port)] == ["s3"]


def test_without_an_heir_the_home_is_fenced_and_nobody_gets_its_packets(switch: Switch) -> None:
    switch.hand_over("s1", None)
    for client_port in EVERY_SLOT:
        if switch.owner(client_port) == "s1":
            assert switch.from_client(client_port) == []
            assert not any(switch.from_server(name, client_port) for name in SERVERS)
        else:
            assert switch.from_client(client_port)


def test_the_cost_of_a_hand_over_is_three_messages_per_home_whatever_the_number_of_slots() -> None:
    for slots in (1, 8, 256):
        switch = Switch(slots=slots)
        assert len(switch.hand_over("s1", "s2")) == 3
        assert len(switch.hand_over("s2", "s3")) == 6


def test_moving_one_slot_leaves_the_others_where_they_are(switch: Switch) -> None:
    before = {client_port: switch.owner(client_port) for client_port in EVERY_SLOT}
    moved = switch.ownership.slot(scenario.four_tuple(40_000, switch.client, switch.vip))
    assert moved is not None
    switch.ownership.home[moved] = "s3"
    switch.table.apply(steering.slot(switch.configuration, switch.ownership, moved))
    for client_port, old in before.items():
        slot = switch.ownership.slot(scenario.four_tuple(client_port, switch.client, switch.vip))
        new = "s3" if slot == moved else old
        assert [leaving.port for leaving in switch.from_client(client_port)] == [SERVERS[new]]
        assert [name for name in SERVERS if switch.from_server(name, client_port)] == [new]


# --- affinity ---
@BOTH_FAMILIES
def test_by_client_all_connections_of_an_address_have_one_owner(family: tuple[str, str]) -> None:
    switch = Switch(family, affinity="client", slots=16)
    reached = set()
    for last in range(1, 33):
        client = str(ipaddress.ip_address(family[1]) + last)
        ports = {switch.from_client(client_port, client=client)[0].port for client_port in EVERY_SLOT}
        owner = switch.owner(40_000, client)
        assert ports == {SERVERS[owner]}
        assert [name for name in SERVERS if switch.from_server(name, 40_000, client=client)] == [owner]
        reached |= ports
    assert reached == set(SERVERS.values())


@settings(max_examples=50)
@given(
    client_port=st.integers(1, 65_535),
    client=st.ip_addresses().map(str),
    affinity=st.sampled_from(["connection", "client"]),
    slots=st.sampled_from([1, 2, 64]),
)
def test_switch_and_ownership_agree_on_the_slot_of_any_connection(
    client_port: int, client: str, affinity: str, slots: int
) -> None:
    switch = _switch_for(affinity, slots)
    vip = scenario.VIP6 if ":" in client else scenario.VIP
    owner = switch.ownership.server_for(scenario.four_tuple(client_port, client, vip))
    (there,) = switch.from_client(client_port, client=client, vip=vip)
    assert there.port == SERVERS[str(owner)]
    passing = [name for name in SERVERS if switch.from_server(name, client_port, client=client, vip=vip)]
    assert passing == [owner]


_switches: dict[tuple[str, int], Switch] = {}


def _switch_for(affinity: str, slots: int) -> Switch:
    if (affinity, slots) not in _switches:
        _switches[affinity, slots] = Switch(affinity=affinity, slots=slots)
    return _switches[affinity, slots]


# --- ARP ---
def test_the_switch_itself_answers_who_has_the_vip() -> None:
    switch = Switch()
    asker = "0a:00:00:00:01:01"
    (leaving,) = switch.table.send(arp(1, scenario.CLIENT, scenario.VIP, asker), CLIENT_PORT)
    vip_mac = switch.configuration.vips[0].mac
    assert leaving.port == CLIENT_PORT
    assert leaving.packet == {
        "eth_type": 0x0806,
        "eth_src": vip_mac,
        "eth_dst": asker,
        "arp_op": 2,
        "arp_sha": vip_mac,
        "arp_spa": scenario.VIP,
        "arp_tha": asker,
        "arp_tpa": scenario.CLIENT,
    }


@pytest.mark.parametrize("mark", [0, 1, CLOSE_MARK])
@pytest.mark.parametrize("flags", [ACK, SYN | ACK, FIN | ACK, RST])
def test_a_packet_is_dropped_for_the_same_fields_as_it_is_let_out(switch: Switch, flags: int, mark: int) -> None:
    """Else entries of the switch's cache overlap, and Open vSwitch 3.1 changes the wrong one when a fence is lifted."""
    owner = switch.owner(40_000)
    switch.from_server(owner, 40_000, flags=flags, mark=mark)
    let_out = set(switch.table.consulted)
    for other in SERVERS.keys() - {owner}:
        assert switch.from_server(other, 40_000, flags=flags, mark=mark) == []
        assert switch.table.consulted == let_out


def test_a_packet_to_a_home_without_an_owner_is_dropped_for_the_same_fields_as_it_is_sent_on(switch: Switch) -> None:
    assert switch.from_client(40_000)
    sent_on = set(switch.table.consulted)
    switch.hand_over(switch.owner(40_000), None)
    assert switch.from_client(40_000) == []
    assert switch.table.consulted == sent_on


def test_nobody_may_claim_the_vip_by_arp() -> None:
    switch = Switch()
    for port in (*SERVERS.values(), CLIENT_PORT):
        assert switch.table.send(arp(2, scenario.VIP, scenario.CLIENT), port) == []
        assert switch.table.send(arp(1, scenario.VIP, scenario.CLIENT), port) == []


def test_arp_for_other_addresses_is_switched_normally() -> None:
    switch = Switch()
    packet = arp(1, scenario.CLIENT, "10.0.0.1")
    assert switch.table.send(packet, CLIENT_PORT) == [Leaving(NORMAL, packet)]


# --- Neighbour Discovery ---
_SOLICITED, _OVERRIDE = 1 << 30, 1 << 29


@pytest.mark.parametrize("unicast", [False, True], ids=["first question", "check that it is still there"])
def test_the_switch_itself_advertises_the_vip(unicast: bool) -> None:
    switch, asker = Switch(IPV6), "0a:00:00:00:01:01"
    mac = switch.configuration.vips[1].mac
    question = neighbour(SOLICITATION, switch.client, switch.vip, asker)
    if unicast:
        question |= {"ipv6_dst": switch.vip, "eth_dst": mac}
    (leaving,) = switch.table.send(question, CLIENT_PORT)
    assert leaving.port == CLIENT_PORT
    assert leaving.packet == {
        **question,
        "eth_src": mac,
        "eth_dst": asker,
        "ipv6_src": switch.vip,
        "ipv6_dst": switch.client,
        "icmpv6_type": ADVERTISEMENT,
        "nd_reserved": _SOLICITED | _OVERRIDE,
        "nd_options_type": 2,
        "ipv6_nd_tll": mac,
    }


def test_who_is_about_to_take_the_vip_is_told_that_it_is_in_use() -> None:
    switch = Switch(IPV6)
    (leaving,) = switch.table.send(neighbour(SOLICITATION, "::", switch.vip), CLIENT_PORT)
    assert leaving.port == CLIENT_PORT
    told = leaving.packet
    assert (told["eth_dst"], told["ipv6_dst"]) == ("33:33:00:00:00:01", "ff02::1")
    assert (told["icmpv6_type"], told["nd_reserved"]) == (ADVERTISEMENT, _OVERRIDE)


def test_nobody_may_claim_the_vip_by_neighbour_discovery() -> None:
    switch = Switch(IPV6)
    for port in (*SERVERS.values(), CLIENT_PORT):
        for sender in (switch.vip, switch.client, "fe80::1"):
            assert switch.table.send(neighbour(ADVERTISEMENT, sender, switch.vip), port) == []
        assert switch.table.send(neighbour(SOLICITATION, switch.vip, switch.client), port) == []


def test_neighbour_discovery_for_other_addresses_is_switched_normally() -> None:
    switch = Switch(IPV6)
    for kind in (SOLICITATION, ADVERTISEMENT):
        packet = neighbour(kind, switch.client, "fd00::1")
        assert switch.table.send(packet, CLIENT_PORT) == [Leaving(NORMAL, packet)]


def test_the_simulated_switch_refuses_what_the_real_one_refuses() -> None:
    """A target link-layer address in a solicitation: OFPBAC_MATCH_INCONSISTENT of Open vSwitch 3.1."""
    match = PARSER.OFPMatch(eth_type=0x86DD, ip_proto=ICMP6, icmpv6_type=SOLICITATION)
    actions = [PARSER.OFPActionSetField(icmpv6_type=136), PARSER.OFPActionSetField(ipv6_nd_tll="02:00:00:00:00:01")]
    instructions = [PARSER.OFPInstructionActions(OFP.OFPIT_APPLY_ACTIONS, actions)]
    with pytest.raises(SwitchRefused):
        FlowTable().apply([PARSER.OFPFlowMod(DESCRIPTION, match=match, instructions=instructions)])


# --- the whole ---
def test_everything_once_more_changes_nothing(switch: Switch) -> None:
    before = switch.table.content()
    switch.table.apply(steering.everything(switch.configuration, switch.ownership, ATTACHED))
    assert switch.table.content() == before


def test_everything_replaces_what_an_earlier_life_left_but_not_the_flows_of_others(switch: Switch) -> None:
    lldp = PARSER.OFPMatch(eth_type=0x88CC)
    foreign = PARSER.OFPFlowMod(DESCRIPTION, cookie=0xABC, table_id=0, priority=999, match=lldp, instructions=[])
    switch.hand_over("s1", "s3")
    switch.table.apply([foreign])
    fresh = Switch()
    fresh.table.apply([foreign])
    switch.table.apply(steering.everything(fresh.configuration, fresh.ownership, ATTACHED))
    assert switch.table.content() == fresh.table.content()


def test_a_held_close_goes_on_to_its_client_by_normal_switching() -> None:
    message = steering.forward(2, b"frame")
    assert (message.in_port, message.data) == (2, b"frame")
    assert [action.port for action in message.actions] == [OFP.OFPP_NORMAL]


def test_every_message_can_be_written_to_the_wire(switch: Switch) -> None:
    whole = list(steering.everything(switch.configuration, switch.ownership, ATTACHED))
    others = [*steering.meter(), steering.late_packets(), steering.forward(1, b"frame")]
    by_client = Switch(affinity="client")
    whole += steering.everything(by_client.configuration, by_client.ownership, {})
    for message in [*whole, *others]:
        message.serialize()
        assert message.buf[0] == OFP.OFP_VERSION
        assert int.from_bytes(message.buf[2:4], "big") == len(message.buf)


@pytest.mark.parametrize("vips", [[scenario.VIP], [scenario.VIP6], [scenario.VIP, scenario.VIP6, "fd00::65"]])
def test_vips_of_any_family_can_be_installed_together_or_alone(vips: list[str]) -> None:
    configuration = scenario.config(vips=vips)
    ownership = Ownership(configuration)
    table = FlowTable()
    table.apply(steering.everything(configuration, ownership, ATTACHED))
    for vip in vips:
        client = scenario.CLIENT6 if ":" in vip else scenario.CLIENT
        owner = ownership.server_for(scenario.four_tuple(40_000, client, vip))
        (leaving,) = table.send(to_vip(40_000, vip=vip, client=client), CLIENT_PORT)
        assert leaving.port == SERVERS[str(owner)]
