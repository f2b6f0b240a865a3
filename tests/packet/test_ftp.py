"""FTP over this machine's loopback, without a switch: real sockets and real files. Root is needed to read the numbers
of data connections."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane.connection import LiveConnection
from dataplane.ftp import kind, passwords
from dataplane.ftp.protocol import FtpSection
from dataplane.ftp.transfer import NAME, UPLOAD_LOST, DataSection, FtpData
from dataplane.ftp.tree import Tree
from dataplane.objects import DocumentRoot
from state.configuration import Ftp, FtpUser, Service, Serving
from state.datablock import DataBlock
from state.ports import DataPorts
from state.sections import STREAM, StreamSection
from tests.unit.live import Live, StoringHost, live

SECRET = "a secret of ann"
LIMITS = Serving(send=1000, ftp=Ftp(users=(FtpUser("ann", passwords.hashed(SECRET), ("/in",)),)))
FILE = bytes(range(256)) * 4096


class Client:
    """The client's end of everything."""

    def __init__(self, made: Live) -> None:
        self.made = made
        self.heard = b""
        self.loop = asyncio.get_running_loop()

    async def reply(self) -> str:
        """The next one, whole."""
        while not (match := re.search(rb"^\d{3} [^\r\n]*\r\n", self.heard, re.MULTILINE)):
            data = await self.loop.sock_recv(self.made.client, 1 << 16)
            assert data, "the server has closed"
            self.heard += data
        said, self.heard = self.heard[: match.end()], self.heard[match.end() :]
        return said.decode()

    async def say(self, *commands: str) -> str:
        """The last one's reply."""
        answer = ""
        for command in commands:
            await self.made.say(command.encode() + b"\r\n")
            answer = await self.reply()
        return answer

    async def data(self) -> socket.socket:
        """A data connection."""
        match = re.search(r"\|\|\|(\d+)\|", await self.say("EPSV"))
        assert match is not None
        sock = socket.socket()
        sock.setblocking(False)
        await self.loop.sock_connect(sock, ("127.0.0.1", int(match[1])))
        return sock

    async def hear(self, sock: socket.socket) -> bytes:
        heard = b""
        while data := await self.loop.sock_recv(sock, 1 << 16):
            heard += data
        sock.close()
        return heard

    async def get(self, command: str) -> bytes:
        sock = await self.data()
        assert (await self.say(command)).startswith("150 ")
        heard = await self.hear(sock)
        assert (await self.reply()).startswith("226 ")
        return heard

    async def transfer(self) -> LiveConnection:
        """The server's end of the last data connection."""
        return self.made.host.connections[-1]


@asynccontextmanager
async def client(folder: Path, *, login: bool = True, ann: bool = False) -> AsyncIterator[Client]:
    (folder / "in").mkdir()
    (folder / "folder").mkdir()
    (folder / "object.bin").write_bytes(FILE)
    (folder / "folder" / "a b").write_bytes(b"x")
    root = DocumentRoot(str(folder))
    host = StoringHost(root)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        first = probe.getsockname()[1]
    ports = (DataPorts(first, min(first + 15, 65535), "tcp"),)
    host.service, host.affinity = Service(21, "ftp", affinity="client", data_ports=ports), "client"
    async with live(root, kind(LIMITS).fresh(root), host=host) as made:
        made.connection.start()
        one = Client(made)
        assert (await one.reply()).startswith("220 ")
        if login:
            name, password = ("ann", SECRET) if ann else ("anonymous", "x")
            assert (await one.say(f"USER {name}", f"PASS {password}")).startswith("230 ")
        yield one
        host.passive.close()
    root.close()


def test_files_and_listings_come_whole_one_after_the_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path) as one:
            assert await one.get("RETR object.bin") == FILE
            assert (await one.say("REST 1000000")).startswith("350 ")
            assert await one.get("RETR object.bin") == FILE[1000000:]
            sock = await one.data()
            assert (await one.say("REST 1000000", "RETR object.bin")).startswith("150 ")
            assert await one.hear(sock) == FILE[1000000:]
            assert (await one.reply()).startswith("226 ")
            assert await one.get("NLST folder") == b"a b\r\n"
            assert re.fullmatch(rb"-rw-r--r-- .* 1 \w{3} .{2} [ :0-9]{5} a b\r\n", await one.get("LIST folder"))
            assert b"type=dir;" in await one.get("MLSD")
            assert await one.get("NLST in") == b""

    asyncio.run(run())


