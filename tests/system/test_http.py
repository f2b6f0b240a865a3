"""HTTP as clients expect it, by real servers to real clients: ranges across a death, conditions, refusals, bounds, and
the end in good order."""

from __future__ import annotations

import mmap
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fate import taken_over
from topologies import Lab
from topologies.watcher import digest_of, download

_PER_CLIENT = 40
_SIZE = 256 << 20
_CODE = "%{http_code}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Servers that wait less long than by default."""
    limits: dict[str, object] = {"header_ms": 500, "connections_per_client": _PER_CLIENT, "stop_ms": 300}
    with Lab(servers=3, clients=2, serving=limits) as running:
        yield running


def curl(lab: Lab, *options: str, client: str = "c1", data: bytes | None = None) -> str:
    """What curl writes to its standard output."""
    done = lab.run(client, ["curl", "-sS", "--max-time", "60", *options], input=data, capture_output=True, check=True)
    return str(done.stdout.decode("latin-1"))


def python(lab: Lab, client: str, program: str) -> subprocess.Popen[str]:
    """A program in a client, its standard input and output at hand."""
    pipe = subprocess.PIPE
    return lab.popen(client, ["python3", "-c", program], stdin=pipe, stdout=pipe, text=True)


def fields(lab: Lab, path: str, *options: str) -> dict[str, str]:
    """The header fields of the answer to HEAD, by lower-case name, and `:status`."""
    lines = curl(lab, "-I", *options, f"http://vip{path}").splitlines()
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return found | {":status": lines[0].split()[1]}


def owner(lab: Lab) -> str:
    (connection,) = [c for c in lab.connections() if c["checkpoint"]["object"] == "/object.bin"]
    return str(connection["server"])


def object_bin(lab: Lab) -> str:
    return str(lab.status()["docroot"]) + "/object.bin"


# --- ranges ---
def test_several_ranges_are_whole_and_equal_across_a_death_in_the_middle_of_a_part(lab: Lab, tmp_path: Path) -> None:
    parts = [(200_000_000, 250_000_000), (1, 1), (1_000, 120_000_000)]
    asked = ("-r", ",".join(f"{first}-{last}" for first, last in parts))
    calm = tmp_path / "calm"
    shown = curl(lab, *asked, "-o", str(calm), "-w", "%{http_code} %{content_type}", "http://vip/object.bin")
    status, kind = shown.split(" ", 1)
    assert status == "206"
    boundary = kind.removeprefix("multipart/byteranges; boundary=").encode()

    disturbed = download(lab, "c1", "/object.bin", *asked)
    assert disturbed.wait_for(50_000_000 + 40_000_000)  # within the third part
    name, before = owner(lab), len(lab.takeovers())
    disturbed.fault_ns = lab.fail(name, how="kill")
    assert disturbed.wait() == 0
    assert taken_over(lab, before)["resumed"] == 1
    assert disturbed.digest == digest_of(str(calm)), "the response that another server ended is the very same"

    with open(calm, "rb") as body, open(object_bin(lab), "rb") as original:
        got = mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
        kept = mmap.mmap(original.fileno(), 0, access=mmap.ACCESS_READ)
        position = 0
        for first, last in parts:
            head_end = got.find(b"\r\n\r\n", position) + 4
            head = got[position:head_end]
            assert re.fullmatch(b"(\r\n)?--" + boundary + b"\r\nContent-Type: .*\r\nContent-Range: .*\r\n\r\n", head)
            assert f"bytes {first}-{last}/{_SIZE}".encode() in head
            position = head_end + last - first + 1
            assert got[head_end:position] == kept[first : last + 1]
        assert got[position:] == b"\r\n--" + boundary + b"--\r\n"
    lab.heal(name)


