"""The numbers beside the chart, each against its baseline, with a word on whether that is good."""

from __future__ import annotations

import html

import streamlit as st

from pages.parts import story
from pages.parts.view import View

# Name of the number -> (label, what it is, unit)
GAUGES = {
    "removed_share": (
        "removed share",
        "The part of the step that pointed into what shall be kept, and was taken out of it.",
        "%",
    ),
    "retain_condition_number": (
        "condition number",
        "How near to each other the protected directions are: 1 is best, thousands are too near.",
        "",
    ),
    "gradient_norm": ("gradient", "The length of the gradient before anything is taken out of it.", ""),
    "likely": ("first answer", "How likely the answer before step 1 still is: geometric mean per token.", "%"),
}


def tiles(view: View, step: int) -> list[tuple[str, str, str, str]]:
    """(label, value, compared with its baseline, what it is) of every gauge."""
    found = []
    for name, (label, what, unit) in GAUGES.items():
        if name == "likely":
            value, first, since = view.likely(step), view.likely(0), "before"
        else:
            steps, values = view.numbers.get(name, ([], []))
            value, first = view.value(name, step), values[0] if values else None
            since = "before step 1" if steps and steps[0] == 0 else f"at step {steps[0]}" if steps else ""
        if value is None:
            found.append((label, "–", "measured from step 1 on" if name != "likely" else "asked at step 0", what))
            continue
        scale = 100 if unit == "%" else 1
        shown = story.three(value * scale) + (f" {unit}" if unit else "")
        compared = f"{story.three((first or 0) * scale)}{f' {unit}' if unit else ''} {since}"
        found.append((label, shown, compared, what))
    return found


def draw(view: View, step: int) -> None:
    cells = "".join(
        f"<div class='gauge' tabindex='0' title='{html.escape(what, quote=True)}'><dt>{html.escape(label)}</dt>"
        f"<dd>{html.escape(value)}<small>{html.escape(compared)}</small></dd></div>"
        for label, value, compared, what in tiles(view, step)
    )
    st.html(f"<dl class='gauges'>{cells}</dl>")
