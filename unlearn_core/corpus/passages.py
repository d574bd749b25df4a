"""Passages: texts with their occurrences of the target; how they are cut out of a stream of lines, and sampled."""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from unlearn_core.corpus.reading.document import Document
from unlearn_core.model.prompting import Turn


@dataclass(frozen=True)
class Occurrence:
    """The target at characters [start, end) of its passage. `id` is the same in every run on the same text."""

    id: str
    start: int
    end: int
    place: str


@dataclass(frozen=True)
class Passage:
    """A text with its occurrences of the target, its source and why it is in its set."""

    text: str
    source: str = ""
    place: str = ""
    why: str = ""
    topic: str = ""
    group: str = ""
    turns: tuple[Turn, ...] = ()
    whole: bool = True  # it ends where the text ends, not where it was cut
    document: int = 0  # number of the document in the scan; `first` and `last` are its lines
    first: int = 1
    last: int = 1
    occurrences: tuple[Occurrence, ...] = ()


@dataclass(frozen=True)
class ScanResult:
    """The texts of the four sets, as the scan drew them. `occurrences` counts also those in passages not drawn."""

    forget: tuple[Passage, ...]
    neighbour: tuple[Passage, ...]
    retain: tuple[Passage, ...]
    holdout: tuple[Passage, ...]
    occurrences: int
    documents: int
    bytes: int
    seconds: float = 0.0
    cached: bool = False
    notes: tuple[str, ...] = ()


class Reservoir:
    """A uniform sample of a stream of unknown length (Li 1994, algorithm L): skipped items are never made."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.size, self.rng = size, rng
        self.items: list[Any] = []
        self._bound, self._skip = 1.0, 0

    def offer(self, count: int, take: Callable[[int], Any]) -> None:
        """Offers `count` more items; `take(i)` makes the i-th of them, or None where it is not to be drawn from."""
        at = 0
        while at < count:
            if len(self.items) < self.size:
                if (item := take(at)) is not None:
                    self.items.append(item)
                    if len(self.items) == self.size:
                        self._tighten()
                at += 1
            elif self._skip >= count - at:
                self._skip -= count - at
                return
            else:
                at += self._skip
                if (item := take(at)) is not None:
                    self.items[self.rng.randrange(self.size)] = item
                    self._tighten()
                else:  # not an item of the stream, so the bound stays
                    self._leap()
                at += 1

    def _tighten(self) -> None:
        self._bound *= math.exp(math.log(1.0 - self.rng.random()) / self.size)
        self._leap()

    def _leap(self) -> None:
        bound = min(self._bound, 1.0 - 1e-12)
        self._skip = int(math.log(1.0 - self.rng.random()) / math.log1p(-bound))


# ------------------------------------------------------------------------------------------------- lines and pieces

Row = tuple[int, str]  # a line's number and the line


class Span(NamedTuple):
    """An occurrence in rows: from `column` of `row` to before `end` of the row `last`."""

    row: int
    column: int
    last: int
    end: int


class PassageBuilder:
    """Rows and occurrences of one document, which may come in several stretches -> passages of rows."""

    def __init__(self, context: int, reach: int) -> None:
        self.context, self.longest = context, 8 * reach
        self.clear()

    def clear(self) -> None:
        self.before: list[Row] = []  # the last rows of the stretch before
        self.rows: list[Row] = []  # of the passage that is open
        self.spans: list[Span] = []
        self.size = 0  # characters in it
        self.after = 0  # rows in it behind its last occurrence

    @property
    def open(self) -> bool:
        return bool(self.spans)

    def skip(self, document: Document) -> None:
        """Remembers the last rows of a stretch without an occurrence, as context of one that may follow."""
        count = self.context
        if not count:
            return
        self.number_from(document.first_line)
        wanted = 4 * count + 4
        lines = document.raw.rsplit(b"\n", wanted)
        lines = lines[1 if len(lines) > wanted else 0 :]
        last = [(at + 1 - len(lines), line) for at, line in enumerate(lines) if line.strip()][-count:]
        rows = [(at, line.rstrip(b"\r")[-4 * self.longest :].decode("utf-8", "ignore")) for at, line in last]
        self.before = [*self.before, *rows][-count:]

    def number_from(self, first: int) -> None:
        """Numbers the remembered rows, which were counted back from the next stretch; that begins with line `first`."""
        self.before = [(first + number if number <= 0 else number, line) for number, line in self.before]

    def feed(self, rows: list[Row], spans: list[Span], ends: bool) -> Iterator[tuple[list[Row], list[Span]]]:
        """The passages that are complete with these rows; `ends`: the document ends here."""
        context, at, floor = self.context, 0, -self.context
        last = -1 - self.after  # row of the last occurrence
        for span in spans:
            apart = span.row - last > 2 * context or (self.size > self.longest and span.row > last)
            if self.open and apart:
                self._extend(rows[at : span.row][: max(0, last + 1 + context - at)])
                floor = min(last + context, span.row - 1) + 1
                yield self._close(last, floor - 1)
            if not self.open:
                start = max(floor, span.row - context)  # below 0: in the stretch before
                lead = (self.before[start:] if start < 0 else []) + rows[max(start, 0) : span.row]
                self.rows, self.size = [], 0
                self._extend(lead)
                at = span.row
            elif at < span.row:
                self._extend(rows[at : span.row])
                at = span.row
            index = len(self.rows) - (at - span.row)
            self._extend(rows[at : span.last + 1])
            at, last = max(at, span.last + 1), max(last, span.last)
            self.spans.append(Span(index, span.column, index + span.last - span.row, span.end))
        if self.open:
            self._extend(rows[at : max(at, last + 1 + 2 * context)])
            self.after = min(len(rows), max(at, last + 1 + 2 * context)) - 1 - last
            if ends or self.after >= 2 * context:
                yield self._close(last, last + context)
        self.before = [*self.before, *rows][-context:] if context else []

    def _extend(self, rows: list[Row]) -> None:
        self.rows += rows
        self.size += sum(len(line) for _, line in rows)

    def _close(self, last: int, until: int) -> tuple[list[Row], list[Span]]:
        """The open passage with the rows up to `until`, counted like `last`, the row of its last occurrence."""
        behind = max(span.last for span in self.spans) + 1 + until - last
        passage = self.rows[:behind], self.spans
        self.rows, self.spans, self.size, self.after = [], [], 0, 0
        return passage


def reaches(text: str, marks: Sequence[Occurrence], reach: int) -> Iterator[tuple[int, int, list[Occurrence]]]:
    """(start, end, occurrences) of the passages of a text: one, unless it is longer than windows can hold."""
    if len(text) <= 4 * reach:
        yield 0, len(text), list(marks)
        return
    start, inside = 0, [marks[0]]
    start = max(0, marks[0].start - reach)
    for mark in marks[1:]:
        if mark.start - inside[-1].end > 2 * reach or mark.end - start > 4 * reach:
            end = min(inside[-1].end + reach, mark.start)
            yield start, end, inside
            start, inside = max(end, mark.start - reach), []
        inside.append(mark)
    yield start, min(len(text), inside[-1].end + reach), inside


def blocks(text: str, first: int, reach: int) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, text) of blocks of whole lines, blank ones dropped; a short text is one block."""
    rows: list[Row] = []
    size = 0
    for number, line in enumerate(text.splitlines(), first):
        if not line.strip():
            continue
        for at in range(0, len(line), 2 * reach):
            piece = line[at : at + 2 * reach]
            if rows and size + len(piece) > 2 * reach:
                yield rows[0][0], rows[-1][0], "\n".join(line for _, line in rows)
                rows, size = [], 0
            rows.append((number, piece))
            size += len(piece)
    if rows:
        yield rows[0][0], rows[-1][0], "\n".join(line for _, line in rows)


