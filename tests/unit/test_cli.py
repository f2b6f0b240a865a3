"""The `takeover` command as a person or a script meets it: exit status, what it prints, and where."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller import cli
from tests.unit import scenario

SERVER = {
    "name": "s1",
    "state": "up",
    "epoch": 3,
    "connections": 7,
    "slots": 4,
    "load": 0.5,
    "backup": "s2",
    "heartbeat_age_ms": 4.2,
}
TAKEOVER = {
    "id": 1,
    "cause": "process ended",
    "from": "s1",
    "to": "s2",
    "epoch": 2,
    "state": "done",
    "resumed": 5,
    "reset": {"no answer": 2},
    "waiting": 0,
    "phases_ms": {"detect": 1.5, "fence": 2.5, "prove": 0.7, "resume": 0.2},
}
VIP = {"address": "10.0.0.100", "owners": {"s1": 5, "s2": 3}}


class CannedApi(ThreadingHTTPServer):
    """Answers by path; a list is cut into pages of two whatever the limit, so that cursors matter."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, Any]] = {
            "/healthz": (200, {"status": "ok", "servers_up": 2}),
            "/v1/servers": (200, [SERVER]),
            "/v1/vips": (200, [VIP]),
            "/v1/takeovers": (200, [TAKEOVER]),
            "/v1/connections": (200, []),
        }
        self.asked: list[tuple[str, dict[str, str], str | None]] = []
        """(path, query, Authorization)"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: CannedApi

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.asked.append((url.path, query, self.headers["Authorization"]))
        status, body = self.server.answers[url.path]
        if isinstance(body, list):
            start = int(query.get("cursor", "0"))
            body = {"items": body[start : start + 2], "next": str(start + 2) if start + 2 < len(body) else None}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedApi]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("TAKEOVER_TOKEN", raising=False)
    with CannedApi() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command; returns (exit status, lines of stdout, lines of stderr)."""

    def run_(*arguments: str) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out.splitlines(), captured.err.splitlines()

    return run_


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "takeover.yaml"
    path.write_text(scenario.text(2), encoding="utf-8")
    return path


# --- check ---
def test_a_good_file_is_valid_and_counted(run: Any, file: Path) -> None:
    status, out, err = run("check", str(file))
    assert (status, err) == (0, [])
    assert out == [f"{file}: valid: 1 VIPs, 2 servers"]


def test_every_problem_of_a_bad_file_is_on_a_line_with_its_place(run: Any, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    text = text.replace("slots: 8", "slots: 7").replace("address: 10.0.0.2", "address: ten").replace("br0", "'no name'")
    file.write_text(text, encoding="utf-8")
    status, out, err = run("check", str(file))
    assert (status, out, len(err)) == (2, [], 3)
    rows = text.splitlines()
    for wrong, field in (("no name", "switch.bridge"), ("slots: 7", "vips[0].slots"), ("ten,", "servers[1].address")):
        (line,) = [number for number, row in enumerate(rows, 1) if wrong in row]
        (problem,) = [problem for problem in err if field in problem]
        assert problem.startswith(f"takeover: {file}:{line}: {field}: ")


@pytest.mark.parametrize("content", ["", "[", "just words", "servers: []"])
def test_what_is_no_configuration_at_all_is_said_without_a_traceback(run: Any, file: Path, content: str) -> None:
    file.write_text(content, encoding="utf-8")
    status, out, err = run("check", str(file))
    assert (status, out) == (2, []) and err
    assert all(line.startswith(f"takeover: {file}") for line in err)


def test_a_file_that_is_not_there_is_named(run: Any, tmp_path: Path) -> None:
    status, _, err = run("check", str(tmp_path / "none.yaml"))
    assert status == 2 and len(err) == 1 and "none.yaml" in err[0]


# --- processes ---
def test_an_agent_with_an_unknown_name_is_told_the_known_ones(run: Any, file: Path) -> None:
    status, _, err = run("agent", "--config", str(file), "--name", "s9")
    assert status == 2 and len(err) == 1
    assert "s9" in err[0] and "s1, s2" in err[0]


def test_controller_and_agent_start_from_no_bad_file(run: Any, file: Path) -> None:
    file.write_text("{}", encoding="utf-8")
    for command in (("controller", "--config", str(file)), ("agent", "--config", str(file), "--name", "s1")):
        status, _, err = run(*command)
        assert status == 2 and all(line.startswith(f"takeover: {file}") for line in err)


# --- usage ---
@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("servers", "--nonsense"), ("check",), ("agent", "--name", "s1"), ("controller",)],
    ids=" ".join,
)
def test_wrong_usage_is_2_with_the_usage(run: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, [])
    assert err[0].startswith("usage: takeover")


