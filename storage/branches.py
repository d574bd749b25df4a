"""Branches: a run that begins as a copy of another up to a step, and goes on by itself."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.connection import StoreError, dicts
from storage.events import insert_event
from storage.prompts import insert_prompt
from storage.runs import RunStore

# Events that tell of the numbers and answers; the others tell of the parent's own life.
COPIED_EVENTS = ("baseline", "started", "stand_in", "changed", "prompt_edited", "guard", "not_finite")


def branch_run(
    store: RunStore, run_id: str, step: int, config: Mapping[str, Any], name: str, owner: str | None = None
) -> tuple[str, bool]:
    """Makes a child of a run that has its history at step `step`, and goes on with `config`.

    It begins at the newest whole state at or before that step, with everything up to there copied; the steps between
    are taken anew and give the same numbers, since `config` differs from later steps on. `owner`: the driver that holds
    it from the first moment on. Returns its id, and whether it is to be resumed: without any whole state it begins at
    step 0. Raises StoreError where there is no such step.
    """
    parent = store.run(run_id)
    if parent is None:
        raise StoreError(f"There is no run {run_id}.")
    if not 0 <= step <= parent["last_step"]:
        raise StoreError(f"“{parent['name']}” has no step {step}; its steps are 0 to {parent['last_step']}.")
    checkpoint = _whole_state(store, run_id, step)
    writer = f"branch-{secrets.token_hex(4)}"
    facts = {key: parent[key] for key in ("target", "method", "seed")}
    first = [] if checkpoint else store.prompts(run_id, at_step=0)
    with store.write() as conn:
        child = store.create_run(
            name=name, config=config, provenance=parent["provenance"] if checkpoint else {}, prompts=first,
            parent_run=run_id, parent_step=step, owner=owner, **facts,
        )  # fmt: skip
        if checkpoint is None:
            return child, False
        at = int(checkpoint["step"])
        source = store.checkpoint_folder(checkpoint)

        def copy(folder: Path) -> None:
            shutil.copytree(source, folder)

        row = store.write_checkpoint(child, at, True, copy, writer)
        try:
            store.place_checkpoint(row, writer)
            _copy_history(conn, run_id, child, at)
            store.append_step(child, at, points={}, responses=[], events=[], checkpoint=row, examples={})
        finally:
            store.discard_checkpoint(row, writer)
        insert_event(conn, child, at, "branched", {"parent_run": run_id, "parent_step": step})
        store.set_status(child, "interrupted", f"Branched from “{parent['name']}” at step {step}; Resume goes on.")
    return child, True


def _whole_state(store: RunStore, run_id: str, step: int) -> dict[str, Any] | None:
    """The newest checkpoint at or before `step` that a run can go on from, as it was saved; None without one."""
    for row in reversed(store.checkpoints(run_id)):
        if row["complete"] and row["step"] <= step:
            try:
                store.verified_checkpoint(row, whole=True)
                return dict(row)
            except StoreError:
                continue
    return None


def _copy_history(conn: sqlite3.Connection, parent: str, child: str, step: int) -> None:
    """Numbers, questions with their answers, and what happened, up to and with `step`."""
    given = (child, parent, step)
    conn.execute("INSERT INTO points SELECT ?, step, name, value FROM points WHERE run_id = ? AND step <= ?", given)
    examples = "SELECT ?, step, metric, example_id, value FROM examples WHERE run_id = ? AND step <= ?"
    conn.execute(f"INSERT INTO examples {examples}", given)
    kinds = ", ".join("?" * len(COPIED_EVENTS))
    conn.execute(
        "INSERT INTO events (run_id, step, kind, payload, at) SELECT ?, step, kind, payload, at FROM events"
        f" WHERE run_id = ? AND step <= ? AND kind IN ({kinds}) ORDER BY id",
        (*given, *COPIED_EVENTS),
    )
    columns = [row[1] for row in conn.execute("PRAGMA table_info(responses)")]
    copied = ", ".join(name for name in columns if name not in ("run_id", "prompt_id"))
    wordings = conn.execute("SELECT * FROM prompts WHERE run_id = ? AND from_step <= ? ORDER BY id", (parent, step))
    for row in dicts(wordings):
        until = row["to_step"] if row["to_step"] is not None and row["to_step"] <= step else None
        steps = (row["from_step"], until)
        prompt_id = insert_prompt(conn, child, row["slot"], row["version"], row["role"], row["text"], steps)
        conn.execute(
            f"INSERT INTO responses (run_id, prompt_id, {copied}) SELECT ?, ?, {copied} FROM responses"
            " WHERE run_id = ? AND prompt_id = ? AND step <= ?",
            (child, prompt_id, parent, row["id"], step),
        )
