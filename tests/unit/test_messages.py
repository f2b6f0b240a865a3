"""The control connection's messages: each survives the wire however it is cut, and nothing else is accepted."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import messages
from state.datablock import FourTuple
from state.errors import MessageRefused
from state.messages import LIMIT_FRAME, FrameReader, Message, encode

MAC = "02:00:00:00:01:00"
FROM_AGENT: list[Message] = [
    messages.Hello(1, "web1", 2**63 - 1, MAC, 4711),
    messages.Store(1, [b"", b"block", b"x" * 70_000]),
    messages.Closed(["10.0.0.7-40001-10.0.0.100-80"]),
    messages.Closed([]),
    messages.Heartbeat(2**63 - 1, 20_000, 0.25, 0.0),
    messages.Heartbeat(1, 0, 0.0, 0.0, {"web2": 5000, "web3": 0}),
    messages.Present(["a-1", "b-2"], False),
    messages.Present([], True),
    messages.Died("web1", 1),
    messages.Unheard("web1", 1, [FourTuple(bytes(4), 80, bytes(4), 40_000), FourTuple(bytes(16), 80, bytes(16), 1)]),
    messages.Prepared("web2", 100, 1),
    messages.Young(3, ["10.0.0.1-1-10.0.0.100-40000"], [("10.0.0.1-2-10.0.0.100-40000", "client gone")]),
    messages.Resumed(1, ["a"], [("b", "client gone")], 3, 1000, 2000, 300),
    messages.Resumed(
        1, ["a"], [], 0, 1, 2, 3, [messages.Comparison("a", "http/1.1", "resumed", 2**32 - 1, 9, 3, "/film.bin", 3, 0)]
    ),
]
FROM_CONTROLLER: list[Message] = [
    messages.Welcome(0),
    messages.Refused("web9 is not in the configuration", False),
    messages.Stored(7),
    messages.Backup("web1", [b"block"]),
    messages.Forget("web1", []),
    messages.Synchronised("web1"),
    messages.Resume(1, "web1", 2**63 - 1),
    messages.Dismiss([FourTuple(bytes(4), 80, bytes(4), 40_000)]),
]


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def framed(*fields: Any) -> bytes:
    return frame(msgspec.msgpack.encode(list(fields)))


def refusal(data: bytes, *, from_agent: bool = True) -> str:
    with pytest.raises(MessageRefused) as caught:
        FrameReader(from_agent=from_agent).feed(data)
    return str(caught.value)


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: type(message).__name__)
def test_each_message_of_an_agent_arrives_as_it_was_sent(message: Message) -> None:
    assert FrameReader(from_agent=True).feed(encode(message)) == [message]
    refusal(encode(message), from_agent=False)


@pytest.mark.parametrize("message", FROM_CONTROLLER, ids=lambda message: type(message).__name__)
def test_each_message_of_the_controller_arrives_as_it_was_sent(message: Message) -> None:
    assert FrameReader(from_agent=False).feed(encode(message)) == [message]
    refusal(encode(message), from_agent=True)


def test_every_message_that_exists_is_in_these_lists() -> None:
    assert {type(message) for message in FROM_AGENT + FROM_CONTROLLER} == set(Message.__subclasses__())


# --- cutting ---
@given(st.lists(st.sampled_from([m for m in FROM_AGENT if len(encode(m)) < 1000]), max_size=6), st.data())
def test_frames_may_be_cut_anywhere(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader(from_agent=True)
    received: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(stream[start:end])
    assert received == sent


def test_a_message_comes_out_with_its_last_byte_and_not_before() -> None:
    reader = FrameReader(from_agent=True)
    data = encode(FROM_AGENT[0])
    for at in range(len(data) - 1):
        assert reader.feed(data[at : at + 1]) == []
    assert reader.feed(data[-1:]) == [FROM_AGENT[0]]
    assert reader.feed(b"") == []


def test_blocks_stay_what_they_are_when_the_reader_goes_on() -> None:
    """The reader's buffer is used again; what was handed out is not part of it."""
    reader = FrameReader(from_agent=True)
    (first,) = reader.feed(encode(messages.Store(1, [b"first block"])))
    reader.feed(encode(messages.Store(2, [b"XXXXXXXXXXX"])))
    assert first == messages.Store(1, [b"first block"])


