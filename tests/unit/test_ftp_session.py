"""What FTP commands do to a session, and how they are answered."""

from __future__ import annotations

import fnmatch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.ftp import session as session_
from dataplane.ftp.command import Command, Malformed, read_line
from dataplane.ftp.session import Abort, Active, Begin, Decision, Facts, Login, Passive, Quit, Session, Status, Transfer
from dataplane.ftp.tree import Entry

_FILES = {
    "/": Entry("/", True, 0, 0),
    "/folder": Entry("/folder", True, 0, 10**9),
    "/folder/file": Entry("/folder/file", False, 1000, 10**9),
    "/object.bin": Entry("/object.bin", False, 5000, 1_767_225_600 * 10**9),
    "/in": Entry("/in", True, 0, 0),
    "/in/old": Entry("/in/old", False, 100, 0),
}
ANN = Session(user="ann", logged_in=True)


def facts(vip: str = "10.0.0.100", client: str = "10.0.0.7", anonymous: bool = True) -> Facts:
    return Facts(
        client=client,
        vip=vip,
        now=1_767_225_600.0,
        find=_FILES.get,
        names=lambda folder, limit: ["file"] if folder == "/folder" else [],
        may_write=lambda user, path: user == "ann" and path.startswith("/in/"),
        anonymous=anonymous,
    )


def decide(line: str, session: Session = ANN, given: Facts | None = None) -> Decision:
    command = read_line(line.encode())
    assert isinstance(command, Command)
    return session_.decide(command, session, given or facts())


def code(decision: Decision) -> int:
    return int(decision.replies[:3] or 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NOOP", 200), ("SYST", 215), ("FEAT", 211), ("HELP", 214), ("HELP RETR", 214), ("HELP XYZ", 502),
        ("OPTS UTF8 ON", 200), ("OPTS MLST size;", 200), ("OPTS XYZ", 501), ("ALLO 100", 202),
        ("TYPE I", 200), ("TYPE A", 200), ("TYPE A N", 200), ("TYPE L 8", 200), ("TYPE E", 504), ("TYPE L 7", 504),
        ("TYPE X", 501), ("TYPE", 501), ("MODE S", 200), ("MODE B", 504), ("MODE X", 501), ("STRU F", 200),
        ("STRU R", 504), ("STRU", 501), ("PWD", 257), ("CWD folder", 250), ("CWD /object.bin", 550),
        ("CWD none", 550), ("CDUP", 250), ("SIZE object.bin", 213), ("SIZE folder", 550), ("SIZE", 550),
        ("MDTM object.bin", 213), ("MDTM none", 550), ("MLST", 250), ("MLST object.bin", 250), ("MLST none", 550),
        ("REST 100", 350), ("REST -1", 501), ("REST x", 501), ("REST " + "9" * 30, 501), ("STAT folder", 213),
        ("STAT none", 450), ("RETR none", 550), ("RETR folder", 550), ("RETR", 550), ("RETR ../../etc/passwd", 550),
        ("LIST none", 550), ("MLSD object.bin", 501), ("MLSD none", 550), ("MLSD *.bin", 550),
        ("STOR /object.bin", 550), ("STOR in/", 501),
        ("STOR", 501), ("APPE /folder/x", 550), ("STOR /in/none/x", 553), ("STOR /in/" + "x" * 300, 553),
        ("MKD x", 502), ("DELE object.bin", 502), ("AUTH TLS", 502), ("SITE CHMOD", 502), ("XYZ", 500),
        ("PORT 1,2,3,4,100,1", 504), ("PORT x", 501), ("EPRT |2|::1|2000|", 522), ("EPSV 2", 522), ("EPSV x", 501),
        ("PASS x", 202), ("USER", 501),
    ],
)  # fmt: skip
def test_how_it_is_answered(line: str, expected: int) -> None:
    decision = decide(line)
    assert (code(decision), decision.action) == (expected, None), decision


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("PASV", Passive(extended=False)),
        ("EPSV", Passive(extended=True)),
        ("EPSV 1", Passive(extended=True)),
        ("PORT 10,0,0,7,100,1", Active()),
        ("EPRT |1|10.0.0.7|25601|", Active()),
        ("RETR object.bin", Begin(Transfer("RETR", "/object.bin"))),
        ("LIST -la folder", Begin(Transfer("LIST", "/folder", facts=session_.listing.FACTS))),
        ("LIST -a", Begin(Transfer("LIST", "/", facts=session_.listing.FACTS))),
        ("NLST *.bin", Begin(Transfer("NLST", "/", pattern="*.bin", facts=session_.listing.FACTS))),
        ("LIST object.bin", Begin(Transfer("LIST", "/", pattern="object.bin", facts=session_.listing.FACTS))),
        ("MLSD", Begin(Transfer("MLSD", "/", facts=session_.listing.FACTS))),
        ("STOR /in/new", Begin(Transfer("STOR", "/in/new"))),
        ("APPE /in/old", Begin(Transfer("APPE", "/in/old", 100))),
        ("ABOR", Abort()),
        ("STAT", Status()),
        ("QUIT", Quit()),
    ],
)
def test_what_is_to_be_done(line: str, action: object) -> None:
    assert decide(line).action == action


