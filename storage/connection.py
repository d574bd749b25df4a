"""One writer behind a lock, readers that cannot write, and every SQLite error as one sentence."""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar

from sqlite_utils import Database

from storage import migrations

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock alone keeps two writers apart
    fcntl = None  # type: ignore[assignment]

WAIT_SECONDS = 10.0


class StoreError(Exception):
    """What went wrong with the store, in one sentence for a person."""


def now() -> str:
    """The time as ISO 8601 text, UTC, to the microsecond: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def encode(value: Any) -> str:
    """JSON text; numbers that are not finite become "nan", "inf" or "-inf", which JSON has no other word for."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=lambda other: _finite(_plain(other)))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)  # numpy and torch scalars; paths


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def dicts(cursor: sqlite3.Cursor, decoded: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of `cursor` by column name, the columns of `decoded` read from JSON."""
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    for row in rows:
        for name in decoded:
            row[name] = json.loads(row[name])
    return rows


class Connection:
    """The file `lethe.db` in `home`: `write()` is one transaction, `read()` a connection that cannot write.

    Raises StoreError when the home cannot be used. A file from a newer version opens read-only and `notice` says so.
    """

    Error: ClassVar[type[Exception]] = StoreError  # as in PEP 249, for callers that import no storage

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home).expanduser().absolute()
        self.path = self.home / "lethe.db"
        self.read_only = False
        self.notice: str | None = None
        self._writing = threading.RLock()
        self._watching = threading.Lock()
        self._idle_readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._watcher: sqlite3.Connection | None = None
        self._lock_file: IO[bytes] | None = None
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.home / "lethe.lock", "ab")  # noqa: SIM115  (lives as long as the store)
        except OSError as error:
            raise StoreError(
                f"The home folder {self.home} cannot be used ({error.strerror}); choose another folder."
            ) from error
        with self._locked_file(), self._in_one_sentence():
            if self.path.exists() and self.path.stat().st_size:
                with closing(self._new_reader()) as reader:
                    newer = migrations.unknown_to_us(Database(reader))
                if newer:
                    self.read_only = True
                    self.notice = (
                        f"This store was written by a newer version (it has {newer[-1]}), so it is open for reading "
                        "only; update the program to write to it."
                    )
            if not self.read_only:
                self._writer = self._new_writer()
                self._migrate(self._writer)
            self._watcher = self._new_reader()

    def _new_writer(self) -> sqlite3.Connection:
        # isolation_level None: transactions begin where write() says, not where the driver guesses.
        writer = sqlite3.connect(self.path, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
            writer.execute(f"PRAGMA {pragma}")
        return writer

    def _new_reader(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=ro",
            uri=True,
            timeout=WAIT_SECONDS,
            check_same_thread=False,
            isolation_level=None,
        )

    def _migrate(self, writer: sqlite3.Connection) -> None:
        db = Database(writer)
        if not migrations.MIGRATIONS.pending(db):
            return
        if db.table_names():
            self._back_up(writer, migrations.version_of(db))
        writer.execute("BEGIN IMMEDIATE")
        try:
            migrations.MIGRATIONS.apply(db)
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def _back_up(self, writer: sqlite3.Connection, version: str) -> None:
        """Copy the whole store beside itself; an older copy of the same version is kept."""
        copy = self.home / f"lethe-backup-{version}.db"
        number = 2
        while copy.exists():
            copy = self.home / f"lethe-backup-{version}-{number}.db"
            number += 1
        half = self.home / f".lethe-backup-{secrets.token_hex(4)}"
        try:
            writer.execute("VACUUM INTO ?", (str(half),))
            half.rename(copy)
        finally:
            half.unlink(missing_ok=True)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the one writing connection: all of it is kept or nothing. Raises StoreError."""
        if self.read_only:
            raise StoreError(self.notice)
        with self._writing:
            writer = self._writer
            if writer is None:
                raise StoreError("The store is closed.")
            with self._locked_file(), self._in_one_sentence():
                writer.execute("BEGIN IMMEDIATE")
                try:
                    yield writer
                    writer.execute("COMMIT")
                except BaseException:
                    if writer.in_transaction:
                        writer.execute("ROLLBACK")
                    raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection. Pooled, not one per thread: a dashboard's threads live for one rerun only."""
        if self._closed:
            raise StoreError("The store is closed.")
        with self._in_one_sentence():
            try:
                reader = self._idle_readers.pop()
            except IndexError:
                reader = self._new_reader()
            try:
                yield reader
            except BaseException:
                reader.close()
                raise
            if self._closed:
                reader.close()
            else:
                self._idle_readers.append(reader)

    def data_version(self) -> int:
        """A number that changes whenever anyone, here or in another process, has committed; for this object only."""
        # SQLite's answers are comparable only on one connection, hence one connection kept for the question.
        with self._watching, self._in_one_sentence():
            if self._watcher is None:
                raise StoreError("The store is closed.")
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close every connection; safe to call twice."""
        self._closed = True
        with self._watching:
            if self._watcher is not None:
                self._watcher.close()
                self._watcher = None
        while self._idle_readers:
            self._idle_readers.pop().close()
        with self._writing:
            if self._writer is not None:
                with self._locked_file():  # the last writer to leave empties the log into the file
                    self._writer.close()
                self._writer = None
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None

    @contextmanager
    def _locked_file(self) -> Iterator[None]:
        """Let one process at a time write or checkpoint."""
        # SQLite 3.7.0 to 3.51.2 can damage the file when two connections write or checkpoint at the same instant.
        if fcntl is None or self._lock_file is None:
            yield
            return
        patience = time.monotonic() + WAIT_SECONDS
        pause = 0.0002
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise StoreError(
                        f"Another process has been writing to {self.path} for {WAIT_SECONDS:.0f} seconds; try again."
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, 0.005)
            except OSError as error:
                raise StoreError(f"{self.home} is on a disk without file locks ({error.strerror}).") from error
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake in this program, not in the store
        except sqlite3.Error as error:
            raise StoreError(self._sentence(error)) from error
        except UnicodeEncodeError as error:
            raise StoreError("A text with a broken character (half of a surrogate pair) cannot be stored.") from error

    def _sentence(self, error: sqlite3.Error) -> str:
        extended = getattr(error, "sqlite_errorcode", 0)  # absent where the error is the driver's own
        code = extended & 0xFF  # the low byte is the primary code
        reasons = {
            sqlite3.SQLITE_FULL: f"The disk that holds {self.path} is full; nothing of this was written.",
            sqlite3.SQLITE_BUSY: f"Another program keeps {self.path} locked; close it and try again.",
            sqlite3.SQLITE_NOTADB: f"{self.path} is not a store: the file is no SQLite database.",
            sqlite3.SQLITE_CORRUPT: f"{self.path} is damaged; put a backup copy in its place.",
            sqlite3.SQLITE_IOERR: f"The disk that holds {self.path} failed ({error}); nothing of this was written.",
        }
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return (
                f"{self.path} cannot be opened for writing ({error}); check its permissions or choose another folder."
            )
        if extended == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            return "There is no such run or prompt in the store."
        return reasons.get(code, f"The store refused: {error}.")
