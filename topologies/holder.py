"""The background process that holds a lab for `takeover lab`: it makes the lab, says that it is ready, and then serves
requests on a UNIX socket until it is ended by SIGTERM.

Until `takeover lab up` has heard that the lab is ready, the holder's life hangs on that command's: whatever ends the
command closes its end of a socket pair, and the holder then removes what it has made.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

from state.errors import ConfigurationError, TakeoverError
from topologies import lock
from topologies.lab import Lab
from topologies.record import CONTROL, LabError

_READY = b"ready\n"
_HEARD = b"\n"
_REQUEST_LIMIT = 64 * 1024
_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start(options: dict[str, Any]) -> None:
    """Start a holder and wait until its lab is ready. Raises `LabError` with the holder's sentence.

    Left by another exception, such as Ctrl-C, it waits until the holder has removed its lab.
    """
    here, there = socket.socketpair()
    with here:
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", "topologies.holder", str(there.fileno()), json.dumps(options)],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        try:
            said = b"".join(iter(lambda: here.recv(65536), b""))
            if said == _READY:
                here.sendall(_HEARD)
                return
        except OSError:
            said = b""
        except BaseException:
            here.close()
            process.wait()
            raise
    process.wait()
    raise LabError(said.decode(errors="replace").strip() or _ended(process.returncode))


def _ended(status: int) -> str:
    if status == 0:  # by a signal
        return "the lab was taken down before it was ready"
    return f"the lab's process ended with status {status} before the lab was ready"


def ask(request: dict[str, Any]) -> Any:
    """One request to the running holder. Raises `LabError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(CONTROL))
        except OSError:
            raise LabError(_nobody_answers()) from None
        sock.sendall(json.dumps(request).encode() + b"\n")
        answer = b"".join(iter(lambda: _receive(sock), b""))
    if not answer:
        raise LabError("the lab's process ended without an answer")
    decoded = json.loads(answer)
    if "error" in decoded:
        raise LabError(decoded["error"])
    return decoded["result"]


def _receive(sock: socket.socket) -> bytes:
    """However long the answer takes, but not from a holder that is stopped: it never comes."""
    sock.settimeout(_LOOK_SECONDS)
    while True:
        try:
            return sock.recv(65536)
        except TimeoutError:
            holder = lock.owner()
            if holder is not None and holder.condition.stopped:
                raise LabError(
                    f"the process that holds the lab is stopped: kill -CONT {holder.pid} lets it go on"
                ) from None


def _nobody_answers() -> str:
    holder = lock.owner()
    if holder is None:
        return "no lab is up: takeover lab up makes one"
    if not holder.condition.alive:
        return f"the process that held the lab, pid {holder.pid}, is gone: takeover lab down removes what is left"
    if holder.role == "program":
        return f"the lab belongs to a program that runs, {holder}: only that program can do this"
    return "the lab is being made or removed at this very moment"


class Holder:
    """Serves requests one after the other; each is a name and arguments of the lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def serve(self, listener: socket.socket) -> NoReturn:
        """Until a signal ends it."""
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                request = connection.makefile("rb").readline(_REQUEST_LIMIT)
                try:
                    asked = json.loads(request)
                    answer = {"result": self._do(asked["do"], asked)}
                except (TakeoverError, ValueError, KeyError) as error:
                    answer = {"error": str(error)}
                connection.sendall(json.dumps(answer).encode())

    def _do(self, name: str, asked: dict[str, Any]) -> Any:
        if name == "fail":
            return self._lab.fail(asked["name"], asked["how"])
        if name == "heal":
            return self._lab.heal(asked["name"])
        raise LabError(f"unknown request {name}")


def _end_with(command: socket.socket) -> None:
    """A thread's task: when `takeover lab up` is gone before it has heard of the lab, this process ends as well."""
    try:
        heard = command.recv(1)
    except OSError:
        heard = b""
    while not heard:
        # Again and again: an exception from a signal is lost where it happens to be raised in a destructor.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_AGAIN_SECONDS)


def main() -> None:
    command = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    # An end by signal takes the way of every other end, so that nothing is left behind.
    for number in _ENDS:
        signal.signal(number, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()
    lab = None
    try:
        lab = Lab(**options)
        lab.up("up")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(CONTROL))
            listener.listen(16)
            command.sendall(_READY)
            command.shutdown(socket.SHUT_WR)
            Holder(lab).serve(listener)
    except ConfigurationError as error:
        _say(command, "\n".join(error.problems))
        sys.exit(1)
    except TakeoverError as error:
        _say(command, str(error))
        sys.exit(1)
    except Exception as error:
        _say(command, f"{type(error).__name__}: {error}")
        raise
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)
        if lab is not None:
            lab.down()


def _say(command: socket.socket, sentence: str) -> None:
    """To `takeover lab up`, if it still listens."""
    with contextlib.suppress(OSError):
        command.sendall(sentence.encode())


if __name__ == "__main__":
    main()
