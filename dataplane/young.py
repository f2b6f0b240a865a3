"""Data connections that a client had opened to a server which died before their first checkpoint.

The switch saw how they began (`controller.witness`). An heir that awaits that client at that port proves such a
connection and recreates it, and its protocol accepts it as if it came now: nothing was sent on it yet.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dataplane import repair
from dataplane.backup import CANNOT_PROBE, INPUT_LOST, NO_PROOF, NOT_RECREATED
from dataplane.judge import Doubt, Expectation, Proof
from dataplane.passive_ports import Listening
from dataplane.prover import Patience, Verdict
from dataplane.proving import Proving
from dataplane.sequence import Seq
from state.datablock import FourTuple
from state.errors import RepairError
from state.messages import Handshake

NOT_AWAITED = "nobody awaits this data connection any more"
CLAIM_SECONDS = 2.0
"""Who is not awaited by then belongs to a control connection that was not resumed."""

_log = logging.getLogger(__name__)

_Place = tuple[str, int, str]
"""VIP, its port, and the client's address."""


@dataclass(frozen=True, eq=False)
class _Young:
    handshake: Handshake
    patience: Patience
    takeover: int

    @property
    def connection(self) -> FourTuple:
        return self.handshake.connection


class YoungConnections:
    """Of one agent."""

    def __init__(
        self,
        proving: Proving,
        interface: int,
        has: Callable[[FourTuple], bool],
        told: Callable[[int, FourTuple, str | None], None],
        joined: Callable[[FourTuple, Proof], None],
    ) -> None:
        """`interface`: index of the one towards the clients, see `socket_address`. `has`: lives it here already? `told`
        is called with a takeover's number, a connection, and why it was reset; None: it was resumed. `joined` is called
        when such a connection was handed to its bundle."""
        self._proving = proving
        self._has = has
        self._told = told
        self._joined = joined
        self._interface = interface
        self._loop = asyncio.get_running_loop()
        self._unclaimed: dict[_Place, list[_Young]] = {}

    def expect(self, takeover: int, handshakes: Iterable[Handshake], patience: Patience) -> None:
        """These were seen; nothing is sent to them before they are awaited."""
        for handshake in handshakes:
            young = _Young(handshake, patience, takeover)
            place = _place(handshake)
            self._unclaimed.setdefault(place, []).append(young)
            self._loop.call_later(CLAIM_SECONDS, self._unwanted, place, young)

    def awaited(self, listening: Listening) -> None:
        """A client is awaited at a port."""
        for young in self._unclaimed.pop((listening.vip, listening.local_port, listening.client), ()):
            self._ask(young, listening)

    def _ask(self, young: _Young, listening: Listening | None) -> None:
        decided = functools.partial(self._decided, listening, young)
        try:
            self._proving.prove(expectation(young.handshake), young.patience, decided)
        except OSError as error:
            _log.warning("%s cannot be proven: %s", young.connection.id, error)
            self._reset(young, None, CANNOT_PROBE)

    def _decided(self, listening: Listening | None, young: _Young, verdict: Verdict) -> None:
        proof = verdict.outcome
        if isinstance(proof, Doubt):
            if proof is Doubt.UNPROVEN:
                self._reset(young, verdict.claimed, NO_PROOF)
            return  # else it is gone, or its client had not heard of the server yet, and begins again
        if self._has(young.connection):
            return  # its client's SYN had come again
        if listening is None or not listening.open:
            self._reset(young, proof, NOT_AWAITED)
        elif proof.input_missing:  # the dead server may have acknowledged it
            self._reset(young, proof, INPUT_LOST)
        else:
            self._accept(listening, young, proof)

    def _accept(self, listening: Listening, young: _Young, proof: Proof) -> None:
        handshake = young.handshake
        rcv_nxt = expectation(handshake).rcv_nxt
        try:
            sock = repair.recreate(young.connection, handshake.tcp, proof, rcv_nxt, self._interface)
        except RepairError as error:
            _log.warning("%s", error)
            self._reset(young, proof, NOT_RECREATED)
            return
        self._told(young.takeover, young.connection, None)
        listening.accepted(sock, (listening.client, young.connection.destination_port))
        self._joined(young.connection, proof)

    def _unwanted(self, place: _Place, young: _Young) -> None:
        """If its client has it, that is told, so that it does not wait for ever. Many have ended long ago."""
        waiting = self._unclaimed.get(place, [])
        if young in waiting:
            waiting.remove(young)
            if not waiting:
                del self._unclaimed[place]
            if not self._has(young.connection):
                self._ask(young, None)

    def _reset(self, young: _Young, standing: Proof | None, reason: str) -> None:
        self._proving.dismiss(expectation(young.handshake), standing)
        self._told(young.takeover, young.connection, reason)

    def clear(self) -> None:
        """This server was fenced."""
        self._unclaimed.clear()


def _place(handshake: Handshake) -> _Place:
    connection = handshake.connection
    vip, client = (str(ipaddress.ip_address(packed)) for packed in (connection.source, connection.destination))
    return vip, connection.source_port, client


def expectation(handshake: Handshake) -> Expectation:
    """What the judge may accept of its client: nothing was sent either way, and nothing is planned."""
    tcp = handshake.tcp
    return Expectation(
        connection=handshake.connection,
        acked=0,
        acked_seq=Seq(handshake.iss) + 1,
        end=0,
        closing=False,
        rcv_nxt=Seq(handshake.irs) + 1,
        snd_wscale=tcp.snd_wscale,
        timestamps=tcp.timestamps,
        tsval=tcp.tsval,
        sack=tcp.sack,
    )
