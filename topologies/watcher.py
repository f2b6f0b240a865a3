"""A client whose byte stream is watched: a real `curl` writes into a pipe, and the reader notes digests and gaps."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field

from topologies.lab import Lab

_READ_BYTES = 1 << 20
_AFTERMATH_NS = 1_000_000_000
"""A silence that begins later than this after a fault is not counted as its stall."""


@dataclass
class Gap:
    """The longest silence in the stream: seconds, and when it began (nanoseconds, wall clock)."""

    seconds: float = 0.0
    began_ns: int = 0


@dataclass
class Watched:
    """A download in progress. `wait()` for its end; then the other fields are final."""

    process: subprocess.Popen[bytes]
    received: int = 0
    digest: str = ""
    longest: Gap = field(default_factory=Gap)
    fault_ns: int | None = None
    """Set it to the moment of a fault: only gaps that end after it count."""

    def __post_init__(self) -> None:
        self.progress = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        digest, last = hashlib.sha256(), time.time_ns()
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while data := os.read(descriptor, _READ_BYTES):
            now = time.time_ns()
            if self.fault_ns is not None and now > self.fault_ns and last < self.fault_ns + _AFTERMATH_NS:
                # Silence before the fault is not the fault's, nor one that begins long after it.
                gap = now - max(last, self.fault_ns)
                if gap > self.longest.seconds * 1e9:
                    self.longest = Gap(gap / 1e9, max(last, self.fault_ns))
            digest.update(data)
            last = time.time_ns()
            with self.progress:
                self.received += len(data)
                self.progress.notify_all()
        self.digest = digest.hexdigest()
        with self.progress:
            self.progress.notify_all()

    def wait_for(self, count: int, timeout: float = 60.0) -> bool:
        """Until `count` bytes have come; False when the stream ended or stood still before."""
        with self.progress:
            return self.progress.wait_for(lambda: self.received >= count or bool(self.digest), timeout) and (
                self.received >= count
            )

    def wait(self, timeout: float = 60.0) -> int:
        """curl's exit status."""
        status = self.process.wait(timeout)
        self._thread.join(timeout)
        return status


def download(lab: Lab, client: str, path: str = "/object.bin", *options: str, vip: str = "vip") -> Watched:
    """Start `curl http://VIP/PATH` in a client, its output watched. No retries."""
    command = ["curl", "-sS", "--no-buffer", *options, f"http://{vip}{path}"]
    return Watched(lab.popen(client, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
