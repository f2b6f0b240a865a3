"""The API's token, as it stands in a file and in a header (RFC 6750)."""

from __future__ import annotations

import re
from pathlib import Path

from state.errors import LocalError

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def read(path: str) -> str:
    """The token in a file. Raises `LocalError`, which does not say what the file has."""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise LocalError(f"token file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    return checked(token, f"token file {path}")


def checked(token: str, where: str) -> str:
    """A token as it may stand in a header. Raises `LocalError`."""
    if not _TOKEN.fullmatch(token):
        raise LocalError(f"{where}: a token is one word of letters, digits and any of -._~+/")
    return token
