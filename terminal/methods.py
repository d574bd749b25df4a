"""The verb `methods`: all methods in short, or one in full."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from terminal.text import BadInput, answer, coloured, indented

TERMS = (
    ("dial", "its dial"),
    ("passes", "a step costs"),
    ("data", "it needs"),
    ("memory", "keeps"),
    ("fails", "how it fails"),
)
MARGIN = 16


def methods(args: argparse.Namespace) -> int:
    """Every method with what it does, its cost and its knobs; with a name, that one in full."""
    from unlearn_core.methods import METHODS

    if args.name and args.name not in METHODS:
        near = get_close_matches(args.name.casefold(), METHODS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}."
        raise BadInput(f"There is no method {args.name!r}; {hint}")
    listed = [facts(name, METHODS[name]) for name in ([args.name] if args.name else METHODS)]
    lines = [line for method in listed for line in (in_full(method) if args.name else in_short(method))]
    answer(args.json, listed[0] if args.name else listed, "\n".join(lines))
    return 0


def facts(name: str, kind: Any) -> dict[str, Any]:
    """The facts of a method for JSON output."""
    from unlearn_core.settings.knobs import knobs

    about = inspect.getdoc(kind) or ""
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(kind.facts).items()}
    known |= {"name": name, "caption": about.partition("\n")[0], "about": about}
    return {**known, "control": bool(getattr(kind, "control", False)), "knobs": knobs(kind)}


def in_short(method: Mapping[str, Any]) -> Iterator[str]:
    yield coloured(method["name"], "bold") + f"  {_label(method)}"
    yield f"  {method['caption']}"
    yield from _formula(method)
    yield from _sheet(method)
    yield from (f"  {_knob(knob)}" for knob in method["knobs"])


def in_full(method: Mapping[str, Any]) -> Iterator[str]:
    yield coloured(method["name"], "bold") + f"  {_label(method)}"
    yield f"\n{method['about']}\n"
    yield from _formula(method)
    yield from _sheet(method)
    for key, words in (("where", "where"), ("rails", "guard rails")):
        yield f"  {words:<{MARGIN - 2}}{', '.join(method[key])}"
    begins = [f"{s}.{key} = {value}" for s, given in method["settings"].items() for key, value in given.items()]
    if begins:
        yield f"  {'begins with':<{MARGIN - 2}}{', '.join(begins)}"
    yield from ("", *(f"  {_knob(knob)}" for knob in method["knobs"]))


def _label(method: Mapping[str, Any]) -> str:
    mark = "not unlearning" if not method["unlearns"] else "control" if method["control"] else ""
    return method["label"] if mark in method["label"] else f"{method['label']} ({mark})"


def _formula(method: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {'formula':<{MARGIN - 2}}{method['formula']}"


def _sheet(method: Mapping[str, Any]) -> Iterator[str]:
    for key, words in TERMS:
        if method[key]:
            yield f"  {words:<{MARGIN - 2}}{indented(method[key], MARGIN)}"


def _knob(knob: Mapping[str, Any]) -> str:
    allowed = "|".join(map(str, knob["choices"]))
    if knob.get("low") is not None:
        allowed = f"{knob['low']:g} to {knob['high']:g}"
    return f"method.{knob['name']} = {knob['default']}  ({allowed or type(knob['default']).__name__})  {knob['help']}"
