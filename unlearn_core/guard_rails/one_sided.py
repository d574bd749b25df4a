"""The mean retain gradient, one-sided: the component of an update that raises the retain loss is removed (A-GEM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn_core.guard_rails.base import Gauge, GuardRail, RailFacts, RailMemory, Rule, RunContext, Tensor, torch
from unlearn_core.guard_rails.shared.settings import DRIFT, RetainRowSettings, rows_of
from unlearn_core.settings.imports import Lazy

if TYPE_CHECKING:
    from unlearn_core.guard_rails.shared import retain_rows, subspace
else:
    retain_rows = Lazy("unlearn_core.guard_rails.shared.retain_rows")
    subspace = Lazy("unlearn_core.guard_rails.shared.subspace")


@dataclass(frozen=True)
class OneSidedSettings(RetainRowSettings):
    """Settings of the one-sided guard rail: those of the retain subspace."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            when=lambda run: rows_of(run).rows == "logit",
            fields=("guard_rail.kind", "guard_rail.rows"),
            because="the gradient of a logit has no harmful side",
            fix={"guard_rail.rows": "group"},
            or_else="choose the guard rail retain_subspace",
            automatic=True,
        ),
    )

    def memory(self) -> RailMemory:
        """The mean gradient of each refresh, their mean, its direction, and the weights where drift counts."""
        rows, history = self.gradients, self.history
        stored, fresh = history + 2 + (self.refresh == "drift"), 2 * rows + history + 2
        return RailMemory(rows, self.samples_of_a_gradient, stored, fresh, fewer=self.fewer)


class AGEMProjection(GuardRail):
    """Removes a step's component along the mean retain gradient r where it raises the retain loss.

    A gradient g of what is minimised becomes g - <g, r> / ||r||^2 r where <g, r> < 0 (A-GEM, arXiv 1812.00420; GRU,
    arXiv 2503.09117), an update u the same where <u, r> > 0; everything else stays as it is, to the bit. r is the mean
    over the rows and over the last `history` refreshes, all alike, where GRU's code has a running mean of 0.8 new and
    0.2 old, and A-GEM one batch. With `scope = "layer"` each layer is projected by itself.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "one-sided (GRU, A-GEM)",
        "the component of the update that raises the retain loss is removed",
        OneSidedSettings,
        gauges={
            "conflict": Gauge(
                "conflict",
                "Cosine between the step and the ascent direction of the retain loss: above 0 they conflict.",
            ),
            "rail_drift": DRIFT,
        },
    )

    settings: OneSidedSettings

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.spans = retain_rows.spans(context, self.settings)
        self.refreshes = retain_rows.Refreshes(context, self.settings)
        self.means = torch.empty(0, context.adapter.values.numel(), device=context.adapter.values.device)
        self.mean = torch.zeros_like(context.adapter.gradient)
        self.lines: dict[str, subspace.RetainSubspace] = {}  # the direction of r in each span
        self.norm_median = self.conflict = 0.0

    def refresh(self, step: int) -> int:
        if not self.refreshes.due(step):
            return 0
        rows, _, tokens = retain_rows.retain_gradients(self.context, self.settings, step)
        norms = rows.norm(dim=1)
        self.norm_median = norms.median().item()
        if norms.isfinite().any():
            newest = rows[norms.isfinite()].mean(0, keepdim=True)
            self.means = torch.cat([self.means, newest])[-self.settings.history :]
        self._fit()
        self.refreshes.made(step)
        return tokens

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

    def project_out(self, update: Tensor) -> Tensor:
        return self._freed(update, 1)

    def values(self) -> dict[str, float]:
        """`conflict`: cosine between the descent direction and the ascent direction of the retain loss."""
        if not self.lines:
            return self.refreshes.values()
        own = {"conflict": self.conflict, "retain_gradient_norm_median": self.norm_median}
        return {**own, **self.refreshes.values()}

    def tensors(self) -> dict[str, Tensor]:
        state = self.refreshes.tensors()
        if self.refreshes.last:
            numbers = torch.tensor([self.norm_median, self.conflict], dtype=torch.float64)
            state |= {"means": self.means, "numbers": numbers}
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        ours = "means" in tensors
        self.refreshes.restore(tensors if ours else {})
        self.means = tensors["means"].to(self.context.adapter.values, copy=True) if ours else self.means[:0]
        self.norm_median, self.conflict = tensors["numbers"].tolist() if ours else (0.0, 0.0)
        self._fit()


GUARD_RAIL = AGEMProjection
