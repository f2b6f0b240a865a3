"""The byte stream: what is not stored may not go out, a proof rewinds it, its checkpoint says what its bytes are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.sequence_map import ObjectByte, SequenceMap
from dataplane.stream import REFRESH_BYTES, ByteStream, Literal, Run
from state.datablock import LIMIT_BYTES, DataBlock
from state.sections import LIMIT_EXTENTS, STREAM, Extent, ObjectRef, StreamSection
from tests.unit.builders import (
    ACKED,
    END,
    FILE,
    FILE_SIZE,
    HEAD,
    ISS,
    REQUEST,
    SENT,
    header,
    proof,
    stream_section,
    wire,
)

BIG = ObjectRef("/big", 2**40, 0, b"")


def planned() -> ByteStream:
    """A response is planned; no checkpoint of it is stored yet."""
    stream = ByteStream(SequenceMap(ISS))
    stream.map.literal(HEAD)
    stream.map.object(FILE, 0, FILE_SIZE)
    return stream


def drain(stream: ByteStream) -> list[Literal | Run]:
    """Everything that may go out now."""
    pieces = []
    while (piece := stream.next()) is not None:
        pieces.append(piece)
        stream.handed_over(len(piece.data) if isinstance(piece, Literal) else piece.length)
    return pieces


# --- the gate (invariant 5) ---
def test_nothing_goes_out_before_its_checkpoint_is_stored() -> None:
    stream = planned()
    assert stream.next() is None
    stream.checkpointed(END)
    assert drain(stream) == [Literal(HEAD), Run(FILE, 0, FILE_SIZE)]
    assert stream.next() is None
    assert stream.finished


def test_what_is_planned_after_the_checkpoint_waits_for_the_next() -> None:
    stream = planned()
    stream.checkpointed(END)
    stream.map.literal(b"later")
    assert drain(stream) == [Literal(HEAD), Run(FILE, 0, FILE_SIZE)]
    assert not stream.finished
    stream.checkpointed(END + 5)
    assert drain(stream) == [Literal(b"later")]


def test_a_checkpoint_that_covers_half_of_an_extent_opens_half_of_it() -> None:
    stream = planned()
    stream.checkpointed(50)
    assert drain(stream) == [Literal(HEAD[:50])]
    stream.checkpointed(300)
    assert drain(stream) == [Literal(HEAD[50:]), Run(FILE, 0, 100)]
    assert stream.sent == 300


def test_an_answer_that_comes_late_does_not_close_the_gate_again() -> None:
    stream = planned()
    stream.checkpointed(END)
    stream.checkpointed(50)
    assert stream.stored == END
    assert stream.next() == Literal(HEAD)


def test_when_the_kernel_takes_less_the_rest_is_offered_next() -> None:
    stream = planned()
    stream.checkpointed(END)
    stream.handed_over(199)
    assert stream.next() == Literal(HEAD[199:])
    stream.handed_over(1)
    assert stream.next() == Run(FILE, 0, FILE_SIZE)
    stream.handed_over(9_999)
    assert stream.next() == Run(FILE, 9_999, 1)


@settings(max_examples=50)
@given(st.lists(st.integers(1, END), min_size=1, max_size=6), st.integers(150, 5000))
def test_however_it_is_cut_the_same_bytes_go_out_once_and_never_too_early(stored: list[int], at_most: int) -> None:
    file = bytes(i % 251 for i in range(FILE_SIZE))
    stream, out = planned(), b""
    for position in [*stored, END]:
        stream.checkpointed(position)
        while (piece := stream.next()) is not None:
            data = piece.data if isinstance(piece, Literal) else file[piece.offset : piece.offset + piece.length]
            assert data
            out += data[:at_most]
            stream.handed_over(min(len(data), at_most))
            assert len(out) == stream.sent <= stream.stored
    assert out == HEAD + file


# --- age ---
def test_a_checkpoint_grows_old_before_an_ack_could_be_ambiguous() -> None:
    stream = ByteStream(SequenceMap(ISS))
    stream.map.object(BIG, 0, 2**40)
    stream.checkpointed(2**40)
    assert REFRESH_BYTES < 2**31
    assert not stream.handed_over(REFRESH_BYTES - 1)
    assert stream.handed_over(1)
    assert not stream.handed_over(REFRESH_BYTES - 1)
    assert stream.handed_over(1)


def test_after_a_takeover_age_counts_from_where_the_client_stands() -> None:
    far = 5 * REFRESH_BYTES
    section = stream_section(acked=far, sent=far, objects=[BIG], extents=[Extent(0, 2**40, object=0)])
    stream = ByteStream.resumed(ISS, section, proof(far + 100))
    assert not stream.handed_over(REFRESH_BYTES - 1)
    assert stream.handed_over(1)


# --- takeover ---
def test_a_resumed_stream_goes_on_at_the_very_byte_that_the_client_wants() -> None:
    stream = ByteStream.resumed(ISS, stream_section(), proof(1000))
    assert stream.next() == Run(FILE, 800, FILE_SIZE - 800)
    assert stream.map.seq(stream.sent) == wire(1000)
    assert stream.map.acked == 1000
    assert (stream.received, stream.input_ended, stream.closing) == (REQUEST, False, False)


@pytest.mark.parametrize("position", [ACKED, 199, 200, 299, SENT - 1, SENT, SENT + 1, END - 1])
def test_every_byte_after_the_proof_is_sent_again_and_none_before(position: int) -> None:
    stream = ByteStream.resumed(ISS, stream_section(), proof(position))
    pieces = drain(stream)
    expected: list[Literal | Run] = [Literal(HEAD[position:])] if position < 200 else []
    start = max(position, 200)
    assert pieces == [*expected, Run(FILE, start - 200, END - start)]


def test_the_old_owners_checkpoint_covers_all_that_it_had_planned_and_nothing_new() -> None:
    stream = ByteStream.resumed(ISS, stream_section(), proof(END))
    assert stream.finished
    assert stream.next() is None
    stream.map.literal(b"new")
    assert stream.next() is None
    stream.checkpointed(END + 3)
    assert stream.next() == Literal(b"new")


def test_an_acknowledged_fin_is_no_byte_of_the_stream() -> None:
    stream = ByteStream.resumed(ISS, stream_section(closing=True), proof(END + 1))
    assert stream.closing
    assert (stream.sent, stream.map.acked) == (END, END)
    assert stream.finished


def test_rewinding_offers_again_what_the_kernel_had_taken() -> None:
    stream = planned()
    stream.checkpointed(END)
    drain(stream)
    stream.rewind(proof(250))
    assert stream.next() == Run(FILE, 50, FILE_SIZE - 50)
    assert not stream.finished
    stream.rewind(proof(END))
    assert stream.finished


def test_what_is_planned_after_a_takeover_follows_what_was_planned_before() -> None:
    stream = ByteStream.resumed(ISS, stream_section(), proof(1000))
    assert stream.map.literal(b"next") == wire(END)


# --- input ---
def test_the_clients_fin_counts_as_one() -> None:
    stream = planned()
    stream.received = REQUEST
    assert stream.rcv_nxt_offset == REQUEST
    stream.input_ended = True
    assert stream.rcv_nxt_offset == REQUEST + 1


# --- checkpoint ---
def test_the_checkpoint_says_what_every_unacknowledged_byte_is() -> None:
    stream = planned()
    stream.checkpointed(END)
    stream.handed_over(SENT)
    stream.received = REQUEST
    stream.map.acknowledge(ACKED)
    block = DataBlock(header())
    stream.checkpoint(block)
    rest = Extent(ACKED, len(HEAD) - ACKED, literal=HEAD[ACKED:])
    assert block.section(STREAM, StreamSection) == stream_section(extents=[rest, stream_section().extents[1]])


def test_what_the_application_said_of_its_bytes_is_known_where_the_stream_is_resumed() -> None:
    stream = ByteStream(SequenceMap(ISS))
    stream.map.literal(HEAD)
    stream.map.associate("log", 40)
    stream.map.literal(b"x" * 100)
    block = DataBlock(header())
    stream.checkpoint(block)
    section = block.section(STREAM, StreamSection)
    section.check()
    resumed = ByteStream.resumed(ISS, section, proof(230))
    assert resumed.map.object_at(230) == ObjectByte("log", 70)
    assert resumed.map.seq_of("log", 70) == wire(230)
    assert resumed.current_object() == stream.current_object() == ("log", wire(160))
    assert resumed.map.literal(b"y") == wire(300)
    assert resumed.map.seq_of("log", 140) == wire(300), "what the heir writes goes on with it"


@given(st.integers(0, END), st.booleans(), st.booleans())
def test_a_stream_of_a_checkpoint_makes_the_same_checkpoint(position: int, closing: bool, ended: bool) -> None:
    section = stream_section(acked=0, sent=0, closing=closing, input_ended=ended)
    stream = ByteStream.resumed(ISS, section, proof(position))
    block = DataBlock(header())
    stream.checkpoint(block)
    made = block.section(STREAM, StreamSection)
    made.check()
    assert (made.acked, made.sent, made.end) == (position, position, END)
    assert (made.closing, made.input_ended, made.received) == (closing, ended, REQUEST)


def test_the_header_names_the_last_object_that_is_planned_and_its_byte_0() -> None:
    stream = ByteStream(SequenceMap(ISS))
    assert stream.current_object() == ("", 0)
    stream.map.literal(HEAD)
    stream.map.object(FILE, 7000, 3000)
    identifier, first = stream.current_object()
    assert identifier == "/film.bin"
    assert first + 7000 == wire(200)
    stream.map.acknowledge(3200)
    assert stream.current_object() == ("", 0)


# --- what a checkpoint can carry ---
def test_a_stream_is_crowded_long_before_its_checkpoint_outgrows_its_limits_and_not_once_it_is_acknowledged() -> None:
    for plan in (lambda s: s.map.literal(b"x" * 1000), lambda s: s.map.object(BIG, 7 * s.map.end + 9, 1)):
        stream = ByteStream(SequenceMap(ISS))
        while not stream.crowded:
            plan(stream)
        assert len(stream.map.extents) <= LIMIT_EXTENTS // 2
        made = DataBlock(header())
        stream.checkpoint(made)
        assert len(made.encode()) < LIMIT_BYTES // 4
        stream.map.acknowledge(stream.map.end)
        assert not stream.crowded


def test_the_names_of_many_objects_are_a_crowd_too() -> None:
    stream = ByteStream(SequenceMap(ISS))
    for number in range(3):
        assert not stream.crowded
        stream.map.object(ObjectRef(f"/{number}" + "x" * 4000, 5, 0, b""), 0, 5)
    assert stream.crowded


def test_one_large_object_is_no_crowd() -> None:
    assert not planned().crowded
    stream = ByteStream(SequenceMap(ISS))
    stream.map.object(BIG, 0, BIG.size)
    assert not stream.crowded
