"""Claim 15: in the method, too, the API bundles connection information with respect to a protocol that has a plurality
of related connections. So they are with one server, before and after it dies, and nothing of a bundle goes on before
the numbers of its connection were compared."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.claims.clients import Clients
from tests.claims.wire import Capture, capture
from topologies import Lab

_INTERRUPTED = 255
"""ffmpeg's exit status when it was told to stop and did so in good order."""


def check_order(wire: Capture, port: int, killed: int, second: str) -> None:
    """TCP was compared before UDP went on."""
    compared = next(s.when for s in wire.answers_to_probes(port) if s.when > killed)
    went_on = wire.heard_from(second)[0].at_ns
    assert killed < compared < went_on


def test_two_bundles_are_each_with_one_server_through_two_deaths(lab: Lab, clients: Clients, tmp_path: Path) -> None:
    with (
        capture(lab, "c1", tmp_path, "tcp port 554 or udp") as wire1,
        capture(lab, "c2", tmp_path, "tcp port 554 or udp") as wire2,
    ):
        players = [clients.player(tmp_path, host, "udp") for host in ("c1", "c2")]
        for player in players:
            player.wait_for(1.0)
        bundles = clients.bundles()
        owners, deaths = [bundles[0]["server"]], []
        for _ in range(2):
            deaths.append(clients.fail(owners[-1]))
            takeover = clients.takeover()
            assert (takeover["from"], takeover["resumed"], takeover["reset"]) == (owners[-1], 2, {})
            owners.append(takeover["to"])
            for player in players:
                player.wait_for(player.played + 1.0)
        names = [each["id"] for each in bundles]
        assert [clients.bundle(name, owners[-1])["parts"] for name in names] == [each["parts"] for each in bundles]
        # The control connection goes on, too, and still rules the data: when it ends, they do.
        for player in players:
            player.process.send_signal(signal.SIGINT)
            assert player.wait() == _INTERRUPTED
        lab.until(lambda: not clients.bundles(), "a bundle remains without its control connection")
        wire1.stop()
        wire2.stop()
    assert [each["client"] for each in bundles] == ["10.0.0.201", "10.0.0.202"]
    for bundle, wire in zip(bundles, (wire1, wire2), strict=True):
        port = int(bundle["id"].split("-")[1])
        assert wire.senders(wire.rtp) == owners
        for killed, second in zip(deaths, owners[1:], strict=True):
            check_order(wire, port, killed, second)
        asked = next(s for s in wire.from_client(port) if s.segment.payload.startswith(b"TEARDOWN "))
        answered = next(s for s in wire.data(port) if s.when > asked.when)
        assert (answered.sender, answered.segment.payload[:13]) == (owners[-1], b"RTSP/1.0 200 ")
        assert wire.rtp[-1].at_ns < answered.when
