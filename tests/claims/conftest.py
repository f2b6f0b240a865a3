"""One lab for all claims. Its servers and its controller run from a built package on a medium of its own (claim 21).

After each test every server that it made fail is healed, and its clients are gone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.claims.clients import Clients
from topologies import Lab

_ROOT = Path(__file__).resolve().parents[2]
TICKER_PORT = 7000


@pytest.fixture(scope="package")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the built package, unpacked, and nothing else."""
    source = tmp_path_factory.mktemp("source")
    for name in ("controller", "dataplane", "state", "topologies"):
        shutil.copytree(_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(source / "dist"),
    ]
    subprocess.run([*build, str(source)], check=True, timeout=120)
    (wheel,) = (source / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("medium")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="package")
def lab(medium: Path) -> Iterator[Lab]:
    """Three servers of FTP, HTTP, RTSP and of the ticker, two clients."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(medium))
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
            environment.delenv(name, raising=False)
        with Lab(servers=3, clients=2, services={TICKER_PORT: "dataplane.examples.ticker:TICKER"}) as running:
            yield running


@pytest.fixture
def copied(lab: Lab) -> Iterator[Callable[..., str]]:
    """`copied(path, size)` is the path of a new object, with the other's first bytes, or all; gone after the test."""
    folder = Path(lab.status()["docroot"])
    made: list[Path] = []

    def copy(path: str, size: int | None = None) -> str:
        made.append(folder / f"copy{len(made)}{Path(path).suffix}")
        with open(folder / path.lstrip("/"), "rb") as file:
            made[-1].write_bytes(file.read(size))
        return f"/{made[-1].name}"

    yield copy
    for file in made:
        file.unlink()


@pytest.fixture
def clients(lab: Lab) -> Iterator[Clients]:
    """Starts clients; at the end they are gone, and every server is up with a backup."""
    made = Clients(lab)
    try:
        yield made
    finally:
        made.end()
        for name in lab.status()["failed"]:
            lab.heal(name)
        lab.until(lambda: not lab.connections(), "connections remain when their clients are gone")
        lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")
