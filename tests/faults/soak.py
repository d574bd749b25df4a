"""A long run with three tabs open on it: `python -m tests.faults.soak FOLDER STEPS` prints as JSON what it took.

The worker and the tabs share a process, as in the app; the session is a scripted one, so that it is what surrounds a
model whose memory is measured.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from storage import RunStore, export
from tests.faults.outcome import ROOT, Outcome, sentence_of
from tests.faults.two_drivers import log_of, new_run
from tests.scripted import Script
from unlearn_core.running.worker import Worker

TABS = ("watch", "runs", "compare")
WARM, MOST_GROWTH = 0.3, 64e6  # share of the steps after which memory is compared; bytes that it may grow by then


def soaked(home: Path, steps: int) -> tuple[float, int]:
    """Drives the run to its end while the tabs are drawn in turn; returns the growth in bytes, and how often."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)
    settings = {"schedule": {"steps": steps, "sample_every": steps // 20, "checkpoint_every": steps // 10}}
    with closing(RunStore(home)) as store:
        run_id, drawn, warm = new_run(store, "soak", settings), 0, 0
        tabs = [tab(store, name, run_id) for name in TABS]
        worker = Worker(store, Script(delay=0.03).open)  # so that the tabs are drawn some hundred times
        worker.start()
        try:
            while (status := (store.run(run_id) or {})["status"]) != "finished":
                assert status in ("queued", "loading", "baseline", "running"), status
                draw(tabs[drawn % len(tabs)])
                drawn += 1
                if not warm and (store.run(run_id) or {})["last_step"] > WARM * steps:
                    warm = memory()
                time.sleep(0.1)
            for at in tabs:
                draw(at)
        finally:
            worker.stop()
        assert sorted(set(store.points(run_id).step)) == list(range(steps + 1))
    assert "Traceback" not in log_of(home)
    return memory() - warm, drawn


def tab(store: RunStore, name: str, run_id: str) -> Any:
    from streamlit.testing.v1 import AppTest

    at = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=120)
    at.session_state["store"], at.session_state["export"] = store, export
    at.query_params["run"] = run_id
    return at


def draw(at: Any) -> None:
    at.run()
    assert not at.exception, at.exception


def memory() -> int:
    """Resident bytes of this process, garbage left out."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def main(folder: str, steps: str) -> None:
    outcome = Outcome(times=1)
    try:
        growth, drawn = soaked(Path(folder), int(steps))
        outcome.found[f"{int(steps):,} steps, pages drawn {drawn:,} times, grew by {growth / 1e6:.0f} MB"] = 1
        assert growth < MOST_GROWTH, f"memory grew by {growth / 1e6:.0f} MB"
    except Exception as error:
        outcome.broken.append(sentence_of(error))
    print(outcome.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
