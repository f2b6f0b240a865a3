"""The clients of these tests: real curl and ffmpeg, the ticker's client, and plain sockets; none knows of takeover."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controller.cli import fetch
from dataplane import DataBlock, Seq
from dataplane.examples.ticker import line, offset_of
from state.store import EmbeddedStore
from tests.fate import taken_over
from topologies import Lab
from topologies.rtp_watcher import Player
from topologies.watcher import Watched, download

VIP = "10.0.0.100"
MANY = 100_000
"""Lines of a ticker that is not meant to come to its end."""
_TRIES = 40

_PLAIN = """
import socket, sys
sock = socket.socket()
if len(sys.argv) > 2:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(sys.argv[2]))
sock.settimeout(20)
sock.connect(("vip", int(sys.argv[1])))
out = sys.stdout.buffer
print("from", sock.getsockname()[1], file=sys.stderr, flush=True)
while order := sys.stdin.buffer.readline():
    word, _, rest = order.strip().partition(b" ")
    if word == b"say":
        sock.sendall(bytes.fromhex(rest.decode()))
    elif word == b"hear":
        heard = bytearray()
        while len(heard) < int(rest) and (data := sock.recv(int(rest) - len(heard))):
            heard += data
        out.write(len(heard).to_bytes(8, "big") + heard)
        out.flush()
"""


class Plain:
    """A socket in a client that says and hears what it is told to."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.port = _port_of(process)

    def say(self, data: bytes) -> None:
        self._order(b"say " + data.hex().encode())

    def hear(self, count: int) -> bytes:
        """So many bytes; fewer when the connection ended."""
        self._order(b"hear %d" % count)
        assert self.process.stdout is not None
        return bytes(self.process.stdout.read(int.from_bytes(self.process.stdout.read(8), "big")))

    def _order(self, order: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + b"\n")
        self.process.stdin.flush()


class Ticking:
    """The ticker's own client, which ends as soon as a line is missing, repeated or wrong."""

    def __init__(self, process: subprocess.Popen[bytes], first: int) -> None:
        self.process = process
        self.port = _port_of(process)
        self.next = first
        """The line that has not been taken yet."""

    def take(self, count: int) -> None:
        """The next so many lines, as they come."""
        assert self.process.stdout is not None and self.process.stderr is not None
        for _ in range(count):
            came = self.process.stdout.readline()
            assert came == line(self.next), came or self.process.stderr.read()
            self.next += 1

    def take_beyond(self, block: dict[str, Any]) -> None:
        """Until the byte has come that SND.NXT stood before in this checkpoint."""
        while Seq(block["object_first"]) + offset_of(self.next) <= Seq(block["snd_nxt"]):
            self.take(1)

    def end(self) -> None:
        """The rest of the lines, and then the end."""
        assert self.process.stdout is not None
        for came in self.process.stdout:
            assert came == line(self.next)
            self.next += 1
        assert self.process.wait(20) == 0


def _port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    word, port = process.stderr.readline().split()
    assert word == b"from"
    return int(port)


Client = TypeVar("Client", Plain, Ticking)


