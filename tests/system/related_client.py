"""The client of `related`: plain sockets that do what they are told on standard input, an order and an answer (JSON) at
a time. It knows of nothing. Datagrams are noted as they come, on threads of their own."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from typing import Any

_SECONDS = 20.0
_ABORT = struct.pack("ii", 1, 0)


class Client:
    def __init__(self) -> None:
        self._socks: dict[str, socket.socket] = {}
        self._lines: Any = None
        self._digests: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._heard: dict[str, list[tuple[int, str, int, int]]] = {}
        self._came = threading.Condition()

    def control(self, port: str) -> int:
        sock = self._connect("control", int(port))
        self._lines = sock.makefile("rb")
        return int(sock.getsockname()[1])

    def _connect(self, name: str, port: int) -> socket.socket:
        sock = self._socks[name] = socket.create_connection(("vip", port), timeout=_SECONDS)
        return sock

    def say(self, *words: str) -> None:
        self._socks["control"].sendall(" ".join(words).encode() + b"\n")

    def line(self) -> str:
        """The control connection's next; what went wrong with it otherwise."""
        try:
            return str(self._lines.readline().decode().strip())
        except OSError as error:
            return type(error).__name__

    def take(self, name: str, port: str) -> int:
        """Open a data connection."""
        return int(self._connect(name, int(port)).getsockname()[1])

    def attempt(self, port: str) -> str:
        """Open a data connection that is not meant for this client: what came of it."""
        try:
            return self._connect("attempt", int(port)).recv(1).hex()
        except OSError as error:
            return type(error).__name__

    def wait(self, name: str) -> int:
        """Be ready for one; on which port."""
        sock = self._socks[name] = socket.create_server(("", 0))
        sock.settimeout(_SECONDS)
        return int(sock.getsockname()[1])

    def accept(self, name: str) -> list[Any]:
        listener = self._socks[name]
        sock, peer = listener.accept()
        listener.close()
        sock.settimeout(_SECONDS)
        self._socks[name] = sock
        return list(peer)

    def read(self, name: str, count: str) -> list[Any]:
        """Read until so many bytes have come in all, or to the end: their number and SHA-256, or what went wrong."""
        digest = self._digests.setdefault(name, hashlib.sha256())
        while self._counts.setdefault(name, 0) < int(count):
            try:
                data = self._socks[name].recv(min(1 << 16, int(count) - self._counts[name]))
            except OSError as error:
                return [self._counts[name], type(error).__name__]
            if not data:
                break
            digest.update(data)
            self._counts[name] += len(data)
        return [self._counts[name], digest.hexdigest()]

    def close(self, name: str) -> None:
        """In good order: what was read is acknowledged."""
        self._socks.pop(name).close()

    def drop(self, name: str) -> None:
        """Forget a connection: it is as if its host had never heard of it."""
        sock = self._socks.pop(name)
        if name == "control":
            self._lines.close()  # it holds the socket, too
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        sock.close()

    def udp(self, name: str) -> int:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        self._note(name, sock)
        return int(sock.getsockname()[1])

    def answer(self, name: str, text: str, port: str) -> None:
        self._socks[name].sendto(text.encode(), ("vip", int(port)))

    def group(self, name: str, address: str, port: str, own: str) -> None:
        """Receive what is sent to a group, on the interface that has this address of the client's own."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, int(port)))
        membership = socket.inet_aton(address) + socket.inet_aton(own)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self._note(name, sock)

    def _note(self, name: str, sock: socket.socket) -> None:
        self._socks[name] = sock
        heard = self._heard[name] = []

        def receive() -> None:
            while True:
                data, source = sock.recvfrom(2048)
                with self._came:
                    heard.append((time.time_ns(), source[0], source[1], int(data)))
                    self._came.notify_all()

        threading.Thread(target=receive, daemon=True).start()

    def heard(self, name: str, count: str) -> list[tuple[int, str, int, int]]:
        """Datagrams (when, source, port, number), once so many have come."""
        with self._came:
            self._came.wait_for(lambda: len(self._heard[name]) >= int(count), _SECONDS)
            return list(self._heard[name])


def main() -> None:
    client = Client()
    for order in sys.stdin:
        name, *words = order.split()
        print(json.dumps(getattr(client, name)(*words)), flush=True)


main()
