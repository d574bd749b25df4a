"""Where the home folder is: what is written by this program, and by it alone, lies in it."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "cache"  # of the home: what can be made again, such as passages found in texts, and converted models


def home_folder(given: str | Path | None = None) -> Path:
    """The folder that was given, else that of LETHE_HOME, else ./data."""
    return Path(given or os.environ.get("LETHE_HOME") or "data").expanduser()


def cache_folder(given: Path | None = None) -> Path:
    """The folder that was given, else that of the home."""
    return given if given is not None else home_folder() / CACHE
