"""Connections that a bundle awaits: its client was told a port of the server (FTP's PASV), and may connect there.

Such a connection is known to nobody from the client's SYN until its server's next checkpoint. A server that dies
meanwhile takes it with it: its heir's kernel answers what the client sends on it with RST. By the port that is awaited
the controller knows which RST that is.
"""

from __future__ import annotations

from controller.collector import Collector, Record
from state.datablock import DataBlock, FourTuple
from state.errors import CheckpointRefused
from state.sections import BUNDLE, BundleSection

UNKNOWN = "no checkpoint had it yet"


def is_awaited(collector: Collector, server: str, connection: FourTuple) -> bool:
    """Does a bundle for which `server` is responsible await this client at this port?"""
    for name in collector.bundles():
        record = collector.get(name)
        if record is not None and record.responsible == server and _awaits(record, connection):
            return True
    return False


def _awaits(control: Record, connection: FourTuple) -> bool:
    known = control.header.connection
    if (known.source, known.destination) != (connection.source, connection.destination):
        return False
    try:
        section = DataBlock.decode(control.block).section(BUNDLE, BundleSection)
    except CheckpointRefused:
        return False
    return any(
        part.transport == "tcp" and not part.remote_address and not part.connecting
        for part in section.parts
        if part.local_port == connection.source_port
    )
