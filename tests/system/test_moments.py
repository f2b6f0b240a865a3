"""A server is killed at every moment of a connection's life: the client gets its bytes, whole and equal, or (where only
the dead server had its input) is reset at once with the reason counted. Real kernels, real switch, plain clients."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.sequence import Seq
from tests.fate import decided, taken_over
from tests.system.client_at_hand import Client, by_itself, held_back
from topologies import Lab

_MODULUS = 1 << 32
_MSS = 500
_RESET_LIMIT = 2.0
_FIN_WAIT_2 = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Who is stopped is taken for dead only a second later: the input that nobody reads has time to arrive."""
    with Lab(servers=4, clients=2, detection={"timeout_ms": 1000}) as running:
        yield running


@pytest.fixture(autouse=True)
def every_test_for_itself(lab: Lab) -> Iterator[None]:
    with by_itself(lab):
        yield


@pytest.fixture(params=["vip", "vip6"], autouse=True)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is run on both families of addresses."""
    monkeypatch.setattr(Client, "vip", request.param)


def content(lab: Lab, path: str) -> bytes:
    return Path(lab.status()["docroot"] + path).read_bytes()


def head_length(lab: Lab, path: str) -> int:
    """Length of a response's header: the same for the same file. No connection remains."""
    with Client(lab) as client:
        client.ask(path, last=True)
        received = b"".join(iter(lambda: client.sock.recv(1 << 20), b""))
    lab.until(lambda: lab.connections() == [], "the connection that told the header's length remains")
    return received.index(b"\r\n\r\n") + 4


def resumed(lab: Lab, client: Client) -> str:
    """Kill the connection's server; another resumes the connection. The new owner."""
    before = len(lab.takeovers())
    dead, _ = client.killed()
    takeover = taken_over(lab, before, dead)
    assert (takeover["resumed"], takeover["reset"]) == (1, {}), takeover
    return str(takeover["to"])


def reset_for(lab: Lab, client: Client, since: int, when: float, reason: str) -> None:
    """The client is reset within the limit, and the reason is counted."""
    with pytest.raises(ConnectionResetError):
        client.answer()
    assert time.monotonic() - when < _RESET_LIMIT
    takeover = taken_over(lab, since)
    assert (takeover["resumed"], takeover["reset"]) == (0, {reason: 1}), takeover


# --- the request ---
def test_before_the_request(lab: Lab) -> None:
    with Client(lab) as client:
        resumed(lab, client)
        client.ask("/64k")
        assert client.answer() == content(lab, "/64k")


def test_in_the_middle_of_the_request(lab: Lab) -> None:
    """The first half was read by the server that died."""
    with Client(lab) as client:
        request = client.request("/64k")
        client.sock.sendall(request[:9])
        taken = (client.rcv_nxt(), 9)
        lab.until(lambda: input_known(client) == taken[1], "the first half is not in the checkpoint")
        resumed(lab, client)
        client.sock.sendall(request[9:])
        assert client.answer() == content(lab, "/64k")


def input_known(client: Client) -> int:
    """How much of the client's input the shared state knows to be read."""
    connection = client.connection()
    if connection is None:
        return -1
    checkpoint = connection["checkpoint"]
    return int(checkpoint["rcv_nxt"] - checkpoint["irs"] - 1) % _MODULUS


def test_after_the_request_before_the_response(lab: Lab) -> None:
    """The checkpoint knows the request; not one byte of the response has reached the client."""
    with Client(lab) as client:
        client.owner()
        with held_back(client, 0):
            client.ask("/64k")
            lab.until(lambda: input_known(client) == len(client.request("/64k")), "the request is not known")
            assert client.unread() == 0
            resumed(lab, client)
            assert client.unread() == 0
        assert client.answer() == content(lab, "/64k")


def stop(lab: Lab, client: Client) -> str:
    """From now on only the owner's kernel takes what comes; the test kills it before anybody notices."""
    owner = client.owner()
    os.kill(lab.pid(owner), signal.SIGSTOP)
    return owner


def test_a_request_that_only_the_dead_servers_kernel_had(lab: Lab) -> None:
    """It was acknowledged, and no process ever read it: nobody can answer it."""
    with Client(lab) as client:
        before = len(lab.takeovers())
        owner = stop(lab, client)
        client.ask("/64k")
        acknowledged = time.monotonic() + 0.06  # the kernel delays its acknowledgement by 40 ms at most
        while time.monotonic() < acknowledged:
            pass
        lab.fail(owner, how="kill")
        reset_for(lab, client, before, time.monotonic(), "input was lost with its server")


