"""JSON: an array, one object (or one that holds an array), or a row a line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import decoded, utf8
from unlearn_core.corpus.reading.lines import Readable, TooLong, whole_lines
from unlearn_core.corpus.reading.rows import fields_of
from unlearn_core.corpus.reading.unpack import BLOCK, blocks
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

VALUES = {"string": "", "number": 0, "start_map": {}, "start_array": [{}], "boolean": True, "null": None}


class Json(Reader):
    """Rows of JSON: of an array, of an object that holds one, or one a line."""

    formats = {".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}

    def format_of(self, ending: str, head: bytes) -> str:
        if not (claimed := self.formats.get(ending, "")):
            return ""
        text = decoded(head).lstrip()
        lines = [line.strip() for line in text[: 1 << 18].splitlines()[:20] if line.strip()]
        if claimed == "JSON" and text.startswith("["):
            return "JSON"
        if claimed == "JSON" and text.startswith("{"):
            return "JSON lines" if len(lines) > 1 and _is_json(lines[0]) and lines[1].startswith("{") else "JSON"
        return "JSON lines" if any(map(_is_json, lines)) else ""  # sentences under a wrong name are plain text

    def rows(self, file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
        return _lines(file, kind, report) if kind.format == "JSON lines" else _values(file, kind, data, report)


def _is_json(line: str) -> bool:
    """Whether the line is a JSON object, array or string."""
    try:
        return isinstance(json.loads(line), dict | list | str)
    except (ValueError, RecursionError):
        return line.startswith(("{", "[")) and len(line) > 1 << 16  # too long to be complete in the head


def _lines(file: File, kind: Kind, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """One row a line. A line that is not JSON is skipped and counted."""
    wrong = number = first_wrong = 0
    decode = json.JSONDecoder().decode
    for block in whole_lines(file, kind, report):
        for line in block.split("\n"):
            number += 1
            if not line or line.isspace():
                continue
            try:
                row = decode(line)
            except (ValueError, RecursionError):
                wrong += 1
                first_wrong = first_wrong or number
                continue
            yield f"row {number}", row
        number -= block.endswith("\n")  # what follows the last line end is no line
    if wrong:
        report.note(f"{file.name}: lines that are not JSON, skipped; the first is line {first_wrong:,}", wrong)


def _values(file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON value."""
    import ijson

    number = 0
    readable = Readable(utf8(blocks(file, kind.packing, report), file.name, report))
    try:
        prefix = _rows_at(kind.head, file, data)
        if prefix is None:
            rows = (value for _, value in ijson.kvitems(readable, "", buf_size=BLOCK))
        else:
            rows = ijson.items(readable, prefix, buf_size=BLOCK, multiple_values=True)
        for number, row in enumerate(rows, 1):
            readable.given = 0
            yield f"row {number}", row
    except TooLong:
        too_long = "holds a value of more than 64 MiB; write it as JSON lines, one row a line"
        if not number:
            raise ConfigError(f"{file.source!r} {too_long}.") from None
        report.note(f"{file.name} {too_long}; what follows row {number:,} is left out")
    except ijson.JSONError as error:
        text = error.args[0] if error.args else ""
        reason = " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())[:80]
        if not number:
            raise ConfigError(
                f"{file.source!r} cannot be read as JSON ({reason}). Mend it or fetch it again."
            ) from None
        if file.path not in report.truncated:
            report.note(f"{file.name} is no JSON after row {number:,} ({reason}); what follows is left out")


def _rows_at(first: bytes, file: File, data: DataSettings) -> str | None:
    """ijson's prefix of the rows: `item` of an array, empty for an object, `key.item` of an object around an array.

    None: the values of the top object are the rows.
    """
    import ijson

    beginning = decoded(first).lstrip()
    if beginning.startswith("["):
        return "item"
    row: dict[str, Any] = {}
    array = key = ""
    try:
        for prefix, event, value in ijson.parse(io.BytesIO(beginning.encode("utf-8", "replace"))):
            if event == "map_key" and not prefix:
                key = value
            elif prefix == key and key not in row:
                row[key] = VALUES.get(event, "")
            elif prefix == f"{key}.item" and event in ("start_map", "string") and not array:
                array = key
    except ijson.JSONError:
        pass  # only the beginning is here
    try:
        fields = fields_of(row, file, data, guess=not array)
    except ConfigError:
        fields = None
    if array and (fields is None or fields.text == array):
        return f"{array}.item"
    return None if fields is None and row and all(value == {} for value in row.values()) else ""


READER = Json()
