"""The log file of a home folder: internal errors with their tracebacks."""

from __future__ import annotations

import logging
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

NAME = "lethe.log"
BYTES = 1_000_000  # of the file, and of the one older file that is kept beside it


class LogFile(RotatingFileHandler):
    """Writes every error that is logged in this process to `lethe.log` in `home`, from now until `close()`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home / NAME, maxBytes=BYTES, backupCount=1, encoding="utf-8", delay=True)
        self.setLevel(logging.ERROR)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self)

    def format(self, record: logging.LogRecord) -> str:
        """The record with control characters as their codes: a name in it must not steer the terminal that shows it."""
        text = super().format(record)
        return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is reported by the run; that it cannot be logged as well is not reported again."""

    def close(self) -> None:
        logging.getLogger().removeHandler(self)
        with suppress(OSError):  # what a full disk has not taken is flushed again, and fails again
            super().close()


def internal_error(home: Path, error: Exception) -> str:
    """The sentence for an unexpected error."""
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"Internal error ({text}); the traceback is in {home / NAME}."
