"""What each method reached on the bundled world: docs/results/methods.json, from `cli.py bench methods`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "methods.json"


def in_words(name: str) -> str:
    """The figures of a method or recipe on one line; empty where it was not measured."""
    try:
        return lines(RESULTS, RESULTS.stat().st_mtime_ns).get(name, "")
    except OSError:
        return ""


@lru_cache(maxsize=2)
def lines(path: Path, changed: int) -> dict[str, str]:
    """Method or recipe -> its figures on one line, of a file of results as it was at time `changed`."""
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return {row["name"]: line(row, table["columns"]) for table in tables for row in table["rows"] if row["measured"]}


def line(row: dict[str, object], columns: list[dict[str, str]]) -> str:
    """`forget loss: 1.11 · holdout loss: +1.0 % · ...`, of the figures that the row has."""
    cells = {}
    for column in columns[1:]:
        try:
            cells[column["label"]] = column["cell"].format(**row)
        except KeyError:  # the row has no such figure
            continue
    return " · ".join(f"{label}: {cell}" for label, cell in cells.items() if cell != "–")
