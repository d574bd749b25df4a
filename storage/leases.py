"""Leases: the process that drives a run. Two never drive one, and a process that has lost it writes nothing more."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from storage import drivers
from storage.connection import Connection, StoreError, now
from storage.events import insert_event

DRIVEN = ("loading", "baseline", "running", "paused")
DRIVER_GONE = "The program that was to do it ended before it was done."
LEASE_SECONDS = 60.0  # of a driver of another host: so long after its last heartbeat, with clocks that may differ


class NotHeld(StoreError):
    """The run is driven by another process, or by none: whoever thought to drive it may not write to it."""


def is_live(owner: str | None, until: float | None) -> bool:
    """Whether `owner` still drives. Of a process of this host its being alive decides, of others the lease's end."""
    if owner is None or until is None:
        return False
    alive = drivers.lives(owner, until)
    return until > time.time() if alive is None else alive


class Leases(Connection):
    """Who drives which run, and until when."""

    NotHeld: ClassVar[type[Exception]] = NotHeld  # for callers that import no storage

    @staticmethod
    def new_owner() -> str:
        """The name under which one driver of this process takes runs."""
        return drivers.new_owner()

    @staticmethod
    def retire(owner: str) -> None:
        """This driver has ended: what it left is abandoned, although its process goes on."""
        drivers.retire(owner)

    @staticmethod
    def held(run: Mapping[str, Any]) -> bool:
        """Whether a driver that lives holds the run."""
        return is_live(run["lease_owner"], run["lease_until"])

    def claim(
        self, run_id: str, owner: str, seconds: float = LEASE_SECONDS, among: Collection[str] | None = None
    ) -> bool:
        """Take the run if it is free, its lease has ended, its owner here is dead, or it is already `owner`'s.

        `among`: only while its status is one of these. Who looked at a run a moment ago, and was stopped since, must
        not begin anew what another has finished meanwhile.
        """
        with self.write() as conn:
            row = conn.execute("SELECT lease_owner, lease_until, status FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise StoreError(f"There is no run {run_id}.")
            if (among is not None and row[2] not in among) or (row[0] != owner and is_live(*row[:2])):
                return False
            conn.execute(
                "UPDATE runs SET lease_owner = ?, lease_until = ? WHERE id = ?", (owner, time.time() + seconds, run_id)
            )
        return True

    @contextmanager
    def owned(self, run_id: str, owner: str) -> Iterator[None]:
        """One transaction of the run's driver: whatever is written within is kept whole, or nothing of it.

        The owner is the fencing token (Kleppmann, "How to do distributed locking"): it is compared behind the lock
        behind which the writes follow, so nobody can take the run over in between. Raises NotHeld, in a sentence,
        where `owner` holds the run no more.
        """
        with self.write() as conn:
            row = conn.execute("SELECT name, lease_owner, status FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise NotHeld(f"Run {run_id} was deleted, so the process that drove it ends.")
            name, holder, status = row
            if holder != owner:
                taken = f"{holder} drives it now" if holder else f"it is {status} now"
                raise NotHeld(
                    f"Another process took “{name}” ({run_id}) over while this one stood still: {taken}. This one ends "
                    "and has written nothing since."
                )
            yield

    def heartbeat(self, owner: str, seconds: float = LEASE_SECONDS) -> list[str]:
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

    def refuse_abandoned(self) -> list[int]:
        """Refuse the commands whose driver, one of this host, is gone before it was through; returns their ids."""
        wanted = (
            "SELECT id, acknowledged_by FROM commands WHERE done_at IS NULL AND acknowledged_by IS NOT NULL ORDER BY id"
        )
        with self.read() as conn:
            rows = conn.execute(wanted).fetchall()
        refused = [command_id for command_id, owner in rows if drivers.lives(owner, 0.0) is False]
        if not refused:
            return []
        with self.write() as conn:
            conn.executemany(
                "UPDATE commands SET done_at = ?, error = ?, code = 'driver_gone' WHERE id = ? AND done_at IS NULL",
                [(now(), DRIVER_GONE, command_id) for command_id in refused],
            )
        return refused

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
