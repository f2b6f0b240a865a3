"""`takeover lab down`: remove the lab, whoever holds it and whatever is left of it."""

from __future__ import annotations

import contextlib

from topologies import lock
from topologies.lock import Lock
from topologies.record import LabError, Record


def remove(force: bool = False) -> None:
    """Nothing of the lab remains when this returns. What `takeover lab up` left ends; a program that runs and holds the
    lab is interrupted only with `force`, and killed should it keep the lab. Raises `LabError`."""
    holder = lock.owner()
    if holder is not None and holder.condition.alive:
        if holder.role == "program" and not force:
            raise LabError(
                f"the lab belongs to a program that runs, {holder}, and ends with it: "
                "takeover lab down --force interrupts that program"
            )
        lock.end(holder)
    try:
        held = Lock.acquire("down")
    except LabError:
        if lock.owner() != holder or holder is None:
            raise LabError("a lab is being made or removed at this very moment: try again") from None
        # Its holder is dead, but had forked: the child knows nothing of the lab, and has inherited the lock.
        _remove_what_is_recorded()
        with contextlib.suppress(OSError):
            lock.PATH.unlink()
        return
    try:
        _remove_what_is_recorded()
    finally:
        held.release()


def _remove_what_is_recorded() -> None:
    record = Record.load()
    if record is not None:
        record.remove_everything()
