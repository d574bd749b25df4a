"""Text output: escaped control characters, colours, columns, numbers against their baseline."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pages.shared.diff import segments
from pages.shared.format import no_minus_zero, plain_percent, three
from unlearn_core.metrics import LOSS, SETS

COLOURS = {"red": "31", "green": "32", "bold": "1", "dim": "2"}
OUR_COLOURS = re.compile("\x1b\\[(?:0|31|32|1|2)m")
FORGET = LOSS.point("forget")


BROKEN = ("driver_gone", "internal", "store")  # codes of what failed; with any other code it was refused


class BadInput(ValueError):
    """Invalid input, in one sentence: exit code 2."""


class Broken(Exception):
    """A failure, in one sentence: exit code 1."""


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def answer(as_json: bool, facts: Any, text: str) -> None:
    """The outcome on stdout: `facts` for a program, or `text` for a person."""
    print(as_ascii_where_hidden(facts) if as_json else printable(text), flush=True)


def as_ascii_where_hidden(facts: Any) -> str:
    """JSON whose control and direction characters, and all others that cannot be seen, are written as \\uXXXX.

    A program reads the same from it; a terminal obeys none of it.
    """
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """A text for a terminal: of all control sequences only our own colours are left."""
    parts = OUR_COLOURS.split(text)
    colours = [*OUR_COLOURS.findall(text), ""]
    return "".join(plain(part) + colour for part, colour in zip(parts, colours, strict=True))


def plain(text: str) -> str:
    """Control characters and others that cannot be printed are shown as their codes, never obeyed."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def coloured(text: str, colour: str) -> str:
    """`text` in a colour where a person reads it; as it is in a pipe, a file, or where NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [[*heads], *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([coloured(lines[0], "dim"), *lines[1:]])


def indented(text: str, margin: int) -> str:
    """`text` with its further lines under its first."""
    return text.replace("\n", "\n" + " " * margin)


def marked(before: str, now: str) -> str:
    """How `before` became `now`, word by word: [-gone-]{+new+}, in colour as well where there is colour."""
    looks: dict[str, Callable[[str], str]] = {
        "same": lambda words: words,
        "del": lambda words: coloured(f"[-{words}-]", "red"),
        "ins": lambda words: coloured(f"{{+{words}+}}", "green"),
    }
    return "".join(looks[segment.kind](plain(segment.text)) for segment in segments(before, now))


def change(point: str, now: float | None, before: float | None) -> str:
    """How a metric stands against its baseline: forget loss in nats, since it starts near 0; all others in percent."""
    if now is None or not before:
        return "–"
    return no_minus_zero(f"{now - before:+.2f}") if point == FORGET else plain_percent(now / before - 1)


def losses(now: Mapping[str, float], first: Mapping[str, float], sets: Sequence[str] = SETS) -> str:
    """`forget 1.14 (+1.13)  retain 0.316 (+2.0 %)  ...`, of those that there are."""
    points = [(name, LOSS.point(name)) for name in sets if LOSS.point(name) in now]
    return "  ".join(f"{name} {three(now[at])} ({change(at, now[at], first.get(at))})" for name, at in points)
