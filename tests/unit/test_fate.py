"""Which takeovers tests put up with beside the one that they cause (tests/fate.py), and which they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fate import fate, taken_over
from topologies.record import LabError


class Lab:
    """s1 was killed, and this is the history."""

    def __init__(self, *takeovers: dict[str, Any]) -> None:
        self._takeovers = [{"id": number, **takeover} for number, takeover in enumerate(takeovers)]

    def takeovers(self) -> list[dict[str, Any]]:
        return self._takeovers

    def status(self) -> dict[str, Any]:
        return {"failed": {"s3": "hang", "s1": "kill"}}

    def until(self, condition: Callable[[], object], sentence: str, seconds: float) -> None:
        if not condition():
            raise LabError(sentence)


def of(
    source: str, heir: str, state: str = "done", cause: str = "process ended", reset: dict[str, int] | None = None
) -> dict[str, Any]:
    return {"from": source, "to": heir, "state": state, "cause": cause, "reset": reset or {}}


ALARM = of("s2", "s3", cause="no heartbeat")
KILLED = of("s1", "s2")


@pytest.mark.parametrize("history", [(KILLED,), (ALARM, KILLED), (KILLED, ALARM)])
def test_a_false_alarm_beside_it_is_put_up_with(history: tuple[dict[str, Any], ...]) -> None:
    lab = Lab(of("s1", "s3", reset={"long ago": 1}), *history)
    assert taken_over(lab, 1)["id"] == 1 + history.index(KILLED)  # type: ignore[arg-type]


def test_what_an_heir_that_was_taken_for_dead_did_not_finish_is_followed() -> None:
    lab = Lab(of("s1", "s2", "failed"), ALARM)
    assert taken_over(lab, 0)["to"] == "s3"  # type: ignore[arg-type]
    assert fate(Lab(of("s1", "s2", "failed")), 0, "s1") is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "history",
    [
        (KILLED, of("s2", "s3")),  # it died
        (KILLED, of("s1", "s3")),  # twice
        (KILLED, of("s2", "s3", cause="no heartbeat", reset={"input was lost with its server": 1})),
        (of("s1", "s2", "failed", reset={"client gone": 1}), ALARM),
        (of("s1", "s2", "failed"), of("s2", "s3")),
    ],
)
def test_a_death_and_whatever_harms_a_connection_are_not(history: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(AssertionError):
        taken_over(Lab(*history), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("history", [(), (ALARM,), (of("s1", "s2", "resuming"), ALARM), (of("s1", "s2", "failed"),)])
def test_nor_that_it_is_not_done(history: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(LabError, match="the takeover from s1 is not done"):
        taken_over(Lab(*history), 0)  # type: ignore[arg-type]