class Pieces:
    """A document in pieces of `lines` lines (0: in one piece), which are cut out on demand."""

    def __init__(self, document: Document, raw: bytes, lines: int) -> None:
        self._document, self._raw, self._lines = document, raw, lines
        self._is_end = np.frombuffer(raw if lines else b"", np.uint8) == 10
        ends = int(np.count_nonzero(self._is_end))
        self._total = ends + (0 if raw.endswith(b"\n") else 1)
        self.count = (-(-self._total // lines) if lines else 1) if raw else 0
        self._ends: np.ndarray | None = None

    @property
    def of(self) -> Document:
        if self._document.raw:
            self._document = replace(self._document, raw=b"")
        return self._document

    def raw(self, index: int) -> bytes:
        """The bytes of a piece; empty where there is no such piece."""
        if self.count == 1 and not index:
            return self._raw
        if index >= self.count:
            return b""
        if self._ends is None:
            self._ends = np.flatnonzero(self._is_end)
        first, last = index * self._lines, min((index + 1) * self._lines, self._total)
        start = int(self._ends[first - 1]) + 1 if first else 0
        end = int(self._ends[last - 1]) if last <= len(self._ends) else len(self._raw)
        return self._raw[start:end]

    def ends(self, index: int) -> bool:
        """Whether the document ends with this piece: it is not continued, and only blank lines follow."""
        return not self._document.continues and all(
            not self.raw(later).strip() for later in range(index + 1, self.count)
        )

    def lines(self, index: int) -> tuple[int, int]:
        """The numbers of a piece's first and last line."""
        if not self._lines:
            return self._document.first_line, self._document.first_line
        first = self._document.first_line + index * self._lines
        return first, min(first + self._lines, self._document.first_line + self._total) - 1


class Ranges:
    """The lines that some passages cover, by document."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        spans_of: dict[int, list[tuple[int, int]]] = {}
        for passage in passages:
            spans_of.setdefault(passage.document, []).append((passage.first, passage.last))
        self._covered: dict[int, tuple[list[int], list[int]]] = {}
        for document, spans in spans_of.items():
            spans.sort()
            ends = list(itertools.accumulate((last for _, last in spans), max))
            self._covered[document] = [first for first, _ in spans], ends

    def overlap(self, passage: Passage) -> bool:
        """Whether the passage has a line in common with one of them."""
        if passage.document not in self._covered:
            return False
        firsts, ends = self._covered[passage.document]
        before = bisect_right(firsts, passage.last)
        return before > 0 and ends[before - 1] >= passage.first
