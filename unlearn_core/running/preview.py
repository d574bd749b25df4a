"""The preview thread: reads the texts of a run before it starts. It touches no model, so it waits for no worker.

Standard library only: the store and `inspect(config, report) -> dict` are handed in. A page asks with a command
`windows`; the result is a file in the home folder, which the event `windows_found` names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from unlearn_core.running.commands import Refused, carry_out, value_of
from unlearn_core.running.protocols import Config, Inspect, Progress, Row, Store
from unlearn_core.settings.disk import clear_parts, written_beside

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 1.0
SILENT_SECONDS = 60.0  # a preview that reported nothing for so long belongs to a process of another host that is gone
FOLDER = "windows"
FILES = 20  # of earlier previews that stay


class PreviewThread:
    """Serves the commands `windows` (payload: `config`) and `cancel` (payload: `command`), one after another."""

    def __init__(self, store: Store, inspect: Inspect) -> None:
        self.store, self.inspect = store, inspect
        self.owner = store.new_owner()
        self._reports: dict[int, tuple[int, float]] = {}  # preview of another process -> how many, and since when so
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lethe-preview", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self.store.retire(self.owner)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _loop(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                for command in self._open("windows"):
                    if command["acknowledged_at"]:
                        self._close_silent(command)
                    else:
                        carry_out(self.store, command, self.preview, self.owner)
                for command in self._open("cancel"):  # of a preview that has ended already
                    self.store.finish(command["id"])
            except Exception:
                log.exception("the preview thread could not look for work")
                self._stopping.wait(POLL_SECONDS * 5)

    def _open(self, kind: str) -> list[Row]:
        return [command for command in self.store.commands(None, open_only=True) if command["kind"] == kind]

    def _close_silent(self, command: Row) -> None:
        # By this process's own count of seconds: the time of day in a report is that of another's clock.
        reports = sum(event["payload"].get("command") == command["id"] for event in self.store.events(None))
        known, since = self._reports.get(command["id"], (-1, 0.0))
        if reports != known:
            self._reports[command["id"]] = reports, time.monotonic()
        elif time.monotonic() - since > SILENT_SECONDS:
            del self._reports[command["id"]]
            reason = "The program that looked into the texts ended before it was done."
            self.store.finish(command["id"], reason, "driver_gone")

    def preview(self, command: Row) -> None:
        """Looks into the texts of the config in a command, and stores the result."""
        config, reported_at = value_of(command["payload"], "config", dict, {}), 0.0

        def report(progress: Progress) -> None:
            nonlocal reported_at
            if self._stopping.is_set() or self._cancelled(command["id"]):
                raise Refused("cancelled", "It was stopped before it was done.")
            if time.monotonic() - reported_at >= PROGRESS_SECONDS:
                reported_at = time.monotonic()
                self.store.add_event(None, "windows_progress", {"command": command["id"], **vars(progress)})

        name = self._write(config, self.inspect(config, report))
        self.store.add_event(None, "windows_found", {"command": command["id"], "file": name})

    def _cancelled(self, command_id: int) -> bool:
        for command in self._open("cancel"):
            if command["payload"].get("command") == command_id:
                self.store.finish(command["id"])
                return True
        return False

    def _write(self, config: Config, facts: Mapping[str, Any]) -> str:
        """Stores the result under a name that follows from the config; returns its path in the home folder."""
        folder = self.store.home / FOLDER
        folder.mkdir(exist_ok=True)
        clear_parts(folder)
        key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        with written_beside(folder / f"{key}.json") as part:
            part.write_text(json.dumps(facts), encoding="utf-8")
        for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-FILES]:
            old.unlink(missing_ok=True)
        return f"{FOLDER}/{key}.json"
