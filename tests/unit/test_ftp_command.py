"""FTP's lines: commands out of any input, addresses, paths, listings, passwords."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.ftp import address, listing, passwords, paths
from dataplane.ftp.address import AddressRefused
from dataplane.ftp.command import LIMIT_LINE, LIMIT_PENDING, Command, Malformed, Reader, _plain, redacted
from dataplane.ftp.reply import lines, reply
from dataplane.ftp.tree import Entry, Tree

_INPUT = st.binary(max_size=300) | st.lists(
    st.sampled_from(
        [b"USER x", b"PASS secret", b"\r\n", b"\n", b"\xff\xf4\xff\xf2", b"ABOR", b"STAT", b"RETR ", b"\xff"]
    )
).map(b"".join)


def read_all(data: bytes, pieces: int) -> list[Command | Malformed]:
    reader, found = Reader(), []
    for start in range(0, len(data), pieces):
        reader.feed(data[start : start + pieces])
        while (command := reader.next()) is not None:
            found.append(command)
    return found


@given(_INPUT, st.integers(1, 50))
def test_no_input_raises_and_pieces_make_no_difference(data: bytes, pieces: int) -> None:
    found = read_all(data, pieces)
    assert found == read_all(data, max(1, len(data)))
    assert len(found) == data.count(b"\n")


@given(_INPUT, _INPUT)
def test_only_urgent_commands_are_taken_out_of_their_turn(data: bytes, more: bytes) -> None:
    reader = Reader()
    reader.feed(data + b"\r\nABOR\r\n" + more)
    before = reader.pending
    taken = reader.next_of(frozenset(("ABOR",)))
    assert taken is not None and taken.verb == "ABOR"
    rest = read_all(before, 1 << 20)
    rest.remove(taken)
    assert read_all(reader.pending, 1 << 20) == rest


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"retr a b ", Command("RETR", "a b ")),
        (b"XPWD", Command("PWD")),
        ("CWD Grüße".encode(), Command("CWD", "Grüße")),
        (b"\xff\xf4\xff\xf2ABOR", Command("ABOR")),
        (b"\xff\xf4\xf2ABOR", Command("ABOR")),
        (b"CWD \xff\xff\xe9", Command("CWD", "\uefff\uefe9")),
        (b"CWD a\x01\tb", Command("CWD", "a\x01\tb")),
        (b"CWD a\rb", Malformed(501, "The argument has a CR or a NUL.")),
        (b"CWD a\0b", Malformed(501, "The argument has a CR or a NUL.")),
        (b"GET / HTTP/1.1", Command("GET", "/ HTTP/1.1")),
        (b"", Malformed(500, "This is no command.")),
        (b"A" * (LIMIT_LINE + 5), Malformed(500, "The command is too long.")),
    ],
)
def test_a_line_is_a_command(line: bytes, command: Command | Malformed) -> None:
    assert read_all(line + b"\r\nNOOP\r\n", 7) == [command, Command("NOOP")]


def test_a_line_without_end_needs_no_memory() -> None:
    reader = Reader()
    for _ in range(100):
        reader.feed(b"A" * 60_000)
    assert len(reader.pending) == LIMIT_LINE + 1 and not reader.crowded


@given(st.binary(max_size=40).filter(lambda secret: b"\n" not in secret), st.integers(0, 60))
def test_a_password_never_leaves_whole_or_in_part(secret: bytes, cut: int) -> None:
    line = b"NOOP\r\npAss " + secret + b"\r\nRETR pass word\r\n"
    kept = redacted(line[: 11 + cut])
    assert kept.startswith(b"NOOP\r\n")
    assert kept[6:].partition(b"\n")[0] == b"PASS "
    assert redacted(line).endswith(b"RETR pass word\r\n")
    assert redacted(b"NOOP\r\nRETR pass wor") == b"NOOP\r\nRETR pass wor"


@given(
    st.lists(
        st.sampled_from([b"PASS ", b"pA", b"Ss ", b"\xff", b"\xff\xff", b"\xf2", b"\xf4", b"\xfb", b"\r", b"\n", b"x"])
        | st.binary(max_size=3)
    ).map(b"".join)
)
def test_whatever_is_read_as_pass_is_redacted_and_nothing_else(pending: bytes) -> None:
    """In one pass over the input: it is done at every checkpoint."""
    assert redacted(pending).split(b"\n") == [
        b"PASS " if _plain(line)[:5].upper() == b"PASS " else line for line in pending.split(b"\n")
    ]


@given(st.lists(st.binary(max_size=20) | st.just(b"A" * LIMIT_LINE), max_size=8))
def test_a_line_that_is_cut_short_hides_from_no_limit(lines: list[bytes]) -> None:
    """What is kept is bounded, also when the client never ends its line."""
    reader = Reader()
    for line in lines:
        reader.feed(line.replace(b"\n", b"") + b"\n")
    assert reader.lines == len(lines)
    kept = len(reader.pending)
    for _ in range(10):
        reader.feed(b"B" * 4096)
    assert len(reader.pending) == kept + LIMIT_LINE + 1
    assert reader.crowded == (kept + LIMIT_LINE + 1 > LIMIT_PENDING)
    reader.feed(b"\n")
    assert reader.lines == len(lines) + 1


# --- replies ---
@given(st.text(max_size=100))
@example("\uef80")  # a byte that is not UTF-8, see `dataplane.names`
def test_a_reply_is_one_line(sentence: str) -> None:
    said = reply(250, sentence)
    assert said.startswith(b"250 ") and said.endswith(b"\r\n") and said.count(b"\n") == said.count(b"\r") == 1
    several = lines(211, "Features:", [sentence, "211 End"], "End")
    assert re.fullmatch(rb"211-[^\r\n]*\r\n [^\r\n]*\r\n 211 End\r\n211 End\r\n", several)


# --- addresses ---
@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("10,0,0,7,100,1", ("10.0.0.7", 25601)),
        ("10,0,0,8,100,1", 504),
        ("10,0,0,7,3,255", 504),
        ("10,0,0,7,100", 501),
        ("10,0,0,7,100,256", 501),
        ("10,0,0,7,100,x", 501),
        ("", 501),
    ],
)
def test_port_names_the_client_itself(argument: str, found: object) -> None:
    assert _read(address.read_port, argument, "10.0.0.7") == found


@pytest.mark.parametrize(
    ("argument", "client", "found"),
    [
        ("|1|10.0.0.7|25601|", "10.0.0.7", ("10.0.0.7", 25601)),
        ("!1!10.0.0.7!25601!", "10.0.0.7", ("10.0.0.7", 25601)),
        ("|2|fd00:0::7|25601|", "fd00::7", ("fd00::7", 25601)),
        ("|2|fd00::7|25601|", "10.0.0.7", 522),
        ("|1|10.0.0.7|25601|", "fd00::7", 522),
        ("|3|10.0.0.7|25601|", "10.0.0.7", 522),
        ("|1|10.0.0.8|25601|", "10.0.0.7", 504),
        ("|1|10.0.0.7|80|", "10.0.0.7", 504),
        ("|1|10.0.0.7|65536|", "10.0.0.7", 504),
        ("|1|vip|25601|", "10.0.0.7", 501),
        ("|1|10.0.0.7|25601", "10.0.0.7", 501),
        ("|²|10.0.0.7|25601|", "10.0.0.7", 501),
        ("1", "10.0.0.7", 501),
    ],
)
def test_eprt_names_the_client_itself(argument: str, client: str, found: object) -> None:
    assert _read(address.read_eprt, argument, client) == found


@given(st.text(max_size=40), st.sampled_from(["10.0.0.7", "fd00::7"]))
def test_no_argument_makes_an_address_of_somebody_else(argument: str, client: str) -> None:
    for read in (address.read_port, address.read_eprt):
        found = _read(read, argument, client)
        assert isinstance(found, int) or (found[0] == client and found[1] >= 1024)
    assert _read(address.read_epsv, argument, client) in (True, False, 501, 522)


def _read(read: object, argument: str, client: str) -> object:
    try:
        return read(argument, client)  # type: ignore[operator]
    except AddressRefused as error:
        return error.code


def test_what_a_server_says_of_its_port() -> None:
    assert address.pasv("10.0.0.100", 40961) == "Entering Passive Mode (10,0,0,100,160,1)."
    assert address.epsv(40961) == "Entering Extended Passive Mode (|||40961|)"


# --- paths and folders ---
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_path_leads_above_the_root(folder: str, argument: str) -> None:
    path = paths.resolve(paths.resolve("/", folder) or "/", argument)
    if path is not None:
        assert path.startswith("/") and not path.startswith("//")
        assert path == posixpath.normpath(path) and ".." not in path.split("/")


@pytest.mark.parametrize(
    ("folder", "argument", "path"),
    [("/a", "b", "/a/b"), ("/a", "/b", "/b"), ("/a", "../../..", "/"), ("/a", "", "/a"), ("/", "//b//c/", "/b/c")],
)
def test_a_path_is_resolved_in_the_folder(folder: str, argument: str, path: str) -> None:
    assert paths.resolve(folder, argument) == path


def test_links_are_followed_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"")
    (root / "inside").symlink_to(root / "folder")
    (root / "outside").symlink_to(tmp_path)
    (root / "up").symlink_to("../secret")
    (root / "loop").symlink_to("loop")
    (root / "bad\nname").touch()
    tree = Tree(str(root))
    assert tree.names("/") == ["folder", "inside", "loop", "outside", "up"]
    entry = tree.find("/inside/file")
    assert entry is not None and (entry.folder, entry.size, entry.name) == (False, 5, "file")
    for path in ("/outside", "/outside/secret", "/up", "/loop", "/none", "/" + "x" * 5000):
        assert tree.find(path) is None
    assert tree.real("/outside/new") is None
    for path in ("/outside", "/none", "/folder/file"):
        with pytest.raises(OSError):
            tree.names(path)


# --- listings ---
_NEW_YEAR = 1_767_225_600


def test_lines_of_listings() -> None:
    file = Entry("/folder/a file", False, 1234, _NEW_YEAR * 10**9 + 5)
    folder = Entry("/folder", True, 0, _NEW_YEAR * 10**9)
    assert listing.line("LIST", file, (), _NEW_YEAR + 60) == (
        "-rw-r--r--   1 ftp      ftp              1234 Jan  1 00:00 a file"
    )
    assert listing.line("LIST", folder, (), _NEW_YEAR + 86_400 * 365).endswith(" 0 Jan  1  2026 folder")
    assert listing.line("NLST", file, (), 0) == "a file"
    assert listing.line("MLSD", file, listing.FACTS, 0) == "type=file;size=1234;modify=20260101000000;perm=r; a file"
    assert listing.facts(folder, ("type", "size"), "cdir") == "type=cdir;"


@given(st.lists(st.text("abc*[", min_size=1, max_size=4), unique=True), st.integers(1, 60), st.sampled_from(["", "a*"]))
def test_a_listing_in_pieces_has_every_name_once(names: list[str], least: int, pattern: str) -> None:
    """Each piece begins where the last one said, as after a takeover."""
    names = sorted(names)
    found, after = b"", ""
    while True:
        text, last = listing.chunk(
            "NLST",
            "/f",
            names,
            lambda path: Entry(path, False, 0, 0),
            pattern=listing.matcher(pattern),
            after=after,
            wanted=(),
            now=0,
            least=least,
        )
        found += text
        if last is None:
            break
        after = last
    wanted = [name for name in names if not pattern or name.startswith("a")]
    assert found.decode().split("\r\n")[:-1] == wanted


# --- passwords ---
def test_a_password_is_proven_by_its_digest() -> None:
    kept = passwords.hashed("sécret")
    assert passwords.proves("sécret", kept) and not passwords.proves("secret", kept)
    assert not passwords.proves("", None) and "cret" not in kept
    assert passwords.hashed("sécret") != kept
