"""How long a client waits: the owner of a 256 MiB download dies at a random point, again and again, in every way.

Every run's digest is compared. The stall is the longest silence of what curl writes after the fault; the phases are the
controller's own, but for *detect*, which is from the fault to the controller's knowing.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from tests.bench.report import Report, progress, spread
from topologies.lab import HOWS, Lab
from topologies.watcher import digest_of, download

KILLS = 100
"""As many when none are asked for."""
_SIZE = 256 << 20
_PHASES = ("detect", "fence", "prove", "resume")


def run(report: Report, options: dict[str, Any]) -> bool:
    """`kills` downloads by SIGKILL, a quarter as many by each other way; False when one was not whole."""
    kills, seed = options.get("kills") or KILLS, options.get("seed", 1)
    hows = options.get("how") or HOWS
    good = True
    with Lab() as lab:
        wanted = digest_of(lab.configuration.servers[0].docroot + "/object.bin")
        for how in hows:
            deaths = kills if how == "kill" else max(1, kills // 4)
            good &= _deaths(report, lab, how, deaths, wanted, seed)
    return good


def _deaths(report: Report, lab: Lab, how: str, deaths: int, wanted: str, seed: int) -> bool:
    source = random.Random(f"{seed} {how}")
    stalls: list[float] = []
    phases: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    whole = 0
    for number in range(deaths):
        curl = download(lab, "c1")
        at = source.randrange(1, _SIZE - (8 << 20))
        curl.wait_for(at)
        owner = next(c["server"] for c in lab.connections() if c["state"] == "established")
        before = len(lab.takeovers())
        curl.fault_ns = lab.fail(owner, how=how)
        status = curl.wait()
        takeover = lab.takeovers()[before]
        good = status == 0 and curl.digest == wanted
        whole += good
        stalls.append(curl.longest.seconds * 1000)
        phases["detect"].append((takeover["detected_at_ns"] - curl.fault_ns) / 1e6)
        for phase in _PHASES[1:]:
            phases[phase].append(takeover["phases_ms"][phase] or 0.0)
        if not good:
            print(f"{how} {number} at {at} of {owner}: curl {status}, {takeover}", file=sys.stderr)
            assert curl.process.stderr is not None
            print(curl.process.stderr.read().decode(), file=sys.stderr)
        progress(f"{how} {number + 1} of {deaths}: {stalls[-1]:.1f} ms")
        lab.heal(owner)
    rows = [{how: "stall ms", **spread(stalls)}]
    rows += [{how: f"{phase} ms", **spread(phases[phase])} for phase in _PHASES]
    report.table(f"stall {how}", rows, whole_and_equal=f"{whole} of {deaths}", seed=seed)
    return whole == deaths
