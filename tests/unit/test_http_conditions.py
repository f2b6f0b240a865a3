"""Preconditions: which of them decide, in which order, and which fields are to be ignored."""

from __future__ import annotations

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.http.conditions import Validators, evaluate, range_applies

NOW = 1_700_000_000.0
TAG, OLD_TAG = b'"0123abcd"', b'"17-2710"'
FILE = Validators((TAG, OLD_TAG), 1_000_000_000)
DATE = b"Sun, 09 Sep 2001 01:46:40 GMT"
EARLIER = b"Sun, 09 Sep 2001 01:46:39 GMT"
LATER = b"Sun, 09 Sep 2001 01:46:41 GMT"


def ask(**fields: bytes) -> int | None:
    """`If_Match=b"..."` and the like."""
    return evaluate({name.lower().replace("_", "-").encode(): value for name, value in fields.items()}, FILE)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, None),
        ({"If_None_Match": TAG}, 304),
        ({"If_None_Match": OLD_TAG}, 304),
        ({"If_None_Match": b"W/" + TAG}, 304),
        ({"If_None_Match": b'"a", ' + TAG}, 304),
        ({"If_None_Match": b'"a,b" ,\t' + TAG + b', "c"'}, 304),
        ({"If_None_Match": b"*"}, 304),
        ({"If_None_Match": b'"a"'}, None),
        ({"If_None_Match": b'"*"'}, None),
        ({"If_None_Match": TAG.strip(b'"')}, None),
        ({"If_None_Match": b'"a"', "If_Modified_Since": LATER}, None),
        ({"If_None_Match": TAG, "If_Modified_Since": EARLIER}, 304),
        ({"If_Modified_Since": DATE}, 304),
        ({"If_Modified_Since": LATER}, 304),
        ({"If_Modified_Since": EARLIER}, None),
        ({"If_Match": TAG}, None),
        ({"If_Match": OLD_TAG}, None),
        ({"If_Match": b'"a", ' + TAG}, None),
        ({"If_Match": b"*"}, None),
        ({"If_Match": b"W/" + TAG}, 412),
        ({"If_Match": b'"a"'}, 412),
        ({"If_Match": b""}, 412),
        ({"If_Match": b"rubbish"}, 412),
        ({"If_Unmodified_Since": DATE}, None),
        ({"If_Unmodified_Since": LATER}, None),
        ({"If_Unmodified_Since": EARLIER}, 412),
        ({"If_Match": TAG, "If_Unmodified_Since": EARLIER}, None),
        ({"If_Match": b'"a"', "If_None_Match": TAG}, 412),
        ({"If_Match": TAG, "If_None_Match": TAG}, 304),
        ({"If_Unmodified_Since": EARLIER, "If_Modified_Since": DATE}, 412),
        ({"If_Unmodified_Since": DATE, "If_Modified_Since": DATE}, 304),
    ],
    ids=str,
)
def test_a_precondition_decides_as_the_rfc_says(fields: dict[str, bytes], status: int | None) -> None:
    assert ask(**fields) == status


def test_every_combination_is_decided_in_the_order_of_the_rfc() -> None:
    """RFC 9110, 13.2.2, step by step, for all 81 combinations of true, false and absent."""
    choices: dict[str, list[bytes | None]] = {
        "If_Match": [None, TAG, b'"a"'],
        "If_Unmodified_Since": [None, DATE, EARLIER],
        "If_None_Match": [None, b'"a"', TAG],
        "If_Modified_Since": [None, EARLIER, DATE],
    }
    for values in itertools.product(*choices.values()):
        match, unmodified, none_match, modified = values
        expected: int | None
        if (match is not None and match != TAG) or (match is None and unmodified == EARLIER):
            expected = 412
        elif none_match is not None:
            expected = 304 if none_match == TAG else None
        else:
            expected = 304 if modified == DATE else None
        given_ = {name: value for name, value in zip(choices, values, strict=True) if value is not None}
        assert ask(**given_) == expected, given_


@pytest.mark.parametrize(
    "date",
    [
        b"rubbish",
        b"\xff",
        b"",
        b"Sun, 09 Sep 2001 01:46:41 +0000",
        b"Sun, 09 Sep 2001 01:46:41 GMT, Sun, 09 Sep 2001 01:46:41 GMT",
        b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 01 Jan 2020 00:00:00 +99999999999999999999",
        b"Mon, 99 Jan 2020 99:99:99 GMT",
        b"Mon, 01 Jan 10000 00:00:00 GMT",
        b"Mon, 01 Foo 2020 00:00:00 GMT",
        b"2001-09-09T01:46:41Z",
    ],
)
def test_a_date_that_is_none_is_ignored(date: bytes) -> None:
    assert ask(If_Modified_Since=date) is None
    assert ask(If_Unmodified_Since=date) is None


@pytest.mark.parametrize(
    ("date", "same_or_later"),
    [
        (b"Sunday, 09-Sep-01 01:46:40 GMT", True),
        (b"Sunday, 09-Sep-01 01:46:39 GMT", False),
        (b"Sun Sep  9 01:46:40 2001", True),
        (b"Sun Sep  9 01:46:39 2001", False),
    ],
)
def test_the_two_obsolete_forms_of_dates_are_understood(date: bytes, same_or_later: bool) -> None:
    assert ask(If_Modified_Since=date) == (304 if same_or_later else None)


# --- If-Range ---
@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        (TAG, True),
        (OLD_TAG, True),
        (b'"another"', False),
        (b"W/" + TAG, False),
        (TAG + b", " + TAG, False),
        (b"*", False),
        (DATE, True),
        (EARLIER, False),
        (LATER, False),
        (b"rubbish", False),
        (b"", False),
    ],
)
def test_a_part_is_given_only_of_the_very_same_file(condition: bytes, applies: bool) -> None:
    assert range_applies({b"if-range": condition}, FILE, NOW) == applies


def test_without_if_range_a_part_is_given() -> None:
    assert range_applies({}, FILE, NOW)


@pytest.mark.parametrize(("age", "applies"), [(0.0, False), (0.9, False), (1.0, False), (1.1, True)])
def test_a_date_says_nothing_while_its_second_may_see_another_change(age: float, applies: bool) -> None:
    assert range_applies({b"if-range": DATE}, FILE, FILE.modified + age) == applies
    assert range_applies({b"if-range": TAG}, FILE, FILE.modified + age)


PRINTABLE = st.text(string.printable.strip(), max_size=60).map(str.encode)
CONDITIONS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range")


@given(st.dictionaries(st.sampled_from([name.encode() for name in CONDITIONS]), st.one_of(PRINTABLE, st.binary())))
def test_no_field_whatever_breaks_a_decision(fields: dict[bytes, bytes]) -> None:
    assert evaluate(fields, FILE) in (None, 304, 412)
    assert range_applies(fields, FILE, NOW) in (True, False)
