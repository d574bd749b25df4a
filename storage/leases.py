"""Leases: the process that drives a run, and until when; two processes never drive one run."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from storage.connection import Connection, StoreError, now
from storage.events import insert_event

DRIVEN = ("loading", "baseline", "running", "paused")


def is_live(owner: str | None, until: float | None) -> bool:
    """Whether `owner` ("host:pid:random") still holds: the lease has not ended and its process here has not died."""
    return owner is not None and until is not None and until > time.time() and not _is_gone(owner)


def _is_gone(owner: str) -> bool:
    parts = owner.rsplit(":", 2)
    # On Windows os.kill(pid, 0) would end the process: there the lease has to run out.
    if len(parts) != 3 or parts[0] != socket.gethostname() or not parts[1].isdigit() or os.name == "nt":
        return False
    with suppress(PermissionError):  # somebody else's process, so alive
        try:
            os.kill(int(parts[1]), 0)
        except (ProcessLookupError, OverflowError):
            return True
    return False


class Leases(Connection):
    """Who drives which run, and until when."""

    def claim(self, run_id: str, owner: str, seconds: float = 15) -> bool:
        """Take the run if it is free, its lease has ended, its owner here is dead, or it is already `owner`'s."""
        with self.write() as conn:
            row = conn.execute("SELECT lease_owner, lease_until FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise StoreError(f"There is no run {run_id}.")
            if row[0] != owner and is_live(*row):
                return False
            conn.execute(
                "UPDATE runs SET lease_owner = ?, lease_until = ? WHERE id = ?", (owner, time.time() + seconds, run_id)
            )
        return True

    def heartbeat(self, owner: str, seconds: float = 15) -> list[str]:
        """Renew every lease of `owner`; returns the runs it still holds (one that is missing was taken over)."""
        with self.write() as conn:
            held = [row[0] for row in conn.execute("SELECT id FROM runs WHERE lease_owner = ?", (owner,))]
            conn.execute("UPDATE runs SET lease_until = ? WHERE lease_owner = ?", (time.time() + seconds, owner))
        return held

    def release(self, run_id: str, owner: str) -> None:
        """Give the run back; nothing happens when `owner` does not hold it."""
        with self.write() as conn:
            conn.execute(
                "UPDATE runs SET lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
                (run_id, owner),
            )

    def interrupt_abandoned(self) -> list[str]:
        """Mark the runs whose driver is gone as interrupted, with an event; returns their ids."""
        wanted = (
            "SELECT id, status, last_step, lease_owner, lease_until FROM runs"
            f" WHERE status IN ({', '.join('?' * len(DRIVEN))}) AND lease_owner IS NOT NULL"
        )
        with self.read() as conn:  # asked on every tick: look first, so that the lock is taken only when there is work
            if all(is_live(owner, until) for *_, owner, until in conn.execute(wanted, DRIVEN).fetchall()):
                return []
        interrupted = []
        with self.write() as conn:
            for run_id, status, step, owner, until in conn.execute(wanted, DRIVEN).fetchall():
                if is_live(owner, until):
                    continue
                reason = f"The process that drove it is gone; it had got to step {step}."
                conn.execute(
                    "UPDATE runs SET status = 'interrupted', status_reason = ?, updated_at = ?, lease_owner = NULL,"
                    " lease_until = NULL WHERE id = ?",
                    (reason, now(), run_id),
                )
                insert_event(conn, run_id, step, "interrupted", {"was": status, "owner": owner})
                interrupted.append(run_id)
        return interrupted