def test_a_fin_that_only_the_dead_servers_kernel_had(lab: Lab) -> None:
    with Client(lab) as client:
        before = len(lab.takeovers())
        owner = stop(lab, client)
        client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: client.state() == _FIN_WAIT_2, "nobody acknowledged the FIN")
        lab.fail(owner, how="kill")
        when = time.monotonic()
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)
        assert time.monotonic() - when < _RESET_LIMIT
        assert taken_over(lab, before)["reset"] == {"input was lost with its server": 1}


# --- the response ---
def test_inside_the_response_header(lab: Lab) -> None:
    head = head_length(lab, "/64k")
    with Client(lab, mss=100) as client:
        client.owner()
        with held_back(client, 80):
            client.ask("/64k")
            client.wait_unread(80)
            assert client.unread() < head
            resumed(lab, client)
        assert client.answer() == content(lab, "/64k")


def test_in_the_body(lab: Lab) -> None:
    with Client(lab) as client:
        client.owner()
        with held_back(client, 20_000):
            client.ask("/1m")
            client.wait_unread(20_000)
            resumed(lab, client)
        assert client.answer() == content(lab, "/1m")


def test_in_the_last_segment(lab: Lab) -> None:
    """All but the last segment has arrived."""
    total = head_length(lab, "/64k") + (64 << 10)
    with Client(lab, mss=_MSS, receive_buffer=1 << 20) as client:
        client.owner()
        with held_back(client, total - _MSS):
            client.ask("/64k")
            client.wait_unread(total - _MSS)
            assert client.unread() < total
            resumed(lab, client)
        assert client.answer() == content(lab, "/64k")


def test_after_the_last_byte_before_the_close(lab: Lab) -> None:
    """The client has the whole response, and waits for the end that was announced."""
    total = head_length(lab, "/1k") + 1024
    with Client(lab) as client:
        client.owner()
        with held_back(client, total):
            client.ask("/1k", last=True)
            client.wait_unread(total)
            resumed(lab, client)
        assert client.answer() == content(lab, "/1k")
        assert client.ended()


# --- several requests ---
def test_between_two_requests_on_one_connection(lab: Lab) -> None:
    with Client(lab) as client:
        for path in ("/1k", "/64k", "/1m"):
            client.ask(path)
            assert client.answer() == content(lab, path)
            resumed(lab, client)


def test_pipelined_requests(lab: Lab) -> None:
    """The death comes in the third of five responses."""
    paths = ["/1k", "/64k", "/1m", "/1k", "/64k"]
    with Client(lab, receive_buffer=1 << 20) as client:
        client.owner()
        with held_back(client, 200_000):
            client.ask(*paths)
            client.wait_unread(200_000)
            resumed(lab, client)
        assert [client.answer() for _ in paths] == [content(lab, path) for path in paths]


def test_more_pipelined_requests_than_are_answered_ahead(lab: Lab) -> None:
    """Some have no response yet, and only the checkpoint still has them."""
    paths = ["/64k", "/1k"] * 20
    with Client(lab, receive_buffer=4096) as client:
        client.ask(*paths)
        zero_window(lab, client)
        resumed(lab, client)
        assert [client.answer() for _ in paths] == [content(lab, path) for path in paths]


# --- the client's side ---
def zero_window(lab: Lab, client: Client) -> None:
    """The owner's kernel waits for the window to open."""
    owner = client.owner()
    show = ["ss", "-Hnto", "dport", "=", f":{client.port}"]
    lab.until(
        lambda: "persist" in lab.run(owner, show, capture_output=True, text=True).stdout, "the window is not closed"
    )


def test_with_the_clients_window_at_zero(lab: Lab) -> None:
    with Client(lab, receive_buffer=4096) as client:
        client.ask("/1m")
        zero_window(lab, client)
        resumed(lab, client)
        zero_window(lab, client)
        assert client.answer() == content(lab, "/1m")


def test_with_a_half_closed_client(lab: Lab) -> None:
    """It has said all that it will ever say, and reads on to the end."""
    with Client(lab) as client:
        client.owner()
        with held_back(client, 20_000):
            client.ask("/1m")
            client.sock.shutdown(socket.SHUT_WR)
            client.wait_unread(20_000)
            lab.until(lambda: input_known(client) == len(client.request("/1m")) + 1, "the FIN is not known")
            resumed(lab, client)
        assert client.answer() == content(lab, "/1m")
        assert client.ended()


