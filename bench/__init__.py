"""Measurements: what Lethe costs on this machine, and what its methods and guard rails do: `python cli.py bench`.

Without a part, the machine is measured (`machine.py`, under four minutes): `engine`, `seek` and `app`. The other parts
are a file each: `methods`, `rails`, `as_run` and `gpu`. The first three can be interrupted and go on where they were
(`resumable.py`); `--docs` publishes results (`report.py`).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


def peak_memory() -> float | None:
    """The process's peak memory in bytes; None where the system does not report it.

    On Linux from its status: the value of getrusage begins with that of the parent process.
    """
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return 1024.0 * int(match[1])
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


class Skipped(Exception):
    """Why something cannot be measured on this machine, in one sentence."""


@dataclass(frozen=True)
class Measure:
    """One figure, and what it should at most be."""

    name: str
    value: float
    goal: float
    unit: str
    detail: str

    @property
    def met(self) -> bool:
        return self.value <= self.goal
