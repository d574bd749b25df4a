"""Theorems on passages and windows, each checked on 200 random cases.

Every test takes one random generator; `hypothesis.given(strategies.randoms())` can take the place of `cases`.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import regex
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_core.corpus.passages import Occurrence, Passage, Pieces, Ranges, blocks
from unlearn_core.corpus.reading.document import Document
from unlearn_core.corpus.reading.unpack import at_lines
from unlearn_core.corpus.scan import CorpusScan
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import forget_windows, left_in, make_windows, retain_window, sliding, with_stand_in
from unlearn_core.settings.sections import DataSettings
from unlearn_core.world import FULL

WORD = "zorblatt"


def cases(test: Callable[[random.Random], None]) -> Callable[[], None]:
    def run() -> None:
        for seed in range(200):
            test(random.Random(seed))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FULL)


def random_text(rng: random.Random, lines: int = 40, hits: float = 0.2) -> str:
    """Lines of words that all differ, some lines blank, some with the target once or more."""
    texts = []
    for number in range(rng.randint(1, lines)):
        words = [f"w{number}x{place}" for place in range(rng.choice((0, 3, 9, 40)))]
        if rng.random() < hits:
            for _ in range(rng.choice((1, 1, 3))):
                words.insert(rng.randint(0, len(words)), rng.choice((WORD, WORD.upper(), f"“{WORD}”")))
        texts.append(" ".join(words))
    return rng.choice(("\n", "\n\n")).join(texts) + rng.choice(("", "\n"))


def occurrences(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in regex.finditer(WORD, text, regex.IGNORECASE)]


def passage_of(text: str) -> Passage:
    marks = tuple(Occurrence(str(n), start, end, "") for n, (start, end) in enumerate(occurrences(text)))
    return Passage(text, occurrences=marks, whole=True)


def stretches(rng: random.Random, text: str) -> list[Document]:
    """The text as documents of whole lines, as a reader gives a long file."""
    lines = text.splitlines(keepends=True)
    ends = sorted({*rng.sample(range(1, len(lines) + 1), min(len(lines), rng.randint(0, 5))), len(lines)})
    return [
        Document("".join(lines[first:end]).encode(), "here", first_line=first + 1, continues=end < len(lines))
        for first, end in zip([0, *ends], ends, strict=False)
    ]


# ----------------------------------------------------------------------------------------------------------- passages


@cases
def test_every_occurrence_is_in_exactly_one_passage_of_bounded_length(rng: random.Random) -> None:
    text = random_text(rng)
    data = DataSettings(target=WORD, context_lines=rng.randint(0, 4), window_tokens=rng.choice((8, 32, 512)))
    scan = CorpusScan(data, Target(data), 0, lambda progress: None)
    for document in stretches(rng, text) if text.strip() else []:
        scan.add(document, True, False)
    passages = [passage for _, passage in sorted(scan.passages.items, key=lambda pair: pair[0])]
    marks = [mark for passage in passages for mark in passage.occurrences]
    assert len(marks) == len({mark.id for mark in marks}) == len(occurrences(text)) == scan.hits
    lines = text.splitlines()
    for passage in passages:
        assert occurrences(passage.text) == [(mark.start, mark.end) for mark in passage.occurrences]
        assert len(passage.text) <= 5 * scan.reach + len(WORD)
        assert all(part in "\n".join(lines[passage.first - 1 : passage.last]) for part in passage.text.split("\n"))
        for mark in passage.occurrences:
            assert occurrences(lines[int(mark.place.removeprefix("line ")) - 1])


@cases
def test_blocks_hold_every_line_once_and_in_order(rng: random.Random) -> None:
    text, reach = random_text(rng), rng.choice((3, 20, 400))
    parts = list(blocks(text, 1, reach))
    assert "".join(block for _, _, block in parts).replace("\n", "") == text.replace("\n", "")
    assert all(len(block.replace("\n", "")) <= 2 * reach for _, _, block in parts)
    assert all(earlier[1] <= later[0] for earlier, later in zip(parts, parts[1:], strict=False))


@cases
def test_pieces_of_a_document_put_together_are_the_document(rng: random.Random) -> None:
    raw, count = random_text(rng).encode(), rng.randint(0, 7)
    pieces = Pieces(Document(raw, first_line=5), raw, count)
    parts = [pieces.raw(index) for index in range(pieces.count)]
    assert b"\n".join(parts).rstrip(b"\n") == raw.rstrip(b"\n")
    assert all(part.rstrip(b"\n").count(b"\n") < count for part in parts) or not count
    numbers = [
        number for index in range(pieces.count) for number in range(pieces.lines(index)[0], pieces.lines(index)[1] + 1)
    ]
    assert not count or numbers == list(range(5, 5 + len(numbers)))


@cases
def test_passages_overlap_where_they_have_a_line_in_common(rng: random.Random) -> None:
    def some(count: int) -> list[Passage]:
        firsts = [rng.randint(1, 60) for _ in range(count)]
        return [
            Passage("", document=rng.randint(0, 2), first=first, last=first + rng.randint(0, 9)) for first in firsts
        ]

    covering, others = some(rng.randint(0, 6)), some(20)
    ranges = Ranges(covering)
    for other in others:
        common = any(
            each.document == other.document and each.first <= other.last and other.first <= each.last
            for each in covering
        )
        assert ranges.overlap(other) == common


@cases
def test_blocks_of_whole_lines_put_together_are_the_bytes(rng: random.Random) -> None:
    whole = random_text(rng, 400).encode() * rng.randint(1, 40)
    pieces, at = [], 0
    while at < len(whole):
        pieces.append(whole[at : at + rng.randint(1, 1 << 18)])
        at += len(pieces[-1])
    lines = list(at_lines(pieces))
    assert b"".join(lines) == whole and all(block.endswith(b"\n") for block in lines[:-1])


# ------------------------------------------------------------------------------------------------------------ windows


@cases
def test_an_excluded_occurrence_is_in_no_part_and_every_other_one_in_exactly_one(rng: random.Random) -> None:
    passage = passage_of(random_text(rng, hits=0.5))
    excluded = {mark.id for mark in passage.occurrences if rng.random() < 0.4}
    parts = list(left_in([passage], excluded))
    wanted = [mark.id for mark in passage.occurrences if mark.id not in excluded]
    assert [mark.id for part in parts for mark in part.occurrences] == wanted
    for part in parts if passage.occurrences else []:
        assert occurrences(part.text) == [(mark.start, mark.end) for mark in part.occurrences]
        assert part.text in passage.text


@cases
def test_with_a_stand_in_the_target_is_nowhere_and_the_rest_of_the_text_is_the_same(rng: random.Random) -> None:
    passage, target = passage_of(random_text(rng, hits=0.5)), Target(DataSettings(target=WORD))
    (replaced,) = with_stand_in([passage], stand_in := rng.choice(("cat", "a much longer phrase")), target)
    assert replaced.text == regex.sub(WORD, stand_in, passage.text, flags=regex.IGNORECASE)
    assert all(replaced.text[mark.start : mark.end] == stand_in for mark in replaced.occurrences)


@cases
def test_windows_of_an_occurrence_are_bounded_and_train_on_what_follows_it(rng: random.Random) -> None:
    """The trained parts begin at the target; together they reach the text's end or 7/8 of a window behind it."""
    length, limit = rng.randint(1, 900), rng.randint(4, 300)
    first = rng.randrange(length)
    spans = list(sliding(range(length), first, limit))
    assert all(start <= first < end <= length and end - start <= limit for start, end in spans)
    assert first == 0 or all(start < first for start, _ in spans), "a token before the target predicts it"
    assert max(end for _, end in spans) >= min(length, first + limit - max(1, limit // 8) if first else limit)


@cases
def test_every_occurrence_has_windows_that_begin_to_train_at_it(rng: random.Random) -> None:
    passage, limit = passage_of(random_text(rng, 12, 0.4)), rng.choice((24, 40, 100))
    data = DataSettings(target=WORD)
    windows = forget_windows([passage], data, tokenizer(), limit)
    assert {window.occurrence for window in windows} == {mark.id for mark in passage.occurrences}
    assert len({(window.ids, window.first_loss) for window in windows}) == len(windows)
    for window in windows:
        trained = tokenizer().decode(list(window.ids[window.first_loss :])).lower().lstrip(" “\n")
        assert len(window) <= limit and 0 <= window.first_loss < len(window)
        assert trained.startswith(WORD[: len(trained)])
        assert window.answer_offset > 0


@cases
def test_a_text_that_is_forgotten_whole_is_covered_by_its_windows(rng: random.Random) -> None:
    text, limit = random_text(rng, hits=0), rng.randint(4, 60)
    data, whole = DataSettings(everything=True, target="all"), rng.random() < 0.5
    passage = Passage(text, whole=whole, occurrences=(Occurrence("0", 0, 0, ""),))
    windows = forget_windows([passage], data, tokenizer(), limit)
    ids = [*tokenizer()(text)["input_ids"], *([tokenizer().eos_token_id] if whole else [])] or [0]
    assert all(1 < len(window) <= limit and window.first_loss == 1 for window in windows)
    parts = [ids[start : start + limit] for start in range(0, len(ids), limit)]
    if len(parts[-1]) == 1:  # nothing predicts a window's first token
        parts[-1] = ids[-2:]
    assert {window.ids for window in windows} == {tuple(part) for part in parts if len(part) > 1}


@cases
def test_a_retain_window_is_the_beginning_of_its_text(rng: random.Random) -> None:
    text, limit, whole = random_text(rng, hits=0), rng.randint(4, 60), rng.random() < 0.5
    window = retain_window(Passage(text, whole=whole), DataSettings(), tokenizer(), limit)
    ids = [*tokenizer()(text)["input_ids"], *([tokenizer().eos_token_id] if whole else [])]
    assert list(window.ids) == ids[:limit] and window.first_loss == 1


@cases
def test_no_retain_text_holds_the_target_and_no_text_is_in_two_sets(rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.txt")
        text = f"{random_text(rng, 30)}\nthe {WORD}\n" + "".join(f"line v{n} is one\n" for n in range(9))
        path.write_text(text, encoding="utf-8")
        source, limit = (str(path),), rng.choice((24, 100))
        data = DataSettings(
            target=WORD, forget=source, retain=source, context_lines=rng.randint(0, 2), retain_lines=rng.randint(1, 4),
            neighbours=rng.random() < 0.5, window_tokens=limit,
        )  # fmt: skip
        windows = make_windows(data, tokenizer(), 256, rng.randrange(100))
    sets = windows.sets()
    texts = {name: [window.text for window in of_set] for name, of_set in sets.items()}
    assert all(1 < len(window) <= limit for of_set in sets.values() for window in of_set)
    assert not any(occurrences(each) for name, of_set in texts.items() if name != "forget" for each in of_set)
    every = [each for of_set in texts.values() for each in set(of_set)]
    assert len(every) == len(set(every))
    assert windows.retain and windows.occurrences == len(occurrences(text))
