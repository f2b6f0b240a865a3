"""A server's agent: it serves the VIP's services, keeps their checkpoints in the shared state, and stands ready to take
over another server's connections. One process, one event loop; the heartbeat comes from that loop, so that a loop that
does not serve does not beat.

When the controller says that this server was fenced (it was slow, cut off or stopped, and another has its connections),
the agent abandons every connection without a word and begins a new life with a new incarnation.

SIGTERM ends it in good order: new clients are kept out without a word, responses that are under way have a moment to
end, and what is still alive then is left to the backup as in a death: all its input stored, and nothing said to the
client. Only what nobody can take over is reset. A second SIGTERM is a death.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

from pyroute2 import IPRoute

from dataplane import access_log, admission, orphans, protocols, repair
from dataplane.access_log import AccessLog
from dataplane.admission import Admission
from dataplane.backup import Progress, Takeover
from dataplane.bundle import LiveBundle
from dataplane.connection import LiveConnection
from dataplane.controller_link import ControllerLink
from dataplane.event_loop import Paced
from dataplane.host import Related
from dataplane.judge import Proof
from dataplane.objects import DocumentRoot
from dataplane.packet_socket import unhush
from dataplane.passive_ports import PassivePorts
from dataplane.prover import Key, Patience
from dataplane.proving import Proving
from dataplane.roll_call import RollCall
from dataplane.sentinel import Sentinel
from dataplane.sequence_map import SequenceMap
from dataplane.stack import Registry, TcpLayer
from dataplane.stall_guard import StallGuard
from dataplane.stream import ByteStream
from dataplane.unready import UnreadySet
from dataplane.young import YoungConnections
from state import messages, ports
from state.configuration import Configuration, Server, Service
from state.datablock import FourTuple
from state.errors import LocalError, RepairError
from state.messages import FromController, Hello
from state.process import Sweeping, allow_files, settle

_BACKLOG = 4096
_ACCEPTS_PER_TURN = 8
_CONNECTIONS_PER_TURN = 16
_ACCEPT_PAUSE = 0.1
_STOP_CHECK = 0.02
_SURELY_FENCED = 0.05
"""Seconds beyond twice the time of silence after which a server is taken for dead."""
_REFUSALS_SAID = 10.0
"""Seconds between two lines about refused connections."""

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one server. `run()` serves until it is cancelled, or ends in good order after SIGTERM."""

    def __init__(self, configuration: Configuration, server: Server) -> None:
        """Raises `LocalError` when a service's protocol cannot be had."""
        self._configuration = configuration
        self._kinds = {
            service.protocol: protocols.find(service.protocol, configuration.serving)
            for vip in configuration.vips
            for service in vip.services
        }
        self._server = server
        places = [(vip.address, service.port) for vip in configuration.vips for service in vip.services]
        silence = 2 * configuration.detection.timeout / 1000 + _SURELY_FENCED
        self._sentinel = Sentinel(server.name, configuration.agents, places, silence)
        self._sentinel.start()
        self.name = server.name
        self._live()
        self.epoch = 0
        self.root = DocumentRoot(server.docroot)
        self.interface, self._mac = _interface_of(server.address)
        self._registry = Registry()
        for kind in self._kinds.values():
            self._registry.add(kind)
        self._refusals_said = 0.0
        self._listeners: list[tuple[socket.socket, Service]] = []
        self._connections: dict[FourTuple, LiveConnection] = {}
        self._takeovers: dict[int, Takeover] = {}
        self._beats = 0
        self._refusal = ""
        self._closed: list[str] = []
        self._handing_in = False
        self._adopted: list[LiveConnection] = []
        """Taken over lately: the old owner's checkpoints stand for them until all is quiet."""
        self._adopted_before = 0
        self._torn: dict[LiveConnection, Related] = {}
        """Connections among them that belonged to a bundle."""

    async def run(self) -> None:
        """Listen, index the document root, connect to the controller, serve. Raises `LocalError`."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        allow_files()
        serving = self._configuration.serving
        limit = admission.within_descriptors(serving.connections)
        self._admission = Admission(limit, serving.connections_per_client, lambda: len(self._unready.sockets))
        log = AccessLog() if serving.access_log else None
        if log is not None:
            log.start()
        else:
            access_log.switch_off()
        self._checkpoints: Paced[LiveConnection] = Paced(LiveConnection.checkpoint_now)
        self._unheard: Paced[FourTuple] = Paced(self._dismiss)
        self._about: dict[str, Paced[Callable[[], None]]] = {}
        """What the controller said about each other server's connections, and what is not done yet."""
        self._unready = UnreadySet(self, self._registry)
        self._proving = Proving(self.interface, self._listening)
        self._guard = StallGuard(self._proving)
        self._young = YoungConnections(self._proving, self.interface, self.has, self._young_decided, self._young_joined)
        self.passive = PassivePorts(self._young.awaited)
        self._link = ControllerLink(self._configuration.agents, self)
        self._roll_call = RollCall(self._link.send)
        orphans.destroy(self._services())
        for vip in self._configuration.vips:
            for service in vip.services:
                self._listen(vip.address, service)
        count = await self.root.index()
        _log.info("%s serves %s (%d objects indexed)", self.name, self.root.root, count)
        settle()
        self._sweeping = Sweeping()
        self._next_beat = self._loop.time()
        self._beat()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop_once)
        link, stopped = self._loop.create_task(self._link.run()), self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait((link, stopped), return_when=asyncio.FIRST_COMPLETED)
            if link.done():
                link.result()
            await self._leave()
        finally:
            link.cancel()
            stopped.cancel()
            for listener, _ in self._listeners:
                listener.close()
            self.passive.close()
            self._unready.sockets.close()
            self.root.close()
            if log is not None:
                log.close()

    def _listening(self) -> list[socket.socket]:
        """Those that let anybody in; the others have a filter already (`admission.shut`)."""
        return [] if self._stop.is_set() else [listener for listener, _ in self._listeners]

    def _services(self) -> Iterator[tuple[str, int, int]]:
        """VIP, first and last of its TCP ports that are in a row."""
        for vip in self._configuration.vips:
            for service in vip.services:
                yield vip.address, service.port, service.port
                for run in service.data_ports:
                    if run.transport == ports.TCP:
                        yield vip.address, run.first, run.last

    # --- the end in good order ---
    def _stop_once(self) -> None:
        """A signal. The next one has its ordinary effect."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)
        self._stop.set()

    async def _leave(self) -> None:
        """Let nobody in, let responses end, and leave what is still alive to whoever takes over."""
        limit = self._loop.time() + self._configuration.serving.stop / 1000
        for listener, service in self._listeners:
            admission.shut(listener)
            self._accept(listener, service, _BACKLOG)  # who is in already
            self._loop.remove_reader(listener.fileno())
        await self._each(LiveConnection.stopping)
        while self._loop.time() < limit and any(c.unacknowledged for c in self._connections.values()):
            await asyncio.sleep(_STOP_CHECK)
        await self._each(self._reset_if_lost)
        self._tell_closed()
        _log.info("%s ends; %d connections are left to its backup", self.name, len(self._connections))
        self._handing_in = True
        await self._each(LiveConnection.hand_in)
        await self._link.close()

    async def _each(self, act: Callable[[LiveConnection], None]) -> None:
        """With every connection, a few per turn of the loop."""
        for number, connection in enumerate(list(self._connections.values()), 1):
            act(connection)
            if number % _CONNECTIONS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _reset_if_lost(self, connection: LiveConnection) -> None:
        if not (self._link.connected and connection.protected):
            connection.reset()  # nobody can take it over

    # --- serving ---
    def _listen(self, address: str, service: Service) -> None:
        six = ":" in address
        listener = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((address, service.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRNOTAVAIL:
                wanted = f"ip address add {address}/{128 if six else 32} dev lo"
                raise LocalError(f"VIP {address} is not an address of this host: {wanted}") from None
            if error.errno == errno.EADDRINUSE:
                raise LocalError(f"{address}:{service.port} is in use by another process of this host") from None
            raise LocalError(f"cannot listen on {address}:{service.port}: {error.strerror}") from None
        self._listeners.append((listener, service))
        self._loop.add_reader(listener.fileno(), self._accept, listener, service)

    def _accept(self, listener: socket.socket, service: Service, most: int = _ACCEPTS_PER_TURN) -> None:
        for _ in range(most):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors or memory: the backlog waits for connections to end
                _log.warning("accept: %s", error)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_ACCEPT_PAUSE, self._accept_again, listener, service)
                return
            sock.setblocking(False)
            unhush(sock)
            reason = self._admission.refusal(socket.inet_pton(sock.family, peer[0]))
            if reason is not None:
                repair.refuse_quietly(sock)
                self._say_refused(reason)
                continue
            try:
                snapshot = repair.read(sock)
                application = self._kinds[service.protocol].fresh(self.root)
            except RepairError as error:
                _log.warning("%s", error)
                repair.refuse_quietly(sock)
                continue
            except Exception:  # the protocol's author did not foresee it; others go on
                _log.exception("%s: no application for a new connection", service.protocol)
                repair.refuse_quietly(sock)
                continue
            local = sock.getsockname()
            connection = FourTuple(
                socket.inet_pton(sock.family, local[0]), local[1], socket.inet_pton(sock.family, peer[0]), peer[1]
            )
            live = LiveConnection(
                self,
                sock,
                connection,
                ByteStream(SequenceMap(snapshot.iss)),
                TcpLayer(snapshot.tcp, self._loop.time(), self._loop.time),
                application,
                snapshot.irs,
                protected=service.protected,
            )
            self._proving.begins_anew(connection)
            self._register(live)
            live.start()

    def _accept_again(self, listener: socket.socket, service: Service) -> None:
        if not self._stop.is_set():
            self._loop.add_reader(listener.fileno(), self._accept, listener, service)

    def _say_refused(self, reason: str) -> None:
        now = self._loop.time()
        if now - self._refusals_said >= _REFUSALS_SAID:
            self._refusals_said = now
            _log.warning("connections are refused: %s; %d so far", reason, self._admission.refused[reason])

    def _register(self, connection: LiveConnection) -> None:
        if connection.connection not in self._connections:
            self._admission.entered(connection.connection.destination)
        self._connections[connection.connection] = connection

    # --- connection.Host ---
    def wall_clock(self) -> int:
        return time.time_ns()

    def store(self, block: bytes, stored: Callable[[], None]) -> None:
        self._link.store(block, stored)

    def checkpoint_later(self, connection: LiveConnection) -> None:
        self._checkpoints.extend((connection,))

    def ended(self, connection: LiveConnection) -> None:
        living = self._connections.get(connection.connection)
        if living is connection:
            del self._connections[connection.connection]
            self._admission.left(connection.connection.destination)
        elif living is not None:
            return  # its client has begun another from the same port, and that one's checkpoint must stay
        if not self._handing_in:  # then it did not end
            if connection.related is not None:
                self._torn[connection] = connection.related
            self.over(connection.connection.id)

    def _tell_closed(self) -> None:
        closed, self._closed = self._closed, []
        torn, self._torn = self._torn, {}
        if not closed:
            return
        for connection, bundle in torn.items():
            bundle.checkpoint_others(connection)  # first that it is no part any more, then that it is closed
        self._link.flush()
        self._link.send(messages.Closed(closed))

    # --- heartbeat ---
    def _beat(self) -> None:
        now = self._loop.time()
        lag = max(0.0, now - self._next_beat)
        interval = self._configuration.detection.heartbeat / 1000
        self._next_beat = now + interval
        self._beats += 1
        self._sentinel.beat(self._beats)
        self._link.overdue(now)
        if not self._adopted:
            self._sweeping.beat(idle=not self._connections and not self._unready)
        elif not self._takeovers or len(self._adopted) == self._adopted_before:
            self._sweeping.keep()
            self._checkpoints.extend(self._adopted)
            self._adopted = []
        self._adopted_before = len(self._adopted)
        if self._link.connected:
            load = os.getloadavg()[0]
            self._link.send(messages.Heartbeat(self._beats, len(self._connections), load, lag, self._unready.counts()))
        self._loop.call_at(self._next_beat, self._beat)

    # --- bundle.BundleHost ---
    def bundle(self, connection: LiveConnection) -> LiveBundle:
        four = connection.connection
        source = socket.inet_ntop(socket.AF_INET if len(four.source) == 4 else socket.AF_INET6, four.source)
        vip = next(vip for vip in self._configuration.vips if vip.address == source)
        service = vip.service(four.source_port)
        assert service is not None
        return LiveBundle(self, connection, service, vip.affinity_of(service))

    def opened(self, connection: LiveConnection) -> None:
        self._register(connection)  # its client was let in with the control connection

    def has_room_for_part(self) -> bool:
        return self._admission.has_room_for_part()

    def part_opened(self, client: bytes) -> None:
        self._admission.entered(client)

    def part_closed(self, client: bytes) -> None:
        self._admission.left(client)

    # --- controller_link.Orders ---
    def hello(self) -> Hello:
        return Hello(messages.PROTOCOL_VERSION, self.name, self.incarnation, self._mac, os.getpid())

    def disconnected(self) -> None:
        """Unready connections are of a state that may be old when the controller returns: it sends them again."""
        for owner, tasks in self._about.items():
            tasks.clear()
            self._unready.forget(owner, ())

    def ordered(self, message: FromController) -> None:
        if isinstance(message, messages.Welcome):
            self.epoch = max(self.epoch, message.epoch)
            self._checkpoints.clear()
            self._checkpoints.extend(self._connections.values())
            self._roll_call.begin(self._connections)
        elif isinstance(message, messages.Backup):
            owner, build = message.owner, self._unready.build_expected
            names = self._unready.expect(owner, message.blocks)
            self._later(owner, [functools.partial(build, owner, name) for name in names])
        elif isinstance(message, messages.Forget):
            self._unready.forget(message.owner, message.connections)
        elif isinstance(message, messages.Synchronised):
            self._later(message.owner, [functools.partial(self._prepared, message.owner)])
        elif isinstance(message, messages.Resume):
            self._later(message.owner, [functools.partial(self._resume, message)])
        elif isinstance(message, messages.Dismiss):
            self._unheard.extend(message.connections)
        elif isinstance(message, messages.Refused):
            self._refused(message)

    def _dismiss(self, connection: FourTuple) -> None:
        if not self.has(connection):
            self._proving.dismiss_unknown(connection)

    def _later(self, owner: str, tasks: list[Callable[[], None]]) -> None:
        """In order with all that was said about this owner, and in portions: there may be thousands of blocks."""
        if owner not in self._about:
            self._about[owner] = Paced(lambda task: task())
        self._about[owner].extend(tasks)

    def _prepared(self, owner: str) -> None:
        refused = sum(self._unready.refused.values())
        self._link.send(messages.Prepared(owner, self._unready.count(owner), refused))

    def _refused(self, message: messages.Refused) -> None:
        if message.sentence != self._refusal:  # said once, not at every try
            _log.warning("controller: %s", message.sentence)
            self._refusal = message.sentence
        if message.fenced:
            for takeover in list(self._takeovers.values()):
                takeover.end()
            self._takeovers.clear()
            self._young.clear()
            self._adopted.clear()
            for connection in list(self._connections.values()):
                connection.abandon()
            self._closed.clear()  # they are not closed: another server has them
            self._torn.clear()
            self._live()
            # Before the next hello: the link comes back only when this is done.
            self._link.hold(self._loop.run_in_executor(None, orphans.destroy, list(self._services())))
        self._link.disconnect()

    def _live(self) -> None:
        """Begin a life: an incarnation that no other has had."""
        self.incarnation = time.time_ns()
        self._sentinel.live(self.incarnation)

    # --- backup.Adopter ---
    def over(self, connection: str) -> None:
        if not self._closed:
            self._loop.call_soon(self._tell_closed)
        self._closed.append(connection)

    def _resume(self, order: messages.Resume) -> None:
        self.epoch = max(self.epoch, order.epoch)
        detection = self._configuration.detection
        patience = Patience(detection.proof / 1000, detection.silence / 1000)
        unready = self._unready.take(order.owner)
        takeover = Takeover(order.takeover, self, self, self._proving, unready, patience, self._unready.sockets)
        self._takeovers[order.takeover] = takeover
        self._young.expect(order.takeover, order.handshakes, patience)
        takeover.begin()

    def _young_decided(self, takeover: int, connection: FourTuple, reason: str | None) -> None:
        resumed, reset = ([connection.id], []) if reason is None else ([], [(connection.id, reason)])
        self._link.send(messages.Young(takeover, resumed, reset))

    def _young_joined(self, connection: FourTuple, proof: Proof) -> None:
        live = self._connections.get(connection)
        if live is not None:  # else its protocol did not want it
            self._guard.watch(live, proof)

    def has(self, connection: FourTuple) -> bool:
        return connection in self._connections

    def yield_up(self, key: Key, to: Takeover) -> None:
        for takeover in self._takeovers.values():
            if takeover is not to:
                takeover.yield_up(key)

    def adopt(self, connection: LiveConnection, proof: Proof) -> None:
        if connection.over:
            return
        self._register(connection)
        self._adopted.append(connection)
        self._guard.watch(connection, proof)

    def report(self, takeover: int, progress: Progress, waiting: int) -> None:
        self._link.send(
            messages.Resumed(
                takeover,
                progress.resumed,
                progress.reset,
                waiting,
                progress.proved_us,
                progress.resumed_us,
                progress.recreate_us,
                progress.comparisons,
            )
        )
        if waiting == 0:
            self._takeovers.pop(takeover, None)


def _interface_of(address: str) -> tuple[int, str]:
    """Index and MAC of the interface that has the server's own address. Raises `LocalError` when none has."""
    wanted = ipaddress.ip_address(address)
    with IPRoute() as netlink:
        for entry in netlink.get_addr():
            found = entry.get_attr("IFA_ADDRESS")
            if found and ipaddress.ip_address(found) == wanted:
                (link,) = netlink.get_links(entry["index"])
                mac = link.get_attr("IFLA_ADDRESS")
                if mac:
                    return int(entry["index"]), str(mac).lower()
    raise LocalError(f"the server's address {address} is not an address of this host")
