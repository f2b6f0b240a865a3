"""What protection costs while nothing fails: the same downloads through the same switch, with checkpoints and close
gate and without, alternating in one run, so that a noisy machine is noisy for both.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dataplane import repair
from dataplane.judge import Proof
from dataplane.sequence import Seq
from state.datablock import FourTuple
from tests.bench.report import Report, spread
from topologies.lab import Lab

_FIRST_BYTE_REQUESTS = 300
_RECREATIONS = 500


def run(report: Report, options: dict[str, Any]) -> bool:
    rounds = options.get("rounds", 12)
    with Lab(both=True) as lab:
        through: dict[str, list[float]] = {"on": [], "off": []}
        ports = {"on": 80, "off": 81}
        for number in range(rounds):
            for mode in ("on", "off") if number % 2 else ("off", "on"):
                through[mode].append(_throughput(lab, ports[mode]))
        ratio = statistics.median(through["on"]) / statistics.median(through["off"])
        rows = [{"protection": mode, "MiB/s p50": round(statistics.median(v), 1)} for mode, v in through.items()]
        report.table("throughput", rows, ratio=round(ratio, 3), rounds=rounds)
        first = {mode: _first_byte(lab, port) for mode, port in (("on", 80), ("off", 81))}
        rows = [{"protection": mode, **_micro(values)} for mode, values in first.items()]
        added = statistics.median(first["on"]) - statistics.median(first["off"])
        report.table("time to first byte, us", rows, added_us_p50=round(added))
        report.table("checkpoint, bytes", [_sizes(lab)])
        recreate = _recreate(lab)
    report.table("recreating, us per connection", [spread(recreate)], connections=len(recreate))
    return True


def _micro(values: list[float]) -> dict[str, float]:
    return {key: round(value) for key, value in spread(values).items()}


def _throughput(lab: Lab, port: int) -> float:
    """MiB per second of one whole download, by curl's own count."""
    done = lab.run(
        "c1",
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}", f"http://vip:{port}/object.bin"],
        capture_output=True,
        check=True,
    )
    return float(done.stdout) / (1 << 20)


_CLIENT = """
import http.client, sys, time
connection = http.client.HTTPConnection("vip", int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    connection.request("GET", "/1k")
    answer = connection.getresponse()
    first = time.perf_counter() - began
    assert answer.status == 200 and len(answer.read()) == 1024
    print(first * 1e6)
"""


def _first_byte(lab: Lab, port: int) -> list[float]:
    """Microseconds from the request to the response's header, on one kept-alive connection."""
    command = ["python3", "-c", _CLIENT, str(port), str(_FIRST_BYTE_REQUESTS)]
    done = lab.run("c1", command, capture_output=True, check=True, text=True)
    return [float(line) for line in done.stdout.split()][10:]


def _sizes(lab: Lab) -> dict[str, int]:
    """Bytes of a checkpoint: of a connection that waits for its request, and with one object being sent."""
    waits = "import socket, sys; s = socket.create_connection(('vip', 80)); sys.stdin.read()"
    idle = lab.popen("c1", ["python3", "-c", waits], stdin=subprocess.PIPE)
    busy = lab.popen("c1", ["curl", "-sS", "--limit-rate", "1M", "-o", "/dev/null", "http://vip/object.bin"])
    try:
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            sizes = {bool(c["checkpoint"]["object"]): c["checkpoint"]["bytes"] for c in lab.connections()}
            if len(sizes) == 2:
                return {
                    "connection": sizes[False],
                    "with one object": sizes[True],
                    "per object": sizes[True] - sizes[False],
                }
        raise RuntimeError("the two connections did not appear")
    finally:
        for process in (idle, busy):
            process.kill()
            process.wait()


_RECREATOR = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.bench.overhead import recreate_many
for value in recreate_many(): print(value)
"""


def _recreate(lab: Lab) -> list[float]:
    """Microseconds in the kernel per recreated connection, in a server's namespace."""
    folder = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _RECREATOR, folder]
    done = lab.run("s1", command, capture_output=True, check=True, text=True)
    return [float(line) for line in done.stdout.split()]


def recreate_many() -> list[float]:
    """Recreate connections to a client that is not there; nothing is sent, so nobody minds."""
    from state.sections import TcpSection

    tcp = TcpSection(1460, 7, 7, True, True, True, 1000, 65535)
    times = []
    for number in range(_RECREATIONS):
        connection = FourTuple(socket.inet_aton("10.0.0.100"), 80, socket.inet_aton("10.0.0.201"), 20000 + number)
        proof = Proof(Seq(10**9), 0, Seq(2 * 10**9), 0, 65535, 1, 1000)
        began = time.perf_counter()
        sock = repair.recreate(connection, tcp, proof, Seq(2 * 10**9))
        times.append((time.perf_counter() - began) * 1e6)
        repair.abandon(sock)
    return times
