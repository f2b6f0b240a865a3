"""What the controller knows of one server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ServerState:
    name: str
    port: int | None = None
    """Its switch port's number, None while the switch does not have it."""
    state: str = "failed"
    incarnation: int = 0
    mac: str = ""
    pid: int = 0
    epoch: int = 0
    connections: int = 0
    load: float = 0.0
    lag: float = 0.0
    lag_most: float = 0.0
    """The longest delay of its event loop since the metrics were last asked."""
    backup: str | None = None
    unready: int = 0
    """Unready connections that its backup holds of it (claim 14), as of the backup's last heartbeat."""

    @property
    def up(self) -> bool:
        return self.state == "up"
