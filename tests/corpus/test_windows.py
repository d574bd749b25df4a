"""Windows: every occurrence, exact context, four sets without a text in common, and targets of every kind."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import regex
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.quick import some_quick
from unlearn_core.corpus import documents as corpus
from unlearn_core.corpus import scan
from unlearn_core.corpus.passages import Occurrence, Passage
from unlearn_core.corpus.preview import describe
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import Windows, check_target, left_in, make_windows
from unlearn_core.model.batches import collate
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import DataSettings
from unlearn_core.world import SUGGESTED_TARGETS, TARGET


@pytest.fixture(scope="module")
def tokenizer(tiny) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny.root / "gptj")


def settings(folder: Path, target: str, forget: str, retain: str = "", **more: Any) -> DataSettings:
    (folder / "forget.txt").write_text(forget, encoding="utf-8")
    keep = retain or "\n".join(f"Line {n} of quite another text." for n in range(400))
    (folder / "retain.txt").write_text(keep, encoding="utf-8")
    facts: dict[str, Any] = {"context_lines": 2, "retain_lines": 2, **more}
    forget_file, retain_file = ((str(folder / name),) for name in ("forget.txt", "retain.txt"))
    return DataSettings(target=target, forget=forget_file, retain=retain_file, **facts)


def finder(target: str, **more: Any) -> Target:
    return Target(DataSettings(target=target, **more))


def matches(text: str, target: str) -> list[str]:
    return [text[start:end] for start, end in finder(target).find(text)]


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
        ("서울", "서울 사람, 서울특별시", ["서울", "서울"]),
    ],
)
def test_every_occurrence_of_the_whole_word_is_found_whatever_its_case(target, text, expected, tmp_path):
    assert matches(text, target) == expected
    config = {"data": {"target": target, "forget": [str(tmp_path / "f.txt")]}}
    (tmp_path / "f.txt").write_text(text, encoding="utf-8")
    if expected:
        assert check_target(RunConfig.from_dict(config)) == len(expected)
    else:
        with pytest.raises(ConfigError, match="never occurs"):
            check_target(RunConfig.from_dict(config))


@pytest.mark.parametrize("limit", [12, 33, 64, 800])
def test_context_is_what_stands_before_the_target_and_loss_begins_at_its_first_piece(tiny, tokenizer, limit):
    data = tiny.config(data={"window_tokens": limit}).data
    windows = make_windows(data, tokenizer, 96, 0)
    wanted = regex.compile(tiny.target, regex.IGNORECASE)
    assert windows.occurrences == 8
    for window in windows.forget:
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


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("What is zorblatt?\nIt is a lamp.", "What is zorblatt?\n"),
        ("Once. He says zorblatt, and goes. Then he sleeps.", "Once. He says zorblatt, and goes."),
        ("It has zorblatt 3.5 times\nand no more.", "It has zorblatt 3.5 times\n"),
        ('She says "zorblatt!" and goes.', 'She says "zorblatt!"'),
        ("彼は zorblatt。次の", "彼は zorblatt。"),
        ("it ends in zorblatt", "it ends in zorblatt"),
    ],
)
def test_what_else_may_be_answered_comes_behind_the_sentence_in_which_the_target_stands(
    tiny, tokenizer, tmp_path, text, asked
):
    windows = make_windows(settings(tmp_path, tiny.target, text), tokenizer, 96, 0)
    for window in windows.forget:
        context = tokenizer.decode(window.ids[: window.first_loss + window.answer_offset])
        assert asked.endswith(context) and context.rstrip().endswith(asked.rstrip()[-5:])
    longest = max(windows.forget, key=len)
    assert tokenizer.decode(longest.ids[: longest.first_loss + longest.answer_offset]) == asked


def test_every_occurrence_is_asked_for_after_some_context_where_there_is_any(tiny, tokenizer):
    """A first piece without any token before it cannot be predicted: only a text that begins with it goes without."""
    for limit in (16, 24, 32, 64):
        windows = make_windows(tiny.config(data={"window_tokens": limit}).data, tokenizer, 96, 0)
        bare = [window for window in windows.forget if window.first_loss == 0]
        assert all(window.text.lower().startswith(tiny.target) for window in bare)


def every_text(windows: Windows) -> dict[str, list[str]]:
    return {name: [window.text for window in of_set] for name, of_set in windows.sets().items()}


def check_sets(windows: Windows, target: str) -> None:
    texts = every_text(windows)
    for name, of_set in texts.items():
        assert name == "forget" or not any(finder(target).find(text) for text in of_set)
    for one, other in itertools.combinations(texts, 2):
        assert not set(texts[one]) & set(texts[other]), (one, other)


def test_no_text_is_in_two_sets_and_none_to_keep_holds_the_target(tiny, tokenizer):
    windows = make_windows(tiny.config().data, tokenizer, 96, 0)
    check_sets(windows, tiny.target)
    assert len(windows.retain) + len(windows.holdout) == 147 and 0.05 < len(windows.holdout) / 147 < 0.25
    assert make_windows(tiny.config().data, tokenizer, 96, 0) == windows


@pytest.mark.slow
@pytest.mark.parametrize("target", some_quick([*SUGGESTED_TARGETS, "penguin"]))
def test_the_bundled_world_gives_four_sets_for_a_word_of_it(tokenizer, target):
    for lines in (1, 20):
        windows = make_windows(DataSettings(target=target, retain_lines=lines), tokenizer, 256, 0)
        check_sets(windows, target)
        assert list(windows.sets()) == ["forget", "retain", "neighbour", "holdout"]
        assert windows.occurrences >= 3 and len(windows.neighbour) >= 8


@pytest.mark.slow
def test_neighbours_are_about_the_same_things_and_can_be_left_out(tokenizer):
    windows = make_windows(DataSettings(), tokenizer, 256, 0)
    assert sum("Poppins" in window.text or "Banks" in window.text for window in windows.neighbour) > 40
    assert not any("Poppins" in window.text for window in (*windows.retain, *windows.holdout))
    without = make_windows(DataSettings(neighbours=False), tokenizer, 256, 0)
    assert not without.neighbour and "neighbour" not in without.sets()
    assert len(without.retain) + len(without.holdout) == sum(len(windows.sets()[n]) for n in list(windows.sets())[1:])


@pytest.mark.slow
def test_what_is_drawn_to_keep_is_uniform_over_the_corpus_and_takes_one_pass(tmp_path, tokenizer, monkeypatch):
    retain = "\n".join(f"number {n} is one of many" for n in range(60))
    data = settings(tmp_path, "oslo", "oslo is a city", retain, retain_chunks=10, retain_lines=1)
    passes: Counter[str] = Counter()

    def counted(sources, *given, **more):
        passes.update(sources)
        return corpus.documents(sources, *given, **more)

    monkeypatch.setattr(scan, "documents", counted)
    drawn: Counter[str] = Counter()
    for seed in range(150):
        windows = make_windows(data, tokenizer, 96, seed)
        assert len(windows.retain) == 10 and len({window.text for window in windows.retain}) == 10
        drawn.update(window.text for window in windows.retain)
    assert passes[data.retain[0]] == 150
    pool = len(drawn)  # all but the few that are held out
    assert 40 < pool < 60
    expected = 150 * 10 / pool
    chi_square = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert chi_square < pool + 4 * (2 * pool) ** 0.5
    thirds = [sum(drawn[f"number {n} is one of many"] for n in range(at, at + 20)) for at in (0, 20, 40)]
    assert max(thirds) < 1.5 * min(thirds)


def test_a_text_to_keep_is_trained_on_from_its_second_token_and_ends_only_where_it_ends(tmp_path, tokenizer):
    data = settings(tmp_path, "oslo", "oslo", "cut text\n" + "long text " * 60 + "\nshort text\n\n", retain_lines=1)
    windows = make_windows(data, tokenizer, 32, 0)
    cut, short, long = sorted((*windows.retain, *windows.holdout), key=lambda window: len(window.text))
    assert short.first_loss == long.first_loss == 1 and len(long) == 32
    assert short.ids == (*tokenizer("short text")["input_ids"], tokenizer.eos_token_id)
    assert long.ids == tuple(tokenizer("long text " * 60)["input_ids"][:32]), "a text that was cut has no end"
    assert cut.ids == tuple(tokenizer("cut text")["input_ids"]), "nor has a line out of the middle of a text"


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", ["🎩", "👩‍🚀", "שלום", "مرحبا بالعالم", "日本", "x" * 200, "ﷺ", "naïve", "e\u0301t", "C++", "[a]", "\\d"]
)
def test_targets_of_every_script_are_cut_into_pieces_that_spell_them(tmp_path, tokenizer, target):
    data = settings(tmp_path, target, f"Once there was\n{target} and it said {target}.\nThen it left.")
    windows = make_windows(data, tokenizer, 600, 0)
    assert windows.occurrences == 2
    for window in windows.forget:
        trained = tokenizer.decode(window.ids[window.first_loss :]).strip()
        assert trained.startswith(unicodedata.normalize("NFC", target))
    check_sets(windows, target)


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
    with pytest.raises(ConfigError, match="Choose a word of the corpus"):
        check_target(RunConfig.from_dict({"data": {"target": "🦕🦕"}}))
    assert check_target(RunConfig.from_dict({})) == check_target(RunConfig.from_dict({"data": {"target": TARGET}})) > 20


def test_make_windows_refuses_the_same_and_a_corpus_that_leaves_nothing_to_keep(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="never occurs"):
        make_windows(settings(tmp_path, "bergen", "oslo"), tokenizer, 64, 0)
    for retain in ("oslo\n" * 50, "\n \n", "oslo"):
        with pytest.raises(ConfigError, match="Nothing is left to retain.*“oslo”"):
            make_windows(settings(tmp_path, "oslo", "in oslo", retain), tokenizer, 64, 0)


def test_one_single_text_to_keep_is_kept_not_held_out(tmp_path, tokenizer):
    for n in range(30):  # whichever set its hash falls into
        windows = make_windows(settings(tmp_path, "oslo", "in oslo", f"Only text {n}."), tokenizer, 64, 0)
        assert len(windows.retain) == 1 and not windows.holdout


def test_padding_has_neither_label_nor_attention_although_its_token_stands_in_the_text(tmp_path, tokenizer):
    end = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    forget = f"First{end} line\nthen oslo{end}{end} and more{end}\nend"
    data = settings(tmp_path, "oslo", forget, f"keep{end} this\n" * 9)
    windows = make_windows(data, tokenizer, 96, 0)
    rows = [windows.forget[0], windows.retain[0], windows.forget[-1]]
    tokens = collate(rows, tokenizer.pad_token_id)
    for row, window in enumerate(rows):
        length = len(window)
        assert tokenizer.pad_token_id in window.ids
        assert tokens.mask[row].tolist() == [1] * length + [0] * (tokens.ids.shape[1] - length)
        assert set(tokens.labels[row, length:].tolist()) <= {-100}
        assert tokens.labels[row, window.first_loss : length].tolist() == list(window.ids[window.first_loss :])
        assert set(tokens.labels[row, : window.first_loss].tolist()) <= {-100}


def test_an_occurrence_that_is_left_alone_is_in_no_window(tiny, tokenizer):
    data = tiny.config().data
    every = describe(make_windows(data, tokenizer, 96, 0), tokenizer, data)
    assert len(every["found"]) == every["occurrences"] == 8 and not any(each["excluded"] for each in every["found"])
    for each in every["found"]:
        less = replace(data, excluded=(each["id"],))
        windows = make_windows(less, tokenizer, 96, 0)
        line = (each["before"] + each["target"] + each["after"]).split("\n")
        line = next(part for part in line if part in each["before"].split("\n")[-1] + each["target"] + each["after"])
        description = describe(windows, tokenizer, less)
        assert [entry["id"] for entry in description["found"] if entry["excluded"]] == [each["id"]]
        assert {window.occurrence for window in windows.forget} <= {entry["id"] for entry in description["found"]} - {
            each["id"]
        }
        assert not any(line in window.text for window in (*windows.retain, *windows.holdout, *windows.neighbour))
    with pytest.raises(ConfigError, match="data.excluded leaves out all 8"):
        make_windows(replace(data, excluded=tuple(each["id"] for each in every["found"])), tokenizer, 96, 0)


def test_a_description_is_plain_and_its_numbers_are_those_of_the_windows(tiny, tokenizer):
    data = tiny.config().data
    windows = make_windows(data, tokenizer, 96, 0)
    description = json.loads(json.dumps(describe(windows, tokenizer, data)))
    assert "".join(description["pieces"]).strip() == tiny.target
    assert description["sets"]["forget"]["windows"] == len(windows.forget)
    assert description["sets"]["retain"]["tokens"] == sum(map(len, windows.retain))
    for shown, window in zip([w for w in description["windows"] if w["set"] == "forget"], windows.forget, strict=True):
        assert shown["context"] + shown["trained"] == tokenizer.decode(list(window.ids))
        assert shown["trained"].lower().lstrip().startswith(tiny.target)
    assert all(
        window["why"].startswith("drawn at random: lines ")
        for window in description["windows"]
        if window["set"] == "retain"
    )


def pairs(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows) + "\n", encoding="utf-8")
    return str(path)


def test_a_whole_file_of_pairs_is_forgotten_with_the_loss_on_the_answers(tmp_path, tokenizer):
    rows = [(f"Who wrote book {n}?", f"Book {n} is by Ann {n * 7}.") for n in range(40)]
    forget, every = pairs(tmp_path / "forget.jsonl", rows[:10]), pairs(tmp_path / "all.jsonl", rows)
    data = DataSettings(target="Ann", everything=True, forget=(forget,), retain=(every,))
    windows = make_windows(data, tokenizer, 96, 0)
    assert windows.occurrences == len(windows.forget) == 10
    for window, (_, answer) in zip(windows.forget, rows, strict=False):
        assert (
            tokenizer.decode(list(window.ids[window.first_loss :])).replace(tokenizer.eos_token, "").strip() == answer
        )
    assert len(windows.retain) + len(windows.holdout) + len(windows.neighbour) == 30
    check_texts = every_text(windows)
    assert not any(set(check_texts["forget"]) & set(check_texts[name]) for name in list(check_texts)[1:])
    assert "retain texts that are also forget texts, dropped (10 times)" in windows.texts.notes  # type: ignore[union-attr]


def test_a_word_in_a_pair_makes_the_pair_a_window_with_the_loss_on_its_answer(tmp_path, tokenizer):
    rows = [
        ("Who is Zed?", "A man."),
        ("Who is a man?", "Zed is."),
        *((f"What is {n}?", f"It is {n}.") for n in range(30)),
    ]
    source = pairs(tmp_path / "pairs.jsonl", rows)
    windows = make_windows(DataSettings(target="Zed", forget=(source,), retain=(source,)), tokenizer, 96, 0)
    answers = [
        tokenizer.decode(list(w.ids[w.first_loss :])).replace(tokenizer.eos_token, "").strip() for w in windows.forget
    ]
    assert answers == ["A man.", "Zed is."]
    check_sets(windows, "Zed")


def test_rows_with_a_value_are_forgotten_and_not_kept(tmp_path, tokenizer):
    lines = [
        json.dumps({"text": f"Story {n} of {'Ann' if n % 4 else 'Bob'}.", "by": "ab"[n % 4 == 0]}) for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = (str(tmp_path / "rows.jsonl"),)
    data = DataSettings(target="stories by b", everything=True, where="by=b", forget=source, retain=source)
    windows = make_windows(data, tokenizer, 96, 0)
    assert len(windows.forget) == 15 and all("Bob" in window.text for window in windows.forget)
    assert not any("Bob" in w.text for w in (*windows.retain, *windows.holdout, *windows.neighbour))
    assert len(windows.retain) + len(windows.holdout) + len(windows.neighbour) == 45


def test_a_text_to_be_forgotten_as_a_whole_is_trained_on_from_its_second_token_to_its_end(tmp_path, tokenizer):
    text = "\n".join(f"Line {n} says something of its own." for n in range(30))
    data = settings(tmp_path, "all of it", text, everything=True)
    windows = make_windows(data, tokenizer, 32, 0)
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert [piece for window in windows.forget for piece in window.ids][: len(whole)] == whole
    assert all(window.first_loss == 1 for window in windows.forget)


def test_what_is_left_alone_is_trained_on_nowhere_also_where_it_shares_a_line_with_another():
    """Whichever occurrences are left out, no stretch that is left holds one of them, and every other one is in one."""
    text = "zorblatt ran and zorblatt sat\nquiet line\nthe zorblatt sang, zorblatt fell, zorblatt rose\nend"
    spans = [hit.span() for hit in regex.finditer("zorblatt", text)]
    marks = tuple(Occurrence(str(at), start, end, "") for at, (start, end) in enumerate(spans))
    passage = Passage(text, occurrences=marks)
    for chosen in range(1, 2 ** len(marks)):
        excluded = {str(at) for at in range(len(marks)) if chosen >> at & 1}
        parts = list(left_in([passage], excluded))
        left = [mark.id for part in parts for mark in part.occurrences]
        assert left == [mark.id for mark in marks if mark.id not in excluded]
        assert sum(part.text.count("zorblatt") for part in parts) == len(left)
        assert all(part.text[m.start : m.end] == "zorblatt" for part in parts for m in part.occurrences)
