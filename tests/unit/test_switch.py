"""What is said to the switch goes out in the order in which it was decided, whatever the connection does."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import eventlet
import pytest
from eventlet.semaphore import Semaphore

from controller import steering
from controller.ryu_adapter import DESCRIPTION, OFP, PARSER
from controller.switch import OpenFlowSwitch

_HEADER = struct.Struct("!BBHI")


class SlowDatapath:
    """A datapath whose send queue is always full: `send` suspends its caller until the test lets one go."""

    ofproto, ofproto_parser = OFP, PARSER
    id = 1

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.room = Semaphore(0)
        self._xid = 0

    def set_xid(self, message: Any) -> int:
        self._xid += 1
        message.set_xid(self._xid)
        return self._xid

    def send(self, data: bytes) -> None:
        self.room.acquire()
        self.sent.append(data)


def messages_of(data: bytes) -> list[tuple[int, bytes]]:
    """(type, bytes) of every message in a piece."""
    found = []
    while data:
        _, type_, length, _ = _HEADER.unpack_from(data)
        found.append((type_, data[:length]))
        data = data[length:]
    return found


def flow(cookie: int) -> Any:
    return PARSER.OFPFlowMod(DESCRIPTION, cookie=cookie, match=PARSER.OFPMatch(), instructions=[])


def nothing() -> None:
    return


@pytest.fixture
def datapath() -> SlowDatapath:
    return SlowDatapath()


def let_go(datapath: SlowDatapath, count: int) -> None:
    for _ in range(count):
        datapath.room.release()
        eventlet.sleep(0)


def test_a_full_connection_suspends_nobody_and_keeps_the_order(datapath: SlowDatapath) -> None:
    switch = OpenFlowSwitch(datapath)
    switch.commit([flow(n) for n in range(40)], nothing, nothing)
    switch.send(flow(40))
    switch.commit([flow(41)], nothing, nothing)
    assert datapath.sent == []
    let_go(datapath, 3)
    first, second, third = (messages_of(piece) for piece in datapath.sent)
    assert [len(first), len(second), len(third)] == [42, 1, 3], "a bundle is one piece"
    assert second[0][0] == OFP.OFPT_FLOW_MOD


def test_others_have_their_turn_while_a_long_bundle_is_made(
    datapath: SlowDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 0.001)
    monkeypatch.setattr("controller.switch.time.perf_counter", lambda: next(clock))
    made: list[int] = []
    turns: list[int] = []

    def bundle() -> Iterator[Any]:
        for number in range(40):
            made.append(number)
            yield flow(number)

    def other() -> None:
        while len(made) < 40:
            turns.append(len(made))
            eventlet.sleep(0)

    switch = OpenFlowSwitch(datapath)
    switch.commit(bundle(), nothing, nothing)
    assert made == [], "nothing is made by whoever decides"
    eventlet.spawn_n(other)
    datapath.room.release()
    with eventlet.Timeout(5):
        while not datapath.sent:
            eventlet.sleep(0)
    assert len(set(turns)) > 8
    assert len(messages_of(datapath.sent[0])) == 42, "and yet it is one piece"


def test_a_commit_is_answered_once(datapath: SlowDatapath) -> None:
    switch, heard = OpenFlowSwitch(datapath), []
    for name in ("first", "second"):
        switch.commit([flow(1)], lambda n=name: heard.append(n), lambda n=name: heard.append(f"{n} refused"))
    let_go(datapath, 2)
    switch.replied(1, OFP.ONF_BCT_OPEN_REPLY)
    assert heard == []
    switch.replied(1, OFP.ONF_BCT_COMMIT_REPLY)
    switch.replied(1, OFP.ONF_BCT_COMMIT_REPLY)
    assert heard == ["first"]


def test_a_refused_commit_is_told(datapath: SlowDatapath) -> None:
    switch, heard = OpenFlowSwitch(datapath), []
    switch.commit([flow(1)], lambda: heard.append("committed"), lambda: heard.append("refused"))
    let_go(datapath, 1)
    *parts, commit = messages_of(datapath.sent[0])
    for _, part in parts:
        switch.failed(_HEADER.unpack_from(part)[3])
    assert heard == [], "of a bundle only the commit's own error counts"
    xid = _HEADER.unpack_from(commit[1])[3]
    switch.failed(xid)
    switch.failed(xid)
    switch.replied(1, OFP.ONF_BCT_COMMIT_REPLY)
    assert heard == ["refused"]


def test_nothing_is_sent_after_the_end(datapath: SlowDatapath) -> None:
    switch = OpenFlowSwitch(datapath)
    switch.send(steering.late_packets())
    switch.close()
    let_go(datapath, 2)
    assert datapath.sent == []


def test_a_bundle_that_cannot_be_written_is_refused_and_the_next_one_is_said(datapath: SlowDatapath) -> None:
    switch = OpenFlowSwitch(datapath)
    refused: list[int] = []
    switch.commit([flow(1), flow("no number")], nothing, lambda: refused.append(1))  # type: ignore[arg-type]
    switch.commit([flow(2)], nothing, lambda: refused.append(2))
    let_go(datapath, 2)
    assert refused == [1]
    (piece,) = datapath.sent
    assert len(messages_of(piece)) == 3
