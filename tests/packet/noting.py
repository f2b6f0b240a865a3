"""Applications of a bundle that note what they are told, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from dataplane import Application, DataBlock, Stream
from state.sections import (
    CONTROL,
)


async def until(condition: Callable[[], object]) -> None:
    """Turns of the loop pass until it is so; `live` limits the time."""
    while not condition():
        await asyncio.sleep(0)


class Nothing(msgspec.Struct, array_like=True):
    pass


class Noting(Application):
    """Notes what it is told, in one list for all."""

    name = "noting/1"

    def __init__(self, notes: list[str], role: str = CONTROL) -> None:
        self.notes = notes
        self.role = role
        self.stream: Stream | None = None
        self.at_end: int | None = None

    def note(self, what: str) -> None:
        self.notes.append(f"{self.role} {what}")

    def opened(self, stream: Stream) -> None:
        self.stream = stream
        self.note("opened")

    def ready(self, stream: Stream, position: int) -> None:
        self.stream = stream
        self.note(f"ready at {position} with {len(stream.bundle.connections())}")

    def received(self, data: bytes) -> None:
        self.note(f"received {data.decode()}")

    def input_ended(self) -> None:
        self.note("input ended")

    def drained(self) -> None:
        self.note("drained")

    def ended(self) -> None:
        self.at_end = self.stream.unacknowledged if self.stream is not None else None
        self.note("ended")

    def checkpoint(self, block: DataBlock) -> None:
        block.append(self.name, Nothing())


class NotingData(Noting):
    name = "noting-data/1"


class Hindered(NotingData):
    """Cannot go on anywhere else, or does not know."""

    def obstacle(self) -> str | None:
        if self.role == "broken":
            raise ValueError("a mistake of its author")
        return "it was on that server alone"
