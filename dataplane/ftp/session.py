"""What an FTP command does to a session, and how it is answered (RFC 959, 2428, 3659). Pure: the caller looks things
up, opens connections and moves bytes, as the decision says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dataplane.ftp import address, listing, paths
from dataplane.ftp.address import AddressRefused
from dataplane.ftp.command import Command
from dataplane.ftp.reply import lines, reply
from dataplane.ftp.tree import Entry
from dataplane.names import bytes_of, text_of
from state.datablock import UInt63

LIMIT_FAILURES = 3
"""Wrong passwords of one connection (RFC 2577 section 5)."""
LIMIT_STAT_BYTES, LIMIT_STAT_NAMES = 6 * 1024, listing.LIMIT_LOOKED
"""Of a listing that goes over the control connection."""
ANONYMOUS = ("anonymous", "ftp")
GREETING = reply(220, "takeover FTP server ready.")
_BEFORE_LOGIN = frozenset(("USER", "PASS", "QUIT", "HELP", "NOOP", "SYST", "FEAT", "OPTS"))
_LISTINGS = frozenset(("LIST", "NLST", "MLSD"))
UPLOADS = frozenset(("STOR", "APPE"))
_NOT_IMPLEMENTED = """
    ACCT SMNT REIN SITE STOU RNFR RNTO DELE RMD MKD XMKD XRMD AUTH PBSZ PROT ADAT CCC CONF ENC MIC LANG HOST LPRT LPSV
    MFMT MFCT MFF
"""
_FEATURES = (
    "EPRT",
    "EPSV",
    "MDTM",
    "MLST {}",
    "PASV",
    "REST STREAM",
    "SIZE",
    "TVFS",
    "UTF8",
)

Path = Annotated[str, Meta(max_length=paths.LIMIT_PATH)]


class Transfer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is to go over a data connection."""

    verb: Literal["RETR", "LIST", "NLST", "MLSD", "STOR", "APPE"]
    path: Path
    offset: UInt63 = 0
    """Of a file: where it begins. Of STOR: what is there before is kept."""
    pattern: Path = ""
    """Of a listing: only names like this; of a file, its name."""
    facts: tuple[str, ...] = ()


class Session(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(max_length=256)] = ""
    """Who is logged in, or has said its name."""
    logged_in: bool = False
    failures: Annotated[int, Meta(ge=0, le=LIMIT_FAILURES)] = 0
    folder: Path = "/"
    ascii: bool = True
    restart: UInt63 = 0
    """What REST said, for the next command."""
    epsv_only: bool = False
    remote: tuple[Annotated[str, Meta(max_length=64)], Annotated[int, Meta(ge=1, le=0xFFFF)]] | None = None
    """What PORT said, for the next transfer."""
    facts: tuple[str, ...] = listing.FACTS


