"""Checkpoints: their steps and the paths of their files."""

from __future__ import annotations

from typing import Any

from storage.connection import Connection, dicts


class Checkpoints(Connection):
    """The checkpoints of every run; the files are their writer's."""

    def checkpoints(self, run_id: str) -> list[dict[str, Any]]:
        """The run's checkpoints by step; `path` is relative to the home folder, `complete` means resumable."""
        with self.read() as conn:
            rows = dicts(conn.execute("SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step, id", (run_id,)))
        return [{**row, "complete": bool(row["complete"]), "pinned": bool(row["pinned"])} for row in rows]

    def nearest_checkpoint(self, run_id: str, step: int, complete: bool | None = None) -> dict[str, Any] | None:
        """The newest checkpoint at or before `step`, else the first after it; `complete` narrows the choice."""
        rows = [row for row in self.checkpoints(run_id) if complete is None or row["complete"] == complete]
        before = [row for row in rows if row["step"] <= step]
        return before[-1] if before else rows[0] if rows else None

    def shrink_checkpoint(self, checkpoint_id: int) -> None:
        """Marks a checkpoint as holding its adapter alone; the caller deletes the files."""
        with self.write() as conn:
            conn.execute("UPDATE checkpoints SET complete = 0 WHERE id = ?", (checkpoint_id,))
