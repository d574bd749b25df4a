"""One pass over the corpus: every occurrence with its context, and texts drawn at random to keep. Knows no tokens.

A long text is looked through as bytes; only a stretch that may hold the target, and lines that are drawn, become text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import regex

from unlearn_core import neighbours
from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.corpus import Document, Tally, Turn, documents, fingerprint_parts
from unlearn_core.targets import Target

FORMAT = 1  # of what is cached; another number makes old files unread
HOLDOUT_PERCENT = 15
PASSAGES = 10_000  # around a word that is everywhere, more are not kept
POOL = 4_000  # texts drawn beyond those asked for: what neighbours are chosen from, and what stands in for dropped ones
SAMPLE_BYTES = 4 << 20  # of the corpus, looked through for near spellings
TELLING_LINE = 40  # characters; a shorter line may well stand in two texts
PAIRED = ((b"{{", b"}}"), (b"{|", b"|}"), (b"[[", b"]]"))  # of markup
REPORT_SECONDS = 0.2
CONTENTS = "contents.json"
Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    bytes_read: int
    bytes_total: int  # 0 where nobody knows
    hits: int
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class Occurrence:
    """The target at characters [start, end) of its passage. `id` is the same in every run on the same text."""

    id: str
    start: int
    end: int
    place: str


@dataclass(frozen=True)
class Passage:
    """A text with what stands in it, where it is from and why it was chosen."""

    text: str
    source: str = ""
    place: str = ""
    why: str = ""
    topic: str = ""
    group: str = ""
    turns: tuple[Turn, ...] = ()
    whole: bool = True  # it ends where the text ends, not where it was cut
    document: int = 0  # of the pass: which document, and which of its lines
    first: int = 1
    last: int = 1
    occurrences: tuple[Occurrence, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a pass found. `occurrences` counts every one, also those whose passages are not kept."""

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


class Draft(NamedTuple):
    """A text to keep as it was drawn: bytes, until it is known that it stays."""

    order: int
    document: int
    first: int
    last: int
    raw: bytes
    of: Document  # without its bytes
    whole: bool


