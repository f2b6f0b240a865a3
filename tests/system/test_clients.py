"""Clients as their users have them, retries off: each goes on over the death of the server that sends to it, opens no
connection and asks for nothing again, and has every byte. The tap at the client's port of the switch is the witness."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.system.browser import Browser
from tests.system.tap import Tap
from topologies import Lab
from topologies.watcher import digest_of

_CLIENT = "c1"
_SIZE = 192 << 20
_SEED = 4
_FIRST, _LAST = 20_000_001, 160_000_006
_SECONDS = 60.0
_QUIET_NS = 50_000_000
_ASKED = "GET /large.bin HTTP/1.1"

Start = Callable[[Sequence[str]], "subprocess.Popen[str]"]


# --- what every test starts from ---
@pytest.fixture(scope="module")
def large(lab: Lab) -> Path:
    """The object that most tests fetch, as the servers have it."""
    path = Path(lab.status()["docroot"]) / "large.bin"
    path.write_bytes(random.Random(_SEED).randbytes(_SIZE))
    return path


@pytest.fixture
def tap(lab: Lab) -> Iterator[Tap]:
    """Every server is up and has a backup, and there is no connection; the tap counts from there."""

    def at_rest() -> bool:
        return all(server["state"] == "up" and server["backup"] for server in lab.servers()) and not lab.connections()

    lab.until(at_rest, "the lab does not come to rest")
    with Tap(_CLIENT) as tap:
        yield tap
    for name in lab.status()["failed"]:
        lab.heal(name)


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Starts a command in the client; ends it after the test, should it not have ended."""
    started: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str]) -> subprocess.Popen[str]:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(lab.popen(_CLIENT, command, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Death:
    """A server that an object is coming from is killed; afterwards, what became of its connections.

    The client asks for nothing at that moment: a request that only the dead server's kernel had would be lost with it.
    """

    def __init__(self, lab: Lab, tap: Tap, identifier: str) -> None:
        sending: list[dict[str, Any]] = []
        self._lab, self._tap, self._before = lab, tap, len(lab.takeovers())

        def quiet() -> bool:
            sending[:] = [c for c in lab.connections() if c["checkpoint"]["object"] == identifier]
            assert sending, "nothing is being sent"
            return time.time_ns() - max(said.at_ns for said in tap.said()) > _QUIET_NS

        lab.until(quiet, "there are requests without end")
        self.server = random.choice(sorted({c["server"] for c in sending}))
        self.ports = sorted(c["checkpoint"]["destination_port"] for c in sending if c["server"] == self.server)
        """The client's ports of those connections that lost their server."""
        self.at_ns = lab.fail(self.server, how="kill")

    def survived(self) -> None:
        """Every connection that the server had was taken over, or the client had ended it before it could be. On a busy
        machine another server may have been taken for dead as well, and nothing may come of that either.

        A client whose connection was left out waits for its bytes, and ends it then at the earliest.
        """

        def since() -> list[dict[str, Any]]:
            return self._lab.takeovers()[self._before :]

        def over() -> bool:
            return self.server in {t["from"] for t in since()} and {t["state"] for t in since()} <= {"done", "failed"}

        self._lab.until(over, "the takeover is not done")
        assert since()[-1]["state"] == "done", since()
        assert {reason for t in since() for reason in t["reset"]} <= {"client gone"}, since()
        fates = sum(t["resumed"] + sum(t["reset"].values()) for t in since())
        first = next(t for t in since() if t["from"] == self.server)
        lasted = sum(first["phases_ms"][phase] or 0 for phase in ("fence", "prove", "resume"))
        end = first["detected_at_ns"] + lasted * 1e6
        ended = [port for port in self.ports if self._tap.closed().get(port, end) < end]
        assert fates + len(ended) >= len(self.ports), (since(), self.ports, ended)


def _half_way(lab: Lab, tap: Tap, process: subprocess.Popen[Any], size: int) -> None:
    """Until a part of `size` bytes went to the client; what remains lasts until its server is dead."""
    wanted = random.randrange(size // 5, size // 2)

    def went() -> bool:
        assert process.poll() is None, f"ended after {tap.arrived} bytes: {process.communicate()}"
        return tap.arrived >= wanted

    lab.until(went, "the transfer does not move")


def _wait(process: subprocess.Popen[str]) -> str:
    """For the end, which must be a good one; what the client printed."""
    said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, said
    return str(said)


# --- clients with one connection ---
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["curl", "-sS", "--http1.1", "-o"], id="curl"),
        pytest.param(["curl", "-sS", "--http1.1", "--limit-rate", "32M", "-o"], id="curl-limit-rate"),
        pytest.param(["wget", "-nv", "--tries=1", "-O"], id="wget"),
    ],
)
def test_one_object(lab: Lab, tap: Tap, start: Start, large: Path, tmp_path: Path, command: list[str]) -> None:
    out = tmp_path / "out"
    client = start([*command, str(out), "http://vip/large.bin"])
    _half_way(lab, tap, client, _SIZE)
    death = Death(lab, tap, "/large.bin")
    _wait(client)
    death.survived()
    assert digest_of(str(out)) == digest_of(str(large))
    assert tap.opened() == death.ports
    assert tap.requests() == [(death.ports[0], _ASKED)]


