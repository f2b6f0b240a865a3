"""Claim 10: recreating includes communicating with a plurality of protocols in the second server to give a ready signal
in response to a *successful* comparison. So where no comparison succeeds, there is no ready signal."""

from __future__ import annotations

from pathlib import Path

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
    """Two tickers of one server die with it. One client says nothing for a while: nothing can be compared."""
    heard = clients.ticker(1, 300, 20, "c1")
    owner = clients.connection(heard.port, TICKER_PORT)["server"]
    silent = clients.on(owner, TICKER_PORT, "c2", lambda: clients.ticker(1, 300, 20, "c2"))
    browsing = clients.on(owner, 80, "c1", clients.plain)
    silent.line()
    with capture(lab, "c2", tmp_path, f"tcp port {TICKER_PORT}") as wire:
        lab.run("c2", ["nft", SILENCE], check=True)
        try:
            killed = clients.fail(owner)
            lab.until(lambda: _standing(lab) == (2, 1), "two are not resumed while one waits")
            second = lab.takeovers()[-1]["to"]
            for _ in range(30):
                assert heard.line(), "the one whose client could be asked goes on"
            assert _standing(lab) == (2, 1)
            wire.stop()
        finally:
            lab.run("c2", ["nft", "delete table inet silence"], check=True)
        # Without a ready signal the silent client's ticker did not tick: nothing but probes came to it.
        since = [s for s in wire.to_client(silent.port) if s.when > killed and s.sender == second]
        assert since
        assert all(s.segment.payload_length <= 1 for s in since)
    # It speaks again: the comparison succeeds, and the protocol is told.
    takeover = clients.takeover()
    assert (takeover["resumed"], takeover["reset"]) == (3, {})
    assert sorted((c["protocol"], c["outcome"]) for c in takeover["comparisons"]) == [
        ("http/1.1", "resumed"),
        ("ticker/1", "resumed"),
        ("ticker/1", "resumed"),
    ]
    assert all(compared["ack"] is not None for compared in takeover["comparisons"])
    browsing.say(b"GET /1k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
    assert browsing.hear(1 << 20).endswith(clients.content(0, 1024, "/1k"))
    for client in (heard, silent):
        assert client.wait() == 0
        assert client.lines == [line(number) for number in range(1, 301)]


def _standing(lab: Lab) -> tuple[int, int]:
    """Of the last takeover: how many are resumed, how many wait."""
    last = lab.takeovers()[-1]
    return last["resumed"], last["waiting"]
