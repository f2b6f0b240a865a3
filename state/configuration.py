"""The configuration: one YAML file for controller and agents, checked as a whole.

Every problem is found in one pass and named with its line and its path (`example.yaml:12: servers[1].address: ...`).
Nothing is started from a file that has any.

A service's protocol is one that is built in, or an import path. Only agents import it (and `takeover check`): they give
`load` a function that says what is wrong with a protocol. The controller need not have it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from state import ports
from state.errors import ConfigurationError
from state.ports import DataPorts

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_MAC = re.compile(r"^([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
_PASSWORD = re.compile(r"^scrypt:[0-9a-f]{32}:[0-9a-f]{64}\Z")
_IMPORT_PATH = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", re.ASCII)
AFFINITIES = ("connection", "client", "service")
"""What decides a connection's slot: bits of the client's port, bits of its address, or nothing: all are in slot 0."""
LIMIT_HEADER_BYTES = 16 * 1024
"""Longest request header that may be configured: what was read of one is part of each checkpoint."""

ProtocolProblem = Callable[[str], str | None]
"""What is wrong with a protocol's name, if anything is."""


@dataclass(frozen=True)
class Address:
    """Host and port to listen on or to connect to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Switch:
    bridge: str
    listen: Address


@dataclass(frozen=True)
class Protocol:
    """What the configuration need not say of a protocol that is built in."""

    affinity: str | None = None
    transport: str | None = None
    """Of its data connections."""
    data_ports: tuple[DataPorts, ...] = ()


PROTOCOLS = {
    "http": Protocol(),
    "ftp": Protocol("client", ports.TCP, (DataPorts(20, 20, ports.TCP), DataPorts(40960, 45055, ports.TCP))),
    "rtsp": Protocol("service", ports.UDP, (DataPorts(5004, 5005, ports.UDP),)),
}
"""Those that are built in."""


@dataclass(frozen=True)
class Service:
    port: int
    protocol: str
    protected: bool = True
    affinity: str | None = None
    """None: its VIP's."""
    data_ports: tuple[DataPorts, ...] = ()
    """Local ports of its protocol's data connections, those that a server opens and those that a client opens."""

    def has(self, port: int, transport: str = ports.TCP) -> bool:
        """Is this one of its ports?"""
        if port == self.port and transport == ports.TCP:
            return True
        return any(run.transport == transport and port in run.numbers for run in self.data_ports)


@dataclass(frozen=True)
class Vip:
    address: str
    mac: str
    services: tuple[Service, ...]
    affinity: str = "connection"
    """Of those services that have none of their own."""
    slots: int = 64

    @property
    def version(self) -> int:
        """Of the Internet Protocol: 4 or 6."""
        return ipaddress.ip_address(self.address).version

    def service(self, port: int, transport: str = ports.TCP) -> Service | None:
        """The service that a local port belongs to, as its own port or as that of a data connection."""
        return next((service for service in self.services if service.has(port, transport)), None)

    def affinity_of(self, service: Service | None) -> str:
        return (service.affinity if service is not None else None) or self.affinity


@dataclass(frozen=True)
class Server:
    name: str
    address: str
    port: str
    backups: tuple[str, ...]
    docroot: str


@dataclass(frozen=True)
class Detection:
    """Milliseconds. A server is hung when its loop was silent for `timeout`."""

    heartbeat: int = 20
    timeout: int = 120
    proof: int = 1500
    """How long a connection may stay unready whose client is heard, before it is reset. With detection, within 2 s."""
    silence: int = 120_000
    """How long a connection may stay unready whose client is not heard at all."""


@dataclass(frozen=True)
class Api:
    listen: Address = Address("127.0.0.1", 8080)
    token_file: str | None = None


@dataclass(frozen=True)
class FtpUser:
    name: str
    password: str
    """`scrypt:SALT:DIGEST`, see `dataplane.ftp.passwords`."""
    write: tuple[str, ...] = ()
    """Folders below the document root where the user may write."""


@dataclass(frozen=True)
class Ftp:
    """Who may use FTP. Anonymous clients only read."""

    anonymous: bool = True
    users: tuple[FtpUser, ...] = ()


