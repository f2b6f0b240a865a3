"""A download through the VIP survives its server: real curl, real kernel, real switch, real faults."""

from __future__ import annotations

import random
import subprocess

import pytest

from tests.fate import taken_over
from topologies import Lab
from topologies.watcher import Watched, digest_of, download

_SIZE = 256 << 20
BOTH_FAMILIES = pytest.mark.parametrize("vip", ["vip", "vip6"])


def _owner(lab: Lab) -> str:
    found = [c for c in lab.connections() if c["checkpoint"]["object"]]
    assert len(found) == 1, (found, lab.log(found[0]["server"])[-800:], lab.log("controller")[-800:])
    (connection,) = found
    return str(connection["server"])


def _kill_at(lab: Lab, curl: Watched, position: int) -> str:
    assert curl.wait_for(position)
    owner = _owner(lab)
    curl.fault_ns = lab.fail(owner, how="kill")
    return owner


@pytest.fixture
def object_digest(lab: Lab) -> str:
    return digest_of(lab.status()["docroot"] + "/object.bin")


@BOTH_FAMILIES
def test_a_killed_server_does_not_end_the_download(lab: Lab, object_digest: str, vip: str) -> None:
    before = len(lab.takeovers())
    curl = download(lab, "c1", vip=vip)
    owner = _kill_at(lab, curl, random.randrange(1, _SIZE - (64 << 20)))
    assert curl.wait() == 0
    assert curl.digest == object_digest
    takeover = taken_over(lab, before, owner)
    assert (takeover["resumed"], takeover["reset"]) == (1, {})
    lab.heal(owner)


def test_the_new_owner_may_die_too(lab: Lab, object_digest: str) -> None:
    curl = download(lab, "c1")
    before = len(lab.takeovers())
    first = _kill_at(lab, curl, 40 << 20)
    assert taken_over(lab, before, first)["resumed"] == 1
    before = len(lab.takeovers())
    second = _kill_at(lab, curl, 120 << 20)
    assert first != second
    assert curl.wait() == 0
    assert curl.digest == object_digest
    assert taken_over(lab, before, second)["resumed"] == 1
    lab.heal(first)
    lab.heal(second)


def test_a_healed_server_serves_new_connections(lab: Lab) -> None:
    for server in lab.servers():
        assert server["state"] == "up"
        assert server["slots"] > 0
    seen = set()
    for _ in range(64):
        client = lab.popen("c2", ["curl", "-sS", "--limit-rate", "10K", "http://vip/1m"], stdout=subprocess.DEVNULL)
        while not (connections := lab.connections()):
            assert client.poll() is None
        seen.add(connections[0]["server"])
        client.kill()
        client.wait()
        lab.until(lambda: not lab.connections(), "the connection of a client that went away remains")
        if len(seen) == 3:
            break
    assert seen == {"s1", "s2", "s3"}


@BOTH_FAMILIES
def test_several_requests_on_one_connection_with_a_death_between(lab: Lab, vip: str) -> None:
    """The connection is idle when its server dies; the next request is answered by the backup."""
    lab.until(lambda: lab.connections() == [], "connections of an earlier test remain")
    client = lab.popen(
        "c2",
        [
            "python3",
            "-c",
            "import http.client, sys\n"
            f"connection = http.client.HTTPConnection('{vip}', 80, timeout=10)\n"
            "connection.auto_open = False\n"
            "connection.connect()\n"
            "for path in ('/1k', '/64k', '/1m'):\n"
            "    connection.request('GET', path)\n"
            "    print(len(connection.getresponse().read()), flush=True)\n"
            "    sys.stdin.readline()\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    owners = []
    for size in (1 << 10, 64 << 10, 1 << 20):
        assert int(client.stdout.readline()) == size
        (connection,) = lab.connections()
        owners.append(connection["server"])
        before = len(lab.takeovers())
        lab.fail(owners[-1], how="kill")
        takeover = taken_over(lab, before)
        assert (takeover["resumed"], takeover["reset"]) == (1, {}), takeover
        lab.heal(owners[-1])
        client.stdin.write("\n")
        client.stdin.flush()
    assert client.wait(10) == 0
    assert len(set(owners)) > 1


@BOTH_FAMILIES
def test_the_controller_may_be_away_and_nothing_stored_is_lost(lab: Lab, object_digest: str, vip: str) -> None:
    lab.until(lambda: lab.connections() == [], "connections of an earlier test remain")
    curl = download(lab, "c1", "/object.bin", "--limit-rate", "16M", vip=vip)
    assert curl.wait_for(16 << 20)
    before = lab.connections()
    lab.fail("controller", how="kill")
    # Flows stay: a new client, which has to find the VIP's MAC first, is served meanwhile.
    lab.run("c2", ["ip", "neigh", "flush", "all"], check=True)
    other = download(lab, "c2", "/1m", vip=vip)
    assert other.wait() == 0
    lab.heal("controller")
    assert [c["id"] for c in lab.connections() if c["checkpoint"]["object"]] == [c["id"] for c in before]
    owner = _kill_at(lab, curl, 100 << 20)
    assert curl.wait() == 0
    assert curl.digest == object_digest
    lab.heal(owner)


def test_when_nobody_is_left_the_first_server_that_comes_back_goes_on(lab: Lab, object_digest: str) -> None:
    """Even the one that died: its new life knows nothing of the connection but the checkpoint."""
    curl = download(lab, "c1", "/object.bin", "--limit-rate", "40M")
    assert curl.wait_for(16 << 20)
    owner = _owner(lab)
    others = [server["name"] for server in lab.servers() if server["name"] != owner]
    for name in (*others, owner):
        lab.fail(name, how="kill")
    lab.until(lambda: lab.takeovers()[-1]["state"] == "waiting", "nobody waits")
    # Who died last had all connections; the others' deaths may have been noticed in another order.
    *earlier, last = lab.takeovers()
    lab.heal(owner)
    assert curl.wait() == 0
    assert curl.digest == object_digest
    takeover = taken_over(lab, len(earlier), last["from"])
    assert (takeover["to"], takeover["resumed"]) == (owner, 1)
    for name in others:
        lab.heal(name)