def test_a_download_is_resumed_with_if_range_at_another_server(lab: Lab, tmp_path: Path) -> None:
    target = tmp_path / "object.bin"
    first = download(lab, "c1", "/object.bin", "-o", str(target), "--limit-rate", "60M")
    lab.until(lambda: target.exists() and target.stat().st_size > 30_000_000, "the download does not move")
    name = owner(lab)
    first.process.kill()
    first.wait()
    lab.fail(name, how="kill")
    tag = fields(lab, "/object.bin")["etag"]
    length = target.stat().st_size
    assert 0 < length < _SIZE
    again = ("-r", f"{length}-", "-w", _CODE, "http://vip/object.bin")
    other = curl(lab, "-H", 'If-Range: "another"', *again, "-o", "/dev/null")
    assert other == "200", "of another file there is no rest, only the whole"
    assert curl(lab, "-H", f"If-Range: {tag}", *again, "-o", str(tmp_path / "rest")) == "206"
    with open(target, "ab") as whole, open(tmp_path / "rest", "rb") as rest:
        whole.write(rest.read())
    assert digest_of(str(target)) == digest_of(object_bin(lab))
    lab.heal(name)


# --- conditions ---
def test_every_server_gives_the_same_validators_and_logs_what_it_answered(lab: Lab) -> None:
    asked = [fields(lab, "/1m?secret") for _ in range(24)]
    assert {(found[":status"], found["content-length"]) for found in asked} == {("200", str(1 << 20))}
    assert len({(found["etag"], found["last-modified"]) for found in asked}) == 1
    assert asked[0]["accept-ranges"] == "bytes"

    def lines() -> list[int]:
        return [lab.log(server).count('"HEAD /1m HTTP/1.1" 200 0\n') for server in ("s1", "s2", "s3")]

    lab.until(lambda: sum(lines()) >= 24, "not every answer is logged")
    assert sum(lines()) == 24
    assert len([count for count in lines() if count]) > 1, lines()
    assert not any("secret" in lab.log(server) for server in ("s1", "s2", "s3"))


def test_conditional_requests_of_curl(lab: Lab, tmp_path: Path) -> None:
    tag, kept = str(tmp_path / "tag"), str(tmp_path / "kept")
    code = ("-w", _CODE, "http://vip/64k")
    assert curl(lab, "--etag-save", tag, "-o", kept, *code) == "200"
    assert curl(lab, "--etag-compare", tag, "-o", "/dev/null", *code) == "304"
    assert curl(lab, "-z", kept, "-o", "/dev/null", *code) == "304"
    assert curl(lab, "-z", "Mon, 01 Jan 1990 00:00:00 GMT", "-o", "/dev/null", *code) == "200"
    assert curl(lab, "-H", "If-Unmodified-Since: Mon, 01 Jan 1990 00:00:00 GMT", "-o", "/dev/null", *code) == "412"
    assert curl(lab, "-H", 'If-Match: "another"', "-o", "/dev/null", *code) == "412"
    assert curl(lab, "-H", f"If-Match: {Path(tag).read_text().strip()}", "-o", "/dev/null", *code) == "200"


# --- refusals ---
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["http://vip/missing"], "404"),
        (["http://vip/"], "404"),
        (["--path-as-is", "http://vip/../etc/passwd"], "400"),
        (["-X", "DELETE", "http://vip/1k"], "405"),
        (["-X", "OPTIONS", "http://vip/1k"], "204"),
        (["-X", "BREW", "http://vip/1k"], "501"),
        (["-r", f"{1 << 20}-", "http://vip/1m"], "416"),
        (["-H", "Expect: coffee", "http://vip/1k"], "417"),
        (["-H", "X: " + "x" * 17_000, "http://vip/1k"], "431"),
        (["http://vip/" + "x" * 17_000], "414"),
        (["-d", "hello", "http://vip/1k"], "413"),
        (["-T", "/proc/self/cmdline", "-H", "Transfer-Encoding: chunked", "http://vip/1k"], "413"),
        (["-T", "OBJECT", "http://vip/1k"], "413"),
        (["-T", "OBJECT", "-H", "Expect:", "http://vip/1k"], "413"),
        (["-0", "http://vip/1k"], "200"),
        (["--request-target", "http://vip/1k", "http://vip/"], "200"),
        (["--request-target", "*", "-X", "OPTIONS", "http://vip/"], "204"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else value,
)
def test_each_request_has_its_status(lab: Lab, options: list[str], code: str) -> None:
    options = [object_bin(lab) if option == "OBJECT" else option for option in options]
    assert curl(lab, "-o", "/dev/null", "-w", _CODE, *options) == code


