"""docs/server-authors.md is true: its commands are run as they stand there, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from topologies.record import FOLDER

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "server-authors.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_print_what_the_page_says(tmp_path: Path) -> None:
    (hello,) = (block for block in blocks("python") if block.startswith("# hello.py\n"))
    (tmp_path / "hello.py").write_text(hello)
    script = "set -euo pipefail\n" + "\n".join(blocks("sh"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        subprocess.run(["takeover", "lab", "down"], env=environment, check=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "".join(blocks("text"))


def test_a_protocol_that_cannot_be_had_is_named_with_its_place_and_no_lab_remains(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("KIND = 5\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    takeover = str(Path(sys.executable).with_name("takeover"))
    up = [takeover, "lab", "up", "--service", "7000=theirs:KIND"]
    ran = subprocess.run(up, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    place = r"takeover\.yaml:\d+: vips\[\d\]\.services\[3\]\.protocol: "
    assert re.search(place + "theirs:KIND is of type int, not an ApplicationKind", ran.stderr), ran.stderr
    assert not FOLDER.exists()
