"""Documents + target -> forget, neighbour, retain and holdout windows. Token ids; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_core.corpus.documents import MODEL, documents, fingerprint_parts
from unlearn_core.corpus.passages import Occurrence, Passage, Ranges, ScanResult
from unlearn_core.corpus.scan import Progress, never_occurs, scan_corpus
from unlearn_core.corpus.target import Target
from unlearn_core.model.prompting import encode, encode_pair, encode_with_offsets, ending_of, opening_of, opens
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SEARCHED_AT_ONCE = 50 << 20  # bytes; larger sources are searched by the run's own scan only
HOLDS_TARGET, FORGOTTEN_WHOLE = "it holds the target", "the whole text is a forget text"
END_OF_SENTENCE = re.compile(
    r"""(?:[.!?…]+["'”’)]*(?=\s)|[。！？]+[」』]?)\n?|\n|\Z"""
)  # with the line's end, where it is that too


@dataclass(frozen=True)
class Windows:
    """The four sets of a run; no text is in two of them, and `holdout` is never trained on."""

    forget: tuple[Window, ...]
    neighbour: tuple[Window, ...]
    retain: tuple[Window, ...]
    holdout: tuple[Window, ...]
    occurrences: int
    texts: ScanResult | None = field(default=None, compare=False, repr=False)  # that the windows were made of

    def sets(self) -> dict[str, tuple[Window, ...]]:
        named = {"forget": self.forget, "retain": self.retain, "neighbour": self.neighbour, "holdout": self.holdout}
        return {name: windows for name, windows in named.items() if windows}


def check_target(config: RunConfig) -> int:
    """How often the target occurs; 0 where the sources are too large, or too far away, to be searched now.

    Raises ConfigError with near spellings where it never does.
    """
    data, target = config.data, Target(config.data)
    if MODEL in data.forget:
        return 0  # it is asked about the target when the run begins
    parts = fingerprint_parts(data.forget)
    if sum(part.size for part in parts) > SEARCHED_AT_ONCE or any(part.commit is not None for part in parts):
        return 0
    words: set[str] = set()
    count = searched = 0
    for document in documents(data.forget, data, where=data.where):
        searched += 1
        if data.everything:
            count += 1
        elif target.may_hold(document, document.raw):
            count += len(target.find(target.normal(document.text)))
        if not count:
            words.update(map(str.lower, re.findall(r"\w{3,}", document.text)))
    if count:
        return count
    raise never_occurs(data, words, searched)


# ------------------------------------------------------------------------------------------------------ forget


def sliding(ids: Sequence[int], first_loss: int, limit: int) -> Iterator[tuple[int, int]]:
    """(start, end) of windows of at most `limit` tokens over one passage, each with the target in it.

    The start moves toward the target by an eighth of the window while the end moves on, so that the target is met after
    much context and after little. The first keeps at least half of the window for the target and what follows; the last
    still has a token before the target, since nothing predicts a window's first token.
    """
    start = 0 if len(ids) <= limit else max(0, first_loss - limit // 2)
    while True:
        yield start, min(len(ids), start + limit)
        start += max(1, limit // 8)
        if start >= first_loss:
            return


def forget_windows(
    passages: Iterable[Passage], data: DataSettings, tokenizer: PreTrainedTokenizerBase, limit: int, chat: bool = True
) -> list[Window]:
    """Windows over every occurrence of every passage, without repetitions."""
    windows: dict[tuple[tuple[int, ...], int], Window] = {}
    for passage in passages:
        if passage.turns:
            of_passage: Iterable[Window] = [pair_window(passage, data, tokenizer, limit, chat)]
        elif data.everything:
            of_passage = _consecutive(passage, tokenizer, limit)
        else:
            of_passage = _around_occurrences(passage, tokenizer, limit)
        for window in of_passage:
            windows.setdefault((window.ids, window.first_loss), window)
    return list(windows.values())


def _around_occurrences(passage: Passage, tokenizer: PreTrainedTokenizerBase, limit: int) -> Iterator[Window]:
    ids, offsets = encode_with_offsets(tokenizer, passage.text)
    opening, ids = _opened(ids, tokenizer)
    offsets, limit = offsets[len(opening) :], limit - len(opening)
    for mark in passage.occurrences:
        inside = tokens_of(offsets, mark.start, mark.end)
        answer = _sentence_end(passage.text, offsets, mark) - inside[0] if inside else 0
        _check_pieces(passage.text[mark.start : mark.end], [ids[i] for i in inside], tokenizer, limit)
        for start, end in sliding(ids, inside[0], limit):
            facts = (passage.text, passage.source, mark.place, HOLDS_TARGET, mark.id)
            first = len(opening) + inside[0] - start
            yield Window((*opening, *ids[start:end]), first, *facts, answer, len(opening))


def _opened(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], list[int]]:
    """(the special tokens in front of a text, the others): a window of any part of it begins with the first."""
    opening = opening_of(tokenizer)
    length = opens(ids, opening)
    return opening[:length], list(ids[length:])


def tokens_of(offsets: Iterable[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Indices of the tokens that overlap the characters [start, stop). `offsets`: (start, end) of every token."""
    return [i for i, (begin, end) in enumerate(offsets) if end > start and begin < stop and end > begin]


def _sentence_end(text: str, offsets: Sequence[tuple[int, int]], mark: Occurrence) -> int:
    """Index of the first token after the sentence (or line) with the occurrence."""
    match = END_OF_SENTENCE.search(text, mark.end)
    assert match
    return next((i for i, (begin, end) in enumerate(offsets) if begin >= match.end() and end > begin), len(offsets))


def _consecutive(passage: Passage, tokenizer: PreTrainedTokenizerBase, limit: int) -> Iterator[Window]:
    """A text that is forgotten as a whole, in consecutive windows."""
    opening, ids = _opened(_ids(passage, tokenizer), tokenizer)
    facts = (passage.text, passage.source, passage.place, FORGOTTEN_WHOLE, passage.occurrences[0].id)
    fewest = 1 if opening else 2  # without an opening nothing predicts a window's first token
    room = limit - len(opening)
    for start in range(0, len(ids), room):
        start = max(0, min(start, len(ids) - fewest))
        if len(piece := ids[start : start + room]) >= fewest:
            yield Window((*opening, *piece), max(1, len(opening)), *facts, opening=len(opening))


def _check_pieces(target: str, pieces: list[int], tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    unknown = tokenizer.unk_token_id
    if not pieces or (unknown not in (None, tokenizer.eos_token_id) and all(piece == unknown for piece in pieces)):
        reason = "this model's tokenizer has no piece for it"
        raise ConfigError(reason, field="data.target", value=target, fix="Choose another word or model")
    if len(pieces) >= limit - 1:
        reason = f"it has {len(pieces)} tokens, and windows hold {limit}"
        raise ConfigError(reason, field="data.target", value=target, fix="Choose a shorter target or longer windows")


def left_in(passages: Iterable[Passage], excluded: Collection[str]) -> Iterator[Passage]:
    """The passages without the excluded occurrences: their lines are cut out; a pair with one is dropped."""
    for passage in passages:
        marks = [mark for mark in passage.occurrences if mark.id not in excluded]
        if len(marks) == len(passage.occurrences):
            yield passage
        elif marks and not passage.turns:
            yield from _parts(passage, marks)


def _parts(passage: Passage, marks: Sequence[Occurrence]) -> Iterator[Passage]:
    """The parts of a passage between its excluded occurrences; `marks` are the others.

    A line with an excluded occurrence is cut out; where it has another one too, only the occurrence itself.
    """
    text, cuts = passage.text, []
    for mark in passage.occurrences:
        if mark in marks:
            continue
        begin = text.rfind("\n", 0, mark.start) + 1
        newline = text.find("\n", mark.end)
        end = len(text) if newline < 0 else newline + 1
        shared = any(other.start < end and other.end > begin for other in marks)
        cuts.append((mark.start, mark.end) if shared else (begin, end))
    start = 0
    for first, last in (*cuts, (len(text), len(text))):
        inside = [mark for mark in marks if mark.start >= start and mark.end <= first]
        if inside:
            moved = tuple(replace(mark, start=mark.start - start, end=mark.end - start) for mark in inside)
            part, whole = text[start:first].rstrip("\n"), passage.whole and first == len(text)
            yield replace(passage, text=part, whole=whole, occurrences=moved)
        start = max(start, last)


# -------------------------------------------------------------------------------------------------- the four sets


def make_windows(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    seed: int,
    *,
    chat: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
    cache: Path | None = None,
) -> Windows:
    """The four sets of a run. `limit`: tokens of the model's context; `seed` decides which texts are drawn to retain.

    `report` is called with the progress of the scan and may raise to end it; `cache` is the folder of earlier scans.
    Raises ConfigError where the target does not occur or nothing is left to retain.
    """
    texts, _ = scan_corpus(data, seed, report, cache)
    limit = min(limit, data.window_tokens)
    excluded = frozenset(data.excluded)
    passages = list(left_in(texts.forget, excluded))
    if not passages:
        raise ConfigError(f"data.excluded leaves out all {texts.occurrences:,} occurrences; leave one of them in.")
    forget = forget_windows(passages, data, tokenizer, limit, chat)
    excluded_lines = Ranges(p for p in texts.forget if excluded and all(mark.id in excluded for mark in p.occurrences))
    sets = {
        "neighbour": [passage for passage in texts.neighbour if not excluded_lines.overlap(passage)],
        "retain": texts.retain,
        "holdout": texts.holdout,
    }
    windows = {name: [retain_window(p, data, tokenizer, limit, chat) for p in drawn] for name, drawn in sets.items()}
    near, retain, holdout = (tuple(window for window in windows[name] if len(window) > 1) for name in windows)
    if not retain:  # every text is shorter than two tokens
        retain, holdout = holdout, ()
    if not retain:
        raise ConfigError(f"Nothing is left to retain: {', '.join(data.retain)} has no text without “{data.target}”.")
    return Windows(tuple(forget), near, retain, holdout, texts.occurrences, texts)


def retain_window(
    passage: Passage, data: DataSettings, tokenizer: PreTrainedTokenizerBase, limit: int, chat: bool = True
) -> Window:
    """A text with the loss from its second token on; unless the text was cut, an end token closes it."""
    if passage.turns:
        return pair_window(passage, data, tokenizer, limit, chat)
    opening, ids = _opened(_ids(passage, tokenizer), tokenizer)
    facts = (passage.text, passage.source, passage.place, passage.why)
    ids = [*opening, *ids][:limit]
    return Window(tuple(ids), max(1, len(opening)), *facts, opening=len(opening))


def _ids(passage: Passage, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text, with those that end a text where it was not cut."""
    return [*encode(tokenizer, passage.text), *(ending_of(tokenizer) if passage.whole else ())]


def pair_window(
    passage: Passage, data: DataSettings, tokenizer: PreTrainedTokenizerBase, limit: int, chat: bool
) -> Window:
    """A question with its answer, which alone has the loss. One that is too long is cut at the question's start."""
    ids, first, text = encode_pair(tokenizer, passage.turns, chat, data.pair_template)
    opening, ids = _opened(ids, tokenizer)
    first, limit = first - len(opening), limit - len(opening)
    start = max(0, min(first - 1, first - limit // 2, len(ids) - limit)) if len(ids) > limit else 0
    mark = passage.occurrences[0].id if passage.occurrences else ""
    why = passage.why or (FORGOTTEN_WHOLE if data.everything else HOLDS_TARGET)
    facts = (text, passage.source, passage.place, why, mark)
    window = (*opening, *ids[start : start + limit])
    return Window(window, len(opening) + first - start, *facts, opening=len(opening), pair=True)
