"""A folder of files -> a dict by file name: being there is all that a method, a metric or an optimizer needs."""

from importlib import import_module
from pathlib import Path
from typing import Any


def discover(package: str, folder: Path, attribute: str) -> dict[str, Any]:
    """`attribute` of every module in `folder`, by file name. A file without it raises ImportError with its name."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem == "__init__":
            continue
        module = import_module(f"{package}.{path.stem}")
        if not hasattr(module, attribute):
            raise ImportError(f"{path.name} in {package} sets no {attribute}; add `{attribute} = ...` at its end.")
        found[path.stem] = getattr(module, attribute)
    return found
