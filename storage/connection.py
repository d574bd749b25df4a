"""One writer behind a lock, readers that cannot write, and every SQLite error as one sentence."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

from sqlite_utils import Database

from storage import migrations, read_only
from unlearn_core.settings.disk import full, full_disk, to_disk

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock alone keeps two writers apart
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

WAIT_SECONDS = 120.0  # for a store that another process has locked; then it is given up
NOTICE_SECONDS = 1.0  # of waiting, after which it is told
CLOSE_SECONDS = 2.0  # for the lock, when a store is closed
ROOM = 20  # digits of a step, so that steps sort as text
HALF_BACKUP = ".lethe-backup-"  # begins the name of a backup copy that is being written


class StoreError(Exception):
    """What went wrong with the store, in one sentence for a person."""


class StoreBusy(StoreError):
    """Another process has kept the store locked for longer than anybody waits."""


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


def dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    """The rows of `cursor` by column name."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


class Connection:
    """The file `lethe.db` in `home`: `write()` is one transaction, `read()` a connection that cannot write.

    Raises StoreError when the home cannot be used. What cannot be written (a newer version's file, a damaged one, a
    read-only home, a full disk) opens for reading only, and `notice` says why. A store that another process has locked
    is waited for; `on_wait` is given a sentence once that takes long, in the thread that waits, and `waiting` has it
    for the others.
    """

    Error: ClassVar[type[Exception]] = StoreError  # as in PEP 249, for callers that import no storage

    def __init__(self, home: str | Path, on_wait: Callable[[str], None] | None = None) -> None:
        self.home = Path(home).expanduser().absolute()
        self.path = self.home / "lethe.db"
        self._address = read_only.address(self.path)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self.read_only = False
        self.damaged = False
        self.notice: str | None = None
        self._on_wait = on_wait
        self._waits: dict[int, str] = {}  # thread -> what it waits for
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
            if not read_only.writable(self.path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if os.path.isfile(self.path):
                return self._open_for_reading(error)
            raise StoreError(
                full_disk(error, self.home)
                or f"The home folder {self.home} cannot be used ({error.strerror}); choose another folder."
            ) from error
        with self._locked_file(), self._in_one_sentence():
            for half in self.home.glob(f"{HALF_BACKUP}*"):  # of a process that died: whoever writes one has the lock
                half.unlink(missing_ok=True)
            self._check_log()
            try:
                self._open_for_writing()
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                if not read_only.has_content(self.path) or not read_only.may_be_read(error):
                    raise
                return self._open_for_reading(error)

    def _open_for_writing(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            self._roll_back()
            with closing(self._new_reader()) as reader:
                newer = self._patiently(lambda: migrations.unknown_to_us(Database(reader)))
            if newer:
                self.read_only = True
                self.notice = (
                    f"This store was written by a newer version (it has {newer[-1]}), so it is open for reading "
                    "only; update the program to write to it."
                )
        if not self.read_only:
            self._writer = self._patiently(self._new_writer)
            self._migrate(self._writer)
        self._watcher = self._new_reader()

    def _roll_back(self) -> None:
        """Ends the transaction of a process that died while the store was made: that takes a connection that writes."""
        if read_only.has_content(read_only.journal_of(self.path)):
            with closing(sqlite3.connect(self.path, timeout=NOTICE_SECONDS, isolation_level=None)) as writer:
                self._patiently(lambda: writer.execute("SELECT count(*) FROM sqlite_master").fetchone())

    def _open_for_reading(self, error: Exception) -> None:
        """Opens what cannot be written, and says in `notice` why. Raises StoreError where it cannot be read either."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.read_only = True
        if read_only.is_damage(error):
            self.found_damage()
        elif how := full(error) or ("is full" if read_only.code(error) == sqlite3.SQLITE_FULL else ""):
            way_out = "make room there and start again"
            self.notice = f"The disk that holds {self.home} {how}, so it is open for reading only; {way_out}."
        else:
            reason = getattr(error, "strerror", None) or error
            self.notice = (
                f"{self.home} cannot be written ({reason}), so it is open for reading only; to change something, check "
                "its permissions, or copy it to another folder."
            )
        with self._in_one_sentence():
            self._address, self._copy = read_only.readable(self.path, NOTICE_SECONDS)
            self._watcher = self._new_reader()

    def _check_log(self) -> None:
        """SQLite throws the log of an empty file away, and with it all that was not in the file yet."""
        log = read_only.log_of(self.path)
        if self.path.is_file() and not read_only.has_content(self.path) and read_only.has_content(log):
            raise StoreError(
                f"{self.path} is empty, but its log {log.name} is not, so it is damaged. Nothing was changed: copy "
                f"both to another place, then delete them here.{self._backup()}"
            )

    def _new_writer(self) -> sqlite3.Connection:
        # isolation_level None: transactions begin where write() says, not where the driver guesses.
        writer = sqlite3.connect(self.path, timeout=NOTICE_SECONDS, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
            writer.execute(f"PRAGMA {pragma}")
        return writer

    def _new_reader(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._address, uri=True, timeout=NOTICE_SECONDS, check_same_thread=False, isolation_level=None
        )

    def _migrate(self, writer: sqlite3.Connection) -> None:
        db = Database(writer)
        if not migrations.MIGRATIONS.pending(db):
            return
        if db.table_names():
            self._back_up(writer, migrations.version_of(db))
        self._patiently(lambda: writer.execute("BEGIN IMMEDIATE"))
        try:
            migrations.MIGRATIONS.apply(db)
            writer.execute("COMMIT")
        except BaseException as error:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            if isinstance(error, ValueError):  # a text that a migration reads is not what was written
                raise sqlite3.DatabaseError(f"{read_only.DAMAGE}: {error}") from error
            raise

    def _back_up(self, writer: sqlite3.Connection, version: str) -> None:
        """Copy the whole store beside itself; an older copy of the same version is kept."""
        copy = self.home / f"lethe-backup-{version}.db"
        number = 2
        while copy.exists():
            copy = self.home / f"lethe-backup-{version}-{number}.db"
            number += 1
        half = self.home / f"{HALF_BACKUP}{secrets.token_hex(4)}"
        try:
            writer.execute("VACUUM INTO ?", (str(half),))
            to_disk(half)
            half.rename(copy)
        finally:
            half.unlink(missing_ok=True)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the one writing connection: all of it is kept or nothing. Raises StoreError.

        Inside another one of the same thread it is a part of that: where it fails, all of it must.
        """
        if self.read_only:
            raise StoreError(self.notice)
        began = time.monotonic()
        self._patiently(self._take_turn, began)
        try:
            writer = self._writer
            if writer is None:
                raise StoreError("The store is closed.")
            if writer.in_transaction:
                yield writer
                return
            with self._locked_file(began), self._in_one_sentence():
                self._patiently(lambda: writer.execute("BEGIN IMMEDIATE"), began)
                try:
                    yield writer
                    writer.execute("COMMIT")
                except BaseException:
                    if writer.in_transaction:
                        writer.execute("ROLLBACK")
                    raise
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The store as it is at one moment. Pooled, not one per thread: a dashboard's threads live for one rerun."""
        if self._closed:
            raise StoreError("The store is closed.")
        with self._in_one_sentence():
            try:
                reader = self._idle_readers.pop()
            except IndexError:
                reader = self._new_reader()
            try:
                self._patiently(lambda: _begin_reading(reader))
                yield reader
                if reader.in_transaction:
                    reader.execute("ROLLBACK")  # nothing was written; a COMMIT fails where the file is damaged
            except BaseException:
                reader.close()
                raise
            if self._closed:
                reader.close()
            else:
                self._idle_readers.append(reader)

    @property
    def waiting(self) -> str | None:
        """What a thread of this process waits for since a while, as a sentence; None while the store is free."""
        return next(iter(list(self._waits.values())), None)

    def _patiently(self, take: Callable[[], T], began: float | None = None, seconds: float | None = None) -> T:
        """What `take` returns once nobody else has the store locked. Raises StoreBusy after `seconds` (WAIT_SECONDS).

        `began`: since when it is waited for, by the monotonic clock, where that is before now.
        """
        began, seconds = began or time.monotonic(), WAIT_SECONDS if seconds is None else seconds
        pause, thread = 0.0002, threading.get_ident()
        try:
            while True:
                try:
                    return take()
                except (BlockingIOError, sqlite3.OperationalError) as error:
                    if not _is_busy(error):
                        raise
                waited = time.monotonic() - began
                if waited > seconds:
                    raise StoreBusy(
                        f"Another program has kept {self.path} locked for {waited:.0f} seconds; close it, or continue "
                        "it where it is stopped, and try again."
                    )
                if waited > NOTICE_SECONDS and thread not in self._waits:
                    self._tell_of_waiting(thread)
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
        finally:
            self._waits.pop(thread, None)

    def _tell_of_waiting(self, thread: int) -> None:
        self._waits[thread] = sentence = (
            f"Another program has {self.path} locked; waiting for it, {WAIT_SECONDS:.0f} seconds at most."
        )
        if self._on_wait:
            self._on_wait(sentence)

    def _take_turn(self) -> None:
        """The turn of this thread among those of this process that write."""
        if not self._writing.acquire(timeout=NOTICE_SECONDS):
            raise BlockingIOError

    def data_version(self) -> int:
        """A number that changes whenever anyone, here or in another process, has committed; for this object only."""
        with self._in_one_sentence():
            return self._patiently(self._ask_version)

    def _ask_version(self) -> int:
        # SQLite's answers are comparable only on one connection, hence one connection kept for the question.
        with self._watching:
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
                # The last writer to leave empties the log into the file. Whoever keeps the lock is not gone, so the
                # last one is he.
                with suppress(StoreError), self._locked_file(seconds=CLOSE_SECONDS):
                    self._writer.close()
                self._writer.close()
                self._writer = None
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None
            if self._copy is not None:
                self._copy.cleanup()
                self._copy = None

    @contextmanager
    def _locked_file(self, began: float | None = None, seconds: float | None = None) -> Iterator[None]:
        """Let one process at a time write or checkpoint."""
        # SQLite 3.7.0 to 3.51.2 can damage the file when two connections write or checkpoint at the same instant.
        lock = self._lock_file
        if fcntl is None or lock is None:
            yield
            return
        try:
            self._patiently(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), began, seconds)
        except OSError as error:
            raise StoreError(f"{self.home} is on a disk without file locks ({error.strerror}).") from error
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake in this program, not in the store
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if read_only.is_damage(error):
                self.found_damage()
            raise StoreError(self._sentence(error)) from error
        except OSError as error:
            if not (sentence := full_disk(error, self.path)):
                raise
            raise StoreError(sentence) from error
        except UnicodeEncodeError as error:
            raise StoreError("A text with a broken character (half of a surrogate pair) cannot be stored.") from error

    def rows(self, conn: sqlite3.Connection, query: str, values: Any, order: str, scan: str) -> list[tuple[Any, ...]]:
        """The rows of `query` in `order`; of a damaged table what lies before and behind the damage, and `notice`.

        `scan`: columns in the order of an index, along which a damaged table is walked from both of its ends.
        """
        try:
            return conn.execute(f"{query} ORDER BY {order}", values).fetchall()
        except sqlite3.DatabaseError as error:
            if not read_only.is_damage(error):
                raise
            self.found_damage()
        found: dict[tuple[Any, ...], None] = {}
        for columns in (scan, ", ".join(f"{column} DESC" for column in scan.split(", "))):
            with suppress(sqlite3.DatabaseError):
                for row in conn.execute(f"{query} ORDER BY {columns}", values):
                    found[row] = None
        return sorted(found, key=lambda row: str(row[0]).rjust(ROOM))

    def decoded(self, cursor: sqlite3.Cursor, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """The rows of `cursor`, the columns `names` read from JSON. A row that is none is left out: it is damaged."""
        rows = []
        for row in dicts(cursor):
            try:
                row.update({name: json.loads(row[name]) for name in names})
                rows.append(row)
            except (TypeError, ValueError, RecursionError):
                self.found_damage()
        return rows

    def found_damage(self) -> None:
        """From now on this object only reads: a change to a damaged file can damage more of it."""
        self.read_only, self.damaged, self.notice = True, True, self._damaged()

    def _damaged(self) -> str:
        return (
            f"{self.path} is damaged, so it is open for reading only. `python cli.py export RUN --to DIR`, or Export "
            "on the page Runs, saves what can still be read of a run. Then move it to another place, with the files "
            f"{self.path.name}-wal and -shm, and a new store begins.{self._backup()}"
        )

    def _backup(self) -> str:
        """Which backup copy there is, as a sentence behind another; empty where there is none."""
        copies = sorted(self.home.glob("lethe-backup-*.db"), key=lambda path: path.stat().st_mtime)
        return f" Its backup copy {copies[-1].name}, renamed to {self.path.name}, takes its place." if copies else ""

    def _sentence(self, error: Exception) -> str:
        extended = getattr(error, "sqlite_errorcode", 0)  # absent where the error is the driver's own
        code = read_only.code(error)
        if read_only.is_damage(error):
            return self._damaged()
        reasons = {
            sqlite3.SQLITE_FULL: f"The disk that holds {self.path} is full; nothing of this was written.",
            sqlite3.SQLITE_BUSY: f"Another program keeps {self.path} locked; close it and try again.",
            sqlite3.SQLITE_NOTADB: f"{self.path} is not a store: the file is no SQLite database, "
            f"and it is left as it is. Move it away, or choose another folder.{self._backup()}",
            sqlite3.SQLITE_IOERR: f"The disk that holds {self.path} failed ({error}); nothing of this was written.",
        }
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return (
                f"{self.path} cannot be opened for writing ({error}); check its permissions or choose another folder."
            )
        if extended == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            return "There is no such run or prompt in the store."
        return reasons.get(code, f"The store refused: {error}.")


def _is_busy(error: Exception) -> bool:
    """Whether it says that another process or thread has the store locked."""
    if isinstance(error, BlockingIOError):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _begin_reading(reader: sqlite3.Connection) -> None:
    """A transaction that has the right to read from here on: nothing within it can find the store locked."""
    if not reader.in_transaction:
        reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