@dataclass(frozen=True)
class Serving:
    """What one agent takes on. Times are milliseconds."""

    header_bytes: int = LIMIT_HEADER_BYTES
    """A longer request header is answered with 431."""
    header: int = 15_000
    """A request header that is not complete so long after its first byte is answered with 408."""
    idle: int = 120_000
    """A connection on which no request has begun for so long is closed."""
    send: int = 300_000
    """A client that takes nothing of what is sent to it for so long is reset."""
    connections: int = 16_384
    """Further ones are reset when they are made. Connections that are taken over always find room."""
    connections_per_client: int = 8_192
    """The same for one client address."""
    stop: int = 1_000
    """How long responses that are under way may go on after SIGTERM before a backup goes on with them."""
    access_log: bool = True
    ftp: Ftp = field(default_factory=Ftp)


@dataclass(frozen=True)
class Configuration:
    switch: Switch
    agents: Address
    """Where agents connect to the controller."""
    vips: tuple[Vip, ...]
    servers: tuple[Server, ...]
    state: str
    detection: Detection = field(default_factory=Detection)
    api: Api = field(default_factory=Api)
    serving: Serving = field(default_factory=Serving)

    def server(self, name: str) -> Server | None:
        return next((server for server in self.servers if server.name == name), None)


class _Checker:
    """Walks YAML nodes, which know their lines, and collects problems instead of stopping at the first."""

    def __init__(self, file: str, protocol_problem: ProtocolProblem | None) -> None:
        self.file = file
        self._protocol_problem = protocol_problem
        self.problems: list[str] = []

    def problem(self, node: yaml.Node | None, path: str, sentence: str) -> None:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        place = f"{path}: " if path else ""
        self.problems.append(f"{self.file}{line}: {place}{sentence}")

    def mapping(
        self, node: yaml.Node | None, path: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, path, "must be a mapping")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in required + optional:
                known = ", ".join(required + optional)
                self.problem(key, f"{path}.{name}".lstrip("."), f"unknown field; known are {known}")
            elif name in found:
                self.problem(key, f"{path}.{name}".lstrip("."), "given twice")
            found[name] = value
        for name in required:
            if name not in found:
                self.problem(node, f"{path}.{name}".lstrip("."), "missing")
        return found

    def sequence(self, node: yaml.Node | None, path: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.problem(node, path, "must be a list with at least one entry")
            return []
        return list(node.value)

    def text(self, node: yaml.Node | None, path: str, valid: Callable[[str], object], what: str) -> str:
        """The scalar as text; `valid` returns false or raises ValueError when it is not `what`."""
        if node is None:
            return ""
        if isinstance(node, yaml.ScalarNode):
            try:
                if valid(node.value):
                    return str(node.value)
            except ValueError:
                pass
            self.problem(node, path, f"{node.value!r} is not {what}")
        else:
            self.problem(node, path, f"must be {what}")
        return ""

    def secret(self, node: yaml.Node | None, path: str, valid: re.Pattern[str], what: str) -> str:
        """As `text`, but a problem does not repeat it."""
        if node is None or (isinstance(node, yaml.ScalarNode) and valid.match(node.value)):
            return str(node.value) if node is not None else ""
        self.problem(node, path, f"must be {what}")
        return ""

    def address(self, node: yaml.Node | None, path: str) -> str:
        text = self.text(node, path, _is_host_address, "an IP address of one host, without a zone")
        return str(ipaddress.ip_address(text)) if text else ""

    def integer(self, node: yaml.Node | None, path: str, low: int, high: int, default: int) -> int:
        if node is None:
            return default
        text = self.text(node, path, lambda value: low <= int(value) <= high, f"a number from {low} to {high}")
        return int(text) if text else default

    def boolean(self, node: yaml.Node | None, path: str, default: bool) -> bool:
        if node is None:
            return default
        return self.text(node, path, lambda value: value in ("true", "false"), "true or false") == "true"

    def protocol(self, node: yaml.Node | None, path: str) -> str:
        what = f"a protocol; known are {', '.join(PROTOCOLS)}; one of your own is package.module:NAME"
        name = self.text(node, path, lambda text: text in PROTOCOLS or _IMPORT_PATH.match(text), what)
        problem = self._protocol_problem(name) if name and self._protocol_problem is not None else None
        if problem is not None:
            self.problem(node, path, problem)
        return name

    def affinity(self, node: yaml.Node | None, path: str) -> str:
        return self.text(node, path, AFFINITIES.__contains__, f"one of {', '.join(AFFINITIES)}")

    def ports(self, node: yaml.Node, path: str, transport: str | None) -> DataPorts | None:
        try:
            return ports.read(str(node.value), transport)
        except ValueError as error:
            self.problem(node, path, str(error))
            return None

    def listen(self, node: yaml.Node | None, path: str, default: Address | None = None) -> Address:
        if node is None:
            return default or Address("", 0)
        text = self.text(node, path, _split_listen, "ADDRESS:PORT")
        return _split_listen(text) if text else Address("", 0)


def _split_listen(text: str) -> Address:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    ipaddress.ip_address(host)
    if not 1 <= int(port) <= 65535:
        raise ValueError(port)
    return Address(host, int(port))


def _is_host_address(text: str) -> bool:
    """What a server or a service can have, whichever link it is on (RFC 4007: link-local ones mean a link, too)."""
    address = ipaddress.ip_address(text)
    if "%" in text or getattr(address, "ipv4_mapped", None) is not None:
        return False
    return not (address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local)


def _is_name(text: str) -> bool:
    return bool(_NAME.match(text))


def _is_path(text: str) -> bool:
    return text.startswith("/")


def _is_bridge(text: str) -> bool:
    return _is_name(text) and len(text) <= 15


def load(path: str | Path, protocol_problem: ProtocolProblem | None = None) -> Configuration:
    """Read and check a file. Raises `ConfigurationError` with every problem in it.

    Without `protocol_problem`, a protocol's import path is checked for its form only.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: cannot be read: {error}"]) from None
    return parse(text, str(path), protocol_problem)


def parse(text: str, file: str = "configuration", protocol_problem: ProtocolProblem | None = None) -> Configuration:
    """The same for text that is already here; `file` is the name used in problems."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigurationError([f"{file}{line}: not YAML: {getattr(error, 'problem', error)}"]) from None
    except RecursionError:
        raise ConfigurationError([f"{file}: nested too deeply"]) from None
    check = _Checker(file, protocol_problem)
    top = check.mapping(root, "", ("switch", "agents", "vips", "servers", "state"), ("detection", "api", "serving"))
    configuration = Configuration(
        switch=_switch(check, top.get("switch")),
        agents=_agents(check, top.get("agents")),
        vips=tuple(_vip(check, node, f"vips[{i}]") for i, node in enumerate(check.sequence(top.get("vips"), "vips"))),
        servers=_servers(check, top.get("servers")),
        state=_state(check, top.get("state")),
        detection=_detection(check, top.get("detection")),
        api=_api(check, top.get("api")),
        serving=_serving(check, top.get("serving")),
    )
    if top:
        _check_together(check, top, configuration)
    if check.problems:
        raise ConfigurationError(check.problems)
    return configuration


def _switch(check: _Checker, node: yaml.Node | None) -> Switch:
    if node is None:
        return Switch("", Address("", 0))
    fields = check.mapping(node, "switch", ("bridge", "listen"))
    bridge = check.text(
        fields.get("bridge"), "switch.bridge", _is_bridge, "a bridge's name (at most 15 letters and digits)"
    )
    return Switch(bridge, check.listen(fields.get("listen"), "switch.listen"))


def _agents(check: _Checker, node: yaml.Node | None) -> Address:
    if node is None:
        return Address("", 0)
    fields = check.mapping(node, "agents", ("listen",))
    return check.listen(fields.get("listen"), "agents.listen")


def _vip(check: _Checker, node: yaml.Node, path: str) -> Vip:
    fields = check.mapping(node, path, ("address", "services"), ("mac", "affinity", "slots"))
    affinity = check.affinity(fields.get("affinity"), f"{path}.affinity") or "connection"
    services = []
    for i, entry in enumerate(check.sequence(fields.get("services"), f"{path}.services")):
        services.append(_service(check, entry, f"{path}.services[{i}]", affinity))
    _check_ports(check, fields.get("services"), f"{path}.services", services)
    slots = check.integer(fields.get("slots"), f"{path}.slots", 1, 256, 64)
    if slots & (slots - 1):
        check.problem(fields.get("slots"), f"{path}.slots", f"{slots} is not a power of two")
    address = check.address(fields.get("address"), f"{path}.address")
    mac = fields.get("mac")
    return Vip(
        address=address,
        mac=check.text(mac, f"{path}.mac", _MAC.match, "a MAC address like 02:00:00:00:01:00")
        if mac is not None
        else _vip_mac(address),
        services=tuple(services),
        affinity=affinity,
        slots=slots,
    )


def _service(check: _Checker, node: yaml.Node, path: str, vip_affinity: str) -> Service:
    fields = check.mapping(node, path, ("port", "protocol"), ("protected", "affinity", "data_ports"))
    protocol = check.protocol(fields.get("protocol"), f"{path}.protocol")
    known = PROTOCOLS.get(protocol, Protocol())
    affinity = check.affinity(fields.get("affinity"), f"{path}.affinity") or known.affinity
    runs = known.data_ports
    if "data_ports" in fields:
        entries = check.sequence(fields["data_ports"], f"{path}.data_ports")
        found = [check.ports(entry, f"{path}.data_ports[{i}]", known.transport) for i, entry in enumerate(entries)]
        runs = tuple(run for run in found if run is not None)
    if runs and (affinity or vip_affinity) == "connection":
        sentence = "must be client or service: data connections have ports of their own"
        check.problem(fields.get("affinity", node), f"{path}.affinity", sentence)
    return Service(
        check.integer(fields.get("port"), f"{path}.port", 1, 65535, 0),
        protocol,
        check.boolean(fields.get("protected"), f"{path}.protected", True),
        affinity,
        runs,
    )


def _check_ports(check: _Checker, node: yaml.Node | None, path: str, services: list[Service]) -> None:
    """Every port belongs to one service."""
    own = [service.port for service in services if service.port]
    if len(set(own)) != len(own):
        check.problem(node, path, "a port appears twice")
    runs = [run for service in services for run in service.data_ports]
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if run.overlaps(other):
                check.problem(node, path, f"data ports {run} and {other} overlap")
        for port in own:
            if run.transport == ports.TCP and port in run.numbers:
                check.problem(node, path, f"data ports {run} contain port {port} of a service")


def _vip_mac(address: str) -> str:
    """A locally administered MAC made of the address, so that it is the same at every start."""
    if not address:
        return "02:00:00:00:00:00"
    tail = ipaddress.ip_address(address).packed[-4:]
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x7A, *tail))


