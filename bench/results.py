"""What was measured so far, a line of JSON each, found again by all that decides it; tables in documents."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from terminal.text import BadInput
from unlearn_core.provenance import library_versions
from unlearn_core.world import FOLDER


class Results:
    """The rows of one file by their keys. A row is there once it is on the disk: a kill loses the one under way."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[str, dict[str, Any]]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row  # a later line wins
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line that a kill has torn

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a finished row behind the others and forces it to the disk; returns it as it was written."""
        kept = {"key": key, **finite(row)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and not self._ends_a_line():
                file.write(b"\n")
            file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = kept
        return kept

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def finite(value: Any) -> Any:
    """The same value with None for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def key_of(**facts: Any) -> str:
    """What is measured, its settings and versions, in sixteen letters."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def versions(*files: Path) -> dict[str, str]:
    """Of the libraries that compute, of the bundled world, and of the files that a measurement stands for."""
    found = library_versions()
    for path in (FOLDER / "manifest.json", *files):
        found[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """A Markdown table; the columns `words` stand left, those of numbers right. A bar in a cell does not end it."""
    ruler = ["---" if place in words else "---:" for place in range(len(heads))]
    told = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells] for cells in (heads, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (told[0], ruler, *told[1:]))


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
