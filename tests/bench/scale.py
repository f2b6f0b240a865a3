"""Many connections: what a takeover of thousands costs, and how many checkpoints per second the controller takes in.

The clients are one process with as many real kernel sockets, each of which checks every byte (`topologies.crowd`). All
their connections go to one server, which is killed. *Total* is from the kill until the last connection is recreated and
its protocol told; the time per connection is counted from the fence on. Afterwards every idle connection is used again,
all at once.

The intake is measured with a process that speaks to the real controller as a server's agent and sends real checkpoints
as fast as they are stored. A live backup receives all of them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.bench.report import Report, spread
from topologies.crowd import Crowd, ports_of
from topologies.lab import Lab

_CROWDS = ((100, 0), (1000, 0), (5000, 0), (5000, 500))
"""Idle connections and active downloads."""
_DOWNLOAD_RATE = 64 * 1024
_TAKEOVER_SECONDS = 20.0
_SAMPLE_SECONDS = 0.5
_EVERY_SECOND = "OFPFlowStatsRequest"
"""Asked of the switch whatever happens."""


def run(report: Report, options: dict[str, Any]) -> bool:
    """False when a connection was reset, or a client got anything but the very bytes."""
    rows, memory, good = [], [], True
    for idle, downloads in _CROWDS:
        row, kib, survived = _takeover(idle, downloads)
        rows.append(row)
        memory.append(kib)
        good &= survived
    report.table("scale", rows)
    report.table("memory, KiB per connection", memory)
    report.table("intake of checkpoints", [_intake(options.get("seconds", 10.0))])
    return good


# --- one death ---
def _takeover(idle: int, downloads: int) -> tuple[dict[str, Any], dict[str, Any], bool]:
    with Lab() as lab:
        ports = ports_of(lab, "s1")
        pids = {"owner": lab.pid("s1"), "controller": lab.pid("controller"), "backup": lab.pid("s2")}
        before = {part: _private_kib(pid) for part, pid in pids.items()}
        with Crowd(
            lab,
            "c1",
            idle=itertools.islice(ports, idle),
            downloads=itertools.islice(ports, downloads),
            rate=_DOWNLOAD_RATE,
        ) as crowd:
            ready = crowd.ready()
            count = idle + downloads
            lab.until(lambda: lab.server("s1")["unready"] >= count, "the backup does not have all connections")
            kib = {part: round((_private_kib(pid) - before[part]) / count, 2) for part, pid in pids.items()}
            metrics = _Metrics(lab)
            fault_ns = lab.fail("s1")
            lab.until(lambda: _done(lab), "the takeover is not done", _TAKEOVER_SECONDS)
            sent, lag, heir_lag = metrics.sent(), metrics.longest_lag(), metrics.longest_lag("s2")
            (takeover,) = lab.takeovers()
            asked = crowd.ask()
            ended = crowd.finish()
    phases = takeover["phases_ms"]
    detect = (takeover["detected_at_ns"] - fault_ns) / 1e6
    resuming = phases["prove"] + phases["resume"]
    survived = [ready["whole"], asked["whole"], ended["whole"]] == [idle, idle, downloads]
    row = {
        "idle": idle,
        "downloads": downloads,
        "resumed": takeover["resumed"],
        "detect ms": round(detect, 1),
        "fence ms": round(phases["fence"], 1),
        "resume ms": round(resuming, 1),
        "total ms": round(detect + phases["fence"] + resuming, 1),
        "us each": round(resuming * 1000 / count, 1),
        "kernel us each": round(takeover["recreate_us"] / count, 1),
        "switch messages": sent,
        "controller lag ms": round(lag * 1000, 1),
        "heir lag ms": round(heir_lag * 1000, 1),
        "all asked, last answer ms": round(asked["seconds"] * 1000),
        "whole and equal": survived and takeover["reset"] == {},
    }
    if not row["whole and equal"]:
        print(json.dumps({"takeover": takeover, "ready": ready, "asked": asked, "ended": ended}), file=sys.stderr)
    return row, {"idle": idle, "downloads": downloads, **kib}, bool(row["whole and equal"])


def _done(lab: Lab) -> bool:
    return [takeover["state"] for takeover in lab.takeovers()] == ["done"]


def _private_kib(pid: int) -> int:
    """Memory that belongs to this process alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


class _Metrics:
    """What the controller tells of itself, since this object was made."""

    def __init__(self, lab: Lab) -> None:
        self._url = f"{lab.api}/metrics"
        self._start = self._read()
        self._last = self._start

    def _read(self) -> dict[tuple[str, str], float]:
        with urlopen(self._url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in families
            for sample in family.samples
        }

    def sent(self) -> int:
        """Messages to the switch. Asks the controller; the others tell of the same moment."""
        self._last = self._read()
        name = "takeover_switch_messages_total"
        kinds = {kind for metric, kind in self._last if metric == name} - {_EVERY_SECOND}
        return int(sum(self._last[name, kind] - self._start.get((name, kind), 0.0) for kind in kinds))

    def longest_lag(self, server: str = "") -> float:
        """Seconds, of the controller's event loop or of an agent's, since it was asked for the last time."""
        name = "takeover_agent_loop_lag_seconds" if server else "takeover_loop_lag_seconds"
        return self._last[name, server]


# --- intake ---
def _intake(seconds: float) -> dict[str, Any]:
    with Lab() as lab:
        lab.fail("s1")
        lab.until(lambda: _done(lab), "the takeover is not done")
        lags: list[float] = []
        mac = lab.run("s1", ["cat", "/sys/class/net/s1-eth0/address"], capture_output=True, text=True, check=True)
        life = [mac.stdout.strip(), str(lab.server("s1")["epoch"])]
        command = [sys.executable, "-m", "tests.bench.sender", str(lab.config_path), "s1", *life, str(seconds)]
        folder = Path(__file__).resolve().parents[2]
        with lab.popen("s1", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as sender:
            assert sender.stdin is not None
            assert sender.stdout is not None
            try:
                if sender.stdout.readline() != "ready\n":
                    raise RuntimeError("the sender of checkpoints did not begin")
                metrics = _Metrics(lab)
                sender.stdin.write("go\n")
                sender.stdin.flush()
                while sender.poll() is None:
                    time.sleep(_SAMPLE_SECONDS)  # how often the longest lag is asked for
                    metrics.sent()
                    lags.append(metrics.longest_lag() * 1000)
                told = json.loads(sender.stdout.readline())
            finally:
                sender.kill()
        backup = lab.server("s2")
    return {
        "connections": told["connections"],
        "bytes each": told["bytes"],
        "seconds": round(told["seconds"], 1),
        "checkpoints per second": round(told["stored"] / told["seconds"]),
        "stored after ms p50": told["p50_ms"],
        "p99": told["p99_ms"],
        **{f"loop lag ms {key}": value for key, value in spread(lags).items()},
        "heartbeat of the backup, ms ago": backup["heartbeat_age_ms"],
    }