_SLOW = """
import socket
sock = socket.create_connection(("vip", 80), timeout=10)
sock.sendall(b"GET /1k HTTP/1.1\\r\\nHost: vip\\r\\n")
answer = b""
try:
    while True:
        sock.settimeout(0.05)
        try:
            data = sock.recv(4096)
        except TimeoutError:
            sock.sendall(b"X: y\\r\\n")  # a line now and then
            continue
        answer += data
        if not data:
            break
finally:
    print(answer.decode().splitlines()[0] if answer else "nothing")
"""


def test_a_request_that_trickles_in_is_answered_with_408(lab: Lab) -> None:
    slow = python(lab, "c1", _SLOW)
    said, _ = slow.communicate(timeout=20)
    assert said.strip() == "HTTP/1.1 408 Request Timeout"


_MANY = """
import socket, sys
held = []
for _ in range(int(sys.stdin.readline())):
    try:
        sock = socket.create_connection(("vip", 80), timeout=10)
        sock.sendall(b"GET /1k HTTP/1.1\\r\\nHost: vip\\r\\n\\r\\n")
        if sock.recv(15) == b"HTTP/1.1 200 OK":
            held.append(sock)
    except ConnectionError:
        pass
print(len(held), flush=True)
sys.stdin.readline()
"""


def test_one_client_has_only_so_many_connections_of_a_server(lab: Lab) -> None:
    many = python(lab, "c2", _MANY)
    assert many.stdin is not None
    assert many.stdout is not None
    count = 3 * _PER_CLIENT + 80
    many.stdin.write(f"{count}\n")
    many.stdin.flush()
    answered = int(many.stdout.readline())
    assert max(server["connections"] for server in lab.servers()) <= _PER_CLIENT
    assert _PER_CLIENT <= answered <= 3 * _PER_CLIENT
    assert curl(lab, "-o", "/dev/null", "-w", _CODE, "http://vip/1k") == "200", "another client has its own"
    many.communicate("\n", timeout=10)
    lab.until(lambda: not lab.connections(), "connections of a client that went away remain")


# --- the end in good order ---
_KEEPS = """
import http.client, sys
connection = http.client.HTTPConnection("vip", 80, timeout=10)
connection.auto_open = False
connection.connect()
while sys.stdin.readline():
    connection.request("GET", "/64k")
    answer = connection.getresponse()
    print(answer.status, len(answer.read()), flush=True)
"""


def test_a_server_that_is_stopped_damages_nothing(lab: Lab) -> None:
    """A download goes on at the backup, an idle connection is answered there, new clients are served."""
    idle = python(lab, "c2", _KEEPS)
    assert idle.stdin is not None
    assert idle.stdout is not None

    def asks() -> str:
        assert idle.stdin is not None
        assert idle.stdout is not None
        idle.stdin.write("\n")
        idle.stdin.flush()
        return idle.stdout.readline().strip()

    assert asks() == f"200 {64 << 10}"
    (connection,) = lab.connections()
    name = connection["server"]
    running = download(lab, "c1", "/object.bin", "--limit-rate", "25M")
    assert running.wait_for(20_000_000)
    moved = {name, owner(lab)}
    takeovers = []
    for server in sorted(moved):
        before = len(lab.takeovers())
        running.fault_ns = lab.fail(server, how="stop")
        lab.until(lambda s=server: lab.server(s)["state"] == "failed", "the stop is not noticed")
        assert curl(lab, "-o", "/dev/null", "-w", _CODE, "http://vip/1k") == "200"
        assert asks() == f"200 {64 << 10}"
        takeovers.append(taken_over(lab, before))
        lab.heal(server)
    assert running.wait() == 0
    assert running.digest == digest_of(object_bin(lab))
    assert asks() == f"200 {64 << 10}"
    idle.stdin.close()
    assert idle.wait(10) == 0
    assert [t["reset"] for t in takeovers] == [{}] * len(moved)
    assert sum(t["resumed"] for t in takeovers) >= 2
