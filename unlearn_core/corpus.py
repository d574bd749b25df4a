"""Sources -> documents, as a stream. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearn_core.config import ConfigError
from unlearn_core.world import CORPUS


@dataclass(frozen=True)
class Document:
    """A text of its own, several lines. `topic` and `group` say what it is about, where the source knows."""

    text: str
    source: str
    topic: str = ""
    group: str = ""


def documents(sources: Iterable[str]) -> Iterator[Document]:
    """Every document of every source: `bundled`, or a text file. Raises ConfigError for a file that cannot be read."""
    for source in sources:
        if source == "bundled":
            with CORPUS.open() as lines:
                for line in lines:
                    row = json.loads(line)
                    yield Document(row["text"], "the bundled world", row["topic"], row["group"])
        else:
            yield Document(read_text(source), source)


def read_text(source: str) -> str:
    """The text of a UTF-8 file. Raises ConfigError where it cannot be read."""
    try:
        return Path(source).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The text file {source!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The text file {source!r} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
