"""The Ryu application: OpenFlow 1.3 events to the runtime, the runtime's messages to the switch. It decides nothing."""

from __future__ import annotations

import logging
from typing import Any

from controller import ryu_adapter, steering
from controller.runtime import Runtime
from controller.switch import OpenFlowSwitch
from dataplane import segment
from state.datablock import FourTuple
from state.errors import SegmentMalformed

# isort: split
import eventlet
from ryu.base import app_manager
from ryu.controller import ofp_event
from ryu.controller.handler import CONFIG_DISPATCHER, DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls

OFP, PARSER = ryu_adapter.OFP, ryu_adapter.PARSER
_ETHERNET = 14
_STATISTICS_SECONDS = 1.0

_log = logging.getLogger(__name__)


class TakeoverApp(app_manager.RyuApp):  # type: ignore[misc]
    """Created by Ryu; the runtime comes as the keyword argument `takeover` (see `ryu_adapter.run`)."""

    OFP_VERSIONS = [OFP.OFP_VERSION]  # noqa: RUF012 - Ryu's own interface

    def __init__(self, *args: Any, takeover: Runtime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ryu_adapter.read_little_ahead(self)
        self._runtime = takeover
        self._bridge = takeover.configuration.switch.bridge
        self._switch: OpenFlowSwitch | None = None
        """The one whose datapath was adopted: it is the configured bridge."""
        self._described: dict[Any, list[Any]] = {}
        """Datapaths that have not said all their ports yet."""
        takeover.start()
        eventlet.spawn_n(self._statistics)

    # --- connection ---
    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def _features(self, event: Any) -> None:
        event.msg.datapath.send_msg(PARSER.OFPSetConfig(event.msg.datapath, OFP.OFPC_FRAG_NORMAL, 0xFFFF))

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def _state(self, event: Any) -> None:
        if event.state == MAIN_DISPATCHER:
            self._described[event.datapath] = []
            event.datapath.send_msg(PARSER.OFPPortDescStatsRequest(event.datapath, 0))
            return
        self._described.pop(event.datapath, None)
        if self._is_adopted(event.datapath):
            self._leave()

    def _is_adopted(self, datapath: Any) -> bool:
        return self._switch is not None and datapath is self._switch.datapath

    def _leave(self) -> None:
        assert self._switch is not None
        self._runtime.switch_disconnected(self._switch)
        self._switch.close()
        self._switch = None

    @set_ev_cls(ofp_event.EventOFPPortDescStatsReply, MAIN_DISPATCHER)
    def _port_descriptions(self, event: Any) -> None:
        datapath = event.msg.datapath
        if datapath not in self._described:
            return
        self._described[datapath] += event.msg.body
        if event.msg.flags & OFP.OFPMPF_REPLY_MORE:
            return
        ports = self._described.pop(datapath)
        problem = self._stranger(datapath, ports)
        if problem is not None:
            _log.warning("switch %016x was turned away: %s", datapath.id, problem)
            datapath.close()
            return
        if self._switch is not None:  # it came back before the end of its old connection was noticed
            old = self._switch.datapath
            self._leave()
            old.close()
        self._switch = OpenFlowSwitch(datapath, self._runtime.switch_messages)
        up = {_text(port.name): port.port_no for port in ports if not _is_down(port)}
        self._runtime.switch_connected(self._switch, up)

    def _stranger(self, datapath: Any, ports: list[Any]) -> str | None:
        """Why this is not the configured switch. A bridge's own port has its name, on Open vSwitch."""
        names = [_text(port.name) for port in ports if port.port_no == OFP.OFPP_LOCAL]
        if names != [self._bridge]:
            return f"its own port is {', '.join(names) or 'not there'}, not {self._bridge}"
        if self._switch is not None and self._switch.datapath.id != datapath.id:
            return f"{self._bridge} is connected already, as switch {self._switch.datapath.id:016x}"
        return None

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)
    def _port_status(self, event: Any) -> None:
        if not self._is_adopted(event.msg.datapath):
            return
        port = event.msg.desc
        up = event.msg.reason != OFP.OFPPR_DELETE and not _is_down(port)
        self._runtime.port_changed(_text(port.name), port.port_no, up)

    # --- bundles and errors ---
    @set_ev_cls(ofp_event.EventONFBundleCtrlMsg, MAIN_DISPATCHER)
    def _bundle(self, event: Any) -> None:
        if self._switch is not None and self._is_adopted(event.msg.datapath):
            self._switch.replied(event.msg.bundle_id, event.msg.type)

    @set_ev_cls(ofp_event.EventOFPErrorMsg, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def _error(self, event: Any) -> None:
        if self._switch is None or not self._is_adopted(event.msg.datapath):
            return
        kind = f"{event.msg.type}/{event.msg.code}"
        if event.msg.type == OFP.OFPET_METER_MOD_FAILED and event.msg.code == OFP.OFPMMFC_METER_EXISTS:
            return  # of an earlier life of the controller
        self._runtime.errors[f"openflow {kind}"] += 1
        _log.error("switch refused a message: error type/code %s, data %s", kind, bytes(event.msg.data)[:64].hex())
        self._switch.failed(event.msg.xid)

    # --- the close gate and the witness ---
    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def _packet_in(self, event: Any) -> None:
        message = event.msg
        if not self._is_adopted(message.datapath):
            return
        if message.cookie not in (steering.COOKIE_GATE, steering.COOKIE_WITNESS):
            return
        try:
            found = segment.parse(bytes(message.data[_ETHERNET:]))
        except SegmentMalformed:
            self._runtime.errors["packet-in"] += 1
            return
        if message.cookie == steering.COOKIE_WITNESS:
            self._runtime.handshake_seen(found)
            return
        connection = FourTuple(found.source, found.source_port, found.destination, found.destination_port)
        self._runtime.close_seen(message.match["in_port"], connection, bytes(message.data))

    # --- statistics ---
    def _statistics(self) -> None:
        while True:
            eventlet.sleep(_STATISTICS_SECONDS)
            if self._switch is not None:
                self._switch.send(steering.late_packets())

    @set_ev_cls(ofp_event.EventOFPFlowStatsReply, MAIN_DISPATCHER)
    def _flow_statistics(self, event: Any) -> None:
        for flow in event.msg.body if self._is_adopted(event.msg.datapath) else ():
            if flow.cookie == steering.COOKIE_LATE:
                self._runtime.late_packets = flow.packet_count


def _is_down(port: Any) -> bool:
    return bool(port.state & OFP.OFPPS_LINK_DOWN or port.config & OFP.OFPPC_PORT_DOWN)


def _text(name: Any) -> str:
    return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)
