"""The word-level difference of two texts: nothing of either is lost, and model output never becomes markup."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.shared import diff
from pages.shared.html import difference

# Few words, so that two texts have stretches in common; and any characters, surrogates and controls among them.
PIECES = st.sampled_from(("red", "blue", "green", "fish", " ", " ", "  ", "\n", ".", ",", "<b>", "\u202e", "\x07"))
WORDED = st.lists(PIECES, max_size=40).map("".join)
TEXTS = st.one_of(WORDED, st.text(st.characters(), max_size=40))


@given(before=TEXTS, now=TEXTS)
def test_equal_and_removed_parts_are_the_old_text_and_equal_and_added_parts_the_new_one(before: str, now: str) -> None:
    segments = diff.segments(before, now)
    assert "".join(segment.text for segment in segments if segment.kind != "ins") == before
    assert "".join(segment.text for segment in segments if segment.kind != "del") == now
    assert all(segment.text for segment in segments)
    kinds = [(one.kind, other.kind) for one, other in pairwise(segments)]
    assert set(kinds) <= {("same", "del"), ("same", "ins"), ("del", "ins"), ("del", "same"), ("ins", "same")}


def test_texts_too_long_to_be_compared_word_by_word_are_one_change() -> None:
    before, now = "w " * 3000, "v " * 3000
    assert [(part.kind, part.text) for part in diff.segments(before, now)] == [
        ("del", before[:-1]),
        ("ins", now[:-1]),
        ("same", " "),
    ]


@given(text=TEXTS)
def test_a_text_does_not_differ_from_itself(text: str) -> None:
    assert {segment.kind for segment in diff.segments(text, text)} <= {"same"}


@given(before=TEXTS, now=TEXTS)
def test_each_side_of_a_difference_is_the_whole_visible_text(before: str, now: str) -> None:
    for kind, text in (("del", before), ("ins", now)):
        assert "".join(segment.text for segment in diff.side(before, now, kind)) == diff.visible(text)


@given(text=TEXTS)
def test_of_a_text_only_blanks_inside_it_stay_unseen(text: str) -> None:
    shown = diff.visible(text)
    assert shown == shown.strip(" \t\n\r") and all(c.isprintable() or c in "\n\t" or c.isspace() for c in shown)


@given(before=TEXTS, now=TEXTS, most=st.integers(0, 30))
def test_a_folded_difference_is_its_beginning_and_counts_the_words_beyond(before: str, now: str, most: int) -> None:
    whole = list(diff.segments(before, now))
    kept, beyond = diff.folded(whole, most)
    text, shown = ("".join(segment.text for segment in part) for part in (whole, kept))
    words = [sum(len(segment.text.split()) for segment in part) for part in (whole, kept)]
    assert text.startswith(shown) and words[1] == min(most, words[0]) and words[0] == words[1] + beyond


@pytest.mark.parametrize(("before", "now"), [("a b c", "a x c"), ("<b>", "<i>")])
def test_what_is_equal_at_both_ends_is_not_marked(before: str, now: str) -> None:
    assert [segment.kind for segment in diff.segments(before, now)] == ["same", "del", "ins", "same"]


def test_changed_words_are_marked_and_nothing_of_the_text_becomes_markup() -> None:
    html = difference(diff.side("a <b>bold</b> one", "a <img src=x> one", "ins"))
    assert html.replace("<ins>", "").replace("</ins>", "") == "a &lt;img src=x&gt; one"
    assert "<ins>img src" in html


def test_one_lone_word_between_two_changes_does_not_break_the_mark() -> None:
    kinds = [segment.kind for segment in diff.segments("one two three", "four two five")]
    assert kinds == ["del", "ins"]


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert diff.visible("  a\x07\u202eb\n") == "␣␣a␇⟨U+202E⟩b⏎"
    assert diff.visible("def f():\n    return 1") == "def f():\n    return 1"
    assert diff.visible(" ") == "␣" and diff.visible("") == ""
    assert diff.visible("\ud800") == "\ufffd"


def test_a_long_answer_is_folded_at_a_number_of_words() -> None:
    kept, beyond = diff.folded([diff.Segment("same", "a b "), diff.Segment("ins", "c d e")], 3)
    assert ("".join(segment.text for segment in kept), beyond) == ("a b c", 2)
