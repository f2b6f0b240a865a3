"""Ranges: what a field asks for, against a reference that thinks in single bytes; and several as one multipart body."""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.http.ranges import LIMIT_RANGES, Span, content_range, multipart, spans_of

SIZE = 10_000
GAP = 80


def spans(field: bytes, size: int = SIZE) -> list[tuple[int, int]] | None:
    """(offset, length) of each."""
    found = spans_of(field, size)
    return None if found is None else [(span.offset, span.length) for span in found]


# --- one range ---
@pytest.mark.parametrize(
    ("field", "offset", "length"),
    [
        (b"bytes=0-0", 0, 1),
        (b"bytes=1-", 1, SIZE - 1),
        (b"bytes=0-", 0, SIZE),
        (b"bytes=9999-", 9999, 1),
        (b"bytes=9999-9999", 9999, 1),
        (b"bytes=5000-20000", 5000, 5000),
        (b"bytes=-1", 9999, 1),
        (b"bytes=-9999", 1, 9999),
        (b"bytes=-99999", 0, SIZE),
        (b"bytes=0-9998", 0, 9999),
        (b"bytes=007-008", 7, 2),
        (b"Bytes=7-8", 7, 2),
        (b"bytes= 7-8\t", 7, 2),
        (b"bytes=,7-8,,", 7, 2),
    ],
)
def test_a_range_is_a_span(field: bytes, offset: int, length: int) -> None:
    assert spans(field) == [(offset, length)]


@pytest.mark.parametrize("field", [b"bytes=10000-", b"bytes=10000-10001", b"bytes=99999-", b"bytes=-0"])
def test_a_range_in_which_no_byte_lies_cannot_be_satisfied(field: bytes) -> None:
    assert spans(field) == []


@pytest.mark.parametrize("field", [b"bytes=0-", b"bytes=-5", b"bytes=0-0", b"bytes=0-,-1"])
def test_no_range_of_an_empty_file_can_be_satisfied(field: bytes) -> None:
    assert spans(field, 0) == []


@pytest.mark.parametrize(
    "field",
    [
        b"bytes=-",
        b"bytes=5-2",
        b"bytes=a-b",
        b"lines=1-2",
        b"bytes 0-1",
        b"",
        b"bytes=",
        b"bytes=,",
        b"bytes=--1",
        b"bytes=+1-2",
        b"bytes=1-2-3",
        b"bytes=1 - 2",
        b"bytes=1-2;3-4",
        b"bytes=1-2, bytes=3-4",
        b"bytes=\xb2-3",
        b"bytes=1-2,9-3",
        b"bytes=1-2\n",
    ],
)
def test_a_field_that_is_not_understood_is_ignored_as_a_whole(field: bytes) -> None:
    assert spans(field) is None


@pytest.mark.parametrize("digits", [19, 4300, 5000, 16_000])
def test_a_number_of_absurdly_many_digits_is_a_large_number(digits: int) -> None:
    huge = b"9" * digits
    assert spans(b"bytes=%b-" % huge) == []
    assert spans(b"bytes=5-%b" % huge) == [(5, SIZE - 5)]
    assert spans(b"bytes=-%b" % huge) == [(0, SIZE)]
    assert spans(b"bytes=%b5-%b7" % (b"0" * digits, b"0" * digits)) == [(5, 3)]


# --- several ---
@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"bytes=0-1,500-501", [(0, 2), (500, 2)]),
        (b"bytes=500-501, 0-1", [(500, 2), (0, 2)]),
        (b"bytes=0-1,-1", [(0, 2), (9999, 1)]),
        (b"bytes=0-1,20000-", [(0, 2)]),
        (b"bytes=20000-,30000-", []),
        (b"bytes=0-9,5-14", [(0, 15)]),
        (b"bytes=0-9,10-19", [(0, 20)]),
        (b"bytes=0-9,89-99", [(0, 100)]),
        (b"bytes=0-9,90-99", [(0, 10), (90, 10)]),
        (b"bytes=900-999,0-9,5-14,0-", [(0, SIZE)]),
        (b"bytes=5000-5009,0-9,5005-5020", [(5000, 21), (0, 10)]),
        (b"bytes=0-99,10-20", [(0, 100)]),
    ],
)
def test_ranges_keep_their_order_and_near_ones_become_one(field: bytes, found: list[tuple[int, int]]) -> None:
    assert spans(field) == found


