"""False alarms: nobody dies, every core is busy with other work of the same priority, and downloads go on.

A false takeover harms no client, but it costs a stall; at default settings there should be none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from tests.bench.report import Report
from topologies.lab import Lab
from topologies.watcher import digest_of, download

_BUSY = "import sys\nwhile True: sum(range(10000))"


def run(report: Report, options: dict[str, Any]) -> bool:
    """`minutes` of load; False when a server was taken for dead, or a download was not whole."""
    seconds = 60.0 * options.get("minutes", 10.0)
    cores = os.cpu_count() or 1
    with Lab(servers=3) as lab:
        wanted = digest_of(lab.configuration.servers[0].docroot + "/object.bin")
        busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(cores)]
        try:
            begin, downloads, whole, lag = time.monotonic(), 0, 0, 0.0
            while time.monotonic() - begin < seconds:
                curl = download(lab, "c1", "/object.bin", "--limit-rate", "40M")
                while curl.process.poll() is None:
                    lag = max(lag, *(server["heartbeat_age_ms"] or 0.0 for server in lab.servers()))
                    time.sleep(0.25)  # how often the API is asked; nothing is waited for
                downloads += 1
                whole += curl.wait() == 0 and curl.digest == wanted
            took = time.monotonic() - begin
        finally:
            for process in busy:
                process.kill()
                process.wait()
        takeovers = lab.takeovers()
    row = {
        "minutes": round(took / 60, 2),
        "busy processes": cores,
        "downloads": downloads,
        "whole and equal": whole,
        "takeovers": len(takeovers),
        "oldest heartbeat seen, ms": lag,
    }
    report.table("alarms", [row], causes=sorted({takeover["cause"] for takeover in takeovers}))
    return not takeovers and whole == downloads
