"""A table from which one row is chosen: sorted by any column, by pointer or by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamlit as st

# Not st.dataframe: it draws on a canvas, chooses a row by its checkbox alone, and a tick takes the focus from it.
choices = st.components.v2.component(
    "choices",
    html="<div class='choices'></div>",
    js=Path(__file__).with_name("choices.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


@dataclass(frozen=True)
class Heading:
    """The head of a column; `number`: its cells are set to the right."""

    name: str
    number: bool = False
    help: str = ""


Cell = tuple[str, float | str | None]  # what is shown, and what it is sorted by; None comes last


def draw(
    headings: Sequence[Heading],
    rows: Mapping[str, Sequence[Cell]],
    chosen: str,
    *,
    label: str,
    key: str,
    on_picked: Callable[[str], None],
    on_opened: Callable[[str], None],
) -> None:
    """Shows the rows, by their ids, in the order given. A click or Enter picks one, a second one opens it.

    Both callbacks are given the row's id before the page is drawn anew.
    """
    lines = [{"id": row_id, "cells": [list(cell) for cell in cells]} for row_id, cells in rows.items()]
    data = {"columns": [asdict(heading) for heading in headings], "rows": lines, "chosen": chosen, "label": label}

    def report(kind: str, act: Callable[[str], None]) -> None:
        told: dict[str, Any] | None = getattr(st.session_state[key], kind)
        if told:
            act(str(told["id"]))

    choices(
        data=data,
        key=key,
        on_picked_change=lambda: report("picked", on_picked),
        on_opened_change=lambda: report("opened", on_opened),
    )
