"""As tests/unit/test_conductor_exploration.py, with a restart of the controller at any moment: more orders than the
unit tests have time for."""

from __future__ import annotations

import pytest

from tests.unit.test_conductor_exploration import Bounds, explore, story


@pytest.mark.parametrize("bounds", [Bounds(2, restarts=1), Bounds(3, returns=0, restarts=1)], ids=["two", "three"])
def test_also_when_the_controller_restarts_at_any_moment(bounds: Bounds) -> None:
    """Its servers and its switch find it again in any order, and may die before they do."""
    found = explore(bounds)
    assert found.worlds > 2000 and found.quiet > 100
    assert not found.violations, "\n".join(story(*violation) for violation in found.violations.items())
