"""Files that change while a connection lives: the next response is of the new one, and no byte is mixed up."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.http import HttpApplication
from dataplane.objects import DocumentRoot, ObjectUnavailable, OpenObject
from tests.unit.builders import document_root
from tests.unit.live import Live, live
from tests.unit.test_live_connection import Plain

OLD, NEW = b"the old one", b"the one that came"
_BUFFER = 1 << 20


async def answer(made: Live, path: str) -> tuple[bytes, bytes]:
    """Status line and body of the next response."""
    await made.say(f"GET {path} HTTP/1.1\r\nHost: vip\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = await made.hear(1)
        assert more, "the server ended the connection"
        head += more
    (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head.split(b"\r\n")[0], await made.hear(int(length.split(b":")[1]))


def replaced(folder: Path) -> None:
    (folder / "new").write_bytes(NEW)
    os.replace(folder / "new", folder / "x")


def touched(folder: Path) -> None:
    os.chmod(folder / "x", 0o640)


@pytest.mark.parametrize(("change", "then"), [(replaced, NEW), (touched, OLD)])
def test_a_kept_connection_gets_what_the_file_is_now(
    tmp_path: Path, change: Callable[[Path], None], then: bytes
) -> None:
    async def run() -> None:
        (tmp_path / "x").write_bytes(OLD)
        with document_root(tmp_path) as root:
            async with live(root, HttpApplication(root)) as made:
                made.connection.start()
                assert await answer(made, "/x") == (b"HTTP/1.1 200 OK", OLD)
                change(tmp_path)
                assert await answer(made, "/x") == (b"HTTP/1.1 200 OK", then)
                assert await answer(made, "/x") == (b"HTTP/1.1 200 OK", then)

    asyncio.run(run())


class Drained(Plain):
    """Tells when everything was handed to the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.all_handed_over = asyncio.Event()

    def drained(self) -> None:
        self.all_handed_over.set()


def test_bytes_that_may_have_to_be_sent_again_are_not_mixed_with_another_version(tmp_path: Path) -> None:
    """All was handed to the kernel, and the client's window is too small to acknowledge it."""

    async def run() -> None:
        (tmp_path / "x").write_bytes(OLD * (_BUFFER // len(OLD)))
        with document_root(tmp_path) as root:
            application = Drained()
            async with live(root, application) as made:
                made.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection = made.connection
                connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _BUFFER)
                connection.start()
                opened = root.open("/x")
                connection.send_object(opened, 0, opened.ref.size)
                await application.all_handed_over.wait()
                replaced(tmp_path)
                connection.send_object(root.open("/x"), 0, len(NEW))
                assert connection.over, "it is reset, and not spliced"
                assert _open_files(root) == 0

    asyncio.run(run())


def _open_files(root: DocumentRoot) -> int:
    return len(root._open)


def test_files_that_the_client_has_are_not_kept_open(tmp_path: Path) -> None:
    """A crawler fetches one file after the other on one connection."""

    async def run() -> None:
        for number in range(100):
            (tmp_path / str(number)).write_bytes(bytes([number]))
        with document_root(tmp_path) as root:
            async with live(root, HttpApplication(root)) as made:
                made.connection.start()
                for number in range(100):
                    assert await answer(made, f"/{number}") == (b"HTTP/1.1 200 OK", bytes([number]))
                assert _open_files(root) <= 20

    asyncio.run(run())


def test_a_file_that_cannot_be_opened_now_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This server has as many open as it may: its client is told to come again, and not that there is none."""

    async def run() -> None:
        (tmp_path / "x").write_bytes(OLD)
        with document_root(tmp_path) as root:

            def full(identifier: str) -> OpenObject:
                raise ObjectUnavailable(f"{identifier}: Too many open files")

            async with live(root, HttpApplication(root)) as made:
                made.connection.start()
                with monkeypatch.context() as patch:
                    patch.setattr(root, "open", full)
                    assert (await answer(made, "/x"))[0] == b"HTTP/1.1 503 Service Unavailable"
                assert await answer(made, "/x") == (b"HTTP/1.1 200 OK", OLD)

    asyncio.run(run())