# --- what is refused ---
def test_an_oversized_frame_is_refused_from_its_length_alone() -> None:
    assert str(LIMIT_FRAME) in refusal(struct.pack("!I", LIMIT_FRAME + 1))
    assert FrameReader(from_agent=True).feed(struct.pack("!I", LIMIT_FRAME)) == []


def test_a_frame_of_the_very_limit_is_accepted() -> None:
    overhead = len(encode(messages.Store(1, [b"x" * 100_000]))) - 4 - 100_000
    largest = messages.Store(1, [b"x" * (LIMIT_FRAME - overhead)])
    assert len(encode(largest)) == 4 + LIMIT_FRAME
    assert FrameReader(from_agent=True).feed(encode(largest)) == [largest]


@pytest.mark.parametrize(
    "data",
    [
        frame(b""),
        frame(b"\xc1"),
        frame(b"\x92"),
        framed(),
        framed("Nonsense", 1),
        framed(5),
        framed("Closed"),
        framed("Closed", ["a"], "new"),
        framed("Closed", [1]),
        framed("Closed", [""]),
        framed("Closed", ["x" * 129]),
        framed("Store", -1, []),
        framed("Store", 2**63, []),
        framed("Store", 1, ["text"]),
        framed("Died", "", 1),
        framed("Died", "x" * 65, 1),
        framed("Hello", 1, "web1", 1, "02-00-00-00-01-00", 1),
        framed("Hello", 1, "web1", 1, MAC + ":00", 1),
        framed("Hello", 1, "web1", 1, "", 1),
        framed("Heartbeat", 1, "many", 0.1, 0.1),
        framed("Resumed", 1, [], [["b"]], 0, 0, 0, 0),
        frame(msgspec.msgpack.encode({"type": "Closed", "connections": []})),
        frame(encode(FROM_AGENT[2])[4:] + b"\0"),
        frame(b"\x91" * 100_000),
    ],
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    assert "malformed" in refusal(data)


def test_text_that_is_not_utf_8_is_refused() -> None:
    refusal(frame(b"\x93\xa4Died\xa2\xff\xfe\x01"))
    refusal(frame(b"\x93\xa2\xff\xfe\xa1a\x01"))


def test_a_mac_address_is_nothing_but_a_mac_address() -> None:
    """It goes into a flow: a line break at its end is no part of one."""
    refusal(framed("Hello", 1, "web1", 1, MAC + "\n", 1))


@given(st.binary(max_size=60))
def test_a_frame_of_random_bytes_is_refused_and_nothing_worse(payload: bytes) -> None:
    refusal(frame(payload))
    refusal(frame(payload), from_agent=False)


@given(st.sampled_from(FROM_AGENT[2:]), st.data())
def test_a_message_changed_anywhere_is_refused_or_still_a_message(message: Message, data: st.DataObject) -> None:
    payload = bytearray(encode(message)[4:])
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        (decoded,) = FrameReader(from_agent=True).feed(frame(bytes(payload)))
    except MessageRefused:
        return
    assert isinstance(decoded, Message)


def test_what_came_before_a_refused_frame_does_not_hide_it() -> None:
    refusal(encode(FROM_AGENT[0]) + framed("Nonsense"))


# --- portions ---
_LARGEST = 64 * 1024


@given(st.lists(st.one_of(st.integers(0, 600), st.integers(0, _LARGEST)), max_size=300))
def test_portions_are_all_blocks_in_order_in_frames_of_bounded_size(sizes: list[int]) -> None:
    blocks = [bytes(size) for size in sizes]
    portions = [list(portion) for portion in messages.portions(blocks)]
    assert [block for portion in portions for block in portion] == blocks
    assert all(1 <= len(portion) <= messages.PORTION_BLOCKS for portion in portions)
    assert all(len(messages.encode(messages.Backup("s1", portion))) < messages.LIMIT_FRAME // 3 for portion in portions)


def test_as_many_blocks_as_may_be_go_together() -> None:
    count = 3 * messages.PORTION_BLOCKS
    assert len(list(messages.portions([b"small"] * count))) == 3
    assert list(messages.portions([])) == []
