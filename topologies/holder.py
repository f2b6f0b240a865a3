"""The background process that holds a lab for `takeover lab`: it makes the lab, says that it is ready, and then serves
requests on a UNIX socket until it is told `down` or is ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from state.errors import ConfigurationError, TakeoverError
from topologies.lab import Lab
from topologies.record import CONTROL, LabError

_READY = b"ready\n"
_REQUEST_LIMIT = 64 * 1024


def start(options: dict[str, Any]) -> None:
    """Start a holder and wait until its lab is ready. Raises `LabError` with the holder's sentence."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "topologies.holder", str(writing), json.dumps(options)],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if said != _READY:
        process.wait()
        raise LabError(said.decode(errors="replace").strip() or f"the lab's process ended with {process.returncode}")


def ask(request: dict[str, Any]) -> Any:
    """One request to the running holder. Raises `LabError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(CONTROL))
        except OSError:
            raise LabError("no lab is up: takeover lab up makes one") from None
        sock.sendall(json.dumps(request).encode() + b"\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    if not answer:
        raise LabError("the lab's process ended without an answer")
    decoded = json.loads(answer)
    if "error" in decoded:
        raise LabError(decoded["error"])
    return decoded["result"]


class Holder:
    """Serves requests one after the other; each is a name and arguments of the lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def serve(self, listener: socket.socket) -> None:
        """Until `down`."""
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                request = connection.makefile("rb").readline(_REQUEST_LIMIT)
                try:
                    asked = json.loads(request)
                    result = self._do(asked["do"], asked)
                    answer: dict[str, Any] = {"result": result}
                except (TakeoverError, ValueError, KeyError) as error:
                    answer, asked = {"error": str(error)}, {}
                if asked.get("do") == "down":
                    self._lab.down()
                    connection.sendall(json.dumps(answer).encode())
                    return
                connection.sendall(json.dumps(answer).encode())

    def _do(self, name: str, asked: dict[str, Any]) -> Any:
        if name == "fail":
            return self._lab.fail(asked["name"], asked["how"])
        if name == "heal":
            return self._lab.heal(asked["name"])
        if name == "status":
            return self._lab.status()
        if name == "down":
            return None
        raise LabError(f"unknown request {name}")


def main() -> None:
    pipe = open(int(sys.argv[1]), "wb")  # noqa: SIM115 - closed as soon as the lab is ready
    options = json.loads(sys.argv[2])
    # An end by signal takes the way of every other end, so that nothing is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        lab = Lab(**options)
        lab.up()
        lab.hold(os.getpid())
    except ConfigurationError as error:
        pipe.write("\n".join(error.problems).encode())
        sys.exit(1)
    except TakeoverError as error:
        pipe.write(str(error).encode())
        sys.exit(1)
    except BaseException as error:
        pipe.write(f"{type(error).__name__}: {error}".encode())
        raise
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(CONTROL))
            listener.listen(16)
            pipe.write(_READY)
            pipe.close()
            Holder(lab).serve(listener)
    finally:
        lab.down()


if __name__ == "__main__":
    main()
