"""Claim 10: recreating includes communicating with a plurality of protocols in the second server to give a ready signal
in response to a *successful* comparison. So where no comparison succeeds, there is no ready signal."""

from __future__ import annotations

from pathlib import Path

from dataplane.backup import NO_PROOF
from dataplane.examples.ticker import line
from tests.claims.clients import Clients
from tests.claims.wire import capture
from topologies import Lab

TICKER_PORT = 7000
SILENCE = "add table inet silence; add chain inet silence o { type filter hook output priority 0; }; \
add rule inet silence o tcp dport 7000 drop"


def test_a_protocol_is_told_ready_where_the_comparison_succeeded_and_not_where_it_did_not(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    """Two tickers of one server die with it. One client says nothing any more: nothing can be compared."""
    heard = clients.ticker(1, 200, 20, "c1")
    owner = clients.connection(heard.port, TICKER_PORT)["server"]
    silent = clients.on(owner, TICKER_PORT, "c2", lambda: clients.ticker(1, 1000, 20, "c2"))
    browsing = clients.on(owner, 80, "c1", clients.plain)
    silent.line()
    with capture(lab, "c2", tmp_path, f"tcp port {TICKER_PORT}") as wire:
        lab.run("c2", ["nft", SILENCE], check=True)
        try:
            killed = clients.fail(owner)
            takeover = clients.takeover()
        finally:
            lab.run("c2", ["nft", "delete table inet silence"], check=True)
        wire.stop()
    assert (takeover["resumed"], takeover["reset"]) == (2, {NO_PROOF: 1})
    fates = {compared["connection"]: compared for compared in takeover["comparisons"]}
    unproven = fates.pop(f"10.0.0.202-{silent.port}-10.0.0.100-{TICKER_PORT}")
    assert (unproven["ack"], unproven["outcome"]) == (None, NO_PROOF)
    assert {fate["protocol"]: fate["outcome"] for fate in fates.values()} == {
        "http/1.1": "resumed",
        "ticker/1": "resumed",
    }
    assert all(fate["ack"] is not None for fate in fates.values())
    # Without a ready signal the silent client's ticker did not tick: nothing but probes and the reset came to it.
    since = [s for s in wire.to_client(silent.port) if s.when > killed and s.sender == takeover["to"]]
    assert since
    assert all(s.segment.payload_length <= 1 for s in since)
    # With it, the others go on.
    browsing.say(b"GET /1k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
    assert browsing.hear(1 << 20).endswith(clients.content(0, 1024, "/1k"))
    assert heard.wait() == 0
    assert heard.lines == [line(number) for number in range(1, 201)]
