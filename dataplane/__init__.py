"""A server's side, and the API for authors of servers.

What stands in `__all__` is what a protocol of one's own needs; it is imported from here:

    from dataplane import Application, ApplicationKind, DataBlock, DocumentRoot, Stream

Subclass `Application`, make an `ApplicationKind` of it, and name that in the configuration as
`protocol: "mypackage.module:KIND"`. `docs/server-authors.md` leads from the first line to a protocol that survives its
server's death; `dataplane/examples/ticker.py` is where it ends.

| name | what it is |
|---|---|
| `Application` | a protocol over one connection: subclass it (claims 2, 3, 14) |
| `ApplicationKind` | how to make one: for a new connection, and from a checkpoint |
| `Stream` | the connection, as a protocol sees it: plan bytes, ask and say which byte has which number (claim 22) |
| `Bundle` | related connections (`Stream.bundle`): open data connections, UDP and multicast parts (claims 4-7, 15-18) |
| `Datagrams`, `Awaited`, `Member`, `Part` | what a bundle consists of |
| `PartKind` | how to make a data connection's application from a checkpoint |
| `Timer` | what `Stream.call_later` returns |
| `Seq` | a TCP sequence number, with arithmetic that wraps |
| `ObjectByte` | one byte of an object: identifier and offset |
| `DataBlock` | a checkpoint, to which every layer appends its section |
| `DocumentRoot`, `OpenObject` | the server's files, and one that is open for sending |
| `GeneratedObject` | one whose bytes are computed: subclass it |
| `ObjectRef` | an object as it stands in a checkpoint |
| `CheckpointRefused`, `LocalError`, `MapError`, `ObjectMissing` | what these raise |
"""

from dataplane.objects import DocumentRoot, GeneratedObject, ObjectMissing, OpenObject
from dataplane.sequence import Seq
from dataplane.sequence_map import MapError, ObjectByte
from dataplane.stack import Application, ApplicationKind, Awaited, Bundle, Datagrams, Member, PartKind, Stream, Timer
from state.datablock import DataBlock
from state.errors import CheckpointRefused, LocalError
from state.sections import ObjectRef, Part

__all__ = [
    "Application",
    "ApplicationKind",
    "Awaited",
    "Bundle",
    "CheckpointRefused",
    "DataBlock",
    "Datagrams",
    "DocumentRoot",
    "GeneratedObject",
    "LocalError",
    "MapError",
    "Member",
    "ObjectByte",
    "ObjectMissing",
    "ObjectRef",
    "OpenObject",
    "Part",
    "PartKind",
    "Seq",
    "Stream",
    "Timer",
]
