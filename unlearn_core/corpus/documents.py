"""Sources -> documents, as a stream with bounded memory. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from unlearn_core.corpus import formats
from unlearn_core.corpus.reading import hub, rows, sources
from unlearn_core.corpus.reading.document import Document, File, ReadReport
from unlearn_core.corpus.reading.rows import Where
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings
from unlearn_core.world import CORPUS

BUNDLED, BUNDLED_NAME = "bundled", "the bundled world"
MODEL, ASKED, ASKED_NAME = "model", "model:", "the model's answers"  # asked for; a file of them; its name in lists
LOOKED_AT = 20  # files of a source whose first row is looked at for a pair


@dataclass(frozen=True)
class _Source:
    """A source, its files, and what was left out of a folder. A data set on the hub has no files."""

    name: str  # as it was given
    files: tuple[File, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


class FilePart(NamedTuple):
    """What identifies the content of a file, or of a data set on the hub."""

    name: str  # path, or source
    size: int = 0  # bytes
    changed: int = 0  # nanoseconds
    inode: int = 0
    commit: str | None = None  # of a data set on the hub; empty where the hub cannot be reached, None of a file


def documents(
    names: Iterable[str], data: DataSettings | None = None, report: ReadReport | None = None, *, where: str = ""
) -> Generator[Document, None, None]:
    """Every document of every source, in their order.

    `where`: only rows whose field has a value, as field=value. `report` is updated while documents are drawn.
    Raises ConfigError for a source that cannot be read at all; what is skipped inside of one is noted in the report.
    """
    data = data or DataSettings()
    report = report if report is not None else ReadReport()
    condition = Where.parse(where)
    opened = [_source(name) for name in names]
    report.bytes_total += sum(file.size for source in opened for file in source.files)
    continues = False
    for source in opened:
        empty, noted = True, len(report.notes)
        for document in _documents(source, data, condition, report):
            report.documents += not continues
            continues, empty = document.continues, False
            yield document
        if empty and not condition:
            reasons = "; ".join(list(report.notes)[noted:][:3])
            raise ConfigError(f"{source.name!r} holds no text{reasons and f' ({reasons})'}. Choose another source.")
    if condition and not condition.matched:
        others = ", ".join(condition.others)
        example = f"; {condition.field} is, for example, {others}" if others else ""
        named = ", ".join(source.name for source in opened)
        raise ConfigError(f"data.where is {where!r}, and no row of {named} has that value{example}.")


def pair_template(data: DataSettings) -> str:
    """The template that questions of a run are asked in: that of its pairs, where its forget texts are pairs; else "".

    They are where the first row of one of the first files is a question with its answer. It is read off the files,
    not off windows: to ask a question, texts need not be searched. A source that is gone has no say.
    """
    return data.pair_template if any(_begins_with_a_pair(name, data) for name in data.forget) else ""


def _begins_with_a_pair(name: str, data: DataSettings) -> bool:
    if name in (BUNDLED, MODEL):
        return False
    try:
        source = _source(name)
        files = [replace(source, files=(file,), notes={}) for file in source.files[:LOOKED_AT]] or [source]
    except (ConfigError, OSError):
        return False
    for file in files:
        with suppress(ConfigError, OSError):  # one that cannot be read is told of when the texts are
            first = next(_documents(file, data, None, ReadReport()), None)
            if first is not None and first.turns:
                return True
    return False


def fingerprint_parts(names: Iterable[str]) -> list[FilePart]:
    """What identifies the content of every file of the sources. Raises ConfigError as `documents` does."""
    parts = []
    for source in map(_source, names):
        if source.name.startswith(hub.PREFIX):
            parts.append(FilePart(source.name, commit=hub.revision(source.name)))
        for path in (path for file in source.files for path in sources.parts(file)):
            facts = path.stat()
            parts.append(FilePart(str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return parts


def _source(name: str) -> _Source:
    if name == BUNDLED:
        return _Source(name, (File(CORPUS, BUNDLED_NAME, BUNDLED_NAME, True, CORPUS.stat().st_size),))
    if name.startswith(hub.PREFIX):
        hub.parse(name)
        return _Source(name)
    if name.startswith(ASKED):
        path = Path(name.removeprefix(ASKED))
        return _Source(name, (File(path, ASKED_NAME, ASKED_NAME, True, path.stat().st_size),))
    folder = sources.expand(name)
    return _Source(name, folder.files, folder.notes)


def _documents(source: _Source, data: DataSettings, where: Where | None, report: ReadReport) -> Iterator[Document]:
    for sentence, count in source.notes.items():
        report.note(sentence, count)
    if source.name == BUNDLED:
        yield from _bundled(where, report)
    elif not source.files:
        file = File(Path(source.name), source.name, source.name, True, 0)
        yield from rows.documents(hub.hub_rows(source.name, report), file, data, where, report)
    else:
        yield from _all_files(source, data, where, report)


def _all_files(source: _Source, data: DataSettings, where: Where | None, report: ReadReport) -> Iterator[Document]:
    first = ""  # file without text; the others are counted with it
    for file in source.files:
        end = report.bytes_read + file.size
        try:
            yield from _file(file, data, where, report)
        except formats.NotText:
            if file.alone:
                raise
            first = first or file.name
            report.note(f"{source.name}: files that hold no text, such as {first}, left out")
        except ConfigError as error:
            if file.alone:
                raise
            report.note(f"Left out: {error}")
        report.bytes_read = end


def _file(file: File, data: DataSettings, where: Where | None, report: ReadReport) -> Iterator[Document]:
    if file.dataset:
        return rows.documents(hub.saved_rows(file, report), file, data, where, report)
    reader, kind = formats.recognize(file)
    if where and not reader.has_fields:
        raise ConfigError(f"data.where is '{where}', but {file.source!r} ({kind.format}) has no rows with fields.")
    return reader.read(file, kind, data, where, report)


def _bundled(where: Where | None, report: ReadReport) -> Iterator[Document]:
    start = report.bytes_read
    with CORPUS.open("rb") as lines:
        for line in lines:
            report.bytes_read += len(line)
            row = json.loads(line)
            if not where or where.admits(row.get(where.field, "")):
                yield Document(row["text"].encode(), BUNDLED_NAME, topic=row["topic"], group=row["group"])
    report.bytes_read = start + CORPUS.stat().st_size
