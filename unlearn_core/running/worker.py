"""Worker: the one thread of a process that touches the model. It asks the store what to do and writes down the outcome.

Standard library only: the store and `opener(config, report) -> Session`, which opens a run, are handed in.
Whoever wants something of a run writes a command; the worker acknowledges it between two steps, does it or refuses it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from unlearn_core.running.commands import Refused, carry_out, explain, list_of, probe, value_of
from unlearn_core.running.drive import Drive
from unlearn_core.running.protocols import Config, Opener, Row, Session, Store
from unlearn_core.settings.report import silent

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0  # how far the clocks of two hosts may differ; a process of this host is asked for instead
HEARTBEAT_SECONDS = 3.0
IDLE_SECONDS = 0.05
RESUMABLE = ("interrupted", "stopped", "failed", "paused")
WAITING = ("queued", "paused", "interrupted")  # of a run that nobody drives and that is not at its end


class Worker:
    """Drives one run after another; with `only`, that run alone (`resume`: go on with it), and ends with it."""

    def __init__(self, store: Store, opener: Opener, only: str | None = None, resume: bool = False) -> None:
        self.store, self.opener, self.only = store, opener, only
        self.owner = store.new_owner()
        self.failure: str | None = None  # why nothing can be written to the store, or to the run, any more
        self.resumes = resume
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
                    drive.lost = True  # this process stood still for longer than the lease, and another took it over
                self.store.refuse_abandoned()
            except self.store.Error as error:
                log.error("the lease could not be renewed: %s", error)
            except Exception:
                log.exception("the lease could not be renewed")
            time.sleep(HEARTBEAT_SECONDS)

    def _loop(self) -> None:
        try:
            if self.only:
                self._drive_only(self.only)
            else:
                self._drive_all()
        finally:
            self.store.retire(self.owner)

    def _drive_only(self, run_id: str) -> None:
        among = ("queued", *RESUMABLE) if self.resumes else ("queued",)
        try:
            if self.store.claim(run_id, self.owner, LEASE_SECONDS, among):
                self._drive(run_id, self.resumes)
        except Exception as error:
            self.failure = explain(self.store, error)[1]

    def _drive_all(self) -> None:
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
                    self.serve_others()
                    self.rest()
            except self.store.Error as error:
                # A full disk, say, or a lock: the thread stays, so that things go on once the store is well.
                log.error("the worker could not look for work: %s", error)
                self.rest(1.0)
            except Exception:
                log.exception("the worker could not look for work")
                self.rest(1.0)

    def next_run(self) -> tuple[str, bool] | None:
        """(run, go on with it?) that this worker may take now, claimed; None where nothing waits."""
        for command in self.store.commands(open_only=True):
            if command["kind"] != "resume" or not command["run_id"] or command["run_id"] == self._current_id():
                continue
            run = self.store.run(command["run_id"])
            begun = run and run["status"] in RESUMABLE
            if run and (begun or run["status"] == "queued") and self._claim(run, ("queued", *RESUMABLE)):
                if self.store.acknowledge(command["id"], self.owner):
                    self.store.finish(command["id"])
                return run["id"], bool(begun)
        run = self.store.next_queued()
        if run and self._claim(run, ("queued",)):
            return run["id"], False
        return None

    def _claim(self, run: Row, among: Collection[str]) -> bool:
        return self.store.claim(run["id"], self.owner, LEASE_SECONDS, among)

    def waiting(self) -> frozenset[str]:
        """What waits for this worker to be free: queued runs, by their ids, and requests to begin or resume another."""
        if self.only:
            return frozenset()
        waits = {run["id"] for run in self.store.queued()}
        for command in self.store.commands(open_only=True):
            if command["kind"] == "resume" and command["run_id"] not in (None, self._current_id()):
                run = self.store.run(command["run_id"])
                if run and run["status"] in ("queued", *RESUMABLE) and not self._driven_elsewhere(run):
                    waits.add(f"resume {command['id']}")
        return frozenset(waits)

    def _current_id(self) -> str | None:
        return self._current.run_id if self._current else None

    def _drive(self, run_id: str, resume: bool) -> None:
        run = self.store.run(run_id)
        if run is None:
            return  # deleted meanwhile
        self._current = Drive(self, run_id, run["config"])
        try:
            self._current.go(resume)
        finally:
            self._current = None
            gc.unfreeze()
            gc.collect()

    # ------------------------------------------------------------------------- commands that are not for the live run

    def serve_others(self) -> None:
        """Questions to the bundled model, to runs that nobody drives, and commands to runs that only wait."""
        if self.only:
            return
        for command in self.store.commands(open_only=True):
            if command["acknowledged_at"]:
                continue  # another process does it
            if command["run_id"] is None:
                act = COMMANDS_WITHOUT_RUN.get(command["kind"])  # the preview thread has others
            else:
                act = self._act_for_other(command)
            if act:
                carry_out(self.store, command, partial(act, self), self.owner)

    def _act_for_other(self, command: Row) -> Callable[[Worker, Row], None] | None:
        """What to do about a command of a run that is not live; None: it is another's, or its time will come."""
        run = self.store.run(command["run_id"])
        if run is None or run["id"] == self._current_id() or self._driven_elsewhere(run):
            return None
        if command["kind"] == "resume" and run["status"] in ("queued", *RESUMABLE):
            return None  # taken by next_run() as soon as this worker is free
        return COMMANDS_OF_WAITING_RUNS.get(command["kind"], Worker.refuse)

    def _driven_elsewhere(self, run: Row) -> bool:
        return run["lease_owner"] != self.owner and self.store.held(run)

    def _session_of(self, config: Config) -> Session:
        """A session with the model of `config`: the live run's where it is the same one."""
        drive = self._current
        return drive.session if drive and drive.same_base_model(config) else self.opener(config, silent)

    def ask(self, command: Row) -> None:
        prompts = list_of(command["payload"], "prompts", str)
        session = self._session_of(value_of(command["payload"], "config", dict, {}))
        answers = []
        for prompt in prompts:
            try:
                answers.append({"prompt": prompt, "text": session.baseline_answers([prompt])[0].response.text})
            except ValueError as error:  # one question that cannot be asked does not silence the others
                answers.append({"prompt": prompt, "text": "", "refused": str(error)})
        self.store.add_event(None, "answered", {"command": command["id"], "answers": answers})

    def probe(self, command: Row) -> None:
        run = self._run_of(command)
        probe(self.store, run["id"], self._session_of(run["config"]), command["payload"])

    def stop_waiting(self, command: Row) -> None:
        run = self._run_of(command)
        if not self._claim(run, WAITING):  # held meanwhile, so that no other process begins it
            self.refuse(command)
        with self.store.owned(run["id"], self.owner):
            self.store.set_status(run["id"], "stopped", "Stopped while nothing drove it.", "stopped")
            self.store.release(run["id"], self.owner)

    def refuse(self, command: Row) -> None:
        run, kind = self._run_of(command), command["kind"]
        way_out = " Ask it in Compare, of any of its steps." if kind == "prompt" else ""
        raise Refused(run["status"], f"“{run['name']}” is {run['status']}; it cannot {kind} now.{way_out}")

    def _run_of(self, command: Row) -> Row:
        run = self.store.run(command["run_id"])
        if run is None:
            raise Refused("no_run", "The run was deleted.")
        return run


COMMANDS_WITHOUT_RUN: Mapping[str, Callable[[Worker, Row], None]] = {"ask": Worker.ask}
COMMANDS_OF_WAITING_RUNS: Mapping[str, Callable[[Worker, Row], None]] = {
    "probe": Worker.probe,
    "stop": Worker.stop_waiting,
}  # of runs that nobody drives; `next_run` takes "resume", and what is not here is refused with the run's status
