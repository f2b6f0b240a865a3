"""Passwords of FTP users: the configuration has only their scrypt digests. Pure, but slow on purpose: tens of
milliseconds, so it is a thread that asks.

`python -m dataplane.ftp.passwords` reads a password and prints what the configuration wants of it.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import secrets

_COST, _BLOCK, _LANES = 1 << 14, 8, 1
_NOBODY = f"scrypt:{'0' * 32}:{'0' * 64}"


def hashed(password: str, salt: bytes | None = None) -> str:
    """`scrypt:SALT:DIGEST`, in hexadecimal; the salt is new when none is given."""
    salt = salt if salt is not None else secrets.token_bytes(16)
    secret = password.encode("utf-8", "surrogatepass")
    digest = hashlib.scrypt(secret, salt=salt, n=_COST, r=_BLOCK, p=_LANES, dklen=32)
    return f"scrypt:{salt.hex()}:{digest.hex()}"


def proves(password: str, wanted: str | None) -> bool:
    """Is it the password of which this is the digest? None: there is no such user; it takes as long to say so."""
    against = wanted if wanted is not None else _NOBODY
    salt = bytes.fromhex(against.split(":")[1])
    return hmac.compare_digest(hashed(password, salt), against) and wanted is not None


if __name__ == "__main__":
    print(hashed(getpass.getpass()))
