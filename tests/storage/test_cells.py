"""Exported CSV: no spreadsheet runs a cell, and every text is read back as it was."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import cells

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1", "'=1", "＝1", "＠x", "-"]
TEXTS = ["", "one", "'tis", "a=1", "'", "1 - 2", "– dash", "\ufeff", "日本"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_begins_like_a_formula_has_an_apostrophe_in_front(text: str) -> None:
    assert cells.neutral(text) == f"'{text}" and cells.original(cells.neutral(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert cells.neutral(text) == text == cells.original(text)


@given(st.text(alphabet=st.one_of(st.sampled_from("'=+-@\t\r\n a＝\u3000"), st.characters(codec="utf-8")), max_size=8))
def test_every_text_comes_back_and_no_cell_begins_a_formula(text: str) -> None:
    cell = cells.neutral(text)
    assert cells.original(cell) == text
    assert not cell.lstrip(" \u00a0\u3000\ufeff").startswith(
        ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
    )


def test_a_table_keeps_its_numbers_and_neutralises_texts_and_names() -> None:
    table = pd.DataFrame({"=name": ["=cmd|' /C calc'!A0", "fine", None], "value": [-0.25, 1e-9, float("nan")], "n": 3})
    header, *rows = csv.reader(io.StringIO(cells.csv(table), newline=""))
    assert header == ["'=name", "value", "n"]
    assert rows == [["'=cmd|' /C calc'!A0", "-0.25", "3"], ["fine", "1e-09", "3"], ["", "", "3"]]
