"""Claim 21: functional data embodied in computer-readable media, comprising a device for generating the shared state
information, a device for comparing, and a device for recreating the connection.

The medium is a folder with the built package, unpacked; the lab of these tests runs from it (conftest.py). Python
writes a compiled file beside every module that it takes from there."""

from __future__ import annotations

from pathlib import Path

from tests.claims.clients import MANY, Clients
from topologies import Lab

TICKER_PORT = 7000
DEVICES = {
    "generating": ("dataplane/stack.py", "state/datablock.py", "controller/collector.py"),
    "comparing": ("dataplane/judge.py", "dataplane/prover.py"),
    "recreating": ("dataplane/repair.py", "dataplane/backup.py"),
}


def test_a_takeover_is_done_by_what_is_on_the_medium(lab: Lab, clients: Clients, medium: Path) -> None:
    ticking = clients.ticker(1, MANY, 10)
    ticking.take(10)
    owner = clients.connection(ticking.port, TICKER_PORT)["server"]
    clients.fail(owner)
    takeover = clients.takeover()
    assert takeover["resumed"] == 1
    ticking.take(20)
    for name in ("controller", takeover["to"]):
        environment = Path(f"/proc/{lab.pid(name)}/environ").read_bytes().split(b"\0")
        assert f"PYTHONPATH={medium}".encode() in environment
    for device, modules in DEVICES.items():
        for module in modules:
            file = medium / module
            assert file.is_file(), f"the device for {device} is not on the medium"
            assert list((file.parent / "__pycache__").glob(f"{file.stem}.*.pyc")), f"{module} was not read from it"