def _servers(check: _Checker, node: yaml.Node | None) -> tuple[Server, ...]:
    servers: list[Server] = []
    entries = check.sequence(node, "servers")
    for i, entry in enumerate(entries):
        place = f"servers[{i}]"
        fields = check.mapping(entry, place, ("name", "address", "port", "docroot"), ("backups",))
        backups = fields.get("backups")
        names = check.sequence(backups, f"{place}.backups") if backups is not None else []
        servers.append(
            Server(
                name=check.text(fields.get("name"), f"{place}.name", _is_name, "a server's name"),
                address=check.address(fields.get("address"), f"{place}.address"),
                port=check.text(fields.get("port"), f"{place}.port", _is_name, "a switch port's name"),
                backups=tuple(check.text(n, f"{place}.backups", _is_name, "a server's name") for n in names),
                docroot=check.text(fields.get("docroot"), f"{place}.docroot", _is_path, "an absolute path"),
            )
        )
    for attribute in ("name", "address", "port"):
        seen: set[str] = set()
        for i, server in enumerate(servers):
            value = getattr(server, attribute)
            if value and value in seen:
                check.problem(entries[i], f"servers[{i}].{attribute}", f"{value} is used twice")
            seen.add(value)
    known = {server.name for server in servers}
    for i, server in enumerate(servers):
        for backup in server.backups:
            if backup and (backup not in known or backup == server.name):
                sentence = "is not another server of this file"
                check.problem(entries[i], f"servers[{i}].backups", f"{backup} {sentence}")
    return tuple(servers)


