"""What controller and agents ask of the kernel and of the interpreter, once, when they begin to serve."""

from __future__ import annotations

import gc
import logging
import os
import resource

_NICE = -15

_log = logging.getLogger(__name__)


def settle() -> None:
    """Ask for more of the CPU than ordinary load has: a late controller or agent looks like a dead one. What is in
    memory now stays: later garbage collections need not look at it."""
    raise_priority()
    gc.collect()
    gc.freeze()


def allow_files() -> None:
    """As many open files as the system permits: every connection is one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def raise_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        _log.info("no permission to raise the priority: false alarms are likelier under load")
