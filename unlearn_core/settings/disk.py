"""Files that are written whole or not at all, and a full disk in one sentence, whoever reports it."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "has no room left within your quota",
    errno.EFBIG: "takes no file as large as this one",
}
NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")  # of Python's and of Rust's errors, quoted by libraries
PART = ".lethe-part-"  # begins the name of what is being written
DAY = 86_400.0


def full(error: BaseException) -> str:
    """How the disk is full, as an error or what has caused it says: "is full"; empty where that is not the trouble."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (quoted := NUMBER.search(str(cause))):
            number = int(quoted[1] or quoted[2])
        if number in FULL:
            return FULL[number]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return ""


def full_disk(error: BaseException, path: Path | None = None) -> str:
    """The sentence of a full disk and the way out; empty where that is not the trouble. `path`: what was written."""
    if not (how := full(error)):
        return ""
    where = path or getattr(error, "filename", None)
    disk = f"The disk that holds {where}" if where else "The disk"
    return f"{disk} {how}; make room there and try again. What was there before is as it was."


# -------------------------------------------------------------------------------------------- whole or not at all


def beside(path: Path) -> Path:
    """A new hidden name in the same folder, for what is to take the place of `path` when it is whole."""
    return path.with_name(f"{PART}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Where to write a file: it takes the place of `path` when the block has ended well, and else it is gone."""
    part = beside(path)
    try:
        yield part
        to_disk(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Waits until a file, or all of a folder, is on the disk itself."""
    if path.is_dir():
        for each in path.iterdir():
            to_disk(each)
        if os.name == "nt":
            return  # which opens no folders
    number = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove(path: Path) -> None:
    """Removes a file, a folder with all in it, or a link without what it leads to. Nothing happens where none is."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def clear_parts(folder: Path) -> None:
    """Removes what processes that are gone have left half written in a folder."""
    with suppress(OSError):
        for path in folder.glob(f"{PART}*"):
            if abandoned(path):
                remove(path)


def abandoned(part: Path) -> bool:
    """Whether nobody writes a file or folder any more that `beside` named: its process, here, is gone, or it is old."""
    host, number, _ = part.name.removeprefix(PART).rsplit("-", 2) if part.name.count("-") >= 4 else ("", "", "")
    try:
        if host != socket.gethostname() or not number.isdecimal() or os.name == "nt":
            return time.time() - part.stat().st_mtime > DAY
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass  # somebody else's process; or it has just taken its place
    return False
