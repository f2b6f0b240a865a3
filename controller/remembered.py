"""What a controller that starts again needs to know, as one stored fact: epochs, lives and ownership."""

from __future__ import annotations

import msgspec

NAME = "conductor"
"""Of the fact in the store."""


class RememberedServer(msgspec.Struct):
    incarnation: int
    mac: str
    up: bool


class Remembered(msgspec.Struct):
    epoch: int
    number: int
    """Of the last takeover."""
    servers: dict[str, RememberedServer]
    ownership: bytes

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def decode(saved: bytes) -> Remembered | None:
    """None when it cannot be read."""
    try:
        return msgspec.msgpack.decode(saved, type=Remembered)
    except msgspec.DecodeError:
        return None
