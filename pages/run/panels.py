"""The two panels that a chart of a run is drawn in: their places, axes, titles and labels. Plain data for Plotly."""

from __future__ import annotations

import math
from typing import Any

from pages.shared.format import percent

HEIGHT = 430
TOP, BOTTOM = (0.61, 0.86), (0.0, 0.39)  # where the two panels stand; the marks have the strip above them
LABEL = 15  # pixels of a line of the labels at the ends of the lines
ROW = 14  # pixels of a line of text between the panels, where no curve is
# Ticks of the logarithmic axes, the ones that matter most first: losses, and losses as shares of their start.
LOSS_TICKS = (1, 0.1, 10, 0.01, 2, 5, 0.2, 0.5, 20, 0.05, 0.02, 0.001)
RATIO_TICKS = (1, 2, 10, 100, 1.5, 5, 1.2, 0.5, 1.1, 3, 20, 50, 1.05, 1.02, 0.9, 0.95, 0.98, 0.7)


def line(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    colour: str,
    dash: str,
    yref: str,
    across: bool = False,
    width: float = 1.5,
) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper" if across else "x",
        "yref": yref,
        "x0": x0,
        "x1": x1,
        "y0": y0,
        "y1": y1,
        "line": {"color": colour, "width": width, "dash": dash},
        "layer": "below",
    }


def note(x: float, y: float, text: str, colour: str, bold: bool = False, **place: Any) -> dict[str, Any]:
    text = f"<b>{text}</b>" if bold else text
    look = {"showarrow": False, "font": {"size": 12, "color": colour}, "bgcolor": "@paper", "align": "left"}
    return {"x": x, "y": y, "text": text, **look, **place}


def apart(offered: tuple[float, ...], within: list[float]) -> list[float]:
    """The ticks of a logarithmic axis that have room: an eighth of the panel each. The first offered come first."""
    room = (within[1] - within[0]) / 8
    chosen: list[float] = []
    for tick in offered:
        place = math.log10(tick)
        if within[0] <= place <= within[1] and all(abs(place - math.log10(other)) >= room for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def layout(window: tuple[int, int], log: bool, ranges: tuple[list[float], list[float]], height: int) -> dict[str, Any]:
    axis = {
        "gridcolor": "@grid",
        "zeroline": False,
        "tickfont": {"color": "@quiet", "size": 11},
        "fixedrange": True,
        "nticks": 5 if height > 350 else 3,
    }
    scale = "log" if log else "linear"
    upper: dict[str, Any] = {**axis, "domain": list(TOP), "range": ranges[0], "type": scale}
    lower: dict[str, Any] = {**axis, "domain": list(BOTTOM), "range": ranges[1], "type": scale, "ticksuffix": " %"}
    if log:
        losses, ratios = apart(LOSS_TICKS, ranges[0]), apart(RATIO_TICKS, ranges[1])
        upper |= {"tickvals": losses, "ticktext": [f"{t:g}" for t in losses]}
        lower |= {"tickvals": ratios, "ticktext": [percent(t - 1, short=True) for t in ratios], "ticksuffix": ""}
    return {
        "height": height,
        "margin": {"l": 46, "r": 122, "t": 6, "b": 40},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "@font", "color": "@text", "size": 12},
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "dragmode": "zoom",
        "separators": ". ",
        "hoverlabel": {
            "bgcolor": "@background",
            "bordercolor": "@axis",
            "font": {"color": "@text", "size": 12},
            "align": "left",
        },
        "xaxis": {
            "anchor": "y2",
            "range": list(window),
            "showgrid": False,
            "zeroline": False,
            "tickfont": {"color": "@quiet", "size": 11},
            "linecolor": "@axis",
            "showline": True,
            "ticks": "outside",
            "tickcolor": "@axis",
            "tickformat": "d",
            "nticks": 7,
            "hoverformat": "d",
            "unifiedhovertitle": {"text": "step %{x}"},
            "showspikes": True,
            "spikemode": "across",
            "spikesnap": "cursor",
            "spikethickness": 1,
            "spikecolor": "@axis",
            "spikedash": "dot",
        },
        "yaxis": upper,
        "yaxis2": lower,
        "yaxis3": {"domain": [0.935, 0.995], "range": [0, 1], "visible": False, "fixedrange": True},
    }


def titles() -> list[dict[str, Any]]:
    place: dict[str, Any] = {
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 3,  # beside a line at the first step
        "yshift": 2,
    }
    return [
        note(0, TOP[1], "<b>forget</b>  loss in nats per token, should rise", "@quiet", **place),
        note(0, BOTTOM[1], "<b>retain</b>  change of loss, should stay at 0", "@quiet", **place),
    ]


def spread(labels: list[dict[str, Any]], layout: dict[str, Any]) -> list[dict[str, Any]]:
    """The labels at the lines' ends, moved apart so that none covers another."""
    notes = []
    for axis, key, domain in (("y", "yaxis", TOP), ("y2", "yaxis2", BOTTOM)):
        low, high = layout[key]["range"]
        pixels = (domain[1] - domain[0]) * (layout["height"] - layout["margin"]["t"] - layout["margin"]["b"])
        log = layout[key]["type"] == "log"
        mine = [label for label in labels if label["axis"] == axis]
        places = [
            ((math.log10(max(label["y"], 1e-9)) if log else label["y"]) - low) / ((high - low) or 1) * pixels
            for label in mine
        ]
        order = sorted(range(len(mine)), key=places.__getitem__)
        put: dict[int, float] = {}
        floor = -LABEL / 2
        for index in order:
            room = LABEL * (1 + mine[index]["text"].count("<br>"))
            put[index] = max(places[index], floor + room / 2)
            floor = put[index] + room / 2
        over = max(0.0, floor - LABEL / 2 - pixels)
        for index in order:
            at = domain[0] + (put[index] - over) / pixels * (domain[1] - domain[0])
            notes.append(
                note(
                    1,
                    at,
                    mine[index]["text"],
                    mine[index]["ink"],
                    hovertext=mine[index].get("hovertext"),
                    xref="paper",
                    yref="paper",
                    xanchor="left",
                    yanchor="middle",
                    xshift=6,
                )
            )
    return notes
