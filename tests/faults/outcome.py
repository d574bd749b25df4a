"""What a scenario that is tried many times came to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """How often it was tried, what was met on the way and how often, and a sentence on each time it did not hold."""

    times: int = 0
    found: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"times": self.times, "found": self.found, "broken": self.broken})

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        facts = json.loads(text)
        return cls(facts["times"], Counter(facts["found"]), facts["broken"])


def in_a_process(module: str, *given: object) -> Outcome:
    """The outcome that `python -m tests.faults.MODULE ...` prints in its last line, also where SIGTERM ended it."""
    command = [sys.executable, "-m", f"tests.faults.{module}", *map(str, given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and not (done.returncode == -signal.SIGTERM and done.stdout):
        return Outcome(1, broken=[f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"])
    return Outcome.from_json(done.stdout.splitlines()[-1])


def sentence_of(error: Exception) -> str:
    """What did not hold, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
