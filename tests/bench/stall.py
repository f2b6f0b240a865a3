"""How long a client waits: the owner of a 256 MiB download is killed at a random point, again and again.

Every run's digest is compared. The stall is the longest silence of what curl writes after the fault; the phases are the
controller's own, but for *detect*, which is from the kill to the controller's knowing.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from tests.bench.report import Report, spread
from topologies.lab import Lab
from topologies.watcher import digest_of, download

_SIZE = 256 << 20
_PHASES = ("detect", "fence", "prove", "resume")


def run(report: Report, options: dict[str, Any]) -> bool:
    """`kills` downloads; False when one was not whole."""
    kills, seed = options.get("kills", 100), options.get("seed", 1)
    source = random.Random(seed)
    stalls: list[float] = []
    phases: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    whole = 0
    with Lab() as lab:
        wanted = digest_of(lab.configuration.servers[0].docroot + "/object.bin")
        for number in range(kills):
            curl = download(lab, "c1")
            at = source.randrange(1, _SIZE - (8 << 20))
            curl.wait_for(at)
            owner = next(c["server"] for c in lab.connections() if c["state"] == "established")
            before = len(lab.takeovers())
            curl.fault_ns = lab.fail(owner, how="kill")
            status = curl.wait()
            takeover = lab.takeovers()[before]
            good = status == 0 and curl.digest == wanted
            whole += good
            stalls.append(curl.longest.seconds * 1000)
            phases["detect"].append((takeover["detected_at_ns"] - curl.fault_ns) / 1e6)
            for phase in _PHASES[1:]:
                phases[phase].append(takeover["phases_ms"][phase] or 0.0)
            if not good:
                print(f"kill {number} at {at} of {owner}: curl {status}, {takeover}", file=sys.stderr)
                assert curl.process.stderr is not None
                print(curl.process.stderr.read().decode(), file=sys.stderr)
            lab.heal(owner)
    rows = [{"": "stall ms", **spread(stalls)}]
    rows += [{"": f"{phase} ms", **spread(phases[phase])} for phase in _PHASES]
    report.table("stall", rows, whole_and_equal=f"{whole} of {kills}", seed=seed)
    return whole == kills
