"""Events of a run, and commands to the worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from storage.connection import Connection, StoreError, encode, now


def insert_event(
    conn: sqlite3.Connection, run_id: str | None, step: int | None, kind: str, payload: Mapping[str, Any] | None
) -> int:
    """Write the event inside the caller's transaction; returns its id."""
    cursor = conn.execute(
        "INSERT INTO events (run_id, step, kind, payload, at) VALUES (?, ?, ?, ?, ?)",
        (run_id, step, kind, encode(payload or {}), now()),
    )
    return int(cursor.lastrowid or 0)


class Events(Connection):
    """Events and commands."""

    def events(self, run_id: str | None, after_id: int = 0) -> list[dict[str, Any]]:
        """The run's events with id > `after_id`, oldest first."""
        with self.read() as conn:
            rows = conn.execute("SELECT * FROM events WHERE run_id IS ? AND id > ? ORDER BY id", (run_id, after_id))
            return self.decoded(rows, ("payload",))

    def add_event(
        self, run_id: str | None, kind: str, payload: Mapping[str, Any] | None = None, step: int | None = None
    ) -> int:
        """Write one event (of no run when `run_id` is None); returns its id."""
        with self.write() as conn:
            return insert_event(conn, run_id, step, kind, payload)

    def request(self, run_id: str | None, kind: str, payload: Mapping[str, Any] | None = None) -> int:
        """Ask the worker for something; returns the command's id."""
        with self.write() as conn:
            cursor = conn.execute(
                "INSERT INTO commands (run_id, kind, payload, requested_at) VALUES (?, ?, ?, ?)",
                (run_id, kind, encode(payload or {}), now()),
            )
            return int(cursor.lastrowid or 0)

    def commands(self, run_id: str | None = "any", open_only: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """The last `limit` commands, newest last: of every run ("any"), of one run, or of none (None)."""
        where = ["TRUE"] if run_id == "any" else ["run_id IS ?"]
        where += ["done_at IS NULL"] if open_only else []
        values: list[str | int | None] = [] if run_id == "any" else [run_id]
        with self.read() as conn:
            rows = conn.execute(
                f"SELECT * FROM commands WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", [*values, limit]
            )
            return self.decoded(rows, ("payload",))[::-1]

    def acknowledge(self, command_id: int, owner: str | None = None) -> bool:
        """Acknowledge a command; True for the first caller, so that two workers never both run it.

        `owner`: the driver that does it.
        """
        with self.write() as conn:
            self._must_exist(conn, command_id)
            cursor = conn.execute(
                "UPDATE commands SET acknowledged_at = ?, acknowledged_by = ? WHERE id = ? AND acknowledged_at IS NULL",
                (now(), owner, command_id),
            )
            return cursor.rowcount == 1

    def finish(
        self, command_id: int, error: str | None = None, code: str | None = None, step: int | None = None
    ) -> None:
        """Mark the command as done, or refused with `error` (a sentence) and `code` (a word); the first one stands.

        `step`: at which it took effect.
        """
        at = now()
        with self.write() as conn:
            self._must_exist(conn, command_id)
            conn.execute(
                "UPDATE commands SET acknowledged_at = coalesce(acknowledged_at, ?), done_at = ?, error = ?, code = ?,"
                " step = ? WHERE id = ? AND done_at IS NULL",
                (at, at, error, code, step, command_id),
            )

    @staticmethod
    def _must_exist(conn: sqlite3.Connection, command_id: int) -> None:
        if conn.execute("SELECT 1 FROM commands WHERE id = ?", (command_id,)).fetchone() is None:
            raise StoreError(f"There is no command {command_id}.")
