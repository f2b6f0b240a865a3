"""Claim 10: recreating includes communicating with a plurality of protocols in the second server to give a ready signal
in response to a *successful* comparison. So where nothing can be compared, there is no ready signal."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.claims.clients import MANY, Clients
from tests.claims.wire import capture
from tests.fate import fate
from topologies import Lab

TICKER_PORT = 7000
SILENCE = "add table inet silence; add chain inet silence o { type filter hook output priority 0; }; \
add rule inet silence o tcp dport 7000 drop"


def test_a_protocol_is_told_ready_where_the_comparison_succeeded_and_not_before(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    """Three connections of two protocols lose their server. One client is not heard for a while."""
    browsing = clients.plain("c1", 80)
    owner = clients.connection(browsing.port)["server"]
    heard = clients.on(owner, TICKER_PORT, "c1", lambda: clients.ticker(1, MANY, 20))
    silent = clients.on(owner, TICKER_PORT, "c2", lambda: clients.ticker(1, MANY, 20, "c2"))
    heard.take(3)
    silent.take(3)
    with capture(lab, "c2", tmp_path, f"tcp port {TICKER_PORT}") as wire:
        lab.run("c2", ["nft", SILENCE], check=True)
        try:
            before = len(lab.takeovers())
            killed = clients.fail(owner)
            resumed = "the clients that are heard are not resumed"
            lab.until(lambda: (begun := fate(lab, before, owner)) and begun["resumed"] == 2, resumed)
            takeover = fate(lab, before, owner)
            assert takeover is not None and (takeover["waiting"], takeover["reset"]) == (1, {})
            assert clients.connection(silent.port, TICKER_PORT, "c2")["state"] == "unready"
            # Told ready, the others do their work.
            browsing.say(b"GET /1k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
            assert browsing.hear(1 << 20).endswith(clients.content(0, 1024, "/1k"))
            while time.time_ns() < killed + 500_000_000:
                heard.take(1)
            assert clients.connection(silent.port, TICKER_PORT, "c2")["state"] == "unready"
        finally:
            lab.run("c2", ["nft", "delete table inet silence"], stderr=subprocess.DEVNULL, check=True)
        silent.take(30)
        takeover = clients.takeover()
        wire.stop()
    assert (takeover["resumed"], takeover["reset"]) == (3, {})
    fates = {compared["connection"]: compared for compared in takeover["comparisons"]}
    assert {fate["outcome"] for fate in fates.values()} == {"resumed"}
    # For as long as nothing could be compared nothing of the stream was sent, though the ticker's time had come.
    last = fates[f"10.0.0.202-{silent.port}-10.0.0.100-{TICKER_PORT}"]
    answered = next(s.when for s in wire.answers_to_probes(silent.port) if s.when > killed)
    sent = wire.data(silent.port, takeover["to"])
    assert sent[0].when > answered
    assert sent[0].segment.seq == last["ack"]
    assert answered - killed > 500_000_000, "while the other ticker ticked"
