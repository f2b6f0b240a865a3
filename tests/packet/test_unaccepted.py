"""Connections that a kernel has accepted and a process has not: who hangs never hears of them."""

from __future__ import annotations

import socket

import pytest

from dataplane import orphans
from state.datablock import FourTuple


@pytest.mark.parametrize(("family", "here"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_those_in_the_queue_are_named_and_those_that_were_accepted_are_not(family: int, here: str) -> None:
    with socket.socket(family) as listener, socket.socket(family) as first, socket.socket(family) as second:
        listener.bind((here, 0))
        listener.listen()
        port = listener.getsockname()[1]
        first.connect((here, port))
        accepted, _ = listener.accept()
        with accepted:
            assert orphans.unaccepted(here, port) == []
            second.connect((here, port))
            second.sendall(b"a question")
            packed = socket.inet_pton(family, here)
            waiting = FourTuple(packed, port, packed, second.getsockname()[1])
            assert orphans.unaccepted(here, port) == [waiting]
            second.shutdown(socket.SHUT_WR)
            assert orphans.unaccepted(here, port) == [waiting]