class Reservoir:
    """A uniform sample of a stream of unknown length (Li 1994, algorithm L): what is skipped is never looked at."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.size, self.rng = size, rng
        self.kept: list[Any] = []
        self._bound, self._skip = 1.0, 0

    def offer(self, count: int, take: Callable[[int], Any]) -> None:
        """`count` more; `take(i)` makes the i-th of them, or None where it is not one of those to draw from."""
        at = 0
        while at < count:
            if len(self.kept) < self.size:
                if (item := take(at)) is not None:
                    self.kept.append(item)
                    if len(self.kept) == self.size:
                        self._tighten()
                at += 1
            elif self._skip >= count - at:
                self._skip -= count - at
                return
            else:
                at += self._skip
                if (item := take(at)) is not None:
                    self.kept[self.rng.randrange(self.size)] = item
                    self._tighten()
                else:  # it takes no part, so the bound stays
                    self._leap()
                at += 1

    def _tighten(self) -> None:
        self._bound *= math.exp(math.log(1.0 - self.rng.random()) / self.size)
        self._leap()

    def _leap(self) -> None:
        bound = min(self._bound, 1.0 - 1e-12)
        self._skip = int(math.log(1.0 - self.rng.random()) / math.log1p(-bound))


# ---------------------------------------------------------------------------------------------------------- the pass


def seek(
    data: DataSettings, seed: int, report: Report = lambda progress: None, cache: Path | None = None
) -> tuple[Found, Target]:
    """What there is to forget and to keep. Raises ConfigError where the target does not occur or nothing is left."""
    target = Target(data)
    began = time.perf_counter()
    kept = _Cache(cache, data, seed) if cache is not None else None
    if kept and (found := kept.read()):
        return replace(found, cached=True, seconds=time.perf_counter() - began), target
    sweep = _Sweep(data, target, seed, report)
    try:
        sweep.run()
        found = replace(sweep.result(), seconds=time.perf_counter() - began)
        if kept:
            kept.write(found)
    finally:
        if kept:
            kept.close()
    return found, target


class _Sweep:
    """The state of one pass."""

    def __init__(self, data: DataSettings, target: Target, seed: int, report: Report) -> None:
        self.data, self.target, self.report = data, target, report
        self.rng = random.Random(f"seek {seed}")
        self.tally = Tally()
        self.reach = 16 * data.window_tokens  # characters; more of a text fills no window
        self.drawn = Reservoir(data.retain_chunks + data.holdout_chunks + POOL, self.rng)
        self.passages = Reservoir(PASSAGES, self.rng)
        self.around: dict[tuple[int, int], Draft] = {}  # the texts beside the occurrences
        self.forgotten: set[int] = set()  # hashes of texts that shall not be kept, wherever they stand
        self.sample: list[bytes] = []
        self.sampled = self.hits = self.document = self.order = self.looked = self.met = 0
        self.total = 0  # bytes of all that will be read
        self.continued = False
        self.part, self.last_line = 0, 0
        self.ordinal: dict[str, int] = {}
        self.seam = _Seam(data.context_lines, self.reach)
        self.began = time.perf_counter()
        self.told = self.began

    def run(self) -> None:
        """Reads every source once, but those of `data.where`, whose other rows are read for themselves."""
        data = self.data
        forget, retain = list(dict.fromkeys(data.forget)), list(dict.fromkeys(data.retain))
        only = [source for source in retain if source not in forget]
        passes: list[tuple[list[str], bool, bool, dict[str, str]]]
        if data.where:
            passes = [(forget, True, False, {"where": data.where}), (retain, False, True, {})]
        elif data.everything:
            passes = [(forget, True, False, {}), (only, False, True, {})]
        else:
            both = [source for source in forget if source in retain]
            alone = [source for source in forget if source not in retain]
            passes = [(alone, True, False, {}), (both, True, True, {}), (only, False, True, {})]
        self.total = sum(part[1] for sources, *_ in passes for part in fingerprint_parts(sources))
        for sources, looked, kept, more in passes:
            if sources:
                self._read(sources, looked, kept, more)

    def _read(self, sources: Sequence[str], forget: bool, retain: bool, more: dict[str, str]) -> None:
        with closing(_generator(documents(sources, self.data, self.tally, **more))) as found:
            for document in found:
                self._meet(document, forget, retain)
                if time.perf_counter() - self.told >= REPORT_SECONDS:
                    self._tell()
        self._tell()

    def _tell(self) -> None:
        self.told = time.perf_counter()
        seconds, read, total = self.told - self.began, self.tally.bytes_read, max(self.total, self.tally.bytes_total)
        left = seconds * (total - read) / read if 0 < read <= total else None
        self.report(Progress(read, total, self.hits, seconds, left))

    def _meet(self, document: Document, forget: bool, retain: bool) -> None:
        begins = not self.continued
        if begins:
            self.document += 1
            self.ordinal[document.source] = self.ordinal.get(document.source, 0) + 1
            self.part, self.last_line = 0, 0
        self.part = self.part + 1 if document.first_line == self.last_line else 0
        self.last_line, self.continued = document.first_line, document.continues
        clean = False
        if forget:
            self.looked += begins
            self._sample(document.raw)
            clean = not (self._everything(document) if self.data.everything else self._forget(document))
            if self.data.everything or self.data.where:
                self.forgotten.add(hash(document.raw))
        if retain:
            self._keep(document, clean)

    def _sample(self, raw: bytes) -> None:
        if self.sampled < SAMPLE_BYTES and not self.hits:
            self.sample.append(raw[: 1 << 16])
            self.sampled += len(self.sample[-1])

    # ------------------------------------------------------------------------------------------------ to forget

    def _forget(self, document: Document) -> bool:
        """Whether the target is in the document; its passages are kept."""
        text, hits = "", []
        if self.target.may_be_in(document.raw, document.reduce is not None):
            text = self.target.normal(document.text)
            if "\r" in text:
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            hits = self.target.find(text)
        self.hits += len(hits)
        if document.turns:
            if hits:
                found = [(span, document.place or f"line {document.first_line}") for span in hits]
                marks = tuple(
                    Occurrence(self._id(document, 0, start), start, end, place) for (start, end), place in found
                )
                self._add(self._passage_of(document, text, document.first_line, document.first_line, marks))
            return bool(hits)
        if hits or self.seam.open:
            if not text:
                text = self.target.normal(document.text).replace("\r\n", "\n").replace("\r", "\n")
            rows, spans = self._rows(text, hits, document.first_line)
            self.seam.number_from(document.first_line)
            self._emit(document, self.seam.feed(rows, spans, not document.continues))
        elif document.continues:
            self.seam.pass_by(document)
        if not document.continues:
            self.seam.clear()
        if hits and self.data.neighbours and not document.topic:
            self._look_around(document, hits, text)
        return bool(hits)

    @staticmethod
    def _rows(text: str, hits: Sequence[tuple[int, int]], first: int) -> tuple[list[Row], list[Span]]:
        """The lines that are not blank, and the occurrences in them."""
        rows, starts, at = [], [], 0
        for number, line in enumerate(text.split("\n"), first):
            if line.strip():
                rows.append((number, line))
                starts.append(at)
            at += len(line) + 1
        spans = []
        for start, end in hits:
            a, b = bisect_right(starts, start) - 1, bisect_right(starts, end - 1) - 1
            if b >= 0:
                a = max(a, 0)
                column = min(max(0, start - starts[a]), len(rows[a][1]))
                spans.append(Span(a, column, b, min(end - starts[b], len(rows[b][1]))))
        return rows, spans

    def _emit(self, document: Document, found: Iterable[tuple[list[Row], list[Span]]]) -> None:
        for rows, spans in found:
            if sum(len(line) + 1 for _, line in rows) <= 4 * self.reach:  # one passage, made only if it is drawn
                self.met += 1
                self.passages.offer(1, lambda _: (self.met, self._built(document, rows, spans)[0]))  # noqa: B023
            else:
                for passage in self._built(document, rows, spans):
                    self._add(passage)

    def _built(self, document: Document, rows: list[Row], spans: list[Span]) -> list[Passage]:
        """Rows as a passage of text; what is longer than any window is cut between occurrences."""
        starts = [0, *itertools.accumulate(len(line) + 1 for _, line in rows)]
        text = "\n".join(line for _, line in rows)
        marks = [
            Occurrence(
                self._id(document, rows[span.row][0], span.column),
                starts[span.row] + span.column,
                starts[span.last] + span.end,
                self._place(document, rows[span.row][0]),
            )
            for span in spans
        ]
        made = []
        for start, end, inside in _reaches(text, marks, self.reach):
            first, last = (bisect_right(starts, at) - 1 for at in (start, max(start, end - 1)))
            moved = tuple(replace(mark, start=mark.start - start, end=mark.end - start) for mark in inside)
            lines = rows[first][0], rows[min(last, len(rows) - 1)][0]
            made.append(self._passage_of(document, text[start:end], *lines, moved))
        return made

    def _passage_of(
        self, document: Document, text: str, first: int, last: int, marks: tuple[Occurrence, ...], whole: bool = True
    ) -> Passage:
        place = document.place or document.topic or (f"line {first}" if first == last else f"lines {first} to {last}")
        return Passage(
            text, document.source, place, "", document.topic, document.group, document.turns, whole, self.document,
            first, last, marks,
        )  # fmt: skip

    def _add(self, passage: Passage) -> None:
        self.met += 1
        self.passages.offer(1, lambda _: (self.met, passage))

    def _everything(self, document: Document) -> bool:
        """The document is to be forgotten: a passage of its own, or several of a long one."""
        text = self.target.normal(document.text)
        if document.turns:
            found = [(document.first_line, document.first_line, text)] if text.strip() else []
        else:
            found = list(_blocks(text, document.first_line, self.reach))
        for first, last, block in found:
            self.hits += 1
            place = self._place(document, first)
            whole = last == found[-1][1] and not document.continues
            mark = Occurrence(self._id(document, first, 0), 0, 0, place)
            self._add(self._passage_of(document, block, first, last, (mark,), whole))
            self.forgotten.add(hash(block.encode()))
        return True

    def _place(self, document: Document, line: int) -> str:
        return document.place or document.topic or f"line {line}"

    def _id(self, document: Document, line: int, column: int) -> str:
        within = document.place or self.ordinal[document.source]
        told = f"{document.source}\0{within}\0{self.part}\0{line}\0{column}"
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def _look_around(self, document: Document, hits: Sequence[tuple[int, int]], text: str) -> None:
        """Keeps the texts beside the occurrences, as candidates for the neighbours."""
        if len(self.around) > 10 * self.data.neighbour_chunks:
            return
        if document.reduce:
            document = replace(document, raw=text.encode(), reduce=None)
        pieces = _Pieces(document, document.raw, self.data.retain_lines)
        lines = {text.count("\n", 0, hits[0][0])} | {text.count("\n", 0, hits[-1][0])}
        for line in sorted(lines):
            middle = line // self.data.retain_lines
            for index in range(max(0, middle - 2), min(pieces.count, middle + 3)):
                draft = self._draft(document, pieces, index, clean=False)
                if draft:
                    self.around.setdefault((draft.document, draft.first), draft)

    # -------------------------------------------------------------------------------------------------- to keep

    def _keep(self, document: Document, clean: bool) -> None:
        """Offers the texts of a document to the draw. `clean`: it is known that the target is not in it."""
        if self.forgotten and hash(document.raw) in self.forgotten:
            self.tally.note("texts to keep that are also to be forgotten, dropped")
            return
        if document.reduce and not clean and "text" in document.__dict__:  # reduced already, since the target is in it
            document = replace(document, raw=document.text.encode(), reduce=None)
        pieces = _Pieces(document, document.raw, 0 if document.turns else self.data.retain_lines)
        self.drawn.offer(pieces.count, lambda index: self._draft(document, pieces, index, clean))

    def _draft(self, document: Document, pieces: _Pieces, index: int, clean: bool) -> Draft | None:
        raw = pieces.raw(index)
        if not raw or raw.isspace():
            return None
        markup = pieces.of.reduce is not None
        if markup and not all(raw.count(begin) == raw.count(end) for begin, end in PAIRED):
            return None  # it is cut out of a table or a template
        if not clean and not self.data.everything and self.target.may_be_in(raw, markup):
            text = raw.decode("utf-8", "replace")
            if self.target.find(self.target.normal(pieces.of.reduce(text) if pieces.of.reduce else text)):
                return None
        self.order += 1
        first, last = pieces.lines(index)
        short = raw[: 4 * self.reach] if len(raw) > 4 * self.reach else raw
        return Draft(self.order, self.document, first, last, short, pieces.of, len(short) == len(raw))

    # ------------------------------------------------------------------------------------------------- the end

    def result(self) -> Found:
        if not self.hits:
            raise self.never()
        forget = [passage for _, passage in sorted(self.passages.kept, key=lambda pair: pair[0])]
        if self.met > len(forget):
            self.tally.note(f"{len(forget):,} of {self.met:,} passages with the target, drawn at random")
        if self.data.everything:  # what a person has put together is not thinned out
            unique = list({(passage.text, passage.turns): passage for passage in forget}.values())
            note = "texts to forget that are there twice, dropped"
        else:
            unique = neighbours.unlike(forget)
            note = "passages to forget that say almost the same as another, dropped"
        if len(unique) < len(forget):
            self.tally.note(note, len(forget) - len(unique))
        return self._sort_out(forget, unique)

    def _sort_out(self, every: Sequence[Passage], forget: Sequence[Passage]) -> Found:
        """The drawn texts, without those that are forgotten, as neighbours, holdout and retain set."""
        data = self.data
        taken = Ranges(every)
        telling = {line for p in every if not p.topic for line in p.text.split("\n") if len(line) >= TELLING_LINE}
        texts = {passage.text for passage in every}

        def fits(passage: Passage) -> bool:
            if passage.text in texts or not passage.text or taken.overlap(passage):
                return False
            if telling and not passage.turns and not telling.isdisjoint(passage.text.split("\n")):
                return False
            texts.add(passage.text)
            return True

        drafts = sorted(self.drawn.kept, key=lambda draft: draft.order)
        drawn = [p for p in map(self._passage, drafts) if fits(p)]
        self.rng.shuffle(drawn)
        near: list[Passage] = []
        if data.neighbours:
            topics, groups = {p.topic for p in every} - {""}, {p.group for p in every} - {""}
            near = [replace(p, why="on the same topic") for p in drawn if p.topic in topics or p.group in groups]
            drawn = [p for p in drawn if not (p.topic in topics or p.group in groups)]
        different = neighbours.unlike(drawn)
        if len(different) < len(drawn):
            self.tally.note("texts to keep that say almost the same as another, dropped", len(drawn) - len(different))
        holdout, rest = self._hold_out(different)
        if data.neighbours and any(not p.topic for p in forget):
            beside = [p for p in map(self._passage, self.around.values()) if fits(p)]
            held = Ranges(holdout)
            beside = [passage for passage in beside if not held.overlap(passage)]
            found = neighbours.nearest([p for p in forget if not p.topic], rest, beside, data)
            chosen = {id(passage) for passage, _ in found}
            near += [replace(passage, why=why) for passage, why in found]
            beside_taken = Ranges([passage for passage, _ in found])
            rest = [p for p in rest if id(p) not in chosen and not beside_taken.overlap(p)]
        if not rest:  # a corpus of so few texts that all of them fell to the other sets
            rest, holdout = holdout, []
        if not rest:
            raise ConfigError(
                f"Nothing is left to keep: {_named(data.retain)} has no text "
                + ("that is not to be forgotten." if data.everything else f"without “{_short(data.target)}”.")
            )
        retain = [replace(p, why=f"drawn at random: {p.place}") for p in rest[: data.retain_chunks]]
        holdout = [replace(p, why=f"drawn at random, never trained on: {p.place}") for p in holdout]
        kept = (tuple(sorted(each, key=_where)) for each in (near, retain, holdout))
        counts = (self.hits, self.document, self.tally.bytes_read)
        return Found(tuple(forget), next(kept), next(kept), next(kept), *counts, notes=_notes(self.tally))

    def _hold_out(self, drawn: list[Passage]) -> tuple[list[Passage], list[Passage]]:
        """(holdout, the rest). Where there is less than was asked for, a text's own hash decides."""
        count = self.data.holdout_chunks
        if len(drawn) >= self.data.retain_chunks + count:
            return drawn[:count], drawn[count:]
        held = [p for p in drawn if hashlib.sha256(p.text.encode()).digest()[0] * 100 < HOLDOUT_PERCENT * 256][:count]
        chosen = {id(passage) for passage in held}
        return held, [passage for passage in drawn if id(passage) not in chosen]

    def _passage(self, draft: Draft) -> Passage:
        of = draft.of
        decoded = draft.raw.decode("utf-8", "ignore")
        text = self.target.normal(of.reduce(decoded) if of.reduce else decoded)
        if not of.turns:
            text = "\n".join(line for line in text.splitlines() if line.strip())
        lines = f"line {draft.first}" if draft.first == draft.last else f"lines {draft.first} to {draft.last}"
        place = of.place or of.topic or lines
        return Passage(
            text, of.source, place, "", of.topic, of.group, of.turns, draft.whole, draft.document, draft.first,
            draft.last,
        )  # fmt: skip

    def never(self) -> ConfigError:
        """The target does not occur: where was looked, and what stands there that is spelled like it."""
        if self.data.everything:
            which = f" with {self.data.where}" if self.data.where else ""
            return ConfigError(f"data.forget is {_named(self.data.forget)}; it has no texts{which} to forget.")
        text = b"\n".join(self.sample).decode("utf-8", "ignore")
        return never_occurs(self.data, itertools.islice(regex.finditer(r"\w{3,}", text), 2_000_000), self.looked)


