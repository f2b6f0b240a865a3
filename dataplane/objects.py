"""The objects that a server sends: files below its document root, with the digest that makes two copies *the same*.

Digests are computed on a thread: at the start for what is there, later for what is asked for and new. Until a digest
is known, an object's identity is its size and modification time. A file that changed (by its inode, size, change or
modification time) is another object.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from dataplane.names import bytes_of
from dataplane.page_cache import Disk
from state.errors import LocalError
from state.sections import LIMIT_PARAMETERS, ObjectRef

OBJECT_DIFFERS = "object differs at the backup"
OBJECT_MISSING = "object missing at the backup"
"""Why a connection is reset at a backup."""
LIMIT_SEGMENTS = 128
"""Of a path that a client names: each costs a look at the disk, on the event loop."""
_DIGEST_CHUNK = 1 << 20
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_Version = tuple[int, int, int, int, int]


class ObjectMissing(LocalError):
    """There is no such object, or it may not be read."""


class ObjectUnavailable(ObjectMissing):
    """It cannot be opened now: this server has as many files open as it may, or no memory."""


@dataclass(eq=False, slots=True)
class OpenObject:
    """An object that is open for sending, shared by all connections that send it."""

    ref: ObjectRef
    fd: int
    version: _Version
    users: int = 0
    digest_known: list[Callable[[ObjectRef, ObjectRef], None]] = field(default_factory=list)
    """Called with (old, new) identity once the digest is computed."""


def key_of(ref: ObjectRef) -> tuple[str, bytes]:
    """What tells a connection's objects apart: a file by its name, a generated object also by its parameters."""
    return ref.identifier, ref.parameters


class GeneratedObject(ABC):
    """An object whose bytes are computed from a file and parameters: the same ones on every server, from any offset.

    Its identity in checkpoints is the file's identity, its own size and the parameters; from these a backup makes it
    again (`Application.generate`). The connection that sends it reads at any offset, and may read bytes twice.
    """

    def __init__(self, file: OpenObject, size: int, parameters: bytes) -> None:
        """`file` belongs to this object from now on. `parameters`: at most 1,024 bytes, not empty, whose meaning is the
        protocol's own affair."""
        if not 1 <= len(parameters) <= LIMIT_PARAMETERS:
            raise LocalError(f"{file.ref.identifier}: {len(parameters)} bytes of parameters")
        self.file = file
        self.size = size
        self.parameters = parameters

    @property
    def ref(self) -> ObjectRef:
        """What the checkpoint says."""
        return self.ref_with(self.file.ref)

    def ref_with(self, file: ObjectRef) -> ObjectRef:
        """The same, with this as the file's identity."""
        return ObjectRef(file.identifier, self.size, file.mtime_ns, file.digest, self.parameters)

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """From 1 to `length` bytes from `offset` on, which lies below `size`; none: the file is not what it was."""


