"""Runs of ports: how they are written, and the masks that a switch matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import ports
from state.ports import DataPorts

_PORTS = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("20", DataPorts(20, 20, "tcp")),
        ("40960-45055", DataPorts(40960, 45055, "tcp")),
        ("5004/udp", DataPorts(5004, 5004, "udp")),
        ("5004-5005/udp", DataPorts(5004, 5005, "udp")),
        ("1-65535/tcp", DataPorts(1, 65535, "tcp")),
    ],
)
def test_ports_as_they_are_written(text: str, read: DataPorts) -> None:
    assert ports.read(text, "tcp") == read


@pytest.mark.parametrize("text", ["", "0", "20-", "-20", "30-20", "65536", "5/sctp", "5/udp ", "٢٠", "1e3", "5-6-7"])
def test_what_is_no_run_of_ports_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"must go up|is not PORT"):
        ports.read(text, "tcp")


def test_without_a_known_transport_it_must_be_said() -> None:
    assert ports.read("20/tcp", None) == DataPorts(20, 20, "tcp")
    with pytest.raises(ValueError, match="say /tcp or /udp"):
        ports.read("20", None)


@given(_PORTS, _PORTS)
def test_the_blocks_match_exactly_the_ports(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    matched: list[int] = []
    for value, mask in ports.blocks(first, last):
        assert value & ~mask == 0
        size = 0x10000 - mask
        assert size & (size - 1) == 0
        matched += range(value, value + size)
    assert matched == list(range(first, last + 1))
    assert len(ports.blocks(first, last)) <= 30


def test_an_aligned_run_is_one_block() -> None:
    assert ports.blocks(40960, 45055) == [(0xA000, 0xF000)]
    assert ports.blocks(21, 21) == [(21, 0xFFFF)]
    assert len(ports.blocks(40000, 49999)) == 9


@given(_PORTS, _PORTS, st.sampled_from(["tcp", "udp"]))
def test_what_is_written_is_read_again(one: int, other: int, transport: str) -> None:
    run = DataPorts(min(one, other), max(one, other), transport)
    assert ports.read(str(run), None) == run
