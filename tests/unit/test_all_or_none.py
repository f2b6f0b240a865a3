"""Which connections of a takeover stand or fall together, and when they may be resumed: blocks in, decisions out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.all_or_none import CONTROL_OVER, PART_MISSING, Candidate, Group, groups
from dataplane.judge import Doubt
from dataplane.prover import Key
from state.datablock import FourTuple
from state.errors import CheckpointRefused
from state.sections import CONTROL, BundleSection, Part, StreamSection
from tests.unit.builders import CLIENT, CLIENT6, VIP, VIP6, proof, stream_section

PORT, DATA_PORT = 21, 41000


def key(connection: FourTuple) -> Key:
    return (connection.destination, connection.destination_port, connection.source, connection.source_port)


def control(number: int = 1, *listed: int, six: bool = False, awaited: bool = False) -> Candidate:
    """Control connection of a bundle whose data connections come from these client ports."""
    vip, client, text = (VIP6, CLIENT6, "fd00::7") if six else (VIP, CLIENT, "10.0.0.7")
    connection = FourTuple(vip, PORT, client, 40_000 + number)
    parts = [Part("data", "tcp", DATA_PORT, text, port) for port in listed]
    parts += [Part("next", "tcp", DATA_PORT + 1), Part("rtp", "udp", 5004, text, 6000)] if awaited else []
    return Candidate(key(connection), connection, BundleSection(connection.id, CONTROL, parts), stream_section())


def data(of: Candidate, port: int, stream: StreamSection | None = None) -> Candidate:
    connection = FourTuple(of.connection.source, DATA_PORT, of.connection.destination, port)
    section = BundleSection(of.section.id, "data", [])
    return Candidate(key(connection), connection, section, stream or stream_section())


# --- who belongs together ---
@pytest.mark.parametrize("six", [False, True])
def test_a_control_connection_and_what_it_lists_are_one_group(six: bool) -> None:
    first = control(1, 50_001, 50_002, six=six, awaited=True)
    parts = [data(first, 50_001), data(first, 50_002)]
    found, over = groups([*parts, first])
    (group,) = set(found.values())
    assert over == [] and group.doom is None
    assert found.keys() == {first.key, *(part.key for part in parts)}
    assert list(group.roles) == [first.key, *(part.key for part in parts)], "the control connection comes first"


def test_bundles_of_one_client_are_not_mixed_up() -> None:
    one, other = control(1, 50_001), control(2, 50_002)
    found, _ = groups([data(other, 50_002), one, data(one, 50_001), other])
    assert len(set(found.values())) == 2
    assert all(group.doom is None and len(group.roles) == 2 for group in found.values())


def test_udp_and_awaited_parts_alone_make_no_group() -> None:
    assert groups([control(1, awaited=True)]) == ({}, [])


def test_a_part_that_the_control_connection_lists_no_more_had_ended() -> None:
    first = control(1, 50_001)
    ended, alive = data(first, 50_002), data(first, 50_001)
    found, over = groups([first, ended, alive])
    assert over == [ended.key] and ended.key not in found
    assert groups([control(1), data(control(1), 50_002)]) == ({}, [data(control(1), 50_002).key])


def test_the_last_part_of_a_control_connection_that_says_nothing_of_a_bundle_any_more_had_ended() -> None:
    ended, torn = data(control(1), 50_001), data(control(2), 50_002)
    found, over = groups([ended, torn], {control(1).connection.id})
    assert over == [ended.key] and found.keys() == {torn.key} and found[torn.key].doom == PART_MISSING


def test_a_listed_part_without_a_checkpoint_dooms_the_others() -> None:
    first = control(1, 50_001, 50_002)
    found, _ = groups([first, data(first, 50_001)])
    assert {group.doom for group in found.values()} == {PART_MISSING} and len(found) == 2
    alone, _ = groups([control(1, 50_001)])
    assert [group.doom for group in alone.values()] == [PART_MISSING]


def test_parts_without_their_control_connection_are_doomed() -> None:
    first = control(1, 50_001, 50_002)
    found, over = groups([data(first, 50_001), data(first, 50_002)])
    assert over == [] and len(set(found.values())) == 1
    assert {group.doom for group in found.values()} == {PART_MISSING}


# --- when they are resumed ---
def group(*streams: StreamSection) -> tuple[Group, list[Key]]:
    """A bundle with a data connection in each of these states."""
    first = control(1, *range(50_000, 50_000 + len(streams)))
    parts = [data(first, 50_000 + i, stream) for i, stream in enumerate(streams)]
    found, _ = groups([first, *parts])
    return found[first.key], [first.key, *(part.key for part in parts)]


SENDING = stream_section()
CLOSING = stream_section(closing=True)
AT_ITS_END = stream_section(acked=10_200, sent=10_200, extents=[], objects=[], closing=True, input_ended=True)


@given(order=st.permutations(range(4)))
def test_a_bundle_is_complete_when_the_last_one_is_proven(order: list[int]) -> None:
    bundle, keys = group(SENDING, CLOSING, SENDING)
    for i in order:
        assert not bundle.complete
        bundle.proofs[keys[i]] = proof(300)
    assert bundle.complete
    assert [found for found, _ in bundle.standing()] == keys, "in the order of being told ready"


def test_one_that_both_sides_have_closed_is_not_waited_for() -> None:
    bundle, keys = group(SENDING, AT_ITS_END)
    bundle.proofs |= {keys[0]: proof(300), keys[1]: proof(300)}
    assert bundle.complete and [found for found, _ in bundle.standing()] == keys[:2]


@pytest.mark.parametrize(
    ("stream", "doubt", "may"),
    [
        (SENDING, Doubt.GONE, False),
        (SENDING, Doubt.UNPROVEN, False),
        (SENDING, Doubt.SILENT, False),
        (CLOSING, Doubt.GONE, True),
        (CLOSING, Doubt.UNPROVEN, False),
        (CLOSING, Doubt.SILENT, False),
        (AT_ITS_END, Doubt.GONE, True),
        (AT_ITS_END, Doubt.UNPROVEN, True),
        (AT_ITS_END, Doubt.SILENT, True),
        (stream_section(input_ended=True), Doubt.GONE, False),
        (stream_section(input_ended=True, closing=True), Doubt.UNPROVEN, False),
    ],
)
def test_whose_client_may_have_forgotten_it(stream: StreamSection, doubt: Doubt, may: bool) -> None:
    bundle, keys = group(stream)
    assert bundle.may_end(keys[1], doubt) is may
    assert not bundle.may_end(keys[0], doubt), "never the control connection"


def test_one_that_came_to_its_end_is_no_part_any_more() -> None:
    bundle, keys = group(SENDING, CLOSING)
    bundle.proofs |= {keys[0]: proof(300), keys[1]: proof(300)}
    assert not bundle.complete
    bundle.leave(keys[2])
    assert bundle.complete and [found for found, _ in bundle.standing()] == keys[:2]


def test_without_its_control_connection_a_bundle_is_of_no_use() -> None:
    bundle, keys = group(SENDING)
    bundle.leave(keys[0])
    assert bundle.doom == CONTROL_OVER and not bundle.complete
    bundle.proofs[keys[1]] = proof(300)
    assert not bundle.complete


def test_what_is_doomed_is_never_complete() -> None:
    for count in (1, 2, 3):
        bundle, keys = group(*[SENDING] * count)
        bundle.doom = "client gone"
        bundle.proofs |= {one: proof(300) for one in keys}
        assert not bundle.complete


@given(
    states=st.lists(st.sampled_from([SENDING, CLOSING, AT_ITS_END]), max_size=4),
    fates=st.lists(st.sampled_from(["proven", "gone", "silent"]), min_size=5, max_size=5),
)
def test_all_or_none(states: list[StreamSection], fates: list[str]) -> None:
    """Whatever becomes of each: either none is left that could not be resumed, or the bundle is not resumed."""
    if not states:
        return
    bundle, keys = group(*states)
    for one, fate in zip(keys, itertools.cycle(fates), strict=False):
        doubt = Doubt.GONE if fate == "gone" else Doubt.SILENT
        if fate == "proven":
            bundle.proofs[one] = proof(300)
        elif bundle.may_end(one, doubt):
            bundle.leave(one)
        else:
            bundle.doom = bundle.doom or fate
    live = [state for state, fate in zip(states, fates[1:], strict=False) if state is SENDING and fate != "proven"]
    assert bundle.complete == (fates[0] == "proven" and not live and bundle.doom is None)
    if bundle.complete:
        assert keys[0] in dict(bundle.standing())


# --- the section ---
def test_a_section_says_of_itself_what_it_is() -> None:
    first = control(1, 50_001)
    first.section.check(first.connection.id)
    data(first, 50_001).section.check("another connection's id")


@pytest.mark.parametrize(
    ("section", "connection"),
    [
        (BundleSection("a", CONTROL, []), "b"),
        (BundleSection("a", "data", []), "a"),
        (BundleSection("a", CONTROL, [Part(CONTROL, "tcp", 20)]), "a"),
        (BundleSection("a", CONTROL, [Part("data", "tcp", 20, "10.0.0.256", 5)]), "a"),
        (BundleSection("a", CONTROL, [Part("data", "tcp", 20, "10.0.0.7", 0)]), "a"),
        (BundleSection("a", CONTROL, [Part("data", "tcp", 0, "10.0.0.7", 5)]), "a"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(section: BundleSection, connection: str) -> None:
    with pytest.raises(CheckpointRefused) as caught:
        section.check(connection)
    assert caught.value.field == "bundle"
