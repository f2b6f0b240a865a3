"""The configuration's checker: every mistake is named with its line and its path, all of them in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from state.configuration import (
    Address,
    Api,
    Configuration,
    Detection,
    Ftp,
    FtpUser,
    Server,
    Service,
    Serving,
    Switch,
    Vip,
    load,
    parse,
)
from state.errors import ConfigurationError

EXAMPLE = """\
switch:
  bridge: br0
  listen: 127.0.0.1:6653
agents:
  listen: 10.0.0.1:6700
vips:
  - address: 10.0.0.100
    mac: 02:00:00:00:01:00
    affinity: client
    slots: 128
    services:
      - port: 80
        protocol: http
      - port: 8081
        protocol: http
        protected: false
servers:
  - name: web1
    address: 10.0.0.11
    port: s1-eth1
    docroot: /srv/www
    backups: [web2]
  - name: web2
    address: 10.0.0.12
    port: s1-eth2
    docroot: /srv/www
state:
  embedded: /var/lib/takeover/state.db
detection:
  heartbeat_ms: 10
  timeout_ms: 50
  proof_ms: 1200
  silence_ms: 60000
api:
  listen: 127.0.0.1:8090
  token_file: /etc/takeover/token
serving:
  header_bytes: 8192
  header_ms: 5000
  idle_ms: 60000
  send_ms: 90000
  connections: 1000
  connections_per_client: 10
  stop_ms: 0
  access_log: false
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "c.yaml")
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def changed(old: str, new: str) -> list[str]:
    """The problems of the example with one place changed."""
    assert EXAMPLE.count(old) == 1
    return problems(EXAMPLE.replace(old, new))


def test_the_example_is_read_as_it_is_written() -> None:
    assert parse(EXAMPLE) == Configuration(
        switch=Switch("br0", Address("127.0.0.1", 6653)),
        agents=Address("10.0.0.1", 6700),
        vips=(
            Vip(
                "10.0.0.100",
                "02:00:00:00:01:00",
                (Service(80, "http"), Service(8081, "http", protected=False)),
                affinity="client",
                slots=128,
            ),
        ),
        servers=(
            Server("web1", "10.0.0.11", "s1-eth1", ("web2",), "/srv/www"),
            Server("web2", "10.0.0.12", "s1-eth2", (), "/srv/www"),
        ),
        state="/var/lib/takeover/state.db",
        detection=Detection(10, 50, 1200, 60_000),
        api=Api(Address("127.0.0.1", 8090), "/etc/takeover/token"),
        serving=Serving(8192, 5000, 60_000, 90_000, 1000, 10, 0, access_log=False),
    )


def test_the_shipped_example_is_valid_and_its_defaults_are_the_defaults() -> None:
    shipped = load(Path(__file__).parents[2] / "docs" / "takeover.example.yaml")
    assert (shipped.detection, shipped.api, shipped.serving) == (Detection(), Api(), Serving())


def test_what_may_be_left_out_has_defaults() -> None:
    text = EXAMPLE[: EXAMPLE.index("detection:")].replace("    affinity: client\n    slots: 128\n", "")
    configuration = parse(text.replace("    mac: 02:00:00:00:01:00\n", ""))
    assert configuration.detection == Detection(heartbeat=20, timeout=120, proof=1500, silence=120_000)
    assert configuration.api == Api(Address("127.0.0.1", 8080), None)
    assert configuration.serving == Serving(16_384, 15_000, 120_000, 300_000, 16_384, 8_192, 1_000, access_log=True)
    (vip,) = configuration.vips
    assert (vip.affinity, vip.slots) == ("connection", 64)


def test_a_vip_without_a_mac_gets_a_local_one_that_its_address_decides() -> None:
    def mac(address: str) -> str:
        text = EXAMPLE.replace("    mac: 02:00:00:00:01:00\n", "").replace("10.0.0.100", address)
        return parse(text).vips[0].mac

    assert mac("10.0.0.100") == mac("10.0.0.100")
    assert mac("10.0.0.100") != mac("10.0.0.101")
    first = int(mac("10.0.0.100").split(":")[0], 16)
    assert first & 0b11 == 0b10, "locally administered, and of one station"


def test_a_server_is_found_by_its_name() -> None:
    configuration = parse(EXAMPLE)
    found = configuration.server("web2")
    assert found is not None
    assert found.address == "10.0.0.12"
    assert configuration.server("web3") is None


