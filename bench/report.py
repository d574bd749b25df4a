"""What a part of the bench has measured: one JSON file in docs/results, and the tables of a page in docs made from it.

A row holds figures, a column says how they are printed: its `cell` is a `str.format` template over the row. The pages
and docs print the same templates, so that no figure is formatted in two places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench import ROOT
from terminal.text import BadInput
from unlearn_core.settings.provenance import LIBRARIES

RESULTS = ROOT / "docs" / "results"
PAGES = {
    "methods": "docs/methods.md",
    "rails": "docs/rails.md",
    "as_run": "docs/as-it-was-run.md",
    "performance": "docs/performance.md",
    "gpu": "docs/performance.md",
    "scale": "docs/performance.md",
    "world": "docs/world.md",
    "words": "docs/words.md",
    "real": "docs/real.md",
    "faults": "docs/reliability.md",
}


@dataclass(frozen=True)
class Column:
    """A head, the template of a cell, and the text of a cell whose row lacks a figure of the template."""

    label: str
    cell: str
    left: bool = False  # words stand left, numbers right
    missing: str = "–"

    def of(self, row: Mapping[str, object]) -> str:
        """The cell of a row."""
        try:
            return self.cell.format(**row)
        except KeyError:
            return self.missing


@dataclass(frozen=True)
class Table:
    """Rows that are printed by the same columns, and the sentence above them."""

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, object], ...]
    caption: str = ""

    def markdown(self) -> str:
        """The table in Markdown. A bar in a cell does not end it."""
        heads = [column.label for column in self.columns]
        lines = [heads, *([column.of(row) for column in self.columns] for row in self.rows)]
        plain = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells] for cells in lines]
        ruler = ["---" if column.left else "---:" for column in self.columns]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (plain[0], ruler, *plain[1:]))
        return f"{self.caption}\n\n{table}" if self.caption else table


@dataclass(frozen=True)
class Report:
    """The tables of one part; `runs`, `took`, `cores`, `versions` and `date` say how they were measured."""

    tables: tuple[Table, ...]
    runs: str = ""
    took: str = ""
    cores: int | None = None
    versions: Mapping[str, str] | None = None
    date: str = ""
    note: str = ""

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report of a file in docs/results."""
        facts = json.loads(text)
        tables = [
            Table(tuple(Column(**column) for column in table["columns"]), tuple(table["rows"]), table["caption"])
            for table in facts.pop("tables")
        ]
        return cls(tables=tuple(tables), **facts)

    def to_json(self) -> str:
        facts = asdict(self)
        tables = facts.pop("tables")
        return json.dumps({**facts, "tables": tables}, ensure_ascii=False, indent=1) + "\n"

    def markdown(self) -> str:
        """All tables, and a line that says on what they were measured."""
        return "\n\n".join(filter(None, [*(table.markdown() for table in self.tables), self.conditions()]))

    def conditions(self) -> str:
        """Number of runs, time, cores, versions and day, as far as they are known; then the note."""
        libraries = [f"{name} {self.versions[name]}" for name in LIBRARIES if self.versions and name in self.versions]
        cores = f"on {self.cores} cores" if self.cores else ""
        took = f"in {self.took}" if self.took else ""
        run = ", ".join(filter(None, [" ".join(filter(None, [self.runs, took, cores])), *libraries]))
        facts = "; ".join(filter(None, [run, f"measured on {self.date}" if self.date else ""]))
        return " ".join(filter(None, [f"{facts[:1].upper()}{facts[1:]}." if facts else "", self.note]))


def known(**figures: object) -> dict[str, object]:
    """A row: the figures that there are."""
    return {name: value for name, value in figures.items() if value is not None}


def measured_on(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of rows that one bench measured, the facts of a report: the time of all, cores and versions, and today."""
    libraries = rows[0]["libraries"]
    return {
        "took": f"{sum(row['seconds'] for row in rows) / 60:.0f} min",
        "cores": rows[0]["cores"],
        "versions": {name: libraries[name] for name in LIBRARIES},
        "date": today(),
    }


def today() -> str:
    return date.today().isoformat()


def load(part: str) -> Report | None:
    """The published results of a part; None where it was never measured."""
    path = RESULTS / f"{part}.json"
    return Report.from_json(path.read_text(encoding="utf-8")) if path.exists() else None


def publish(part: str, report: Report) -> str:
    """Writes docs/results/<part>.json and the tables of its page; returns a sentence that names both."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{part}.json").write_text(report.to_json(), encoding="utf-8")
    put_into(ROOT / PAGES[part], f"bench {part}", tables_of(part))
    return f"The results are in docs/results/{part}.json, their tables in {PAGES[part]}."


def tables_of(part: str) -> str:
    """What stands between the two comments of a part on its page."""
    report = load(part)
    return report.markdown() if report else "**Not measured yet.**"


def put_into(path: Path, name: str, text: str) -> None:
    """Puts `text` between the two comments that name it in a document. Raises BadInput where it has none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise BadInput(f"{path.name} has no place for this table: it wants a line {begin} and, below it, a line {end}.")
    before, after = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    path.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def between(path: Path, name: str) -> str:
    """What stands between these comments; empty where they are not there."""
    page = path.read_text(encoding="utf-8")
    return page.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip()
