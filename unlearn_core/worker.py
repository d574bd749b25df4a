"""Worker: the one thread of a process that touches the model. It asks the store what to do and writes down the outcome.

Standard library only: the store and `opener(config, report) -> Unlearner`, which opens a run, are handed in.
Whoever wants something of a run writes a command; the worker acknowledges it between two steps, does it or refuses it.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from unlearn_core.drive import Drive, probe, refuse

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0
IDLE_SECONDS = 0.05
RESUMABLE = ("interrupted", "stopped", "failed", "paused")


class Worker:
    """Drives one run after another; with `only`, that run alone (`resume`: go on with it), and ends with it."""

    def __init__(self, store: Any, opener: Callable[..., Any], only: str | None = None, resume: bool = False) -> None:
        self.store, self.opener, self.only = store, opener, only
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._resume_only = resume
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lethe-worker", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="lethe-heartbeat", daemon=True)
        self._current: Drive | None = None

    def start(self) -> None:
        self._thread.start()
        self._heart.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Ends after the current step: a live run is saved whole first. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def rest(self, seconds: float | None = None) -> bool:
        """Waits a moment, or less where the worker is told to stop; True then."""
        return self._stopping.wait(IDLE_SECONDS if seconds is None else seconds)

    def _beat(self) -> None:
        while self._thread.is_alive():
            try:
                drive = self._current  # looked at first: a run that is taken while the lease is renewed is not lost
                held = self.store.heartbeat(self.owner, LEASE_SECONDS)
                if drive and drive.run_id not in held and not drive.ended:
                    drive.lost = True  # the machine slept longer than the lease, and another took the run over
            except Exception:
                log.exception("the lease could not be renewed")
            time.sleep(HEARTBEAT_SECONDS)

    def _loop(self) -> None:
        if self.only:
            if self.store.claim(self.only, self.owner, LEASE_SECONDS):
                self._drive(self.only, self._resume_only)
            return
        looked = 0.0
        while not self.stopping:
            try:
                if time.monotonic() - looked > HEARTBEAT_SECONDS:
                    looked = time.monotonic()
                    self.store.interrupt_abandoned()
                following = self.next_run()
                if following:
                    self._drive(*following)
                else:
                    self.serve_others(None)
                    self.rest()
            except Exception:
                # The store is in trouble (a full disk, say): the thread stays, so that things go on once it is well.
                log.exception("the worker could not look for work")
                self.rest(1.0)

    def next_run(self) -> tuple[str, bool] | None:
        """(run, go on with it?) that this worker may take now, claimed; None where nothing waits."""
        for command in self.store.commands(open_only=True):
            if command["kind"] != "resume" or not command["run_id"] or command["run_id"] == self._current_id():
                continue
            run = self.store.run(command["run_id"])
            if run and run["status"] in RESUMABLE and self.store.claim(run["id"], self.owner, LEASE_SECONDS):
                if self.store.acknowledge(command["id"]):
                    self.store.finish(command["id"])
                return run["id"], True
        run = self.store.next_queued()
        if run and self.store.claim(run["id"], self.owner, LEASE_SECONDS):
            return run["id"], False
        return None

    def someone_waits(self) -> bool:
        """True where a queued run, or the resuming of another, waits for this worker to be free."""
        if self.only:
            return False
        waiting = self.store.next_queued() is not None
        resumed = {c["run_id"] for c in self.store.commands(open_only=True) if c["kind"] == "resume" and c["run_id"]}
        others = (self.store.run(run_id) for run_id in resumed - {self._current_id()})
        return waiting or any(run and run["status"] in RESUMABLE and not self._driven_elsewhere(run) for run in others)

    def _current_id(self) -> str | None:
        return self._current.run_id if self._current else None

    def _drive(self, run_id: str, resume: bool) -> None:
        self._current = Drive(self, run_id)
        try:
            self._current.go(resume)
        finally:
            self._current = None
            gc.unfreeze()
            gc.collect()

    # ------------------------------------------------------------------------- commands that are not for the live run

    def serve_others(self, drive: Drive | None) -> None:
        """Questions to the bundled model, to runs that nobody drives, and commands to runs that only wait."""
        if self.only:
            return
        for command in self.store.commands(open_only=True):
            if not (drive and command["run_id"] == drive.run_id) and (act := self._act_for_other(command, drive)):
                self._do(command, act)

    def _act_for_other(self, command: dict, drive: Drive | None) -> Callable[[dict], Any] | None:
        """What to do about a command that is not for the live run; None: it is another's, or its time will come."""
        run_id, kind = command["run_id"], command["kind"]
        if run_id is None:
            return (lambda payload: self._ask(command["id"], payload, drive)) if kind == "ask" else None
        run = self.store.run(run_id)
        if run is None or self._driven_elsewhere(run):
            return None
        if kind == "probe":
            return lambda payload: self._probe_other(run, payload, drive)
        if kind == "stop" and run["status"] in ("queued", "paused", "interrupted"):
            return lambda _: self.store.set_status(run_id, "stopped", "Stopped while nothing drove it.", "stopped")
        if kind == "resume" and run["status"] in ("queued", *RESUMABLE):
            return None  # taken by next_run() as soon as this worker is free
        way_out = " Ask it in Compare, of any of its steps." if kind == "prompt" else ""
        return lambda _: refuse(f"“{run['name']}” is {run['status']}; it cannot {kind} now.{way_out}")

    def _driven_elsewhere(self, run: dict) -> bool:
        return bool(run["lease_owner"]) and run["lease_owner"] != self.owner and (run["lease_until"] or 0) > time.time()

    def _do(self, command: dict, act: Callable[[dict], Any]) -> None:
        """Acknowledged, then done or refused with a sentence."""
        if not self.store.acknowledge(command["id"]):
            return  # another process was first
        try:
            act(command["payload"])
        except ValueError as error:
            self.store.finish(command["id"], str(error))
        except Exception as error:
            log.exception("a command failed")
            self.store.finish(command["id"], f"It did not work: {error or type(error).__name__}")
        else:
            self.store.finish(command["id"])

    def _ask(self, command_id: int, payload: dict, drive: Drive | None) -> None:
        config = payload.get("config") or {}
        session = drive.session if drive and drive.speaks_for(config) else self.opener(config, lambda message: None)
        answers = []
        for prompt in payload["prompts"]:
            try:
                answers.append({"prompt": prompt, "text": session.baseline_answers([prompt])[0].response.text})
            except ValueError as error:  # one question that cannot be asked does not silence the others
                answers.append({"prompt": prompt, "text": "", "refused": str(error)})
        self.store.add_event(None, "answered", {"command": command_id, "answers": answers})

    def _probe_other(self, run: dict, payload: dict, drive: Drive | None) -> None:
        if drive and drive.speaks_for(run["config"]):
            session = drive.session
        else:
            session = self.opener(run["config"], lambda message: None)
        probe(self.store, run["id"], session, payload)
