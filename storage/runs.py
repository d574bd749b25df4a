"""RunStore: every run, from its creation to its deletion."""

from __future__ import annotations

import json
import secrets
import sqlite3
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

from storage.checkpoints import FOLDER, Checkpoints
from storage.connection import StoreError, encode, now
from storage.events import Events, insert_event
from storage.leases import LEASE_SECONDS, Leases, is_live
from storage.prompts import Prompts, insert_prompt
from storage.steps import Steps, check_status
from unlearn_core.settings.disk import remove
from unlearn_core.settings.home import Outside, within

FEWEST_STEPS = 5  # of a run that tells how long a step takes
DECODED = ("config", "provenance", "tags")


class RunStore(Leases, Steps, Prompts, Events, Checkpoints):
    """The store of all runs in one home folder; usable from any thread. Raises StoreError, always one sentence.

    The methods sit in one file per noun: leases (and drivers), steps, prompts (and responses), events (and commands),
    checkpoints.
    """

    def create_run(
        self,
        *,
        name: str,
        target: str,
        method: str,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        seed: int,
        prompts: Iterable[Mapping[str, str]],
        run_id: str | None = None,
        parent_run: str | None = None,
        parent_step: int | None = None,
        owner: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> str:
        """A new queued run with its prompts, leased to `owner` if there is one; returns its id, eight hex digits.

        `run_id`: who asks twice with the same one (a double click) gets the run of the first time.
        """
        at = now()
        with self.write() as conn:
            if run_id and conn.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
                return run_id
            run_id = run_id or secrets.token_hex(4)
            while conn.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
                run_id = secrets.token_hex(4)
            row = {
                "id": run_id,
                "name": name,
                "target": target,
                "method": method,
                "status": "queued",
                "config": encode(config),
                "provenance": encode(provenance),
                "seed": seed,
                "created_at": at,
                "updated_at": at,
                "parent_run": parent_run,
                "parent_step": parent_step,
                "lease_owner": owner,
                "lease_until": None if owner is None else time.time() + lease_seconds,
            }
            columns = ", ".join(row)
            conn.execute(f"INSERT INTO runs ({columns}) VALUES (:{', :'.join(row)})", row)
            for slot, prompt in enumerate(prompts):
                insert_prompt(conn, run_id, slot, 1, prompt["role"], prompt["text"], (0, None))
            insert_event(conn, run_id, 0, "created", {"parent_run": parent_run, "parent_step": parent_step})
        return run_id

    def run(self, run_id: str) -> dict[str, Any] | None:
        """The run by its full id, or None."""
        with self.read() as conn:
            rows = self.decoded(conn.execute("SELECT * FROM runs WHERE id = ?", (run_id,)), DECODED)
        return rows[0] if rows else None

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first."""
        with self.read() as conn:
            return self.decoded(conn.execute("SELECT * FROM runs ORDER BY created_at DESC, rowid DESC"), DECODED)

    def find(self, text: str) -> dict[str, Any]:
        """The run with this id, the only one whose id begins so, or the only one of this name."""
        runs = self.runs()
        matches = [run for run in runs if run["id"] == text] or [
            run for run in runs if text and (run["id"].startswith(text) or run["name"] == text)
        ]
        if len(matches) == 1:
            return matches[0]
        if not runs:
            raise StoreError(f"There is no run {text!r}: this store has no runs yet.")
        shown = ", ".join(f"{run['id']} ({run['name']})" for run in (matches or runs)[:8])
        more = ", ..." if len(matches or runs) > 8 else ""
        if matches:
            raise StoreError(f"{text!r} could be any of {shown}{more}; give more of the id.")
        raise StoreError(f"There is no run {text!r}; there are {shown}{more}.")

    def queued(self) -> list[dict[str, Any]]:
        """The runs that wait and that nobody holds; the one that has waited longest comes first."""
        with self.read() as conn:
            waiting = self.decoded(
                conn.execute("SELECT * FROM runs WHERE status = 'queued' ORDER BY created_at, rowid"), DECODED
            )
        return [run for run in waiting if not is_live(run["lease_owner"], run["lease_until"])]

    def next_queued(self) -> dict[str, Any] | None:
        """The run that has waited longest and that nobody holds, or None."""
        return next(iter(self.queued()), None)

    def set_status(
        self,
        run_id: str,
        status: str,
        reason: str | None = None,
        event: str | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        """The status, its reason (None clears it) and, with `event`, what happened, at the run's last step."""
        check_status(status)
        with self.write() as conn:
            _update(conn, run_id, status=status, status_reason=reason, updated_at=now())
            if event is not None:
                step = conn.execute("SELECT last_step FROM runs WHERE id = ?", (run_id,)).fetchone()[0]
                insert_event(conn, run_id, step, event, payload)

    def step_seconds_like(self, config: Mapping[str, Any]) -> tuple[float, str] | None:
        """What a step took, in seconds, in the newest run that costs the same, and which run that was; None without."""
        cost = ("model", "lora", "method", "guard_rail", "schedule")

        def alike(run: Mapping[str, Any]) -> bool:
            return all(run["config"].get(part) == config.get(part) for part in cost)

        run = next((run for run in self.runs() if run["last_step"] >= FEWEST_STEPS and alike(run)), None)
        if run is None:
            return None
        with self.read() as conn:
            rows = conn.execute(
                "SELECT value FROM points WHERE run_id = ? AND name = 'step_seconds' AND step > 0", (run["id"],)
            )
            return statistics.median(row[0] for row in rows), f"as in the run “{run['name']}”"

    def interrupt_abandoned(self) -> list[str]:
        """As of the leases; what the drivers that are gone have left half written is removed."""
        interrupted = super().interrupt_abandoned()
        for run_id in interrupted:
            self.tidy_checkpoints(run_id, after_a_driver=True)
        return interrupted

    def set_provenance(self, run_id: str, provenance: Mapping[str, Any]) -> None:
        """Add these keys to the run's provenance; a key that was there gets the new value."""
        with self.write() as conn:
            row = conn.execute("SELECT provenance FROM runs WHERE id = ?", (run_id,)).fetchone()
            merged = {**json.loads(row[0] if row else "{}"), **provenance}
            _update(conn, run_id, provenance=encode(merged), updated_at=now())

    def set_config(self, run_id: str, config: Mapping[str, Any]) -> None:
        """The run goes on with other settings."""
        with self.write() as conn:
            _update(conn, run_id, config=encode(config), updated_at=now())

    def rename(self, run_id: str, name: str) -> None:
        """Give the run another name."""
        with self.write() as conn:
            _update(conn, run_id, name=name)

    def delete_run(self, run_id: str) -> None:
        """Delete the run's rows and its checkpoint folder; refused while somebody drives it."""
        with self.write() as conn:
            row = conn.execute("SELECT name, lease_owner, lease_until FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise StoreError(f"There is no run {run_id}.")
            if is_live(*row[1:]):
                raise StoreError(f"{row[0]!r} is being driven by {row[1]}; stop it before deleting it.")
            conn.execute("DELETE FROM runs WHERE id = ?", (run_id,))  # every other table follows by its foreign key
        self._delete_checkpoint_folder(run_id)

    def _delete_checkpoint_folder(self, run_id: str) -> None:
        # An id is a name in home/checkpoints and nothing else, whatever a file that was edited by hand says;
        # a folder that is a link elsewhere loses the link only.
        checkpoints = self.home / FOLDER
        folder = checkpoints / run_id
        if folder.parent != checkpoints or run_id in ("", ".", "..") or "\\" in run_id or ":" in run_id:
            return
        try:
            within(self.home, FOLDER)
            remove(folder)
        except Outside:
            return
        except OSError as error:
            raise StoreError(
                f"The run is deleted, but its checkpoint folder {folder} could not be removed ({error.strerror})."
            ) from error


def _update(conn: sqlite3.Connection, run_id: str, **values: Any) -> None:
    assignments = ", ".join(f"{column} = :{column}" for column in values)
    if not conn.execute(f"UPDATE runs SET {assignments} WHERE id = :id", {**values, "id": run_id}).rowcount:
        raise StoreError(f"There is no run {run_id}.")