def test_curl_with_a_range(lab: Lab, tap: Tap, start: Start, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    client = start(["curl", "-sS", "--http1.1", "-r", f"{_FIRST}-{_LAST}", "-o", str(out), "http://vip/large.bin"])
    _half_way(lab, tap, client, _LAST - _FIRST)
    death = Death(lab, tap, "/large.bin")
    _wait(client)
    death.survived()
    wanted = large.read_bytes()[_FIRST : _LAST + 1]
    assert digest_of(str(out)) == hashlib.sha256(wanted).hexdigest()
    assert tap.opened() == death.ports
    assert tap.requests() == [(death.ports[0], _ASKED)]


def test_curl_with_several_urls(lab: Lab, tap: Tap, start: Start, large: Path, tmp_path: Path) -> None:
    """All on one connection, whose server dies in the second: the backup ends that one and answers the third."""
    names = ("1m", "large.bin", "64k")
    command = ["curl", "-sS", "--http1.1"]
    for name in names:
        command += ["-o", str(tmp_path / name), f"http://vip/{name}"]
    client = start(command)
    _half_way(lab, tap, client, _SIZE)
    death = Death(lab, tap, "/large.bin")
    _wait(client)
    death.survived()
    for name in names:
        assert digest_of(str(tmp_path / name)) == digest_of(str(large.with_name(name)))
    assert tap.opened() == death.ports
    assert tap.requests() == [(death.ports[0], f"GET /{name} HTTP/1.1") for name in names]


_HTTP_CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("vip", timeout=30)
connection.connect()
connection.auto_open = 0
for path in ("/1m", "/large.bin"):
    connection.request("GET", path)
    response = connection.getresponse()
    with open(sys.argv[1], "wb") as file:
        while data := response.read(1 << 16):
            file.write(data)
"""


def test_python_http_client(lab: Lab, tap: Tap, start: Start, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    client = start([sys.executable, "-c", _HTTP_CLIENT, str(out)])
    _half_way(lab, tap, client, _SIZE)
    death = Death(lab, tap, "/large.bin")
    _wait(client)
    death.survived()
    assert digest_of(str(out)) == digest_of(str(large))
    assert tap.opened() == death.ports
    assert tap.requests() == [(death.ports[0], "GET /1m HTTP/1.1"), (death.ports[0], _ASKED)]


# --- a client with many ---
@pytest.mark.parametrize("least", [_SIZE // 8, 1 << 20])
def test_aria2c_with_eight_connections(
    lab: Lab, tap: Tap, start: Start, large: Path, tmp_path: Path, least: int
) -> None:
    """The connections have several owners, and one owner dies.

    Where an eighth of the object is the least that may be split off, every connection asks once. Where 1 MiB is, a
    connection that is ready gets half of what another one still has to fetch: there are requests after the death, too,
    and aria2c's own word must do that none was made because of it (it ends well as long as one connection lives).
    """
    out = tmp_path / "out"
    options = ["--no-conf", "-x8", "-s8", "--max-tries=1", f"--min-split-size={least}", "--file-allocation=none"]
    client = start(["aria2c", *options, "-d", str(tmp_path), "-o", out.name, "http://vip/large.bin"])
    _half_way(lab, tap, client, _SIZE)
    death = Death(lab, tap, "/large.bin")
    said = _wait(client)
    death.survived()
    assert digest_of(str(out)) == digest_of(str(large))
    assert "Download aborted" not in said
    assert len(tap.opened()) >= 8
    if least == _SIZE // 8:
        assert len(tap.opened()) == 8
        assert sorted(tap.requests()) == sorted((port, _ASKED) for port in tap.opened())


# --- a browser ---
def _silent_since(death: Death, tap: Tap) -> bool:
    return not any(said.at_ns > death.at_ns for said in tap.said())


def test_chromium_downloads_a_file(lab: Lab, tap: Tap, large: Path, tmp_path: Path) -> None:
    with Browser(lab, _CLIENT, tmp_path) as browser:
        browser.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
        browser.open("http://vip/large.bin")
        _half_way(lab, tap, browser.process, _SIZE)
        death = Death(lab, tap, "/large.bin")

        def states() -> set[str]:
            return {event["state"] for event in browser.told("Browser.downloadProgress")} - {"inProgress"}

        browser.until(states, "the download does not end")
        assert states() == {"completed"}
        death.survived()
        assert tap.requests() == [(death.ports[0], _ASKED)]
        assert _silent_since(death, tap)
    assert digest_of(str(tmp_path / "large.bin")) == digest_of(str(large))


_PAGE = """<!doctype html><link rel="icon" href="data:,"><video muted autoplay src="/video.mp4"></video><script>
const video = document.querySelector("video"), trouble = [];
for (const kind of ["error", "abort", "emptied", "seeking"]) video.addEventListener(kind, () => trouble.push(kind));
const reached = (time) => new Promise((resolve) => {
  const look = () => (video.currentTime >= time || video.ended) && resolve(video.currentTime);
  for (const kind of ["timeupdate", "ended"]) video.addEventListener(kind, look);
});
</script>"""
_STATE = """({ended: video.ended, trouble, played: video.played.length, from: video.played.start(0),
to: video.played.end(0), corrupted: video.getVideoPlaybackQuality().corruptedVideoFrames})"""
_PLAYS = 24
"""Seconds."""


def _make_video(path: Path) -> None:
    """A test picture with much noise, so that there is something to send: 16 Mbit/s."""
    picture = f"testsrc2=size=640x360:rate=25:duration={_PLAYS},noise=alls=100:allf=t"
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-b:v", "16M"]
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", picture, *encoder, "-movflags", "+faststart", str(path)]
    subprocess.run(command, check=True)


def test_chromium_plays_a_video(lab: Lab, tap: Tap, large: Path, tmp_path: Path) -> None:
    """Chromium fetches some 15 s ahead and then only as it plays: the connection that dies has its window closed."""
    video = large.with_name("video.mp4")
    _make_video(video)
    large.with_name("page.html").write_text(_PAGE)
    with Browser(lab, _CLIENT, tmp_path) as browser:
        page = browser.open("http://vip/page.html")
        fetching = page.fetching("http://vip/video.mp4")
        page.evaluate("reached(2)")
        size = video.stat().st_size
        browser.until(lambda: len(fetching.body) > size // 4, "nothing is fetched ahead")
        death = Death(lab, tap, "/video.mp4")
        assert len(fetching.body) < size * 9 // 10
        assert page.evaluate("reached(Infinity)") == pytest.approx(_PLAYS, abs=0.1)
        death.survived()
        state = page.evaluate(_STATE)
        assert state.pop("to") == pytest.approx(_PLAYS, abs=0.1)
        assert state == {"ended": True, "trouble": [], "played": 1, "from": 0, "corrupted": 0}
        assert fetching.finished
        assert hashlib.sha256(fetching.body).hexdigest() == digest_of(str(video))
        assert [request for _, request in tap.requests()] == ["GET /page.html HTTP/1.1", "GET /video.mp4 HTTP/1.1"]
        assert _silent_since(death, tap)
