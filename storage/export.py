"""A run as files that other programs read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from storage.connection import StoreError
from storage.runs import RunStore


def export_run(store: RunStore, run_id: str, folder: Path) -> list[Path]:
    """Write points.csv, responses.csv, run.json and the last checkpoint's adapter/ into `folder`; returns their paths.

    Raises StoreError when the folder cannot be written or the adapter's files are gone.
    """
    folder = Path(folder)
    texts = {
        "points.csv": points_csv(store, run_id),
        "responses.csv": store.responses(run_id).to_csv(index=False, lineterminator="\n"),
        "run.json": run_json(store, run_id),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        written = [folder / name for name in texts]
        checkpoints = store.checkpoints(run_id)
        if checkpoints:
            shutil.copytree(_adapter_folder(store, checkpoints[-1]), folder / "adapter", dirs_exist_ok=True)
            written.append(folder / "adapter")
    except (OSError, shutil.Error) as error:
        raise StoreError(f"{folder} could not be written ({error}).") from error
    return written


def _adapter_folder(store: RunStore, checkpoint: dict[str, Any]) -> Path:
    folder = store.home / checkpoint["path"]
    for candidate in (folder / "adapter", folder):
        if (candidate / "adapter_config.json").exists():
            return candidate
    raise StoreError(f"The numbers are written, but the adapter of step {checkpoint['step']} is gone from {folder}.")


def points_csv(store: RunStore, run_id: str) -> str:
    """The numbers as CSV: one row a step, one column a name, empty where a step has no such number."""
    points = store.points(run_id)
    wide = points.pivot(index="step", columns="name", values="value")
    return str(wide.to_csv(lineterminator="\n"))


def run_json(store: RunStore, run_id: str) -> str:
    """Everything the store knows about the run, except who drives it, as JSON text. Raises StoreError if unknown."""
    run = store.run(run_id)
    if run is None:
        raise StoreError(f"There is no run {run_id}.")
    points = store.points(run_id)
    responses = store.responses(run_id)
    everything = {
        "run": {key: value for key, value in run.items() if not key.startswith("lease_")},
        "points": {
            str(name): {"step": rows["step"].tolist(), "value": rows["value"].tolist()}
            for name, rows in points.groupby("name")
        },
        "prompts": store.prompts(run_id),
        "responses": responses.astype(object).where(responses.notna(), None).to_dict("records"),
        "events": store.events(run_id),
        "commands": store.commands(run_id, limit=-1),
        "checkpoints": store.checkpoints(run_id),
        "examples": store.examples(run_id),
    }
    return json.dumps(everything, ensure_ascii=False, indent=1)
