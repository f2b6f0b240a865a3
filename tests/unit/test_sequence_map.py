"""The sequence map: byte to sequence number and back, for bytes sent and bytes still to come, across the wrap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sequence_map import MapError, ObjectByte, SequenceMap
from state.sections import Extent, Label, ObjectRef
from tests.unit.builders import END, FILE, FILE_SIZE, HEAD, ISS, MODULUS, wire

OTHER = ObjectRef("/other.bin", 500, 1, b"")


def planned() -> SequenceMap:
    """A header of 200 bytes and a file of 10,000; its byte 99 has sequence number 0."""
    map_ = SequenceMap(ISS)
    map_.literal(HEAD)
    map_.object(FILE, 0, FILE_SIZE)
    return map_


# --- which number has a byte? ---
def test_the_first_byte_follows_the_syn() -> None:
    assert SequenceMap(ISS).literal(b"x") == ISS + 1
    assert SequenceMap(MODULUS - 1).literal(b"x") == 0


def test_a_future_byte_has_its_number_before_anything_is_sent() -> None:
    map_ = SequenceMap(ISS)
    assert map_.literal(HEAD) == wire(0)
    assert map_.object(FILE, 0, FILE_SIZE) == wire(200)
    assert map_.seq_of("/film.bin", 0) == MODULUS - 99
    assert map_.seq_of("/film.bin", 98) == MODULUS - 1
    assert map_.seq_of("/film.bin", 99) == 0
    assert map_.seq_of("/film.bin", FILE_SIZE - 1) == FILE_SIZE - 1 - 99


def test_a_range_of_an_object_begins_with_its_first_byte() -> None:
    map_ = SequenceMap(ISS)
    assert map_.object(FILE, 9000, 1000) == wire(0)
    assert map_.seq_of("/film.bin", 9299) == 0
    found = map_.current_object(0)
    assert found is not None
    assert found[1] == (ISS + 1 - 9000) % MODULUS, "byte 0 lies where it would have been"


@pytest.mark.parametrize("offset", [-1, FILE_SIZE])
def test_a_byte_that_the_object_does_not_have_has_no_number(offset: int) -> None:
    with pytest.raises(MapError):
        planned().seq_of("/film.bin", offset)


def test_bytes_outside_the_planned_range_and_unknown_objects_have_no_number() -> None:
    map_ = SequenceMap(ISS)
    map_.object(FILE, 100, 50)
    for identifier, offset in (("/film.bin", 99), ("/film.bin", 150), ("/other.bin", 0)):
        with pytest.raises(MapError, match=str(offset)):
            map_.seq_of(identifier, offset)


def test_of_an_object_that_is_sent_twice_the_later_copy_is_meant() -> None:
    map_ = planned()
    assert map_.object(FILE, 0, 100) == wire(END)
    assert map_.seq_of("/film.bin", 0) == wire(END)
    assert map_.seq_of("/film.bin", 100) == wire(300)


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, -1), (0, FILE_SIZE + 1), (FILE_SIZE, 1)])
def test_a_run_outside_the_object_is_refused_and_changes_nothing(offset: int, length: int) -> None:
    map_ = planned()
    with pytest.raises(MapError):
        map_.object(FILE, offset, length)
    assert map_.end == END
    assert map_.extents == planned().extents


def test_nothing_planned_takes_no_room() -> None:
    map_ = SequenceMap(ISS)
    assert map_.literal(b"") == wire(0)
    assert map_.object(FILE, FILE_SIZE, 0) == wire(0)
    assert (map_.end, map_.extents, map_.objects) == (0, [], [])


# --- which byte has a number? ---
def test_an_acknowledgement_is_a_position() -> None:
    map_ = planned()
    assert map_.position(wire(0)) == 0
    assert map_.position(MODULUS - 1) == 298
    assert map_.position(0) == 299
    assert map_.position(wire(END)) == END


def test_positions_go_on_beyond_two_to_the_32() -> None:
    big = ObjectRef("/big", 2**40, 0, b"")
    map_ = SequenceMap(ISS)
    map_.object(big, 0, 2**40)
    far = 5 * MODULUS + 12_345
    map_.acknowledge(far)
    assert map_.position(wire(far)) == far
    assert map_.position(wire(far + MODULUS - 1)) == far + MODULUS - 1
    assert map_.position(wire(far - 1)) == far - 1 + MODULUS, "never before what is acknowledged"


def test_each_byte_is_located_in_its_extent() -> None:
    map_ = planned()
    first, last_of_head, first_of_file, last = (map_.locate(at) for at in (0, 199, 200, END - 1))
    assert first is not None
    assert (first.object, first.into, first.extent.literal) == (None, 0, HEAD)
    assert last_of_head is not None
    assert (last_of_head.object, last_of_head.into) == (None, 199)
    assert first_of_file is not None
    assert (first_of_file.object, first_of_file.offset) == (FILE, 0)
    assert last is not None
    assert (last.object, last.offset) == (FILE, FILE_SIZE - 1)


def test_the_end_is_no_byte_and_beyond_it_is_an_error() -> None:
    map_ = planned()
    assert map_.locate(END) is None
    for position in (-1, END + 1):
        with pytest.raises(MapError):
            map_.locate(position)


# --- both ways ---
@st.composite
def maps(draw: st.DrawFn) -> SequenceMap:
    """Anything planned, from any ISS, with objects that appear once (so that a byte has one number); some literal
    bytes are of an object, with an end or without."""
    map_ = SequenceMap(draw(st.integers(0, MODULUS - 1) | st.integers(MODULUS - 300, MODULUS - 1)))
    for number in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            if draw(st.booleans()):
                map_.associate(f"log {number}", draw(st.integers(0, 2**40)), draw(st.none() | st.integers(1, 60)))
            map_.literal(draw(st.binary(min_size=1, max_size=40)))
        else:
            size = draw(st.integers(1, 400))
            offset = draw(st.integers(0, size - 1))
            map_.object(ObjectRef(f"/{number}", size, 0, b""), offset, draw(st.integers(1, size - offset)))
    return map_


@given(maps(), st.data())
def test_number_position_and_byte_are_inverse(map_: SequenceMap, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, map_.end - 1))
    assert map_.position(map_.seq(position)) == position
    location = map_.locate(position)
    assert location is not None
    assert location.extent.position + location.into == position
    if location.object is None:
        assert location.extent.literal is not None
        assert 0 <= location.into < len(location.extent.literal)
        of = map_.object_at(position)
        assert of is None or map_.seq_of(of.identifier, of.offset) == map_.seq(position)
    else:
        assert map_.object_at(position) == ObjectByte(location.object.identifier, location.offset)
        assert map_.seq_of(location.object.identifier, location.offset) == map_.seq(position)


def byte_at(map_: SequenceMap, position: int) -> int | tuple[ObjectRef, int]:
    """The literal byte, or which byte of which object."""
    location = map_.locate(position)
    assert location is not None
    if location.object is not None:
        return location.object, location.offset
    assert location.extent.literal is not None
    return location.extent.literal[location.into]


@given(maps(), st.data())
def test_acknowledging_changes_no_byte_that_is_left(map_: SequenceMap, data: st.DataObject) -> None:
    before = [(map_.seq(at), byte_at(map_, at), map_.object_at(at)) for at in range(map_.end)]
    acked = data.draw(st.integers(0, map_.end))
    map_.acknowledge(acked)
    for position in range(acked, map_.end):
        assert (map_.seq(position), byte_at(map_, position), map_.object_at(position)) == before[position]
    assert all(extent.end > acked for extent in map_)
    assert all(extent.position >= acked for extent in map_ if extent.literal is not None)
    assert all(label.length is None or label.position + label.length > acked for label in map_.labels)
    named = {extent.object for extent in map_ if extent.object is not None}
    assert named == set(range(len(map_.objects)))


@given(maps(), st.data())
def test_a_restored_map_answers_as_the_old_one(map_: SequenceMap, data: st.DataObject) -> None:
    map_.acknowledge(data.draw(st.integers(0, map_.end)))
    again = SequenceMap.restored(int(map_.iss), map_.acked, map_.objects, map_.extents, map_.labels)
    assert again.end == map_.end
    for position in range(map_.acked, map_.end + 1):
        assert again.locate(position) == map_.locate(position)
        assert again.object_at(position) == map_.object_at(position)
        assert again.seq(position) == map_.seq(position)
    assert again.literal(b"more") == map_.literal(b"more")
    assert again.current_object(again.end) == map_.current_object(map_.end)


# --- forgetting ---
def test_what_is_wholly_acknowledged_is_forgotten_and_the_rest_renumbered() -> None:
    map_ = SequenceMap(ISS)
    map_.object(OTHER, 0, 500)
    map_.object(FILE, 0, FILE_SIZE)
    map_.object(FILE, 0, 1)
    assert map_.objects == [OTHER, FILE]
    map_.acknowledge(499)
    assert map_.objects == [OTHER, FILE]
    map_.acknowledge(500)
    assert map_.objects == [FILE]
    assert map_.extents == [Extent(500, FILE_SIZE, object=0), Extent(500 + FILE_SIZE, 1, object=0)]
    with pytest.raises(MapError):
        map_.seq_of("/other.bin", 0)
    map_.acknowledge(map_.end)
    assert (map_.objects, map_.extents) == ([], [])


def test_an_old_acknowledgement_changes_nothing() -> None:
    map_ = planned()
    map_.acknowledge(300)
    extents = map_.extents
    map_.acknowledge(10)
    assert (map_.acked, map_.extents) == (300, extents)


def test_more_than_was_planned_cannot_be_acknowledged() -> None:
    map_ = planned()
    with pytest.raises(MapError):
        map_.acknowledge(END + 1)
    assert map_.acked == 0


# --- the current object ---
def test_the_current_object_is_the_one_being_sent_or_the_last_before() -> None:
    map_ = SequenceMap(ISS)
    assert map_.current_object(0) is None
    map_.literal(HEAD)
    assert map_.current_object(0) is None
    map_.object(FILE, 0, FILE_SIZE)
    map_.literal(HEAD)
    map_.object(OTHER, 100, 400)
    assert map_.current_object(200) == ("/film.bin", wire(200))
    assert map_.current_object(END - 1) == ("/film.bin", wire(200))
    assert map_.current_object(END + 10) == ("/film.bin", wire(200))
    assert map_.current_object(END + 200) == ("/other.bin", wire(END + 100))
    assert map_.current_object(map_.end) == ("/other.bin", wire(END + 100))


def test_an_object_known_better_takes_the_place_of_the_old() -> None:
    map_ = planned()
    better = ObjectRef(FILE.identifier, FILE.size, FILE.mtime_ns, b"e" * 32)
    assert map_.update_object(FILE, better)
    assert map_.objects == [better]
    location = map_.locate(200)
    assert location is not None
    assert location.object == better
    assert not map_.update_object(OTHER, better)


# --- bytes that the application makes itself ---
def log() -> SequenceMap:
    """A greeting of 200 bytes, then a log from its byte 7,000 on, of which 150 bytes are written."""
    map_ = SequenceMap(ISS)
    map_.literal(HEAD)
    assert map_.associate("log", 7000) == wire(200), "said before the byte is written, while 200 before it are unsent"
    map_.literal(b"x" * 150)
    return map_


def test_a_byte_is_associated_with_the_number_that_it_will_have() -> None:
    map_ = log()
    assert map_.seq_of("log", 7000) == wire(200)
    assert map_.seq_of("log", 7099) == 0, "across the wrap"
    assert map_.object_at(200) == ObjectByte("log", 7000)
    assert map_.object_at(349) == ObjectByte("log", 7149)
    assert map_.object_at(199) is None
    assert map_.current_object(map_.end) == ("log", (wire(200) - 7000) % MODULUS)


@pytest.mark.parametrize("offset", [0, 6999, 7150, -1])
def test_a_byte_of_it_that_is_not_written_has_no_number(offset: int) -> None:
    with pytest.raises(MapError, match=str(offset)):
        log().seq_of("log", offset)


def test_what_is_written_later_goes_on_with_it() -> None:
    map_ = log()
    map_.literal(b"y" * 10)
    assert map_.seq_of("log", 7159) == wire(359)
    assert map_.labels == [Label(200, "log", 7000)]
    assert map_.object_at(360) == ObjectByte("log", 7160), "the byte that the client would ask for next"


def test_with_a_length_it_ends_by_itself() -> None:
    map_ = SequenceMap(ISS)
    map_.associate("part", 5, 10)
    map_.literal(b"x" * 15)
    assert map_.object_at(9) == ObjectByte("part", 14)
    assert map_.object_at(10) is None
    with pytest.raises(MapError):
        map_.seq_of("part", 15)


def test_an_object_or_another_association_ends_it() -> None:
    map_ = log()
    map_.object(FILE, 0, FILE_SIZE)
    map_.literal(b"no log any more")
    assert map_.labels == [Label(200, "log", 7000, 150)]
    assert map_.object_at(350) == ObjectByte("/film.bin", 0)
    assert map_.object_at(map_.end - 1) is None
    map_.associate("log", 0)
    map_.associate("another", 3)
    map_.literal(b"a")
    assert map_.labels[1:] == [Label(350 + FILE_SIZE + 15, "another", 3)], "nothing was written as byte 0 of log"
    map_.associate("log", 7150)
    map_.literal(b"b")
    assert map_.seq_of("another", 3) + 1 == map_.seq_of("log", 7150)
    assert map_.seq_of("log", 7149) == wire(349)


def test_of_a_byte_that_is_written_twice_the_later_is_meant() -> None:
    map_ = log()
    map_.associate("log", 7000, 5)
    map_.literal(b"x" * 20)
    assert map_.seq_of("log", 7004) == wire(354)
    assert map_.seq_of("log", 7005) == wire(205)


def test_an_association_without_an_end_outlives_the_acknowledgement_of_its_first_byte() -> None:
    map_ = log()
    map_.acknowledge(map_.end)
    map_.literal(b"later")
    assert map_.seq_of("log", 7150) == wire(350)
    map_.object(FILE, 0, 10)
    map_.acknowledge(354)
    assert len(map_.labels) == 1
    map_.acknowledge(355)
    assert map_.labels == []


@pytest.mark.parametrize(
    ("identifier", "offset", "length"), [("", 0, None), ("x" * 4097, 0, None), ("log", -1, None), ("log", 0, 0)]
)
def test_an_association_that_means_nothing_is_refused_and_changes_nothing(
    identifier: str, offset: int, length: int | None
) -> None:
    map_ = log()
    with pytest.raises(MapError):
        map_.associate(identifier, offset, length)
    assert map_.labels == log().labels


# --- literal bytes ---
def test_what_is_written_in_small_pieces_is_one_extent_without_what_is_acknowledged() -> None:
    """So a protocol that writes a line a second does not run into the limit of extents."""
    map_ = SequenceMap(ISS)
    for number in range(1000):
        map_.literal(b"%03d\n" % number)
    assert len(map_.extents) == 1
    map_.acknowledge(4 * 998 + 1)
    assert map_.extents == [Extent(4 * 998 + 1, 7, literal=b"98\n999\n")]