@pytest.mark.parametrize("pattern", ["*" + "a" * 255, "[a-z]" * 800, "*" * 17, "a*" * 17])
@pytest.mark.parametrize("verb", ["LIST", "NLST", "STAT"])
def test_a_pattern_that_takes_long_to_compile_matches_nothing(
    verb: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_.listing, "matcher", None)
    assert code(decide(f"{verb} {pattern}")) == (450 if verb == "STAT" else 550)


def test_a_pattern_is_compiled_once_and_kept_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, translate = [], fnmatch.translate
    monkeypatch.setattr(fnmatch, "translate", lambda pattern: compiled.append(pattern) or translate(pattern))
    kept = fnmatch._compile_pattern.cache_info().misses  # type: ignore[attr-defined]
    assert b"file" in decide("STAT /folder/f*e").replies
    assert compiled == ["f*e"] and fnmatch._compile_pattern.cache_info().misses == kept  # type: ignore[attr-defined]


def test_features_say_which_facts_are_said() -> None:
    assert b"\r\n MLST type*;size*;modify*;perm*;\r\n" in decide("FEAT").replies
    chosen = decide("OPTS MLST size;type;").session
    assert b"\r\n MLST type*;size*;modify;perm;\r\n" in decide("FEAT", chosen).replies
    assert b"\r\n MLST type;size;modify;perm;\r\n" in decide("FEAT", decide("OPTS MLST").session).replies


def test_rest_holds_for_one_transfer() -> None:
    session = decide("REST 1000").session
    for line in ("TYPE I", "PASV", "NOOP"):
        session = decide(line, session).session
    decision = decide("RETR object.bin", session)
    assert decision.action == Begin(Transfer("RETR", "/object.bin", 1000)) and decision.session.restart == 0
    assert decide("PWD", session).session.restart == 0
    assert code(decide("RETR folder/file", decide("REST 1001").session)) == 554
    assert decide("STOR /in/old", decide("REST 50").session).action == Begin(Transfer("STOR", "/in/old", 50))
    assert code(decide("STOR /in/old", decide("REST 101").session)) == 554


def test_nothing_but_the_way_in_is_open_before_login() -> None:
    for verb in sorted(session_._HANDLERS):
        decision = decide(verb, Session())
        assert (code(decision) == 530) == (verb not in session_._BEFORE_LOGIN), verb


def test_anybody_may_come_in_without_a_name_if_the_configuration_says_so() -> None:
    decision = decide("USER Anonymous", Session())
    assert code(decision) == 331
    decision = decide("PASS me@home", decision.session)
    assert code(decision) == 230 and decision.session.logged_in
    assert code(decide("USER ftp", Session(), facts(anonymous=False))) == 530
    assert code(decide("PASS x", Session())) == 503


def test_a_password_is_asked_for_and_three_wrong_ones_are_enough() -> None:
    session = Session()
    for expected in (530, 530, 421):
        session = decide("USER ann", session).session
        decision = decide("PASS secret", session)
        assert decision.action == Login("ann", "secret") and decision.replies == b""
        assert "secret" not in repr(decision)
        decision = session_.logged_in(session, proven=False)
        assert code(decision) == expected
        session = decision.session
    assert decision.action == Quit()
    assert session_.logged_in(Session(user="ann", failures=1), proven=True).session.logged_in


def test_epsv_all_is_for_good() -> None:
    session = decide("EPSV ALL").session
    for line in ("PASV", "PORT 10,0,0,7,100,1", "EPRT |1|10.0.0.7|25601|"):
        assert code(decide(line, session)) == 501
    assert decide("EPSV", session).action == Passive(extended=True)


def test_ipv6_has_its_own_commands() -> None:
    six = facts("fd00::100", "fd00::7")
    assert code(decide("PASV", given=six)) == 425
    assert code(decide("EPSV 1", given=six)) == 522
    assert decide("EPRT |2|fd00::7|25601|", given=six).session.remote == ("fd00::7", 25601)


def test_a_new_port_takes_the_place_of_the_old_one() -> None:
    session = decide("PORT 10,0,0,7,100,1").session
    assert session.remote == ("10.0.0.7", 25601)
    assert decide("PASV", session).session.remote is None


_LINES = st.builds(
    lambda verb, argument: f"{verb} {argument}".encode(),
    st.sampled_from([*session_._HANDLERS, "MKD", "XYZ"]),
    st.text(max_size=30) | st.sampled_from(["folder", "object.bin", "-la *", "ALL", "|1|10.0.0.7|25601|", "I", "100"]),
)


@given(st.lists(_LINES, max_size=12))
def test_no_dialogue_raises_and_every_session_fits_into_a_checkpoint(dialogue: list[bytes]) -> None:
    """A command is answered at once, or by what it starts."""
    session = ANN
    for line in dialogue:
        command = read_line(line)
        if isinstance(command, Malformed):
            continue
        decision = session_.decide(command, session, facts())
        assert decision.replies or decision.action is not None
        assert not decision.replies or (decision.replies[:3].isdigit() and decision.replies.endswith(b"\r\n"))
        session = decision.session
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(session), type=Session) == session
        if isinstance(decision.action, Begin):
            transfer = decision.action.transfer
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(transfer), type=Transfer) == transfer
            assert transfer.verb not in session_.UPLOADS or session.user == "ann"
