"""Streams whose server dies: how long no packet comes, and how many bundles a second an heir takes over.

An ffmpeg plays over UDP while its owner is killed again and again. A stall is the longest silence between two packets
of the stream that ends after the fault, from the fault on: until the first packet due when the heir is there.
Nothing may come twice.
"""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.report import Report, progress, spread
from topologies import objects
from topologies.lab import Lab
from topologies.rtp_watcher import Capture, Player, Seen, longest_gap

KILLS = 40
"""As many when none are asked for."""
_SECONDS = 60
_RATE = "4M"
"""Bits per second, filled up as broadcasters do."""
_BETWEEN = (1.5, 2.5)
"""Seconds of play between two deaths, at random."""
_SESSIONS = 400
_ROUNDS = 5


def run(report: Report, options: dict[str, Any]) -> bool:
    """`kills` deaths; False when a player ended, or a packet came twice."""
    kills, seed = options.get("kills") or KILLS, options.get("seed", 1)
    with tempfile.TemporaryDirectory() as folder:
        objects.make_clip(Path(folder, "clip.ts"), _SECONDS, "-muxrate", _RATE)
        with Lab(servers=3, docroot=folder) as lab:
            good = _stalls(report, lab, kills, random.Random(seed))
            good &= _moves(report, lab)
    return good


def _stalls(report: Report, lab: Lab, kills: int, source: random.Random) -> bool:
    stalls: list[float] = []
    lost: list[float] = []
    spacing: list[float] = []
    good = True
    while len(stalls) < kills and good:
        with tempfile.TemporaryDirectory() as folder:
            capture = Capture(lab, "c1", Path(folder, "udp.pcap"))
            player = Player(lab, "c1", "/clip.ts", "udp", Path(folder, "out.ts"))
            deaths = _kill_while_playing(lab, player, len(stalls), kills, source)
            player.process.terminate()
            player.wait()
            capture.stop()
            seen = capture.rtp()
        progress(f"bundle stall: {len(seen)} packets came to this player")
        for died in deaths:
            before, after = longest_gap(seen, died)
            stalls.append((after.at_ns - max(before.at_ns, died)) / 1e6)
            lost.append((after.packet.seq - before.packet.seq) % 2**16 - 1)
        spacing += [(after.at_ns - before.at_ns) / 1e6 for before, after in itertools.pairwise(seen)]
        good = bool(deaths) and _in_order(seen)
        if not good:
            print(f"a player ended, or packets are out of order: {player.said.decode()}", file=sys.stderr)
    rows = [{"kill": "stall of the stream, ms", **spread(stalls)}, {"kill": "packets lost", **spread(lost)}]
    between = round(statistics.median(spacing), 2)
    report.table("bundle stall", rows, deaths=len(stalls), ms_between_packets_p50=between)
    return good


def _kill_while_playing(lab: Lab, player: Player, before: int, kills: int, source: random.Random) -> list[int]:
    """When the owner died, each time, until the film is nearly over. `before`: of `kills`, so many are done."""
    deaths: list[int] = []
    at = 1.0
    while before + len(deaths) < kills and at < _SECONDS - 5:
        player.wait_for(at)
        (owner,) = {connection["server"] for connection in lab.connections()}
        deaths.append(lab.fail(owner, how="kill"))
        player.wait_for(player.played + 0.5)
        progress(f"bundle stall: death {before + len(deaths)} of {kills}, {owner}")
        lab.heal(owner)
        at = player.played + source.uniform(*_BETWEEN)
    player.wait_for(player.played + 1.0)
    return deaths


def _in_order(seen: list[Seen]) -> bool:
    one_source = len({each.packet.ssrc for each in seen}) == 1
    steps = ((after.packet.seq - before.packet.seq) % 2**16 for before, after in itertools.pairwise(seen))
    return one_source and all(0 < step < 2**15 for step in steps)


_MANY = """
import socket, sys
def ask(sock, method, extra=""):
    sock.sendall(f"{method} rtsp://vip/clip.ts RTSP/1.0\\r\\nCSeq: 1\\r\\n{extra}\\r\\n".encode())
    data = b""
    while b"\\r\\n\\r\\n" not in data:
        data += sock.recv(4096)
    assert data.startswith(b"RTSP/1.0 200 "), data
    return data
socks = []
for number in range(int(sys.argv[1])):
    sock = socket.create_connection(("vip", 554), timeout=20)
    port = 10000 + 2 * number
    data = ask(sock, "SETUP", f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1}\\r\\n")
    socks.append((sock, data.split(b"Session: ")[1].split(b";")[0].decode()))
for line in sys.stdin:
    print("ready", flush=True)
    sys.stdin.readline()
    for sock, session in socks:
        ask(sock, "GET_PARAMETER", f"Session: {session}\\r\\n")
    print("all there", flush=True)
"""


def _moves(report: Report, lab: Lab) -> bool:
    """Sessions that are set up: each a control connection and two UDP ports."""
    command = ["python3", "-c", _MANY, str(_SESSIONS)]
    client = lab.popen("c1", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None and client.stdout is not None

    def turn() -> str:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write("\n")
        client.stdin.flush()
        return client.stdout.readline().strip()

    rates: list[float] = []
    good = True
    for number in range(_ROUNDS):
        good = good and turn() == "ready"
        (owner,) = {connection["server"] for connection in lab.connections()}
        before = len(lab.takeovers())
        lab.fail(owner, how="kill")
        lab.until(
            lambda before=before: len(lab.takeovers()) > before and lab.takeovers()[before]["state"] == "done",
            "the takeover is not done",
        )
        takeover = lab.takeovers()[before]
        took = takeover["phases_ms"]["prove"] + takeover["phases_ms"]["resume"]
        rates.append(takeover["resumed"] / took * 1000)
        progress(f"bundles moved: {number + 1} of {_ROUNDS}, {takeover['resumed']} resumed")
        good = good and takeover["resumed"] == _SESSIONS and turn() == "all there"
        lab.heal(owner)
    client.kill()
    client.wait()
    rows = [{"kill": "bundles a second, from the fence to ready", **spread(rates)}]
    report.table("bundles moved", rows, sessions=_SESSIONS, connections_per_bundle="1 TCP, 2 UDP")
    return good
