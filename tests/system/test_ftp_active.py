"""Active FTP (PORT, EPRT) when the server dies as it opens the data connection. The client is one that knows nothing of
all this: it accepts one data connection, and what comes on it is the file. Also what becomes of uploads then, and of a
passive data connection that was opened a moment ago."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.backup import INPUT_LOST
from dataplane.ftp.transfer import UPLOAD_LOST
from dataplane.young import NOT_AWAITED
from tests.fate import taken_over
from tests.system.client_at_hand import by_itself, inside, rules
from topologies import Lab
from topologies.lab import FTP_PASSWORD, FTP_USER

SIZE = 4 << 20
MOMENTS = (0, 0.8, 1.6, 2.5, 5)
"""Milliseconds between the command and the death."""
_TIMEOUT = 20.0
_REPAIRED = 1.5
"""Seconds. With nothing but the kernel's timer the file is not there after 20."""
_LAST_LINE = re.compile(rb"^\d{3} [^\r\n]*\r\n", re.MULTILINE)


@pytest.fixture(scope="module")
def docroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    source = random.Random(20)
    (root / "object.bin").write_bytes(source.randbytes(SIZE))
    for folder in ("files", "incoming"):
        (root / folder).mkdir()
    for number in range(40):
        (root / "files" / f"{number:02}").write_bytes(source.randbytes(1 << 20))
    return root


@pytest.fixture(scope="module")
def lab(docroot: Path) -> Iterator[Lab]:
    """Who is stopped is taken for dead only a second later: a connection that nobody accepts has time to come."""
    with Lab(servers=3, clients=1, docroot=str(docroot), detection={"timeout_ms": 1000}) as running:
        yield running


@pytest.fixture(autouse=True)
def every_test_for_itself(lab: Lab) -> Iterator[None]:
    with by_itself(lab):
        lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")
        yield


class Client:
    """A control connection, and the port where data is awaited."""

    def __init__(self, lab: Lab, vip: str = "vip", user: tuple[str, str] = ("anonymous", "x")) -> None:
        self.lab = lab
        self.service = lab.vips()[vip]
        self.family = socket.AF_INET6 if ":" in self.service else socket.AF_INET
        self.control = self.connected(21)
        self._heard = b""
        self._reset: ConnectionResetError | None = None
        assert self.reply().startswith("220 ")
        self.say(f"USER {user[0]}")
        assert self.say(f"PASS {user[1]}").startswith("230 ")
        self.listener: socket.socket | None = None
        lab.until(lambda: len(lab.connections()) == 1, "the connection is not stored")
        (self.owner,) = {str(c["server"]) for c in lab.connections()}
        self.before = len(lab.takeovers())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        if self.listener is not None:
            self.listener.close()

    def connected(self, port: int) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(self.family)
            sock.settimeout(_TIMEOUT)
            sock.connect((self.service, port))
            return sock

        return inside(self.lab, "c1", make)

    def tell(self, command: str) -> None:
        self.control.sendall(command.encode() + b"\r\n")

    def say(self, command: str) -> str:
        self.tell(command)
        return self.reply()

    def reply(self) -> str:
        while not (match := _LAST_LINE.search(self._heard)):
            if self._reset is not None:  # the kernel says it once
                raise self._reset
            data = self.control.recv(1 << 16)
            assert data, "the server has closed"
            self._heard += data
        self._heard = self._heard[match.end() :]
        return match[0].decode()

    def active(self, order: str = "EPRT") -> socket.socket:
        """From now on the client listens."""
        address = self.control.getsockname()[0]

        def make() -> socket.socket:
            listener = socket.socket(self.family)
            listener.settimeout(_TIMEOUT)
            listener.bind((address, 0))
            listener.listen(5)
            return listener

        self.listener = inside(self.lab, "c1", make)
        port = self.listener.getsockname()[1]
        if order == "PORT":
            said = self.say(f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}")
        else:
            said = self.say(f"EPRT |{2 if self.family == socket.AF_INET6 else 1}|{address}|{port}|")
        assert said.startswith("200 ")
        # Until its kernel acknowledges at its leisure again.
        time.sleep(0.2)
        return self.listener

    def passive(self) -> int:
        match = re.search(r"\|\|\|(\d+)\|", self.say("EPSV"))
        assert match is not None
        return int(match[1])

    def killed(self, milliseconds: float = 0) -> None:
        """The owner, so long after now. It is awaited busily: no sleep is so short."""
        until = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < until:
            pass
        self.lab.fail(self.owner, "kill")

    def takeover(self, connections: int = 0) -> dict[str, Any]:
        """When so many are counted. One that no checkpoint had may be decided, and counted, after all others."""

        def counted() -> bool:
            return bool(taken_over(self.lab, self.before)["connections"] >= connections)

        self.lab.until(counted, f"the takeover has not counted {connections} connections")
        return taken_over(self.lab, self.before)

    def accepted(self) -> socket.socket | None:
        """The data connection; None if the control connection has ended before."""
        assert self.listener is not None
        found, _, _ = select.select([self.listener, self.control], [], [], _TIMEOUT)
        assert found, "neither a data connection nor a word"
        if self.listener not in found:
            try:
                self.control.recv(1, socket.MSG_PEEK)  # 150, whose data connection comes yet
            except ConnectionResetError as error:
                self._reset = error
                return None
        data, _ = self.listener.accept()
        data.settimeout(_TIMEOUT)
        return data

    def only_one(self) -> bool:
        """No other data connection waits to be accepted."""
        assert self.listener is not None
        return not select.select([self.listener], [], [], 0)[0]


