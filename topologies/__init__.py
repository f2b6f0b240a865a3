"""Mininet topologies (`vip`) and the lab: `Lab` for Python, `takeover lab` for the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topologies.lab import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    # Mininet is imported only by who needs it: `takeover servers` does not.
    if name == "Lab":
        from topologies.lab import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
