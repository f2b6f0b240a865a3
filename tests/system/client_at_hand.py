"""A client in the hands of a test: a plain socket in a client's namespace, and rules that keep packets from it.

The socket belongs to that host's kernel, which does everything that TCP does. The rules are the host's own (nftables):
they lose packets where a network would.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11

from dataplane.sequence import Seq
from topologies import Lab

_CLONE_NEWNET = 0x40000000
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2
_SO_RCVBUFFORCE = 33
_TIMEOUT = 20.0


def inside(lab: Lab, host: str, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket that is made in a host's network namespace; it stays there."""
    made: list[socket.socket | OSError] = []

    def run() -> None:
        namespace = os.open(f"/proc/{lab.host_pid(host)}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(make())
        except OSError as error:
            made.append(error)
        finally:
            os.close(namespace)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Client:
    """One connection to a VIP. `mss`: of its own announcing; `iss`: its initial sequence number."""

    vip = "vip"
    """Name of the VIP. Tests of a family of addresses set it for all clients."""

    def __init__(
        self, lab: Lab, host: str = "c1", *, receive_buffer: int = 0, mss: int = 0, iss: int = 0, port: int = 80
    ) -> None:
        self.lab, self.host = lab, host
        self.service = lab.vips()[self.vip]
        """Address of the VIP."""
        family = socket.AF_INET6 if ":" in self.service else socket.AF_INET

        def make() -> socket.socket:
            sock = socket.socket(family)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
            if mss:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
            if iss:
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", iss))
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
            sock.settimeout(_TIMEOUT)
            sock.connect((self.service, port))
            return sock

        self.sock = inside(lab, host, make)
        self.address, self.port = self.sock.getsockname()[:2]
        self._parser = h11.Connection(h11.CLIENT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # --- what it does ---
    def ask(self, *paths: str, last: bool = False) -> None:
        """All requests in one segment. `last`: the server is to close after the last one."""
        self.sock.sendall(b"".join(self.request(path, last=last and path is paths[-1]) for path in paths))

    def request(self, path: str, *, last: bool = False) -> bytes:
        close = "Connection: close\r\n" if last else ""
        return f"GET {path} HTTP/1.1\r\nHost: vip\r\n{close}\r\n".encode()

    def answer(self) -> bytes:
        """The body of the next response, which must be 200. Raises `ConnectionResetError`."""
        if self._parser.our_state is h11.DONE:
            self._parser.start_next_cycle()
        self._parser.send(h11.Request(method="GET", target="/", headers=[("Host", "vip")]))
        self._parser.send(h11.EndOfMessage())
        body: list[bytes] = []
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                self._parser.receive_data(self.sock.recv(1 << 20))
            elif isinstance(event, h11.Response):
                assert event.status_code == 200, event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(body)
            else:
                raise AssertionError(f"the stream ended in the middle of a response: {event}")

    def ended(self) -> bool:
        """Nothing but the end of the stream follows."""
        return self.sock.recv(1) == b""

    def unread(self) -> int:
        return int(struct.unpack("=i", fcntl.ioctl(self.sock, termios.FIONREAD, b"\0\0\0\0"))[0])

    def wait_unread(self, count: int) -> None:
        """Until so many bytes came and wait to be read."""
        self.lab.until(lambda: self.unread() >= count, f"{count} bytes did not come", _TIMEOUT)

    def take(self, count: int) -> bytes:
        """So many bytes of the stream as they come."""
        pieces: list[bytes] = []
        while count:
            pieces.append(self.sock.recv(min(count, 1 << 20)))
            assert pieces[-1], "the stream ended"
            count -= len(pieces[-1])
        return b"".join(pieces)

    def rcv_nxt(self) -> Seq:
        """The kernel's RCV.NXT."""
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _RECEIVE_QUEUE)
        number = self.sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)
        return Seq(number)

    def state(self) -> int:
        """Of TCP_INFO (linux/tcp_states.h)."""
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    # --- what the running system says of it ---
    @property
    def name(self) -> str:
        return f"{self.address}-{self.port}-{self.service}-80"

    def connection(self) -> dict[str, Any] | None:
        return next((c for c in self.lab.connections() if c["id"] == self.name), None)

    def owner(self) -> str:
        self.lab.until(lambda: self.connection() is not None, f"{self.name} is unknown")
        return self.lab.owner_of(self.host, self.port, vip=self.vip)

    def killed(self) -> tuple[str, float]:
        """Kill its server: (which, when)."""
        owner = self.owner()
        self.lab.fail(owner, how="kill")
        return owner, time.monotonic()


@contextmanager
def rules(lab: Lab, host: str, *lines: str) -> Iterator[None]:
    """nftables rules in a host: each line is `in RULE` or `out RULE`. They vanish with the block."""
    script = """add table inet test
add chain inet test in { type filter hook input priority 0; }
add chain inet test out { type filter hook output priority 0; }
""" + "\n".join(f"add rule inet test {line}" for line in lines)
    lab.run(host, ["nft", script], check=True)
    try:
        yield
    finally:
        lab.run(host, ["nft", "delete table inet test"], check=True)


def to(client: Client) -> str:
    """Of a rule: segments of the VIP to this client's connection."""
    return f"{_protocol(client)} saddr {client.service} tcp sport 80 tcp dport {client.port}"


def from_(client: Client) -> str:
    return f"{_protocol(client)} daddr {client.service} tcp dport 80 tcp sport {client.port}"


def _protocol(client: Client) -> str:
    return "ip6" if ":" in client.service else "ip"


def sequence_numbers(first: int, count: int) -> list[str]:
    """Of a rule: so many numbers from `first` on; two ranges where they wrap."""
    first, last = first % 2**32, first % 2**32 + count
    return [f"{first}-{min(last, 2**32 - 1)}", *([f"0-{last - 2**32}"] if last >= 2**32 else [])]


@contextmanager
def held_back(client: Client, position: int) -> Iterator[None]:
    """Data or a FIN that begins at this position of the stream to the client, or later, does not arrive."""
    connection = client.connection()
    assert connection is not None
    first = (connection["checkpoint"]["iss"] + 1 + position) % 2**32
    dropped = [
        f"in {to(client)} tcp sequence {numbers} {what} drop"
        for numbers in sequence_numbers(first, 2**30)
        for what in ("meta length > 100", "tcp flags & fin == fin")
    ]
    with rules(client.lab, client.host, *dropped):
        yield


@contextmanager
def by_itself(lab: Lab) -> Iterator[None]:
    """A test that no other's connections disturb. Whoever died in it is up again afterwards."""
    lab.until(lambda: not lab.connections(), "connections of another test remain")
    yield
    for name in lab.status()["failed"]:
        lab.heal(name)


# --- kinds of clients ---
KINDS = ["sack timestamps", "sack", "timestamps", "neither"]


@contextmanager
def settings(lab: Lab, host: str, **values: int) -> Iterator[None]:
    """The TCP of a host: `tcp_sack=0` and so on."""

    def write(wanted: dict[str, int]) -> None:
        lab.run(host, ["sysctl", "-qw", *(f"net.ipv4.{name}={value}" for name, value in wanted.items())], check=True)

    write(values)
    try:
        yield
    finally:
        write(dict.fromkeys(values, 1))


@contextmanager
def kind_of_client(lab: Lab, host: str, kind: str) -> Iterator[None]:
    """The host's TCP can what the words in `kind` say: `sack`, `timestamps`."""
    with settings(lab, host, tcp_sack=int("sack" in kind), tcp_timestamps=int("timestamps" in kind)):
        yield
