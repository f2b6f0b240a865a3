"""Many clients in one process: thousands of real kernel sockets, each checking every byte that it is given.

    ports = ports_of(lab, "s1")
    crowd = Crowd(lab, "c1", idle=islice(ports, 1000), downloads=islice(ports, 100), path="/1m", rate=65536)
    crowd.ready()                    # all are connected, each idle one was answered once, each download has begun
    lab.fail("s1")
    answered = crowd.ask()           # a request on every idle connection at once
    ended = crowd.finish()           # waits for the downloads, resets every connection

No connection is ever made twice: what breaks stays broken and is counted with its reason.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

from controller.ownership import Ownership
from state.datablock import FourTuple
from topologies.lab import Lab

_CONNECTING = 128
"""Connections in the making at a time: a listener's backlog is not what is examined here."""
_READ_BYTES = 16 * 1024
_RECEIVE_BUFFER = 64 * 1024
_IDLE_PATH = "/1k"
_FIRST_PORT = 10_000
_ABORT = struct.pack("ii", 1, 0)
_LIMIT_SECONDS = 30.0


def ports_of(lab: Lab, server: str) -> Iterator[int]:
    """Local ports whose connections go to this server while every server has its own slots."""
    vip = lab.configuration.vips[0]
    ownership = Ownership(lab.configuration)
    packed = ipaddress.ip_address(vip.address).packed
    for port in range(_FIRST_PORT, 1 << 16):
        if ownership.server_for(FourTuple(packed, 80, packed, port)) == server:
            yield port


