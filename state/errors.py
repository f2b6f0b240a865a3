"""One tree of errors: what *we* did wrong apart from what a *peer* did.

A `LocalError` means that the caller, the operator or the machine is at fault: it is raised, and ends a command with
one sentence. A `PeerError` means that something arrived from outside that cannot be used: a message, a segment, a
checkpoint. It is counted and its sentence shown; it never leaves an event loop.
"""


class TakeoverError(Exception):
    """Every error that this project raises on purpose."""


class LocalError(TakeoverError):
    """This side cannot do what was asked of it."""


class ConfigurationError(LocalError):
    """The configuration cannot be used. `problems` holds every problem found, each with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class StoreError(LocalError):
    """The store of checkpoints cannot be opened, read or written."""


class RepairError(LocalError):
    """The kernel refused a step of recreating or of reading a connection (errno and step in the text)."""


class PeerError(TakeoverError):
    """Something that came from outside is not acceptable."""


class CheckpointRefused(PeerError):
    """A checkpoint that cannot be believed. `field` names what is wrong with it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"checkpoint refused: {field}: {sentence}")
        self.field = field


class MessageRefused(PeerError):
    """A message on the control connection that is malformed, oversized or out of place."""


class SegmentMalformed(PeerError):
    """Bytes that are not a TCP segment in an IP packet."""
