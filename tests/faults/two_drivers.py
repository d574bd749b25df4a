"""A driver stands still (Ctrl-Z, a sleeping machine) in a phase of its run; another takes the run over; it goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from storage import RunStore, drivers
from storage.migrations import TABLES
from tests.faults.driver import PHASES, ROOT
from tests.scripted import PROMPTS, Script
from unlearn_core.running.protocols import Config, Opener, Session, StepRecord
from unlearn_core.running.worker import Worker
from unlearn_core.settings.report import Report
from unlearn_core.settings.run_config import RunConfig

PATIENCE = 120.0
SCHEDULE = {"steps": 7, "sample_every": 2, "checkpoint_every": 2}


def new_run(store: RunStore, name: str, settings: Mapping[str, Any] | None = None) -> str:
    """A queued run, whose config the command line can show."""
    config = RunConfig.from_dict(settings) if settings else scripted_config()
    prompts = PROMPTS if settings is None else [vars(prompt) for prompt in config.prompts]
    facts = {"target": config.data.target, "method": config.method.name, "seed": config.seed, "provenance": {}}
    return store.create_run(name=name, config=config.to_dict(), prompts=prompts, **facts)


@cache
def scripted_config() -> RunConfig:
    return RunConfig.from_dict({"schedule": SCHEDULE})


def picture(store: RunStore, run_id: str) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Every row that the store has of the run, and every file of its checkpoints."""
    folder = store.home / "checkpoints" / run_id
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    tables = {"runs": "id", **{table: "run_id" for table in TABLES if table != "runs"}}
    with store.read() as conn:
        rows = {name: conn.execute(f"SELECT * FROM {name} WHERE {key} = ?", (run_id,)) for name, key in tables.items()}
        return {name: cursor.fetchall() for name, cursor in rows.items()}, digests