def test_listening_addresses_may_be_ipv6() -> None:
    configuration = parse(EXAMPLE.replace("10.0.0.1:6700", '"[fd00::1]:6700"'))
    assert configuration.agents == Address("fd00::1", 6700)
    assert str(configuration.agents) == "[fd00::1]:6700"
    assert str(configuration.switch.listen) == "127.0.0.1:6653"


# --- one mistake, one problem, with its line and its path ---
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("bridge: br0", "bridge: a-name-too-long-for-one", "c.yaml:2: switch.bridge: "),
        ("bridge: br0", "bridge: [br0]", "c.yaml:2: switch.bridge: must be"),
        ("  bridge: br0\n", "", "c.yaml:2: switch.bridge: missing"),
        ("127.0.0.1:6653", "6653", "c.yaml:3: switch.listen: '6653' is not ADDRESS:PORT"),
        ("127.0.0.1:6653", "127.0.0.1:0", "c.yaml:3: switch.listen: "),
        ("127.0.0.1:6653", "127.0.0.1:65536", "c.yaml:3: switch.listen: "),
        ("127.0.0.1:6653", "localhost:6653", "c.yaml:3: switch.listen: "),
        ("  listen: 10.0.0.1:6700", "  listen: 10.0.0.1:6700\n  color: red", "c.yaml:6: agents.color: unknown field"),
        ("agents:\n  listen: 10.0.0.1:6700", "agents: 5", "c.yaml:4: agents: must be a mapping"),
        ("address: 10.0.0.100", "address: 10.0.0.256", "c.yaml:7: vips[0].address: '10.0.0.256' is not an IP address"),
        ("02:00:00:00:01:00", "02:00:00:00:01", "c.yaml:8: vips[0].mac: "),
        ("affinity: client", "affinity: server", "c.yaml:9: vips[0].affinity: 'server' is not one of connection, c"),
        ("slots: 128", "slots: 100", "c.yaml:10: vips[0].slots: 100 is not a power of two"),
        ("slots: 128", "slots: 512", "c.yaml:10: vips[0].slots: '512' is not a number from 1 to 256"),
        ("slots: 128", "slots: 0", "c.yaml:10: vips[0].slots: "),
        ("slots: 128", "slots: many", "c.yaml:10: vips[0].slots: "),
        ("- port: 80\n", "- port: 0\n", "c.yaml:12: vips[0].services[0].port: "),
        ("- port: 8081", "- port: 65536", "c.yaml:14: vips[0].services[1].port: "),
        ("- port: 8081", "- port: 80", "c.yaml:12: vips[0].services: a port appears twice"),
        ("http\n      - port", "gopher\n      - port", "c.yaml:13: vips[0].services[0].protocol: "),
        ("protected: false", "protected: perhaps", "c.yaml:16: vips[0].services[1].protected: "),
        ("name: web1", "name: web 1", "c.yaml:18: servers[0].name: "),
        ("name: web1", 'name: "web1\\n"', "c.yaml:18: servers[0].name: "),
        ("name: web2", "name: web1", "servers[1].name: web1 is used twice"),
        ("address: 10.0.0.12", "address: 10.0.0.11", "servers[1].address: 10.0.0.11 is used twice"),
        ("port: s1-eth2", "port: s1-eth1", "c.yaml:23: servers[1].port: s1-eth1 is used twice"),
        ("    address: 10.0.0.12\n", "", "c.yaml:23: servers[1].address: missing"),
        ("backups: [web2]", "backups: [web3]", "servers[0].backups: web3 is not another server"),
        ("backups: [web2]", "backups: [web1]", "servers[0].backups: web1 is not another server"),
        ("backups: [web2]", "backups: web2", "c.yaml:22: servers[0].backups: must be a list"),
        ("  embedded: /var", "  embedded: var", "c.yaml:28: state.embedded: 'var/lib/takeover/state.db' is not an abs"),
        ("  embedded: /var/lib/takeover/state.db", "  redis: x", "c.yaml:28: state.redis: unknown field"),
        ("heartbeat_ms: 10", "heartbeat_ms: 0", "c.yaml:30: detection.heartbeat_ms: "),
        ("timeout_ms: 50", "timeout_ms: 19", "detection.timeout_ms: must be at least two heartbeats"),
        ("proof_ms: 1200", "proof_ms: 99", "c.yaml:32: detection.proof_ms: "),
        ("silence_ms: 60000", "silence_ms: 99", "c.yaml:33: detection.silence_ms: "),
        ("token_file: /etc/takeover/token", "token_file: token", "c.yaml:36: api.token_file: "),
        ("name: web1", "name: web1\n    name: web1", "c.yaml:19: servers[0].name: given twice"),
        (
            "header_bytes: 8192",
            "header_bytes: 16385",
            "c.yaml:38: serving.header_bytes: '16385' is not a number from 1",
        ),
        ("header_ms: 5000", "header_ms: 0", "c.yaml:39: serving.header_ms: "),
        ("idle_ms: 60000", "idle_ms: never", "c.yaml:40: serving.idle_ms: "),
        ("send_ms: 90000", "send_ms: -1", "c.yaml:41: serving.send_ms: "),
        ("connections: 1000", "connections: 0", "c.yaml:42: serving.connections: "),
        (
            "connections_per_client: 10",
            "connections_per_client: [10]",
            "c.yaml:43: serving.connections_per_client: must",
        ),
        ("stop_ms: 0", "stop: 0", "c.yaml:44: serving.stop: unknown field; known are header_bytes, header_ms"),
        ("access_log: false", "access_log: no", "c.yaml:45: serving.access_log: 'no' is not true or false"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_path(old: str, new: str, problem: str) -> None:
    found = changed(old, new)
    assert any(problem in each for each in found), found
    assert all(each.startswith("c.yaml:") for each in found)


@pytest.mark.parametrize("top", ["switch", "agents", "vips", "servers", "state"])
def test_a_missing_part_is_named(top: str) -> None:
    lines = EXAMPLE.splitlines(keepends=True)
    start = lines.index(f"{top}:\n")
    end = next((i for i in range(start + 1, len(lines)) if lines[i][0] not in " -"), len(lines))
    assert problems("".join(lines[:start] + lines[end:])) == [f"c.yaml:1: {top}: missing"]


@pytest.mark.parametrize("top", ["vips", "servers"])
def test_an_empty_list_is_a_mistake(top: str) -> None:
    lines = EXAMPLE.splitlines(keepends=True)
    start = lines.index(f"{top}:\n")
    end = next(i for i in range(start + 1, len(lines)) if lines[i][0] not in " -")
    (problem,) = problems("".join([*lines[:start], f"{top}: []\n", *lines[end:]]))
    assert problem == f"c.yaml:{start + 1}: {top}: must be a list with at least one entry"


# --- services of several connections ---
def services(*entries: str) -> str:
    """The example with these services, from line 12 on."""
    start, end = EXAMPLE.index("      - port: 80"), EXAMPLE.index("servers:\n")
    return EXAMPLE[:start] + "".join(f"      - {entry}\n" for entry in entries) + EXAMPLE[end:]


def test_what_a_protocol_is_known_to_need_may_be_left_out() -> None:
    (vip,) = parse(services("{port: 21, protocol: ftp}", "{port: 554, protocol: rtsp}")).vips
    ftp, rtsp = vip.services
    assert (vip.affinity_of(ftp), vip.affinity_of(rtsp), vip.affinity_of(None)) == ("client", "service", "client")
    assert [str(run) for run in ftp.data_ports] == ["20/tcp", "40960-45055/tcp"]
    assert [str(run) for run in rtsp.data_ports] == ["5004-5005/udp"]


def test_data_ports_and_affinity_as_they_are_written() -> None:
    own = "{port: 7000, protocol: 'a.b:KIND', affinity: service, data_ports: [7001/tcp, 7000-7009/udp]}"
    (vip,) = parse(services("{port: 80, protocol: http}", own)).vips
    web, service = vip.services
    assert vip.affinity_of(web) == "client"
    assert service.affinity == "service"
    assert [str(run) for run in service.data_ports] == ["7001/tcp", "7000-7009/udp"]
    assert [vip.service(port) for port in (80, 7000, 7001, 7002)] == [web, service, service, None]
    assert [vip.service(port, "udp") for port in (80, 7000, 7009, 7010)] == [None, service, service, None]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (
            ["{port: 21, protocol: ftp, data_ports: [x]}"],
            "c.yaml:12: vips[0].services[0].data_ports[0]: 'x' is not PORT",
        ),
        (["{port: 21, protocol: ftp, data_ports: 20}"], "c.yaml:12: vips[0].services[0].data_ports: must be a list"),
        (["{port: 21, protocol: ftp, data_ports: [9-8]}"], "services[0].data_ports[0]: '9-8' must go up from 1"),
        (["{port: 9, protocol: 'a:B', data_ports: [10]}"], "services[0].data_ports[0]: '10': say /tcp or /udp"),
        (
            ["{port: 21, protocol: ftp, affinity: connection}"],
            "c.yaml:12: vips[0].services[0].affinity: must be client",
        ),
        (
            ["{port: 21, protocol: ftp, affinity: port}"],
            "services[0].affinity: 'port' is not one of connection, client,",
        ),
        (["{port: 20, protocol: ftp}"], "vips[0].services: data ports 20/tcp contain port 20 of a service"),
        (["{port: 80, protocol: http}", "{port: 21, protocol: ftp, data_ports: [70-90]}"], "70-90/tcp contain port 80"),
        (["{port: 21, protocol: ftp, data_ports: [5-9, 9]}"], "data ports 9/tcp and 5-9/tcp overlap"),
        (["{port: 21, protocol: ftp}", "{port: 22, protocol: ftp}"], "data ports 20/tcp and 20/tcp overlap"),
    ],
)
def test_what_is_wrong_with_data_ports_is_named(entries: list[str], problem: str) -> None:
    found = problems(services(*entries))
    assert any(problem in each for each in found), found


