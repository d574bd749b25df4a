"""Looks into the texts before a run: requested by a command, polled, read when they are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import controls
from pages.shared import page

if TYPE_CHECKING:
    from storage import RunStore

FOLDER = "windows"
GONE = "Its result is not on the disk any more."


@dataclass(frozen=True)
class Look:
    """One look: the command, how far it is, and its result or its error. `earlier`: of the same texts, for now."""

    key: str
    command: dict[str, Any] | None
    progress: dict[str, Any]
    facts: dict[str, Any] | None
    error: str | None
    earlier: dict[str, Any] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was called off."""
        return self.command is not None and self.command["code"] == "cancelled"

    @property
    def open(self) -> bool:
        return self.facts is None and self.error is None

    @property
    def waits(self) -> str:
        """What it is waiting for, where nothing has been read yet."""
        if self.command is None:
            return "nothing can be asked: the store is read-only"
        if self.command["acknowledged_at"]:
            return "opening the texts …"
        if controls.seconds_since(self.command["requested_at"]) > controls.BUSY_SECONDS:
            return "it waits: another look is under way"
        return "beginning to look …"


def current(store: RunStore, config: Mapping[str, Any]) -> Look:
    """How the look into this config's texts stands. It is asked for at the first call; other looks are called off."""
    looks: dict[str, dict[str, Any]] = st.session_state.setdefault("looks", {})
    key = json.dumps(config, sort_keys=True)
    commands = {command["id"]: command for command in store.commands(None, limit=200)}
    if key not in looks:
        number = _known(store, commands, config)
        if number is None and not store.read_only:
            number = page.attempt(store.request, None, "windows", {"config": dict(config)})
            commands = {command["id"]: command for command in store.commands(None, limit=200)}
        looks[key] = {"command": number, "event": 0, "progress": {}, "file": None}
    _call_off_others(store, looks, key, commands)
    known = looks[key]
    _follow(store, known)
    command = commands.get(known["command"]) if known["command"] else None
    facts = _facts(store, known["file"])
    error = command["error"] if command else None
    if error is None and facts is None and command and command["done_at"]:
        error = GONE
    subject = json.dumps(_without_exclusions(config), sort_keys=True)
    if facts is not None:
        st.session_state["look_before"] = (subject, facts)
    before = st.session_state.get("look_before")
    return Look(key, command, known["progress"], facts, error, before[1] if before and before[0] == subject else None)


def again(key: str) -> None:
    """The look is asked for anew when the page is drawn next."""
    st.session_state.get("looks", {}).pop(key, None)


def stop(store: RunStore, number: int) -> None:
    """Calls the look off."""
    page.attempt(store.request, None, "cancel", {"command": number})


def _known(store: RunStore, commands: Mapping[int, dict[str, Any]], config: Mapping[str, Any]) -> int | None:
    """A look into the same texts that is under way; in a store that cannot be asked, one that was done."""
    for number in sorted(commands, reverse=True):
        command = commands[number]
        same = command["kind"] == "windows" and command["payload"].get("config") == config
        if same and (not command["done_at"] or (store.read_only and not command["error"])):
            return number
    return None


def _call_off_others(
    store: RunStore, looks: Mapping[str, dict[str, Any]], key: str, commands: Mapping[int, dict[str, Any]]
) -> None:
    """Cancels the looks of earlier choices."""
    for other, known in looks.items():
        command = commands.get(known["command"] or -1)
        if other != key and command and not command["done_at"] and not known.get("called_off"):
            known["called_off"] = True
            stop(store, command["id"])
    for other in [other for other, known in looks.items() if other != key and known.get("called_off")]:
        del looks[other]  # type: ignore[attr-defined]


def _follow(store: RunStore, known: dict[str, Any]) -> None:
    for event in store.events(None, after_id=known["event"]):
        known["event"] = event["id"]
        if event["payload"].get("command") == known["command"]:
            if event["kind"] == "windows_progress":
                known["progress"] = event["payload"]
            elif event["kind"] == "windows_found":
                known["file"] = event["payload"]["file"]


def _facts(store: RunStore, file: str | None) -> dict[str, Any] | None:
    """The result, which is read from the disk once for all sessions."""
    if file is None:
        return None
    path = Path(store.home) / FOLDER / Path(file).name
    try:
        return dict(_read(path, path.stat().st_mtime_ns))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> dict[str, Any]:
    """The result in a file that was last changed at `changed`. Raises OSError or ValueError where there is none."""
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _without_exclusions(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "data": {k: v for k, v in config["data"].items() if k != "excluded"}, "prompts": []}
