"""One scan of the corpus: every occurrence with its context, and texts drawn at random as retain and holdout set.

No tokens here. A long text is searched as bytes; only a stretch that may hold the target, and the drawn lines, are
decoded.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import regex

from unlearn_core.corpus import neighbours
from unlearn_core.corpus.documents import ASKED, ASKED_NAME, BUNDLED, BUNDLED_NAME, documents, fingerprint_parts
from unlearn_core.corpus.passages import (
    Occurrence,
    Passage,
    PassageBuilder,
    Pieces,
    Ranges,
    Reservoir,
    Row,
    ScanResult,
    Span,
    blocks,
    reaches,
)
from unlearn_core.corpus.reading.document import Document, ReadReport
from unlearn_core.corpus.reading.unpack import lines_in
from unlearn_core.corpus.scan_cache import ScanCache
from unlearn_core.corpus.target import Target
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

HOLDOUT_PERCENT = 15
PASSAGES = 10_000  # with the target; of a frequent word, so many are drawn at random
POOL = 4_000  # texts drawn beyond those asked for: what neighbours are chosen from, and what stands in for dropped ones
SAMPLE_BYTES = 4 << 20  # of the corpus, looked through for near spellings
TELLING_LINE = 40  # characters; a shorter line may well be in two unrelated texts
FEW = 20  # retain texts; fewer are noted
PAIRED = ((b"{{", b"}}"), (b"{|", b"|}"), (b"[[", b"]]"))  # of markup
EDGE = 4096  # bytes on either side of the end of a stretch in which a target is looked for that stands across it
MOVED = 16  # lines at most: each may end amid the target, too
REPORT_SECONDS = 0.2
Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    bytes_read: int
    bytes_total: int  # 0 where nobody knows
    hits: int
    seconds: float
    seconds_left: float | None
    stage: str = ""  # what comes before the texts are read, such as asking the model for them
    detail: str = ""


class Draft(NamedTuple):
    """A drawn text, not yet decoded: most of them are dropped again."""

    order: int
    document: int
    first: int
    last: int
    raw: bytes
    of: Document  # without its bytes
    whole: bool


# ---------------------------------------------------------------------------------------------------------- the scan


def scan_corpus(
    data: DataSettings, seed: int, report: Report = lambda progress: None, cache: Path | None = None
) -> tuple[ScanResult, Target]:
    """The texts of all sets. Raises ConfigError where the target does not occur or nothing is left."""
    target = Target(data)
    began = time.perf_counter()
    scan_cache = ScanCache(cache, data, seed) if cache is not None else None
    if scan_cache and (cached := scan_cache.read()):
        return replace(cached, cached=True, seconds=time.perf_counter() - began), target
    scan = CorpusScan(data, target, seed, report)
    try:
        scan.run()
        result = replace(scan.result(), seconds=time.perf_counter() - began)
        if scan_cache:
            scan_cache.write(result)
    finally:
        if scan_cache:
            scan_cache.close()
    return result, target


class CorpusScan:
    """The state of one scan."""

    def __init__(self, data: DataSettings, target: Target, seed: int, report_progress: Report) -> None:
        self.data, self.target, self.report_progress = data, target, report_progress
        self.rng = random.Random(f"seek {seed}")  # this text decides what every run draws
        self.report = ReadReport()
        self.reach = 16 * data.window_tokens  # characters; more of a text fills no window
        self.drafts = Reservoir(data.retain_chunks + data.holdout_chunks + POOL, self.rng)
        self.passages = Reservoir(PASSAGES, self.rng)
        self.drafts_near_target: dict[tuple[int, int], Draft] = {}
        self.forget_hashes: set[int] = set()  # of texts that are never retained, wherever they are
        self.sample: list[bytes] = []
        self.sampled = self.hits = self.document = self.order = 0
        self.searched = 0  # documents that were searched for the target
        self.passage_count = 0  # passages with the target, also those that are not drawn
        self.total = 0  # bytes of all sources
        self.continued = False  # whether the last document goes on in the next one
        self.part = self.last_line = 0  # of a line in several documents: which of them
        self.ordinal: dict[str, int] = {}  # source -> its documents so far
        self.builder = PassageBuilder(data.context_lines, self.reach)
        self.began = time.perf_counter()
        self.reported_at = self.began

    def run(self) -> None:
        """Reads every source once; with `data.where`, the sources to forget from twice: other rows may be retained."""
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
        self.total = sum(part.size for sources, *_ in passes for part in fingerprint_parts(sources))
        for sources, to_forget, to_retain, options in passes:
            if sources:
                self._read(sources, to_forget, to_retain, options)

    def _read(self, sources: Sequence[str], forget: bool, retain: bool, options: dict[str, str]) -> None:
        with closing(documents(sources, self.data, self.report, **options)) as stream:
            for document in stream if self.data.everything else unbroken(stream, self.target):
                self.add(document, forget, retain)
                if time.perf_counter() - self.reported_at >= REPORT_SECONDS:
                    self._report_progress()
        self._report_progress()

    def _report_progress(self) -> None:
        self.reported_at = time.perf_counter()
        seconds, read = self.reported_at - self.began, self.report.bytes_read
        total = max(self.total, self.report.bytes_total)
        left = seconds * (total - read) / read if 0 < read <= total else None
        self.report_progress(Progress(read, total, self.hits, seconds, left))

    def add(self, document: Document, forget: bool, retain: bool) -> None:
        """Searches a document for the target (`forget`) and offers its other texts to the draw (`retain`)."""
        begins = not self.continued
        if begins:
            self.document += 1
            self.ordinal[document.source] = self.ordinal.get(document.source, 0) + 1
            self.part, self.last_line = 0, 0
        self.part = self.part + 1 if document.first_line == self.last_line else 0
        self.last_line, self.continued = document.first_line, document.continues
        clean = False
        if forget:
            self.searched += begins
            self._sample(document.raw)
            if self.data.everything:
                self._add_whole(document)
            else:
                clean = not self._add_passages(document)
            if self.data.everything or self.data.where:
                self.forget_hashes.add(hash(document.raw))
        if retain:
            self._offer(document, clean)

    def _sample(self, raw: bytes) -> None:
        if self.sampled < SAMPLE_BYTES and not self.hits:
            self.sample.append(raw[: 1 << 16])
            self.sampled += len(self.sample[-1])

    # ------------------------------------------------------------------------------------------------ to forget

    def _add_passages(self, document: Document) -> bool:
        """Adds the passages with the target; returns whether it occurs in the document."""
        text, hits = "", []
        if self.target.may_hold(document, document.raw):
            text = self._text(document)
            hits = self.target.find(text)
        self.hits += len(hits)
        if document.turns:
            if hits:
                line = document.first_line
                place = document.place or f"line {line}"
                marks = tuple(Occurrence(self._id(document, 0, start), start, end, place) for start, end in hits)
                self._add(self._passage_of(document, text, line, line, marks))
            return bool(hits)
        if hits or self.builder.open:
            text = text or self._text(document)
            rows, spans = self._rows(text, hits, document.first_line)
            self.builder.number_from(document.first_line)
            self._emit(document, self.builder.feed(rows, spans, not document.continues))
        elif document.continues:
            self.builder.skip(document)
        if not document.continues:
            self.builder.clear()
        if hits and self.data.neighbours and not document.topic:
            self._draft_near_target(document, hits, text)
        return bool(hits)

    def _text(self, document: Document) -> str:
        return self.target.normal(document.text).replace("\r\n", "\n").replace("\r", "\n")

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

    def _emit(self, document: Document, passages: Iterable[tuple[list[Row], list[Span]]]) -> None:
        for rows, spans in passages:
            if sum(len(line) + 1 for _, line in rows) <= 4 * self.reach:  # one passage, built only if it is drawn
                self.passage_count += 1
                self.passages.offer(1, lambda _: (self.passage_count, self._built(document, rows, spans)[0]))  # noqa: B023
            else:
                for passage in self._built(document, rows, spans):
                    self._add(passage)

    def _built(self, document: Document, rows: list[Row], spans: list[Span]) -> list[Passage]:
        """Rows as a passage of text; one longer than any window is cut between occurrences."""
        starts = [0, *itertools.accumulate(len(line) + 1 for _, line in rows)]
        text = "\n".join(line for _, line in rows)
        marks = [
            Occurrence(
                self._id(document, rows[span.row][0], span.column),
                starts[span.row] + span.column,
                starts[span.last] + span.end,
                _place(document, rows[span.row][0]),
            )
            for span in spans
        ]
        passages = []
        for start, end, inside in reaches(text, marks, self.reach):
            first, last = (bisect_right(starts, at) - 1 for at in (start, max(start, end - 1)))
            moved = tuple(replace(mark, start=mark.start - start, end=mark.end - start) for mark in inside)
            lines = rows[first][0], rows[min(last, len(rows) - 1)][0]
            passages.append(self._passage_of(document, text[start:end], *lines, moved))
        return passages

    def _passage_of(
        self, document: Document, text: str, first: int, last: int, marks: tuple[Occurrence, ...], whole: bool = True
    ) -> Passage:
        place = document.place or document.topic or (f"line {first}" if first == last else f"lines {first} to {last}")
        return Passage(
            text, document.source, place, "", document.topic, document.group, document.turns, whole, self.document,
            first, last, marks,
        )  # fmt: skip

    def _add(self, passage: Passage) -> None:
        self.passage_count += 1
        self.passages.offer(1, lambda _: (self.passage_count, passage))

    def _add_whole(self, document: Document) -> None:
        """The document is a forget text: one passage, or several of a long one."""
        text = self.target.normal(document.text)
        if document.turns:
            parts = [(document.first_line, document.first_line, text)] if text.strip() else []
        else:
            parts = list(blocks(text, document.first_line, self.reach))
        for number, (first, last, block) in enumerate(parts, 1):
            self.hits += 1
            whole = number == len(parts) and not document.continues
            mark = Occurrence(self._id(document, first, 0), 0, 0, _place(document, first))
            self._add(self._passage_of(document, block, first, last, (mark,), whole))
            self.forget_hashes.add(hash(block.encode()))

    def _id(self, document: Document, line: int, column: int) -> str:
        within = document.place or self.ordinal[document.source]
        position = f"{document.source}\0{within}\0{self.part}\0{line}\0{column}"
        return hashlib.sha256(position.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def _draft_near_target(self, document: Document, hits: Sequence[tuple[int, int]], text: str) -> None:
        """Drafts the texts beside the first and the last occurrence: candidates for neighbours."""
        if len(self.drafts_near_target) > 10 * self.data.neighbour_chunks:
            return
        if document.reduce:
            document = replace(document, raw=text.encode(), reduce=None)
        pieces = Pieces(document, document.raw, self.data.retain_lines)
        lines = {text.count("\n", 0, hits[0][0])} | {text.count("\n", 0, hits[-1][0])}
        for line in sorted(lines):
            middle = line // self.data.retain_lines
            for index in range(max(0, middle - 2), min(pieces.count, middle + 3)):
                if draft := self._draft(document, pieces, index, clean=False):
                    self.drafts_near_target.setdefault((draft.document, draft.first), draft)

    # -------------------------------------------------------------------------------------------------- to retain

    def _offer(self, document: Document, clean: bool) -> None:
        """Offers the texts of a document to the draw. `clean`: it is known not to hold the target."""
        if self.forget_hashes and hash(document.raw) in self.forget_hashes:
            self.report.note("retain texts that are also forget texts, dropped")
            return
        if document.reduce and not clean and "text" in document.__dict__:  # already reduced, in the search
            document = replace(document, raw=document.text.encode(), reduce=None)
        pieces = Pieces(document, document.raw, 0 if document.turns else self.data.retain_lines)
        self.drafts.offer(pieces.count, lambda index: self._draft(document, pieces, index, clean))

    def _draft(self, document: Document, pieces: Pieces, index: int, clean: bool) -> Draft | None:
        raw = pieces.raw(index)
        if not raw or raw.isspace():
            return None
        if pieces.of.reduce and not all(raw.count(begin) == raw.count(end) for begin, end in PAIRED):
            return None  # a fragment of a table or a template
        if not clean and not self.data.everything and self.target.may_hold(pieces.of, raw):
            text = raw.decode("utf-8", "replace")
            if self.target.find(self.target.normal(pieces.of.reduce(text) if pieces.of.reduce else text)):
                return None
        self.order += 1
        first, last = pieces.lines(index)
        short = raw[: 4 * self.reach] if len(raw) > 4 * self.reach else raw
        whole = len(short) == len(raw) and pieces.ends(index)
        return Draft(self.order, self.document, first, last, short, pieces.of, whole)

    # ------------------------------------------------------------------------------------------------- the result

    def result(self) -> ScanResult:
        if not self.hits:
            raise self._never_occurs()
        forget = [passage for _, passage in sorted(self.passages.items, key=lambda pair: pair[0])]
        if self.passage_count > len(forget):
            self.report.note(f"{len(forget):,} of {self.passage_count:,} passages with the target, drawn at random")
        if self.data.everything:  # a set that was put together by hand keeps its near duplicates
            unique = list({(passage.text, passage.turns): passage for passage in forget}.values())
            note = "duplicate forget texts, dropped"
        else:
            unique = neighbours.without_near_duplicates(forget)
            note = "passages to forget that are near duplicates of another, dropped"
        if len(unique) < len(forget):
            self.report.note(note, len(forget) - len(unique))
        return self._split(forget, unique)

    def _split(self, every: Sequence[Passage], forget: Sequence[Passage]) -> ScanResult:
        """The drawn texts, without those to forget (`every`), as neighbours, holdout and retain set."""
        data = self.data
        taken = Ranges(every)
        telling = {line for p in every if not p.topic for line in p.text.split("\n") if len(line) >= TELLING_LINE}
        texts = {passage.text for passage in every}

        def fits(passage: Passage) -> bool:
            if passage.text in texts or not passage.text or taken.overlap(passage):
                return False
            if self._holds_target(passage):
                return False
            if telling and not passage.turns and not telling.isdisjoint(passage.text.split("\n")):
                return False
            texts.add(passage.text)
            return True

        drafts = sorted(self.drafts.items, key=lambda draft: draft.order)
        drawn = [p for p in map(self._passage, drafts) if fits(p)]
        self.rng.shuffle(drawn)
        near: list[Passage] = []
        if data.neighbours:
            topics, groups = {p.topic for p in every} - {""}, {p.group for p in every} - {""}
            near = [replace(p, why="on the same topic") for p in drawn if p.topic in topics or p.group in groups]
            drawn = [p for p in drawn if not (p.topic in topics or p.group in groups)]
        different = neighbours.without_near_duplicates(drawn)
        if len(different) < len(drawn):
            self.report.note(
                "texts to retain that are near duplicates of another, dropped", len(drawn) - len(different)
            )
        holdout, rest = self._hold_out(different)
        if data.neighbours and any(not p.topic for p in forget):
            beside = [p for p in map(self._passage, self.drafts_near_target.values()) if fits(p)]
            holdout_lines = Ranges(holdout)
            beside = [passage for passage in beside if not holdout_lines.overlap(passage)]
            nearest = neighbours.nearest([p for p in forget if not p.topic], rest, beside, data)
            nearest = [(passage, why) for passage, why in nearest if not self._holds_target(passage)]
            chosen = {id(passage) for passage, _ in nearest}
            near += [replace(passage, why=why) for passage, why in nearest]
            nearest_lines = Ranges([passage for passage, _ in nearest])
            rest = [p for p in rest if id(p) not in chosen and not nearest_lines.overlap(p)]
        if not rest:  # a corpus of so few texts that the other sets have taken all of them
            rest, holdout = holdout, []
        if not rest:
            raise ConfigError(
                f"Nothing is left to retain: {_named(data.retain)} has no text "
                + ("that is not a forget text." if data.everything else f"without “{_short(data.target)}”.")
            )
        if len(rest) < FEW:
            self.report.note(
                f"only {len(rest)} texts are left to retain: a guard rail computed from so few protects little"
            )
        if not holdout:
            self.report.note("no text is left for the holdout set: only the retain loss shows damage")
        retain = [replace(p, why=f"drawn at random: {p.place}") for p in rest[: data.retain_chunks]]
        holdout = [replace(p, why=f"drawn at random, never trained on: {p.place}") for p in holdout]
        near_set, retain_set, holdout_set = (
            tuple(sorted(each, key=lambda p: (p.document, p.first))) for each in (near, retain, holdout)
        )
        counts = (self.hits, self.document, self.report.bytes_read)
        return ScanResult(tuple(forget), near_set, retain_set, holdout_set, *counts, notes=self.report.sentences())

    def _holds_target(self, passage: Passage) -> bool:
        """Whether a text that is to be kept holds the target, in any form, after all that was done to it."""
        return not self.data.everything and bool(self.target.find(passage.text))

    def _hold_out(self, drawn: list[Passage]) -> tuple[list[Passage], list[Passage]]:
        """(holdout, the rest). Where there are fewer texts than both sets ask for, a text's own hash decides."""
        count = self.data.holdout_chunks
        if len(drawn) >= self.data.retain_chunks + count:
            return drawn[:count], drawn[count:]
        holdout = [p for p in drawn if hashlib.sha256(p.text.encode()).digest()[0] * 100 < HOLDOUT_PERCENT * 256][
            :count
        ]
        chosen = {id(passage) for passage in holdout}
        return holdout, [passage for passage in drawn if id(passage) not in chosen]

    def _passage(self, draft: Draft) -> Passage:
        of = draft.of
        decoded = draft.raw.decode("utf-8", "ignore")
        text = self.target.normal(of.reduce(decoded) if of.reduce else decoded)
        if not of.turns:
            text = "\n".join(line for line in text.splitlines() if line.strip())
        passage = self._passage_of(of, text, draft.first, draft.last, (), draft.whole)
        return replace(passage, document=draft.document)

    def _never_occurs(self) -> ConfigError:
        if self.data.everything:
            which = f" with {self.data.where}" if self.data.where else ""
            return ConfigError(f"data.forget is {_named(self.data.forget)}; it has no texts{which} to forget.")
        text = b"\n".join(self.sample).decode("utf-8", "ignore")
        words = (match.group() for match in itertools.islice(regex.finditer(r"\w{3,}", text), 2_000_000))
        return never_occurs(self.data, words, self.searched)


