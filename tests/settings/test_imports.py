"""Threads that import PyTorch and transformers at the same time, as worker and preview do when the app is new."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TWO_THREADS = """
import sys, threading, time, traceback
from unlearn_core.settings.imports import load

def later(name, seconds):
    time.sleep(seconds)
    try:
        load(name)
    except BaseException:
        traceback.print_exc()

threads = [
    threading.Thread(target=later, args=("unlearn_core.training.engine", 0)),
    threading.Thread(target=later, args=("unlearn_core.corpus.preview", float(sys.argv[1]))),
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_two_threads_that_import_at_the_same_time_both_get_it_whole(seconds: float) -> None:
    command = [sys.executable, "-W", "ignore", "-c", TWO_THREADS, str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr
