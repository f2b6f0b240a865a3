"""FTP clients that know nothing of all this, whose server dies: in a transfer, between two, and between the answer that
names a port and the connection to it. They are told not to try again: what they have is whole without."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.ftp.transfer import UPLOAD_LOST
from tests.fate import taken_over
from topologies import Lab
from topologies.lab import FTP_PASSWORD, FTP_USER

SIZE = 48 << 20
FILES = 24
NAMES = 3000
ODD = [b"caf\xe9", b"a\tb", b"\xff\xfe", b"\xef\xbe\x80", "plainly é".encode()]
"""Names that are not UTF-8, or have a TAB, or bytes that Telnet takes for its own."""
_ONCE = (
    "set net:max-retries 1; set net:persist-retries 0; set net:timeout 20; set ftp:ssl-allow no; set cmd:fail-exit yes"
)


@pytest.fixture(scope="module")
def docroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own: a large file, a folder of files, one of many names, and one for uploads."""
    root = tmp_path_factory.mktemp("root")
    source = random.Random(21)
    (root / "object.bin").write_bytes(source.randbytes(SIZE))
    for folder in ("files/deeper", "names", "incoming"):
        (root / folder).mkdir(parents=True)
    for number in range(FILES):
        folder = root / "files" / ("deeper" if number % 3 == 0 else "")
        (folder / f"file {number:02}.bin").write_bytes(source.randbytes(1 << 20))
    for place, odd in enumerate(ODD):
        folder = os.fsencode(root / "odd") + b"/" + odd
        os.makedirs(folder)
        for other in ODD:
            Path(os.fsdecode(folder + b"/" + other)).write_bytes(source.randbytes((1 << 18) + place))
    for number in range(NAMES):
        (root / "names" / f"{number:04}-{'x' * 200}").touch()
    return root


@pytest.fixture(scope="module")
def lab(docroot: Path) -> Iterator[Lab]:
    with Lab(servers=3, clients=2, docroot=str(docroot)) as running:
        yield running


@pytest.fixture(autouse=True)
def healed(lab: Lab) -> Iterator[None]:
    """Every server is up again after a test that kills some."""
    yield
    heal(lab)
    lab.until(lambda: not lab.connections(), "connections remain when their clients are gone")
    lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")


def heal(lab: Lab) -> None:
    for name in lab.status()["failed"]:
        lab.heal(name)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def owner(lab: Lab) -> str:
    """The server that has the FTP connections. There is one client at a time."""
    (name,) = {str(c["server"]) for c in lab.connections()}
    return name


def die(lab: Lab, how: str = "kill") -> dict[str, Any]:
    """The owner does; returns when all is decided."""
    before = len(lab.takeovers())
    lab.fail(owner(lab), how)
    return taken_over(lab, before)


def wait_for_size(lab: Lab, path: Path, size: int) -> None:
    lab.until(lambda: path.exists() and path.stat().st_size >= size, f"{path} does not grow")


def said(dialogue: str) -> list[int]:
    """The codes of replies, as curl and lftp show them."""
    return [int(code) for code in re.findall(r"^(?:<|<---) (\d{3}) ", dialogue, re.MULTILINE)]