@dataclass(frozen=True)
class Login:
    """Is it the password of this user? Then `logged_in` decides."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Passive:
    """Open a port, and answer with `passive_reply`."""

    extended: bool


@dataclass(frozen=True)
class Active:
    """Forget what was opened for a data connection: the session has a remote address for it now."""


@dataclass(frozen=True)
class Begin:
    """The transfer, once there is a data connection. There is no reply yet."""

    transfer: Transfer


@dataclass(frozen=True)
class Abort:
    """ABOR: end what is under way, and say so."""


@dataclass(frozen=True)
class Status:
    """STAT: say how things are."""


@dataclass(frozen=True)
class Quit:
    """Close once everything is said."""


Action = Login | Passive | Active | Begin | Abort | Status | Quit


@dataclass(frozen=True)
class Decision:
    session: Session
    replies: bytes = b""
    action: Action | None = None


@dataclass(frozen=True)
class Facts:
    """What a decision may ask for. `find` and `names` are those of `tree.Tree`; `names` raises `OSError`."""

    client: str
    vip: str
    now: float
    find: Callable[[str], Entry | None]
    names: Callable[[str, int], list[str]]
    may_write: Callable[[str, str], bool]
    """May this user write this path?"""
    anonymous: bool = True
    """Do we let them in?"""


def decide(command: Command, session: Session, facts: Facts) -> Decision:
    """What the command does. REST holds for the very next command only, or for that after a data port was made."""
    verb = command.verb
    if verb in _NOT_IMPLEMENTED.split():
        return Decision(session, reply(502, f"{verb} is not implemented."))
    handler = _HANDLERS.get(verb)
    if handler is None:
        return Decision(session, reply(500, f"{verb} is not understood."))
    if not session.logged_in and verb not in _BEFORE_LOGIN:
        return Decision(session, reply(530, "Say USER and PASS first."))
    decision = handler(command, session, facts)
    keeps = ("REST", "PASV", "EPSV", "PORT", "EPRT", "NOOP", "TYPE")
    if verb not in keeps and decision.session.restart:
        return Decision(_with(decision.session, restart=0), decision.replies, decision.action)
    return decision


# --- who ---
def _user(command: Command, session: Session, facts: Facts) -> Decision:
    name = command.argument
    if not 1 <= len(name) <= 256:
        return Decision(session, reply(501, "USER NAME"))
    after = Session(user=name, failures=session.failures)
    if name.lower() in ANONYMOUS:
        if not facts.anonymous:
            return Decision(Session(failures=session.failures), reply(530, "Nobody is let in without a name."))
        return Decision(after, reply(331, "Anonymous it is: any password will do."))
    return Decision(after, reply(331, "And the password?"))


def _pass(command: Command, session: Session, facts: Facts) -> Decision:
    if session.logged_in:
        return Decision(session, reply(202, "You are logged in already."))
    if not session.user:
        return Decision(session, reply(503, "Say USER first."))
    if session.user.lower() in ANONYMOUS:
        return logged_in(session, True)
    password = bytes_of(command.argument).decode("utf-8", "surrogateescape")
    return Decision(session, action=Login(session.user, password))


def logged_in(session: Session, proven: bool) -> Decision:
    """The answer to PASS."""
    if proven:
        after = Session(user=session.user, logged_in=True, failures=session.failures)
        return Decision(after, reply(230, "You are logged in."))
    failures = session.failures + 1
    after = Session(failures=failures)
    if failures >= LIMIT_FAILURES:
        return Decision(after, reply(421, "Too many wrong passwords: goodbye."), Quit())
    return Decision(after, reply(530, "User or password is wrong."))


# --- where ---
def _cwd(command: Command, session: Session, facts: Facts) -> Decision:
    path = paths.resolve(session.folder, command.argument)
    entry = facts.find(path) if path is not None else None
    if path is None or entry is None or not entry.folder:
        return Decision(session, reply(550, "There is no such folder."))
    return Decision(_with(session, folder=path), reply(250, f"The folder is {path}"))


def _cdup(command: Command, session: Session, facts: Facts) -> Decision:
    return _cwd(Command("CWD", ".."), session, facts)


def _pwd(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, reply(257, f"{paths.quoted(session.folder)} is the folder."))


# --- parameters ---
def _type(command: Command, session: Session, facts: Facts) -> Decision:
    kind = command.argument.upper().split()
    if kind in (["A"], ["A", "N"]):
        return Decision(_with(session, ascii=True), reply(200, "Listings are text; files go as they are."))
    if kind in (["I"], ["L", "8"]):
        return Decision(_with(session, ascii=False), reply(200, "Everything goes as it is."))
    known = kind[:1] in (["A"], ["E"], ["L"], ["I"])
    return Decision(session, reply(504 if known else 501, "TYPE A or TYPE I"))


def _only(value: str, others: str, sentence: str) -> Callable[[Command, Session, Facts], Decision]:
    """Of MODE and STRU, the one value that is implemented."""

    def handler(command: Command, session: Session, facts: Facts) -> Decision:
        given = command.argument.upper()
        if given == value:
            return Decision(session, reply(200, sentence))
        return Decision(session, reply(504 if len(given) == 1 and given in others else 501, f"{command.verb} {value}"))

    return handler


def _rest(command: Command, session: Session, facts: Facts) -> Decision:
    given = command.argument
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        return Decision(session, reply(501, "REST OFFSET"))
    return Decision(_with(session, restart=int(given)), reply(350, f"The next transfer begins at {int(given)}."))


def _opts(command: Command, session: Session, facts: Facts) -> Decision:
    name, _, values = command.argument.partition(" ")
    if name.upper() == "UTF8" and values.upper() in ("", "ON"):
        return Decision(session, reply(200, "It is UTF-8, always."))
    if name.upper() == "MLST":
        wanted = tuple(fact for fact in listing.FACTS if fact in values.lower().split(";"))
        chosen = "".join(f"{fact};" for fact in wanted)
        return Decision(_with(session, facts=wanted), reply(200, f"MLST OPTS {chosen}".rstrip()))
    return Decision(session, reply(501, "OPTS UTF8 ON, or OPTS MLST FACT;FACT;"))


def _noop(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, reply(200, "Here I am."))


def _allo(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, reply(202, "There is no need for it."))


def _syst(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, reply(215, "UNIX Type: L8"))


def _feat(command: Command, session: Session, facts: Facts) -> Decision:
    """RFC 3659 section 7.8: facts with an asterisk are those that are said."""
    facts_said = "".join(f"{fact}{'*' if fact in session.facts else ''};" for fact in listing.FACTS)
    return Decision(session, lines(211, "Features:", [one.format(facts_said) for one in _FEATURES], "End"))


def _help(command: Command, session: Session, facts: Facts) -> Decision:
    if command.argument:
        known = command.argument.upper() in _HANDLERS
        return Decision(session, reply(214 if known else 502, f"{command.argument}: see RFC 959, 2428 and 3659"))
    verbs = sorted(_HANDLERS)
    rows = [" ".join(verbs[i : i + 10]) for i in range(0, len(verbs), 10)]
    return Decision(session, lines(214, "These are known:", rows, "That is all."))


def _quit(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, reply(221, "Goodbye."), Quit())


# --- data connections ---
def _pasv(command: Command, session: Session, facts: Facts) -> Decision:
    if session.epsv_only:
        return Decision(session, reply(501, "You said EPSV ALL."))
    if address.family(facts.vip) != 1:
        return Decision(session, reply(425, "PASV cannot name an IPv6 address: use EPSV."))
    return Decision(_with(session, remote=None), action=Passive(extended=False))


def _epsv(command: Command, session: Session, facts: Facts) -> Decision:
    try:
        if address.read_epsv(command.argument, facts.client):
            return Decision(_with(session, epsv_only=True), reply(200, "Only EPSV from now on."))
    except AddressRefused as error:
        return Decision(session, reply(error.code, str(error)))
    return Decision(_with(session, remote=None), action=Passive(extended=True))


def passive_reply(extended: bool, vip: str, port: int) -> bytes:
    return reply(229, address.epsv(port)) if extended else reply(227, address.pasv(vip, port))


def _port(command: Command, session: Session, facts: Facts) -> Decision:
    if session.epsv_only:
        return Decision(session, reply(501, "You said EPSV ALL."))
    read = address.read_port if command.verb == "PORT" else address.read_eprt
    try:
        remote = read(command.argument, facts.client)
    except AddressRefused as error:
        return Decision(session, reply(error.code, str(error)))
    return Decision(_with(session, remote=remote), reply(200, "That is where data will go."), Active())


# --- files ---
def _retr(command: Command, session: Session, facts: Facts) -> Decision:
    entry = _file(command, session, facts)
    if entry is None:
        return Decision(session, reply(550, "There is no such file."))
    if session.restart > entry.size:
        return Decision(session, reply(554, f"The file has {entry.size} bytes."))
    return Decision(session, action=Begin(Transfer("RETR", entry.path, session.restart)))


def _size(command: Command, session: Session, facts: Facts) -> Decision:
    entry = _file(command, session, facts)
    return Decision(session, reply(550, "There is no such file.") if entry is None else reply(213, str(entry.size)))


def _mdtm(command: Command, session: Session, facts: Facts) -> Decision:
    entry = _file(command, session, facts)
    if entry is None:
        return Decision(session, reply(550, "There is no such file."))
    return Decision(session, reply(213, listing.time_val(entry.mtime_ns)))


def _file(command: Command, session: Session, facts: Facts) -> Entry | None:
    path = paths.resolve(session.folder, command.argument) if command.argument else None
    entry = facts.find(path) if path is not None else None
    return entry if entry is not None and not entry.folder else None


def _store(command: Command, session: Session, facts: Facts) -> Decision:
    if not command.argument or command.argument.endswith("/"):
        return Decision(session, reply(501, f"{command.verb} PATH"))
    path = paths.resolve(session.folder, command.argument)
    if path is None or len(bytes_of(paths.parent(path)[1])) > 255:
        return Decision(session, reply(553, "No file can have this name."))
    if not facts.may_write(session.user, path):
        return Decision(session, reply(550, "You may not write there."))
    entry, folder = facts.find(path), facts.find(paths.parent(path)[0])
    if folder is None or not folder.folder or (entry is not None and entry.folder):
        return Decision(session, reply(553, "There is no such folder, or this is one."))
    size = entry.size if entry is not None else 0
    if command.verb == "APPE":
        return Decision(session, action=Begin(Transfer("APPE", path, size)))
    if session.restart > size:
        return Decision(session, reply(554, f"The file has {size} bytes."))
    return Decision(session, action=Begin(Transfer("STOR", path, session.restart)))


def _list(command: Command, session: Session, facts: Facts) -> Decision:
    found = _listed(command, session, facts)
    if found is None:
        return Decision(session, reply(550, "There is no such folder."))
    return Decision(session, action=Begin(found))


def _mlsd(command: Command, session: Session, facts: Facts) -> Decision:
    """RFC 3659 section 7.2.1: what is no folder is 501, what is not there 550."""
    path = paths.resolve(session.folder, command.argument)
    entry = facts.find(path) if path is not None else None
    if entry is None:
        return Decision(session, reply(550, "There is no such folder."))
    if not entry.folder:
        return Decision(session, reply(501, "This is no folder."))
    return Decision(session, action=Begin(Transfer("MLSD", entry.path, facts=session.facts)))


def _listed(command: Command, session: Session, facts: Facts) -> Transfer | None:
    """Folder and names that a listing's argument means: `-la`, `folder`, `*.txt`, `folder/file`; None: nothing."""
    words = command.argument
    while words.startswith("-"):  # as clients give to `ls`
        words = words.partition(" ")[2].lstrip()
    verb: Literal["LIST", "NLST", "MLSD"] = "NLST" if command.verb == "NLST" else "LIST"
    path = paths.resolve(session.folder, words)
    if path is None:
        return None
    entry = facts.find(path)
    if entry is not None and entry.folder:
        return Transfer(verb, path, facts=session.facts)
    folder, name = paths.parent(path)
    known = listing.is_pattern(name) and listing.is_affordable(name) and _is_folder(folder, facts)
    if entry is None and not known:
        return None
    return Transfer(verb, folder, pattern=name if entry is None else _literally(name), facts=session.facts)


