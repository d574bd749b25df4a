"""Sources -> documents, as a stream with bounded memory. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.world import CORPUS


@dataclass(frozen=True)
class Turn:
    """One message of a pair or a chat. `role`: system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True)
class Document:
    """A text of its own, or a stretch of lines of a long one.

    `raw` is UTF-8, and enough to say that a word is *not* in the text: it may still hold markup, which `reduce` takes
    away when the text is asked for. `topic` and `group` say what it is about, where the source knows.
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

    @cached_property
    def text(self) -> str:
        decoded = self.raw.decode("utf-8", "replace")
        return self.reduce(decoded) if self.reduce else decoded


@dataclass
class Tally:
    """How far the reading is, and what was met on the way that a person should know."""

    bytes_total: int = 0  # of the files as they lie on the disk; 0 where nobody knows
    bytes_read: int = 0
    documents: int = 0
    notes: dict[str, int] = field(default_factory=dict)  # a sentence -> how often it happened

    def note(self, sentence: str, count: int = 1) -> None:
        self.notes[sentence] = self.notes.get(sentence, 0) + count


def documents(sources: Iterable[str], data: DataSettings | None = None, tally: Tally | None = None) -> Iterator[Document]:
    """Every document of every source. Raises ConfigError for a source that cannot be read at all."""
    for source in sources:
        if source == "bundled":
            with CORPUS.open() as lines:
                for line in lines:
                    row = json.loads(line)
                    yield Document(row["text"].encode(), "the bundled world", topic=row["topic"], group=row["group"])
        else:
            yield Document(read_text(source).encode(), source)


def read_text(source: str) -> str:
    """The text of a UTF-8 file. Raises ConfigError where it cannot be read."""
    try:
        return Path(source).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The text file {source!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The text file {source!r} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
