"""What docs/server-authors.md shows of the ticker is the ticker; tests/system runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dataplane

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "server-authors.md").read_text()
EXCERPTS = re.findall(r"^```python\n# (\S+/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_excerpts() -> None:
    assert len(EXCERPTS) == 3


@pytest.mark.parametrize(("file", "excerpt"), EXCERPTS)
def test_an_excerpt_stands_in_its_file(file: str, excerpt: str) -> None:
    assert excerpt in (ROOT / file).read_text()


def test_every_method_that_it_names_exists() -> None:
    for method in re.findall(r"`stream\.(\w+)", PAGE):
        assert hasattr(dataplane.Stream, method), method
    table = PAGE[PAGE.index("| the stack calls") : PAGE.index("Two rules")]
    methods = set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE))
    assert methods - {"unready"} == dataplane.Application.__abstractmethods__ | {"stopping", "obstacle"}
    assert "unready" in dataplane.ApplicationKind.__dataclass_fields__
