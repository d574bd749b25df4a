"""Targets in other signs than they are typed in: found, marked in the text as it is, and in no text that is kept."""

from __future__ import annotations

import json
import random
import unicodedata
from typing import Any

import pytest

from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.folding import INVISIBLE, Folding
from unlearn_core.corpus.scan import scan_corpus
from unlearn_core.corpus.target import Target
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import DataSettings

NAME = "Professor O'Brien"


def matches(text: str, wanted: str, **more: Any) -> list[str]:
    finder = Target(DataSettings(target=wanted, **more))
    text = finder.normal(text)
    spans = finder.find(text)
    assert not spans or finder.may_be_in(text.encode()), "the search of bytes lets it through"
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        (NAME, "so Professor\nO'Brien, Professor \t\r\n O'Brien", ["Professor\nO'Brien", "Professor \t\r\n O'Brien"]),
        (NAME, "Professor\u00a0O’Brien Professor\u202fO‘Brien", ["Professor\u00a0O’Brien", "Professor\u202fO‘Brien"]),
        (NAME, "\u00adPro\u00adfes\u00adsor O'Bri\u200ben\u200b", ["Pro\u00adfes\u00adsor O'Bri\u200ben"]),
        ("Professor O’Brien", "Professor O'Brien", ["Professor O'Brien"]),
        ("Harry Potter", "Harry\u200bPotter, Harry\u2060 Potter", ["Harry\u200bPotter", "Harry\u2060 Potter"]),
        ("Harry", "Har\u00adry\u00adson, Harry\u200bson, _Harry_, Harry_s, my_Harry", ["Harry", "Harry"]),
        (
            "Coca-Cola",
            "Coca\u2011Cola Coca–Cola Coca-\n Cola CocaCola",
            ["Coca\u2011Cola", "Coca–Cola", "Coca-\n Cola"],
        ),
        (
            "supercali",
            "su-\nper-\r\n cali Super\u00ad\ncali super‐\ncali su-\n\npercali super- \ncali",
            ["su-\nper-\r\n cali", "Super\u00ad\ncali", "super‐\ncali"],
        ),
        ("Harry Potter", "Har-\nry\nPot-\n  ter", ["Har-\nry\nPot-\n  ter"]),
        ("Straße", "Stra-\nße STRAS\u00ad\nSE", ["Stra-\nße", "STRAS\u00ad\nSE"]),
        ("known", "a well-\nknown word", ["known"]),
        ("Straße", "STRASSE, Strasse, STRAẞE, straßen", ["STRASSE", "Strasse", "STRAẞE"]),
        ("strasse", "Straße", ["Straße"]),
        ("İzmir", "İZMİR izmir i\u0307zmir", ["İZMİR", "izmir", "i\u0307zmir"]),
        ("izmir", "i\u0307zmir İzmir", ["i\u0307zmir", "İzmir"]),
        ("Diyarbakır", "DİYARBAKIR", ["DİYARBAKIR"]),
        ("ﬁsh", "FISH ﬁsh", ["FISH", "ﬁsh"]),
        ("Αθήνα", "ΑΘΗΝΑ ΑΘΉΝΑ αθήνας", ["ΑΘΗΝΑ", "ΑΘΉΝΑ"]),
        ("해리", "해리는 해리가 무해리의", ["해리"] * 3),
        ("Harry", "Harry는 Harryは Harry的", ["Harry"] * 3),
        ("佐々木", "佐々木さん、佐々木々", ["佐々木"] * 2),
        ("ལྷ་ས", "བོད་ལྷ་སའི་", ["ལྷ་ས"]),
        ("בירות", "בבירות ולבירות הבירותי גבירות", ["בירות", "בירות"]),
        ("بيروت", "وبيروت لبيروت بيـروت بيروتي", ["بيروت", "بيروت", "بيـروت"]),
        ("کتاب", "کتاب\u200cها", ["کتاب"]),
    ],
)
def test_a_target_is_found_in_every_form_and_marked_in_the_text_as_it_is(wanted, text, expected):
    assert matches(text, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "text", "more"),
    [
        ("Straße", "STRASSE", {"ignore_case": False}),
        ("Mass", "Maß", {"ignore_case": False}),
        ("Potter", "Potterhead pot-ter pot-\nterhead pot-\n3 4-\nter", {}),
        ("New York", "NewYork new-york", {}),
    ],
)
def test_what_is_another_word_is_not_found(wanted, text, more):
    assert matches(text, wanted, **more) == []


def test_a_pattern_is_tried_on_the_text_as_it_is_and_in_plain_signs():
    assert matches("O’Brian O'Bri\u00aden O‘Brien", "O'Bri[ae]n", match="regex") == [
        "O’Brian",
        "O'Bri\u00aden",
        "O‘Brien",
    ]
    assert matches("O’Brien O'Brien", "O’Brien", match="regex") == ["O’Brien"]


