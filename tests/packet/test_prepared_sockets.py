"""Sockets that wait for a takeover, in the real kernel: as many as are wanted, each of its family, and none remains."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from dataplane import prepared_sockets
from dataplane.prepared_sockets import PreparedSockets


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_one_waits_for_each_that_is_wanted() -> None:
    before, pool = open_files(), PreparedSockets()
    for wanted in (1, 2, 2, 1):
        pool.provide(socket.AF_INET, wanted)
    pool.provide(socket.AF_INET6, 1)
    assert (len(pool), open_files()) == (3, before + 3)
    taken = pool.take(socket.AF_INET6)
    assert taken is not None and taken.family == socket.AF_INET6
    assert pool.take(socket.AF_INET6) is None
    taken.close()
    pool.close()
    assert (len(pool), open_files()) == (0, before)


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_sockets, "_MOST", 3)
    pool = PreparedSockets()
    for wanted in range(1, 10):
        pool.provide(socket.AF_INET, wanted)
    assert len(pool) == 3
    pool.close()


def test_when_no_more_files_can_be_opened_there_is_none_and_no_error() -> None:
    pool, held = PreparedSockets(), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 3, hard))
    try:
        with pytest.raises(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        pool.provide(socket.AF_INET, 1)
        assert pool.take(socket.AF_INET) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