def unbroken(documents: Iterable[Document], target: Target) -> Iterator[Document]:
    """The documents; where the target stands across the end of a stretch, that stretch goes on to its end."""
    before: Document | None = None
    for document in documents:
        for _ in range(MOVED if before is not None and before.continues else 0):
            assert before is not None
            length = _across(before.raw[-EDGE:], document.raw[:EDGE], target)
            if not length:
                break
            moved, rest = document.raw[:length], document.raw[length:]
            before = replace(before, raw=before.raw + moved)
            document = replace(document, raw=rest, first_line=document.first_line + lines_in(moved))
        if before is not None:
            yield before
        before = document
    if before is not None:
        yield before


def _across(behind: bytes, ahead: bytes, target: Target) -> int:
    """Bytes of `ahead` up to the end of the line in which a target ends that begins in `behind`; 0 where none does."""
    if not target.may_be_in(behind + ahead):
        return 0
    before = target.normal(behind.decode("utf-8", "ignore"))
    after = target.normal(ahead.decode("utf-8", "ignore"))
    end = max((end for start, end in target.find(before + after) if start < len(before)), default=0) - len(before)
    if end <= 0:
        return 0
    moved = 0
    for _ in range(after.count("\n", 0, end - 1) + 1):
        moved = ahead.find(b"\n", moved) + 1 or len(ahead)
    return moved if moved < len(ahead) else ahead.rfind(b" ") + 1


def _place(document: Document, line: int) -> str:
    return document.place or document.topic or f"line {line}"


def never_occurs(data: DataSettings, words: Iterable[str], searched: int) -> ConfigError:
    """The error for a target that does not occur, with near spellings out of `words` of the `searched` documents."""
    target = data.target.lower()
    similar = (word for word in map(str.lower, words) if abs(len(word) - len(target)) <= max(2, len(target) // 3))
    frequent = sorted(Counter(similar).items(), key=lambda pair: (-pair[1], pair[0]))[:10_000]
    near = get_close_matches(target, [word for word, _ in frequent], 3, 0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose a word of the corpus."
    return ConfigError(f"“{_short(data.target)}” never occurs in {_named(data.forget)} ({searched:,} texts). {hint}")


def _named(sources: Iterable[str]) -> str:
    names = {BUNDLED: BUNDLED_NAME}
    asked = (ASKED_NAME if source.startswith(ASKED) else names.get(source, source) for source in sources)
    return ", ".join(dict.fromkeys(asked))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
