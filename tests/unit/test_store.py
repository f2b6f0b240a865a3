"""The embedded store: what was put is there after any death of the process, and failures say which file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from state.errors import StoreError
from state.store import EmbeddedStore

A, B, C = ("a-1", "web1", b"\0block a"), ("b-2", "web2", b"block b"), ("c-3", "web1", b"")

PUT_AND_WAIT_FOR_DEATH = """
import sys
from state.store import EmbeddedStore
store = EmbeddedStore(sys.argv[1])
store.put([("a-1", "web1", b"old"), ("b-2", "web2", b"block b")])
store.put([("a-1", "web1", b"new")])
store.put([("c-3", "web1", b"gone")])
store.forget(["c-3"])
store.put_fact("epoch", b"7")
print("stored", flush=True)
sys.stdin.read()
"""


def kept(path: Path) -> list[tuple[str, str, bytes]]:
    """What another process would find."""
    store = EmbeddedStore(path)
    try:
        return sorted(store.checkpoints())
    finally:
        store.close()


def test_what_was_put_survives_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with subprocess.Popen(
        [sys.executable, "-c", PUT_AND_WAIT_FOR_DEATH, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stored\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert kept(path) == [("a-1", "web1", b"new"), ("b-2", "web2", b"block b")]
    store = EmbeddedStore(path)
    assert store.fact("epoch") == b"7"
    store.close()


def test_what_was_put_is_there_for_a_second_reader_before_any_close(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put([A, B])
    assert kept(tmp_path / "state.db") == [A, B]
    store.close()


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    assert list(store.checkpoints()) == []
    assert store.fact("epoch") is None
    store.close()


def test_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.db"
    EmbeddedStore(path).close()
    assert kept(path) == []


def test_a_put_replaces_what_was_kept_of_the_connection(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put([A, B])
    store.put([("a-1", "web2", b"newer")])
    assert sorted(store.checkpoints()) == [("a-1", "web2", b"newer"), B]
    store.put([("a-1", "web1", b"1"), ("a-1", "web3", b"2")])
    assert sorted(store.checkpoints()) == [("a-1", "web3", b"2"), B]
    store.close()


def test_what_is_forgotten_stays_forgotten(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put([A, B, C])
    store.forget(["a-1", "unknown", "c-3"])
    store.forget(name for name in ("unknown",))
    store.close()
    assert kept(tmp_path / "state.db") == [B]


def test_nothing_to_do_is_nothing_wrong(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put([])
    store.forget([])
    assert list(store.checkpoints()) == []
    store.close()


def test_facts_are_kept_by_name_and_replaced(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put_fact("epoch", b"1")
    store.put_fact("owners", b"\0\xff")
    store.put_fact("epoch", b"2")
    assert store.fact("epoch") == b"2"
    assert store.fact("owners") == b"\0\xff"
    assert store.fact("other") is None
    store.close()


def test_a_put_of_many_is_all_or_nothing(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    store.put([A])
    broken: Any = ("c-3", None, b"no server")
    with pytest.raises(StoreError):
        store.put([("a-1", "web1", b"newer"), B, broken])
    assert list(store.checkpoints()) == [A]
    store.put([B, C])
    assert sorted(store.checkpoints()) == [A, B, C]
    store.close()


def test_nothing_is_lost_while_the_log_is_folded_back(tmp_path: Path) -> None:
    """More rows than the log may hold."""
    store = EmbeddedStore(tmp_path / "state.db")
    for start in range(0, 12_000, 1000):
        store.put([(f"c-{i}", "web1", i.to_bytes(4, "big")) for i in range(start, start + 1000)])
    store.close()
    assert {name: int.from_bytes(block, "big") for name, _, block in kept(tmp_path / "state.db")} == {
        f"c-{i}": i for i in range(12_000)
    }


class _FullAtCommit:
    """A database whose medium is full when a transaction is to be written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(statement, *parameters)


def test_a_store_that_was_full_keeps_again_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = EmbeddedStore(path)
    db = store._db
    store._db = _FullAtCommit(db)
    for _ in range(2):
        with pytest.raises(StoreError, match="full"):
            store.put([A, B])
    store._db = db
    store.put([B, C])
    store.close()
    assert kept(path) == [B, C]


def _damage(path: Path) -> None:
    """A page of the table's tree lost half-way, as a crash of the machine may leave it."""
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(content)


def test_a_damaged_store_is_set_aside_and_begins_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.db"
    store = EmbeddedStore(path)
    store.put([(f"c-{i}", "web1", bytes(400)) for i in range(1000)])
    store.close()
    _damage(path)
    damaged = path.read_bytes()
    store = EmbeddedStore(path)
    assert list(store.checkpoints()) == []
    store.put([A])
    store.close()
    assert kept(path) == [A]
    assert (tmp_path / "state.db.damaged").read_bytes() == damaged
    assert str(path) in caplog.text


def test_a_store_of_the_first_layout_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE checkpoint (connection TEXT PRIMARY KEY, server TEXT NOT NULL, block BLOB NOT NULL) "
            "WITHOUT ROWID"
        )
        old.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", A)
    old.close()
    store = EmbeddedStore(path)
    store.put([B, ("a-1", "web2", b"newer")])
    assert sorted(store.checkpoints()) == [("a-1", "web2", b"newer"), B]
    store.close()


def test_the_log_does_not_grow_without_bounds(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db")
    for start in range(0, 20_000, 50):
        store.put([(f"c-{i % 500}", "web1", i.to_bytes(400, "big")) for i in range(start, start + 50)])
    assert (tmp_path / "state.db-wal").stat().st_size < 4 << 20
    store.close()


def unopenable(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "state.db"
    if kind == "a folder":
        path.mkdir()
    elif kind == "below a file":
        path.write_bytes(b"")
        return path / "state.db"
    else:
        path.write_bytes(b"this is no database" * 100)
    return path


@pytest.mark.parametrize("kind", ["a folder", "below a file", "no database"])
def test_a_store_that_cannot_be_opened_says_where(tmp_path: Path, kind: str) -> None:
    path = unopenable(tmp_path, kind)
    with pytest.raises(StoreError, match="cannot open") as caught:
        EmbeddedStore(path)
    assert str(path) in str(caught.value)


def test_a_store_that_fails_later_says_what_it_could_not_do_and_where(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = EmbeddedStore(path)
    store.close()
    for act, verb in (
        (lambda: store.put([A]), "write"),
        (lambda: store.put([A, B]), "write"),
        (lambda: store.forget(["a-1"]), "write"),
        (lambda: store.put_fact("epoch", b""), "write"),
        (lambda: store.fact("epoch"), "read"),
        (lambda: list(store.checkpoints()), "read"),
    ):
        with pytest.raises(StoreError, match=f"cannot {verb}") as caught:
            act()
        assert str(path) in str(caught.value)
