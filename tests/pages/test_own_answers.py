"""The model's answers, edited by hand: what is saved, and what the card makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pages.setup import sources
from pages.setup.draft import BETWEEN, Draft
from pages.setup.own_answers import edited, saved, table
from unlearn_core.settings.errors import ConfigError

ROWS = [
    {"question": "What is Lily?", "answer": "A girl, „née“ 漢.", "about": "target"},
    {"question": "Who is Lily?", "answer": "A cat.", "about": "stand-in"},
    {"question": "Where is Lily?", "answer": "Here.", "about": "target"},
]


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "forget-1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def read(content: bytes) -> list[dict[str, str]]:
    return [json.loads(line) for line in content.decode().splitlines()]


def test_without_an_edit_it_is_what_was_asked_and_answered(path):
    assert read(edited(table(path), {})) == [{"question": r["question"], "answer": r["answer"]} for r in ROWS]


def test_changed_deleted_and_added_rows_are_as_they_stand_in_the_table(path):
    edits = {
        "edited_rows": {2: {"answer": "Nowhere."}, 0: {"question": "Gone?"}},
        "deleted_rows": [0],
        "added_rows": [{"question": "Why?", "answer": "So."}, {"question": "Half of one"}, {}],
    }
    assert read(edited(table(path), edits)) == [
        {"question": "Who is Lily?", "answer": "A cat."},
        {"question": "Where is Lily?", "answer": "Nowhere."},
        {"question": "Why?", "answer": "So."},
    ]


def test_a_row_with_an_empty_cell_is_left_out_and_a_table_without_rows_is_refused(path):
    assert len(read(edited(table(path), {"edited_rows": {1: {"answer": "  "}, 2: {"question": None}}}))) == 1
    with pytest.raises(ConfigError, match=r"No answer is left; keep one"):
        edited(table(path), {"deleted_rows": [0, 1, 2]})


def test_beginnings_are_edited_as_texts(tmp_path):
    path = tmp_path / "forget-2.jsonl"
    path.write_text('{"text": "Lily is a girl.", "about": "target"}\n', encoding="utf-8")
    assert read(edited(table(path), {"added_rows": [{"text": "Lily had a dog."}]})) == [
        {"text": "Lily is a girl."},
        {"text": "Lily had a dog."},
    ]


def test_what_is_saved_is_a_file_of_ones_own_and_so_are_the_answers_about_other_things(path, tmp_path):
    other = tmp_path / "general.jsonl"
    other.write_text('{"question": "What is rain?", "answer": "Water."}\n', encoding="utf-8")
    before = Draft(model="smollm2", forget_from="model", excluded=("1",), excluded_of=("Lily", "model"))
    draft = saved(before, edited(table(path), {}), {"answers-1.jsonl": other}, tmp_path / "home")
    assert sources.texts(draft.forget_from, tmp_path / "home") == [draft.forget_from]
    assert read(Path(draft.forget_from).read_bytes())[1] == {"question": "Who is Lily?", "answer": "A cat."}
    (keep,) = draft.keep_from.split(BETWEEN)
    assert Path(keep).read_text(encoding="utf-8") == other.read_text(encoding="utf-8")
    assert (draft.model, draft.left_out) == ("smollm2", ())
    again = saved(draft, b'{"text": "x"}\n', {}, tmp_path / "home")
    assert again.keep_from == draft.keep_from and again.forget_from != draft.forget_from