class Crowd:
    """The handle: one process in a client's namespace, told what to do over its standard input."""

    def __init__(
        self,
        lab: Lab,
        client: str,
        *,
        idle: Iterable[int],
        downloads: Iterable[int] = (),
        path: str = "/1m",
        rate: int = 64 * 1024,
    ) -> None:
        """Local ports of the idle connections and of the downloads; `rate`: bytes per second of one download."""
        self._process = lab.popen(
            client,
            [sys.executable, "-m", "topologies.crowd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        wanted = {
            "vip": lab.configuration.vips[0].address,
            "root": lab.status()["docroot"],
            "idle": list(idle),
            "downloads": list(downloads),
            "path": path,
            "rate": rate,
        }
        self._say(wanted)

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the crowd ended with status {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ready(self) -> dict[str, Any]:
        """Every connection stands: `{"whole": ..., "broken": {reason: count}, "seconds": ...}`."""
        return self._hear()

    def ask(self) -> dict[str, Any]:
        """A request on every idle connection at once; as `ready`, `seconds` until the last was answered."""
        self._say("ask")
        return self._hear()

    def finish(self) -> dict[str, Any]:
        """Wait for the downloads to end; as `ready`, of the downloads. Then every connection is reset."""
        self._say("finish")
        heard = self._hear()
        self._process.wait()
        return heard

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class _Client:
    """One connection: a request, its response's header, and a body that must be these very bytes."""

    def __init__(self, port: int, path: str, body: bytes, rate: int) -> None:
        self.port = port
        self._request = f"GET {path} HTTP/1.1\r\nHost: vip\r\n\r\n".encode()
        self._body = body
        self._rate = rate
        self._head = b""
        self._got = 0
        self._began = 0.0
        self.busy = False
        self.broken = ""
        self.sock: socket.socket

    def connect(self, vip: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._rate:  # else the kernel takes the whole object in, and nothing is left to be taken over
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self.sock.bind(("", self.port))
        with contextlib.suppress(BlockingIOError):
            self.sock.connect((vip, 80))

    def ask(self) -> None:
        self.busy, self._head, self._got, self._began = True, b"", 0, time.monotonic()
        try:
            self.sock.send(self._request)
        except OSError as error:
            self._break(errno.errorcode.get(error.errno or 0, str(error)))

    def read(self, limit: int) -> int:
        """Take what came, at most `limit` bytes of it, and check it; `busy` ends with the body's last byte."""
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._break(errno.errorcode.get(error.errno or 0, str(error)))
            return 0
        if data:
            self._check(data)
        else:
            self._break("closed")
        return len(data)

    def _check(self, data: bytes) -> None:
        if not self._got and not self._head.endswith(b"\r\n\r\n"):
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = head + end
            if not head.startswith(b"HTTP/1.1 200 ") or f"content-length: {len(self._body)}\r\n".encode() not in (
                self._head.lower()
            ):
                self._break("another response")
                return
        if self._body[self._got : self._got + len(data)] != data:
            self._break("other bytes")
            return
        self._got += len(data)
        if self._got == len(self._body):
            self.busy = False

    def allowed(self, now: float) -> int:
        """Bytes that may be read now without going faster than the rate."""
        return int((now - self._began) * self._rate) - self._got if self._rate else _READ_BYTES

    @property
    def begun(self) -> bool:
        return bool(self._got)

    def _break(self, reason: str) -> None:
        self.broken, self.busy = reason, False

    def end(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self.sock.close()


class _Clients:
    """All of them on one epoll."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._vip = wanted["vip"]
        self._poll = select.epoll()
        idle_body, body = _read(wanted["root"] + _IDLE_PATH), _read(wanted["root"] + wanted["path"])
        self.idle = [_Client(port, _IDLE_PATH, idle_body, 0) for port in wanted["idle"]]
        self.downloads = [_Client(port, wanted["path"], body, wanted["rate"]) for port in wanted["downloads"]]
        self._by_descriptor: dict[int, _Client] = {}
        self._moved = time.monotonic()

    def connect(self) -> None:
        waiting = deque([*self.idle, *self.downloads])
        making = 0
        while waiting or making:
            while waiting and making < _CONNECTING:
                client = waiting.popleft()
                client.connect(self._vip)
                self._by_descriptor[client.sock.fileno()] = client
                self._poll.register(client.sock, select.EPOLLOUT)
                making += 1
            for descriptor, _ in self._poll.poll(_LIMIT_SECONDS):
                client = self._by_descriptor[descriptor]
                failed = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    client.broken = errno.errorcode[failed]
                    self._poll.unregister(descriptor)
                else:
                    self._poll.modify(descriptor, select.EPOLLIN)
                making -= 1

    def ask(self) -> None:
        """A request on every idle connection; returns when the last was answered or is broken."""
        for number, client in enumerate(self.idle):
            if not client.broken:
                client.ask()
            if number % 64 == 63:
                self._turn(0)
        limit = time.monotonic() + _LIMIT_SECONDS
        asked = deque(self.idle)
        while asked and time.monotonic() < limit:
            if asked[0].busy:
                self._turn(0.05)
            else:
                asked.popleft()

    def start_downloads(self) -> None:
        for client in self.downloads:
            if not client.broken:
                self._poll.unregister(client.sock)
                client.ask()
        limit = time.monotonic() + _LIMIT_SECONDS
        while not all(client.begun or client.broken for client in self.downloads) and time.monotonic() < limit:
            self.pace()
            time.sleep(0.005)

    def pace(self) -> bool:
        """Let every download read what its rate allows. False when all have ended, or none moves any more."""
        now, moved = time.monotonic(), 0
        for client in self.downloads:
            allowed = client.allowed(now) if client.busy else 0
            if allowed > 0:
                moved += client.read(min(allowed, _READ_BYTES))
        if moved:
            self._moved = now
        return any(client.busy for client in self.downloads) and now < self._moved + _LIMIT_SECONDS

    def _turn(self, seconds: float) -> None:
        for descriptor, _ in self._poll.poll(seconds):
            client = self._by_descriptor[descriptor]
            client.read(_READ_BYTES)
            if client.broken:
                self._poll.unregister(descriptor)

    def end(self) -> None:
        for client in (*self.idle, *self.downloads):
            client.end()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _tell(clients: list[_Client], began: float) -> None:
    """`busy` still: neither answered nor broken within the limit."""
    broken = Counter("no answer" if client.busy else client.broken for client in clients)
    whole = broken.pop("", 0)
    print(json.dumps({"whole": whole, "broken": broken, "seconds": time.monotonic() - began}), flush=True)


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients, began = _Clients(json.loads(sys.stdin.readline())), time.monotonic()
    clients.connect()
    clients.ask()
    clients.start_downloads()
    _tell([*clients.idle], began)
    running = True
    while True:
        if select.select([sys.stdin], [], [], 0.01 if running else None)[0]:
            began = time.monotonic()
            line = sys.stdin.readline()
            if not line or json.loads(line) == "finish":
                break
            clients.ask()
            _tell(clients.idle, began)
        running = clients.pace()
    while clients.pace():
        time.sleep(0.01)
    _tell(clients.downloads, began)
    clients.end()


if __name__ == "__main__":
    main()
