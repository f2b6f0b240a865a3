"""File names as text. Pure.

A file's name is bytes; in checkpoints, in JSON and on a screen names are text, and most are UTF-8. Each byte of a name
that is not has a code point of its own here, U+EF80 to U+EFFF of the private use area (as MirBSD's OPTU-8 has it). So
every name, whatever its bytes, is text that can be encoded, and comes back as the same bytes; also a name that really
has such a code point, because its bytes are then taken one by one.
"""

from __future__ import annotations

import re

_OWN = re.compile("[\uef80-\uefff]")
_ESCAPES = {0xDC00 + byte: 0xEF00 + byte for byte in range(0x80, 0x100)}
"""From what `surrogateescape` makes of such bytes, which no encoder takes."""
_BYTES = {new: old for old, new in _ESCAPES.items()}


def text_of(name: bytes) -> str:
    """The text of any bytes."""
    if name.isascii():
        return name.decode("ascii")
    text = name.decode("utf-8", "surrogateescape")
    text = _OWN.sub(lambda found: found[0].encode().decode("ascii", "surrogateescape"), text)
    return text.translate(_ESCAPES)


def bytes_of(text: str) -> bytes:
    """The bytes of which `text_of` makes this text. Raises `ValueError` for half a pair of surrogates."""
    if text.isascii():
        return text.encode("ascii")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("surrogates are no part of a name's text")
    return text.translate(_BYTES).encode("utf-8", "surrogateescape")
