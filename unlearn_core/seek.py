"""One pass over the corpus: every occurrence with its context, and texts drawn at random to keep. Knows no tokens.

A long text is looked through as bytes; only a stretch that may hold the target, and lines that are drawn, become text.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import regex

from unlearn_core import neighbours
from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.corpus import Document, Tally, documents, fingerprint_parts
from unlearn_core.found_before import FoundBefore
from unlearn_core.passages import (
    Found,
    Occurrence,
    Passage,
    Pieces,
    Ranges,
    Reservoir,
    Row,
    Seam,
    Span,
    blocks,
    reaches,
)
from unlearn_core.targets import Target

HOLDOUT_PERCENT = 15
PASSAGES = 10_000  # around a word that is everywhere, more are not kept
POOL = 4_000  # texts drawn beyond those asked for: what neighbours are chosen from, and what stands in for dropped ones
SAMPLE_BYTES = 4 << 20  # of the corpus, looked through for near spellings
TELLING_LINE = 40  # characters; a shorter line may well stand in two texts
FEW = 20  # texts to keep; fewer are worth a word
PAIRED = ((b"{{", b"}}"), (b"{|", b"|}"), (b"[[", b"]]"))  # of markup
REPORT_SECONDS = 0.2
Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    bytes_read: int
    bytes_total: int  # 0 where nobody knows
    hits: int
    seconds: float
    seconds_left: float | None


class Draft(NamedTuple):
    """A text to keep as it was drawn: bytes, until it is known that it stays."""

    order: int
    document: int
    first: int
    last: int
    raw: bytes
    of: Document  # without its bytes
    whole: bool


# ---------------------------------------------------------------------------------------------------------- the pass


def seek(
    data: DataSettings, seed: int, report: Report = lambda progress: None, cache: Path | None = None
) -> tuple[Found, Target]:
    """What there is to forget and to keep. Raises ConfigError where the target does not occur or nothing is left."""
    target = Target(data)
    began = time.perf_counter()
    kept = FoundBefore(cache, data, seed) if cache is not None else None
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
        self.seam = Seam(data.context_lines, self.reach)
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
        if self.target.may_hold(document, document.raw):
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
        for start, end, inside in reaches(text, marks, self.reach):
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
            found = list(blocks(text, document.first_line, self.reach))
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
        pieces = Pieces(document, document.raw, self.data.retain_lines)
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
        pieces = Pieces(document, document.raw, 0 if document.turns else self.data.retain_lines)
        self.drawn.offer(pieces.count, lambda index: self._draft(document, pieces, index, clean))

    def _draft(self, document: Document, pieces: Pieces, index: int, clean: bool) -> Draft | None:
        raw = pieces.raw(index)
        if not raw or raw.isspace():
            return None
        if pieces.of.reduce and not all(raw.count(begin) == raw.count(end) for begin, end in PAIRED):
            return None  # it is cut out of a table or a template
        if not clean and not self.data.everything and self.target.may_hold(pieces.of, raw):
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
        if len(rest) < FEW:
            self.tally.note(f"only {len(rest)} texts are left to keep: what a guard rail of so few protects is little")
        if not holdout:
            self.tally.note("no text is left that is never trained on: damage shows in the retain loss alone")
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
