"""Names of any bytes: on the disk, in listings, in commands and URLs, and in checkpoints."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.ftp import listing, paths
from dataplane.ftp.command import Command, read_line
from dataplane.ftp.reply import lines, reply
from dataplane.ftp.session import Session, Transfer
from dataplane.ftp.transfer import NAME, DataSection, FtpData
from dataplane.ftp.tree import Tree
from dataplane.ftp.upload import Upload
from dataplane.http.semantics import path_of
from dataplane.names import bytes_of, text_of
from dataplane.objects import DocumentRoot, ObjectMissing
from dataplane.rtsp.headers import target
from state.configuration import Serving
from state.datablock import DataBlock
from tests.unit.builders import header

ODD = [b"caf\xe9.bin", b"a\tb", b"\xff\xfe", b"\xef\xbe\x80", b"esc\x1b[0m", b" begins", b"\xc3\xa9 is UTF-8", b"\x85"]
"""Latin-1, TAB, bytes that Telnet takes for its own, what text has its own code points for, and more."""


@given(st.binary(max_size=40))
@example("\uef80\uefff".encode())
@example(b"\xed\xb2\x80")
def test_any_bytes_are_text_that_can_be_encoded_and_comes_back_as_the_same_bytes(name: bytes) -> None:
    text = text_of(name)
    assert bytes_of(text) == name
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(text)) == text
    if max(name.decode("utf-8", "replace"), default="") < "\uef80":
        assert text == name.decode()


def test_different_names_are_different_texts() -> None:
    assert len({text_of(name) for name in [*ODD, "\uefe9".encode(), b"\xe9", "é".encode()]}) == len(ODD) + 3


def test_half_a_pair_of_surrogates_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        bytes_of("\udce9")
    root = DocumentRoot(str(tmp_path))
    with pytest.raises(ObjectMissing):
        root.open("/\udce9")
    assert Tree(str(tmp_path)).find("/\udce9") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*ODD, b"new\nline", b"car\rriage"]:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    return tmp_path


@pytest.mark.parametrize("verb", ["NLST", "MLSD", "LIST"])
def test_what_is_listed_can_be_asked_for_with_the_same_bytes(folder: Path, verb: str) -> None:
    tree, root = Tree(str(folder)), DocumentRoot(str(folder))
    names = tree.names("/")
    said = b""
    after: str | None = ""
    while after is not None:  # the checkpoint says where a heir goes on
        after = msgspec.msgpack.decode(msgspec.msgpack.encode(after))
        text, after = listing.chunk(
            verb, "/", names, tree.find, pattern=None, after=after, wanted=listing.FACTS, now=0, least=1
        )
        said += text
    found = said.split(b"\r\n")[:-1]
    assert len(found) == len(ODD), "names with CR or LF are left out"
    for name in ODD:
        assert any(line.endswith(name) for line in found)
        command = read_line(b"RETR " + name.replace(b"\xff", b"\xff\xff"))
        assert isinstance(command, Command)
        opened = root.open(paths.resolve("/", command.argument) or "")
        assert os.pread(opened.fd, 100, 0) == name
        root.release(opened)


@pytest.mark.parametrize("name", ODD)
def test_one_file_has_one_identifier_whatever_protocol_asks(folder: Path, name: bytes) -> None:
    asked = read_line(b"RETR /" + name.replace(b"\xff", b"\xff\xff"))
    assert isinstance(asked, Command)
    escaped = quote(name)
    assert path_of(b"/" + escaped.encode()) == target(f"rtsp://vip/{escaped}").identifier == asked.argument


@pytest.mark.parametrize("name", ODD)
def test_replies_say_names_as_they_are_but_for_what_telnet_takes(name: bytes) -> None:
    said = name.replace(b"\xff", b"\xff\xff")
    assert reply(257, f'"/{text_of(name)}"') == b'257 "/' + said + b'"\r\n'
    assert lines(250, "Listing", [text_of(name)], "End") == b"250-Listing\r\n " + said + b"\r\n250 End\r\n"


def test_a_listing_of_odd_names_goes_on_from_its_checkpoint(folder: Path) -> None:
    name = text_of(ODD[0])
    block = DataBlock(header())
    transfer = Transfer("MLSD", f"/{name}", pattern=name)
    block.append(NAME, DataSection(1, "listing", transfer, name))
    block.append("session", Session(folder=f"/{name}"))
    block = DataBlock.decode(block.encode())
    assert block.section("session", Session).folder == f"/{name}"
    made = FtpData.made_of(block, Tree(str(folder)), Serving())
    made.checkpoint(again := DataBlock(header()))
    assert again.section(NAME, DataSection) == DataSection(1, "listing", transfer, name)


def test_an_upload_has_the_name_that_its_client_gave(tmp_path: Path) -> None:
    async def run() -> None:
        told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        path = f"{tmp_path}{paths.of_file_system('/' + text_of(ODD[0]))}"
        upload = Upload(path, None, told.set_result, lambda: None)
        upload.write(b"content")
        upload.end()
        assert await told is None

    asyncio.run(run())
    assert [os.fsencode(name) for name in os.listdir(tmp_path)] == [ODD[0]]
