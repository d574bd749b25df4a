"""Imports of what brings PyTorch along, one thread at a time. Standard library only."""

from __future__ import annotations

import importlib
import threading
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()


def load(name: str) -> ModuleType:
    """The module of that name; whoever comes while another thread imports waits for the end of it.

    transformers puts another module in its own place while it is imported: a second thread that imports it meanwhile
    is left with the first, which is empty ("cannot import name 'AutoModel' from 'transformers'").
    """
    with _LOCK:
        return importlib.import_module(name)


class Lazy:
    """A module that is imported when something of it is first asked for: methods are listed without PyTorch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(load(self._name), attribute)
