"""The numbers beside the chart, each against its baseline, with a word on whether that is good."""

from __future__ import annotations

import streamlit as st

from pages.run.view import View
from pages.shared.format import three
from pages.shared.html import element
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.methods import METHODS

# Name of the number -> (label, what it is, unit)
GAUGES = {
    "removed_share": (
        "removed share",
        "The part of the step that pointed into what shall be kept, and was taken out of it.",
        "%",
    ),
    "gradient_norm": ("gradient", "The length of the gradient before anything is taken out of it.", ""),
    "likely": (
        "baseline answer, per-token probability",
        "The probability that the model gives now to its answer of step 0: geometric mean over the tokens.",
        "%",
    ),
    # Of some methods, guard rails, optimizers and masks only:
    "dial": ("dial", "Where the method's dial stands at this step: its strength, threshold or count.", ""),
    "damped_share": ("damped weights", "The share of all weights that were made smaller.", "%"),
    "forget_adapter": (
        "forget adapter",
        "1 while it learns what shall be forgotten, 0 when it is taken away, below when it is turned round.",
        "",
    ),
    "new_dimensions": ("new dimensions", "What the forget text trains in every layer; 0 when it is taken away.", ""),
    "memorized": ("known by heart", "The share of the words to forget that the model still finds likeliest.", "%"),
    "unclipped_share": (
        "unclipped",
        "The share of entries that the optimizer does not clip: its authors want 10 to 50 %, at 0 it is a sign step.",
        "%",
    ),
    "masked_share": ("held fixed", "The share of the trained numbers that the mask does not let change.", "%"),
}
GAUGES |= {
    name: (gauge.label, gauge.help, gauge.unit)
    for rail in GUARD_RAILS.values()
    for name, gauge in rail.facts.gauges.items()
}
ALWAYS = ("removed_share", "retain_condition_number", "gradient_norm", "likely")


def of_run(view: View) -> list[str]:
    """The gauges of a run: those it has numbers for, and from the beginning those that it will have."""
    config = view.run["config"]
    method = METHODS.get(config.get("method", {}).get("name", ""))
    trains = method is None or method.facts.trains
    kind = config.get("guard_rail", {}).get("kind", "retain_subspace")
    never = set() if trains else {"gradient_norm", "removed_share", "retain_condition_number"}
    never |= {"removed_share"} if kind == "none" else set()
    never |= {"retain_condition_number"} - set(GUARD_RAILS[kind].facts.gauges if kind in GUARD_RAILS else ())
    return [name for name in GAUGES if (name in view.numbers or name in ALWAYS) and name not in never]


def tiles(view: View, step: int) -> list[tuple[str, str, str, str]]:
    """(label, value, compared with its baseline, what it is) of every gauge."""
    found = []
    for name in of_run(view):
        label, what, unit = GAUGES[name]
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
        shown = three(value * scale) + (f" {unit}" if unit else "")
        compared = f"{three((first or 0) * scale)}{f' {unit}' if unit else ''} {since}"
        found.append((label, shown, compared, what))
    return found


def draw(view: View, step: int) -> None:
    cells = (
        element(
            "div.gauge", element("dt", label), element("dd", value, element("small", compared)), tabindex=0, title=what
        )
        for label, value, compared, what in tiles(view, step)
    )
    st.html(element("dl.gauges", cells))
