"""Drafts on the disk: one JSON file per browser session, named by the id in the page's address."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import time
from pathlib import Path

from pages.setup.draft import Draft, from_json, to_json

FOLDER = "drafts"
ID = re.compile(r"[a-z0-9]{1,32}")
MOST_BYTES = 1 << 20
MOST_FILES, MOST_DAYS = 200, 60


def new_id() -> str:
    return secrets.token_hex(8)


def read(home: Path, draft_id: str) -> Draft | None:
    """The stored draft; None where there is none, or none that the form could show. Never raises."""
    if not ID.fullmatch(draft_id):
        return None
    try:
        with (home / FOLDER / f"{draft_id}.json").open("rb") as file:
            stored = file.read(MOST_BYTES + 1)
        return from_json(stored) if len(stored) <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def write(home: Path, draft_id: str, draft: Draft) -> None:
    """Stores the draft whole or not at all: it is a convenience, so a full disk is no error."""
    text = to_json(draft).encode("utf-8", "replace")
    if not ID.fullmatch(draft_id) or len(text) > MOST_BYTES:
        return
    folder, part = home / FOLDER, None
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-", delete=False) as file:
            part = file.name
            file.write(text)
        os.replace(part, folder / f"{draft_id}.json")
        prune(home)
    except OSError:
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)


def prune(home: Path, now: float | None = None) -> None:
    """Deletes drafts that nobody has changed for long, and the oldest where there are too many."""
    oldest = (time.time() if now is None else now) - MOST_DAYS * 86_400
    changed = {path: path.stat().st_mtime for path in (home / FOLDER).iterdir() if path.is_file()}
    newest_first = sorted(changed, key=changed.__getitem__, reverse=True)
    for place, path in enumerate(newest_first):
        if place >= MOST_FILES or changed[path] < oldest:
            path.unlink(missing_ok=True)
