"""The checkpoint's codec: what goes in comes out, and whatever is wrong is refused by its name.

Blocks arrive from servers that are dying, old or hostile, so a large part of this is about bytes that are no block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.datablock import LIMIT_BYTES, DataBlock, FourTuple, Header, Section, decode_header
from state.errors import CheckpointRefused
from state.sections import TCP, TcpSection
from tests.unit.builders import (
    CLIENT6,
    MODULUS,
    VIP6,
    block,
    four_tuple,
    header,
    header_list,
    sealed,
    sealed_list,
    tcp_section,
)

UINT32 = st.integers(0, MODULUS - 1)
NEAR_WRAP = st.integers(MODULUS - 20, MODULUS + 20).map(lambda value: value % MODULUS)
UINT63 = st.integers(0, 2**63 - 1)
NAMES = st.text(min_size=1, max_size=64)
PORTS = st.integers(1, 65535)
TUPLES = st.sampled_from((4, 16)).flatmap(
    lambda size: st.builds(
        FourTuple, st.binary(min_size=size, max_size=size), PORTS, st.binary(min_size=size, max_size=size), PORTS
    )
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    una = draw(UINT32 | NEAR_WRAP)
    return Header(
        *(draw(NAMES), draw(UINT63), draw(UINT63), draw(st.integers(1, 2**63 - 1)), draw(UINT63)),
        *(draw(TUPLES), draw(NAMES), draw(UINT32 | NEAR_WRAP), draw(UINT32 | NEAR_WRAP)),
        *(una, (una + draw(st.integers(0, 2**31 - 1))) % MODULUS, draw(UINT32 | NEAR_WRAP)),
        *(draw(st.text(max_size=100)), draw(UINT32 | NEAR_WRAP)),
    )


SECTIONS = st.lists(
    st.builds(Section, NAMES, st.binary(max_size=200)), max_size=16, unique_by=lambda section: section.name
)


def refusal(data: bytes, decode: Callable[[bytes], object] = DataBlock.decode) -> str:
    """The field that the refusal names."""
    with pytest.raises(CheckpointRefused) as caught:
        decode(data)
    assert caught.value.field in str(caught.value)
    return caught.value.field


# --- what goes in comes out ---
@given(headers(), SECTIONS)
def test_decoding_gives_back_what_was_encoded(made: Header, sections: list[Section]) -> None:
    data = DataBlock(made, sections).encode()
    decoded = DataBlock.decode(data)
    assert decoded.header == made
    assert decoded.sections == sections
    assert decode_header(data) == made


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server", "web2"),
        ("time", 5),
        ("connection", four_tuple(source=bytes([10, 0, 0, 101]))),
        ("connection", four_tuple(source_port=443)),
        ("connection", four_tuple(destination=bytes([10, 0, 0, 8]))),
        ("connection", four_tuple(destination_port=1)),
        ("protocol", "rtsp/1.0"),
        ("iss", MODULUS - 1),
        ("irs", MODULUS - 1),
        ("snd_una", MODULUS - 1),
        ("snd_nxt", 5001),
        ("rcv_nxt", 0),
        ("object", "/other.bin"),
        ("object_first", MODULUS - 1),
    ],
)
def test_each_field_of_claim_8_is_carried(field: str, value: object) -> None:
    decoded = DataBlock.decode(block(**{field: value}).encode()).header
    assert getattr(decoded, field) == value
    assert getattr(header(), field) != value
    for other in set(Header.__struct_fields__) - {field}:
        assert getattr(decoded, other) == getattr(header(), other)


def test_a_connection_is_named_by_client_then_service() -> None:
    assert four_tuple().id == "10.0.0.7-40001-10.0.0.100-80"
    assert FourTuple(VIP6, 80, CLIENT6, 65535).id == "fd00::7-65535-fd00::64-80"


# --- bytes that are no block ---
@pytest.mark.parametrize("decode", [DataBlock.decode, decode_header])
def test_a_block_cut_at_any_length_is_refused(decode: Callable[[bytes], object]) -> None:
    data = block().encode()
    for length in range(len(data)):
        assert refusal(data[:length], decode) == ("length" if length < 8 else "checksum")


def test_a_damaged_byte_anywhere_is_refused() -> None:
    data = block().encode()
    names = ["magic"] * 3 + ["version"] + ["checksum"] * (len(data) - 4)
    for at, name in enumerate(names):
        damaged = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        assert refusal(damaged) == name


def test_bytes_after_the_end_are_refused() -> None:
    assert refusal(block().encode() + b"\0") == "checksum"
    assert refusal(sealed(block().encode()[8:] + b"\0")) == "encoding"


def test_another_version_is_refused_before_anything_is_decoded() -> None:
    data = block().encode()
    for version in (0, 2, 255):
        assert refusal(data[:3] + bytes([version]) + data[4:]) == "version"


def test_the_limit_is_exact_in_both_directions() -> None:
    overhead = len(DataBlock(header(), [Section("http/1.1", b"x" * 60_000)]).encode()) - 60_000
    largest = DataBlock(header(), [Section("http/1.1", b"x" * (LIMIT_BYTES - overhead))])
    assert len(largest.encode()) == LIMIT_BYTES
    assert DataBlock.decode(largest.encode()).sections == largest.sections
    too_large = DataBlock(header(), [Section("http/1.1", b"x" * (LIMIT_BYTES - overhead + 1))])
    with pytest.raises(CheckpointRefused) as caught:
        too_large.encode()
    assert caught.value.field == "length"
    assert refusal(b"TKO" + b"\1" * (LIMIT_BYTES - 2)) == "length"


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    refusal(data)
    refusal(data, decode_header)


@given(st.binary(max_size=100))
def test_random_bytes_with_a_right_checksum_are_refused_and_nothing_worse(body: bytes) -> None:
    refusal(sealed(body))
    refusal(sealed(body), decode_header)


@settings(max_examples=300)
@given(st.data())
def test_a_body_changed_anywhere_is_refused_or_still_valid(data: st.DataObject) -> None:
    """The checksum made right again: the sender means what it says."""
    body = bytearray(block().encode()[8:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = DataBlock.decode(sealed(bytes(body)))
    except CheckpointRefused:
        return
    assert DataBlock.decode(decoded.encode()).header == decoded.header


@pytest.mark.parametrize("decode", [DataBlock.decode, decode_header])
def test_text_that_is_not_utf_8_is_refused(decode: Callable[[bytes], object]) -> None:
    body = block().encode()[8:]
    assert body.count(b"web1") == 1
    refusal(sealed(body.replace(b"web1", b"we\xff\xfe")), decode)


def test_nesting_without_end_is_refused() -> None:
    refusal(sealed(b"\x92" * 60_000))
    refusal(sealed(b"\x92" * 60_000), decode_header)


# --- fields ---
NUMBERS = {"iss", "irs", "snd_una", "snd_nxt", "rcv_nxt", "object_first"}


@pytest.mark.parametrize("decode", [DataBlock.decode, decode_header])
@pytest.mark.parametrize("field", Header.__struct_fields__)
def test_a_field_of_another_type_is_refused_by_its_name(field: str, decode: Callable[[bytes], object]) -> None:
    assert refusal(sealed_list(header_list(**{field: None})), decode) == field
    assert refusal(sealed_list(header_list(**{field: {"a": 1}})), decode) == field


@pytest.mark.parametrize("field", sorted(NUMBERS))
@pytest.mark.parametrize("value", [-1, MODULUS, 2**64 - 1, 1.5])
def test_a_sequence_number_is_32_bits(field: str, value: float) -> None:
    assert refusal(sealed_list(header_list(**{field: value}))) == field


@pytest.mark.parametrize(
    ("at", "field", "value"),
    [
        (1, "source_port", 0),
        (3, "destination_port", 0),
        (1, "source_port", 65536),
        (3, "destination_port", 65536),
        (0, "source", b"abc"),
        (2, "destination", b"x" * 17),
        (0, "source", b"x" * 5),
        (2, "destination", b"x" * 15),
        (2, "destination", CLIENT6),
        (0, "source", "10.0.0.100"),
    ],
)
def test_an_impossible_address_or_port_is_refused_by_its_name(at: int, field: str, value: object) -> None:
    connection: list[Any] = list(msgspec.to_builtins(four_tuple(), builtin_types=(bytes,)))
    connection[at] = value
    assert refusal(sealed_list(header_list(connection=connection))) == field


def test_addresses_of_two_families_are_refused() -> None:
    assert refusal(block(connection=four_tuple(source=VIP6)).encode()) == "destination"
    assert DataBlock.decode(block(connection=four_tuple(source=VIP6, destination=CLIENT6)).encode())


@pytest.mark.parametrize(
    ("field", "value"), [("server", ""), ("server", "x" * 65), ("protocol", ""), ("object", "x" * 4097)]
)
def test_a_name_that_is_empty_or_too_long_is_refused(field: str, value: str) -> None:
    assert refusal(sealed_list(header_list(**{field: value}))) == field


def test_a_field_that_this_version_does_not_know_is_refused() -> None:
    assert refusal(sealed_list([*header_list(), "new"])) == "encoding"
    connection = [*msgspec.to_builtins(four_tuple(), builtin_types=(bytes,)), "new"]
    assert refusal(sealed_list(header_list(connection=connection))) == "connection"
    assert refusal(sealed_list(header_list(), [["tcp", b"", "new"]])) == "sections"


def test_a_missing_field_is_refused() -> None:
    assert refusal(sealed_list(header_list()[:11])) == "encoding"


def test_the_object_may_be_left_out() -> None:
    decoded = DataBlock.decode(sealed_list(header_list()[:12])).header
    assert (decoded.object, decoded.object_first) == ("", 0)


def test_serial_numbers_begin_at_one() -> None:
    assert refusal(block(serial=0).encode()) == "serial"
    assert DataBlock.decode(block(serial=1).encode()).header.serial == 1


@pytest.mark.parametrize("decode", [DataBlock.decode, decode_header])
@pytest.mark.parametrize(
    ("una", "nxt", "accepted"),
    [
        (MODULUS - 10, 10, True),
        (10, MODULUS - 10, False),
        (MODULUS - 1, MODULUS - 1, True),
        (0, MODULUS - 1, False),
        (MODULUS - 1, 2**31 - 2, True),
        (MODULUS - 1, 2**31 - 1, False),
    ],
)
def test_snd_una_lies_at_or_before_snd_nxt_as_the_wire_counts(
    una: int, nxt: int, accepted: bool, decode: Callable[[bytes], object]
) -> None:
    data = block(snd_una=una, snd_nxt=nxt).encode()
    if accepted:
        decode(data)
    else:
        assert refusal(data, decode) == "snd_una"


# --- sections ---
def test_a_section_comes_back_as_the_type_that_was_appended() -> None:
    assert DataBlock.decode(block().encode()).section(TCP, TcpSection) == tcp_section()


def test_a_section_is_appended_once() -> None:
    made = block()
    with pytest.raises(CheckpointRefused) as caught:
        made.append(TCP, tcp_section())
    assert caught.value.field == TCP
    decoded = DataBlock.decode(made.encode())
    with pytest.raises(CheckpointRefused):
        decoded.append(TCP, tcp_section())


def test_a_section_twice_in_a_received_block_is_refused() -> None:
    assert refusal(DataBlock(header(), [Section("tcp", b"1"), Section("tcp", b"2")]).encode()) == "sections"


def test_too_many_sections_are_refused() -> None:
    sixteen = [Section(f"layer{i}", b"") for i in range(16)]
    assert len(DataBlock.decode(DataBlock(header(), sixteen).encode()).sections) == 16
    assert refusal(DataBlock(header(), [*sixteen, Section("one more", b"")]).encode()) == "sections"


@pytest.mark.parametrize(
    "sections",
    [
        [],
        [Section(TCP, b"")],
        [Section(TCP, msgspec.msgpack.encode([0, 7, 9, True, True, True, 1, 1]))],
        [Section(TCP, msgspec.msgpack.encode([1460, 15, 9, True, True, True, 1, 1]))],
        [Section(TCP, msgspec.msgpack.encode([1460, 7, 9, 1, True, True, 1, 1]))],
        [Section(TCP, msgspec.msgpack.encode([1460, 7, 9, True, True, True, 1, 1, "new"]))],
        [Section(TCP, msgspec.msgpack.encode([1460, 7, 9, True, True, True, MODULUS, 1]))],
        [Section(TCP, b"\x91" * 50_000)],
    ],
    ids=["missing", "empty", "mss", "wscale", "type", "extra", "tsval", "nested"],
)
def test_a_section_that_is_missing_or_malformed_is_refused_by_its_name(sections: list[Section]) -> None:
    decoded = DataBlock.decode(DataBlock(header(), sections).encode())
    with pytest.raises(CheckpointRefused) as caught:
        decoded.section(TCP, TcpSection)
    assert caught.value.field == TCP


@given(st.binary(max_size=80))
def test_a_section_of_random_bytes_is_refused_and_nothing_worse(payload: bytes) -> None:
    with pytest.raises(CheckpointRefused):
        DataBlock(header(), [Section(TCP, payload)]).section(TCP, TcpSection)


def test_the_header_alone_is_read_without_judging_the_sections() -> None:
    data = sealed_list(header_list(), [["tcp", 5]])
    assert decode_header(data) == header()
    assert refusal(data) == "sections"
