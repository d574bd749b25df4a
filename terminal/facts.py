"""Finding a run by id or name, whether a process drives it, and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from terminal.text import BadInput, plain

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


def title(run: Mapping[str, Any]) -> str:
    return f"“{plain(run['name'])}” ({run['id']})"


def way_on(run: Mapping[str, Any], home: str | None) -> str:
    """The command that resumes a run."""
    return f"python cli.py resume {run['id']}" + (f" --home {home}" if home else "")


def summary(store: RunStore, run_id: str) -> dict[str, Any]:
    """Settings, progress, and first and last values of a run."""
    run = store.run(run_id)
    if run is None:
        raise BadInput(f"Run {run_id} was deleted.")
    return {
        **{key: run[key] for key in ("id", "name", "status", "target", "method", "seed", "created_at", "updated_at")},
        "reason": run["status_reason"],
        "preset": run["config"]["preset"],
        "step": run["last_step"],
        "steps": run["config"]["schedule"]["steps"],
        "baseline": store.first_points(run_id),
        "points": store.last_points(run_id),
    }
