"""Plug-ins: a folder of files -> a mapping by file name. Adding a member of a kind is adding a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

CORE = Path(__file__).parents[1]
NOT_PLUGINS = ("__init__", "base")


def names(kind: str) -> tuple[str, ...]:
    """The names of the plug-ins of a kind ("methods"), by their files; none of them is imported."""
    return tuple(sorted(path.stem for path in (CORE / kind).glob("*.py") if path.stem not in NOT_PLUGINS))


@cache
def plugins(kind: str) -> Mapping[str, Any]:
    """Name -> what each file of the folder `kind` sets: METHOD of methods, READER of corpus/readers, ...

    Raises ImportError with the name of a file that sets nothing.
    """
    attribute, members = kind.rpartition("/")[2].removesuffix("s").upper(), {}
    for name in names(kind):
        module = import_module(f"unlearn_core.{kind.replace('/', '.')}.{name}")
        if not hasattr(module, attribute):
            raise ImportError(f"{name}.py in {kind} sets no {attribute}; add `{attribute} = ...` at its end.")
        members[name] = getattr(module, attribute)
    return members
