"""Text that cannot steer a terminal, marks that need no colour, numbers against their baseline."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pages.parts.diff import segments

COLOURS = {"red": "31", "green": "32", "bold": "1", "dim": "2"}
LOSSES = ("forget", "retain", "neighbour", "holdout")


class BadInput(ValueError):
    """What was asked cannot be, in one sentence: exit code 2."""


class Broken(Exception):
    """It broke on the way, in one sentence: exit code 1."""


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def answer(as_json: bool, facts: Any, text: str) -> None:
    """The outcome on stdout: `facts` for a program, or `text` for a person."""
    print(json.dumps(facts, ensure_ascii=False, indent=1) if as_json else text, flush=True)


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
    looks = {
        "same": lambda words: words,
        "del": lambda words: coloured(f"[-{words}-]", "red"),
        "ins": lambda words: coloured(f"{{+{words}+}}", "green"),
    }
    return "".join(looks[segment.kind](plain(segment.text)) for segment in segments(before, now))


def number(value: float) -> str:
    """Three significant figures."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def change(name: str, now: float | None, before: float | None) -> str:
    """How a loss stands against its baseline: forget loss in nats, since it starts near 0; all others in percent."""
    if now is None or not before:
        return "–"
    text = f"{now - before:+.2f}" if name == "forget" else f"{now / before - 1:+.1%}".replace("%", " %")
    return text.replace("-", "+") if text.strip("-0. %") == "" else text  # never -0.0


def losses(now: Mapping[str, float], first: Mapping[str, float], names: Sequence[str] = LOSSES) -> str:
    """`forget 1.14 (+1.13)  retain 0.316 (+2.0 %)  ...`, of those that there are."""
    found = [(name, now.get(f"{name}_loss"), first.get(f"{name}_loss")) for name in names]
    return "  ".join(f"{name} {number(at)} ({change(name, at, was)})" for name, at, was in found if at is not None)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """A number of bytes, as a person writes it."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{number(count) if units[0] != 'bytes' else round(count)} {units[0]}"
