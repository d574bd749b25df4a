"""Knobs: settings with default, range and help, in one place for the check, the command line and the form."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def knob(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    help: str = "",
    choices: tuple[Any, ...] = (),
    init: bool = True,
    path: bool = False,
) -> Any:
    """A dataclass field with its range and its meaning: one line feeds the check, the command line and the form.

    `init`: whether it is given to the constructor. `path`: it names something on the disk.
    """
    facts = {"low": low, "high": high, "help": help, "choices": choices, **({"path": True} if path else {})}
    if isinstance(default, tuple):
        facts["filled"] = bool(default)  # a list that has something in it by default must not be emptied
        return field(default_factory=lambda: default, metadata=facts)
    return field(default=default, init=init, metadata=facts)


def knobs(kind: type) -> list[dict[str, Any]]:
    """The settings of a section or a method for a listing: name, default, range, choices, help."""
    return [{"name": f.name, "default": getattr(kind(), f.name), **f.metadata} for f in fields(kind)]