def _state(check: _Checker, node: yaml.Node | None) -> str:
    if node is None:
        return ""
    fields = check.mapping(node, "state", ("embedded",))
    return check.text(fields.get("embedded"), "state.embedded", _is_path, "an absolute path")


def _detection(check: _Checker, node: yaml.Node | None) -> Detection:
    if node is None:
        return Detection()
    fields = check.mapping(node, "detection", (), ("heartbeat_ms", "timeout_ms", "proof_ms", "silence_ms"))
    detection = Detection(
        check.integer(fields.get("heartbeat_ms"), "detection.heartbeat_ms", 1, 10_000, 20),
        check.integer(fields.get("timeout_ms"), "detection.timeout_ms", 2, 60_000, 120),
        check.integer(fields.get("proof_ms"), "detection.proof_ms", 100, 60_000, 1500),
        check.integer(fields.get("silence_ms"), "detection.silence_ms", 100, 3_600_000, 120_000),
    )
    if detection.timeout < 2 * detection.heartbeat:
        check.problem(node, "detection.timeout_ms", "must be at least two heartbeats")
    return detection


def _api(check: _Checker, node: yaml.Node | None) -> Api:
    if node is None:
        return Api()
    fields = check.mapping(node, "api", (), ("listen", "token_file"))
    token_file = fields.get("token_file")
    listen = check.listen(fields.get("listen"), "api.listen", Address("127.0.0.1", 8080))
    if token_file is None and listen.host and not ipaddress.ip_address(listen.host).is_loopback:
        check.problem(
            fields["listen"], "api.listen", f"{listen.host} can be asked by others: api.token_file is missing"
        )
    return Api(
        listen,
        check.text(token_file, "api.token_file", _is_path, "an absolute path") if token_file is not None else None,
    )


