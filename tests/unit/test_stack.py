"""The protocol stack: every layer appends its own section, once, and a protocol is known by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.http import HTTP, HttpApplication
from dataplane.http.protocol import HttpSection
from dataplane.sequence_map import SequenceMap
from dataplane.stack import Registry, TcpLayer, make_block
from dataplane.stream import ByteStream
from state.datablock import DataBlock, decode_header
from state.errors import CheckpointRefused
from state.sections import STREAM, TCP, StreamSection, TcpSection
from tests.unit.builders import ISS, MODULUS, TSVAL, document_root, header, tcp_section


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def layer(**changes: object) -> tuple[TcpLayer, Clock]:
    clock = Clock()
    return TcpLayer(tcp_section(**changes), clock.now, clock), clock


def test_every_layer_appends_its_section_in_the_order_of_the_stack(tmp_path: Path) -> None:
    with document_root(tmp_path) as root:
        tcp, _ = layer()
        stream = ByteStream(SequenceMap(ISS))
        made = make_block(header(), (tcp, stream, HttpApplication(root)))
        block = DataBlock.decode(made.encode())
    assert [section.name for section in block.sections] == ["tcp", "stream", "http/1.1"]
    assert block.header == header()
    assert block.section(TCP, TcpSection) == tcp_section()
    assert block.section(STREAM, StreamSection).end == 0
    assert block.section("http/1.1", HttpSection) == HttpSection(pending=b"")
    assert decode_header(made.encode()) == header()


def test_a_layer_of_ones_own_takes_part(tmp_path: Path) -> None:
    class Counter:
        def checkpoint(self, block: DataBlock) -> None:
            block.append("counter", tcp_section(mss=len(block.sections) + 1))

    block = make_block(header(), (layer()[0], Counter()))
    assert block.section("counter", TcpSection).mss == 2, "it is handed the block with the sections before it"


def test_two_layers_of_one_name_are_refused() -> None:
    with pytest.raises(CheckpointRefused) as caught:
        make_block(header(), (layer()[0], layer()[0]))
    assert caught.value.field == TCP


def test_a_block_without_layers_has_its_header_and_nothing_else() -> None:
    block = make_block(header(), ())
    assert (block.header, block.sections) == (header(), [])
    with pytest.raises(CheckpointRefused) as caught:
        block.section(STREAM, StreamSection)
    assert caught.value.field == STREAM


# --- the kernel's layer ---
def test_the_timestamp_goes_on_by_one_each_millisecond_and_wraps() -> None:
    tcp, clock = layer()
    assert tcp.section == tcp_section()
    clock.now += 0.0045
    assert tcp.section == tcp_section(tsval=MODULUS - 1)
    clock.now += 0.001
    assert tcp.section == tcp_section(tsval=0)
    clock.now += 3600
    assert tcp.section.tsval == 3_600_000


def test_the_timestamp_in_a_checkpoint_is_that_of_its_moment() -> None:
    tcp, clock = layer()
    clock.now += 1.0
    block = make_block(header(), (tcp,))
    assert block.section(TCP, TcpSection).tsval == (TSVAL + 1000) % MODULUS


def test_without_timestamps_nothing_moves() -> None:
    tcp, clock = layer(timestamps=False, tsval=0)
    clock.now += 1000
    assert tcp.section == tcp_section(timestamps=False, tsval=0)


# --- the registry ---
def test_a_protocol_is_found_by_the_name_that_its_checkpoints_carry(tmp_path: Path) -> None:
    registry = Registry()
    registry.add(HTTP)
    kind = registry.kind("http/1.1")
    with document_root(tmp_path) as root:
        fresh = kind.fresh(root)
        unready = kind.unready(root, make_block(header(), (fresh,)))
    assert fresh.name == unready.name == header().protocol


@pytest.mark.parametrize("name", ["rtsp/1.0", "http", "HTTP/1.1", ""])
def test_a_protocol_that_this_server_does_not_know_is_refused(name: str) -> None:
    registry = Registry()
    registry.add(HTTP)
    with pytest.raises(CheckpointRefused) as caught:
        registry.kind(name)
    assert caught.value.field == "protocol"


def test_a_checkpoint_without_the_protocols_section_is_refused(tmp_path: Path) -> None:
    with document_root(tmp_path) as root, pytest.raises(CheckpointRefused) as caught:
        HTTP.unready(root, make_block(header(), (layer()[0],)))
    assert caught.value.field == "http/1.1"
