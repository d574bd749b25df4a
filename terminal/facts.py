"""Finding a run by id or name, whether a process drives it, and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pages.shared.standing import standing_of
from terminal.text import BadInput, plain
from unlearn_core.settings.run_config import settings_at

if TYPE_CHECKING:
    from storage import RunStore


def find(store: RunStore, text: str) -> dict[str, Any]:
    """The run of that id, beginning of an id, or name. Raises BadInput, saying what there is."""
    from storage import StoreError

    try:
        return store.find(text)
    except StoreError as error:
        raise BadInput(str(error)) from None


def driven(run: Mapping[str, Any]) -> bool:
    """Whether a process moves the run now, or holds it paused."""
    from storage.leases import is_live

    return is_live(run["lease_owner"], run["lease_until"])


def stopped(run: Mapping[str, Any]) -> str:
    """A sentence where the process that drives the run is one of this host that stands still; else empty."""
    from storage.drivers import is_stopped

    if not run["lease_owner"] or not is_stopped(run["lease_owner"]):
        return ""
    return f" Its process ({run['lease_owner'].split(':')[1]}) is stopped (Ctrl-Z): continue it with fg, or end it."


def title(run: Mapping[str, Any]) -> str:
    return f"“{plain(run['name'])}” ({run['id']})"


def way_on(run: Mapping[str, Any], home: str | None) -> str:
    """The command that resumes a run."""
    return f"python cli.py resume {run['id']}" + (f" --home {home}" if home else "")


def summary(store: RunStore, run_id: str, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings, progress, milestones, and first and last values of a run. `run`: its row, where it was just read."""
    run = run or store.run(run_id)
    if run is None:
        raise BadInput(f"Run {run_id} was deleted.")
    standing = standing_of(store, run)
    return {
        **{key: run[key] for key in ("id", "name", "status", "target", "method", "seed", "created_at", "updated_at")},
        "reason": run["status_reason"],
        "preset": run["config"]["preset"],
        "step": run["last_step"],
        "steps": settings_at(run["config"], run["last_step"] + 1)["schedule"]["steps"],
        "milestones": asdict(standing.milestones),
        "baseline": standing.first,
        "points": standing.last,
    }
