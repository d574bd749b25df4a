"""Drivers: the processes that drive runs. Of this host, the operating system says which live; no clock is asked.

An owner of a lease is "host:pid:start-machine-token". `machine` is where the pid means something, `start` tells the
process from a later one with the same pid, the token tells one driver of a process from another.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

# By how much the start of one process may differ between two readings, in 1/100 s. Not at all on Linux, where it is
# counted from the boot; elsewhere it is a time of day, which psutil shifts with the clock except on Windows.
START_DIFFERS = 0 if Path("/proc/self/stat").exists() else 200 if os.name == "nt" else 360_000

_working: set[str] = set()  # the owners of this process whose threads have not ended


class Driver(NamedTuple):
    """What an owner's text says. Of a version before 0.4 `start` is None and `machine` the host's name."""

    machine: str
    pid: int
    start: int | None


@cache
def machine() -> str:
    """This boot of this host and, on Linux, this namespace of process numbers (a container has its own)."""
    try:
        here = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        here = f"{uuid.getnode():x}"
    return hashlib.sha256(here.encode()).hexdigest()[:8]


def new_owner() -> str:
    """An owner for one driver of this process; it counts as live until `retire`, or until the process is gone."""
    pid = os.getpid()
    owner = f"{socket.gethostname()}:{pid}:{started(pid)}-{machine()}-{secrets.token_hex(4)}"
    _working.add(owner)
    return owner


def retire(owner: str) -> None:
    """The driver has ended although its process goes on."""
    _working.discard(owner)


def lives(owner: str, until: float) -> bool | None:
    """Whether the driver is alive; None where only the clock can tell: it is of another host, or of no known form.

    A process that is stopped (Ctrl-Z) or asleep with its machine is alive. `until`: the end of the lease, in seconds
    since 1970, which only a driver of an older version is judged by.
    """
    driver = _read(owner)
    if driver is None or driver.machine not in (machine(), socket.gethostname()):
        return None
    if driver.pid == os.getpid() and driver.start == started(driver.pid):
        return owner in _working
    if not _exists(driver.pid):
        return False
    try:
        if driver.start is None:  # another process has got its number where it began after the lease had ended
            return bool(psutil.Process(driver.pid).create_time() <= until)
        start = started(driver.pid)
    except (OSError, psutil.Error):
        return True  # it exists, but is hidden from this user
    return start is not None and abs(start - driver.start) <= START_DIFFERS


def is_stopped(owner: str) -> bool:
    """Whether the driver's process is one of this host that is stopped (Ctrl-Z, SIGSTOP): alive, and doing nothing."""
    driver = _read(owner)
    if driver is None or driver.machine != machine():
        return False
    try:
        return bool(psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def started(pid: int) -> int | None:
    """When the process began, in 1/100 s; None where it is dead and only its parent has not noticed (a zombie).

    Raises OSError or psutil.Error where there is no such process, or it is hidden from this user.
    """
    if START_DIFFERS == 0:
        # psutil has the time of day alone, which moves with the clock. The name, in brackets, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZXx" else int(fields[18])
    process = psutil.Process(pid)
    dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return None if dead else round(process.create_time() * 100)


def _exists(pid: int) -> bool:
    if os.name == "nt":  # where os.kill(pid, 0) would end the process
        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def _read(owner: str) -> Driver | None:
    parts = owner.rsplit(":", 2)
    if len(parts) != 3 or not parts[1].isdecimal():
        return None
    host, pid, rest = parts
    start, *more = rest.split("-")
    if not more:
        return Driver(host, int(pid), None)
    return Driver(more[0], int(pid), int(start)) if start.isdecimal() else None
