"""The questions of a run, every wording of them, and the answers, each tied to the wording it was given to."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from storage.connection import Connection, StoreError, dicts
from storage.events import insert_event
from storage.read_only import DAMAGE

ROLES = ("forget", "neighbour", "retain", "free")

JUDGED = ("target_probability", "surprise", "typical_share")  # numbers of an answer

RESPONSE_COLUMNS = {
    "step": "int64",
    "prompt_id": "int64",
    "slot": "int64",
    "version": "int64",
    "role": "str",
    "prompt": "str",
    "sample": "int64",
    "text": "str",
    "tokens": "Int64",
    "seconds": "float64",
    "target_probability": "float64",
    "surprise": "float64",
    "typical_share": "float64",
}


def frame(rows: list[tuple[Any, ...]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A table whose columns have the same types whether or not there are rows.

    Raises sqlite3.DatabaseError where a value is not of its column's type: then the file is damaged.
    """
    values = zip(*rows, strict=True) if rows else ((),) * len(columns)
    try:
        return pd.DataFrame(
            {
                name: pd.Series(list(column), dtype=kind)
                for (name, kind), column in zip(columns.items(), values, strict=True)
            }
        )
    except (TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"{DAMAGE}: {error}") from error


def insert_prompt(
    conn: sqlite3.Connection, run_id: str, slot: int, version: int, role: str, text: str, steps: tuple[int, int | None]
) -> int:
    """Write one wording inside the caller's transaction; `steps` is (from_step, to_step); returns its id."""
    if role not in ROLES:
        raise StoreError(f"A prompt's role is one of {', '.join(ROLES)}; {role!r} is not.")
    cursor = conn.execute(
        "INSERT INTO prompts (run_id, slot, version, role, text, from_step, to_step) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run_id, slot, version, role, text, *steps),
    )
    return int(cursor.lastrowid or 0)


def insert_responses(conn: sqlite3.Connection, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write answers inside the caller's transaction; each row names its step. A second answer replaces the first."""
    columns = ("run_id", "step", "prompt_id", "sample", "text", "tokens", "seconds", *JUDGED)
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns[4:])
    for row in rows:
        judged = [_finite(conn, run_id, row, name) for name in JUDGED]
        given = (
            row["step"],
            row["prompt_id"],
            row.get("sample", 0),
            row["text"],
            row.get("tokens"),
            row.get("seconds"),
        )
        conn.execute(
            f"INSERT INTO responses ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            f" ON CONFLICT DO UPDATE SET {changes}",
            (run_id, *given, *judged),
        )


def _finite(conn: sqlite3.Connection, run_id: str, row: Mapping[str, Any], name: str) -> float | None:
    """A number of an answer; None, and an event, where it is none."""
    value = row.get(name)
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    payload = {"name": name, "prompt_id": row["prompt_id"], "value": str(float(value))}
    insert_event(conn, run_id, row["step"], "not_finite", payload)
    return None


