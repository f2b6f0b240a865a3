"""An agent names the connections that it has, in portions; a new hello begins anew."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.roll_call import RollCall
from state.messages import Message, Present
from tests.unit import scenario


async def said(*counts: int) -> list[Present]:
    """By an agent that has so many connections at each of its hellos."""
    heard: list[Message] = []
    done = asyncio.Event()

    def send(message: Message) -> None:
        heard.append(message)
        if isinstance(message, Present) and message.last:
            done.set()

    roll_call = RollCall(send)
    for count in counts:
        roll_call.begin(scenario.four_tuple(10_000 + number) for number in range(count))
    async with asyncio.timeout(5):
        await done.wait()
    return [message for message in heard if isinstance(message, Present)]


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
def test_every_connection_is_named_once_and_the_last_portion_says_so(count: int) -> None:
    portions = asyncio.run(said(count))
    named = [name for portion in portions for name in portion.connections]
    assert named == [scenario.four_tuple(10_000 + number).id for number in range(count)]
    assert [portion.last for portion in portions] == [False] * (len(portions) - 1) + [True]
    assert max(len(portion.connections) for portion in portions) <= 256


def test_a_second_hello_makes_the_first_ones_roll_call_void() -> None:
    named = [name for portion in asyncio.run(said(600, 2)) for name in portion.connections]
    assert len(named) == 2