def test_data_ports_without_affinity_of_their_own_are_a_mistake_where_the_vip_goes_by_connection() -> None:
    own = services("{port: 9, protocol: 'a:B', data_ports: [10/tcp]}")
    (problem,) = problems(own.replace("affinity: client", "affinity: connection"))
    assert "services[0].affinity: must be client or service" in problem
    assert parse(own).vips[0].services[0].affinity is None


# --- what no single field can say ---
def test_a_vip_that_is_a_servers_own_address_is_named() -> None:
    (problem,) = changed("address: 10.0.0.100", "address: 10.0.0.11")
    assert "vips[0].address: is also a server's own address" in problem


SECOND_VIP = "  - address: {}\n    services: [{{port: 80, protocol: http}}]\nservers:\n"


def test_vips_of_both_families_stand_side_by_side_whatever_the_servers_addresses_are() -> None:
    two = EXAMPLE.replace("servers:\n", SECOND_VIP.format('"fd00::100"'))
    for text in (two, two.replace("10.0.0.11", "fd00::11").replace("10.0.0.12", "fd00::12")):
        configuration = parse(text)
        assert [(vip.address, vip.version) for vip in configuration.vips] == [("10.0.0.100", 4), ("fd00::100", 6)]


NO_HOST = ["224.0.0.1", "0.0.0.0", "127.0.0.1", "169.254.0.1"]
NO_HOST6 = ["ff02::1", "::", "::1", "fe80::1", "fd00::1%eth0", "::ffff:10.0.0.100"]


