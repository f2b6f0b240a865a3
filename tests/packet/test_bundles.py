"""Bundles on their owner, without a switch: data connections that are read at their beginning. Root is needed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataplane import DataBlock
from dataplane.bundle import LiveBundle
from dataplane.connection import LiveConnection
from state.configuration import Service
from state.ports import DataPorts
from state.sections import (
    BUNDLE,
    CONTROL,
    STREAM,
    TCP,
    BundleSection,
    Part,
    StreamSection,
)
from tests.packet.noting import Noting, NotingData, until
from tests.unit.builders import document_root
from tests.unit.live import Live, StoringHost, live

HERE = "127.0.0.1"


@dataclass
class Scene:
    """A control connection, and the parts that are opened on it."""

    control: Live
    bundle: LiveBundle
    port: int
    notes: list[str]

    def data(self, role: str = "data") -> NotingData:
        return NotingData(self.notes, role)

    def blocks(self) -> dict[str, DataBlock]:
        """The last checkpoint of each role."""
        found = {}
        for block in self.control.host.checkpoints:
            section = block.section(BUNDLE, BundleSection) if block.header.bundle else None
            found[section.role if section is not None else "alone"] = block
        return found

    async def connected(self) -> socket.socket:
        """A client's end of a data connection to the service's port."""
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HERE, self.port))
        return sock


def on_owner(folder: Path, test: Callable[[Scene], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> Scene:
    async def run() -> Scene:
        with socket.create_server((HERE, 0)) as probe:
            port = probe.getsockname()[1]
        service = Service(7000, "noting", data_ports=(DataPorts(port, port, "tcp"),))
        monkeypatch.setattr(StoringHost, "service", service)
        notes: list[str] = []
        with document_root(folder, film=bytes(200_000)) as root:
            async with live(root, Noting(notes)) as made:
                made.connection.start()
                bundle = made.connection.bundle
                assert isinstance(bundle, LiveBundle)
                scene = Scene(made, bundle, port, notes)
                await test(scene)
            made.host.passive.close()
        return scene

    return asyncio.run(run())


def test_a_data_connection_that_a_client_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        data = scene.data()
        peers: list[tuple[str, int]] = []
        awaited = scene.bundle.listen("data", lambda peer: peers.append(peer) or data)
        client = await scene.connected()
        await until(lambda: "data opened" in scene.notes)
        awaited.close()
        assert peers == [client.getsockname()]
        (member,) = scene.bundle.connections()
        assert (member.role, member.application, member.stream.bundle) == ("data", data, scene.bundle)
        assert scene.bundle.control is scene.control.connection.application
        member.stream.write(b"hello")
        assert await loop.sock_recv(client, 100) == b"hello"
        await loop.sock_sendall(client, b"word")
        await until(lambda: "data received word" in scene.notes)

        blocks = scene.blocks()
        data_block, control_block = blocks["data"], blocks[CONTROL]
        assert data_block.header.bundle == control_block.header.bundle == control_block.header.connection.id
        assert [section.name for section in data_block.sections] == [TCP, STREAM, BUNDLE, NotingData.name]
        assert control_block.section(BUNDLE, BundleSection).parts == [
            Part("data", "tcp", scene.port, HERE, client.getsockname()[1])
        ]
        for block in blocks.values():
            if block.header.bundle:
                block.section(BUNDLE, BundleSection).check(block.header.connection.id)
        client.close()
        await until(lambda: "data input ended" in scene.notes)
        member.stream.close()
        await until(lambda: "data ended" in scene.notes)
        assert data.at_end == 0
        assert scene.bundle.connections() == [] and not scene.control.connection.over

    on_owner(tmp_path, test, monkeypatch)


def test_the_blocks_of_a_bundle_are_made_in_one_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they travel in one message. The control connection's says that there is a part, never before the part's
    own is there, and that there is none, before it is told that the part is over."""
    turns: list[list[str]] = [[]]

    async def test(scene: Scene) -> None:
        host = scene.control.host
        store, ended = host.store, host.ended

        def noting_store(block: bytes, stored: Callable[[], None]) -> None:
            if not turns[-1]:
                asyncio.get_running_loop().call_soon(turns.append, [])
            made = DataBlock.decode(block)
            parts = len(made.section(BUNDLE, BundleSection).parts) if made.header.bundle else 0
            turns[-1].append(f"{made.header.protocol} {parts}")
            store(block, stored)

        def noting_end(connection: LiveConnection) -> None:
            # As the agent does: first what the bundle is now, then that the connection is over.
            assert connection.related is not None
            connection.related.checkpoint_others(connection)
            turns[-1].append(f"{connection.application.name} over")
            ended(connection)

        monkeypatch.setattr(host, "store", noting_store)
        monkeypatch.setattr(host, "ended", noting_end)
        awaited = scene.bundle.listen("data", lambda peer: scene.data())
        client = await scene.connected()
        await until(lambda: "data opened" in scene.notes)
        awaited.close()
        await until(lambda: any("noting-data/1 0" in turn for turn in turns))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await until(lambda: any("noting-data/1 over" in turn for turn in turns))

    on_owner(tmp_path, test, monkeypatch)
    written = [turn for turn in turns if turn]
    first = next(turn for turn in written if "noting-data/1 0" in turn)
    assert set(first) == {"noting-data/1 0", "noting/1 2"}, "the part, and the port that still listens"
    last = next(turn for turn in written if "noting-data/1 over" in turn)
    assert last[-2:] == ["noting/1 0", "noting-data/1 over"]