def test_only_so_many_ranges_are_looked_at() -> None:
    far_apart = [b"%d-%d" % (n * 200, n * 200) for n in range(LIMIT_RANGES + 1)]
    asked = spans(b"bytes=" + b",".join(far_apart[:-1]))
    assert asked is not None
    assert len(asked) == LIMIT_RANGES
    assert spans(b"bytes=" + b",".join(far_apart)) is None
    assert spans(b"bytes=" + b",".join([b"0-"] * 5000)) is None


def reference(specs: list[str], size: int) -> set[int]:
    """Every byte that is asked for, one by one (RFC 9110, 14.1.2)."""
    wanted: set[int] = set()
    for spec in specs:
        first, last = spec.split("-")
        for position in range(size):
            if first == "":
                inside = size - position <= int(last)
            else:
                inside = int(first) <= position and (last == "" or position <= int(last))
            if inside:
                wanted.add(position)
    return wanted


NUMBER = st.integers(0, 700)
SPEC = st.one_of(
    st.tuples(NUMBER, NUMBER).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    NUMBER.map(lambda first: f"{first}-"),
    NUMBER.map(lambda last: f"-{last}"),
)


@given(st.lists(SPEC, min_size=1, max_size=LIMIT_RANGES), st.integers(0, 600))
def test_any_field_is_answered_with_every_byte_it_asks_for_once(specs: list[str], size: int) -> None:
    found = spans(("bytes=" + ",".join(specs)).encode(), size)
    assert found is not None
    sent = [position for offset, length in found for position in range(offset, offset + length)]
    wanted = reference(specs, size)
    assert len(sent) == len(set(sent))
    assert wanted <= set(sent) <= set(range(size))
    for offset, length in found:  # what was not asked for only fills small gaps
        inside = sorted(wanted & set(range(offset, offset + length)))
        assert (inside[0], inside[-1]) == (offset, offset + length - 1)
        assert all(after - before - 1 < GAP for before, after in itertools.pairwise(inside))
    ordered = sorted(found)
    assert all(later[0] - (one[0] + one[1]) >= GAP for one, later in itertools.pairwise(ordered))
    first_asked = [next(iter(sorted(reference([spec], size))), None) for spec in specs]
    places = [
        min(i for i, first in enumerate(first_asked) if first is not None and offset <= first < offset + length)
        for offset, length in found
    ]
    assert places == sorted(places), "in the order asked for"


@given(st.binary(max_size=60), st.integers(0, 1000))
def test_no_field_whatever_breaks_it(field: bytes, size: int) -> None:
    for whole in (field, b"bytes=" + field):
        for offset, length in spans(whole, size) or ():
            assert 0 <= offset < offset + length <= size


# --- multipart ---
CONTENT = random.Random(5).randbytes(SIZE)
PARTS = [Span(9000, 1000), Span(0, 1), Span(500, 77)]


def rendered(parts: list[Span]) -> tuple[bytes, bytes]:
    boundary, body = multipart(parts, SIZE, b"video/mp4", b'"tag"')
    content = b"".join(CONTENT[p.offset : p.end] if isinstance(p, Span) else p for p in body)
    return boundary, content


def test_a_multipart_body_is_read_by_an_independent_parser() -> None:
    boundary, content = rendered(PARTS)
    head = b"Content-Type: multipart/byteranges; boundary=" + boundary + b"\r\n\r\n"
    # `bytes` in and out: the parser decodes with surrogates, which the payload undoes.
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    assert message.get_content_type() == "multipart/byteranges"
    found = message.get_payload()
    assert isinstance(found, list)
    assert [part["Content-Range"].encode() for part in found] == [content_range(part, SIZE) for part in PARTS]
    assert {part["Content-Type"] for part in found} == {"video/mp4"}
    assert content.count(b"--" + boundary) == len(PARTS) + 1
    for part in PARTS:
        where = b"Content-Range: " + content_range(part, SIZE) + b"\r\n\r\n"
        start = content.index(where) + len(where)
        assert content[start : start + part.length] == CONTENT[part.offset : part.end]
        assert content[start + part.length :].startswith(b"\r\n--" + boundary)
    assert content.endswith(b"\r\n--" + boundary + b"--\r\n")


def test_the_same_question_has_the_same_answer_byte_for_byte_and_another_has_another_boundary() -> None:
    assert rendered(PARTS) == rendered(list(PARTS))
    boundaries = {
        rendered(PARTS)[0],
        rendered(PARTS[:2])[0],
        multipart(PARTS, SIZE, b"video/mp4", b'"other"')[0],
        multipart(PARTS, SIZE, b"audio/mp4", b'"tag"')[0],
    }
    assert len(boundaries) == 4
