"""GuardRail: the contract of a constraint on the step. One file of this folder each, named after its kind.

A file sets `GUARD_RAIL` to its class; being there, it is a choice of `guard_rail.kind` on the form, in the command line
and in the run file. Pages read `facts` without PyTorch, which is imported when a run is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn_core.settings.imports import Lazy
from unlearn_core.settings.sections import GuardRailSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unlearn_core.context import RunContext
else:
    torch = Lazy("torch")
    Tensor = RunContext = Any

__all__ = [
    "DRIFT", "RETAIN_ROWS", "Gauge", "GuardRail", "GuardRailSettings", "RailFacts", "RailMemory", "RunContext",
    "Tensor", "gradient_rows", "torch",
]  # fmt: skip


@dataclass(frozen=True)
class Gauge:
    """A number that a run records of itself, as a page shows it. `unit`: "%" of a share, or nothing."""

    label: str
    help: str
    unit: str = ""


@dataclass(frozen=True)
class RailFacts:
    """What a person who chooses a guard rail should know.

    `settings`: the fields of the section `guard_rail` that it reads. `gauges`: by the names of what it records.
    """

    label: str
    summary: str
    settings: tuple[str, ...] = ()
    gauges: Mapping[str, Gauge] = field(default_factory=dict)


@dataclass(frozen=True)
class RailMemory:
    """What a guard rail takes. Vectors are as long as what is trained.

    `rows`: gradients of retain texts at a refresh; `stored`: vectors between steps; `fresh`: beside them while they are
    renewed; `input_moments`: a second moment of every adapted layer's inputs.
    """

    rows: int = 0
    stored: int = 0
    fresh: int = 0
    input_moments: bool = False


def gradient_rows(settings: GuardRailSettings) -> int:
    """Gradients of retain texts that a refresh takes: one a group, or one a sample."""
    samples = settings.batches * settings.batch_size
    return min(samples, settings.groups) if settings.rows == "group" else samples


class GuardRail:
    """What keeps a run's steps from changing something. P: trained numbers.

    In a step: `refresh`, then `project_gradient` of the forget part's gradient, then the optimizer, then `project_out`
    of what that did. `leftover` (P,): the last retain gradient of the refresh just made, where as_run asks for it.
    """

    facts: ClassVar[RailFacts]
    leftover: Tensor | None = None

    def __init__(self, context: RunContext) -> None:
        self.context = context

    @classmethod
    def memory(cls, settings: GuardRailSettings) -> RailMemory:
        """What a run with these settings has to keep for it."""
        return RailMemory()

    def start(self) -> None:
        """Once, before the first step of a fresh run."""

    def refresh(self, step: int) -> int:
        """Before step `step` (from 1): renews what it protects where that is due. Returns the tokens read for it."""
        return 0

    def project_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient (P,) of what is minimised, without what it protects."""
        return gradient

    def project_out(self, update: Tensor, retain_gradient: Tensor | None, gain: float) -> Tensor:
        """What the optimizer did to the numbers (P,), without what it protects.

        `retain_gradient` (P,): of the loss's retain term, where it has one; `gain`: |update| / |gradient it came from|.
        """
        return update

    def values(self) -> dict[str, float]:
        """What there is to record of this step, by the names of `facts.gauges`."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state between two steps."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up that state. What another kind has left counts as none: the next step makes its own."""


# What guard rails that take gradients of retain texts have alike (shared/retain_rows.py).
RETAIN_ROWS = (
    "rows", "groups", "batches", "batch_size", "refresh", "every", "drift", "history", "scope", "apply_to",
    "neighbours",
)  # fmt: skip
DRIFT = Gauge("drift", "How far the weights have moved since the directions were renewed.", "%")
