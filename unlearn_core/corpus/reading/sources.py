"""Sources on the disk -> files: a path, a folder, a glob, a folder of `save_to_disk`."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearn_core.corpus.reading.document import File
from unlearn_core.model import hub_cache
from unlearn_core.settings.errors import ConfigError


@dataclass(frozen=True)
class Folder:
    """The files of a folder or a glob, and what was left out: sentence -> how often."""

    files: tuple[File, ...]
    notes: dict[str, int]


def expand(source: str) -> Folder:
    """The files of a path, a folder or a glob, in the order of their names. Raises ConfigError where there is none."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(hub_cache.snapshot(path), source)
        if path.is_file():
            return Folder((File(path, source, path.name, True, path.stat().st_size),), {})
        if path.exists():
            raise ConfigError(f"{source!r} cannot be read: it is neither a file nor a folder. Name a file or a folder.")
    except OSError as error:
        raise ConfigError(f"{source!r} cannot be read: {error.strerror or error}. Check who may read it.") from None
    if glob.has_magic(source):
        return _glob(str(path), source)
    where = f"{path.parent} has no such file" if path.parent.is_dir() else f"the folder {path.parent} is not there"
    raise ConfigError(f"{source!r} cannot be read: {where}. Check the path, or put the file there.")


def _folder(folder: Path, source: str) -> Folder:
    shown = source.rstrip("/" + os.sep) or source
    files: list[File] = []
    notes: Counter[str] = Counter()
    if is_dataset(folder):
        return Folder((_dataset(folder, source, folder.name, True),), {})
    refused: list[OSError] = []
    for place, inner, names in os.walk(folder, onerror=refused.append):
        hidden = [name for name in (*inner, *names) if name.startswith(".")]
        if hidden:
            notes[f"{shown}: hidden files and folders, left out"] += len(hidden)
        here = Path(place)
        if linked := [name for name in inner if name not in hidden and (here / name).is_symlink()]:
            notes[f"{shown}: links to folders, not followed"] += len(linked)
        inner[:] = sorted(name for name in inner if name not in (*hidden, *linked))
        if is_dataset(here):
            name = here.relative_to(folder).as_posix()
            files.append(_dataset(here, f"{shown}/{name}", name, False))
            inner.clear()
            continue
        for name in sorted(names):
            path = here / name
            if name in hidden:
                continue
            if not path.is_file():
                notes[f"{shown}: links that lead nowhere and other things that are not files, left out"] += 1
            elif path.is_symlink() and not _stays(path, folder):
                notes[f"{shown}: links that lead out of the folder, left out"] += 1
            else:
                within = path.relative_to(folder).as_posix()
                files.append(File(path, f"{shown}/{within}", within, False, path.stat().st_size))
    for error in refused:
        if Path(error.filename) == folder:
            raise error
        notes[f"{Path(error.filename).relative_to(folder)}: {error.strerror}, left out"] += 1
    if not files:
        left_out = "; ".join(f"{note} ({count:,})" for note, count in notes.items())
        why = f" ({left_out})" if left_out else ""
        raise ConfigError(
            f"The folder {source!r} holds no files that can be read{why}. Put text into it or name another."
        )
    return Folder(tuple(sorted(files, key=lambda file: file.path.parts)), notes)


def _stays(link: Path, folder: Path) -> bool:
    """Whether a link leads to a file of the folder, or, in the Hugging Face cache, to one of the same repository."""
    return link.resolve().is_relative_to(folder.resolve()) or hub_cache.is_blob(link)


def _glob(pattern: str, source: str) -> Folder:
    files: dict[Path, File] = {}
    notes: Counter[str] = Counter()
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_file():
            files.setdefault(path, File(path, match, path.name, False, path.stat().st_size))
        elif path.is_dir() and "**" not in pattern:
            inside = _folder(hub_cache.snapshot(path), match)
            files.update((file.path, file) for file in inside.files)
            notes.update(inside.notes)
    if not files:
        raise ConfigError(f"{source!r} matches no files. Check the pattern; it is read from {Path.cwd()}.")
    return Folder(tuple(files.values()), notes)


def is_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` made the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def _dataset(folder: Path, source: str, name: str, alone: bool) -> File:
    return File(folder, source, name, alone, sum(path.stat().st_size for path in folder.rglob("*.arrow")), True)


def parts(file: File) -> Iterator[Path]:
    """Every file on the disk behind it."""
    if file.dataset:
        yield from sorted(path for path in file.path.rglob("*") if path.is_file())
    else:
        yield file.path
