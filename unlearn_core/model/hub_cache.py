"""The layout of the Hugging Face cache: models--org--name/snapshots/<commit>, whose files are links into blobs."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = re.compile(r"(models|datasets|spaces)--[\w.-]+")


def repository(path: Path) -> Path | None:
    """The folder of the cached repository that a path lies in, or is; None where it is in none."""
    return next((folder for folder in (path, *path.parents) if _is_repository(folder)), None)


def snapshot(folder: Path) -> Path:
    """Of a cached repository's folder its snapshot: that of the branch main, else the newest. Any other is itself."""
    if not _is_repository(folder):
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (named := folder / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return named
    commits = [commit for commit in (folder / "snapshots").iterdir() if commit.is_dir()]
    return max(commits, key=lambda commit: commit.stat().st_mtime_ns, default=folder)


def is_blob(link: Path) -> bool:
    """Whether a link in a snapshot leads to a file among the blobs of the same repository."""
    if (home := repository(link.absolute().parent)) is None:
        return False
    blobs = home.resolve() / "blobs"
    return not blobs.is_symlink() and link.resolve().is_relative_to(blobs)


def name(folder: Path) -> str:
    """The hub id (org/name) of what lies in a cached repository; empty where it is in none."""
    home = repository(folder.absolute())
    return home.name.partition("--")[2].replace("--", "/") if home else ""


def named_in(path: str) -> str:
    """The hub id in a path of the cache, wherever that cache is; empty where there is none."""
    found = next((part for part in reversed(path.split("/")) if REPOSITORY.fullmatch(part)), "")
    return found.partition("--")[2].replace("--", "/")


def _is_repository(folder: Path) -> bool:
    return bool(REPOSITORY.fullmatch(folder.name)) and (folder / "snapshots").is_dir()
