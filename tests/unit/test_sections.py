"""The sections of TCP and of the byte stream: what they carry, and which of them contradict themselves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.datablock import DataBlock, Section
from state.errors import CheckpointRefused
from state.sections import LIMIT_EXTENTS, STREAM, TCP, Extent, Label, ObjectRef, StreamSection, TcpSection
from tests.unit.builders import (
    ACKED,
    END,
    FILE,
    FILE_SIZE,
    HEAD,
    RCV_NXT,
    SENT,
    header,
    stream_section,
    tcp_section,
    wire,
)

BODY = Extent(len(HEAD), FILE_SIZE, object=0, offset=0)


def carried(section: StreamSection) -> StreamSection:
    """Through a block's bytes and back."""
    block = DataBlock(header())
    block.append(STREAM, section)
    return DataBlock.decode(block.encode()).section(STREAM, StreamSection)


def contradiction(**changes: Any) -> str:
    """What `check` says of the example section with these changes; they pass through the codec first."""
    section = carried(stream_section(**changes))
    with pytest.raises(CheckpointRefused) as caught:
        section.check()
    return str(caught.value)


def refused(name: str, type_: type[msgspec.Struct], fields: list[Any]) -> None:
    block = DataBlock(header(), [Section(name, msgspec.msgpack.encode(fields))])
    with pytest.raises(CheckpointRefused) as caught:
        block.section(name, type_)
    assert caught.value.field == name


# --- what goes in comes out ---
def test_the_example_is_carried_and_agrees_with_itself() -> None:
    section = carried(stream_section())
    assert section == stream_section()
    section.check()
    assert section.end == END


@st.composite
def contiguous(draw: st.DrawFn) -> StreamSection:
    start = draw(st.sampled_from((0, 2**32 - 5, 2**62)))
    objects = draw(
        st.lists(
            st.builds(
                ObjectRef, st.text(min_size=1, max_size=9), st.just(2**40), st.integers(-5, 5), st.binary(max_size=32)
            ),
            min_size=1,
            max_size=4,
        )
    )
    extents: list[Extent] = []
    at = start
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            literal = draw(st.binary(min_size=1, max_size=20))
            extents.append(Extent(at, len(literal), literal=literal))
        else:
            length = draw(st.integers(1, 2**33))
            which = draw(st.integers(0, len(objects) - 1))
            extents.append(Extent(at, length, object=which, offset=draw(st.integers(0, 2**40 - length))))
        at = extents[-1].end
    acked = draw(st.integers(start, at))
    sent = draw(st.integers(acked, at)) if extents else acked
    flags = st.booleans()
    return StreamSection(acked, sent, draw(st.integers(0, 2**63 - 1)), draw(flags), draw(flags), objects, extents)


@given(contiguous())
def test_every_contiguous_stream_is_carried_and_agrees_with_itself(section: StreamSection) -> None:
    assert carried(section) == section
    section.check()
    assert section.end == (section.extents[-1].end if section.extents else section.acked)


@given(contiguous(), st.data())
def test_a_stream_with_a_hole_anywhere_is_refused(section: StreamSection, data: st.DataObject) -> None:
    if len(section.extents) < 3:
        return
    del section.extents[data.draw(st.integers(1, len(section.extents) - 2))]
    with pytest.raises(CheckpointRefused) as caught:
        section.check()
    assert caught.value.field == "extents"


def test_an_idle_connection_has_no_extents_and_ends_where_it_was_acknowledged() -> None:
    section = carried(stream_section(acked=7, sent=7, objects=[], extents=[]))
    section.check()
    assert section.end == 7


# --- contradictions ---
def test_more_acknowledged_than_sent_is_refused() -> None:
    assert "acked" in contradiction(acked=SENT + 1)


def test_more_sent_than_planned_is_refused() -> None:
    assert "sent" in contradiction(sent=END + 1)
    assert "sent" in contradiction(acked=7, sent=8, objects=[], extents=[])
    stream_section(sent=END).check()


