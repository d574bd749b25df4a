"""Scout: the thread that looks into texts before a run. It touches no model, so it does not wait for the worker.

Standard library only: the store and `inspect(config, report) -> dict` are handed in. A page asks with a command
`windows`; what was found lies in a file of the home folder, whose name an event tells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
PROGRESS_SECONDS = 1.0
SILENT_SECONDS = 60.0  # a look that told nothing for so long belongs to a process that is gone
FOLDER = "windows"
CACHE = "seek"  # folder of the home: what was found in texts, by their content
KEPT = 20  # files of earlier looks


class Called(Exception):
    """The look was called off, or the program ends."""


class Scout:
    """Serves the commands `windows` (payload: `config`) and `cancel` (payload: `command`), one look after another."""

    def __init__(self, store: Any, inspect: Callable[..., dict]) -> None:
        self.store, self.inspect = store, inspect
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lethe-scout", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _loop(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                for command in self._open("windows"):
                    self._close_silent(command) if command["acknowledged_at"] else self._look(command)
                for command in self._open("cancel"):  # of a look that has ended already
                    self.store.finish(command["id"])
            except Exception:
                log.exception("the scout could not look for work")
                self._stopping.wait(LOOK_SECONDS * 5)

    def _open(self, kind: str) -> list[dict]:
        return [command for command in self.store.commands(None, open_only=True) if command["kind"] == kind]

    def _close_silent(self, command: dict) -> None:
        told = [e for e in self.store.events(None) if e["payload"].get("command") == command["id"]]
        last = datetime.fromisoformat(told[-1]["at"] if told else command["acknowledged_at"])
        if (datetime.now(UTC) - last).total_seconds() > SILENT_SECONDS:
            self.store.finish(command["id"], "The program that looked into the texts ended before it was done.")

    def _look(self, command: dict) -> None:
        if not self.store.acknowledge(command["id"]):
            return  # another process was first
        config, began = command["payload"].get("config", {}), 0.0

        def report(progress: Any) -> None:
            nonlocal began
            if self._stopping.is_set() or self._called_off(command["id"]):
                raise Called
            if time.monotonic() - began >= PROGRESS_SECONDS:
                began = time.monotonic()
                self.store.add_event(None, "windows_progress", {"command": command["id"], **vars(progress)})

        try:
            found = self.inspect(config, report)
            name = self._keep(config, found)
            self.store.add_event(None, "windows_found", {"command": command["id"], "file": name})
            self.store.finish(command["id"])
        except Called:
            self.store.finish(command["id"], "It was stopped before it was done.")
        except ValueError as error:
            self.store.finish(command["id"], str(error))
        except Exception as error:
            log.exception("the scout could not look into the texts")
            self.store.finish(command["id"], f"It did not work: {error or type(error).__name__}")

    def _called_off(self, command_id: int) -> bool:
        for command in self._open("cancel"):
            if command["payload"].get("command") == command_id:
                self.store.finish(command["id"])
                return True
        return False

    def _keep(self, config: dict, found: dict) -> str:
        folder = self.store.home / FOLDER
        folder.mkdir(exist_ok=True)
        key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        part = folder / f"{key}.part"
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(folder / f"{key}.json")
        for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
        return f"{FOLDER}/{key}.json"
