"""The agent's connection to the controller, over a real connection to a controller that answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dataplane.controller_link import ControllerLink
from state import messages
from state.configuration import Address
from state.messages import FromController, Hello


class Orders:
    def __init__(self) -> None:
        self.welcome = asyncio.Event()
        self.carried_out: list[FromController] = []

    def hello(self) -> Hello:
        return Hello(messages.PROTOCOL_VERSION, "s1", 1, "0a:00:00:00:00:01", 1)

    def ordered(self, message: FromController) -> None:
        self.carried_out.append(message)
        self.welcome.set()

    def disconnected(self) -> None:
        pass


class Controller:
    """The other end: welcomes, and notes every `Store`."""

    def __init__(self) -> None:
        self.stores: list[messages.Store] = []
        self.writer: asyncio.StreamWriter
        self.heard = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        frames = messages.FrameReader(from_agent=True)
        while data := await reader.read(65536):
            for message in frames.feed(data):
                if isinstance(message, Hello):
                    self.say(messages.Welcome(1))
                elif isinstance(message, messages.Store):
                    self.stores.append(message)
            async with self.heard:
                self.heard.notify_all()
        writer.close()

    def say(self, *said: messages.Message) -> None:
        self.writer.write(b"".join(messages.encode(message) for message in said))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self.heard:
            await self.heard.wait_for(condition)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[ControllerLink, Controller]]:
    controller, orders = Controller(), Orders()
    server = await asyncio.start_server(controller.serve, "127.0.0.1", 0)
    link = ControllerLink(Address(*server.sockets[0].getsockname()), orders)
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(5):
            await orders.welcome.wait()
        yield link, controller
    finally:
        await link.close()
        running.cancel()
        server.close()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_the_checkpoints_of_one_turn_go_together_and_wait_for_their_answer() -> None:
    async def play() -> None:
        stored: list[int] = []
        async with linked() as (link, controller):
            for number in range(3):
                link.store(b"block %d" % number, lambda n=number: stored.append(n))  # type: ignore[misc]
            await controller.until(lambda: len(controller.stores) == 1)
            assert controller.stores[0].blocks == [b"block 0", b"block 1", b"block 2"]
            assert stored == []
            controller.say(messages.Stored(controller.stores[0].number))
            async with asyncio.timeout(5):
                while len(stored) < 3:
                    await asyncio.sleep(0)
            assert stored == [0, 1, 2]
            assert link.unprotected == 0

    asyncio.run(play())


def test_a_heap_of_checkpoints_is_cut_into_frames_that_the_controller_takes() -> None:
    async def play() -> None:
        blocks = [bytes([number % 256]) * 60_000 for number in range(150)]
        async with linked() as (link, controller):
            for block in blocks:
                link.store(block, lambda: None)
            await controller.until(lambda: sum(len(store.blocks) for store in controller.stores) == len(blocks))
            assert [block for store in controller.stores for block in store.blocks] == blocks
            assert len(controller.stores) > 2, "9 MB are more than one frame may have"

    asyncio.run(play())


def test_of_many_connections_that_may_go_on_a_few_do_at_once_and_all_in_order() -> None:
    async def play() -> None:
        stored: list[int] = []
        async with linked() as (link, controller):
            for number in range(200):
                link.store(b"block", lambda n=number: stored.append(n))  # type: ignore[misc]
            await controller.until(lambda: sum(len(store.blocks) for store in controller.stores) == 200)
            link.data_received(b"".join(messages.encode(messages.Stored(s.number)) for s in controller.stores))
            assert 0 < len(stored) < 200, "the loop has other things to do"
            async with asyncio.timeout(5):
                while len(stored) < 200:
                    await _turns(1)
            assert stored == list(range(200))

    asyncio.run(play())


def test_a_controller_that_does_not_answer_in_time_does_not_hold_connections_up() -> None:
    async def play() -> None:
        stored: list[int] = []
        async with linked() as (link, controller):
            link.store(b"block", lambda: stored.append(1))
            await controller.until(lambda: bool(controller.stores))
            now = asyncio.get_running_loop().time()
            link.overdue(now + 0.2)
            assert stored == []
            link.overdue(now + 0.3)
            await _turns(3)
            assert stored == [1]
            assert link.unprotected == 1

    asyncio.run(play())
