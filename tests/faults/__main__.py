"""`python -m tests.faults --long`: every fault many times, and what held. `--docs`: the table in docs/reliability.md.

What is finished is a line in the home folder; a stopped run goes on with the same command. `--only NAME`: some kinds,
`--count N` each of them so often, `--seed N` begins at another seed; `--again` runs anew what was run.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import Column, Report, Table, measured_on, publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, is_finished, measure_missing
from terminal.progress import ProgressLine
from terminal.text import answer
from tests.faults.kinds import KINDS, Kind
from tests.faults.outcome import Outcome, sentence_of
from unlearn_core.settings.home import home_folder

Row = Mapping[str, Any]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults on purpose, many times.")
    parser.add_argument("--long", action="store_true", help="the long form; the short one is part of the tests")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="NAME", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, metavar="N", help="how often each kind; 0: only the table of what was run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument("--home", metavar="DIR", help="where results are kept (default: $LETHE_HOME, or ./data)")
    parser.add_argument("--again", action="store_true", help="run anew what was run")
    parser.add_argument("--docs", action="store_true", help="put what was run so far into docs/reliability.md")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on stdout")
    return parser


def cases(kind: Kind, count: int, seed: int) -> list[Case]:
    """A kind in pieces, each finished one a row: so many times from a seed on."""
    pieces = []
    for start in range(seed, seed + count, kind.piece):
        times = min(kind.piece, seed + count - start)
        facts = {"kind": kind.name, "seed": start, "count": times}
        key = key_of(**facts, versions=versions(*kind.files))
        pieces.append(Case(f"{kind.label} from {start}", key, facts, facts))
    return pieces


def measure(case: Case, progress: Progress) -> dict[str, Any]:
    """One piece. What did not hold is told with its seed; a piece with such a one is tried anew the next time."""
    progress.show("running")
    began, kind = time.monotonic(), KINDS[case.config["kind"]]
    folder = Path(tempfile.mkdtemp(prefix="lethe-faults-"))
    try:
        outcome = kind.tried(folder, case.config["seed"], case.config["count"])
    except Exception as error:
        outcome = Outcome(case.config["count"], broken=[sentence_of(error)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row = {"times": outcome.times, "found": dict(outcome.found), "broken": outcome.broken}
    return {**row, **({"error": outcome.broken[0]} if outcome.broken else {}), "seconds": time.monotonic() - began}


def summary(row: Row) -> str:
    told = f"{row['times']:,} times, {len(row['broken'])} did not hold"
    return f"{told}: {row['error']}" if row["broken"] else told


def report(rows: Sequence[Row]) -> Report:
    """A row a kind: how often, how often it held, and what was met."""
    columns = (
        Column("fault", "{label}", left=True),
        Column("must hold", "{holds}", left=True),
        Column("times", "{times:,}"),
        Column("held", "{held:,}"),
        Column("did not hold", "{broken}"),
        Column("of these", "{found}", left=True),
        Column("minutes", "{minutes:.1f}"),
    )
    table = [total(KINDS[name], [r for r in rows if r["kind"] == name]) for name in KINDS]
    return Report(
        tables=(Table(columns, tuple(line for line in table if line["times"])),),
        runs=f"{sum(row['times'] for row in rows):,} faults",
        **measured_on(rows),
    )


def total(kind: Kind, rows: Sequence[Row]) -> dict[str, object]:
    times, broken = sum(row["times"] for row in rows), sum(len(row["broken"]) for row in rows)
    found: Counter[str] = Counter()
    for row in rows:
        found.update(row["found"])
    return {
        "label": kind.label,
        "holds": kind.holds,
        "times": times,
        "held": times - broken,
        "broken": broken,
        "found": ", ".join(f"{what} {count:,}" if count > 1 else what for what, count in sorted(found.items())),
        "minutes": sum(row["seconds"] for row in rows) / 60,
    }


def main() -> int:
    """Runs what has not been run yet, and prints or publishes the table; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args()
    if not args.long:
        parser.error("the short form is part of the tests (python -m pytest tests/faults); --long runs the long one")
    logging.getLogger("unlearn_core").addHandler(logging.NullHandler())  # what fails on purpose is not told here
    logging.getLogger("unlearn_core").propagate = False
    results, line = Results(home_folder(args.home) / "faults.jsonl"), ProgressLine(sys.stderr)
    chosen = [KINDS[name] for name in args.only or KINDS]
    planned = [
        case for kind in chosen for case in cases(kind, kind.times if args.count is None else args.count, args.seed)
    ]
    through = measure_missing(planned, results, line, measure, again=args.again, summary=summary)
    rows = [row for row in results.rows.values() if row.get("kind") in KINDS]
    if not rows:
        return 130
    tables = report(rows)
    if args.docs:
        line.say(publish("faults", tables))
    answer(args.json, rows, tables.markdown())
    broken = any(not is_finished(results.rows.get(case.key)) for case in planned)
    return 1 if through and broken else 0 if through else 130


if __name__ == "__main__":
    sys.exit(main())