def test_help_lists_every_command(run: Any) -> None:
    status, out, _ = run("--help")
    text = "\n".join(out)
    assert status == 0
    for command in ("lab", "controller", "agent", "check", "status", "servers", "connections", "takeovers"):
        assert command in text


# --- the API's tables ---
@pytest.mark.parametrize("command", ["status", "servers", "connections", "takeovers"])
def test_without_an_api_there_is_one_sentence_that_names_it(
    run: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        status, out, err = run(command, "--api", url)
    assert (status, out, len(err)) == (1, [], 1)
    assert err[0].startswith("takeover: ") and url in err[0]


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp:/x"])
def test_an_address_that_is_none_is_one_sentence(run: Any, url: str) -> None:
    status, out, err = run("servers", "--api", url)
    assert (status, out, len(err)) == (1, [], 1)


def test_the_apis_own_sentence_is_shown(run: Any, served: CannedApi) -> None:
    served.answers["/v1/connections"] = (422, {"title": "x", "status": 422, "detail": "there is no server named s9"})
    status, _, err = run("connections", "--server", "s9", "--api", served.url)
    assert (status, len(err)) == (1, 1) and "there is no server named s9" in err[0]
    assert served.asked[0][1]["server"] == "s9"


def test_an_answer_that_is_not_json_is_one_sentence(run: Any, served: CannedApi) -> None:
    served.answers["/v1/servers"] = (200, b"<html>somebody else's server</html>")
    status, out, err = run("servers", "--api", served.url)
    assert (status, out, len(err)) == (1, [], 1) and served.url in err[0]


@pytest.mark.parametrize(("command", "items"), [("servers", [SERVER]), ("takeovers", [TAKEOVER]), ("connections", [])])
def test_json_is_the_apis_list_as_it_is(run: Any, served: CannedApi, command: str, items: list[Any]) -> None:
    status, out, err = run(command, "--json", "--api", served.url)
    assert (status, err) == (0, [])
    assert json.loads("\n".join(out)) == {"items": items, "next": None}


def test_all_pages_are_fetched_by_their_cursors(run: Any, served: CannedApi) -> None:
    served.answers["/v1/takeovers"] = (200, [{**TAKEOVER, "id": number} for number in range(1, 6)])
    _, out, _ = run("takeovers", "--json", "--api", served.url)
    assert [item["id"] for item in json.loads("\n".join(out))["items"]] == [1, 2, 3, 4, 5]
    assert [query["cursor"] for _, query, _ in served.asked] == ["0", "2", "4"]


def test_a_table_has_a_row_for_each_and_says_why_connections_were_reset(run: Any, served: CannedApi) -> None:
    status, out, _ = run("takeovers", "--api", served.url)
    assert status == 0 and len(out) == 3
    assert {"from", "to", "cause", "resumed", "reset"} <= set(out[0].split())
    assert "2 no answer" in out[2] and "process ended" in out[2] and "1.5" in out[2]


def test_an_empty_list_says_none(run: Any, served: CannedApi) -> None:
    assert run("connections", "--api", served.url) == (0, ["none"], [])


def connection(name: str, vip: str, port: int, client: str, client_port: int, **more: Any) -> dict[str, Any]:
    numbers = dict.fromkeys(("object_first", "snd_nxt", "rcv_nxt", "epoch"), 1)
    block = {"source_address": vip, "source_port": port, "destination_address": client, "destination_port": client_port}
    block |= numbers | {"protocol": "x", "object": "/a\033[31m"}
    return {"id": name, "server": "s1", "state": "established", "checkpoint": block, "bundle": None} | more


def part(role: str, transport: str, port: int, remote: str, remote_port: int, of: str | None = None) -> dict[str, Any]:
    found = {"role": role, "transport": transport, "local_port": port, "connection": of}
    return found | {"remote_address": remote, "remote_port": remote_port}


def test_the_parts_of_a_bundle_stand_below_its_control_connection(run: Any, served: CannedApi) -> None:
    """Wherever the API lists them; one that the control connection does not name yet is not left out."""
    here, client = "10.0.0.100", "10.0.1.1"
    parts = [
        part("data", "tcp", 40960, client, 5001, of="data"),
        part("data", "tcp", 40961, "", 0),
        part("rtp", "udp-multicast", 5004, "239.255.0.1", 5004),
    ]
    served.answers["/v1/connections"] = (
        200,
        [
            connection("data", here, 40960, client, 5001, bundle={"id": "control", "role": "data", "parts": None}),
            connection("new", here, 40960, client, 5002, bundle={"id": "control", "role": "data", "parts": None}),
            connection("alone", here, 80, client, 5000),
            connection("control", here, 21, client, 5003, bundle={"id": "control", "role": "control", "parts": parts}),
        ],
    )
    _, out, _ = run("connections", "--api", served.url)
    rows = [re.split(r"  +", line)[:3] for line in out[2:]]
    assert rows == [
        ["10.0.1.1:5000", "10.0.0.100:80", "s1"],
        ["10.0.1.1:5003", "10.0.0.100:21", "control"],
        ["10.0.1.1:5001", "10.0.0.100:40960", "- data tcp"],
        ["awaited", "10.0.0.100:40961", "- data tcp"],
        ["239.255.0.1:5004", "10.0.0.100:5004", "- rtp udp-multicast"],
        ["10.0.1.1:5002", "10.0.0.100:40960", "data"],
    ]
    assert "/a?[31m" in out[2], "a name is no command to the terminal"


def test_a_connection_shows_its_addresses_as_a_url_would(run: Any, served: CannedApi) -> None:
    both = (("10.0.0.100", "10.0.1.1"), ("fd00::100", "fd00::201"))
    served.answers["/v1/connections"] = (200, [connection("x", vip, 80, client, 40001) for vip, client in both])
    _, out, _ = run("connections", "--api", served.url)
    assert out[2].split()[:2] == ["10.0.1.1:40001", "10.0.0.100:80"]
    assert out[3].split()[:2] == ["[fd00::201]:40001", "[fd00::100]:80"]


def test_status_sums_up(run: Any, served: CannedApi) -> None:
    status, out, _ = run("status", "--json", "--api", served.url)
    assert status == 0
    assert json.loads("\n".join(out)) == {
        "status": "ok",
        "servers": {"s1": "up"},
        "connections": 7,
        "vips": {"10.0.0.100": {"s1": 5, "s2": 3}},
        "takeovers": 1,
    }
    _, lines, _ = run("status", "--api", served.url)
    assert "s1 up" in "\n".join(lines) and "s1 5 slots, s2 3 slots" in "\n".join(lines)


def test_status_without_a_switch_still_answers(run: Any, served: CannedApi) -> None:
    """`/healthz` answers 503 then; the sentence says what is missing."""
    served.answers["/healthz"] = (503, {"status": "no switch is connected", "servers_up": 0})
    status, out, err = run("status", "--api", served.url)
    assert "no switch is connected" in "\n".join(out + err)
    assert status in (0, 1)


def test_the_token_of_the_environment_is_sent(run: Any, served: CannedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    run("servers", "--api", served.url)
    monkeypatch.setenv("TAKEOVER_TOKEN", "secret")
    run("servers", "--api", served.url)
    assert [authorization for _, _, authorization in served.asked] == [None, "Bearer secret"]


@pytest.mark.parametrize("command", ["status", "servers", "connections", "takeovers"])
def test_the_token_of_a_file_is_sent_with_every_request(
    run: Any, served: CannedApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("TAKEOVER_TOKEN", "of-the-environment")
    file = tmp_path / "token"
    file.write_text("of-the-file==\n")
    status, _, _ = run(command, "--api", served.url, "--token-file", str(file))
    assert status == 0
    assert {authorization for _, _, authorization in served.asked} == {"Bearer of-the-file=="}


@pytest.mark.parametrize("content", ["", "two words", "one\ntwo", "\u00e9clair"])
def test_a_token_that_is_none_is_said_and_not_shown(
    run: Any, served: CannedApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    status, _, (sentence,) = run("servers", "--api", served.url, "--token-file", str(file))
    assert status == cli.FAILED and str(file) in sentence and not (content and content in sentence)
    if content:
        monkeypatch.setenv("TAKEOVER_TOKEN", content)
        status, _, (sentence,) = run("servers", "--api", served.url)
        assert status == cli.FAILED and "TAKEOVER_TOKEN" in sentence and content not in sentence
    assert served.asked == []


def test_a_token_file_that_is_not_there_is_said(run: Any, served: CannedApi, tmp_path: Path) -> None:
    status, _, (sentence,) = run("servers", "--api", served.url, "--token-file", str(tmp_path / "none"))
    assert status == cli.FAILED and "none: No such file" in sentence


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--servers", "0"], "from 1 to 32"),
        (["--clients", "many"], "many"),
        (["--service", "foo"], "foo"),
        (["--service", "99999=http"], "65535"),
        (["--service", "7="], "PORT=PROTOCOL"),
    ],
)
def test_a_lab_that_cannot_be_is_refused_before_anything_is_made(run: Any, words: list[str], named: str) -> None:
    status, out, err = run("lab", "up", *words)
    assert (status, out) == (2, [])
    assert named in err[-1]
