"""TOML that somebody else may have written: read only where it is as small and as flat as a run file is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearn_core.settings.errors import ConfigError

MOST_BYTES = 4_000_000  # of a run file; those that list thousands of exclusions have some hundred thousand
DEEPEST = 16  # tables and lists inside of one another; a run file has three
# A key of more parts than that: the library takes the square of their number.
LONG_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""")
WHOLE = 2**63  # whole numbers are smaller, as TOML has them


def read(path: Path) -> dict[str, Any]:
    """The content of a file. Raises ConfigError where it is no TOML or too large, OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"The run file {path} has more than {MOST_BYTES:,} bytes. Name a run file.")
    try:
        return parsed(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"The run file {path} is not TOML: {error}") from None
    except ValueError as error:
        reason = error.reason if isinstance(error, ConfigError) else str(error)
        raise ConfigError(f"The run file {path} is not TOML: {reason}") from None


def parsed(text: str) -> dict[str, Any]:
    """TOML text as plain values.

    Raises ValueError (of which ConfigError and TOMLDecodeError are kinds) where it is none, nested deeper than DEEPEST,
    or has a number beyond 64 bits.
    """
    if LONG_KEY.search(text):
        raise ConfigError(f"it is nested deeper than {DEEPEST} tables")
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"it is nested deeper than {DEEPEST} lists and tables") from None
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise ConfigError(f"it is nested deeper than {DEEPEST} lists and tables")
    return content


def _inside(value: Any) -> Iterator[Any]:
    """The values of a table or a list. Raises ConfigError for a number beyond 64 bits."""
    if isinstance(value, int) and not -WHOLE <= value < WHOLE:
        raise ConfigError("it has a whole number beyond 64 bits")
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