def test_no_secret_is_in_any_checkpoint(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, login=False) as one:
            await one.say("USER ann")
            half = len(SECRET) // 2
            await one.made.say(b"PASS " + SECRET[:half].encode())
            checkpoints = one.made.host.checkpoints
            while checkpoints[-1].section("ftp", FtpSection).pending != b"PASS ":
                await asyncio.sleep(0)
            await one.made.say(SECRET[half:].encode() + b"\r\nNOOP\r\n")
            assert (await one.reply()).startswith("230 ") and (await one.reply()).startswith("200 ")
            pending = [block.section("ftp", FtpSection).pending for block in checkpoints]
            assert b"PASS \r\nNOOP\r\n" in pending, "it was asked for while the password was being proven"
            assert not any(SECRET[:4].encode() in block.encode() for block in checkpoints)

    asyncio.run(run())


def test_who_has_no_right_password_is_sent_away(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, login=False) as one:
            for wrong in ("x", "y"):
                assert (await one.say("USER ann", f"PASS {wrong}")).startswith("530 ")
            assert (await one.say("LIST")).startswith("530 ")
            assert (await one.say("USER ann", "PASS z")).startswith("421 ")
            assert await one.loop.sock_recv(one.made.client, 1) == b""

    asyncio.run(run())


@pytest.mark.parametrize("early", [False, True])
def test_an_upload_appears_when_it_is_whole(tmp_path: Path, early: bool) -> None:
    """Whether or not its client waits for 150."""

    async def run() -> None:
        async with client(tmp_path, ann=True) as one:
            sock = await one.data()
            if early:
                await one.loop.sock_sendall(sock, FILE[:100])
            assert (await one.say("STOR in/new")).startswith("150 ")
            await one.loop.sock_sendall(sock, FILE[100:] if early else FILE)
            assert (await one.say("STAT")).startswith("211-")
            assert list((tmp_path / "in").iterdir()) == []
            sock.close()
            assert (await one.reply()).startswith("226 ")
            assert (tmp_path / "in" / "new").read_bytes() == FILE
            sock = await one.data()
            assert (await one.say("REST 10", "STOR in/new")).startswith("150 ")
            await one.loop.sock_sendall(sock, b"the end")
            sock.close()
            assert (await one.reply()).startswith("226 ")
            assert (tmp_path / "in" / "new").read_bytes() == FILE[:10] + b"the end"

    asyncio.run(run())


def test_an_upload_that_does_not_end_was_never_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, ann=True) as one:
            (tmp_path / "in" / "old").write_bytes(b"old")
            sock = await one.data()
            assert (await one.say("STOR in/old")).startswith("150 ")
            await one.loop.sock_sendall(sock, FILE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            assert (await one.reply()).startswith("426 ")
            sock = await one.data()
            assert (await one.say("STOR in/old")).startswith("150 ")
            assert (await one.reply()).startswith("426 "), "nothing came for `send`"
            sock = await one.data()
            assert (await one.say("STOR in/old")).startswith("150 ")
            assert (await one.say("ABOR")).startswith("426 ") and (await one.reply()).startswith("226 ")
            assert [(path.name, path.read_bytes()) for path in (tmp_path / "in").iterdir()] == [("old", b"old")]

    asyncio.run(run())


def test_what_the_disk_does_not_take_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, ann=True) as one:
            sock = await one.data()
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                assert (await one.say("STOR in/new")).startswith("150 ")
                await one.loop.sock_sendall(sock, b"x" * 1001)
                assert (await one.reply()).startswith("452 ")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert list((tmp_path / "in").iterdir()) == []
            assert (await one.say("NOOP")).startswith("200 ")

    asyncio.run(run())


