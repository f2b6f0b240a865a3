"""Which switch the Ryu application believes: events as Ryu sends them, a runtime that only notes what it is told."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from controller import steering
from controller.app import TakeoverApp
from controller.ryu_adapter import OFP
from tests.unit import scenario

# isort: split
from ryu.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER

LOCAL = OFP.OFPP_LOCAL


class Runtime:
    """What the application told it."""

    def __init__(self) -> None:
        self.configuration = scenario.config(2)
        self.errors: Counter[str] = Counter()
        self.switch_messages: Counter[str] = Counter()
        self.late_packets = 0
        self.told: list[tuple[Any, ...]] = []

    def start(self) -> None:
        return

    def switch_connected(self, switch: Any, ports: dict[str, int]) -> None:
        self.told.append(("connected", switch.datapath, ports))

    def switch_disconnected(self, switch: Any) -> None:
        self.told.append(("disconnected", switch.datapath))

    def port_changed(self, name: str, number: int, up: bool) -> None:
        self.told.append(("port", name, up))

    def close_seen(self, *seen: Any) -> None:
        self.told.append(("close", *seen))


class Datapath:
    def __init__(self, number: int) -> None:
        self.id = number
        self.closed = False

    def send_msg(self, message: Any) -> None:
        return

    def close(self) -> None:
        self.closed = True


def port(name: str, number: int, *, down: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=name.encode(), port_no=number, state=OFP.OFPPS_LINK_DOWN if down else 0, config=0)


class Shell:
    def __init__(self) -> None:
        self.runtime = Runtime()
        self.app = TakeoverApp(takeover=self.runtime)

    def connects(self, datapath: Datapath, bridge: str = "br0", *, local_down: bool = False) -> None:
        self.app._state(SimpleNamespace(datapath=datapath, state=MAIN_DISPATCHER))
        self.describes(datapath, port("s1-eth0", 1), more=True)
        self.describes(datapath, port(bridge, LOCAL, down=local_down), port("s2-eth0", 2, down=True))

    def describes(self, datapath: Datapath, *ports: Any, more: bool = False) -> None:
        flags = OFP.OFPMPF_REPLY_MORE if more else 0
        self.app._port_descriptions(SimpleNamespace(msg=SimpleNamespace(datapath=datapath, body=ports, flags=flags)))

    def ends(self, datapath: Datapath) -> None:
        self.app._state(SimpleNamespace(datapath=datapath, state=DEAD_DISPATCHER))


@pytest.fixture
def shell() -> Shell:
    return Shell()


def test_the_configured_bridge_is_adopted_once_it_has_told_all_its_ports(shell: Shell) -> None:
    real = Datapath(1)
    shell.connects(real)
    assert shell.runtime.told == [("connected", real, {"s1-eth0": 1, "br0": LOCAL})]
    shell.ends(real)
    assert shell.runtime.told[1:] == [("disconnected", real)]


def test_its_own_port_may_be_down(shell: Shell) -> None:
    shell.connects(Datapath(1), local_down=True)
    assert [kind for kind, *_ in shell.runtime.told] == ["connected"]


def test_another_bridge_is_turned_away_and_the_adopted_one_stays(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    real, other = Datapath(1), Datapath(2)
    shell.connects(real)
    shell.connects(other, "br1")
    assert other.closed and not real.closed
    assert "br1" in caplog.text and "br0" in caplog.text
    shell.ends(other)
    assert [kind for kind, *_ in shell.runtime.told] == ["connected"]


def test_a_bridge_without_a_port_of_its_own_is_turned_away(shell: Shell) -> None:
    other = Datapath(2)
    shell.app._state(SimpleNamespace(datapath=other, state=MAIN_DISPATCHER))
    shell.describes(other, port("br0", 7))
    assert other.closed and shell.runtime.told == []


def test_another_switch_of_the_same_name_does_not_take_the_place_of_one_that_is_there(shell: Shell) -> None:
    real, other = Datapath(1), Datapath(2)
    shell.connects(real)
    shell.connects(other)
    assert other.closed and len(shell.runtime.told) == 1
    shell.ends(real)
    again = Datapath(2)
    shell.connects(again)
    assert shell.runtime.told[-1][:2] == ("connected", again)


def test_the_same_switch_may_come_back_before_its_end_was_noticed(shell: Shell) -> None:
    old, new = Datapath(1), Datapath(1)
    shell.connects(old)
    shell.connects(new)
    assert old.closed and [told[:2] for told in shell.runtime.told] == [
        ("connected", old),
        ("disconnected", old),
        ("connected", new),
    ]
    shell.ends(old)
    assert len(shell.runtime.told) == 3


def test_what_any_other_switch_says_is_not_heard(shell: Shell) -> None:
    real, other = Datapath(1), Datapath(2)
    shell.connects(real)
    shell.app._state(SimpleNamespace(datapath=other, state=MAIN_DISPATCHER))
    for datapath in (other, real):
        status = SimpleNamespace(datapath=datapath, reason=OFP.OFPPR_DELETE, desc=port("s1-eth0", 1))
        shell.app._port_status(SimpleNamespace(msg=status))
        error = SimpleNamespace(datapath=datapath, type=1, code=1, data=b"", xid=5)
        shell.app._error(SimpleNamespace(msg=error))
        packet = SimpleNamespace(datapath=datapath, cookie=steering.COOKIE_GATE, data=b"short", match={"in_port": 1})
        shell.app._packet_in(SimpleNamespace(msg=packet))
        flow = SimpleNamespace(cookie=steering.COOKIE_LATE, packet_count=datapath.id)
        shell.app._flow_statistics(SimpleNamespace(msg=SimpleNamespace(datapath=datapath, body=[flow])))
        if datapath is other:
            assert len(shell.runtime.told) == 1 and not shell.runtime.errors and not shell.runtime.late_packets
    assert shell.runtime.told[1:] == [("port", "s1-eth0", False)]
    assert shell.runtime.errors == {"openflow 1/1": 1, "packet-in": 1} and shell.runtime.late_packets == 1
