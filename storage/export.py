"""A run as files that other programs read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from storage import cells
from storage.checkpoint_files import STATE
from storage.connection import StoreError
from storage.runs import RunStore
from unlearn_core.settings.disk import beside, clear_parts, full_disk, remove, to_disk

# What a checkpoint has, by a file that tells: an adapter in PEFT's format, or a whole model as transformers has it.
SAVED = {"adapter": "adapter_config.json", "model": "model.safetensors"}
OLD = ".lethe-old-"  # begins the name of a folder whose place another takes


def export_run(store: RunStore, run_id: str, folder: Path) -> list[Path]:
    """Write points.csv, responses.csv, run.json and the last checkpoint's adapter/ into `folder`; returns their paths.

    Where the weights themselves were trained, it is model/ instead, which transformers loads by itself; without what
    only a run that goes on needs. Each is written beside its place and takes it when it is whole. Raises StoreError
    when the folder cannot be written, or when something is missing or damaged: then the rest is there.
    """
    folder = Path(folder)
    missing: list[str] = []
    try:
        texts = _texts(store, run_id, missing)
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        part = beside(folder / "export")
        try:
            part.mkdir()
            for name, text in texts.items():
                (part / name).write_text(text, encoding="utf-8", newline="")
            saved = _saved(store, run_id, part, missing)
            to_disk(part)
            for name in texts:
                (part / name).replace(folder / name)
            if saved:
                _take_place(part / saved, folder / saved)
        finally:
            remove(part)
    except (OSError, shutil.Error) as error:
        reason = (
            full_disk(error, folder) or f"{folder} could not be written ({getattr(error, 'strerror', '') or error})."
        )
        raise StoreError(reason) from error
    if missing or store.damaged:
        raise StoreError(f"{' '.join(missing) or store.notice} What can be had is written to {folder}.")
    return [folder / name for name in (*texts, *([saved] if saved else []))]


def _texts(store: RunStore, run_id: str, missing: list[str]) -> dict[str, str]:
    """File name -> text; what a damaged store cannot tell any more is named in `missing`."""
    makers: dict[str, Callable[[], str]] = {
        "points.csv": lambda: points_csv(store, run_id),
        "responses.csv": lambda: responses_csv(store, run_id),
        "run.json": lambda: run_json(store, run_id),
    }
    texts = {}
    for name, make in makers.items():
        try:
            texts[name] = make()
        except StoreError as error:
            if not store.damaged:
                raise
            missing.append(f"{name} cannot be written: {error}")
    return texts


def _saved(store: RunStore, run_id: str, part: Path, missing: list[str]) -> str:
    """Copies what the newest checkpoint has; "adapter" or "model", empty where the run has no checkpoint."""
    try:
        checkpoints = store.checkpoints(run_id)
        if not checkpoints:
            return ""
        folder = store.verified_checkpoint(checkpoints[-1])
    except StoreError as error:
        missing.append(f"The adapter is not exported. {error}")
        return ""
    for candidate in (folder / "adapter", folder):
        for name, tells in SAVED.items():
            if (candidate / tells).is_file():
                shutil.copytree(candidate, part / name, ignore=shutil.ignore_patterns(*STATE, ".*"), symlinks=True)
                return name
    missing.append(f"What was trained up to step {checkpoints[-1]['step']} is gone from {folder}.")
    return ""


def _take_place(part: Path, place: Path) -> None:
    """A folder takes the place of another, or of nothing; in between, neither is there, but never half of one."""
    old = place.with_name(f"{OLD}{place.name}")
    remove(old)
    if place.exists() or place.is_symlink():
        place.rename(old)
    try:
        part.rename(place)
    except BaseException:
        if old.exists() or old.is_symlink():
            old.rename(place)
        raise
    remove(old)


def _tidy(folder: Path) -> None:
    """Removes what an export that was cut off has left; a folder that it had taken away goes back to its place."""
    clear_parts(folder)
    for name in SAVED:
        if (old := folder / f"{OLD}{name}").exists():
            remove(old) if (folder / name).exists() else old.rename(folder / name)


def points_csv(store: RunStore, run_id: str) -> str:
    """The numbers as CSV: one row a step, one column a name, empty where a step has no such number."""
    points = store.points(run_id)
    try:
        wide = points.pivot(index="step", columns="name", values="value")
    except ValueError as error:  # a step has two numbers of one name, which the tables do not allow
        store.found_damage()
        raise StoreError(store.notice) from error
    return cells.csv(wide, index=True)


def responses_csv(store: RunStore, run_id: str) -> str:
    """The answers as CSV, a row an answer. A text that begins like a formula has an apostrophe in front."""
    return cells.csv(store.responses(run_id))


def run_json(store: RunStore, run_id: str) -> str:
    """Everything the store knows about the run, except who drives it, as JSON text. Raises StoreError if unknown.

    Of a damaged store, what can still be read; `unreadable` then names the rest.
    """
    unreadable: list[str] = []

    def read(name: str, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except StoreError:
            if not store.damaged:
                raise
            unreadable.append(name)
            return None

    run = read("run", lambda: store.run(run_id))
    if run is None and not store.damaged:
        raise StoreError(f"There is no run {run_id}.")
    everything = {
        "run": {key: value for key, value in (run or {"id": run_id}).items() if not key.startswith("lease_")},
        "points": read("points", lambda: _series(store, run_id)),
        "prompts": read("prompts", lambda: store.prompts(run_id)),
        "responses": read("responses", lambda: _answers(store, run_id)),
        "events": read("events", lambda: store.events(run_id)),
        "commands": read("commands", lambda: store.commands(run_id, limit=-1)),
        "checkpoints": read("checkpoints", lambda: store.checkpoints(run_id)),
        "examples": read("examples", lambda: store.examples(run_id)),
        **({"unreadable": unreadable} if unreadable else {}),
    }
    return json.dumps(everything, ensure_ascii=False, indent=1)


def _series(store: RunStore, run_id: str) -> Mapping[str, Any]:
    """The numbers by name: their steps and values."""
    return {
        str(name): {"step": rows["step"].tolist(), "value": rows["value"].tolist()}
        for name, rows in store.points(run_id).groupby("name")
    }


def _answers(store: RunStore, run_id: str) -> list[dict[str, Any]]:
    responses = store.responses(run_id)
    rows: list[dict[str, Any]] = responses.astype(object).where(responses.notna(), None).to_dict("records")
    return rows
