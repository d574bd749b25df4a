"""What a pass over the corpus found, kept by the content of the files it read: the same pass is not made twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from unlearn_core.config import DataSettings
from unlearn_core.corpus import Turn, fingerprint_parts
from unlearn_core.passages import Found, Occurrence, Passage

FORMAT = 2  # of what is cached; another number makes old files unread
CONTENTS = "contents.json"


class FoundBefore:
    """What a pass found, by the content of the files it read: a second pass over the same texts is not made.

    The content of a file is known by its path, size, time and inode, once it has been read; new files are read for
    their hash by a thread while the pass goes on.
    """

    def __init__(self, folder: Path, data: DataSettings, seed: int) -> None:
        self.folder = folder
        settings = {name: value for name, value in asdict(data).items() if name != "excluded"}
        self.settings = json.dumps([FORMAT, seed, settings])
        self.sources = [*dict.fromkeys((*data.forget, *data.retain))]
        self.parts = fingerprint_parts(self.sources)
        self.known: dict[str, str] = _contents(folder)
        # A data set on the hub is known by its commit; without one, nobody knows what is in it.
        self.known |= {_mark(part): part[0] for part in self.parts if not part[3] and not part[0].endswith("@")}
        self.usable = all(part[3] or not part[0].endswith("@") for part in self.parts)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Found | None:
        """What is kept of these texts; else None, and the hashes are on their way."""
        if not self.usable:
            return None
        if all(_mark(part) in self.known for part in self.parts):
            return _found(_read_json(self._path()))
        self._thread = threading.Thread(target=self._hash, name="fingerprint", daemon=True)
        self._thread.start()
        return None

    def write(self, found: Found) -> None:
        """Keeps it, unless a file has changed meanwhile."""
        if self._thread:
            self._thread.join()
        if not self.usable or not all(_mark(part) in self.known for part in self.parts):
            return
        if fingerprint_parts(self.sources) != self.parts:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._thread:
            _write_json(self.folder / CONTENTS, {**_contents(self.folder), **self.known})
        _write_json(self._path(), asdict(found))

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _path(self) -> Path:
        contents = "".join(self.known[_mark(part)] for part in self.parts)
        return self.folder / f"{hashlib.sha256((self.settings + contents).encode()).hexdigest()[:32]}.json"

    def _hash(self) -> None:
        for part in self.parts:
            if _mark(part) in self.known:
                continue
            digest = xxhash.xxh3_128()  # as fast as the memory; nobody gains by a collision here
            try:
                with open(part[0], "rb", buffering=0) as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
                        if self._stop.is_set():
                            return
            except OSError:
                return
            self.known[_mark(part)] = digest.hexdigest()


def _mark(part: tuple[str, int, int, int]) -> str:
    return "|".join(map(str, part))


def _contents(folder: Path) -> dict[str, str]:
    """Which content the files had that were read before."""
    known = _read_json(folder / CONTENTS)
    return known if isinstance(known, dict) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(path)
    except (OSError, UnicodeEncodeError):  # a full disk costs the next run some seconds, not this one its texts
        part.unlink(missing_ok=True)


def _found(plain: Any) -> Found | None:
    """A Found out of its plain values; None where they are damaged."""
    try:
        sets = {
            name: tuple(
                Passage(
                    **{
                        **row,
                        "turns": tuple(Turn(**turn) for turn in row["turns"]),
                        "occurrences": tuple(Occurrence(**each) for each in row["occurrences"]),
                    }
                )
                for row in plain[name]
            )
            for name in ("forget", "neighbour", "retain", "holdout")
        }
        return Found(**{**plain, **sets, "notes": tuple(plain["notes"])})
    except (KeyError, TypeError, AttributeError):
        return None
