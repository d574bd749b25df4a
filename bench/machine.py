"""What Lethe costs on this machine, against goals: the engine, the pass over a corpus, the app in a browser.

- **engine**: a step of the bundled run (its preset's settings; no questions, nothing written down) against a plain
  PyTorch loop that does the same forward and backward passes (those of the step, of the retain rows and of the
  evaluation, on the same batches) and then AdamW. Both take turns, step by step, in one process with the engine's
  number of threads; of every so many steps as lie between two refreshes of the retained subspace there is a ratio,
  and the median of these counts.
- **smollm2**: the same of a real model, by default settings for such, on the bundled texts.
- **start**: from the click on Start, with the app open and the model's answers on its card, to step 1 on the page.
- **watched**: the time of a step, as the run records it, with Watch open in a headless Chromium against no page at all,
  in turns, in one run in the app's own process.
- **seek**: the pass that looks for a target over a text of 1 GiB without it, against `grep -c -F` on the same file.
- **rerun**: from the browser's request to rerun Watch to the server's message that the script has finished, both as
  seen on the browser's websocket, while the run trains: the page's own ticks, and whole reruns (key R).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from bench import Measure, Skipped, app, corpus, engine
from bench.report import Column, Report, Table, known, publish, today
from pages.shared.format import three
from terminal.text import answer, say
from unlearn_core.settings.provenance import library_versions

PARTS: dict[str, tuple[str, Callable[[], list[Measure]]]] = {
    "engine": ("the engine", lambda: [engine.measure()]),
    "smollm2": ("steps of a real model", lambda: [engine.measure_real()]),
    "seek": ("the pass over a corpus", lambda: corpus.measure()),
    "app": ("the app in a browser", lambda: app.measure()),
}


def main(as_json: bool = False, only: str | None = None, docs: bool = False) -> int:
    """Measures all parts or one, and prints each figure beside its goal; returns the exit code.

    `docs`: all parts are published, or none where one could not be measured.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    began = time.perf_counter()
    measures: list[Measure] = []
    skipped: list[str] = []
    for what, measure in [part for name, part in PARTS.items() if only in (None, name)]:
        say(f"measuring {what} …")
        try:
            measures += measure()
        except Skipped as why:
            skipped.append(f"Not measured: {what}. {why}")
    seconds = time.perf_counter() - began
    facts = {
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load_before": load},
        "seconds": round(seconds, 1),
        "measures": [{**asdict(each), "met": each.met} for each in measures],
        "skipped": skipped,
    }
    lines = [f"{os.cpu_count()} cores, load {load:.1f} before; measured in {seconds:.0f} s"]
    for each in measures:
        goal = f"at most {each.goal:g}{each.unit}: {'met' if each.met else 'missed'}"
        lines += [f"{each.name}: {three(each.value)}{each.unit} ({goal})", f"    {each.detail}"]
    if docs and not skipped:
        say(publish("performance", report(measures, seconds)))
    answer(as_json, facts, "\n".join([*lines, *skipped]))
    return int(docs and bool(skipped))


def report(measures: Sequence[Measure], seconds: float) -> Report:
    """Each figure, to three significant digits, beside its goal."""
    columns = (
        Column("", "{name}", left=True),
        Column("measured", "{measured:g}{unit}"),
        Column("goal", "{goal:g}{unit}"),
    )
    rows = [
        known(name=each.name, measured=float(f"{each.value:.3g}"), goal=each.goal, unit=each.unit) for each in measures
    ]
    return Report(
        (Table(columns, tuple(rows)),),
        runs="one run",
        took=f"{seconds:.0f} s",
        cores=os.cpu_count(),
        versions=library_versions(),
        date=today(),
    )
