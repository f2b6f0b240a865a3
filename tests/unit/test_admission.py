"""Who is let in: bounds, altogether and for one client, and a door that shuts without a word."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import admission
from dataplane.admission import TOO_MANY, TOO_MANY_OF_ONE, Admission, within_descriptors

A, B, C = b"\x0a\0\0\x01", b"\x0a\0\0\x02", b"\xfd" + bytes(15)


def test_connections_are_let_in_up_to_the_bounds() -> None:
    door = Admission(3, 2)
    for client in (A, A, B):
        assert door.refusal(client) is None
        door.entered(client)
    assert door.refusal(C) == TOO_MANY
    door.left(B)
    assert door.refusal(A) == TOO_MANY_OF_ONE
    assert door.refusal(C) is None
    door.left(A)
    assert door.refusal(A) is None
    assert door.refused == {TOO_MANY: 1, TOO_MANY_OF_ONE: 1}


def test_addresses_of_one_ipv6_prefix_are_one_client_and_ipv4_addresses_are_not() -> None:
    door = Admission(9, 2)
    here = [bytes.fromhex("20010db8000000010000000000000001"), bytes.fromhex("20010db800000001ffffffffffffffff")]
    there = bytes.fromhex("20010db8000000020000000000000001")
    for client in (*here, A):
        assert door.refusal(client) is None
        door.entered(client)
    assert door.refusal(here[0]) == TOO_MANY_OF_ONE
    for client in (there, A, B):
        assert door.refusal(client) is None
    for client in here:
        door.left(client)
    assert door.refusal(here[0]) is None


def test_what_was_taken_over_counts_and_may_exceed_the_bounds() -> None:
    door = Admission(2, 1)
    for _ in range(5):
        door.entered(A)
    assert door.refusal(B) == TOO_MANY
    for _ in range(4):
        door.left(A)
    assert (door.refusal(A), door.refusal(B)) == (TOO_MANY_OF_ONE, None)


@given(st.lists(st.tuples(st.sampled_from((A, B, C)), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_the_order(events: list[tuple[bytes, bool]]) -> None:
    door, inside = Admission(5, 3), {A: 0, B: 0, C: 0}
    for client, comes in events:
        if comes and door.refusal(client) is None:
            door.entered(client)
            inside[client] += 1
        elif not comes and inside[client]:
            door.left(client)
            inside[client] -= 1
        assert sum(inside.values()) <= 5
        assert max(inside.values()) <= 3
        assert (door.refusal(client) is None) == (sum(inside.values()) < 5 and inside[client] < 3)


def test_the_bound_leaves_files_to_be_opened() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        assert within_descriptors(16_384) == 1024 - 512 - 256, "and a quarter for sockets that wait for a takeover"
        assert within_descriptors(100) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_parts_of_bundles_are_counted_and_bounded_by_the_files_that_may_be_open() -> None:
    """An heir may have more connections than it would let in: what is taken over with them finds room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        waiting = 100
        door = Admission(3, 3, lambda: waiting)
        parts = 0
        while door.has_room_for_part():
            door.entered(A)
            parts += 1
        assert 3 < parts < 1024 - 100
        assert door.refusal(B) == TOO_MANY
        waiting = 0
        assert door.has_room_for_part(), "a socket that waited has become a connection"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the door ---
@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_behind_the_shut_door_a_client_hears_nothing_and_those_inside_go_on() -> None:
    with listening() as listener, socket.create_connection(listener.getsockname()) as early:
        inside, _ = listener.accept()
        with inside, socket.socket() as late:
            admission.shut(listener)
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):  # neither connected nor refused
                late.connect(listener.getsockname())
            early.sendall(b"still here")
            assert inside.recv(100) == b"still here"
