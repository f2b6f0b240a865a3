"""A client whose RTP is watched: a real `ffmpeg` plays, and `tcpdump` beside it keeps every packet that came."""

from __future__ import annotations

import itertools
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader

from dataplane.rtp.packet import RtpMalformed, RtpPacket
from topologies.lab import Lab
from topologies.record import LabError

_PROGRESS = re.compile(rb"out_time_us=(\d+)")


class Player:
    """`ffmpeg -i rtsp://HOST/PATH -c copy OUTPUT`, no retries. `wait_for` its progress; `wait` for its end."""

    def __init__(
        self, lab: Lab, client: str, path: str, transport: str, output: Path, *options: str, host: str = "vip"
    ) -> None:
        """`transport`: `udp`, `tcp` or `udp_multicast`. `options`: more of ffmpeg's, said before the input."""
        command = ["ffmpeg", "-nostdin", "-loglevel", "warning", "-progress", "pipe:1", "-stats_period", "0.1", "-y"]
        command += ["-rtsp_transport", transport, *options, "-i", f"rtsp://{host}{path}", "-c", "copy"]
        command += ["-fflags", "+bitexact", str(output)]
        self.output = output
        self.process = lab.popen(client, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.played = 0.0
        """Seconds of media that were written."""
        self.said = b""
        self._progress = threading.Condition()
        self._over = False
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._watch, self._listen)]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = _PROGRESS.match(line)
            if found is not None:
                with self._progress:
                    self.played = int(found[1]) / 1e6
                    self._progress.notify_all()
        with self._progress:
            self._over = True
            self._progress.notify_all()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.said = self.process.stderr.read()

    def wait_for(self, seconds: float, timeout: float = 30.0) -> None:
        """Until so much was written. Raises `LabError` when it ended or stood still before."""
        with self._progress:
            self._progress.wait_for(lambda: self._over or self.played >= seconds, timeout)
            if self.played < seconds:
                raise LabError(f"ffmpeg wrote {self.played} s and no more: {self.said.decode(errors='replace')}")

    def wait(self, timeout: float = 60.0) -> int:
        """ffmpeg's exit status."""
        status = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(timeout)
        return status


@dataclass(frozen=True)
class Seen:
    """A packet that came to a client. `at_ns`: wall clock."""

    at_ns: int
    source_mac: str
    source: str
    destination: str
    port: int
    packet: RtpPacket


class Capture:
    """Every UDP packet that comes to a client from its making until `stop`."""

    def __init__(self, lab: Lab, client: str, file: Path) -> None:
        self._file = file
        command = [
            "tcpdump",
            "-i",
            f"{client}-eth0",
            "--immediate-mode",
            "-Q",
            "in",
            "-B",
            "16384",
            "-s",
            "0",
            "-U",
            "-w",
            str(file),
        ]
        self._process = lab.popen(client, [*command, "udp"], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        if "listening" not in self._process.stderr.readline():
            raise LabError("tcpdump does not listen")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def rtp(self) -> list[Seen]:
        """What came to even ports and is RTP, in its order."""
        with RawPcapReader(str(self._file)) as packets:
            found = [rtp_in(frame, meta.sec * 10**9 + meta.usec * 1000) for frame, meta in packets]
        return [seen for seen in found if seen is not None]


def rtp_in(frame: bytes, at_ns: int) -> Seen | None:
    """The packet in an Ethernet frame, if that goes to an even port and is RTP."""
    ether = Ether(frame)
    if UDP not in ether or ether[UDP].dport % 2:
        return None
    try:
        packet = RtpPacket.parse(bytes(ether[UDP].payload))
    except RtpMalformed:
        return None
    network = ether[IPv6] if IPv6 in ether else ether[IP]
    return Seen(at_ns, ether.src, network.src, network.dst, ether[UDP].dport, packet)


def longest_gap(seen: Sequence[Seen], since_ns: int, within_ns: int = 10**9) -> tuple[Seen, Seen]:
    """The two packets between which it was silent longest, of those that begin from `since_ns` on and soon after.

    A silence that has begun before counts as well, if it ends after. Raises `LabError` when nothing came since.
    """
    pairs = [
        (before, after)
        for before, after in itertools.pairwise(seen)
        if after.at_ns > since_ns and before.at_ns < since_ns + within_ns
    ]
    if not pairs:
        raise LabError("no packet came after that")
    return max(pairs, key=lambda pair: pair[1].at_ns - max(pair[0].at_ns, since_ns))
