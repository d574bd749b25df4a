"""What must be equal for a run to give the same numbers, and how two such records differ. Standard library only."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

LIBRARIES = ("torch", "transformers", "peft")
COMPARED = {"device": "the device", "model_dtype": "the data type", "threads": "the number of threads"}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that compute, as installed; none of them is imported."""
    return {name: metadata.version(name) for name in LIBRARIES}


@cache  # a page asks at every tick, and what is installed does not change under a process
def versions() -> dict[str, str]:
    """Those, and Python's."""
    return {"python": platform.python_version(), **library_versions()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run has otherwise than when it began, such as "transformers 5.24.0 instead of 5.23.0".

    `before` and `now` are records as in the store's `provenance` column; what one of them does not tell is left out.
    """
    pairs = [
        (name, was, now["versions"][name])
        for name, was in before.get("versions", {}).items()
        if name in now.get("versions", {})
    ]
    pairs += [(words, before[key], now[key]) for key, words in COMPARED.items() if key in before and key in now]
    return [f"{name} {new} instead of {was}" for name, was, new in pairs if was != new]


def warning(differing: Sequence[str], resumed: bool = True) -> str:
    """What such differences mean for a run that is resumed, or would be, in a sentence; empty without any."""
    if not differing:
        return ""
    goes_on = "It goes on" if resumed else "It would go on"
    return (
        f"{goes_on} with {', '.join(differing)}: its numbers can differ by rounding from those of an uninterrupted run."
    )
