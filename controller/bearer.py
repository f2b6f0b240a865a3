"""Who may ask the API: anybody on this machine; from elsewhere, who has the token (RFC 6750)."""

from __future__ import annotations

import hmac
import ipaddress

import falcon


class Authorization:
    """Middleware of the API. Without a token nobody but this machine is answered."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        if not _is_loopback(request.remote_addr) and not self._is_right(request.get_header("Authorization") or ""):
            sentence = "from another machine the API asks for its token: Authorization: Bearer"
            raise falcon.HTTPUnauthorized(description=sentence, challenges=["Bearer"])

    def _is_right(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(errors="replace"), self._token.encode())


def _is_loopback(address: str) -> bool:
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(peer, "ipv4_mapped", None) or peer).is_loopback
