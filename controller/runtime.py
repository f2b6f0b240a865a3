"""The controller's shell: it joins the conductor with the store, the agents, the switch and the API's event stream, and
carries out the conductor's actions. Nothing in it decides."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import eventlet

from controller import agents, remembered
from controller.actions import Action, Commit, Drop, Persist, Send, SendToSwitch
from controller.agents import AgentLink
from controller.complaints import Complaints
from controller.conductor import Conductor
from controller.detector import TICK
from controller.keeping import Keeping
from controller.steering import Message as SwitchMessage
from dataplane.segment import Segment
from state import messages
from state.configuration import Configuration
from state.datablock import FourTuple
from state.errors import CheckpointRefused
from state.store import Store

_EVENTS_KEPT = 1000
_REINSTALL_SECONDS = 0.1

_log = logging.getLogger(__name__)


class Switch(Protocol):
    """The connected switch."""

    def commit(
        self, bundle: Iterable[SwitchMessage], committed: Callable[[], None], refused: Callable[[], None]
    ) -> None: ...

    def send(self, message: SwitchMessage) -> None: ...


class Runtime:
    """One controller process."""

    def __init__(self, configuration: Configuration, store: Store) -> None:
        self.configuration = configuration
        self.conductor = Conductor(configuration, wall_offset_ns=time.time_ns() - time.monotonic_ns())
        self.started = time.time()
        self.switch: Switch | None = None
        self.events: deque[tuple[int, str, str]] = deque(maxlen=_EVENTS_KEPT)
        """(number, kind, JSON), the newest last."""
        self.event_number = int(self.started * 1e6)
        """Of the last event. They begin at the wall clock: whoever goes on where an earlier life of the controller
        stopped has seen none of them."""
        self.errors: Counter[str] = Counter()
        self.switch_messages: Counter[str] = Counter()
        """Sent to the switch, by their name in OpenFlow."""
        self.late_packets = 0
        self.lag_seconds = 0.0
        """The longest that the event loop was late since it was last asked."""
        self._complaints = Complaints(self.errors)
        self._keeping = Keeping(store, self._complaints)
        self._links: dict[str, AgentLink] = {}
        self._listener: Any = None
        self._recover(store)

    def _recover(self, store: Store) -> None:
        saved = store.fact(remembered.NAME)
        if saved is not None:
            self.conductor.recover(saved, time.monotonic())
        stale = []
        for name, server, block in store.checkpoints():
            try:
                self.conductor.load(server, block)
            except CheckpointRefused as error:
                _log.warning("stored checkpoint of %s: %s", name, error)
                stale.append(name)
        self._keeping.forget(stale)
        self.conductor.settle_responsibility(time.monotonic())

    def listen(self) -> None:
        """Raises `LocalError` when the agents' address cannot be had."""
        self._listener = agents.listen(self.configuration.agents)

    def start(self) -> None:
        """Serve agents and watch the clock, on green threads."""
        eventlet.spawn_n(agents.serve, self._listener, self)
        eventlet.spawn_n(self._tick)

    def _tick(self) -> None:
        due = time.monotonic()
        while True:
            due += TICK
            eventlet.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.lag_seconds = max(self.lag_seconds, now - due)
            due = max(due, now - TICK)
            try:
                self.perform(self.conductor.tick(now))
                self._keeping.retry()
            except Exception:  # else no hang would be noticed any more
                self._complaints.unexpected("tick")

    # --- actions ---
    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                link = self._links.get(action.server)
                if link is not None:
                    link.send(action.message)
                    if action.last:
                        link.close()
            elif isinstance(action, Commit):
                self._commit(action)
            elif isinstance(action, SendToSwitch):
                if self.switch is not None:
                    self.switch.send(action.message)
            elif isinstance(action, Drop):
                self._keeping.forget(action.connections)
            elif isinstance(action, Persist):
                self._keeping.put_fact(action.name, action.value)
            else:
                self._announce(action.kind, action.body)

    def _commit(self, action: Commit) -> None:
        if self.switch is None:
            return  # the whole state is installed when the switch connects, and the takeovers go on then
        waiting = action.takeovers

        def committed() -> None:
            now = time.monotonic()
            for number in waiting:
                self.perform(self.conductor.committed(number, now))

        def refused() -> None:
            """What stands in the switch is not what was decided: say everything anew, and again until it is taken."""
            if self.switch is switch:
                eventlet.spawn_after(_REINSTALL_SECONDS, self._reinstall, switch)

        switch = self.switch
        switch.commit(action.messages, committed, refused)

    def _reinstall(self, switch: Switch) -> None:
        if self.switch is switch:
            self.perform(self.conductor.reinstall())

    def _announce(self, kind: str, body: dict[str, object]) -> None:
        self.event_number += 1
        self.events.append((self.event_number, kind, json.dumps(body)))
        _log.info("%s %s", kind, body)

    # --- agents.Listener ---
    def agent_hello(self, link: AgentLink, hello: messages.Hello) -> None:
        actions = self.conductor.hello(hello, time.monotonic())
        server = self.conductor.servers.get(hello.server)
        welcome = any(isinstance(a, Send) and isinstance(a.message, messages.Welcome) for a in actions)
        if server is None or not welcome:
            # The refusal goes to this connection, not to one that has the name already.
            for action in actions:
                if isinstance(action, Send) and action.last and isinstance(action.message, messages.Refused):
                    link.send(action.message)
                else:
                    self.perform([action])
            link.close()
            return
        old = self._links.get(hello.server)
        link.name = hello.server
        if old is not None:
            old.name = None  # its end is no news any more
            old.close()
        before = [a for a in actions if isinstance(a, Send) and isinstance(a.message, messages.Refused)]
        self.perform(before)
        self._links[hello.server] = link
        self.perform([action for action in actions if action not in before])

    def agent_died(self, died: messages.Died) -> None:
        self.perform(self.conductor.died(died, time.monotonic()))

    def agent_unheard(self, unheard: messages.Unheard) -> None:
        self.perform(self.conductor.unheard(unheard))

    def agent_said(self, link: AgentLink, said: list[messages.FromAgent]) -> None:
        name, now = link.name, time.monotonic()
        if name is None:
            return
        stores: list[messages.Store] = []
        for message in said:
            if isinstance(message, messages.Store):
                stores.append(message)
                continue
            self._take(link, name, stores)
            stores = []
            if link.closed:
                return
            try:
                self._do(name, message, now)
            except Exception:  # else the agent's connection would end, and a healthy server be fenced
                self._complaints.unexpected("agent message taken in")
        self._take(link, name, stores)

    def _do(self, name: str, message: messages.FromAgent, now: float) -> None:
        if isinstance(message, messages.Closed):
            gone, actions = self.conductor.closed(name, message.connections)
            self._keeping.forget(gone)
        else:
            actions = self.conductor.received(name, message, now)
        self.perform(actions)

    def _take(self, link: AgentLink, name: str, stores: list[messages.Store]) -> None:
        """Several `Store`s in one commit, in portions that do not hold the loop up."""
        portion: list[tuple[Sequence[bytes], int | None]] = []
        room = messages.PORTION_BLOCKS
        for store in stores:
            for start in range(0, max(1, len(store.blocks)), messages.PORTION_BLOCKS):
                blocks = store.blocks[start : start + messages.PORTION_BLOCKS]
                if portion and len(blocks) > room:
                    self._keep_or_complain(link, name, portion)
                    eventlet.sleep(0)
                    portion, room = [], messages.PORTION_BLOCKS
                last = start + len(blocks) == len(store.blocks)
                portion.append((blocks, store.number if last else None))
                room -= len(blocks)
        if portion:
            self._keep_or_complain(link, name, portion)

    def _keep_or_complain(self, link: AgentLink, name: str, portion: list[tuple[Sequence[bytes], int | None]]) -> None:
        try:
            self._keep(link, name, portion)
        except Exception:  # as in `agent_said`
            self._complaints.unexpected("checkpoints taken in")

    def _keep(self, link: AgentLink, name: str, portion: list[tuple[Sequence[bytes], int | None]]) -> None:
        """Blocks of each message, and its number if they are its last."""
        if link.closed:
            return  # fenced while its last words were being taken in
        life = self.conductor.servers[name].incarnation
        accepted: list[tuple[str, str, bytes]] = []
        refused: list[str] = []
        for blocks, _ in portion:
            intake = self.conductor.collector.take(name, life, blocks, time.time_ns())
            accepted += intake.accepted
            refused += map(str, intake.refused)
        for sentence in refused:
            _log.warning("%s: %s", name, sentence)
        self.conductor.detector.heard(name, time.monotonic())
        unkept = self._keeping.put(accepted)
        if unkept is not None:
            refused.append(unkept)
        whole = [number for _, number in portion if number is not None]
        if whole:
            link.send(messages.Stored(whole[-1], refused[: messages.LIMIT_REFUSED]))
        self.perform(self.conductor.stored(name, accepted))

    def agent_refused(self) -> None:
        self.errors["agent message"] += 1

    def agent_gone(self, link: AgentLink) -> None:
        name = link.name
        if name is not None and self._links.get(name) is link:
            del self._links[name]
            self.perform(self.conductor.disconnected(name, time.monotonic()))

    # --- the switch ---
    def switch_connected(self, switch: Switch, ports: dict[str, int]) -> None:
        self.switch = switch
        self.perform(self.conductor.switch_connected(ports))
        self._announce("switch", {"state": "connected", "ports": len(ports)})

    def switch_disconnected(self, switch: Switch) -> None:
        if self.switch is switch:
            self.switch = None
            self._announce("switch", {"state": "disconnected"})

    def port_changed(self, name: str, number: int, up: bool) -> None:
        self.perform(self.conductor.port_changed(name, number, up, time.monotonic()))

    def handshake_seen(self, found: Segment) -> None:
        self.conductor.handshake_seen(found, time.monotonic())

    def close_seen(self, in_port: int, connection: FourTuple, packet: bytes) -> None:
        self.perform(self.conductor.close_seen(in_port, connection, packet, time.monotonic()))
