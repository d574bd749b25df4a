"""What every reader makes, and where it says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property


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
    skim: Callable[[bytes], bytes] | None = None  # with `reduce`: quickly takes away whatever can stand inside a word

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
