"""CSV and TSV, by the standard library."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import decoded
from unlearn_core.corpus.reading.lines import LONGEST_ROW, whole_lines
from unlearn_core.corpus.reading.rows import ANSWERS, CHATS, QUESTIONS, TEXTS
from unlearn_core.settings.sections import DataSettings

KNOWN = {*TEXTS, *QUESTIONS, *ANSWERS, *CHATS, "id", "title", "label"}
SWALLOWED = 100  # lines in one cell from which on it is told; an open quotation mark takes all that follow
END = "\0end of the table\n"  # a row of its own behind the last one, unless a quotation mark is open there
NULL = "\\N"  # of MySQL and PostgreSQL
PROBED = 1 << 18  # characters of a table's beginning that tell how it is written
QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')
ESCAPED = re.compile(r'\\(["\\\n]|\r\n?)')


@dataclass(frozen=True)
class _Dialect:
    """How a table is written. `quoted`: cells may be in quotation marks; `escaped`: those within have a backslash."""

    delimiter: str
    quoted: bool = True
    escaped: bool = False

    def rows(self, lines: Iterable[str], strict: bool = False) -> Any:
        """csv's reader of the lines."""
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        lines = map(_doubled, lines) if self.escaped else lines
        return csv.reader(lines, delimiter=self.delimiter, quoting=quoting, strict=strict)


class CsvTable(Reader):
    """Rows of CSV and TSV; the first row is a header where it looks like one."""

    formats = {".csv": "CSV", ".tsv": "TSV", ".tab": "TSV"}

    def rows(self, file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
        """The rows of a table with or without a header; how it is written is told from its beginning."""
        dialect = _dialect(decoded(kind.head)[:PROBED], kind.format == "TSV")
        if dialect.escaped:
            report.note(
                f"{file.name}: quotation marks with a backslash, as some programs write them, are read as marks"
            )
        if not dialect.quoted:
            report.note(f"{file.name}: quotation marks are read as they stand; each line is a row")
        header: list[str] | None = None
        number = longer = shorter = nulls = 0
        for row in _cells(file, kind, dialect, report):
            if header is None:
                named = {data.text_field, data.question_field, data.answer_field} - {""}
                if _is_header(row, named):
                    header = row
                    continue
                header = [f"column {index}" for index in range(1, len(row) + 1)] if len(row) > 1 else ["text"]
                report.note(f"{file.name} has no header; its first line is read as a row")
            number += 1
            longer += len(row) > len(header)
            shorter += len(row) < len(header)
            nulls += row.count(NULL)
            row = ["" if cell == NULL else cell for cell in row]
            yield f"row {number}", dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))
        if longer:
            report.note(f"{file.name}: rows with more cells than the header, whose last cells are left out", longer)
        if shorter:
            report.note(
                f"{file.name}: rows with fewer cells than the header, whose last cells are read as empty", shorter
            )
        if nulls:
            report.note(f"{file.name}: cells with {NULL}, which data bases write for no value, read as empty", nulls)


def _cells(file: File, kind: Kind, dialect: _Dialect, report: ReadReport) -> Iterator[list[str]]:
    """The rows as lists of cells, without empty ones. What cannot be told apart, or is suspicious, is noted."""
    csv.field_size_limit(LONGEST_ROW)
    lines = (line for block in whole_lines(file, kind, report) for line in io.StringIO(block, newline=""))
    rows = dialect.rows(chain(lines, [END]))
    wrong, line, swallowing = 0, 0, ""
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            wrong += 1
            continue
        if row is None:
            break
        first, line = line + 1, rows.line_num
        if row and row[-1].endswith(END):
            row[-1] = row[-1].removesuffix(END)
            report.note(
                f"{file.name}: a quotation mark in line {first:,} is never closed; all that follows is one cell"
            )
        elif row == [END.rstrip()]:
            break
        elif line - first >= SWALLOWED:
            swallowing = swallowing or f"such as that of lines {first:,} to {line:,} (is a quotation mark left open?)"
            report.note(f"{file.name}: rows of more than {SWALLOWED} lines, {swallowing}")
        if row:
            yield row
    if wrong:
        report.note(f"{file.name}: rows that cannot be told apart, skipped", wrong)


def _dialect(beginning: str, tabs: bool) -> _Dialect:
    """How a table is written, told from its beginning.

    By the delimiter alone where its lines are whole rows so, and a cell begins with a quotation mark that ends nowhere;
    with a backslash before quotation marks where fewer rows are broken so than in the usual way.
    """
    plain = _Dialect("\t" if tabs else _delimiter(beginning))
    lines = io.StringIO(beginning, newline="").readlines()
    lines = (
        lines[:-1] if len(lines) > 1 and not beginning.endswith(("\n", "\r")) and len(beginning) >= PROBED else lines
    )
    bare, escaped = replace(plain, quoted=False), replace(plain, escaped=True)
    open_cells = tabs and any(not QUOTED_CELL.fullmatch(cell) for cell in _opening(lines, plain.delimiter))
    usual = _broken(plain, lines)
    by_lines = _broken(bare, lines) if open_cells else len(lines)
    with_backslash = _broken(escaped, lines) if '\\"' in beginning else len(lines)
    if with_backslash < usual and with_backslash <= by_lines:
        return escaped
    return bare if open_cells and by_lines <= usual else plain


def _opening(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """The cells that begin with a quotation mark, were every line a row."""
    return (cell for line in lines for cell in line.rstrip("\r\n").split(delimiter) if cell.startswith('"'))


def _broken(dialect: _Dialect, lines: Sequence[str]) -> int:
    """How many rows have not as many cells as the first, or hold text behind a closing quotation mark."""
    rows = dialect.rows(lines, strict=True)
    width, broken = 0, 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            broken += 1
            continue
        if row is None:
            return broken
        width = width or len(row)
        broken += bool(row) and len(row) != width


def _doubled(line: str) -> str:
    """A line whose quotation marks have a backslash, as CSV has them: doubled."""
    return ESCAPED.sub(lambda found: '""' if found[1] == '"' else found[1], line) if "\\" in line else line


def _delimiter(beginning: str) -> str:
    line = next((line for line in re.split(r"[\r\n]+", beginning) if line.strip()), "")
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
