"""One switch, servers s1.. that hold the virtual IP, clients c1...

    c1 --+                  +-- s1   10.0.0.11, VIP 10.0.0.100 on lo
    c2 --+-- switch tko0 ---+-- s2   10.0.0.12, VIP 10.0.0.100 on lo

With Mininet alone (the controller and the agents are then yours to start):

    mn --custom topologies/vip.py --topo vip,2,1 --switch ovs,datapath=user --controller remote

The switch needs the user-space datapath where the kernel has no Open vSwitch. Hosts on veth must then compute checksums
themselves (`tx off`), or ping works and TCP does not. Servers hold the VIP as in direct routing: a /32 on lo that they
do not answer ARP for.
"""

from __future__ import annotations

from typing import Any

from mininet.node import Node
from mininet.topo import Topo

VIP = "10.0.0.100"
BRIDGE = "tko0"
PREFIX = 24


def server_address(number: int) -> str:
    return f"10.0.0.{10 + number}"


def client_address(number: int) -> str:
    return f"10.0.0.{200 + number}"


def server_port(name: str) -> str:
    """The switch's port towards a server."""
    return f"{BRIDGE}-{name}"


class PlainHost(Node):  # type: ignore[misc]
    """A host whose TCP works through the user-space switch."""

    def config(self, **parameters: Any) -> Any:
        result = super().config(**parameters)
        self.cmd(f"ethtool -K {self.defaultIntf()} tx off")
        return result


class VipServer(PlainHost):
    """A server: the VIPs on lo, silent about them in ARP."""

    def config(self, vips: tuple[str, ...] = (VIP,), **parameters: Any) -> Any:
        result = super().config(**parameters)
        # On this interface only: elsewhere (a management link with a peer address) the host must answer.
        for setting in ("arp_ignore=1", "arp_announce=2"):
            self.cmd(f"sysctl -qw net.ipv4.conf.{self.defaultIntf()}.{setting}")
        for vip in vips:
            self.cmd(f"ip address add {vip}/{128 if ':' in vip else 32} dev lo")
        return result


class VipTopo(Topo):  # type: ignore[misc]
    """`servers` servers and `clients` clients on one switch."""

    def build(self, servers: int = 2, clients: int = 1, **_: Any) -> None:
        self.addSwitch(BRIDGE, dpid="1")
        for number in range(1, int(servers) + 1):
            name = f"s{number}"
            address = f"{server_address(number)}/{PREFIX}"
            self.addHost(name, cls=VipServer, ip=address, mac=f"02:00:00:00:01:{number:02x}")
            self.addLink(name, BRIDGE, intfName1=f"{name}-eth0", intfName2=server_port(name))
        for number in range(1, int(clients) + 1):
            name = f"c{number}"
            address = f"{client_address(number)}/{PREFIX}"
            self.addHost(name, cls=PlainHost, ip=address, mac=f"02:00:00:00:02:{number:02x}")
            self.addLink(name, BRIDGE, intfName1=f"{name}-eth0", intfName2=f"{BRIDGE}-{name}")


topos = {"vip": VipTopo}
