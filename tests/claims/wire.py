"""What a client saw on its wire: tcpdump at the client, its packets as segments or RTP, with time and sender."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scapy.utils import RawPcapReader

from dataplane import Seq
from dataplane import segment as tcp
from dataplane.segment import ACK, SYN, Segment
from topologies import Lab
from topologies.rtp_watcher import Seen as Heard
from topologies.rtp_watcher import rtp_in

_ETHERNET = 14
_IPV4 = b"\x08\x00"
_IGMP, _TCP, _UDP = 2, 6, 17
_LAST = b"end of the capture"
_FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class Seen:
    """A segment, when it passed (nanoseconds, wall clock), and who sent the frame (`c1`, `s2`, ...)."""

    when: int
    sender: str
    segment: Segment

    @property
    def end(self) -> Seq:
        return self.segment.seq + self.segment.payload_length


@dataclass
class Capture:
    """`stop()`, then `seen` has all segments of the capture, and `rtp` all packets of streams that came."""

    lab: Lab
    file: Path
    process: subprocess.Popen[str]
    client: str
    names: dict[bytes, str]
    seen: list[Seen] = field(default_factory=list)
    rtp: list[Heard] = field(default_factory=list)
    memberships: list[int] = field(default_factory=list)
    """When the client told the network of a group that it listens to (IGMP, RFC 3376)."""

    def stop(self) -> None:
        # tcpdump leaves what it has not read yet when it is ended: wait for a packet that was sent last.
        self.lab.run(self.client, ["bash", "-c", f"echo {_LAST.decode()} > /dev/udp/vip/9"], check=True)
        limit, tail = time.monotonic() + _FLUSH_SECONDS, b""
        with open(self.file, "rb") as file:
            while _LAST not in (tail := tail[-len(_LAST) :] + file.read()):
                assert time.monotonic() < limit, "the capture does not end"
                time.sleep(0.005)
        self.process.terminate()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.wait()
        assert "\n0 packets dropped by kernel" in said, said
        for frame, meta in RawPcapReader(str(self.file)):
            if _LAST in frame:
                continue
            self._keep(frame, meta.sec * 10**9 + meta.usec * 1000)

    def _keep(self, frame: bytes, when: int) -> None:
        sender = self.names.get(frame[6:12], frame[6:12].hex(":"))
        protocol = frame[_ETHERNET + 9] if frame[12:14] == _IPV4 else _TCP
        if protocol == _TCP:
            self.seen.append(Seen(when, sender, tcp.parse(frame[_ETHERNET:])))
        elif protocol == _IGMP and sender == self.client:
            self.memberships.append(when)
        elif protocol == _UDP and sender != self.client:
            heard = rtp_in(frame, when)
            if heard is not None:
                self.rtp.append(heard)

    def heard_from(self, sender: str) -> list[Heard]:
        """The packets of streams that this server sent."""
        return [heard for heard in self.rtp if self.sender_of(heard) == sender]

    def sender_of(self, heard: Heard) -> str:
        return self.names.get(bytes.fromhex(heard.source_mac.replace(":", "")), heard.source_mac)

    def senders(self, heard: list[Heard]) -> list[str]:
        """Who sent these: each name once, in the order in which they first did."""
        return list(dict.fromkeys(self.sender_of(each) for each in heard))

    def of(self, port: int) -> list[Seen]:
        """Those of the connection from this client's port."""
        return [s for s in self.seen if port in (s.segment.source_port, s.segment.destination_port)]

    def from_client(self, port: int) -> list[Seen]:
        return [s for s in self.of(port) if s.sender == self.client]

    def to_client(self, port: int) -> list[Seen]:
        return [s for s in self.of(port) if s.sender != self.client]

    def data(self, port: int, sender: str | None = None) -> list[Seen]:
        """What carries bytes of the stream to the client. A probe does not: its one byte was acknowledged before."""
        found: list[Seen] = []
        # A client that was not heard until now: what it has had is what it acknowledges first.
        acknowledged = next((s.segment.ack for s in self.from_client(port) if s.segment.flags & ACK), None)
        for seen in self.of(port):
            segment = seen.segment
            if seen.sender == self.client:
                if segment.flags & ACK and (acknowledged is None or acknowledged < segment.ack):
                    acknowledged = segment.ack
            elif segment.payload_length and not (
                segment.payload == b"\0" and acknowledged is not None and seen.end <= acknowledged
            ):
                found.append(seen)
        return [seen for seen in found if sender is None or seen.sender == sender]

    def iss(self, port: int) -> Seq:
        """The sequence number of the service's SYN."""
        return next(s.segment.seq for s in self.to_client(port) if s.segment.flags & SYN)

    def irs(self, port: int) -> Seq:
        """That of the client's SYN."""
        return next(s.segment.seq for s in self.from_client(port) if s.segment.flags & SYN)

    def answers_to_probes(self, port: int) -> list[Seen]:
        """What the client sent with a DSACK of exactly one byte below what it acknowledges."""
        found = []
        for seen in self.from_client(port):
            blocks = seen.segment.sack
            if blocks and blocks[0][0] + 1 == blocks[0][1] and blocks[0][1] <= seen.segment.ack:
                found.append(seen)
        return found


@contextmanager
def capture(lab: Lab, client: str, folder: Path, filter_: str = "tcp") -> Iterator[Capture]:
    """Everything that passes the client's interface, from the moment that this returns until `stop` or the end."""
    names = {}
    for host in (*(server["name"] for server in lab.servers()), client):
        mac = lab.run(host, ["cat", f"/sys/class/net/{host}-eth0/address"], capture_output=True, text=True, check=True)
        names[bytes.fromhex(mac.stdout.strip().replace(":", ""))] = host
    file = folder / f"{client}.pcap"
    command = ["tcpdump", "-i", f"{client}-eth0", "-B", "65536", "-s", "2048", "-U", "--immediate-mode"]
    command += ["-w", str(file), f"{filter_} or udp port 9"]
    process: subprocess.Popen[str] = lab.popen(client, command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "listening" in line, line
    made = Capture(lab, file, process, client, names)
    try:
        yield made
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
