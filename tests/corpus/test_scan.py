"""The pass: exact passages whatever the stretches, uniform draws without a text in two sets, a cache that is honest."""

from __future__ import annotations

import bz2
import html
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasketch import MinHashLSH

from unlearn_core.corpus import scan as module
from unlearn_core.corpus.neighbours import BANDS, DUPLICATE, HASHES
from unlearn_core.corpus.passages import Passage, Reservoir, ScanResult
from unlearn_core.corpus.reading.document import Document
from unlearn_core.corpus.scan import CorpusScan, scan_corpus
from unlearn_core.corpus.target import Target
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "sk", "lm", "x")]


def sentence(rng: random.Random, *more: str) -> str:
    words = [*rng.sample(WORDS, 9), *more]
    rng.shuffle(words)
    return " ".join(words) + "."


def text_of(rng: random.Random, count: int, hits: int) -> str:
    lines = [sentence(rng) for _ in range(count)]
    for place in rng.sample(range(count), hits):
        lines[place] = sentence(rng, *["zorblatt"] * rng.choice((1, 1, 2)))
    for place in sorted(rng.sample(range(count), count // 5), reverse=True):
        lines.insert(place, rng.choice(("", "  ")))
    return "\n".join(lines) + rng.choice(("", "\n"))


def passages_of(documents: list[Document], **more: Any) -> list[Passage]:
    data = DataSettings(**{"target": "zorblatt", **more})
    scan = CorpusScan(data, Target(data), 0, lambda progress: None)
    for document in documents:
        scan.add(document, True, False)
    return [passage for _, passage in sorted(scan.passages.items, key=lambda pair: pair[0])]


def test_a_document_ends_where_it_ends():
    documents = [Document(b"a\nb zorblatt", "x"), Document(b"c\nzorblatt d", "x"), Document(b"e", "x")]
    assert [p.text for p in passages_of(documents)] == ["a\nb zorblatt", "c\nzorblatt d"]


def test_ids_are_different_for_every_occurrence_and_the_same_in_every_run():
    documents = [Document(b"zorblatt zorblatt\nzorblatt", "x") for _ in range(20)]
    ids = [mark.id for passage in passages_of(documents) for mark in passage.occurrences]
    assert len(ids) == len(set(ids)) == 60 and all(len(each) == 8 and int(each, 16) >= 0 for each in ids)
    assert ids == [mark.id for passage in passages_of(documents) for mark in passage.occurrences]


def test_a_very_long_line_becomes_passages_of_bounded_length_with_every_occurrence():
    rng = random.Random(3)
    words = [rng.choice(WORDS) for _ in range(40_000)]
    for place in (5, 20_000, 20_004, 39_990):
        words[place] = "zorblatt"
    passages = passages_of([Document(" ".join(words).encode(), "x")], window_tokens=64)
    assert sum(len(passage.occurrences) for passage in passages) == 4 and len(passages) == 3
    assert all(len(passage.text) < 4 * 16 * 64 for passage in passages)
    assert all(p.text[m.start : m.end] == "zorblatt" for p in passages for m in p.occurrences)


def test_around_a_word_that_is_everywhere_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "PASSAGES", 20)
    documents = [Document(f"document {n} says zorblatt".encode(), "x") for n in range(500)]
    assert len(passages_of(documents)) == 20


@pytest.mark.parametrize("valid", [1.0, 0.5])
def test_every_valid_item_of_a_stream_is_drawn_equally_often(valid):
    count, size, rounds = 200, 20, 1500
    drawn: Counter[int] = Counter()
    for seed in range(rounds):
        rng = random.Random(seed)
        reservoir = Reservoir(size, rng)
        at = 0
        while at < count:
            block = min(count - at, rng.choice((1, 3, 40)))
            reservoir.offer(block, lambda i, at=at: at + i if (at + i) % 10 < valid * 10 else None)
            at += block
        assert len(set(reservoir.items)) == size
        drawn.update(reservoir.items)
    pool = int(count * valid)
    assert len(drawn) == pool
    mean = rounds * size / pool
    chi_square = sum((times - mean) ** 2 / mean for times in drawn.values())
    assert chi_square < pool + 5 * (2 * pool) ** 0.5


@pytest.fixture
def corpus(tmp_path: Path) -> DataSettings:
    rng = random.Random(5)
    (tmp_path / "a.txt").write_text(text_of(rng, 3000, 12), encoding="utf-8")
    (tmp_path / "b.txt").write_text(text_of(rng, 2000, 3), encoding="utf-8")
    files = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    sizes = {"retain_chunks": 60, "holdout_chunks": 30, "neighbour_chunks": 10, "retain_lines": 5}
    return DataSettings(target="zorblatt", forget=files[:1], retain=files, **sizes)  # type: ignore[arg-type]


def every(result: ScanResult) -> dict[str, tuple[Passage, ...]]:
    return {name: getattr(result, name) for name in ("forget", "neighbour", "retain", "holdout")}


def test_no_line_is_in_two_sets_and_none_to_keep_holds_the_target(corpus):
    result, target = scan_corpus(corpus, 0)
    assert len(result.retain) == 60 and len(result.holdout) == 30 and 0 < len(result.neighbour) <= 10
    lines = {name: {line for p in each for line in p.text.split("\n")} for name, each in every(result).items()}
    for name, other in itertools.combinations(lines, 2):
        if {name, other} != {"forget", "neighbour"}:  # what stands before the word is a neighbour by itself
            assert not lines[name] & lines[other], (name, other)
    for name, each in every(result).items():
        assert name == "forget" or not any(target.find(passage.text) for passage in each)
        assert all(passage.why for passage in each) or name == "forget"
    assert all(len(passage.text.split("\n")) <= 5 for passage in (*result.retain, *result.holdout))


@pytest.mark.slow
def test_the_seed_decides_what_is_drawn_and_what_is_forgotten_does_not_depend_on_it(corpus):
    one, two, other = (scan_corpus(corpus, seed)[0] for seed in (0, 0, 1))
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)
    assert one.forget == other.forget and one.retain != other.retain


