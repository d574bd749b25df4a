"""What goes with a run that is deleted: said before it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pages.shared.format import counted, three


def lost(run: Mapping[str, Any], answers: int, checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """Steps, answers and checkpoints of a run, in a sentence."""
    size = sum(row["bytes"] or 0 for row in checkpoints) / 1e6
    saved = f"{counted(len(checkpoints), 'checkpoint')} ({three(size)} MB)" if checkpoints else "no checkpoint"
    steps = counted(run["last_step"], "step")
    return f"“{run['name']}” goes for good: {steps}, {counted(answers, 'answer')} and {saved}."
