"""What stands in the switch, judged by the packets that it lets through. No test looks at a flow: each asks a simulated
OpenFlow pipeline where a packet leaves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import steering
from controller.ownership import Ownership
from controller.ryu_adapter import DESCRIPTION, OFP, PARSER
from controller.steering import Attachment
from state import configuration
from state.datablock import FourTuple
from state.errors import ConfigurationError
from state.messages import CLOSE_MARK
from tests.unit import scenario
from tests.unit.flow_table import (
    ACK,
    CONTROLLER,
    FIN,
    ICMP,
    NORMAL,
    PSH,
    RST,
    SYN,
    FlowTable,
    Leaving,
    arp,
    from_vip,
    to_vip,
)

CLIENT_PORT, SERVERS = scenario.CLIENT_SWITCH_PORT, {"s1": 1, "s2": 2, "s3": 3}
ATTACHED = {name: Attachment(port, scenario.mac(port)) for name, port in SERVERS.items()}
EVERY_SLOT = range(40_000, 40_016)


class Switch:
    """A switch with everything installed for three servers, each owning its home."""

    def __init__(self, attached: dict[str, Attachment] = ATTACHED, **options: object) -> None:
        self.configuration = scenario.config(3, **options)
        self.ownership = Ownership(self.configuration)
        self.table = FlowTable()
        self.table.apply(steering.everything(self.configuration, self.ownership, attached))

    def owner(self, client_port: int, client: str = scenario.CLIENT) -> str:
        owner = self.ownership.server_for(scenario.four_tuple(client_port, client))
        assert owner is not None
        return owner

    def from_client(self, client_port: int, **fields: object) -> list[Leaving]:
        return self.table.send(to_vip(client_port, **fields), CLIENT_PORT)

    def from_server(self, name: str, client_port: int, **fields: object) -> list[Leaving]:
        return self.table.send(from_vip(client_port, **fields), SERVERS[name])

    def hand_over(self, server: str, heir: str | None) -> list[object]:
        homes = self.ownership.homes_of(server) if heir is None else self.ownership.fail_over(server, heir)
        bundle = steering.hand_over(self.configuration, homes, ATTACHED[heir] if heir else None)
        self.table.apply(bundle)
        return bundle


@pytest.fixture
def switch() -> Switch:
    return Switch()


# --- the way in ---
def test_a_syn_reaches_the_owner_of_its_slot_with_the_owners_mac(switch: Switch) -> None:
    reached = set()
    for client_port in EVERY_SLOT:
        owner = switch.owner(client_port)
        (leaving,) = switch.from_client(client_port)
        assert leaving.port == SERVERS[owner]
        assert leaving.packet == {**to_vip(client_port), "eth_dst": ATTACHED[owner].mac}
        reached.add(owner)
    assert reached == set(SERVERS)


def test_every_client_port_has_exactly_one_slot(switch: Switch) -> None:
    for client_port in (1, 2, 1023, 32_767, 32_768, 65_534, 65_535):
        (leaving,) = switch.from_client(client_port)
        assert leaving.port == SERVERS[switch.owner(client_port)]


def test_a_port_of_the_vip_without_a_service_is_dropped_both_ways(switch: Switch) -> None:
    assert switch.from_client(40_000, port=22) == []
    assert switch.from_server(switch.owner(40_000), 40_000, port=22) == []


def test_ping_reaches_the_owner_of_the_first_slot_and_its_answer_leaves(switch: Switch) -> None:
    owner = switch.ownership.owner[switch.ownership.home[0, 0]]
    ping = {"eth_type": 0x0800, "ip_proto": ICMP, "ip_dscp": 0, "eth_dst": "02:7a:0a:00:00:64"}
    there = {**ping, "ipv4_src": scenario.CLIENT, "ipv4_dst": scenario.VIP}
    back = {**ping, "ipv4_src": scenario.VIP, "ipv4_dst": scenario.CLIENT}
    assert [leaving.port for leaving in switch.table.send(there, CLIENT_PORT)] == [SERVERS[owner]]
    assert [leaving.port for leaving in switch.table.send(back, SERVERS[owner])] == [NORMAL]


def test_traffic_that_is_not_the_vips_is_switched_normally(switch: Switch) -> None:
    packet = to_vip(40_000, vip="10.0.0.1", port=22)
    assert switch.table.send(packet, CLIENT_PORT) == [Leaving(NORMAL, packet)]


def test_a_home_without_an_attached_owner_drops_both_ways() -> None:
    switch = Switch({"s2": ATTACHED["s2"]})
    alone = {client_port: switch.owner(client_port) for client_port in EVERY_SLOT}
    for client_port, owner in alone.items():
        assert len(switch.from_client(client_port)) == (owner == "s2")
        assert len(switch.from_server(owner, client_port)) == (owner == "s2")


# --- the fence ---
def test_only_the_owners_answer_leaves(switch: Switch) -> None:
    for client_port in EVERY_SLOT:
        for name in SERVERS:
            expected = [Leaving(NORMAL, from_vip(client_port))] if name == switch.owner(client_port) else []
            assert switch.from_server(name, client_port) == expected


def test_a_client_that_claims_to_be_the_vip_is_dropped(switch: Switch) -> None:
    for client_port in EVERY_SLOT:
        assert switch.table.send(from_vip(client_port), CLIENT_PORT) == []


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
    assert leaving == [Leaving(CONTROLLER, from_vip(40_000, flags=flags))]
    assert switch.table.caught(steering.COOKIE_GATE) == 1


@pytest.mark.parametrize("flags", [FIN | ACK, RST, ACK, PSH | ACK, SYN | ACK])
def test_a_marked_packet_leaves_and_the_mark_is_stripped(switch: Switch, flags: int) -> None:
    leaving = switch.from_server(switch.owner(40_000), 40_000, flags=flags, mark=CLOSE_MARK)
    assert leaving == [Leaving(NORMAL, from_vip(40_000, flags=flags, mark=0))]


@pytest.mark.parametrize("flags", [ACK, PSH | ACK, SYN | ACK])
def test_what_does_not_close_needs_no_mark_and_keeps_another_one(switch: Switch, flags: int) -> None:
    for mark in (0, 46):
        leaving = switch.from_server(switch.owner(40_000), 40_000, flags=flags, mark=mark)
        assert leaving == [Leaving(NORMAL, from_vip(40_000, flags=flags, mark=mark))]


def test_the_mark_opens_no_way_around_the_fence(switch: Switch) -> None:
    stranger = next(name for name in SERVERS if name != switch.owner(40_000))
    for flags in (FIN | ACK, RST, ACK):
        assert switch.from_server(stranger, 40_000, flags=flags, mark=CLOSE_MARK) == []


def test_an_unprotected_service_closes_as_it_likes() -> None:
    switch = Switch(protected=False)
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
    moved = (0, 0)
    switch.ownership.home[moved] = "s3"
    switch.table.apply(steering.slot(switch.configuration, switch.ownership, moved))
    for client_port, old in before.items():
        new = "s3" if switch.ownership.slot(scenario.four_tuple(client_port)) == moved else old
        assert [leaving.port for leaving in switch.from_client(client_port)] == [SERVERS[new]]
        assert [name for name in SERVERS if switch.from_server(name, client_port)] == [new]


# --- affinity ---
def test_by_client_all_connections_of_an_address_have_one_owner() -> None:
    switch = Switch(affinity="client", slots=16)
    reached = set()
    for last in range(1, 33):
        client = f"10.0.1.{last}"
        ports = {switch.from_client(client_port, client=client)[0].port for client_port in EVERY_SLOT}
        owner = switch.owner(40_000, client)
        assert ports == {SERVERS[owner]}
        assert [name for name in SERVERS if switch.from_server(name, 40_000, client=client)] == [owner]
        reached |= ports
    assert reached == set(SERVERS.values())


@settings(max_examples=50, deadline=None)
@given(
    client_port=st.integers(1, 65_535),
    client=st.ip_addresses(v=4).map(str),
    affinity=st.sampled_from(["connection", "client"]),
    slots=st.sampled_from([1, 2, 64]),
)
def test_switch_and_ownership_agree_on_the_slot_of_any_connection(
    client_port: int, client: str, affinity: str, slots: int
) -> None:
    switch = _switch_for(affinity, slots)
    connection: FourTuple = scenario.four_tuple(client_port, client)
    owner = switch.ownership.server_for(connection)
    assert [leaving.port for leaving in switch.from_client(client_port, client=client)] == [SERVERS[str(owner)]]


_switches: dict[tuple[str, int], Switch] = {}


def _switch_for(affinity: str, slots: int) -> Switch:
    if (affinity, slots) not in _switches:
        _switches[affinity, slots] = Switch(affinity=affinity, slots=slots)
    return _switches[affinity, slots]


# --- ARP ---
def test_the_switch_itself_answers_who_has_the_vip(switch: Switch) -> None:
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
        assert switch.table.consulted >= let_out - {"eth_type", "ip_proto", "ipv4_src", "tcp_src"}


def test_a_packet_to_a_home_without_an_owner_is_dropped_for_the_same_fields_as_it_is_sent_on(switch: Switch) -> None:
    assert switch.from_client(40_000)
    sent_on = set(switch.table.consulted)
    switch.hand_over(switch.owner(40_000), None)
    assert switch.from_client(40_000) == []
    assert switch.table.consulted == sent_on


def test_nobody_may_claim_the_vip_by_arp(switch: Switch) -> None:
    for port in (*SERVERS.values(), CLIENT_PORT):
        assert switch.table.send(arp(2, scenario.VIP, scenario.CLIENT), port) == []
        assert switch.table.send(arp(1, scenario.VIP, scenario.CLIENT), port) == []


def test_arp_for_other_addresses_is_switched_normally(switch: Switch) -> None:
    packet = arp(1, scenario.CLIENT, "10.0.0.1")
    assert switch.table.send(packet, CLIENT_PORT) == [Leaving(NORMAL, packet)]


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
    whole = steering.everything(switch.configuration, switch.ownership, ATTACHED)
    others = [*steering.meter(), steering.late_packets(), steering.forward(1, b"frame")]
    by_client = Switch(affinity="client")
    whole += steering.everything(by_client.configuration, by_client.ownership, {})
    for message in [*whole, *others]:
        message.serialize()
        assert message.buf[0] == OFP.OFP_VERSION
        assert int.from_bytes(message.buf[2:4], "big") == len(message.buf)


def test_a_configuration_that_passes_the_check_can_be_installed() -> None:
    six = scenario.text().replace("10.0.0.", "fd00::")
    try:
        accepted = configuration.parse(six)
    except ConfigurationError:
        return  # refused in time, with a sentence
    for message in steering.everything(accepted, Ownership(accepted), {}):
        message.serialize()
