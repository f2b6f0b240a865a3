"""A connected switch: everything that is said to it, in the order in which it was decided.

Ryu's own send queue holds 16 messages and *suspends the caller* when it is full. A caller suspended half-way through a
bundle lets other events be decided and sent meanwhile, and the older bundle, committed last, would undo the newer one.
So nobody but one green thread talks to Ryu's queue, and a bundle is one piece of bytes. The same thread makes these
bytes, a little at a time: those of a switch's whole state take longer than anybody should wait.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import eventlet
from eventlet.queue import LightQueue

from controller import ryu_adapter

OFP, PARSER = ryu_adapter.OFP, ryu_adapter.PARSER

_SECONDS_AT_ONCE = 0.002

_log = logging.getLogger(__name__)


class OpenFlowSwitch:
    """Atomic bundles (ONF extension 230) and single messages to one datapath. No method suspends the caller."""

    def __init__(self, datapath: Any, sent: Counter[str] | None = None) -> None:
        """`sent` counts the messages by their name in OpenFlow."""
        self.datapath = datapath
        self._sent: Counter[str] = sent if sent is not None else Counter()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._commits: dict[int, int] = {}
        """Number of the bundle by the transaction id of its commit request."""
        self._outbox = LightQueue()
        self._writer = eventlet.spawn(self._write)

    def close(self) -> None:
        """The connection is gone: what was not sent is dropped."""
        self._writer.kill()

    def send(self, message: Any) -> None:
        self._outbox.put((None, [message]))

    def commit(self, bundle: Iterable[Any], committed: Callable[[], None], refused: Callable[[], None]) -> None:
        """All of the bundle or nothing; `committed` or `refused` is called on the switch's reply. Does not wait: the
        bundle is gone through later."""
        number = next(self._numbers)
        self._waiting[number] = committed, refused
        self._outbox.put((number, self._in_bundle(number, bundle)))

    def _in_bundle(self, number: int, bundle: Iterable[Any]) -> Iterator[Any]:
        flags = OFP.ONF_BF_ATOMIC | OFP.ONF_BF_ORDERED
        yield PARSER.ONFBundleCtrlMsg(self.datapath, number, OFP.ONF_BCT_OPEN_REQUEST, flags, [])
        for message in bundle:
            message.datapath = self.datapath
            yield PARSER.ONFBundleAddMsg(self.datapath, number, flags, message, [])
        commit = PARSER.ONFBundleCtrlMsg(self.datapath, number, OFP.ONF_BCT_COMMIT_REQUEST, flags, [])
        yield commit
        self._commits[commit.xid] = number

    def replied(self, number: int, type_: int) -> None:
        """The switch answered a bundle control message."""
        if type_ == OFP.ONF_BCT_COMMIT_REPLY:
            committed, _ = self._waiting.pop(number, (None, None))
            self._commits = {xid: other for xid, other in self._commits.items() if other != number}
            if committed is not None:
                committed()

    def failed(self, xid: int) -> None:
        """The switch answered the message with this transaction id with an error."""
        number = self._commits.pop(xid, None)
        if number is not None:
            self._refused(number)

    def _refused(self, number: int) -> None:
        _, refused = self._waiting.pop(number, (None, None))
        if refused is not None:
            refused()

    def _serialized(self, message: Any) -> bytes:
        self._sent[type(message).__name__] += 1
        message.datapath = self.datapath
        self.datapath.set_xid(message)
        message.serialize()
        return bytes(message.buf)

    def _write(self) -> None:
        while True:
            number, messages = self._outbox.get()
            try:
                self._write_whole(messages)
            except Exception:  # what comes after it is to be said all the same
                _log.exception("what was to be said to the switch could not be written")
                if number is not None:
                    self._refused(number)

    def _write_whole(self, messages: Iterable[Any]) -> None:
        """A bundle or a single message, as one piece."""
        parts: list[bytes] = []
        began = time.perf_counter()
        for message in messages:
            parts.append(self._serialized(message))
            if time.perf_counter() - began > _SECONDS_AT_ONCE:
                eventlet.sleep(0)
                began = time.perf_counter()
        self.datapath.send(b"".join(parts))
