"""`python -m tests.faults.driver PHASE STEP CLOCK verb ...`: `cli.py`, which stops itself (SIGSTOP) in a phase.

The phase is a method of the session, or `append_step` of the store, behind which it stops, from step STEP on; `-` never
stops. CLOCK is what its clock is ahead by, in seconds, changing sign with every step. The verb `app` drives what waits,
as the app's worker does. The session is a scripted one, which needs no PyTorch, unless FAULTS_REAL is set. The file
FAULTS_LOG gets a line for every step that is stored: the process, the run and the step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHASES = {
    "loading": "read_texts",
    "baseline": "measure_baseline",
    "step": "step",
    "sampling": "answers",
    "checkpoint": "save",
}


def stop_behind(owner: type, method: str, step: int) -> None:
    """Lets the process stop itself once, when `method` returns at `step` or later."""
    act, stood = getattr(owner, method), []

    def stopping(self: Any, *given: Any, **more: Any) -> Any:
        outcome = act(self, *given, **more)
        at = given[1] if method == "append_step" else self.step_number
        if at >= step and not stood:
            stood.append(at)
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this very thread goes no further
        return outcome

    setattr(owner, method, stopping)


def jump(session: type, seconds: float) -> None:
    """The clock of this process is ahead by `seconds`, and behind by as much after the next step."""
    real, step, ahead = time.time, session.step, [seconds]  # type: ignore[attr-defined]

    def jumping(self: Any) -> Any:
        ahead[0] = -ahead[0]
        return step(self)

    time.time = lambda: real() + ahead[0]
    session.step = jumping  # type: ignore[attr-defined]


def log_steps(log: str) -> None:
    """A line in `log` for each step of a run that this process has stored."""
    from storage import RunStore

    append = RunStore.append_step

    def logged(self: Any, run_id: str, step: int, **more: Any) -> None:
        append(self, run_id, step, **more)
        if more["points"]:  # a checkpoint of the same step is none
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {run_id} {step}\n")

    RunStore.append_step = logged  # type: ignore[method-assign, assignment]


def app(home: str, opener: Any) -> int:
    """The worker of an app, until nothing waits any more, or it is told to end (SIGTERM)."""
    from storage import RunStore
    from unlearn_core.running.worker import Worker

    store = RunStore(home)
    worker = Worker(store, opener)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    worker.start()
    while not ended.is_set() and any(
        run["status"] in ("queued", "loading", "baseline", "running") for run in store.runs()
    ):
        time.sleep(0.02)
    worker.stop()
    store.close()
    return 0


def main() -> int:
    import cli
    from storage import RunStore

    phase, step, clock, *verb = sys.argv[1:]
    if os.environ.get("FAULTS_REAL"):
        from unlearn_core.training.engine import Unlearner as Session
    else:
        from tests.scripted import Script, Session  # type: ignore[assignment]

        script = Script(delay=0.03)
        cli.open_session = lambda config, report, cache=None: script.open(config, report)  # type: ignore[assignment]
    if phase == "transaction":
        stop_behind(RunStore, "append_step", int(step))
    elif phase != "-":
        stop_behind(Session, PHASES[phase], int(step))
    if log := os.environ.get("FAULTS_LOG"):
        log_steps(log)
    if float(clock):
        jump(Session, float(clock))
    if verb[0] == "app":
        return app(verb[1], lambda config, report: cli.open_session(config, report))
    sys.argv = ["cli.py", *verb]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