# --- in a transfer ---
@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("vip", []),
        ("vip", ["--disable-epsv"]),
        ("vip", ["--ftp-port", "-"]),
        ("vip6", []),
        ("vip6", ["--ftp-port", "-"]),
    ],
    ids=["epsv", "pasv", "active", "ipv6-epsv", "ipv6-active"],
)
def test_curl_gets_a_file_whole_although_its_server_dies(
    lab: Lab, docroot: Path, tmp_path: Path, host: str, options: list[str]
) -> None:
    out = tmp_path / "out"
    command = ["curl", "-v", "-sS", "--limit-rate", "24M", "--max-time", "30", *options, "-o", str(out)]
    curl = lab.popen("c1", [*command, f"ftp://{host}/object.bin"], stderr=subprocess.PIPE, text=True)
    wait_for_size(lab, out, SIZE // 4)
    takeover = die(lab)
    dialogue = curl.communicate(timeout=40)[1]
    assert curl.returncode == 0, dialogue
    assert (takeover["resumed"], takeover["reset"]) == (2, {})
    assert digest(out) == digest(docroot / "object.bin")
    codes = said(dialogue)
    assert [code for code in codes if code in (150, 226)] == [150, 226], dialogue
    assert not [code for code in codes if code >= 400]


def test_a_transfer_from_the_middle_goes_on_there(lab: Lab, docroot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = (docroot / "object.bin").read_bytes()
    out.write_bytes(whole[: SIZE // 3])
    command = ["curl", "-sS", "--limit-rate", "16M", "--max-time", "30", "-C", "-", "-o", str(out)]
    curl = lab.popen("c1", [*command, "ftp://vip/object.bin"], stderr=subprocess.PIPE, text=True)
    wait_for_size(lab, out, SIZE // 2)
    die(lab)
    assert curl.wait(timeout=40) == 0
    assert out.read_bytes() == whole


def test_a_server_that_ends_in_good_order_leaves_a_transfer_to_its_heir(
    lab: Lab, docroot: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["curl", "-v", "-sS", "--limit-rate", "12M", "--max-time", "30", "-o", str(out), "ftp://vip/object.bin"]
    curl = lab.popen("c1", command, stderr=subprocess.PIPE, text=True)
    wait_for_size(lab, out, SIZE // 8)
    takeover = die(lab, "stop")
    dialogue = curl.communicate(timeout=40)[1]
    assert (curl.returncode, takeover["resumed"], takeover["reset"]) == (0, 2, {}), dialogue
    assert digest(out) == digest(docroot / "object.bin")
    assert [code for code in said(dialogue) if code >= 400 or code in (150, 226)] == [150, 226], dialogue


# --- between transfers ---
class Lftp:
    """One lftp session over a pipe. `dialogue` has what the server said."""

    def __init__(self, lab: Lab, folder: Path, *settings: str) -> None:
        self.dialogue_path = folder / "dialogue"
        pipe = subprocess.PIPE
        self.process = lab.popen("c1", ["lftp", "--norc"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder)
        self.order(f"debug -o {self.dialogue_path} 5; {_ONCE}", *settings, "open ftp://vip")

    def order(self, *commands: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join(commands) + "\n")
        self.process.stdin.flush()

    def done(self, *commands: str) -> None:
        """Carry them out; returns when that is done."""
        assert self.process.stdout is not None
        self.order(*commands, "echo done")
        line = self.process.stdout.readline()
        assert line == "done\n", (line, self.dialogue())

    def dialogue(self) -> str:
        return self.dialogue_path.read_text(errors="replace")

    def end(self) -> str:
        """Everything that the server said, if all went well and nothing was begun anew."""
        assert self.process.stdin is not None
        self.process.stdin.write("exit\n")
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0, self.dialogue()
        dialogue = self.dialogue()
        assert said(dialogue).count(220) == 1, dialogue
        return dialogue


def test_lftp_gets_several_files_in_one_session_with_deaths_between_them(
    lab: Lab, docroot: Path, tmp_path: Path
) -> None:
    session = Lftp(lab, tmp_path)
    session.done("cd files", "get 'file 01.bin'")
    for name in ("file 02.bin", "file 04.bin"):
        takeover = die(lab)
        assert takeover["reset"] == {} and takeover["resumed"] >= 1
        heal(lab)
        session.done(f"get '{name}'")
    session.end()
    for name in ("file 01.bin", "file 02.bin", "file 04.bin"):
        assert digest(tmp_path / name) == digest(docroot / "files" / name)


def wait_inside_a_file(lab: Lab, copy: Path, original: Path, count: int) -> None:
    """Until there are so many files and the last one is not half there: nothing is said for a while then.

    A command that only the dead server's kernel had would be lost with it.
    """

    def inside() -> bool:
        files = [path for path in copy.rglob("*") if path.is_file()]
        if len(files) < count:
            return False
        last = max(files, key=lambda path: path.stat().st_mtime_ns)
        return 0 < last.stat().st_size < (original / last.relative_to(copy)).stat().st_size // 2

    lab.until(inside, "the mirror does not grow")


def test_lftp_mirrors_a_folder_with_two_deaths_on_the_way(lab: Lab, docroot: Path, tmp_path: Path) -> None:
    session = Lftp(lab, tmp_path, "set net:limit-rate 4M; set net:limit-max 256K")
    session.order("mirror files copy")
    for count in (4, 12):
        wait_inside_a_file(lab, tmp_path / "copy", docroot / "files", count)
        takeover = die(lab)
        assert takeover["reset"] == {}, takeover
        heal(lab)
    dialogue = session.end()
    assert said(dialogue).count(150) == said(dialogue).count(226) >= FILES
    original = {path.relative_to(docroot / "files"): digest(path) for path in (docroot / "files").rglob("file*")}
    copied = {path.relative_to(tmp_path / "copy"): digest(path) for path in (tmp_path / "copy").rglob("file*")}
    assert copied == original


def test_lftp_mirrors_names_of_any_bytes_with_two_deaths_on_the_way(lab: Lab, docroot: Path, tmp_path: Path) -> None:
    """Made UTF-8 of neither by lftp nor by the server."""
    session = Lftp(lab, tmp_path, "set net:limit-rate 1M; set net:limit-max 64K")
    session.order("mirror odd copy")
    for count in (4, 14):
        wait_inside_a_file(lab, tmp_path / "copy", docroot / "odd", count)
        takeover = die(lab)
        assert takeover["reset"] == {}, takeover
        heal(lab)
    session.end()
    original = contents(docroot / "odd")
    assert len(original) == len(ODD) ** 2 and contents(tmp_path / "copy") == original


def contents(folder: Path) -> dict[bytes, bytes]:
    """Files by their path's bytes."""
    return {os.fsencode(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- between the answer that names a port and the connection to it, and whatever else needs a client that waits ---
_CLIENT = r"""
import ftplib, hashlib, json, socket, sys
ftp = ftplib.FTP(timeout=20)
data = None
def carry_out(order, words):
    global data
    if order == "open":
        ftp.connect(words[0], 21)
        return ftp.login(*words[1:])
    if order == "say":
        return ftp.sendcmd(" ".join(words))
    if order == "passive":
        ftp.told = ftp.makepasv()
        return ftp.told[1]
    if order == "connect":
        data = socket.create_connection((ftp.host, ftp.told[1]), 20)
        return ""
    if order == "read":
        want, count, digest = int(words[0]), 0, hashlib.sha256()
        while count < want and (more := data.recv(min(want - count, 1 << 16))):
            count += len(more)
            digest.update(more)
        return [count, digest.hexdigest()]
    if order == "text":
        with data.makefile("rb") as file:
            return file.read().decode()
    if order == "send":
        data.sendall(b"u" * int(words[0]))
        return ""
    if order == "close":
        data.close()
        return ""
    if order == "reply":
        return ftp.getresp()
    if order == "abort":
        return ftp.abort()
for line in sys.stdin:
    order, *words = line.split()
    try:
        answer = carry_out(order, words)
    except (OSError, EOFError, ftplib.Error) as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


class Scripted:
    """Python's ftplib in a host, one step at a time. An exception's name and words are an answer, too."""

    def __init__(self, lab: Lab, host: str = "c1", vip: str = "vip", user: tuple[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        self.process = lab.popen(host, [sys.executable, "-c", _CLIENT], stdin=pipe, stdout=pipe, text=True)
        assert self("open", vip, *(user or ())).startswith("230 ")

    def __call__(self, order: str, *words: object) -> Any:
        self.order(order, *words)
        return self.answer()

    def order(self, order: str, *words: object) -> None:
        assert self.process.stdin is not None
        print(order, *words, file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        import json

        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def scripted(lab: Lab) -> Iterator[Any]:
    made: list[Scripted] = []

    def make(*arguments: Any, **more: Any) -> Scripted:
        made.append(Scripted(lab, *arguments, **more))
        return made[-1]

    yield make
    for each in made:
        each.end()


def beginning(docroot: Path, count: int = SIZE) -> list[object]:
    with open(docroot / "object.bin", "rb") as file:
        return [count, hashlib.sha256(file.read(count)).hexdigest()]


@pytest.mark.parametrize("vip", ["vip", "vip6"])
@pytest.mark.parametrize("waits", [True, False], ids=["after the takeover", "at the death"])
def test_the_port_that_a_client_was_told_is_open_at_the_heir(
    lab: Lab, docroot: Path, scripted: Any, vip: str, waits: bool
) -> None:
    client = scripted(vip=vip)
    assert client("say", "TYPE", "I").startswith("200 ")
    port = client("passive")
    lab.until(
        lambda: [p["local_port"] for c in lab.connections() for p in c["bundle"]["parts"]] == [port],
        "the port is not part of the bundle",
    )
    before = len(lab.takeovers())
    lab.fail(owner(lab), "kill")
    if waits:
        taken_over(lab, before)
    assert client("connect") == ""
    assert client("say", "RETR", "object.bin").startswith("150 ")
    assert client("read", SIZE + 1) == beginning(docroot)
    client("close")
    assert client("reply").startswith("226 ")
    takeover = taken_over(lab, before)
    assert (takeover["resumed"], takeover["reset"]) == (1, {})
    assert client("say", "NOOP").startswith("200 ")


def test_a_data_connection_that_has_nothing_to_do_yet_survives(lab: Lab, docroot: Path, scripted: Any) -> None:
    client = scripted()
    client("passive")
    client("connect")
    lab.until(lambda: len(lab.connections()) == 2, "the data connection is not stored")
    assert die(lab)["reset"] == {}
    assert client("say", "RETR", "object.bin").startswith("150 ")
    assert client("read", SIZE + 1) == beginning(docroot)


def test_a_session_is_the_same_at_the_heir(lab: Lab, docroot: Path, scripted: Any) -> None:
    """Folder, user, and where the next transfer is to begin."""
    client = scripted()
    assert client("say", "CWD", "files/deeper").startswith("250 ")
    client("passive")
    assert client("say", "REST", 1000).startswith("350 ")
    lab.until(lambda: all(c["state"] == "established" for c in lab.connections()), "no checkpoint")
    die(lab)
    assert client("say", "PWD").startswith('257 "/files/deeper"')
    client("passive")
    client("connect")
    assert client("say", "REST", 1000).startswith("350 ")
    heal(lab)
    die(lab)
    assert client("say", "RETR file 00.bin").startswith("150 ")
    whole = (docroot / "files/deeper/file 00.bin").read_bytes()[1000:]
    assert client("read", 1 << 20) == [len(whole), hashlib.sha256(whole).hexdigest()]


def test_a_listing_goes_on_at_the_heir(lab: Lab, docroot: Path, scripted: Any) -> None:
    """Of more names than a checkpoint could hold; its reader waits until its server is dead."""
    client = scripted()
    client("passive")
    client("connect")
    assert client("say", "NLST", "names").startswith("150 ")
    assert client("read", 100)[0] == 100
    assert die(lab)["reset"] == {}
    heard = client("text").split("\r\n")
    assert [name[:4] for name in heard[1:-1]] == [f"{number:04}" for number in range(1, NAMES)]
    client("close")
    assert client("reply").startswith("226 ")


def test_abor_ends_a_transfer_and_not_the_session(lab: Lab, docroot: Path, scripted: Any) -> None:
    client = scripted()
    client("passive")
    client("connect")
    assert client("say", "RETR", "object.bin").startswith("150 ")
    assert client("abort").startswith("426 ")
    assert client("reply").startswith("226 ")
    assert die(lab)["reset"] == {}, "what came as urgent data counts as input"
    assert client("say", "NOOP").startswith("200 ")
    client("passive")
    client("connect")
    assert client("say", "RETR", "object.bin").startswith("150 ")
    assert client("read", SIZE + 1) == beginning(docroot)


# --- uploads ---
def test_an_upload_is_whole(lab: Lab, docroot: Path, tmp_path: Path) -> None:
    up = ["curl", "-sS", "--max-time", "20", "-T", str(docroot / "object.bin")]
    url = f"ftp://{FTP_USER}:{FTP_PASSWORD}@vip/incoming/up.bin"
    assert lab.run("c1", [*up, url], check=False).returncode == 0
    assert digest(docroot / "incoming/up.bin") == digest(docroot / "object.bin")
    (tmp_path / "more").write_bytes(b"more")
    assert lab.run("c1", ["curl", "-sS", "-a", "-T", str(tmp_path / "more"), url], check=False).returncode == 0
    assert (docroot / "incoming/up.bin").read_bytes() == (docroot / "object.bin").read_bytes() + b"more"
    for name in ("incoming/x", "up.bin"):  # nobody in particular, and a folder that is not for uploads
        user = "" if name == "incoming/x" else f"{FTP_USER}:{FTP_PASSWORD}@"
        refused = lab.run("c1", [*up, f"ftp://{user}vip/{name}"], capture_output=True, text=True, check=False)
        assert (refused.returncode, (docroot / name).exists()) == (25, False), refused.stderr
    (docroot / "incoming/up.bin").unlink()


@pytest.mark.parametrize("busy", [True, False])
def test_an_upload_whose_server_dies_is_reset_with_its_reason(
    lab: Lab, docroot: Path, scripted: Any, tmp_path: Path, busy: bool
) -> None:
    """Whether its client is sending, or has said what it had to say and only not ended it."""
    (docroot / "incoming/old.bin").write_bytes(b"as it was")
    before = len(lab.takeovers())
    if busy:
        command = ["curl", "-sS", "--limit-rate", "12M", "--max-time", "30", "-T", str(docroot / "object.bin")]
        url = f"ftp://{FTP_USER}:{FTP_PASSWORD}@vip/incoming/old.bin"
        curl = lab.popen("c1", [*command, url], stderr=subprocess.PIPE, text=True)
        lab.until(lambda: len(lab.connections()) == 2, "there is no data connection")
        lab.until(lambda: uploaded(lab) > SIZE // 8, "the upload does not go on")
        lab.fail(owner(lab), "kill")
        assert curl.wait(timeout=40) != 0
    else:
        client = scripted(user=(FTP_USER, FTP_PASSWORD))
        client("passive")
        client("connect")
        assert client("say", "STOR", "incoming/old.bin").startswith("150 ")
        client("send", 100_000)
        lab.until(lambda: uploaded(lab) == 100_000, "the upload did not arrive")
        lab.fail(owner(lab), "kill")
        taken_over(lab, before)
        assert client("say", "NOOP").startswith("ConnectionResetError")
    takeover = taken_over(lab, before)
    assert (takeover["resumed"], takeover["reset"]) == (0, {UPLOAD_LOST: 2})
    assert (docroot / "incoming/old.bin").read_bytes() == b"as it was"
    assert [path.name for path in (docroot / "incoming").iterdir()] == ["old.bin"]
    (docroot / "incoming/old.bin").unlink()


def uploaded(lab: Lab) -> int:
    """Bytes of input that the data connection's checkpoint counts."""
    data = [c["checkpoint"] for c in lab.connections() if c["checkpoint"]["protocol"] == "ftp-data"]
    return sum((each["rcv_nxt"] - each["irs"] - 1) % 2**32 for each in data)


_FTPLIB = r"""
import ftplib, hashlib, sys, time
verb, name, user, password, source = sys.argv[1:]
ftp = ftplib.FTP("vip", timeout=20)
ftp.login(user, password)
digest = hashlib.sha256()
def take(data):
    digest.update(data)
    time.sleep(0.001)
def show(data):
    print(len(data), flush=True)
    time.sleep(0.002)
try:
    if verb == "RETR":
        ftp.retrbinary("RETR " + name, take, 65536)
        print(digest.hexdigest())
    else:
        with open(source, "rb") as file:
            ftp.storbinary("STOR " + name, file, 65536, show)
    print(ftp.quit())
except (OSError, EOFError, ftplib.Error) as error:
    print(type(error).__name__, error)
"""


def ftplib(lab: Lab, verb: str, name: str, source: Path | str = "") -> subprocess.Popen[str]:
    """Python's own client, as its manual shows it."""
    command = [sys.executable, "-c", _FTPLIB, verb, name, FTP_USER, FTP_PASSWORD, str(source)]
    return lab.popen("c1", command, stdout=subprocess.PIPE, text=True)


def test_pythons_ftplib_gets_a_file_whole_although_its_server_dies(lab: Lab, docroot: Path) -> None:
    client = ftplib(lab, "RETR", "object.bin")
    lab.until(lambda: any(c["checkpoint"]["object"] for c in lab.connections()), "the transfer is not stored")
    takeover = die(lab)
    said = client.communicate(timeout=40)[0].split("\n")
    assert said[0] == digest(docroot / "object.bin") and said[1].startswith("221 ")
    assert (takeover["resumed"], takeover["reset"]) == (2, {})


def test_pythons_ftplib_learns_that_its_upload_is_lost_and_has_it_whole_at_the_heir(lab: Lab, docroot: Path) -> None:
    target = docroot / "incoming/lib.bin"
    client = ftplib(lab, "STOR", "incoming/lib.bin", docroot / "object.bin")
    assert client.stdout is not None
    assert client.stdout.readline() == "65536\n"
    lab.until(lambda: uploaded(lab) > 0, "the upload does not go on")
    takeover = die(lab)
    said = client.communicate(timeout=40)[0].split("\n")
    assert "Error" in said[-2] and not target.exists(), said[-3:]
    assert (takeover["resumed"], takeover["reset"]) == (0, {UPLOAD_LOST: 2})
    again = ftplib(lab, "STOR", "incoming/lib.bin", docroot / "object.bin").communicate(timeout=40)[0]
    assert again.split("\n")[-2].startswith("221 ") and digest(target) == digest(docroot / "object.bin")
    target.unlink()


@pytest.fixture
def small_disks(lab: Lab, docroot: Path) -> Iterator[Path]:
    """The folder for uploads is a disk of 4 MiB, each server's own. Hosts have mounts of their own."""
    incoming, servers = docroot / "incoming", ("s1", "s2", "s3")
    for name in servers:
        lab.run(name, ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(incoming)], check=True)
    yield incoming
    for name in servers:
        lab.run(name, ["umount", "-l", str(incoming)], check=True)


def test_an_upload_to_a_disk_that_is_full_is_452_and_leaves_nothing(
    lab: Lab, docroot: Path, scripted: Any, small_disks: Path
) -> None:
    command = ["curl", "-sS", "--max-time", "20", "-T", str(docroot / "object.bin")]
    url = f"ftp://{FTP_USER}:{FTP_PASSWORD}@vip/incoming/up.bin"
    assert lab.run("c1", [*command, url], capture_output=True, check=False).returncode != 0
    client = scripted(user=(FTP_USER, FTP_PASSWORD))
    client("passive")
    client("connect")
    assert client("say", "STOR", "incoming/up.bin").startswith("150 ")
    client("send", 8 << 20)
    assert client("reply").startswith("error_temp: 452 ")
    assert client("say", "NOOP").startswith("200 ")
    used = ["df", "--output=used", "--block-size=1", str(small_disks)]
    lab.until(lambda: lab.run(owner(lab), used, capture_output=True).stdout.split()[1] == b"0", "bytes are left")
    assert lab.run(owner(lab), ["find", str(small_disks), "-type", "f"], capture_output=True).stdout == b""
    client("passive")
    client("connect")
    assert client("say", "STOR", "incoming/up.bin").startswith("150 ")
    client("send", 1 << 20)
    client("close")
    assert client("reply").startswith("226 ")


# --- what is refused ---
def test_data_goes_to_nobody_else(lab: Lab, scripted: Any) -> None:
    """The bounce attack (RFC 2577), and a port that a stranger finds open."""
    client = scripted()
    other = lab.address("c2")
    for order in (f"PORT {other.replace('.', ',')},100,1", f"EPRT |1|{other}|25601|"):
        assert client("say", *order.split()).startswith("error_perm: 504 ")
    own = lab.address("c1")
    assert client("say", f"EPRT |1|{own}|25|").startswith("error_perm: 504 ")
    assert client("say", "LIST").startswith("error_temp: 425 ")
    port = client("passive")
    attempt = f"import socket; socket.create_connection(('vip', {port}), 5).recv(1)"
    stranger = lab.run("c2", [sys.executable, "-c", attempt], capture_output=True, text=True, check=False)
    # By the server that has the port, or by another: the stranger's connections may be in its slot.
    assert re.search(r"^Connection(Reset|Refused)Error", stranger.stderr, re.MULTILINE), stranger
    client("connect")
    assert client("say", "LIST").startswith("150 ")
    assert "object.bin" in client("text")


def test_a_password_is_in_no_log(lab: Lab, scripted: Any) -> None:
    client = scripted(user=(FTP_USER, FTP_PASSWORD))
    client("say", "USER", FTP_USER)
    assert client("say", "PASS", "a-wrong-secret").startswith("error_perm: 530 ")
    for name in ("controller", "s1", "s2", "s3"):
        assert "a-wrong-secret" not in lab.log(name)
