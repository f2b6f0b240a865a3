"""One switch, servers s1.. that hold the virtual IP, clients c1...

    c1 --+                  +-- s1   10.0.0.11, fd00::11, VIPs 10.0.0.100 and fd00::100 on lo
    c2 --+-- switch tko0 ---+-- s2   10.0.0.12, fd00::12, VIPs 10.0.0.100 and fd00::100 on lo

With Mininet alone (the controller and the agents are then yours to start):

    mn --custom topologies/vip.py --topo vip,2,1 --switch ovs,datapath=user --controller remote

The switch needs the user-space datapath where the kernel has no Open vSwitch. Hosts on veth must then compute checksums
themselves (`tx off`), or ping works and TCP does not. Servers hold the VIPs as in direct routing: a /32 on lo that they
do not answer ARP for, and a /128 on lo, which Linux does not advertise on other interfaces.

Every host has an IPv6 address besides its IPv4 address, with the same last number. It has no duplicates to detect and
no router to ask, so it is silent until somebody speaks to it.
"""

from __future__ import annotations

from typing import Any

from mininet.node import Node
from mininet.topo import Topo

VIP = "10.0.0.100"
VIP6 = "fd00::100"
BRIDGE = "tko0"
PREFIX = 24
PREFIX6 = 64


def server_address(number: int) -> str:
    return f"10.0.0.{10 + number}"


def client_address(number: int) -> str:
    return f"10.0.0.{200 + number}"


def address6(address: str) -> str:
    """The IPv6 address of the host that has this IPv4 address."""
    return f"fd00::{address.rpartition('.')[2]}"


def server_port(name: str) -> str:
    """The switch's port towards a server."""
    return f"{BRIDGE}-{name}"


class PlainHost(Node):  # type: ignore[misc]
    """A host whose TCP works through the user-space switch."""

    def startShell(self, *arguments: Any, **options: Any) -> None:  # Mininet's name
        super().startShell(*arguments, **options)
        # Before the host has an interface: what it is born with, it sends at once.
        for setting in ("accept_dad=0", "router_solicitations=0", "accept_ra=0"):
            self.cmd(f"sysctl -qw net.ipv6.conf.default.{setting}")

    def config(self, **parameters: Any) -> Any:
        result = super().config(**parameters)
        self.cmd(f"ethtool -K {self.defaultIntf()} tx off")
        # Last: a new MAC, which takes the interface down, would take the address away.
        self.cmd(f"ip address add {address6(self.IP())}/{PREFIX6} dev {self.defaultIntf()}")
        return result


class VipServer(PlainHost):
    """A server: the VIPs on lo, silent about them in ARP and Neighbour Discovery."""

    def config(self, vips: tuple[str, ...] = (VIP, VIP6), **parameters: Any) -> Any:
        result = super().config(**parameters)
        # On this interface only: elsewhere (a management link with a peer address) the host must answer.
        for setting in ("arp_ignore=1", "arp_announce=2"):
            self.cmd(f"sysctl -qw net.ipv4.conf.{self.defaultIntf()}.{setting}")
        for vip in vips:
            self.cmd(f"ip address add {vip}/{128 if ':' in vip else 32} dev lo")
        return result


class VipTopo(Topo):  # type: ignore[misc]
    """`servers` servers and `clients` clients on one switch."""

    def build(self, servers: int = 2, clients: int = 1, vips: tuple[str, ...] = (VIP, VIP6), **_: Any) -> None:
        self.addSwitch(BRIDGE, dpid="1")
        for number in range(1, int(servers) + 1):
            name = f"s{number}"
            address = f"{server_address(number)}/{PREFIX}"
            self.addHost(name, cls=VipServer, ip=address, mac=f"02:00:00:00:01:{number:02x}", vips=vips)
            self.addLink(name, BRIDGE, intfName1=f"{name}-eth0", intfName2=server_port(name))
        for number in range(1, int(clients) + 1):
            name = f"c{number}"
            address = f"{client_address(number)}/{PREFIX}"
            self.addHost(name, cls=PlainHost, ip=address, mac=f"02:00:00:00:02:{number:02x}")
            self.addLink(name, BRIDGE, intfName1=f"{name}-eth0", intfName2=f"{BRIDGE}-{name}")


topos = {"vip": VipTopo}
