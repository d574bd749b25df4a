"""Sources -> documents, as a stream with bounded memory. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.readers import files, hub, json_rows, mediawiki, rows, tables, text
from unlearn_core.readers.document import Document, Tally, Turn
from unlearn_core.readers.files import File
from unlearn_core.readers.rows import Where
from unlearn_core.world import CORPUS

__all__ = ["Document", "Tally", "Turn", "documents", "fingerprint_parts", "kind_of"]

BUNDLED, BUNDLED_NAME = "bundled", "the bundled world"


@dataclass(frozen=True)
class _Source:
    """A source and what was found behind it."""

    name: str  # as a person gave it
    files: tuple[File, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_files(self) -> bool:
        return self.name != BUNDLED and not self.name.startswith(hub.PREFIX)


def documents(
    sources: Iterable[str], data: DataSettings | None = None, tally: Tally | None = None, *, where: str = ""
) -> Iterator[Document]:
    """Every document of every source, in their order.

    `where`: only rows whose field has a value, as field=value. `tally` is kept up to date while documents are drawn.
    Raises ConfigError for a source that cannot be read at all; what is wrong inside of one is noted in the tally.
    """
    data = data or DataSettings()
    tally = tally if tally is not None else Tally()
    wanted = Where.parse(where)
    found = [_find(name) for name in sources]
    tally.bytes_total += sum(file.size for source in found for file in source.files)
    continues = False
    for source in found:
        met, noted = False, len(tally.notes)
        for document in _documents(source, data, wanted, tally):
            tally.documents += not continues
            continues, met = document.continues, True
            yield document
        if not (met or wanted):
            reasons = "; ".join(list(tally.notes)[noted:][:3])
            raise ConfigError(f"{source.name!r} holds no text{reasons and f' ({reasons})'}. Choose another source.")
    if wanted and not wanted.found:
        example = f"; {wanted.field} is, for example, {', '.join(wanted.met)}" if wanted.met else ""
        names = ", ".join(source.name for source in found)
        raise ConfigError(f"data.where is {where!r}, and no row of {names} has that value{example}.")


def fingerprint_parts(sources: Iterable[str]) -> list[tuple[str, int, int, int]]:
    """(path, bytes, time of the last change in nanoseconds, inode) of every file of the sources.

    A data set on the hub has its commit beside its name instead. Raises ConfigError as `documents` does.
    """
    parts = []
    for source in map(_find, sources):
        if source.name.startswith(hub.PREFIX):
            parts.append((f"{source.name}@{hub.revision(source.name)}", 0, 0, 0))
        for path in (path for file in source.files for path in files.parts(file)):
            facts = path.stat()
            parts.append((str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return parts


def kind_of(source: str) -> str:
    """What a source is, in words: "CSV, gzip", "12 files". Raises ConfigError where it cannot be read."""
    found = _find(source)
    if not found.has_files:
        return BUNDLED_NAME if source == BUNDLED else "Hugging Face data set on the hub"
    if len(found.files) > 1:
        return f"{len(found.files):,} files"
    file = found.files[0]
    return "Hugging Face data set on the disk" if file.dataset else str(files.recognize(file)[0])


def _find(name: str) -> _Source:
    if name == BUNDLED:
        return _Source(name, (File(CORPUS, BUNDLED_NAME, BUNDLED_NAME, True, CORPUS.stat().st_size),))
    if name.startswith(hub.PREFIX):
        hub.parse(name)
        return _Source(name)
    folder = files.expand(name)
    return _Source(name, folder.files, folder.notes)


def _documents(source: _Source, data: DataSettings, where: Where | None, tally: Tally) -> Iterator[Document]:
    for sentence, count in source.notes.items():
        tally.note(sentence, count)
    if source.name == BUNDLED:
        yield from _bundled(where, tally)
    elif not source.has_files:
        named = File(Path(source.name), source.name, source.name, True, 0)
        yield from rows.documents(hub.hub_rows(source.name, tally), named, data, where, tally)
    else:
        yield from _all_files(source, data, where, tally)


def _all_files(source: _Source, data: DataSettings, where: Where | None, tally: Tally) -> Iterator[Document]:
    odd = ""  # the first file without text; the others are counted with it
    for file in source.files:
        end = tally.bytes_read + file.size
        try:
            yield from _file(file, data, where, tally)
        except files.NotText:
            if file.alone:
                raise
            odd = odd or file.name
            tally.note(f"{source.name}: files that hold no text, such as {odd}, left out")
        except ConfigError as error:
            if file.alone:
                raise
            tally.note(f"Left out: {error}")
        tally.bytes_read = end


def _file(file: File, data: DataSettings, where: Where | None, tally: Tally) -> Iterator[Document]:
    if file.dataset:
        yield from rows.documents(hub.saved_rows(file, tally), file, data, where, tally)
        return
    kind, first = files.recognize(file)
    if kind.format in ("plain text", "MediaWiki dump"):
        if where:
            raise ConfigError(f"data.where is '{where}', but {file.source!r} ({kind.format}) has no rows with fields.")
        yield from (text if kind.format == "plain text" else mediawiki).read(file, kind, tally)
        return
    found: Iterator[tuple[str, Any]]
    if kind.format == "JSON lines":
        found = json_rows.lines(file, kind, tally)
    elif kind.format == "JSON":
        found = json_rows.values(file, kind, first, data, tally)
    elif kind.format == "Parquet":
        found = tables.parquet_rows(file, kind, tally)
    else:
        found = tables.csv_rows(file, kind, first, data, tally)
    yield from rows.documents(found, file, data, where, tally)


def _bundled(where: Where | None, tally: Tally) -> Iterator[Document]:
    start = tally.bytes_read
    with CORPUS.open("rb") as lines:
        for line in lines:
            tally.bytes_read += len(line)
            row = json.loads(line)
            if not where or where.admits(row.get(where.field, "")):
                yield Document(row["text"].encode(), BUNDLED_NAME, topic=row["topic"], group=row["group"])
    tally.bytes_read = start + CORPUS.stat().st_size
