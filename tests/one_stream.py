"""What came to a client over RTP is one stream, whoever sent it: nothing twice, nothing missing but in the stall."""

from __future__ import annotations

import itertools

from topologies import Lab
from topologies.rtp_watcher import Seen

_TICKS = 90_000
_TOLERANCE_NS = 60_000_000
"""How late a packet may be sent or noticed on a busy machine, when two clocks are compared."""


def mac_of(lab: Lab, server: str) -> str:
    asked = lab.run(server, ["cat", f"/sys/class/net/{server}-eth0/address"], capture_output=True, text=True)
    return str(asked.stdout.strip())


def lost_and_found(seen: list[Seen]) -> int:
    """Packets missing in what came. One source, numbers that rise, times that do not fall."""
    assert len({each.packet.ssrc for each in seen}) == 1
    missing = 0
    for before, after in itertools.pairwise(seen):
        step = (after.packet.seq - before.packet.seq) % 2**16
        assert 0 < step < 2**15, "a packet came again, or out of order"
        assert (after.packet.timestamp - before.packet.timestamp) % 2**32 < 2**31
        missing += step - 1
    return missing


def handover(lab: Lab, seen: list[Seen], death_ns: int, old: str) -> tuple[Seen, Seen]:
    """The last packet of the server that died, and the first of its heir."""
    old_mac = mac_of(lab, old)
    return next(
        (before, after)
        for before, after in itertools.pairwise(seen)
        if before.source_mac == old_mac != after.source_mac and after.at_ns > death_ns
    )


def assert_only_the_stall_is_missing(lab: Lab, seen: list[Seen], death_ns: int, old: str) -> None:
    """All that is missing is what was due in the silence after the death; then only the heir is heard."""
    before, after = handover(lab, seen, death_ns, old)
    assert lost_and_found(seen) == (after.packet.seq - before.packet.seq) % 2**16 - 1
    skipped_ns = (after.packet.timestamp - before.packet.timestamp) % 2**32 * 10**9 // _TICKS
    assert skipped_ns <= after.at_ns - before.at_ns + _TOLERANCE_NS
    old_mac = mac_of(lab, old)
    silent_since = [each.at_ns for each in seen if each.source_mac != old_mac and each.at_ns > death_ns]
    assert not [each for each in seen if each.source_mac == old_mac and each.at_ns > silent_since[0]]