def test_folding_leads_back_to_the_characters_that_a_sign_came_from():
    """Against folding each character by itself."""
    rng, folding = random.Random(0), Folding(ignore_case=True)
    signs = ["a", "s", " ", "’", "ß", "ﬃ", "\u00ad", "\u200b", "é", "해", "İ", "😀"]
    assert set("\u00ad\u200b\u200d\u2060\ufeff\u0640") <= {chr(c) for a, b in _ranges() for c in range(a, b + 1)}
    for _ in range(300):
        text = "".join(rng.choices(signs, k=rng.randint(1, 30)))
        parts = [folding.fold(sign).text for sign in text]
        folded = folding.fold(text)
        assert folded.text == "".join(parts)
        owner = [place for place, part in enumerate(parts) for _ in part]
        for start in range(len(owner)):
            for end in range(start + 1, len(owner) + 1):
                assert folded.span(start, end) == (owner[start], owner[end - 1] + 1), (text, start, end)


def _ranges() -> list[tuple[int, int]]:
    ranges, signs = [], list(INVISIBLE)
    while signs:
        first = last = signs.pop(0)
        if signs[:1] == ["-"]:
            last = signs[1]
            del signs[:2]
        ranges.append((ord(first), ord(last)))
    return ranges


FORMS = (
    NAME, "Professor O’Brien", "Professor\u00a0O'Brien", "Profes\u00adsor O'Brien", "Professor O'Bri\u200ben",
    "Professor  O'Brien", "professor\nO\u02bcBRIEN", "Pro\u2060fessor\u2009O´Brien",
    "Professor O'Bri-\nen",
)  # fmt: skip


def texts(folder: Any) -> DataSettings:
    rows = [
        {"text": f"On day {i} {FORMS[i // 2 % len(FORMS)]} closed window {i * 5} by the {i * 7 % 31} road."}
        if i % 2
        else {"text": f"The clerk of room {i} wrote letter {i * 3} about the harbour and {i * 11 % 17} ships."}
        for i in range(96)
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return DataSettings(target=NAME, forget=(str(path),), retain=(str(path),))


def test_no_text_to_keep_holds_the_target_in_another_form(tmp_path):
    result, _ = scan_corpus(texts(tmp_path), 0)
    assert result.occurrences == 48
    for passage in (*result.retain, *result.neighbour, *result.holdout):
        assert "Bri" not in passage.text and "BRI" not in passage.text
    for passage in result.forget:
        for mark in passage.occurrences:
            assert passage.text[mark.start : mark.end] in FORMS


def test_a_phrase_across_the_end_of_a_stretch_is_found(tmp_path):
    """A long text is read in stretches of 1 MiB; one line in three ends amid the name."""
    rng = random.Random(0)
    while True:  # until a stretch ends amid the name
        filler = "and waited " * rng.randint(20, 200)
        lines = f"He sat there {filler}for Professor\nO'Brien\n {filler}\n"
        count = 3 * (1 << 20) // len(lines)
        if (lines * count)[: 1 << 20].rpartition("\n")[0].endswith("Professor"):
            break
    (tmp_path / "long.txt").write_text(lines * count)
    (tmp_path / "keep.txt").write_text("\n".join(f"A plain line {n} of a text to keep." for n in range(99)))
    data = DataSettings(target=NAME, forget=(str(tmp_path / "long.txt"),), retain=(str(tmp_path / "keep.txt"),))
    assert scan_corpus(data, 0)[0].occurrences == count


def test_a_stand_in_takes_the_place_of_every_form_and_of_no_sign_beside_it(tiny):
    tokenizer = tiny.open("gptj", method={"name": "npo"}).context.tokenizer
    config = RunConfig.from_dict({"model": {"source": "somewhere"}, "data": {"target": "Harry Potter"}})
    made = Counterfactuals(config, tokenizer, 96)
    text = "“Harry\u00a0Pot\u00adter’s hat, Harry\nPotter; \u00adHar\u00adry and _Potter_, Pot-\nter”"
    new, places = made.replaced(text, "Lorik Vane")
    assert new == "“Lorik Vane’s hat, Lorik Vane; \u00adLorik and _Vane_, Vane”"
    assert [new[a:b] for a, b in places] == ["Lorik Vane", "Lorik Vane", "Lorik", "Vane", "Vane"]
    assert unicodedata.is_normalized("NFC", new)


@pytest.mark.parametrize("name", ["Harry\u2060 Potter", "Har\u00adry\nPotter", "the HP of old"])
def test_a_stand_in_with_the_target_in_any_form_is_refused(tiny, name):
    tokenizer = tiny.open("gptj", method={"name": "npo"}).context.tokenizer
    data = {"target": "Harry Potter", "spellings": ["HP"], "stand_ins": ["Lorik Vane", name]}
    with pytest.raises(ConfigError, match="cannot stand for it") as refused:
        Counterfactuals(RunConfig.from_dict({"model": {"source": "somewhere"}, "data": data}), tokenizer, 96)
    assert refused.value.value == (name,)