def _literally(name: str) -> str:
    return "".join(f"[{character}]" if listing.is_pattern(character) else character for character in name)


def _is_folder(path: str, facts: Facts) -> bool:
    entry = facts.find(path)
    return entry is not None and entry.folder


def _mlst(command: Command, session: Session, facts: Facts) -> Decision:
    path = paths.resolve(session.folder, command.argument)
    entry = facts.find(path) if path is not None else None
    if entry is None:
        return Decision(session, reply(550, "There is no such file or folder."))
    kind = "cdir" if entry.folder and entry.path == session.folder else None
    line = f"{listing.facts(entry, session.facts, kind)} {entry.path}"
    return Decision(session, lines(250, "Listing", [line], "End"))


def _stat(command: Command, session: Session, facts: Facts) -> Decision:
    if not command.argument:
        return Decision(session, action=Status())
    found = _listed(command, session, facts)
    if found is None:
        return Decision(session, reply(450, "There is no such file or folder."))
    try:
        names = facts.names(found.path, LIMIT_STAT_NAMES + 1)
    except OSError as error:
        return Decision(session, reply(450, f"{found.path} cannot be read: {error.strerror or 'it fails'}"))
    text, last = listing.chunk(
        "LIST",
        found.path,
        names[:LIMIT_STAT_NAMES],
        facts.find,
        pattern=listing.matcher(found.pattern),
        after="",
        wanted=session.facts,
        now=facts.now,
        least=LIMIT_STAT_BYTES,
    )
    found_lines = [text_of(one) for one in text.split(b"\r\n")[:-1]]
    end = "End" if last is None and len(names) <= LIMIT_STAT_NAMES else "Not all: use LIST."
    return Decision(session, lines(213, f"Status of {found.path}", found_lines, end))


