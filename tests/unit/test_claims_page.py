"""CLAIMS.md is true: every claim has a row, what a row names exists, and a claim without a test says so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = range(1, 23)
NOT_YET = "not yet there"
_CODE = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)(?:; )?")


def rows() -> dict[int, tuple[str, str, str]]:
    """Claim -> (what it means, code, test)."""
    found: dict[int, tuple[str, str, str]] = {}
    for line in (ROOT / "CLAIMS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            claim, meaning, code, test = cells
            assert int(claim) not in found, f"claim {claim} has two rows"
            found[int(claim)] = (meaning, code, test)
    return found


ROWS = rows()
THERE = [claim for claim, (_, _, test) in ROWS.items() if test != NOT_YET]


def test_every_claim_has_a_row_that_says_what_it_means() -> None:
    assert list(ROWS) == list(CLAIMS)
    assert all(meaning for meaning, _, _ in ROWS.values())


@pytest.mark.parametrize("claim", THERE)
def test_the_code_that_a_row_names_exists(claim: int) -> None:
    code = ROWS[claim][1]
    named = _CODE.findall(code)
    assert named and _CODE.sub("", code) == "", f"not `file`: `name`, `name`; ...: {_CODE.sub('', code)}"
    for file, names in named:
        assert (ROOT / file).is_file()
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", names):
            found: object = module
            for part in name.split("."):
                assert hasattr(found, part), f"{file} has no {name}"
                found = getattr(found, part)


@pytest.mark.parametrize("claim", THERE)
def test_a_claim_has_a_test_of_its_own_that_begins_with_the_claim(claim: int) -> None:
    """A row without its mark must name this file, and the file must be there."""
    assert ROWS[claim][2] == f"`tests/claims/test_claim_{claim:02d}.py`"
    source = (ROOT / ROWS[claim][2].strip("`")).read_text()
    assert source.startswith(f'"""Claim {claim}: ')
    assert re.search(r"^def test_\w+\(\s*lab: Lab", source, re.MULTILINE), "its tests run in the lab"


def test_a_row_that_is_marked_names_nothing_and_every_test_of_a_claim_is_in_the_table() -> None:
    for claim in CLAIMS:
        _, code, test = ROWS[claim]
        assert (code == "") == (test == NOT_YET)
    there = {f"`tests/claims/{file.name}`" for file in (ROOT / "tests" / "claims").glob("test_*.py")}
    assert there == {test for _, _, test in ROWS.values()} - {NOT_YET}