def everything(sock: socket.socket) -> bytes:
    with sock, sock.makefile("rb") as file:
        return file.read()


def gets_the_file(client: Client, docroot: Path) -> None:
    """By the first data connection that comes."""
    data = client.accepted()
    assert data is not None
    assert everything(data) == (docroot / "object.bin").read_bytes()
    assert client.reply().startswith("150 ") and client.reply().startswith("226 ")
    assert client.only_one()
    assert client.takeover()["reset"] == {}


# --- RETR ---
@pytest.mark.parametrize("milliseconds", MOMENTS)
@pytest.mark.parametrize(("vip", "order"), [("vip", "EPRT"), ("vip", "PORT"), ("vip6", "EPRT")])
def test_the_data_connection_that_a_client_accepts_brings_the_file(
    lab: Lab, docroot: Path, vip: str, order: str, milliseconds: float
) -> None:
    with Client(lab, vip) as client:
        client.active(order)
        client.tell("RETR object.bin")
        client.killed(milliseconds)
        data = client.accepted()
        if data is None:  # only the dead server's kernel had the command
            with pytest.raises(ConnectionResetError):
                client.reply()
            assert client.takeover()["reset"] == {INPUT_LOST: 1} and client.only_one()
            return
        assert everything(data) == (docroot / "object.bin").read_bytes()
        assert client.reply().startswith("150 ") and client.reply().startswith("226 ")
        assert client.only_one() and client.takeover()["reset"] == {}


@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_a_client_whose_kernel_waits_for_the_dead_server_hears_of_the_heir_alone(
    lab: Lab, docroot: Path, vip: str
) -> None:
    """The server's SYN came, the client's answer was lost: no checkpoint has the connection."""
    with Client(lab, vip) as client:
        port = client.active().getsockname()[1]
        kind = "ip6" if vip == "vip6" else "ip"
        with rules(lab, "c1", f"out {kind} daddr {client.service} tcp sport {port} tcp flags & syn == syn drop"):
            client.tell("RETR object.bin")
            lab.until(lambda: half_open(lab, port), "no SYN came")
            lab.until(lambda: awaited(lab) == [20], "the transfer is not stored")
            client.killed()
        gets_the_file(client, docroot)
        assert client.takeover()["resumed"] == 1


@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_a_client_that_heard_nothing_but_the_first_segment_is_taken_over(lab: Lab, docroot: Path, vip: str) -> None:
    """The connection is stored, and the client's kernel still waits for the last segment of the handshake."""
    with Client(lab, vip) as client:
        port = client.active().getsockname()[1]
        kind = "ip6" if vip == "vip6" else "ip"
        with rules(
            lab,
            "c1",
            f"in {kind} saddr {client.service} tcp dport {port} tcp flags & (syn | ack) == syn accept",
            f"in {kind} saddr {client.service} tcp dport {port} drop",
        ):
            client.tell("RETR object.bin")
            lab.until(lambda: len(lab.connections()) == 2, "the data connection is not stored")
            assert half_open(lab, port)
            client.killed()
        gets_the_file(client, docroot)
        assert client.takeover()["resumed"] == 2


def half_open(lab: Lab, port: int) -> bool:
    """The client's kernel has a connection to this port in SYN-RECEIVED."""
    command = ["ss", "-Htn", "state", "syn-recv", "sport", "=", str(port)]
    return bool(lab.run("c1", command, check=True, capture_output=True, text=True).stdout)


def awaited(lab: Lab) -> list[int]:
    """Ports of data connections that are not there yet."""
    parts = [part for c in lab.connections() for part in (c["bundle"] or {"parts": []})["parts"] or []]
    return [part["local_port"] for part in parts if not part["remote_port"]]


