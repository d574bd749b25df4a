"""Which files a browser may name: those inside the roots. What lies outside is neither read nor listed.

The roots are LETHE_ROOTS (folders, separated as PATH is), else the working folder and the home folder; what was
uploaded is always among them. Links are followed before anything is decided.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import importlib.util
import itertools
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pages.setup.draft import BETWEEN
from unlearn_core.corpus.documents import BUNDLED, MODEL
from unlearn_core.corpus.formats import recognize
from unlearn_core.corpus.readers import READERS
from unlearn_core.corpus.reading.document import File
from unlearn_core.model import hub_cache
from unlearn_core.model.gguf import ENDING as GGUF
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import on_network
from unlearn_core.settings.sections import BUNDLED_MODELS, PACKAGED_MODELS

UPLOAD_MB = 200
MOST_UPLOADS = 100  # that are kept
UPLOADS = "uploads"
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|\Z)", re.IGNORECASE)  # no file of Windows may be called so
CHECKPOINTS = "checkpoints"
MOST_ENTRIES = 20_000  # of a folder or a pattern, looked through for links that lead out
MOST_OFFERED = 60
PROGRAM = Path(__file__).resolve().parents[2]
HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(/[\w.-]+)?(:[\w.\[\]%-]*)?")  # of a data set: configuration and split, too
TEXTS = tuple(ending for reader in READERS.values() for ending in reader.formats)
PACKED = (".gz", ".bz2", ".xz", ".zst")


def roots(home: str | Path) -> tuple[Path, ...]:
    """The folders inside of which a browser may name files, links resolved."""
    listed = os.environ.get("LETHE_ROOTS")
    folders = [os.getcwd(), os.path.expanduser("~")] if listed is None else listed.split(os.pathsep)
    named: list[str | Path] = [os.path.expanduser(folder) for folder in folders if folder.strip()]
    return tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in [*named, Path(home) / UPLOADS]))


def inside(path: str | Path, allowed: tuple[Path, ...]) -> bool:
    """Whether the path, all links followed, is one of the roots or lies in one. Reads nothing of what it names."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in allowed)


def texts(written: str, home: str | Path) -> list[str]:
    """The sources in a field: `bundled`, `model`, `hf:name`, files, patterns. Raises ConfigError in a sentence."""
    whole = os.path.realpath(os.path.expanduser(_clean(written)))
    pieces = [written] if inside(whole, roots(home)) and os.path.lexists(whole) else written.split(BETWEEN)
    paths = [_text(piece.strip(), home) for piece in pieces if piece.strip()]
    if not paths:
        raise ConfigError("No texts are named; choose the bundled world, or write the path of a file or folder.")
    return paths


def _text(written: str, home: str | Path) -> str:
    if written in (BUNDLED, MODEL):
        return written
    if written.startswith("hf:"):
        name = written[3:]
        return f"hf:{name}" if _is_hub_id(name, home) else f"hf:{_path(name, home)}"
    return _path(written, home)


def model(written: str, home: str | Path) -> str:
    """`bundled`, a hub id, a GGUF file or a folder with a model inside the roots. Raises ConfigError in a sentence."""
    written = _clean(written).strip()
    if written in BUNDLED_MODELS or (written in PACKAGED_MODELS and not os.path.isdir(written)):
        return written
    if not written:
        raise ConfigError("No model is named; choose the bundled one, or write the path of a folder or a hub id.")
    if written.count("/") < 2 and _is_hub_id(written, home) and not os.path.isdir(written):
        return written
    folder = _path(written, home)
    if folder.lower().endswith(GGUF) and os.path.isfile(folder):
        return folder
    if not (hub_cache.snapshot(Path(folder)) / "config.json").is_file():
        within = len(models_in(folder, home))
        hint = f"Choose one of the {within} models in it." if within else "Choose the folder of a model."
        raise ConfigError(f"{named(folder, home)} is no model in Hugging Face's format: it has no config.json. {hint}")
    return folder


