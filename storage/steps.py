"""Values, answers and events of a step, written in one transaction; and rewinding to an earlier step."""

from __future__ import annotations

import json
import math
import sqlite3
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import pandas as pd

from storage.connection import Connection, StoreError, dicts, now
from storage.events import insert_event
from storage.prompts import frame, insert_responses
from unlearn_core.settings.home import on_network

POINT_COLUMNS = {"step": "int64", "name": "str", "value": "float64"}
LAST_STEP = 2**62  # beyond every step
Series = tuple[Sequence[int], Sequence[float]]  # steps, rising, and the value at each
STATUSES = (
    "queued", "loading", "baseline", "running", "paused", "finished", "stopped", "failed", "interrupted",
)  # fmt: skip


def check_status(status: str) -> None:
    """Raises StoreError for a word that is no status."""
    if status not in STATUSES:
        raise StoreError(f"A run's status is one of {', '.join(STATUSES)}; {status!r} is not.")


class Steps(Connection):
    """The numbers, answers and events of a step, as one."""

    def append_step(
        self,
        run_id: str,
        step: int,
        *,
        points: Mapping[str, float],
        responses: Iterable[Mapping[str, Any]] = (),
        events: Iterable[tuple[str, Mapping[str, Any] | None]] = (),
        checkpoint: Mapping[str, Any] | None = None,
        examples: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
        status: str | None = None,
        status_reason: str | None = None,
    ) -> None:
        """Write everything of one step in one transaction. Numbers that are not finite become events 'not_finite'.

        `examples`: metric -> id of the example -> its value.
        """
        if status is not None:
            check_status(status)
        with self.write() as conn:
            _touch(conn, run_id, step, status, status_reason)
            numbers = {name: float(value) for name, value in points.items()}
            conn.executemany(
                "INSERT INTO points (run_id, step, name, value) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET value = excluded.value",
                [(run_id, step, name, value) for name, value in numbers.items() if math.isfinite(value)],
            )
            for name, value in numbers.items():
                if not math.isfinite(value):
                    insert_event(conn, run_id, step, "not_finite", {"name": name, "value": str(value)})
            insert_responses(conn, run_id, ({**row, "step": step} for row in responses))
            _insert_examples(conn, run_id, step, examples)
            if checkpoint is not None:
                _insert_checkpoint(conn, run_id, step, checkpoint)
            for kind, payload in events:
                insert_event(conn, run_id, step, kind, payload)

    def truncate_after(self, run_id: str, step: int) -> list[str]:
        """Go back to how things stood at `step`; returns the paths of the checkpoints that are no longer named.

        The files are the caller's. What tells of the run itself, 'created' and 'interrupted', stays.
        """
        with self.write() as conn:
            later = (run_id, step)
            query = "SELECT path FROM checkpoints WHERE run_id = ? AND step > ? ORDER BY step"
            paths = [row[0] for row in conn.execute(query, later)]
            for table in ("points", "responses", "examples", "checkpoints"):
                conn.execute(f"DELETE FROM {table} WHERE run_id = ? AND step > ?", later)
            conn.execute(
                "DELETE FROM events WHERE run_id = ? AND step > ? AND kind NOT IN ('created', 'interrupted')", later
            )
            conn.execute("DELETE FROM prompts WHERE run_id = ? AND from_step > ?", later)  # and their answers at step 0
            conn.execute("UPDATE prompts SET to_step = NULL WHERE run_id = ? AND to_step > ?", later)
            cursor = conn.execute(
                "UPDATE runs SET last_step = min(last_step, ?), updated_at = ? WHERE id = ?", (step, now(), run_id)
            )
            if not cursor.rowcount:
                raise StoreError(f"There is no run {run_id}.")
        return paths

    def points(self, run_id: str, after_step: int = -1, names: Sequence[str] | None = None) -> pd.DataFrame:
        """The numbers of steps > `after_step`, of all names or some: columns step, name, value."""
        chosen = "" if names is None else f" AND name IN ({', '.join('?' * len(names))})"
        query = f"SELECT step, name, value FROM points WHERE run_id = ? AND step > ?{chosen}"
        with self.read() as conn:
            rows = self.rows(conn, query, (run_id, after_step, *(names or ())), "step, name", "step, name")
            return frame(rows, POINT_COLUMNS)

    def series(self, run_id: str, names: Iterable[str], after_step: int = -1) -> dict[str, Series]:
        """Of each of `names` that has any: the steps > `after_step`, rising, and the values. Nothing else is read."""
        query = (
            "SELECT step, value FROM points INDEXED BY points_by_name"
            " WHERE run_id = ? AND name = ? AND step > ? ORDER BY step"
        )
        with self.read() as conn:
            rows = {name: conn.execute(query, (run_id, name, after_step)).fetchall() for name in names}
        return _columns(rows)

    def series_at(self, run_id: str, names: Iterable[str], steps: Iterable[int]) -> dict[str, Series]:
        """Of each of `names` that has any: its newest points at or before each of `steps`, as `series` has them."""
        query = """
            SELECT points.step, value
            FROM (SELECT DISTINCT (SELECT step FROM points INDEXED BY points_by_name
                                   WHERE run_id = :run AND name = :name AND step <= wanted.value
                                   ORDER BY step DESC LIMIT 1) AS step
                  FROM json_each(:steps) AS wanted) AS newest
            CROSS JOIN points ON run_id = :run AND points.step = newest.step AND name = :name
            ORDER BY points.step"""
        wanted = {"run": run_id, "steps": json.dumps(sorted(steps))}
        with self.read() as conn:
            rows = {name: conn.execute(query, {**wanted, "name": name}).fetchall() for name in names}
        return _columns(rows)

    def last_points(self, run_id: str, at_step: int = LAST_STEP) -> dict[str, float]:
        """The newest value of each name, or the newest at or before `at_step`."""
        return {name: value for name, (_, value) in self._one_of_each(run_id, at_step, "DESC").items()}

    def earliest_points(self, run_id: str) -> dict[str, tuple[int, float]]:
        """Of each name the first step that has a value, and that value."""
        return self._one_of_each(run_id, LAST_STEP, "ASC")

    def above_since(self, run_id: str, name: str, limit: float) -> list[int]:
        """The newest step whose value is at most `limit`, and the first one behind it: from there on all are above.

        Steps that do not exist are left out: without a step at most `limit` there is neither.
        """
        query = """
            WITH below(step) AS (
                SELECT step FROM points INDEXED BY points_by_name
                WHERE run_id = :run AND name = :name AND value <= :limit ORDER BY step DESC LIMIT 1)
            SELECT step FROM below
            UNION ALL
            SELECT (SELECT points.step FROM points INDEXED BY points_by_name
                    WHERE run_id = :run AND name = :name AND points.step > below.step ORDER BY points.step LIMIT 1)
            FROM below"""
        with self.read() as conn:
            rows = conn.execute(query, {"run": run_id, "name": name, "limit": limit}).fetchall()
        return [row[0] for row in rows if row[0] is not None]

    def _one_of_each(self, run_id: str, at_step: int, order: str) -> dict[str, tuple[int, float]]:
        # Hops from name to name along the index, then to one step of each: the cost does not grow with the length of
        # the run. The index is named because the planner prefers the primary key, which is sorted by step as well, but
        # has to pass every later step of the run where a name was recorded at step 0 only.
        query = f"""
            WITH RECURSIVE names(name) AS (
                SELECT min(name) FROM points INDEXED BY points_by_name WHERE run_id = :run
                UNION ALL
                SELECT (SELECT min(name) FROM points INDEXED BY points_by_name
                        WHERE run_id = :run AND name > names.name)
                FROM names WHERE names.name IS NOT NULL)
            SELECT points.name, points.step, points.value
            FROM names CROSS JOIN points
            ON points.run_id = :run AND points.name = names.name
            AND points.step = (SELECT step FROM points INDEXED BY points_by_name
                               WHERE run_id = :run AND name = names.name AND step <= :at ORDER BY step {order} LIMIT 1)
            ORDER BY points.name"""
        with self.read() as conn:
            rows = conn.execute(query, {"run": run_id, "at": at_step}).fetchall()
        return {name: (step, value) for name, step, value in rows}

    def first_points(self, run_id: str) -> dict[str, float]:
        """The baseline: every value of step 0."""
        with self.read() as conn:
            query = "SELECT name, value FROM points WHERE run_id = ? AND step = 0 ORDER BY name"
            return dict(conn.execute(query, (run_id,)).fetchall())

    def examples(self, run_id: str, step: int | None = None) -> list[dict[str, Any]]:
        """The values per example, of all steps or one: step, metric, example_id, value."""
        of_step = "" if step is None else " AND step = :step"
        query = f"SELECT step, metric, example_id, value FROM examples WHERE run_id = :run{of_step}"
        order = "ORDER BY step, metric, example_id"
        with self.read() as conn:
            return dicts(conn.execute(f"{query} {order}", {"run": run_id, "step": step}))


