"""Bundles at the switch: all connections of one bundle are one server's, whichever of its ports they use, both ways,
and a takeover moves them together. Judged by packets, as in `test_steering`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import steering
from controller.ownership import Ownership
from controller.ryu_adapter import OFP
from controller.steering import Attachment
from state import configuration
from state.datablock import FourTuple
from state.messages import CLOSE_MARK
from tests.unit import scenario
from tests.unit.flow_table import ACK, CONTROLLER, FIN, NORMAL, RST, SYN, FlowTable, Leaving, Packet

SERVERS = {"s1": 1, "s2": 2, "s3": 3}
ATTACHED = {name: Attachment(port, scenario.mac(port)) for name, port in SERVERS.items()}
FTP, RTSP, RTP, PASSIVE, ACTIVE = 21, 554, 5004, 41000, 20
TCP, UDP = 6, 17
GROUP = "239.1.2.3"

SERVICES = "{port: 80, protocol: http}, {port: 21, protocol: ftp}, {port: 554, protocol: rtsp}"


VIP6, CLIENT6, GROUP6 = "fd00::100", "fd00::1:7", "ff15::7"


class Switch:
    """Web, files and streams on a VIP of each family, three servers, each owning its home."""

    def __init__(self) -> None:
        text = scenario.text(3, slots=16, vips=(scenario.VIP, VIP6)).replace(
            "{port: 80, protocol: http, protected: true}", SERVICES
        )
        self.configuration = configuration.parse(text)
        self.ownership = Ownership(self.configuration)
        self.table = FlowTable()
        self.table.apply(steering.everything(self.configuration, self.ownership, ATTACHED))

    def owner(self, client: str, client_port: int, port: int) -> str:
        packed = scenario.four_tuple(client_port, client, vip_of(client))
        owner = self.ownership.server_for(FourTuple(packed.source, port, packed.destination, client_port))
        assert owner is not None
        return owner

    def reaches(self, client: str, client_port: int, port: int, protocol: int = TCP) -> list[int | str]:
        """The switch ports by which a client's packet leaves."""
        return [leaving.port for leaving in self.table.send(packet(client, client_port, port, protocol), 9)]

    def leaves(self, client: str, client_port: int, port: int, protocol: int = TCP) -> list[str]:
        """The servers that may send this to the client as the VIP."""
        answer = packet(client, client_port, port, protocol, back=True)
        return [name for name, at in SERVERS.items() if self.table.send(answer, at) == [Leaving(NORMAL, answer)]]


def vip_of(client: str) -> str:
    return VIP6 if ":" in client else scenario.VIP


def packet(
    client: str, client_port: int, port: int, protocol: int, *, back: bool = False, flags: int = ACK, mark: int = 0
) -> Packet:
    here, there = ("dst", "src") if back else ("src", "dst")
    name = "tcp" if protocol == TCP else "udp"
    ip, eth_type = ("ipv6", 0x86DD) if ":" in client else ("ipv4", 0x0800)
    fields: Packet = {
        "eth_type": eth_type,
        "eth_src": "0a:00:00:00:01:01",
        "eth_dst": "02:7a:0a:00:00:64",
        "ip_proto": protocol,
        "ip_dscp": mark,
        f"{ip}_{here}": client,
        f"{ip}_{there}": vip_of(client),
        f"{name}_{here}": client_port,
        f"{name}_{there}": port,
    }
    return fields | ({"tcp_flags": flags} if protocol == TCP else {})


@pytest.fixture(scope="module")
def installed() -> Switch:
    return Switch()


@given(
    client=st.one_of(st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="fd00:1::/64")).map(str),
    client_ports=st.lists(st.integers(1, 65535), min_size=4, max_size=4),
    passive=st.integers(40960, 45055),
)
def test_control_and_data_of_a_client_are_one_servers(client: str, client_ports: list[int], passive: int) -> None:
    switch = _cached()
    owner = switch.owner(client, client_ports[0], FTP)
    for client_port, port in zip(client_ports, (FTP, passive, ACTIVE, FTP), strict=True):
        assert switch.owner(client, client_port, port) == owner
        assert switch.reaches(client, client_port, port) == [SERVERS[owner]]
        assert switch.leaves(client, client_port, port) == [owner]


_switch: list[Switch] = []


def _cached() -> Switch:
    if not _switch:
        _switch.append(Switch())
    return _switch[0]


def test_clients_of_files_are_spread(installed: Switch) -> None:
    assert {installed.owner(f"10.0.1.{last}", 40000, FTP) for last in range(16)} == set(SERVERS)


def test_web_connections_of_one_client_are_still_spread(installed: Switch) -> None:
    assert {installed.owner(scenario.CLIENT, port, 80) for port in range(40_000, 40_032, 2)} == set(SERVERS)


def test_streams_are_all_one_servers_and_so_are_their_datagrams(installed: Switch) -> None:
    for last in range(1, 20):
        client = f"10.0.1.{last}" if last % 2 else f"fd00::1:{last}"
        assert installed.owner(client, 40_000 + last, RTSP) == "s1"
        assert installed.reaches(client, 40_000 + last, RTSP) == [1]
        for port in (RTP, RTP + 1):
            assert installed.reaches(client, 50_000 + last, port, UDP) == [1]
            assert installed.leaves(client, 50_000 + last, port, UDP) == ["s1"]