@pytest.mark.parametrize("address", NO_HOST + NO_HOST6)
def test_an_address_that_no_service_can_have_is_named(address: str) -> None:
    for field in ("10.0.0.100", "10.0.0.11"):
        (problem,) = changed(f"address: {field}\n", f'address: "{address}"\n')
        assert f"address: '{address}' is not an IP address of one host" in problem


def test_a_vip_twice_is_named() -> None:
    (problem,) = changed("servers:\n", SECOND_VIP.format("10.0.0.100"))
    assert "vips[1].address: 10.0.0.100 is used twice" in problem


def test_two_spellings_of_one_address_are_one_address() -> None:
    text = EXAMPLE.replace("10.0.0.100", "fd00::100").replace("10.0.0.11", "fd00::11").replace("10.0.0.12", "fd00::12")
    found = problems(text.replace("servers:\n", SECOND_VIP.format("FD00:0::100")))
    assert any("vips[1].address: fd00::100 is used twice" in problem for problem in found)
    parse(text.replace("servers:\n", SECOND_VIP.format("fd00::101")))


# --- several at once ---
def test_all_mistakes_are_reported_together() -> None:
    text = EXAMPLE
    for old, new in (
        ("br0", "a-name-too-long-for-one"),
        ("slots: 128", "slots: 3"),
        ("- port: 80\n", "- port: 0\n"),
        ("name: web2", "name: web1"),
        ("embedded: /", "embedded: "),
        ("timeout_ms: 50", "timeout_ms: never"),
        ("api:", "apis:"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    found = "\n".join(problems(text))
    for path in (
        "c.yaml:2: switch.bridge",
        "c.yaml:10: vips[0].slots",
        "c.yaml:12: vips[0].services[0].port",
        "servers[1].name",
        "c.yaml:28: state.embedded",
        "c.yaml:31: detection.timeout_ms",
        "c.yaml:34: apis: unknown field; known are",
    ):
        assert path in found


# --- what is no configuration at all ---
@pytest.mark.parametrize("text", ["", "# nothing\n", "5", "[]", "just words"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "must be a mapping" in problems(text)[0]


@pytest.mark.parametrize(
    "text", ["switch: [", "a: b: c", "\tx: 1", "a: 1\n---\nb: 2\n", "x: \0", "a: &a\n  *a : 1\n", "%BAD\n---\n*x"]
)
def test_what_is_not_yaml_is_refused(text: str) -> None:
    assert problems(text)[0].startswith("c.yaml")


def test_a_file_is_read_and_its_name_stands_in_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "takeover.yaml"
    path.write_text(EXAMPLE)
    assert load(path) == parse(EXAMPLE)
    path.write_text(EXAMPLE.replace("slots: 128", "slots: 3"))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.problems == [f"{path}:10: vips[0].slots: 3 is not a power of two"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfd")
    for path in (missing, binary, tmp_path):
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        assert caught.value.problems[0].startswith(f"{path}: cannot be read: ")


def test_two_listeners_cannot_share_an_address() -> None:
    example = (Path(__file__).parents[2] / "docs" / "takeover.example.yaml").read_text()
    text = example.replace("listen: 127.0.0.1:8080", "listen: 127.0.0.1:6653")
    with pytest.raises(ConfigurationError, match=r"api\.listen: is the same as switch\.listen"):
        parse(text, "c.yaml")


def test_what_is_nested_too_deeply_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        parse("[" * 20_000)


# --- FTP's users ---
_DIGEST = f"scrypt:{'a' * 32}:{'b' * 64}"
_FTP = f"""  access_log: false
  ftp:
    anonymous: false
    users:
      - {{name: ann, password: "{_DIGEST}", write: [/in, /out]}}
      - {{name: bob, password: "{_DIGEST}"}}
"""


def test_users_of_ftp_and_where_they_may_write() -> None:
    ftp = parse(EXAMPLE.replace("  access_log: false\n", _FTP)).serving.ftp
    assert ftp == Ftp(False, (FtpUser("ann", _DIGEST, ("/in", "/out")), FtpUser("bob", _DIGEST, ())))
    assert Serving().ftp == Ftp(anonymous=True, users=()), "everybody reads, and nobody writes"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name: bob", "name: ann", "c.yaml:50: serving.ftp.users[1].name: ann is used twice"),
        ("name: bob", "name: anonymous", "c.yaml:50: serving.ftp.users[1].name: 'anonymous' is not a user's name"),
        ("[/in, /out]", "[in]", "c.yaml:49: serving.ftp.users[0].write: 'in' is not an absolute path"),
        ("anonymous: false", "anonymous: 1", "c.yaml:47: serving.ftp.anonymous: '1' is not true or false"),
        ("anonymous: false", "guests: 1", "c.yaml:47: serving.ftp.guests: unknown field; known are anonymous, users"),
        (f'bob, password: "{_DIGEST}"', "bob, password: secret", "c.yaml:50: serving.ftp.users[1].password: "),
    ],
)
def test_a_mistake_in_ftps_users_is_named(old: str, new: str, problem: str) -> None:
    text = EXAMPLE.replace("  access_log: false\n", _FTP)
    assert text.count(old) == 1
    (found,) = problems(text.replace(old, new))
    assert found.startswith(problem)


def test_what_should_be_a_password_digest_is_not_repeated() -> None:
    """It may be the password itself."""
    text = EXAMPLE.replace("  access_log: false\n", _FTP).replace(
        f'bob, password: "{_DIGEST}"', "bob, password: secret"
    )
    assert "secret" not in str(problems(text))


@pytest.mark.parametrize("address", ["0.0.0.0", "'[::]", "192.0.2.1"])
def test_an_api_that_others_can_ask_needs_a_token(address: str) -> None:
    quote = "'" if address.startswith("'") else ""
    listen = f"listen: {address}:8090{quote}"
    without = EXAMPLE.replace("listen: 127.0.0.1:8090\n  token_file: /etc/takeover/token", listen)
    (problem,) = problems(without)
    assert problem.startswith("c.yaml:35: api.listen: ") and "api.token_file is missing" in problem
    parse(EXAMPLE.replace("listen: 127.0.0.1:8090", listen))


@pytest.mark.parametrize("listen", ["127.0.0.1:8090", "127.0.0.53:8090", "'[::1]:8090'"])
def test_an_api_on_loopback_needs_none(listen: str) -> None:
    parse(EXAMPLE.replace("127.0.0.1:8090\n  token_file: /etc/takeover/token", listen))
