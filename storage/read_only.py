"""A store file that cannot be written: whether it can be read all the same, and how."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from sqlite_utils import Database

from storage import migrations

DAMAGE = "database disk image is malformed"  # in SQLite's own words
REFUSED = (
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
)  # fmt: skip


def code(error: BaseException) -> int:
    """SQLite's primary code of an error: its low byte; 0 where it is the driver's own, or no error of SQLite's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damage(error: BaseException) -> bool:
    """Whether an error says that a file does not hold what was written."""
    if isinstance(error, UnicodeDecodeError):  # a name in the schema that SQLite quotes is no text any more
        return True
    text = str(error)
    return code(error) == sqlite3.SQLITE_CORRUPT or DAMAGE in text or "Could not decode to UTF-8" in text


def may_be_read(error: BaseException) -> bool:
    """Whether a file that could not be opened for writing can perhaps be read."""
    return isinstance(error, OSError) or is_damage(error) or code(error) in REFUSED


def writable(path: Path) -> bool:
    """Whether a file, and what SQLite puts beside it, may be written by this process."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def address(path: Path) -> str:
    """The file as SQLite opens it for reading only."""
    return f"{path.as_uri()}?mode=ro"


def log_of(path: Path) -> Path:
    """SQLite's write-ahead log, with what is not in the file itself yet."""
    return path.with_name(f"{path.name}-wal")


def journal_of(path: Path) -> Path:
    """What SQLite keeps of a transaction while it does not write a log: as long as a store is made, or becomes one."""
    return path.with_name(f"{path.name}-journal")


def has_content(path: Path) -> bool:
    """Whether a file is there and has any bytes."""
    return path.is_file() and path.stat().st_size > 0


def readable(path: Path, timeout: float) -> tuple[str, tempfile.TemporaryDirectory[str] | None]:
    """An address under which a file can be read without writing beside it, and the folder of the copy that it is of.

    SQLite makes an index of its log beside a file. Where it cannot, a file without a log is read as it is; one with a
    log, with half a transaction in it, or of an older version, from a copy. Raises sqlite3.Error where it cannot be
    read at all.
    """
    ways = [address(path)]
    if not has_content(log_of(path)) and not has_content(journal_of(path)):
        ways.append(f"{address(path)}&immutable=1")
    trouble: Exception | None = None
    for way in ways:
        try:
            with closing(sqlite3.connect(way, uri=True, timeout=timeout)) as reader:
                reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if not migrations.MIGRATIONS.pending(Database(reader)):
                    return way, None
            break  # it can be read, but is of an older version
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if is_damage(error):
                return way, None  # some of it may still be read
            trouble = error
    copy = tempfile.TemporaryDirectory(prefix="lethe-", ignore_cleanup_errors=True)
    try:
        return _copied(path, Path(copy.name)), copy
    except (sqlite3.Error, OSError, ValueError) as error:
        copy.cleanup()
        if is_damage(error):
            return ways[-1], None
        raise trouble or sqlite3.OperationalError(f"it is of an older version, and {error}") from error


def _copied(path: Path, folder: Path) -> str:
    """The address of a copy of the file with its log and its journal, brought to this version."""
    copy = folder / path.name
    for source, target in ((path, copy), (log_of(path), log_of(copy)), (journal_of(path), journal_of(copy))):
        with suppress(FileNotFoundError):
            shutil.copyfile(source, target)
    with closing(sqlite3.connect(copy, isolation_level=None)) as writer:
        migrations.MIGRATIONS.apply(Database(writer))
    return address(copy)
