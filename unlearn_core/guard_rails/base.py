"""GuardRail: the contract of a constraint on the step. One file of this folder each, named after its kind.

A file has a dataclass of the guard rail's settings, which `facts.settings` names, and sets `GUARD_RAIL` to its class;
being there, it is a choice of `guard_rail.kind` on the form, in the command line and in the run file. Pages read
`facts` without PyTorch, which is imported when a run is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn_core.settings.gauge import Gauge
from unlearn_core.settings.imports import Lazy
from unlearn_core.settings.knobs import knob
from unlearn_core.settings.sections import GuardRailSettings, RailMemory, Rule, Unused

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unlearn_core.context import RunContext
else:
    torch = Lazy("torch")
    Tensor = RunContext = Any

__all__ = [
    "Gauge", "GuardRail", "GuardRailSettings", "RailFacts", "RailMemory", "Rule", "RunContext", "Tensor", "Unused",
    "knob", "torch",
]  # fmt: skip


@dataclass(frozen=True)
class RailFacts:
    """What a person who chooses a guard rail should know.

    `settings`: the class of its settings, in the same file. `gauges`: by the names of what it records.
    """

    label: str
    summary: str
    settings: type[GuardRailSettings]
    gauges: Mapping[str, Gauge] = field(default_factory=dict)


class GuardRail:
    """A constraint on the gradient or the update of every step. P: trained parameters.

    In a step: `refresh`, then `project_gradient`, then the optimizer, then `project_out` of what that did, to which
    `retain_step` is added where its gradient was a sum of forget and retain gradients. What an optimizer makes of
    retain gradients alone goes through `project_retain`: nothing moves the weights that has not passed the guard rail.
    `leftover` (P,): the last retain gradient of the refresh just made, where as_run asks for it.
    """

    facts: ClassVar[RailFacts]
    settings: GuardRailSettings  # of the class that `facts` names; a guard rail that has some says which
    leftover: Tensor | None = None

    def __init__(self, context: RunContext) -> None:
        self.context, self.settings = context, context.config.guard_rail

    def start(self) -> None:
        """Once, before the first step of a fresh run."""

    def refresh(self, step: int) -> int:
        """Before step `step` (from 1): refreshes the protected directions where due. Returns the tokens read for it."""
        return 0

    def project_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient (P,) of what is minimised, projected."""
        return gradient

    def project_out(self, update: Tensor) -> Tensor:
        """The optimizer's update (P,), projected."""
        return update

    def project_retain(self, update: Tensor) -> Tensor:
        """The update (P,) of an optimizer that has seen retain gradients alone, projected: by default as any other."""
        return self.project_out(update)

    def retain_step(self, retain_gradient: Tensor, gain: float, longest: float) -> Tensor | None:
        """What is added (P,) for the loss's retain term where `project_out` has removed it; None: nothing.

        `retain_gradient` (P,); `gain`: |update| / |gradient that it came from|; `longest`: |update|, its bound.
        """
        return None

    def values(self) -> dict[str, float]:
        """The values to record of this step, by the names of `facts.gauges`."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state between two steps."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores that state. The state of another kind of guard rail is ignored: the next step computes its own."""
