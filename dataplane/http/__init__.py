"""HTTP/1.1 server of files (RFC 9110, 9112): `semantics` decides, `protocol` is the application on the stack."""

from dataplane.http.protocol import HTTP, HttpApplication

__all__ = ["HTTP", "HttpApplication"]