def _columns(rows: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Series]:
    """Rows as columns of 8 bytes a number; names without a row are left out."""
    return {
        name: (array("q", (step for step, _ in of_name)), array("d", (value for _, value in of_name)))
        for name, of_name in rows.items()
        if of_name
    }


def _touch(conn: sqlite3.Connection, run_id: str, step: int, status: str | None, reason: str | None) -> None:
    # A reason belongs to its status: a new status without one clears the old reason.
    cursor = conn.execute(
        "UPDATE runs SET last_step = max(last_step, :step), updated_at = :at, status = coalesce(:status, status),"
        " status_reason = CASE WHEN :status IS NULL THEN coalesce(:reason, status_reason) ELSE :reason END"
        " WHERE id = :run",
        {"run": run_id, "step": step, "at": now(), "status": status, "reason": reason},
    )
    if not cursor.rowcount:
        raise StoreError(f"There is no run {run_id}.")


def _insert_examples(
    conn: sqlite3.Connection, run_id: str, step: int, examples: Mapping[str, Mapping[str, float]]
) -> None:
    rows = [(metric, example, float(value)) for metric, some in examples.items() for example, value in some.items()]
    conn.executemany(
        "INSERT INTO examples (run_id, step, metric, example_id, value) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET value = excluded.value",
        [(run_id, step, *row) for row in rows if math.isfinite(row[2])],
    )
    for metric, example, value in rows:
        if not math.isfinite(value):
            payload = {"name": metric, "example_id": example, "value": str(value)}
            insert_event(conn, run_id, step, "not_finite", payload)


def _insert_checkpoint(conn: sqlite3.Connection, run_id: str, step: int, checkpoint: Mapping[str, Any]) -> None:
    path = PurePath(checkpoint["path"])
    if path.is_absolute() or ".." in path.parts or on_network(str(checkpoint["path"])):
        raise StoreError(f"A checkpoint's path is relative to the home folder; {path} is not.")
    columns = ("run_id", "step", "path", "bytes", "sha256", "complete", "adapter_sha256")
    hashes = (checkpoint["bytes"], checkpoint["sha256"], int(checkpoint["complete"]), checkpoint.get("adapter_sha256"))
    conn.execute(
        f"INSERT INTO checkpoints ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT (run_id, path) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns[1:])}",
        (run_id, step, path.as_posix(), *hashes),
    )