_SERVING = {
    "header_bytes": ("header_bytes", 1024, LIMIT_HEADER_BYTES),
    "header_ms": ("header", 100, 3_600_000),
    "idle_ms": ("idle", 100, 86_400_000),
    "send_ms": ("send", 1_000, 86_400_000),
    "connections": ("connections", 1, 1_000_000),
    "connections_per_client": ("connections_per_client", 1, 1_000_000),
    "stop_ms": ("stop", 0, 3_600_000),
}
"""Field of the file: attribute, least and greatest value."""


def _serving(check: _Checker, node: yaml.Node | None) -> Serving:
    default = Serving()
    if node is None:
        return default
    fields = check.mapping(node, "serving", (), (*_SERVING, "access_log", "ftp"))
    numbers = {
        attribute: check.integer(fields.get(name), f"serving.{name}", low, high, getattr(default, attribute))
        for name, (attribute, low, high) in _SERVING.items()
    }
    return Serving(
        **numbers,
        access_log=check.boolean(fields.get("access_log"), "serving.access_log", default.access_log),
        ftp=_ftp(check, fields.get("ftp")),
    )


def _ftp(check: _Checker, node: yaml.Node | None) -> Ftp:
    if node is None:
        return Ftp()
    fields = check.mapping(node, "serving.ftp", (), ("anonymous", "users"))
    users: list[FtpUser] = []
    entries = check.sequence(fields["users"], "serving.ftp.users") if "users" in fields else []
    for i, entry in enumerate(entries):
        place = f"serving.ftp.users[{i}]"
        given = check.mapping(entry, place, ("name", "password"), ("write",))
        folders = check.sequence(given["write"], f"{place}.write") if "write" in given else []
        what = "a digest that `python -m dataplane.ftp.passwords` has made"
        user = FtpUser(
            check.text(given.get("name"), f"{place}.name", _is_user, "a user's name"),
            check.secret(given.get("password"), f"{place}.password", _PASSWORD, what),
            tuple(check.text(folder, f"{place}.write", _is_path, "an absolute path") for folder in folders),
        )
        if user.name and any(user.name == other.name for other in users):
            check.problem(entry, f"{place}.name", f"{user.name} is used twice")
        users.append(user)
    return Ftp(check.boolean(fields.get("anonymous"), "serving.ftp.anonymous", True), tuple(users))


def _is_user(text: str) -> bool:
    return _is_name(text) and text.lower() not in ("anonymous", "ftp")


def _check_together(check: _Checker, top: dict[str, yaml.Node], configuration: Configuration) -> None:
    """What no single field can say."""
    listens = {"switch": configuration.switch.listen, "agents": configuration.agents, "api": configuration.api.listen}
    for name, others in (("agents", ("switch",)), ("api", ("switch", "agents"))):
        for other in others:
            if listens[name].port and listens[name] == listens[other]:
                check.problem(top.get(name), f"{name}.listen", f"is the same as {other}.listen")
    seen: set[str] = set()
    for i, vip in enumerate(configuration.vips):
        if not vip.address:
            continue
        if vip.address in seen:
            check.problem(top.get("vips"), f"vips[{i}].address", f"{vip.address} is used twice")
        seen.add(vip.address)
        if any(vip.address == server.address for server in configuration.servers):
            check.problem(top.get("vips"), f"vips[{i}].address", "is also a server's own address")
