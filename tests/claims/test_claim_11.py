"""Claim 11: the method performs a connection checkpoint with an API that causes each of a plurality of protocols in the
first server to append its state information to a data block with respect to the connection, for the shared state."""

from __future__ import annotations

from dataplane.examples.ticker import TickerSection, offset_of
from state.sections import STREAM, StreamSection
from tests.claims.clients import MANY, Clients
from topologies import Lab

TICKER_PORT = 7000


def test_each_checkpoint_has_what_every_protocol_knew_in_one_and_the_same_moment(lab: Lab, clients: Clients) -> None:
    """The ticker's section says which line is next, the stream's what is planned: at every checkpoint they agree."""
    ticking = clients.ticker(95, MANY, 10)
    name = clients.connection(ticking.port, TICKER_PORT)["id"]
    serials: set[int] = set()
    while len(serials) < 20:
        block = clients.stored(name)
        serials.add(block.header.serial)
        stream, own = block.section(STREAM, StreamSection), block.section("ticker/1", TickerSection)
        if own.end:  # the request came
            assert (own.end, own.milliseconds) == (95 + MANY, 10)
            assert stream.end == offset_of(own.next) - offset_of(95)
            ticking.take(1)
    owner = clients.connection(ticking.port, TICKER_PORT)["server"]
    clients.fail(owner)
    takeover = clients.takeover()
    assert takeover["resumed"] == 1
    lab.until(lambda: clients.stored(name).header.server == takeover["to"], "the second server makes no checkpoint")
    again = clients.stored(name)
    assert [section.name for section in again.sections] == ["tcp", "stream", "ticker/1"]
    assert again.header.serial > max(serials)
    ticking.take(50)
