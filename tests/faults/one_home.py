"""Two apps and a terminal on one home, and somebody who steers them: one writer a run, one answer a command."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from storage import RunStore
from tests.faults.two_drivers import PATIENCE, log_of, new_run, started
from tests.scripted import Script
from unlearn_core.running.worker import Worker

RUNS, ASKED = 3, 24
KINDS = ("pause", "resume", "step", "prompt", "probe", "dance", "ask")
PAYLOADS = {
    "prompt": {"slot": None, "role": "free", "text": "And what is that?"},
    "probe": {"steps": [0], "text": "Which one?"},
    "ask": {"config": {}, "prompts": ["Who?"]},
}


def steered(home: Path, seed: int) -> Counter[str]:
    """Commands at random moments to random runs, then all runs to their end; returns how often each kind was done."""
    chance, store = random.Random(seed), RunStore(home)
    runs = [new_run(store, f"run {number}") for number in range(RUNS + 1)]
    own, log = runs[0], home / "steps.log"
    store.set_status(own, "interrupted")  # so that the apps leave it to the terminal
    with ExitStack() as stack:
        terminal = ("-", 0, 0, "resume", own, "--home", home)
        given = (terminal, ("-", 0, 0, "app", home), ("-", 0, 0, "app", home))
        processes = [stack.enter_context(started(*each, log=log)) for each in given]
        for _ in range(ASKED):
            kind, run_id = chance.choice(KINDS), chance.choice(runs)
            if not (run_id == own and kind == "pause"):  # which would leave the terminal waiting for a person
                store.request(None if kind == "ask" else run_id, kind, PAYLOADS.get(kind, {}))
            time.sleep(chance.random() * 0.2)
        for process in processes[1:]:  # an app that is closed saves whole what it drives
            process.terminate()
        out, err = processes[0].communicate(timeout=PATIENCE)
        assert processes[0].returncode == 0, (out, err)
    finish_all(store)
    done = check(store, runs, log)
    assert "Traceback" not in log_of(home)
    store.close()
    return done


def finish_all(store: RunStore) -> None:
    """Another app takes what is left, and answers what nobody has answered."""
    worker, end = Worker(store, Script(delay=0.0).open), time.monotonic() + PATIENCE
    worker.start()
    try:
        while store.commands(open_only=True) or any(run["status"] != "finished" for run in store.runs()):
            assert time.monotonic() < end, [(run["name"], run["status"]) for run in store.runs()]
            # Also while a command to another run waits: one that was paused by hand keeps the model.
            for run in store.runs():
                halted = run["status"] in ("paused", "interrupted", "stopped")
                if halted and not store.commands(run["id"], open_only=True):
                    store.request(run["id"], "resume")
            time.sleep(0.02)
    finally:
        worker.stop()


def check(store: RunStore, runs: list[str], log: Path) -> Counter[str]:
    """Every step was stored once, by one process; what a command does was done once for each that was not refused."""
    written = Counter(tuple(line.split()[1:]) for line in log.read_text(encoding="utf-8").splitlines())
    assert max(written.values()) == 1, "a step was stored twice"
    done: Counter[str] = Counter()
    for run_id in runs:
        config = (store.run(run_id) or {})["config"]
        assert sorted(set(store.points(run_id).step)) == list(range(config["schedule"]["steps"] + 1))
        kinds = Counter(event["kind"] for event in store.events(run_id))
        assert kinds["started"] == kinds["finished"] == 1
        commands = store.commands(run_id, limit=1000)
        assert all(row["done_at"] and (row["error"] is None) == (row["code"] is None) for row in commands)
        assert not any(row["code"] == "internal" for row in commands)
        taken = Counter(row["kind"] for row in commands if not row["error"])
        assert kinds["prompt_edited"] == taken["prompt"] and kinds["probed"] == taken["probe"], (kinds, taken)
        done += taken
    asked = [row["id"] for row in store.commands(None, limit=1000) if not row["error"]]
    answered = [event["payload"]["command"] for event in store.events(None) if event["kind"] == "answered"]
    assert sorted(asked) == sorted(answered), "every question was answered once"
    done["ask"] = len(asked)
    return done
