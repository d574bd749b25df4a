"""Results of scans on the disk, by the content of the files that were read: a repeated scan reads one small file."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from unlearn_core.corpus.documents import FilePart, fingerprint_parts
from unlearn_core.corpus.passages import Occurrence, Passage, ScanResult
from unlearn_core.model.prompting import Turn
from unlearn_core.settings.disk import clear_parts, written_beside
from unlearn_core.settings.sections import DataSettings

FORMAT = 4  # of what is cached; another number makes old files unread
CONTENTS = "contents.json"


class ScanCache:
    """The stored result of one scan: of these settings and this seed on files of this content.

    A file's content is known by its path, size, time and inode once it has been hashed; a thread hashes new files
    while the scan reads them.
    """

    def __init__(self, folder: Path, data: DataSettings, seed: int) -> None:
        self.folder = folder
        settings = {name: value for name, value in asdict(data).items() if name != "excluded"}
        self.settings = json.dumps([FORMAT, seed, settings])
        self.sources = [*dict.fromkeys((*data.forget, *data.retain))]
        self.parts = fingerprint_parts(self.sources)
        self.known: dict[str, str] = _contents(folder)
        # A data set on the hub is identified by its commit; without one, its content is unknown.
        self.known |= {_mark(part): f"{part.name}@{part.commit}" for part in self.parts if part.commit}
        self.usable = all(part.commit != "" for part in self.parts)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> ScanResult | None:
        """The stored result; where there is none, None, and a thread begins to hash the files."""
        if not self.usable:
            return None
        if all(_mark(part) in self.known for part in self.parts):
            return _result(_read_json(self._path()))
        self._thread = threading.Thread(target=self._hash, name="fingerprint", daemon=True)
        self._thread.start()
        return None

    def write(self, result: ScanResult) -> None:
        """Stores the result, unless a file has changed since the scan began."""
        if self._thread:
            self._thread.join()
        if not self.usable or not all(_mark(part) in self.known for part in self.parts):
            return
        if fingerprint_parts(self.sources) != self.parts:
            return
        if self._thread:
            _write_json(self.folder / CONTENTS, {**_contents(self.folder), **self.known})
        _write_json(self._path(), asdict(result))

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
            digest = xxhash.xxh3_128()  # fast; a collision on purpose gains nothing here
            try:
                with open(part.name, "rb", buffering=0) as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
                        if self._stop.is_set():
                            return
            except OSError:
                return
            self.known[_mark(part)] = digest.hexdigest()


def _mark(part: FilePart) -> str:
    return "|".join(map(str, part[:4]))


def _contents(folder: Path) -> dict[str, str]:
    """Hash of the content of every file that was hashed before, by its mark."""
    known = _read_json(folder / CONTENTS)
    return known if isinstance(known, dict) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _write_json(path: Path, value: Any) -> None:
    # On a full or read-only disk the next scan takes longer; this one is not lost.
    with suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent)
        with written_beside(path) as part:
            part.write_text(json.dumps(value), encoding="utf-8")


def _result(plain: Any) -> ScanResult | None:
    """A ScanResult out of its plain values; None where they are damaged."""
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
        return ScanResult(**{**plain, **sets, "notes": tuple(plain["notes"])})
    except (KeyError, TypeError, AttributeError):
        return None
