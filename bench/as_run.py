"""What two defects of the published code do to its curves: `cli.py bench as_run`, shown in docs/as-it-was-run.md.

The preset `post_as_run` with neither, each and both of its defects, over several seeds. Recorded at every step: forget
loss on the fixed windows (no padding in them), the share of the forget gradient's length that the projection removed,
and that gradient's norm; and which steps began with a refresh of the retained directions.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import ROOT
from bench.chart import Panel, document, dots, text
from bench.report import Column, Report, Table, known, measured_on, publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, measure_missing
from terminal.progress import ProgressLine
from terminal.text import answer
from unlearn_core.settings.home import home_folder
from unlearn_core.settings.run_config import RunConfig, with_settings

STEPS = 150  # the preset has 90, by which the collapse has just been reached where padding is trained on
EARLY = 40  # steps in which forget loss hardly moves
COMBINATIONS = {
    "neither": (False, False),
    "leftover gradients": (True, False),
    "trained padding": (False, True),
    "both": (True, True),
}
RECORDED = ("forget_loss", "objective", "removed_share", "gradient_norm", "retain_gradient_norm_median")
CHART = "docs/as-it-was-run.svg"

Row = Mapping[str, Any]


def settings_of(name: str, seed: int) -> dict[str, Any]:
    """The run file of a combination of the defects."""
    leftover, padding = COMBINATIONS[name]
    switches = {"leftover_gradients": leftover, "padding_trained": padding}
    return {"preset": "post_as_run", "seed": seed, "as_run": switches, "schedule": {"steps": STEPS}}


def main(args: argparse.Namespace) -> int:
    """Measures what is not measured yet, and prints or publishes tables and chart; returns the exit code."""
    results, line = Results(home_folder(args.home) / "bench-as-run.jsonl"), ProgressLine(sys.stderr)
    cases = []
    for seed in range(args.seeds):
        for name in COMBINATIONS:
            config = RunConfig.from_dict(with_settings(settings_of(name, seed), args.set)).to_dict()
            key = key_of(config=config, versions=versions())
            cases.append(Case(f"{name}, seed {seed}", key, config, {"name": name, "seed": seed}))
    if not measure_missing(cases, results, line, measure, again=args.again):
        return 130
    rows = [results.rows[case.key] for case in cases]
    tables = report(rows)
    if args.docs:
        (ROOT / CHART).write_text(chart(rows), encoding="utf-8")
        line.say(f"{publish('as_run', tables)} The chart is {CHART}.")
    answer(args.json, [{"name": r["name"], "seed": r["seed"], **summary(r)} for r in rows], tables.markdown())
    return 0


def measure(case: Case, progress: Progress) -> dict[str, Any]:
    """The curves of one run."""
    from unlearn_core.guard_rails.retain_subspace import RetainSubspaceRail
    from unlearn_core.training.engine import open_unlearner

    run = open_unlearner(case.config, progress.report)
    run.measure_baseline()
    assert run.guard
    steps, began = run.config.schedule.steps, time.monotonic()
    curves: dict[str, list[float | None]] = {name: [] for name in RECORDED}
    refreshed = []
    for number in range(1, steps + 1):
        record = run.step()
        for name, curve in curves.items():
            value = record.values.get(name)
            curve.append(float(f"{value:.5g}") if value is not None and math.isfinite(value) else None)
        if isinstance(rail := run.update.rail, RetainSubspaceRail) and rail.refreshes.last == number:
            refreshed.append(number)
        progress.show(step=number, steps=steps)
    return {
        "curves": curves,
        "refreshed": refreshed,
        "collapse_level": run.guard.collapse_level,
        "seconds": time.monotonic() - began,
    }


# --------------------------------------------------------------------------------------------- figures of the curves


def collapse_of(row: Row) -> int | None:
    """The first step whose forget loss is beyond that of guessing and of the reference; None where there is none.

    Of these curves, which have no holdout loss at every step; the milestones of a run also ask for damage.
    """
    losses = row["curves"]["forget_loss"]
    return next((n for n, loss in enumerate(losses, 1) if loss is not None and loss > row["collapse_level"]), None)


def phases(row: Row, name: str = "removed_share") -> dict[str, list[float]]:
    """The values of a curve by phase and kind of step. The first three steps, which all refresh, are left out."""
    collapse, refreshed = collapse_of(row) or math.inf, set(row["refreshed"])
    values: dict[str, list[float]] = {}
    for number, value in enumerate(row["curves"][name], 1):
        if number > 3 and value is not None:
            phase = "after" if number >= collapse else "early" if number <= EARLY else "rising"
            values.setdefault(f"{phase}, {'refresh' if number in refreshed else 'other'}", []).append(value)
    return values


def summary(row: Row) -> dict[str, Any]:
    """Where it collapsed; of each phase and kind of step mean and largest removed share, and the median norm."""
    shares, norms = phases(row), phases(row, "gradient_norm")
    return {
        "collapse": collapse_of(row),
        "mean": {part: statistics.fmean(values) for part, values in shares.items()},
        "most": {part: max(values) for part, values in shares.items()},
        "norm": {part: statistics.median(values) for part, values in norms.items()},
    }


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each combination that was measured."""
    runs = {name: [row for row in rows if row["name"] == name] for name in COMBINATIONS}
    return {name: each for name, each in runs.items() if each}


