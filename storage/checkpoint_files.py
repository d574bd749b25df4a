"""The files of a checkpoint: their hash, and how they take their place on the disk and shrink."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unlearn_core.settings.disk import remove, to_disk

STATE = ("state.json", "state.safetensors")  # what only a run that goes on needs; without it a checkpoint has shrunk
PART, OLD = ".part", ".old"  # end the names of what is being written, and of what it has replaced
BLOCK = 1 << 20


@dataclass(frozen=True)
class Seal:
    """What tells whether files are those that were saved: their size in bytes, and SHA-256 of one after another."""

    bytes: int
    sha256: str


def seals(folder: Path) -> tuple[Seal, Seal]:
    """The seal of all files of a checkpoint, and that of them without the state. Raises OSError; links are none.

    Hidden files count as none: programs that show folders leave some.
    """
    whole, rest = hashlib.sha256(), hashlib.sha256()
    sizes = [0, 0]
    for path in files(folder):
        state = path.parent == folder and path.name in STATE
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                whole.update(block)
                sizes[0] += len(block)
                if not state:
                    rest.update(block)
                    sizes[1] += len(block)
    return Seal(sizes[0], whole.hexdigest()), Seal(sizes[1], rest.hexdigest())


def adapter_bytes(folder: Path) -> int:
    """The size of what stays of a checkpoint when it shrinks. Raises OSError."""
    return sum(path.stat().st_size for path in files(folder) if not (path.parent == folder and path.name in STATE))


def files(folder: Path) -> list[Path]:
    """The files of a checkpoint in the order in which they are hashed. Raises OSError where one is a link."""
    paths: list[Path] = []
    for place, inner, names in os.walk(folder, onerror=_raise):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in (*inner, *names):
            if (path := Path(place, name)).is_symlink():
                raise OSError(f"{path.name} in it is a link")
        paths += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def part_of(folder: Path, owner: str) -> Path:
    """Where one driver alone writes the checkpoint that belongs in `folder`."""
    return folder.with_name(f"{folder.name}.{owner.rpartition('-')[2]}{PART}")


def fill(part: Path, write: Callable[[Path], None], flush: bool) -> tuple[Seal, Seal]:
    """Has `write` fill a folder anew. `flush`: its files are on the disk itself afterwards. Half of one is removed."""
    try:
        remove(part)
        write(part)
        sealed = seals(part)
        if flush:
            to_disk(part)
    except BaseException:
        with suppress(OSError):
            remove(part)
        raise
    return sealed


def place(part: Path, folder: Path, flush: bool) -> None:
    """Moves a checkpoint to its place. What stood there stays beside it for `settle`, or comes back if this fails."""
    old = folder.with_name(folder.name + OLD)
    try:
        if folder.exists():
            remove(old)
            folder.rename(old)
        part.rename(folder)
        if flush and os.name != "nt":
            _flush_names(folder.parent)
    except BaseException:
        with suppress(OSError):
            if old.exists() and not folder.exists():
                old.rename(folder)
        raise


def _flush_names(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def settle(folder: Path, is_right: Callable[[Path, str], bool]) -> None:
    """Tidies the checkpoints of a run whose driver has died: removes what is half written, and what was replaced.

    `is_right`: whether a folder is what the store has of the checkpoint of that name. Where what was replaced is, and
    what has replaced it is not (the step's transaction was never written), it goes back to its place.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.endswith(PART):
            remove(path)
        elif path.name.endswith(OLD):
            place = path.with_name(path.name.removesuffix(OLD))
            if not is_right(place, place.name) and is_right(path, place.name):
                remove(place)
                path.rename(place)
            else:
                remove(path)


def shrink(folder: Path) -> None:
    """Removes the state, so that the adapter alone stays."""
    for name in STATE:
        (folder / name).unlink(missing_ok=True)
