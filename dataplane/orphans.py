"""Sockets that an earlier life of the agent left in this kernel.

A killed process's connections do not end with it: the kernel goes on retransmitting their data and FIN, for minutes if
nobody answers, and nobody does, because the switch has fenced them. They can do no harm outside, but they occupy their
addresses and ports: a connection that another server took over meanwhile could not come back here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from state.errors import LocalError


def destroy(services: Iterable[tuple[str, int, int]]) -> None:
    """End every connected socket of these (address, first port, last port), as `ss -K` does (SOCK_DESTROY, kernel 4.5).

    The kernel may send RST for some of them; the server is fenced, or not yet permitted, when this runs.
    Raises `LocalError` when `ss` cannot do it.
    """
    for address, first, last in services:
        host = f"[{address}]" if ":" in address else address
        ports = ["sport", ">=", f":{first}", "and", "sport", "<=", f":{last}"]
        command = ["ss", "-K", "-tn", "state", "connected", "src", host, "and", *ports]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"orphaned sockets cannot be destroyed: {error}") from None
        if done.returncode != 0:
            raise LocalError(f"orphaned sockets of {host}:{first}-{last} cannot be destroyed: {done.stderr.strip()}")
