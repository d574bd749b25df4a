"""Cells of exported CSV: a spreadsheet would run a text that begins like a formula, so it is written with a mark.

The mark is an apostrophe in front, with which a spreadsheet takes a cell as text. Numbers are left as they are.
`original` takes it away again: every text comes back as it was, those that begin with apostrophes themselves too.
"""

from __future__ import annotations

from pandas import DataFrame

MARK = "'"
# What begins a formula, also as East Asian forms, or is skipped in front of one.
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def neutral(text: str) -> str:
    """A text as a cell that no spreadsheet runs."""
    return MARK + text if _starts_a_formula(text) else text


def original(cell: str) -> str:
    """The text of such a cell."""
    return cell.removeprefix(MARK) if cell.startswith(MARK) and _starts_a_formula(cell) else cell


def csv(table: DataFrame, index: bool = False) -> str:
    """A table as CSV whose texts are `neutral`, the names of its columns too."""
    texts = table.map(lambda value: neutral(value) if isinstance(value, str) else value)
    return str(texts.rename(columns=neutral).to_csv(index=index, lineterminator="\n"))


def _starts_a_formula(text: str) -> bool:
    """Whether a spreadsheet that skips blanks and apostrophes would see the start of a formula."""
    return text.lstrip(MARK + " \u00a0\u3000\ufeff").startswith(STARTS)
