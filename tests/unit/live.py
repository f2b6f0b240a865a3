"""A live connection without switch, controller or root: over this machine's loopback; its host stores at once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property

from dataplane import Application, DocumentRoot, GeneratedObject, OpenObject
from dataplane.bundle import LiveBundle
from dataplane.connection import LiveConnection
from dataplane.passive_ports import PassivePorts
from dataplane.sequence import Seq
from dataplane.sequence_map import SequenceMap
from dataplane.stack import TcpLayer
from dataplane.stream import ByteStream
from state.configuration import Service
from state.datablock import DataBlock, FourTuple
from tests.unit.builders import IRS, ISS, tcp_section


class StoringHost:
    """`bundle.BundleHost`. `checkpoints` are the blocks in their order, with the wire's codec between; with `stores`
    false they are never said to be stored, so that nothing goes out. `service` is what bundles are of."""

    name, incarnation, epoch, interface = "s1", 1, 1, socket.if_nametoindex("lo")
    service, affinity = Service(7000, "plain"), "service"

    def __init__(self, root: DocumentRoot, stores: bool = True) -> None:
        self.root = root
        self.stores = stores
        self.checkpoints: list[DataBlock] = []
        self.over = asyncio.Event()
        self.connections: list[LiveConnection] = []
        """Data connections of bundles, in the order of their opening."""
        self.room = True
        self.parts: list[bytes] = []
        """The clients of the UDP ports that are open."""

    def wall_clock(self) -> int:
        return time.time_ns()

    def store(self, block: bytes, stored: Callable[[], None]) -> None:
        self.checkpoints.append(DataBlock.decode(block))
        if self.stores:
            asyncio.get_running_loop().call_soon(stored)

    def checkpoint_later(self, connection: LiveConnection) -> None:
        connection.schedule_checkpoint()

    def ended(self, connection: LiveConnection) -> None:
        if connection not in self.connections:
            self.over.set()

    @cached_property
    def passive(self) -> PassivePorts:
        return PassivePorts()

    def opened(self, connection: LiveConnection) -> None:
        self.connections.append(connection)

    def has_room_for_part(self) -> bool:
        return self.room

    def part_opened(self, client: bytes) -> None:
        self.parts.append(client)

    def part_closed(self, client: bytes) -> None:
        self.parts.remove(client)

    def bundle(self, connection: LiveConnection) -> LiveBundle:
        return LiveBundle(self, connection, self.service, self.affinity)


class Live:
    """`client` is the client's end; `connection` the server's, not started yet."""

    def __init__(
        self,
        host: StoringHost,
        application: Application,
        stream: ByteStream | None,
        protected: bool,
        objects: Sequence[OpenObject | GeneratedObject] = (),
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        self.client.setblocking(False)
        sock, peer = listener.accept()
        listener.close()
        sock.setblocking(False)
        four = FourTuple(socket.inet_aton("127.0.0.1"), sock.getsockname()[1], socket.inet_aton("127.0.0.1"), peer[1])
        loop = asyncio.get_running_loop()
        self.host = host
        self.connection = LiveConnection(
            self.host,
            sock,
            four,
            stream or ByteStream(SequenceMap(ISS)),
            TcpLayer(tcp_section(), loop.time(), loop.time),
            application,
            Seq(IRS),
            protected=protected,
            objects=list(objects),
        )

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, data)

    async def hear(self, count: int) -> bytes:
        """Exactly so many bytes, or fewer when the server ends before."""
        heard = b""
        while len(heard) < count and (
            data := await asyncio.get_running_loop().sock_recv(self.client, min(count - len(heard), 1 << 20))
        ):
            heard += data
        return heard

    async def hear_all(self) -> bytes:
        return await self.hear(1 << 30)


@asynccontextmanager
async def live(
    root: DocumentRoot,
    application: Application,
    stream: ByteStream | None = None,
    protected: bool = True,
    stores: bool = True,
    host: StoringHost | None = None,
    objects: Sequence[OpenObject | GeneratedObject] = (),
) -> AsyncIterator[Live]:
    """`objects`: what the application has generated of a checkpoint."""
    made = Live(host or StoringHost(root, stores), application, stream, protected, objects)
    try:
        async with asyncio.timeout(10):
            yield made
    finally:
        made.connection.lost()
        made.client.close()
