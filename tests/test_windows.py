"""Windows: every occurrence, exact context, four sets without a text in common, and targets of every kind."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unlearn_core import corpus, windows
from unlearn_core.config import ConfigError, DataSettings, RunConfig
from unlearn_core.corpus import Document, documents
from unlearn_core.models import collate
from unlearn_core.windows import Windows, check_target, chunks, make_windows, passages, pattern, sliding
from unlearn_core.world import SUGGESTED_TARGETS, TARGET


@pytest.fixture(scope="module")
def tokenizer(tiny) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny.root / "gptj")


def settings(folder: Path, target: str, forget: str, retain: str = "", **more: Any) -> DataSettings:
    (folder / "forget.txt").write_text(forget, encoding="utf-8")
    keep = retain or "\n".join(f"Line {n} of quite another text." for n in range(400))
    (folder / "retain.txt").write_text(keep, encoding="utf-8")
    facts: dict[str, Any] = {"context_lines": 2, "retain_lines": 2, **more}
    return DataSettings(target, (str(folder / "forget.txt"),), (str(folder / "retain.txt"),), **facts)


def found(text: str, target: str, context: int = 1) -> list[str]:
    cut = list(passages([Document(text.encode(), "here")], target, context))
    return [passage.text[passage.start : passage.end] for passage in cut]


@pytest.mark.parametrize(
    ("target", "text", "expected"),
    [
        ("Oslo", "Oslo and oslo and OSLO", ["Oslo", "oslo", "OSLO"]),
        ("oslo", "(Oslo), “oslo”! Oslo's oslo-bound /Oslo", ["Oslo", "oslo", "Oslo", "oslo", "Oslo"]),
        ("oslo", "Oslofjord foroslo Oslo_2 oslo2 2oslo", []),
        ("oslo", "é oslo é", ["oslo"]),
        ("oslo", "éoslo osloé", []),
        ("Mary Poppins", "Mary Poppins, mary poppins; Maryx Poppins MaryPoppins", ["Mary Poppins", "mary poppins"]),
        ("C++", "C++ is not C, nor C+ nor c++.", ["C++", "c++"]),
        ("C++", "both C++17 and C++", ["C++", "C++"]),
        ("a.b", "a.b axb a.b", ["a.b", "a.b"]),
        ("🎩", "a 🎩, tophat🎩 and 🎩🎩", ["🎩"] * 4),
        ("שלום", "אמר שלום, שלומית לא; שלום.", ["שלום", "שלום"]),
        ("مرحبا", "قال مرحبا بالعالم", ["مرحبا"]),
        ("oslo", "oslo\r\noslo\x0boslo\n\n\noslo", ["oslo"] * 4),
        ("the the", "the the the", ["the the"]),
        ("東京", "私は東京に住む。東京！", ["東京", "東京"]),
        ("กรุงเทพ", "ฉันอยู่กรุงเทพมานาน", ["กรุงเทพ"]),
        ("서울", "서울 사람, 서울특별시", ["서울"]),
    ],
)
def test_every_occurrence_of_the_whole_word_is_found_whatever_its_case(target, text, expected, tmp_path):
    assert found(text, target) == expected
    config = {"data": {"target": target, "forget": [str(tmp_path / "f.txt")]}}
    (tmp_path / "f.txt").write_text(text, encoding="utf-8")
    if expected:
        assert check_target(RunConfig.from_dict(config)) == len(expected)
    else:
        with pytest.raises(ConfigError, match="never occurs"):
            check_target(RunConfig.from_dict(config))


def test_a_passage_has_the_lines_either_side_and_stays_in_its_document():
    text = "\n".join(["a", "", "b", "c", "oslo 1", "  ", "d", "oslo 2", "e"])
    one, two = passages([Document(b"oslo? no", "x"), Document(text.encode(), "y")][1:], "oslo", 2)
    assert one.text == "b\nc\noslo 1\nd\noslo 2" and two.text == "oslo 1\nd\noslo 2\ne"
    assert all(p.text[p.start : p.end] == "oslo" for p in (one, two))
    assert [p.text for p in passages([Document(text.encode(), "y")], "oslo", 0)] == ["oslo 1", "oslo 2"]


@pytest.mark.parametrize("limit", [12, 33, 64, 800])
def test_context_is_what_stands_before_the_target_and_loss_begins_at_its_first_piece(tiny, tokenizer, limit):
    data = tiny.config(data={"window_tokens": limit}).data
    made = make_windows(data, tokenizer, 96, 0)
    wanted = pattern(tiny.target)
    assert made.occurrences == 8
    for window in made.forget:
        assert 1 < len(window) <= min(limit, 96)
        text, whole = tokenizer.decode(window.ids[window.first_loss :]), tokenizer(window.text)["input_ids"]
        assert wanted.match(text.lstrip()) or len(tokenizer.decode(window.ids)) < len(tiny.target) + 20
        assert tiny.target.startswith(tokenizer.decode(window.ids[window.first_loss]).strip().lower() or tiny.target[0])
        starts = [i for i in range(len(whole)) if tuple(whole[i : i + len(window)]) == window.ids]
        assert starts, "a window is a stretch of its passage"
        labels = collate([window], tokenizer.pad_token_id).labels[0].tolist()
        first = next(place for place, label in enumerate(labels) if label != -100)
        assert first == window.first_loss or window.first_loss == 0
        assert labels[first:] == list(window.ids[first:])


def test_every_occurrence_is_asked_for_after_some_context_where_there_is_any(tiny, tokenizer):
    """A first piece without any token before it cannot be predicted: only a text that begins with it goes without."""
    for limit in (16, 24, 32, 64):
        made = make_windows(tiny.config(data={"window_tokens": limit}).data, tokenizer, 96, 0)
        bare = [window for window in made.forget if window.first_loss == 0]
        assert all(pattern(tiny.target).match(window.text) for window in bare)


@pytest.mark.parametrize(
    ("length", "first_loss", "limit"),
    list(itertools.product((1, 5, 40, 200, 1000), (0, 1, 4, 39, 160, 999), (4, 8, 64, 100, 801))),
)
def test_windows_slide_toward_the_target_by_an_eighth(length, first_loss, limit):
    if first_loss >= length:
        return
    spans = list(sliding(range(length), first_loss, limit))
    starts = [start for start, _ in spans]
    assert all(start <= first_loss < end <= length and 0 < end - start <= limit for start, end in spans)
    assert starts[0] == 0 if length <= limit else first_loss - starts[0] <= limit // 2
    assert all(later - earlier == max(1, limit // 8) for earlier, later in itertools.pairwise(starts))
    assert first_loss - starts[-1] <= max(1, limit // 8)
    assert all(start < first_loss for start in starts) or starts == [0]


def every_text(made: Windows) -> dict[str, list[str]]:
    return {name: [window.text for window in found] for name, found in made.sets().items()}


def check_sets(made: Windows, target: str) -> None:
    texts = every_text(made)
    for name, found in texts.items():
        assert name == "forget" or not any(pattern(target).search(text) for text in found)
    for one, other in itertools.combinations(texts, 2):
        assert not set(texts[one]) & set(texts[other]), (one, other)


def test_no_text_is_in_two_sets_and_none_to_keep_holds_the_target(tiny, tokenizer):
    made = make_windows(tiny.config().data, tokenizer, 96, 0)
    check_sets(made, tiny.target)
    assert len(made.retain) + len(made.holdout) == 147 and 0.05 < len(made.holdout) / 147 < 0.25
    assert make_windows(tiny.config().data, tokenizer, 96, 0) == made


@pytest.mark.parametrize("target", [*SUGGESTED_TARGETS, "penguin"])
def test_the_bundled_world_gives_four_sets_for_a_word_of_it(tokenizer, target):
    for lines in (1, 20):
        made = make_windows(DataSettings(target=target, retain_lines=lines), tokenizer, 256, 0)
        check_sets(made, target)
        assert list(made.sets()) == ["forget", "retain", "neighbour", "holdout"]
        assert made.occurrences >= 3 and len(made.neighbour) >= 8


def test_neighbours_are_about_the_same_things_and_can_be_left_out(tokenizer):
    made = make_windows(DataSettings(), tokenizer, 256, 0)
    assert sum("Poppins" in window.text or "Banks" in window.text for window in made.neighbour) > 40
    assert not any("Poppins" in window.text for window in (*made.retain, *made.holdout))
    without = make_windows(DataSettings(neighbours=False), tokenizer, 256, 0)
    assert not without.neighbour and "neighbour" not in without.sets()
    assert len(without.retain) + len(without.holdout) == sum(len(made.sets()[n]) for n in list(made.sets())[1:])


def test_what_is_drawn_to_keep_is_uniform_over_the_corpus_and_takes_one_pass(tmp_path, tokenizer, monkeypatch):
    retain = "\n".join(f"number {n} is one of many" for n in range(60))
    data = settings(tmp_path, "oslo", "oslo is a city", retain, retain_chunks=10, retain_lines=1)
    passes: Counter[str] = Counter()

    def counted(sources):
        for source in sources:
            passes[source] += 1
            yield from corpus.documents([source])

    monkeypatch.setattr(windows, "documents", counted)
    drawn: Counter[str] = Counter()
    for seed in range(150):
        made = make_windows(data, tokenizer, 96, seed)
        assert len(made.retain) == 10 and len({window.text for window in made.retain}) == 10
        drawn.update(window.text for window in made.retain)
    assert passes[data.retain[0]] == 150
    pool = len(drawn)  # all but the few that are held out
    assert 40 < pool < 60
    expected = 150 * 10 / pool
    chi_square = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert chi_square < pool + 4 * (2 * pool) ** 0.5
    thirds = [sum(drawn[f"number {n} is one of many"] for n in range(at, at + 20)) for at in (0, 20, 40)]
    assert max(thirds) < 1.5 * min(thirds)


def test_a_text_to_keep_is_trained_on_from_its_second_token_and_ends_only_where_it_ends(tmp_path, tokenizer):
    data = settings(tmp_path, "oslo", "oslo", "short text\n" + "long text " * 60, retain_lines=1)
    made = make_windows(data, tokenizer, 32, 0)
    short, long = sorted((*made.retain, *made.holdout), key=len)
    assert short.first_loss == long.first_loss == 1 and len(long) == 32
    assert short.ids == (*tokenizer("short text")["input_ids"], tokenizer.eos_token_id)
    assert long.ids == tuple(tokenizer("long text " * 60)["input_ids"][:32]), "a text that was cut has no end"


@pytest.mark.parametrize(
    "target", ["🎩", "👩‍🚀", "שלום", "مرحبا بالعالم", "日本", "x" * 200, "ﷺ", "naïve", "e\u0301t", "C++", "[a]", "\\d"]
)
def test_targets_of_every_script_are_cut_into_pieces_that_spell_them(tmp_path, tokenizer, target):
    data = settings(tmp_path, target, f"Once there was\n{target} and it said {target}.\nThen it left.")
    made = make_windows(data, tokenizer, 600, 0)
    assert made.occurrences == 2
    for window in made.forget:
        assert tokenizer.decode(window.ids[window.first_loss :]).strip().startswith(target)
    check_sets(made, target)


def test_a_target_longer_than_the_context_is_refused_with_both_lengths(tmp_path, tokenizer):
    data = settings(tmp_path, "x" * 200, f"a {'x' * 200} b")
    pieces = len(tokenizer("x" * 200)["input_ids"])
    with pytest.raises(ConfigError, match=rf"{pieces} tokens.* hold 64.*shorter target or longer windows"):
        make_windows(data, tokenizer, 64, 0)


@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_a_target_of_which_the_tokenizer_keeps_nothing_is_refused(tmp_path, unknown):
    words = models.WordLevel({"[UNK]": 0, "the": 1, "hat": 2, "line": 3}, unk_token="[UNK]")
    bare = Tokenizer(words)
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    if unknown is None:
        bare.normalizer = normalizers.Replace("🎩", "")
    plain = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="the", unk_token=unknown)
    with pytest.raises(ConfigError, match="data.target is '🎩'.*no piece.*another word or model"):
        make_windows(settings(tmp_path, "🎩", "the hat\n🎩\nthe hat"), plain, 64, 0)


def test_a_word_that_never_occurs_is_answered_with_where_was_looked_and_near_spellings(tmp_path):
    (tmp_path / "f.txt").write_text("The Zorblatt of Oslo sings.\n", encoding="utf-8")
    given: dict[str, Any] = {"data": {"target": "zorblat", "forget": [str(tmp_path / "f.txt")]}}
    with pytest.raises(ConfigError) as caught:
        check_target(RunConfig.from_dict(given))
    assert all(part in str(caught.value) for part in ("“zorblat”", str(tmp_path / "f.txt"), "1 text", "zorblatt?"))
    with pytest.raises(ConfigError, match="bundled world.*supercalifragilisticexpialidocious"):
        check_target(RunConfig.from_dict({"data": {"target": "supercalifragilisticexpialidocius"}}))
    with pytest.raises(ConfigError, match="Choose a word that stands there"):
        check_target(RunConfig.from_dict({"data": {"target": "🦕🦕"}}))
    assert check_target(RunConfig.from_dict({})) == check_target(RunConfig.from_dict({"data": {"target": TARGET}})) > 20


def test_make_windows_refuses_the_same_and_a_corpus_that_leaves_nothing_to_keep(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="never occurs"):
        make_windows(settings(tmp_path, "bergen", "oslo"), tokenizer, 64, 0)
    for retain in ("oslo\n" * 50, "\n \n", "oslo"):
        with pytest.raises(ConfigError, match="Nothing is left to keep.*“oslo”"):
            make_windows(settings(tmp_path, "oslo", "in oslo", retain), tokenizer, 64, 0)


def test_one_single_text_to_keep_is_kept_not_held_out(tmp_path, tokenizer):
    for n in range(30):  # whichever set its hash falls into
        made = make_windows(settings(tmp_path, "oslo", "in oslo", f"Only text {n}."), tokenizer, 64, 0)
        assert len(made.retain) == 1 and not made.holdout


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "none.txt", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=reason) as caught:
            list(documents([str(path)]))
        assert str(path) in str(caught.value)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.txt.*not UTF-8.*byte 3"):
        list(documents([str(tmp_path / "latin.txt")]))


def test_chunks_hold_every_line_once():
    text = "\n".join(f"line {n}\n" for n in range(23))
    cut = list(chunks([Document(text.encode(), "here", topic="topic", group="group")], 5))
    assert [line for chunk in cut for line in chunk.text.splitlines()] == [f"line {n}" for n in range(23)]
    assert [len(chunk.text.splitlines()) for chunk in cut] == [5, 5, 5, 5, 3]
    assert {(chunk.topic, chunk.group, chunk.source) for chunk in cut} == {("topic", "group", "here")}


def test_padding_has_neither_label_nor_attention_although_its_token_stands_in_the_text(tmp_path, tokenizer):
    end = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    forget = f"First{end} line\nthen oslo{end}{end} and more{end}\nend"
    data = settings(tmp_path, "oslo", forget, f"keep{end} this\n" * 9)
    made = make_windows(data, tokenizer, 96, 0)
    rows = [made.forget[0], made.retain[0], made.forget[-1]]
    tokens = collate(rows, tokenizer.pad_token_id)
    for row, window in enumerate(rows):
        length = len(window)
        assert tokenizer.pad_token_id in window.ids
        assert tokens.mask[row].tolist() == [1] * length + [0] * (tokens.ids.shape[1] - length)
        assert set(tokens.labels[row, length:].tolist()) <= {-100}
        assert tokens.labels[row, window.first_loss : length].tolist() == list(window.ids[window.first_loss :])
        assert set(tokens.labels[row, : window.first_loss].tolist()) <= {-100}