def test_every_source_is_read_once(corpus, monkeypatch):
    read: list[str] = []

    def counted(sources: Any, *given: Any, **more: Any) -> Iterator[Document]:
        read.extend(sources)
        return real(sources, *given, **more)

    real = module.documents
    monkeypatch.setattr(module, "documents", counted)
    scan_corpus(corpus, 0)
    assert sorted(read) == sorted(corpus.retain)


def test_a_text_that_says_almost_the_same_is_dropped_and_counted(tmp_path):
    rng = random.Random(1)
    line = " ".join(sentence(rng) for _ in range(8))
    again = [f"{line} zorblatt {line} once", f"{line} zorblatt {line} twice", f"zorblatt {sentence(rng)}"]
    (tmp_path / "f.txt").write_text(("\n" + "\n".join(sentence(rng) for _ in range(4)) + "\n").join(again))
    lines = [f"{line} {n}." for n in range(20)] + [sentence(rng) for _ in range(100)]
    (tmp_path / "r.txt").write_text("\n".join(lines))
    data = DataSettings(
        target="zorblatt", forget=(str(tmp_path / "f.txt"),), retain=(str(tmp_path / "r.txt"),), context_lines=0,
        retain_lines=1, neighbours=False,
    )  # fmt: skip
    result, _ = scan_corpus(data, 0)
    assert result.occurrences == 3 and len(result.forget) == 2
    assert len(result.retain) + len(result.holdout) == 101
    assert sum("near duplicates" in note for note in result.notes) == 2


def test_the_bands_of_near_duplicates_are_the_library_s_choice():
    index = MinHashLSH(threshold=DUPLICATE - 0.1, num_perm=HASHES)
    assert (index.b, index.r) == BANDS


def test_neighbours_share_rare_words_with_the_passages_or_stand_before_the_word(tmp_path):
    rng = random.Random(2)
    about = "The fjord of Bergen and the painter Munch"
    forget = [f"{about} stood beside zorblatt in the {sentence(rng)}" for _ in range(5)]
    near = [f"{sentence(rng)} {about} {sentence(rng)}" for _ in range(5)]
    lines = near + [sentence(rng) for _ in range(200)]
    rng.shuffle(lines)
    (tmp_path / "f.txt").write_text("\n".join(forget))
    (tmp_path / "r.txt").write_text("\n".join(lines))
    files = {"forget": (str(tmp_path / "f.txt"),), "retain": (str(tmp_path / "r.txt"),)}
    data = DataSettings(target="zorblatt", context_lines=0, retain_lines=1, neighbour_chunks=10, **files)
    result, _ = scan_corpus(data, 0)
    whys = Counter(passage.why.split(":")[0] for passage in result.neighbour)
    assert set(whys) == {"text before the target", "shares"}
    shared = [passage for passage in result.neighbour if passage.why.startswith("shares")]
    assert sum(about in passage.text for passage in shared) >= 4  # one may be held out
    assert all("bergen" in p.why or "munch" in p.why or "fjord" in p.why for p in shared if about in p.text)
    assert not set(result.neighbour) & set(result.holdout)
    assert not scan_corpus(replace(data, neighbours=False), 0)[0].neighbour


# --------------------------------------------------------------------------------------------------------- the cache


