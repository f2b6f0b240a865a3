"""What a file's server answers (RFC 9110), as pure functions of the request's fields and of the file's facts."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.http.ranges import Span
from dataplane.http.semantics import Answer, File, answer, combined, content_type, other_method, path_of, refuse

SIZE = 10_000
NOW = 1_700_000_000.0
FILE = File("/film.mp4", SIZE, 1_000_000_000_123_456_789, bytes(range(32)))
"""Last modified on Sunday, 9 September 2001, at 01:46:40 (and a little)."""
TAG = b'"000102030405060708090a0b0c0d0e0f"'
DATE = b"Sun, 09 Sep 2001 01:46:40 GMT"


def ask(file: File = FILE, method: bytes = b"GET", **fields: bytes) -> Answer:
    """`If_Range=b"..."` and the like."""
    return answer(method, {name.lower().replace("_", "-").encode(): value for name, value in fields.items()}, file, NOW)


def header(of: Answer, name: str) -> bytes | None:
    values = [value for key, value in of.headers if key.lower() == name.lower().encode()]
    assert len(values) <= 1
    return values[0] if values else None


# --- the whole ---
def test_a_file_is_answered_whole_with_its_facts() -> None:
    whole = ask()
    assert (whole.status, whole.body) == (200, [Span(0, SIZE)])
    assert header(whole, "Content-Length") == b"10000"
    assert header(whole, "Content-Type") == b"video/mp4"
    assert header(whole, "ETag") == TAG
    assert header(whole, "Last-Modified") == DATE
    assert header(whole, "Accept-Ranges") == b"bytes"


def test_an_empty_file_has_an_empty_answer() -> None:
    empty = ask(File("/empty", 0, 0))
    assert (empty.status, empty.body, header(empty, "Content-Length")) == (200, [], b"0")


def test_head_has_the_facts_of_get_and_ignores_a_range() -> None:
    """RFC 9110, 14.2: with any other method than GET a server must ignore it."""
    assert ask(method=b"HEAD", Range=b"bytes=5-9").headers == ask().headers


# --- validators ---
def test_two_copies_of_one_content_have_one_tag_whatever_their_times() -> None:
    copy = File("/film.mp4", SIZE, 5, FILE.digest)
    assert header(ask(copy), "ETag") == TAG
    assert header(ask(File("/film.mp4", SIZE, FILE.mtime_ns, bytes(32))), "ETag") != TAG


def test_without_a_digest_the_tag_changes_with_size_and_time_and_stays_valid_once_the_digest_is_known() -> None:
    young = File("/film.mp4", SIZE, FILE.mtime_ns)
    tag = header(ask(young), "ETag")
    others = {header(ask(File("/film.mp4", SIZE + 1, FILE.mtime_ns)), "ETag")}
    others.add(header(ask(File("/film.mp4", SIZE, FILE.mtime_ns + 1)), "ETag"))
    assert tag is not None
    assert tag not in others | {TAG}
    assert len(others) == 2
    assert ask(FILE, If_None_Match=tag).status == 304
    assert ask(FILE, Range=b"bytes=1-1", If_Range=tag).status == 206
    assert ask(young, Range=b"bytes=1-1", If_Range=TAG).status == 200


@pytest.mark.parametrize("mtime_ns", [-(2**63), -1, 2**63 - 1, int((NOW + 3600) * 1e9)])
def test_a_time_that_no_date_can_say_is_the_nearest_that_can(mtime_ns: int) -> None:
    date = header(ask(File("/film.mp4", SIZE, mtime_ns)), "Last-Modified")
    assert date == (b"Thu, 01 Jan 1970 00:00:00 GMT" if mtime_ns < 0 else b"Tue, 14 Nov 2023 22:13:20 GMT")


# --- parts ---
def test_a_range_is_answered_with_its_span() -> None:
    part = ask(Range=b"bytes=1000-1999")
    assert (part.status, part.body) == (206, [Span(1000, 1000)])
    assert header(part, "Content-Length") == b"1000"
    assert header(part, "Content-Range") == b"bytes 1000-1999/10000"
    assert header(part, "Content-Type") == b"video/mp4"
    assert header(part, "ETag") == TAG


def test_a_range_of_everything_is_a_part_too() -> None:
    """A player asks `bytes=0-` to learn whether it may seek: 206 says so."""
    assert (ask(Range=b"bytes=0-").status, header(ask(Range=b"bytes=0-"), "Content-Range")) == (
        206,
        b"bytes 0-9999/10000",
    )


def test_several_ranges_are_a_multipart_body_of_literals_and_spans() -> None:
    parts = ask(Range=b"bytes=0-9,5000-5999,-1")
    assert parts.status == 206
    assert [part for part in parts.body if isinstance(part, Span)] == [Span(0, 10), Span(5000, 1000), Span(9999, 1)]
    assert header(parts, "Content-Range") is None
    kind = header(parts, "Content-Type")
    assert kind is not None
    assert kind.startswith(b"multipart/byteranges; boundary=")
    length = sum(part.length if isinstance(part, Span) else len(part) for part in parts.body)
    assert header(parts, "Content-Length") == b"%d" % length


def test_several_ranges_of_which_one_remains_are_no_multipart() -> None:
    part = ask(Range=b"bytes=0-9,5-14,20000-")
    assert (part.status, part.body, header(part, "Content-Range")) == (206, [Span(0, 15)], b"bytes 0-14/10000")


def test_what_cannot_be_satisfied_is_said_with_the_size() -> None:
    refused = ask(Range=b"bytes=10000-")
    assert refused.status == 416
    assert header(refused, "Content-Range") == b"bytes */10000"
    assert header(refused, "Content-Length") == b"%d" % refused.length


def test_a_range_that_is_not_understood_or_not_for_this_file_gives_the_whole() -> None:
    assert ask(Range=b"bytes=9-5") == ask(Range=b"bytes=0-9", If_Range=b'"x"') == ask(If_Range=TAG) == ask()


@given(st.integers(0, 2 * SIZE), st.integers(0, 2 * SIZE))
def test_a_part_always_lies_within_the_file(first: int, last: int) -> None:
    part = ask(Range=b"bytes=%d-%d" % (first, last))
    if last < first:
        assert part == ask()
    elif first >= SIZE:
        assert part.status == 416
    else:
        assert part.body == [Span(first, min(last + 1, SIZE) - first)]


# --- conditions ---
def test_a_condition_comes_before_a_range() -> None:
    assert ask(Range=b"bytes=10000-", If_None_Match=TAG).status == 304
    assert ask(Range=b"bytes=10000-", If_Match=b'"a"').status == 412
    assert ask(Range=b"bytes=10000-", If_Match=TAG).status == 416


def test_what_was_not_modified_has_its_validators_and_no_body() -> None:
    found = ask(If_None_Match=TAG)
    assert (found.status, found.body) == (304, [])
    assert header(found, "ETag") == TAG
    assert header(found, "Content-Length") is None


def test_a_failed_precondition_is_said_with_the_validators() -> None:
    found = ask(If_Match=b'"a"')
    assert (found.status, header(found, "ETag")) == (412, TAG)
    assert found.body == [b"the object is not the one that the request is meant for\n"]


PRINTABLE = st.text(string.printable.strip(), max_size=60).map(str.encode)
NAMES = ("Range", "If_Range", "If_None_Match", "If_Match", "If_Modified_Since", "If_Unmodified_Since")


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(PRINTABLE, st.binary(max_size=60))))
def test_no_field_whatever_breaks_an_answer(fields: dict[str, bytes]) -> None:
    found = ask(**fields)
    assert found.status in (200, 206, 304, 412, 416)
    if found.status != 304:
        assert header(found, "Content-Length") == b"%d" % found.length


# --- fields ---
def test_several_lines_of_one_field_are_one() -> None:
    lines = [(b"If-None-Match", b'"a"'), (b"Host", b"vip"), (b"if-none-match", b'"b"')]
    assert combined(lines) == {b"if-none-match": b'"a", "b"', b"host": b"vip"}


# --- media types ---
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/film.mp4", b"video/mp4"),
        ("/clip.ts", b"video/mp2t"),
        ("/live.m3u8", b"application/vnd.apple.mpegurl"),
        ("/page.HTML", b"text/html"),
        ("/a.b/c", b"application/octet-stream"),
        ("/film.unknown-kind", b"application/octet-stream"),
        ("/logs.tar.gz", b"application/gzip"),
        ("/data:text/html,x", b"application/octet-stream"),
        ("/", b"application/octet-stream"),
    ],
)
def test_the_name_says_the_media_type(name: str, kind: bytes) -> None:
    assert content_type(name) == kind


@given(st.text(max_size=40))
def test_every_name_has_a_media_type_that_fits_into_a_field(name: str) -> None:
    assert b"/" in content_type("/" + name)
    content_type("/" + name).decode("ascii")


# --- targets ---
@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/film.mp4", "/film.mp4"),
        (b"/a/b?c=d", "/a/b"),
        (b"/a?b=/../c", "/a"),
        (b"/a#b", "/a"),
        (b"/a%20b", "/a b"),
        (b"/a+b", "/a+b"),
        (b"/%C3%A9", "/é"),
        (b"/%2541", "/%41"),
        (b"/a%2Fb", "/a/b"),
        (b"/a%3Fb", "/a?b"),
        (b"/..a/b..", "/..a/b.."),
        (b"/", "/"),
        (b"//", "/"),
        (b"//a//b", "/a/b"),
        (b"/./a/./b", "/a/b"),
        (b"/a/", "/a/"),
        (b"/a/.", "/a/"),
        (b"//[", "/["),
        (b"/%e9%09%ef%bb%bf", "/\uefe9\t\ufeff"),
        (b"http://example.com/a", "/a"),
        (b"HTTP://EXAMPLE.com:8080/A", "/A"),
        (b"http://example.com", "/"),
        (b"http://example.com?x", "/"),
        (b"http://user:password@example.com/a?b", "/a"),
        (b"http:///a", "/a"),
        (b"http://[::1]/a", "/a"),
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
        b"/100%",
        b"/%zz",
        b"/%4",
        b"*",
        b"",
        b"example.com:80",
        b"https://example.com/a",
        b"ftp://example.com/a",
        b"http:/a",
        b"a/b",
    ],
)
def test_a_target_that_leaves_the_root_or_is_no_path_names_nothing(target: bytes) -> None:
    assert path_of(target) is None


@given(st.text([chr(code) for code in range(0x21, 0x7F)], max_size=30).map(str.encode))
def test_any_target_names_a_path_below_the_root_or_nothing(target: bytes) -> None:
    for path in (path_of(target), path_of(b"/" + target), path_of(b"http://vip/" + target)):
        if path is not None:
            assert path.startswith("/")
            segments = path.split("/")[1:]
            assert "" not in segments[:-1]
            assert not {".", ".."} & set(segments)
            assert "\0" not in path


# --- refusals, other methods ---
def test_a_refusal_is_a_sentence_for_a_person() -> None:
    refused = refuse(431, "too long", [(b"X", b"y")])
    assert (refused.status, refused.body) == (431, [b"too long\n"])
    assert header(refused, "Content-Length") == b"9"
    assert header(refused, "X") == b"y"


@pytest.mark.parametrize(
    ("method", "status"),
    [(b"OPTIONS", 204), (b"DELETE", 405), (b"POST", 405), (b"CONNECT", 405), (b"get", 501), (b"BREW", 501)],
)
def test_another_method_is_told_which_there_are(method: bytes, status: int) -> None:
    found = other_method(method)
    assert (found.status, header(found, "Allow")) == (status, b"GET, HEAD, OPTIONS")