OUTER = ("early, refresh", "early, other", "after, refresh", "after, other")
SHARE = "{share[mean]:.1f} ({share[min]:.1f} to {share[max]:.1f})"
PARTS = tuple(f"{phase}, {kind}" for phase in ("early", "rising", "after") for kind in ("refresh", "other"))


def report(rows: Sequence[Row]) -> Report:
    """Two tables: removed shares and norms, means over the seeds, with the range of the seeds behind the shares."""
    first, seeds = rows[0], len({row["seed"] for row in rows})
    steps = len(first["curves"]["objective"])
    figures = tuple(figures_of(name, runs, steps) for name, runs in by_name(rows).items())
    defects = Column("defects", "{name}", left=True)
    shares = Table(
        (
            defects,
            Column("collapse at step", "{collapse}"),
            *(Column(part, SHARE.replace("share", key_for("percent", part))) for part in PARTS),
        ),
        figures,
        "Mean share of the forget gradient's length that the projection removed, on steps that begin with a refresh "
        f"and on the others, in percent: *early* is up to step {EARLY}, *rising* until the collapse, *after* from it "
        "on. In brackets the lowest and the highest seed:",
    )
    norms = Table(
        (
            defects,
            Column("largest share", "{largest}"),
            *(Column(f"norm {part}", f"{{{key_for('norm', part)}:.2g}}") for part in OUTER),
        ),
        figures,
        "The largest share on a refresh step after the collapse, of each seed; and the gradient's median norm, mean of "
        "the seeds:",
    )
    return Report(
        (shares, norms),
        runs=f"{seeds} seeds, steps 4 to {steps}; {len(rows)} runs",
        **measured_on(rows),
    )


def key_for(figure: str, part: str) -> str:
    """The name of a figure of a phase and kind of step in a published row."""
    return f"{part.replace(', ', '_')}_{figure}"


def figures_of(name: str, runs: Sequence[Row], steps: int) -> dict[str, object]:
    """The figures of one combination. A run without a collapse has none after it."""
    summaries = [summary(row) for row in runs]

    def of(kind: str, part: str) -> list[float]:
        return [each[kind][part] for each in summaries if part in each[kind]]

    shares = {key_for("percent", part): [100 * mean for mean in of("mean", part)] for part in PARTS}
    norms = {key_for("norm", part): of("norm", part) for part in OUTER}
    return known(
        name=name,
        collapse=", ".join(str(each["collapse"] or f"not in {steps}") for each in summaries),
        largest=", ".join(f"{100 * share:.0f} %" for share in of("most", "after, refresh")) or "–",
        **{
            key: {"mean": statistics.fmean(means), "min": min(means), "max": max(means)}
            for key, means in shares.items()
            if means
        },
        **{key: statistics.fmean(medians) for key, medians in norms.items() if medians},
    )


