"""What the VIPs are called in the lab's hosts."""

from __future__ import annotations

import pytest

from tests.unit import scenario
from topologies.lab import vip_names

FOUR, FOUR2, SIX, SIX2 = "10.0.0.100", "10.0.0.101", "fd00::100", "fd00::101"


@pytest.mark.parametrize(
    ("vips", "names"),
    [
        ([FOUR], {"vip": FOUR}),
        ([FOUR, SIX], {"vip": FOUR, "vip6": SIX}),
        ([SIX, FOUR], {"vip": FOUR, "vip6": SIX}),
        ([FOUR, SIX, FOUR2, SIX2], {"vip": FOUR, "vip2": FOUR2, "vip6": SIX, "vip6-2": SIX2}),
        ([SIX, SIX2], {"vip": SIX, "vip6": SIX, "vip6-2": SIX2}),
    ],
)
def test_the_first_vip_of_each_family_has_a_name_that_says_so(vips: list[str], names: dict[str, str]) -> None:
    assert vip_names(scenario.config(vips=vips).vips) == names
