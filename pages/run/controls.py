"""Pause, step, stop: which commands a run accepts now, why not, and the outcome of the last one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from pages.run.view import BEFORE_STEP_ONE, RESUMABLE, View
from pages.shared.format import duration

BUSY_SECONDS = 10
SHOWN_SECONDS = 5
ASK = "A question can be put to its checkpoints, in Compare."
NAMES = {
    "pause": "Pause",
    "resume": "Resume",
    "step": "Step once",
    "stop": "Stop",
    "set": "Settings",
    "prompt": "Question",
    "probe": "Question to chosen steps",
    "checkpoint": "Checkpoint",
}


def reasons(view: View, read_only: str | None) -> dict[str, str | None]:
    """Per button: why it cannot be pressed now, None where it can."""
    status = view.status
    if read_only:
        return dict.fromkeys(("pause", "resume", "step", "stop", "set", "prompt"), read_only)
    begun = "It has not begun yet." if status in BEFORE_STEP_ONE else None
    over = {"finished": "It has gone through all its steps.", "stopped": "It is stopped; resume it first."}.get(
        status, f"It is {status}; resume it first." if status in ("interrupted", "failed") else None
    )
    aside = "It was set aside; resume it first." if status == "paused" and not view.run["lease_owner"] else None
    resume = None if status in RESUMABLE else over or begun or "It is running."
    return {
        "pause": begun or over,
        "resume": resume,
        "step": begun
        or over
        or aside
        or ("Pause it first: steps are taken one by one from a pause." if status == "running" else None),
        "stop": over
        or aside
        or ("It is being loaded; it can be stopped in a moment." if status in ("loading", "baseline") else None),
        "set": (begun and "Settings can be changed once step 1 has begun.") or over or aside,
        "prompt": (begun and "Questions can be changed once step 1 has begun.") or (over and f"{over} {ASK}") or aside,
    }


def seconds_since(at: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


def outcome(commands: list[dict[str, Any]], other: dict[str, Any] | None = None) -> str:
    """What became of the newest command, in a sentence; empty a while after it is done.

    `other`: the run that the worker is busy with, where this one waits for it.
    """
    wanted = [command for command in commands if command["kind"] in NAMES]
    if not wanted:
        return ""
    command = wanted[-1]
    name, age = NAMES[command["kind"]], seconds_since(command["requested_at"])
    if command["error"]:
        return f"{name}: refused. {command['error']}"
    if command["done_at"]:
        return f"{name}: {_done(command)}." if seconds_since(command["done_at"]) < SHOWN_SECONDS else ""
    if other:
        return f"{name}: asked. It waits for “{other['name']}”."
    if command["acknowledged_at"]:
        return f"{name}: seen, under way."
    if age > BUSY_SECONDS:
        return f"{name}: asked {duration(age)} ago. The worker is busy; it looks between two steps."
    return f"{name}: asked."


def _done(command: dict[str, Any]) -> str:
    step = command.get("step")
    if step is None:
        return "done"
    return f"in force from step {step} on" if command["kind"] == "set" else f"done at step {step}"


def open_kinds(commands: list[dict[str, Any]]) -> set[str]:
    return {command["kind"] for command in commands if not command["done_at"]}


def draw(view: View, ask: Callable[[str], None], read_only: str | None, other: dict[str, Any] | None = None) -> None:
    """Three buttons that stay in their places in every state. `other`: the run that this one waits for."""
    why, waiting = reasons(view, read_only), open_kinds(view.commands)
    moving = view.status in ("running", *BEFORE_STEP_ONE)
    kind = "pause" if moving else "resume"
    label = {"pause": "Pause", "resume": "Resume"}[kind]
    if other and other["status"] == "paused":  # a pause keeps the model; a person who waits may take it
        moving, kind, label, waiting = False, "resume", "Begin now", waiting - {"resume"}
        why["resume"] = read_only
        meaning = f"“{other['name']}” is paused; it is set aside whole, and Resume brings it back."
    else:
        meaning = None
    st.button(
        label,
        key="pause_or_resume",
        type="primary",
        shortcut="P",
        width=132,
        on_click=ask,
        args=(kind,),
        icon=":material/pause:" if moving else ":material/play_arrow:",
        disabled=bool(why[kind]) or kind in waiting,
        help=why[kind] or meaning,
    )
    st.button(
        "Step once",
        key="step_once",
        icon=":material/skip_next:",
        width=132,
        on_click=ask,
        args=("step",),
        disabled=bool(why["step"]) or "step" in waiting,
        help=why["step"],
    )
    st.button(
        "Stop",
        key="stop",
        icon=":material/stop:",
        width=104,
        on_click=ask,
        args=("stop",),
        disabled=bool(why["stop"]) or "stop" in waiting,
        help=why["stop"] or "Ends the run with a checkpoint; it can be resumed later.",
    )