@pytest.mark.parametrize("group", [GROUP, GROUP6])
def test_only_the_owner_sends_to_a_group(installed: Switch, group: str) -> None:
    assert installed.leaves(group, 6000, RTP, UDP) == ["s1"]


@pytest.mark.parametrize(("port", "protocol"), [(RTP + 2, UDP), (PASSIVE, UDP), (RTP, TCP), (45056, TCP), (40959, TCP)])
def test_a_port_that_no_service_has_is_dropped_both_ways(installed: Switch, port: int, protocol: int) -> None:
    assert installed.reaches(scenario.CLIENT, 40_000, port, protocol) == []
    assert installed.leaves(scenario.CLIENT, 40_000, port, protocol) == []


def test_a_takeover_moves_all_of_a_bundle_with_as_few_messages_as_without(installed: Switch) -> None:
    switch = Switch()
    homes = switch.ownership.fail_over("s1", "s2")
    bundle = steering.hand_over(switch.configuration, homes, ATTACHED["s2"])
    assert len(bundle) == 3
    switch.table.apply(bundle)
    for client_port, port, protocol in ((40_001, RTSP, TCP), (50_000, RTP, UDP), (50_001, RTP + 1, UDP)):
        assert switch.reaches(scenario.CLIENT, client_port, port, protocol) == [2]
        assert switch.leaves(scenario.CLIENT, client_port, port, protocol) == ["s2"]
    assert switch.leaves(GROUP, 6000, RTP, UDP) == ["s2"]
    moved = [f"10.0.1.{last}" for last in range(16) if installed.owner(f"10.0.1.{last}", 1, FTP) == "s1"]
    assert moved
    for client in moved:
        assert {switch.owner(client, 1, port) for port in (FTP, ACTIVE, PASSIVE)} == {"s2"}
        assert [switch.reaches(client, 9, port) for port in (FTP, ACTIVE, PASSIVE)] == [[2], [2], [2]]


# --- the close gate ---
@pytest.mark.parametrize("port", [FTP, PASSIVE, 40960, 45055, ACTIVE, RTSP])
@pytest.mark.parametrize("flags", [FIN | ACK, RST])
@pytest.mark.parametrize("client", [scenario.CLIENT, CLIENT6])
def test_closing_a_data_connection_is_a_privilege_too(installed: Switch, port: int, flags: int, client: str) -> None:
    owner = SERVERS[installed.owner(client, 40_000, port)]
    unmarked = packet(client, 40_000, port, TCP, back=True, flags=flags)
    assert installed.table.send(unmarked, owner) == [Leaving(CONTROLLER, unmarked)]
    marked = {**unmarked, "ip_dscp": CLOSE_MARK}
    assert installed.table.send(marked, owner) == [Leaving(NORMAL, unmarked)]
    opening: dict[str, Any] = {**unmarked, "tcp_flags": SYN}
    assert Leaving(NORMAL, opening) in installed.table.send(opening, owner)


# --- the witness ---
@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
@pytest.mark.parametrize("port", [PASSIVE, 40960, 45055, ACTIVE])
@pytest.mark.parametrize("client", [scenario.CLIENT, CLIENT6])
def test_the_controller_is_shown_how_a_data_connection_begins(
    installed: Switch, port: int, flags: int, client: str
) -> None:
    owner = installed.owner(client, 40_000, port)
    coming = packet(client, 40_000, port, TCP, flags=flags)
    coming["eth_dst"] = next(vip.mac for vip in installed.configuration.vips if vip.address == vip_of(client))
    shown, sent_on = installed.table.send(coming, 9)
    assert shown == Leaving(CONTROLLER, coming)
    assert sent_on.port == SERVERS[owner]
    leaving = packet(client, 40_000, port, TCP, back=True, flags=flags)
    assert installed.table.send(leaving, SERVERS[owner]) == [Leaving(CONTROLLER, leaving), Leaving(NORMAL, leaving)]
    other = next(server for server in SERVERS if server != owner)
    assert installed.table.send(leaving, SERVERS[other]) == [], "behind the fence nothing is seen"


@pytest.mark.parametrize("port,flags", [(FTP, SYN), (RTSP, SYN | ACK), (80, SYN), (PASSIVE, ACK), (ACTIVE, ACK)])
def test_nothing_else_is_shown(installed: Switch, port: int, flags: int) -> None:
    client = scenario.CLIENT
    owner = SERVERS[installed.owner(client, 40_000, port)]
    coming = packet(client, 40_000, port, TCP, flags=flags)
    leaving = packet(client, 40_000, port, TCP, back=True, flags=flags)
    seen = installed.table.send(coming, 9) + installed.table.send(leaving, owner)
    assert [where.port for where in seen] == [owner, NORMAL]


def test_every_message_can_be_written_to_the_wire(installed: Switch) -> None:
    for message in steering.everything(installed.configuration, installed.ownership, ATTACHED):
        message.serialize()
        assert message.buf[0] == OFP.OFP_VERSION


def test_a_service_of_its_own_affinity_needs_flows_for_one_slot_only(installed: Switch) -> None:
    first = steering.slot(installed.configuration, installed.ownership, (0, 0))
    second = steering.slot(installed.configuration, installed.ownership, (0, 1))
    # Both directions of the control port and of the two UDP ports, and ICMP's.
    assert len(first) - len(second) == 2 * 2 + 2
