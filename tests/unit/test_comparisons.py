"""Unready connections: built from another server's checkpoints, counted by owner, and what a takeover compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import Application, ApplicationKind, CheckpointRefused, DataBlock, DocumentRoot
from dataplane.backup import RESUMED
from dataplane.examples.ticker import TICKER, TickerSection
from dataplane.host import Host
from dataplane.stack import Registry
from dataplane.unready import UnreadySet
from state.datablock import FourTuple
from state.messages import Comparison
from state.sections import STREAM, TCP, Extent, Label
from tests.unit.builders import (
    ACKED,
    END,
    ISS,
    document_root,
    four_tuple,
    header,
    proof,
    stream_section,
    tcp_section,
    wire,
)
from tests.unit.live import StoringHost


def _never(root: DocumentRoot, block: DataBlock) -> Application:
    raise ZeroDivisionError("an author's mistake")


BROKEN = ApplicationKind("broken/1", TICKER.fresh, _never)


@pytest.fixture
def unready(tmp_path: Path) -> Iterator[UnreadySet]:
    registry = Registry()
    registry.add(TICKER)
    registry.add(BROKEN)
    with document_root(tmp_path) as root:
        host: Host = StoringHost(root, True)
        yield UnreadySet(host, registry)


def block(connection: FourTuple | None = None, protocol: str = "ticker/1", **changes: object) -> bytes:
    made = DataBlock(
        header(protocol=protocol, connection=connection or four_tuple(), object="log", object_first=wire(40))
    )
    made.append(TCP, tcp_section())
    plain = {
        "objects": [],
        "extents": [Extent(ACKED, END - ACKED, literal=b"x" * (END - ACKED))],
        "labels": [Label(200, "log", 160)],
    }
    made.append(STREAM, stream_section(**(plain | changes)))
    made.append("ticker/1", TickerSection(b"", 5, 9, 100))
    return made.encode()


def test_they_are_counted_by_owner_ahead_of_any_failure(unready: UnreadySet) -> None:
    others = [four_tuple(destination_port=40_000 + 2 * i) for i in range(1, 4)]
    unready.build("s1", [block(), *(block(other) for other in others[:2])])
    unready.build("s2", [block(others[2])])
    assert unready.counts() == {"s1": 3, "s2": 1}
    unready.forget("s1", [others[0].id])
    assert unready.counts() == {"s1": 2, "s2": 1}
    assert len(unready.take("s1")) == 2
    assert unready.counts() == {"s2": 1}


def test_a_protocol_that_fails_to_build_one_is_counted_and_the_others_are_built(unready: UnreadySet) -> None:
    other = four_tuple(destination_port=40_002)
    unready.build("s1", [block(protocol="broken/1"), block(other), block(protocol="unknown/1")])
    assert unready.counts() == {"s1": 1}
    assert unready.refused == {"broken/1": 1, "protocol": 1}


def test_what_was_compared_is_told_with_the_byte_of_the_object(unready: UnreadySet) -> None:
    unready.build("s1", [block()])
    (entry,) = unready.take("s1")
    name = four_tuple().id
    assert entry.comparison(proof(500), RESUMED) == Comparison(
        name, "ticker/1", "resumed", wire(ACKED), wire(END), wire(500), "log", 460, wire(40)
    )
    assert entry.comparison(None, "client gone") == Comparison(
        name, "ticker/1", "client gone", wire(ACKED), wire(END), None, "log", None, wire(40)
    )
    before_the_object = entry.comparison(proof(199), RESUMED)
    assert (before_the_object.ack, before_the_object.offset) == (wire(199), None)
    assert wire(40) == (ISS + 1 + 200 - 160) % 2**32


def test_of_labels_that_contradict_each_other_the_field_is_named(unready: UnreadySet) -> None:
    unready.build("s1", [block(labels=[Label(END + 1, "log", 0)])])
    assert unready.counts() == {"s1": 0}
    assert unready.refused == {"labels": 1}
    with pytest.raises(CheckpointRefused, match="labels"):
        stream_section(labels=[Label(END + 1, "log", 0)]).check()
