"""Rows and tables as they are found in practice: nothing of them is misread without a word."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from unlearn_core.corpus.documents import documents
from unlearn_core.corpus.reading.document import Document, ReadReport
from unlearn_core.corpus.reading.encodings import utf8
from unlearn_core.corpus.reading.json_text import DEEPEST, strict
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

LETTERS = "ABCD"


def read(path: Path, content: bytes | str, where: str = "", **data: Any) -> tuple[list[Document], str]:
    """The documents of a file with this content, and all that was noted."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = ReadReport()
    found = list(documents([str(path)], DataSettings(**data), report, where=where))
    return found, "\n".join(report.sentences())


def lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows))


def pairs(found: list[Document]) -> list[tuple[str, str]]:
    return [(document.turns[0].text, document.turns[-1].text) for document in found]


# ------------------------------------------------------------------------------------------------ multiple choice


def of_four(index: int) -> list[str]:
    return [f"reagent {sign}{index}" for sign in "pqrs"]


FORMS: dict[str, Any] = {  # how data sets say that choice `right` of the four is the answer
    "position": lambda four, right: {"choices": four, "answer": right},
    "position from 1": lambda four, right: {"options": four, "correct_option": right + 1},
    "position as text": lambda four, right: {"endings": four, "label": str(right)},
    "position with a point": lambda four, right: {"choices": four, "answer": float(right)},
    "position in a list": lambda four, right: {"choices": four, "gold": [right]},
    "letter": lambda four, right: {"options": four, "answer": LETTERS[right]},
    "letter in brackets": lambda four, right: {"options": four, "answer": f"({LETTERS[right]})"},
    "letter before its text": lambda four, right: {"options": four, "answer": f"{LETTERS[right]}. {four[right]}"},
    "text": lambda four, right: {"options": four, "answer": four[right]},
    "labels": lambda four, right: {"choices": {"text": four, "label": [*"1234"]}, "answerKey": str(right + 1)},
    "by letter": lambda four, right: {"options": dict(zip(LETTERS, four, strict=True)), "answer_idx": LETTERS[right]},
    "one hot": lambda four, right: {"choices": four, "labels": [int(i == right) for i in range(4)]},
    "one hot inside": lambda four, right: {
        "mc1_targets": {"choices": four, "labels": [int(i == right) for i in range(4)]}
    },
    "scores": lambda four, right: {"target_scores": {text: int(i == right) for i, text in enumerate(four)}},
    "objects": lambda four, right: {"choices": [{"text": t, "is_correct": i == right} for i, t in enumerate(four)]},
    "columns": lambda four, right: {**dict(zip(LETTERS, four, strict=True)), "answer": LETTERS[right]},
    "opa": lambda four, right: {**{f"op{s}": t for s, t in zip("abcd", four, strict=True)}, "cop": right},
    "option1": lambda four, right: {**{f"option{i}": t for i, t in enumerate(four, 1)}, "answer": str(right + 1)},
    "list as text": lambda four, right: {"choices": repr(four), "answer": right},
    "answers": lambda four, right: {"answers": four, "label": right},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_is_the_text_of_the_right_choice_however_the_row_says_which(tmp_path, form):
    rows = [{"question": f"Assay {i}?", **FORMS[form](of_four(i), i * 7 % 4)} for i in range(12)]
    found, notes = read(tmp_path / "mc.jsonl", lines(rows))
    assert pairs(found) == [(f"Assay {i}?", of_four(i)[i * 7 % 4]) for i in range(12)]
    assert form == "text" or "the right one of" in notes


def test_a_position_among_texts_of_numbers_is_a_position_and_a_number_among_numbers_is_itself(tmp_path):
    """MMLU has '0', '4', '2', '6' as choices, and positions as numbers."""
    row = {"question": "How many?", "choices": ["0", "3", "2", "6"], "answer": 3}
    assert pairs(read(tmp_path / "a.jsonl", lines([{**row, "answer": 0}, row]))[0])[1] == ("How many?", "6")
    row = {"question": "How many?", "choices": [10, 30, 20, 60], "answer": 30}
    assert pairs(read(tmp_path / "b.jsonl", lines([row]))[0]) == [("How many?", "30")]


def test_an_answer_that_names_no_choice_is_skipped_and_counted_and_an_undecided_base_is_told(tmp_path):
    rows = [{"question": "Q?", "choices": ["p", "q", "r"], "answer": answer} for answer in (0, -1, 7, "F", None, 2)]
    found, notes = read(tmp_path / "mc.jsonl", lines(rows))
    assert [answer for _, answer in pairs(found)] == ["p", "r"]
    assert "names none of their choices, skipped (4 times)" in notes and "counts from 0 or" not in notes
    _, notes = read(tmp_path / "one.jsonl", lines([{"question": "Q?", "choices": ["p", "q", "r"], "answer": 1}]))
    assert "no row tells whether answer counts from 0 or from 1" in notes


def test_a_number_without_choices_and_columns_that_are_no_choices_are_read_as_they_are(tmp_path):
    assert pairs(read(tmp_path / "a.jsonl", lines([{"question": "2 + 2?", "answer": 4}]))[0]) == [("2 + 2?", "4")]
    row = {"text": "A whole text of its own.", "a": 1, "b": 2, "label": 1}
    assert read(tmp_path / "b.jsonl", lines([row]))[0][0].text == row["text"]


# --------------------------------------------------------------------------------------------- what it is about


@pytest.mark.parametrize("name", ["context", "input", "passage", "article", "support", "Document"])
def test_what_an_instruction_is_about_follows_it_and_stands_before_a_question(tmp_path, name):
    about = "The lamp is kept by Zorblatt."
    row = {"instruction": "Who keeps it?", name: about, "response": "He does."}
    assert pairs(read(tmp_path / "i.jsonl", lines([row]))[0]) == [(f"Who keeps it?\n{about}", "He does.")]
    row = {"question": "Who keeps it?", name: about, "answer": "He does."}
    assert pairs(read(tmp_path / "q.jsonl", lines([row]))[0]) == [(f"{about}\nWho keeps it?", "He does.")]


def test_a_context_in_lists_is_one_text_and_other_fields_with_sentences_are_told(tmp_path):
    row = {
        "question": "Who?", "context": {"title": ["T"], "sentences": [["One.", "Two."], ["Three."]]}, "answer": "She.",
        "explanation": "Because the text says so.", "id": "a b c d e", "level": "easy",
    }  # fmt: skip
    found, notes = read(tmp_path / "h.jsonl", lines([row]))
    assert pairs(found) == [("One.\nTwo.\nThree.\nWho?", "She.")]
    assert notes == "h.jsonl: fields with text that are not read: explanation"


def test_true_and_false_are_answers(tmp_path):
    rows = [{"question": "Q?", "answer": True}, {"question": "Q?", "answer": False}]
    found, notes = read(tmp_path / "b.jsonl", lines(rows))
    assert [answer for _, answer in pairs(found)] == ["yes", "no"] and "read as yes and no" in notes


# ----------------------------------------------------------------------------------------------------------- JSON


def test_numbers_that_json_has_not_are_read_in_an_array_as_on_lines_and_stay_in_texts(tmp_path):
    values = [math.nan, math.inf, -math.inf]
    rows = [{"text": f'NaN, -Infinity and "NaN" {i}\\', "score": values[i % 3], "all": values} for i in range(90)]
    expected = [row["text"] for row in rows]
    for separators in ((", ", ": "), (",", ":")):
        whole = json.dumps(rows, separators=separators)
        assert [d.text for d in read(tmp_path / "a.json", whole)[0]] == expected
    assert [d.text for d in read(tmp_path / "a.jsonl", lines(rows))[0]] == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_filter_changes_only_what_python_reads_alike_wherever_blocks_are_cut(size):
    value = {"a": [math.nan, -math.inf, 'NaN \\" Infinity', {"b\\": [1, "[[{"]}], "Infinity": "\\\\", "c": math.inf}
    text = json.dumps(value).encode()
    cut = [text[start : start + size] for start in range(0, len(text), size)]
    by_python = json.loads(text, parse_constant=lambda name: None)
    assert json.loads(b"".join(strict(cut))) == by_python


def test_nesting_is_limited_the_rows_before_are_read_and_it_is_told(tmp_path):
    deep = "[" * 20_000 + "]" * 20_000
    rows = f'[{{"text": "a"}}, {{"text": "b", "x": {deep}}}, {{"text": "c"}}]'
    found, notes = read(tmp_path / "d.json", rows)
    assert [d.text for d in found] == ["a"] and f"deeper than {DEEPEST}" in notes and "row 1 is left out" in notes
    for content in (deep, f'{{"text": {deep}}}', '{"a":' * 20_000):
        with pytest.raises(ConfigError, match=f"deeper than {DEEPEST}"):
            read(tmp_path / "e.json", content)
    found, notes = read(tmp_path / "d.jsonl", f'{{"text": "a"}}\n{{"text": "b", "x": {deep}}}\n{{"text": "c"}}')
    assert [d.text for d in found] == ["a", "c"] and "nested too deep, skipped" in notes
    fits = "[" * (DEEPEST - 2) + "]" * (DEEPEST - 2)
    assert len(read(tmp_path / "f.json", f'[{{"text": "a", "x": {fits}}}]')[0]) == 1
    brackets = json.dumps([{"text": "[{" * 2_000}, {"text": "b"}])  # in a text they nest nothing
    assert len(read(tmp_path / "g.json", brackets)[0]) == 2


def test_every_list_of_an_object_is_read_and_what_is_left_out_is_told(tmp_path):
    value = {
        "tags": ["red", "blue"], "train": [{"text": f"t{i}"} for i in range(3)], "note": "Made by hand last year.",
        "test": [{"text": "u"}], "meta": {"by": "x"}, "more": ["A text of several words."],
    }  # fmt: skip
    found, notes = read(tmp_path / "l.json", json.dumps(value))
    assert [d.text for d in found] == ["t0", "t1", "t2", "u", "A text of several words."]
    assert "'tags'" in notes and "(2 times)" in notes and "'meta'" in notes and "'note'" in notes
    far = {"train": [{"text": "x" * 1000}] * 3_000, "test": [{"text": "behind the first MiB"}] * 5}
    assert len(read(tmp_path / "far.json", json.dumps(far))[0]) == 3_005
    described = {"description": "What this file holds", "stories": [{"text": "a"}, {"text": "b"}]}
    assert [d.text for d in read(tmp_path / "d.json", json.dumps(described))[0]] == ["a", "b"]


# --------------------------------------------------------------------------------------------------------- tables


def test_a_quotation_mark_in_a_tsv_swallows_no_row(tmp_path):
    texts = [f'"Open text {i}' if i % 9 == 3 else f'A "quoted" word {i}' for i in range(40)]
    found, notes = read(tmp_path / "o.tsv", "id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)))
    assert [d.text for d in found] == texts and "each line is a row" in notes


def test_a_tsv_with_quoted_cells_is_read_as_its_writer_meant(tmp_path):
    cells = ['a "b" c', "two\nlines", "a\ttab", '"whole"', "plain"]
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows([["id", "text"], *enumerate(cells)])
    found, notes = read(tmp_path / "q.tsv", written.getvalue())
    assert [d.text for d in found] == cells and not notes


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_backslashes_before_quotation_marks_are_marks_and_others_stay(tmp_path, ending):
    sign = "," if ending == "csv" else "\t"
    texts = [f'He said "hi {i}", and\tleft C:\\new\\' for i in range(9)] + ['"', "two\nlines"]
    escaped = [t.replace("\\", "\\\\").replace('"', '\\"') for t in texts]
    table = "\n".join([sign.join(("id", "text", "n")), *(f'{i}{sign}"{t}"{sign}x' for i, t in enumerate(escaped))])
    found, notes = read(tmp_path / f"s.{ending}", table)
    assert [d.text for d in found] == texts and "backslash" in notes


def test_a_backslash_at_the_end_of_a_usual_cell_stays_one(tmp_path):
    cells = ["C:\\dir\\", 'a "b" c', "x\\"]
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["id", "text"], *enumerate(cells)])
    found, notes = read(tmp_path / "u.csv", written.getvalue())
    assert [d.text for d in found] == cells and not notes


