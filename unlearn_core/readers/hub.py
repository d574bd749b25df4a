"""Hugging Face data sets: a folder made by `save_to_disk`, or a name on the hub, read as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from unlearn_core.config import ConfigError
from unlearn_core.readers.document import Tally
from unlearn_core.readers.files import File

PREFIX = "hf:"
SILENT = ("Image", "Audio", "Video", "Pdf", "Nifti")  # features without text, never decoded


def parse(source: str) -> tuple[str, str | None, str | None]:
    """(id, configuration, split) of hf:owner/name[/configuration][:split]."""
    name, _, split = source.removeprefix(PREFIX).partition(":")
    parts = name.strip().split("/")
    if len(parts) not in (1, 2, 3) or not all(parts):
        raise ConfigError(f"{source!r} names no data set; write hf:owner/name or hf:owner/name/configuration:split.")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split.strip() or None


def saved_rows(file: File, tally: Tally) -> Iterator[tuple[str, Any]]:
    """Every row of every split of a data set on the disk."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(file.path))
    except Exception as error:
        raise ConfigError(
            f"The data set in {file.source!r} cannot be read ({_short(error)}). Save it again with save_to_disk."
        ) from None
    start = tally.bytes_read
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}
    total, read = max(1, sum(len(split) for split in splits.values())), 0
    for name, split in splits.items():
        for number, row in enumerate(_with_text(split), 1):
            read += 1
            tally.bytes_read = start + file.size * read // total
            yield f"{name} row {number}".lstrip(), row
    tally.bytes_read = start + file.size


def hub_rows(source: str, tally: Tally) -> Iterator[tuple[str, Any]]:
    """Every row of one split, fetched as it is read; from the cache where the hub cannot be reached."""
    import datasets

    name, configuration, split = parse(source)
    try:
        found = datasets.load_dataset(name, configuration, split=split, streaming=True)
        if isinstance(found, dict):
            split = _split(list(found), source, tally)
            found = found[split]
        rows = enumerate(_with_text(found), 1)
        first = next(rows, None)
    except ConfigError:
        raise
    except Exception as error:
        found, split = _cached(source, error, tally)
        rows = enumerate(_with_text(found), 1)
        first = next(rows, None)
    try:
        while first is not None:
            yield f"row {first[0]}", first[1]
            first = next(rows, None)
    except GeneratorExit:
        raise
    except Exception as error:
        tally.note(f"{source} breaks off ({_short(error)}); what follows was not read")


def _cached(source: str, error: Exception, tally: Tally) -> tuple[Any, str]:
    """The data set as an earlier download left it. Raises ConfigError that says how to get it where there is none."""
    import datasets

    name, configuration, split = parse(source)
    unreachable = isinstance(error, (ConnectionError, OSError)) or "offline" in type(error).__name__.lower()
    if unreachable and not isinstance(error, FileNotFoundError):
        try:
            found = datasets.load_dataset(name, configuration, split=split)
            split = _split(list(found), source, tally) if isinstance(found, dict) else split
            tally.note(f"{source} is read from the cache; the hub cannot be reached")
            return (found[split] if isinstance(found, dict) else found), split or ""
        except ConfigError:
            raise
        except Exception:
            more = f"', '{configuration}" if configuration else ""
            raise ConfigError(
                f"{source!r} cannot be fetched: the hub cannot be reached and {datasets.config.HF_DATASETS_CACHE} does "
                f"not hold it. Where there is a network: datasets.load_dataset('{name}{more}').save_to_disk(folder); "
                "then name that folder."
            ) from None
    raise ConfigError(
        f"{source!r} cannot be read from the hub ({_short(error)}). Check the id, its configuration and split, and "
        "(for a private or gated one) HF_TOKEN."
    ) from None


def _split(splits: list[str], source: str, tally: Tally) -> str:
    if "train" not in splits and len(splits) > 1:
        raise ConfigError(f"{source!r} has the splits {', '.join(splits)}; name one as {source}:{splits[0]}.")
    chosen = "train" if "train" in splits else splits[0]
    if others := [split for split in splits if split != chosen]:
        tally.note(f"{source}: the split {chosen} is read; there are also {', '.join(others)}")
    return chosen


def _with_text(split: Any) -> Iterable[dict[str, Any]]:
    """The rows without pictures, sounds and films, so that nothing decodes them."""
    features = getattr(split, "features", None) or {}
    silent = [name for name, feature in features.items() if type(feature).__name__ in SILENT]
    return split.remove_columns(silent) if silent else split


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__


def revision(source: str) -> str:
    """The commit of the data set on the hub today; empty where nobody can say."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(parse(source)[0], timeout=5).sha or ""
    except Exception:
        return ""