# --------------------------------------------------------------------------------------------------------- the chart

WIDTH, LEFT, ACROSS, TALL, BETWEEN = 1000, 48, 188, 150, 52


def chart(rows: Sequence[Row]) -> str:
    """A column per combination; forget loss, removed share and gradient norm below one another."""
    steps = len(rows[0]["curves"]["objective"])
    ticks = range(0, steps + 1, 50)
    parts = [*legend()]
    for column, (name, runs) in enumerate(by_name(rows).items()):
        left = LEFT + column * (ACROSS + BETWEEN)
        parts.append(text(left, 62, name, "words bold"))
        across: dict[str, Any] = {"left": left, "width": ACROSS, "height": TALL, "x": (0, steps)}
        losses = Panel(top=92, y=(0, 10 * math.ceil(highest(rows, "forget_loss") / 10)), **across)
        removed = Panel(top=92 + TALL + 56, y=(0, 100), **across)
        lengths = Panel(top=92 + 2 * (TALL + 56), y=(0.01, 1000), log=True, **across)
        parts += losses.axes(ticks, range(0, int(losses.y[1]) + 1, 10), "forget loss, nats a token")
        parts += removed.axes(ticks, [0, 25, 50, 75, 100], "removed share of the gradient", " %")
        parts += lengths.axes(ticks, [0.01, 1, 100], "norm of the forget gradient")
        for row in runs:
            parts += run_in(losses, removed, lengths, row)
        if collapses := [at for row in runs if (at := collapse_of(row))]:
            parts += [panel.rule(statistics.fmean(collapses)) for panel in (losses, removed, lengths)]
    bottom = 92 + 3 * (TALL + 56) - 14
    parts.append(text(WIDTH / 2, bottom, "step", "quiet", "middle"))
    about = "Forget loss, removed share and gradient norm of runs with neither, each and both defects, all seeds."
    return document(WIDTH, bottom + 16, "What two defects do to the published curves", about, parts)


def legend() -> Iterator[str]:
    """The meaning of the colours and shapes, in words."""
    yield text(LEFT, 24, "Every step of every seed:")
    yield dots([(LEFT + 182, 20)], "keep", 5)
    yield text(LEFT + 192, 24, "it began with a refresh")
    yield dots([(LEFT + 352, 20)], "other", 2.5)
    yield text(LEFT + 362, 24, "it did not")
    yield f'<line class="mark" x1="{LEFT + 452}" y1="20" x2="{LEFT + 482}" y2="20"/>'
    yield text(LEFT + 490, 24, "collapse, mean of the seeds")


def run_in(losses: Panel, removed: Panel, lengths: Panel, row: Row) -> Iterator[str]:
    """One run in the three panels of its column."""
    curves, refreshed = row["curves"], set(row["refreshed"])

    def points(name: str, times: float = 1.0) -> list[tuple[float, float]]:
        return [(number, times * value) for number, value in enumerate(curves[name], 1) if value is not None]

    yield losses.line(points("forget_loss"), "forget")
    for panel, values in ((removed, points("removed_share", 100)), (lengths, points("gradient_norm"))):
        yield panel.dots([point for point in values if point[0] not in refreshed], "other", 2.6)
        yield panel.dots([point for point in values if point[0] in refreshed], "keep", 3.6)


def highest(rows: Sequence[Row], name: str) -> float:
    """The largest value of a curve, of all runs."""
    return max(float(value) for row in rows for value in row["curves"][name] if value is not None)