# --- STOR ---
@pytest.mark.parametrize("milliseconds", MOMENTS)
@pytest.mark.parametrize("mode", ["active", "passive"])
def test_an_upload_is_whole_or_its_reset_stands_in_the_record(
    lab: Lab, docroot: Path, mode: str, milliseconds: float
) -> None:
    """What of it is reset, is told with its reason."""
    content, path = b"u" * 300_000, docroot / "incoming" / "up.bin"
    path.unlink(missing_ok=True)
    with Client(lab, user=(FTP_USER, FTP_PASSWORD)) as client:
        data: socket.socket | None = None
        if mode == "active":
            client.active()
            client.tell("STOR incoming/up.bin")
        else:
            port = client.passive()
            lab.until(lambda: awaited(lab) == [port], "the port is not stored")
            data = client.connected(port)
            client.tell("STOR incoming/up.bin")
        client.killed(milliseconds)
        data = data or client.accepted()
        answers: list[str] = []
        whole = False
        try:
            if data is not None:
                with data:
                    data.sendall(content)
                    with contextlib.suppress(OSError):  # ENOTCONN when it was reset; the next line says so
                        data.shutdown(socket.SHUT_WR)
                    whole = data.recv(1) == b""
            answers += [client.reply()[:4]]
            answers += [client.reply()[:4]] if answers == ["150 "] else []
        except ConnectionResetError:
            pass
        if whole:
            assert (answers, client.takeover()["reset"]) == (["150 ", "226 "], {})
            assert path.read_bytes() == content
            return
        assert not path.exists()
        if mode == "active" or data is None:
            assert client.listener is None or client.only_one()
        lab.until(lambda: client.takeover()["reset"], f"no reset is counted after {answers}")
        counted = client.takeover()["reset"]
        # Nobody awaits a data connection whose control connection was lost with its input.
        allowed = {UPLOAD_LOST, INPUT_LOST} | ({NOT_AWAITED} if INPUT_LOST in counted else set())
        assert set(counted) <= allowed, (answers, counted)


# --- passive data connections that no checkpoint has yet ---
@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_a_passive_data_connection_that_only_the_dead_servers_kernel_had_brings_the_file(
    lab: Lab, docroot: Path, vip: str
) -> None:
    """Its client only listens, so that nothing but the switch can know of it."""
    with Client(lab, vip) as client:
        port = client.passive()
        client.tell("RETR object.bin")
        lab.until(lambda: waits_with_its_command(lab), "the transfer is not stored")
        os.kill(lab.pid(client.owner), signal.SIGSTOP)
        data = client.connected(port)
        client.killed()
        assert everything(data) == (docroot / "object.bin").read_bytes()
        assert client.reply().startswith("150 ") and client.reply().startswith("226 ")
        takeover = client.takeover(2)
        assert (takeover["connections"], takeover["resumed"], takeover["reset"]) == (2, 2, {})


@pytest.mark.parametrize("milliseconds", MOMENTS)
@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_a_passive_data_connection_that_was_just_opened_brings_the_file(
    lab: Lab, docroot: Path, vip: str, milliseconds: float
) -> None:
    with Client(lab, vip) as client:
        port = client.passive()
        client.tell("RETR object.bin")
        lab.until(lambda: waits_with_its_command(lab), "the transfer is not stored")
        data = client.connected(port)
        client.killed(milliseconds)
        assert everything(data) == (docroot / "object.bin").read_bytes()
        assert client.reply().startswith("150 ") and client.reply().startswith("226 ")
        assert client.takeover()["reset"] == {}


def test_the_first_flight_of_a_data_connection_that_no_checkpoint_had_is_watched_too(lab: Lab, docroot: Path) -> None:
    """It is lost. The kernel, which has measured no round trip yet, would wait for seconds before it sends it again."""
    with Client(lab) as client:
        port = client.passive()
        client.tell("RETR object.bin")
        lab.until(lambda: waits_with_its_command(lab), "the transfer is not stored")
        os.kill(lab.pid(client.owner), signal.SIGSTOP)
        data = client.connected(port)
        flight = f"ip saddr {client.service} tcp sport {port} meta length > 100"
        with rules(lab, "c1", f"in {flight} quota 20 kbytes counter drop"):
            client.killed()
            began = time.monotonic()
            assert everything(data) == (docroot / "object.bin").read_bytes()
            assert time.monotonic() - began < _REPAIRED
            listed = lab.run("c1", ["nft", "list", "table", "inet", "test"], capture_output=True, text=True, check=True)
            assert "counter packets 0 " not in listed.stdout, "nothing was lost"
        assert client.takeover()["reset"] == {}


