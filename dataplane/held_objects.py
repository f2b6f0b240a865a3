"""The open objects of one connection, from which its bytes are sent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable

from dataplane.objects import DocumentRoot, GeneratedObject, OpenObject, key_of
from state.sections import ObjectRef

Opened = OpenObject | GeneratedObject


class HeldObjects:
    """By what a reference names. `digest_known` is called with the old and the new reference when a digest is there
    that was not when its object came."""

    def __init__(
        self, root: DocumentRoot, opened: Iterable[Opened], digest_known: Callable[[ObjectRef, ObjectRef], None]
    ) -> None:
        self._root = root
        self._digest_known: Callable[[ObjectRef, ObjectRef], None] | None = digest_known
        self._held = {key_of(each.ref): each for each in opened}

    def hold(self, opened: Opened, in_flight: Callable[[tuple[str, bytes]], bool]) -> bool:
        """From now on it is the connection's. False: bytes of another version of this file are planned and not
        acknowledged (`in_flight` is asked), and nothing in the sequence map would tell the two apart."""
        key = key_of(opened.ref)
        held = self._held.get(key)
        if held is not None and _file(held) is not _file(opened):
            if in_flight(key):
                self._root.release(opened)
                return False
            self._root.release(held)
            held = None
        if held is not None:
            self._root.release(opened)
            return True
        self._held[key] = opened
        file = _file(opened)
        if not file.ref.digest:
            file.digest_known.append(functools.partial(self._now_known, opened))
        return True

    def keep(self, keys: Container[tuple[str, bytes]]) -> None:
        """Let go of all others: their client has what was sent of them."""
        for key in [key for key in self._held if key not in keys]:
            self._root.release(self._held.pop(key))

    def __contains__(self, opened: Opened) -> bool:
        """Something is held by this name."""
        return key_of(opened.ref) in self._held

    def _now_known(self, opened: Opened, old: ObjectRef, new: ObjectRef) -> None:
        if isinstance(opened, GeneratedObject):
            old, new = opened.ref_with(old), opened.ref_with(new)
        if self._digest_known is not None:
            self._digest_known(old, new)

    def of(self, ref: ObjectRef) -> Opened:
        """Raises `KeyError`: the stream has no such object."""
        return self._held[key_of(ref)]

    def release(self) -> None:
        """All of them; and the connection, which would refer to itself else."""
        self._digest_known = None
        for opened in self._held.values():
            self._root.release(opened)
        self._held.clear()


def _file(opened: OpenObject | GeneratedObject) -> OpenObject:
    return opened.file if isinstance(opened, GeneratedObject) else opened
