"""The chart of a run: forget loss above, retain losses below, on one step axis. Builds plain data."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from markupsafe import Markup

from pages.run import marks
from pages.run.panels import HEIGHT, TOP, layout, line, note, spread, titles
from pages.run.view import View
from pages.shared.format import percent, three
from pages.shared.html import element
from pages.shared.recorded import RECORDED
from unlearn_core.metrics import LOSS, SETS

MOST_POINTS = 1000
NEVER_KNEW = "a model that never knew the word"
# Set -> (colour of its line, dash). The same on every page; the label's colour is that of the set's name in the style.
STROKES = {
    "forget": ("#D55E00", "solid"),
    "retain": ("#0072B2", "solid"),
    "neighbour": ("#009E73", "dash"),
    "holdout": ("#56B4E9", "dot"),
}
LINES = {LOSS.point(name): (name, *STROKES[name]) for name in SETS}
KEPT = tuple(name for name in LINES if name != LOSS.point("forget"))


@dataclass(frozen=True)
class Look:
    """Settings of the chart; they are in the page's address."""

    log: bool = False
    smooth: float = 0.0
    series: tuple[str, ...] = tuple(LINES)
    zoom: tuple[int, int] | None = None


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the pull towards zero at the start."""
    averages, average, mass = [], 0.0, 0.0
    for value in values:
        average, mass = weight * average + (1 - weight) * value, weight * mass + (1 - weight)
        averages.append(average / mass)
    return averages


def thinned(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """Lowest and highest point of every bucket of steps: spikes stay, and old points do not move as new ones come."""
    if len(steps) <= most:
        return list(steps), list(values)
    shift = 0
    while (steps[-1] - steps[0]) >> shift > most // 2:
        shift += 1
    chosen, start = {0, len(steps) - 1}, 0
    for index in range(1, len(steps) + 1):
        if index == len(steps) or steps[index] >> shift != steps[start] >> shift:
            bucket = range(start, index)
            chosen |= {min(bucket, key=values.__getitem__), max(bucket, key=values.__getitem__)}
            start = index
    return [steps[i] for i in sorted(chosen)], [values[i] for i in sorted(chosen)]


def figure(view: View, look: Look, chosen: Sequence[tuple[int, str]], height: int = HEIGHT) -> dict[str, Any]:
    """The Plotly figure. `chosen`: steps to be marked with a line across, each with its label."""
    window = look.zoom or (0, max(view.last_step, 10))
    traces, labels = _traces(view, look, window)
    shapes, level_labels = _levels(view, look)
    notes: list[dict[str, Any]] = []
    for step, label in chosen:
        shapes.append(line(step, step, 0, 1, "@text", "solid", "paper", width=1.2))
        notes.append(
            note(step, 0.0, label, "@text", yref="paper", yanchor="top", xanchor="center", yshift=-18, bold=True)
        )
    shapes += marks.pauses(view, TOP[1])
    for group, more in zip((shapes, notes), marks.milestones(view, window), strict=True):
        group += more
    frame = layout(window, look.log, _ranges(view, look, window), height)
    frame |= {"shapes": shapes, "annotations": [*notes, *spread([*labels, *level_labels], frame), *titles()]}
    if not view.numbers:
        notes.append(note(0.5, 0.7, "the curves begin with step 0", "@quiet", xref="paper", yref="paper"))
        frame["annotations"] = [*notes, *titles()]
    return {"data": [*_frame(), *traces, *marks.signs(view)], "layout": frame}


def _frame() -> list[dict[str, Any]]:
    """A trace without points on each axis: the panels stand in their places before there is anything to draw."""
    return [
        {"type": "scatter", "x": [], "y": [], "xaxis": "x", "yaxis": axis, "hoverinfo": "skip"}
        for axis in ("y", "y2", "y3")
    ]


def _scaled(view: View, name: str, look: Look) -> tuple[list[int], list[float]]:
    """The values as drawn: nats for the forget loss, the change since the start for retain losses."""
    steps, values = view.numbers.get(name, ([], []))
    if name in KEPT:
        before = view.baseline.get(name)
        if not before:
            return [], []
        values = [value / before if look.log else 100 * (value / before - 1) for value in values]
    elif look.log:
        values = [max(value, 1e-4) for value in values]
    return list(steps), list(values)


def _traces(view: View, look: Look, window: tuple[int, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    traces: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for name, (label, colour, dash) in LINES.items():
        steps, values = _scaled(view, name, look)
        if name not in look.series or not steps:
            continue
        axis = "y2" if name in KEPT else "y"
        stroke = {"color": colour, "dash": dash, "width": 2}
        common = {"type": "scatter", "mode": "lines", "yaxis": axis, "xaxis": "x", "uid": name}
        if look.smooth:
            x, y = thinned(steps, values)
            raw = {"x": x, "y": _rounded(y), "opacity": 0.25, "line": {**stroke, "width": 1}, "hoverinfo": "skip"}
            traces.append({**common, **raw, "uid": f"{name} raw", "name": label})
            values = smoothed(values, look.smooth)
        x, y = thinned(steps, values)
        mode = "lines" if len(x) > 1 else "markers"
        texts = [_figure(view, name, step)[1] for step in x]
        traces.append(
            {**common, "mode": mode, "x": x, "y": _rounded(y), "line": stroke, "name": label, "text": texts}
            | {"marker": {"color": colour, "size": 7}, "hovertemplate": "%{text}<extra>" + label + "</extra>"}
        )
        place = bisect_right(steps, window[1]) - 1
        if place >= 0:
            text = f"<b>{label}</b> {_figure(view, name, steps[place])[0]}"
            meaning = RECORDED[name].explained
            labels.append({"y": values[place], "text": text, "ink": f"@{label}", "axis": axis, "hovertext": meaning})
    return traces, labels


def _in_sight(view: View, level: float) -> bool:
    """Whether the reference level is near enough to the curve to be drawn with it."""
    return max(view.numbers.get("forget_loss", ([], [0.0]))[1], default=0.0) >= level / 4


def _figure(view: View, name: str, step: int) -> tuple[str, str]:
    """A loss at a step, short and in full: its value in nats, or its change with that behind."""
    nats = three(view.value(name, step))
    if name in KEPT:
        change = percent(view.change(name, step))
        return change, f"{change} ({nats} nats)"
    return nats, f"{nats} nats"


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _levels(view: View, look: Look) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of the reference level in the upper panel, of start and budget in the lower one; and their labels."""
    shapes, labels = [], []
    level = view.levels.get("forget_level")
    if level and "forget_loss" in look.series and _in_sight(view, level):
        shapes.append(line(0, 1, level, level, "@reference", "longdash", "y", across=True))
        text = f"<b>never knew it</b> {three(level)}" + ("<br>an estimate" if _is_estimated(view) else "")
        labels.append({"y": level, "text": text, "ink": "@quiet", "axis": "y", "hovertext": reference_level(view)})
    zero = 1.0 if look.log else 0.0
    if view.baseline:
        shapes.append(line(0, 1, zero, zero, "@axis", "solid", "y2", across=True, width=1))
    if view.budget and view.baseline:
        top = 1 + view.budget if look.log else 100 * view.budget
        shapes.append(line(0, 1, top, top, "#E69F00", "solid", "y2", across=True, width=1.2))
        text = f"{view.budgeted_set} budget {percent(view.budget, short=True)}"
        labels.append({"y": top, "text": text, "ink": "@guard", "axis": "y2"})
    return shapes, labels


