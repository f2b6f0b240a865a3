"""Several connections of one protocol survive their server together, or fall together: control and data over TCP,
opened by either side, UDP, and multicast; real kernels, real switch, real faults."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cli import fetch
from tests.fate import taken_over
from tests.system.related import ACTIVE_PORT, CONTROL_PORT, SERVICE, UDP_PORT
from topologies import Lab

_ROOT = Path(__file__).resolve().parents[2]
_CLIENT = str(Path(__file__).with_name("related_client.py"))
VIP, GROUP, GROUP_PORT = "10.0.0.100", "239.1.2.3", 6000
ADDRESSES = {"c1": "10.0.0.201", "c2": "10.0.0.202"}
COUNT = 24 << 20
PAUSED_AT = 1 << 20
"""So much of each data connection is read before the fault; the windows then close."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Who hangs is taken for dead only a second later: its client has time to go meanwhile."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(_ROOT))
        with Lab(servers=3, clients=2, services={CONTROL_PORT: SERVICE}, detection={"timeout_ms": 1000}) as running:
            yield running


class Client:
    """`related_client` in a host: `client(order, words...)` is its answer."""

    def __init__(self, lab: Lab, host: str) -> None:
        pipe = subprocess.PIPE
        self.host = host
        self.process = lab.popen(host, [sys.executable, _CLIENT], stdin=pipe, stdout=pipe, text=True)

    def __call__(self, order: str, *words: object) -> Any:
        self.order(order, *words)
        return self.answer()

    def order(self, order: str, *words: object) -> None:
        """Without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([order, *map(str, words)]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, *words: object) -> str:
        self("say", *words)
        return str(self("line"))


Make = Callable[[str], Client]


@pytest.fixture
def make(lab: Lab) -> Iterator[Make]:
    """Starts clients; at the end they are gone and every server is up again."""
    clients: list[Client] = []

    def start(host: str) -> Client:
        clients.append(Client(lab, host))
        return clients[-1]

    try:
        yield start
    finally:
        for client in clients:
            client.process.kill()
            client.process.wait()
        for name in lab.status()["failed"]:
            lab.heal(name)
        lab.until(lambda: not lab.connections(), "connections remain when their clients are gone")
        lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")


def digest(count: int, lab: Lab) -> str:
    with open(lab.status()["docroot"] + "/object.bin", "rb") as file:
        return hashlib.sha256(file.read(count)).hexdigest()


def bundle(lab: Lab, client: Client, port: int) -> dict[str, Any]:
    found: dict[str, Any] = fetch(lab.api, f"/v1/bundles/{ADDRESSES[client.host]}-{port}-{VIP}-{CONTROL_PORT}")
    return found


def with_all_parts(lab: Lab, client: Client) -> int:
    """Open a control connection and one part of every kind; a little is read of those that have an end."""
    port = client("control", CONTROL_PORT)
    passive = client.ask("PASSIVE", COUNT).split()
    assert passive[0] == "PASSIVE"
    client("take", "passive", passive[1])
    waiting = client("wait", "active")
    assert client.ask("ACTIVE", waiting, COUNT) == "CONNECTING"
    assert client("accept", "active") == [VIP, ACTIVE_PORT]
    media = client("udp", "media")
    assert client.ask("DATAGRAMS", media) == "DATAGRAMS"
    client("group", "group", GROUP, GROUP_PORT, ADDRESSES[client.host])
    assert client.ask("GROUP", GROUP, GROUP_PORT) == "GROUP"
    for name in ("passive", "active"):
        assert client("read", name, PAUSED_AT)[0] == PAUSED_AT
    for name in ("media", "group"):
        assert len(client("heard", name, 5)) >= 5
    lab.until(lambda: len(bundle(lab, client, port)["parts"]) == 4, "the bundle's parts are not all stored")
    return int(port)


def fail(lab: Lab, server: str, how: str = "kill") -> dict[str, Any]:
    before = len(lab.takeovers())
    lab.fail(server, how)
    return taken_over(lab, before)


def check_media(heard: list[list[Any]]) -> None:
    """One stream from one source, whoever sends it: forwards only, and no number twice."""
    assert {(source, port) for _, source, port, _ in heard} == {(VIP, UDP_PORT)}
    numbers = [number for *_, number in heard]
    assert all(after > before for before, after in itertools.pairwise(numbers)), numbers


def test_a_bundle_is_shown_as_one_thing_with_its_parts(lab: Lab, make: Make) -> None:
    client = make("c1")
    port = with_all_parts(lab, client)
    shown = bundle(lab, client, port)
    assert {(part["role"], part["transport"], part["local_port"]) for part in shown["parts"]} == {
        ("passive", "tcp", shown["parts"][0]["local_port"]),
        ("active", "tcp", ACTIVE_PORT),
        ("media", "udp", UDP_PORT),
        ("media", "udp-multicast", UDP_PORT),
    }
    connections = {c["id"]: c for c in lab.connections()}
    assert len(connections) == 3
    assert {c["server"] for c in connections.values()} == {shown["server"]}
    tcp = [part["connection"] for part in shown["parts"] if part["transport"] == "tcp"]
    assert {c["bundle"]["id"] for c in connections.values()} == {shown["id"]}
    assert set(connections) == {shown["id"], *tcp}


@pytest.mark.parametrize("deaths", [1, 2])
def test_all_parts_survive_their_server(lab: Lab, make: Make, deaths: int) -> None:
    client, other = make("c1"), make("c2")
    port = with_all_parts(lab, client)
    other("group", "group", GROUP, GROUP_PORT, ADDRESSES["c2"])
    assert other("heard", "group", 5)
    for _ in range(deaths):
        owner = bundle(lab, client, port)["server"]
        takeover = fail(lab, owner)
        assert (takeover["resumed"], takeover["reset"]) == (3, {}), takeover
        assert client.ask("HELLO") == "HELLO tcp tcp udp udp-multicast"
        heard = [len(who("heard", name, 0)) for who, name in ((client, "media"), (client, "group"), (other, "group"))]
        assert len(client("heard", "media", heard[0] + 20)) >= heard[0] + 20
        assert len(client("heard", "group", heard[1] + 20)) >= heard[1] + 20
        assert len(other("heard", "group", heard[2] + 20)) >= heard[2] + 20
        lab.until(lambda o=owner: bundle(lab, client, port)["server"] != o, "nobody else owns the bundle")
        lab.until(lambda: bundle(lab, client, port)["state"] == "established", "it has no checkpoint of its new owner")
    for who, name in ((client, "media"), (client, "group"), (other, "group")):
        check_media(who("heard", name, 0))
    client("answer", "media", "receiver-report", UDP_PORT)
    assert client("line").startswith("CAME receiver-report ")
    for name in ("passive", "active"):
        assert client("read", name, COUNT) == [COUNT, digest(COUNT, lab)]
        assert client("read", name, COUNT + 1) == [COUNT, digest(COUNT, lab)], "the end, and not a reset"
        client("close", name)
    assert {client("line"), client("line")} == {"DONE passive 0", "DONE active 0"}
    assert client.ask("HELLO") == "HELLO udp udp-multicast"


def test_transfers_that_are_running_go_on(lab: Lab, make: Make) -> None:
    """Nobody waits: bytes are on their way when the server dies."""
    client = make("c1")
    port = with_all_parts(lab, client)
    owner, before = bundle(lab, client, port)["server"], len(lab.takeovers())
    client.order("read", "passive", COUNT)
    client.order("read", "active", COUNT)
    lab.fail(owner)
    assert [client.answer(), client.answer()] == [[COUNT, digest(COUNT, lab)]] * 2
    takeover = taken_over(lab, before)
    assert (takeover["resumed"], takeover["reset"]) == (3, {})
    for name in ("passive", "active"):
        client("close", name)
    assert {client("line"), client("line")} == {"DONE passive 0", "DONE active 0"}


def test_a_port_that_a_client_was_told_is_open_at_the_backup(lab: Lab, make: Make) -> None:
    client = make("c1")
    port = client("control", CONTROL_PORT)
    told = [client.ask("PASSIVE", 1000).split()[1] for _ in range(3)]
    assert len(set(told)) == 3
    owner = bundle(lab, client, port)["server"]
    takeover = fail(lab, owner)
    assert (takeover["resumed"], takeover["reset"]) == (1, {})
    assert [part["local_port"] for part in bundle(lab, client, port)["parts"]] == [int(one) for one in told]
    for number, passive in enumerate(told):
        client("take", f"data{number}", passive)
        assert client("read", f"data{number}", 1001) == [1000, digest(1000, lab)]


def test_a_client_that_connects_at_the_moment_of_the_death_is_served(lab: Lab, make: Make) -> None:
    """Between the answer that names the port and the connection to it: its SYN meets a dead server, or one that takes
    over and has not opened the port yet."""
    client = make("c1")
    port = client("control", CONTROL_PORT)
    told = client.ask("PASSIVE", 1000).split()[1]
    owner, before = bundle(lab, client, port)["server"], len(lab.takeovers())
    lab.fail(owner)
    client("take", "data", told)
    assert client("read", "data", 1001) == [1000, digest(1000, lab)]
    assert taken_over(lab, before)["reset"] == {}


def test_if_the_client_of_one_part_is_gone_all_are_reset_with_that_reason(lab: Lab, make: Make) -> None:
    """The server hangs, so that it does not learn that its client has dropped one connection; its backup does."""
    client = make("c1")
    port = with_all_parts(lab, client)
    owner, before = bundle(lab, client, port)["server"], len(lab.takeovers())
    lab.fail(owner, "hang")
    client("drop", "active")
    takeover = taken_over(lab, before)
    assert (takeover["resumed"], takeover["reset"]) == (0, {"client gone": 3})
    assert client("line") == "ConnectionResetError"
    # What had arrived may be read before the reset is told.
    count, error = client("read", "passive", COUNT)
    assert count < COUNT and error == "ConnectionResetError"
    lab.until(lambda: not lab.connections(), "connections remain")


def test_a_port_is_open_for_the_client_that_was_told_it_and_for_nobody_else(lab: Lab, make: Make) -> None:
    client, stranger = make("c1"), make("c2")
    client("control", CONTROL_PORT)
    told = client.ask("PASSIVE", 1000).split()[1]
    assert stranger("attempt", told) == "ConnectionResetError"
    client("take", "data", told)
    assert client("read", "data", 1001) == [1000, digest(1000, lab)]


def test_the_end_of_the_control_connection_is_the_end_of_all(lab: Lab, make: Make) -> None:
    client = make("c1")
    with_all_parts(lab, client)
    client("drop", "control")
    count, error = client("read", "passive", COUNT)
    assert count < COUNT and error == "ConnectionResetError"
    lab.until(lambda: not lab.connections(), "connections remain")
