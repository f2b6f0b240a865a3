"""Events for the API's stream."""

from __future__ import annotations

from controller.actions import Announce
from controller.server_state import ServerState
from controller.takeover import Takeover


def server(state: ServerState) -> Announce:
    return Announce("server", {"name": state.name, "state": state.state, "epoch": state.epoch})


def takeover(record: Takeover) -> Announce:
    body: dict[str, object] = {
        "id": record.number,
        "from": record.source,
        "to": record.heir,
        "phase": record.phase.value,
    }
    return Announce("takeover", body)
