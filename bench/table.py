"""The rows of `bench methods` as a report: in order, in words, each with where it fails."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.report import Column, Report, Table, known, today
from pages.shared.format import duration
from unlearn_core.methods import METHODS
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.provenance import LIBRARIES

Row = Mapping[str, Any] | None

COLUMNS = (
    Column("method", "{label}", left=True),
    Column("its end", "{end}", left=True),
    Column("forget loss", "{forget_loss:.2f}"),
    Column("holdout loss", "{holdout_percent:+z,.1f} %"),
    Column("neighbour loss", "{neighbour_percent:+z,.1f} %"),
    Column("distance to the reference", "{distance:.2f} (before: {distance_before:.2f})"),
    Column("names Mary Poppins", "{mentions:.0f}/{asked:.0f}"),
    Column("parts", "{parts:.0f}"),
    Column("training", "{training_seconds:.0f} s"),
    Column("in all", "{seconds:.0f} s"),
    Column("memory", "{memory_mb:,.0f} MB"),
    Column("where it fails", "{fails}", left=True),
)
GROUPS = (
    "",
    "Methods that learn the word apart and then remove it, instead of unlearning a model that knows it; measured "
    "against that model all the same:",
    "For comparison, what is not unlearning:",
)
ENDS = {
    "forgotten_enough": "forgotten enough",
    "retain_budget": "retain budget",
    "collapse": "collapse",
    "dial": "end of its dial",
    "not_finite": "not a number",
}


def is_control(name: str) -> bool:
    """A method for comparison: it forgets nothing, or changes no weights."""
    method = METHODS.get(name)
    return method is not None and (method.control or not method.facts.unlearns)


def starts_elsewhere(name: str) -> bool:
    """A method that does not begin with the model that knows the word, but trains one that keeps the word apart."""
    method = METHODS.get(name)
    return method is not None and (method.builds_model or "source" in method.facts.settings.get("model", {}))


def group_of(name: str) -> int:
    """0: it unlearns; 1: it learns apart; 2: a control."""
    return 2 if is_control(name) else int(starts_elsewhere(name))


def in_order(rows: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """By group, the closest to the reference first; failed and unmeasured ones last in their group."""

    def rank(entry: tuple[str, Row]) -> tuple[int, bool, float, str]:
        name, row = entry
        distance = row.get("distance") if row else None
        return group_of(name), distance is None, distance or 0.0, name

    return sorted(rows.items(), key=rank)


def end_of(row: Mapping[str, Any]) -> str:
    """What ended it, and at which step."""
    why = "out of time" if row["cut"] else ENDS.get(row["verdict"], "last step") if row["verdict"] else "last step"
    return f"{why}, {row['step']} of {row['steps']}"


def where_it_fails(row: Row) -> str:
    """In words, from the figures alone; a dash where no figure shows a failure."""
    if row is None:
        return "not measured yet"
    if "error" in row:
        return f"it failed: {row['error']}"
    failures = []
    if row["cut"]:
        failures.append(f"cut after {duration(row['cut'])} at step {row['step']} of {row['steps']}")
    if row["verdict"] in ("collapse", "not_finite"):
        failures.append(row["sentence"].rstrip("."))
    if row["verdict"] == "retain_budget":
        failures.append(f"the retain budget is used up at a forget loss of {row['forget_loss']:.2f}")
    if row["mentions"]:
        failures.append(f"still names Mary Poppins in {row['mentions']:.0f} of {row['asked']:.0f} answers")
    if row["parts"] == 0 and row["mentions"] == 0:
        failures.append("some answers explain the word from none of its parts")
    for name in ("holdout", "neighbour"):
        if row["changes"].get(name, 0) >= 1:
            failures.append(f"{name} loss is {1 + row['changes'][name]:.1f} times what it was")
    if not failures and row["forget_loss"] < row["forget_level"]:
        failures.append(f"stays below the level of {row['forget_level']:.2f}")
    return "; ".join(failures) or "–"


def facts_of(name: str, row: Row) -> dict[str, Any]:
    """The row for a program, with what the table says of it."""
    return {"name": name, **(row or {}), "control": is_control(name), "fails": where_it_fails(row)}


def figures_of(name: str, row: Row) -> dict[str, object]:
    """The row as it is published: its figures in the units of the table; the name in code letters."""
    label = f"*{PRESETS[name].label}*, the recipe `{name}`" if name in PRESETS else f"`{name}`"
    if row is None or "error" in row:
        return {"name": name, "label": label, "measured": row is not None, "fails": where_it_fails(row)}
    holdout, neighbour = (row["changes"].get(kind) for kind in ("holdout", "neighbour"))
    holdout = row["changes"].get("retain") if holdout is None else holdout
    return known(
        name=name,
        label=label,
        measured=True,
        end=end_of(row),
        forget_loss=row["forget_loss"],
        holdout_percent=None if holdout is None else 100 * holdout,
        neighbour_percent=None if neighbour is None else 100 * neighbour,
        distance=row["distance"],
        distance_before=row["distance_before"],
        mentions=row["mentions"],
        asked=row["asked"],
        parts=row["parts"],
        training_seconds=row["training_seconds"] + row["preparing_seconds"],
        seconds=row["seconds"],
        memory_mb=row["memory"] and row["memory"] / 1e6,
        fails=where_it_fails(row),
    )


def report(rows: Mapping[str, Row]) -> Report:
    """A table for each group."""
    groups: list[list[dict[str, object]]] = [[] for _ in GROUPS]
    for name, row in in_order(rows):
        groups[group_of(name)].append(figures_of(name, row))
    tables = tuple(
        Table(COLUMNS, tuple(group), caption) for group, caption in zip(groups, GROUPS, strict=True) if group
    )
    measured = [row for row in rows.values() if row and "error" not in row]
    if not measured:
        return Report(tables)
    level = statistics.median(row["forget_level"] for row in measured)
    return Report(
        tables,
        runs=f"{len(measured)} of {len(rows)} measured",
        took=duration(sum(row["seconds"] for row in measured)),
        cores=measured[-1]["cores"],
        versions={name: measured[-1]["libraries"][name] for name in LIBRARIES},
        date=today(),
        note=f"The forgotten level, the reference model's own forget loss, is {level:.2f} nats per token.",
    )
