"""The numbers beside the chart, each against its baseline, with a word on whether that is good."""

from __future__ import annotations

import streamlit as st

from pages.run.view import View
from pages.shared.format import three
from pages.shared.html import element
from pages.shared.recorded import RECORDED
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.methods import METHODS
from unlearn_core.metrics import LOSS, METRICS, SETS

# Shown beside the chart, which has the losses.
GAUGES = {name: gauge for name, gauge in RECORDED.items() if name not in map(LOSS.point, SETS)}
ANSWERS = METRICS["answer_probability"].point("forget")
ALWAYS = ("removed_share", "retain_condition_number", "gradient_norm", ANSWERS)


def of_run(view: View) -> list[str]:
    """The gauges of a run: those it has numbers for, and from the beginning those that it will have."""
    config = view.run["config"]
    method = METHODS.get(config.get("method", {}).get("name", ""))
    trains = method is None or method.facts.trains
    kind = config.get("guard_rail", {}).get("kind", "retain_subspace")
    never = set() if trains else {"gradient_norm", "removed_share", "retain_condition_number"}
    never |= {"removed_share"} if kind == "none" else set()
    never |= {"retain_condition_number"} - set(GUARD_RAILS[kind].facts.gauges if kind in GUARD_RAILS else ())
    numbers = view.recorded
    recorded = [name for name in GAUGES if name in numbers and name not in ALWAYS]
    return [name for name in (*ALWAYS, *recorded) if name not in never]


def tiles(view: View, step: int) -> list[tuple[str, str, str, str]]:
    """(label, value, compared with its baseline, what it is) of every gauge."""
    cells = []
    for name in of_run(view):
        gauge = GAUGES[name]
        if name == ANSWERS:
            value, first, since = view.answer_probability(step), view.answer_probability(0), "before"
        else:
            begun, first = view.first(name) or (None, None)
            value, since = view.value(name, step), "before step 1" if begun == 0 else f"at step {begun}"
        if value is None:
            when = "asked at step 0" if name == ANSWERS else "measured from step 1 on"
            cells.append((gauge.label, "–", when, gauge.help))
            continue
        scale, unit = (100 if gauge.unit == "%" else 1), f" {gauge.unit}" if gauge.unit else ""
        compared = f"{three((first or 0) * scale)}{unit} {since}"
        cells.append((gauge.label, f"{three(value * scale)}{unit}", compared, gauge.help))
    return cells


def draw(view: View, step: int) -> None:
    cells = (
        element(
            "div.gauge", element("dt", label), element("dd", value, element("small", compared)), tabindex=0, title=what
        )
        for label, value, compared, what in tiles(view, step)
    )
    st.html(element("dl.gauges", cells))


def explain(view: View) -> None:
    """What the losses and the gauges are, without a pointer. An element of its own, which no tick touches."""
    losses = [(f"{name} loss", RECORDED[LOSS.point(name)].help) for name in SETS if LOSS.point(name) in view.numbers]
    words = [*losses, *((GAUGES[name].label, GAUGES[name].help) for name in of_run(view))]
    rows = ((element("dt", label), element("dd", what)) for label, what in words)
    st.html(element("details.meanings", element("summary", "What these numbers mean"), element("dl.sheet", *rows)))