def test_unacknowledged_bytes_without_an_extent_are_refused() -> None:
    assert "no extent" in contradiction(acked=len(HEAD) - 1, extents=[BODY])
    stream_section(acked=len(HEAD), extents=[BODY]).check()


@pytest.mark.parametrize(
    "labels",
    [
        [Label(300, "log", 0, 10), Label(309, "log", 9)],
        [Label(300, "log", 0, 10), Label(200, "log", 9)],
        [Label(300, "log", 0), Label(310, "log", 9)],
        [Label(END + 1, "log", 0)],
    ],
)
def test_labels_that_overlap_or_lie_beyond_the_end_are_refused(labels: list[Label]) -> None:
    assert "labels" in contradiction(labels=labels)


def test_labels_that_agree_are_carried() -> None:
    labels = [Label(0, "log", 2**62, 10), Label(10, "x" * 4096, 0, 1), Label(END, "log", 7)]
    section = carried(stream_section(labels=labels))
    section.check()
    assert section.labels == labels


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_gap_or_an_overlap_between_extents_is_refused(shift: int) -> None:
    moved = Extent(len(HEAD) + shift, FILE_SIZE, object=0)
    assert "not contiguous" in contradiction(extents=[Extent(0, len(HEAD), literal=HEAD), moved])


def test_extents_out_of_order_are_refused() -> None:
    assert contradiction(acked=len(HEAD), extents=[BODY, Extent(0, len(HEAD), literal=HEAD)])


def test_an_extent_is_either_literal_or_of_an_object() -> None:
    assert "either" in contradiction(extents=[Extent(0, END)])
    assert "either" in contradiction(extents=[Extent(0, len(HEAD), literal=HEAD, object=0), BODY])


@pytest.mark.parametrize("literal", [HEAD[:-1], HEAD + b"x", b""])
def test_literal_bytes_are_as_many_as_their_length(literal: bytes) -> None:
    assert "literal" in contradiction(extents=[Extent(0, len(HEAD), literal=literal), BODY])


def test_an_extent_of_an_object_that_is_not_listed_is_refused() -> None:
    assert "objects" in contradiction(objects=[])
    other = Extent(len(HEAD), FILE_SIZE, object=1)
    assert "objects" in contradiction(extents=[Extent(0, len(HEAD), literal=HEAD), other])


@pytest.mark.parametrize(("offset", "length"), [(1, FILE_SIZE), (0, FILE_SIZE + 1), (FILE_SIZE, 1), (2**63 - 1, SENT)])
def test_an_object_that_is_shorter_than_its_extent_is_refused(offset: int, length: int) -> None:
    run = Extent(len(HEAD), length, object=0, offset=offset)
    text = contradiction(acked=ACKED, sent=ACKED, extents=[Extent(0, len(HEAD), literal=HEAD), run])
    assert "offset" in text


def test_the_last_byte_of_an_object_may_be_named() -> None:
    run = Extent(len(HEAD), 1, object=0, offset=FILE_SIZE - 1)
    stream_section(sent=ACKED, extents=[Extent(0, len(HEAD), literal=HEAD), run]).check()


# --- against the header ---
def test_the_example_agrees_with_its_header() -> None:
    stream_section().check_against(header())
    stream_section(input_ended=True).check_against(header(rcv_nxt=RCV_NXT + 1))
    stream_section().check_against(header(object="", object_first=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"snd_una": wire(ACKED + 1)},
        {"snd_una": wire(0)},
        {"snd_nxt": wire(SENT - 1)},
        {"snd_nxt": wire(END)},
        {"rcv_nxt": RCV_NXT + 1},
        {"rcv_nxt": 0},
        {"object": "/other.bin"},
        {"object_first": wire(len(HEAD) + 1)},
        {"object_first": 0},
    ],
    ids=str,
)
def test_a_header_that_contradicts_the_stream_is_refused_with_its_fields_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointRefused) as caught:
        stream_section().check_against(header(**changes))
    assert [caught.value.field] == list(changes)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), contiguous())
