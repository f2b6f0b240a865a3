"""What a file's server answers (RFC 9110), as pure functions of the request's headers and of the file's facts."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.http.semantics import Answer, File, answer, path_of, refuse

SIZE = 10_000
FILE = File("/film.mp4", SIZE, 1_000_000_000_123_456_789)
"""Last modified on Sunday, 9 September 2001, at 01:46:40 (and a little)."""
DATE = b"Sun, 09 Sep 2001 01:46:40 GMT"
EARLIER = b"Sun, 09 Sep 2001 01:46:39 GMT"
LATER = b"Sun, 09 Sep 2001 01:46:41 GMT"


def ask(**headers: bytes) -> Answer:
    """`If_Range=b"..."` and the like."""
    return answer([(name.replace("_", "-").encode(), value) for name, value in headers.items()], FILE)


def header(of: Answer, name: str) -> bytes | None:
    values = [value for key, value in of.headers if key.lower() == name.lower().encode()]
    assert len(values) <= 1
    return values[0] if values else None


# --- the whole ---
def test_a_file_is_answered_whole_with_its_facts() -> None:
    whole = ask()
    assert (whole.status, whole.offset, whole.length, whole.literal) == (200, 0, SIZE, b"")
    assert header(whole, "Content-Length") == b"10000"
    assert header(whole, "Content-Type") == b"video/mp4"
    assert header(whole, "Last-Modified") == DATE
    assert header(whole, "Accept-Ranges") == b"bytes"


def test_the_type_of_an_unknown_file_is_just_bytes() -> None:
    assert header(answer([], File("/film.unknown-kind", 1, 0)), "Content-Type") == b"application/octet-stream"


def test_an_empty_file_has_an_empty_answer() -> None:
    empty = answer([], File("/empty", 0, 0))
    assert (empty.status, empty.length, header(empty, "Content-Length")) == (200, 0, b"0")


def test_the_validator_is_strong_and_changes_with_every_change() -> None:
    tags = {FILE.etag, File("/film.mp4", SIZE + 1, FILE.mtime_ns).etag, File("/film.mp4", SIZE, FILE.mtime_ns + 1).etag}
    assert len(tags) == 3
    assert FILE.etag.startswith(b'"')
    assert FILE.etag.endswith(b'"')


# --- ranges ---
@pytest.mark.parametrize(
    ("wanted", "offset", "length"),
    [
        (b"bytes=0-0", 0, 1),
        (b"bytes=1-", 1, SIZE - 1),
        (b"bytes=9999-", 9999, 1),
        (b"bytes=9999-9999", 9999, 1),
        (b"bytes=5000-20000", 5000, 5000),
        (b"bytes=-1", 9999, 1),
        (b"bytes=-9999", 1, 9999),
        (b"bytes=0-9998", 0, 9999),
        (b"bytes=007-008", 7, 2),
    ],
)
def test_a_range_is_answered_with_its_bytes(wanted: bytes, offset: int, length: int) -> None:
    part = ask(Range=wanted)
    assert (part.status, part.offset, part.length) == (206, offset, length)
    assert header(part, "Content-Length") == str(length).encode()
    assert header(part, "Content-Range") == b"bytes %d-%d/10000" % (offset, offset + length - 1)
    assert header(part, "ETag") == FILE.etag


@pytest.mark.parametrize("wanted", [b"bytes=10000-", b"bytes=10000-10001", b"bytes=99999-", b"bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_satisfied(wanted: bytes) -> None:
    refused = ask(Range=wanted)
    assert (refused.status, refused.length) == (416, 0)
    assert header(refused, "Content-Range") == b"bytes */10000"
    assert header(refused, "Content-Length") == str(len(refused.literal)).encode()


def test_no_range_of_an_empty_file_can_be_satisfied() -> None:
    for wanted in (b"bytes=0-", b"bytes=-5", b"bytes=0-0"):
        assert answer([(b"Range", wanted)], File("/empty", 0, 0)).status == 416


@pytest.mark.parametrize(
    "wanted", [b"bytes=-", b"bytes=5-2", b"bytes=a-b", b"lines=1-2", b"bytes=0-1,5-6", b"bytes 0-1", b"", b"bytes=--1"]
)
def test_a_range_that_is_not_understood_is_ignored(wanted: bytes) -> None:
    whole = ask(Range=wanted)
    assert (whole.status, whole.offset, whole.length) == (200, 0, SIZE)


@pytest.mark.parametrize("digits", [4300, 5000, 16_000])
def test_a_range_of_absurdly_many_digits_is_answered_like_any_large_number(digits: int) -> None:
    huge = b"9" * digits
    assert ask(Range=b"bytes=%b-" % huge).status in (200, 416)
    assert ask(Range=b"bytes=5-%b" % huge).status in (200, 206)
    assert ask(Range=b"bytes=-%b" % huge).status in (200, 206)


@given(st.integers(0, 2 * SIZE), st.integers(0, 2 * SIZE))
def test_a_part_always_lies_within_the_file(first: int, last: int) -> None:
    part = ask(Range=b"bytes=%d-%d" % (first, last))
    if part.status == 206:
        assert part.offset == first
        assert part.length > 0
        assert part.offset + part.length == min(last + 1, SIZE)
    else:
        assert part.status == 416 if first >= SIZE and last >= first else part.length == SIZE


# --- conditions ---
@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (FILE.etag, 206),
        (b'"another"', 200),
        (b"W/" + FILE.etag, 200),
        (DATE, 206),
        (EARLIER, 200),
        (LATER, 200),
        (b"rubbish", 200),
    ],
)
def test_if_range_gives_the_part_only_of_the_very_same_file(condition: bytes, status: int) -> None:
    found = ask(Range=b"bytes=5-9", If_Range=condition)
    assert found.status == status
    assert found.length == (5 if status == 206 else SIZE)


def test_if_range_without_range_changes_nothing() -> None:
    assert ask(If_Range=FILE.etag) == ask()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": FILE.etag}, 304),
        ({"If_None_Match": b"W/" + FILE.etag}, 304),
        ({"If_None_Match": b'"a", ' + FILE.etag}, 304),
        ({"If_None_Match": b"*"}, 304),
        ({"If_None_Match": b'"a"'}, 200),
        ({"If_None_Match": b'"a"', "If_Modified_Since": LATER}, 200),
        ({"If_None_Match": FILE.etag, "If_Modified_Since": EARLIER}, 304),
        ({"If_Modified_Since": DATE}, 304),
        ({"If_Modified_Since": LATER}, 304),
        ({"If_Modified_Since": EARLIER}, 200),
        ({"If_Modified_Since": b"rubbish"}, 200),
        ({"If_Modified_Since": b"\xff"}, 200),
        ({"If_None_Match": FILE.etag, "Range": b"bytes=5-9"}, 304),
    ],
    ids=str,
)
def test_what_the_client_has_is_not_sent_again(headers: dict[str, bytes], status: int) -> None:
    found = ask(**headers)
    assert found.status == status
    if status == 304:
        assert (found.length, found.literal) == (0, b"")
        assert header(found, "ETag") == FILE.etag
        assert header(found, "Content-Length") is None


@pytest.mark.parametrize(
    "date",
    [
        b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 01 Jan 2020 00:00:00 +99999999999999999999",
        b"Mon, 99 Jan 2020 99:99:99 GMT",
        b"Mon, 01 Jan 10000 00:00:00 GMT",
    ],
)
def test_a_date_that_is_none_is_ignored(date: bytes) -> None:
    assert ask(If_Modified_Since=date).status == 200


PRINTABLE = st.text(string.printable.strip(), max_size=60).map(str.encode)


@given(PRINTABLE, st.sampled_from(("Range", "If_Range", "If_None_Match", "If_Modified_Since")))
def test_no_header_whatever_breaks_an_answer(value: bytes, name: str) -> None:
    headers = {"Range": b"bytes=1-2", name: value}
    assert ask(**headers).status in (200, 206, 304, 416)


# --- targets ---
@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/film.mp4", "/film.mp4"),
        (b"/a/b?c=d", "/a/b"),
        (b"/a%20b", "/a b"),
        (b"/%C3%A9", "/é"),
        (b"http://example.com/a", "/a"),
        (b"/..a/b..", "/..a/b.."),
        (b"/", "/"),
    ],
)
def test_a_target_names_a_path(target: bytes, path: str) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"/../etc/passwd",
        b"/a/../../b",
        b"/%2e%2e/b",
        b"/..%2fb",
        b"/%2E%2E%2Fb",
        b"/..",
        b"/a%00b",
        b"/%ff",
        b"*",
        b"",
        b"example.com:80",
        b"https://example.com/a",
        b"a/b",
    ],
)
def test_a_target_that_leaves_the_root_or_is_no_path_names_nothing(target: bytes) -> None:
    assert path_of(target) is None


@pytest.mark.parametrize("target", [b"//[", b"http://[", b"//[::1]x/a", b"http://[::1/a", b"//]/a"])
def test_a_target_with_an_impossible_host_names_nothing(target: bytes) -> None:
    assert path_of(target) is None


@given(st.text([chr(code) for code in range(0x21, 0x7F)], max_size=30).map(str.encode))
def test_any_target_names_a_path_below_the_root_or_nothing(target: bytes) -> None:
    for path in (path_of(target), path_of(b"/" + target)):
        if path is not None:
            assert path.startswith("/")
            assert ".." not in path.split("/")
            assert "\0" not in path


def test_a_refusal_is_a_sentence_for_a_person() -> None:
    refused = refuse(405, "only GET and HEAD are served", [(b"Allow", b"GET, HEAD")])
    assert (refused.status, refused.literal) == (405, b"only GET and HEAD are served\n")
    assert header(refused, "Content-Length") == b"29"
    assert header(refused, "Allow") == b"GET, HEAD"
