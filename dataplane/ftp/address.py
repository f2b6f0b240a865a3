"""Where data connections go: PORT, PASV, EPRT and EPSV (RFC 959 section 4.1.2, RFC 2428). Pure."""

from __future__ import annotations

import ipaddress
import re

_PORT = re.compile(r"\s*(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3})\s*\Z", re.ASCII)
_UNPRIVILEGED = 1024

Remote = tuple[str, int]
"""Address and port."""


class AddressRefused(Exception):
    """`code` and a sentence: the reply."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def family(address: str) -> int:
    """As RFC 2428 numbers them: 1 is IPv4, 2 is IPv6."""
    return 2 if ":" in address else 1


def read_port(argument: str, client: str) -> Remote:
    """PORT's argument, of a control connection whose client has this address. Raises `AddressRefused`."""
    match = _PORT.match(argument)
    numbers = [int(group) for group in match.groups()] if match is not None else []
    if len(numbers) != 6 or max(numbers) > 255:
        raise AddressRefused(501, "PORT h1,h2,h3,h4,p1,p2")
    return _checked(".".join(map(str, numbers[:4])), numbers[4] << 8 | numbers[5], client)


def read_eprt(argument: str, client: str) -> Remote:
    """EPRT's argument: `|1|132.235.1.2|6275|` with any character as delimiter. Raises `AddressRefused`."""
    parts = argument[1:].split(argument[0]) if argument and not argument[0].isalnum() else []
    if len(parts) != 4 or parts[3] or not _is_number(parts[0]) or not _is_number(parts[2]):
        raise AddressRefused(501, "EPRT |FAMILY|ADDRESS|PORT|")
    if int(parts[0]) != family(client):
        raise AddressRefused(522, f"Network protocol not supported, use ({family(client)})")
    return _checked(parts[1], int(parts[2]), client)


def read_epsv(argument: str, client: str) -> bool:
    """EPSV's argument. True: ALL. Raises `AddressRefused`."""
    if argument.upper() == "ALL":
        return True
    if argument and not _is_number(argument):
        raise AddressRefused(501, "EPSV, EPSV 1, EPSV 2 or EPSV ALL")
    if argument and int(argument) != family(client):
        raise AddressRefused(522, f"Network protocol not supported, use ({family(client)})")
    return False


def pasv(vip: str, port: int) -> str:
    """The sentence of 227."""
    return f"Entering Passive Mode ({vip.replace('.', ',')},{port >> 8},{port & 255})."


def epsv(port: int) -> str:
    """The sentence of 229."""
    return f"Entering Extended Passive Mode (|||{port}|)"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def _checked(address: str, port: int, client: str) -> Remote:
    """Only the client itself, and no service of it: else this server would attack others (RFC 2577 section 3)."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        raise AddressRefused(501, "This is no address.") from None
    if wanted != ipaddress.ip_address(client):
        raise AddressRefused(504, "Data goes to the address of the control connection only.")
    if not _UNPRIVILEGED <= port <= 0xFFFF:
        raise AddressRefused(504, f"Data goes to ports from {_UNPRIVILEGED} on only.")
    return client, port
