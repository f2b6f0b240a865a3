"""The agent's side of the control connection ends only after all that waits was said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dataplane import controller_link
from dataplane.controller_link import ControllerLink
from state import messages
from state.configuration import Address
from state.messages import FromAgent, FromController, Hello

Controller = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Agent:
    """What a link needs of its agent."""

    def __init__(self) -> None:
        self.welcomed = asyncio.Event()
        self.lost = 0

    def hello(self) -> Hello:
        return Hello(messages.PROTOCOL_VERSION, "s1", 1, "02:00:00:00:00:01", 1)

    def ordered(self, message: FromController) -> None:
        if isinstance(message, messages.Welcome):
            self.welcomed.set()

    def disconnected(self) -> None:
        self.lost += 1


async def welcoming(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A controller that says welcome, and nothing more."""
    writer.write(messages.encode(messages.Welcome(3)))
    await reader.read()
    writer.close()


@asynccontextmanager
async def linked(controller: Controller = welcoming) -> AsyncIterator[tuple[Agent, ControllerLink]]:
    """An agent that this controller has welcomed, until the block ends."""
    server = await asyncio.start_server(controller, "127.0.0.1", 0, limit=1024)
    agent = Agent()
    link = ControllerLink(Address(*server.sockets[0].getsockname()[:2]), agent)
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(agent.welcomed.wait(), 5)
    yield agent, link
    await link.close()
    await asyncio.wait_for(running, 5)
    server.close()


def test_closing_says_what_waits_and_does_not_come_back() -> None:
    async def dialogue() -> tuple[list[FromAgent], int, bool]:
        heard: list[FromAgent] = []
        accepted = 0
        ended = asyncio.Event()

        async def controller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            writer.write(messages.encode(messages.Welcome(3)))
            frames = messages.FrameReader(from_agent=True)
            while data := await reader.read(65536):
                heard.extend(frames.feed(data))  # type: ignore[arg-type]
            writer.close()
            ended.set()

        server = await asyncio.start_server(controller, "127.0.0.1", 0)
        agent = Agent()
        link = ControllerLink(Address(*server.sockets[0].getsockname()[:2]), agent)
        running = asyncio.create_task(link.run())
        await agent.welcomed.wait()
        for number in range(40):  # more than a socket takes at once
            link.store(bytes([number]) * 60_000, lambda: None)
        await link.close()
        await asyncio.wait_for(running, 5)
        await asyncio.wait_for(ended.wait(), 5)
        server.close()
        return heard, accepted, agent.lost == 1

    heard, accepted, lost = asyncio.run(dialogue())
    assert isinstance(heard[0], Hello)
    stored = [block for message in heard if isinstance(message, messages.Store) for block in message.blocks]
    assert [block[0] for block in stored] == list(range(40))
    assert accepted == 1
    assert lost


def test_a_checkpoint_that_was_refused_lets_its_connection_go_on_unprotected_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(messages.encode(messages.Welcome(3)))
        frames = messages.FrameReader(from_agent=True)
        while data := await reader.read(65536):
            for message in frames.feed(data):
                if isinstance(message, messages.Store):
                    refused = ["checkpoint refused: epoch: goes back from 3 to 2"]
                    writer.write(messages.encode(messages.Stored(message.number, refused)))
        writer.close()

    async def dialogue() -> None:
        went_on = asyncio.Event()
        async with linked(refusing) as (_, link):
            assert link.unprotected == 0
            link.store(b"block", went_on.set)
            await asyncio.wait_for(went_on.wait(), 5)
            assert link.unprotected == 1

    asyncio.run(dialogue())
    assert "epoch: goes back from 3 to 2" in caplog.text


def test_a_connection_that_is_lost_as_soon_as_it_is_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller dies between the end of the handshake and the agent's first word: asyncio tells of the end before
    it tells that the connection was made."""

    async def dialogue() -> None:
        loop, create = asyncio.get_running_loop(), asyncio.get_running_loop().create_connection
        times = 0

        async def lost_at_once(protocol: Callable[[], Any], *address: Any) -> Any:
            nonlocal times
            times += 1
            made = await create(protocol, *address)
            if times == 1:
                made[0].abort()
                while made[1]._transport is not None:
                    await asyncio.sleep(0)
            return made

        monkeypatch.setattr(loop, "create_connection", lost_at_once)
        async with linked():
            assert times == 2

    asyncio.run(dialogue())


def test_a_controller_that_does_not_read_does_not_fill_its_agents_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_link, "_BACKLOG_LIMIT", 1 << 20)
    connections: list[asyncio.StreamWriter] = []

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(messages.encode(messages.Welcome(3)))

    async def dialogue() -> None:
        async with linked(deaf) as (agent, link):
            sent = 0
            while not agent.lost:
                link.store(bytes(60_000), lambda: None)
                sent += 1
                assert sent < 1000, "it keeps everything"
                await asyncio.sleep(0)
            assert link.unprotected >= sent - 1
        for writer in connections:
            writer.close()

    asyncio.run(dialogue())


def test_a_host_that_is_gone_without_a_word_is_noticed() -> None:
    async def dialogue() -> None:
        async with linked() as (_, link):
            assert link._transport is not None
            sock = link._transport.get_extra_info("socket")
            assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 10_000

    asyncio.run(dialogue())