def checked(config: Mapping[str, Any], home: str | Path) -> dict[str, Any]:
    """A run's settings with every path looked at and written out. Raises ConfigError where one lies outside."""
    settings, data = dict(config.get("model", {})), dict(config.get("data", {}))
    settings["source"] = model(settings.get("source", "bundled"), home)
    if settings.get("adapter"):
        settings["adapter"] = _path(settings["adapter"], home)
    if settings.get("earlier"):
        settings["earlier"] = adapters(settings["earlier"], home)
    for side in ("forget", "retain"):
        written = data.get(side, ["bundled"])
        data[side] = [_text(source, home) for source in ([written] if isinstance(written, str) else written)]
    return {**config, "model": settings, "data": data}


def adapters(folders: Iterable[str], home: str | Path) -> list[str]:
    """Folders of adapters: inside the roots, or of a run of this store. Raises ConfigError where one is neither."""
    own = (Path(os.path.realpath(Path(home) / CHECKPOINTS)),)
    paths = []
    for folder in folders:
        ours = inside(_clean(folder), own) and os.path.isdir(folder)
        paths.append(os.path.realpath(folder) if ours else _path(folder, home))
    return paths


# ------------------------------------------------------------------------------------------------------- one path


def _clean(written: str) -> str:
    if "\0" in written or len(written) > 4000:
        raise ConfigError("This is no path: it is too long, or has a character that no path has.")
    if on_network(written):
        raise ConfigError(
            f"{written} names a folder of another machine, and those are not opened. Copy it to this machine."
        )
    return written


def _is_hub_id(written: str, home: str | Path) -> bool:
    """Whether it names something on the hub. A folder of that name would be read in its place, so it counts as one."""
    shaped = HUB_ID.fullmatch(written)
    if not shaped or ".." in written or written.startswith("."):
        return False
    return inside(shaped[1], roots(home)) or not os.path.lexists(shaped[1])


def _path(written: str, home: str | Path) -> str:
    """The file, folder or pattern that was written, absolute and with its links resolved."""
    path = os.path.abspath(os.path.expanduser(_clean(written)))
    allowed = roots(home)
    real = os.path.realpath(path)
    if glob.has_magic(path) and not (inside(real, allowed) and os.path.lexists(real)):
        return _pattern(written, path, allowed)
    if not inside(real, allowed):
        raise _outside(written, allowed)
    if not os.path.lexists(real):
        raise ConfigError(f"There is nothing at {written}; look at how it is spelled.")
    if os.path.isdir(real):
        _look_for_links_out(written, Path(real), allowed)
    elif not os.path.isfile(real):
        raise ConfigError(f"{written} is neither a file nor a folder; name one of these.")
    return real


def _outside(written: str, allowed: tuple[Path, ...]) -> ConfigError:
    # Every refusal is the same, so that it does not tell what is there.
    folders = " and ".join(str(root) for root in allowed if root.name != UPLOADS) or "none"
    return ConfigError(
        f"{written} is outside of the folders that the browser may read: {folders}. "
        "Put it there, or name its folder in LETHE_ROOTS and start Lethe again."
    )


def _pattern(written: str, path: str, allowed: tuple[Path, ...]) -> str:
    parts = Path(path).parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    above = Path(os.path.realpath(Path(*parts[:fixed])))
    if not inside(above, allowed):
        raise _outside(written, allowed)
    count = 0
    for match in _matches(above, parts[fixed:], allowed, written):
        count += 1
        _few_enough(count, written)
        if match.is_dir():
            _look_for_links_out(written, match, allowed)
    if not count:
        raise ConfigError(f"Nothing is called {written}; look at how the pattern is spelled.")
    return str(above.joinpath(*parts[fixed:]))


