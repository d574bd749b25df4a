"""The pass that looks for a target over a large text without it, against `grep -c -F` on the same file."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import ROOT, Measure, Skipped

ABSENT = "zorblatterex"  # a word that no text has

SEEK_SCRIPT = """
import json, sys, time
from bench import peak_memory
from unlearn_core.settings.run_config import ConfigError, DataSettings
from unlearn_core.corpus.scan import scan_corpus
began = time.perf_counter()
try:
    scan_corpus(DataSettings(target=sys.argv[2], forget=(sys.argv[1],), retain=(sys.argv[1],)), 0)
    sys.exit("the word is in the file")
except ConfigError:
    seconds = time.perf_counter() - began
print(json.dumps([seconds, peak_memory()]))
"""


def measure(size: int = 1 << 30) -> list[Measure]:
    """The pass over a plain text that does not hold the word, against `grep -c -F`, and the memory that it takes."""
    if not shutil.which("grep"):
        raise Skipped("There is no grep here.")
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        path = Path(folder) / "corpus.txt"
        if shutil.disk_usage(folder).free < 2 * size:
            raise Skipped(f"The disk has no room for a text of {size >> 20} MB.")
        write_text(path, size)
        grep, ours, memory = [], [], 0.0
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(["grep", "-c", "-F", ABSENT, path], stdout=subprocess.DEVNULL, check=False)
            grep.append(time.perf_counter() - began)
            done = subprocess.run(
                [sys.executable, "-c", SEEK_SCRIPT, path, ABSENT], cwd=ROOT, capture_output=True, text=True, check=True
            )
            seconds, peak = json.loads(done.stdout)
            ours.append(seconds)
            memory = max(memory, (peak or 0.0) / 2**20)
    fast, reference = statistics.median(ours), statistics.median(grep)
    pace = size / 1e6 / fast
    detail = f"{fast:.2f} s against {reference:.2f} s for {size >> 20} MB of text, which has no such word"
    return [
        Measure("pass over a plain text against grep -c -F", fast / reference, 2.0, "x", detail),
        Measure("time of that pass for 200 MB", 200 / pace, 1.0, " s", f"{pace:.0f} MB/s"),
        Measure("memory of that pass", memory, 500.0, " MB", "the most that its process had at once"),
    ]


def write_text(path: Path, size: int) -> None:
    """A text of lines of words, no two blocks alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(5000)]
    lines = [" ".join(rng.choices(words, k=rng.randint(4, 14))).encode() + b"\n" for _ in range(50_000)]
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"".join(rng.sample(lines, 20_000)))
