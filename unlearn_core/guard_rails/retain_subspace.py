"""The span of retain gradients: updates are projected orthogonally to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from unlearn_core.guard_rails.base import (
    DRIFT,
    RETAIN_ROWS,
    Gauge,
    GuardRail,
    GuardRailSettings,
    RailFacts,
    RailMemory,
    RunContext,
    Tensor,
    gradient_rows,
    torch,
)
from unlearn_core.settings.imports import Lazy

if TYPE_CHECKING:
    from unlearn_core.guard_rails.shared.subspace import RetainSubspace

retain_rows = Lazy("unlearn_core.guard_rails.shared.retain_rows")
subspace = Lazy("unlearn_core.guard_rails.shared.subspace")

BASIS_COPIES = 4  # of a refresh's retain gradients: as they came, normalised, and in double precision
OLDER_COPIES = 6  # of the same where those of older refreshes stay: of both in double precision


class RetainSubspaceRail(GuardRail):
    """Steps are orthogonal to retain gradients: to first order, retain losses stay as they are.

    Of an update, what lies inside their span is replaced by what the loss's retain term does there (which is descent
    along these very rows): `-gain * (its gradient's part in the span)`. With `history`, the rows of the last refreshes
    are protected together; with `scope = "layer"`, each layer's slice by itself, which is stricter: it holds under any
    rescaling by layer, and implies the global condition, since the layers' parts of every inner product are 0.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "retain subspace",
        "the update is projected orthogonally to the gradients of retain texts",
        settings=RETAIN_ROWS,
        gauges={
            "retain_condition_number": Gauge(
                "condition number",
                "How near to each other the protected directions are: 1 is best, thousands are too near.",
            ),
            "rail_drift": DRIFT,
        },
    )

    @classmethod
    def memory(cls, settings: GuardRailSettings) -> RailMemory:
        """The rows of every refresh in the span, copies of the fresh ones, and the weights where drift counts."""
        rows = gradient_rows(settings)
        copies = BASIS_COPIES if settings.history == 1 else max(OLDER_COPIES, settings.history + 2)
        return RailMemory(rows, settings.history * rows + (settings.refresh == "drift"), copies * rows)

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.history = context.config.guard_rail.history
        self.spans, self.refreshes = retain_rows.spans(context), retain_rows.Refreshes(context)
        self.spaces: dict[str, RetainSubspace] = {}
        self.norm_median = 0.0

    @property
    def space(self) -> RetainSubspace | None:
        """The one span, where the scope is global."""
        return self.spaces.get("")

    def refresh(self, step: int) -> int:
        self.leftover = None
        if not self.refreshes.due(step):
            return 0
        rows, self.leftover, read = retain_rows.retain_gradients(self.context, step)
        self.norm_median = rows.norm(dim=1).median().item()
        fitted = {
            name: subspace.RetainSubspace.fit(rows[:, part], self.spaces.get(name), self.history)
            for name, part in self.spans.items()
        }
        self.spaces = {name: space for name, space in fitted.items() if space}
        self.refreshes.made(step)
        return read

    def project_gradient(self, gradient: Tensor) -> Tensor:
        off = gradient.clone()
        for name, space in self.spaces.items():
            off[self.spans[name]] = space.project_out(gradient[self.spans[name]])
        return off

    def project_out(self, update: Tensor, retain_gradient: Tensor | None, gain: float) -> Tensor:
        off = self.project_gradient(update)
        if retain_gradient is not None:
            for name, space in self.spaces.items():
                off[self.spans[name]] -= gain * space.part_inside(retain_gradient[self.spans[name]])
        return off

    def values(self) -> dict[str, float]:
        if not self.spaces:
            return self.refreshes.values()
        return {
            "retain_condition_number": max(space.condition_number for space in self.spaces.values()),
            "retain_gradient_norm_median": self.norm_median,
            **self.refreshes.values(),
        }

    def tensors(self) -> dict[str, Tensor]:
        found = self.refreshes.tensors()
        if self.refreshes.last:
            found["norm_median"] = torch.tensor([self.norm_median], dtype=torch.float64)
        for name, space in self.spaces.items():
            found |= {f"span.{name}.{key}": value for key, value in space.tensors().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        device = self.context.adapter.values.device
        by_span: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("span."):
                span, _, key = name.removeprefix("span.").rpartition(".")
                by_span.setdefault(span, {})[key] = value
        ours = "norm_median" in tensors and "means" not in tensors and set(by_span) <= set(self.spans)
        self.refreshes.restore(tensors if ours else {})
        self.norm_median = tensors["norm_median"].item() if ours else 0.0
        found = {span: subspace.RetainSubspace.from_tensors(values, device) for span, values in by_span.items()}
        self.spaces = found if ours else {}
        self.leftover = None


GUARD_RAIL = RetainSubspaceRail
