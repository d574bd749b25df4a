"""Measures case after case, each finished one a line in a file: a stopped bench goes on with the same command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.results import Results, versions
from terminal.progress import ProgressLine

if TYPE_CHECKING:
    from unlearn_core.training.engine import Unlearner
    from unlearn_core.training.stopping import Verdict

USUAL_SECONDS = 60.0  # what a case is taken to need while none has been measured


@dataclass(frozen=True)
class Case:
    """One measurement: its name for a person, the key of its row, its whole configuration, what its row begins with."""

    label: str
    key: str
    config: Mapping[str, Any]
    facts: Mapping[str, object] = field(default_factory=dict)


class Progress:
    """One line: which case is measured, how far it is, and about how long all of them will take."""

    def __init__(self, line: ProgressLine, label: str, place: int, count: int, usual: float) -> None:
        """`place` of `count`, from 1; `usual`: the seconds that a case usually takes."""
        self.line, self.label, self.place, self.count, self.usual = line, label, place, count, usual
        self.began, self.first_step = time.monotonic(), 0.0

    def report(self, stage: str, detail: str = "") -> None:
        """What the run that is opened is doing."""
        self.show(f"{stage}: {detail}" if detail else stage)

    def show(self, doing: str = "", step: int = 0, steps: int = 0) -> None:
        """What the case is doing, or at which of its steps it is."""
        own = max(0.0, self.usual - (time.monotonic() - self.began))
        if step:
            now = time.monotonic()
            self.first_step = self.first_step or now
            if step > 1:
                own = (now - self.first_step) / (step - 1) * (steps - step)
            doing = f"step {step} of {steps}{f', {doing}' if doing else ''}"
        left = own + self.usual * (self.count - self.place)
        self.line.show(f"{self.place} of {self.count}, {self.label}: {doing}, about {roughly(left)} left")


def measure_missing(
    cases: Sequence[Case],
    results: Results,
    line: ProgressLine,
    measure: Callable[[Case, Progress], Mapping[str, Any]],
    *,
    again: bool = False,
    summary: Callable[[Mapping[str, Any]], str] = lambda row: "",
) -> bool:
    """Measures and stores every case that has no finished row, in order; False where Ctrl-C ended it before the last.

    `again`: all of them. `summary`: a finished row on one line, printed where it is not empty.
    """
    waiting = [case for case in cases if again or not is_finished(results.rows.get(case.key))]
    measured = len(cases) - len(waiting)
    if measured:
        line.say(f"{measured} of {len(cases)} are measured already, in {results.path} (--again measures anew).")
    try:
        for case in waiting:
            progress = Progress(line, case.label, measured + 1, len(cases), usual_seconds(cases, results))
            row = {**case.facts, **measure(case, progress), "libraries": versions(), "cores": os.cpu_count()}
            measured += 1
            if text := summary(results.add(case.key, row)):
                line.say(f"{measured} of {len(cases)}, {case.label}: {text}")
    except KeyboardInterrupt:
        line.say(f"Stopped; {measured} of {len(cases)} are measured, and the same command goes on.")
        return False
    finally:
        line.clear()
    return True


def to_its_end(run: Unlearner, progress: Progress) -> Verdict | None:
    """Takes steps until a rule asks for a pause, which it returns, or to the last step."""
    verdict, steps = None, run.config.schedule.steps
    while run.step_number < steps and not verdict:
        record = run.step()
        verdict = record.verdict or run.judge(record.values)
        progress.show(step=run.step_number, steps=steps)
    return verdict


def is_finished(row: Mapping[str, Any] | None) -> bool:
    """A row that stands; one of a case that failed is measured anew."""
    return row is not None and "error" not in row


def usual_seconds(cases: Sequence[Case], results: Results) -> float:
    """The mean time of the cases that have been measured."""
    seconds = [row["seconds"] for case in cases if (row := results.rows.get(case.key)) and row.get("seconds")]
    return sum(seconds) / len(seconds) if seconds else USUAL_SECONDS


def roughly(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else "a minute" if seconds > 30 else "half a minute"
