"""Targets: what is found, in which form, how fast a bad pattern is refused, and a prefilter that never overlooks."""

from __future__ import annotations

import html
import random
import unicodedata
from typing import Any

import pytest
import regex

from unlearn_core.corpus import target as targets
from unlearn_core.corpus.folding import CASELESS, DOT, PLAIN, BytesFolding
from unlearn_core.corpus.readers import mediawiki
from unlearn_core.corpus.target import Target, longest, required_literals
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings


def target(text: str, **more: Any) -> Target:
    return Target(DataSettings(target=text, **more))


def matches(text: str, wanted: str, **more: Any) -> list[str]:
    finder = target(wanted, **more)
    text = finder.normal(text)
    return [text[start:end] for start, end in finder.find(text)]


@pytest.mark.parametrize(
    ("wanted", "more", "text", "expected"),
    [
        ("Oslo", {"ignore_case": False}, "Oslo oslo OSLO", ["Oslo"]),
        ("oslo", {"whole_word": False}, "Oslofjord foroslo", ["Oslo", "oslo"]),
        ("naive", {"spellings": ("naïve", "na-ive")}, "naive naïve na-ive naiver", ["naive", "naïve", "na-ive"]),
        ("New York", {"spellings": ("New York City",)}, "New York City, New York", ["New York City", "New York"]),
        ("caf\u00e9", {}, "cafe\u0301 caf\u00e9 cafe", ["caf\u00e9", "caf\u00e9"]),
        ("caf\u00e9", {"normalization": "none"}, "cafe\u0301 caf\u00e9", ["caf\u00e9"]),
        ("file", {"normalization": "NFKC"}, "\ufb01le \uff46\uff49\uff4c\uff45 file", ["file"] * 3),
        ("colou?r", {"match": "regex"}, "color colour colors Colour", ["color", "colour", "Colour"]),
        ("colou?r", {"match": "regex", "whole_word": False}, "colors", ["color"]),
        (r"\d{4}|x*", {"match": "regex", "whole_word": False}, "in 1984 and 12", None),
        (r"^the \w+", {"match": "regex"}, "the cat\nis the dog\nthe end", ["the cat", "the end"]),
        (r"C\+\+", {"match": "regex"}, "C++ and C++17", ["C++", "C++"]),
    ],
)
def test_case_form_word_ends_spellings_and_patterns_are_choices(wanted, more, text, expected):
    if expected is None:
        with pytest.raises(ConfigError, match="matches nothing at all"):
            target(wanted, **more)
    else:
        assert matches(text, wanted, **more) == expected


def test_occurrences_do_not_overlap_and_come_in_order():
    rng = random.Random(0)
    finder = target("ab", spellings=("a", "abab", "ba b"), whole_word=False)
    for _ in range(200):
        text = "".join(rng.choices("ab ", k=60))
        spans = finder.find(text)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        found = [" ".join(text[start:end].split()) for start, end in spans]  # a blank stands for several
        assert set(found) <= {"ab", "a", "abab", "ba b"}


@pytest.mark.parametrize("wrong", ["(a", "a)(b", "[z", "*", "(?P<x"])
def test_a_pattern_that_cannot_be_is_refused_with_its_position(wrong):
    with pytest.raises(ConfigError, match=r"data\.target is .*not a regular expression.* at position \d"):
        target(wrong, match="regex")


def test_a_pattern_that_would_never_end_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(targets, "SECONDS_A_TEXT", 0.2)
    finder = target("(?:a|b|ab)*c", match="regex", whole_word=False)
    with pytest.raises(ConfigError, match="data.target is .*takes too long.*repetition inside a repetition") as caught:
        finder.find("ab" * 30 + "d c")
    assert "\n" not in str(caught.value)


def test_a_pattern_that_crawls_through_every_text_is_refused_too(monkeypatch):
    monkeypatch.setattr(targets, "SECONDS_TO_JUDGE", 0.0)
    monkeypatch.setattr(targets, "SLOWEST", 10**12)
    with pytest.raises(ConfigError, match="takes too long"):
        target("a+b", match="regex").find("aaa")


DISGUISED = {"i": "İı", "s": "ſ", "k": "\u212a", ";": "\u037e", "`": "\u1fef"}  # as texts may write ASCII

WORDS = (
    "kiss",
    "Lily",
    "super",
    "Ask; then",
    "naïve",
    "东京",
    "ﬁsh",
    "K",
    "Σίσυφος",
    "mary poppins",
    "C++",
    "İstanbul",
)