class DocumentRoot:
    """Opens objects by identifier: an absolute path below the root, as text of any bytes (`names.text_of`)."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        if not os.path.isdir(self.root):
            raise ObjectMissing(f"document root {root} is not a directory")
        self._open: dict[tuple[str, _Version], OpenObject] = {}
        self._newest: dict[str, OpenObject] = {}
        self._digests: dict[_Version, bytes] = {}
        self._digesting: set[_Version] = set()
        self._thread = ThreadPoolExecutor(1, "digest")
        self._disk = Disk()
        self._stopping = False

    def open(self, identifier: str) -> OpenObject:
        """The object, counted as in use until `release`. Raises `ObjectMissing`; never leaves the root."""
        if "\0" in identifier or len(identifier) > 4096 or identifier.count("/") > LIMIT_SEGMENTS:
            raise ObjectMissing("no file has such a name")
        if identifier.endswith("/"):
            raise ObjectMissing(f"{identifier} names a folder")
        try:
            named = self.root + os.path.normpath("/" + os.fsdecode(bytes_of(identifier)))
            path = os.path.realpath(named, strict=True)  # which ends where nothing is
        except ValueError:
            raise ObjectMissing("no file has such a name") from None
        except OSError as error:
            raise ObjectMissing(f"{identifier}: {error.strerror}") from None
        if not path.startswith(self.root + "/"):
            raise ObjectMissing(f"{identifier} is outside the document root")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            kind = ObjectUnavailable if error.errno in _EXHAUSTED else ObjectMissing
            raise kind(f"{identifier}: {error.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ObjectMissing(f"{identifier} is not a file")
        version = _version(status)
        shared = self._open.get((identifier, version))
        if shared is not None:
            os.close(fd)
        else:
            digest = self._digests.get(version, b"")
            ref = ObjectRef(identifier, status.st_size, status.st_mtime_ns, digest)
            shared = self._open[identifier, version] = OpenObject(ref, fd, version)
            if not digest:
                self._learn_digest(shared)
        shared.users += 1
        self._newest[identifier] = shared
        return shared

    def bring(self, opened: OpenObject, offset: int, length: int) -> asyncio.Future[None]:
        """Done when these bytes of it are in memory (`page_cache`)."""
        self.again(opened)
        brought = self._disk.bring(opened.fd, offset, length)
        brought.add_done_callback(lambda _: self.release(opened))
        return brought

    def again(self, opened: OpenObject) -> OpenObject:
        """One user more of an object that is open."""
        opened.users += 1
        return opened

    def open_copy(self, wanted: ObjectRef) -> OpenObject:
        """The object that a checkpoint speaks of, as `open`. Quicker if it is open already, and has not changed."""
        opened = self._newest.get(wanted.identifier)
        if opened is None or opened.ref != wanted or _version(os.fstat(opened.fd)) != opened.version:
            return self.open(wanted.identifier)
        opened.users += 1
        return opened

    def release(self, opened: OpenObject | GeneratedObject) -> None:
        """One user less; the file is closed after the last."""
        if isinstance(opened, GeneratedObject):
            opened = opened.file
        opened.users -= 1
        if opened.users == 0:
            self._open.pop((opened.ref.identifier, opened.version), None)
            opened.digest_known.clear()  # they refer to it, too
            if self._newest.get(opened.ref.identifier) is opened:
                del self._newest[opened.ref.identifier]
            os.close(opened.fd)

    def same(self, opened: OpenObject | GeneratedObject, wanted: ObjectRef) -> bool:
        """Is this copy, as it is on the disk now, the object that the checkpoint speaks of?"""
        if isinstance(opened, GeneratedObject):
            if (opened.size, opened.parameters) != (wanted.size, wanted.parameters):
                return False
            file = opened.file
            return self.same(file, ObjectRef(wanted.identifier, file.ref.size, wanted.mtime_ns, wanted.digest))
        if _version(os.fstat(opened.fd)) != opened.version or opened.ref.size != wanted.size:
            return False
        mine = opened.ref.digest or self._digests.get(opened.version, b"")
        if wanted.digest and mine:
            return wanted.digest == mine
        return opened.ref.mtime_ns == wanted.mtime_ns

    def _learn_digest(self, opened: OpenObject) -> None:
        if opened.version in self._digesting:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # used without a loop: identity stays size and time
        try:
            fd, version = os.dup(opened.fd), opened.version
        except OSError:
            return  # too many files are open
        self._digesting.add(opened.version)
        future = loop.run_in_executor(self._thread, self._digest, fd, version)

        def learned(done: asyncio.Future[bytes]) -> None:
            self._digesting.discard(version)
            if done.cancelled() or done.exception() is not None or not done.result():
                return
            self._digests[version] = done.result()
            for shared in list(self._open.values()):
                if shared.version == version:
                    old = shared.ref
                    shared.ref = ObjectRef(old.identifier, old.size, old.mtime_ns, done.result())
                    for tell in shared.digest_known:
                        tell(old, shared.ref)
                    shared.digest_known.clear()

        future.add_done_callback(learned)

    def _digest(self, fd: int, version: _Version) -> bytes:
        """On the thread. Empty when the file changed meanwhile."""
        try:
            digest, offset = hashlib.sha256(), 0
            while not self._stopping and (chunk := os.pread(fd, _DIGEST_CHUNK, offset)):
                digest.update(chunk)
                offset += len(chunk)
            changed = self._stopping or _version(os.fstat(fd)) != version
            return b"" if changed else digest.digest()
        finally:
            os.close(fd)

    async def index(self, limit: int = 10_000) -> int:
        """Compute the digests of the files that are there, up to `limit`; how many were."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, self._walk, limit)
        self._digests.update(found)
        return len(found)

    def _walk(self, limit: int) -> dict[_Version, bytes]:
        found: dict[_Version, bytes] = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                if self._stopping or len(found) >= limit:
                    return found
                try:
                    fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                except OSError:
                    continue
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    os.close(fd)
                    continue
                digest = self._digest(fd, _version(status))
                if digest:
                    found[_version(status)] = digest
        return found

    def close(self) -> None:
        self._stopping = True
        self._thread.shutdown(wait=True)
        self._disk.close()


def _version(status: os.stat_result) -> _Version:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