def _matches(folder: Path, parts: tuple[str, ...], allowed: tuple[Path, ...], written: str) -> Iterator[Path]:
    """What the pattern finds below a folder, without ever looking into a place outside."""
    head, rest = parts[0], parts[1:]
    if head == "**":  # which goes through links, too
        _look_for_links_out(written, folder, allowed)
        yield from map(Path, glob.iglob(os.path.join(glob.escape(str(folder)), *parts), recursive=True))
        return
    for entry in _listed(folder, written):
        if not fnmatch.fnmatch(entry.name, head):
            continue
        if not inside(entry.path, allowed):
            raise _outside(written, allowed)
        if not rest:
            yield Path(entry.path)
        elif entry.is_dir():
            yield from _matches(Path(entry.path), rest, allowed, written)


def _look_for_links_out(written: str, folder: Path, allowed: tuple[Path, ...]) -> None:
    """Raises ConfigError where a link in the folder, however deep, leads outside of the roots."""
    waiting, seen, count = [os.path.realpath(folder)], set(), 0
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for entry in _listed(Path(here), written):
            count += 1
            _few_enough(count, written)
            if entry.is_symlink() and not inside(entry.path, allowed):
                raise _outside(os.path.join(written, entry.name), allowed)
            if entry.is_dir():
                waiting.append(os.path.realpath(entry.path))


def _few_enough(count: int, written: str) -> None:
    if count > MOST_ENTRIES:
        raise ConfigError(f"{written} holds more than {MOST_ENTRIES:,} files; name a smaller folder in it.")


def _listed(folder: Path, written: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"The folder of {written} cannot be read: {error.strerror}.") from None


# ---------------------------------------------------------------------------------------------------- what is offered


def models_in(folder: str | Path, home: str | Path) -> list[str]:
    """The models that lie in a folder, or in a folder of it: those with a config.json, and GGUF files."""
    return [path for path in _below(Path(folder), roots(home), 2) if _is_model(path)]


