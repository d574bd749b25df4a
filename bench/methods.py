"""Every method at its own settings on the bundled world, at the step that its own guard chose: `cli.py bench methods`.

Each runs in a fresh process (`one_method.py`): peak memory is measured per method, and a failure ends only its own. The
time for all is shared out: a method may take as long as leaves every later one its minimum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench import ROOT
from bench.report import publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, measure_missing
from bench.table import facts_of, in_order, report
from pages.shared.format import duration
from terminal.progress import ProgressLine
from terminal.text import BadInput, answer
from unlearn_core.methods import METHODS
from unlearn_core.settings.home import home_folder
from unlearn_core.settings.run_config import RunConfig, with_settings

RECIPES = ("post",)  # the default recipe is its method at its own settings
MINUTES = 55.0  # for all methods together
LEAST_SECONDS, MOST_SECONDS = 45.0, 1200.0  # for one of them
GRACE_SECONDS = 120.0  # beyond its time, for measuring; then its process is killed


def settings_of(name: str) -> dict[str, Any]:
    """The run file of a method at its own settings, or of a recipe."""
    return {"preset": name} if name in RECIPES else {"method": {"name": name}}


def cases_of(names: Sequence[str], assignments: Sequence[str]) -> dict[str, Case]:
    """The cases of these methods and recipes (default: of all) by name. Raises BadInput for an unknown name."""
    every = [*RECIPES, *METHODS]
    if unknown := [name for name in names if name not in every]:
        raise BadInput(f"{unknown[0]!r} is no method; known are {', '.join(every)}.")
    cases = {}
    for name in names or every:
        config = RunConfig.from_dict(with_settings(settings_of(name), assignments)).to_dict()
        source = ROOT / "unlearn_core" / "methods" / f"{config['method']['name']}.py"
        key = key_of(name=name, config=config, versions=versions(source))
        cases[name] = Case(name, key, config, {"name": name})
    return cases


def main(args: argparse.Namespace) -> int:
    """Measures what is not measured yet, and prints or publishes the table; returns the exit code."""
    results, line = Results(home_folder(args.home) / "bench-methods.jsonl"), ProgressLine(sys.stderr)
    cases = cases_of(args.only, args.set)
    deadline = time.monotonic() + 60 * args.minutes

    def measure(case: Case, progress: Progress) -> dict[str, Any]:
        left = deadline - time.monotonic() - LEAST_SECONDS * (progress.count - progress.place)
        return in_a_process(case.config, min(MOST_SECONDS, max(LEAST_SECONDS, left)), progress)

    # The longest last: it may take the time that the others leave.
    order = sorted(cases.values(), key=lambda case: case.config["schedule"]["steps"])
    if not measure_missing(order, results, line, measure, again=args.again, summary=in_short):
        return 130
    shown = cases_of([], args.set) if args.docs else cases
    rows = {name: results.rows.get(case.key) for name, case in shown.items()}
    table = report(rows)
    if args.docs:
        line.say(publish("methods", table))
    answer(args.json, [facts_of(name, row) for name, row in in_order(rows)], table.markdown())
    return 0


def in_a_process(config: Mapping[str, Any], seconds: float, progress: Progress) -> dict[str, Any]:
    """The row of one method, from a process of its own; where that dies or hangs, a row with the error."""
    command = [sys.executable, "-m", "bench.one_method", json.dumps({"config": config, "seconds": seconds})]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    row: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        killer = threading.Timer(seconds + GRACE_SECONDS, process.kill)
        killer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                message = parse(line)
                row = message.pop("row", row)
                if message:
                    progress.show(**message)
            process.wait()
        finally:
            hung = killer.finished.is_set()
            killer.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        output = errors.read().strip().splitlines()
    if not row:
        why = f"no end within {duration(seconds + GRACE_SECONDS)}" if hung else (output or ["no error output"])[-1]
        row = {"error": f"Its process ended with code {process.returncode}: {why.rstrip('.')}."}
    return row


def parse(line: str) -> dict[str, Any]:
    """A message of `one_method.py`; empty for whatever else is printed there."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def in_short(row: Mapping[str, Any]) -> str:
    """A finished method on one line."""
    if "error" in row:
        return str(row["error"])
    text = f"forget loss {row['forget_loss']:.2f} at step {row['step']}"
    if row["distance"] is not None:
        text += f", {row['distance']:.2f} nats from the reference (before: {row['distance_before']:.2f})"
    return f"{text}, {duration(row['seconds'])}"