class Prompts(Connection):
    """The wordings, and the answers to each."""

    def prompts(self, run_id: str, at_step: int | None = None) -> list[dict[str, Any]]:
        """Every wording, or those that are asked at `at_step`; by slot, then version."""
        active = " AND from_step <= :at AND (to_step IS NULL OR :at < to_step)" if at_step is not None else ""
        with self.read() as conn:
            query = f"SELECT * FROM prompts WHERE run_id = :run{active} ORDER BY slot, version"
            return dicts(conn.execute(query, {"run": run_id, "at": at_step}))

    def edit_prompt(self, run_id: str, slot: int | None, role: str, text: str, from_step: int) -> int:
        """A new wording from `from_step` on, in a slot or (None) in a new one; the older one stays. Returns its id."""
        with self.write() as conn:
            old, version = None, 1
            if slot is None:
                slot = _next_slot(conn, run_id)
            else:
                newest = "SELECT version, text, from_step, to_step FROM prompts WHERE run_id = ? AND slot = ?"
                row = conn.execute(f"{newest} ORDER BY version DESC LIMIT 1", (run_id, slot)).fetchone()
                if row is None:
                    raise StoreError(f"Run {run_id} has no prompt in slot {slot}.")
                version, old = row[0] + 1, row[1]
                if row[3] is None and from_step < row[2]:
                    raise StoreError(
                        f"The prompt in slot {slot} was already edited at step {row[2]}, after {from_step}."
                    )
            conn.execute(
                "UPDATE prompts SET to_step = ? WHERE run_id = ? AND slot = ? AND to_step IS NULL",
                (from_step, run_id, slot),
            )
            prompt_id = insert_prompt(conn, run_id, slot, version, role, text, (from_step, None))
            insert_event(conn, run_id, from_step, "prompt_edited", {"slot": slot, "old": old, "new": text})
        return prompt_id

    def add_probe(self, run_id: str, text: str) -> int:
        """A question that is asked once and never becomes one of the run's; the same text has the same id."""
        with self.write() as conn:
            query = "SELECT id FROM prompts WHERE run_id = ? AND text = ? AND role = 'free'"
            known = conn.execute(f"{query} AND from_step = 0 AND to_step = 0", (run_id, text)).fetchone()
            return known[0] if known else insert_prompt(conn, run_id, _next_slot(conn, run_id), 1, "free", text, (0, 0))

    def responses(self, run_id: str, after_step: int = -1, step: int | None = None) -> pd.DataFrame:
        """The answers of steps > `after_step`, or of one step, with the wording that each was given to."""
        which = "r.step = :step" if step is not None else "r.step > :after"
        with self.read() as conn:
            query = (
                "SELECT r.step, r.prompt_id, p.slot, p.version, p.role, p.text, r.sample, r.text, r.tokens, r.seconds,"
                f" {', '.join(f'r.{name}' for name in JUDGED)} FROM responses r JOIN prompts p ON p.id = r.prompt_id"
                f" WHERE r.run_id = :run AND {which}"
            )
            values = {"run": run_id, "after": after_step, "step": step}
            order, scan = "r.step, p.slot, p.version, r.sample", "r.step, r.prompt_id, r.sample"
            rows = self.rows(conn, query, values, order, scan)
            return frame(rows, RESPONSE_COLUMNS)

    def answers(self, run_id: str, after_step: int = -1, step: int | None = None) -> list[dict[str, Any]]:
        """The same answers without their wordings: step, prompt_id, sample, text and the numbers of an answer."""
        which = "r.step = :step" if step is not None else "r.step > :after"
        query = (
            f"SELECT r.step, r.prompt_id, r.sample, r.text, {', '.join(f'r.{name}' for name in JUDGED)}"
            " FROM responses r CROSS JOIN prompts p ON p.id = r.prompt_id"
            f" WHERE r.run_id = :run AND {which} ORDER BY r.step, p.slot, p.version, r.sample"
        )
        with self.read() as conn:
            return dicts(conn.execute(query, {"run": run_id, "after": after_step, "step": step}))

    def answered_step(self, run_id: str, at_step: int) -> int | None:
        """The newest step at or before `at_step` that has answers; None without any."""
        with self.read() as conn:
            query = "SELECT max(step) FROM responses WHERE run_id = ? AND step <= ?"
            row = conn.execute(query, (run_id, at_step)).fetchone()
        return None if row[0] is None else int(row[0])

    def add_responses(self, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write answers outside a step: of a probe, or of a new wording at step 0."""
        with self.write() as conn:
            insert_responses(conn, run_id, rows)


def _next_slot(conn: sqlite3.Connection, run_id: str) -> int:
    query = "SELECT coalesce(max(slot), -1) + 1 FROM prompts WHERE run_id = ?"
    return int(conn.execute(query, (run_id,)).fetchone()[0])
