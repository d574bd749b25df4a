"""A disk that is really full: a few megabytes of memory as a file system, which one process alone sees."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEW_NAMESPACE, PRIVATE = 0x00020000, (1 << 18) | (1 << 14)  # CLONE_NEWNS; MS_PRIVATE | MS_REC
READ_ONLY, REMOUNT, BIND = 1, 32, 4096  # MS_RDONLY, MS_REMOUNT, MS_BIND


class NotAllowed(Exception):
    """This process may not mount anything."""


def mount(place: Path, megabytes: int) -> None:
    """A small disk at `place`, which this process alone sees. Raises NotAllowed where a mount is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    _call("unshare", NEW_NAMESPACE)
    _call("mount", b"none", b"/", None, PRIVATE, None)
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={megabytes}m".encode())


def make_read_only(place: Path) -> None:
    """From now on nothing can be written to the small disk, not even by its owner."""
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", REMOUNT | READ_ONLY, None)


def _call(name: str, *given: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, name) or getattr(libc, name)(*given):
        raise NotAllowed(os.strerror(ctypes.get_errno()))


@contextmanager
def full(disk: Path, left: int = 0) -> Iterator[None]:
    """Within, the disk has no room, but for `left` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        if left:
            file.truncate(file.tell() - left)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def no_larger_than(most: int) -> Iterator[None]:
    """Within, no file of this process can grow beyond so many bytes: whatever writes it, in Python or below it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