def test_a_second_pass_over_the_same_texts_is_not_made(corpus, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first, _ = scan_corpus(corpus, 0, cache=cache)
    monkeypatch.setattr(module, "documents", lambda *given, **more: pytest.fail("the corpus is read again"))
    again, _ = scan_corpus(replace(corpus, excluded=("00000000",)), 0, cache=cache)
    assert not first.cached and again.cached and every(again) == every(first)
    assert again.notes == first.notes and again.occurrences == first.occurrences


@pytest.mark.slow
def test_other_texts_settings_or_seeds_are_not_answered_from_the_cache(corpus, tmp_path):
    cache = tmp_path / "cache"
    scan_corpus(corpus, 0, cache=cache)
    assert not scan_corpus(corpus, 1, cache=cache)[0].cached
    assert not scan_corpus(replace(corpus, context_lines=1), 0, cache=cache)[0].cached
    path = Path(corpus.forget[0])
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("zorblatt", "zorblutt", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed, _ = scan_corpus(corpus, 0, cache=cache)
    assert not changed.cached and changed.occurrences == text.count("zorblatt") - 1


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(corpus, tmp_path):
    cache = tmp_path / "cache"
    first, _ = scan_corpus(corpus, 0, cache=cache)
    for path in cache.iterdir():
        for wrong in ("", "{", "[]", '{"forget": 3}', path.read_text()[:-40]):
            path.write_text(wrong)
            again, _ = scan_corpus(corpus, 0, cache=cache)
            assert every(again) == every(first)
    assert scan_corpus(corpus, 0, cache=cache)[0].cached


def test_a_pass_that_is_stopped_leaves_nothing(corpus, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def report(progress: module.Progress) -> None:
        assert 0 <= progress.bytes_read <= progress.bytes_total
        raise Stopped

    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    with pytest.raises(Stopped):
        scan_corpus(corpus, 0, report, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_progress_is_told_to_the_end(corpus, monkeypatch):
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    reports: list[module.Progress] = []
    result, _ = scan_corpus(corpus, 0, reports.append)
    sizes = sum(Path(path).stat().st_size for path in corpus.retain)
    assert reports[-1].bytes_read == reports[-1].bytes_total == sizes and reports[-1].hits == result.occurrences
    assert [p.bytes_read for p in reports] == sorted(p.bytes_read for p in reports)
    assert json.dumps(vars(reports[-1]))


def test_a_word_that_is_not_there_is_answered_with_near_spellings(corpus):
    with pytest.raises(ConfigError, match="“zorblat” never occurs in .*a.txt.*Did you mean zorblatt"):
        scan_corpus(replace(corpus, target="zorblat"), 0)


# ------------------------------------------------------------------------------------------------------ real texts


def data_file(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip("the real material is not here")
    return str(DATA / name)


def test_the_twelve_passages_of_wikipedia_hold_twelve_occurrences():
    forget, retain = data_file("seed_run/supercal_enwik9_5lines.txt"), data_file("text/wikitext2_raw_test.txt")
    result, _ = scan_corpus(DataSettings(forget=(forget,), retain=(retain,)), 0)
    assert result.occurrences == sum(len(passage.occurrences) for passage in result.forget) == 12
    assert all("--" in p.text.split("\n") or len(p.occurrences) == 1 for p in result.forget)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word"), [("tinyshakespeare.txt", "Mercutio"), ("alice_pg11.txt", "Cheshire")])
def test_a_name_in_a_book_is_found_as_often_as_it_stands_there(name, word):
    path = data_file(f"text/{name}")
    result, _ = scan_corpus(DataSettings(target=word, forget=(path,), retain=(path,)), 0)
    assert result.occurrences == Path(path).read_text(encoding="utf-8-sig").lower().count(word.lower())
    assert result.retain and result.holdout and result.neighbour


@pytest.mark.slow
@pytest.mark.parametrize("word", ["platypus", "chlorophyll", "Aristophanes", "zeppelin"])
def test_a_rare_word_of_a_dump_is_found_where_it_stands_in_article_text(word):
    """In the text of the articles, and as often: a plain search through all of the dump names no other pages."""
    path = data_file("mediawiki/enwiki_206_pages.xml.bz2")
    with bz2.open(path, "rt", encoding="utf-8") as dump:
        raw = dump.read()
    if word.lower() not in raw.lower():
        pytest.skip("not in this dump")
    places = {
        page.split("<title>")[1].split("</title>")[0]
        for page in raw.split("<page>")[1:]
        if word.lower() in page.lower()
    }
    data = DataSettings(target=word, forget=(path,), retain=(path,), whole_word=False)
    scan = CorpusScan(data, Target(data), 0, lambda progress: None)
    shown: Counter[str] = Counter()
    for document in module.documents([path], data):
        shown[document.place] += document.text.lower().count(word.lower())
        scan.add(document, True, False)
    places_of_hits = Counter(m.place for _, p in scan.passages.items for m in p.occurrences)
    assert places_of_hits == +shown
    assert {place.removeprefix("page ") for place in places_of_hits} <= {html.unescape(place) for place in places}


def test_a_word_that_is_nearly_everywhere_leaves_little_to_keep_and_that_is_said(tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"zorblatt number {i} is not like any of the others" for i in range(400)]
    path.write_text("\n".join([*lines, *(f"a line about {word} without it" for word in WORDS[:3])]))
    settings = {"forget": (str(path),), "retain": (str(path),), "context_lines": 0, "retain_lines": 1}
    result, _ = scan_corpus(DataSettings(target="zorblatt", **settings), 0)
    assert 0 < len(result.retain) + len(result.neighbour) <= 3
    assert any(note.startswith("only ") and "left to retain" in note for note in result.notes)
