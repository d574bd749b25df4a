"""File, Document and ReadReport: the input and output of readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from unlearn_core.model.prompting import Turn


@dataclass(frozen=True)
class File:
    """A file, or the folder of a data set on the disk. `name`: as notes call it; `alone`: it is a source by itself."""

    path: Path
    source: str  # the path as it was given
    name: str
    alone: bool
    size: int  # bytes on the disk
    dataset: bool = False


@dataclass(frozen=True)
class Kind:
    """The format of a file by name, and how it is compressed."""

    format: str
    packing: str = ""  # gzip, bz2, xz or zstd
    head: bytes = field(default=b"", repr=False)  # the first MiB, decompressed


@dataclass(frozen=True)
class Document:
    """A text of its own, or a stretch of lines of a long one.

    `raw` is UTF-8. A word that is *not* in it is not in the text; it may hold markup, which `reduce` removes when the
    text is asked for. `topic` and `group` say what the text is about, where the source knows.
    """

    raw: bytes
    source: str = ""
    place: str = ""  # "page Mary Poppins", "row 7"; empty for plain text, which has lines
    first_line: int = 1  # of a stretch in its file
    continues: bool = False  # the next document carries on this one
    topic: str = ""
    group: str = ""
    turns: tuple[Turn, ...] = ()  # of a pair or a chat; the last is the answer, which alone has the loss
    reduce: Callable[[str], str] | None = None
    skim: Callable[[bytes], bytes] | None = None  # with `reduce`: removes, fast, all markup that may be inside a word

    @cached_property
    def text(self) -> str:
        decoded = self.raw.decode("utf-8", "replace")
        return self.reduce(decoded) if self.reduce else decoded


@dataclass
class ReadReport:
    """How far the reading is, and what a person should know about what was read."""

    bytes_total: int = 0  # of the files as they are on the disk; 0 where it is unknown
    bytes_read: int = 0
    documents: int = 0
    notes: dict[str, int] = field(default_factory=dict)  # sentence -> how often it applied
    truncated: set[Path] = field(default_factory=set)  # files that could not be read to their end

    def note(self, sentence: str, count: int = 1) -> None:
        self.notes[sentence] = self.notes.get(sentence, 0) + count

    def sentences(self) -> tuple[str, ...]:
        """The notes with their counts."""
        return tuple(note if count == 1 else f"{note} ({count:,} times)" for note, count in self.notes.items())
