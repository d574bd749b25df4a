"""Where the home folder is, and which paths lie in it: what is written by this program, and by it alone, lies there."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

CACHE = "cache"  # of the home: what can be made again, such as passages found in texts, and converted models
NETWORK = re.compile(r"\s*[\\/]{2}")  # \\host\share and //host/share: Windows signs in at the host when it is looked at


class Outside(ValueError):
    """A path that leads out of the folder that it was to lie in, in one sentence."""


def home_folder(given: str | Path | None = None) -> Path:
    """The folder that was given, else that of LETHE_HOME, else ./data."""
    return Path(given or os.environ.get("LETHE_HOME") or "data").expanduser()


def cache_folder(given: Path | None = None) -> Path:
    """The folder that was given, else that of the home."""
    return given if given is not None else home_folder() / CACHE


def on_network(path: str) -> bool:
    """Whether a path names another machine's folder, as Windows would read it. Nothing of it is touched."""
    return NETWORK.match(path) is not None


def within(folder: Path, stored: str) -> Path:
    """The place below `folder` that a path out of a file or a store names, all links followed.

    Its form is looked at before the disk is: `stored` is relative, without "..", and written with either slash. Raises
    Outside where it is not, or where a link leads out.
    """
    written, parts = PureWindowsPath(stored), PureWindowsPath(stored).parts
    plain = parts and not written.anchor and not on_network(stored)
    if plain and not any(part == ".." or ":" in part or "\0" in part for part in parts):
        root = Path(os.path.realpath(folder))
        real = Path(os.path.realpath(root.joinpath(*parts)))
        if real != root and real.is_relative_to(root):
            return real
    raise Outside(f"The path {stored[:200]!r} leads out of {folder}, so it is not used.")


def lies_within(folder: Path, stored: str) -> bool:
    """Whether there is a folder at a stored path, and it lies where it should."""
    try:
        return within(folder, stored).is_dir()
    except Outside:
        return False
