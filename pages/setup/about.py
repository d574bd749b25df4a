"""Facts of a method as HTML: its formula, cost, data, memory and ways of failing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import streamlit as st
from markupsafe import Markup

from pages.setup import measured
from pages.setup.knobs import METHOD, fields_of
from pages.shared.format import setting
from pages.shared.html import element, joined
from unlearn_core.methods import METHODS
from unlearn_core.settings.sections import DEFAULT_RAIL, Facts

STEPS, EDITS, CONTROLS = "by gradient steps", "without gradient steps", "controls"
PAPER = re.compile(r"\b(\d{4}\.\d{4,5})\b")
PASSES = "F and B: one forward and one backward pass of one batch"


def facts(name: str) -> Facts:
    known: Facts = METHODS[name].facts
    return known


def group(name: str) -> str:
    """How it works, in the groups of the Methods page."""
    if is_control(name) or not facts(name).unlearns:
        return CONTROLS
    return STEPS if facts(name).trains else EDITS


def is_control(name: str) -> bool:
    return bool(METHODS[name].control)


def mark(name: str) -> str:
    """A word on what is no unlearning, or only there to be compared with; empty for the others."""
    word = "control" if is_control(name) else ""
    word = word if facts(name).unlearns else "not unlearning"
    return "" if word in facts(name).label else word  # its label says so already


def label(name: str) -> str:
    """A run's method for a person; of one that is not there any more, its name."""
    return facts(name).label if name in METHODS else name.replace("_", " ")


def ordered(names: Iterable[str]) -> list[str]:
    """By group, and by label in each."""
    groups = (STEPS, EDITS, CONTROLS)
    return sorted(names, key=lambda name: (groups.index(group(name)), facts(name).label.casefold()))


def caption(name: str) -> str:
    """The first line of its docstring: what it does."""
    return (inspect.getdoc(METHODS[name]) or "").partition("\n")[0]


def more(name: str) -> str:
    """The rest of its docstring: formula in letters, source, what differs from the published code."""
    return (inspect.getdoc(METHODS[name]) or "").partition("\n")[2].strip()


def papers(name: str) -> list[str]:
    """The arXiv numbers in its docstring."""
    return list(dict.fromkeys(PAPER.findall(inspect.getdoc(METHODS[name]) or "")))


def option(name: str) -> str:
    """A line of the list that a method is chosen from."""
    word = mark(name)
    return f"{facts(name).label}{f' · {word}' if word else ''} · {does(name)}"


def does(name: str) -> str:
    """The caption, without a name that the label contains."""
    first, colon, rest = caption(name).partition(": ")
    same = re.findall(r"\w+", first.casefold())[:2] == re.findall(r"\w+", facts(name).label.casefold())[:2]
    return rest[:1].upper() + rest[1:] if colon and same else caption(name)


def heading(name: str) -> Markup:
    """Its label, marked where it is no unlearning, as HTML."""
    word = mark(name)
    return joined(facts(name).label, (" ", element("span.badge", word)) if word else None)


def formula(name: str) -> None:
    st.latex(facts(name).formula)


def sheet(name: str, recipe: str = "") -> Markup:
    """Cost, data, memory, failings and sources, as HTML. `recipe`: whose figures are shown in the method's place."""
    known = facts(name)
    whose = "of this recipe" if recipe else "at the settings it begins with"
    rows = [
        ("its dial", known.dial),
        ("a step costs", known.passes),
        ("it needs", known.data),
        ("it keeps in memory", known.memory),
        ("how it fails", known.fails),
        ("it begins with", "" if recipe else _settings(name)),
        (f"measured, {whose}", measured.in_words(recipe or name)),
    ]
    cells = [joined(element("dt", term), element("dd", words)) for term, words in rows if words]
    links = [
        element("a", f"arXiv {paper}", href=f"https://arxiv.org/abs/{paper}", target="_blank", rel="noopener")
        for paper in papers(name)
    ]
    source = joined(element("dt", "source"), element("dd", Markup(" ").join(links))) if links else None
    return joined(element("dl.sheet", cells, source, title=PASSES), _words(name))


def _settings(name: str) -> str:
    """The settings that it brings with it, but for its knobs, in words."""
    fields, parts = fields_of(name, facts(name).settings.get("guard_rail", {}).get("kind", DEFAULT_RAIL)), []
    for section, values in facts(name).settings.items():
        for key, value in values.items() if section != METHOD else ():
            if field := fields.get(f"{section}.{key}"):
                parts.append(f"{field.name} {field.text_of(value)}")
    return ", ".join(parts)


def _words(name: str) -> Markup | None:
    words = more(name)
    return element("details.words", element("summary", "in full"), element("p", words)) if words else None


def knob_table(name: str) -> Markup:
    """Its knobs with what they are at first, their range and their meaning, as HTML."""
    brought = facts(name).settings.get(METHOD, {})
    fields = [field for path, field in fields_of(name).items() if path.startswith(f"{METHOD}.")]
    if not fields:
        return element("p.quiet", "It has no knobs of its own.")
    rows = (
        element("tr", element("th", field.name, scope="row"), (element("td", words) for words in cells))
        for field in fields
        for cells in [(_at_first(field, brought.get(field.path.split(".")[1])), _range(field), field.help)]
    )
    heads = (element("th", head, scope="col") for head in ("knob", "at first", "range", "what it is"))
    return element("table.knobs", element("thead", element("tr", heads)), element("tbody", rows))


def _at_first(field: Any, brought: Any) -> str:
    """What the knob begins with; and its default in a run file that leaves the method's own settings out."""
    if brought is None or brought == field.default:
        return str(field.text_of(field.default))
    return f"{field.text_of(brought)} (default {field.text_of(field.default)})"


def _range(field: Any) -> str:
    if field.choices:
        return ", ".join(field.text_of(choice) for choice in field.choices)
    if isinstance(field.default, bool):
        return "on or off"
    if field.low is None:
        return "–"
    return f"{setting(field.low)} to {setting(field.high)}"


def matches(name: str, needle: str) -> bool:
    """Whether a search finds it: in its label, its docstring, its cost, data, memory or failings."""
    known = facts(name)
    words = (known.label, known.passes, known.data, known.memory, known.fails, mark(name))
    text = " ".join((name, inspect.getdoc(METHODS[name]) or "", *words)).casefold()
    return all(word in text for word in needle.casefold().split())
