"""The mean retain gradient, one-sided: of an update, only what raises retain loss is taken out (A-GEM)."""

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


class AGEMProjection(GuardRail):
    """Of a step, only what does harm is taken out: its part along the mean retain gradient r, where it goes uphill.

    A gradient g of what is minimised becomes g - <g, r> / ||r||^2 r where <g, r> < 0 (A-GEM, arXiv 1812.00420; GRU,
    arXiv 2503.09117), an update u the same where <u, r> > 0; everything else stays as it is, to the bit. r is the mean
    over the rows and over the last `history` refreshes, all alike, where GRU's code has a running mean of 0.8 new and
    0.2 old, and A-GEM one batch. With `scope = "layer"` each layer is judged, and freed, by itself.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "one-sided (GRU, A-GEM)",
        "of the update, only what raises the retain loss is taken out",
        settings=RETAIN_ROWS,
        gauges={
            "conflict": Gauge(
                "conflict",
                "Cosine between what the step wants and what raises the loss on text to keep: above 0 they conflict.",
            ),
            "rail_drift": DRIFT,
        },
    )

    @classmethod
    def memory(cls, settings: GuardRailSettings) -> RailMemory:
        """The mean gradient of each refresh, their mean, its direction, and the weights where drift counts."""
        rows, history = gradient_rows(settings), settings.history
        return RailMemory(rows, history + 2 + (settings.refresh == "drift"), 2 * rows + history + 2)

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.history = context.config.guard_rail.history
        self.spans, self.refreshes = retain_rows.spans(context), retain_rows.Refreshes(context)
        self.means = torch.empty(0, context.adapter.values.numel(), device=context.adapter.values.device)
        self.mean = torch.zeros_like(context.adapter.gradient)
        self.lines: dict[str, RetainSubspace] = {}  # the direction of r in each span
        self.norm_median = self.conflict = 0.0

    def refresh(self, step: int) -> int:
        if not self.refreshes.due(step):
            return 0
        rows, _, read = retain_rows.retain_gradients(self.context, step)
        norms = rows.norm(dim=1)
        self.norm_median = norms.median().item()
        if norms.isfinite().any():
            newest = rows[norms.isfinite()].mean(0, keepdim=True)
            self.means = torch.cat([self.means, newest])[-self.history :]
        self._fit()
        self.refreshes.made(step)
        return read

    def _fit(self) -> None:
        self.mean = self.means.mean(0) if len(self.means) else torch.zeros_like(self.mean)
        fitted = {name: subspace.RetainSubspace.fit(self.mean[None, part]) for name, part in self.spans.items()}
        self.lines = {name: line for name, line in fitted.items() if line}

    def _freed(self, vector: Tensor, harm: int) -> Tensor:
        """`vector` without its part along r in each span where `harm * <vector, r>` is above 0."""
        freed = vector.clone()
        for name, line in self.lines.items():
            part = vector[self.spans[name]]
            if harm * line.coordinates(part).item() > 0:
                freed[self.spans[name]] = line.project_out(part)
        return freed

    def project_gradient(self, gradient: Tensor) -> Tensor:
        lengths = (gradient.norm() * self.mean.norm()).item()
        self.conflict = -(gradient @ self.mean).item() / lengths if lengths else 0.0
        return self._freed(gradient, -1)

    def project_out(self, update: Tensor, retain_gradient: Tensor | None, gain: float) -> Tensor:
        return self._freed(update, 1)

    def values(self) -> dict[str, float]:
        """`conflict`: cosine between descent on what is minimised and ascent on retain text; above 0 they conflict."""
        if not self.lines:
            return self.refreshes.values()
        found = {"conflict": self.conflict, "retain_gradient_norm_median": self.norm_median}
        return {**found, **self.refreshes.values()}

    def tensors(self) -> dict[str, Tensor]:
        found = self.refreshes.tensors()
        if self.refreshes.last:
            numbers = torch.tensor([self.norm_median, self.conflict], dtype=torch.float64)
            found |= {"means": self.means, "numbers": numbers}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        ours = "means" in tensors
        self.refreshes.restore(tensors if ours else {})
        self.means = tensors["means"].to(self.context.adapter.values, copy=True) if ours else self.means[:0]
        self.norm_median, self.conflict = tensors["numbers"].tolist() if ours else (0.0, 0.0)
        self._fit()


GUARD_RAIL = AGEMProjection
