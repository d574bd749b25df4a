"""Hugging Face data sets: a folder made by `save_to_disk`, or a name on the hub, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from unlearn_core.corpus.reading.arrow import rows_of
from unlearn_core.corpus.reading.document import File, ReadReport
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import Outside, within

PREFIX = "hf:"
BATCH = 128  # rows at a time
SILENT = ("Image", "Audio", "Video", "Pdf", "Nifti")  # features without text, never decoded


def parse(source: str) -> tuple[str, str | None, str | None]:
    """(id, configuration, split) of hf:owner/name[/configuration][:split]."""
    name, _, split = source.removeprefix(PREFIX).partition(":")
    parts = name.strip().split("/")
    if len(parts) not in (1, 2, 3) or not all(parts):
        raise ConfigError(f"{source!r} names no data set; write hf:owner/name or hf:owner/name/configuration:split.")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split.strip() or None


def saved_rows(file: File, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """Every row of every split of a data set on the disk."""
    import datasets

    _check_files(file)
    try:
        saved = datasets.load_from_disk(str(file.path))
    except Exception as error:
        raise ConfigError(
            f"The data set in {file.source!r} cannot be read ({_short(error)}). Save it again with save_to_disk."
        ) from None
    start = report.bytes_read
    splits: dict[str, Any] = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}
    total, read = max(1, sum(len(split) for split in splits.values())), 0
    for name, split in splits.items():
        for number, row in enumerate(_arrow_rows(split, file.name, report), 1):
            read += 1
            report.bytes_read = start + file.size * read // total
            yield f"{name} row {number}".lstrip(), row
    report.bytes_read = start + file.size


def _check_files(file: File) -> None:
    """Raises ConfigError where a data set names files that are not its own: they would be read from anywhere."""
    for state in sorted(file.path.rglob("state.json")):
        try:
            named = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `datasets` says what is wrong with it
        for name in named:
            try:
                own = within(state.parent, name).is_relative_to(file.path.resolve())
            except (Outside, TypeError):
                own = False
            if not own:
                raise ConfigError(
                    f"The data set in {file.source!r} names {name!r}, which is not a file of its folder, so it is not "
                    "read. Save it again with save_to_disk."
                )


def hub_rows(source: str, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """Every row of one split, fetched as it is read; from the cache where the hub cannot be reached."""
    import datasets

    name, configuration, split = parse(source)
    reached, reason = _availability(name)
    if reason and not reached:
        rows = enumerate(_cached(source, report), 1)
    else:
        try:
            if reason:
                raise ValueError(reason)
            loaded = datasets.load_dataset(name, configuration, split=split, streaming=True)
            rows = enumerate(_with_text(loaded[_split(list(loaded), source, report)] if split is None else loaded), 1)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{source!r} cannot be read from the hub ({_short(error)}). Check the id, its configuration and split, "
                "and (for a private or gated one) HF_TOKEN."
            ) from None
    number = 0
    try:
        for number, row in rows:
            yield f"row {number}", row
    except Exception as error:  # the network, or a file of the data set
        if not number:
            raise ConfigError(f"{source!r} cannot be fetched ({_short(error)}). Try again later.") from None
        report.note(f"{source} breaks off after row {number:,} ({_short(error)}); what follows was not read")


def _availability(name: str) -> tuple[bool, str]:
    """(whether the hub answered, why the data set is not available). `datasets` itself would try for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=5)
    except HfHubHTTPError as error:
        return True, _short(error)
    except Exception as error:
        return False, _short(error)
    return True, ""


def _cached(source: str, report: ReadReport) -> Iterable[dict[str, Any]]:
    """The data set from the cache of `datasets`. Raises ConfigError, with the way to get it, where there is none."""
    import datasets

    name, configuration, split = parse(source)
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        loaded = datasets.load_dataset(name, configuration, split=split)
    except Exception:
        which = ", ".join(repr(part) for part in (name, configuration) if part)
        raise ConfigError(
            f"{source!r} cannot be fetched: the hub cannot be reached, and the cache in "
            f"{datasets.config.HF_DATASETS_CACHE} does not hold it. With a network, "
            f"datasets.load_dataset({which}).save_to_disk(FOLDER) makes a folder to name instead."
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    report.note(f"{source} is read from the cache; the hub cannot be reached")
    return _with_text(loaded[_split(list(loaded), source, report)] if split is None else loaded)


def _split(splits: list[str], source: str, report: ReadReport) -> str:
    if "train" not in splits and len(splits) > 1:
        raise ConfigError(f"{source!r} has the splits {', '.join(splits)}; name one as {source}:{splits[0]}.")
    chosen = "train" if "train" in splits else splits[0]
    if others := [split for split in splits if split != chosen]:
        report.note(f"{source}: the split {chosen} is read; there are also {', '.join(others)}")
    return chosen


def _arrow_rows(split: Any, name: str, report: ReadReport) -> Iterator[dict[str, Any]]:
    """The rows of a split on the disk, as its tables hold them."""
    readable: Any = _with_text(split)
    for table in readable.with_format("arrow").iter(batch_size=BATCH):
        yield from rows_of(table, name, report)


def _with_text(split: Any) -> Iterable[dict[str, Any]]:
    """The rows without pictures, sounds and films, which would be decoded."""
    features = getattr(split, "features", None) or {}
    silent = [name for name, feature in features.items() if type(feature).__name__ in SILENT]
    rows: Iterable[dict[str, Any]] = split.remove_columns(silent) if silent else split
    return rows


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__


def revision(source: str) -> str:
    """The commit of the data set on the hub; empty where the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(parse(source)[0], timeout=5).sha or ""
    except Exception:
        return ""
