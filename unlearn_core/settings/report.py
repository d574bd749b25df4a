"""Report: how a run tells what it is doing while it is opened and prepared."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Takes a stage ("reading the corpus") and how far it is; it may raise to end the stage."""

    def __call__(self, stage: str, detail: str = "", /) -> None: ...


def silent(stage: str, detail: str = "") -> None:
    """Tells nobody."""
