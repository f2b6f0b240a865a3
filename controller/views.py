"""What the API shows: the conductor's state as plain dictionaries, with the names that the contract fixes."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from typing import Any

from controller.collector import Record
from controller.conductor import Conductor
from controller.server_state import ServerState
from controller.takeover import Takeover
from state.datablock import DataBlock, FourTuple
from state.errors import CheckpointRefused
from state.messages import Comparison
from state.sections import BUNDLE, CONTROL, STREAM, TCP, BundleSection, Label, Part, StreamSection, TcpSection

View = dict[str, Any]


def server(conductor: Conductor, state: ServerState, now: float) -> View:
    age = conductor.detector.age(state.name, now)
    configured = conductor.configuration.server(state.name)
    assert configured is not None
    return {
        "name": state.name,
        "address": configured.address,
        "state": state.state,
        "epoch": state.epoch,
        "incarnation": state.incarnation,
        "load": state.load,
        "connections": conductor.collector.count(state.name),
        "slots": len(conductor.ownership.slots_of(state.name)) if state.up else 0,
        "backup": state.backup,
        "unready": state.unready,
        "heartbeat_age_ms": None if age is None else round(age * 1000, 1),
        "loop_lag_ms": round(state.lag * 1000, 2),
        "pid": state.pid,
    }


def vip(conductor: Conductor, index: int) -> View:
    configured = conductor.configuration.vips[index]
    owners: dict[str, int] = {}
    for (v, _), home in conductor.ownership.home.items():
        if v == index:
            owner = conductor.ownership.owner[home]
            owners[owner] = owners.get(owner, 0) + 1
    return {
        "address": configured.address,
        "mac": configured.mac,
        "affinity": configured.affinity,
        "slots": configured.slots,
        "owners": owners,
        "services": [
            {
                "port": service.port,
                "protocol": service.protocol,
                "protected": service.protected,
                "affinity": configured.affinity_of(service),
                "data_ports": [str(run) for run in service.data_ports],
            }
            for service in configured.services
        ],
    }


def connection(name: str, record: Record) -> View:
    """The fields of claim 8, and who is responsible now."""
    header = record.header
    four = header.connection
    return {
        "id": name,
        "server": record.responsible,
        "state": "established" if record.settled else "unready",
        "checkpoint": {
            "server": header.server,
            "incarnation": header.incarnation,
            "epoch": header.epoch,
            "serial": header.serial,
            "time": _time(header.time),
            "received_at": _time(record.received_ns) if record.received_ns else None,
            "source_address": str(ipaddress.ip_address(four.source)),
            "source_port": four.source_port,
            "destination_address": str(ipaddress.ip_address(four.destination)),
            "destination_port": four.destination_port,
            "protocol": header.protocol,
            "iss": header.iss,
            "irs": header.irs,
            "snd_una": header.snd_una,
            "snd_nxt": header.snd_nxt,
            "rcv_nxt": header.rcv_nxt,
            "object": header.object or None,
            "object_first": header.object_first if header.object else None,
            "bytes": len(record.block),
        },
        "bundle": _bundle_of(record),
    }


def _bundle_of(record: Record) -> View | None:
    """Which bundle a connection belongs to, as what; of a control connection also the parts."""
    if not record.header.bundle:
        return None
    try:
        section = DataBlock.decode(record.block).section(BUNDLE, BundleSection)
    except CheckpointRefused:  # only headers are checked when blocks are taken in
        return {"id": record.header.bundle, "role": None, "parts": None}
    parts = [_part(record, part) for part in section.parts] if section.role == CONTROL else None
    return {"id": section.id, "role": section.role, "parts": parts}


def _part(record: Record, part: Part) -> View:
    """`connection` is the id of a TCP part's own checkpoint; None for UDP, and while its client is awaited."""
    view: View = {field: getattr(part, field) for field in Part.__struct_fields__}
    view["connection"] = None
    if part.transport == "tcp" and part.remote_address:
        remote = ipaddress.ip_address(part.remote_address).packed
        source = record.header.connection.source
        view["connection"] = FourTuple(source, part.local_port, remote, part.remote_port).id
    return view


def bundle(name: str, record: Record) -> View:
    """A bundle as one thing: its control connection and its parts."""
    header = record.header
    shown = _bundle_of(record)
    assert shown is not None
    return {
        "id": name,
        "server": record.responsible,
        "state": "established" if record.settled else "unready",
        "protocol": header.protocol,
        "epoch": header.epoch,
        "client": str(ipaddress.ip_address(header.connection.destination)),
        "parts": shown["parts"],
    }


def connection_in_full(name: str, record: Record) -> View:
    """The same with the sections of the stack's own layers, and the names of all."""
    view = connection(name, record)
    block = DataBlock.decode(record.block)
    tcp = block.section(TCP, TcpSection)
    stream = block.section(STREAM, StreamSection)
    view["checkpoint"]["sections"] = [section.name for section in block.sections]
    view["checkpoint"]["tcp"] = {field: getattr(tcp, field) for field in TcpSection.__struct_fields__}
    view["checkpoint"]["stream"] = {
        "acked": stream.acked,
        "sent": stream.sent,
        "received": stream.received,
        "input_ended": stream.input_ended,
        "closing": stream.closing,
        "objects": [
            {"identifier": ref.identifier, "size": ref.size, "mtime_ns": ref.mtime_ns, "digest": ref.digest.hex()}
            for ref in stream.objects
        ],
        "extents": [
            {
                "position": extent.position,
                "length": extent.length,
                "literal": extent.literal is not None,
                "object": extent.object,
                "offset": extent.offset,
            }
            for extent in stream.extents
        ],
        "labels": [{field: getattr(label, field) for field in Label.__struct_fields__} for label in stream.labels],
    }
    return view


def takeover(record: Takeover) -> View:
    return {
        "id": record.number,
        "cause": record.cause,
        "from": record.source,
        "to": record.heir,
        "epoch": record.epoch,
        "state": record.phase.value,
        "detected_at": _time(record.detected_wall_ns),
        "detected_at_ns": record.detected_wall_ns,
        "connections": record.connections,
        "resumed": record.resumed,
        "reset": dict(record.reset),
        "waiting": record.waiting,
        "phases_ms": record.phases_ms(),
        "recreate_us": record.recreate_us,
    }


def takeover_in_full(record: Takeover) -> View:
    """The same with what was compared for its first connections (claim 1)."""
    view = takeover(record)
    view["comparisons"] = [
        {field: getattr(compared, field) for field in Comparison.__struct_fields__} for compared in record.comparisons
    ]
    return view


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="microseconds")
