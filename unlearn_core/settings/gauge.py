"""Gauge: label, help and unit of a recorded value. Methods, guard rails and metrics declare theirs with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gauge:
    """`label` and `help` (a sentence) of a recorded number; `unit`: "%" of a share (0 to 1), a unit, or nothing."""

    label: str
    help: str
    unit: str = ""

    @property
    def explained(self) -> str:
        """Label and help, for a hover."""
        return f"{self.label[:1].upper()}{self.label[1:]}. {self.help}"
