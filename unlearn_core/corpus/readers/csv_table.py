"""CSV and TSV, by the standard library."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import decoded
from unlearn_core.corpus.reading.lines import LONGEST_ROW, whole_lines
from unlearn_core.corpus.reading.rows import ANSWERS, CHATS, QUESTIONS, TEXTS
from unlearn_core.settings.sections import DataSettings

KNOWN = {*TEXTS, *QUESTIONS, *ANSWERS, *CHATS, "id", "title", "label"}


class CsvTable(Reader):
    """Rows of CSV and TSV; the first row is a header where it looks like one."""

    formats = {".csv": "CSV", ".tsv": "TSV", ".tab": "TSV"}

    def rows(self, file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
        """The rows of a table with or without a header; the delimiter is guessed from the first line."""
        csv.field_size_limit(LONGEST_ROW)
        lines = (line for block in whole_lines(file, kind, report) for line in io.StringIO(block, newline=""))
        rows = csv.reader(lines, delimiter="\t" if kind.format == "TSV" else _delimiter(decoded(kind.head)))
        header: list[str] | None = None
        number = wrong = longer = 0
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                wrong += 1
                continue
            if row is None:
                break
            if not row:
                continue
            if header is None:
                named = {data.text_field, data.question_field, data.answer_field} - {""}
                if _is_header(row, named):
                    header = row
                    continue
                header = [f"column {index}" for index in range(1, len(row) + 1)] if len(row) > 1 else ["text"]
                report.note(f"{file.name} has no header; its first line is read as a row")
            number += 1
            longer += len(row) > len(header)
            yield f"row {number}", dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))
        if longer:
            report.note(f"{file.name}: rows with more cells than the header, whose last cells are left out", longer)
        if wrong:
            report.note(f"{file.name}: rows that cannot be told apart, skipped", wrong)


def _delimiter(beginning: str) -> str:
    line = next((line for line in beginning.splitlines() if line.strip()), "")
    names = re.sub(r'"[^"]*"', "", line)
    return max(",;\t|", key=lambda sign: (names.count(sign), sign == ","))


def _is_header(row: list[str], named: set[str]) -> bool:
    """Whether the first row holds names: known ones, or short and different ones without numbers or sentences."""
    cells = [cell.strip() for cell in row]
    if named & set(row) or any(cell.lower().replace(" ", "_") in KNOWN for cell in cells):
        return True
    short = all(cell and len(cell) <= 40 and len(cell.split()) <= 4 for cell in cells)
    words = all(re.match(r"[^\W\d]", cell) and cell[-1] not in ".!?" for cell in cells if cell)
    return short and words and len(set(cells)) == len(cells)


READER = CsvTable()
