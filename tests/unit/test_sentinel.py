"""When a sentinel speaks of an agent that hangs: once for each silence, and never before the first beat."""

from __future__ import annotations

import pytest

from dataplane import sentinel
from dataplane.sentinel import Sentinel
from state.configuration import Address


def test_each_silence_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sentinel.time, "monotonic", lambda: now)
    watching = Sentinel("s1", Address("127.0.0.1", 1), (), 0.3)
    assert not watching._just_fell_silent()
    now += 60
    assert not watching._just_fell_silent(), "it has not begun to serve"
    for number in range(1, 4):
        watching.beat(number)
        assert not watching._just_fell_silent()
        now += 0.2
    assert not watching._just_fell_silent()
    now += 0.2
    assert watching._just_fell_silent()
    now += 60
    assert not watching._just_fell_silent(), "that was said"
    watching.beat(4)
    assert not watching._just_fell_silent()
    now += 0.31
    assert watching._just_fell_silent()
