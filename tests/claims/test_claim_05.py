"""Claim 5: the protocol that has a plurality of related connections has a control connection and a data connection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from dataplane.ftp.protocol import FtpSection
from state.sections import BUNDLE, CONTROL, BundleSection
from tests.claims.clients import Clients
from topologies import Lab

SIZE = 40 << 20


@pytest.mark.parametrize("options", [[], ["--ftp-port", "-"]], ids=["passive", "active"])
def test_the_shared_state_says_which_is_the_control_and_which_the_data_connection_and_both_go_on(
    lab: Lab, clients: Clients, copied: Callable[..., str], options: list[str]
) -> None:
    path = copied("/object.bin", SIZE)
    curl = clients.ftp("c1", ["--limit-rate", "16M", *options], path)
    assert curl.wait_for(8 << 20)
    (bundle,) = clients.bundles()
    (part,) = bundle["parts"]
    control, data = bundle["id"], part["connection"]
    assert (part["role"], part["transport"], bundle["client"]) == ("data", "tcp", "10.0.0.201")
    # Each has a checkpoint of its own, which says as what it belongs to the bundle.
    first, shown = bundle["server"], {each["id"]: each for each in lab.connections()}
    assert {name: (each["server"], each["bundle"]["id"]) for name, each in shown.items()} == {
        control: (first, control),
        data: (first, control),
    }
    assert (shown[control]["bundle"]["role"], shown[data]["bundle"]["role"]) == (CONTROL, "data")
    blocks = [clients.stored(name) for name in (control, data)]
    assert [block.header.protocol for block in blocks] == ["ftp", "ftp-data"]
    assert [block.section(BUNDLE, BundleSection).role for block in blocks] == [CONTROL, "data"]
    # What the client asked for over the one is what is sent over the other.
    transfer = blocks[0].section("ftp", FtpSection).transfer
    assert transfer is not None and (transfer.verb, transfer.path) == ("RETR", blocks[1].header.object)

    clients.fail(first)
    takeover = clients.takeover()
    assert (takeover["resumed"], takeover["reset"]) == (2, {})
    assert {(c["connection"], c["outcome"]) for c in takeover["comparisons"]} == {
        (control, "resumed"),
        (data, "resumed"),
    }
    assert clients.bundle(control, takeover["to"])["parts"] == bundle["parts"]
    assert clients.connection(part["remote_port"], part["local_port"])["bundle"]["role"] == "data"
    assert curl.wait() == 0, "the data came to their end, and the control connection said so"
    assert curl.digest == hashlib.sha256(clients.content(0, SIZE, path)).hexdigest()