def written(rng: random.Random, word: str) -> str:
    """The word as a text may write it: another case, another form, letters that count as others."""
    disguises = {sign: [*forms] for sign, forms in DISGUISED.items()} | {"i": [*DISGUISED["i"], "I" + DOT, "i" + DOT]}
    letters = []
    for letter in word:
        letter = rng.choice([form for form in (letter, letter.upper(), letter.lower()) if len(form) == 1])
        if letter.lower() in disguises and rng.random() < 0.3:
            letter = rng.choice(disguises[letter.lower()])
        if len(letter) == 1 and rng.random() < 0.1 and "!" < letter < "~":
            letter = chr(ord(letter) + 0xFEE0)  # full width
        letters.append(letter)
    return unicodedata.normalize(rng.choice(("NFC", "NFD")), "".join(letters))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["none", "NFC", "NFKC"])
@pytest.mark.parametrize("kind", ["literal", "regex"])
def test_what_is_found_is_never_ruled_out_by_the_prefilter(form, kind):
    rng = random.Random(f"{form} {kind}")
    hits = 0
    for word in WORDS:
        for whole, case in ((True, True), (False, True), (True, False), (False, False)):
            pattern = regex.escape(word) + "s?" if kind == "regex" else word
            more = {"normalization": form, "match": kind, "whole_word": whole, "ignore_case": case}
            finder = target(pattern, spellings=(WORDS[0],) if case else (), **more)
            for _ in range(40):
                text = " ".join(written(rng, rng.choice((word, "other", "kis"))) for _ in range(3))
                if finder.find(finder.normal(text)):
                    hits += 1
                    assert finder.may_be_in(text.encode()), (word, text)
    assert hits > 500


MARKS = (
    "'''",
    "''",
    "[[x|",
    "]]",
    "<b>",
    "</b>",
    "<!-- no -->",
    "{{lang|en}}",
    "<ref>s</ref>",
    "&shy;",
    "__TOC__",
    "[http://x.org/s ",
)


@pytest.mark.parametrize("whole", [True, False])
def test_markup_that_cuts_a_word_in_two_does_not_hide_it(whole):
    """What is looked at before a page is parsed lets through every page in whose text the word then stands."""
    rng, hits = random.Random(1), 0
    for word in ("supercalifragilistic", "kiss", "Mary Poppins", "Ann"):
        finder = target(word, whole_word=whole)
        for _ in range(150):
            mark, place = rng.choice(MARKS), rng.randint(0, len(word))
            parts = [*word[:place], mark, *word[place:]]
            if rng.random() < 0.3:
                at = rng.randrange(len(parts))
                parts[at] = parts[at] if len(parts[at]) > 1 else f"&#{ord(parts[at])};"
            page = f"a text of {''.join(parts)} and more".encode()
            if finder.find(mediawiki.plain(page.decode())):
                hits += 1
                assert finder.may_be_in(page, markup=True), parts
                assert finder.may_be_in(page) or finder.may_be_in(mediawiki.skim(page)), parts
    assert hits > 200
    assert html.unescape("&#115;") == "s"


def test_the_prefilter_rules_out_what_is_far_from_the_target():
    for text in ("kisses in the dark", "un café à Œuvre", "Москва"):
        assert not target("zorblatt").may_be_in(text.encode())
        assert not target("zorblatt").may_be_in(text.encode(), markup=True)
        assert not target("z(o|u)rblatt+", match="regex").may_be_in(text.encode())


@pytest.mark.slow
def test_every_letter_that_may_stand_for_one_of_ascii_is_folded_to_it():
    """Against the library's own case folding and Unicode's normal form, over all of Unicode."""
    beyond = "".join(chr(code) for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000)
    caseless = set(regex.findall(r"[\x00-\x7f]", beyond, regex.IGNORECASE))
    composed = {sign for sign in beyond if any(part < "\x80" for part in unicodedata.normalize("NFC", sign))}
    longer = {sign for sign in beyond if len(sign.casefold()) > 1 and any(part < "\x80" for part in sign.casefold())}
    assert caseless | composed | longer <= set(PLAIN | CASELESS)
    folding = BytesFolding("abcdefghijklmnopqrstuvwxyz")
    for sign in longer:
        expected = "".join(PLAIN.get(part, part) for part in sign.casefold()).replace(DOT, "")
        assert folding.fold(sign.encode()) == expected.encode(), sign


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        ("zorblatt", "zorblatt"),
        ("z(?:or)+blatt?s", "blat"),
        ("foo|bar", ""),
        ("(?:foo|fob)ble", "ble"),
        ("(?:foobar){e<=1}", ""),
        ("[[:alpha:]]x", ""),
        (r"\p{L}+ham", ""),
        ("a?b*", ""),
        ("(?:long){0,2}x", "x"),
    ],
)
def test_the_literal_of_a_pattern_is_one_that_every_match_has(pattern, literal):
    assert longest(required_literals(pattern)) == literal
