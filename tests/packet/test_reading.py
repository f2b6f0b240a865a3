"""Reading a connection's numbers at accept, while its client does not wait for that."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from dataplane import repair

_ROOT = str(Path(__file__).resolve().parents[2])
_CONNECTIONS = 2000
_CLIENT = """
import random, socket, sys, time
sys.path.insert(0, sys.argv[1])
from dataplane import repair
for _ in range(int(sys.argv[3])):
    with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=10) as sock:
        iss = repair.read(sock).iss
        until = time.perf_counter() + random.random() * 100e-6
        while time.perf_counter() < until:
            pass
        sock.sendall(b"GET / HTTP/1.1\\r\\n")
        sock.shutdown(socket.SHUT_WR)
        print(int(iss), flush=True)
        sock.recv(1)
"""


def test_input_that_arrives_meanwhile_is_not_counted_twice_or_lost() -> None:
    """IRS is the client's own ISS, whenever its request and its FIN come."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(10)
        command = [sys.executable, "-c", _CLIENT, _ROOT, str(listener.getsockname()[1]), str(_CONNECTIONS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            wrong = 0
            for _ in range(_CONNECTIONS):
                connection, _ = listener.accept()
                with connection:
                    irs = repair.read(connection).irs
                    while connection.recv(4096):
                        pass
                    wrong += int(irs) != int(client.stdout.readline())
            assert wrong == 0
        assert client.returncode == 0


def test_urgent_bytes_are_input_like_any_other() -> None:
    """Or else what was read would not say what was acknowledged; and an FTP client's ABOR would lack its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        connection, _ = listener.accept()
        with connection:
            repair.read(connection)
            client.send(b"ABOR\r\n", socket.MSG_OOB)
            client.shutdown(socket.SHUT_WR)
            heard = b""
            while data := connection.recv(100):
                heard += data
            assert heard == b"ABOR\r\n"