def test_a_header_made_of_a_stream_agrees_with_it_wherever_it_wraps(iss: int, irs: int, section: StreamSection) -> None:
    made = header(
        iss=iss,
        irs=irs,
        snd_una=(iss + 1 + section.acked) % 2**32,
        snd_nxt=(iss + 1 + section.sent) % 2**32,
        rcv_nxt=(irs + 1 + section.received + section.input_ended) % 2**32,
        object="",
        object_first=0,
    )
    section.check_against(made)


def test_a_range_of_an_object_is_found_by_its_first_byte_which_was_never_sent() -> None:
    run = Extent(len(HEAD), 10, object=0, offset=700)
    section = stream_section(sent=ACKED, extents=[Extent(0, len(HEAD), literal=HEAD), run])
    section.check_against(header(snd_nxt=wire(ACKED), object_first=wire(len(HEAD) - 700)))


# --- ranges ---
@pytest.mark.parametrize(
    "field", ["mss=0", "mss=65536", "snd_wscale=15", "rcv_wscale=15", "tsval=-1", "tsval=4294967296", "wmax=4294967296"]
)
def test_a_tcp_field_out_of_range_is_refused(field: str) -> None:
    name, value = field.split("=")
    fields = list(msgspec.to_builtins(tcp_section()))
    fields[TcpSection.__struct_fields__.index(name)] = int(value)
    refused(TCP, TcpSection, fields)


def stream_fields(**changes: Any) -> list[Any]:
    fields = list(msgspec.to_builtins(stream_section(), builtin_types=(bytes,)))
    for name, value in changes.items():
        fields[StreamSection.__struct_fields__.index(name)] = value
    return fields


@pytest.mark.parametrize(
    "changes",
    [
        {"acked": -1},
        {"sent": 2**63},
        {"input_ended": 1},
        {"closing": None},
        {"extents": [[0, 0, b""]]},
        {"extents": [[0, -1, b""]]},
        {"extents": [[-1, 1, b"x"]]},
        {"extents": [[0, 1, None, LIMIT_EXTENTS]]},
        {"extents": [[0, 1, None, -1]]},
        {"extents": [[0, 1, None, 0, -1]]},
        {"extents": [[0, 1, b"x", None, 0, "new"]]},
        {"extents": [[i, 1, b"x"] for i in range(LIMIT_EXTENTS + 1)]},
        {"objects": [["", 1, 1, b""]]},
        {"objects": [["/a", -1, 1, b""]]},
        {"objects": [["/a", 1, 2**63, b""]]},
        {"objects": [["/a", 1, 1, b"x" * 33]]},
        {"objects": [["/" * 4097, 1, 1, b""]]},
        {"objects": [["/a", 1, 1, b"", "new"]]},
        {"objects": [["/a", 1, 1, b""]] * (LIMIT_EXTENTS + 1)},
    ],
    ids=str,
)
def test_a_stream_field_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    refused(STREAM, StreamSection, stream_fields(**changes))


def test_a_stream_field_that_this_version_does_not_know_is_refused() -> None:
    refused(STREAM, StreamSection, [*stream_fields(), "new"])
    refused(STREAM, StreamSection, stream_fields()[: StreamSection.__struct_fields__.index("extents")])


def test_an_identifier_that_is_not_utf_8_is_refused() -> None:
    payload = msgspec.msgpack.encode(stream_fields())
    assert payload.count(b"/film.bin") == 1
    block = DataBlock(header(), [Section(STREAM, payload.replace(b"/film.bin", b"/film\xff\xfe\xfd\xfc"))])
    with pytest.raises(CheckpointRefused) as caught:
        block.section(STREAM, StreamSection)
    assert caught.value.field == STREAM


def test_a_modification_time_before_1970_is_carried() -> None:
    old = ObjectRef(FILE.identifier, FILE_SIZE, -1, b"")
    assert carried(stream_section(objects=[old])).objects == [old]
