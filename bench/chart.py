"""A chart as SVG, legible on light and on dark: panels with axes, lines, dots and rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

Point = tuple[float, float]

# The colours of the pages; the background is drawn, so that no page's own colour can hide the text.
STYLE = """
 .ground{fill:#ffffff} .words{fill:#24292f} .quiet{fill:#57606a} .frame{stroke:#8c959f;fill:none} .grid{stroke:#d8dee4}
 .forget{stroke:#D55E00;fill:none} .keep{stroke:#0072B2} .other{stroke:#6e7781}
 .dots{fill:none;stroke-linecap:round}
 .mark{stroke:#24292f;stroke-dasharray:4 3}
 text{font:12px system-ui,sans-serif} .small{font-size:11px} .bold{font-weight:600}
 @media (prefers-color-scheme: dark){
 .ground{fill:#0d1117} .words{fill:#e6edf3} .quiet{fill:#9198a1} .frame{stroke:#6e7681} .grid{stroke:#2a313c}
 .forget{stroke:#ff9248} .keep{stroke:#58b0ef} .other{stroke:#9198a1} .mark{stroke:#e6edf3} }
"""


@dataclass(frozen=True)
class Panel:
    """A rectangle (pixels) on which steps and values of these ranges are drawn; `log`: values by their powers."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, point: Point) -> Point:
        """Where a point stands, in pixels; one outside of the ranges stands on the edge."""

        def share(value: float, low: float, high: float) -> float:
            return min(1.0, max(0.0, (value - low) / (high - low)))

        across = share(point[0], *self.x)
        low, high = self.y
        if self.log:
            up = share(math.log(max(point[1], low)), math.log(low), math.log(high))
        else:
            up = share(point[1], low, high)
        return round(self.left + across * self.width, 1), round(self.top + (1 - up) * self.height, 1)

    def axes(self, steps: Iterable[float], values: Iterable[float], title: str, unit: str = "") -> list[str]:
        """Frame, grid, ticks with numbers, and a title above."""
        right, bottom = self.left + self.width, self.top + self.height
        parts = [text(self.left, self.top - 8, title, "words bold small")]
        for value in values:
            _, y = self.at((self.x[0], value))
            parts.append(f'<line class="grid" x1="{self.left}" y1="{y}" x2="{right}" y2="{y}"/>')
            parts.append(text(self.left - 6, y + 4, f"{value:g}{unit}", "quiet small", "end"))
        for step in steps:
            x, _ = self.at((step, self.y[0]))
            parts.append(f'<line class="frame" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
            parts.append(text(x, bottom + 17, f"{step:g}", "quiet small", "middle"))
        frame = f'x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}"'
        return [*parts, f'<rect class="frame" {frame}/>']

    def line(self, points: Iterable[Point], kind: str, width: float = 1.5) -> str:
        placed = " ".join(f"{x},{y}" for x, y in map(self.at, points))
        return f'<polyline class="{kind}" stroke-width="{width}" points="{placed}"/>'

    def dots(self, points: Iterable[Point], kind: str, across: float) -> str:
        """Points as round dots, `across` pixels wide."""
        return dots(map(self.at, points), kind, across)

    def rule(self, step: float) -> str:
        """A dashed line at a step."""
        x, _ = self.at((step, self.y[0]))
        return f'<line class="mark" x1="{x}" y1="{self.top}" x2="{x}" y2="{self.top + self.height}"/>'


def dots(places: Iterable[Point], kind: str, across: float) -> str:
    """Dots at places in pixels: one path of strokes without length, whose round ends are what is seen."""
    strokes = "".join(f"M{x:g} {y:g}h0" for x, y in places)
    return f'<path class="{kind} dots" stroke-width="{across}" d="{strokes}"/>'


def text(x: float, y: float, words: str, kind: str = "words", anchor: str = "start") -> str:
    """Words at a place in pixels."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def document(width: int, height: int, title: str, description: str, parts: Iterable[str]) -> str:
    """The whole file; title and description are what a screen reader says."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    words = f"<title>{escape(title)}</title><desc>{escape(description)}</desc><style>{STYLE}</style>"
    ground = f'<rect class="ground" width="{width}" height="{height}"/>'
    return "\n".join([head, words, ground, *parts, "</svg>\n"])
