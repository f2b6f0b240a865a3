"""HTTP/1.1 server of files (RFC 9110, 9112).

`protocol` is the application on the stack; what it answers is decided by pure functions: `semantics` (methods, targets,
responses), `conditions` (preconditions) and `ranges`.
"""

from dataplane.http.protocol import HTTP, HttpApplication, kind

__all__ = ["HTTP", "HttpApplication", "kind"]
