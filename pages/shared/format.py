"""Numbers as a person reads them: figures, percentages, durations, sizes. Shared by pages, terminal and bench."""

from __future__ import annotations

import math


def three(value: float | None) -> str:
    """At most three significant figures: 0.316, 1,230, 1.2·10⁻⁵."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{float(mantissa):g}·10{raised}"
    if abs(value) >= 1000:
        digits = 3 - len(str(int(abs(value))))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:#.3g}".rstrip(".")


def setting(value: float) -> str:
    """A setting as a person types it, with all its figures: 150, 0.05, 8e-4."""
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def percent(change: float | None, signed: bool = True, short: bool = False) -> str:
    """A share as a percentage with its direction: 0.0203 -> "+2.0 %". `short`: 0.05 -> "+5 %"."""
    if change is None or not math.isfinite(change):
        return "–"
    value = change * 100
    digits = 1 if abs(value) < 99.5 else 0
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    if short:
        text = text.removesuffix(".0")
    return text.replace("-", "−") + "\u00a0%"


def plain_percent(change: float | None) -> str:
    """The same in ASCII, for terminals and tables in Markdown: "-1.2 %", and never "-0.0 %"."""
    return "–" if change is None else f"{no_minus_zero(f'{100 * change:+,.1f}')} %"


def no_minus_zero(text: str) -> str:
    """A signed number in which nothing but zeros is left is not negative."""
    return text if text.strip("+-0.,") else text.replace("-", "+")


def step_time(seconds: float) -> str:
    """How long a step takes, in one unit wherever it is shown: 0.384 s, 8.60 s; from a minute on 2 min 5 s."""
    return f"{three(seconds)} s" if seconds < 60 else duration(seconds)


def begun(text: str) -> str:
    """As the beginning of a sentence. A name stays as it is written: `gpt2`, `org/model`, `data.forget`."""
    first = text.split(maxsplit=1)[0].rstrip(".,:;") if text.strip() else ""
    return text[:1].upper() + text[1:] if first.isalpha() else text


def duration(seconds: float) -> str:
    """28 s, 3 min 5 s, 12 min, 2 h 10 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """A number of bytes: 999 bytes, 5.30 MB."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{three(count)} {units[0]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """1 window, 2,345 windows."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
