"""Sequence numbers wrap: everything near 2**32 behaves as anywhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sequence import Seq

MODULUS = 2**32
NUMBERS = st.integers(0, MODULUS - 1) | st.integers(-9, 9).map(lambda value: value % MODULUS)
STEPS = st.integers(-(2**31) + 1, 2**31 - 1)


@pytest.mark.parametrize(("value", "wrapped"), [(MODULUS, 0), (MODULUS + 5, 5), (-1, MODULUS - 1), (3 * MODULUS, 0)])
def test_every_integer_becomes_a_number_of_32_bits(value: int, wrapped: int) -> None:
    assert int(Seq(value)) == wrapped


def test_adding_and_subtracting_wrap() -> None:
    assert Seq(MODULUS - 1) + 1 == 0
    assert Seq(MODULUS - 10) + 300 == 290
    assert Seq(0) - 1 == MODULUS - 1
    assert Seq(5) - (MODULUS - 5) == 10
    assert Seq(7) + MODULUS == 7


def test_sums_stay_sequence_numbers() -> None:
    assert isinstance(Seq(MODULUS - 1) + 1, Seq)
    assert isinstance(Seq(0) - 1, Seq)
    assert (Seq(MODULUS - 1) + 1) + (MODULUS - 1) == MODULUS - 1


def test_distance_is_signed_and_the_shorter_way() -> None:
    assert Seq(MODULUS - 1).distance(1) == 2
    assert Seq(1).distance(MODULUS - 1) == -2
    assert Seq(0).distance(2**31 - 1) == 2**31 - 1
    assert Seq(0).distance(2**31) == -(2**31)
    assert Seq(5).distance(5) == 0


def test_ahead_is_never_negative() -> None:
    assert Seq(MODULUS - 1).ahead(1) == 2
    assert Seq(1).ahead(MODULUS - 1) == MODULUS - 2
    assert Seq(5).ahead(5) == 0


def test_order_holds_across_the_wrap() -> None:
    before, after = Seq(MODULUS - 1), Seq(1)
    assert before < after
    assert before <= after
    assert after > before
    assert after >= before
    assert not after < before
    assert before <= Seq(MODULUS - 1)
    assert before >= Seq(MODULUS - 1)
    assert not before < Seq(MODULUS - 1)
    assert max(before, after) == after


@given(NUMBERS, STEPS)
def test_distance_undoes_addition(start: int, step: int) -> None:
    there = Seq(start) + step
    assert Seq(start).distance(there) == step
    assert there.distance(start) == -step
    assert there - step == start
    assert Seq(start).ahead(there) == step % MODULUS


@given(NUMBERS, STEPS)
def test_order_agrees_with_the_way_from_one_to_the_other(start: int, step: int) -> None:
    here, there = Seq(start), Seq(start) + step
    assert (here < there) == (step > 0)
    assert (here <= there) == (step >= 0)
    assert (here > there) == (step < 0)
    assert (here >= there) == (step <= 0)
    assert (here == there) == (step == 0)


def test_equal_numbers_are_one_key_whether_typed_or_not() -> None:
    assert 3 in {Seq(MODULUS + 3)}
    assert Seq(MODULUS + 3) in [3]
    assert repr(Seq(-1)) == "Seq(4294967295)"
