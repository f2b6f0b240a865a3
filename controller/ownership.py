"""Who owns what: slots point to homes, homes have owners.

A VIP's connections are spread over **slots** by bits of the client's port or address, as their service's *affinity*
says. A bundle's connections are all in one slot: their affinity looks at the address only, or at nothing. Each slot
points to a **home**, and there is one home per configured server. A home is *owned* by exactly one live server:
normally its own. When a server dies, every home that it owns gets another owner, which costs one group and one permit
per home however many slots and connections there are. When it comes back, it gets its own home back with the slots that
have no connection; the slots that have some move to a home of whoever serves them.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from state.configuration import Configuration, Vip
from state.datablock import FourTuple

SlotId = tuple[int, int]
"""(index of the VIP in the configuration, number of the slot)"""


def slot_of(vip: Vip, connection: FourTuple) -> int:
    """The slot of a connection. Bit 0 of the port is no part of the key: Linux picks ports of one parity."""
    affinity = vip.affinity_of(vip.service(connection.source_port))
    if affinity == "service":
        return 0
    if affinity == "client":
        return connection.destination[-1] & (vip.slots - 1)
    return (connection.destination_port >> 1) & (vip.slots - 1)


@dataclass(frozen=True)
class SlotMove:
    slot: SlotId
    home: str


class _Saved(msgspec.Struct):
    owners: dict[str, str]
    slots: list[list[str]]
    vips: list[str] = []
    """Their addresses, as many as rows of slots."""


class Ownership:
    """The two maps, and what changes in them. Pure: the caller turns changes into flow and group mods."""

    def __init__(self, configuration: Configuration) -> None:
        self._names = [server.name for server in configuration.servers]
        self._vips = configuration.vips
        self._packed = [ipaddress.ip_address(vip.address).packed for vip in configuration.vips]
        self.owner: dict[str, str] = {name: name for name in self._names}
        """Owner of each home."""
        self.home: dict[SlotId, str] = {}
        """Home of each slot."""
        for slot in self.all_slots():
            self.home[slot] = self.first_home(slot)
        self.unsure: set[SlotId] = set()
        """Slots of which nothing could be restored: they belong to whoever has connections in them."""

    def frozen(self) -> Ownership:
        """What it is now: it will not change."""
        twin = copy.copy(self)
        twin.owner, twin.home = dict(self.owner), dict(self.home)
        return twin

    def all_slots(self) -> list[SlotId]:
        return [(v, k) for v, vip in enumerate(self._vips) for k in range(vip.slots)]

    def first_home(self, slot: SlotId) -> str:
        """Where the slot belongs when everybody is well."""
        return self._names[slot[1] % len(self._names)]

    def homes_of(self, server: str) -> list[str]:
        return [home for home, owner in self.owner.items() if owner == server]

    def slots_of(self, server: str) -> list[SlotId]:
        return [slot for slot, home in self.home.items() if self.owner[home] == server]

    def server_for(self, connection: FourTuple) -> str | None:
        """The owner of a connection's slot; None when its source is no VIP."""
        slot = self.slot(connection)
        return self.owner[self.home[slot]] if slot is not None else None

    def slot(self, connection: FourTuple) -> SlotId | None:
        for v, packed in enumerate(self._packed):
            if packed == connection.source:
                return (v, slot_of(self._vips[v], connection))
        return None

    def fail_over(self, server: str, heir: str) -> list[str]:
        """Everything that `server` owned is `heir`'s. Returns the homes that changed hands."""
        homes = self.homes_of(server)
        for home in homes:
            self.owner[home] = heir
        return homes

    def give_back(self, server: str, busy: Iterable[SlotId]) -> list[SlotMove]:
        """`server` owns its home again. Busy slots in it stay with who served them; returns the slots that moved.

        Idle slots that belong to this server and had moved elsewhere come back.
        """
        taken, serving, moves = set(busy), self.owner[server], []
        for slot, home in self.home.items():
            if home == server and slot in taken and serving != server:
                moves.append(SlotMove(slot, serving if self.owner[serving] == serving else home))
            elif home != server and self.first_home(slot) == server and slot not in taken:
                moves.append(SlotMove(slot, server))
        self.owner[server] = server
        for move in moves:
            self.home[move.slot] = move.home
        return moves

    def follow(self, slot: SlotId, server: str) -> SlotMove | None:
        """Point a slot to a home that `server` owns. None when it owns none."""
        homes = self.homes_of(server)
        if not homes:
            return None
        move = SlotMove(slot, server if server in homes else homes[0])
        self.home[slot] = move.home
        return move

    def encode(self) -> bytes:
        """For the store, so that a controller that starts again knows."""
        slots = [[self.home[v, k] for k in range(vip.slots)] for v, vip in enumerate(self._vips)]
        return msgspec.msgpack.encode(_Saved(self.owner, slots, [vip.address for vip in self._vips]))

    def restore(self, saved: bytes) -> bool:
        """Take what was saved, as far as the configuration still has it. False, and nothing changed, when it cannot be
        read."""
        try:
            state = msgspec.msgpack.decode(saved, type=_Saved)
        except msgspec.DecodeError:
            return False
        known = set(self._names)
        self.owner |= {home: owner for home, owner in state.owners.items() if home in known and owner in known}
        rows = dict(zip(state.vips, state.slots, strict=False))
        self.unsure.clear()
        for v, vip in enumerate(self._vips):
            row = rows.get(vip.address, [])
            for k in range(vip.slots):
                if len(row) == vip.slots and row[k] in known:
                    self.home[v, k] = row[k]
                else:
                    self.unsure.add((v, k))
        return True
