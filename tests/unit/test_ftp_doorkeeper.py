"""Passwords that are tried in great number keep nobody waiting but those who try them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from dataplane.ftp import passwords
from dataplane.ftp.doorkeeper import LIMIT_WAITING, Doorkeeper
from state.configuration import Ftp, FtpUser, Serving
from tests.unit.builders import document_root
from tests.unit.ftp_server import Server

USERS = Ftp(users=(FtpUser("ann", passwords.hashed("secret")),))


class Prover:
    """Instead of `passwords.proves`: it takes until `may_go_on` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = threading.Event()
        self.asked: list[str] = []
        monkeypatch.setattr(passwords, "proves", self)

    def __call__(self, password: str, wanted: str | None) -> bool:
        self.asked.append(password)
        self.may_go_on.wait(10)
        return wanted is not None and password == "secret"


async def answers(told: list[bool], count: int) -> None:
    async with asyncio.timeout(10):
        while len(told) < count:
            await asyncio.sleep(0)


def test_only_so_many_wait_and_nothing_else_waits_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    prover = Prover(monkeypatch)

    async def run() -> None:
        doorkeeper, told = Doorkeeper(USERS), list[bool]()
        assert all(doorkeeper.ask("ann", "wrong", told.append) for _ in range(LIMIT_WAITING))
        assert not doorkeeper.ask("ann", "secret", told.append)
        async with asyncio.timeout(10):  # what listings and uploads use
            assert await asyncio.get_running_loop().run_in_executor(None, lambda: "free") == "free"
        assert told == []
        prover.may_go_on.set()
        await answers(told, LIMIT_WAITING)
        assert doorkeeper.ask("ann", "secret", told.append)
        await answers(told, LIMIT_WAITING + 1)
        assert told == [False] * LIMIT_WAITING + [True]

    asyncio.run(run())


def test_names_are_proven_alike_but_without_any_user_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    prover = Prover(monkeypatch)
    prover.may_go_on.set()

    async def run() -> None:
        told: list[bool] = []
        for settings, name in ((Ftp(), "ann"), (USERS, "bob"), (USERS, "ann")):
            assert Doorkeeper(settings).ask(name, "x", told.append)
            assert len(told) == (0 if settings is USERS else 1)
            await answers(told, 1)
            told.clear()
        assert prover.asked == ["x", "x"]

    asyncio.run(run())


def test_who_comes_when_too_many_wait_is_told_to_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prover = Prover(monkeypatch)

    async def run() -> None:
        with document_root(tmp_path) as root:
            first = Server(root, Serving(ftp=USERS))
            others = [Server(root, first.limits, made_of=first.kind) for _ in range(LIMIT_WAITING)]
            for one in (first, *others):
                one.says(b"USER ann\r\nPASS secret\r\n")
            assert [one.codes[-1] for one in (first, *others)] == [331] * LIMIT_WAITING + [421]
            assert others[-1].stream.closed
            prover.may_go_on.set()
            async with asyncio.timeout(10):
                while first.codes[-1] != 230:
                    await asyncio.sleep(0)

    asyncio.run(run())
