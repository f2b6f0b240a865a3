"""What a client is sent, byte by byte, when its server dies; each test has a lab with documents of its own."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from scapy.utils import RawPcapReader

from dataplane import segment
from dataplane.segment import FIN, RST
from tests.fate import taken_over
from topologies import Lab
from topologies.watcher import download

_ETHERNET = 14


def test_from_the_kill_on_the_client_sees_nothing_of_the_old_owner(tmp_path: Path) -> None:
    """The capture at the client: no FIN or RST, and not one payload byte that is not the object's at its place."""
    content = random.Random(7).randbytes(96 << 20)
    (tmp_path / "object.bin").write_bytes(content)
    capture = tmp_path / "client.pcap"
    with Lab(servers=2, clients=1, docroot=str(tmp_path)) as lab:
        tcpdump = lab.popen(
            "c1",
            ["tcpdump", "-i", "c1-eth0", "-B", "65536", "-s", "0", "-U", "-w", str(capture), "tcp port 80"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tcpdump.stderr is not None
        assert "listening" in tcpdump.stderr.readline()
        curl = download(lab, "c1")
        assert curl.wait_for(10 << 20)
        (connection,) = lab.connections()
        first, owner = connection["checkpoint"]["object_first"], connection["server"]
        killed = lab.fail(owner, how="kill")
        assert curl.wait() == 0
        tcpdump.terminate()
        tcpdump.wait()
        old_mac = lab.run(owner, ["cat", f"/sys/class/net/{owner}-eth0/address"], capture_output=True, text=True)
    client_mac = bytes.fromhex("020000000201")
    before = after = 0
    closes: list[str] = []
    for frame, meta in RawPcapReader(str(capture)):
        if frame[6:12] == client_mac:
            continue
        when = meta.sec * 10**9 + meta.usec * 1000
        found = segment.parse(frame[_ETHERNET:])
        if found.flags & RST or (found.flags & FIN and frame[6:12] == bytes.fromhex(old_mac.stdout.replace(":", ""))):
            closes.append(repr(found)[:200])
        offset = (int(found.seq) - first) % 2**32
        if found.payload_length <= 1 or offset >= len(content):
            continue  # a probe's byte is old by design and discarded; headers lie before the object
        payload = found.payload[: len(content) - offset]
        assert payload == content[offset : offset + len(payload)], f"a wrong byte at {offset}"
        if when < killed:
            before += len(payload)
        else:
            after += len(payload)
    assert not closes
    assert before > 0
    assert after > 0


def test_a_backup_whose_copy_differs_resets_and_never_splices(tmp_path: Path) -> None:
    """Same name, same size, other content."""
    roots = {}
    for name in ("s1", "s2"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "object.bin").write_bytes(random.Random(name).randbytes(64 << 20))
        roots[name] = str(folder)
    with Lab(servers=2, clients=1, docroot=roots["s1"], docroots=roots) as lab:
        (tmp_path / "received").touch()
        curl = download(lab, "c1", "/object.bin", "-o", str(tmp_path / "received"), "--limit-rate", "40M")
        lab.until(lambda: any(c["checkpoint"]["object"] for c in lab.connections()), "no download began")
        lab.until(lambda: (tmp_path / "received").stat().st_size > 4 << 20, "the download does not move")
        owner, before = lab.connections()[0]["server"], len(lab.takeovers())
        lab.fail(owner, how="kill")
        assert curl.wait() == 56  # curl: failure in receiving: connection reset by peer
        received = (tmp_path / "received").read_bytes()
        original = Path(roots[owner], "object.bin").read_bytes()
        assert received == original[: len(received)]
        assert taken_over(lab, before)["reset"] == {"object differs at the backup": 1}
        command = str(Path(sys.executable).with_name("takeover"))
        shown = subprocess.run([command, "takeovers"], capture_output=True, text=True, check=True).stdout
        assert "1 object differs at the backup" in shown
        metrics = subprocess.run(["curl", "-sS", lab.api + "/metrics"], capture_output=True, text=True, check=True)
        assert 'takeover_moved_connections_total{fate="reset: object differs at the backup"} 1.0' in metrics.stdout
