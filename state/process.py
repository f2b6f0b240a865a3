"""What controller and agents ask of the kernel and of the interpreter, once, when they begin to serve."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource

_NICE = -15
_SECOND_SWEEP, _WHOLE_SWEEP = 4, 1024
_FILES_PREPARED = 1 << 16
"""At most: half a megabyte."""

_log = logging.getLogger(__name__)


def settle() -> None:
    """Ask for more of the CPU than ordinary load has: a late controller or agent looks like a dead one. What is in
    memory now stays: later garbage collections need not look at it."""
    raise_priority()
    gc.collect()
    gc.freeze()


class Sweeping:
    """Garbage collection on a beat instead of by the number of objects.

    By itself the interpreter now and then looks through all objects that are not frozen. With those of 5,000
    connections that takes longer than a live server may be silent. So here only what was made lately is looked
    through. The older objects do not need it: a connection that ends leaves no cycle behind.
    """

    def __init__(self) -> None:
        gc.disable()
        self._beats = 0

    def keep(self) -> None:
        """What was made lately stays, and need not be looked through."""
        gc.freeze()

    def beat(self, *, idle: bool) -> None:
        """Call it every few dozen milliseconds. `idle`: there is nothing old worth mentioning."""
        self._beats += 1
        if idle and self._beats % _WHOLE_SWEEP == 0:
            gc.collect()
        else:
            gc.collect(1 if self._beats % _SECOND_SWEEP == 0 else 0)


def allow_files() -> None:
    """As many open files as the system permits: every connection is one.

    The table of open files is made as large at once. By itself it doubles now and then, and the kernel lets a process
    that has threads wait for that each time (fs/file.c, `expand_fdtable`: synchronize_rcu): 5 to 15 ms (6.18).
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    last = _FILES_PREPARED if hard == resource.RLIM_INFINITY else min(hard, _FILES_PREPARED)
    with open(os.devnull, "rb") as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, last - 1))


def raise_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        _log.info("no permission to raise the priority: false alarms are likelier under load")
