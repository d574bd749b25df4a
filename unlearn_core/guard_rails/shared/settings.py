"""Settings that several guard rails have alike: which retain texts they read, and what they make of their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.guard_rails.base import Gauge, GuardRailSettings, Unused, knob
from unlearn_core.settings.sections import Sections, has_retain_term

DRIFT = Gauge("drift", "Relative change of the trained parameters since the last refresh.", "%")


@dataclass(frozen=True)
class RetainSampleSettings(GuardRailSettings):
    """Settings of a guard rail that reads retain texts."""

    batches: int = knob(16, 1, 1024, "Retain batches drawn at a refresh.")
    batch_size: int = knob(2, 1, 256, "Retain samples in one batch.")
    neighbours: bool = knob(False, help="Half of the samples come from the neighbour set.")

    @property
    def samples(self) -> int:
        """Retain texts that are read at a refresh."""
        return self.batches * self.batch_size


def rows_of(run: Sections) -> RetainRowSettings:
    """The settings of a run whose guard rail takes gradients of retain texts."""
    assert isinstance(run.guard_rail, RetainRowSettings)
    return run.guard_rail


@dataclass(frozen=True)
class RetainRowSettings(RetainSampleSettings):
    """Settings of a guard rail that takes gradients of retain texts (retain_rows.py)."""

    rows: str = knob(
        "group",
        choices=("group", "sample", "logit"),
        help="One protected direction per group of samples, per sample, or per logit of a sample's true tokens (OGD).",
    )
    groups: int = knob(4, 1, 256, "Number of protected directions where rows are groups.")
    refresh: str = knob(
        "count",
        choices=("count", "drift"),
        help="When directions are refreshed: after a number of steps, or by drift.",
    )
    every: int = knob(3, 1, 1000, "Steps between refreshes by count (each of the first three steps refreshes).")
    drift: float = knob(
        0.02,
        1e-6,
        10.0,
        "Relative change of the trained parameters since the last refresh that triggers a refresh by drift.",
    )
    history: int = knob(1, 1, 64, "Number of latest refreshes whose directions are protected together.")
    scope: str = knob(
        "global", choices=("global", "layer"), help="One retain subspace for all layers, or one in each layer."
    )
    apply_to: str = knob(
        "update",
        choices=("update", "gradient"),
        help="Whether the optimizer's update or (as published) the gradient is projected.",
    )
    optimizer_states: str = knob(
        "shared",
        choices=("shared", "separate"),
        help="Whether forget and retain gradient share one optimizer state, or have one each: then the update of the "
        "forget gradient alone is projected.",
    )
    unused: ClassVar[tuple[Unused, ...]] = (
        Unused(
            when=lambda run: rows_of(run).rows != "group",
            fields=("guard_rail.groups",),
            because="Only where there is one direction per group of samples.",
        ),
        Unused(
            when=lambda run: rows_of(run).refresh != "count",
            fields=("guard_rail.every",),
            because="Directions are refreshed by drift.",
        ),
        Unused(
            when=lambda run: rows_of(run).refresh != "drift",
            fields=("guard_rail.drift",),
            because="Directions are refreshed by count.",
        ),
        Unused(
            when=lambda run: run.guard_rail.apply_to != "update",
            fields=("guard_rail.optimizer_states",),
            because="Only where the update is projected.",
        ),
        Unused(
            when=lambda run: run.method.alternates,
            fields=("guard_rail.optimizer_states",),
            because="The method's descent has an optimizer of its own.",
        ),
        Unused(
            when=lambda run: not has_retain_term(run),
            fields=("guard_rail.optimizer_states",),
            because="The loss has no retain term.",
        ),
    )

    @property
    def samples_per_step(self) -> float:
        return self.samples / self.every

    @property
    def gradients(self) -> int:
        """Gradients of retain texts that a refresh takes: one a group, or one a sample."""
        return min(self.samples, self.groups) if self.rows == "group" else self.samples

    @property
    def samples_of_a_gradient(self) -> int:
        """Retain texts that are read together for one of them, at most."""
        return -(-self.samples // self.gradients)

    @property
    def fewer(self) -> str:
        """The setting that, lowered, makes fewer of them."""
        return "groups" if self.rows == "group" else "batches"