def never_occurs(data: DataSettings, words: Iterable[Any], looked: int) -> ConfigError:
    """The sentence for a target that is not there, with near spellings out of `words` (matches)."""
    target = data.target.lower()
    known: dict[str, int] = {}
    for match in words:
        word = match.group().lower()
        if abs(len(word) - len(target)) <= max(2, len(target) // 3):
            known[word] = known.get(word, 0) + 1
    often = sorted(known, key=lambda word: (-known[word], word))[:10_000]
    near = get_close_matches(target, often, 3, 0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose a word that stands there."
    return ConfigError(f"“{_short(data.target)}” never occurs in {_named(data.forget)} ({looked:,} texts). {hint}")


def _named(sources: Iterable[str]) -> str:
    return ", ".join("the bundled world" if source == "bundled" else source for source in sources)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _notes(tally: Tally) -> tuple[str, ...]:
    return tuple(note if count == 1 else f"{note} ({count:,} times)" for note, count in tally.notes.items())


def _where(passage: Passage) -> tuple[int, int]:
    return passage.document, passage.first


def _generator(found: Iterable[Document]) -> Generator[Document, None, None]:
    yield from found


# ------------------------------------------------------------------------------------------------- lines and pieces

Row = tuple[int, str]  # a line's number and the line


class Span(NamedTuple):
    """An occurrence in rows: from `column` of `row` to before `end` of the row `last`."""

    row: int
    column: int
    last: int
    end: int


class _Seam:
    """Rows and occurrences of one document, which may come in stretches -> passages of rows."""

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

    def pass_by(self, document: Document) -> None:
        """Remembers the last rows of a stretch without an occurrence."""
        count = self.context
        if not count:
            return
        self.number_from(document.first_line)
        wanted = 4 * count + 4
        lines = document.raw.rsplit(b"\n", wanted)
        lines = lines[1 if len(lines) > wanted else 0 :]
        kept = [(at + 1 - len(lines), line) for at, line in enumerate(lines) if line.strip()][-count:]
        found = [(at, line.rstrip(b"\r")[-4 * self.longest :].decode("utf-8", "ignore")) for at, line in kept]
        self.before = [*self.before, *found][-count:]

    def number_from(self, first: int) -> None:
        """Lines that were counted back from the stretch after theirs, which begins with line `first`."""
        self.before = [(first + number if number <= 0 else number, line) for number, line in self.before]

    def feed(self, rows: list[Row], spans: list[Span], ends: bool) -> Iterator[tuple[list[Row], list[Span]]]:
        """The passages that are complete with these rows; `ends`: the document has no more."""
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
        done = self.rows[:behind], self.spans
        self.rows, self.spans, self.size, self.after = [], [], 0, 0
        return done


def _reaches(text: str, marks: Sequence[Occurrence], reach: int) -> Iterator[tuple[int, int, list[Occurrence]]]:
    """(start, end, occurrences) of the passages of a text: itself, unless it is longer than what windows can hold."""
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


def _blocks(text: str, first: int, reach: int) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, text) of blocks of whole lines, blank ones dropped; a short text is one block."""
    kept: list[Row] = []
    size = 0
    for number, line in enumerate(text.splitlines(), first):
        if not line.strip():
            continue
        for at in range(0, len(line), 2 * reach):
            piece = line[at : at + 2 * reach]
            if kept and size + len(piece) > 2 * reach:
                yield kept[0][0], kept[-1][0], "\n".join(line for _, line in kept)
                kept, size = [], 0
            kept.append((number, piece))
            size += len(piece)
    if kept:
        yield kept[0][0], kept[-1][0], "\n".join(line for _, line in kept)


class _Pieces:
    """A document in pieces of so many lines (0: all), which are cut out only when asked for."""

    def __init__(self, document: Document, raw: bytes, lines: int) -> None:
        import numpy as np

        self._document, self._raw, self._lines = document, raw, lines
        self._view: Any = None
        if lines:
            self._view = np.frombuffer(raw, np.uint8) == 10
        ends = int(np.count_nonzero(self._view)) if lines else 0
        self._total = ends + (0 if raw.endswith(b"\n") else 1)
        self.count = (-(-self._total // lines) if lines else 1) if raw else 0
        self._ends: Any = None

    @property
    def of(self) -> Document:
        if self._document.raw:
            self._document = replace(self._document, raw=b"")
        return self._document

    def raw(self, index: int) -> bytes:
        """Its bytes; none where there is no such piece."""
        if self.count == 1 and not index:
            return self._raw
        if index >= self.count:
            return b""
        if self._ends is None:
            import numpy as np

            self._ends = np.flatnonzero(self._view)
        first, last = index * self._lines, min((index + 1) * self._lines, self._total)
        start = int(self._ends[first - 1]) + 1 if first else 0
        end = int(self._ends[last - 1]) if last <= len(self._ends) else len(self._raw)
        return self._raw[start:end]

    def lines(self, index: int) -> tuple[int, int]:
        """The numbers of its first and its last line."""
        if not self._lines:
            return self._document.first_line, self._document.first_line
        first = self._document.first_line + index * self._lines
        return first, min(first + self._lines, self._document.first_line + self._total) - 1


class Ranges:
    """Lines of documents that are taken."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        found: dict[int, list[tuple[int, int]]] = {}
        for passage in passages:
            found.setdefault(passage.document, []).append((passage.first, passage.last))
        self._taken: dict[int, tuple[list[int], list[int]]] = {}
        for document, spans in found.items():
            spans.sort()
            ends = list(itertools.accumulate((last for _, last in spans), max))
            self._taken[document] = [first for first, _ in spans], ends

    def overlap(self, passage: Passage) -> bool:
        if passage.document not in self._taken:
            return False
        firsts, ends = self._taken[passage.document]
        before = bisect_right(firsts, passage.last)
        return before > 0 and ends[before - 1] >= passage.first


# --------------------------------------------------------------------------------------------------------- the cache


class _Cache:
    """What a pass found, by the content of the files it read: a second pass over the same texts is not made.

    The content of a file is known by its path, size, time and inode, once it has been read; new files are read for
    their hash by a thread while the pass goes on.
    """

    def __init__(self, folder: Path, data: DataSettings, seed: int) -> None:
        self.folder = folder
        settings = {name: value for name, value in asdict(data).items() if name != "excluded"}
        self.settings = json.dumps([FORMAT, seed, settings])
        self.sources = [*dict.fromkeys((*data.forget, *data.retain))]
        self.parts = fingerprint_parts(self.sources)
        self.known: dict[str, str] = _contents(folder)
        # A data set on the hub is known by its commit; without one, nobody knows what is in it.
        self.known |= {_mark(part): part[0] for part in self.parts if not part[3] and not part[0].endswith("@")}
        self.usable = all(part[3] or not part[0].endswith("@") for part in self.parts)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Found | None:
        """What is kept of these texts; else None, and the hashes are on their way."""
        if not self.usable:
            return None
        if all(_mark(part) in self.known for part in self.parts):
            return _found(_read_json(self._path()))
        self._thread = threading.Thread(target=self._hash, name="fingerprint", daemon=True)
        self._thread.start()
        return None

    def write(self, found: Found) -> None:
        """Keeps it, unless a file has changed meanwhile."""
        if self._thread:
            self._thread.join()
        if not self.usable or not all(_mark(part) in self.known for part in self.parts):
            return
        if fingerprint_parts(self.sources) != self.parts:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._thread:
            _write_json(self.folder / CONTENTS, {**_contents(self.folder), **self.known})
        _write_json(self._path(), asdict(found))

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _path(self) -> Path:
        contents = "".join(self.known[_mark(part)] for part in self.parts)
        return self.folder / f"{hashlib.sha256((self.settings + contents).encode()).hexdigest()[:32]}.json"

    def _hash(self) -> None:
        for part in self.parts:
            if _mark(part) in self.known:
                continue
            digest = hashlib.sha256()
            try:
                with open(part[0], "rb", buffering=0) as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
                        if self._stop.is_set():
                            return
            except OSError:
                return
            self.known[_mark(part)] = digest.hexdigest()


def _mark(part: tuple[str, int, int, int]) -> str:
    return "|".join(map(str, part))


def _contents(folder: Path) -> dict[str, str]:
    """Which content the files had that were read before."""
    known = _read_json(folder / CONTENTS)
    return known if isinstance(known, dict) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(path)
    except (OSError, UnicodeEncodeError):  # a full disk costs the next run some seconds, not this one its texts
        part.unlink(missing_ok=True)


def _found(plain: Any) -> Found | None:
    """A Found out of its plain values; None where they are damaged."""
    try:
        sets = {
            name: tuple(
                Passage(
                    **{
                        **row,
                        "turns": tuple(Turn(**turn) for turn in row["turns"]),
                        "occurrences": tuple(Occurrence(**each) for each in row["occurrences"]),
                    }
                )
                for row in plain[name]
            )
            for name in ("forget", "neighbour", "retain", "holdout")
        }
        return Found(**{**plain, **sets, "notes": tuple(plain["notes"])})
    except (KeyError, TypeError, AttributeError):
        return None