def status(session: Session, facts: Facts, transfer: str) -> bytes:
    """The answer to STAT. `transfer`: what is under way, in words."""
    who = f"Logged in as {session.user}" if session.logged_in else "Not logged in"
    kind = "ASCII" if session.ascii else "Image"
    about = [f"Connected to {facts.vip} from {facts.client}", who, f"TYPE: {kind}; STRU: File; MODE: Stream", transfer]
    return lines(211, "takeover FTP server status:", about, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(facts.now)))


def _abor(command: Command, session: Session, facts: Facts) -> Decision:
    return Decision(session, action=Abort())


def _with(session: Session, **changes: object) -> Session:
    return msgspec.structs.replace(session, **changes)


_HANDLERS: dict[str, Callable[[Command, Session, Facts], Decision]] = {
    "ABOR": _abor,
    "ALLO": _allo,
    "APPE": _store,
    "CDUP": _cdup,
    "CWD": _cwd,
    "EPRT": _port,
    "EPSV": _epsv,
    "FEAT": _feat,
    "HELP": _help,
    "LIST": _list,
    "MDTM": _mdtm,
    "MLSD": _mlsd,
    "MLST": _mlst,
    "MODE": _only("S", "BC", "Bytes go as they are, and the end is the end."),
    "NLST": _list,
    "NOOP": _noop,
    "OPTS": _opts,
    "PASS": _pass,
    "PASV": _pasv,
    "PORT": _port,
    "PWD": _pwd,
    "QUIT": _quit,
    "REST": _rest,
    "RETR": _retr,
    "SIZE": _size,
    "STAT": _stat,
    "STOR": _store,
    "STRU": _only("F", "RP", "Files have no records."),
    "SYST": _syst,
    "TYPE": _type,
    "USER": _user,
}
