"""JSON: an array, one object (or one that holds an array), or a row a line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.readers.document import Tally
from unlearn_core.readers.encodings import utf8
from unlearn_core.readers.files import File, Kind, decoded
from unlearn_core.readers.rows import fields_of
from unlearn_core.readers.text import Readable, TooLong, whole_lines
from unlearn_core.readers.unpack import BLOCK, blocks

VALUES = {"string": "", "number": 0, "start_map": {}, "start_array": [{}], "boolean": True, "null": None}


def lines(file: File, kind: Kind, tally: Tally) -> Iterator[tuple[str, Any]]:
    """One row a line. A line that is not JSON is skipped and counted."""
    wrong = number = first_wrong = 0
    decode = json.JSONDecoder().decode
    for block in whole_lines(file, kind, tally):
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
        tally.note(f"{file.name}: lines that are not JSON, skipped; the first is line {first_wrong:,}", wrong)


def values(file: File, kind: Kind, first: bytes, data: DataSettings, tally: Tally) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON value. `first`: the file's beginning, which shows where in it the rows are."""
    import ijson

    number = 0
    found = Readable(utf8(blocks(file, kind.packing, tally), file.name, tally))
    known = dict(tally.notes)
    try:
        prefix = rows_at(first, file, data)
        if prefix is None:
            rows = (value for _, value in ijson.kvitems(found, "", buf_size=BLOCK))
        else:
            rows = ijson.items(found, prefix, buf_size=BLOCK, multiple_values=True)
        for number, row in enumerate(rows, 1):
            found.given = 0
            yield f"row {number}", row
    except TooLong:
        too_long = "holds a value of more than 64 MiB; write it as JSON lines, one row a line"
        if not number:
            raise ConfigError(f"{file.source!r} {too_long}.") from None
        tally.note(f"{file.name} {too_long}; what follows row {number:,} is left out")
    except ijson.JSONError as error:
        broken = [note for note in tally.notes if note.startswith(f"{file.name} ") and note not in known]
        said = error.args[0] if error.args else ""
        reason = " ".join((said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)).split())[:80]
        if not number:
            raise ConfigError(
                f"{file.source!r} cannot be read as JSON ({reason}). Mend it or fetch it again."
            ) from None
        if not broken:
            tally.note(f"{file.name} is no JSON after row {number:,} ({reason}); what follows is left out")


def rows_at(first: bytes, file: File, data: DataSettings) -> str | None:
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
