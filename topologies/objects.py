"""The lab's document root: the same bytes at every start."""

from __future__ import annotations

import random
from pathlib import Path

_SEED = 20260101
_CHUNK = 1 << 20
SIZES = {"object.bin": 256 << 20, "1m": 1 << 20, "64k": 64 << 10, "1k": 1 << 10}


def make(folder: Path) -> None:
    """Write the objects that the contract names. Seeded: two labs serve equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        source = random.Random(f"{_SEED}/{name}")
        with open(folder / name, "wb") as file:
            for start in range(0, size, _CHUNK):
                file.write(source.randbytes(min(_CHUNK, size - start)))
