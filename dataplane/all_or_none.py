"""Bundles under takeover: which connections stand or fall together (claims 6, 17). Pure.

A bundle resumes when every one of its TCP connections has proven itself, and if one cannot be resumed, none is. What a
bundle consists of is in its control connection's block; a block of its own has each part.

    the control connection lists it, and its block is here     it must prove itself
    the control connection lists it, and there is no block     nobody can resume it, nor the others
    its block is here, and the control connection lists no     it had ended, and its owner only had not said so yet
    such part

A part that was closed by both sides, or of which nothing but the close was left, cannot fail: its client may well have
forgotten it. The others do not wait for it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from dataplane.judge import Doubt, Proof
from dataplane.prover import Key
from state.datablock import FourTuple
from state.sections import CONTROL, BundleSection, StreamSection

PART_MISSING = "a part of its bundle has no checkpoint"
CONTROL_OVER = "its bundle's control connection is over"


@dataclass(frozen=True)
class Candidate:
    """One connection of a bundle that could be taken over."""

    key: Key
    connection: FourTuple
    section: BundleSection
    stream: StreamSection

    @property
    def at_its_end(self) -> bool:
        """Both sides have closed it, and all data was acknowledged."""
        stream = self.stream
        return stream.closing and stream.input_ended and stream.acked == stream.end


@dataclass(eq=False)
class Group:
    """The connections of one bundle. `doom`, once it is there, is why none of them can be resumed."""

    control: Key | None
    roles: dict[Key, str] = field(default_factory=dict)
    """Of all, the control connection's first."""
    closing: set[Key] = field(default_factory=set)
    """Data connections whose client may have closed them for good: it is no harm if it has."""
    at_their_end: set[Key] = field(default_factory=set)
    proofs: dict[Key, Proof] = field(default_factory=dict)
    doom: str | None = None

    def may_end(self, key: Key, doubt: Doubt) -> bool:
        """Is it no reason to give the others up that this connection's client knows of none, or proves nothing?"""
        return key in (self.closing if doubt is Doubt.GONE else self.at_their_end)

    def leave(self, key: Key) -> None:
        """This one needs no takeover. Without the control connection the others are of no use."""
        self.roles.pop(key, None)
        if key == self.control:
            self.doom = self.doom or CONTROL_OVER

    @property
    def complete(self) -> bool:
        """Every connection that must be proven is."""
        return self.doom is None and self.roles.keys() <= self.proofs.keys() | self.at_their_end

    def standing(self) -> list[tuple[Key, Proof]]:
        """Those that are proven, the control connection first."""
        return [(key, self.proofs[key]) for key in self.roles if key in self.proofs]


def groups(candidates: Iterable[Candidate], alone: Container[str] = ()) -> tuple[dict[Key, Group], list[Key]]:
    """The bundles by their connections' keys, and the connections that had ended. A bundle that has no other TCP
    connection than its control connection is none.

    `alone`: ids of connections that are here and say nothing of a bundle. A control connection is one when its last
    part is over.
    """
    found: dict[Key, Group] = {}
    over: list[Key] = []
    controls: dict[str, Candidate] = {}
    parts: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.section.role == CONTROL:
            controls[candidate.section.id] = candidate
        else:
            parts.setdefault(candidate.section.id, []).append(candidate)
    for name, control in controls.items():
        listed = _listed(control)
        here = parts.pop(name, [])
        over += [part.key for part in here if part.connection not in listed]
        here = [part for part in here if part.connection in listed]
        group = Group(control.key, {control.key: CONTROL})
        if len(here) < len(listed):
            group.doom = PART_MISSING
        if listed:
            _gather(group, here, found)
            found[control.key] = group
    for name, here in parts.items():
        if name in alone:
            over += [part.key for part in here]
            continue
        _gather(Group(None, doom=PART_MISSING), here, found)
    return found, over


def _listed(control: Candidate) -> set[FourTuple]:
    """The TCP connections that the control connection's block names."""
    return {
        FourTuple(
            control.connection.source,
            part.local_port,
            ipaddress.ip_address(part.remote_address).packed,
            part.remote_port,
        )
        for part in control.section.parts
        if part.transport == "tcp" and part.remote_address
    }


def _gather(group: Group, parts: list[Candidate], found: dict[Key, Group]) -> None:
    for part in parts:
        group.roles[part.key] = part.section.role
        if part.stream.closing:
            group.closing.add(part.key)
        if part.at_its_end:
            group.at_their_end.add(part.key)
        found[part.key] = group