def test_input_on_a_passive_data_connection_that_no_checkpoint_had_is_lost_and_counted(lab: Lab) -> None:
    """The dead server's kernel had acknowledged it."""
    with Client(lab, user=(FTP_USER, FTP_PASSWORD)) as client:
        port = client.passive()
        lab.until(lambda: awaited(lab) == [port], "the port is not stored")
        os.kill(lab.pid(client.owner), signal.SIGSTOP)
        with client.connected(port) as data:
            data.sendall(b"u")
            client.killed()
            with pytest.raises(ConnectionResetError):
                data.recv(1)
        takeover = client.takeover(2)
        assert (takeover["connections"], takeover["resumed"], takeover["reset"]) == (2, 1, {INPUT_LOST: 1})
        assert client.say("NOOP").startswith("200 ")


def waits_with_its_command(lab: Lab) -> bool:
    """The control connection's checkpoint has all that the client said, and a port where it is awaited."""
    (connection,) = lab.connections()
    said = len("USER anonymous\r\nPASS x\r\nEPSV\r\nRETR object.bin\r\n")
    checkpoint = connection["checkpoint"]
    return bool(awaited(lab)) and (checkpoint["rcv_nxt"] - checkpoint["irs"] - 1) % 2**32 == said


# --- clients as they are ---
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vip", ["vip", "vip6"])
def test_curl_gets_a_file_whole_although_its_server_dies_as_it_begins(
    lab: Lab, docroot: Path, tmp_path: Path, vip: str, seed: int
) -> None:
    """At a random moment of the dialogue's last part, or of the transfer."""
    out, before = tmp_path / "out", len(lab.takeovers())
    command = ["curl", "-v", "-sS", "--limit-rate", "20M", "--max-time", "30", "--ftp-port", "-", "-o", str(out)]
    curl = lab.popen("c1", [*command, f"ftp://{vip}/object.bin"], stderr=subprocess.PIPE, text=True)
    assert curl.stderr is not None
    heard = ""
    while "> EPRT" not in heard:
        line = curl.stderr.readline()
        assert line, heard
        heard += line
    (owner,) = {str(c["server"]) for c in lab.connections()}
    time.sleep(random.Random(f"{vip} {seed}").random() * 0.02)
    lab.fail(owner, "kill")
    heard += curl.communicate(timeout=40)[1]
    reset = taken_over(lab, before)["reset"]
    if reset == {}:
        assert curl.returncode == 0, heard
        assert out.read_bytes() == (docroot / "object.bin").read_bytes()
    else:
        assert set(reset) == {INPUT_LOST} and curl.returncode != 0, (reset, heard)


def owner_of_lftp(lab: Lab) -> str:
    """The server that has its connections, as soon as it has any."""
    listed: list[dict[str, Any]] = []

    def known() -> bool:
        listed[:] = lab.connections()
        return bool(listed)

    lab.until(known, "lftp has no connection")
    return str(listed[0]["server"])


def test_lftp_mirrors_a_folder_in_active_mode_through_several_deaths(lab: Lab, docroot: Path, tmp_path: Path) -> None:
    """Each file has a data connection of its own, so that deaths fall everywhere. lftp begins anew only what it is told
    to be lost with the server's input."""
    dialogue, moments = tmp_path / "dialogue", random.Random(7)
    script = (
        f"debug -o {dialogue} 5; set net:max-retries 5; set net:reconnect-interval-base 1; set net:timeout 20; "
        "set ftp:ssl-allow no; set ftp:passive-mode off; set net:limit-rate 4M; "
        "set net:limit-max 256K; open ftp://vip; mirror files copy; exit"
    )
    lftp = lab.popen("c1", ["lftp", "--norc", "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    lost = 0
    for count in (2, 9, 16):
        lab.until(lambda c=count: len(list((tmp_path / "copy").glob("*"))) >= c, "the mirror does not grow", 20)
        time.sleep(moments.random() * 0.07)
        before = len(lab.takeovers())
        owner = owner_of_lftp(lab)
        lab.fail(owner, "kill")
        reset = taken_over(lab, before)["reset"]
        assert set(reset) <= {INPUT_LOST}, reset
        lost += bool(reset)
        lab.heal(owner)
        lab.until(lambda: all(server["backup"] for server in lab.servers()), "a server has no backup")
    assert lftp.communicate(timeout=60)[1] == "" and lftp.returncode == 0
    said = dialogue.read_text()
    assert said.count("<--- 220 ") == 1 + lost, said
    assert not re.search(r"^<--- 4\d\d ", said, re.MULTILINE), said
    if not lost:
        assert said.count("<--- 150 ") == said.count("<--- 226 ")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (docroot / "files").iterdir()}