def _is_estimated(view: View) -> bool:
    return bool(view.levels.get("forget_level_estimated", True))


def reference_level(view: View) -> str:
    """What the dashed level is, in words: of one's own model it is an estimate. Empty where there is no level."""
    level = view.levels.get("forget_level")
    if not level:
        return ""
    source = view.levels.get("forget_level_source", "")
    whence = f"an estimate, from {source}" if _is_estimated(view) else source
    far = "" if _in_sight(view, level) else "; it lies far above what is drawn"
    return f"{NEVER_KNEW}: {three(level)} nats ({whence}{far})"


def legend(view: View) -> Markup:
    """The dashed level and the marks that are on the chart, each with its name."""
    level = reference_level(view)
    return element("p.marks", element("span", element("i", "╌╌"), f" {level}") if level else None, marks.legend(view))


def _ranges(view: View, look: Look, window: tuple[int, int]) -> tuple[list[float], list[float]]:
    """What the two panels show: the data in sight, with the levels that they are read against."""
    upper, lower = [0.0, 1.0], [-1.0, 1.0]
    level = view.levels.get("forget_level")
    if level and _in_sight(view, level):
        upper.append(level * 1.12)
    if view.budget:
        lower.append(120 * view.budget)
    for name in LINES:
        steps, values = view.numbers.get(name, ([], []))
        seen = values[bisect_left(steps, window[0]) : bisect_right(steps, window[1])]
        if name not in look.series or not seen:
            continue
        before = view.baseline.get(name)
        if name in KEPT and before:
            lower += [100 * (extreme / before - 1) for extreme in (min(seen), max(seen))]
        elif name not in KEPT:
            upper += [min(seen), max(seen) * 1.08]
    if look.log:
        lowest = min((v for v in view.numbers.get("forget_loss", ([], [0.01]))[1] if v > 0), default=0.01)
        ratios = [1 + extreme / 100 for extreme in (min(lower), max(lower))]
        return [math.log10(lowest * 0.8), math.log10(max(upper) * 1.2)], [
            math.log10(max(ratios[0], 0.05)),
            math.log10(ratios[1]) + 0.01,
        ]
    room = 0.06 * (max(lower) - min(lower))
    return [min(upper), max(upper)], [min(lower) - room, max(lower) + room]


live_chart = st.components.v2.component(
    "live_chart",
    html="<div class='live' role='img' tabindex='0'></div>",
    js=Path(__file__).with_name("chart.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def draw(
    view: View,
    look: Look,
    chosen: Sequence[tuple[int, str]],
    *,
    key: str,
    alt: str,
    on_picked: Callable[[int], None],
    on_zoomed: Callable[[tuple[int, int] | None], None] = lambda _: None,
    height: int = HEIGHT,
    turn: int = 0,
) -> None:
    """Shows the chart, and says which step was clicked on, or to which steps it was zoomed (None: all).

    Both are called before the page is drawn anew. The browser keeps its own zoom until `turn` changes; then it takes
    that of `look`.
    """
    data = {
        "figure": json.dumps(figure(view, look, chosen, height)),
        "whole": [0, max(view.last_step, 10)],
        "zoom": list(look.zoom) if look.zoom else None,
        "turn": turn,
        "revision": view.id,
        "height": height,
        "alt": alt,
    }

    def picked() -> None:
        report = st.session_state[key].picked
        if report and report["nonce"] != st.session_state.get(f"{key}_nonce"):  # reported again, it is no new click
            st.session_state[f"{key}_nonce"] = report["nonce"]
            on_picked(int(report["step"]))

    def zoomed() -> None:
        steps = st.session_state[key].zoomed["range"]
        on_zoomed((max(0, steps[0]), steps[1]) if steps else None)

    live_chart(data=data, key=key, on_picked_change=picked, on_zoomed_change=zoomed)