def _is_model(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.json")) or (path.lower().endswith(GGUF) and os.path.isfile(path))


def packaged_models() -> list[str]:
    """The models that come as Python packages and are installed."""
    return [name for name, (package, _) in PACKAGED_MODELS.items() if importlib.util.find_spec(package)]


def first_questions(written: str, home: str | Path) -> list[str]:
    """The first two questions of question/answer pairs, as something to ask; none of other texts."""
    from unlearn_core.corpus.documents import documents

    try:
        near = texts(written, home)
        here = [source for source in near if source not in (BUNDLED, MODEL) and not source.startswith("hf:")]
        pairs = itertools.islice(documents(here), 2)
        return [document.turns[-2].text for document in pairs if len(document.turns) > 1]
    except (ConfigError, OSError):
        return []


def texts_in(folder: str | Path, home: str | Path) -> list[str]:
    """The files of texts that lie in a folder."""
    paths = _below(Path(folder), roots(home), 1)
    return [path for path in paths if os.path.isfile(path) and _is_text(path)]


def offered(home: str | Path) -> tuple[list[str], list[str]]:
    """(models, texts) at the top of the roots, but for the home and the program's own folder: too much lies there."""
    places = [root for root in roots(home) if root not in (Path.home(), PROGRAM) and root.name != UPLOADS]
    models = [path for place in places for path in models_in(place, home)]
    files = [path for place in places for path in texts_in(place, home)]
    return models[:MOST_OFFERED], [*uploaded(home), *files][:MOST_OFFERED]


def uploaded(home: str | Path) -> list[str]:
    """What was uploaded, newest first."""
    files = [path for path in (Path(home) / UPLOADS).glob("*/*") if path.is_file()]
    return [os.path.realpath(path) for path in sorted(files, key=lambda path: -path.stat().st_mtime)]


def _below(folder: Path, allowed: tuple[Path, ...], depth: int) -> list[str]:
    paths: list[str] = []
    level = [folder] if inside(folder, allowed) else []
    for _ in range(depth):
        below: list[Path] = []
        for here in level:
            try:
                names = sorted(os.listdir(here))[:500]
            except OSError:
                continue
            entries = [here / name for name in names if not name.startswith((".", "__"))]
            below += [Path(os.path.realpath(entry)) for entry in entries if inside(entry, allowed)]
        paths += map(str, below)
        level = [path for path in below if path.is_dir()][:200]
    return paths


def _is_text(path: str) -> bool:
    plain = path.lower()
    for ending in PACKED:
        plain = plain.removesuffix(ending)
    return plain.endswith(TEXTS) and os.path.basename(plain) not in ("config.json", "tokenizer.json")


def named(source: str, home: str | Path) -> str:
    """A source for a person: what was uploaded by its name, a path from the working folder or the home."""
    if source == "bundled":
        return "the bundled world"
    if source == "model":
        return "what the model itself answers"
    if source in PACKAGED_MODELS:
        return PACKAGED_MODELS[source][1].partition(".")[0]
    if source in BUNDLED_MODELS:
        return "the bundled model that never saw its word"
    path = Path(source)
    if path.is_relative_to(os.path.realpath(Path(home) / UPLOADS)):
        return f"{path.name} (uploaded, {path.parent.name[:4]})"  # two of one name are told apart
    for root, start in ((os.path.realpath(os.getcwd()), ""), (os.path.realpath(os.path.expanduser("~")), "~/")):
        if path.is_absolute() and path.is_relative_to(root) and str(path) != root and root != "/":
            return start + str(path.relative_to(root))
    return source


def short(source: str, home: str | Path) -> str:
    """The same for a sentence: the last of a path."""
    name = named(source, home)
    parts = Path(name).parts
    return str(Path(*parts[-2:] if glob.has_magic(name) else parts[-1:])) if source.startswith("/") else name


# ------------------------------------------------------------------------------------------------------- an upload


def keep_upload(name: str, content: BinaryIO, home: str | Path) -> str:
    """The path under which the upload is kept: by its content, so that the same file is there once.

    It goes to the disk a piece at a time. Whatever the browser has checked is checked here: raises ConfigError where
    name or content are not those of texts, where it is empty or larger than UPLOAD_MB, where MOST_UPLOADS are kept, or
    where the disk refuses it.
    """
    safe = _safe_name(name)
    if not _is_text(safe):
        raise ConfigError(f"{safe} is not a file of texts that can be read; its name must end in {_endings()}.")
    folder, digest, part, size = Path(home) / UPLOADS, hashlib.sha256(), None, 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-", suffix=safe, delete=False) as file:
            part = Path(file.name)
            while block := content.read(1 << 20):
                if (size := size + len(block)) > UPLOAD_MB << 20:
                    raise ConfigError(f"{safe} has more than {UPLOAD_MB} MB; put it into a folder and name that.")
                digest.update(block)
                file.write(block)
        if not size:
            raise ConfigError(f"{safe} is empty; upload a file with texts in it.")
        recognize(File(part, safe, safe, True, size))
        target = folder / digest.hexdigest()[:16] / safe
        if not target.exists() and len(uploaded(home)) >= MOST_UPLOADS:
            raise ConfigError(f"{MOST_UPLOADS} uploads are kept in {folder} already. Delete some of them.")
        target.parent.mkdir(exist_ok=True)
        part.replace(target)
        return os.path.realpath(target)
    except OSError as error:
        raise ConfigError(f"{safe} could not be kept: {error.strerror or error}. Make room on the disk.") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _safe_name(name: str) -> str:
    """The last part of a name, of letters, digits, points, hyphens and underscores alone, and no device."""
    last = unicodedata.normalize("NFC", os.path.basename(name.replace("\\", "/")))
    safe = re.sub(r"[^\w.-]+", "-", last).strip(".-")[-80:].strip(".-") or "upload.txt"
    safe = safe if "." in safe else f"{safe}.txt"
    return f"_{safe}" if DEVICES.match(safe) else safe


def _endings() -> str:
    return f"one of {', '.join(TEXTS)} (and may then end in {', '.join(PACKED)})"
