"""Who is dead, and who was only not heard because the listener itself was late. Time is an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.detector import TICK, Cause, Detector, Failure

TIMEOUT = 0.1


class Clock:
    """A detector that is asked every `TICK`."""

    def __init__(self) -> None:
        self.detector, self.now = Detector(TIMEOUT), 50.0
        self.detector.tick(self.now)

    def run(self, seconds: float, beating: tuple[str, ...] = ()) -> list[Failure]:
        failures: list[Failure] = []
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            for server in beating:
                self.detector.heard(server, self.now)
            failures += self.detector.tick(self.now)
        return failures


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    for server in ("s1", "s2"):
        clock.detector.watch(server, clock.now)
    return clock


def test_silence_up_to_the_limit_is_no_failure(clock: Clock) -> None:
    assert clock.run(TIMEOUT - TICK) == []


def test_silence_beyond_the_limit_is_one_failure_since_the_last_sign_of_life(clock: Clock) -> None:
    since = clock.now
    assert clock.run(TIMEOUT + 2 * TICK, beating=("s2",)) == [Failure("s1", Cause.SILENT, since)]


def test_a_failure_is_reported_once(clock: Clock) -> None:
    clock.run(TIMEOUT + 2 * TICK, beating=("s2",))
    assert clock.run(1.0, beating=("s2",)) == []
    assert clock.detector.failed("s1", Cause.PROCESS_ENDED) is None


def test_who_is_heard_lives_for_ever(clock: Clock) -> None:
    assert clock.run(10.0, beating=("s1", "s2")) == []


def test_being_heard_does_not_bring_back_who_has_failed(clock: Clock) -> None:
    clock.detector.failed("s1", Cause.LINK_DOWN)
    clock.detector.heard("s1", clock.now)
    assert clock.detector.age("s1", clock.now) is None
    assert clock.detector.failed("s1", Cause.PROCESS_ENDED) is None
    clock.detector.watch("s1", clock.now)
    assert clock.detector.age("s1", clock.now + 0.03) == pytest.approx(0.03)


@pytest.mark.parametrize("cause", [Cause.PROCESS_ENDED, Cause.LINK_DOWN, Cause.RESTARTED])
def test_direct_evidence_needs_no_silence(clock: Clock, cause: Cause) -> None:
    clock.detector.heard("s1", clock.now + 0.02)
    assert clock.detector.failed("s1", cause) == Failure("s1", cause, clock.now + 0.02)


def test_who_is_not_watched_cannot_fail(clock: Clock) -> None:
    assert clock.detector.failed("s9", Cause.PROCESS_ENDED) is None
    clock.detector.unwatch("s1")
    assert [failure.server for failure in clock.run(1.0)] == ["s2"]


def test_a_controller_that_was_held_up_blames_nobody_for_it(clock: Clock) -> None:
    clock.run(TIMEOUT / 2)
    clock.now += 5.0
    assert clock.detector.tick(clock.now) == []
    assert clock.run(TIMEOUT / 2 - 2 * TICK) == [], "nor for the time before"


def test_after_a_hold_up_silence_counts_on_from_where_it_was(clock: Clock) -> None:
    clock.run(TIMEOUT / 2)
    clock.now += 5.0
    clock.detector.tick(clock.now)
    assert {failure.server for failure in clock.run(TIMEOUT / 2 + 2 * TICK)} == {"s1", "s2"}


def test_ticks_that_are_a_little_late_forgive_nothing() -> None:
    detector, now = Detector(TIMEOUT), 50.0
    detector.tick(now)
    detector.watch("s1", now)
    failures: list[Failure] = []
    for _ in range(round(TIMEOUT / (2 * TICK)) + 1):
        now += 2 * TICK
        failures += detector.tick(now)
    assert [failure.server for failure in failures] == ["s1"]


@given(st.lists(st.floats(0.001, 3.0), max_size=30))
def test_no_pattern_of_hold_ups_makes_a_sign_of_life_lie_in_the_future(pauses: list[float]) -> None:
    detector, now = Detector(TIMEOUT), 50.0
    detector.tick(now)
    detector.watch("s1", now)
    for pause in pauses:
        now += pause
        failures = detector.tick(now)
        age = detector.age("s1", now)
        assert (age is None) == bool(failures)
        if age is None:
            break
        assert 0 <= age <= TIMEOUT
