"""Clocks that are ahead or behind, or jump, in a terminal and an app: no healthy run is ended or driven twice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from storage import RunStore
from tests.faults.two_drivers import PATIENCE, log_of, new_run, started


def jumping(
    home: Path, seconds: float, runs: int = 2, real: bool = False, settings: Mapping[str, Any] | None = None
) -> None:
    """A terminal and two apps on one home whose clocks differ by up to twice `seconds`, and one that looks on.

    The terminal has a run of its own; the apps share out `runs` others. Every run is driven by one, from start to end.
    """
    store = RunStore(home)
    own, *others = [new_run(store, f"run {number}", settings) for number in range(runs + 1)]
    terminal, app = ("-", 0, seconds, "resume", own, "--home", home), ("-", 0, -seconds, "app", home)
    store.set_status(own, "interrupted")  # so that the apps leave it to the terminal
    with started(*terminal, real=real) as first, started(*app, real=real) as second, started(*app, real=real) as third:
        processes = (first, second, third)
        while any(process.poll() is None for process in processes):
            with mock.patch("time.time", lambda: 4e9):  # the clock of the one that looks on is in the year 2096
                assert store.interrupt_abandoned() == []
            time.sleep(0.05)
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, (out, err)
    for run_id in (own, *others):
        driven_once(store, run_id)
    assert "Traceback" not in log_of(home)
    store.close()


def driven_once(store: RunStore, run_id: str) -> None:
    """The run is finished, was begun once, never interrupted, and has every step."""
    run, kinds = store.run(run_id) or {}, [event["kind"] for event in store.events(run_id)]
    steps = run["config"]["schedule"]["steps"]
    assert (run["status"], run["lease_owner"]) == ("finished", None), run["status_reason"]
    assert kinds.count("started") == kinds.count("finished") == 1 and "interrupted" not in kinds
    assert sorted(set(store.points(run_id).step)) == list(range(steps + 1))
