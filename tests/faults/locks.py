"""A store that another program has locked: it is waited for, which is told, and given up in one sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from storage import RunStore, StoreBusy, connection
from tests.faults.two_drivers import drive_to_the_end, log_of, new_run
from tests.scripted import Script, Session

LOCK = """
import fcntl, sqlite3, sys, time
kind, home, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
if kind == "file":
    lock = open(f"{home}/lethe.lock", "ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
else:
    store = sqlite3.connect(f"{home}/lethe.db", isolation_level=None, timeout=30)
    if kind == "alone":
        store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("BEGIN IMMEDIATE" if kind == "writing" else "BEGIN EXCLUSIVE")
    store.execute("UPDATE runs SET notes = 'locked'")
print("locked", flush=True)
time.sleep(seconds)
if kind != "file":
    store.execute("ROLLBACK")
"""
# Whoever writes holds the file's lock and a transaction; other programs (a browser of databases, a backup) the latter
# alone, and with `alone`, which only the first to open a store gets, nobody else can even read.
KINDS = ("file", "writing", "exclusive", "alone")


@contextmanager
def locked(kind: str, home: Path, seconds: float) -> Iterator[None]:
    """Within, another process has the store locked for so long."""
    command = [sys.executable, "-S", "-c", LOCK, kind, str(home), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "locked\n"
            yield
        finally:
            process.kill()


def waited_for(home: Path, kind: str, seconds: float) -> None:
    """A run goes on when the lock is gone, and who waits is told; what only reads does not wait where it can read."""
    told: list[str] = []
    with mock.patch.object(connection, "NOTICE_SECONDS", min(1.0, seconds / 5)):
        first = RunStore(home)
        run_id = new_run(first, kind)
        if kind == "alone":
            first.close()
            with locked(kind, home, seconds):
                store = RunStore(home, on_wait=told.append)
        else:
            store = RunStore(home, on_wait=told.append)
            with locked(kind, home, seconds):
                began = time.monotonic()
                assert len(store.runs()) == 1 and store.data_version() and not told
                assert time.monotonic() - began < seconds / 2, "reading waited for a writer"
                drive_to_the_end(store, run_id, Script().open)
                assert time.monotonic() - began > seconds / 2
            first.close()
        assert told and all("waiting for it" in sentence for sentence in told) and store.waiting is None
        if kind == "alone":
            drive_to_the_end(store, run_id, Script().open)
        assert sorted(set(store.points(run_id).step)) == list(range(8))
        store.close()
    assert "Traceback" not in log_of(home)


def given_up(home: Path, kind: str) -> str:
    """The sentence with which whoever writes, or opens the store, gives a lock up; nothing of it is written."""
    store = RunStore(home)
    run_id = new_run(store, kind)
    opens = kind == "alone"
    if opens:
        store.close()
    short = {"WAIT_SECONDS": 0.3, "NOTICE_SECONDS": 0.1, "CLOSE_SECONDS": 0.1}
    with mock.patch.multiple(connection, **short), locked(kind, home, 60):
        began = time.monotonic()
        try:
            if opens:
                RunStore(home)
            else:
                store.rename(run_id, "never")
        except StoreBusy as error:
            sentence = str(error)
        else:
            raise AssertionError("the lock was not respected")
        assert time.monotonic() - began < 5
        store.close()
    store = RunStore(home)
    assert (store.run(run_id) or {})["name"] == kind
    store.close()
    return sentence


def run_in_the_meantime(home: Path, seconds: float) -> None:
    """A step that is being taken when the lock comes waits with its write; nothing is lost or written twice."""
    store, script = RunStore(home), Script(delay=0.02)
    run_id, held = new_run(store, "in the meantime"), []

    def open_and_lock(config: object, report: object) -> Session:
        session = script.open(config, report)  # type: ignore[arg-type]
        step = session.step

        def locked_step() -> object:
            if not held:
                held.append(locked("file", home, seconds))
                held[0].__enter__()
            return step()

        session.step = locked_step  # type: ignore[method-assign, assignment]
        return session

    try:
        drive_to_the_end(store, run_id, open_and_lock)  # type: ignore[arg-type]
    finally:
        for lock in held:
            lock.__exit__(None, None, None)
    assert [step for _, step in script.stepped] == list(range(1, 8))
    store.close()