class Clients:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._processes: list[subprocess.Popen[Any]] = []
        self._watched: list[Watched] = []
        self._players: list[Player] = []
        self._takeovers, self._failed = 0, ""

    def end(self) -> None:
        for watched in self._watched:
            watched.process.kill()
            watched.wait()  # its thread reads the pipe that is closed below
        for player in self._players:
            player.process.kill()
            player.wait()
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _start(self, host: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process: subprocess.Popen[bytes] = self._lab.popen(host, command, stdin=pipe, stdout=pipe, stderr=pipe)
        self._processes.append(process)
        return process

    def curl(self, host: str = "c1", path: str = "/object.bin", *options: str) -> Watched:
        watched = download(self._lab, host, path, *options)
        self._processes.append(watched.process)
        self._watched.append(watched)
        return watched

    def ftp(self, host: str, options: Sequence[str], *paths: str) -> Watched:
        """curl gets these objects over FTP, one after the other."""
        command = ["curl", "-sS", "--no-buffer", *options, *(f"ftp://vip{path}" for path in paths)]
        pipe = subprocess.PIPE
        watched = Watched(self._lab.popen(host, command, stdout=pipe, stderr=pipe))
        self._processes.append(watched.process)
        self._watched.append(watched)
        return watched

    def player(self, folder: Path, host: str, transport: str, path: str = "/clip.ts") -> Player:
        """An ffmpeg that plays, and writes what it got into the folder. `transport`: `udp` or `udp_multicast`."""
        player = Player(self._lab, host, path, transport, folder / f"{host}.ts")
        self._players.append(player)
        self._processes.append(player.process)
        return player

    def plain(self, host: str = "c1", port: int = 80, receive_buffer: int | None = None) -> Plain:
        command = [sys.executable, "-c", _PLAIN, str(port)]
        return Plain(self._start(host, command if receive_buffer is None else [*command, str(receive_buffer)]))

    def ticker(self, first: int, count: int, milliseconds: int, host: str = "c1") -> Ticking:
        words = [str(number) for number in (first, count, milliseconds)]
        client = [sys.executable, "-m", "dataplane.examples.ticker_client", "vip", "7000", *words]
        return Ticking(self._start(host, client), first)

    def on(self, owner: str, service: int, host: str, make: Callable[[], Client]) -> Client:
        """Clients, one after the other, until one's connection is this server's."""
        for _ in range(_TRIES):
            client = make()
            if self.connection(client.port, service, host)["server"] == owner:
                return client
            client.process.kill()
        raise AssertionError(f"none of {_TRIES} connections was given to {owner}")

    def content(self, start: int, length: int, path: str = "/object.bin") -> bytes:
        """So many bytes of one of the lab's objects."""
        with open(self._lab.status()["docroot"] + path, "rb") as file:
            file.seek(start)
            return file.read(length)

    # --- what the API and the shared state show ---
    def connection(self, port: int, service: int = 80, host: str = "c1") -> dict[str, Any]:
        """The client's connection in full, as soon as the shared state has it."""
        name = f"10.0.0.{200 + int(host[1:])}-{port}-{VIP}-{service}"
        self._lab.until(lambda: fetch(self._lab.api, f"/v1/connections/{name}"), f"no connection {name}")
        found: dict[str, Any] = fetch(self._lab.api, f"/v1/connections/{name}")
        return found

    def checkpoint_of(self, server: str, port: int, service: int = 80) -> dict[str, Any]:
        """The fields of the checkpoint of c1's connection, once this server has made it."""

        def block() -> dict[str, Any]:
            found: dict[str, Any] = self.connection(port, service)["checkpoint"]
            return found

        self._lab.until(lambda: block()["server"] == server, f"{server} makes no checkpoint")
        return block()

    def downloading(self, host: str = "c1") -> dict[str, Any]:
        """The one connection of that client that is sending an object, in full."""

        def sending() -> list[dict[str, Any]]:
            address = f"10.0.0.{200 + int(host[1:])}"
            blocks = [(c["id"], c["checkpoint"]) for c in self._lab.connections()]
            return [name for name, block in blocks if block["object"] and block["destination_address"] == address]

        self._lab.until(sending, f"{host} downloads nothing")
        (name,) = sending()
        found: dict[str, Any] = fetch(self._lab.api, f"/v1/connections/{name}")
        return found

    def bundles(self) -> list[dict[str, Any]]:
        """All of them, by their ids."""
        items: list[dict[str, Any]] = fetch(self._lab.api, "/v1/bundles")["items"]
        return sorted(items, key=lambda each: str(each["id"]))

    def bundle(self, name: str, server: str) -> dict[str, Any]:
        """This bundle, once this server has made a checkpoint of it."""

        def here() -> bool:
            shown = fetch(self._lab.api, f"/v1/connections/{name}")
            return bool(shown["checkpoint"]["server"] == server and shown["state"] == "established")

        self._lab.until(here, f"{server} makes no checkpoint of {name}")
        found: dict[str, Any] = fetch(self._lab.api, f"/v1/bundles/{name}")
        return found

    def stored(self, name: str) -> DataBlock:
        """The connection's checkpoint as it stands in the shared state itself."""
        store = EmbeddedStore(self._lab.configuration.state)
        try:
            return DataBlock.decode(next(block for kept, _, block in store.checkpoints() if kept == name))
        finally:
            store.close()

    def fail(self, server: str, how: str = "kill") -> int:
        """Make it fail; when that was, in nanoseconds. What `takeover` then waits for is the takeover from it."""
        self._takeovers, self._failed = len(self._lab.takeovers()), server
        return self._lab.fail(server, how)

    def takeover(self) -> dict[str, Any]:
        """The takeover since `fail`, in full, once it is done."""
        takeover = taken_over(self._lab, self._takeovers, self._failed)
        found: dict[str, Any] = fetch(self._lab.api, f"/v1/takeovers/{takeover['id']}")
        return found
