"""What became of a server's connections, also when a busy machine takes another server for dead meanwhile."""

from __future__ import annotations

from typing import Any

from topologies import Lab

SECONDS = 20.0
_FALSE_ALARM = "no heartbeat"


def _path(lab: Lab, since: int, source: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The takeovers that this server's connections went through, and the others, after the `since` earlier ones."""
    path: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for takeover in lab.takeovers()[since:]:
        if takeover["from"] == source and (not path or path[-1]["state"] == "failed"):
            path.append(takeover)
            source = takeover["to"]  # it failed if its heir was taken for dead before it had finished
        else:
            others.append(takeover)
    return path, others


def fate(lab: Lab, since: int, source: str) -> dict[str, Any] | None:
    """The takeover that this server's connections have come to, after the `since` earlier ones; None: not yet."""
    path, _ = _path(lab, since, source)
    return path[-1] if path and path[-1]["state"] != "failed" else None


def decided(lab: Lab, since: int, source: str | None = None) -> dict[str, Any]:
    """That takeover, once it is done. Without `source`, of the server that failed last and was not healed."""
    server = source or list(lab.status()["failed"])[-1]

    def done() -> bool:
        takeover = fate(lab, since, server)
        return takeover is not None and takeover["state"] == "done"

    lab.until(done, f"the takeover from {server} is not done", SECONDS)
    found = fate(lab, since, server)
    assert found is not None
    return found


def taken_over(lab: Lab, since: int, source: str | None = None) -> dict[str, Any]:
    """As `decided`. What else there was since then was a false alarm, and harmed no connection."""
    server = source or list(lab.status()["failed"])[-1]
    decided(lab, since, server)
    path, others = _path(lab, since, server)
    assert {takeover["cause"] for takeover in (*path[1:], *others)} <= {_FALSE_ALARM}, (path, others)
    assert not any(takeover["reset"] for takeover in (*path[:-1], *others)), (path, others)
    return path[-1]
