"""Tables: CSV and TSV by the standard library, Parquet by pyarrow."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.readers.document import Tally
from unlearn_core.readers.files import File, Kind, decoded
from unlearn_core.readers.rows import ANSWERS, CHATS, QUESTIONS, TEXTS
from unlearn_core.readers.text import LONGEST_ROW, whole_lines
from unlearn_core.readers.unpack import blocks

KNOWN = {*TEXTS, *QUESTIONS, *ANSWERS, *CHATS, "id", "title", "label"}
BATCH = 128  # rows of Parquet at a time


def csv_rows(file: File, kind: Kind, first: bytes, data: DataSettings, tally: Tally) -> Iterator[tuple[str, Any]]:
    """Rows of a table with or without a header; the delimiter is found in the first lines."""
    csv.field_size_limit(LONGEST_ROW)
    lines = (line for block in whole_lines(file, kind, tally) for line in io.StringIO(block, newline=""))
    rows = csv.reader(lines, delimiter="\t" if kind.format == "TSV" else _delimiter(decoded(first)))
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
            tally.note(f"{file.name} has no header; its first line is read as a row")
        number += 1
        longer += len(row) > len(header)
        yield f"row {number}", dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))
    if longer:
        tally.note(f"{file.name}: rows with more cells than the header, whose last cells are left out", longer)
    if wrong:
        tally.note(f"{file.name}: rows that cannot be told apart, skipped", wrong)


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


def parquet_rows(file: File, kind: Kind, tally: Tally) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet file, a hundred at a time, without columns of pictures and other bytes."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    start, number = tally.bytes_read, 0
    with _seekable(file, kind, tally) as handle:
        try:
            table = parquet.ParquetFile(handle)
            columns = [field.name for field in table.schema_arrow if not _is_bytes(field.type)]
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
                tally.bytes_read = start + file.size * number // max(1, table.metadata.num_rows)
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            if not number:
                raise ConfigError(f"{file.source!r} cannot be read as Parquet ({reason}). Fetch it again.") from None
            tally.note(f"{file.name} is damaged after row {number:,} ({reason}); what follows is left out")
    tally.bytes_read = start + file.size


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):  # a picture or a sound with its path
        return any(_is_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _seekable(file: File, kind: Kind, tally: Tally) -> BinaryIO:
    """The file itself, or (compressed once more) unpacked on the disk: Parquet is read from its end."""
    if not kind.packing:
        return file.path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    before = tally.bytes_read
    for block in blocks(file, kind.packing, tally):
        unpacked.write(block)
    tally.bytes_read = before
    unpacked.seek(0)
    return unpacked
