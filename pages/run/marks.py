"""Events of a run as marks on its chart: pauses, edits, guards, checkpoints; and its milestones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from pages.run import settings
from pages.run.panels import BOTTOM, ROW, TOP, line, note
from pages.run.view import View
from pages.shared.format import duration, percent
from pages.shared.html import element


def pauses(view: View, top: float) -> list[dict[str, Any]]:
    steps = sorted({event["step"] for event in view.events if event["kind"] == "paused"})
    return [
        {"type": "rect", "xref": "x", "xsizemode": "pixel", "xanchor": step, "x0": -4, "x1": 4}
        | {"yref": "paper", "y0": 0, "y1": top, "layer": "below"}
        | {"fillcolor": "@band", "line": {"width": 0}}
        for step in steps
    ]


def milestones(view: View, window: tuple[int, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines and their labels: of forgetting in the upper panel, of damage in the lower one, of a collapse in both.

    The labels stand between the panels, a row each, where no curve is and none crosses another.
    """
    at = view.milestones()
    shapes, notes = [], []
    above_damage = BOTTOM[1] + (TOP[0] - BOTTOM[1]) / 2
    for row, (step, label, colour, dash, (bottom, top)) in enumerate(
        (
            (at.forgotten, "forgotten since", "@forget", "dot", TOP),
            (at.collapsed, "collapsed since", "@text", "dashdot", (0, 1)),
            (at.damaged, f"{view.budgeted_set} damage since", "@guard", "dash", (BOTTOM[0], above_damage)),
        )
    ):
        if step is None or not window[0] <= step <= window[1]:
            continue
        left = step > (window[0] + window[1]) / 2
        shapes.append(line(step, step, bottom, top, colour, dash, "paper"))
        place: dict[str, Any] = {"xanchor": "right", "xshift": -2} if left else {"xanchor": "left", "xshift": 2}
        place |= {"yref": "paper", "yanchor": "top", "yshift": -ROW * row, "bgcolor": "rgba(0,0,0,0)"}
        notes.append(note(step, TOP[0], f"{label} {step}", colour, **place))
    return shapes, notes


@dataclass(frozen=True)
class Sign:
    """A mark: Plotly's symbol, its colour in the chart, its name, and the character that shows it in the legend."""

    symbol: str
    colour: str
    label: str
    character: str


SIGNS = {
    "prompt_edited": Sign("triangle-down", "@text", "question edited", "▼"),
    "changed": Sign("pentagon", "@reference", "settings changed", "⬟"),
    "paused": Sign("line-ns-open", "@quiet", "pause", "❙"),
    "guard": Sign("diamond", "#E69F00", "guard", "◆"),
    "resumed": Sign("triangle-right", "@quiet", "resumed", "▶"),
    "not_finite": Sign("x", "@forget", "not a number", "✖"),
    "interrupted": Sign("x-thin-open", "@quiet", "interrupted", "✕"),
    "best": Sign("star", "@text", "best step", "★"),
    "relapse": Sign("triangle-left", "@forget", "relapse", "◀"),
    "saved": Sign("square-open", "@reference", "checkpoint", "□"),
}


def legend(view: View) -> list[Markup]:
    """The marks that are on the chart, each with its name."""
    there = marked(view)
    shown = [(kind, sign) for kind, sign in SIGNS.items() if kind in there]
    return [element("span", element("i", sign.character, data_mark=kind), f" {sign.label}") for kind, sign in shown]


def marked(view: View) -> dict[str, list[tuple[int, str]]]:
    """Kind of mark -> (step, what happened there in words)."""
    events: dict[str, list[tuple[int, str]]] = {}
    guarded = {event["step"] for event in view.events if event["kind"] == "guard"}
    for event in view.events:
        # A pause that a guard asked for, and the end of a pause, need no sign of their own.
        if event["kind"] == "paused" and event["step"] in guarded:
            continue
        if event["kind"] == "resumed" and "from_step" not in (event["payload"] or {}):
            continue
        if event["kind"] in SIGNS and event["step"] is not None:
            events.setdefault(event["kind"], []).append((event["step"], _words(event, view.events)))
    at = view.milestones()
    if at.best is not None:
        change = percent(view.change(view.budgeted, at.best))
        events["best"] = [(at.best, f"best step so far: forgotten, {view.budgeted_set} loss {change}")]
    if at.relapses:
        events["relapse"] = [(step, f"answered as before again: {_plain(text)}") for step, text in at.relapses]
    saved = [(row["step"], f"saved whole at step {row['step']}") for row in view.checkpoints if row["complete"]]
    if saved:
        events["saved"] = saved
    return events


def signs(view: View) -> list[dict[str, Any]]:
    """The marks as traces, in a strip above the panels; their texts are in the hover."""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "xaxis": "x",
            "yaxis": "y3",
            "uid": f"mark {kind}",
            "name": SIGNS[kind].label,
            "x": [step for step, _ in rows],
            "y": [0.1 if kind in ("best", "saved") else 0.9] * len(rows),
            "text": [text for _, text in rows],
            "cliponaxis": False,
            "marker": {
                "symbol": SIGNS[kind].symbol,
                "color": SIGNS[kind].colour,
                "size": 6 if kind == "saved" else 10,
                "line": {"color": SIGNS[kind].colour, "width": 1.5},
            },
            "hovertemplate": "%{text}<extra></extra>",
        }
        for kind, rows in sorted(marked(view).items(), key=lambda item: item[0] != "saved")
    ]


def _words(event: dict[str, Any], events: list[dict[str, Any]]) -> str:
    payload = event["payload"] or {}
    if event["kind"] == "prompt_edited":
        new = _plain(payload.get("new"))
        return f"asked: {new}" if not payload.get("old") else f"was: {_plain(payload['old'])}<br>now: {new}"
    if event["kind"] == "changed":
        return f"settings: {_plain(settings.words(payload))}"
    if event["kind"] == "paused":
        later = next((other for other in events if other["id"] > event["id"] and other["kind"] == "resumed"), None)
        length = ""
        if later:
            seconds = (datetime.fromisoformat(later["at"]) - datetime.fromisoformat(event["at"])).total_seconds()
            length = f" for {duration(seconds)}"
        return f"paused{length}: {_plain(payload.get('reason'))}"
    if event["kind"] == "guard":
        return f"guard: {_plain(payload.get('sentence'))}"
    if event["kind"] == "not_finite":
        return f"not a number: {_plain(payload.get('name'))} is {_plain(payload.get('value'))}"
    return str(event["kind"])


def _plain(text: Any) -> str:
    """Text for a hover: Plotly reads a few tags in it, so nothing that looks like one is left."""
    shown = str(text or "")[:120]
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
