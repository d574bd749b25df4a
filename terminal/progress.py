"""Progress of a run on one line."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from pages.shared.format import duration, size, step_time
from terminal.text import losses, plain
from unlearn_core.metrics import SETS
from unlearn_core.settings.run_config import settings_at

if TYPE_CHECKING:
    from storage import RunStore
    from unlearn_core.running.protocols import Progress

LINE_SECONDS = 5.0  # between two lines where the output is a file
RATE_STEPS = 20


class ProgressLine:
    """One line that is written over and over on a terminal; in a file, a new one every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.live = stream, stream.isatty()
        self._shown, self._written = "", 0.0

    def show(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r{plain(text)[:width]}\x1b[K")
        elif time.monotonic() - self._written > LINE_SECONDS:
            self._written = time.monotonic()
            self.stream.write(f"{plain(text)}\n")
        self._shown = text
        self.stream.flush()

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        shown = self._shown
        self.clear()
        self.stream.write(f"{plain(text)}\n")
        if self.live and shown:
            self.show(shown)
        self.stream.flush()

    def clear(self) -> None:
        if self.live and self._shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
        self._shown = ""


class Reading:
    """How far texts have been read, on one line: bytes, hits, time left."""

    def __init__(self, stream: TextIO) -> None:
        self.line, self.began = ProgressLine(stream), time.monotonic()

    def tell(self, progress: Progress) -> None:
        if (time.monotonic() - self.began if progress.stage else progress.seconds) < 1:
            return  # most texts are read before anybody could read a line about it
        if progress.stage:
            self.line.show(f"{progress.stage}  {progress.detail}".rstrip())
            return
        total = f" of {size(progress.bytes_total)}" if progress.bytes_total else ""
        parts = [f"{size(progress.bytes_read)}{total} read", f"found {progress.hits:,} times"]
        if progress.seconds_left is not None:
            parts.append(f"{duration(progress.seconds_left)} left")
        self.line.show("  ".join(parts))


class Follower:
    """Follows one run in the store and prints what is new. `guard`: why a guard has paused it, or None."""

    def __init__(self, store: RunStore, run_id: str, stream: TextIO) -> None:
        self.store, self.line = store, ProgressLine(stream)
        self.run = store.run(run_id) or {}
        self.guard: str | None = None
        self._event = max((event["id"] for event in store.events(run_id)), default=0)
        self._version = -1
        self._paces: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS)

    def tick(self) -> None:
        """Shows what is new since the last tick; cheap where nothing is."""
        version = self.store.data_version()
        if version == self._version:
            return
        self._version = version
        before = self.run
        # The run is read before its events, so that a pause that is seen here has its reason among them.
        self.run = self.store.run(before["id"]) or before
        for event in self.store.events(before["id"], self._event):
            self._event = event["id"]
            self._tell(event)
        if self.run["last_step"] and any(self.run[key] != before[key] for key in ("last_step", "status")):
            self.line.show(self._progress())

    def _tell(self, event: Mapping[str, Any]) -> None:
        kind, payload, step = event["kind"], event["payload"], event["step"]
        if kind == "loading":
            self.line.show(f"{payload['message']} …")
        elif kind == "guard":
            self.guard = payload["sentence"]
        elif kind == "paused":
            self._paces.clear()
            self.line.say(f"step {step}: paused. {payload['reason']}")
        elif kind == "resumed":
            self.guard = None
            self._paces.clear()
            self.line.say(" ".join([f"step {step}: goes on.", payload.get("sentence", "")]).rstrip())
        elif kind == "prompt_edited":
            self.line.say(f"step {step}: slot {payload['slot']} now asks “{payload['new']}”")
        elif kind == "changed":
            values = ", ".join(f"{path} = {value}" for path, value in payload["set"].items())
            self.line.say(f"step {step}: the first with {values}")
        elif kind == "checkpoint_damaged":
            self.line.say(payload["sentence"])
        elif kind == "not_finite":
            self.line.say(f"step {step}: {payload['name']} is not a number ({payload['value']}).")

    def _progress(self) -> str:
        step = self.run["last_step"]
        steps = settings_at(self.run["config"], step + 1)["schedule"]["steps"]
        now, first = self.store.last_points(self.run["id"]), self.store.first_points(self.run["id"])
        parts = [f"step {step}/{steps}"]
        self._paces.append((time.monotonic(), step))
        (began, start), (at, last) = self._paces[0], self._paces[-1]
        if last > start and self.run["status"] == "running":
            pace = (at - began) / (last - start)
            parts.append(f"{step_time(pace)} a step, {duration((steps - step) * pace)} left")
        return "  ".join([*parts, losses(now, first, SETS[:3])])