def test_a_data_connection_that_the_server_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server((HERE, 0)) as listener:
            listener.setblocking(False)
            remote = listener.getsockname()
            scene.bundle.connect("data", scene.port, remote, scene.data(), scene.notes.append)
            assert scene.bundle.parts() == [Part("data", "tcp", scene.port)]
            client, peer = await loop.sock_accept(listener)
            assert peer == (HERE, scene.port)
            await until(lambda: "data opened" in scene.notes)
            assert scene.bundle.parts() == [Part("data", "tcp", scene.port, *remote)]
            await until(lambda: "data" in scene.blocks())
            client.close()

    on_owner(tmp_path, test, monkeypatch)


@pytest.mark.parametrize("says", [True, False], ids=["data goes with it", "by itself"])
def test_a_client_sees_a_connection_that_the_server_opens_when_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    """Not before: whoever heard of one that nobody can resume would hear of another later."""

    async def test(scene: Scene) -> None:
        loop, waiting = asyncio.get_running_loop(), dict[str, Callable[[], None]]()

        def store(block: bytes, stored: Callable[[], None]) -> None:
            waiting[DataBlock.decode(block).header.protocol] = stored

        monkeypatch.setattr(scene.control.host, "store", store)
        with socket.create_server((HERE, 0)) as listener:
            listener.setblocking(False)
            scene.bundle.connect("data", scene.port, listener.getsockname(), scene.data(), scene.notes.append)
            await until(lambda: "data opened" in scene.notes)
            with pytest.raises(BlockingIOError):
                listener.accept()
            (member,) = scene.bundle.connections()
            if says:
                member.stream.write(b"hello")
            began = loop.time()
            await until(lambda: NotingData.name in waiting)
            waiting[NotingData.name]()
            client, _ = listener.accept()
            assert loop.time() - began < 0.1, "the kernel keeps it back for 0.2 s by itself"
            if says:
                assert await loop.sock_recv(client, 100) == b"hello"
            client.close()

    on_owner(tmp_path, test, monkeypatch)


def test_a_connection_that_cannot_be_opened_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(scene: Scene) -> None:
        with socket.socket() as closed:
            closed.bind((HERE, 0))
            remote = closed.getsockname()
            scene.bundle.connect("data", scene.port, remote, scene.data(), scene.notes.append)
            await until(lambda: scene.notes[-1:] == ["connection refused"])
        assert scene.bundle.parts() == []

    on_owner(tmp_path, test, monkeypatch)


def test_a_connect_that_is_given_up_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        with socket.create_server((HERE, 0)) as listener:
            scene.bundle.connect("data", scene.port, listener.getsockname(), scene.data(), scene.notes.append).close()
            for _ in range(20):
                await asyncio.sleep(0)
        assert scene.notes == ["control opened"] and scene.bundle.parts() == []

    on_owner(tmp_path, test, monkeypatch)


def test_who_is_not_wanted_is_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        scene.bundle.listen("data", lambda peer: None)
        with pytest.raises(ConnectionResetError):
            client = await scene.connected()
            await asyncio.get_running_loop().sock_recv(client, 1)
        assert scene.bundle.connections() == [] and not scene.control.connection.over

    on_owner(tmp_path, test, monkeypatch)


def test_the_end_of_the_control_connection_resets_the_data_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(scene: Scene) -> None:
        scene.bundle.listen("data", lambda peer: scene.data())
        client = await scene.connected()
        await until(lambda: "data opened" in scene.notes)
        scene.control.connection.reset()
        assert scene.notes[-2:] == ["control ended", "data ended"]
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(client, 1)

    on_owner(tmp_path, test, monkeypatch)


def test_what_another_server_has_ends_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        scene.bundle.listen("data", lambda peer: scene.data())
        client = await scene.connected()
        await until(lambda: "data opened" in scene.notes)
        scene.control.connection.abandon()
        assert scene.notes[-2:] == ["control ended", "data ended"]
        with pytest.raises(BlockingIOError):
            client.recv(1)
        with pytest.raises(BlockingIOError):
            scene.control.client.recv(1)

    on_owner(tmp_path, test, monkeypatch)


@pytest.mark.parametrize("first", [CONTROL, "data"])
def test_a_server_that_leaves_hands_all_of_a_bundle_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """What its kernel has acknowledged is in the last blocks, and the part is still a part in them. The control
    connection ends first: what it would say of the other's end, no checkpoint has."""

    async def test(scene: Scene) -> None:
        scene.bundle.listen("data", lambda peer: scene.data())
        client = await scene.connected()
        await until(lambda: "data" in scene.blocks())
        client.send(b"last word")
        scene.control.client.send(b"word")
        (member,) = scene.bundle.connections()
        connection = member.stream
        assert isinstance(connection, LiveConnection)
        (scene.control.connection if first == CONTROL else connection).hand_in()
        assert connection.over and scene.control.connection.over
        assert scene.notes[-2:] == ["control ended", "data ended"]
        blocks = scene.blocks()
        assert blocks["data"].section(STREAM, StreamSection).received == 9
        assert blocks[CONTROL].section(STREAM, StreamSection).received == 4
        assert [part.remote_port for part in blocks[CONTROL].section(BUNDLE, BundleSection).parts] == [
            client.getsockname()[1],
            0,
        ]

    on_owner(tmp_path, test, monkeypatch)


def test_an_end_says_what_the_client_may_never_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        data = scene.data()
        scene.bundle.listen("data", lambda peer: data)
        client = await scene.connected()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await until(lambda: "data opened" in scene.notes)
        (member,) = scene.bundle.connections()
        member.stream.write(b"x" * 30_000)
        await asyncio.get_running_loop().sock_recv(client, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await until(lambda: "data ended" in scene.notes)
        assert data.at_end is not None and data.at_end == member.stream.unacknowledged >= 0

    on_owner(tmp_path, test, monkeypatch)
