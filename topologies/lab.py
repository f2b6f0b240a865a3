"""The lab: servers, clients and a controller on this machine, all real, in namespaces of their own.

    with Lab(servers=3, clients=2) as lab:
        curl = lab.popen("c1", ["curl", "-sS", "-o", "/tmp/x", "http://vip/object.bin"])
        lab.fail("s1", how="kill")
        curl.wait(timeout=30)

Each server has a second interface towards the controller, as real servers have a management network: cutting a server
off from its clients (`how="link"`) does not cut it off from the controller, and the other way round.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from controller.cli import ApiFailed, fetch, fetch_all
from state import configuration as configuration_
from state.configuration import Configuration, Vip
from topologies import condition, lock, objects
from topologies.lock import Lock, Role
from topologies.record import FOLDER, MOST_HOSTS, LabError, Record

READY_SECONDS = 30.0
_POLL_SECONDS = 0.01
_STOP_MARGIN = 5.0
_CONTROLLER = "10.255.0.1"
_AGENTS_PORT = 6680
_PORT_QUEUE_BYTES = 2 << 20
FTP_USER, FTP_PASSWORD = "writer", "takeover"
"""Whoever has the lab has these."""
HOWS = ("kill", "hang", "power", "link", "stop")
_POWER_OFF = "add table inet off; add chain inet off o { type filter hook output priority -300; policy drop; }; \
add chain inet off i { type filter hook prerouting priority -300; policy drop; }"


class Lab:
    """A running lab; `up()` and `down()`, or a `with` block. Raises `LabError` and leaves nothing behind."""

    def __init__(
        self,
        servers: int = 2,
        clients: int = 1,
        *,
        docroot: str | None = None,
        config: str | None = None,
        state: str = "embedded",
        docroots: dict[str, str] | None = None,
        both: bool = False,
        serving: dict[str, object] | None = None,
        detection: dict[str, object] | None = None,
        services: Mapping[int | str, str | Mapping[str, object]] | None = None,
    ) -> None:
        """`docroots`: another document root for some servers. `both`: port 81 serves the same without protection.
        `serving`, `detection`: fields of the configuration's parts of those names. `services`: protocols by port,
        beside FTP on port 21, HTTP on 80 and RTSP on 554, for example `{7000: "mypackage.module:KIND"}`, or instead of
        the protocol's name all of the configuration's fields of that service.
        """
        if not (1 <= servers <= MOST_HOSTS and 1 <= clients <= MOST_HOSTS):
            raise LabError(f"a lab has from 1 to {MOST_HOSTS} servers and from 1 to {MOST_HOSTS} clients")
        if state != "embedded":
            raise LabError(f"state {state!r} is not known: only embedded is")
        if docroot is not None and not Path(docroot).is_dir():
            raise LabError(f"document root {docroot} is not a directory")
        if services and config is not None:
            raise LabError("a configuration of your own names its services itself")
        self._server_count, self._client_count = servers, clients
        self._docroot = Path(docroot).resolve() if docroot is not None else FOLDER / "www"
        self._make_objects = docroot is None
        self._docroots = docroots or {}
        self._both = both
        self._serving = serving or {}
        self._detection = detection or {}
        self._services = services or {}
        self._config_file = config
        self._given = configuration_.load(config) if config is not None else None
        self._record = Record()
        self._lock: Lock | None = None
        self._net: Any = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._failed = self._record.failed

    # --- up and down ---
    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.down()

    def up(self, role: Role = "program") -> None:
        """Returns when every server is up and has a backup that holds its checkpoints."""
        _check_machine()
        self._lock = Lock.acquire(role)
        try:
            self._remove_leftovers()
            FOLDER.mkdir(parents=True, exist_ok=True)
            if role == "up":
                self._record.add_process(os.getpid())
            self._record.save()
            if self._make_objects:
                objects.make(self._docroot)
            self._configure()
            facts = {"api": self.api, "docroot": str(self._docroot), "config": str(self.config_path)}
            self._record.facts = facts
            self._build()
            for server in self.configuration.servers:
                self._start(server.name, server.name, "agent", "--name", server.name)
            self._wait_ready()
            self._record.ready = True
            self._record.save()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove everything that `up` made; nothing when it made nothing, or this was done before."""
        if self._lock is None:
            return
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        if self._net is not None:
            # Not `net.stop()`: it talks to each host's shell, and waits for ever for one that does not answer.
            for node in (*self._net.hosts, *self._net.switches, *self._net.controllers):
                if node.shell is not None:
                    _kill_group(node.shell)
                    node.shell = None
            self._net = None
        try:
            self._record.remove_everything()
        finally:
            self._lock.release()
            self._lock = None
            self._record = Record()
            self._failed = self._record.failed

    def _remove_leftovers(self) -> None:
        """Of a lab whose holder died without `down`: the lock was free, so nobody holds it."""
        old = Record.load()
        if old is not None:
            old.remove_everything()

    def _configure(self) -> None:
        if self._given is not None:
            self.configuration: Configuration = self._given
            assert self._config_file is not None
            self.config_path = Path(self._config_file).resolve()
            return
        from topologies import vip

        names = [f"s{number}" for number in range(1, self._server_count + 1)]
        served: dict[int, str | Mapping[str, object]] = {21: "ftp", 80: "http", 554: "rtsp"}
        served |= {int(port): protocol for port, protocol in self._services.items()}
        listed = [
            json.dumps({"port": port, **({"protocol": given} if isinstance(given, str) else given)})
            for port, given in served.items()
        ]
        if self._both:
            listed.append("{port: 81, protocol: http, protected: false}")
        text = f"""# Made by the lab.
switch: {{bridge: {vip.BRIDGE}, listen: "127.0.0.1:6653"}}
agents: {{listen: "{_CONTROLLER}:{_AGENTS_PORT}"}}
vips:
  - address: {vip.VIP}
    services: [{", ".join(listed)}]
  - address: "{vip.VIP6}"
    services: [{", ".join(listed)}]
state: {{embedded: {FOLDER}/state.db}}
serving: {json.dumps({"ftp": {"users": [_ftp_user()]}, **self._serving})}
detection: {json.dumps(self._detection)}
servers:
"""
        for i, name in enumerate(names):
            backups = ", ".join(names[i + 1 :] + names[:i])
            text += f"""  - name: {name}
    address: {vip.server_address(i + 1)}
    port: {vip.server_port(name)}
    docroot: {self._docroots.get(name, self._docroot)}
    backups: [{backups}]
""".replace("    backups: []\n", "")
        self.config_path = FOLDER / "takeover.yaml"
        self.config_path.write_text(text)
        self.configuration = configuration_.load(self.config_path)

    # --- the network ---
    def _build(self) -> None:
        from mininet.log import setLogLevel
        from mininet.net import Mininet
        from mininet.node import OVSSwitch, RemoteController

        from topologies.vip import BRIDGE, VipTopo

        setLogLevel("error")
        listen = self.configuration.switch.listen
        self._refuse_what_is_not_ours(BRIDGE)
        self._record.bridges.append(BRIDGE)
        self._record.save()
        try:
            self._net = Mininet(
                topo=VipTopo(
                    servers=len(self.configuration.servers),
                    clients=self._client_count,
                    vips=tuple(vip.address for vip in self.configuration.vips),
                ),
                switch=lambda name, **kw: OVSSwitch(
                    name, datapath="user", protocols="OpenFlow13", reconnectms=1000, **kw
                ),
                controller=None,
                build=False,
            )
            self._net.addController("ryu", RemoteController, ip=listen.host, port=listen.port)
            # Their ends in this namespace: deleting them does not wait for the hosts' namespaces to vanish.
            self._record.links += [f"{BRIDGE}-{name}" for name in self._host_names()]
            self._record.save()
            self._net.build()
            for host in self._net.hosts:
                self._record.add_host(host.name, host.pid, str(host.defaultIntf()))
                self._name_hosts(host)
                host.cmd(f"ip route add 224.0.0.0/4 dev {host.defaultIntf()}")
            for number, server in enumerate(self.configuration.servers, 1):
                self._management_link(self._net.get(server.name), number)
            # The controller listens before the switch calls: the switch's second try comes a second later or more.
            self._start("controller", None, "controller")
            self._wait_listening(listen.host, listen.port)
            with _deep_port_queues(self._record):
                self._net.start()
            for link in (BRIDGE, *self._record.links):
                _silence(link)
        except LabError:
            raise
        except Exception as error:
            raise LabError(f"the network cannot be made: {error}") from error
        made = subprocess.run(["ovs-vsctl", "--timeout=5", "br-exists", BRIDGE], capture_output=True, check=False)
        if made.returncode != 0:
            raise LabError(f"bridge {BRIDGE} cannot be made: see the log of ovs-vswitchd")

    def _refuse_what_is_not_ours(self, bridge: str) -> None:
        """What a lab left was removed before: what has these names now belongs to somebody else. Raises `LabError`."""
        found = subprocess.run(["ovs-vsctl", "--timeout=5", "br-exists", bridge], capture_output=True, check=False)
        if found.returncode == 0:
            raise LabError(f"bridge {bridge} exists and is not a lab's: ovs-vsctl del-br {bridge}, if nobody needs it")
        links = [f"{bridge}-{name}" for name in self._host_names()]
        links += [f"mgmt-{server.name}" for server in self.configuration.servers]
        for link in (bridge, *links):
            if Path("/sys/class/net", link).exists():
                raise LabError(f"interface {link} exists and is not a lab's: ip link delete {link}, if nobody needs it")

    def _host_names(self) -> list[str]:
        clients = [f"c{number}" for number in range(1, self._client_count + 1)]
        return [server.name for server in self.configuration.servers] + clients

    def _management_link(self, host: Any, number: int) -> None:
        """A wire from the server to the controller's machine that does not cross the switch."""
        outer, inner, address = f"mgmt-{host.name}", f"{host.name}-mgmt", f"10.255.0.{10 + number}"
        self._record.links.append(outer)
        self._record.save()
        for command in (
            f"ip link add {outer} type veth peer name {inner} netns {host.pid}",
            f"ip address add {_CONTROLLER} peer {address} dev {outer}",
            f"ip link set {outer} up",
        ):
            _run(command.split())
        host.cmd(f"ip address add {address} peer {_CONTROLLER} dev {inner}; ip link set {inner} up")

    def _name_hosts(self, host: Any) -> None:
        """A host file of its own, in the host's own mount namespace: `vip` is a name there and nowhere else."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.vips().items())]
        lines += [f"{other.IP()} {other.name}" for other in self._net.hosts]
        names = FOLDER / "hosts"
        names.write_text("\n".join(lines) + "\n")
        host.cmd(f"mount --bind {names} /etc/hosts")

    # --- processes ---
    def _start(self, name: str, host: str | None, *command: str) -> None:
        log = open(FOLDER / f"{name}.log", "ab")  # noqa: SIM115 - it belongs to the child
        arguments = [sys.executable, "-m", "controller.cli", "-v", *command, "--config", str(self.config_path)]
        if host is not None:
            arguments = self._inside(host, arguments)
        with log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env=self._record.environment(),
            )
        self._processes[name] = process
        self._record.add_process(process.pid, name)

    def _inside(self, host: str, command: Sequence[str]) -> list[str]:
        return ["mnexec", "-a", str(self.host_pid(host)), *command]

    def host_pid(self, host: str) -> int:
        """The pid that holds the host's namespaces. Raises `LabError`."""
        try:
            return self._record.hosts[host]
        except KeyError:
            known = ", ".join(self._record.hosts)
            raise LabError(f"there is no host {host}; there are {known}") from None

    def popen(self, host: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in a host, as `subprocess.Popen`."""
        return subprocess.Popen(self._inside(host, command), **options)

    def run(self, host: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command in a host to its end, as `subprocess.run`."""
        return subprocess.run(self._inside(host, command), **options)

    def log(self, name: str) -> str:
        """What the controller (`controller`) or a server's agent has logged."""
        return (FOLDER / f"{name}.log").read_text(errors="replace")

    def pid(self, name: str) -> int:
        """Pid of a server's agent, or of the controller."""
        return self._processes[name].pid

    def _wait_listening(self, host: str, port: int) -> None:
        def listening() -> bool:
            self._check_processes()
            with contextlib.closing(socket.socket()) as sock:
                return sock.connect_ex((host, port)) == 0

        self.until(listening, f"the controller does not listen on {host}:{port}")

    def _check_processes(self, *only: str) -> None:
        """Raises `LabError` when one (of these) has ended that was not made to fail."""
        for name, process in self._processes.items():
            if name in (only or self._processes) and name not in self._failed and process.poll() is not None:
                last = self.log(name).strip().splitlines()[-1:] or ["it said nothing"]
                raise LabError(f"{name} ended with status {process.returncode}: {last[0]}")

    def _wait_ready(self) -> None:
        names = {server.name for server in self.configuration.servers} - self._failed.keys()

        def ready() -> bool:
            self._check_processes()
            servers = [server for server in self.servers() if server["name"] in names]
            return {s["name"] for s in servers if s["state"] == "up" and (s["backup"] or len(names) == 1)} == names

        def answered() -> bool:
            """The switch has committed what the controller decided: a client is answered, on a new connection each."""
            ask = ["curl", "-sS", "--max-time", "2", "-o", "/dev/null", "http://vip/"]
            return all(self.run("c1", ask, capture_output=True, check=False).returncode == 0 for _ in range(3))

        self.until(ready, f"the servers are not up after {READY_SECONDS:.0f} s: see the logs in {FOLDER}")
        self.until(answered, "the VIP does not answer a client")

    def until(self, condition: Callable[[], object], sentence: str, seconds: float = READY_SECONDS) -> None:
        """Wait until the running system says so (its API is asked). Raises `LabError` with `sentence`."""
        limit = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ApiFailed):
                if condition():
                    return
            if time.monotonic() > limit:
                raise LabError(sentence)
            time.sleep(_POLL_SECONDS)

    # --- faults ---
    def fail(self, name: str, how: str = "kill") -> int:
        """Make a server or the controller fail. Returns when it happened: nanoseconds, wall clock.

        `stop` is no failure: SIGTERM, and the agent has ended in good order when this returns.
        """
        if how not in HOWS:
            raise LabError(f"how must be one of {', '.join(HOWS)}, not {how!r}")
        process = self._processes.get(name)
        if process is None or (name == "controller" and how in ("power", "link", "stop")):
            raise LabError(f"{name} cannot fail by {how}")
        if name in self._failed:
            raise LabError(f"{name} has failed already ({self._failed[name]}): heal it first")
        if process.poll() is not None:
            raise LabError(f"{name} has died by itself: heal it first")
        self._failed[name] = how
        if how == "power":
            _run(self._inside(name, ["nft", _POWER_OFF]))
        when = time.time_ns()
        if how in ("kill", "power"):
            process.kill()
        elif how == "stop":
            process.terminate()
        elif how == "hang":
            process.send_signal(signal.SIGSTOP)
        else:
            _run(["ip", "link", "set", self._port(name), "down"])
        self._record.save()  # the failure does not wait for the disk
        if how in ("kill", "power"):
            process.wait()
        elif how == "stop":
            self._wait_ended(name, process)
        return when

    def _wait_ended(self, name: str, process: subprocess.Popen[bytes]) -> None:
        limit = self.configuration.serving.stop / 1000 + _STOP_MARGIN
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise LabError(f"{name} has not ended {limit:.0f} s after SIGTERM") from None
        if status != 0:
            raise LabError(f"{name} ended with status {status}: see {FOLDER / name}.log")

    def heal(self, name: str) -> None:
        """Undo `fail`, or start again what died by itself; returns when the server is up again."""
        process = self._processes.get(name)
        died = process is not None and process.poll() is not None
        how = self._failed.pop(name, None)
        if process is None or (how is None and not died):
            raise LabError(f"{name} has not failed")
        if how == "power":
            _run(self._inside(name, ["nft", "delete table inet off"]))
        if how == "link":
            _run(["ip", "link", "set", self._port(name), "up"])
        if how == "hang" and not died:
            process.send_signal(signal.SIGCONT)
        if died and name == "controller":
            self._start(name, None, "controller")
        elif died:
            self._start(name, name, "agent", "--name", name)
        self._record.save()
        if name == "controller":
            self._wait_ready()
        else:
            self.until(lambda: self._is_up(name), f"{name} is not up again after {READY_SECONDS:.0f} s")

    def _is_up(self, name: str) -> bool:
        self._check_processes("controller", name)
        return bool(self.server(name)["state"] == "up")

    def _port(self, name: str) -> str:
        server = self.configuration.server(name)
        assert server is not None
        return server.port

    # --- what the API says ---
    @property
    def api(self) -> str:
        return f"http://{self.configuration.api.listen}"

    def servers(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = fetch(self.api, "/v1/servers")["items"]
        return items

    def server(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = fetch(self.api, f"/v1/servers/{name}")
        return found

    def connections(self) -> list[dict[str, Any]]:
        return fetch_all(self.api, "/v1/connections")

    def takeovers(self) -> list[dict[str, Any]]:
        return fetch_all(self.api, "/v1/takeovers")

    def vips(self) -> dict[str, str]:
        """Addresses of the VIPs by their names in every host, see `vip_names`."""
        return vip_names(self.configuration.vips)

    def address(self, host: str, version: int = 4) -> str:
        """A host's own address on the VIPs' network."""
        from topologies.vip import address6

        address = str(self._net.get(host).IP())
        return address if version == 4 else address6(address)

    def owner_of(self, client: str, port: int, service: int = 80, vip: str = "vip") -> str:
        """The server responsible for a client's connection. Raises `LabError` when nobody knows it."""
        address = ipaddress.ip_address(self.vips()[vip])
        name = f"{self.address(client, address.version)}-{port}-{address}-{service}"
        try:
            return str(fetch(self.api, f"/v1/connections/{name}")["server"])
        except ApiFailed as error:
            raise LabError(str(error)) from None

    def status(self) -> dict[str, Any]:
        """What has become of each process, see `condition.of`."""
        return condition.of(self._record, lock.owner())


def _ftp_user() -> dict[str, object]:
    """Who may write in the lab."""
    from dataplane.ftp import passwords

    return {"name": FTP_USER, "password": passwords.hashed(FTP_PASSWORD), "write": [objects.UPLOADS]}


def _deep_port_queues(record: Record) -> contextlib.AbstractContextManager[None]:
    """The user-space switch reads its ports through packet sockets. Their default buffer holds 92 full packets: a
    single burst of TCP overflows it, and a quarter of a fast download is sent twice. Sockets opened meanwhile get a
    deeper one."""
    setting = Path("/proc/sys/net/core/rmem_default")
    if int(setting.read_text()) >= _PORT_QUEUE_BYTES:
        return contextlib.nullcontext()
    return record.setting(setting, str(_PORT_QUEUE_BYTES))


def vip_names(vips: Sequence[Vip]) -> dict[str, str]:
    """Addresses by names: `vip`, `vip2`, ... on IPv4 and `vip6`, `vip6-2`, ... on IPv6.

    Where all are on IPv6, `vip` names the first of them, too.
    """
    names: dict[str, str] = {}
    for version, first, further in ((4, "vip", "vip"), (6, "vip6", "vip6-")):
        of_version = [vip.address for vip in vips if vip.version == version]
        names |= {first if i == 1 else f"{further}{i}": address for i, address in enumerate(of_version, 1)}
    return {"vip": vips[0].address, **names}


def _kill_group(shell: subprocess.Popen[bytes]) -> None:
    """A node's shell, and what it runs at this moment: an `ovs-vsctl` would make a bridge that was just removed."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(shell.pid) == shell.pid:
            os.killpg(shell.pid, signal.SIGKILL)
    shell.kill()
    shell.wait()


def _silence(link: str) -> None:
    """This machine's own stack has nothing to say on the lab's wires."""
    Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("1")


def _check_machine() -> None:
    """One sentence for whatever is missing, before anything is made."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes namespaces and a bridge")
    for program in ("ovs-vsctl", "mnexec", "ip", "ethtool", "nft"):
        if shutil.which(program) is None:
            raise LabError(f"{program} is missing: script/setup installs it")
    try:
        import mininet.net  # noqa: F401
    except ImportError:
        raise LabError("Mininet is missing for this Python: script/setup installs it") from None
    answer = subprocess.run(["ovs-vsctl", "--timeout=3", "show"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise LabError("Open vSwitch does not run: script/setup starts it")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
