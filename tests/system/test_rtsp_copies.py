"""A film whose copy at the heir is another: its players are reset, with the reason, and see no byte of the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.objects import OBJECT_DIFFERS, OBJECT_MISSING
from tests.fate import taken_over
from topologies import Lab, objects
from topologies.rtp_watcher import Capture, Player

SECONDS = 8
OTHERS = ("flipped", "shorter", "no film", "none")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each film is at both servers. At s2, of the same time: of one size with a byte changed in a payload; of another
    size; with no film in it; not there."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("s1", "s2")}
    film = folders["s1"] / "film.ts"
    objects.make_clip(film, SECONDS)
    data = film.read_bytes()
    place = len(data) // 188 * 3 // 4 * 188 + 100
    for name in OTHERS:
        shutil.copy2(film, folders["s1"] / f"{name}.ts")
    (folders["s2"] / "flipped.ts").write_bytes(data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :])
    (folders["s2"] / "shorter.ts").write_bytes(data[:-18800])
    (folders["s2"] / "no film.ts").write_bytes(b"x" * len(data))
    for path in folders["s2"].iterdir():
        os.utime(path, ns=(film.stat().st_atime_ns, film.stat().st_mtime_ns))
    shutil.copy2(film, folders["s2"])
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def lab(roots: dict[str, str]) -> Iterator[Lab]:
    with Lab(servers=2, clients=1, docroot=roots["s1"], docroots=roots) as running:
        yield running


@pytest.fixture(autouse=True)
def at_s1(lab: Lab) -> Iterator[None]:
    """s1 has the sessions."""
    lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")
    if {server["name"] for server in lab.servers() if server["slots"]} != {"s1"}:
        before = len(lab.takeovers())
        lab.fail("s2", "kill")
        taken_over(lab, before)
        lab.heal("s2")
    yield
    for name in lab.status()["failed"]:
        lab.heal(name)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_player_whose_film_is_another_at_the_heir_is_reset_with_the_reason(
    lab: Lab, roots: dict[str, str], tmp_path: Path, other: str, transport: str
) -> None:
    capture = Capture(lab, "c1", tmp_path / "udp.pcap")
    player = Player(lab, "c1", f"/{other}.ts".replace(" ", "%20"), transport, tmp_path / "out.ts")
    player.wait_for(2.0)
    assert {c["server"] for c in lab.connections()} == {"s1"}
    before = len(lab.takeovers())
    lab.fail("s1", "kill")
    takeover = taken_over(lab, before)
    reason = OBJECT_MISSING if other == "none" else OBJECT_DIFFERS
    assert (takeover["resumed"], takeover["reset"]) == (0, {reason: 1})
    player.wait()
    capture.stop()
    original = Path(roots["s1"], f"{other}.ts").read_bytes()
    seen = capture.rtp()
    assert bool(seen) == (transport == "udp")
    for each in seen:
        place = (each.packet.seq - seen[0].packet.seq) % 2**16 * len(seen[0].packet.payload)
        assert each.packet.payload == original[place : place + len(each.packet.payload)]
    assert player.played < SECONDS - 2


def test_a_player_whose_film_is_the_same_at_the_heir_goes_on(lab: Lab, tmp_path: Path) -> None:
    """And the fixture's times and folders are no reason."""
    player = Player(lab, "c1", "/film.ts", "tcp", tmp_path / "out.ts")
    player.wait_for(2.0)
    lab.fail("s1", "kill")
    assert player.wait() == 0 and player.played > SECONDS - 1
