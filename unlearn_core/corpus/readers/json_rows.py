"""JSON: an array, one object (or one that holds arrays), or a row a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import decoded, utf8
from unlearn_core.corpus.reading.json_text import DEEPEST, TooDeep, strict
from unlearn_core.corpus.reading.lines import Readable, TooLong, whole_lines
from unlearn_core.corpus.reading.rows import fields_of
from unlearn_core.corpus.reading.unpack import BLOCK, blocks
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

VALUES = {"string": "", "number": 0, "start_map": {}, "start_array": [{}], "boolean": True, "null": None}
# Where rows are: items of an array, one object, the values of an object, lists of objects (or of texts) in an object.
ARRAY, ROW, VALUES_OF_IT, ROWS_IN_IT, TEXTS_IN_IT = "array", "row", "values", "rows", "texts"
PROSE = 4  # words that make an item of a list of texts a text, where another list holds rows
WEAK = {"description", "abstract", "quote", "review", "context", "sentence"}  # of a list of rows, rather than a text
TOO_DEEP = f"is nested deeper than {DEEPEST} lists and objects"


class Json(Reader):
    """Rows of JSON: of an array, of an object that holds one, or one a line."""

    formats = {".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}

    def format_of(self, ending: str, head: bytes) -> str:
        if not (claimed := self.formats.get(ending, "")):
            return ""
        text = decoded(head).lstrip()
        lines = [line.strip() for line in re.split(r"[\r\n]+", text[: 1 << 18])[:20] if line.strip()]
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
    except RecursionError:
        return True
    except ValueError:
        return line.startswith(("{", "[")) and len(line) > 1 << 16  # too long to be complete in the head


def _lines(file: File, kind: Kind, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """One row a line. A line that is not JSON is skipped and counted."""
    wrong = number = first_wrong = deep = 0
    decode = json.JSONDecoder().decode
    for block in whole_lines(file, kind, report):
        for line in block.split("\n"):
            number += 1
            if not line or line.isspace():
                continue
            try:
                row = decode(line)
            except RecursionError:
                deep += 1
                continue
            except ValueError:
                wrong += 1
                first_wrong = first_wrong or number
                continue
            yield f"row {number}", row
        number -= block.endswith("\n")  # what follows the last line end is no line
    if deep:
        report.note(f"{file.name}: lines whose JSON is nested too deep, skipped", deep)
    if wrong:
        report.note(f"{file.name}: lines that are not JSON, skipped; the first is line {first_wrong:,}", wrong)


def _values(file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON value."""
    import ijson

    number = 0
    readable = Readable(strict(utf8(blocks(file, kind.packing, report), file.name, report)))
    try:
        shape = _shape_of(kind.head, file, data)
        rows: Iterator[Any]
        if shape == VALUES_OF_IT:
            rows = (value for _, value in ijson.kvitems(readable, "", buf_size=BLOCK, use_float=True))
        elif shape in (ROWS_IN_IT, TEXTS_IN_IT):
            rows = _of_every_list(readable, shape == ROWS_IN_IT, file, report)
        else:
            prefix = "item" if shape == ARRAY else ""
            rows = ijson.items(readable, prefix, buf_size=BLOCK, multiple_values=True, use_float=True)
        for number, row in enumerate(rows, 1):
            readable.given = 0
            yield f"row {number}", row
    except (TooLong, TooDeep) as error:
        long = "holds a value of more than 64 MiB; write it as JSON lines, one row a line"
        reason = long if isinstance(error, TooLong) else TOO_DEEP
        if not number:
            raise ConfigError(f"{file.source!r} {reason}.") from None
        report.note(f"{file.name} {reason}; what follows row {number:,} is left out")
    except ijson.JSONError as error:
        text = error.args[0] if error.args else ""
        reason = " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())[:80]
        if not number:
            raise ConfigError(
                f"{file.source!r} cannot be read as JSON ({reason}). Mend it or fetch it again."
            ) from None
        if file.path not in report.truncated:
            report.note(f"{file.name} is no JSON after row {number:,} ({reason}); what follows is left out")


def _of_every_list(readable: Readable, has_rows: bool, file: File, report: ReadReport) -> Iterator[Any]:
    """The rows of every list in an object. What is left out is noted: lists of words beside rows, and what is no list.

    A list of texts is one of words where its first item is short. `has_rows`: another list is known to hold objects.
    """
    import ijson

    key: str | None = None
    words, builder = 0, None
    for prefix, event, value in ijson.parse(readable, buf_size=BLOCK, use_float=True, multiple_values=True):
        if builder is not None:
            builder.event(event, value)
            if prefix == f"{key}.item" and event in ("end_map", "end_array"):
                yield builder.value
                builder = None
        elif event == "map_key" and not prefix:
            key, words = value, 0
        elif prefix == f"{key}.item" and event in ("start_map", "start_array"):
            has_rows = True
            builder = ijson.ObjectBuilder()
            builder.event(event, value)
        elif prefix == f"{key}.item" and event == "string":
            words = words or len(value.split(None, PROSE - 1)) or 1
            if has_rows and words < PROSE:
                report.note(f"{file.name}: words of the list {key!r}, which stands beside lists of rows, left out")
            else:
                yield value
        elif prefix == key and (event == "start_map" or (event == "string" and len(value.split(None, 3)) > 3)):
            report.note(f"{file.name}: {key!r} stands beside lists of rows and is not read")


def _shape_of(first: bytes, file: File, data: DataSettings) -> str:
    """Where the rows of a JSON value are: one of ARRAY, ROW, VALUES_OF_IT, ROWS_IN_IT and TEXTS_IN_IT.

    Raises TooDeep.
    """
    import ijson

    beginning = decoded(first).lstrip()
    if beginning.startswith("["):
        return ARRAY
    row: dict[str, Any] = {}
    lists: dict[str, str] = {}  # that hold something that can be read: key -> the kind of their first such item
    key = ""
    try:
        for prefix, event, value in ijson.parse(
            Readable(strict([beginning.encode("utf-8", "replace")])), buf_size=BLOCK
        ):
            if event == "map_key" and not prefix:
                key = value
            elif prefix == key and key not in row:
                row[key] = VALUES.get(event, "")
            elif prefix == f"{key}.item" and event in ("start_map", "string"):
                lists.setdefault(key, event)
    except ijson.JSONError:
        pass  # only the beginning is here
    try:
        fields = fields_of(row, file, data, guess=not lists)
    except ConfigError:
        fields = None
    rows = "start_map" in lists.values()
    weak = fields is not None and fields.text.lower() in WEAK and fields.text != data.text_field
    if lists and (fields is None or fields.text in lists or (rows and weak)):
        return ROWS_IN_IT if rows else TEXTS_IN_IT
    return VALUES_OF_IT if fields is None and row and all(value == {} for value in row.values()) else ROW


READER = Json()
