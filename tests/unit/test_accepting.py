"""What listens goes on: without descriptors, with clients that say nothing, and with clients that only listen."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eventlet
import pytest
from eventlet.green import socket

from controller import accepting, agents, api
from controller.accepting import Accepting
from controller.runtime import Runtime
from state.configuration import Address
from state.store import EmbeddedStore
from tests.unit import scenario


class Listening:
    """A listening socket without descriptors for a while; then it has one connection; then it is closed."""

    def __init__(self) -> None:
        self.answers: list[Any] = [errno.EMFILE, errno.EMFILE, socket.socketpair()[0], errno.EBADF]

    def accept(self) -> tuple[Any, tuple[str, int]]:
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer, ("10.0.0.1", 1)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_SECONDS", 0.0)


def test_agents_are_accepted_again_once_there_are_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    accepted: list[Any] = []
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        agents.serve(Listening(), None, lambda *spawned: accepted.append(spawned))  # type: ignore[arg-type]
    assert len(accepted) == 1
    assert caplog.text.count(os.strerror(errno.EMFILE)) == 1


def test_a_socket_is_otherwise_as_it_was() -> None:
    with socket.socket() as sock:
        assert Accepting(sock, "test").fileno() == sock.fileno()


SHOW_LIMIT = """
import resource
from types import SimpleNamespace
import controller.process as process
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
nothing = lambda *_: None
process._check_free = process.EmbeddedStore = process.settle = nothing
process.Runtime = lambda *_: SimpleNamespace(listen=nothing)
process.api = SimpleNamespace(listen=nothing, serve=nothing)
limits = resource.getrlimit
process.ryu_adapter.run = lambda *_: print(len(set(limits(resource.RLIMIT_NOFILE))))
address = SimpleNamespace(host="127.0.0.1", port=1)
api = SimpleNamespace(listen=address, token_file=None)
process.run(SimpleNamespace(state="", api=api, switch=SimpleNamespace(listen=address)))
"""


def test_the_controller_may_open_as_many_files_as_the_system_permits() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SHOW_LIMIT]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert shown.stdout.split() == ["1"], "the soft limit is the hard one"


# --- the API's server, over real connections ---
@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    store = EmbeddedStore(tmp_path / "state.db")
    yield Runtime(scenario.config(2), store)
    store.close()


@pytest.fixture
def server(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(api, "_CLIENT_SECONDS", 0.2)
    monkeypatch.setattr(api, "_KEEP_ALIVE_SECONDS", 0.4)
    sock = api.listen(Address("127.0.0.1", 0))
    serving = eventlet.spawn(api.serve, sock, runtime, None)
    yield sock.getsockname()
    serving.kill()
    sock.close()


def ask(server: tuple[str, int], path: str) -> Any:
    client = socket.create_connection(server)
    client.settimeout(5)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: takeover\r\n\r\n".encode())
    return client


def test_a_client_that_says_nothing_more_is_not_kept_for_ever(server: tuple[str, int]) -> None:
    with ask(server, "/v1/servers") as client:
        heard = b""
        while data := client.recv(65536):
            heard += data
    assert heard.startswith(b"HTTP/1.1 200 ")


def test_who_listens_to_events_hears_each_at_once_and_need_say_nothing(
    server: tuple[str, int], runtime: Runtime
) -> None:
    with ask(server, "/v1/events") as client:
        heard = client.recv(65536)
        while b": takeover" not in heard:
            heard += client.recv(65536)
        for number in range(4):
            runtime._announce("test", {"number": number})
            heard = b""
            while b"\n\n" not in heard:
                heard += client.recv(65536)
            assert f'"number": {number}'.encode() in heard
        while not heard.endswith(b":\n\n\r\n"):  # it comes later than a silent client is kept
            heard = client.recv(65536)
