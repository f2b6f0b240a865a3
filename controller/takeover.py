"""One takeover as a record and a small state machine, and the history that the API shows."""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import dataclass, field

from state.messages import LIMIT_COMPARISONS, Comparison, Resumed


class Phase(enum.Enum):
    """FENCING --switch committed--> RESUMING --last connection decided--> DONE
    |  ^                          |
    |  +--a server comes-- WAITING (fenced, but nobody is up to be the heir) --too long--> FAILED, lost
    +--heir dies-----------------+--> FAILED (its connections go on to the next heir)
    """

    WAITING = "waiting"
    FENCING = "fencing"
    RESUMING = "resuming"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Takeover:
    """Times are of the controller's monotonic clock unless they say otherwise."""

    number: int
    cause: str
    source: str
    heir: str | None
    epoch: int
    homes: list[str]
    since: float
    """Last evidence that the source was alive."""
    detected: float
    detected_wall_ns: int
    connections: int
    phase: Phase = Phase.FENCING
    fenced: float | None = None
    finished: float | None = None
    resumed: int = 0
    reset: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    proved_us: int = 0
    resumed_us: int = 0
    recreate_us: int = 0
    comparisons: list[Comparison] = field(default_factory=list)
    """Of the first connections that were decided, at most `LIMIT_COMPARISONS`."""
    fates: Counter[str] = field(default_factory=Counter)
    """Running totals over all takeovers of a `History`, in which this one counts, too."""

    def inherited(self, heir: str, more: int = 0) -> None:
        """A server came up that can take the connections which waited for one, and `more` of an earlier takeover."""
        if self.phase is Phase.WAITING:
            self.phase, self.heir = Phase.FENCING, heir
            self.connections += more
            self.waiting += more

    def committed(self, now: float) -> None:
        """The switch has fenced the source and steers to the heir."""
        if self.phase is Phase.FENCING:
            self.phase = Phase.RESUMING
            self.fenced = now

    def progressed(self, report: Resumed, now: float) -> None:
        """The heir decided some connections."""
        if self.phase is not Phase.RESUMING:
            return
        self._decided(len(report.resumed), [reason for _, reason in report.reset])
        self.waiting = report.waiting
        self.proved_us = max(self.proved_us, report.proved_us)
        self.resumed_us = max(self.resumed_us, report.resumed_us)
        self.recreate_us += report.recreate_us
        self.comparisons += report.comparisons[: LIMIT_COMPARISONS - len(self.comparisons)]
        if report.waiting == 0:
            self.phase = Phase.DONE
            self.finished = now

    def fail(self, now: float) -> None:
        """The heir cannot finish it."""
        if self.phase in (Phase.WAITING, Phase.FENCING, Phase.RESUMING):
            self.phase = Phase.FAILED
            self.finished = now

    def found(self, resumed: int, reset: list[str]) -> None:
        """Data connections that no checkpoint had: so many were resumed, others reset, each with its reason."""
        self.connections += resumed + len(reset)
        self._decided(resumed, reset)

    def lost(self, count: int, reason: str) -> None:
        self._decided(0, [reason] * count)

    def _decided(self, resumed: int, reset: list[str]) -> None:
        self.resumed += resumed
        self.reset.update(reset)
        self.fates["resumed"] += resumed
        self.fates.update(f"reset: {reason}" for reason in reset)

    def phases_ms(self) -> dict[str, float | None]:
        """Length of each phase: detect (at most: since the last sign of life), fence, prove, resume."""
        done = self.phase is Phase.DONE
        return {
            "detect": round((self.detected - self.since) * 1000, 3),
            "fence": None if self.fenced is None else round((self.fenced - self.detected) * 1000, 3),
            "prove": round(self.proved_us / 1000, 3) if done else None,
            "resume": round(max(0, self.resumed_us - self.proved_us) / 1000, 3) if done else None,
        }


class History:
    """The last takeovers, by number, and totals of all there ever were."""

    def __init__(self, limit: int = 1000) -> None:
        self._takeovers: deque[Takeover] = deque(maxlen=limit)
        self.causes: Counter[str] = Counter()
        """Takeovers by their cause."""
        self.fates: Counter[str] = Counter(resumed=0)
        """Connections by what became of them."""

    def add(self, takeover: Takeover) -> None:
        self._takeovers.append(takeover)
        self.causes[takeover.cause] += 1
        takeover.fates = self.fates

    def get(self, number: int) -> Takeover | None:
        return next((takeover for takeover in self._takeovers if takeover.number == number), None)

    def all(self) -> list[Takeover]:
        return list(self._takeovers)
