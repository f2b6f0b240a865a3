"""Where checkpoints are kept: one interface, and the embedded store behind it (SQLite, write-ahead log).

What was stored survives the death of the controller's process: a commit is in the write-ahead log, which the kernel
holds. `synchronous=NORMAL` does without an fsync per commit (a commit costs about 20 us), so that a crash of the whole
*machine* may lose the last moments; the servers' agents, which keep their own checkpoints, send them again when the
controller comes back.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from state.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoint (connection TEXT PRIMARY KEY, server TEXT NOT NULL, block BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_LOG_PAGES_BEFORE_CHECKPOINT = 4096


class Store(Protocol):
    """Raises `StoreError` from every method when the medium fails."""

    def put(self, records: Sequence[tuple[str, str, bytes]]) -> None:
        """Keep these (connection id, server, block); all or none; they replace older ones."""

    def forget(self, connections: Iterable[str]) -> None:
        """These connections are over."""

    def checkpoints(self) -> Iterator[tuple[str, str, bytes]]:
        """Everything that is kept, as (connection id, server, block)."""

    def put_fact(self, name: str, value: bytes) -> None:
        """Keep a named fact of the controller (epochs, ownership)."""

    def fact(self, name: str) -> bytes | None: ...

    def close(self) -> None: ...


class EmbeddedStore:
    """`Store` in one SQLite file.

    Commits happen on the caller's thread. The write-ahead log is folded back into the file on a thread of its own,
    because that one waits for the disk.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = self._connect()
            self._db.executescript(_SCHEMA)
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"state: cannot open {self._path}: {error}") from None
        self._commits = 0
        self._folding: threading.Thread | None = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def put(self, records: Sequence[tuple[str, str, bytes]]) -> None:
        self._write("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?)", records)

    def forget(self, connections: Iterable[str]) -> None:
        self._write("DELETE FROM checkpoint WHERE connection = ?", [(name,) for name in connections])

    def put_fact(self, name: str, value: bytes) -> None:
        self._write("INSERT OR REPLACE INTO fact VALUES (?, ?)", [(name, value)])

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        try:
            if len(rows) == 1:
                self._db.execute(statement, rows[0])
            else:
                self._db.execute("BEGIN")
                try:
                    self._db.executemany(statement, rows)
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"state: cannot write {self._path}: {error}") from None
        self._commits += len(rows)
        if self._commits >= _LOG_PAGES_BEFORE_CHECKPOINT:
            self._fold()

    def _fold(self) -> None:
        if self._folding is not None and self._folding.is_alive():
            return
        self._commits = 0
        self._folding = threading.Thread(target=self._fold_now, name="state-fold", daemon=True)
        self._folding.start()

    def _fold_now(self) -> None:
        try:
            db = self._connect()
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            db.close()
        except sqlite3.Error:
            pass  # the log only stays longer; the next commits try again

    def checkpoints(self) -> Iterator[tuple[str, str, bytes]]:
        try:
            yield from self._db.execute("SELECT connection, server, block FROM checkpoint")
        except sqlite3.Error as error:
            raise StoreError(f"state: cannot read {self._path}: {error}") from None

    def fact(self, name: str) -> bytes | None:
        try:
            row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"state: cannot read {self._path}: {error}") from None
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        if self._folding is not None:
            self._folding.join()
        self._db.close()