def test_no_link_leads_an_upload_elsewhere(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, ann=True) as one:
            (tmp_path / "in" / "link").symlink_to(tmp_path / "folder")
            (tmp_path / "in" / "out").symlink_to("/tmp")
            (tmp_path / "in" / "file").symlink_to(tmp_path / "object.bin")
            for path in ("in/link/x", "in/out/x", "in/../x"):
                assert (await one.say(f"STOR {path}")).startswith("550 ")
            sock = await one.data()
            assert (await one.say("APPE in/file")).startswith("550 ")
            sock.close()
            sock = await one.data()
            assert (await one.say("STOR in/file")).startswith("150 ")
            sock.close()
            assert (await one.reply()).startswith("226 ")
            assert (tmp_path / "object.bin").read_bytes() == FILE and not (tmp_path / "in" / "file").is_symlink()

    asyncio.run(run())


def test_a_heir_knows_that_an_uploads_bytes_are_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path, ann=True) as one:
            sock = await one.data()
            assert (await one.say("STOR in/new")).startswith("150 ")
            await one.loop.sock_sendall(sock, b"x")
            assert _heir(one).obstacle() == UPLOAD_LOST
            sock.close()
            assert (await one.reply()).startswith("226 ")
            assert _heir(one).obstacle() is None
            assert await one.get("RETR object.bin") == FILE
            assert _heir(one).obstacle() is None

    asyncio.run(run())


def _heir(one: Client) -> FtpData:
    """Of the last checkpoint of a data connection."""
    block = [block for block in one.made.host.checkpoints if block.header.protocol == NAME][-1]
    assert isinstance(block, DataBlock) and block.section(NAME, DataSection).number >= 1
    return FtpData.made_of(block, Tree(one.made.host.root.root), LIMITS)


def test_commands_that_come_ahead_wait_for_the_transfer_and_abor_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path) as one:
            with open(tmp_path / "large", "wb") as file:
                file.truncate(1 << 30)  # no buffer holds it
            sock = await one.data()
            await one.made.say(b"RETR large\r\nPWD\r\n")
            assert (await one.reply()).startswith("150 ")
            assert "RETR /large is under way" in await one.say("STAT")
            await one.made.say(b"\xff\xf4\xff\xf2ABOR\r\n")
            assert [(await one.reply())[:4] for _ in range(3)] == ["426 ", "226 ", "257 "]
            assert 0 < len(await one.hear(sock)) < 1 << 30, "it ends, and cannot be taken for whole after 426"
            assert (await one.say("ABOR")).startswith("226 ")

    asyncio.run(run())


def test_the_end_of_an_aborted_transfer_is_its_heirs_to_say_if_its_server_cannot(tmp_path: Path) -> None:
    """A client that listens hears of it as surely as of bytes: it stands in the checkpoint, and a FIN is repeated."""

    async def run() -> None:
        async with client(tmp_path) as one:
            with open(tmp_path / "large", "wb") as file:
                file.truncate(1 << 30)
            sock = await one.data()
            assert (await one.say("RETR large")).startswith("150 ")
            await asyncio.get_running_loop().sock_recv(sock, 1)  # it has begun: the disk may take its time
            assert (await one.say("ABOR")).startswith("426 ") and (await one.reply()).startswith("226 ")
            (block,) = [b for b in one.made.host.checkpoints if b.header.protocol == NAME][-1:]
            stream = block.section(STREAM, StreamSection)
            assert stream.closing and 0 < stream.end < 1 << 30
            assert _heir(one).obstacle() is None
            await one.hear(sock)

    asyncio.run(run())


def test_quit_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    async def run() -> None:
        async with client(tmp_path) as one:
            sock = await one.data()
            await one.made.say(b"RETR object.bin\r\nQUIT\r\n")
            assert (await one.reply()).startswith("150 ")
            assert await one.hear(sock) == FILE
            assert [(await one.reply())[:4] for _ in range(2)] == ["226 ", "221 "]
            assert await one.loop.sock_recv(one.made.client, 1) == b""

    asyncio.run(run())


def test_without_a_data_connection_there_is_no_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.ftp.protocol.DATA_SECONDS", 0.05)

    async def run() -> None:
        async with client(tmp_path) as one:
            assert (await one.say("LIST")).startswith("425 ")
            assert (await one.say("EPSV", "LIST")).startswith("425 ")
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
            assert (await one.say(f"EPRT |1|127.0.0.1|{port}|", "LIST")).startswith("425 ")
            assert await one.get("NLST folder") == b"a b\r\n"

    asyncio.run(run())
