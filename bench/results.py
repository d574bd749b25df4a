"""What was measured so far: a file of JSON lines, one a row, keyed by everything that determines the measurement."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_core.settings.provenance import library_versions
from unlearn_core.world import FOLDER


class Results:
    """The rows of one file by their keys. A row is on the disk once it is added; a kill loses only the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[str, dict[str, Any]]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row  # a later line wins
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line cut short by a kill

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Appends a finished row and syncs it to the disk; returns it as it was written."""
        written = {"key": key, **finite(row)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and not self._ends_a_line():
                file.write(b"\n")
            file.write(json.dumps(written, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = written
        return written

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def finite(value: Any) -> Any:
    """The same value with None in place of NaN and infinities, which JSON cannot express."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def key_of(**facts: Any) -> str:
    """A hash (16 hex digits) of what is measured, its settings and versions."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def versions(*files: Path) -> dict[str, str]:
    """Versions of the libraries; hashes of the bundled world and of the source files that a measurement depends on."""
    known = library_versions()
    for path in (FOLDER / "manifest.json", *files):
        known[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return known
