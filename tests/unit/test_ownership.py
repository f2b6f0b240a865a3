"""Slots point to homes and homes have owners: what stays where it is, what changes hands, and what comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.ownership import Ownership, SlotMove, slot_of
from tests.unit import scenario
from tests.unit.scenario import Scene

SERVERS = ("s1", "s2", "s3")


@pytest.fixture
def ownership() -> Ownership:
    return Ownership(scenario.config(3, slots=8))


def owners(ownership: Ownership) -> dict[tuple[int, int], str]:
    return {slot: ownership.owner[home] for slot, home in ownership.home.items()}


# --- slots ---
def test_the_slot_of_a_connection_does_not_change_with_ownership(ownership: Ownership) -> None:
    connections = [scenario.four_tuple(port) for port in range(40_000, 40_032)]
    before = [ownership.slot(connection) for connection in connections]
    ownership.fail_over("s1", "s2")
    ownership.give_back("s1", [(0, 0)])
    assert [ownership.slot(connection) for connection in connections] == before


def test_ports_of_one_parity_use_every_slot(ownership: Ownership) -> None:
    for parity in (0, 1):
        ports = range(40_000 + parity, 40_016 + parity, 2)
        assert len({ownership.slot(scenario.four_tuple(port)) for port in ports}) == 8


def test_by_client_the_port_does_not_matter_and_the_address_does() -> None:
    (vip,) = scenario.config(3, affinity="client", slots=8).vips
    one = {slot_of(vip, scenario.four_tuple(port, "10.0.1.1")) for port in range(40_000, 40_016)}
    many = {slot_of(vip, scenario.four_tuple(40_000, f"10.0.1.{last}")) for last in range(8)}
    assert (len(one), len(many)) == (1, 8)


def test_in_the_beginning_slots_are_spread_evenly(ownership: Ownership) -> None:
    counts = [len(ownership.slots_of(name)) for name in SERVERS]
    assert sum(counts) == 8 and max(counts) - min(counts) <= 1


def test_a_connection_to_no_vip_has_no_slot_and_no_server(ownership: Ownership) -> None:
    stranger = scenario.four_tuple(40_000)
    stranger = type(stranger)(stranger.destination, 80, stranger.source, 40_000)
    assert ownership.slot(stranger) is None and ownership.server_for(stranger) is None


# --- changing hands ---
def test_a_failure_moves_all_of_the_servers_slots_and_no_other(ownership: Ownership) -> None:
    before = owners(ownership)
    assert ownership.fail_over("s1", "s2") == ["s1"]
    assert owners(ownership) == {slot: "s2" if owner == "s1" else owner for slot, owner in before.items()}


def test_failures_chain(ownership: Ownership) -> None:
    ownership.fail_over("s1", "s2")
    assert ownership.fail_over("s2", "s3") == ["s1", "s2"]
    assert set(owners(ownership).values()) == {"s3"}
    assert ownership.homes_of("s3") == ["s1", "s2", "s3"]


def test_a_server_that_returns_gets_its_idle_slots_and_the_busy_stay_where_they_are_served(
    ownership: Ownership,
) -> None:
    mine = ownership.slots_of("s1")
    ownership.fail_over("s1", "s2")
    busy = mine[0]
    assert ownership.give_back("s1", [busy]) == [SlotMove(busy, "s2")]
    assert owners(ownership)[busy] == "s2"
    assert ownership.slots_of("s1") == mine[1:]


def test_a_slot_that_stayed_away_comes_back_once_it_is_idle(ownership: Ownership) -> None:
    before = owners(ownership)
    mine = ownership.slots_of("s1")
    ownership.fail_over("s1", "s2")
    ownership.give_back("s1", mine)
    assert ownership.slots_of("s1") == []
    assert {move.slot for move in ownership.give_back("s1", [])} == set(mine)
    assert owners(ownership) == before


def test_giving_back_twice_moves_nothing_the_second_time(ownership: Ownership) -> None:
    ownership.fail_over("s1", "s2")
    busy = ownership.slots_of("s2")[:1]
    ownership.give_back("s1", busy)
    assert ownership.give_back("s1", busy) == []


# --- keeping ---
def test_what_was_encoded_is_restored(ownership: Ownership) -> None:
    ownership.fail_over("s1", "s2")
    ownership.give_back("s1", [(0, 0)])
    again = Ownership(scenario.config(3, slots=8))
    assert again.restore(ownership.encode())
    assert (again.owner, again.home) == (ownership.owner, ownership.home)


@pytest.mark.parametrize("before", [2, 3, 4])
def test_what_the_configuration_still_has_is_restored_when_servers_come_or_go(before: int) -> None:
    old = Ownership(scenario.config(before, slots=8))
    old.fail_over("s1", "s2")
    old.give_back("s1", [(0, 0)])
    now = Ownership(scenario.config(3, slots=8))
    now.home = dict.fromkeys(now.home, "s3")
    assert now.restore(old.encode())
    kept = {slot for slot, home in old.home.items() if home != "s4"}
    assert all(now.home[slot] == old.home[slot] for slot in kept)
    assert now.unsure == set(now.all_slots()) - kept
    assert now.owner["s1"] == "s1" and set(now.owner) == set(SERVERS) and set(now.owner.values()) <= set(SERVERS)


def test_slots_are_restored_by_the_address_of_their_vip() -> None:
    old = Ownership(scenario.config(2, vips=["10.0.0.100", "10.0.0.101", "10.0.0.102"], slots=2))
    old.follow((2, 0), "s2")
    now = Ownership(scenario.config(2, vips=["10.0.0.102", "10.0.0.103"], slots=2))
    assert now.restore(old.encode())
    assert (now.home[0, 0], now.home[0, 1]) == ("s2", "s2")
    assert now.unsure == {(1, 0), (1, 1)}


def test_another_number_of_slots_makes_all_of_a_vip_unsure() -> None:
    now = Ownership(scenario.config(2, slots=16))
    assert now.restore(Ownership(scenario.config(2, slots=8)).encode())
    assert now.unsure == set(now.all_slots())


@given(st.binary(max_size=64))
def test_no_bytes_at_all_break_restoring(saved: bytes) -> None:
    ownership = Ownership(scenario.config(2, slots=2))
    before = owners(ownership)
    if not ownership.restore(saved):
        assert owners(ownership) == before
    assert set(owners(ownership).values()) <= {"s1", "s2"}


# --- whatever happens ---
STEPS = st.lists(
    st.tuples(st.sampled_from(SERVERS), st.sets(st.integers(0, 7)).map(lambda slots: [(0, slot) for slot in slots])),
    max_size=12,
)


@given(STEPS)
def test_while_one_server_is_up_every_slot_is_owned_by_one_that_is(
    steps: list[tuple[str, list[tuple[int, int]]]],
) -> None:
    """Each step a server fails (to the next that is up) or, when it has failed, returns while some slots are busy."""
    ownership, up = Ownership(scenario.config(3, slots=8)), set(SERVERS)
    for name, busy in steps:
        before = owners(ownership)
        if name not in up:
            up.add(name)
            ownership.give_back(name, busy)
            assert all(owners(ownership)[slot] == before[slot] for slot in busy), "a busy slot moved"
        elif len(up) > 1:
            up.remove(name)
            ownership.fail_over(name, min(up))
        assert set(ownership.home) == set(ownership.all_slots())
        assert set(owners(ownership).values()) <= up


@settings(max_examples=40)
@given(st.lists(st.sampled_from(SERVERS), max_size=12))
def test_the_conductor_leaves_no_slot_with_the_dead_even_after_all_were_dead(names: list[str]) -> None:
    """Each step a server fails or, when it has failed, returns in a new life; takeovers are committed and reported."""
    scene = Scene().up()
    conductor = scene.conductor
    for life, name in enumerate(names, 2):
        known = len(conductor.history.all())
        if conductor.servers[name].up:
            scene.end(name)
        else:
            scene.hello(name, life)
        for takeover in conductor.history.all()[known:]:
            scene.commit(takeover.number)
            if takeover.heir is not None:
                scene.report(takeover.heir, takeover.number)
        up = {server.name for server in conductor.servers.values() if server.up}
        if up:
            assert set(scene.owners().values()) <= up
