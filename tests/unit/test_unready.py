"""Unready connections, built on a backup from checkpoints: what is taken, and what is refused with its field's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dataplane.http import HTTP
from dataplane.http.protocol import HttpSection
from dataplane.objects import DocumentRoot, key_of
from dataplane.stack import Registry
from dataplane.unready import UnreadySet
from state.datablock import DataBlock
from state.sections import STREAM, TCP
from tests.unit.builders import (
    FILE,
    FILE_SIZE,
    document_root,
    four_tuple,
    header,
    header_list,
    sealed_list,
    stream_section,
    tcp_section,
    wire,
)


@dataclass
class Backup:
    """What unready connections need of their host."""

    root: DocumentRoot
    name: str = "web2"
    incarnation: int = 1
    epoch: int = 3


@pytest.fixture
def unready(tmp_path: Path) -> Iterator[UnreadySet]:
    registry = Registry()
    registry.add(HTTP)
    with document_root(tmp_path, film=bytes(FILE_SIZE)) as root:
        yield UnreadySet(Backup(root), registry)  # type: ignore[arg-type]


def encoded(stream: dict[str, Any] | None = None, **fields: Any) -> bytes:
    block = DataBlock(header(**fields))
    block.append(TCP, tcp_section())
    block.append(STREAM, stream_section(**(stream or {})))
    block.append("http/1.1", HttpSection(b""))
    return block.encode()


def test_a_checkpoint_becomes_an_unready_connection_with_its_objects_open(unready: UnreadySet) -> None:
    unready.build("web1", [encoded()])
    assert (unready.count("web1"), unready.refused) == (1, {})
    (entry,) = unready.take("web1")
    assert entry.header == header()
    assert entry.objects.keys() == {key_of(FILE)}
    assert entry.missing == set()
    unready.release(entry)


def test_an_object_that_is_not_here_is_known_ahead_of_any_failure(unready: UnreadySet, tmp_path: Path) -> None:
    (tmp_path / "film.bin").unlink()
    unready.build("web1", [encoded()])
    (entry,) = unready.take("web1")
    assert (entry.objects, entry.missing) == ({}, {key_of(FILE)})


def test_a_newer_checkpoint_takes_the_place_of_an_older_one(unready: UnreadySet) -> None:
    unready.build("web1", [encoded(), encoded(serial=8), encoded(epoch=4, serial=9)])
    assert (unready.count("web1"), unready.refused) == (1, {})
    (entry,) = unready.take("web1")
    assert (entry.header.epoch, entry.header.serial) == (4, 9)


@pytest.mark.parametrize(
    ("field", "block"),
    [
        ("epoch", encoded(epoch=2, serial=9)),
        ("serial", encoded(serial=6)),
        ("snd_una", encoded(serial=8, snd_una=wire(0))),
        ("snd_nxt", encoded(serial=8, snd_nxt=wire(4999))),
        ("rcv_nxt", encoded(serial=8, rcv_nxt=77)),
        ("object_first", encoded(serial=8, object_first=1)),
        ("object", encoded(serial=8, object="/other.bin")),
        ("offset", encoded(stream={"objects": [type(FILE)(FILE.identifier, 5000, 1, b"")]}, serial=8)),
        ("source_port", sealed_list(header_list(connection=[four_tuple().source, 0, four_tuple().destination, 1]))),
        ("protocol", encoded(serial=8, protocol="gopher")),
        ("checksum", encoded(serial=8)[:-1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_that_contradicts_itself_is_refused_with_the_fields_name(
    unready: UnreadySet, field: str, block: bytes
) -> None:
    unready.build("web1", [encoded()])
    unready.build("web1", [block])
    assert unready.refused == {field: 1}
    (entry,) = unready.take("web1")
    assert entry.header == header(), "the older one stays"


def test_a_new_connection_of_the_same_addresses_and_ports_may_begin_at_one(unready: UnreadySet) -> None:
    again = {"iss": 5, "snd_una": 6 + 150, "snd_nxt": 6 + 5000, "object_first": 6 + 200, "serial": 1}
    unready.build("web1", [encoded(), encoded(**again)])
    assert unready.refused == {}
    (entry,) = unready.take("web1")
    assert entry.header.iss == 5


def test_a_refused_checkpoint_does_not_keep_the_next_from_being_taken(unready: UnreadySet) -> None:
    other = encoded(connection=four_tuple(destination_port=40002))
    unready.build("web1", [b"nonsense", encoded()[:20], other])
    assert unready.count("web1") == 1
    assert sum(unready.refused.values()) == 2


def test_what_ended_is_forgotten(unready: UnreadySet) -> None:
    other = four_tuple(destination_port=40002)
    unready.build("web1", [encoded(), encoded(connection=other)])
    unready.forget("web1", [four_tuple().id])
    assert [entry.header.connection for entry in unready.take("web1")] == [other]
    unready.build("web1", [encoded()])
    unready.forget("web1", [])
    assert unready.count("web1") == 0
