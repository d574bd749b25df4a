"""Properties of passages and windows, on texts that hypothesis makes up (its profile is in tests/conftest.py)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_core.corpus.passages import Occurrence, Passage, Pieces, Ranges, blocks
from unlearn_core.corpus.reading.document import Document
from unlearn_core.corpus.reading.unpack import at_lines
from unlearn_core.corpus.scan import CorpusScan
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import forget_windows, left_in, make_windows, retain_window, sliding
from unlearn_core.settings.sections import DataSettings
from unlearn_core.world import FULL

WORD = "zorblatt"
TARGETS = st.tuples(st.integers(0, 40), st.sampled_from((WORD, WORD.upper(), f"“{WORD}”", f"{WORD}.")))
LIMITS = st.integers(4, 60)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FULL)


@st.composite
def texts(draw: st.DrawFn, most_lines: int = 25, targets: bool = True) -> str:
    """Lines of words that all differ and are equally long; some lines are blank, some hold the target once or more."""
    some = st.one_of(st.just([]), st.lists(TARGETS, min_size=1, max_size=3)) if targets else st.just([])
    shapes = draw(st.lists(st.tuples(st.sampled_from((0, 3, 9, 40)), some), min_size=1, max_size=most_lines))
    lines = []
    for number, (count, inserted) in enumerate(shapes):
        words = [f"w{number:02}x{place:02}" for place in range(count)]
        for place, form in inserted:
            words.insert(place, form)
        lines.append(" ".join(words))
    return draw(st.sampled_from(("\n", "\n\n"))).join(lines) + draw(st.sampled_from(("", "\n")))


def occurrences(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in regex.finditer(WORD, text, regex.IGNORECASE)]


def passage_of(text: str) -> Passage:
    marks = tuple(Occurrence(str(n), start, end, "") for n, (start, end) in enumerate(occurrences(text)))
    return Passage(text, occurrences=marks, whole=True)


@st.composite
def documents(draw: st.DrawFn, text: str) -> list[Document]:
    """The text as documents of whole lines, as a reader gives a long file."""
    lines = text.splitlines(keepends=True)
    ends = sorted({*draw(st.lists(st.integers(1, len(lines)), max_size=12)), len(lines)}) if lines else []
    return [
        Document("".join(lines[first:end]).encode(), "here", first_line=first + 1, continues=end < len(lines))
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def scanned(parts: list[Document], data: DataSettings) -> tuple[CorpusScan, list[Passage]]:
    """The scan over these documents, and its passages in the order of the text."""
    scan = CorpusScan(data, Target(data), 0, lambda progress: None)
    for document in parts:
        scan.add(document, True, False)
    return scan, [passage for _, passage in sorted(scan.passages.items, key=lambda pair: pair[0])]


# ----------------------------------------------------------------------------------------------------------- passages


def lines_around_occurrences(text: str, context: int) -> list[str]:
    """The passages by brute force: lines near one with the target, joined where they overlap."""
    lines = [line for line in text.splitlines() if line.strip()]
    spans: list[list[int]] = []
    for hit in (index for index, line in enumerate(lines) if occurrences(line)):
        first, last = max(0, hit - context), min(len(lines) - 1, hit + context)
        if spans and first <= spans[-1][1]:
            spans[-1][1] = last
        else:
            spans.append([first, last])
    return ["\n".join(lines[first : last + 1]) for first, last in spans]


@given(text=texts(), context=st.integers(0, 4), cut=st.data())
def test_passages_are_the_lines_around_every_occurrence_however_the_text_is_cut_into_stretches(
    text: str, context: int, cut: st.DataObject
) -> None:
    data = DataSettings(target=WORD, context_lines=context)
    _, passages = scanned(cut.draw(documents(text)), data)
    assert [passage.text for passage in passages] == lines_around_occurrences(text, context)
    assert passages == scanned([Document(text.encode(), "here")], data)[1]
    lines = text.split("\n")
    for passage in passages:
        assert occurrences(passage.text) == [(mark.start, mark.end) for mark in passage.occurrences]
        assert lines[passage.first - 1] == passage.text.split("\n")[0]
        assert lines[passage.last - 1] == passage.text.split("\n")[-1]
        for mark in passage.occurrences:
            line = passage.text[: mark.start].rpartition("\n")[2] + passage.text[mark.start :].partition("\n")[0]
            assert lines[int(mark.place.removeprefix("line ")) - 1] == line


@given(text=texts(), context=st.integers(0, 4), window_tokens=st.sampled_from((8, 32)), cut=st.data())
def test_every_occurrence_is_in_exactly_one_passage_of_bounded_length_and_no_word_is_in_two(
    text: str, context: int, window_tokens: int, cut: st.DataObject
) -> None:
    """Also where a line, or a sequence of lines with the target, is longer than windows can hold."""
    data = DataSettings(target=WORD, context_lines=context, window_tokens=window_tokens)
    scan, passages = scanned(cut.draw(documents(text)), data)
    marks = [mark for passage in passages for mark in passage.occurrences]
    assert len(marks) == len({mark.id for mark in marks}) == len(occurrences(text)) == scan.hits
    lines = text.splitlines()
    for passage in passages:
        assert occurrences(passage.text) == [(mark.start, mark.end) for mark in passage.occurrences]
        assert len(passage.text) <= 5 * scan.reach + len(WORD)
        assert all(part in "\n".join(lines[passage.first - 1 : passage.last]) for part in passage.text.split("\n"))
        for mark in passage.occurrences:
            assert occurrences(lines[int(mark.place.removeprefix("line ")) - 1])
    words = regex.findall(r"w\d\dx\d\d", "\n".join(passage.text for passage in passages))
    assert len(words) == len(set(words))


@given(text=texts(), reach=st.sampled_from((3, 20, 400)))
def test_blocks_hold_every_line_once_and_in_order(text: str, reach: int) -> None:
    parts = list(blocks(text, 1, reach))
    assert "".join(block for _, _, block in parts).replace("\n", "") == text.replace("\n", "")
    assert all(len(block.replace("\n", "")) <= 2 * reach for _, _, block in parts)
    assert all(earlier[1] <= later[0] for earlier, later in zip(parts, parts[1:], strict=False))


@given(text=texts(), count=st.integers(0, 7))
def test_pieces_of_a_document_put_together_are_the_document(text: str, count: int) -> None:
    raw = text.encode()
    pieces = Pieces(Document(raw, first_line=5), raw, count)
    parts = [pieces.raw(index) for index in range(pieces.count)]
    assert b"\n".join(parts).rstrip(b"\n") == raw.rstrip(b"\n")
    assert all(part.rstrip(b"\n").count(b"\n") < count for part in parts) or not count
    numbers = [
        number for index in range(pieces.count) for number in range(pieces.lines(index)[0], pieces.lines(index)[1] + 1)
    ]
    assert not count or numbers == list(range(5, 5 + len(numbers)))


LINE_RANGES = st.builds(
    lambda document, first, more: Passage("", document=document, first=first, last=first + more),
    st.integers(0, 2), st.integers(1, 60), st.integers(0, 9),
)  # fmt: skip


@given(covering=st.lists(LINE_RANGES, max_size=6), other=LINE_RANGES)
def test_passages_overlap_where_they_have_a_line_in_common(covering: list[Passage], other: Passage) -> None:
    common = any(
        each.document == other.document and each.first <= other.last and other.first <= each.last for each in covering
    )
    assert Ranges(covering).overlap(other) == common


@given(
    text=texts(), times=st.sampled_from((1, 30, 300)), sizes=st.lists(st.integers(1, 1 << 17), min_size=1, max_size=20)
)
def test_blocks_of_whole_lines_put_together_are_the_bytes(text: str, times: int, sizes: list[int]) -> None:
    whole = text.encode() * times
    pieces, at = [], 0
    while at < len(whole):
        pieces.append(whole[at : at + sizes[len(pieces) % len(sizes)] + len(whole) // 100])
        at += len(pieces[-1])
    lines = list(at_lines(pieces))
    assert b"".join(lines) == whole and all(block.endswith(b"\n") for block in lines[:-1])


# ------------------------------------------------------------------------------------------------------------ windows


@given(text=texts(), choice=st.data())
def test_an_excluded_occurrence_is_in_no_part_and_every_other_one_in_exactly_one(
    text: str, choice: st.DataObject
) -> None:
    passage = passage_of(text)
    assume(passage.occurrences)
    excluded = choice.draw(st.sets(st.sampled_from([mark.id for mark in passage.occurrences])))
    parts = list(left_in([passage], excluded))
    wanted = [mark.id for mark in passage.occurrences if mark.id not in excluded]
    assert [mark.id for part in parts for mark in part.occurrences] == wanted
    for part in parts:
        assert occurrences(part.text) == [(mark.start, mark.end) for mark in part.occurrences]
        assert part.text in passage.text


@given(length=st.integers(1, 1000), place=st.integers(0, 999), limit=st.integers(4, 801))
def test_windows_slide_toward_an_occurrence_by_an_eighth_and_train_on_what_follows_it(
    length: int, place: int, limit: int
) -> None:
    """The trained parts begin at the target; together they reach the text's end or 7/8 of a window behind it."""
    first = place % length
    spans = list(sliding(range(length), first, limit))
    starts = [start for start, _ in spans]
    assert all(start <= first < end <= length and end - start <= limit for start, end in spans)
    assert first == 0 or all(start < first for start in starts), "a token before the target predicts it"
    assert starts[0] == 0 if length <= limit else first - starts[0] <= limit // 2
    assert all(later - earlier == max(1, limit // 8) for earlier, later in zip(starts, starts[1:], strict=False))
    assert first - starts[-1] <= max(1, limit // 8)
    assert max(end for _, end in spans) >= min(length, first + limit - max(1, limit // 8) if first else limit)


@given(text=texts(12), limit=st.sampled_from((24, 40, 100)))
def test_every_occurrence_has_windows_that_begin_to_train_at_it(text: str, limit: int) -> None:
    """Where two occurrences have the same window, it is trained on once."""
    passage, data = passage_of(text), DataSettings(target=WORD)
    windows = forget_windows([passage], data, tokenizer(), limit)
    alone = [replace(passage, occurrences=(mark,)) for mark in passage.occurrences]
    windows_alone = [forget_windows([each], data, tokenizer(), limit) for each in alone]
    assert all(windows_alone)
    wanted = [(window.ids, window.first_loss) for of_one in windows_alone for window in of_one]
    assert [(window.ids, window.first_loss) for window in windows] == list(dict.fromkeys(wanted))
    for window in windows:
        trained = tokenizer().decode(list(window.ids[window.first_loss :])).lower().lstrip(" “\n")
        assert len(window) <= limit and 0 <= window.first_loss < len(window)
        assert trained.startswith(WORD[: len(trained)])


@given(text=texts(12), limit=st.sampled_from((24, 40, 100)))
def test_another_answer_would_begin_behind_the_sentence_or_line_of_the_occurrence(text: str, limit: int) -> None:
    passage = passage_of(text)
    places = {mark.id: mark for mark in passage.occurrences}
    once = forget_windows([passage], DataSettings(target=WORD), tokenizer(), limit)
    copies = [passage, replace(passage, source="a copy")]
    assert forget_windows(copies, DataSettings(target=WORD), tokenizer(), limit) == once, "the same text counts once"
    for window in once:
        mark, end = places[window.occurrence], window.first_loss + window.answer_offset
        rest = regex.split(r"(?<=\.”?)\s|\n", text[mark.end :])[0]
        assert window.answer_offset > 0
        if end <= len(window):
            answer = tokenizer().decode(list(window.ids[window.first_loss : end]))
            assert answer.strip().lstrip("“") == text[mark.start : mark.end] + rest


@given(text=texts(targets=False), limit=LIMITS, whole=st.booleans())
def test_a_text_that_is_forgotten_whole_is_covered_by_its_windows(text: str, limit: int, whole: bool) -> None:
    data = DataSettings(everything=True, target="all")
    passage = Passage(text, whole=whole, occurrences=(Occurrence("0", 0, 0, ""),))
    windows = forget_windows([passage], data, tokenizer(), limit)
    ids = [*tokenizer()(text)["input_ids"], *([tokenizer().eos_token_id] if whole else [])] or [0]
    assert all(1 < len(window) <= limit and window.first_loss == 1 for window in windows)
    parts = [ids[start : start + limit] for start in range(0, len(ids), limit)]
    if len(parts[-1]) == 1:  # nothing predicts a window's first token
        parts[-1] = ids[-2:]
    assert {window.ids for window in windows} == {tuple(part) for part in parts if len(part) > 1}


@given(text=texts(targets=False), limit=LIMITS, whole=st.booleans())
def test_a_retain_window_is_the_beginning_of_its_text(text: str, limit: int, whole: bool) -> None:
    window = retain_window(Passage(text, whole=whole), DataSettings(), tokenizer(), limit)
    ids = [*tokenizer()(text)["input_ids"], *([tokenizer().eos_token_id] if whole else [])]
    assert list(window.ids) == ids[:limit] and window.first_loss == 1


@settings(max_examples=15)  # each reads a file from the disk
@given(
    text=texts(), other=texts(), limit=st.sampled_from((24, 100)), context=st.integers(0, 2),
    retain_lines=st.integers(1, 4),
    neighbours=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_retain_text_holds_the_target_and_no_text_is_in_two_sets(
    text: str, other: str, limit: int, context: int, retain_lines: int, neighbours: bool, seed: int
) -> None:
    """Neither out of the texts to forget from nor out of others, whose lines with the target are in no passage."""
    text = f"{text}\nthe {WORD}\n" + "".join(f"line v{n} is one\n" for n in range(9))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "corpus.txt"), Path(folder, "other.txt")]
        paths[0].write_text(text, encoding="utf-8")
        paths[1].write_text(f"{other.replace('w', 'u')}\nnot a {WORD}\n", encoding="utf-8")
        sources = tuple(map(str, paths))
        data = DataSettings(
            target=WORD, forget=sources[:1], retain=sources, context_lines=context, retain_lines=retain_lines,
            neighbours=neighbours, window_tokens=limit,
        )  # fmt: skip
        windows = make_windows(data, tokenizer(), 256, seed)
    sets = windows.sets()
    texts_of = {name: [window.text for window in of_set] for name, of_set in sets.items()}
    assert all(1 < len(window) <= limit for of_set in sets.values() for window in of_set)
    assert not any(occurrences(each) for name, of_set in texts_of.items() if name != "forget" for each in of_set)
    for name, of_set in sets.items():
        decoded = [tokenizer().decode(list(window.ids)) for window in of_set]
        assert name == "forget" or not any(map(occurrences, decoded))
    every = [each for of_set in texts_of.values() for each in set(of_set)]
    assert len(every) == len(set(every))
    assert windows.retain and windows.occurrences == len(occurrences(text))
