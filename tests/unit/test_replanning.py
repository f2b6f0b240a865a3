"""What was planned and not handed over is planned anew: truncated maps, streams whose checkpoints are of an older plan,
and streams that are paced by a limit. What the client sees is decided by a model: every byte ever handed over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.judge import Proof
from dataplane.sequence_map import MapError, ObjectByte, SequenceMap
from dataplane.stream import ByteStream, Literal, Run
from state.datablock import DataBlock
from state.sections import STREAM, Extent, Label, ObjectRef, StreamSection
from tests.unit.builders import END, FILE, FILE_SIZE, HEAD, ISS, header, proof, stream_section, wire

OTHER = ObjectRef("/other.bin", 500, 1, b"")


def planned() -> SequenceMap:
    """A header of 200 bytes and a file of 10,000."""
    map_ = SequenceMap(ISS)
    map_.literal(HEAD)
    map_.object(FILE, 0, FILE_SIZE)
    return map_


# --- the map ---
@pytest.mark.parametrize(
    ("position", "extents"),
    [
        (END, [Extent(0, 200, literal=HEAD), Extent(200, FILE_SIZE, object=0)]),
        (1200, [Extent(0, 200, literal=HEAD), Extent(200, 1000, object=0)]),
        (200, [Extent(0, 200, literal=HEAD)]),
        (50, [Extent(0, 50, literal=HEAD[:50])]),
        (0, []),
    ],
)
def test_what_is_planned_from_a_position_on_is_forgotten(position: int, extents: list[Extent]) -> None:
    map_ = planned()
    map_.truncate(position)
    assert (map_.extents, map_.end) == (extents, position)
    assert map_.objects == ([FILE] if position > 200 else [])
    assert map_.literal(b"instead") == wire(position)


def test_an_object_goes_on_after_what_was_put_in_between() -> None:
    """An answer in the middle of a stream: the rest of the object follows it."""
    map_ = planned()
    map_.truncate(1200)
    map_.literal(b"an answer")
    map_.object(FILE, 1000, FILE_SIZE - 1000)
    assert map_.seq_of("/film.bin", 999) == wire(1199)
    assert map_.seq_of("/film.bin", 1000) == wire(1209)
    assert map_.object_at(1199) == ObjectByte("/film.bin", 999)
    assert map_.object_at(1200) is None
    assert map_.object_at(1209) == ObjectByte("/film.bin", 1000)


def test_an_object_that_is_not_planned_any_more_is_forgotten() -> None:
    map_ = SequenceMap(ISS)
    map_.object(OTHER, 0, 500)
    map_.object(FILE, 0, FILE_SIZE)
    map_.object(OTHER, 100, 100)
    map_.truncate(500 + 10)
    assert (map_.objects, map_.extents) == ([OTHER, FILE], [Extent(0, 500, object=0), Extent(500, 10, object=1)])
    map_.truncate(500)
    assert map_.objects == [OTHER]


def test_labels_end_where_the_plan_does() -> None:
    map_ = SequenceMap(ISS)
    map_.associate("log", 10)
    map_.literal(b"x" * 100)
    map_.associate("log", 500, 50)
    map_.literal(b"y" * 50)
    map_.truncate(120)
    assert map_.labels == [Label(0, "log", 10, 100), Label(100, "log", 500, 20)]
    map_.truncate(40)
    map_.literal(b"z" * 40)
    assert map_.labels == [Label(0, "log", 10, 40)]
    assert map_.object_at(50) is None


@pytest.mark.parametrize("position", [99, END + 1])
def test_what_is_acknowledged_or_was_never_planned_cannot_be_truncated(position: int) -> None:
    map_ = planned()
    map_.acknowledge(100)
    with pytest.raises(MapError, match=str(position)):
        map_.truncate(position)
    assert map_.end == END


# --- the stream ---
def stored_stream() -> ByteStream:
    stream = ByteStream(planned())
    stream.checkpointed(END)
    return stream


def hand_over(stream: ByteStream, count: int) -> list[Literal | Run]:
    """The kernel takes up to so many bytes."""
    taken: list[Literal | Run] = []
    while count and (piece := stream.next()) is not None:
        if isinstance(piece, Literal):
            piece = Literal(piece.data[:count])
        else:
            piece = Run(piece.object, piece.offset, min(piece.length, count))
        length = len(piece.data) if isinstance(piece, Literal) else piece.length
        stream.handed_over(length)
        count -= length
        taken.append(piece)
    return taken


def test_a_new_plan_goes_out_only_after_a_checkpoint_of_its_own() -> None:
    stream = stored_stream()
    hand_over(stream, 1200)
    stream.truncate(1200)
    stream.map.literal(b"an answer")
    stream.map.object(FILE, 1000, 5000)
    assert stream.next() is None
    stream.checkpointed(stream.map.end, stream.plan)
    assert hand_over(stream, 20) == [Literal(b"an answer"), Run(FILE, 1000, 11)]


def test_a_checkpoint_of_the_old_plan_that_is_stored_late_opens_nothing() -> None:
    """It was on its way when the plan changed: it says other bytes for these positions."""
    stream = stored_stream()
    hand_over(stream, 1200)
    old = stream.plan
    stream.truncate(1200)
    stream.map.literal(b"an answer")
    stream.checkpointed(END, old)
    assert stream.next() is None
    stream.checkpointed(stream.map.end, stream.plan)
    assert stream.next() == Literal(b"an answer")


def test_what_the_client_may_have_stays_planned() -> None:
    stream = stored_stream()
    hand_over(stream, 1200)
    with pytest.raises(MapError, match="handed over"):
        stream.truncate(1199)
    stream.rewind(proof(300, sacked=700))
    with pytest.raises(MapError, match="1200"):
        stream.truncate(1199)
    stream.truncate(1200)
    assert hand_over(stream, 10_000) == [Run(FILE, 100, 900)]


def test_what_an_earlier_owner_sent_stays_planned() -> None:
    section = stream_section(acked=150, sent=5000)
    for found, reached in ((proof(300), 5000), (proof(300, sacked=7000), 7000), (proof(6000), 6000)):
        stream = ByteStream.resumed(ISS, section, replace(found, window=0))
        with pytest.raises(MapError, match=str(reached)):
            stream.truncate(reached - 1)
        stream.truncate(reached)


def test_what_the_client_may_hold_unnamed_stays_planned() -> None:
    """It has no SACK, or holds more islands than an answer has room for: anything in its window, as far as an earlier
    owner may have sent by now."""
    section = stream_section(acked=150, sent=300)
    stream = ByteStream.resumed(ISS, section, replace(proof(300), window=2000))
    assert stream.reached == 2300
    stream.released = 1500
    with pytest.raises(MapError, match="1500"):
        stream.truncate(1499)
    stream.truncate(1500)
    assert ByteStream.resumed(ISS, section, replace(proof(300), window=1 << 30)).reached == END


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("hand over"), st.integers(1, 400)),
            st.tuples(st.just("truncate"), st.integers(0, 400)),
            st.tuples(st.just("plan"), st.integers(1, 300)),
            st.tuples(st.just("write"), st.integers(1, 20)),
            st.tuples(st.just("store"), st.just(0)),
            st.tuples(st.just("answer"), st.just(0)),
            st.tuples(st.just("rewind"), st.integers(0, 400)),
        ),
        max_size=40,
    )
)
def test_a_backup_would_always_send_the_bytes_that_the_client_was_sent(steps: list[tuple[str, int]]) -> None:
    """Whenever the owner dies: each byte that ever went out is the byte that the last stored checkpoint has there."""
    stream, count = ByteStream(SequenceMap(ISS)), 0
    content = bytes(number * 7 % 251 for number in range(FILE_SIZE))
    sent: dict[int, int] = {}
    stored = _section(stream)
    on_their_way: list[tuple[StreamSection, int, int]] = []
    for step, number in steps:
        if step == "hand over":
            at = stream.sent
            for piece in hand_over(stream, number):
                data = piece.data if isinstance(piece, Literal) else content[piece.offset : piece.offset + piece.length]
                for value in data:
                    assert sent.setdefault(at, value) == value, "sent again, and otherwise"
                    at += 1
        elif step == "truncate" and stream.reached + number <= stream.map.end:
            stream.truncate(stream.reached + number)
        elif step == "plan":
            stream.map.object(FILE, count * 13 % (FILE_SIZE - 300), number)
            count += 1
        elif step == "write":
            count += 1
            stream.map.literal(bytes([count % 256]) * number)
        elif step == "store":
            on_their_way.append((_section(stream), stream.map.end, stream.plan))
        elif step == "answer" and on_their_way:
            stored, end, plan = on_their_way.pop(0)
            stream.checkpointed(end, plan)
        elif step == "rewind":
            back = max(stream.map.acked, stream.sent - number)
            stream.rewind(Proof(stream.map.seq(back), back, stream.map.seq(0), 0, 0, 0, 0, back))
        backup = SequenceMap.restored(ISS, stored.acked, stored.objects, stored.extents)
        for position, value in sent.items():
            if position >= stored.acked:
                location = backup.locate(position)
                assert location is not None
                literal = location.extent.literal
                assert value == (content[location.offset] if literal is None else literal[location.into])


def _section(stream: ByteStream) -> StreamSection:
    block = DataBlock(header())
    stream.checkpoint(block)
    section = block.section(STREAM, StreamSection)
    section.check()
    return section


# --- pacing ---
def test_what_is_not_released_waits_though_it_is_stored() -> None:
    stream = stored_stream()
    stream.released = 250
    assert hand_over(stream, END) == [Literal(HEAD), Run(FILE, 0, 50)]
    assert not stream.finished
    stream.released = 300
    assert hand_over(stream, END) == [Run(FILE, 50, 50)]
    stream.released = None
    assert hand_over(stream, END) == [Run(FILE, 100, FILE_SIZE - 100)]
    assert stream.finished


def test_what_is_released_waits_if_it_is_not_stored() -> None:
    stream = ByteStream(planned())
    stream.released = END
    assert stream.next() is None
    stream.checkpointed(100)
    assert hand_over(stream, END) == [Literal(HEAD[:100])]


def test_a_limit_that_lies_behind_sends_nothing() -> None:
    stream = stored_stream()
    hand_over(stream, 500)
    stream.released = 400
    assert stream.next() is None
