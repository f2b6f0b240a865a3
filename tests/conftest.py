"""Which tests need what: `unit` nothing; `packet` root and namespaces; `system` and `claims` the whole lab."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cli import fetch_all
from state.errors import TakeoverError

_FOLDERS_THAT_NEED_ROOT = ("packet", "system", "claims")
_LOG_LINES = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).parent.name
        if folder in _FOLDERS_THAT_NEED_ROOT:
            item.add_marker(pytest.mark.root)
            if folder != "packet":
                item.add_marker(pytest.mark.lab)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails in a lab shows what the lab's processes said."""
    report = yield
    if report.failed and item.get_closest_marker("lab") is not None:
        from topologies.record import FOLDER

        for log in sorted(FOLDER.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            report.sections.append((log.name, "\n".join(lines)))
        running = getattr(item, "funcargs", {}).get("lab")
        if running is not None:
            report.sections += _state_of(running)
    return report


def _state_of(lab: Any) -> Iterator[tuple[str, str]]:
    """What the API says, and what each kernel does."""
    for name in ("servers", "connections", "takeovers"):
        with contextlib.suppress(TakeoverError):
            items = fetch_all(lab.api, f"/v1/{name}")
            yield name, "\n".join(json.dumps(item) for item in items[-10:])
    for host in lab.status()["hosts"]:
        sockets = lab.run(host, ["ss", "-Otanioe"], capture_output=True, text=True, check=False).stdout
        yield f"ss in {host}", sockets


@pytest.fixture(scope="module")
def lab() -> Iterator[object]:
    """Three servers and two clients; one lab for a module's tests, every server up at the start of each module."""
    from topologies import Lab

    with Lab(servers=3, clients=2) as running:
        yield running
