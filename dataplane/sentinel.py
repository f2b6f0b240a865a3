"""A small process beside the agent that tells the controller at once when the agent's process dies.

A dying process frees its memory before it closes its files: the controller would see the control connection close 3 to
5 ms after a SIGKILL, and tens of milliseconds later when thousands of connections close before it. But the kernel walks
the *robust futex list* first of all (kernel/exit.c: exit_mm -> futex_exit_release). So agent and sentinel share a
robust mutex that the agent holds for life; the sentinel sleeps on it and wakes within a fraction of a millisecond.

Ten times a second it also looks whether the agent's heart beats. If it does not (the process hangs), clients may have
connected before anybody noticed: the kernel accepted them and acknowledged what they asked, and no checkpoint knows of
them. The sentinel tells the controller which these are.

Whoever kills the sentinel loses the milliseconds, and these clients: the close is still seen.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence

from dataplane import orphans
from state import messages
from state.configuration import Address
from state.errors import LocalError
from state.messages import LIMIT_UNHEARD, Message
from state.process import raise_priority

_MUTEX_BYTES = 64
_ATTRIBUTE_BYTES = 64
_INCARNATION = struct.Struct("=Q")
_BEATS = struct.Struct("=Q")
_BEATS_AT = _MUTEX_BYTES + _INCARNATION.size
_LOOK_SECONDS = 0.1
_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_CONNECT_SECONDS = 1.0
_PR_SET_NAME = 15


class Sentinel:
    """Start it early, while the process is small and has one thread: it is a fork."""

    def __init__(
        self, server: str, controller: Address, services: Sequence[tuple[str, int]] = (), silence: float = 0.3
    ) -> None:
        """`services`: addresses and ports. `silence`: seconds without a beat after which the agent is surely fenced."""
        self._server = server
        self._controller = controller
        self._services = services
        self._silence = silence
        self._heard = self._told = 0
        self._silent_since = 0.0
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._mutex = ctypes.c_char.from_buffer(self._memory)
        self._libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)

    def start(self) -> None:
        """Fork the sentinel; the calling thread must live as long as the agent. Raises `LocalError`."""
        attribute = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        libc, mutex = self._libc, ctypes.byref(self._mutex)
        for status in (
            libc.pthread_mutexattr_init(attribute),
            libc.pthread_mutexattr_setpshared(attribute, _PTHREAD_PROCESS_SHARED),
            libc.pthread_mutexattr_setrobust(attribute, _PTHREAD_MUTEX_ROBUST),
            libc.pthread_mutex_init(mutex, attribute),
            libc.pthread_mutex_lock(mutex),
        ):
            if status:
                raise LocalError(f"the sentinel's mutex cannot be made: {os.strerror(status)}")
        if os.fork() == 0:
            try:
                self._watch()
            finally:
                os._exit(0)

    def live(self, incarnation: int) -> None:
        """This life of the agent is the one whose end is to be told."""
        _INCARNATION.pack_into(self._memory, _MUTEX_BYTES, incarnation)

    def beat(self, number: int) -> None:
        """The agent's loop lives."""
        _BEATS.pack_into(self._memory, _BEATS_AT, number)

    def _watch(self) -> None:
        """In the child."""
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        raise_priority()
        self._libc.prctl(_PR_SET_NAME, b"takeover-sentry", 0, 0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        while not self._dying(_LOOK_SECONDS):
            if self._just_fell_silent():
                self._tell_unheard()
        self._tell(messages.Died(self._server, self._incarnation()))

    def _incarnation(self) -> int:
        (incarnation,) = _INCARNATION.unpack_from(self._memory, _MUTEX_BYTES)
        return int(incarnation)

    def _dying(self, seconds: float) -> bool:
        """Wait so long for the end of the agent's process."""
        until = time.time() + seconds
        limit = _Timespec(int(until), int(until % 1 * 1e9))
        return bool(
            self._libc.pthread_mutex_timedlock(ctypes.byref(self._mutex), ctypes.byref(limit)) != errno.ETIMEDOUT
        )

    def _just_fell_silent(self) -> bool:
        (beats,) = _BEATS.unpack_from(self._memory, _BEATS_AT)
        if beats != self._heard:
            self._heard, self._silent_since = beats, time.monotonic()
        elif beats and self._told != beats and time.monotonic() - self._silent_since >= self._silence:
            self._told = beats
            return True
        return False

    def _tell_unheard(self) -> None:
        try:
            found = [each for address, port in self._services for each in orphans.unaccepted(address, port)]
        except LocalError:
            return
        for start in range(0, len(found), LIMIT_UNHEARD):  # in portions: each is quick to handle
            self._tell(messages.Unheard(self._server, self._incarnation(), found[start : start + LIMIT_UNHEARD]))

    def _tell(self, word: Message) -> None:
        try:
            address = (self._controller.host, self._controller.port)
            with socket.create_connection(address, timeout=_CONNECT_SECONDS) as sock:
                sock.sendall(messages.encode(word))
        except OSError:
            pass  # no controller: it finds out by itself when it comes back


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))
