"""What a guard rail is worth: holdout loss at equal forgetting, `cli.py bench rails`, shown in docs/rails.md.

Each loss with each rail over several seeds, everything else equal: holdout loss at the moment at which forget loss
first reaches a level, interpolated between two steps. Comparing at equal forgetting is the point: a rail that only
slows the run down gains nothing here.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import Column, Report, Table, known, measured_on, publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, measure_missing
from terminal.progress import ProgressLine
from terminal.text import answer
from unlearn_core.settings.home import home_folder
from unlearn_core.settings.run_config import RunConfig, with_settings

STEPS = 200
LEVELS = (1.0, 2.0, 3.0)  # nats of forget loss: it begins at 0.1, and a model that never saw the word has 8.0
LEVEL = 2.0  # the one of the table; the others stand below it
LOSSES: dict[str, dict[str, Any]] = {
    "grad_ascent": {"ceiling": 0.0, "hold": False, "retain_weight": 0.0, "neighbour_weight": 0.0},
    "grad_diff": {"retain_weight": 1.0, "retain_term": "nll", "neighbour_weight": 0.0},
    "npo": {"beta": 0.1, "retain_weight": 1.0, "retain_term": "nll", "neighbour_weight": 0.0},
}
# All settings are written out, so that a method's own settings make no difference between the cases.
# Sixteen single retain samples every third step, in four groups, as published; a row per sample reads as many.
SAMPLES = {"batches": 16, "batch_size": 1, "neighbours": False}
ROWS = {
    **SAMPLES, "rows": "group", "groups": 4, "every": 3, "apply_to": "update", "refresh": "count", "history": 1,
    "scope": "global", "optimizer_states": "shared",
}  # fmt: skip
RAILS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "subspace, on the gradient": {**ROWS, "kind": "retain_subspace", "apply_to": "gradient"},
    "subspace, on the update": {**ROWS, "kind": "retain_subspace"},
    "subspace, separate states": {**ROWS, "kind": "retain_subspace", "optimizer_states": "separate"},
    "one-sided": {**ROWS, "kind": "one_sided"},
    "a row per sample": {**ROWS, "kind": "retain_subspace", "rows": "sample"},
    "null space of inputs": {**SAMPLES, "kind": "null_space", "energy": 0.97},
}
ADAM = {"name": "adamw", "learning_rate": 8e-4, "weight_decay": 0.0, "max_gradient_norm": 1.0}
SCHEDULE = {"steps": STEPS, "batch_size": 4, "decay": "constant", "warmup": 0, "evaluate_every": 1}

Row = Mapping[str, Any]


def settings_of(loss: str, rail: str, seed: int) -> dict[str, Any]:
    """The run file of one loss with one rail: small batches, AdamW at one rate, no dropout."""
    return {
        "seed": seed,
        "method": {"name": loss, **LOSSES[loss]},
        "lora": {"dropout": 0.0},
        "guard_rail": RAILS[rail],
        "optimizer": ADAM,
        "schedule": SCHEDULE,
    }


def rails_for(loss: str) -> list[str]:
    """The guard rails that a loss is measured with: separate optimizer states only where it has a retain term."""
    return [
        rail
        for rail, settings in RAILS.items()
        if LOSSES[loss]["retain_weight"] or settings.get("optimizer_states") != "separate"
    ]


def main(args: argparse.Namespace) -> int:
    """Measures what is not measured yet, and prints or publishes the tables; returns the exit code."""
    results, line = Results(home_folder(args.home) / "bench-rails.jsonl"), ProgressLine(sys.stderr)
    cases = []
    for seed in range(args.seeds):
        for loss in LOSSES:
            for rail in rails_for(loss):
                config = RunConfig.from_dict(with_settings(settings_of(loss, rail, seed), args.set)).to_dict()
                key = key_of(config=config, versions=versions(), levels=LEVELS)
                facts = {"loss": loss, "rail": rail, "seed": seed}
                cases.append(Case(f"{loss}, {rail}, seed {seed}", key, config, facts))
    if not measure_missing(cases, results, line, measure, again=args.again):
        return 130
    rows = [results.rows[case.key] for case in cases]
    tables = report(rows)
    if args.docs:
        line.say(publish("rails", tables))
    damages = [
        {**{name: row[name] for name in ("loss", "rail", "seed")}, "damage": {at: damage(row, at) for at in LEVELS}}
        for row in rows
    ]
    answer(args.json, damages, tables.markdown())
    return 0


def measure(case: Case, progress: Progress) -> dict[str, Any]:
    """Forget, holdout and neighbour loss step by step, up to the highest level or the last step."""
    from unlearn_core.training.engine import open_unlearner

    began = time.monotonic()
    progress.show("opening")
    run = open_unlearner(case.config, progress.report)
    start = run.measure_baseline().values
    curves = {name: [start[name]] for name in ("forget_loss", "holdout_loss", "neighbour_loss")}
    steps = run.config.schedule.steps
    while run.step_number < steps and curves["forget_loss"][-1] < max(LEVELS):
        values = run.step().values
        for name, curve in curves.items():
            curve.append(values.get(name, math.nan))
        progress.show(f"forget loss {curves['forget_loss'][-1]:.2f}", run.step_number, steps)
    return {"curves": curves, "seconds": time.monotonic() - began}


def crossing(losses: Sequence[float | None], level: float) -> float | None:
    """The step, in between two, at which a curve that begins with step 0 first reaches a level; None where never."""
    for step, (before, now) in enumerate(zip(losses, losses[1:], strict=False), 1):
        if before is not None and now is not None and now >= level:
            return step - 1 + (level - before) / (now - before) if now > before else float(step)
    return None


def damage(row: Row, level: float, kind: str = "holdout_loss") -> float | None:
    """The rise of a loss, as a share of its start, when forget loss first reaches the level; None where it does not."""
    at, losses = crossing(row["curves"]["forget_loss"], level), row["curves"][kind]
    if at is None:
        return None
    before = min(int(at), len(losses) - 2)
    if losses[before] is None or losses[before + 1] is None:
        return None
    return float((losses[before] + (at - before) * (losses[before + 1] - losses[before])) / losses[0] - 1)


NOT_REACHED = "not reached"


def report(rows: Sequence[Row]) -> Report:
    """The table at its level with every seed, and means at the other levels."""
    first, seeds = rows[0], sorted({row["seed"] for row in rows})
    others = [level for level in LEVELS if level != LEVEL]
    cases = list(dict.fromkeys((row["loss"], row["rail"]) for row in rows))
    which = (Column("loss", "{loss}", left=True), Column("guard rail", "{rail}", left=True))

    def percent(label: str, figure: str) -> Column:
        return Column(label, f"{{{figure}:+z.1f}} %", missing=NOT_REACHED)

    at_level = Table(
        (
            *which,
            percent("mean", "mean_percent"),
            *(percent(f"seed {seed}", f"seed_{seed}_percent") for seed in seeds),
            percent("neighbours", "neighbour_percent"),
            Column("steps", "{steps:.0f}", missing=f"more than {STEPS}"),
            Column("against none", "{against_none:.2f}x"),
        ),
        tuple(at_the_level(rows, loss, rail) for loss, rail in cases),
        f"Rise of holdout loss when forget loss first reaches {LEVEL:g} nats:",
    )
    at_others = Table(
        (*which, *(percent(f"at {level:g} nats", f"at_{level:g}_percent") for level in others)),
        tuple(
            known(
                loss=loss,
                rail=rail,
                **{f"at_{level:g}_percent": percent_of(mean_damage(rows, loss, rail, level)) for level in others},
            )
            for loss, rail in cases
        ),
        f"The same at {' and '.join(f'{level:g}' for level in others)} nats, means:",
    )
    return Report(
        (at_level, at_others),
        runs=f"{len(rows)} runs",
        **measured_on(rows),
        note=f"Holdout loss begins at {first['curves']['holdout_loss'][0]:.3f} nats per token, forget loss at "
        f"{first['curves']['forget_loss'][0]:.3f}.",
    )


def of(rows: Sequence[Row], loss: str, rail: str) -> list[Row]:
    """The runs of one loss with one rail, by seed."""
    return sorted((row for row in rows if (row["loss"], row["rail"]) == (loss, rail)), key=lambda row: row["seed"])


def mean_damage(rows: Sequence[Row], loss: str, rail: str, level: float, kind: str = "holdout_loss") -> float | None:
    """Mean over the seeds; None where one of them never reaches the level."""
    damages = [damage(row, level, kind) for row in of(rows, loss, rail)]
    reached = [each for each in damages if each is not None]
    return statistics.fmean(reached) if reached and len(reached) == len(damages) else None


def percent_of(share: float | None) -> float | None:
    return None if share is None else 100 * share


def at_the_level(rows: Sequence[Row], loss: str, rail: str) -> dict[str, object]:
    """A row of the first table; `against_none` is the mean rise as a multiple of that without a rail."""
    runs = of(rows, loss, rail)
    mean, plain = mean_damage(rows, loss, rail, LEVEL), mean_damage(rows, loss, "none", LEVEL)
    steps = [crossing(row["curves"]["forget_loss"], LEVEL) for row in runs]
    reached = [step for step in steps if step is not None]
    return known(
        loss=loss,
        rail=rail,
        mean_percent=percent_of(mean),
        **{f"seed_{row['seed']}_percent": percent_of(damage(row, LEVEL)) for row in runs},
        neighbour_percent=percent_of(mean_damage(rows, loss, rail, LEVEL, "neighbour_loss")),
        steps=statistics.fmean(reached) if len(reached) == len(steps) else None,
        against_none=None if rail == "none" or mean is None or not plain else mean / plain,
    )