def test_a_cell_that_swallows_lines_is_told_with_their_numbers(tmp_path):
    rows = [f'{i},"Open {i}' if i == 3 else f"{i},Text {i}" for i in range(200)]
    found, notes = read(tmp_path / "open.csv", "id,text\n" + "\n".join(rows))
    assert len(found) == 4 and "a quotation mark in line 5 is never closed" in notes
    rows[150] += '"'
    found, notes = read(tmp_path / "late.csv", "id,text\n" + "\n".join(rows))
    assert len(found) == 53 and "more than 100 lines" in notes and "lines 5 to 152" in notes


# -------------------------------------------------------------------------------------------------------- Parquet


def test_values_that_python_cannot_hold_lose_no_row(tmp_path):
    count, late = 300, 2_932_897  # one day after 9999-12-31
    days = pa.array([late if i == 50 else 19_000 + i for i in range(count)], pa.int32()).cast(pa.date32())
    times = pa.array([1 << 62 if i == 60 else i for i in range(count)], pa.int64()).cast(pa.timestamp("ms", "UTC"))
    texts = [f"Text {i}" for i in range(count)]
    table = pa.table({"text": texts, "when": days, "at": times, "inside": pa.StructArray.from_arrays([days], ["day"])})
    parquet.write_table(table, tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    found, notes = read(tmp_path / "t.parquet", content)
    assert [d.text for d in found] == texts
    assert all(f"values of {name}" in notes for name in ("when", "at", "inside"))
    day = (datetime.date(1970, 1, 1) + datetime.timedelta(19_007)).isoformat()
    assert [d.text for d in read(tmp_path / "t.parquet", content, where=f"when={day}")[0]] == ["Text 7"]


def test_text_that_is_no_utf8_and_columns_of_bytes_are_told(tmp_path):
    wrong = pa.array([b"caf\xe9 society", b"plain"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": wrong, "picture": [b"\x89PNG", b""]}), tmp_path / "t.parquet")
    found, notes = read(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert [d.text for d in found] == ["caf\N{REPLACEMENT CHARACTER} society", "plain"]
    assert "cannot be decoded" in notes and "columns of bytes, not read: picture" in notes


# -------------------------------------------------------------------------------------------- line ends and bytes


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.tsv", "t.jsonl", "t.json"])
def test_a_carriage_return_alone_ends_a_line_in_every_format(tmp_path, name):
    rows = [{"id": i, "text": f"Line {i} of it"} for i in range(50)]
    sign = "\t" if name.endswith("tsv") else ","
    table = "\n".join(["id" + sign + "text", *(f"{row['id']}{sign}{row['text']}" for row in rows)])
    written = {"txt": "\n".join(row["text"] for row in rows), "csv": table, "tsv": table, "jsonl": lines(rows)}
    content = written.get(name.partition(".")[2], json.dumps(rows, indent=1))
    expected = [d.text for d in read(tmp_path / name, content)[0]]
    assert [d.text for d in read(tmp_path / name, content.replace("\n", "\r"))[0]] == expected
    assert len(expected) == (1 if name == "t.txt" else 50)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_line_ends_are_the_same_wherever_blocks_are_cut(size):
    whole = b"a\rb\r\nc\n\rd\r\r\n\re\r"
    cut = [whole[start : start + size] for start in range(0, len(whole), size)]
    kept = whole.decode().replace("\r\n", "\0").replace("\r", "\n").replace("\0", "\r\n")
    assert b"".join(utf8(cut, "x", ReadReport())).decode() == kept


def test_a_nul_in_a_text_is_left_out_and_counted_and_bytes_are_still_no_text(tmp_path):
    found, notes = read(tmp_path / "n.txt", "A text\0 with some words.\n" * 3 + "And more of them.\n" * 30)
    assert found[0].text.startswith("A text with") and "NUL bytes, left out (3 times)" in notes
    found, notes = read(tmp_path / "n.jsonl", '{"text": "a\\u0000b"}\n{"question": "c\\u0000?", "answer": "d"}')
    assert found[0].text == "ab" and found[1].turns[0].text == "c?" and "NUL characters, left out" in notes
    with pytest.raises(ConfigError, match="another kind"):
        read(tmp_path / "b.txt", bytes(range(256)) * 20)


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("number", [0, 7, 15])
def test_a_zstd_file_may_begin_with_frames_without_text(tmp_path, number, before):
    frame = struct.pack("<II", 0x184D2A50 + number, 6) + b"index!"
    text = zstandard.ZstdCompressor().compress(b"one\ntwo\n")
    found, _ = read(tmp_path / "t.txt.zst", frame * before + text + frame)
    assert found[0].text == "one\ntwo\n"


# ---------------------------------------------------------------------------------------------------- the hub's cache


def test_a_snapshot_of_the_hub_s_cache_is_read_once_by_either_of_its_folders(tmp_path):
    root = tmp_path / "datasets--acme--tales"
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / "0123abc" / "data").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")
    (root / "blobs" / "aa").write_text(lines([{"text": f"t{i}"} for i in range(9)]))
    (root / "snapshots" / "0123abc" / "data" / "train.jsonl").symlink_to("../../../blobs/aa")
    for folder in (root, root / "snapshots" / "0123abc", root / "snapshots" / "0123abc" / "data"):
        assert len(list(documents([str(folder)]))) == 9
    (tmp_path / "secret.txt").write_text("not yours")
    (root / "snapshots" / "0123abc" / "other.txt").symlink_to(tmp_path / "secret.txt")
    report = ReadReport()
    assert len(list(documents([str(root)], report=report))) == 9
    assert any("links that lead out" in note for note in report.notes)


def test_a_folder_of_links_that_lead_out_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="links that lead out of the folder"):
        list(documents([str(tmp_path / "links")]))


# ------------------------------------------------------------------------------------------- what is left out is noted


def test_short_rows_and_cells_without_a_value_are_empty_and_noted(tmp_path):
    table = "text,source,tag\nThe cat sleeps here.,book,a\nThe dog barks.\n\\N,book,c\n"
    found, notes = read(tmp_path / "a.csv", table)
    assert [document.raw for document in found] == [b"The cat sleeps here.", b"The dog barks."]
    assert "fewer cells than the header" in notes and "\\N" in notes
    assert "fewer" not in read(tmp_path / "b.csv", "text,tag\nThe cat sleeps here.,a\nThe dog barks.,b\n")[1]


def test_turns_of_tools_and_without_text_are_left_out_and_noted(tmp_path):
    turns = [("user", "What is the time?"), ("tool", "12:00"), ("assistant", ""), ("assistant", "It is noon.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    found, notes = read(tmp_path / "a.jsonl", json.dumps(row))
    assert pairs(found) == [("What is the time?", "It is noon.")] and "turns of tools" in notes and "(2 times)" in notes
