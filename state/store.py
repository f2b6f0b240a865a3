"""Where checkpoints are kept: one interface, and the embedded store behind it (SQLite, write-ahead log).

What was stored survives the death of the controller's process: a commit is in the write-ahead log, which the kernel
holds. Nothing here waits for the disk (`docs/decisions/015-no-fsync.md`): a crash of the whole *machine* may lose the
last moments or damage the file. Then the store begins empty, and the servers' agents, which keep their own checkpoints,
send them again.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from state.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoint
    (id INTEGER PRIMARY KEY, connection TEXT NOT NULL UNIQUE, server TEXT NOT NULL, block BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_LOG_PAGES = 256
"""Pages in the log at which it is folded back into the file: 1 MiB, a millisecond's work."""

_log = logging.getLogger(__name__)


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
    """`Store` in one SQLite file. Everything happens on the caller's thread."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CORRUPT:
                    raise  # not a database, and perhaps somebody's
                self._set_aside()
                self._db = self._open()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"state: cannot open {self._path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                damage = sqlite3.DatabaseError(found)
                damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damage
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _set_aside(self) -> None:
        aside = self._path.with_name(self._path.name + ".damaged")
        _log.error("%s is damaged, as after a crash of the machine: kept as %s, beginning empty", self._path, aside)
        self._path.replace(aside)
        for companion in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + companion).unlink()

    def put(self, records: Sequence[tuple[str, str, bytes]]) -> None:
        # Changes a row where it is: replacing it would write three times as much to the log.
        self._write(
            "INSERT INTO checkpoint (connection, server, block) VALUES (?1, ?2, ?3) "
            "ON CONFLICT (connection) DO UPDATE SET server = ?2, block = ?3",
            records,
        )

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
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # SQLite ends it by itself for some errors
                        self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise StoreError(f"state: cannot write {self._path}: {error}") from None

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
        self._db.close()
