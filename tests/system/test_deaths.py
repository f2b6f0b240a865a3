"""Every way in which a server dies, and what it may not do when it comes back."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack

import pytest

from controller.conductor import UNHEARD
from tests.fate import decided, taken_over
from tests.system.client_at_hand import inside
from topologies import Lab
from topologies.watcher import digest_of, download

_RESET_LIMIT = 2.0
_CAUSES = {"kill": "process ended", "hang": "no heartbeat", "power": "no heartbeat", "link": "link down"}

_MANY = """
import http.client, sys
connections = [http.client.HTTPConnection("vip", 80, timeout=10) for _ in range(64)]
for connection in connections:
    connection.request("GET", "/1k")
    assert len(connection.getresponse().read()) == 1024
print("answered", flush=True)
sys.stdin.read()
"""


def _late_packets(lab: Lab) -> int:
    """Packets that the fence dropped, as the switch counts them."""
    flows = subprocess.run(
        ["ovs-ofctl", "-O", "OpenFlow13", "dump-flows", lab.configuration.switch.bridge, "table=3"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (late,) = [line for line in flows.splitlines() if "cookie=0x74616b6500000001" in line]
    return int(late.split("n_packets=")[1].split(",")[0])


@pytest.mark.parametrize("vip", ["vip", "vip6"])
@pytest.mark.parametrize("how", ["kill", "hang", "power", "link"])
def test_each_death_is_detected_by_its_own_means_and_survived(lab: Lab, how: str, vip: str) -> None:
    curl = download(lab, "c1", vip=vip)
    assert curl.wait_for(32 << 20)
    owner = lab.connections()[0]["server"]
    incarnation = lab.connections()[0]["checkpoint"]["incarnation"]
    before = len(lab.takeovers())
    lab.fail(owner, how=how)
    assert curl.wait() == 0
    assert curl.digest == digest_of(lab.status()["docroot"] + "/object.bin")
    assert taken_over(lab, before)["resumed"] == 1
    assert [t["cause"] for t in lab.takeovers()[before:] if t["from"] == owner] == [_CAUSES[how]]
    lab.heal(owner)
    healed = lab.server(owner)
    assert healed["incarnation"] > incarnation
    assert healed["state"] == "up"
    assert healed["slots"] > 0


def test_a_hung_server_that_wakes_up_while_its_connection_lives_elsewhere_harms_nobody(lab: Lab) -> None:
    curl = download(lab, "c1", "/object.bin", "--limit-rate", "30M")
    assert curl.wait_for(32 << 20)
    owner = lab.connections()[0]["server"]
    before = _late_packets(lab)
    lab.fail(owner, how="hang")
    assert curl.wait_for(64 << 20), "the backup goes on"
    # The hung process's kernel goes on sending what it had, and sends it again: the fence counts it.
    lab.until(lambda: _late_packets(lab) > before, "no packet of the hung server was caught")
    lab.heal(owner)  # in the middle of the download
    assert curl.process.poll() is None
    sockets = lab.run(owner, ["ss", "-Htan", "state", "all", "sport", "=", ":80"], capture_output=True, text=True)
    assert [line for line in sockets.stdout.splitlines() if "LISTEN" not in line] == [], "no orphan remains"
    assert curl.wait() == 0
    assert curl.digest == digest_of(lab.status()["docroot"] + "/object.bin")
    assert len([t for t in lab.takeovers() if t["from"] == owner and t["cause"] == "no heartbeat"]) >= 1
    assert owner not in {connection["server"] for connection in lab.connections()}


def test_a_cut_off_server_that_comes_back_serves_new_connections(lab: Lab) -> None:
    curl = download(lab, "c1", "/object.bin", "--limit-rate", "30M")
    assert curl.wait_for(32 << 20)
    owner = lab.connections()[0]["server"]
    lab.fail(owner, how="link")
    assert curl.wait_for(64 << 20), "the backup goes on"
    lab.heal(owner)
    with lab.popen("c2", ["python3", "-c", _MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == b"answered\n"
        assert owner in {connection["server"] for connection in lab.connections()}
        client.stdin.close()
    assert lab.server(owner)["slots"] > 0
    assert curl.wait() == 0
    assert curl.digest == digest_of(lab.status()["docroot"] + "/object.bin")


@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_who_connects_before_a_hang_is_noticed_is_reset_within_two_seconds_and_counted(lab: Lab, vip: str) -> None:
    """The hung server's kernel accepts them and acknowledges what they ask. Nobody else knows of them, and they have
    nothing to send again."""
    lab.until(lambda: not lab.connections() and all(server["backup"] for server in lab.servers()), "no rest")
    before, service, reset = len(lab.takeovers()), lab.vips()[vip], 0
    family = socket.AF_INET6 if ":" in service else socket.AF_INET

    def asking() -> socket.socket:
        sock = socket.socket(family)
        sock.settimeout(_RESET_LIMIT)
        sock.connect((service, 80))
        sock.sendall(b"GET /1k HTTP/1.1\r\nHost: vip\r\n\r\n")
        return sock

    lab.fail("s1", how="hang")
    with ExitStack() as clients:
        socks = [clients.enter_context(inside(lab, "c1", asking)) for _ in range(24)]
        connected = time.monotonic()
        for sock in socks:
            try:
                assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            except ConnectionResetError:
                reset += 1
        assert time.monotonic() - connected < _RESET_LIMIT
        assert reset, "none of them came to the hung server"
    takeover = taken_over(lab, before, "s1")
    lab.until(lambda: decided(lab, before, "s1")["reset"] == {UNHEARD: reset}, f"{reset} were reset: {takeover}")
    lab.heal("s1")
