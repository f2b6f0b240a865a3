"""A small process beside the agent that tells the controller at once when the agent's process dies.

A dying process frees its memory before it closes its files: the controller would see the control connection close 3 to
5 ms after a SIGKILL, and tens of milliseconds later when thousands of connections close before it. But the kernel walks
the *robust futex list* first of all (kernel/exit.c: exit_mm -> futex_exit_release). So agent and sentinel share a
robust mutex that the agent holds for life; the sentinel sleeps on it and wakes within a fraction of a millisecond.

It costs nothing while all is well. Whoever kills the sentinel loses only the milliseconds: the close is still seen.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import os
import signal
import socket
import struct

from state import messages
from state.configuration import Address
from state.errors import LocalError
from state.process import raise_priority

_MUTEX_BYTES = 64
_ATTRIBUTE_BYTES = 64
_INCARNATION = struct.Struct("=Q")
_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_CONNECT_SECONDS = 1.0
_PR_SET_NAME = 15


class Sentinel:
    """Start it early, while the process is small and has one thread: it is a fork."""

    def __init__(self, server: str, controller: Address) -> None:
        self._server = server
        self._controller = controller
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
        self._libc.pthread_mutex_lock(ctypes.byref(self._mutex))  # returns when the agent is dying
        (incarnation,) = _INCARNATION.unpack_from(self._memory, _MUTEX_BYTES)
        word = messages.encode(messages.Died(self._server, incarnation))
        try:
            address = (self._controller.host, self._controller.port)
            with socket.create_connection(address, timeout=_CONNECT_SECONDS) as sock:
                sock.sendall(word)
        except OSError:
            pass  # no controller: it finds out by itself when it comes back
