"""The agent's side of the control connection ends only after all that waits was said."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.controller_link import ControllerLink
from state import messages
from state.configuration import Address
from state.messages import FromAgent, FromController, Hello


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
    async def dialogue() -> tuple[int, int]:
        async def controller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(messages.encode(messages.Welcome(3)))
            frames = messages.FrameReader(from_agent=True)
            while data := await reader.read(65536):
                for message in frames.feed(data):
                    if isinstance(message, messages.Store):
                        refused = ["checkpoint refused: epoch: goes back from 3 to 2"]
                        writer.write(messages.encode(messages.Stored(message.number, refused)))
            writer.close()

        server = await asyncio.start_server(controller, "127.0.0.1", 0)
        agent, went_on = Agent(), asyncio.Event()
        link = ControllerLink(Address(*server.sockets[0].getsockname()[:2]), agent)
        running = asyncio.create_task(link.run())
        await agent.welcomed.wait()
        before = link.unprotected
        link.store(b"block", went_on.set)
        await asyncio.wait_for(went_on.wait(), 5)
        await link.close()
        await asyncio.wait_for(running, 5)
        server.close()
        return before, link.unprotected

    assert asyncio.run(dialogue()) == (0, 1)
    assert "epoch: goes back from 3 to 2" in caplog.text
