"""Claim 16: in the method, too, the protocol has a control connection and a data connection. A client gets two files
over one control connection, each over a data connection of its own, and in both transfers its server dies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.claims.clients import Clients
from tests.claims.wire import Capture, capture
from topologies import Lab

SIZE = 40 << 20


def said(wire: Capture, port: int) -> list[tuple[int, str]]:
    """The replies on the control connection, in the order of their bytes: code, and who sent it."""
    begin = wire.iss(port) + 1
    sent = {begin.distance(s.segment.seq): s for s in wire.data(port)}
    return [
        (int(code), sent[place].sender)
        for place in sorted(sent)
        for code in re.findall(rb"^(\d{3}) ", sent[place].segment.payload, re.MULTILINE)
    ]


@pytest.mark.parametrize("options", [[], ["--ftp-port", "-"]], ids=["passive", "active"])
def test_control_and_data_connection_go_on_together_at_each_next_server(
    lab: Lab, clients: Clients, tmp_path: Path, copied: Callable[..., str], options: list[str]
) -> None:
    path = copied("/object.bin", SIZE)
    deaths, takeovers, bundles = [], [], []
    with capture(lab, "c1", tmp_path, "tcp") as wire:
        curl = clients.ftp("c1", ["--limit-rate", "20M", *options], path, path)
        for count in (8 << 20, SIZE + (8 << 20)):
            assert curl.wait_for(count)
            (bundle,) = clients.bundles()
            bundles.append(bundle)
            deaths.append(clients.fail(bundle["server"]))
            takeovers.append(clients.takeover())
        assert curl.wait() == 0
        wire.stop()
    assert curl.digest == hashlib.sha256(clients.content(0, SIZE, path) * 2).hexdigest()
    # One control connection all the time, and two data connections.
    control = bundles[0]["id"]
    assert bundles[1]["id"] == control
    data = [part["connection"] for bundle in bundles for part in bundle["parts"]]
    assert len(set(data)) == len(data) == 2
    owners = [bundles[0]["server"], *(takeover["to"] for takeover in takeovers)]
    for killed, takeover, name, second in zip(deaths, takeovers, data, owners[1:], strict=True):
        compared = {c["connection"]: c for c in takeover["comparisons"]}
        assert compared.keys() == {control, name} and takeover["resumed"] == 2
        # Both were compared before either went on, and each then did at its own byte.
        ports = {each: int(each.split("-")[1]) for each in compared}
        answered = [next(s.when for s in wire.answers_to_probes(p) if s.when > killed) for p in ports.values()]
        for each, port in ports.items():
            went_on = wire.data(port, second)[0]
            assert went_on.when > max(answered)
            assert went_on.segment.seq == compared[each]["ack"]
    # The control connection speaks of the data connections' beginnings and ends, each once and from who then had both.
    port = int(control.split("-")[1])
    assert [reply for reply in said(wire, port) if reply[0] in (150, 226)] == [
        (150, owners[0]),
        (226, owners[1]),
        (150, owners[1]),
        (226, owners[2]),
    ]