def test_when_the_servers_sequence_numbers_wrap(lab: Lab) -> None:
    """One death shortly before the wrap, one shortly after."""
    whole = content(lab, "/object.bin")
    while True:
        client = Client(lab, receive_buffer=1 << 16)
        left = client.rcv_nxt().ahead(0)
        if 1 << 20 < left < 100 << 20:
            break
        client.sock.close()
    with client:
        lab.until(lambda: len(lab.connections()) == 1, "clients that were not taken remain")
        client.ask("/object.bin")
        received = client.take(left - 100_000)
        zero_window(lab, client)
        assert Seq(_MODULUS - 100_000) <= client.rcv_nxt() < Seq(0)
        resumed(lab, client)
        zero_window(lab, client)
        head = received.index(b"\r\n\r\n") + 4
        received += client.take(90_000)
        zero_window(lab, client)
        assert Seq(0) <= client.rcv_nxt()
        resumed(lab, client)
        received = (received + client.take(len(whole) + head - len(received)))[head:]
        assert len(received) == len(whole)
        assert received == whole


@pytest.mark.parametrize("before_the_wrap", [5, 40, 60])
def test_when_the_clients_sequence_numbers_wrap(lab: Lab, before_the_wrap: int) -> None:
    """In its first request, between two, in the second."""
    with Client(lab, iss=_MODULUS - before_the_wrap) as client:
        for _ in range(2):
            client.ask("/1k")
            assert client.answer() == content(lab, "/1k")
            resumed(lab, client)
        with held_back(client, 3000):
            client.ask("/64k")
            client.wait_unread(100)
            resumed(lab, client)
        assert client.answer() == content(lab, "/64k")


# --- many, and again ---
class Download(threading.Thread):
    """One client that asks for a file, slowly at first, and notes what it got."""

    def __init__(self, lab: Lab, number: int, source: random.Random) -> None:
        super().__init__(daemon=True)
        self.client = Client(lab, f"c{1 + number % 2}", receive_buffer=source.choice((0, 4096, 1 << 16)))
        self.path = source.choice(("/1k", "/64k", "/1m"))
        self.count = source.randrange(1, 5)
        self.go_on = threading.Event()
        self.bodies: list[bytes] = []
        self.reset = False
        self.start()

    def run(self) -> None:
        try:
            self.client.ask(self.path)
            self.go_on.wait()
            self.bodies.append(self.client.answer())
            for _ in range(self.count):
                self.client.ask(self.path)
                self.bodies.append(self.client.answer())
        except ConnectionResetError:
            self.reset = True


@pytest.mark.parametrize("seed", [1, 2])
def test_many_connections_at_once_and_three_deaths_in_a_row(lab: Lab, seed: int) -> None:
    """Fifty connections, some idle, some with a closed window, some in full flight."""
    source = random.Random(seed)
    downloads = [Download(lab, number, source) for number in range(50)]
    lab.until(lambda: len(lab.connections()) >= 50, "not every connection is known")
    before = len(lab.takeovers())
    for death in range(3):
        for download in downloads[death * 16 : death * 16 + 16]:
            download.go_on.set()
        owners = [server for server in lab.servers() if server["state"] == "up" and server["connections"]]
        earlier = len(lab.takeovers())
        lab.fail(source.choice(owners)["name"], how="kill")
        decided(lab, earlier)
    for download in downloads:
        download.go_on.set()
    takeovers = lab.takeovers()[before:]
    for download in downloads:
        download.join(30)
        assert not download.is_alive(), takeovers
        download.client.sock.close()
        assert all(body == content(lab, download.path) for body in download.bodies)
        assert download.reset or len(download.bodies) == 1 + download.count, (download.client.name, takeovers)
    # Only a request that had just arrived when its server died may be lost, and is then counted.
    counted = Counter[str]()
    for takeover in takeovers:
        counted.update(takeover["reset"])
    assert set(counted) <= {"input was lost with its server"}, takeovers
    assert counted.total() == sum(download.reset for download in downloads)
    assert counted.total() <= 16


def test_the_second_and_the_third_owner_die_too(lab: Lab) -> None:
    with Client(lab, receive_buffer=1 << 16) as client:
        client.ask("/1m")
        client.wait_unread(4096)
        owners = [client.owner()]
        for _ in range(3):
            owners.append(resumed(lab, client))
        assert len(set(owners)) == 4
        assert client.answer() == content(lab, "/1m")


def test_owners_die_as_soon_as_they_own(lab: Lab) -> None:
    """Each is killed the moment that the shared state names it, before anything else is known to be done."""
    with Client(lab, receive_buffer=1 << 16) as client:
        client.ask("/1m")
        client.wait_unread(4096)
        dead: list[str] = []
        for _ in range(3):
            lab.until(lambda: client.owner() not in dead, "nobody took over")
            dead.append(client.owner())
            lab.fail(dead[-1], how="kill")
        assert client.answer() == content(lab, "/1m")
        assert len(set(dead)) == 3
