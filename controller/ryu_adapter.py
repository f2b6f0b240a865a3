"""Everything awkward about the framework, in one place. Import this before any other part of Ryu.

Ryu 4.34 expects `eventlet.wsgi.ALREADY_HANDLED`, which eventlet removed in 0.33; its web part imports it though nothing
here uses that part. Nor does it know two fields of Neighbour Discovery that the switch has.
"""

from __future__ import annotations

from typing import Any

import eventlet.wsgi

if not hasattr(eventlet.wsgi, "ALREADY_HANDLED"):
    eventlet.wsgi.ALREADY_HANDLED = object()

from ryu import cfg
from ryu.base import app_manager
from ryu.lib import hub, type_desc
from ryu.ofproto import ofproto_v1_3, ofproto_v1_3_parser, oxm_fields
from ryu.ofproto.ofproto_protocol import ProtocolDesc

DESCRIPTION = ProtocolDesc(version=ofproto_v1_3.OFP_VERSION)
"""Stands for a switch when messages are built: they are bound to a real one only when they are sent."""
OFP = ofproto_v1_3
PARSER = ofproto_v1_3_parser
_READ_AHEAD = 16


class _EricssonField(oxm_fields.OpenFlowBasic):  # type: ignore[misc]
    """Fields that Open vSwitch has had since 2.11 and Ryu does not know: class 0x1000 (see ovs-fields(7))."""

    _class = 0x1000


OFP.oxm_types += [
    _EricssonField("nd_reserved", 1, type_desc.Int4),
    _EricssonField("nd_options_type", 2, type_desc.Int1),
]
oxm_fields.generate(OFP.__name__)


def read_little_ahead(app: Any) -> None:
    """Ryu reads 128 messages before it lets anything else run: parsing them takes 50 ms. Call it when `app` is made."""
    app.events = hub.Queue(_READ_AHEAD)
    app._events_sem = hub.BoundedSemaphore(_READ_AHEAD)


def run(app_module: str, listen_host: str, listen_port: int, context: dict[str, Any]) -> None:
    """Run a Ryu application until its process ends. `context` becomes keyword arguments of the application."""
    cfg.CONF(args=[], project="ryu", version="takeover", default_config_files=[])
    from ryu.controller import controller  # noqa: F401

    cfg.CONF.set_override("ofp_listen_host", listen_host)
    cfg.CONF.set_override("ofp_tcp_listen_port", listen_port)
    manager = app_manager.AppManager.get_instance()
    manager.load_apps([app_module])
    contexts = manager.create_contexts()
    contexts.update(context)
    services = manager.instantiate_apps(**contexts)
    try:
        hub.joinall(services)
    finally:
        manager.close()
