"""What a source names: files, folders, globs; and of what kind a file is, by its first bytes and its name."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearn_core.config import ConfigError
from unlearn_core.readers.unpack import EXTENSIONS, head, packing

HEAD = 1 << 20  # bytes that decide of what kind a file is
FORMATS = {
    ".txt": "plain text",
    ".text": "plain text",
    ".md": "plain text",
    ".markdown": "plain text",
    ".json": "JSON",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".tab": "TSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # of UTF-16 and UTF-32
# What is no text although its first bytes may hold no zero.
SIGNATURES = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"7z\xbc\xaf",
    b"Rar!",
    b"ARROW1",
    b"\x7fELF",
)


class NotText(ConfigError):
    """A file of a kind that holds no text."""


@dataclass(frozen=True)
class File:
    """A file, or the folder of a data set on the disk. `name`: as notes call it; `alone`: a person named it itself."""

    path: Path
    source: str  # the path as a person gave it
    name: str
    alone: bool
    size: int  # bytes on the disk
    dataset: bool = False


@dataclass(frozen=True)
class Folder:
    """What a folder or a glob holds, and what was left out on sight: a sentence -> how often."""

    files: tuple[File, ...]
    notes: dict[str, int]


@dataclass(frozen=True)
class Kind:
    """What is in a file, in words, and how it is compressed."""

    format: str
    packing: str = ""  # gzip, bz2, xz or zstd

    def __str__(self) -> str:
        return f"{self.format}, {self.packing}" if self.packing else self.format


def expand(source: str) -> Folder:
    """The files of a path, a folder or a glob, in the order of their names. Raises ConfigError where there is none."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path, source)
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
    notes: dict[str, int] = {}

    def leave_out(sentence: str) -> None:
        notes[sentence] = notes.get(sentence, 0) + 1

    if is_dataset(folder):
        return Folder((_dataset(folder, source, folder.name, True),), {})
    refused: list[OSError] = []
    for place, inner, names in os.walk(folder, onerror=refused.append):
        hidden = [name for name in (*inner, *names) if name.startswith(".")]
        for _ in hidden:
            leave_out(f"{shown}: hidden files and folders, left out")
        inner[:] = sorted(name for name in inner if name not in hidden)
        here = Path(place)
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
                leave_out(f"{shown}: links that lead nowhere and other things that are not files, left out")
            elif path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                leave_out(f"{shown}: links that lead out of the folder, left out")
            else:
                within = path.relative_to(folder).as_posix()
                files.append(File(path, f"{shown}/{within}", within, False, path.stat().st_size))
    for error in refused:
        if Path(error.filename) == folder:
            raise error
        leave_out(f"{Path(error.filename).relative_to(folder)}: {error.strerror}, left out")
    if not files:
        raise ConfigError(f"The folder {source!r} holds no files that can be read. Put text into it or name another.")
    return Folder(tuple(sorted(files, key=lambda file: file.path.parts)), notes)


def _glob(pattern: str, source: str) -> Folder:
    files: dict[Path, File] = {}
    notes: dict[str, int] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_file():
            files.setdefault(path, File(path, match, path.name, False, path.stat().st_size))
        elif path.is_dir() and "**" not in pattern:
            inside = _folder(path, match)
            files.update((file.path, file) for file in inside.files)
            for sentence, count in inside.notes.items():
                notes[sentence] = notes.get(sentence, 0) + count
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


def recognize(file: File) -> tuple[Kind, bytes]:
    """The kind of a file and its first (decompressed) bytes. Raises ConfigError for what cannot be read as text."""
    try:
        packed = packing(file.path)
        first = head(file.path, packed, HEAD)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{file.source!r} cannot be read: {reason}. Check the file and who may read it.") from None
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    if not packed and suffixes and suffixes[-1] in EXTENSIONS and file.size:
        raise ConfigError(f"{file.source!r} is not {EXTENSIONS[suffixes[-1]]}, as its name says. Fetch it again.")
    if packed and suffixes and suffixes[-1] in EXTENSIONS:
        suffixes.pop()
    if not first:
        damaged = "holds nothing that can be unpacked" if packed else "is empty"
        raise ConfigError(f"{file.source!r} {damaged}; choose a file with text in it.")
    return Kind(_format(suffixes[-1] if suffixes else "", first, file), packed), first


def _format(suffix: str, first: bytes, file: File) -> str:
    if first.startswith(b"PAR1"):
        return "Parquet"
    wide = first.startswith(WIDE_MARKS)
    if first.startswith(SIGNATURES) or (b"\0" in first[: 1 << 16] and not wide) or suffix in (".parquet", ".pq"):
        kind = "Parquet" if suffix in (".parquet", ".pq") else "text"
        raise NotText(f"{file.source!r} is not {kind}: its bytes are of another kind. Choose a file that holds text.")
    if suffix in (".xml", "") and b"<mediawiki" in first[: 1 << 16]:
        return "MediaWiki dump"
    if suffix == ".json":
        return _json(decoded(first).lstrip())
    if FORMATS.get(suffix) == "JSON lines" and not any(is_json(line) for line in first_lines(decoded(first))):
        return "plain text"  # a list of sentences under a wrong name
    return FORMATS.get(suffix, "plain text")


def _json(text: str) -> str:
    if text.startswith("["):
        return "JSON"
    lines = first_lines(text)
    if text.startswith("{"):
        return "JSON lines" if len(lines) > 1 and is_json(lines[0]) and lines[1].startswith("{") else "JSON"
    return "JSON lines" if any(is_json(line) for line in lines) else "plain text"


def decoded(first: bytes) -> str:
    """The beginning of a file as text, good enough to tell its kind."""
    if first.startswith(WIDE_MARKS):
        wide = first.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff"))
        return first.decode("utf-32" if wide else "utf-16", "replace")
    return first.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def first_lines(text: str) -> list[str]:
    """The first lines that are not blank, at most twenty."""
    return [line.strip() for line in text[: 1 << 18].splitlines()[:20] if line.strip()]


def is_json(line: str) -> bool:
    """Whether the line is an object, a list or a text of JSON."""
    try:
        return isinstance(json.loads(line), dict | list | str)
    except (ValueError, RecursionError):
        return line.startswith(("{", "[")) and len(line) > 1 << 16  # too long to be whole here