@contextmanager
def started(*given: object, real: bool = False, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """`tests.faults.driver` with these arguments, which is gone afterwards; steps that it stores go into `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"FAULTS_REAL": "1"} if real else {})}
    if log:
        environment["FAULTS_LOG"] = str(log)
    command = [sys.executable, "-m", "tests.faults.driver", *map(str, given)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until_stopped(process: subprocess.Popen[str]) -> None:
    """Returns when the process has stopped itself."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
            return
        time.sleep(0.01)
    raise AssertionError("it never stood still")


@contextmanager
def another_host(ahead: float) -> Iterator[None]:
    """This process is one of another host, whose clock is ahead by so many seconds."""
    real = time.time
    with mock.patch.object(drivers, "machine", lambda: "0badcafe"), mock.patch("time.time", lambda: real() + ahead):
        yield


def drive_to_the_end(store: RunStore, run_id: str, opener: Opener) -> None:
    """Resumes the run in a worker of this process, as `cli.py resume` does."""
    worker = Worker(store, opener, only=run_id, resume=True)
    worker.start()
    worker.join(PATIENCE)
    run = store.run(run_id) or {}
    assert (worker.failure, run["status"], run["lease_owner"]) == (None, "finished", None), run["status_reason"]


def nobody_here_takes_it(store: RunStore, run_ids: Sequence[str]) -> None:
    """A process that stands still is alive: on its own host no clock ends its lease."""
    real = time.time
    with mock.patch("time.time", lambda: real() + 1e6):
        assert store.interrupt_abandoned() == []
        owner = store.new_owner()
        assert not any(store.claim(run_id, owner) for run_id in run_ids)
        store.retire(owner)


def take_over(home: Path, opener: Opener | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Stops a driver in every phase, lets a worker of another host finish its run, lets it go on; what each then said.

    Phase `resuming` is that of a run that was interrupted at its middle and whose second driver stops while loading.
    With `opener` and `settings` the session is the real one (slow), else a scripted one.
    """
    real, opener = opener is not None, opener or Script().open
    store = RunStore(home)
    runs = {phase: new_run(store, phase, settings) for phase in (*PHASES, "resuming")}
    undisturbed = new_run(store, "undisturbed", settings)
    drive_to_the_end(store, undisturbed, opener)
    half_way(store, runs["resuming"], opener)
    with several(store, runs, real) as processes:
        nobody_here_takes_it(store, list(runs.values()))
        with another_host(ahead=3600):
            assert set(store.interrupt_abandoned()) == set(runs.values())
            for run_id in runs.values():
                drive_to_the_end(store, run_id, opener)
        before = {phase: picture(store, run_id) for phase, run_id in runs.items()}
        for process in processes.values():
            process.send_signal(signal.SIGCONT)
        said = {phase: one_sentence(process) for phase, process in processes.items()}
    for phase, run_id in runs.items():
        assert picture(store, run_id) == before[phase], f"{phase}: the history is not that of the last driver any more"
        same_numbers(store, run_id, undisturbed)
    assert "Traceback" not in log_of(home)
    store.close()
    return said


def half_way(store: RunStore, run_id: str, opener: Opener) -> None:
    """The run is interrupted at about its middle, as by closing the app."""

    def closing(config: Config, report: Report) -> Session:
        session = opener(config, report)
        step = session.step

        def last_step() -> StepRecord:
            record = step()
            if record.step == SCHEDULE["steps"] // 2:
                worker.stop(timeout=0)
            return record

        session.step = last_step  # type: ignore[method-assign]
        return session

    worker = Worker(store, closing, only=run_id)
    worker.start()
    worker.join(PATIENCE)
    assert (store.run(run_id) or {})["status"] == "interrupted"


@contextmanager
def several(store: RunStore, runs: Mapping[str, str], real: bool) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One driver a run, all of them standing still in their phases."""
    with ExitStack() as stack:
        processes = {}
        for phase, run_id in runs.items():
            where = ("loading", 0) if phase == "resuming" else (phase, 3 if phase in ("step", "checkpoint") else 0)
            if phase == "sampling":
                where = (phase, 2)
            given = (*where, 0, "resume", run_id, "--home", store.home)
            processes[phase] = stack.enter_context(started(*given, real=real))
        for process in processes.values():
            until_stopped(process)
        yield processes


def one_sentence(process: subprocess.Popen[str]) -> str:
    """What a driver that lost its run says at the end, having looked that it is no traceback and no success."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and out == "", (process.returncode, out, err)
    assert "Traceback" not in err
    said = err.strip().splitlines()[-1]
    assert "took" in said and "written nothing since" in said and said.endswith("."), err
    return said


def same_numbers(store: RunStore, run_id: str, other: str) -> None:
    """Both runs have the same numbers and answers at the same steps, but for how long they took."""
    for read in (store.points, store.responses):
        mine, its = (read(each) for each in (run_id, other))
        if "name" in mine:
            mine, its = (rows[rows.name != "step_seconds"].reset_index(drop=True) for rows in (mine, its))
        left_out = ["seconds", "prompt_id"]
        mine, its = (rows.drop(columns=left_out, errors="ignore") for rows in (mine, its))
        assert mine.equals(its), f"{run_id} differs from the run that nothing disturbed"


def log_of(home: Path) -> str:
    log = home / "lethe.log"
    return log.read_text(encoding="utf-8") if log.is_file() else ""


# --------------------------------------------------------------------------- in one process, at every single write


class Thief(RunStore):
    """A store whose run another driver takes away just before this process's transaction `at`, or just `after` it."""

    status = ""  # of the run when it was taken away
    depth = 0  # of the worker's transactions: how many it is inside of

    def __init__(self, home: Path, other: RunStore, run_id: str, at: int, after: bool) -> None:
        self.other, self.run_id, self.at, self.after, self.writes = other, run_id, at, after, 0
        self.before: tuple[dict[str, list[Any]], dict[str, str]] | None = None
        super().__init__(home)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        mine = threading.current_thread().name == "lethe-worker"
        if mine and not self.depth:
            self.writes += 1
            if self.writes == self.at and not self.after:
                self._take()
        with super().write() as conn:
            self.depth += mine
            try:
                yield conn
            finally:
                self.depth -= mine
        if mine and not self.depth and self.writes == self.at and self.after:
            self._take()

    def _take(self) -> None:
        """The other driver holds the run from now on, and has left its mark on every table and in every folder."""
        self.status = (self.other.run(self.run_id) or {})["status"]
        with self.other.write() as conn:
            conn.execute("UPDATE runs SET lease_owner = 'other:1:x', lease_until = 1e12 WHERE id = ?", (self.run_id,))
            for step in range(SCHEDULE["steps"] + 1):
                self.other.append_step(self.run_id, step, points={"mark": step}, events=[("mark", {})])
        for step in range(SCHEDULE["steps"] + 1):
            folder = self.other.home / "checkpoints" / self.run_id / f"step-{step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "mark").write_text(str(step))
        self.before = self.marked()

    def marked(self) -> tuple[dict[str, list[Any]], dict[str, str]]:
        """The picture, without what the driver that lost the run was writing beside it."""
        rows, files = picture(self.other, self.run_id)
        return rows, {name: digest for name, digest in files.items() if ".part" not in name}


def lose_at_write(home: Path, at: int, resume: bool = False, after: bool = False) -> bool:
    """Drives a scripted run, steered in every way, and loses it at write `at`; False where there are fewer."""
    other = RunStore(home)
    run_id = new_run(other, f"lost at {at}")
    if resume:
        with mock.patch("gc.collect"):
            half_way(other, run_id, Script().open)
    for kind, payload in STEERED:
        other.request(run_id, kind, payload)
    store = Thief(home, other, run_id, at, after)
    worker = Worker(store, Script(delay=0.0).open, only=run_id, resume=resume)
    with mock.patch("gc.collect"):  # which takes longer than all the rest
        worker.start()
        worker.join(PATIENCE)
    try:
        if store.before is None:
            assert (store.run(run_id) or {})["status"] == "finished" and worker.failure is None
            return False
        assert store.marked() == store.before, f"write {at} was made although the run was another's"
        at_an_end = at == 1 or store.status == "finished"  # not its yet, or not to be written to any more
        assert at_an_end or (worker.failure or "").endswith("has written nothing since."), (at, worker.failure)
        assert not list((home / "checkpoints" / run_id).glob("*.part")), "what it was writing is left"
        return True
    finally:
        store.close()
        other.close()


STEERED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pause", {}),
    ("prompt", {"slot": None, "role": "free", "text": "And what is that?"}),
    ("probe", {"steps": [0], "text": "Which one?"}),
    ("step", {}),
    ("dance", {}),
    ("resume", {}),
)
