"""Proves passwords on a thread of its own: whoever tries very many of them keeps no listing and no upload waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dataplane.ftp import passwords
from state.configuration import Ftp

LIMIT_WAITING = 16
"""Passwords that may wait for the thread: about a second."""


class Doorkeeper:
    """One per agent: of all its connections."""

    def __init__(self, settings: Ftp) -> None:
        self._users = {user.name: user.password for user in settings.users}
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._waiting = 0

    def ask(self, user: str, password: str, told: Callable[[bool], None]) -> bool:
        """Is it this user's password? `told` is called with the answer, at once if there are no users at all, else
        later and for any name as late. False: too many wait already, and it is not called."""
        if not self._users:
            told(False)
            return True
        if self._waiting >= LIMIT_WAITING:
            return False
        self._waiting += 1
        loop = asyncio.get_running_loop()
        answer = loop.run_in_executor(self._thread, passwords.proves, password, self._users.get(user))

        def proven(done: asyncio.Future[bool]) -> None:
            self._waiting -= 1
            told(not done.cancelled() and done.exception() is None and done.result())

        answer.add_done_callback(proven)
        return True
